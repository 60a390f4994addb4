"""numpy's own threads stay out of the way of those that train, and nothing else changes."""

import threading

import numpy as np
import pytest
import torch
from avalanche.training import Naive
from threadpoolctl import ThreadpoolController
from torch import nn

from avalanche_ntk import NTKPlugin, ProbeSpec, measures
from avalanche_ntk.lab.benchmarks import split_digits
from avalanche_ntk.lab.models import MLP
from avalanche_ntk.measures.threads import LARGE
from avalanche_ntk.observables import Observable, Observation

POOLS = ThreadpoolController().select(threading_layer="pthreads")
BEFORE = 2

needs_a_pool = pytest.mark.skipif(
    not POOLS.info(), reason="numpy's BLAS here has no threads of its own, so that there is nothing to limit"
)


def numbers() -> set[int]:
    """Threads of every BLAS library that has its own."""
    return {library["num_threads"] for library in POOLS.info()}


@pytest.fixture(autouse=True)
def two_threads():
    # Also on a machine with one core a limit shows.
    with POOLS.limit(limits=BEFORE):
        yield


class Watches(Observable):
    name = "watches"

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.seen: list[set[int]] = []

    def observe(self, moment):
        self.seen.append(numbers())
        if self.fails:
            raise RuntimeError("no")
        return Observation()


class WatchedMLP(nn.Module):
    """Notes the number of threads at each forward pass that trains."""

    def __init__(self, seen: list[set[int]]) -> None:
        super().__init__()
        self.net = MLP(64, 10, width=16, depth=1)
        self.seen = seen

    def forward(self, x):
        if self.training:
            self.seen.append(numbers())
        return self.net(x)


def train(watch: Watches, on_error: str = "raise") -> list[set[int]]:
    seen: list[set[int]] = []
    model = WatchedMLP(seen)
    ntk = NTKPlugin(ProbeSpec(size=16), "every_iterations:5", observe=[watch], on_error=on_error)
    strategy = Naive(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01), train_mb_size=64, plugins=[ntk]
    )
    strategy.train(split_digits(2).train_stream[0])
    return seen


@needs_a_pool
def test_a_measurement_has_one_blas_thread_and_training_has_all(monkeypatch):
    decompositions = []
    eigh = np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda a: (decompositions.append(numbers()), eigh(a))[1])
    watch, torch_before = Watches(), torch.get_num_threads()
    training = train(watch)
    assert len(watch.seen) == len(decompositions) > 2
    assert all(found == {1} for found in watch.seen + decompositions)
    assert len(training) > 10
    assert all(found == {BEFORE} for found in training)
    assert numbers() == {BEFORE}
    assert torch.get_num_threads() == torch_before


@needs_a_pool
@pytest.mark.filterwarnings("ignore::avalanche_ntk.errors.MeasurementFailedWarning")
def test_the_number_is_put_back_after_a_failure():
    watch = Watches(fails=True)
    training = train(watch, on_error="warn")
    assert all(found == {1} for found in watch.seen)
    assert all(found == {BEFORE} for found in training)
    with pytest.raises(ZeroDivisionError), measures.few_threads(2):
        assert numbers() == {1}
        raise ZeroDivisionError
    assert numbers() == {BEFORE}


@needs_a_pool
def test_large_matrices_keep_all_threads():
    with measures.few_threads(LARGE):
        assert numbers() == {BEFORE}
    with measures.few_threads(LARGE - 1):
        assert numbers() == {1}


@needs_a_pool
def test_threads_and_blocks_that_overlap_put_back_what_was_before_the_first():
    inside, leave = threading.Event(), threading.Event()

    def other():
        with measures.few_threads(2):
            inside.set()
            leave.wait(30)

    with measures.few_threads(2):
        with measures.few_threads(2):
            assert numbers() == {1}
        assert numbers() == {1}
        thread = threading.Thread(target=other)
        thread.start()
        assert inside.wait(30)
    # The other is still inside and must neither keep the limit nor put it back later.
    assert numbers() == {BEFORE}
    leave.set()
    thread.join(30)
    assert not thread.is_alive()
    assert numbers() == {BEFORE}
    with measures.few_threads(2):
        assert numbers() == {1}
    assert numbers() == {BEFORE}
