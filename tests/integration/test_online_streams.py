"""On an online stream a boundary is a change of task; the pieces that training sees are none."""

import copy
import itertools
import json
from functools import partial

import numpy as np
import pytest
import torch
from avalanche.benchmarks.scenarios.online import (
    OnlineCLExperience,
    split_continuous_linear_decay_stream,
    split_online_stream,
)
from avalanche.benchmarks.scenarios.supervised import with_classes_timeline
from avalanche.logging import InteractiveLogger
from avalanche.models import IncrementalClassifier
from avalanche.training import Naive, OnlineNaive
from avalanche.training.plugins import SupervisedPlugin
from torch import nn

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.adapters.checkpoints import load_checkpoint, save_checkpoint
from avalanche_ntk.adapters.tasks import Tasks
from avalanche_ntk.errors import RunFolderError
from avalanche_ntk.lab.models import MLP
from avalanche_ntk.observables import StaticKernelForecast
from avalanche_ntk.recorder.runfolder import RunFolder
from avalanche_ntk.report.boundaries import boundary_rows
from avalanche_ntk.report.inspection import inspect_run
from avalanche_ntk.report.runs import read_run
from tests.support.lines import (
    BatchRecorder,
    differences,
    fingerprint,
    make_strategy,
    seed_everything,
    tiny_stream,
)

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated function:DeprecationWarning")

EVERY_STEP = Schedule.every_iterations(1)


def stream(size=4, tasks=2, **arguments):
    """Two tasks of 48 samples each, cut into pieces; 12 of them where a piece has 4 samples."""
    return split_online_stream(
        tiny_stream(tasks, per_class=24).train_stream, experience_size=size, **{"seed": 0, **arguments}
    )


def mlp(outputs=4):
    return MLP(6, outputs, width=8, depth=1)


def trained(pieces=None, schedule=EVERY_STEP, plugins=(), measured=True, model=mlp, how=None, **arguments):
    """Train on the pieces, one iteration each; return plugin, strategy and the order of batches."""
    seed_everything()
    ntk = NTKPlugin(**{"probe": ProbeSpec(size=8), "schedule": schedule, "on_error": "raise", **arguments})
    recorder = BatchRecorder()
    strategy = make_strategy(
        model=model(),
        plugins=[*([ntk] if measured else []), *plugins, recorder],
        metrics=[ntk_metrics(ntk)] if measured else [],
        **{"batch": 4, "epochs": 1, **(how or {})},
    )
    for piece in stream() if pieces is None else pieces:
        strategy.train(piece)
    return ntk, strategy, recorder.batches


def moments(ntk):
    return [(m.clock.event, m.clock.iteration, m.clock.experience, m.clock.exp_iteration) for m in ntk.trajectory]


def task(number, between, length=12):
    """The moments of one task whose iterations `between` are due."""
    first = number * length
    return [
        ("experience_start", first, number, 0),
        *[("iteration", first + i, number, i) for i in between],
        ("experience_end", first + length, number, length),
    ]


@pytest.mark.parametrize(
    ("schedule", "between"),
    [
        (Schedule.boundaries_only(), []),  # 2 tasks, a start and an end each: 4 measurements
        (Schedule.around_boundaries(), [1, 2, 3, 4, 6, 10]),  # the default: 8 measurements a task
        (Schedule.every_iterations(5), [5, 10]),
        (Schedule.every_epochs(1), []),  # a pass over a piece is no epoch of the task
    ],
    ids=lambda value: value.describe() if isinstance(value, Schedule) else None,
)
def test_a_task_is_measured_at_its_start_at_its_end_and_when_due(schedule, between):
    ntk, _, _ = trained(schedule=schedule)
    assert moments(ntk) == task(0, between) + task(1, between)
    assert {m.clock.epoch for m in ntk.trajectory} == {0}
    assert {m.clock.task_label for m in ntk.trajectory} == {0}
    assert not any("velocity_per_epoch" in m.values for m in ntk.trajectory)
    reason = "the number of iterations in an epoch is not known"
    assert {m.reasons["velocity_per_epoch"] for m in ntk.trajectory} == {reason}


