"""What the documentation shows runs."""

import os
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import TensorboardLogger
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from typer.testing import CliRunner

from avalanche_ntk.cli import app
from avalanche_ntk.kernels import reference_ntk
from avalanche_ntk.kernels._structure import nodes
from avalanche_ntk.lab.models import MLP
from avalanche_ntk.observables import registry
from avalanche_ntk.reproduce.registry import Scale
from avalanche_ntk.reproduce.study import Context, Study
from tests.integration.test_docs import DOCS, ROOT, blocks
from tests.support.lines import tiny_stream


def alone() -> dict[str, str]:
    """Return the environment of a process that finds this tree and takes one core."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run_blocks(page: Path, names: dict[str, Any]) -> dict[str, Any]:
    """Run a page's blocks of Python one after the other, in one namespace, which is returned."""
    for number, block in enumerate(blocks(page, "python"), start=1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)
    return names


@pytest.fixture(autouse=True)
def observables_of_its_own(monkeypatch):
    """What a page registers is gone after its test."""
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))


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


def test_the_page_on_plain_pytorch_runs(capsys):
    names = run_blocks(DOCS / "pytorch.md", {})
    assert list(names["kernels"]) == ["step-0000", "step-0100", "step-0200"]
    assert "step-0200" in capsys.readouterr().out


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


@pytest.mark.slow
@pytest.mark.parametrize("line", ["tutorial.py", "figures.py growing-heads --out ."])
def test_the_documentations_scripts_run(line, tmp_path):
    program, *arguments = line.split()
    command = [sys.executable, DOCS / program, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=alone(), check=False)
    assert done.returncode == 0, done.stderr
    if program == "tutorial.py":
        assert "the same weights, bit for bit: True" in done.stdout
    else:
        assert (tmp_path / "growing-heads.svg").is_file()


@pytest.mark.slow
def test_the_readmes_commands_run_in_order(tmp_path):
    """Those that need no more than a minute: a run, what is made of it, what is looked at."""
    lines = [line for page, line in commands() if page == "README.md"]
    quick = [line for line in lines if line.split()[1] in ("run", "inspect", "doctor")]
    assert len(quick) == 3
    for line in [*quick, "avalanche-ntk report runs --out report", "avalanche-ntk compare runs"]:
        arguments = shlex.split(line)[1:]
        command = [sys.executable, "-c", "from avalanche_ntk.cli import main; main()", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=alone())
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "report" / "report.html").is_file()


BARE = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {refused}:
            raise ImportError(f"{{name}} is not needed here")

sys.meta_path.insert(0, Refused())

import torch
from avalanche_ntk import empirical_ntk, measures

kernel = empirical_ntk(torch.nn.Linear(3, 2), torch.randn(8, 3))
print(measures.kernel_alignment(kernel, torch.arange(8) % 2))
"""


def test_a_kernel_and_its_numbers_need_few_packages():
    """What CONTRIBUTING says of dependencies: torch, numpy, scipy, threadpoolctl."""
    refused = ["avalanche", "matplotlib", "pandas", "rich", "sklearn", "tensorboard", "torchvision", "typer", "yaml"]
    command = [sys.executable, "-c", BARE.format(refused=set(refused))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=alone())
    assert done.returncode == 0, done.stderr
    assert -1 <= float(done.stdout) <= 1


@pytest.mark.slow
def test_the_readmes_table_is_what_the_demonstration_finds(tmp_path):
    """Training differs a little from processor to processor, so numbers agree in size."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## What the demonstration shows")[1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "| task" in line]
    assert len(rows) == 3
    command = [sys.executable, "-c", "from avalanche_ntk.cli import main; main()", "demo", "--out", "demo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=alone())
    assert done.returncode == 0, done.stderr
    found = pd.read_csv(tmp_path / "demo" / "boundaries.csv").set_index(["run", "experience"])
    for run, boundary, accuracy, forgetting, *numbers, _ in rows:
        row = found.loc[run, int(boundary[-1]) - 1]
        assert float(accuracy) == pytest.approx(row["accuracy_first_task"], abs=0.05), (run, boundary)
        assert float(forgetting) == pytest.approx(row["forgetting_first_task"], abs=0.05), (run, boundary)
        sizes = list(row[["moved", "spike", "ratio", "norm_dip"]])
        assert [float(number) for number in numbers] == pytest.approx(sizes, rel=0.5), (run, boundary)
