"""Probes of the test stream and of other experiences, on every generator of Avalanche."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from avalanche.benchmarks import (
    CLScenario,
    CLStream,
    EagerCLStream,
    benchmark_from_datasets,
    benchmark_with_validation_stream,
    class_incremental_benchmark,
    nc_benchmark,
    new_instances_benchmark,
    ni_benchmark,
    split_online_stream,
    task_incremental_benchmark,
    with_classes_timeline,
    with_task_labels,
)
from avalanche.benchmarks.scenarios.dataset_scenario import DatasetExperience
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.benchmarks.utils.data_attribute import TaskLabels
from torch.utils.data import TensorDataset

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.adapters.checkpoints import load_checkpoint, save_checkpoint
from avalanche_ntk.adapters.strategy_host import StrategyHost
from avalanche_ntk.errors import ArgumentError, ProbeError
from tests.support.lines import make_strategy

SPECS = [ProbeSpec(size=4), ProbeSpec(size=4, split="test")]


def part(sign, n=24):
    """Four classes; inputs of the test part are negative, so that the parts are told apart."""
    y = torch.arange(n) % 4
    generator = torch.Generator().manual_seed(0)
    dataset = TensorDataset(sign * (1 + torch.rand(n, 6, generator=generator)), y)
    dataset.targets = y.tolist()
    return dataset


def split():
    data = {"train": as_classification_dataset(part(1)), "test": as_classification_dataset(part(-1))}
    return class_incremental_benchmark(data, num_experiences=2, class_order=[0, 1, 2, 3])


def halves(sign):
    data = as_classification_dataset(part(sign))
    return [data.subset(range(12)), data.subset(range(12, 24))]


def tasks(sign):
    return [
        data.update_data_attribute("targets_task_labels", TaskLabels([number] * len(data)))
        for number, data in enumerate(halves(sign))
    ]


def online():
    benchmark = split()
    pieces = split_online_stream(benchmark.train_stream, experience_size=6, seed=0)
    return CLScenario([pieces, benchmark.test_stream])


def old(**arguments):
    return nc_benchmark(part(1), part(-1), n_experiences=2, task_labels=False, shuffle=False, **arguments)


GENERATORS = {
    "nc_benchmark": (old, True),
    "ni_benchmark": (lambda: ni_benchmark(part(1), part(-1), n_experiences=2), True),
    "class_incremental_benchmark": (split, False),
    "new_instances_benchmark": (
        lambda: new_instances_benchmark(
            as_classification_dataset(part(1)), as_classification_dataset(part(-1)), num_experiences=2
        ),
        False,
    ),
    "task_incremental_benchmark": (lambda: task_incremental_benchmark(split()), False),
    "with_task_labels": (lambda: with_task_labels(benchmark_from_datasets(train=tasks(1), test=tasks(-1))), False),
    "with_classes_timeline": (
        lambda: with_classes_timeline(benchmark_from_datasets(train=halves(1), test=halves(-1))),
        False,
    ),
    "benchmark_with_validation_stream": (
        lambda: benchmark_with_validation_stream(split(), 0.5, shuffle=True, seed=0),
        False,
    ),
    "benchmark_from_datasets": (lambda: benchmark_from_datasets(train=halves(1), test=halves(-1)), False),
    "split_online_stream": (online, False),
}


def watched(make, known, give):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        benchmark = make()
    ntk = NTKPlugin(SPECS, Schedule.boundaries_only(), benchmark=benchmark if give else None, on_error="raise")
    strategy = make_strategy(plugins=[ntk], metrics=[ntk_metrics(ntk)], epochs=1)
    return ntk, strategy, next(iter(next(iter(benchmark.streams.values()))))


@pytest.mark.parametrize(("make", "known"), GENERATORS.values(), ids=GENERATORS)
def test_a_test_probe_of_every_generator(make, known):
    ntk, strategy, experience = watched(make, known, give=True)
    strategy.train(experience)
    assert (ntk.probes["Exp000"].x > 0).all()
    assert (ntk.probes["Exp000_test"].x < 0).all()
    assert ntk.trajectories["Exp000_test"].kernel(0).shape == (4, 4)


@pytest.mark.parametrize(("make", "known"), GENERATORS.values(), ids=GENERATORS)
def test_without_the_benchmark_it_is_found_or_asked_for_before_training(make, known):
    ntk, strategy, experience = watched(make, known, give=False)
    if known:
        strategy.train(experience)
        assert (ntk.probes["Exp000_test"].x < 0).all()
        return
    with pytest.raises(ProbeError) as caught:
        strategy.train(experience)
    assert str(caught.value) == (
        "the probe 'Exp000_test' is taken from the test stream, and the stream that is trained on does not say which "
        "benchmark it belongs to. Give it to the plugin, NTKPlugin(..., benchmark=benchmark), or choose the probe "
        "yourself: ProbeSpec(size=4, split='test').choose(benchmark.test_stream[0].dataset)."
    )
    assert strategy.clock.train_iterations == 0


def test_the_remedies_work():
    benchmark = split()
    chosen = ProbeSpec(size=4, split="test").choose(benchmark.test_stream[0].dataset)
    ntk = NTKPlugin([ProbeSpec(size=4), chosen], Schedule.boundaries_only(), on_error="raise")
    make_strategy(plugins=[ntk], epochs=1).train(benchmark.train_stream[0])
    given, strategy, experience = watched(split, False, give=True)
    strategy.train(experience)
    assert ntk.probes["Exp000_test"].hash == given.probes["Exp000_test"].hash


def test_a_later_experience_of_a_stream_that_is_a_list():
    make = GENERATORS["new_instances_benchmark"][0]
    benchmark = make()
    ntk = NTKPlugin([ProbeSpec(size=4, from_experience=1)], Schedule.boundaries_only(), on_error="raise")
    make_strategy(plugins=[ntk], epochs=1).train(next(iter(benchmark.train_stream)))
    second = benchmark.train_stream.exps_iter[1].dataset
    expected = torch.stack([second[i][0] for i in ntk.probes["Exp001"].indices])
    assert torch.equal(ntk.probes["Exp001"].x, expected)


def test_experiences_of_a_lazy_test_stream_are_made_when_they_are_needed():
    made = []

    def lazily():
        for number, data in enumerate(halves(-1)):
            made.append(number)
            torch.rand(3)  # what a generator draws is no part of training
            yield DatasetExperience(dataset=data)

    train = EagerCLStream("train", [DatasetExperience(dataset=data) for data in halves(1)])
    benchmark = CLScenario([train, CLStream("test", lazily())])
    ntk = NTKPlugin(SPECS, Schedule.boundaries_only(), benchmark=benchmark, on_error="raise")
    strategy = make_strategy(plugins=[ntk], epochs=1)
    strategy.experience = benchmark.train_stream[0]
    state = torch.get_rng_state()
    ntk._choose_probes(StrategyHost.of(strategy, benchmark))
    assert torch.equal(state, torch.get_rng_state())
    assert made == [0]
    assert (ntk.probes["Exp000_test"].x < 0).all()


REFUSED = [
    (
        [ProbeSpec.each_task(size=4, split="test")],
        "new_instances_benchmark",
        "a test probe of each task needs a test experience for each of the 2 tasks; the test stream has 1. Give "
        "ProbeSpec(split='test', from_experience=0) for a probe of one of them.",
    ),
    (
        [ProbeSpec(size=4, split="test", from_experience=1)],
        "new_instances_benchmark",
        "the probe asks for experience 1 and the test stream has 1. Give ProbeSpec(from_experience=0) or less.",
    ),
    (
        [ProbeSpec(size=4, from_experience=5)],
        "new_instances_benchmark",
        "the probe asks for experience 5 and the train stream has 2. Give ProbeSpec(from_experience=1) or less.",
    ),
]


@pytest.mark.parametrize(("specs", "name", "message"), REFUSED)
def test_what_a_stream_does_not_have_is_told_before_training(specs, name, message):
    benchmark = GENERATORS[name][0]()
    strategy = make_strategy(plugins=[NTKPlugin(specs, benchmark=benchmark)], epochs=1)
    with pytest.raises(ProbeError) as caught:
        strategy.train(next(iter(benchmark.train_stream)))
    assert str(caught.value) == message
    assert strategy.clock.train_iterations == 0


def test_a_benchmark_without_a_test_stream():
    benchmark = benchmark_from_datasets(train=halves(1), held_out=halves(-1))
    strategy = make_strategy(plugins=[NTKPlugin(SPECS, benchmark=benchmark)], epochs=1)
    with pytest.raises(ProbeError) as caught:
        strategy.train(benchmark.train_stream[0])
    assert str(caught.value) == (
        "the probe 'Exp000_test' is taken from the stream 'test', and the benchmark has 'train', 'held_out'. Choose it "
        "yourself: ProbeSpec(size=4, split='test').choose(dataset)."
    )


def test_what_is_no_benchmark():
    with pytest.raises(ArgumentError) as caught:
        NTKPlugin(benchmark=SimpleNamespace())
    assert str(caught.value) == (
        "benchmark must be an Avalanche benchmark, which has streams; found SimpleNamespace. Give the one whose "
        "train_stream is trained on."
    )


@pytest.mark.filterwarnings("ignore:No loggers specified:UserWarning")
def test_each_task_has_its_test_probe_also_after_a_checkpoint(tmp_path):
    def make():
        benchmark = split()
        spec = ProbeSpec.each_task(size=4, split="test")
        ntk = NTKPlugin(spec, Schedule.boundaries_only(), benchmark=benchmark, on_error="raise")
        return benchmark, make_strategy(plugins=[ntk], epochs=1, loggers=[])

    benchmark, strategy = make()
    strategy.train(benchmark.train_stream[0])
    save_checkpoint(strategy, tmp_path / "checkpoint")
    benchmark, strategy = make()
    strategy, trained = load_checkpoint(strategy, tmp_path / "checkpoint", unique_objects=benchmark)
    assert trained == 1
    strategy.train(benchmark.train_stream[1])
    probes = NTKPlugin.of(strategy).probes
    assert list(probes) == ["Exp000_test", "Exp001_test"]
    assert sorted(probes["Exp001_test"].y.unique().tolist()) == [2, 3]