def test_the_first_boundary_is_where_the_second_task_begins():
    ntk, strategy, _ = trained()
    trajectory = ntk.trajectory
    assert list(trajectory.reactivations) == [0, 1]
    v = {m.clock.iteration: m.values["velocity_per_iteration"] for m in trajectory if m.clock.event == "iteration"}
    base = np.median([v[i] for i in range(7, 13)])  # in the second half of the task before
    peak = max(v[i] for i in (13, 14, 15))
    found = trajectory.reactivations[1]
    assert (found.boundary, found.end) == (12, 24)
    assert found.base == pytest.approx(base)
    assert found.spike == pytest.approx(peak - base)
    assert found.ratio == pytest.approx(peak / base)
    assert trajectory.reactivations[0].onset == max(v[i] for i in (1, 2, 3))
    # Nothing is trained between the end of a task and the start of the next one.
    start = trajectory[14]
    assert (start.clock.event, start.values["distance_previous"]) == ("experience_start", 0.0)
    assert "velocity_per_iteration" not in start.values
    tags = strategy.evaluator.get_all_metrics()
    assert tags["NTK_Spike/train_phase/train_stream/Task000/Exp000"] == ([12], [found.spike])
    assert tags["NTK_OnsetVelocity/train_phase/train_stream/Task000/Exp000"][0] == [0]


@pytest.mark.parametrize("size", [4, 5, 48])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("access", [False, True])
def test_pieces_of_every_size(size, drop_last, access):
    pieces = stream(size, drop_last=drop_last, access_task_boundaries=access)
    # Batches of 48: an iteration a piece.
    ntk, _, _ = trained(pieces, Schedule.boundaries_only(), how={"batch": 48})
    count = 48 // size if drop_last else -(-48 // size)
    assert moments(ntk) == task(0, [], count) + task(1, [], count)
    assert list(ntk.trajectory.reactivations) == [0, 1]


def three_passes(train_epochs, **arguments):
    return OnlineNaive(train_passes=3 * train_epochs, **arguments)


def test_several_passes_over_each_piece():
    with pytest.warns(DeprecationWarning, match="Online strategies are not differentiated"):
        ntk, _, _ = trained(schedule=Schedule.every_iterations(20), how={"strategy": three_passes})
    assert moments(ntk) == task(0, [20], 36) + task(1, [20], 36)


def test_a_lazy_stream_in_one_call():
    def each(pieces):
        ntk = NTKPlugin(ProbeSpec.each_task(size=8), Schedule.boundaries_only(), on_error="raise")
        strategy = make_strategy(plugins=[ntk], epochs=1, batch=4)
        strategy.train(pieces, eval_streams=[])
        return ntk

    ntk = each(stream())
    assert list(ntk.trajectories) == ["Exp000", "Exp001"]
    assert [len(t) for t in ntk.trajectories.values()] == [4, 2]
    assert moments(ntk) == task(0, []) + task(1, [])


def by_class(experience, size):
    """A splitter of one's own, which marks no piece as the first or the last one of its task."""
    for i in range(0, len(experience.dataset), size):
        yield OnlineCLExperience(
            dataset=experience.dataset.subset(list(range(i, i + size))), origin_experience=experience
        )


def test_pieces_that_do_not_say_where_they_stand():
    pieces = split_online_stream(tiny_stream(2, per_class=24).train_stream, 4, experience_split_strategy=by_class)
    ntk, _, _ = trained(pieces, Schedule.boundaries_only())
    assert moments(ntk) == task(0, []) + task(1, [])


