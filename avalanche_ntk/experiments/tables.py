"""A comparison as text: for the terminal, CSV, Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avalanche_ntk.errors import RunFolderError, ended
from avalanche_ntk.experiments.comparison import COLUMNS, KERNEL, LEARNING, Comparison
from avalanche_ntk.files import write_whole
from avalanche_ntk.numerals import latex, latex_text, markdown_row, written

if TYPE_CHECKING:
    from rich.table import Table

HEADINGS = {
    "accuracy": "accuracy",
    "forgetting": "forgetting",
    "backward_transfer": "backward transfer",
    "moved": "moved",
    "spike": "spike",
    "ratio": "ratio",
    "norm_dip": "λ_max dip",
    "norm_recovery": "λ_max recovery",
    "alignment_drop": "alignment drop",
    "effective_rank": "effective rank",
    "linearisation_error": "linearisation error",
    "measuring_share": "measuring share",
}
NO_CORRELATION = (
    "No rank correlation with forgetting: it needs three runs of one seed, none of them a control, with defined and "
    "not constant forgetting and measure."
)
_SPREAD = "mean over the seeds ± half of its 95 % interval (Student's t)"
_CORRELATION = "Rank correlation (Spearman) with forgetting, within each seed, then over seeds"


def shown_columns(found: Comparison) -> list[str]:
    """Return the columns with a number for at least one run."""
    return [c for c in COLUMNS if found.runs[c].notna().any()]


def to_csv(found: Comparison, *, each: bool = False) -> str:
    """Return the whole table with all columns; undefined numbers are empty.

    Args:
        found: The comparison.
        each: Whether a row is a run instead of a group.

    Returns:
        CSV.
    """
    table = found.runs if each else found.groups
    text: str = table.to_csv(index=False, lineterminator="\n")
    return text


def to_markdown(found: Comparison, *, each: bool = False) -> str:
    """Return the table, the omissions, and the rank correlations.

    Args:
        found: The comparison.
        each: Whether a row is a run instead of a group.

    Returns:
        Markdown.
    """
    columns = shown_columns(found)
    heads, rows = _cells(found, columns, each)
    lines = [markdown_row(heads), markdown_row(["---"] + ["---:"] * (len(heads) - 1))]
    lines += [markdown_row(row) for row in rows]
    if not each:
        lines += ["", f"{_SPREAD[0].upper()}{_SPREAD[1:]}; no interval with one seed."]
    lines += ["", *[f"- {ended(refusal)}" for refusal in found.refusals]] if found.refusals else []
    if correlated := _correlation_cells(found):
        lines += ["", f"{_CORRELATION}:", ""]
        lines += [markdown_row(_CORRELATION_HEADS), markdown_row(["---", "---:", "---:", "---:"])]
        lines += [markdown_row(row) for row in correlated]
    else:
        lines += ["", NO_CORRELATION]
    return "\n".join(lines) + "\n"


def to_latex(found: Comparison, *, each: bool = False) -> str:
    """Return a `tabular` that needs the package booktabs.

    Args:
        found: The comparison.
        each: Whether a row is a run instead of a group.

    Returns:
        LaTeX.
    """
    columns = shown_columns(found)
    heads, rows = _cells(found, columns, each, latex, latex_text)
    lines = [f"% {ended(refusal)}" for refusal in found.refusals]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}", r"\toprule"]
    lines += [" & ".join(map(latex_text, heads)) + r" \\", r"\midrule"]
    lines += [" & ".join(row) + r" \\" for row in rows]
    lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def to_rich(found: Comparison, *, each: bool = False, width: int = 100) -> Iterator[Table | str]:
    """Yield tables for the terminal: learning, kernel, and correlations with forgetting.

    Args:
        found: The comparison.
        each: Whether a row is a run instead of a group.
        width: Characters in a line; columns that do not fit go to another table.

    Yields:
        Tables; a sentence instead of the rank correlations if none is defined.
    """
    columns = shown_columns(found)
    note = "" if each else f" ({_SPREAD})"
    for title, wanted in (
        (f"What was learnt{note}", [*LEARNING, "measuring_share"]),
        ("What the kernel did", [*KERNEL]),
    ):
        heads, rows = _cells(found, [c for c in wanted if c in columns], each)
        fitting = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        if len(heads) > 1:
            for number_, chosen in enumerate(_packed(fitting, width)):
                yield _rich_table(
                    title if not number_ else f"{title.split(' (')[0]}, continued",
                    [heads[i] for i in chosen],
                    [[row[i] for i in chosen] for row in rows],
                )
    if rows := _correlation_cells(found):
        yield _rich_table(_CORRELATION, _CORRELATION_HEADS, rows)
    else:
        yield NO_CORRELATION


def _packed(widths: Sequence[int], width: int) -> Iterator[list[int]]:
    """Yield the columns of each table, always with the first one, so that each fits if possible."""
    gap = 2
    chosen: list[int] = []
    for i, own in enumerate(widths[1:], start=1):
        taken = widths[0] + sum(widths[j] + gap for j in chosen) + 2 * gap
        if chosen and taken + own + gap > width:
            yield [0, *chosen]
            chosen = []
        chosen.append(i)
    yield [0, *chosen]


def _rich_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*[Text(cell) for cell in row])
    return table


def write(path: Path, text: str) -> None:
    """Write a file atomically.

    Args:
        path: The file.
        text: Its content.

    Raises:
        RunFolderError: It cannot be written.
    """
    try:
        write_whole(path, text)
    except OSError as error:
        raise RunFolderError(
            f"{path} cannot be written ({error.strerror or error}): expected a file in a folder that exists. "
            "Give another path."
        ) from None


def _cells(
    found: Comparison,
    columns: Sequence[str],
    each: bool,
    told: Callable[[float, float | None], str] = written,
    name: Callable[[str], str] = str,
) -> tuple[list[str], list[list[str]]]:
    heads = [HEADINGS[c] for c in columns]
    if each:
        rows = [[name(str(r["run"])), *[told(r[c], None) for c in columns]] for r in found.runs.to_dict("records")]
        return ["run", *heads], rows
    rows = [
        [name(f"{r['group']} ({_counted(r)})"), *[told(r[c], (r[f"{c}_high"] - r[f"{c}_low"]) / 2) for c in columns]]
        for r in found.groups.to_dict("records")
    ]
    return ["group", *heads], rows


def _counted(row: dict[Any, Any]) -> str:
    runs, seeds = row["runs"], row["seeds"]
    told = f"{seeds} seed{'s' if seeds > 1 else ''}"
    return told if runs == seeds else f"{runs} runs, {told}"


_CORRELATION_HEADS = ("measure", "ρ", "seeds", "runs")


def _correlation_cells(found: Comparison) -> list[list[str]]:
    return [
        [HEADINGS[r["measure"]], _rho(r), str(r["seeds"]), str(r["runs"])]
        for r in found.correlations.to_dict("records")
        if not math.isnan(r["rho"])
    ]


def _rho(row: dict[Any, Any]) -> str:
    text = f"{row['rho']:.2f}"
    return text if math.isnan(row["rho_low"]) else f"{text} [{row['rho_low']:.2f}, {row['rho_high']:.2f}]"
