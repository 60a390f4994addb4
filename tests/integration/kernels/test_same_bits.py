"""Training with measurements in between is training without: generators, flags, compiled models, memory."""

import gc
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from avalanche_ntk import randomness
from avalanche_ntk.kernels import empirical_ntk, jvp_prediction
from avalanche_ntk.kernels._guard.isolation import rng_fingerprint


class Generator:
    """Stands for one card's generator."""

    def __init__(self, kind, cards):
        self.kind, self.states = kind, [torch.tensor([k, 0], dtype=torch.uint8, device="cpu") for k in range(cards)]

    def draw(self):
        self.states[-1][1] += 1

    def module(self):
        one = {
            "get_rng_state": lambda: self.states[0].clone(),
            "set_rng_state": lambda state: self.states.__setitem__(0, state.clone()),
        }
        every = {
            "is_initialized": lambda: True,
            "is_available": lambda: False,
            "get_rng_state_all": lambda: [s.clone() for s in self.states],
            "set_rng_state_all": lambda states: self.states.__setitem__(slice(None), [s.clone() for s in states]),
        }
        return SimpleNamespace(**(one if self.kind == "mps" else every))


@pytest.mark.parametrize(("kind", "cards"), [("cuda", 2), ("xpu", 2), ("mps", 1)])
def test_generators_of_every_kind_of_device_are_kept(kind, cards, monkeypatch):
    generator = Generator(kind, cards)
    monkeypatch.setattr(torch, kind, generator.module())
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: kind == "mps")
    generator.draw()
    before, seen = [s.clone() for s in generator.states], rng_fingerprint()
    with randomness.preserved_rng_state():
        generator.draw()
        assert rng_fingerprint() != seen
    assert all(map(torch.equal, generator.states, before)) and rng_fingerprint() == seen
    with pytest.raises(KeyError), randomness.preserved_rng_state():
        generator.draw()
        raise KeyError
    assert all(map(torch.equal, generator.states, before))


def test_a_device_that_is_not_in_use_is_left_alone(monkeypatch):
    def asked():
        raise AssertionError

    unused = SimpleNamespace(is_initialized=lambda: False, get_rng_state_all=asked)
    monkeypatch.setattr(torch, "cuda", unused)
    monkeypatch.setattr(torch, "xpu", unused)
    with randomness.preserved_rng_state():
        pass


def test_no_algorithm_is_searched_for_in_a_measurement_and_the_flags_stay():
    class Sees(nn.Module):
        def forward(self, x):
            seen.append((torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic))
            return x

    seen = []
    for benchmark, deterministic in ((True, False), (False, True)):
        with torch.backends.cudnn.flags(enabled=True, benchmark=benchmark, deterministic=deterministic):
            seen.clear()
            empirical_ntk(nn.Sequential(nn.Linear(3, 2), Sees()), torch.randn(4, 3))
            assert set(seen) == {(False, deterministic)}
            assert torch.backends.cudnn.benchmark is benchmark and torch.backends.cudnn.deterministic is deterministic


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_trains_on_as_if_nothing_had_been_measured(backend, in_place):
    def trained(measured):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(48, 3)
        )
        x, y, probe = torch.randn(16, 1, 6, 6), torch.arange(16) % 3, torch.randn(5, 1, 6, 6)
        graphs = []

        def counting(graph, inputs):
            graphs.append(graph)
            return graph if backend == "eager" else torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

        compiled = torch.compile(model, backend=counting)
        if in_place:
            model.compile(backend=counting)
            compiled = model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        kernels = []
        for _ in range(4):
            if measured:
                kernels.append(empirical_ntk(compiled, probe))
                jvp_prediction(compiled, probe, {}, {n: p.detach() for n, p in compiled.named_parameters()})
            optimizer.zero_grad()
            nn.functional.cross_entropy(compiled(x), y).backward()
            optimizer.step()
        state = [t.clone() for t in (*model.state_dict().values(), torch.get_rng_state())]
        return state, len(graphs), kernels

    state, graphs, kernels = trained(True)
    plain, once, _ = trained(False)
    assert all(map(torch.equal, state, plain))
    assert graphs == once > 0  # nothing is compiled for a measurement, or again after it
    assert len(kernels) == 4 and not torch.equal(kernels[0], kernels[3])


def live():
    """Return how many tensors Python holds, and the bytes of their storages, without an operator."""
    gc.collect()
    tensors = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor) and t.device.type != "meta"]
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors if t.layout == torch.strided}
    return len(tensors), sum(storages.values())


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 5)), (16, 30)),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 3), nn.Flatten(), nn.Linear(64, 3)
        ),
        (8, 2, 8, 8),
    ),
}


@pytest.mark.parametrize("options", [{}, {"block": 3}, {"method": "jacobian"}], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_fifty_measurements_hold_no_more_than_one(name, options, device):
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model, x = make().to(device), torch.randn(shape, device=device)
    times = 50 if not options else 6

    def held():
        return (*live(), torch.cuda.memory_allocated(device) if device.type == "cuda" else 0)

    def measure():
        with torch.no_grad():
            for p in model.parameters():  # as training moves them
                p.mul_(0.999)
        empirical_ntk(model, x, **options)

    measure()
    sizes = []
    for _ in range(3):
        for _ in range(times // 2):
            measure()
        sizes.append(held())
    # what others left may go in the meantime
    assert all(now <= before for one, two in pairwise(sizes) for before, now in zip(one, two, strict=True)), sizes


def test_what_is_held_is_counted():
    before = live()
    kept = torch.zeros(1000)
    assert live() == (before[0] + 1, before[1] + kept.numel() * 4)
