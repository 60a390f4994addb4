"""Add new seeds of a study to those of its page: `python docs/pool.py NAME=FOLDER:POOLED`.

FOLDER has the results of `reproduce --first-seed N` with one look, the page `docs/reproduction/NAME.md` those of the N
seeds before. Of these mean and 95 % interval are known, which is all that Student's interval of both together needs
(to the page's three digits). The page is the first of two looks, both together are the second, and each look has half
of the 5 %. A statement of which the page has no case, since its statistic is another one, is judged by the new seeds
alone, in one look. POOLED becomes a folder for `docs/collect.py`, with the values of the new seeds in `results.json`.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from scipy.special import stdtrit

from avalanche_ntk.reproduce.deciding import Evidence, Question, decide
from avalanche_ntk.reproduce.registry import Scale
from avalanche_ntk.reproduce.study import Context
from avalanche_ntk.reproduce.verdicts import Claim, Finding, Verdict
from avalanche_ntk.reproduce.writing import Setting, as_json, as_markdown

DOCS = Path(__file__).parent
ROW = re.compile(r"^\| (.*) \| (.*) \| (\S+) \[(\S+), (\S+)\] \| .* \|$")
NONE = Evidence(math.nan, math.nan, 0)
Key = tuple[str, str, str]


def of_page(text: str, seeds: int) -> dict[Key, Evidence]:
    """Return the evidence of a page by statement, case and statistic; not of cases that lack seeds."""
    found: dict[Key, Evidence] = {}
    claim = ""
    for line in text.splitlines():
        if line.startswith("## "):
            claim = line[3:]
        if m := ROW.match(line.replace("\\|", "¦")):
            case, statistic = (part.replace("¦", "|") for part in m.groups()[:2])
            mean, low, high = (float(part.replace("−", "-")) for part in m.groups()[2:])
            error = (high - low) / 2 / float(stdtrit(seeds - 1, 0.975))
            found[claim, case, statistic] = Evidence(mean, error, seeds)
        if "undefined for" in line:  # a note behind the table of its statement
            noted = {k: f"{k[1][:1].upper()}{k[1][1:]}, {k[2]}: " for k in found if k[0] == claim}
            found = {k: e for k, e in found.items() if k not in noted or not line.startswith(noted[k])}
    return found


def pooled(a: Evidence, b: Evidence) -> Evidence:
    """Return the evidence of two disjoint sets of seeds together.

    >>> first, second, both = Evidence.of([1.0, 2.0]), Evidence.of([3.0, 5.0, 4.0]), Evidence.of([1.0, 2.0, 3.0, 5.0, 4.0])
    >>> together = pooled(first, second)
    >>> (together.mean, together.n, abs(together.error - both.error) < 1e-12)
    (3.0, 5, True)
    """  # noqa: E501  (one example, one line)
    if not (a.n > 1 and b.n > 1):
        return a if a.n > 1 else b
    n = a.n + b.n
    mean = (a.n * a.mean + b.n * b.mean) / n
    squares = sum(e.n * (e.n - 1) * e.error**2 + e.n * (e.mean - mean) ** 2 for e in (a, b))
    return Evidence(mean, math.sqrt(squares / (n - 1) / n), n)


def judged(claim: Claim, page: dict[Key, Evidence], new: str) -> Claim:
    """Return a statement with the verdicts of two looks."""
    earlier = [page.get((claim.text, f.case, f.statistic), NONE) for f in claim.findings]
    both = [pooled(e, Evidence.of(f.values)) for e, f in zip(earlier, claim.findings, strict=True)]
    asked = [i for i, f in enumerate(claim.findings) if f.verdict is not None]
    questions = [Question(f.threshold, f.above, f.margin) for f in claim.judged]
    is_new = all(earlier[i].n == 0 for i in asked)
    looks = [[evidence[i] for i in asked] for evidence in ([both] if is_new else [earlier, both])]
    verdicts = dict(zip(asked, decide(questions, looks, len(looks)), strict=True))
    findings = []
    for i, (finding, before, evidence) in enumerate(zip(claim.findings, earlier, both, strict=True)):
        verdict, look = verdicts.get(i, (None, 0))
        notes = [note for note in finding.note.split("; ") if note.startswith("undefined")]
        notes += [f"no difference larger than {finding.margin:.3g}"] if verdict is Verdict.SAME else []
        notes += [f"decided after {before.n} seeds"] if look == 1 and not is_new else []
        low, high = evidence.interval(0.05) if evidence.n > 1 else (math.nan, math.nan)
        findings.append(
            replace(finding, mean=evidence.mean, low=low, high=high, verdict=verdict, note="; ".join(notes))
        )
    remark = claim.remark
    if asked and is_new:
        remark = f"{remark} Of seeds {new} alone: the earlier ones were compared by another statistic.".strip()
    return replace(claim, findings=tuple(findings), remark=remark)


def read(claim: dict[str, Any]) -> Claim:
    """Return a statement of `results.json`."""
    findings = []
    for stored in claim["findings"]:
        f = {k: math.nan if v is None and k not in ("verdict", "values") else v for k, v in stored.items()}
        f["values"] = tuple(math.nan if v is None else v for v in f["values"])
        f["verdict"] = None if f["verdict"] is None else Verdict(f["verdict"])
        findings.append(Finding(**f))
    return Claim(claim["key"], claim["text"], tuple(findings), claim["remark"])


def pool(name: str, folder: Path, out: Path) -> None:
    """Write the results of both."""
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    text = (DOCS / "reproduction" / f"{name}.md").read_text(encoding="utf-8")
    seeds, new = found["seeds"], f"{found['seeds'][0]} to {found['seeds'][-1]}"
    if int(re.search(r"(\d+) seeds", text)[1]) != seeds[0] or "--budget" in text or "--first-seed" in text:
        raise SystemExit(f"the page of {name} must have the seeds 0 to {seeds[0] - 1}, in one look.")
    evidence = of_page(text, seeds[0])
    claims = [judged(read(claim), evidence, new) for claim in found["claims"]]
    spent = re.search(r"took (\d+) (s|min) in all", text)
    seconds = found["core_seconds"] + int(spent[1]) * (60 if spent[2] == "min" else 1)
    everything = tuple(range(seeds[-1] + 1))
    context = Context(Scale(found["scale"]), found["data"], None, everything, found["device"])
    jobs = int(re.search(r"--jobs (\d+)", found["command"])[1])
    setting = Setting(
        found["study"], context, jobs, found["wall_seconds"], seconds, len(everything) // 2, len(everything)
    )
    figures = [path.stem for path in sorted((folder / "figures").glob("*.svg"))]
    order = re.findall(r"!\[([^]]*)\]\(figures/", (folder / "results.md").read_text(encoding="utf-8"))
    assert sorted(order) == figures
    page = as_markdown(setting, claims, order)
    told = (
        f"Seeds 0 to {seeds[0] - 1} are an earlier look, whose means and intervals are known to three digits; the "
        f"second look has all {len(everything)}, and each look half of the 5 %. The figures show seeds {new}.\n"
    )
    page = page.replace(
        "beside whatever else the machine did.\n", f"beside whatever else the machine did.\n\n{told}", 1
    )
    out.mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder / "figures", out / "figures", dirs_exist_ok=True)
    (out / "results.md").write_text(page, encoding="utf-8")
    stored = as_json(setting, claims) | {"seeds_of_values": seeds}
    (out / "results.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        study, _, places = argument.partition("=")
        source, _, target = places.rpartition(":")
        pool(study, Path(source), Path(target))
