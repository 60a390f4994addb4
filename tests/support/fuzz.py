"""Kernels of random networks against the oracle: `python -m tests.support.fuzz 10000`.

Each network is measured with itself and with other inputs, by each reduction, whole, in blocks and within budgets, by
each form and policy of checks, and again after its attributes have changed. The oracle's rows are made once for each
pair of inputs; what the reductions should give is worked out from them here.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterator

import torch

from avalanche_ntk.kernels import empirical_ntk, reference_ntk
from avalanche_ntk.kernels._function.projections import hadamard_rows
from tests.support.random_models import RandomImages, RandomTokens

KINDS = {"images": RandomImages, "tokens": RandomTokens}
WAYS = (
    {},
    {"block": 1},
    {"block": 2},
    {"memory_budget": 2**25},
    {"memory_budget": 2**24},
    {"checks": "always"},
    {"checks": "never"},
    {"method": "ghost"},
    {"method": "explicit"},
)
LARGEST = 1e-11  # relative to the kernel's norm, in float64
ROWS, SEED = 2, 5  # of the projected kernels


def reduced(theta: torch.Tensor, reduction: str) -> torch.Tensor:
    """Return what a reduction makes of the whole kernel, `(N, M, C, C)`."""
    if reduction == "full":
        return theta
    if reduction == "trace":
        return theta.diagonal(dim1=2, dim2=3).sum(-1)
    if reduction == "sum_logits":
        return theta.sum((2, 3))
    signs = hadamard_rows(range(theta.shape[2]), ROWS, SEED).to(theta)
    return torch.einsum("rc,nmcd,rd->nm", signs, theta, signs) / len(signs)


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Return the norm of the difference relative to that of the right kernel."""
    return float((got - want).norm() / max(float(want.norm()), 1e-12))


def _goes_through(model: torch.nn.Module, inputs: torch.Tensor) -> bool:
    """Return whether no convolution's kernel is larger than what strides before it have left of an image."""
    try:
        model.eval()(inputs)
    except RuntimeError as exc:
        if "Kernel size can't be greater" in str(exc):
            return False
        raise
    return True


def kernels(kind: str, seed: int, ways: int) -> Iterator[tuple[str, float]]:
    """Measure one random network.

    Args:
        kind: A key of `KINDS`.
        seed: Seed of the network, its inputs and the choices.
        ways: How many ways, chosen at random, are tried with each reduction.

    Yields:
        For each kernel what it was and its relative error.
    """
    torch.manual_seed(seed)
    model = KINDS[kind](seed).double()
    choice = random.Random(seed)
    for state in range(3):
        x, x2 = (model.inputs(choice.choice([1, 2, 4, 5])).double() for _ in range(2))
        if not all(_goes_through(model, inputs) for inputs in (x, x2)):
            continue
        for name, second in (("self", None), ("cross", x2)):
            theta = reference_ntk(model, x, second, reduction="full")
            for reduction in ("full", "trace", "sum_logits", "projected"):
                rows = {"n_projections": ROWS, "seed": SEED} if reduction == "projected" else {}
                for way in choice.sample(WAYS, ways):
                    got = empirical_ntk(model, x, second, reduction=reduction, **rows, **way)
                    told = f"{kind} {seed}, state {state}, {name}, {reduction}, {way}"
                    yield told, error(got, reduced(theta, reduction))
        model.mutate()


def main() -> int:
    """Measure until so many kernels were compared."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("kernels", type=int, nargs="?", default=10_000)
    parser.add_argument("--seed", type=int, default=1000, help="seed of the first network")
    given = parser.parse_args()
    torch.set_num_threads(1)
    begin, done, wrong, worst, seed = time.perf_counter(), 0, 0, 0.0, given.seed
    while done < given.kernels:
        for kind in KINDS:
            for told, off in kernels(kind, seed, ways=2):
                done += 1
                worst = max(worst, off)
                if not off <= LARGEST:
                    wrong += 1
                    print(f"{off:.1e}: {told}", flush=True)
        seed += 1
    seconds = time.perf_counter() - begin
    networks = len(KINDS) * (seed - given.seed)
    print(f"{done} kernels of {networks} networks in {seconds:.0f} s: {wrong} wrong, largest error {worst:.1e}")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
