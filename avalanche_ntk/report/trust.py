"""The table of trust: how a run's kernels were computed, and checks of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from avalanche_ntk.recorder.trajectory import Trajectory
from avalanche_ntk.report.runs import Run
from avalanche_ntk.report.settings import setting
from avalanche_ntk.report.text import MISSING, listed, number, plain

TRUST = [
    ("run", ""),
    ("measurements", "number made, and number failed"),
    ("samples", "size of the probe"),
    ("kernel", "reduction and outputs of the kernel"),
    ("when", "the schedule of measurements"),
    ("kernels kept", "measurements whose kernel is in the folder"),
    ("spot check", "largest relative error of an entry against the reference computation in float64"),
    ("asymmetry", "largest relative asymmetry before the kernel was made symmetric"),
    ("λ_min / λ_max", "most negative; below zero only by rounding"),
    ("methods", "methods of contraction, with their numbers of parameters"),
    ("cost", "share of the time since training began spent on measuring, at the last measurement"),
]
"""Column headings and their explanations."""


def trust_row(run: Run, trajectory: Trajectory) -> list[str]:
    """Return a run's cells, in the order of `TRUST`."""
    meta = run.folder.meta
    failed = sum(m.failure is not None for m in trajectory)
    trusted = [m.trust for m in trajectory if m.failure is None]
    low = [
        t["min_eigenvalue"] / t["max_eigenvalue"]
        for t in trusted
        if _is_number(t.get("min_eigenvalue")) and _is_number(t.get("max_eigenvalue")) and t["max_eigenvalue"] > 0
    ]
    methods: Counter[str] = Counter()
    for t in trusted[-1:]:
        if isinstance(t.get("methods"), Mapping):
            methods.update({plain(k, 30): v for k, v in t["methods"].items() if isinstance(v, int)})
    shares = [m.values["measuring_share"] for m in trajectory if "measuring_share" in m.values]
    signs = f" ({setting(meta['n_projections'])} sign vectors)" if meta.get("n_projections") else ""
    return [
        run.name,
        f"{len(trajectory):,}" + (f", {failed:,} failed" if failed else ""),
        f"{len(trajectory.labels):,}",
        f"{setting(meta.get('reduction'))}{signs}, outputs {setting(meta.get('outputs'))}",
        plain(trajectory.cadence) or MISSING,
        f"{sum(m.kernel is not None for m in trajectory):,}",
        _largest(t.get("spot_check_max_relative_error") for t in trusted),
        _largest(t.get("asymmetry") for t in trusted),
        number(min(low, default=None)),
        listed([f"{name} × {count}" for name, count in methods.items()], 4) or MISSING,
        f"{100 * shares[-1]:.1f} %" if shares else MISSING,
    ]


def _largest(values: Iterable[Any]) -> str:
    return number(max((float(v) for v in values if _is_number(v)), default=None))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
