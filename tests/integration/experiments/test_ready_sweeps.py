"""The sweeps that ship: every run has the control that its verdict takes, and gets one."""

import pytest

from avalanche_ntk.experiments import load_sweep, ready, run_sweep
from avalanche_ntk.experiments.assemble import make_benchmark
from avalanche_ntk.experiments.sweep import Sweep
from avalanche_ntk.report.runs import read_runs
from avalanche_ntk.report.sections import Report

SWEEPS = [name for name in ready() if name.startswith("sweep-")]
FEWEST = 3  # seeds that a verdict takes


def controls_of(planned, plan):
    """The controls of the same seed whose other values are the run's."""
    return [
        c for c in plan.runs
        if c.control and c.config.seed == planned.config.seed
        and all(key in planned.values and planned.values[key] == value for key, value in c.values.items())
    ]  # fmt: skip


@pytest.mark.parametrize("name", SWEEPS)
def test_every_run_has_a_control_of_its_own_classes(name):
    plan = load_sweep(name)
    shifted = [p for p in plan.runs if not p.control]
    seeds = {}
    for planned in shifted:
        assert len(controls_of(planned, plan)) == 1, planned.label
        seeds.setdefault(planned.label, set()).add(planned.config.seed)
    assert all(len(found) >= FEWEST + 2 for found in seeds.values())  # more, since three have wide intervals
    planned = shifted[0]
    classes = [
        set(make_benchmark(one.config)[0].train_stream[0].classes_in_this_experience)
        for one in (planned, *controls_of(planned, plan))
    ]
    assert classes[0] == classes[1]


def smallest(name):
    """One setting of a sweep, three of its seeds, with their controls, trained for seconds."""
    values = {"model.width": 16, "model.depth": 1, "observables": [], "probe.size": 10, "spot_check_every": 0}
    plan = load_sweep(name, {**values, "epochs": 4, "schedule": "every_iterations:2"})
    first = next(p for p in plan.runs if not p.control)
    chosen = [p for p in plan.runs if not p.control and p.label == first.label][:FEWEST]
    return Sweep(name, "", tuple(p for one in chosen for p in (one, *controls_of(one, plan))))


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_gets_its_verdicts(name, tmp_path):
    gets_verdicts(name, tmp_path)


def test_the_sweep_of_strategies_gets_its_verdicts(tmp_path):
    gets_verdicts("sweep-strategies", tmp_path)


def gets_verdicts(name, path):
    plan = smallest(name)
    assert len(plan.runs) == 2 * FEWEST
    assert run_sweep(plan, path).failures == []
    report = Report(read_runs(path / "runs")[0], None, [])
    assert [len(group.runs) for group in report.groups] == [FEWEST]
    body = report.answer().body
    assert "Verdict over 3 seeds, each beside its own control: reactivated at " in body
    assert "No verdict" not in body
