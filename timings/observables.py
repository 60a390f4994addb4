"""Cost of each observable per measurement, compared with another version of the package.

One process per version and round, with alternating versions. Each trains two tasks and takes the median processor time
of the plugin's hooks for a measurement between the boundaries; the result is the minimum over the rounds. With
`--against`, a checkout of the other version: python timings/observables.py --against ../main
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNEL = "`empirical_ntk` alone"
# Flags that are off by default, except images and metrics at boundaries only.
EVERY = dict.fromkeys(
    ["spectrum", "linearisation", "forecast", "per_layer", "features", "class_blocks", "neurons", "plasticity"], True
)


def measured(threads: int) -> dict[str, list[float]]:
    """Train with each observable; return milliseconds per measurement in the first and in the second task."""
    warnings.simplefilter("ignore")
    # The plugin measures its own time; processor time depends little on other load.
    time.perf_counter = time.process_time
    import torch
    from avalanche.training import Naive
    from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin

    from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, empirical_ntk, ntk_metrics, observables
    from avalanche_ntk.lab.benchmarks import split_digits
    from avalanche_ntk.lab.models import MLP

    torch.set_num_threads(threads)

    class Spent(SupervisedPlugin):
        def __init__(self, ntk):
            super().__init__()
            self.ntk, self.last, self.tasks = ntk, 0.0, []

        def before_training_epoch(self, strategy, **kwargs):
            self.tasks.append([])
            self.last = self.ntk.measuring_seconds

        def after_training_iteration(self, strategy, **kwargs):
            now = self.ntk.measuring_seconds
            self.tasks[-1].append(now - self.last)
            self.last = now

    class Silent:
        def log_metrics(self, values):
            pass

    def alone(model, x) -> float:
        times = []
        for _ in range(60):
            begin = time.process_time()
            empirical_ntk(model, x)
            times.append(time.process_time() - begin)
        return statistics.median(times[10:])

    names = ["PerLayer", "FeatureKernel", "ClassBlocks", "Linearisation", "StaticKernelForecast", "Neurons"]
    settings = {"a measurement": [], **{name: [name] for name in names}, "all of these": names}
    settings |= {"default metrics, run folder": {}, "every metric, run folder": EVERY}
    found = {}
    for setting, chosen in settings.items():
        torch.manual_seed(0)
        model = MLP(64, 10, width=256, depth=2)
        shown = isinstance(chosen, dict)
        observe = [] if shown else [getattr(observables, name)() for name in chosen]
        folder = tempfile.TemporaryDirectory()
        ntk = NTKPlugin(
            ProbeSpec(size=64),
            Schedule.every_iterations(1),
            observe=observe,
            spot_check_every=0,
            run_folder=Path(folder.name) / "run" if shown else None,
        )
        spent = Spent(ntk)
        strategy = Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
            train_mb_size=8,
            plugins=[ntk, spent],
            evaluator=EvaluationPlugin(*([ntk_metrics(ntk, **chosen)] if shown else []), loggers=[Silent()]),
        )
        for experience in split_digits(5).train_stream[:2]:
            strategy.train(experience)
            if not observe and not shown:
                found.setdefault(KERNEL, []).append(1000 * alone(model, ntk.probes["Exp000"].x))
        folder.cleanup()
        found[setting] = [1000 * statistics.median(task) for task in spent.tasks]
    return found


def in_a_process(root: Path, threads: int) -> dict[str, list[float]]:
    """Measure the version of the package in `root`."""
    done = subprocess.run(
        [sys.executable, __file__, "--worker", "--threads", str(threads)],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="a checkout of the version to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measured(arguments.threads)))
        return
    versions = [ROOT] if arguments.against is None else [arguments.against.resolve(), ROOT]
    seen: dict[Path, list[dict[str, list[float]]]] = {root: [] for root in versions}
    for _ in range(arguments.rounds):
        for root in versions:
            seen[root].append(in_a_process(root, arguments.threads))
    least = {
        root: {name: [min(run[name][task] for run in runs) for task in (0, 1)] for name in runs[0]}
        for root, runs in seen.items()
    }
    print(f"milliseconds a measurement, {arguments.threads} thread(s), N = 64; in the first and in the second task")
    print("| MLP 64-256-256-10, digits | before | now | times the kernel, now | now / before |")
    print("|---|---|---|---|---|")
    now, before = least[ROOT], least[versions[0]]
    for name, times in now.items():
        told = " and ".join(f"{t:.1f}" for t in times)
        earlier = " and ".join(f"{t:.1f}" for t in before[name]) if len(versions) > 1 else ""
        ratio = " and ".join(f"{a / b:.2f}" for a, b in zip(times, before[name], strict=True)) if earlier else ""
        share = " and ".join(f"{a / b:.1f}" for a, b in zip(times, now[KERNEL], strict=True))
        print(f"| {name} | {earlier} | {told} | {share} | {ratio} |")


if __name__ == "__main__":
    main()
