"""The training clock and the schedules: what is due when, names, messages."""

import copy
import pickle

import numpy as np
import pytest

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.recorder.clock import EVENTS, TrainingClock
from avalanche_ntk.recorder.schedule import Decision, Schedule


def clock(event="iteration", iteration=0, exp_iteration=None, exp_epoch=0, experience=0):
    inside = iteration if exp_iteration is None else exp_iteration
    return TrainingClock(event, iteration, experience, inside, exp_epoch, exp_epoch, iteration, 0)


def due_iterations(schedule, last, offset=0):
    """Due iterations since the boundary, up to `last`, of an experience that begins after `offset` iterations."""
    return [i for i in range(1, last + 1) if schedule.due(clock("iteration", offset + i, i))]


def due_epochs(schedule, last):
    return [e for e in range(1, last + 1) if schedule.due(clock("epoch_end", 7 * e, exp_epoch=e))]


ALL = {
    "boundaries_only": Schedule.boundaries_only(),
    "every_iterations:10": Schedule.every_iterations(10),
    "every_epochs:2": Schedule.every_epochs(2),
    "log_spaced:5": Schedule.log_spaced(),
    "around_boundaries": Schedule.around_boundaries(),
    "around_boundaries:3,2": Schedule.around_boundaries(3, 2),
    "at:2,30": Schedule.at([30, 2, 2]),
    "share_of_training:0.05": Schedule.share_of_training(),
    "every_epochs:1|every_iterations:10": Schedule.every_iterations(10) | Schedule.every_epochs(),
}


# --- what is due ---


@pytest.mark.parametrize("schedule", ALL.values(), ids=ALL.keys())
def test_boundaries_are_always_due(schedule):
    assert copy.deepcopy(schedule).due(clock("experience_start", 13, 0, experience=1))
    assert copy.deepcopy(schedule).due(clock("experience_end", 13, 6, 1))


@pytest.mark.parametrize("schedule", ALL.values(), ids=ALL.keys())
def test_no_iteration_is_due_before_the_first_step(schedule):
    assert not copy.deepcopy(schedule).due(clock("iteration", 13, 0))


def test_every_iterations_counts_from_the_boundary():
    assert due_iterations(Schedule.every_iterations(10), 35, offset=33) == [10, 20, 30]
    assert due_epochs(Schedule.every_iterations(7), 3) == []


def test_every_epochs_is_due_at_epoch_ends_only():
    assert due_epochs(Schedule.every_epochs(2), 7) == [2, 4, 6]
    assert due_epochs(Schedule.every_epochs(), 3) == [1, 2, 3]
    assert due_iterations(Schedule.every_epochs(), 20) == []


def test_log_spaced_follows_the_powers_of_ten():
    assert due_iterations(Schedule.log_spaced(), 150, offset=1000) == [1, 2, 3, 4, 6, 10, 16, 25, 40, 63, 100]
    assert due_iterations(Schedule.log_spaced(1), 1500) == [1, 10, 100, 1000]
    assert due_epochs(Schedule.log_spaced(), 5) == []


@pytest.mark.parametrize("per_decade", [2, 3, 7, 20, 100])
def test_log_spaced_agrees_with_the_list_of_all_powers(per_decade):
    powers = {round(10 ** (k / per_decade)) for k in range(4 * per_decade)}
    assert due_iterations(Schedule.log_spaced(per_decade), 3000) == sorted(p for p in powers if p <= 3000)


def test_around_boundaries_thins_out_in_long_tasks_whose_end_is_known():
    schedule = Schedule.around_boundaries() | Schedule.at([10**6])
    schedule.expect(100)
    assert due_epochs(schedule, 100) == [1, 2, 3, 4, 6, 10, 16, 25, 40, 63, *range(90, 101)]
    schedule.expect(11)
    assert due_epochs(schedule, 11) == list(range(1, 12))
    schedule.expect(None)  # not known of the next task
    assert due_epochs(schedule, 100) == list(range(1, 101))
    coarse = Schedule.around_boundaries(1, 5)
    coarse.expect(500)
    assert due_epochs(coarse, 500) == [5, 50, *range(450, 501, 5)]


def test_around_boundaries_is_dense_first_and_meets_each_epoch_end():
    assert due_iterations(Schedule.around_boundaries(), 30) == [1, 2, 3, 4, 6, 10, 16, 25]
    assert due_epochs(Schedule.around_boundaries(), 3) == [1, 2, 3]
    assert due_epochs(Schedule.around_boundaries(5, 2), 4) == [2, 4]


