"""What the documentation names exists, and what it shows runs."""

import ast
import configparser
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import TensorboardLogger
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from typer.testing import CliRunner

from avalanche_ntk import NTKPlugin, ntk_metrics
from avalanche_ntk.adapters.evaluation import EvaluationRecorder
from avalanche_ntk.cli import app
from avalanche_ntk.kernels import reference_ntk
from avalanche_ntk.kernels._structure import nodes
from avalanche_ntk.lab.models import MLP
from avalanche_ntk.reproduce.registry import STUDIES, Scale
from avalanche_ntk.reproduce.study import Context, Study
from tests.lines import tiny_stream

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_every_metric_is_documented_and_every_documented_metric_exists():
    flags = ["spectrum", "linearisation", "forecast", "per_layer", "features", "class_blocks", "task_overlap"]
    every = ntk_metrics(
        NTKPlugin(), **dict.fromkeys([*flags, "regression", "neurons", "buffer_share", "kernel_image"], True)
    )
    names = {str(m) for m in every if not isinstance(m, EvaluationRecorder)}
    table = [line for line in (DOCS / "metrics.md").read_text().splitlines() if line.startswith("|")]
    documented = set(re.findall(r"`(NTK_\w+)", "\n".join(table)))
    assert documented == names


def test_links_between_documents_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_result_stands_in_the_documentation():
    """With its command, its verdicts, its figures, and a page with every case."""
    page = (DOCS / "reproduction.md").read_text()
    for name in [*STUDIES, "reactivation@cifar10"]:
        [part] = re.findall(rf"<!-- results: {name} -->\n(.*?)<!-- end -->", page, re.DOTALL)
        assert part.startswith(f"```sh\navalanche-ntk reproduce {name.partition('@')[0]} --scale small --data "), name
        assert "--seeds 5 " in part, name
        assert "| statement | verdict |" in part, name
        assert f"](reproduction/{name}/" in part, name
        assert (DOCS / "reproduction" / f"{name}.md").is_file()


def blocks(page: Path, language: str) -> list[str]:
    """Return a page's blocks of code in a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def run_blocks(page: Path, names: dict[str, Any]) -> dict[str, Any]:
    """Run a page's blocks of Python one after the other, in one namespace, which is returned."""
    for number, block in enumerate(blocks(page, "python"), start=1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)
    return names


def test_the_readmes_snippets_run(tmp_path, monkeypatch):
    """With what a user has by then: Avalanche's names, a stream, a model and its optimizer."""
    monkeypatch.chdir(tmp_path)
    model, x = MLP(6, 4, width=8, depth=1), torch.randn(5, 6)
    names = run_blocks(
        ROOT / "README.md",
        {
            "Naive": partial(Naive, train_mb_size=8, train_epochs=2),
            "EvaluationPlugin": EvaluationPlugin,
            "TensorboardLogger": TensorboardLogger,
            "accuracy_metrics": accuracy_metrics,
            "benchmark": tiny_stream(per_class=40),
            "model": model,
            "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
            "x": x,
            "x1": x[:2],
            "x2": x[2:],
        },
    )
    assert len(names["table"]) == len(names["ntk"].trajectory)
    assert (tmp_path / "runs" / "naive" / "run.json").is_file()
    full = reference_ntk(model, x[:2], x[2:], reduction="full")
    assert torch.allclose(names["theta"].double(), full, rtol=1e-5)
    assert torch.allclose(names["kernel"][:2, 2:].double(), full.diagonal(dim1=2, dim2=3).sum(-1), rtol=1e-5)


def test_the_quickstart_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run_blocks(DOCS / "quickstart.md", {})
    assert str(names["first"].spike) in capsys.readouterr().out


def commands() -> list[tuple[str, str]]:
    """Return every command line of the documentation, with its page."""
    found = []
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md")]:
        for language in ("sh", "bash"):
            lines = "\n".join(blocks(page, language)).splitlines()
            parts = [part.strip() for line in lines for part in line.split("  #")[0].split("&&")]
            found += [(page.name, part) for part in parts if part.startswith("avalanche-ntk")]
    return found


@pytest.mark.parametrize(("page", "line"), commands(), ids=str)
def test_every_command_has_the_options_that_it_is_shown_with(page, line):
    """The command itself is not run: `--help` comes after the options have been read."""
    shown = CliRunner().invoke(app, [*shlex.split(line)[1:], "--help"])
    assert shown.exit_code == 0, shown.output


