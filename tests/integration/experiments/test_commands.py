"""The commands, run as a user runs them."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open

from avalanche_ntk.experiments import load_config
from avalanche_ntk.kernels._generic.reference import reference_ntk
from avalanche_ntk.lab.models import build_model
from avalanche_ntk.recorder.runfolder import RunFolder
from tests.integration.experiments.small import TINY, numbers
from tests.integration.experiments.test_comparison import make_run

COMMAND = str(Path(sys.executable).parent / "avalanche-ntk")
COMMANDS = ("demo", "run", "sweep", "compare", "report", "reproduce", "inspect", "kernel", "doctor", "version")


def call(*arguments, cwd, encoding="utf-8", **environment):
    return subprocess.run(
        [COMMAND, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        encoding=encoding,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **environment},
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command, tmp_path):
    done = call(command, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert f"Usage: avalanche-ntk {command}" in done.stdout
    assert f"Example: avalanche-ntk {command}" in " ".join(done.stdout.split())
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command):
    """What makes a command slow to answer: torch, Avalanche, pandas, numpy, matplotlib, yaml, and rich."""
    code = (
        "import sys\nsys.argv = ['avalanche-ntk', sys.argv[1], '--help']\nfrom avalanche_ntk.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "slow = {'torch', 'avalanche', 'pandas', 'numpy', 'scipy', 'matplotlib', 'yaml', 'sklearn', 'rich'}\n"
        "heavy = slow & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_run_from_the_shell_is_the_run_from_python(tmp_path):
    (tmp_path / "plan.yaml").write_text(json.dumps(TINY))
    done = call(
        "run", "plan.yaml", "--epochs", 1, "--width", 8, "--set", "benchmark.n_tasks=2", "--out", "r", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("Run folder: r\n")
    assert done.stdout.startswith("accuracy ")
    assert "\x1b" not in done.stdout + done.stderr
    assert "DeprecationWarning" not in done.stderr
    config = load_config(TINY, {"epochs": 1, "model.width": 8, "benchmark.n_tasks": 2})
    assert RunFolder.open(tmp_path / "r").meta["config_hash"] == config.hash
    from avalanche_ntk.experiments import run

    assert numbers(tmp_path / "r") == numbers(run(config, tmp_path / "python"))
    again = call(
        "run", "plan.yaml", "--epochs", 1, "--width", 8, "--set", "benchmark.n_tasks=2", "--out", "r", cwd=tmp_path
    )
    nothing = "This run is complete: nothing was trained. --overwrite repeats it.\n"
    assert (again.returncode, again.stdout) == (0, nothing + done.stdout)


WRONG = {
    "an unknown key": (
        ["--set", "model.widht=3"],
        "avalanche-ntk: --set model.widht: unknown key 'widht' in model: expected one of 'name', 'width', 'depth', "
        "'parametrisation', 'activation', 'arguments'. Did you mean 'width'?\n",
    ),
    "no value": (
        ["--set", "model.width"],
        "avalanche-ntk: --set takes KEY=VALUE, found 'model.width'. Write --set model.width=128, for example.\n",
    ),
    "a wrong name by a flag": (
        ["--regime", "lzay"],
        "avalanche-ntk: --regime: unknown regime.name 'lzay': expected one of 'lazy', 'rich', 'ntk', 'centred', "
        "'mean_field'. Did you mean 'lazy'?\n",
    ),
    "a wrong name of a configuration": (
        ["split-digit"],
        "avalanche-ntk: unknown configuration 'split-digit': expected one of 'split-digits', 'sweep-class-overlap', "
        "'sweep-frequency-shift', 'sweep-learning-rate', 'sweep-number-of-tasks', 'sweep-regime', 'sweep-strategies', "
        "'sweep-task-length', 'sweep-width', or the path of a YAML file. Did you mean 'split-digits'?\n",
    ),
    "no file": (
        ["plan.yaml"],
        "avalanche-ntk: plan.yaml cannot be read (No such file or directory): expected a YAML file. Check the path.\n",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_configuration_ends_with_2_and_no_traceback(tmp_path, arguments, message):
    done = call("run", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (2, message, "")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_flag_ends_with_2(tmp_path):
    done = call("run", "--widht", 3, cwd=tmp_path)
    assert done.returncode == 2
    assert "No such option: --widht" in done.stderr


def test_debug_anywhere_shows_the_traceback(tmp_path):
    done = call("run", "plan.yaml", "--debug", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.rstrip().endswith("Check the path.")


def test_the_configuration_can_be_looked_at(tmp_path):
    done = call("run", "split-digits", "--check", "--seed", 7, cwd=tmp_path)
    assert done.returncode == 0
    (tmp_path / "resolved.yaml").write_text(done.stdout)
    assert load_config(tmp_path / "resolved.yaml") == load_config("split-digits", {"seed": 7})
    keys = call("run", "--keys", cwd=tmp_path).stdout
    assert "benchmark.similarity" in keys
    assert "Jaccard similarity of the class sets." in keys


def test_sweeps_are_listed_and_planned(tmp_path):
    listed = call("sweep", "--list", cwd=tmp_path)
    assert listed.returncode == 0
    assert "sweep-frequency-shift" in listed.stdout
    planned = call("sweep", "sweep-regime", "--plan", "--set", "epochs=1", cwd=tmp_path)
    assert planned.returncode == 0
    assert "control, regime=mean_field" in planned.stdout
    none = call("sweep", cwd=tmp_path)
    assert (none.returncode, none.stderr) == (
        2,
        "avalanche-ntk: sweep needs a plan: expected a YAML file or a name, found none. See sweep --list.\n",
    )


@pytest.mark.slow  # processes that import the training stack
def test_a_sweep_from_the_shell_tells_what_failed(tmp_path):
    plan = {"base": {**TINY, "epochs": 1}, "runs": [{"benchmark.per_class": 9999}], "description": "Too much."}
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    done = call("sweep", "plan.yaml", "--out", "out", cwd=tmp_path)
    assert done.returncode == 1
    [name] = [p.stem for p in (tmp_path / "out" / "jobs").iterdir()]
    assert done.stdout == f"0 done, 1 failed\nCompare: avalanche-ntk compare {tmp_path / 'out'}\n"
    assert done.stderr == (
        f"running {name}\nfailed  {name}\navalanche-ntk: 1 of 1 runs failed:\n"
        f"  {name}: ArgumentError: each task takes samples of a class once and the smallest class of digits has 130; "
        "found per_class=9999. Use per_class=130 or less.\n"
        f"    its output: {tmp_path / 'out' / 'logs' / name}.log\n"
    )


def test_compare_writes_tables_and_says_what_it_leaves_out(tmp_path):
    for seed in range(3):
        make_run(tmp_path / "runs" / f"a{seed}", seed=seed, label="EWC")
    make_run(tmp_path / "runs" / "b", config={"epochs": 9}, cadence="every_epochs:1", label="Naive")
    done = call("compare", "runs", "--csv", "t.csv", "--markdown", "t.md", "--latex", "t.tex", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == (
        "avalanche-ntk: ratio is left out: a ratio of velocities depends on the time between measurements, and the "
        "runs were measured at different cadences: every_iterations:5 (a0), every_epochs:1 (b). Compare runs of one "
        "schedule.\n"
    )
    assert "EWC (3 seeds)" in done.stdout
    assert done.stdout.endswith("Written: t.csv\nWritten: t.md\nWritten: t.tex\n")
    assert "\x1b" not in done.stdout
    table = pd.read_csv(tmp_path / "t.csv")
    assert table["group"].tolist() == ["EWC", "Naive"]
    assert table["forgetting"].tolist() == pytest.approx([0.35, 0.35])
    assert (tmp_path / "t.tex").read_text().startswith("% ratio is left out")
    few = call("compare", "runs/a0", "runs/a1", cwd=tmp_path)
    sentence = (
        "No rank correlation with forgetting: it needs three runs of one seed, none of them a control, with defined "
        "and not constant forgetting and measure."
    )
    assert " ".join(few.stdout.split()).endswith(sentence)
    assert "ρ" not in few.stdout
    each = call("compare", "runs", "--each", cwd=tmp_path)
    assert all(f"a{seed} " in each.stdout for seed in range(3))
    none = call("compare", "nothing", cwd=tmp_path)
    assert (none.returncode, none.stderr) == (
        1,
        "avalanche-ntk: nothing holds no run: expected a run folder, or a folder of run folders, nothing exists at "
        "that path. Check the path.\n",
    )


def test_a_kernel_from_the_shell(tmp_path):
    (tmp_path / "mymodels.py").write_text(
        "import torch\n\ndef make(n_classes, width=4):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, width), torch.nn.Tanh(),\n"
        "                               torch.nn.Linear(width, n_classes))\n"
    )
    done = call("kernel", "mymodels:make", "--data", "digits", "--size", 20, "--set", "width=6", "--dtype", "float64",
                "--out", "κ.safetensors", cwd=tmp_path, PYTHONIOENCODING="ascii")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == ["file: ?.safetensors", "shape: (20, 20)"]
    with safe_open(tmp_path / "κ.safetensors", "np") as file:
        kernel, labels, indices = (file.get_tensor(name) for name in ("kernel", "labels", "indices"))
        assert file.metadata()["model"] == "mymodels:make"
    assert np.bincount(labels).tolist() == [2] * 10
    from avalanche_ntk.lab.benchmarks import load_data

    data = load_data("digits", seed=0)
    x = torch.stack([data.train[int(i)][0] for i in indices]).double()
    assert [data.train[int(i)][1] for i in indices] == labels.tolist()
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 6), torch.nn.Tanh(), torch.nn.Linear(6, 10))
    expected = reference_ntk(net.double(), x)
    np.testing.assert_allclose(kernel, expected.numpy(), rtol=1e-10)


REFUSED = {
    "a file that is there": ({}, "OUT exists already. Give another --out, or --overwrite to replace it."),
    "another suffix": (
        {"out": "k.pt"}, "a kernel is stored as .safetensors or .npy, found 'k.pt'. Give --out kernel.safetensors.",
    ),
    "a reduction": (
        {"out": "n.npy", "reduction": "trce"},
        "unknown reduction 'trce': expected one of 'full', 'projected', 'sum_logits', 'trace'. Did you mean 'trace'?",
    ),
    "more than there is": (
        {"out": "n.npy", "size": 5000}, "digits has 1347 train samples, found size=5000. Give a smaller --size.",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_a_kernel_that_cannot_be_had_is_refused(tmp_path, arguments, message):
    from avalanche_ntk.errors import NTKError
    from avalanche_ntk.experiments.single import kernel_to_file

    (tmp_path / "k.npy").write_bytes(b"precious")
    out = tmp_path / arguments.get("out", "k.npy")
    with pytest.raises(NTKError) as error:
        kernel_to_file("mlp", "digits", **{**arguments, "out": out})
    assert str(error.value) == message.replace("OUT", str(out))
    assert [p.name for p in tmp_path.iterdir()] == ["k.npy"]
    assert (tmp_path / "k.npy").read_bytes() == b"precious"


def test_a_kernel_of_given_inputs_and_weights(tmp_path):
    from avalanche_ntk.experiments.single import kernel_to_file

    inputs = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    np.save(tmp_path / "x.npy", inputs)
    net = build_model("mlp", input_shape=(5,), n_classes=3, width=4, depth=1, seed=9)
    torch.save(net.state_dict(), tmp_path / "w.pt")
    told = kernel_to_file(
        "mlp", str(tmp_path / "x.npy"), tmp_path / "k.npy", size=6, n_classes=3, reduction="full",
        arguments={"width": 4, "depth": 1}, weights=tmp_path / "w.pt",
    )  # fmt: skip
    assert told["shape"] == "(6, 6, 3, 3)"
    expected = reference_ntk(net, torch.from_numpy(inputs[:6]), reduction="full")
    np.testing.assert_allclose(np.load(tmp_path / "k.npy"), expected.numpy(), rtol=1e-4, atol=1e-5)
    assert float(told["trace"]) == pytest.approx(float(torch.einsum("nncc->", expected.double())), rel=1e-5)
    kernel_to_file(
        "mlp", str(tmp_path / "x.npy"), tmp_path / "p.npy", size=6, n_classes=3, reduction="projected",
        n_projections=2, arguments={"width": 4, "depth": 1}, weights=tmp_path / "w.pt",
    )  # fmt: skip
    expected = reference_ntk(net, torch.from_numpy(inputs[:6]), reduction="projected", n_projections=2)
    np.testing.assert_allclose(np.load(tmp_path / "p.npy"), expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # processes that import the training stack
def test_doctor_finds_this_installation_sound(tmp_path):
    done = call("doctor", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    found = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert (found["torch"]["state"], found["torch"]["found"]) == ("ok", metadata.version("torch"))
    assert found["kernel"]["state"] == "ok"
    assert found["BiC"]["remedy"] == "Leave BiC out, or use an older torch, which still has the argument."


def test_doctor_tells_problems_with_their_remedies(tmp_path, monkeypatch):
    from avalanche_ntk.experiments import doctor

    version, requires = metadata.version, metadata.requires("avalanche-ntk")
    old = {"torch": "2.1.0", "avalanche-lib": "0.6.9"}
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: [*requires, "no-such-thing>=3"])
    monkeypatch.setattr(doctor.metadata, "version", lambda name: old.get(name) or version(name))
    found = {finding.name: finding for finding in doctor.diagnose("cuda:99")}
    problems = {name: (f.found, f.remedy) for name, f in found.items() if f.state == "problem"}
    assert problems == {
        "torch": ("2.1.0; >=2.6 is needed", "pip install 'torch>=2.6'"),
        "no-such-thing": ("not installed; >=3 is needed", "pip install 'no-such-thing>=3'"),
        "kernel": ("no device 'cuda:99'", "Use one of cpu, cuda, mps."),
    }
    assert found["avalanche-lib"].state == "note"
    assert found["avalanche-lib"].remedy == "If something fails: pip install 'avalanche-lib==0.6.0'"


def test_the_shell_is_told_how_a_word_goes_on(tmp_path):
    shown = call("--show-completion", "bash", cwd=tmp_path, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "_AVALANCHE_NTK_COMPLETE=complete_bash" in shown.stdout
    asked = {"_AVALANCHE_NTK_COMPLETE": "complete_bash", "COMP_CWORD": "3"}
    strategies = call(cwd=tmp_path, COMP_WORDS="avalanche-ntk run --strategy EW", **asked)
    assert strategies.stdout.split() == ["EWC", "EWC_online"]
    sweeps = call(cwd=tmp_path, COMP_WORDS="avalanche-ntk sweep sweep-w", **{**asked, "COMP_CWORD": "2"})
    assert sweeps.stdout.split() == ["sweep-width"]
