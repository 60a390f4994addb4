"""What measuring will cost is predicted from its first seconds, and told once where it is much."""

import itertools
import warnings

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import nn

from avalanche_ntk import NTKPlugin, NTKRecorder, Probe, Schedule
from avalanche_ntk.errors import MeasurementCostWarning
from avalanche_ntk.recorder import stepclock
from avalanche_ntk.recorder.cost import SPARSER, Cost, CostWatch, Reduction, Task, percent
from avalanche_ntk.recorder.measurer import Measurer
from tests.support.lines import MLP, make_strategy, run, tiny_stream


def probe():
    generator = torch.Generator().manual_seed(5)
    return Probe.from_tensors(torch.randn(8, 6, generator=generator), torch.arange(8) % 2, name="mine")


class Time:
    """A clock that goes on by what it is told that things take; what happens first takes longer."""

    def __init__(self, iteration, measurement):
        self.now = 0.0
        self.iterations = itertools.chain([100.0], itertools.repeat(iteration))
        self.measurements = itertools.chain([50.0], itertools.repeat(measurement))


@pytest.fixture
def timed(monkeypatch):
    """Return a function that sets the seconds of an iteration and of a measurement."""

    def begin(iteration, measurement):
        time, measure = Time(iteration, measurement), Measurer.measure

        def measured(*args, **kwargs):
            time.now += next(time.measurements)
            return measure(*args, **kwargs)

        monkeypatch.setattr(Measurer, "measure", measured)
        monkeypatch.setattr(stepclock.time, "perf_counter", lambda: time.now)
        return time

    return begin


