"""Two processes that train one model: one of them measures, and both train as they would without it."""

import os
import subprocess
import sys

import pytest
import torch

from avalanche_ntk.kernels._generic.reference import reference_ntk
from avalanche_ntk.recorder.runfolder import RunFolder
from avalanche_ntk.recorder.trajectory import Trajectory
from tests.support.lines import BatchNormCNN, DropoutMLP, differences
from tests.support.places import ROOT

MODELS = {"MLP with dropout": (DropoutMLP, (6,)), "CNN with BatchNorm": (BatchNormCNN, (1, 6, 6))}

SCRIPT = """
import sys, warnings
from pathlib import Path

warnings.simplefilter("ignore")
import torch
import torch.distributed
from avalanche.distributed import DistributedHelper
from avalanche.training import Naive, Replay
from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, ntk_metrics
from tests.support.lines import BatchRecorder, fingerprint, make_strategy, run, tiny_stream
from tests.integration.test_distributed import MODELS

torch.set_num_threads(1)
folder, model_name, strategy_name, wrapped, share = Path(sys.argv[1]), *sys.argv[2:6]
assert DistributedHelper.init_distributed(random_seed=0, backend="gloo", use_cuda=False)
rank = DistributedHelper.rank
model_class, shape = MODELS[model_name]
strategy_class = {"Naive": Naive, "Replay": Replay}[strategy_name]
result = {}
for with_ntk in (False, True):
    DistributedHelper.set_random_seeds(0)
    benchmark = tiny_stream(shape=shape)
    model = model_class()
    if wrapped == "wrapped":
        model = DistributedHelper.wrap_model(model)
    recorder = BatchRecorder()
    plugins, metrics = [recorder], []
    if with_ntk:
        ntk = NTKPlugin(
            [ProbeSpec(size=6), ProbeSpec(size=4, from_experience=1)],
            Schedule.every_iterations(1),
            run_folder=folder / "run",
            on_error="raise",
            share=share == "shared",
        )
        plugins, metrics = [ntk, recorder], [ntk_metrics(ntk)]
    loggers = [] if rank else None
    arguments = {"mem_size": 10} if strategy_name == "Replay" else {}
    strategy = make_strategy(
        model=model, plugins=plugins, metrics=metrics, loggers=loggers, strategy=strategy_class, **arguments
    )
    run(strategy, benchmark)
    result[with_ntk] = {**fingerprint(strategy), "batches": recorder.batches}
torch.save(
    {
        "plain": result[False],
        "measured": result[True],
        "measurements": {name: len(t) for name, t in ntk.trajectories.items()},
        "folder": ntk._session.folder is not None,
        "steps": ntk.clock.steps.count,
        "tags": sorted(strategy.evaluator.get_all_metrics()),
    },
    folder / f"rank{rank}.pt",
)
torch.distributed.destroy_process_group()
"""


def torchrun(tmp_path, *arguments):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            str(script),
            str(tmp_path),
            *arguments,
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "strategy", "wrapped", "share"),
    [
        ("MLP with dropout", "Naive", "wrapped", "shared"),
        ("CNN with BatchNorm", "Naive", "wrapped", "shared"),
        ("MLP with dropout", "Replay", "wrapped", "shared"),
        ("MLP with dropout", "Naive", "alone", "shared"),
        ("MLP with dropout", "Naive", "alone", "by the first"),
    ],
)
def test_two_processes(tmp_path, model, strategy, wrapped, share):
    ranks = torchrun(tmp_path, model, strategy, wrapped, share)
    for rank in ranks:
        assert differences(rank["plain"], rank["measured"]) == []
    # The comparison is one of processes that each saw their half of the data.
    assert ranks[0]["plain"]["batches"] != ranks[1]["plain"]["batches"]
    if wrapped == "wrapped":
        in_step = {name: value for name, value in ranks[0]["measured"]["state"].items() if "running_" not in name}
        assert differences(in_step, {name: ranks[1]["measured"]["state"][name] for name in in_step}) == []

    # One process recorded, the other did not, whether they shared the work or not.
    steps = ranks[0]["steps"]
    assert ranks[1]["steps"] == steps > 0
    assert ranks[0]["measurements"] == dict.fromkeys(["Exp000", "Exp001"], steps + 4)
    assert ranks[1]["measurements"] == {"Exp000": 0, "Exp001": 0}
    assert (ranks[0]["folder"], ranks[1]["folder"]) == (True, False)
    assert "NTK_SpectralNorm/train_phase/train_stream/Task000/Exp000" in ranks[0]["tags"]
    assert not [tag for tag in ranks[1]["tags"] if tag.startswith("NTK_")]
    folder = RunFolder.open(tmp_path / "run")
    found = [r for r in folder.records() if r["kind"] == "measurement"]
    assert len(found) == 2 * (steps + 4)
    assert not [r["failure"] for r in found if r["failure"] is not None]
    alone = [r for r in found if r["trust"].get("processes") != 2]
    if share == "shared":  # without the wrapper each process has a model of its own after the first step
        told = [note for r in alone for note in r["notes"] if "this process measured alone: parameter" in note]
        assert len(told) == len(alone) == (0 if wrapped == "wrapped" else len(found) - 2)  # both probes at the start
    else:
        assert len(alone) == len(found)

    # The kernel is that of the module inside, with its own names.
    model_class, _ = MODELS[model]
    inside = model_class()
    names = dict(inside.named_parameters())
    assert folder.meta["model"]["name"] == model_class.__name__
    assert set(folder.meta["model"]["parameters"]) == set(names)
    inside.load_state_dict({k.removeprefix("module."): v for k, v in ranks[0]["measured"]["state"].items()})
    trajectory = Trajectory.load(tmp_path / "run")
    kernel = torch.from_numpy(trajectory.kernel(len(trajectory) - 1)).double()
    x = probe_of(folder, model)
    expected = reference_ntk(inside, x, dtype=torch.float64, reduction="trace")
    assert torch.allclose(kernel, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def probe_of(folder, model):
    from tests.support.lines import tiny_stream

    dataset = tiny_stream(shape=MODELS[model][1]).train_stream[0].dataset.eval()
    (described,) = [p for p in folder.meta["probes"] if p["name"] == "Exp000"]
    return torch.stack([dataset[i][0] for i in described["indices"]])


def test_the_flag_is_set():
    from avalanche_ntk import NTKPlugin

    assert NTKPlugin.supports_distributed is True


def test_what_avalanche_declares_for_several_processes():
    import avalanche.training as strategies

    from tests.support.lines import make_strategy

    without = {"EWC": {"ewc_lambda": 1.0}, "LwF": {"alpha": 1.0, "temperature": 1.0}}
    without["FromScratchTraining"] = {}
    with_support: dict[str, dict] = {"Naive": {}, "Cumulative": {}, "JointTraining": {}}
    with_support |= {"Replay": {}, "GDumb": {}}
    for name, arguments in {**with_support, **without}.items():
        strategy = make_strategy(strategy=getattr(strategies, name), **arguments)
        supported = all(getattr(plugin, "supports_distributed", False) for plugin in strategy.plugins)
        assert supported == (name in with_support), name
