"""A study's results on disk: `results.json`, `results.md` and `figures/`."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avalanche_ntk.owned import write_owned
from avalanche_ntk.report.style import to_bytes
from avalanche_ntk.reproduce.registry import OPEN, STUDIES, Scale
from avalanche_ntk.reproduce.study import Context
from avalanche_ntk.reproduce.verdicts import Claim, Finding

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("svg", "png", "pdf")
LIBRARIES = ("avalanche-ntk", "avalanche-lib", "torch", "numpy", "scipy")


@dataclass(frozen=True)
class Setting:
    """Record of how a study was made.

    Attributes:
        name: Its name.
        context: Scale, data, seeds, device.
        jobs: Number of processes.
        wall_seconds: Duration of this call, without parts that already existed.
        core_seconds: Total duration of all runs and measurements on one core.
        batch: Seeds added at a time; None for all at once.
        budget: Maximum number of seeds; None for those of the context.
    """

    name: str
    context: Context
    jobs: int
    wall_seconds: float
    core_seconds: float
    batch: int | None = None
    budget: int | None = None

    @property
    def command(self) -> str:
        """The command line of the study."""
        c = self.context
        words = ["avalanche-ntk", "reproduce", self.name, "--scale", str(c.scale), "--data", c.data]
        words += ["--data-root", c.data_root] if c.data_root else []
        words += ["--seeds", str(self.batch or len(c.seeds))]
        words += ["--first-seed", str(c.seeds[0])] if c.seeds[0] else []
        words += ["--budget", str(self.budget)] if self.budget is not None else []
        words += ["--jobs", str(self.jobs)]
        return shlex.join([*words, *(["--device", c.device] if c.device != "cpu" else [])])


def write_results(out: Path, setting: Setting, claims: Sequence[Claim], figures: Mapping[str, Figure]) -> list[Path]:
    """Write the results of a study.

    Args:
        out: Its folder.
        setting: Its record.
        claims: Its claims.
        figures: Its figures by name.

    Returns:
        The files.

    Raises:
        RunFolderError: A file written by something else would be replaced.
    """
    files: dict[str, str | bytes] = {
        "results.json": json.dumps(as_json(setting, claims), indent=1) + "\n",
        "results.md": as_markdown(setting, claims, list(figures)),
    }
    for name, figure in figures.items():
        files |= {f"figures/{name}.{kind}": to_bytes(figure, kind) for kind in FORMATS}
    return write_owned(out, files)


def as_json(setting: Setting, claims: Sequence[Claim]) -> dict[str, Any]:
    """Return the results as plain values.

    Args:
        setting: Their record.
        claims: The claims.

    Returns:
        The content of `results.json`.
    """
    context = setting.context
    entry = STUDIES[setting.name]
    return {
        "study": setting.name,
        "title": entry.title,
        "source": entry.source,
        "scale": str(context.scale),
        "data": context.data,
        "seeds": list(context.seeds),
        "device": context.device,
        "command": setting.command,
        "wall_seconds": setting.wall_seconds,
        "core_seconds": setting.core_seconds,
        "versions": {name: version(name) for name in LIBRARIES},
        "claims": [
            {
                "key": claim.key,
                "text": claim.text,
                "verdict": str(claim.verdict),
                "told": claim.told,
                "remark": claim.remark,
                "findings": [_without_nan(asdict(finding)) for finding in claim.findings],
            }
            for claim in claims
        ],
    }


def _without_nan(value: Any) -> Any:
    """Replace NaN by null, since JSON has no NaN."""
    if isinstance(value, Mapping):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_markdown(setting: Setting, claims: Sequence[Claim], figures: Sequence[str]) -> str:
    """Return the results as a page in Markdown.

    Args:
        setting: Their record.
        claims: The claims.
        figures: Names of the figures in `figures/`.

    Returns:
        The text.
    """
    context = setting.context
    entry = STUDIES[setting.name]
    source = "an open question" if entry.source == OPEN else entry.source
    seeds = f"{len(context.seeds)} seeds"
    if context.seeds[0]:
        seeds += f" ({context.seeds[0]} to {context.seeds[-1]})"
    lines = [f"# {entry.title}", "", f"{_capital(source)}; {seeds}, scale {context.scale}.", ""]
    lines += ["```sh", setting.command, "```", ""]
    if context.scale is Scale.TINY:
        lines += ["The scale `tiny` shows that the command works; its numbers say nothing.", ""]
    spent = minutes(setting.core_seconds)
    lines += [
        f"Runs and measurements, each on one core, took {spent} in all, beside whatever else the machine did.",
        "",
    ]
    lines += ["| statement | verdict |", "|---|---|"]
    lines += [f"| {_cell(claim.text)} | {_cell(claim.told)} |" for claim in claims]
    for claim in claims:
        lines += ["", f"## {claim.text}", "", f"**{_capital(claim.told)}.** {claim.remark}".rstrip(), ""]
        lines += ["| case | statistic | mean and 95 % interval | expected | verdict |", "|---|---|---|---|---|"]
        lines += [_row(finding) for finding in claim.findings]
        lines += [line for note in _notes(claim.findings) for line in ("", note)]
    for name in figures:
        lines += ["", f"![{name}](figures/{name}.svg)"]
    return "\n".join(lines) + "\n"


def _row(finding: Finding) -> str:
    expected = "" if finding.verdict is None else f"{'>' if finding.above else '<'} {number(finding.threshold)}"
    if expected and math.isfinite(finding.margin):
        expected += f", margin {number(finding.margin)}"
    verdict = "" if finding.verdict is None else str(finding.verdict)
    cells = (finding.case, finding.statistic, with_interval(finding), expected, verdict)
    return f"| {' | '.join(map(_cell, cells))} |"


def _notes(findings: Sequence[Finding]) -> list[str]:
    return [f"{_capital(f.case)}, {f.statistic}: {f.note}." for f in findings if f.note]


def with_interval(finding: Finding) -> str:
    """Return a finding's mean with its interval, as in "0.12 [0.05, 0.19]"."""
    if math.isnan(finding.mean):
        return "undefined"
    if math.isnan(finding.low):
        return number(finding.mean)
    return f"{number(finding.mean)} [{number(finding.low)}, {number(finding.high)}]"


def number(value: float) -> str:
    """Return a number with three significant digits."""
    return f"{value:.3g}".replace("-", "−")


def minutes(seconds: float) -> str:
    """Return a duration in words."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
