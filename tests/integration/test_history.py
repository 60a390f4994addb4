"""The benchmark history: what counts as grown, by hand."""

import pytest


@pytest.fixture
def history():
    import timings.history as module

    return module


def line(ratio, processor="here", name="a / b"):
    return {"processor": processor, "ratios": {name: ratio}}


def test_a_ratio_is_compared_with_the_median_of_its_latest_values_on_the_same_processor(history):
    lines = [line(9.0), *map(line, [1.0, 1.0, 2.0, 4.0, 4.0]), line(50.0, "elsewhere"), line(70.0, name="c / d")]
    assert history.before(lines, "a / b", "here") == 2.0
    assert history.before(lines, "a / b", "elsewhere") == 50.0
    assert history.before(lines, "a / b", "nowhere") is None


def test_a_quarter_more_is_allowed_and_no_more(history):
    lines = [line(2.0)]
    assert history.grown({"a / b": 2.5}, lines, "here") == {}
    assert history.grown({"a / b": 3.0, "new / ratio": 9.0}, lines, "here") == {"a / b": 1.5}
    assert history.grown({"a / b": 3.0}, lines, "nowhere") == {}


def test_a_machine_that_was_busy_once_gets_another_chance(history, monkeypatch, capsys):
    monkeypatch.setattr(history, "read", lambda: [line(1.0, history.processor())])
    monkeypatch.setattr(history, "pairs", lambda: {"a / b": None})
    found = iter([2.0, 1.1])
    monkeypatch.setattr(history, "ratio", lambda pair: next(found))
    assert history.check() == 0
    assert capsys.readouterr().out == "a / b: 1.10; before: 1.00\n"
    monkeypatch.setattr(history, "ratio", lambda pair: 2.0)
    assert history.check() == 1
    assert capsys.readouterr().err == "a / b is 2.00 times what it was, more than 1.25 times.\n"


def test_the_stored_history_can_be_read_and_has_every_ratio_positive(history):
    lines = history.read()
    assert lines
    assert all(value > 0 for entry in lines for value in entry["ratios"].values())
