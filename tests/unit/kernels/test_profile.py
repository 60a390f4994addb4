"""What depends on the device stands in one place: how much goes at a time, how much memory, what happens without it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.errors import MemoryBudgetError, MemoryWarning
from avalanche_ntk.kernels import empirical_ntk, reference_ntk
from avalanche_ntk.kernels._contract import contraction, ghost, pieces, schedule, side
from avalanche_ntk.kernels._contract.ghost import blocks
from avalanche_ntk.kernels._device import profile
from avalanche_ntk.kernels._device.profile import ACCELERATOR, PROCESSOR, default_budget, exhausted, synchronise
from tests.support.cases import error
from tests.unit.kernels.test_exact import build

CUDA = torch.device("cuda", 0)


def test_a_layer_of_32_by_32_positions_goes_in_blocks_that_are_worth_a_launch():
    def count(pairs):
        side, _ = blocks(64, 64, 1024, 1024, True, pairs)
        rows = -(-64 // side)
        return rows * (rows + 1) // 2

    assert count(PROCESSOR.pairs) == 2080  # of two samples each
    assert count(ACCELERATOR.pairs) == 136


def of_a_card(free, reserved=0, allocated=0, capability=(9, 0)):
    return SimpleNamespace(
        mem_get_info=lambda device: (free, 80 * 2**30),
        memory_reserved=lambda device: reserved,
        memory_allocated=lambda device: allocated,
        get_device_capability=lambda device: capability,
    )


def test_the_default_budget(monkeypatch):
    assert default_budget(torch.device("cpu")) == default_budget(torch.device("meta")) == 2**30
    monkeypatch.setattr(torch, "get_device_module", lambda device: of_a_card(8 * 2**30, 4 * 2**30, 2**30))
    assert default_budget(CUDA) == 2 * 2**30  # a quarter of 11 GiB, as a power of two
    monkeypatch.setattr(torch, "get_device_module", lambda device: of_a_card(8 * 2**30 + 5, 4 * 2**30, 2**30 - 77))
    assert default_budget(CUDA) == 2 * 2**30  # a little more or less is no other budget
    monkeypatch.setattr(torch, "get_device_module", lambda device: of_a_card(0))
    assert default_budget(CUDA) == 2**20
    mps = SimpleNamespace(recommended_max_memory=lambda: 16 * 2**30, current_allocated_memory=lambda: 2**30)
    monkeypatch.setattr(torch, "get_device_module", lambda device: mps)
    assert default_budget(torch.device("mps")) == 2 * 2**30


@pytest.mark.parametrize(
    ("capability", "fast"), [((7, 5), False), ((8, 0), True), ((8, 6), False), ((9, 0), True), ((12, 0), False)]
)
def test_where_double_precision_is_fast(monkeypatch, capability, fast):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert profile.fast_double(CUDA) is fast
    assert profile.fast_double(torch.device("cpu")) and not profile.fast_double(torch.device("mps"))


def test_a_clock_waits_for_the_device_that_it_times(monkeypatch):
    waited = []
    module = SimpleNamespace(synchronize=lambda *device: waited.append(device))
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    for name in ("cpu", "cuda:0", "mps"):
        synchronise(name)
    assert waited == [(CUDA,), ()]  # torch.mps.synchronize takes no device


def test_what_says_that_memory_is_used_up():
    said = "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    assert exhausted(torch.OutOfMemoryError("no memory left")) and exhausted(MemoryError())
    assert exhausted(RuntimeError(said)) and not exhausted(RuntimeError("shapes differ")) and not exhausted(KeyError())
    try:
        raise ValueError("the forward pass failed") from torch.OutOfMemoryError("no memory left")
    except ValueError as exc:
        assert exhausted(exc)


@pytest.mark.parametrize("name", ["mlp", "conv2d", "vit", "embedding_padding", "resnet_block", "lora"])
def test_other_sizes_give_the_same_kernel(name, monkeypatch):
    _, model, x, x2, one, two = build(name, 5)
    small = replace(PROCESSOR, pairs=60, tile=500, workspace=4000, patches=300, carried=200, looked=70)
    for sizes in (ACCELERATOR, small):
        for module in (contraction, ghost, pieces, schedule, side):
            monkeypatch.setattr(module, "profile_of", lambda device, sizes=sizes: sizes)
        for reduction in ("full", "trace"):
            for second, kwargs in ((None, one), (x2, two)):
                for budget in (None, 2**15):
                    got = empirical_ntk(
                        model, x, second, reduction=reduction, dtype=torch.float64, memory_budget=budget, **kwargs
                    )
                    assert error(got, reference_ntk(model, x, second, reduction=reduction, **kwargs)) <= 1e-12


class Floods(nn.Module):
    """Runs out of memory for more than some samples at a time."""

    def __init__(self, most):
        super().__init__()
        self.most = most

    def forward(self, x):
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmore words")
        return x


def flooding(most):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4096), nn.Tanh(), Floods(most), nn.Linear(4096, 3)), torch.randn(64, 5)


def test_a_measurement_for_which_memory_runs_out_goes_on_in_smaller_blocks():
    model, x = flooding(12)
    with pytest.warns(MemoryWarning) as seen:
        got, info = empirical_ntk(model, x, memory_budget=2**24, return_info=True)
    budgets = [2**24 >> k for k in range(1, len(seen) + 1)]
    assert [str(w.message) for w in seen] == [
        "memory ran out in a measurement (CUDA out of memory. Tried to allocate 20.00 MiB.): this and later "
        f"measurements of this model use memory_budget={b} bytes. Give memory_budget={b} or less to avoid the failed "
        "attempt."
        for b in budgets
    ]
    assert 1 < info.block <= 12
    model[2].most = 64
    assert error(got, reference_ntk(model, x)) <= 2e-6
    model[2].most = 12
    again = empirical_ntk(model, x, memory_budget=2**24)  # no warning: it starts with what fitted
    torch.testing.assert_close(again, got)


def test_memory_that_runs_out_for_one_sample_too_is_an_error():
    model, x = flooding(0)
    with pytest.warns(MemoryWarning), pytest.raises(MemoryBudgetError, match="memory ran out with the smallest"):
        empirical_ntk(model, x, memory_budget=2**24)


def test_a_linearisation_where_double_precision_is_slow_goes_in_single(monkeypatch):
    import avalanche_ntk.observables.linearisation as observable
    from tests.support.lines import make_strategy, run, tiny_stream

    def errors(fast):
        monkeypatch.setattr(observable, "fast_double", lambda device: fast)
        torch.manual_seed(0)
        kinds.clear()
        ntk = NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(2), on_error="raise")
        run(make_strategy(plugins=[ntk], metrics=[ntk_metrics(ntk, linearisation=True)], epochs=1), tiny_stream())
        return [m.values["linearisation_error_init"] for m in ntk.trajectory if "linearisation_error_init" in m.values]

    kinds = []
    real = observable.jvp_prediction
    monkeypatch.setattr(observable, "jvp_prediction", lambda *a, **k: (kinds.append(k.get("dtype")), real(*a, **k))[1])
    double = errors(True)
    assert set(kinds) == {torch.float64}
    single = errors(False)
    assert set(kinds) == {None}
    assert len(double) > 2 and double != single
    assert single == pytest.approx(double, abs=1e-5)
