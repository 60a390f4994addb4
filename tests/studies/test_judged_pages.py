"""A page of results has what `docs/judge.py` needs to decide its statements again, a margin among it."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest

from avalanche_ntk.reproduce.deciding import decided
from avalanche_ntk.reproduce.registry import Scale
from avalanche_ntk.reproduce.study import Context
from avalanche_ntk.reproduce.verdicts import Claim, Verdict, found, reported
from avalanche_ntk.reproduce.writing import Setting, as_markdown

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


def test_new_seeds_are_added_to_those_of_a_page():
    """Mean and interval of all eight, to the digits of the page; what the page does not have is of the new alone."""
    pool = script("pool")
    late = [0.8, 1.3, 1.0]
    _, text = page(found("a", "s", PLAIN, 0.0), found("b|c", "s", PLAIN, 0.0), reported("a", "told", PLAIN))
    new = [found("a", "s", late, 0.0), found("b|c", "s", late, 1.0), reported("a", "told", late)]
    made = pool.judged(Claim("key", "It is so", tuple(new)), pool.of_page(text, 5), "5 to 7")
    everything = found("", "", [*PLAIN, *late], 0.0)
    for finding in made.findings:
        for name in ("mean", "low", "high"):
            assert getattr(finding, name) == pytest.approx(getattr(everything, name), abs=6e-3)
    assert [(f.verdict, f.note) for f in made.findings] == [
        (Verdict.HOLDS, "decided after 5 seeds"), (Verdict.OPEN, ""), (None, "")
    ]  # fmt: skip
    other = pool.judged(Claim("key", "Another", tuple(new)), pool.of_page(text, 5), "5 to 7")
    assert [f.mean for f in other.findings] == [pytest.approx(sum(late) / 3)] * 3
    assert other.remark == "Of seeds 5 to 7 alone: the earlier ones were compared by another statistic."
