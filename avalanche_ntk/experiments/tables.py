"""A comparison as text: for the terminal, CSV, Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avalanche_ntk.errors import RunFolderError, ended
from avalanche_ntk.experiments.comparison import COLUMNS, KERNEL, LEARNING, Comparison
from avalanche_ntk.files import write_whole

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
_LATEX = {"λ_max dip": r"$\lambda_{\max}$ dip", "λ_max recovery": r"$\lambda_{\max}$ recovery"}
_ESCAPES = {
    "\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


NO_CORRELATION = (
    "No rank correlation with forgetting: it takes three runs whose forgetting, and whose measure, are defined and "
    "not all the same."
)


def number(value: float) -> str:
    """Return a number with three significant digits, as people read it.

    >>> number(0.51234), number(1234.5), number(0.0000123), number(float("nan"))
    ('0.512', '1230', '1.23e-05', '–')
    """
    if value is None or math.isnan(value):
        return "–"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{float(f'{value:.3g}'):.{digits}f}"
    return f"{value:.2e}"


def shown_columns(found: Comparison) -> list[str]:
    """Return the columns in which at least one run has a number."""
    return [c for c in COLUMNS if found.runs[c].notna().any()]


def to_csv(found: Comparison, *, each: bool = False) -> str:
    """Return the whole table, every column, undefined numbers empty.

    Args:
        found: The comparison.
        each: Whether a row is a run, not a group.

    Returns:
        CSV.
    """
    table = found.runs if each else found.groups
    text: str = table.to_csv(index=False, lineterminator="\n")
    return text


def to_markdown(found: Comparison, *, each: bool = False) -> str:
    """Return the table, what is left out, and the rank correlations.

    Args:
        found: The comparison.
        each: Whether a row is a run, not a group.

    Returns:
        Markdown.
    """
    columns = shown_columns(found)
    heads, rows = _cells(found, columns, each)
    lines = [_markdown_row(heads), _markdown_row(["---"] + ["---:"] * (len(heads) - 1))]
    lines += [_markdown_row(row) for row in rows]
    if not each:
        lines += ["", "Mean ± standard deviation over the runs of a group [95 % interval by bootstrap]."]
    lines += ["", *[f"- {ended(refusal)}" for refusal in found.refusals]] if found.refusals else []
    if correlated := _correlation_cells(found):
        lines += ["", "Rank correlation (Spearman) with forgetting over the runs:", ""]
        lines += [_markdown_row(["measure", "ρ", "p", "runs"]), _markdown_row(["---", "---:", "---:", "---:"])]
        lines += [_markdown_row(row) for row in correlated]
    else:
        lines += ["", NO_CORRELATION]
    return "\n".join(lines) + "\n"


def to_latex(found: Comparison, *, each: bool = False) -> str:
    """Return a `tabular` that needs the package booktabs.

    Args:
        found: The comparison.
        each: Whether a row is a run, not a group.

    Returns:
        LaTeX.
    """
    columns = shown_columns(found)
    heads, rows = _cells(found, columns, each, interval=False)
    lines = [f"% {ended(refusal)}" for refusal in found.refusals]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}", r"\toprule"]
    lines += [" & ".join(_LATEX.get(head, _escaped(head)) for head in heads) + r" \\", r"\midrule"]
    for first, *others in rows:
        cells = [_escaped(first), *[_latex_cell(cell) for cell in others]]
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def to_rich(found: Comparison, *, each: bool = False, width: int = 100) -> Iterator[Table | str]:
    """Yield tables for the terminal: what was learnt, what the kernel did, what goes with forgetting.

    Args:
        found: The comparison.
        each: Whether a row is a run, not a group.
        width: Characters in a line; columns that do not fit go to a further table.

    Yields:
        Tables; a sentence in place of the rank correlations where none is defined.
    """
    columns = shown_columns(found)
    note = "" if each else " (mean ± standard deviation over the runs; 95 % interval of the mean)"
    for title, wanted in (
        (f"What was learnt{note}", [*LEARNING, "measuring_share"]),
        ("What the kernel did", [*KERNEL]),
    ):
        heads, rows = _cells(found, [c for c in wanted if c in columns], each)
        lines = [[cell.replace(" [", "\n[") for cell in row] for row in rows]
        fitting = [
            max(len(line) for cell in [h, *c] for line in cell.split("\n")) for h, *c in zip(heads, *lines, strict=True)
        ]
        if len(heads) > 1:
            for number_, chosen in enumerate(_packed(fitting, width)):
                yield _rich_table(
                    title if not number_ else f"{title.split(' (')[0]}, continued",
                    [heads[i] for i in chosen],
                    [[row[i] for i in chosen] for row in lines],
                )
    title = "Rank correlation (Spearman) with forgetting, over the runs"
    if rows := _correlation_cells(found):
        yield _rich_table(title, ["measure", "ρ", "p", "runs"], rows)
    else:
        yield NO_CORRELATION


def _packed(widths: Sequence[int], width: int) -> Iterator[list[int]]:
    """Yield the columns of each table, the first one in all of them, so that each fits where that is possible."""
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
    """Write a file as a whole.

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
    found: Comparison, columns: Sequence[str], each: bool, interval: bool = True
) -> tuple[list[str], list[list[str]]]:
    heads = [HEADINGS[c] for c in columns]
    if each:
        rows = [[str(r["run"]), *[number(r[c]) for c in columns]] for r in found.runs.to_dict("records")]
        return ["run", *heads], rows
    rows = [
        [f"{r['group']} ({r['runs']} run{'s' if r['runs'] > 1 else ''})", *[_spread(r, c, interval) for c in columns]]
        for r in found.groups.to_dict("records")
    ]
    return ["group", *heads], rows


def _spread(row: dict[Any, Any], column: str, interval: bool) -> str:
    text = number(row[column])
    if not math.isnan(row[f"{column}_std"]):
        text += f" ± {number(row[f'{column}_std'])}"
        if interval:
            text += f" [{number(row[f'{column}_low'])}, {number(row[f'{column}_high'])}]"
    return text


def _correlation_cells(found: Comparison) -> list[list[str]]:
    return [
        [HEADINGS[r["measure"]], number(r["rho"]), number(r["p"]), str(r["runs"])]
        for r in found.correlations.to_dict("records")
        if not math.isnan(r["rho"])
    ]


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _latex_cell(cell: str) -> str:
    return "--" if cell == "–" else "$" + cell.replace(" ± ", r" \pm ") + "$"


def _escaped(text: str) -> str:
    return "".join(_ESCAPES.get(character, character) for character in text)
