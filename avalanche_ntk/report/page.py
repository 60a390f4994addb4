"""The page: one self-contained HTML file, in the reader's light or dark theme."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from string import Template

from avalanche_ntk.report.text import MISSING, escaped

GENERATOR = "avalanche-ntk report"


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        ident: Its anchor.
        title: Its heading, plain text.
        body: HTML, with foreign text escaped.
        short: Its name in the table of contents; the title if empty.
    """

    ident: str
    title: str
    body: str
    short: str = ""


@dataclass(frozen=True)
class Page:
    """The page's parts.

    Attributes:
        title: Plain text.
        lead: HTML under the title.
        sections: The sections, in order.
        foot: Plain text at the end.
    """

    title: str
    lead: str
    sections: list[Section] = field(default_factory=list)
    foot: str = ""

    def html(self) -> str:
        """Return the whole file."""
        contents = "".join(f'<li><a href="#{s.ident}">{escaped(s.short or s.title)}</a></li>' for s in self.sections)
        sections = "".join(
            f'<section id="{s.ident}" aria-labelledby="{s.ident}-title">'
            f'<h2 id="{s.ident}-title">{escaped(s.title)}</h2>{s.body}</section>'
            for s in self.sections
        )
        return _PAGE.substitute(
            title=escaped(self.title),
            generator=GENERATOR,
            style=_STYLE,
            lead=self.lead,
            contents=contents,
            sections=sections,
            foot=escaped(self.foot),
        )


def paragraph(text: str, css: str = "") -> str:
    """Return a paragraph of plain text."""
    return f"<p{_class(css)}>{escaped(text)}</p>"


def bullets(items: Iterable[str], css: str = "") -> str:
    """Return a list of plain texts; empty if there are none."""
    lines = "".join(f"<li>{escaped(item)}</li>" for item in items)
    return f"<ul{_class(css)}>{lines}</ul>" if lines else ""


def details(summary: str, body: str, *, is_open: bool = False) -> str:
    """Return a collapsible part."""
    return f"<details{' open' if is_open else ''}><summary>{escaped(summary)}</summary>{body}</details>"


def figure(narrow: str, wide: str, caption: str) -> str:
    """Return a figure with two versions of a drawing: for a phone and for a wide window.

    Args:
        narrow: SVG element.
        wide: SVG element.
        caption: Plain text.

    Returns:
        The element.
    """
    return (
        f'<figure><div class="narrow">{narrow}</div><div class="wide">{wide}</div>'
        f"<figcaption>{escaped(caption)}</figcaption></figure>"
    )


def table(
    caption: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    explained: Mapping[str, str] | None = None,
    words: bool = False,
) -> str:
    """Return a table whose rows become cards on a phone; the first column names the row.

    Args:
        caption: Plain text.
        columns: Headings, plain text.
        rows: Cells, plain text.
        explained: Explanations by heading, listed under the table.
        words: Whether the cells hold text instead of numbers.

    Returns:
        The element, with explicit roles, since browsers drop implicit ones when rows are laid out as cards.
    """
    head = "".join(f'<th scope="col" role="columnheader">{escaped(c)}</th>' for c in columns)
    body = ""
    for row in rows:
        cells = f'<th scope="row" role="rowheader">{escaped(row[0])}</th>'
        for column, cell in zip(columns[1:], row[1:], strict=True):
            missing = ' class="none"' if cell == MISSING else ""
            cells += f'<td role="cell" data-label="{escaped(column)}"{missing}>{escaped(cell)}</td>'
        body += f'<tr role="row">{cells}</tr>'
    notes = "".join(f"<dt>{escaped(c)}</dt><dd>{escaped(text)}</dd>" for c, text in (explained or {}).items())
    return (
        f'<div class="table" role="region" tabindex="0" aria-label="{escaped(caption)}">'
        f'<table role="table"{_class("words" if words else "")}><caption>{escaped(caption)}</caption>'
        f'<thead role="rowgroup"><tr role="row">{head}</tr></thead><tbody role="rowgroup">{body}</tbody></table></div>'
        + (details("What the columns mean", f"<dl>{notes}</dl>") if notes else "")
    )


def _class(css: str) -> str:
    return f' class="{css}"' if css else ""


