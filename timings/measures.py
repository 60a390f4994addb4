"""Time of all default measures of one kernel, without the kernel itself: `python timings/measures.py`.

The limit is 5 ms at N = 128 with ten classes; the reference kernels are kept as views, as a trajectory keeps them.
"""

import argparse
import platform
import statistics
import time

import numpy as np

from avalanche_ntk.measures import KernelView, reactivation, summary


def kernel(n: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(n, 2 * n))
    return (x @ x.T).astype(np.float32)


def milliseconds(function, repeats: int) -> tuple[float, float, float]:
    """Return the median and the largest wall-clock time, and the median processor time."""
    function()
    wall, processor = [], []
    for _ in range(repeats):
        begin, begin_processor = time.perf_counter(), time.process_time()
        function()
        wall.append(time.perf_counter() - begin)
        processor.append(time.process_time() - begin_processor)
    return 1e3 * statistics.median(wall), 1e3 * max(wall), 1e3 * statistics.median(processor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[32, 64, 128, 256, 512], metavar="N")
    parser.add_argument("--repeats", type=int, default=50)
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, numpy {np.__version__}, {arguments.repeats} repeats")
    for n in arguments.samples:
        labels = np.arange(n) % 10
        now, *references = (kernel(n, seed) for seed in range(4))
        previous, start, init = (KernelView(k) for k in references)
        for view in (previous, start, init):
            summary(view, labels)  # a reference was measured earlier

        def measure(now=now, labels=labels, previous=previous, start=start, init=init):
            # A new view each time, without cached results.
            summary(KernelView(now), labels, previous=previous, start=start, init=init, elapsed=10)

        median, worst, processor = milliseconds(measure, arguments.repeats)
        print(f"N = {n:4d}: median {median:7.2f} ms, worst {worst:7.2f} ms, processor {processor:7.2f} ms, one kernel")
    times = list(range(400))
    velocities = np.random.default_rng(0).uniform(size=400)
    median, _, _ = milliseconds(
        lambda: reactivation(times, velocities, 200, lambda_max=velocities, alignment=velocities), arguments.repeats
    )
    print(f"reactivation of a series of 400: median {median:.2f} ms")


if __name__ == "__main__":
    main()
