"""A study from plans and parts to files; what is there is kept, what fails is told."""

import json
import math

import pytest
from matplotlib.figure import Figure

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.report.style import COLUMN_INCHES, new_figure
from avalanche_ntk.reproduce import reproduce, runner
from avalanche_ntk.reproduce.registry import STUDIES, Entry, load_study
from avalanche_ntk.reproduce.results import per_seed
from avalanche_ntk.reproduce.runner import StudyError
from avalanche_ntk.reproduce.settings import NO_SHIFT, run_settings, with_changes
from avalanche_ntk.reproduce.study import Study
from avalanche_ntk.reproduce.verdicts import Claim, found, reported


def judge(results):
    widths = {width: results.runs("widths", {"model.width": width}, control=False) for width in (3, 4)}
    moved = per_seed(widths[3], lambda run: run.reactivation("moved"), results.context.seeds)
    return [
        Claim("moves", "The kernel moves.", (found("width 3", "moved", moved, 0.0),), "Two seeds say nothing."),
        Claim(
            "given", "Numbers | come back.", (reported("part", "x", [one["x"] for one in results.measured("part")]),)
        ),
    ]


def draw(results):
    figure = new_figure(COLUMN_INCHES, 2)
    figure.subplots().plot([0, 1], [0, 1])
    return {"line": figure}


def plans(context):
    small = with_changes(run_settings(context), epochs=2, model={"depth": 1})
    return {"widths": {"base": small, "grid": {"model.width": [3, 4]}, "control": NO_SHIFT}}


def measure(context, arguments, seed):
    if arguments["x"] == "fail":
        raise RuntimeError("no such\nnumber")
    return {"x": arguments["x"] + seed if seed else math.nan}


STUDY = Study(judge=judge, draw=draw, plans=plans, parts=lambda context: {"part": {"x": 10}}, measure=measure)


@pytest.fixture
def study(monkeypatch):
    """A study known by name in this process; its parts are measured here."""
    monkeypatch.setitem(STUDIES, "a-test", Entry("A test", "nobody 2020"))
    monkeypatch.setattr(runner, "load_study", lambda name: STUDY)

    class Here:
        def __init__(self, *arguments, **options): ...
        def __enter__(self):
            return self

        def __exit__(self, *exception): ...
        def submit(self, function, *arguments):
            future = runner.Future()
            try:
                future.set_result(function(*arguments))
            except Exception as error:  # noqa: BLE001
                future.set_exception(error)
            return future

    monkeypatch.setattr(runner, "pool_of", Here)


def test_a_study_is_made_and_kept(study, tmp_path):
    told = []
    outcome = reproduce("a-test", tmp_path, scale="tiny", on_progress=lambda *what: told.append(what))
    assert [c.told for c in outcome.claims] == ["undecided", "undecided"]
    assert {str(f.relative_to(tmp_path)) for f in outcome.files} == {
        "results.json", "results.md", "figures/line.svg", "figures/line.png", "figures/line.pdf",
    }  # fmt: skip
    assert told[-1] == ("measurements", 2, 2)
    assert ("widths", 8, 8) in told
    [moves, given] = json.loads((tmp_path / "results.json").read_text())["claims"]
    assert moves["findings"][0]["values"] == list(outcome.claims[0].findings[0].values)
    assert all(v > 0 for v in moves["findings"][0]["values"])
    assert given["findings"][0]["values"] == [None, 11]  # JSON has no NaN
    page = (tmp_path / "results.md").read_text()
    assert "avalanche-ntk reproduce a-test --scale tiny --data digits --seeds 2 --jobs 1\n" in page
    assert "| Numbers \\| come back. | undecided |" in page
    assert "| part | x | 11 |  |  |" in page
    assert "Part, x: undefined for 1 of 2 seeds." in page
    assert "![line](figures/line.svg)" in page
    # Nothing is made a second time.
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("sweeps/*/runs/*/run.json")}
    part = {p: p.stat().st_mtime_ns for p in tmp_path.glob("measured/*.json")}
    assert (len(before), len(part)) == (8, 2)
    again = reproduce("a-test", tmp_path, scale="tiny")
    assert again.claims[0] == outcome.claims[0]
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert {p: p.stat().st_mtime_ns for p in part} == part


