"""The doctor's table: what training and measuring will cost, from seconds that are set here."""

import itertools
import json

import pytest
import torch
from typer.testing import CliRunner

from avalanche_ntk import Probe
from avalanche_ntk.cli import app
from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.experiments import costs, doctor
from avalanche_ntk.experiments.costs import costs_of
from avalanche_ntk.lab.models import MLP
from avalanche_ntk.recorder import stepclock
from avalanche_ntk.recorder.cost import Cost
from avalanche_ntk.recorder.measurer import Measurer

SECONDS = {"trace": 4.0, "projected": 2.0, "sum_logits": 1.0}


@pytest.fixture
def timed(monkeypatch):
    """Iterations of half a second, the first of nine, and measurements of `SECONDS`; return what was asked for."""
    asked = []

    def seconds(net, probe, batch, *, reduction, **options):
        asked.append((reduction, options, tuple(probe.x.shape), tuple(batch[0].shape)))
        return [0.5 if asked[1:] else 9.0, 0.5, 0.5], SECONDS[reduction]

    monkeypatch.setattr(costs, "_timed", seconds)
    return asked


def test_a_task_of_each_reduction_and_schedule(timed):
    found = costs_of("mlp", "digits", size=10, mb_size=100, epochs=2, n_projections=4, arguments={"width": 8})
    assert timed == [
        ("trace", {}, (10, 1, 8, 8), (100, 1, 8, 8)),
        ("projected", {"n_projections": 4}, (10, 1, 8, 8), (100, 1, 8, 8)),
        ("sum_logits", {}, (10, 1, 8, 8), (100, 1, 8, 8)),
    ]
    # 1,347 training samples are 14 batches of 100; iterations 1, 3, 10 with 2 a decade, 1, 2, 3, 4, 6, 10, 16, 25 with
    # 5, the ends of both epochs (iterations 14 and 28), and the boundaries.
    assert (found.epochs, found.iterations_per_epoch, found.iteration_seconds) == (2, 14, 0.5)
    measured = {row.reduction: {name: cost.measurements for name, cost in row.costs.items()} for row in found.measuring}
    assert measured["trace"] == {
        "around_boundaries": 12, "around_boundaries:2,5": 5, "boundaries_only": 2, "share_of_training:0.05": 2
    }  # fmt: skip
    assert measured["sum_logits"] == measured["projected"] == measured["trace"]
    assert found.measuring[0].costs["around_boundaries"] == Cost(12, 48.0, 14.0)
    assert [row.n_projections for row in found.measuring] == [None, 4, None]


def test_the_table(timed, monkeypatch):
    monkeypatch.setattr(doctor, "_CHECKS", ())
    line = ["doctor", "--model", "mlp", "--set", "width=8", "--data", "digits", "--epochs", "2", "--iterations", "20"]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    title, *rows = [line.strip() for line in done.stdout.splitlines() if line[:1] not in "┏┡└"]
    assert title.startswith("Measuring's share of a run's time, and measurements of a task: 2 epochs of 20 iterations")
    # 20 s of training; 9 iterations up to 40, of which that is also the end of an epoch, 20 as one, and 2 boundaries.
    assert [[cell.strip() for cell in row.strip("│┃").replace("┃", "│").split("│")] for row in rows[1:]] == [
        ["trace", "4.00 s", "71 %, 12 times", "55 %, 6 times", "29 %, 2 times", "29 %, 2 times"],
        ["projected, 8 sign vectors", "2.00 s", "55 %, 12 times", "38 %, 6 times", "17 %, 2 times", "17 %, 2 times"],
        ["sum_logits", "1.00 s", "38 %, 12 times", "23 %, 6 times", "9 %, 2 times", "9 %, 2 times"],
    ]
    plain = json.loads(CliRunner().invoke(app, [*line, "--json"]).stdout)
    assert plain["findings"] == []
    assert plain["costs"]["measuring"][2]["costs"]["boundaries_only"] == {
        "measurements": 2, "measuring_seconds": 2.0, "training_seconds": 20.0, "share": 2 / 22
    }  # fmt: skip


def test_what_is_asked_for_must_fit():
    with pytest.raises(ArgumentError, match=r"digits has 1347 training samples, found size=2000\. Give"):
        costs_of("mlp", "digits", size=2000)
    done = CliRunner().invoke(app, ["doctor", "--data", "digits"])
    assert str(done.exception) == (
        "the cost of measuring needs a model and data: found only one of them. Give --model and --data."
    )


def test_the_first_measurement_is_left_out(monkeypatch):
    now, seconds, measure = [0.0], itertools.chain([50.0], itertools.repeat(0.75)), Measurer.measure

    def measured(*args, **kwargs):
        now[0] += next(seconds)
        return measure(*args, **kwargs)

    class Net(MLP):
        def forward(self, x):
            now[0] += 0.25 if self.training else 0.0
            return super().forward(x)

    monkeypatch.setattr(Measurer, "measure", measured)
    monkeypatch.setattr(stepclock.time, "perf_counter", lambda: now[0])
    torch.manual_seed(0)
    x, y = torch.randn(8, 6), torch.arange(8) % 4
    net = Net(6, 4, width=8, depth=1)
    found = costs._timed(net, Probe.from_tensors(x, y, name="probe"), (x, y), reduction="trace")
    # Fifty seconds are enough: no more than two iterations, each measured.
    assert found == ([0.25, 0.25], 0.75)
