"""Add new seeds of a study to those of its page: `python docs/pool.py NAME=FOLDER:POOLED`.

FOLDER has the results of `reproduce --first-seed N` with one look, `docs/reproduction/NAME/results.json` those of the
page. Seeds of FOLDER that the page lacks are new. Of the earlier ones mean and standard error are known at every look,
which is all that Student's interval of all together needs. The new seeds make one look more, and each of K looks has
1/K of the 5 %. A statement that the page lacks, or whose statistic is another one there, is judged by the new seeds
alone, in one look. POOLED becomes a folder for `docs/collect.py`.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

from avalanche_ntk.reproduce.deciding import Evidence, Question, decide
from avalanche_ntk.reproduce.registry import Scale
from avalanche_ntk.reproduce.study import Context
from avalanche_ntk.reproduce.verdicts import Claim, Finding, Verdict
from avalanche_ntk.reproduce.writing import Setting, as_json, as_markdown

DOCS = Path(__file__).parent
NONE = Evidence(math.nan, math.nan, 0)
Looks = list[Evidence]
Key = tuple[str, str, str]


def looks_of(found: dict[str, Any]) -> dict[Key, Looks]:
    """Return the evidence of stored results at each look, by statement, case and statistic."""
    if "--budget" in found["command"] and "looks" not in found["claims"][0]["findings"][0]:
        raise SystemExit(f"the page of {found['study']} must have been made in one look, or by this script.")
    return {
        (claim["text"], f.case, f.statistic): looks
        for claim in found["claims"]
        for f, looks in map(_stored, claim["findings"])
    }


def _stored(stored: dict[str, Any]) -> tuple[Finding, Looks]:
    """Return a finding of `results.json` with its evidence at each look."""
    plain: dict[str, Any] = {
        k: math.nan if v is None and k not in ("verdict", "values") else v for k, v in stored.items()
    }
    looks = [Evidence(*(math.nan if v is None else v for v in look)) for look in plain.pop("looks", [])]
    plain["values"] = tuple(math.nan if v is None else v for v in plain["values"])
    plain["verdict"] = None if plain["verdict"] is None else Verdict(plain["verdict"])
    return Finding(**plain), looks or [Evidence.of(plain["values"])]


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


def judged(claim: Claim, earlier: dict[Key, Looks], is_new: list[bool], seeds: int) -> tuple[Claim, list[Looks]]:
    """Return a statement with the verdicts of all looks, and the evidence of its cases at each.

    Args:
        claim: The statement, with the values of FOLDER.
        earlier: The page's evidence.
        is_new: Which of the values are of new seeds.
        seeds: Number of all seeds.
    """
    before = [earlier.get((claim.text, f.case, f.statistic), [NONE]) for f in claim.findings]
    asked = [i for i, f in enumerate(claim.findings) if f.verdict is not None]
    known = any(look.n for i in asked for look in before[i])
    count = max(len(looks) for looks in before) if known or not asked else 0
    all_looks = []
    for finding, looks in zip(claim.findings, before, strict=True):
        new = Evidence.of([v for v, fresh in zip(finding.values, is_new, strict=True) if fresh])
        padded = [NONE] * (count - len(looks)) + looks if count else []
        all_looks.append([*padded, pooled(padded[-1], new) if padded else new])
    questions = [Question(f.threshold, f.above, f.margin) for f in claim.judged]
    verdicts = decide(questions, [[all_looks[i][k] for i in asked] for k in range(count + 1)], count + 1)
    by_case = dict(zip(asked, verdicts, strict=True))
    most = max((all_looks[i][-1].n for i in asked), default=seeds)
    findings = []
    for i, (finding, looks) in enumerate(zip(claim.findings, all_looks, strict=True)):
        verdict, look = by_case.get(i, (None, 0))
        last = looks[-1]
        notes = [f"undefined for {most - last.n} of {most} seeds"] if last.n < most else []
        notes += [f"no difference larger than {finding.margin:.3g}"] if verdict is Verdict.SAME else []
        notes += [f"decided after {looks[look - 1].n} seeds"] if 0 < look <= count else []
        low, high = last.interval(0.05) if last.n > 1 else (math.nan, math.nan)
        findings.append(replace(finding, mean=last.mean, low=low, high=high, verdict=verdict, note="; ".join(notes)))
    remark = claim.remark
    if most < seeds:
        told = f"Of seeds {seeds - most} to {seeds - 1} alone: the earlier ones were compared by another statistic."
        remark = f"{remark} {told}".strip()
    return replace(claim, findings=tuple(findings), remark=remark), all_looks


def pool(name: str, folder: Path, out: Path) -> None:
    """Write the results of all seeds."""
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    page = json.loads((DOCS / "reproduction" / name / "results.json").read_text(encoding="utf-8"))
    earlier, known = looks_of(page), len(page["seeds"])
    is_new = [seed >= known for seed in found["seeds"]]
    everything = tuple(range(known + sum(is_new)))
    if "--budget" in found["command"] or not any(is_new) or found["seeds"][-1] != everything[-1]:
        raise SystemExit(f"{folder} must have, in one look, the seeds from {known} on; found {found['seeds']}.")
    results = []
    for stored in found["claims"]:
        claim = Claim(stored["key"], stored["text"], tuple(_stored(f)[0] for f in stored["findings"]), stored["remark"])
        results.append(judged(claim, earlier, is_new, len(everything)))
    claims = [claim for claim, _ in results]
    seconds = page["core_seconds"] + found["core_seconds"] * sum(is_new) / len(is_new)
    context = Context(Scale(found["scale"]), found["data"], None, everything, found["device"])
    jobs = int(re.search(r"--jobs (\d+)", found["command"])[1])
    setting = Setting(found["study"], context, jobs, found["wall_seconds"], seconds)
    looks = [*page.get("looks", [known]), len(everything)]
    # `reproduce` makes looks of equal size only: as many as here, or fewer.
    batches = (
        b for b in range(1, len(everything) + 1) if len(everything) % b == 0 and b * len(looks) >= len(everything)
    )
    setting = replace(setting, batch=next(batches), budget=len(everything))
    figures = [path.stem for path in sorted((folder / "figures").glob("*.svg"))]
    order = re.findall(r"!\[([^]]*)\]\(figures/", (folder / "results.md").read_text(encoding="utf-8"))
    assert sorted(order) == figures
    text = as_markdown(setting, claims, order)
    told = (
        f"Judged at {', '.join(map(str, looks[:-1]))} and {looks[-1]} seeds; each look has 1/{len(looks)} of the 5 %."
        " Seeds were added because statements had stayed undecided. Of the earlier ones mean and standard error are"
        f" known, to the digits of their page. The figures show seeds {found['seeds'][0]} to {found['seeds'][-1]}.\n"
    )
    text = text.replace(
        "beside whatever else the machine did.\n", f"beside whatever else the machine did.\n\n{told}", 1
    )
    out.mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder / "figures", out / "figures", dirs_exist_ok=True)
    (out / "results.md").write_text(text, encoding="utf-8")
    stored = as_json(setting, claims) | {"seeds_of_values": found["seeds"], "looks": looks}
    for claim, (_, cases) in zip(stored["claims"], results, strict=True):
        for finding, case in zip(claim["findings"], cases, strict=True):
            finding["looks"] = [[None if v != v else v for v in astuple(look)] for look in case]
    (out / "results.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        study, _, places = argument.partition("=")
        source, _, target = places.rpartition(":")
        pool(study, Path(source), Path(target))