def test_a_task_that_is_left_early_ends_where_the_next_one_begins(tmp_path):
    pieces = list(stream())
    ntk, _, _ = trained(pieces[:7] + pieces[12:], Schedule.every_iterations(3), run_folder=tmp_path / "run")
    assert moments(ntk) == [
        ("experience_start", 0, 0, 0),
        ("iteration", 3, 0, 3),
        ("iteration", 6, 0, 6),
        ("experience_start", 7, 1, 0),
        *[("iteration", 7 + i, 1, i) for i in (3, 6, 9, 12)],
        ("experience_end", 19, 1, 12),
    ]
    first, second = ntk.trajectory.reactivations.values()
    assert (first.end, second.boundary, second.end) == (6, 7, 19)
    assert second.base_in_onset and second.base is None  # no interval lies in the second half of seven iterations
    states = [r for r in RunFolder.open(tmp_path / "run").records() if r["kind"] == "state"]
    assert [(s["experience"], s["counts"]["iteration"]) for s in states] == [(0, 7), (1, 19)]


def test_a_task_that_comes_again_is_a_boundary():
    pieces = list(stream(tasks=1))
    ntk, _, _ = trained(pieces + pieces, Schedule.boundaries_only(), model=partial(mlp, 2))
    assert moments(ntk) == task(0, []) + task(1, [])


def test_tasks_that_fade_into_each_other_have_no_boundary():
    torch.manual_seed(0)
    pieces = list(
        split_continuous_linear_decay_stream(
            tiny_stream(2, per_class=24).train_stream, 8, iters_per_virtual_epoch=6, beta=4, shuffle=True
        )
    )
    assert len(pieces) == 12
    ntk, _, _ = trained(pieces, Schedule.every_iterations(5), probe=ProbeSpec(size=6), how={"batch": 8})
    assert moments(ntk) == task(0, [5, 10])
    assert ntk.probes["Exp000"].size == 6  # of the first piece: there is no task to choose from


def test_a_forecast_is_that_of_the_task_and_not_of_its_first_piece():
    ntk, _, _ = trained(schedule=Schedule.boundaries_only(), observe=[StaticKernelForecast(size=24)], outputs="all")
    (forecast,) = ntk.observables[0]._forecasts.values()
    assert sorted(forecast.labels.tolist()) == [2] * 12 + [3] * 12


def test_training_is_bit_identical():
    prints = []
    for measured in (False, True):
        ntk, strategy, batches = trained(measured=measured)
        prints.append({**fingerprint(strategy), "batches": batches})
    assert len(ntk.trajectory) == 28
    assert len(prints[0]["batches"]) == 24
    assert differences(*prints) == []


# ---------------------------------------------------------------------- changes between pieces


class Changes(SupervisedPlugin):
    """Writes weights before the sixth and the seventh piece, through `data`, which no version counter sees."""

    def __init__(self, hook, names):
        super().__init__()
        self.names = names
        setattr(self, hook, self.write)

    def write(self, strategy, **kwargs):
        if strategy.clock.train_exp_counter in (5, 6):
            for name, parameter in strategy.model.named_parameters():
                if name in self.names:
                    parameter.data.mul_(0.5)


NAMES = [name for name, _ in MLP(6, 4, width=8, depth=1).named_parameters()]


@pytest.mark.parametrize(
    ("hook", "when"),
    [
        ("before_train_dataset_adaptation", "since the last piece"),
        ("before_training_epoch", "after a piece's start and before the first step"),
    ],
)
def test_weights_written_between_pieces_are_noticed(hook, when):
    ntk, _, _ = trained(plugins=[Changes(hook, NAMES[-1:])])
    noted = [(m.clock.iteration, m.segment, m.notes) for m in ntk.trajectory if m.notes]
    assert noted == [(i, 0, (f"classifier.bias changed {when}, outside training",)) for i in (6, 7)]
    ntk, _, _ = trained(plugins=[Changes(hook, NAMES)])
    noted = [(m.clock.iteration, m.segment, m.notes) for m in ntk.trajectory if m.notes]
    assert noted == [(i, i - 5, (f"the parameters were changed {when}: a new segment begins",)) for i in (6, 7)]
    assert not [name for name in ntk.trajectory[6].values if name.startswith("distance")]
    assert list(ntk.trajectory.reactivations) == [0, 1]


