"""Numbers worked out by hand: of run folders from their CSV files alone, and of trainings."""

import csv
import statistics

import numpy as np
import torch


def run_of(plan, start, seed):
    """The one run folder of a plan whose name begins so and has that seed."""
    (found,) = (plan / "runs").glob(f"{start}*seed={seed}-*")
    return found


def series_of(folder, column):
    """The iterations of all boundaries, and `(iteration, number)` where the column has one."""
    with (folder / "measurements.csv").open() as file:
        rows = list(csv.DictReader(file))
    boundaries = [int(row["iteration"]) for row in rows if row["event"] == "experience_start"]
    return boundaries, [(int(row["iteration"]), float(row[column])) for row in rows if row[column]]


def spike_of(folder, column="velocity_per_iteration", experience=1):
    """The largest of the first three velocities after a boundary minus the median of the last ten at rest before it.

    At rest are those whose interval begins in the second half of the task before the boundary.
    """
    boundaries, series = series_of(folder, column)
    start, boundary, end = (*boundaries, float("inf"))[experience - 1 : experience + 2]
    _, measured = series_of(folder, "iteration")
    begins = {t: max(s for s, _ in measured if s < t) for t, _ in series}
    before = [v for t, v in series if t <= boundary and begins[t] >= (start + boundary) / 2][-10:]
    after = [v for t, v in series if boundary < t <= end][:3]
    return max(after) - statistics.median(before)


def unit(kernel):
    """The centred kernel with the Frobenius norm 1."""
    h = np.eye(len(kernel)) - 1 / len(kernel)
    return h @ kernel @ h / np.linalg.norm(h @ kernel @ h)


def orders(n, size, seed):
    """The samples of each minibatch, epoch after epoch."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(n, generator=generator).split(size)