def test_at_counts_the_whole_run():
    schedule = Schedule.at([2, 12])
    assert due_iterations(schedule, 30, offset=10) == [2]
    assert due_iterations(schedule, 30) == [2, 12]


def test_boundaries_only_is_due_nowhere_else():
    assert due_iterations(Schedule.boundaries_only(), 100) == []
    assert due_epochs(Schedule.boundaries_only(), 10) == []


def test_union_is_due_where_any_part_is():
    union = Schedule.every_iterations(10) | Schedule.at([3]) | Schedule.every_epochs(2)
    assert due_iterations(union, 25) == [3, 10, 20]
    assert due_epochs(union, 4) == [2, 4]


# --- share_of_training ---


def simulate(schedule, iterations, cost, seconds=1.0):
    """Train for `iterations`, each taking `seconds`, a measurement taking `cost`; return where it was measured."""
    schedule.due(clock("experience_start"))
    schedule.note(0.0, cost)
    measured = []
    for i in range(1, iterations + 1):
        schedule.note(seconds, 0.0)
        if schedule.due(clock("iteration", i)):
            measured.append(i)
            schedule.note(0.0, cost)
    return measured


def test_share_of_training_measures_as_often_as_the_budget_allows():
    # After k measurements of 2 s the next is allowed at T seconds with 2k + 2 <= T / 8; the boundary was the first.
    assert simulate(Schedule.share_of_training(0.125), 100, cost=2.0) == [32, 48, 64, 80, 96]


def test_share_of_training_keeps_the_share_and_uses_it():
    schedule = Schedule.share_of_training(0.25)
    measured = simulate(schedule, 1000, cost=0.5)
    spent = 0.5 * (len(measured) + 1)
    assert 0.25 * 1000 - 0.5 <= spent <= 0.25 * 1000


def test_share_of_training_measures_boundaries_beyond_the_budget_and_pays_for_them():
    schedule = Schedule.share_of_training(0.5)
    for i in range(4):
        assert schedule.due(clock("experience_start", experience=i))
        schedule.note(0.0, 1.0)
    schedule.note(9.9, 0.0)
    assert not schedule.due(clock("iteration", 1))
    schedule.note(0.1, 0.0)
    assert schedule.due(clock("iteration", 2))


def test_share_of_training_waits_until_a_measurement_has_been_noted():
    schedule = Schedule.share_of_training(1.0)
    schedule.note(100.0, 0.0)
    assert not schedule.due(clock("iteration", 1))


def test_share_of_training_expects_the_dearest_of_the_last_three():
    schedule = Schedule.share_of_training(0.5)
    for seconds in (50.0, 4.0, 1.0, 1.0):
        schedule.note(0.0, seconds)
    schedule.note(119.0, 0.0)
    assert not schedule.due(clock("iteration", 1))
    schedule.note(1.0, 0.0)
    assert schedule.due(clock("iteration", 2))


def test_share_of_training_records_its_decisions_once_each():
    schedule = Schedule.share_of_training(0.5)
    start, first = clock("experience_start"), clock("iteration", 1)
    schedule.due(start)
    schedule.due(start)
    schedule.note(4.0, 1.0)
    schedule.due(first)
    expected = (
        Decision("experience_start", 0, "boundary", 0.0, 0.0, None),
        Decision("iteration", 1, "budget", 4.0, 1.0, 1.0),
    )
    assert schedule.decisions == expected
    assert expected[1].as_dict() == {
        "event": "iteration",
        "iteration": 1,
        "reason": "budget",
        "training_seconds": 4.0,
        "measuring_seconds": 1.0,
        "expected_seconds": 1.0,
    }
    assert Schedule.every_iterations(1).decisions == ()


def test_share_of_training_goes_on_after_pickling_where_it_was():
    one, other = Schedule.share_of_training(0.125), Schedule.share_of_training(0.125)
    simulate(one, 40, cost=2.0)
    simulate(other, 40, cost=2.0)
    copied = pickle.loads(pickle.dumps(one))
    for schedule in (copied, other):
        schedule.note(7.0, 0.0)
    assert [copied.due(clock("iteration", 47)), other.due(clock("iteration", 47))] == [False, False]
    for schedule in (copied, other):
        schedule.note(1.0, 0.0)
    assert [copied.due(clock("iteration", 48)), other.due(clock("iteration", 48))] == [True, True]
    assert copied.decisions == other.decisions


def test_a_union_tells_its_parts_what_was_spent():
    union = Schedule.share_of_training(0.5) | Schedule.every_iterations(100)
    assert simulate(union, 20, cost=2.0) == [8, 12, 16, 20]
    assert [d.iteration for d in union.decisions] == [0, 8, 12, 16, 20]