def train(time, recorder, *, tasks=1, epochs=2, iterations=20, known=True):
    """Train tasks; `known`: whether their lengths are told. Return the model."""
    torch.manual_seed(0)
    model = MLP(6, 4, width=8, depth=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    told = {"epochs": epochs, "iterations_per_epoch": iterations} if known else {}
    for _ in range(tasks):
        with recorder.experience(model, optimizer, **told):
            for _ in range(epochs):
                for _ in range(iterations):
                    time.now += next(time.iterations)
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(model(torch.randn(8, 6)), torch.arange(8) % 4).backward()
                    optimizer.step()
                    recorder.after_iteration()
                recorder.after_epoch()
    return model


def caught(action):
    """Return the warnings about the cost that an action gives, and what it returns; other warnings are errors."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", MeasurementCostWarning)
        result = action()
    assert {w.category for w in found} <= {MeasurementCostWarning}
    return found, result


# ---------------------------------------------------------------------- the prediction


@pytest.mark.parametrize("length", [(1, 7), (3, 23), (30, 2)])
@pytest.mark.parametrize(
    "name", ["around_boundaries", *SPARSER[:2], "every_iterations:3", "every_epochs:2|log_spaced:3", "at:4,5"]
)
def test_a_task_is_measured_as_often_as_predicted(name, length):
    epochs, iterations = length
    recorder = NTKRecorder(probe(), name, on_error="raise")
    train(Time(0.0, 0.0), recorder, epochs=epochs, iterations=iterations)
    assert Task(epochs, iterations, 0.1, 0.2).cost(recorder.schedule).measurements == len(recorder.trajectory)


def test_the_cost_of_a_task():
    # Iterations 5, 10, 15 and 20, and the two boundaries: 6 of 2 s, beside 20 of 0.4 s.
    cost = Task(2, 10, 0.4, 2.0).cost(Schedule.every_iterations(5))
    assert (cost.measurements, cost.measuring_seconds, cost.training_seconds) == (6, 12.0, 8.0)
    assert cost.share == 0.6
    assert Cost(0, 0.0, 0.0).share == 0.0
    # The start has cost 1 s; the next is due when 2 s are a quarter of what was trained: 8 s, then 12, 16 and 20.
    schedule = Schedule.share_of_training(0.25)
    schedule.note(1000.0, 1.0)  # a copy that has seen nothing is asked
    assert Task(2, 10, 1.0, 1.0).cost(schedule) == Cost(6, 6.0, 20.0)
    assert schedule.decisions == ()


class ThirdIteration(Schedule):
    """One of a user's own, which has no name."""

    def describe(self):
        return "mine"

    def _due_between(self, clock):
        return clock.exp_iteration == 3


def test_a_schedule_without_a_name_is_asked_too():
    assert Task(1, 10, 1.0, 1.0).cost(ThirdIteration()).measurements == 3


def test_reductions_are_compared_by_their_passes():
    trace = Reduction("trace", 99)
    # A forward pass and 99, 8, or 1 backward passes.
    assert trace.cheaper(50.0) == [(Reduction("projected", 99, 8), 4.5), (Reduction("sum_logits", 99), 1.0)]
    assert Reduction("projected", 99, 4).cheaper(5.0) == [(Reduction("sum_logits", 99), 2.0)]
    assert Reduction("trace", 8).cheaper(9.0) == [(Reduction("sum_logits", 8), 2.0)]
    assert Reduction("sum_logits", 99).cheaper(1.0) == []


def test_shares_are_written():
    assert [percent(s) for s in (0.0, 0.004, 0.01, 0.314, 1.0)] == ["0 %", "0.4 %", "1 %", "31 %", "100 %"]


# ---------------------------------------------------------------------- the warning

AS_ERROR = pytest.mark.filterwarnings("error::avalanche_ntk.errors.MeasurementCostWarning")  # as with python -W error

# 22 measurements of 4 s and 40 iterations of 1 s; `sum_logits` 2 passes in the place of 5, so 22 of 1.6 s; iterations
# 1, 3, 10 and 32 and the boundaries; the boundaries; the boundaries, with a twentieth of 40 s left for others.
MESSAGE = (
    "measuring will take about 69 % of this run's time: a measurement takes 4.00 s, a training iteration 1.00 s, and "
    "every_iterations:2 measures 22 times in a task of 40 iterations. What takes less: reduction='sum_logits' (about "
    "47 %); schedule='around_boundaries:2,5' (about 38 %); schedule='boundaries_only' (about 17 %); "
    "schedule='share_of_training:0.05' (about 17 %); a smaller probe. (Warned once.)"
)


def test_the_cost_is_told_once_where_training_is_called(timed):
    time, at = timed(1.0, 4.0), []
    recorder = NTKRecorder(probe(), Schedule.every_iterations(2), on_error="raise")
    count = recorder.after_iteration

    def counted():
        before = len(found)
        count()
        at.extend([recorder.clock.iteration] * (len(found) - before))

    recorder.after_iteration = counted
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        train(time, recorder, tasks=2)
    assert [(w.category, str(w.message)) for w in found] == [(MeasurementCostWarning, MESSAGE)]
    assert found[0].filename == __file__
    assert at == [10]


def test_a_strategy_is_told_too(timed):
    time = timed(1.0, 4.0)

    class Slow(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            time.now += next(time.iterations)

    ntk = NTKPlugin(probe(), "every_iterations:2", on_error="raise")
    strategy = make_strategy(model=MLP(6, 4, width=8, depth=1), plugins=[ntk, Slow()], epochs=5, batch=3)
    found, _ = caught(lambda: run(strategy, tiny_stream()))
    # Two classes of 12 samples, in batches of 3: 8 iterations an epoch, of which 20 are measured, and the boundaries.
    [told] = [str(w.message) for w in found]
    assert told.startswith(MESSAGE.partition(" What")[0])


@pytest.mark.parametrize(
    ("seconds", "schedule", "share"),
    [
        ((0.1, 0.4), "every_iterations:2", None),  # 69 %, which is 8.8 s of measuring
        ((0.1, 0.5), "every_iterations:2", "73 %"),  # 11 s
        ((1.0, 2.5), "every_iterations:20", None),  # 4 measurements: 10 s, beside 40 s, are 20 %
        ((1.0, 2.6), "every_iterations:20", "21 %"),
    ],
)
def test_little_is_not_told(timed, seconds, schedule, share):
    time, recorder = timed(*seconds), NTKRecorder(probe(), schedule, on_error="raise")
    found, _ = caught(lambda: train(time, recorder))
    assert [str(w.message).partition("about ")[2].partition(" of")[0] for w in found] == ([share] if share else [])


@AS_ERROR
@pytest.mark.parametrize(
    ("schedule", "seconds", "known", "iterations", "share"),
    [
        ("every_iterations:2", 6.0, False, 20, "77 %"),  # 22 of 6 s, beside 40 s
        ("every_iterations:2", 6.0, True, 4, "82 %"),  # fewer than ten iterations: 6 of 6 s, beside 8 s
        ("boundaries_only", 60.0, True, 20, "46 %"),  # 2 of 60 s, beside all that was trained, 100 s and 39 of 1 s
    ],
)
def test_what_is_not_known_before_a_tasks_end_is_told_there(timed, schedule, seconds, known, iterations, share):
    time = timed(1.0, seconds)
    recorder = NTKRecorder(probe(), schedule, reduction="sum_logits", on_error="raise")
    with pytest.raises(MeasurementCostWarning) as told:
        train(time, recorder, iterations=iterations, known=known)
    assert recorder.trajectory.measurements[-1].clock.event == "experience_end"
    assert str(told.value).startswith(f"measuring will take about {share} of this run's time: ")
    assert "reduction=" not in str(told.value)  # none has fewer passes


@AS_ERROR
@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_the_users_own_error_is_no_failed_measurement(timed, on_error):
    time, recorder = timed(1.0, 4.0), NTKRecorder(probe(), "every_iterations:2", on_error=on_error)
    with pytest.raises(MeasurementCostWarning, match="69 % of this run's time"):
        train(time, recorder)
    assert [m.clock.iteration for m in recorder.trajectory] == [0, 2, 4, 6, 8, 10]
    assert [m.failure for m in recorder.trajectory if m.failure] == []


def test_training_is_the_same_with_a_warning_and_without(timed):
    told, warned = caught(lambda: train(timed(1.0, 4.0), NTKRecorder(probe(), "every_iterations:2")))
    none, plain = caught(lambda: train(timed(1.0, 0.1), NTKRecorder(probe(), "boundaries_only")))
    assert (len(told), len(none)) == (1, 0)
    assert all(torch.equal(a, b) for a, b in zip(warned.parameters(), plain.parameters(), strict=True))


def test_a_prediction_that_fails_is_told_and_training_goes_on(timed, monkeypatch):
    def fails(self, *args):
        raise ZeroDivisionError("no time at all")

    monkeypatch.setattr(CostWatch, "look", fails)
    time, recorder = timed(1.0, 4.0), NTKRecorder(probe(), "boundaries_only")
    with pytest.warns(UserWarning, match="the prediction of the cost of the NTK failed at iteration 0 and training"):
        train(time, recorder)
    assert [m.failure for m in recorder.trajectory] == [None, None]