_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="$generator">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>$title</title>
<style>$style</style>
</head>
<body>
<a class="skip" href="#answer">Skip to the answer</a>
<header><h1>$title</h1>$lead</header>
<nav aria-label="Contents"><ul>$contents</ul></nav>
<main>$sections</main>
<footer><p>$foot</p></footer>
</body>
</html>
""")

_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --panel: #f4f5f6; --ink: #1a1b1c; --soft: #4c5156; --faint: #75797d;
  --line: #d4d7da; --accent: #005a8f; --warn: #fff4dc; --warn-line: #b97700;
  --s0: #0072b2; --s1: #d55e00; --s2: #009e73; --s3: #cc79a7; --s4: #56b4e9; --s5: #e69f00; --s6: #000000; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171a; --panel: #1d2125; --ink: #e9ebed; --soft: #b6bcc2; --faint: #8d949b; --line: #383e45;
    --accent: #7cc4f5; --warn: #30281a; --warn-line: #d9a13b;
    --s0: #4aa8e0; --s1: #ff8a42; --s2: #2fc79b; --s3: #e59ac4; --s4: #9ad6f7; --s5: #f5bd4a; --s6: #f2f2f2; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 3.4rem; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0 auto; max-width: 68rem; padding: 0 1.2rem 3rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif;
  overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1.6rem 0 .4rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.6rem 0 .4rem; }
p, ul, dl { max-width: 46rem; }
p.soft, header p, figcaption, footer { color: var(--soft); }
a { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.skip { position: absolute; left: -100vw; padding: .5rem 1rem; background: var(--paper); z-index: 2; }
.skip:focus { left: 0; }
nav { position: sticky; top: 0; background: var(--paper); border-bottom: 1px solid var(--line); z-index: 1; }
nav ul { display: flex; gap: 1rem; overflow-x: auto; list-style: none; margin: 0; padding: .55rem 0; max-width: none;
  font-size: .9rem; white-space: nowrap; }
nav a { text-decoration: none; } nav a:hover { text-decoration: underline; }
.answer { list-style: none; padding: 0; margin: .6rem 0; }
.answer li { padding: .6rem .9rem; margin: .5rem 0; background: var(--panel); border-left: 4px solid var(--accent);
  border-radius: 3px; }
.warn { background: var(--warn); border-left: 4px solid var(--warn-line); border-radius: 3px; padding: .6rem .9rem; }
ul.warn { padding-left: 2rem; }
figure { margin: 1rem 0 1.4rem; }
figure svg { display: block; width: 100%; height: auto; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
.wide svg { max-width: 62rem; } .narrow { display: none; } .narrow svg { max-width: 30rem; }
figcaption { font-size: .88rem; max-width: 46rem; margin-top: .4rem; }
.table { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .88rem; padding-bottom: .3rem; }
th, td { padding: .3rem .55rem .3rem 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:first-child, .words th, .words td { text-align: left; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; border-bottom: 2px solid var(--line); }
tbody th { font-weight: 600; white-space: nowrap; }
.words tbody th { white-space: normal; }
tbody td { white-space: nowrap; } .words td { white-space: normal; overflow-wrap: anywhere; }
td.none { color: var(--faint); }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--accent); padding: .2rem 0; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem 1rem; color: var(--soft); }
code { font-size: .92em; }
footer { margin-top: 3rem; border-top: 1px solid var(--line); font-size: .85rem; }
@media (max-width: 44rem) {
  body { padding: 0 .9rem 2rem; } h1 { font-size: 1.4rem; }
  .narrow { display: block; } .wide { display: none; }
  .table { overflow-x: visible; } table, tbody, tr, th, td, caption { display: block; } thead { display: none; }
  tr { background: var(--panel); border-radius: 4px; padding: .5rem .8rem; margin: .5rem 0; }
  tbody th { border: 0; padding: 0 0 .2rem; text-align: left; white-space: normal; }
  td { display: flex; justify-content: space-between; gap: 1rem; border: 0; padding: .1rem 0; text-align: right; }
  td::before { content: attr(data-label); color: var(--soft); text-align: left; flex: 0 0 auto; max-width: 60%; }
  .words td { text-align: right; } }
@media print { nav, .skip { display: none; } body { max-width: none; } figure, tr { break-inside: avoid; } }
"""