def test_a_head_that_grows_with_a_piece_is_noted_where_it_is_next_measured():
    # In the order of the classes: six pieces of each, and an output more with the first of them.
    pieces = split_online_stream(tiny_stream(2, per_class=24).train_stream, 4, experience_split_strategy=by_class)
    with pytest.warns(UserWarning, match="stream generator will be converted to a list"):
        pieces = with_classes_timeline(pieces)

    def growing():
        return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), IncrementalClassifier(5, initial_out_features=1))

    ntk, _, _ = trained(pieces, Schedule.every_iterations(4), model=growing)
    grown = [(m.clock.event, m.clock.iteration, m.notes) for m in ntk.trajectory if m.notes]
    shapes = [
        (i, f"2.classifier.bias [{a}] to [{b}], 2.classifier.weight [{a}, 5] to [{b}, 5]")
        for i, a, b in ((8, 1, 2), (12, 2, 3), (20, 3, 4))
    ]
    assert grown == [
        ("experience_start" if i == 12 else "iteration", i, (f"trainable parameters resized: {told}",))
        for i, told in shapes
    ]


# ---------------------------------------------------------------------- going on, and what is read


def records(folder):
    found = RunFolder.open(folder).records()
    for record in found:
        if record["kind"] == "measurement":
            record["values"] = {k: v for k, v in record["values"].items() if not k.startswith("measur")}
            del record["trust"]["seconds"]
        record.pop("training_seconds", None)
        record.pop("measuring_seconds", None)
    return found


def test_going_on_behind_a_task(tmp_path):
    pieces, model = list(stream(tasks=3)), partial(mlp, 6)
    whole, _, _ = trained(pieces, run_folder=tmp_path / "whole", model=model)
    broken, strategy, _ = trained(pieces[:24], run_folder=tmp_path / "broken", model=model)
    weights, optimizer = copy.deepcopy((strategy.model.state_dict(), strategy.optimizer.state_dict()))
    generators = torch.get_rng_state()
    for piece in pieces[24:27]:  # beyond the checkpoint
        strategy.train(piece)
    broken.close()

    class Restored(Naive):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            self.model.load_state_dict(weights)
            self.optimizer.load_state_dict(optimizer)
            self.optimized_param_id = dict(self.model.named_parameters())
            torch.set_rng_state(generators)

    ntk, _, _ = trained(
        pieces[24:], run_folder=tmp_path / "broken", model=model, resume=True, how={"strategy": Restored}
    )
    assert records(tmp_path / "broken") == records(tmp_path / "whole")
    assert len(ntk.trajectory) == len(whole.trajectory) == 42


def test_going_on_within_a_task_from_a_checkpoint_of_the_strategy(tmp_path, capsys):
    interactive = {"how": {"loggers": [InteractiveLogger()]}}  # which goes into a checkpoint
    whole, _, _ = trained(run_folder=tmp_path / "whole", **interactive)
    pieces = list(stream())
    broken, strategy, _ = trained(pieces[:17], run_folder=tmp_path / "broken", **interactive)
    generators = torch.get_rng_state()
    save_checkpoint(strategy, tmp_path / "checkpoint")
    for piece in pieces[17:20]:
        strategy.train(piece)
    broken.close()
    strategy, _ = load_checkpoint(strategy, tmp_path / "checkpoint")
    torch.set_rng_state(generators)
    for piece in pieces[17:]:
        strategy.train(piece)
    assert records(tmp_path / "broken") == records(tmp_path / "whole")
    assert len(NTKPlugin.of(strategy).trajectory) == len(whole.trajectory) == 28


def test_a_run_does_not_go_on_within_a_task(tmp_path):
    pieces = list(stream())
    ntk, _, _ = trained(pieces[:15], run_folder=tmp_path / "run")
    ntk.close()
    with pytest.raises(RunFolderError) as caught:
        trained(pieces[15:], run_folder=tmp_path / "run", resume=True)
    assert str(caught.value) == (
        f"the run in {tmp_path / 'run'} can only be continued where a task begins: expected the first piece of a task "
        "of the "
        "online stream, found a later one. Train from a piece whose `is_first_subexp` is True, or save the whole "
        "strategy with avalanche_ntk.adapters.checkpoints, which can continue anywhere."
    )


