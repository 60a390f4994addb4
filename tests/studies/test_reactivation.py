"""The Reactivation paper's statements: the statistics by hand, and the whole study at its smallest."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from avalanche_ntk.experiments.sweep import load_sweep
from avalanche_ntk.recorder.runfolder import RunFolder
from avalanche_ntk.report.style import drawing
from avalanche_ntk.reproduce import reproduce
from avalanche_ntk.reproduce.registry import Scale
from avalanche_ntk.reproduce.studies import reactivation_claims as claims
from avalanche_ntk.reproduce.studies import reactivation_figures
from avalanche_ntk.reproduce.studies.reactivation import plans
from avalanche_ntk.reproduce.study import Context
from tests.support.texts import check_texts


class FakeRun:
    """A run whose series are given: a measurement each 10 iterations, the task changes at 20."""

    def __init__(self, norms, velocities=None):
        times = [0, 10, 20, 20, 30, 40, 50, 60]
        events = ["experience_start", *["iteration"] * 2, "experience_start", *["iteration"] * 4]
        # Nothing is trained between the two measurements at the boundary, so that the second has no velocity.
        velocities = [math.nan] * 8 if velocities is None else [math.nan, *velocities[:2], math.nan, *velocities[2:]]
        self.measurements = [
            SimpleNamespace(
                failure=None,
                clock=SimpleNamespace(iteration=t, event=e, experience=int(i > 2)),
                values={"spectral_norm": n, "velocity_per_iteration": v},
            )
            for i, (t, e, n, v) in enumerate(zip(times, events, norms, velocities, strict=True))
        ]
        self.reactivations = {0: None, 1: None}
        after = np.array(norms[4:]) / norms[3]
        self.numbers = {"norm_dip": after.min(), "norm_recovery": after[-1]}

    def trajectory(self):
        return self

    def reactivation(self, name, boundary=1):
        return float(self.numbers[name])


def test_series_around_a_boundary():
    run = FakeRun([1.0, 2.0, 4.0, 4.0, 1.0, 2.0, 5.0, 6.0], [0.1, 0.2, 0.8, 0.4, 0.2, 0.1])
    times, norms = claims.around(run, "spectral_norm")
    assert times.tolist() == [-20, -10, 0, 10, 20, 30, 40]
    assert norms.tolist() == [1.0, 2.0, 4.0, 1.0, 2.0, 5.0, 6.0]
    times, velocities = claims.around(run, "velocity_per_iteration")
    assert times.tolist() == [-20, -10, 0, 10, 20, 30, 40]
    assert velocities.tolist()[1:] == [0.1, 0.2, 0.8, 0.4, 0.2, 0.1]


def test_the_norms_numbers():
    run = FakeRun([1.0, 2.0, 4.0, 4.0, 1.0, 2.0, 5.0, 6.0])
    assert claims.norm_change(run) == pytest.approx(0.75)  # 1/4 is 3/4 away, 6/4 only 1/2
    assert claims.recovered_share(run) == pytest.approx((1.5 - 0.25) / 0.75)
    assert claims.recovery_time(run) == 30.0  # 5 is the first above 4 behind the minimum


@pytest.mark.parametrize(
    ("norms", "time"),
    [
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.5, 2.0, 3.0], 0.0),  # never below
        ([1.0, 1.0, 1.0, 1.0, 0.5, 0.6, 0.7, 0.8], 40.0),  # never back: the task's length
        ([1.0, 1.0, 1.0, 1.0, 1.2, 0.6, 0.7, 1.0], 40.0),  # above it before the minimum does not count
    ],
)
def test_recovery_times_at_the_edges(norms, time):
    assert claims.recovery_time(FakeRun(norms)) == time


def test_nothing_lost_is_nothing_regained():
    assert math.isnan(claims.recovered_share(FakeRun([1.0, 1.0, 1.0, 1.0, 1.0, 1.5, 2.0, 3.0])))


def test_the_share_of_the_first_steps():
    run = FakeRun([1.0] * 8, [9.0, 9.0, 0.4, 0.3, 0.2, 0.1])
    assert claims.early_share(run) == pytest.approx(0.9)


def test_a_run_that_died_has_no_numbers():
    alive = FakeRun([1.0] * 8)
    assert claims.survived(alive)
    del alive.reactivations[1]
    assert not claims.survived(alive)


def test_relative_numbers():
    assert claims.relative([3.0, 1.0], [2.0, 2.0]) == [0.5, -0.5]
    assert claims.relative([3.0], [2.0], 0.0) == [1.5]
    assert math.isnan(claims.relative([3.0], [-1.0])[0])


def test_peaks_are_compared_by_their_ratio():
    """Twice the control's peak, a quarter of it, and one that was not defined."""
    peaks = {False: [4.0, 0.5, math.nan], True: [2.0, 2.0, 1.0]}

    def runs(plan, at, *, control):
        trajectory = SimpleNamespace(reactivations={1: None})
        return [
            SimpleNamespace(seed=seed, peak=peak, trajectory=lambda: trajectory)
            for seed, peak in zip((5, 6, 7), peaks[control], strict=True)
        ]

    results = SimpleNamespace(context=SimpleNamespace(seeds=(5, 6, 7)), runs=runs)
    *defined, undefined = claims.above_the_controls_peak(results, "widths", lambda run: run.peak, {})
    assert defined == [1.0, -2.0]
    assert math.isnan(undefined)


