"""Speed of the package from commit to commit, as ratios measured within one run.

    python timings/history.py measure    # append this commit to timings/history.jsonl python timings/history.py draw
    # docs/assets/history.svg python timings/history.py check      # exit code 1 if a ratio has grown by more than a
    quarter

Seconds differ between machines and over time. A ratio to reference work on the same data, run alternately, differs
less, and is compared only with those of the same processor.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LINES = ROOT / "timings" / "history.jsonl"
FIGURE = ROOT / "docs" / "assets" / "history.svg"
ALLOWED = 1.25
LATEST = 5  # of a processor's lines, whose median is the reference
TRIES = 3  # in case the machine was busy

Pair = tuple[Callable[[], object], Callable[[], object]]


def pairs() -> dict[str, Pair]:
    """Return the timed pairs, ours and its reference, by name of their ratio."""
    import numpy as np
    import torch
    from kernels import by_hand, by_jacrev, mlp
    from overhead import digits, train
    from torch import nn

    from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule
    from avalanche_ntk.kernels import empirical_ntk
    from avalanche_ntk.measures import kernel_distance

    torch.set_num_threads(1)
    torch.manual_seed(0)
    dense, images = mlp(256).eval(), torch.randn(64, 3, 32, 32)
    convolutions = nn.Sequential(
        *(
            nn.Conv2d(3, 16, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(1024, 10),
        )
    ).eval()
    few = images[:32]
    samples = np.random.default_rng(0).normal(size=(2, 256, 300))
    old, new = (x @ x.T for x in samples)
    benchmark, make_model, batch = digits()
    around = Schedule.around_boundaries

    def training(*plugin: NTKPlugin) -> object:
        return train(benchmark, make_model, batch, 4, *(plugin or [None]), device=torch.device("cpu"))

    return {
        "kernel of an MLP / written by hand": (lambda: empirical_ntk(dense, images), lambda: by_hand(dense, images)),
        "kernel of a CNN / torch.func": (
            lambda: empirical_ntk(convolutions, few),
            lambda: by_jacrev(convolutions, few, None),
        ),
        "distance of kernels / eigenvalues": (lambda: kernel_distance(old, new), lambda: np.linalg.eigvalsh(old)),
        "training with the plugin / without": (
            lambda: training(NTKPlugin(ProbeSpec(size=32), around())),
            training,
        ),
    }


def ratio(pair: Pair, repeats: int = 9) -> float:
    """Return the ratio of minimum CPU seconds; both run alternately, so slow moments of the machine affect both."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for call in pair:
        call()  # plans, caches, imports
    for _ in range(repeats):
        for call, found in zip(pair, seconds, strict=True):
            start = time.process_time()
            call()
            found.append(time.process_time() - start)
    return min(seconds[0]) / min(seconds[1])


def processor() -> str:
    """Return the processor's name."""
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def read() -> list[dict[str, Any]]:
    """Return the lines of the history."""
    return [json.loads(line) for line in LINES.read_text().splitlines()] if LINES.exists() else []


def before(history: Iterable[Mapping[str, Any]], name: str, where: str) -> float | None:
    """Return the median of a ratio's latest values on a processor; None if there are none."""
    known = [line["ratios"][name] for line in history if line["processor"] == where and name in line["ratios"]]
    return statistics.median(known[-LATEST:]) if known else None


def grown(now: Mapping[str, float], history: Sequence[Mapping[str, Any]], where: str) -> dict[str, float]:
    """Return the factors of ratios that have grown too much."""
    factors = {name: value / old for name, value in now.items() if (old := before(history, name, where)) is not None}
    return {name: factor for name, factor in factors.items() if factor > ALLOWED}


def measure() -> int:
    """Append a line for this commit."""
    command = ["git", "rev-parse", "--short=9", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    ratios = {name: round(ratio(pair), 3) for name, pair in pairs().items()}
    line = {"commit": commit, "processor": processor(), "torch": version("torch").split("+")[0], "ratios": ratios}
    with LINES.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line, indent=1))
    return 0


def check() -> int:
    """Compare this commit with the history; return 1 if a ratio has grown too much at every try."""
    history, where, timed = read(), processor(), pairs()
    least: dict[str, float] = {}
    bad: dict[str, float] = {}
    for _ in range(TRIES):
        names = bad or timed
        least |= {name: min(ratio(timed[name]), least.get(name, float("inf"))) for name in names}
        bad = grown(least, history, where)
        if not bad:
            break
    for name, value in least.items():
        old = before(history, name, where)
        print(f"{name}: {value:.2f}; before: {'nothing on this processor' if old is None else f'{old:.2f}'}")
    for name, factor in bad.items():
        print(f"{name} is {factor:.2f} times what it was, more than {ALLOWED} times.", file=sys.stderr)
    return 1 if bad else 0


def draw() -> int:
    """Draw the history, a panel for each ratio and a line for each processor."""
    from avalanche_ntk.report.style import add_legend, drawing, look, new_figure, to_bytes

    history = read()
    names = list(dict.fromkeys(name for line in history for name in line["ratios"]))
    processors = list(dict.fromkeys(line["processor"] for line in history))
    with drawing():
        figure = new_figure(7.2, 1.6 * len(names))
        for axis, name in zip(figure.subplots(len(names), sharex=True), names, strict=True):
            for i, where in enumerate(processors):
                points = [(x, line["ratios"].get(name)) for x, line in enumerate(history) if line["processor"] == where]
                axis.plot(*zip(*points, strict=True), label=where, **look(i))
            axis.set_title(name, loc="left")
            axis.set_ylim(bottom=0)
        axis.set_xticks(range(len(history)), [line["commit"][:7] for line in history], rotation=90)
        add_legend(figure, processors)
        FIGURE.write_bytes(to_bytes(figure, "svg"))
    return 0


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Ratios of this commit, from commit to commit.")
    parser.add_argument("what", choices=["measure", "check", "draw"])
    return {"measure": measure, "check": check, "draw": draw}[parser.parse_args().what]()


if __name__ == "__main__":
    sys.exit(main())
