"""Run the tutorial and write it down: `python docs/render.py` makes `docs/tutorial.md` and `docs/tutorial.ipynb`.

`docs/tutorial.py` is the source: cells begin with `# %%`, those of text with `# %% [markdown]`. What a cell prints, and
the figure that its last line may be, stand below it on the page and in the notebook.
"""

import ast
import io
import json
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

DOCS = Path(__file__).parent
SOURCE = DOCS / "tutorial.py"


@dataclass
class Cell:
    """One cell.

    Attributes:
        text: Markdown, or code.
        is_code: Which of the two.
        printed: What it printed.
        figure: The SVG of the figure that its last line was.
    """

    text: str
    is_code: bool
    printed: str = ""
    figure: str = ""


def cells_of(source: str) -> list[Cell]:
    """Cut a script into its cells.

    Args:
        source: The script.

    Returns:
        The cells, not yet run.
    """
    cells: list[Cell] = []
    for part in f"\n{source}".split("\n# %%")[1:]:
        head, _, body = part.partition("\n")
        if head.strip() == "[markdown]":
            lines = [line.removeprefix("#").removeprefix(" ") for line in body.strip().splitlines()]
            cells.append(Cell("\n".join(lines), is_code=False))
        else:
            cells.append(Cell(body.strip(), is_code=True))
    return cells


def run(cell: Cell, names: dict[str, Any]) -> None:
    """Run a cell of code, and keep what it printed and drew."""
    body = ast.parse(cell.text).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(ast.Module(body, []), str(SOURCE), "exec"), names)
        value = eval(compile(ast.Expression(last.value), str(SOURCE), "eval"), names) if last else None
    cell.printed = printed.getvalue()
    if isinstance(value, Figure):
        drawn = io.StringIO()
        value.savefig(drawn, format="svg", metadata={"Date": None})
        cell.figure = drawn.getvalue()


def as_page(cells: list[Cell]) -> str:
    """Return the page; figures are files beside it."""
    parts = []
    for number, cell in enumerate(cells):
        parts.append(f"```python\n{cell.text}\n```" if cell.is_code else cell.text)
        if cell.printed:
            parts.append(f"```text\n{cell.printed.rstrip()}\n```")
        if cell.figure:
            parts.append(f"![The figure that this draws](assets/tutorial-{number}.svg)")
    notebook = "it is also a [notebook](tutorial.ipynb)"
    note = f"This page is [`tutorial.py`](tutorial.py), run by `python docs/render.py`; {notebook}."
    return "\n\n".join(parts).replace("\n\n## ", f"\n\n{note}\n\n## ", 1) + "\n"


def as_notebook(cells: list[Cell]) -> str:
    """Return the notebook, format 4.5, with what the cells printed and drew."""
    made = []
    for number, cell in enumerate(cells):
        shared = {"id": f"cell-{number}", "metadata": {}, "source": cell.text.splitlines(keepends=True)}
        if not cell.is_code:
            made.append({"cell_type": "markdown", **shared})
            continue
        outputs: list[dict[str, Any]] = []
        if cell.printed:
            outputs.append({"output_type": "stream", "name": "stdout", "text": cell.printed.splitlines(keepends=True)})
        if cell.figure:
            data = {"image/svg+xml": cell.figure.splitlines(keepends=True)}
            outputs.append({"output_type": "display_data", "data": data, "metadata": {}})
        made.append({"cell_type": "code", "execution_count": None, "outputs": outputs, **shared})
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return json.dumps({"cells": made, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"


def main() -> None:
    """Run every cell, and write page, figures and notebook."""
    matplotlib.rcParams["svg.hashsalt"] = "tutorial"  # the same names in the file, whenever it is made
    cells, names = cells_of(SOURCE.read_text(encoding="utf-8")), {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        if cell.is_code:
            run(cell, names)
        if cell.figure:
            (DOCS / "assets" / f"tutorial-{number}.svg").write_text(cell.figure, encoding="utf-8")
        print(cell.printed, end="", file=sys.stderr)
    SOURCE.with_suffix(".md").write_text(as_page(cells), encoding="utf-8")
    SOURCE.with_suffix(".ipynb").write_text(as_notebook(cells), encoding="utf-8")


if __name__ == "__main__":
    main()
