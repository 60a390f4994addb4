"""Judge the stored results by the rule of today, and draw all statements: `python docs/judge.py`.

Reads the pages `docs/reproduction/*.md`, in which each case stands with its mean, its 95 % interval and its threshold;
from these and the number of seeds it works out every case's p-value, decides by `reproduce.deciding` (one look), and
writes the verdicts into the pages and into the tables of `docs/reproduction.md`. A page made in several looks
(`--budget`) keeps the verdicts that it was written with. Then it draws `docs/reproduction/statements.svg`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from scipy.special import stdtrit

from avalanche_ntk.report.style import COLOURS, PAGE_INCHES, drawing, new_figure, to_bytes
from avalanche_ntk.reproduce.deciding import Evidence, Question, decide
from avalanche_ntk.reproduce.verdicts import Claim, Finding, Verdict, usual_margin
from avalanche_ntk.reproduce.writing import number

DOCS = Path(__file__).parent
PAGE = DOCS / "reproduction.md"
ROW = re.compile(r"^\| (.*) \| (.*) \| (.*) \| ([><]) ([^\s,]+)(?:, margin (\S+))? \| (.*) \|$")
WORDS = {
    Verdict.HOLDS: "holds throughout",
    Verdict.MOST: "holds in most cases",
    Verdict.DEPENDS: "depends on a word of its cases",
    Verdict.FAILS: "does not hold",
    Verdict.OPEN: "undecided",
}
MARKS = {Verdict.HOLDS: "●", Verdict.MOST: "◕", Verdict.DEPENDS: "◐", Verdict.FAILS: "✕", Verdict.OPEN: "?"}


@dataclass
class Stored:
    """A page of results.

    Attributes:
        name: The study's name, with what it was made on.
        lines: The page.
        claims: Its statements, with the numbers of their lines: of the table, of the verdict, of each judged case.
    """

    name: str
    lines: list[str]
    claims: list[tuple[Claim, list[int]]]


def read(path: Path) -> Stored:
    """Read a page and judge its statements."""
    lines = path.read_text(encoding="utf-8").splitlines()
    text = "\n".join(lines)
    seeds = int(re.search(r"(\d+) seeds", text)[1])
    sections = [i for i, line in enumerate(lines) if line.startswith("## ")] + [len(lines)]
    claims = []
    for start, end in pairwise(sections):
        rows = [(i, m) for i in range(start, end) if (m := ROW.match(lines[i]))]
        findings, evidence = [], []
        for _, m in rows:
            groups = ((part or "").replace("\\|", "|") for part in m.groups())
            case, statistic, told, sign, threshold, margin, verdict = groups
            numbers = [_number(n) for n in re.findall(r"[−-]?(?:inf|\d[\d.]*(?:e[+−-]?\d+)?)", told)]
            note = f"{case[:1].upper()}{case[1:]}, {statistic}: "
            lost = next((re.search(r"undefined for (\d+) of", x) for x in lines[start:end] if x.startswith(note)), None)
            n = seeds - (int(lost[1]) if lost else 0)
            mean, low, high = (*numbers, math.nan, math.nan, math.nan)[:3]
            half = (high - low) / 2
            evidence.append(Evidence(mean, half / float(stdtrit(n - 1, 0.975)) if n > 1 else math.nan, n))
            at = _number(threshold)
            wide = _number(margin) if margin else usual_margin(statistic, at)
            findings.append(
                Finding(case, statistic, (), at, sign == ">", mean, low, high, _verdict(verdict), margin=wide)
            )
        if "--budget" not in text:
            verdicts = decide([Question(f.threshold, f.above, f.margin) for f in findings], [evidence], 1)
            findings = [replace(f, verdict=v) for f, (v, _) in zip(findings, verdicts, strict=True)]
        claims.append((Claim("", lines[start][3:], tuple(findings)), [start, *(i for i, _ in rows)]))
    return Stored(path.stem, lines, claims)


def _number(text: str) -> float:
    return float(text.replace("−", "-"))


def _verdict(text: str) -> Verdict:
    return next((v for v in Verdict if v.value == text), Verdict.OPEN)


def write(stored: Stored) -> None:
    """Write the verdicts into the page, and into the table of all studies."""
    lines, summary = stored.lines, PAGE.read_text(encoding="utf-8")
    for claim, (start, *rows) in stored.claims:
        for i, finding in zip(rows, claim.findings, strict=True):
            margin = f", margin {number(finding.margin)}" if math.isfinite(finding.margin) else ""
            ending = f"{margin} | {finding.verdict} |"
            lines[i] = re.sub(r"(?:, margin \S+)? \| [^|]* \|$", lambda _, e=ending: e, lines[i])
        for i in range(start, min(start + 4, len(lines))):
            if lines[i].startswith("**"):
                told = claim.told[:1].upper() + claim.told[1:]
                lines[i] = re.sub(r"^\*\*.*?\.\*\*", lambda _, t=told: f"**{t}.**", lines[i], count=1)
        row = f"| {claim.text.replace('|', chr(92) + '|')} | "
        for i, line in enumerate(lines[:start]):
            if line.startswith(row):
                lines[i] = f"{row}{claim.told} |"
        mark = f"<!-- results: {stored.name} -->"
        if mark in summary:
            at = summary.index(row, summary.index(mark))
            summary = summary[:at] + f"{row}{claim.told} |" + summary[summary.index("\n", at) :]
    (DOCS / "reproduction" / f"{stored.name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    PAGE.write_text(summary, encoding="utf-8")


def draw(pages: list[Stored]) -> None:
    """Draw each study as a row, each of its statements as a mark."""
    colours = dict(zip(WORDS, (COLOURS[2], COLOURS[0], COLOURS[4], COLOURS[1], "#999999"), strict=True))
    with drawing():
        figure = new_figure(PAGE_INCHES, 0.6 + 0.22 * len(pages))
        axis = figure.subplots()
        markers = dict(zip(WORDS, "osDXo", strict=True))
        for row, page in enumerate(pages):
            for column, (claim, _) in enumerate(page.claims):
                verdict = claim.verdict
                face = "none" if verdict is Verdict.OPEN else colours[verdict]
                axis.plot(column, row, markers[verdict], color=colours[verdict], markerfacecolor=face, markersize=6)
        counts = [claim.verdict for page in pages for claim, _ in page.claims]
        for verdict, word in WORDS.items():
            face = "none" if verdict is Verdict.OPEN else colours[verdict]
            label = f"{word} ({counts.count(verdict)})"
            axis.plot([], [], markers[verdict], color=colours[verdict], markerfacecolor=face, label=label)
        axis.set(
            yticks=range(len(pages)),
            yticklabels=[page.name for page in pages],
            xticks=[],
            ylim=(len(pages) - 0.5, -0.5),
        )
        axis.set_xlim(-0.7, max(len(page.claims) for page in pages) - 0.3)
        for side in ("top", "right", "bottom"):
            axis.spines[side].set_visible(False)
        axis.legend(loc="lower right", frameon=False)
        axis.set_title(f"{len(counts)} statements", loc="left")
        (DOCS / "reproduction" / "statements.svg").write_bytes(to_bytes(figure, "svg"))


def main() -> None:
    """Judge every page, write the verdicts, draw them."""
    pages = [read(path) for path in sorted((DOCS / "reproduction").glob("*.md"))]
    for page in pages:
        write(page)
    draw(pages)
    verdicts = [claim.verdict for page in pages for claim, _ in page.claims]
    for verdict, word in WORDS.items():
        print(f"{verdicts.count(verdict):3} {word}")


if __name__ == "__main__":
    main()