def test_a_run_of_two_plans_is_made_once(study, tmp_path, monkeypatch):
    """The second plan's width 4 is the first's, with its numbers; its time counts once."""

    def of_two(context):
        [(name, first)] = plans(context).items()
        return {name: first, "epochs": {**first, "grid": {"epochs": [1, 2], "model.width": [4]}}}

    def judged(results):
        shared = [run.path for run in results.runs("epochs", {"epochs": 2})]
        assert shared == [run.path for run in results.runs("widths", {"model.width": 4})]
        of_plans = {p.name: len(list(p.glob("runs/*/run.json"))) for p in results.place.sweep("").glob("*")}
        assert of_plans == {"widths": 8, "epochs": 4}
        spent = [json.loads(p.read_text())["meta"]["wall_seconds"] for p in tmp_path.glob("sweeps/*/runs/*/run.json")]
        assert results.seconds([]) == pytest.approx(sum(spent))
        lengths = [[len(run.trajectory()) for run in results.runs("epochs", {"epochs": n})] for n in (1, 2)]
        assert all(short < long for short, long in zip(*lengths, strict=True))
        return [Claim("moves", "The kernel moves.", ())]

    monkeypatch.setattr(runner, "load_study", lambda name: Study(judge=judged, draw=draw, plans=of_two))
    assert reproduce("a-test", tmp_path, scale="tiny").claims[0].text == "The kernel moves."


def test_parts_that_changed_are_measured_anew(study, tmp_path, monkeypatch):
    alone = Study(judge=lambda results: [], draw=lambda results: {}, parts=STUDY.parts, measure=measure)
    monkeypatch.setattr(runner, "load_study", lambda name: alone)
    reproduce("a-test", tmp_path, scale="tiny")
    other = Study(judge=lambda r: [], draw=lambda r: {}, parts=lambda c: {"part": {"x": 20}}, measure=measure)
    monkeypatch.setattr(runner, "load_study", lambda name: other)
    reproduce("a-test", tmp_path, scale="tiny")
    assert json.loads((tmp_path / "measured" / "part-seed=1.json").read_text())["values"] == {"x": 21}


def test_what_failed_is_told(study, tmp_path, monkeypatch):
    failing = Study(
        judge=lambda r: [], draw=lambda r: {}, parts=lambda c: {"good": {"x": 1}, "bad": {"x": "fail"}}, measure=measure
    )
    monkeypatch.setattr(runner, "load_study", lambda name: failing)
    with pytest.raises(StudyError) as caught:
        reproduce("a-test", tmp_path, scale="tiny", seeds=1)
    assert str(caught.value) == (
        "1 of 2 measurements failed, the first: bad, seed 0: RuntimeError: no such number. Fix the cause and call it "
        "again: complete parts are kept."
    )
    assert [p.name for p in (tmp_path / "measured").glob("*.json")] == ["good-seed=0.json"]


def test_a_study_can_be_made_with_other_seeds(study, tmp_path):
    """What a pilot with the first seeds has shown is judged on others."""
    outcome = reproduce("a-test", tmp_path, scale="tiny", seeds=1, first_seed=5, budget=2)
    assert {json.loads(p.read_text())["seed"] for p in tmp_path.glob("measured/*.json")} == {5, 6}
    assert outcome.claims[1].findings[0].values == (15, 16)
    assert json.loads((tmp_path / "results.json").read_text())["seeds"] == [5, 6]
    page = (tmp_path / "results.md").read_text()
    assert "2 seeds (5 to 6), scale tiny." in page
    assert "--seeds 1 --first-seed 5 --budget 2 --jobs 1\n" in page


def test_wrong_arguments_are_refused(tmp_path):
    for arguments, message in (
        ({"name": "reactivatoin"}, None),
        ({"name": "reactivation", "scale": "huge"}, "scale must be one of 'tiny', 'small', 'paper', found 'huge'."),
        ({"name": "reactivation", "seeds": 0}, "seeds must be 1 or more, found 0."),
        ({"name": "reactivation", "first_seed": -1}, "first_seed must be 0 or more, found -1."),
        ({"name": "reactivation", "jobs": 0}, "jobs must be 1 or more, found 0."),
    ):
        with pytest.raises(ArgumentError) as caught:
            reproduce(arguments.pop("name"), tmp_path / "none", **arguments)
        if message:
            assert str(caught.value) == message
        else:
            assert "unknown study 'reactivatoin'" in str(caught.value)
            assert "'reactivation'" in str(caught.value)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", list(STUDIES))
def test_every_registered_study_can_be_loaded(name):
    made = load_study(name)
    assert isinstance(made, Study)
    assert STUDIES[name].title[0].isupper()
    assert STUDIES[name].source


def test_numbers_by_seed():
    class Run:
        def __init__(self, seed, value):
            self.seed, self.value = seed, value

    runs = [Run(1, 4.0), Run(0, 1.0), Run(1, 2.0)]
    first, second, third = per_seed(runs, lambda run: run.value, [0, 1, 2])
    assert (first, second) == (1.0, 3.0)
    assert math.isnan(third)
    assert isinstance(draw(None)["line"], Figure)