def test_a_run_that_took_pieces_for_experiences_loads_and_does_not_go_on(tmp_path):
    pieces = list(stream())
    ntk, _, _ = trained(pieces[:12], run_folder=tmp_path / "run")
    ntk.close()
    # As such a run was written: nothing is said of online streams, and each piece has its records.
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    del run["meta"]["online"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(run))
    lines = [json.loads(line) for line in (tmp_path / "run" / "measurements.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        if line["kind"] == "measurement":
            line["clock"] |= {"experience": number, "exp_iteration": 0}
        else:
            line["experience"] = len(lines)
    (tmp_path / "run" / "measurements.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    read = read_run(tmp_path / "run")
    assert len(read.trajectory()) == 14 and read.problems == []
    with pytest.raises(RunFolderError) as caught:
        trained(pieces[12:], run_folder=tmp_path / "run", resume=16)
    assert str(caught.value) == (
        f"run folder {tmp_path / 'run'} cannot be continued with experience 16: it holds the complete experiences 16. "
        "Load the model that belongs to the run and train from experience 0 or 17, or measure into another folder."
    )
    with pytest.raises(RunFolderError) as caught:
        trained(pieces[12:], run_folder=tmp_path / "run", resume=17)
    assert str(caught.value) == (
        f"run folder {tmp_path / 'run'} cannot be continued on an online stream: it took each piece of a task for an "
        "experience, and boundaries are changes of task now. Measure into another folder."
    )


def test_tables_and_inspection_speak_of_tasks(tmp_path):
    ntk, _, _ = trained(run_folder=tmp_path / "run")
    run = read_run(tmp_path / "run")
    rows = boundary_rows([run])
    assert rows["experience"].tolist() == [0, 1]
    assert rows["spike"].tolist()[1] == ntk.trajectory.reactivations[1].spike
    assert inspect_run(tmp_path / "run").experiences == 2
    assert RunFolder.open(tmp_path / "run").meta["online"] is True
    assert ntk.summary()["experience"].tolist() == [0, 1]


# ---------------------------------------------------------------------- the rule alone


class Experience:
    """What an experience says of itself in logging mode."""

    def __init__(self, samples, **facts):
        self.dataset = range(samples)
        self.__dict__.update(facts)

    def logging(self):
        return self


def followed(experiences):
    tasks = Tasks()
    return [(tasks.begins(e), tasks.ends(e)) for e in experiences]


def test_every_experience_is_a_task_where_there_are_no_pieces():
    assert followed([Experience(3), Experience(3)]) == [(True, True)] * 2


def test_pieces_without_a_place_go_by_what_they_say():
    task = Experience(100)  # not in any stream: it has no place, and its size is never reached

    class Lost(Experience):
        @property
        def origin_stream(self):
            raise AssertionError

    task = Lost(100)
    facts = [(True, False), (False, False), (False, True), (True, False), (False, False)]
    pieces = [Experience(2, origin_experience=task, is_first_subexp=a, is_last_subexp=b) for a, b in facts]
    assert followed(pieces) == facts


def test_a_piece_behind_the_last_one_goes_on_with_its_task():
    task = Experience(4, origin_stream=type("Stream", (), {"name": "train"}), current_experience=0)
    pieces = [Experience(2, origin_experience=task) for _ in range(3)]
    assert followed(pieces) == [(True, False), (False, True), (False, True)]


def test_pieces_behind_whole_experiences_begin_a_task():
    task = Experience(4, origin_stream=type("Stream", (), {"name": "train"}), current_experience=0)
    pieces = [Experience(2, origin_experience=task) for _ in range(2)]
    assert followed([task, *pieces, task, *itertools.islice(pieces, 1)]) == [
        (True, True),
        (True, False),
        (False, True),
        (True, True),
        (True, False),
    ]