def test_what_the_first_new_class_adds():
    # 1 → 3 with the first, then 3 → 4 → 5: 2 − 1
    by_overlap = {0.0: [5.0], 0.25: [4.0], 0.6: [3.0], 1.0: [1.0]}
    assert claims.first_class_excess(by_overlap) == [1.0]


@pytest.mark.parametrize("scale", list(Scale))
def test_plans_vary_what_the_paper_varies(scale):
    made = {name: load_sweep({**plan, "seeds": [0]}) for name, plan in plans(Context(scale)).items()}
    assert list(made) == [
        "widths", "convolutional", "learning-rates", "overlaps", "frequencies", "durations", "boundaries", "reductions",
        "probes",
    ]  # fmt: skip
    for sweep in made.values():
        assert any(p.control for p in sweep.runs)
        assert not all(p.control for p in sweep.runs)
    assert {p.config.reduction for p in made["reductions"].runs} == {"sum_logits"}
    if scale is not Scale.TINY:
        widths = {p.config.model.width for p in made["widths"].runs}
        assert (min(widths), max(widths)) == (64, 2048)


@pytest.mark.parametrize(
    ("data", "two", "five", "size"),
    [("CIFAR10", 2500, 1000, None), ("CIFAR100", 250, 100, None), ("photos.zip", 650, 260, 64)],
)
def test_a_control_has_the_first_task_of_its_run_in_the_published_setting_too(data, two, five, size):
    """As many samples of a class as fresh ones can be found for every task."""
    made = plans(Context(Scale.PAPER, data))
    for name, expected in (("widths", two), ("overlaps", two), ("boundaries", five)):
        runs = load_sweep({**made[name], "seeds": [0]}).runs
        assert {p.config.benchmark.per_class for p in runs} == {expected}
        assert {p.config.benchmark.image_size for p in runs} == {size}


@pytest.mark.parametrize("rates", [(0.02, 0.05, 0.1), (0.003, 0.01, 0.03, 0.06, 0.1), (0.1, 0.11), (1e-7, 1.0)])
@pytest.mark.parametrize("spread", [1.01, 3.0, 30.0])
def test_texts_of_the_figure_of_learning_rates_can_be_read(rates, spread):
    """With two seeds that differ, λ_max spans a few per cent of the axis or twenty decades."""

    def run_of(rate, seed):
        run = FakeRun([1.0, 2.0, 4.0, 4.0, *(4 * spread ** (seed * t) for t in (1, 2, -1, 3))], [1e-3] * 6)
        run.seed, run.value = seed, lambda key: rate
        return run

    class Made:
        context = SimpleNamespace(seeds=(0, 1))

        def runs(self, plan, at=None, *, control=None):
            chosen = rates if at is None else [at["optimizer.lr"]]
            return [run_of(rate, seed) for rate in chosen for seed in (0, 1)]

    with drawing():
        figure = reactivation_figures._rates(Made())
    for kind in ("svg", "png"):
        check_texts(figure, format=kind)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [f"η = {rate:g}" for rate in rates]


@pytest.mark.slow  # some hundred runs
def test_the_study_at_its_smallest(tmp_path):
    outcome = reproduce("reactivation", tmp_path, scale="tiny")
    assert [c.key for c in outcome.claims] == [
        "1a", "1b", "1c", "2a", "2b", "2c", "3a", "3b", "4a", "4b", "5", "6a", "6b", "6c", "7a", "7b", "open-a",
        "open-b",
    ]  # fmt: skip
    first, beyond = outcome.claims[0].findings[0], outcome.claims[2].findings[0]
    assert first.case == beyond.case == "MLP, width 8, lazy"

    def of_boundary(name, control):
        sweep = json.loads((tmp_path / "sweeps" / "widths" / "sweep.json").read_text())
        found = {}
        for run in sweep["runs"]:
            records = RunFolder.open(tmp_path / "sweeps" / "widths" / "runs" / run["name"]).records()
            config = RunFolder.open(tmp_path / "sweeps" / "widths" / "runs" / run["name"]).meta["config"]
            if config["model"]["width"] == 8 and config["regime"]["name"] == "lazy" and run["control"] is control:
                [second] = [r for r in records if r["kind"] == "reactivation" and r["experience"] == 1]
                found[run["seed"]] = second["reactivation"][name]
        return found

    spikes = of_boundary("spike", False)
    assert first.values == pytest.approx([spikes[s] for s in (0, 1)])
    shifted, control = of_boundary("peak", False), of_boundary("peak", True)
    assert beyond.values == pytest.approx([math.log2(shifted[s] / control[s]) for s in (0, 1)])
    assert {p.stem for p in outcome.files if p.suffix == ".svg"} == {
        "widths", "convolutional", "overlaps", "frequencies", "learning-rates", "boundaries", "alternatives",
    }  # fmt: skip
