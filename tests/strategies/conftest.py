"""The compatibility table: filled by the tests of the matrix, written when all of them ran and passed."""

import os
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import pytest
from avalanche_ntk.strategies.recipes import RECIPES

pytest.register_assert_rewrite("tests.strategies.unchanged", "tests.strategies.cases")

from tests.strategies.cases import avoid_downloads  # noqa: E402
from tests.strategies.scenarios import SCENARIOS  # noqa: E402

TABLE = Path(__file__).parents[2] / "docs" / "compatibility.md"
PACKAGES = ("avalanche-lib", "torch", "torchvision", "numpy")

HEAD = """# Compatibility

Written by the tests of `tests/strategies` when all of its rows have run and passed. Do not edit by hand.

Versions: {versions}. CPU, two experiences of Split-Digits or of a tiny synthetic stream, one epoch.

- *runs*: the strategy trains and evaluates with the plugin attached, and without it.
- *bit-identical*: after every experience and every evaluation, weights, buffers, gradients, `requires_grad`, train/eval
  flags, hooks, the optimizer's state and groups, Avalanche's clock, the generators of torch, numpy and Python and the
  global numerical modes are equal bit for bit with and without the plugin; so are every minibatch, every output and
  loss, and the evaluator's numbers.
  The same holds with everything measured that the plugin can measure (per layer, features, class blocks,
  linearisation, forecast, buffers, kernel regression, task overlap, three probes), AR1 excepted, which was not tried.
- *trajectory*: a measurement at the start and at the end of every experience and at every scheduled iteration, none
  failed, iterations and optimizer steps counted as an independent observer counts them. A *segment* ends where
  parameters change otherwise than by training; nothing is compared across it.
"""


@dataclass
class Table:
    """Cells by the name of a recipe or a scenario."""

    rows: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def add(self, name: str, *cells: str) -> None:
        self.rows[name] = cells

    @property
    def complete(self) -> bool:
        return set(self.rows) == {*RECIPES, *SCENARIOS}

    def render(self) -> str:
        versions = ", ".join(f"{name} {version(name).split('+')[0]}" for name in PACKAGES)
        text = HEAD.format(versions=versions)
        for title, what, names in (
            ("Strategies", "strategy", RECIPES),
            ("Plugins, streams and models", "case", SCENARIOS),
        ):
            text += f"\n## {title}\n\n| {what} | runs | bit-identical | trajectory | measured; notes |\n"
            text += "|---|---|---|---|---|\n"
            for name in names:
                text += "| " + " | ".join([name, *self.rows[name]]) + " |\n"
        return text


TABLE_OF_THIS_RUN = Table()


@pytest.fixture(scope="session")
def compatibility():
    return TABLE_OF_THIS_RUN


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch):
    avoid_downloads(monkeypatch)


def pytest_sessionfinish(session, exitstatus):
    if not TABLE_OF_THIS_RUN.complete:  # a part of the matrix only, or a test of it failed
        return
    text = TABLE_OF_THIS_RUN.render()
    if TABLE.exists() and TABLE.read_text(encoding="utf-8") == text:
        return
    if TABLE.parent.is_dir() and os.access(TABLE if TABLE.exists() else TABLE.parent, os.W_OK):
        TABLE.write_text(text, encoding="utf-8")
