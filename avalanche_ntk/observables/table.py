"""The table of metrics in `docs/metrics.md`, made from the observables' declarations.

Run `python -m avalanche_ntk.observables.table docs/metrics.md` after a change of a declaration.
"""

from __future__ import annotations

import sys
from pathlib import Path

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.observables import families
from avalanche_ntk.observables.declaration import Family

BEGIN = "<!-- metrics: written by python -m avalanche_ntk.observables.table docs/metrics.md -->"
END = "<!-- end of metrics -->"


def own_families() -> dict[str, Family]:
    """Return the families of this package, without those registered by users."""
    return {
        f: x
        for f, x in families().items()
        if x.observable is None or x.observable.__module__.startswith("avalanche_ntk.")
    }


def markdown() -> str:
    """Return the table of this package's families, one row per number or image."""
    rows = ["| flag | on by default | tag | column | unit | when |", "|---|---|---|---|---|---|"]
    for family in own_families().values():
        first = (f"`{family.flag}`", "yes" if family.on else "no")
        for metric in family.metrics:
            note = f" ({metric.note})" if metric.note else ""
            where = " of `trajectory.summary()`" if family.of_boundaries else ""
            cells = (f"`{metric.shown_tag}`{note}", f"`{metric.shown_column}`{where}", metric.unit)
            rows.append(_row(*first, *cells, metric.when or family.when))
            first = ("", "")
        for image in family.images:
            rows.append(_row(*first, f"`{image.tag}` (image)", "", "", "boundaries"))
            first = ("", "")
    return "\n".join(rows)


def _row(*cells: str) -> str:
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def replaced(page: str) -> str:
    """Return a page with the current table between its two marks.

    Args:
        page: Text of the page.

    Returns:
        The new text.

    Raises:
        ArgumentError: The page has no such marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ArgumentError(f"the page has no place for the table: expected the lines {BEGIN!r} and {END!r}.")
    return f"{before}{BEGIN}\n\n{markdown()}\n\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(replaced(path.read_text(encoding="utf-8")), encoding="utf-8")
