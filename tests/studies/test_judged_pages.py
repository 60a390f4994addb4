"""A page of results has what `docs/judge.py` needs to decide its statements again, a margin among it."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest

from avalanche_ntk.reproduce.deciding import Evidence, Question, decide, decided
from avalanche_ntk.reproduce.registry import Scale
from avalanche_ntk.reproduce.study import Context
from avalanche_ntk.reproduce.verdicts import Claim, Verdict, found, reported
from avalanche_ntk.reproduce.writing import Setting, as_markdown, write_results

DOCS = Path(__file__).parents[2] / "docs"
TINY, PLAIN = [0.01, -0.012, 0.004, -0.003, 0.002], [1.0, 1.2, 0.9, 1.1, 1.05]


def script(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:  # its dataclasses look for it there
        patch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def judge():
    return script("judge")


def page(*findings):
    claim = decided([Claim("key", "It is so", findings)], [5], 1)
    return claim, as_markdown(Setting("chaos", Context(Scale.SMALL), 1, 1.0, 1.0), [claim], [])


def test_a_margin_stands_beside_the_threshold_and_is_read_again(judge, tmp_path):
    claim, text = page(
        found("a", "s", TINY, 0.0, margin=0.1), found("b", "s", PLAIN, 1e-8, margin=0.1), reported("c", "s", TINY)
    )
    assert "| > 0, margin 0.1 | no difference that matters |" in text
    assert "| > 1e−08, margin 0.1 | holds |" in text
    (tmp_path / "chaos.md").write_text(text)
    [(again, _)] = judge.read(tmp_path / "chaos.md").claims
    assert [f.verdict for f in again.findings] == [f.verdict for f in claim.judged] == [Verdict.SAME, Verdict.HOLDS]
    assert [(f.threshold, f.margin) for f in again.findings] == [(0.0, 0.1), (1e-8, 0.1)]
    assert again.told == claim.told


def test_without_a_margin_a_small_difference_is_undecided(judge, tmp_path):
    claim, text = page(found("a", "s", TINY, 0.0))
    assert "| > 0 | undecided |" in text
    (tmp_path / "chaos.md").write_text(text)
    [(again, _)] = judge.read(tmp_path / "chaos.md").claims
    assert math.isnan(again.findings[0].margin)
    assert [f.verdict for f in again.findings] == [f.verdict for f in claim.findings] == [Verdict.OPEN]


def stored(folder, seeds, *findings, text="It is so"):
    context = Context(Scale.SMALL, seeds=tuple(seeds))
    write_results(folder, Setting("chaos", context, 1, 1.0, 10.0 * len(seeds)), [Claim("key", text, findings)], {})
    (folder / "figures").mkdir(exist_ok=True)
    return folder


def test_new_seeds_are_added_to_those_of_a_page_look_by_look(tmp_path, monkeypatch):
    """Two times; verdicts and intervals are those of the rule on all values, with the looks that were made."""
    pool = script("pool")
    monkeypatch.setattr(pool, "DOCS", tmp_path)
    a = [1.0, 1.2, -0.9, 1.1, 1.05, 0.8, 1.3, 1.0, 0.9, 1.1, 1.2, 0.7]
    b = [0.1, -0.2, 0.3, 0.2, -0.1, 0.3, 0.1, 0.4, 0.2, 0.5, 0.35, 0.45]
    c = [math.nan, *b[1:]]
    page_of = tmp_path / "reproduction" / "chaos"

    def findings(first, last):
        at = slice(first, last)
        return found("a", "s", a[at], 0.0), found("b|c", "s", b[at], 0.0, margin=0.3), reported("a", "told", c[at])

    stored(page_of, range(5), *findings(0, 5))
    pool.pool("chaos", stored(tmp_path / "new", range(5, 9), *findings(5, 9)), page_of)
    pool.pool("chaos", stored(tmp_path / "more", range(5, 12), *findings(5, 12)), page_of)  # 5 to 8 are known

    made = json.loads((page_of / "results.json").read_text())
    assert (made["seeds"], made["looks"], made["core_seconds"]) == ([*range(12)], [5, 9, 12], 120.0)
    [claim] = made["claims"]
    questions = [Question(0.0), Question(0.0, margin=0.3)]
    looks = [[Evidence.of(a[:n]), Evidence.of(b[:n])] for n in (5, 9, 12)]
    verdicts = decide(questions, looks, 3)
    assert [look for _, look in verdicts] == [2, 3]
    assert [f["verdict"] for f in claim["findings"]] == [*(str(v) for v, _ in verdicts), None]
    for finding, values in zip(claim["findings"], (a, b, c), strict=True):
        whole = reported("", "", values)
        assert [finding[k] for k in ("mean", "low", "high")] == pytest.approx([whole.mean, whole.low, whole.high])
    assert [f["note"] for f in claim["findings"]] == ["decided after 9 seeds", "", "undefined for 1 of 12 seeds"]
    text = (page_of / "results.md").read_text()
    assert "reproduce chaos --scale small --data digits --seeds 4 --budget 12 --jobs 1" in text
    assert "Judged at 5, 9 and 12 seeds; each look has 1/3 of the 5 %." in text


def test_what_the_page_does_not_have_is_judged_by_the_new_seeds_alone(tmp_path, monkeypatch):
    pool = script("pool")
    monkeypatch.setattr(pool, "DOCS", tmp_path)
    page_of, late = tmp_path / "reproduction" / "chaos", [0.8, 1.3, 1.0]
    stored(page_of, range(5), found("a", "s", PLAIN, 0.0))
    new = stored(tmp_path / "new", range(5, 8), found("a", "other", late, 0.0))
    pool.pool("chaos", new, tmp_path / "made")
    [claim] = json.loads((tmp_path / "made" / "results.json").read_text())["claims"]
    [finding] = claim["findings"]
    assert finding["mean"] == pytest.approx(sum(late) / 3)
    assert finding["verdict"] == "holds"  # 1.03, standard error 0.145: 95 % of Student's t with 2 degrees is 0.62
    assert claim["remark"] == "Of seeds 5 to 7 alone: the earlier ones were compared by another statistic."
    with pytest.raises(SystemExit, match="must have, in one look, the seeds from 5 on"):
        pool.pool("chaos", stored(tmp_path / "old", range(3), found("a", "s", late, 0.0)), tmp_path / "made")
