"""The compatibility table: the tests of the matrix compare what they find with its rows, or write it when asked to."""

from dataclasses import dataclass, field
from importlib.metadata import version

import pytest
from avalanche_ntk.strategies.recipes import RECIPES

from tests.support.places import DOCS

pytest.register_assert_rewrite("tests.integration.strategies.unchanged", "tests.integration.strategies.cases")

from tests.integration.strategies.cases import avoid_downloads  # noqa: E402
from tests.integration.strategies.scenarios import SCENARIOS  # noqa: E402

TABLE = DOCS / "compatibility.md"
PACKAGES = ("avalanche-lib", "torch", "torchvision", "numpy")

COMMAND = "python -m pytest tests/integration/strategies/test_matrix.py --write-table"
BEGIN, END = "<!-- strategies -->\n", "<!-- end -->\n"

HEAD = """Written by `{command}`. Do not edit by hand.

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


def row(name: str, cells: tuple[str, ...]) -> str:
    return "| " + " | ".join([name, *cells]) + " |\n"


@dataclass
class Table:
    """Cells by the name of a recipe or a scenario.

    Attributes:
        written: The page as it is; None where it is to be written.
        rows: What the tests of this run found.
    """

    written: str | None
    rows: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def add(self, name: str, *cells: str) -> None:
        self.rows[name] = cells
        if self.written is not None:
            assert row(name, cells) in self.written, f"{TABLE.name} says otherwise; write it anew: {COMMAND}"

    def write(self) -> None:
        """Write the table where every row was found; a part of the matrix is none."""
        missing = {*RECIPES, *SCENARIOS} - set(self.rows)
        assert not missing, f"{TABLE.name} is left as it was: no row for {', '.join(sorted(missing))}"
        before, _, rest = TABLE.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        TABLE.write_text(before + BEGIN + self.render() + END + after, encoding="utf-8")

    def render(self) -> str:
        versions = ", ".join(f"{name} {version(name).split('+')[0]}" for name in PACKAGES)
        text = HEAD.format(command=COMMAND, versions=versions)
        for title, what, names in (
            ("Strategies", "strategy", RECIPES),
            ("Plugins, streams and models", "case", SCENARIOS),
        ):
            text += f"\n## {title}\n\n| {what} | runs | bit-identical | trajectory | measured; notes |\n"
            text += "|---|---|---|---|---|\n"
            text += "".join(row(name, self.rows[name]) for name in names)
        return text


@pytest.fixture(scope="session")
def compatibility(request):
    write = request.config.getoption("--write-table")
    table = Table(None if write else TABLE.read_text(encoding="utf-8"))
    yield table
    if write:
        table.write()


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch):
    avoid_downloads(monkeypatch)