def test_headline_figures_are_those_of_the_page_on_performance():
    """Change both, or the README's only: a row there is one row of the page, and its comparison another."""
    page = (DOCS / "performance.md").read_text().splitlines()
    table = (ROOT / "README.md").read_text().split("<!-- headline -->")[1].split("<!-- end -->")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[3:] if line.startswith("|")]
    assert rows
    for case, seconds, slower, error in rows:
        [at] = [i for i, line in enumerate(page) if line.startswith(f"| {case.removesuffix(' samples')} | **ours**")]
        ours, theirs = ([cell.strip() for cell in page[i].strip("|").split("|")] for i in (at, at + 1))
        assert [seconds, error] == [ours[2], ours[6]], case
        assert theirs[1] == "torch.func `vmap(jacrev)`"
        assert slower == f"{theirs[4]} times slower", case


def test_every_page_has_its_place_on_the_site():
    """A new page of `docs/` is listed in `mkdocs.yml`."""
    listed = set(re.findall(r"(\w[\w/-]*\.md)\s*$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert {page.name for page in DOCS.glob("*.md")} <= listed


def test_the_api_page_names_what_exists():
    names = re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert "avalanche_ntk.NTKPlugin" in names
    for name in names:
        assert pkgutil.resolve_name(name)


def test_the_version_stands_in_one_place():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    version = config["metadata"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    assert not re.search(r"^version:", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert version not in (ROOT / "pyproject.toml").read_text()


def messages() -> list[str]:
    """Return every text in the sources, with `…` where an f-string has a value."""
    found = []
    for path in [*(ROOT / "avalanche_ntk").rglob("*.py"), *(ROOT / "strategies").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_every_message_that_troubleshooting_explains_is_in_the_sources():
    headings = re.findall(r"^### `(.+)`$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(headings) > 15
    texts = messages()
    for heading in headings:
        wanted = re.compile(".*?".join(map(re.escape, heading.split("…"))), re.DOTALL)
        assert any(wanted.search(text) for text in texts), heading


@pytest.mark.filterwarnings("ignore:No loggers specified:UserWarning")
def test_the_examples_of_extending_run(tmp_path, monkeypatch):
    """A measure, an observable, a strategy, a rule and a study; the study's parts are measured in this process."""
    monkeypatch.setattr(nodes, "NODES", dict(nodes.NODES))
    names = run_blocks(DOCS / "extending.md", {"__name__": "extending"})
    study: Study = names["STUDY"]
    context = Context(Scale.TINY, seeds=(0, 1, 2))
    parts = study.parts(context)
    measured = {
        name: [study.measure(context, arguments, seed) for seed in context.seeds] for name, arguments in parts.items()
    }
    results = SimpleNamespace(context=context, measured=measured.__getitem__)
    [claim] = study.judge(results)
    assert claim.findings[0].values == pytest.approx(
        [wide["rank"] - narrow["rank"] for narrow, wide in zip(measured["width-8"], measured["width-64"], strict=True)]
    )
    assert list(study.draw(results)) == ["rank"]


def test_the_tutorials_page_and_notebook_are_of_its_script():
    """`python docs/render.py` makes both."""
    cells = [part.partition("\n") for part in f"\n{(DOCS / 'tutorial.py').read_text()}".split("\n# %%")[1:]]
    code = [body.strip() for head, _, body in cells if head.strip() != "[markdown]"]
    assert [block.strip() for block in blocks(DOCS / "tutorial.md", "python")] == code
    notebook = json.loads((DOCS / "tutorial.ipynb").read_text())
    assert ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"] == code
    assert len(notebook["cells"]) == len(cells)


def test_every_figure_of_the_page_on_reading_has_its_command():
    shown = set(re.findall(r"\]\(assets/([\w-]+)\.svg\)", (DOCS / "reading.md").read_text()))
    made = set(re.findall(r'^    "([\w-]+)": \w+,$', (DOCS / "figures.py").read_text(), re.MULTILINE))
    assert shown == made
    for name in shown:
        assert (DOCS / "assets" / f"{name}.svg").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("line", ["tutorial.py", "figures.py growing-heads --out ."])
def test_the_documentations_scripts_run(line, tmp_path):
    program, *arguments = line.split()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, DOCS / program, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    if program == "tutorial.py":
        assert "the same weights, bit for bit: True" in done.stdout
    else:
        assert (tmp_path / "growing-heads.svg").is_file()