@pytest.mark.parametrize("jump", [-3.0, float("nan"), float("inf"), float("-inf")])
def test_a_clock_that_jumps_counts_for_nothing(jump):
    schedule = Schedule.share_of_training(0.5)
    schedule.note(10.0, 1.0)
    schedule.note(jump, jump)
    schedule.due(clock("experience_start"))
    assert schedule.decisions[-1] == Decision("experience_start", 0, "boundary", 10.0, 1.0, 1.0)


# --- names, equality, copies ---


@pytest.mark.parametrize("name", ALL)
def test_a_schedule_is_made_again_from_its_description(name):
    assert ALL[name].describe() == name
    assert Schedule.from_name(name) == ALL[name]
    assert eval(repr(ALL[name])) == ALL[name]
    assert ALL[name].cadence == name


@pytest.mark.parametrize("schedule", ALL.values(), ids=ALL.keys())
def test_schedules_pickle_and_deepcopy(schedule):
    for copied in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)):
        assert copied == schedule
        assert hash(copied) == hash(schedule)
        assert due_iterations(copied, 40) == due_iterations(schedule, 40)


def test_descriptions_are_different_for_different_schedules():
    assert len({schedule.describe() for schedule in ALL.values()}) == len(set(ALL.values())) == len(ALL)
    assert Schedule.every_iterations(3) != Schedule.every_iterations(4)
    assert Schedule.every_iterations(3) != "every_iterations:3"


def test_names_may_leave_defaults_out():
    assert Schedule.from_name("log_spaced") == Schedule.log_spaced(5)
    assert Schedule.from_name("every_epochs") == Schedule.every_epochs(1)
    assert Schedule.from_name("around_boundaries:3") == Schedule.around_boundaries(3)
    assert Schedule.from_name("share_of_training") == Schedule.share_of_training(0.05)
    assert Schedule.from_name(" at:1 | every_epochs ") == Schedule.at([1]) | Schedule.every_epochs()


def test_unions_have_one_form():
    a, b, c = Schedule.every_iterations(10), Schedule.every_epochs(1), Schedule.at([5])
    assert (a | b) | c == c | (b | a) == a | b | c | a
    assert a | a == a
    assert a | Schedule.boundaries_only() == a
    assert Schedule.boundaries_only() | Schedule.boundaries_only() == Schedule.boundaries_only()
    with pytest.raises(TypeError):
        a | 3


def test_interval_is_known_where_it_is_constant_after_a_boundary():
    assert Schedule.every_iterations(10).interval == 10
    assert (Schedule.every_iterations(10) | Schedule.every_epochs(1)).interval == 10
    assert (Schedule.every_iterations(10) | Schedule.at([3])).interval is None
    assert (Schedule.every_iterations(10) | Schedule.every_iterations(15)).interval is None
    assert Schedule.around_boundaries().interval is None


def test_numpy_counts_are_counts():
    assert Schedule.every_iterations(np.int64(10)) == Schedule.every_iterations(10)
    assert Schedule.at(np.array([3, 1])).describe() == "at:1,3"


