"""What text loggers print of the metrics, and where curves have no point."""

import copy
import io
import pickle
import re
from collections import Counter

import pytest
import torch
from avalanche.logging import BaseLogger, InteractiveLogger, TextLogger

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.adapters.text_logs import PRINTED, Printed, Unprinted
from avalanche_ntk.errors import ArgumentError
from tests.support.lines import make_strategy, run, tiny_stream

TAIL = "/train_phase/train_stream/Task000/Exp000"


class Kept(BaseLogger):
    """A logger of another kind than Avalanche's: it keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.values = {}

    def log_single_metric(self, name, value, x_plot):
        self.values.setdefault(name, []).append((x_plot, value))


def trained(loggers, **arguments):
    ntk = NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(1), on_error="raise")
    run(make_strategy(plugins=[ntk], metrics=[ntk_metrics(ntk, **arguments)], loggers=loggers), tiny_stream())
    return ntk


def printed(**arguments):
    text = io.StringIO()
    ntk = trained([TextLogger(text)], **arguments)
    return ntk, re.findall(r"(NTK_\w+)/\S+ = (\S+)", text.getvalue())


def test_a_few_metrics_are_printed_each_value_once_with_enough_digits():
    ntk, lines = printed()
    assert {name for name, _ in lines} == set(PRINTED)
    values = [f"{m.values['spectral_norm']:.4g}" for m in ntk.trajectory if m.clock.event == "epoch_end"] or [
        value for name, value in lines if name == "NTK_SpectralNorm"
    ]
    found = Counter(value for name, value in lines if name == "NTK_SpectralNorm")
    assert set(found.values()) == {1}
    assert set(found) <= {f"{m.values['spectral_norm']:.4g}" for m in ntk.trajectory}
    assert values
    spike = ntk.trajectory.reactivations[1].spike
    assert ("NTK_Spike", f"{spike:.4g}") in lines
    assert "0.0000" not in {value for _, value in lines}


def test_which_metrics_are_printed_can_be_chosen():
    assert {name for name, _ in printed(text=["NTK_KernelTrace"])[1]} == {"NTK_KernelTrace"}
    assert printed(text=())[1] == []
    assert {"NTK_KernelNorm", "NTK_MeasuringShare", "NTK_Velocity"} <= {name for name, _ in printed(text=None)[1]}
    with pytest.raises(ArgumentError, match="unknown metric 'NTK_KernelTraces'"):
        ntk_metrics(NTKPlugin(), text=["NTK_KernelTraces"])


def test_other_loggers_have_every_number():
    kept = Kept()
    ntk = trained([kept, InteractiveLogger()], text=())
    expected = [(m.clock.iteration, m.values["spectral_norm"]) for m in ntk.trajectory]
    assert kept.values["NTK_SpectralNorm" + TAIL] == expected
    # W&B, for one, takes a subclass of float for something else and writes its text.
    assert {type(value) for name, series in kept.values.items() if "NTK" in name for _, value in series} == {float}


def test_numbers_stay_numbers():
    for kind in (Printed, Unprinted):
        value = kind(0.1)
        assert value == 0.1 and hash(value) == hash(0.1) and value + 1 == 1.1 and float(value) == 0.1
        for same in (pickle.loads(pickle.dumps(value)), copy.deepcopy(value)):
            assert same == 0.1 and type(same) is kind
    assert torch.equal(Unprinted(0.5).image, torch.tensor([[[0.5]]]))  # for a logger that asks for images first


def test_no_change_is_shown_where_no_step_was_made():
    kept = Kept()
    ntk = trained([kept])
    shown = [x for x, _ in kept.values["NTK_DistancePrevious" + TAIL]]
    assert shown == [x for x, _ in kept.values["NTK_Velocity" + TAIL]]
    assert len(set(shown)) == len(shown)  # two measurements at one iteration, and one of them with a change
    assert sum("distance_previous" in m.values for m in ntk.trajectory) > len(shown)  # the record has them all


def test_a_spike_stands_at_its_boundary_unless_a_logger_might_drop_it():
    kept = Kept()
    ntk = trained([kept])
    found = ntk.trajectory.reactivations[1]
    assert kept.values["NTK_Spike" + TAIL] == [(found.end, found.spike)]
    text = io.StringIO()
    ntk = NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(1), on_error="raise")
    strategy = make_strategy(plugins=[ntk], metrics=[ntk_metrics(ntk)], loggers=[TextLogger(text)])
    run(strategy, tiny_stream())
    found = ntk.trajectory.reactivations[1]
    assert strategy.evaluator.get_all_metrics()["NTK_Spike" + TAIL] == ([found.boundary], [found.spike])
