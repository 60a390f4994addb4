import pytest
import torch
from avalanche.benchmarks.utils import as_classification_dataset
from torch.utils.data import TensorDataset

from avalanche_ntk import NTKPlugin, Probe, ProbeSpec
from avalanche_ntk.errors import ArgumentError, ProbeError
from tests.support.lines import make_strategy, run, tiny_stream


def dataset_of(counts):
    """Sample i of the dataset is the number i; classes in the given sizes, interleaved at the front."""
    y = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    return as_classification_dataset(labelled(torch.arange(len(y), dtype=torch.float32).unsqueeze(1), y))


def labelled(x, y):
    dataset = TensorDataset(x, y)
    dataset.targets = y.tolist()
    return dataset


@pytest.mark.parametrize(
    ("counts", "size", "expected"),
    [
        ([10, 10], 6, [3, 3]),
        ([10, 10, 10], 7, [3, 2, 2]),  # the remainder goes to the first classes
        ([1, 10], 6, [1, 5]),  # a class that is too small gives its share to the others
        ([2, 3], 5, [2, 3]),  # everything
        ([10, 10, 10], 2, [1, 1, 0]),
    ],
)
def test_classes_are_balanced(counts, size, expected):
    probe = ProbeSpec(size=size).choose(dataset_of(counts))
    assert torch.bincount(probe.y, minlength=len(counts)).tolist() == expected
    assert probe.x.squeeze(1).tolist() == [float(i) for i in probe.indices]
    assert probe.size == size


def test_the_choice_depends_on_the_seed_only():
    dataset = dataset_of([30, 30])
    torch.manual_seed(1)
    a = ProbeSpec(size=8, seed=3).choose(dataset)
    torch.manual_seed(2)
    b = ProbeSpec(size=8, seed=3).choose(dataset)
    assert a.hash == b.hash
    assert a.indices == b.indices
    assert ProbeSpec(size=8, seed=4).choose(dataset).hash != a.hash


def test_a_probe_is_printed_without_its_numbers():
    probe = Probe.from_tensors(torch.zeros(4, 3, 8, 8), [0, 0, 1, 1], name="mine")
    assert repr(probe) == (f"Probe(name='mine', size=4, shape=(3, 8, 8), experience=None, hash='{probe.hash[:12]}')")
    pair = Probe.from_tensors((torch.zeros(2, 3), torch.zeros(2)), [0, 1])
    assert "shape=[(3,), ()]" in repr(pair)


def test_the_hash_covers_inputs_labels_and_task_labels():
    x, y = torch.arange(4.0).unsqueeze(1), torch.tensor([0, 0, 1, 1])
    probes = [
        Probe.from_tensors(x, y),
        Probe.from_tensors(x + 1e-7, y),
        Probe.from_tensors(x, y.flip(0)),
        Probe.from_tensors(x, y, task_labels=1),
        Probe.from_tensors(x.double(), y),
    ]
    assert len({p.hash for p in probes}) == 5
    assert probes[0].hash == Probe.from_tensors(x.clone(), y.tolist()).hash


def test_the_evaluation_transform_is_used_and_draws_nothing_from_training():
    stream = tiny_stream(transform=lambda x: x * 0)  # the training transform loses everything
    state = torch.get_rng_state()
    probe = ProbeSpec(size=6).choose(stream.train_stream[0].dataset)
    assert (probe.x != 0).all()
    assert torch.equal(torch.get_rng_state(), state)


def test_uniform_choice_is_sorted_and_without_repetition():
    probe = ProbeSpec(size=9, balance="none").choose(dataset_of([5, 5]))
    assert list(probe.indices) == sorted(set(probe.indices))


def test_a_later_experience_and_the_test_stream():
    ntk = NTKPlugin([ProbeSpec(size=4, from_experience=1), ProbeSpec(size=4, from_experience=0, split="test")])
    run(make_strategy(plugins=[ntk]), tiny_stream())
    assert set(ntk.probes) == {"Exp001", "Exp000_test"}
    assert sorted(ntk.probes["Exp001"].y.unique().tolist()) == [2, 3]
    assert ntk.trajectories["Exp001"][0].clock.experience == 0  # known from the start, so measured from the start


REFUSALS = [
    (
        lambda: ProbeSpec(size=0),
        ArgumentError,
        "a probe needs at least 1 sample, a whole number; found size=0. Give size=64, for example.",
    ),
    *(
        (
            lambda size=size: ProbeSpec(size=size),
            ArgumentError,
            f"a probe needs at least 1 sample, a whole number; found size={size!r}. Give size=64, for example.",
        )
        for size in ("8", 8.0, True, None)
    ),
    (
        lambda: ProbeSpec(from_experience="0"),
        ArgumentError,
        "from_experience counts from 0 (the first task); found '0'. Give from_experience=0.",
    ),
    (
        lambda: ProbeSpec(from_experience=-1),
        ArgumentError,
        "from_experience counts from 0 (the first task); found -1. Give from_experience=0.",
    ),
    (
        lambda: ProbeSpec(balance="clas"),
        ArgumentError,
        "unknown balance 'clas': expected one of 'class', 'none'. Did you mean 'class'?",
    ),
    (
        lambda: ProbeSpec(size=25).choose(tiny_stream().train_stream[0].dataset),
        ProbeError,
        "the probe asks for 25 samples and experience 0 has 24 (train set). Give ProbeSpec(size=24) or less, "
        "or choose another experience.",
    ),
    (
        lambda: ProbeSpec(size=1).choose(TensorDataset(torch.zeros(2, 1))),
        ProbeError,
        "a probe needs labelled samples: batches (x, y) or (x, y, task labels), or a dict with 'labels'; found batches "
        "of one entry. Give the samples with Probe.from_tensors(x, y).",
    ),
    (
        lambda: Probe.from_tensors(torch.zeros(3, 2), [0, 1]),
        ProbeError,
        "a probe needs the same number (at least 1) of inputs, labels and task labels; "
        "found x: 3, y: 2, task_labels: 2. Give one label and one task label for each input.",
    ),
    (
        lambda: Probe.from_tensors([1.0, 2.0], [0, 1]),
        ProbeError,
        "a probe needs inputs as a tensor, or a tuple or dict of tensors; found list. "
        "Give Probe(x=tensor, y=labels, task_labels=...).",
    ),
    (
        lambda: run(make_strategy(plugins=[NTKPlugin(ProbeSpec(size=4, from_experience=2))]), tiny_stream()),
        ProbeError,
        "the probe asks for experience 2 and the train stream has 2. Give ProbeSpec(from_experience=1) or less.",
    ),
]


@pytest.mark.parametrize(("action", "kind", "message"), REFUSALS, ids=[m[:40] for _, _, m in REFUSALS])
def test_refusals(action, kind, message):
    with pytest.raises(kind) as caught:
        action()
    assert str(caught.value) == message