NAMES = (
    "'around_boundaries', 'at', 'boundaries_only', 'every_epochs', 'every_iterations', 'log_spaced', "
    "'share_of_training'"
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule.every_iterations(0), "every_iterations: n must be an integer of at least 1, found 0."),
        (lambda: Schedule.every_iterations(True), "every_iterations: n must be an integer of at least 1, found True."),
        (lambda: Schedule.every_epochs(1.5), "every_epochs: n must be an integer of at least 1, found 1.5."),
        (lambda: Schedule.log_spaced(-1), "log_spaced: per_decade must be an integer of at least 1, found -1."),
        (
            lambda: Schedule.around_boundaries("a"),
            "around_boundaries: per_decade must be an integer of at least 1, found 'a'.",
        ),
        (
            lambda: Schedule.around_boundaries(every_epochs=0),
            "around_boundaries: every_epochs must be an integer of at least 1, found 0.",
        ),
        (lambda: Schedule.at([3, 0]), "at: each iteration must be an integer of at least 1, found 0."),
        (lambda: Schedule.at([]), "at: expected at least one iteration, found none. Use boundaries_only() for none."),
        (lambda: Schedule.at(5), "at: iterations must be integers of at least 1, such as [1, 10], found 5."),
        (
            lambda: Schedule.share_of_training(0),
            "share_of_training: share must be a number above 0 and at most 1, found 0.",
        ),
        (
            lambda: Schedule.share_of_training(float("nan")),
            "share_of_training: share must be a number above 0 and at most 1, found nan.",
        ),
        (
            lambda: Schedule.share_of_training("0.1"),
            "share_of_training: share must be a number above 0 and at most 1, found '0.1'.",
        ),
        (
            lambda: Schedule.from_name("every_iteration:3"),
            f"unknown schedule 'every_iteration': expected one of {NAMES}. Did you mean 'every_iterations'?",
        ),
        (
            lambda: Schedule.from_name(""),
            f"unknown schedule '': expected one of {NAMES}.",
        ),
        (
            lambda: Schedule.from_name("every_iterations"),
            "schedule 'every_iterations': expected the form 'every_iterations:N' with numbers in it.",
        ),
        (
            lambda: Schedule.from_name("at:1,x"),
            "schedule 'at:1,x': expected the form 'at:ITERATION,ITERATION,…' with numbers in it.",
        ),
        (
            lambda: Schedule.from_name("boundaries_only:1"),
            "schedule 'boundaries_only:1': expected the form 'boundaries_only' with numbers in it.",
        ),
        (
            lambda: Schedule.from_name("every_epochs:0"),
            "every_epochs: n must be an integer of at least 1, found 0.",
        ),
        (
            lambda: Schedule.from_name(10),
            "schedule: expected its name, such as 'around_boundaries' or 'every_iterations:10', found 10.",
        ),
    ],
)
def test_what_cannot_be_a_schedule_is_refused(make, message):
    with pytest.raises(ArgumentError) as error:
        make()
    assert str(error.value) == message


# --- the clock ---


def test_clock_round_trips_and_holds_plain_numbers():
    made = TrainingClock("epoch_end", np.int64(12), 1, 2, 3, np.int32(1), 5, np.int64(4))
    assert made.as_dict() == {
        "event": "epoch_end",
        "iteration": 12,
        "experience": 1,
        "exp_iteration": 2,
        "epoch": 3,
        "exp_epoch": 1,
        "optimizer_step": 5,
        "task_label": 4,
    }
    assert all(type(value) in (int, str) for value in made.as_dict().values())
    assert TrainingClock.from_dict({**made.as_dict(), "later": 1}) == made
    without = {key: value for key, value in made.as_dict().items() if key != "task_label"}
    assert TrainingClock.from_dict(without).task_label is None


def test_clock_knows_boundaries():
    assert [clock(event).is_boundary for event in EVENTS] == [True, False, False, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"event": "epoch_ends"},
            "unknown clock event 'epoch_ends': expected one of 'epoch_end', 'experience_end', 'experience_start', "
            "'iteration'. Did you mean 'epoch_end'?",
        ),
        ({"iteration": -1}, "clock: iteration must be an integer of at least 0, found -1."),
        ({"epoch": 1.0}, "clock: epoch must be an integer of at least 0, found 1.0."),
        ({"experience": None}, "clock: experience must be an integer of at least 0, found None."),
        ({"optimizer_step": True}, "clock: optimizer_step must be an integer of at least 0, found True."),
        ({"task_label": "a"}, "clock: task_label must be an integer of at least 0 or None, found 'a'."),
        (
            {"exp_iteration": 13},
            "clock: exp_iteration counts since the experience's start and cannot exceed iteration, which counts the "
            "whole run: found exp_iteration=13, iteration=12. Pass iteration as the run's total.",
        ),
        (
            {"exp_epoch": 3},
            "clock: exp_epoch counts since the experience's start and cannot exceed epoch, which counts the "
            "whole run: found exp_epoch=3, epoch=2. Pass epoch as the run's total.",
        ),
    ],
)
def test_what_cannot_be_a_clock_is_refused(changes, message):
    good = TrainingClock("iteration", 12, 1, 2, 2, 1, 12, 0).as_dict()
    with pytest.raises(ArgumentError) as error:
        TrainingClock.from_dict({**good, **changes})
    assert str(error.value) == message


def test_a_clock_with_missing_fields_is_refused():
    with pytest.raises(ArgumentError) as error:
        TrainingClock.from_dict({"event": "iteration", "iteration": 1, "epoch": 0, "exp_epoch": 0})
    assert str(error.value) == (
        "clock: expected the fields event, iteration, experience, exp_iteration, epoch, exp_epoch, optimizer_step, "
        "task_label; missing: experience, exp_iteration, optimizer_step."
    )
    with pytest.raises(ArgumentError) as error:
        TrainingClock.from_dict([1])
    assert str(error.value) == "clock: expected a mapping of its fields, found list."
