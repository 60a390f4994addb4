"""A run taken up again from a user's own checkpoint of the weights gives the series of the run that never stopped."""

import json

import pytest
import torch
from avalanche.models import IncrementalClassifier
from torch import nn

from avalanche_ntk import NTKPlugin, Probe, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.errors import ArgumentError, ProbeError, RunFolderError
from avalanche_ntk.lab.models import MLP
from avalanche_ntk.observables import KernelRegression, Linearisation, PerLayer
from avalanche_ntk.recorder.runfolder import RunFolder
from avalanche_ntk.recorder.trajectory import Trajectory
from tests.support.lines import make_strategy, tiny_stream

# Networks this small die in some of these runs, which is told; what is tested is that the series goes on.
pytestmark = pytest.mark.filterwarnings("ignore::avalanche_ntk.errors.UndefinedMeasureWarning")

EVERY_STEP = Schedule.every_iterations(1)
PROBES = [ProbeSpec(size=8), ProbeSpec(size=4, from_experience=1), ProbeSpec(size=4, split="test")]


def mlp():
    torch.manual_seed(3)
    return MLP(6, 6, width=8, depth=1)


class Run:
    """A user's script: train experiences `first` to `stop`, keeping weights and optimizer after each."""

    def __init__(self, model=mlp, benchmark=None):
        self.benchmark = benchmark or tiny_stream(3)
        self.make_model = model
        self.kept = {}

    def train(self, first, stop, folder, experiences=None, model=None, **arguments):
        arguments = {"probe": PROBES, "schedule": EVERY_STEP, "on_error": "raise", **arguments}
        ntk = NTKPlugin(run_folder=folder, **arguments)
        model = model or self.make_model()
        strategy = make_strategy(model=model, plugins=[ntk], metrics=[ntk_metrics(ntk)])
        if first in self.kept:
            weights, optimizer = self.kept[first]
            for experience in self.benchmark.train_stream[:first]:
                for module in model.modules():
                    if isinstance(module, IncrementalClassifier):
                        module.adaptation(experience)
            model.load_state_dict(weights)
            strategy.optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            strategy.optimizer.load_state_dict(optimizer)
            # Otherwise Avalanche takes the optimizer for a new one and empties its state, momentum included.
            strategy.optimized_param_id = dict(model.named_parameters())
        for experience in experiences or self.benchmark.train_stream[first:stop]:
            number = experience.logging().current_experience + 1
            # Each experience has a seed of its own, as in a script that restores its generators.
            torch.manual_seed(100 + number)
            strategy.train(experience)
            self.kept[number] = (
                {name: t.clone() for name, t in model.state_dict().items()},
                # Through text, as a file would: nothing is shared with the optimizer that goes on.
                _copied(strategy.optimizer.state_dict()),
            )
        ntk.close()
        return ntk, strategy


def _copied(value):
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    return [_copied(part) for part in value] if isinstance(value, list) else value


def records(folder):
    found = RunFolder.open(folder).records()
    for record in found:
        if record["kind"] == "measurement":
            record["values"] = {k: v for k, v in record["values"].items() if not k.startswith("measur")}
            del record["trust"]["seconds"]
        record.pop("training_seconds", None)
        record.pop("measuring_seconds", None)
    return found


def same_trajectories(a, b):
    for name in ("Exp000", "Exp001", "Exp000_test"):
        ours, theirs = Trajectory.load(a, name), Trajectory.load(b, name)
        assert len(ours) == 24
        assert all((ours.kernel(m.index) == theirs.kernel(m.index)).all() for m in ours)
        assert ours.reactivations == theirs.reactivations
        assert sorted(ours.reactivations) == [0, 1, 2]


@pytest.mark.parametrize("first", [1, 2])
def test_the_series_is_that_of_the_run_that_never_stopped(tmp_path, first):
    observe = [KernelRegression("Exp000_test"), PerLayer()]
    whole, broken = Run(), Run()
    uninterrupted, _ = whole.train(0, 3, tmp_path / "whole", observe=observe)
    broken.train(0, first, tmp_path / "broken", observe=[KernelRegression("Exp000_test"), PerLayer()])
    ntk, strategy = broken.train(
        first, 3, tmp_path / "broken", observe=[KernelRegression("Exp000_test"), PerLayer()], resume=True
    )
    assert records(tmp_path / "broken") == records(tmp_path / "whole")
    same_trajectories(tmp_path / "broken", tmp_path / "whole")
    assert len(ntk.trajectory) == len(uninterrupted.trajectory) == 24
    assert ntk.measuring_seconds > 0.0
    # The new evaluator is given what is measured from now on, and nothing of the earlier process again.
    steps, _ = strategy.evaluator.get_all_metrics()["NTK_SpectralNorm/train_phase/train_stream/Task000/Exp000"]
    assert steps == [m.clock.iteration for m in uninterrupted.trajectory.measurements[8 * first :]]
    steps, _ = strategy.evaluator.get_all_metrics()["NTK_Moved/train_phase/train_stream/Task000/Exp000"]
    assert steps == [6 * number for number in range(first, 3)]  # each at its boundary


def test_what_is_beyond_the_checkpoint_is_set_aside(tmp_path):
    whole, broken = Run(), Run()
    whole.train(0, 3, tmp_path / "whole")
    broken.train(0, 3, tmp_path / "broken")
    broken.train(1, 3, tmp_path / "broken", resume=True)
    assert records(tmp_path / "broken") == records(tmp_path / "whole")
    same_trajectories(tmp_path / "broken", tmp_path / "whole")
    lines = (tmp_path / "broken" / "measurements.rewound001.jsonl").read_text().splitlines()
    # Two experiences: three probes, eight measurements and a reactivation each, and the state.
    assert len(lines) == 2 * (3 * 9 + 1)


def test_a_script_that_always_resumes_begins_and_begins_again(tmp_path):
    script = Run()
    script.train(0, 1, tmp_path / "run", resume=True)
    first = records(tmp_path / "run")
    script.train(0, 1, tmp_path / "run", resume=True)
    assert records(tmp_path / "run") == first
    assert len((tmp_path / "run" / "measurements.rewound001.jsonl").read_text().splitlines()) == len(first) == 28


def test_a_number_says_how_many_experiences_went_before(tmp_path):
    # The stream is trained in another order than its own: third, first, second.
    whole, broken = Run(), Run()
    order = [whole.benchmark.train_stream[i] for i in (2, 0, 1)]
    whole.train(0, 3, tmp_path / "whole", experiences=order)
    order = [broken.benchmark.train_stream[i] for i in (2, 0, 1)]
    broken.train(0, 1, tmp_path / "broken", experiences=order[:1])
    broken.train(3, 3, tmp_path / "broken", experiences=order[1:], resume=1)
    assert records(tmp_path / "broken") == records(tmp_path / "whole")


def growing():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), IncrementalClassifier(5, initial_out_features=2))


def test_a_head_that_has_grown_keeps_its_first_outputs(tmp_path):
    whole, broken = Run(growing), Run(growing)
    whole.train(0, 3, tmp_path / "whole")
    broken.train(0, 2, tmp_path / "broken")
    broken.train(2, 3, tmp_path / "broken", resume=True)
    assert records(tmp_path / "broken") == records(tmp_path / "whole")
    states = [r for r in records(tmp_path / "whole") if r["kind"] == "state"]
    assert [s["outputs"]["Exp000"] for s in states] == [[0, 1]] * 3
    assert [s["parameters"]["2.classifier.weight"][0] for s in states] == [[2, 5], [4, 5], [6, 5]]


def test_other_weights_begin_a_new_segment(tmp_path):
    script = Run()
    script.train(0, 1, tmp_path / "run")
    weights, _ = script.kept[1]
    for weight in weights.values():
        weight += 1
    ntk, _ = script.train(1, 2, tmp_path / "run", resume=True)
    boundary = ntk.trajectory[8]
    assert boundary.notes == ("the parameters were changed since the last experience: a new segment begins",)
    assert boundary.segment == 1
    assert "distance_init" not in boundary.values


def test_some_other_weights_are_noted(tmp_path):
    script = Run()
    script.train(0, 1, tmp_path / "run")
    weights, _ = script.kept[1]
    weights["classifier.bias"] += 1
    ntk, _ = script.train(1, 2, tmp_path / "run", resume=True)
    boundary = ntk.trajectory[8]
    assert boundary.notes == ("classifier.bias changed since the last experience, outside training",)
    assert boundary.segment == 0
    assert "distance_init" in boundary.values


def test_a_run_that_is_resumed_does_not_pretend_to_know_its_initial_parameters(tmp_path):
    script = Run()
    script.train(0, 1, tmp_path / "run", observe=[Linearisation()])
    ntk, _ = script.train(1, 2, tmp_path / "run", observe=[Linearisation()], resume=True)
    first, last = ntk.trajectory[2], ntk.trajectory[11]
    assert first.values["linearisation_error_init"] > 0
    assert last.values["linearisation_error_boundary"] > 0
    assert "linearisation_error_init" not in last.values
    assert last.reasons["linearisation_error_init"] == "the run was resumed: its initial parameters are not stored"


def test_a_probe_of_each_task(tmp_path):
    each = {"probe": [ProbeSpec(size=4, from_experience=None)]}
    whole, broken = Run(), Run()
    whole.train(0, 3, tmp_path / "whole", **each)
    broken.train(0, 2, tmp_path / "broken", **each)
    ntk, _ = broken.train(2, 3, tmp_path / "broken", resume=True, **each)
    assert list(ntk.trajectories) == ["Exp000", "Exp001", "Exp002"]
    assert records(tmp_path / "broken") == records(tmp_path / "whole")


# ---------------------------------------------------------------------- refusals


@pytest.fixture
def stopped(tmp_path):
    script = Run()
    script.train(0, 1, tmp_path / "run")
    return script


def refusal(script, folder, error=RunFolderError, first=1, **arguments):
    before = RunFolder.open(folder).records()
    with pytest.raises(error) as caught:
        script.train(first, 3, folder, resume=True, **arguments)
    # Nothing was set aside, and the folder is free again.
    assert RunFolder.open(folder).records() == before
    assert not list(folder.glob("*rewound*"))
    RunFolder.resume(folder).close()
    return str(caught.value)


def test_another_probe_is_refused(tmp_path, stopped):
    folder = tmp_path / "run"
    known = {p["name"]: p for p in RunFolder.open(folder).meta["probes"]}
    other = [ProbeSpec(size=8, seed=1), *PROBES[1:]]
    chosen = other[0].choose(stopped.benchmark.train_stream[0].dataset)

    def brief(value):
        text = str(value)
        return text if len(text) <= 40 else f"{text[:37]}..."

    message = refusal(stopped, folder, ProbeError, probe=other)
    assert message == (
        f"run folder {folder} cannot be continued with another probe: 'Exp000' has the hash "
        f"{known['Exp000']['hash'][:12]} there and {chosen.hash[:12]} here (indices "
        f"{brief(known['Exp000']['indices'])} there and {brief(list(chosen.indices))} here). Kernels are only "
        "comparable on the same samples: give the same benchmark, transforms and ProbeSpec as before, or measure "
        "into another folder."
    )


def test_other_inputs_at_the_same_places_are_refused(tmp_path):
    script = Run()
    probe = Probe.from_tensors(torch.ones(4, 6), [0, 0, 1, 1], name="given")
    script.train(0, 1, tmp_path / "given", probe=probe)
    message = refusal(
        script, tmp_path / "given", ProbeError, probe=Probe.from_tensors(2 * probe.x, probe.y, name="given")
    )
    assert "(the same places in the stream, and other inputs at them)" in message


def test_a_probe_that_is_missing_is_refused(tmp_path, stopped):
    assert refusal(stopped, tmp_path / "run", probe=PROBES[1:]) == (
        f"run folder {tmp_path / 'run'} cannot be continued without all of its probes: expected 'Exp000' too, found "
        "'Exp001', 'Exp000_test'. Give the same probes as before."
    )


def test_another_model_is_refused(tmp_path, stopped):
    folder = tmp_path / "run"
    stopped.kept = {}
    assert refusal(stopped, folder, model=MLP(6, 6, width=9, depth=1)) == (
        f"run folder {folder} cannot be continued with another model than it had at the end of experience 0: "
        "features.1.weight has shape [8, 6] there and [9, 6] here; features.1.bias has shape [8] there and [9] here; "
        "classifier.weight has shape [6, 8] there and [6, 9] here. Give the same model as before (a head that has "
        "grown must have grown before its weights are loaded), or measure into another folder."
    )
    assert refusal(stopped, folder, model=MLP(6, 6, width=8, depth=2)) == (
        f"run folder {folder} cannot be continued with another model than it had at the end of experience 0: "
        "features.3.weight is only here; features.3.bias is only here. Give the same model as before (a head that has "
        "grown must have grown before its weights are loaded), or measure into another folder."
    )
    assert refusal(stopped, folder, model=nn.Sequential(nn.Linear(6, 6))) == (
        f"run folder {folder} cannot be continued with another model: it is a MLP there and a Sequential here. Give "
        "the same model as before, or measure into another folder."
    )
    assert refusal(stopped, folder, first=0, model=MLP(6, 6, width=9, depth=1)).startswith(
        f"run folder {folder} cannot be continued with another model than it had at its start: features.1.weight has"
    )


def test_other_settings_are_refused(tmp_path, stopped):
    assert refusal(stopped, tmp_path / "run", reduction="sum_logits", schedule=Schedule.every_iterations(2)) == (
        f"run folder {tmp_path / 'run'} cannot be continued with other settings: reduction is 'trace' there and "
        "'sum_logits' here; schedule is 'every_iterations:1' there and 'every_iterations:2' here. Give the same ones "
        "as before, or measure into another folder."
    )
    assert refusal(stopped, tmp_path / "run", reduction="projected", n_projections=2).startswith(
        f"run folder {tmp_path / 'run'} cannot be continued with other settings: reduction is 'trace' there and "
        "'projected' here; n_projections is None there and 2 here. "
    )
    assert refusal(stopped, tmp_path / "run", observe=[PerLayer()]).startswith(
        f"run folder {tmp_path / 'run'} cannot be continued with other settings: observables is [] there and [{{"
    )


def test_experiences_that_are_not_there_are_refused(tmp_path, stopped):
    assert refusal(stopped, tmp_path / "run", first=2) == (
        f"run folder {tmp_path / 'run'} cannot be continued with experience 2: it holds the complete experiences 0. "
        "Load the model that belongs to the run and train from experience 0 or 1, or measure into another folder."
    )
    with pytest.raises(RunFolderError) as caught:
        stopped.train(1, 2, tmp_path / "none", resume=True)
    assert str(caught.value) == (
        f"there is no run in {tmp_path / 'none'} to continue: training continues with experience 1, and the earlier "
        "ones should be recorded there. Give the folder of that run, or resume=False to begin a new one."
    )
    assert not (tmp_path / "none").exists()


def test_another_schema_is_refused(tmp_path, stopped):
    path = tmp_path / "run" / "run.json"
    run = json.loads(path.read_text())
    path.write_text(json.dumps({**run, "schema_version": 2}))
    with pytest.raises(RunFolderError) as caught:
        stopped.train(1, 2, tmp_path / "run", resume=True)
    assert str(caught.value) == (
        f"run folder {tmp_path / 'run'}: run.json cannot be used: it has schema version 2, and this avalanche-ntk "
        "reads versions up to 1; install a newer one."
    )


@pytest.mark.parametrize(
    "change",
    [{"counts": {}}, {"counts": 3}, {"outputs": [1]}, {"parameters": {"a": 1}}, {"training_seconds": "x"}],
    ids=lambda change: next(iter(change)),
)
def test_a_state_that_is_no_state_is_refused(tmp_path, stopped, change):
    lines = (tmp_path / "run" / "measurements.jsonl").read_text().splitlines()
    state = json.loads(lines[-1])
    assert state["kind"] == "state"
    lines[-1] = json.dumps({**state, **change})
    (tmp_path / "run" / "measurements.jsonl").write_text("\n".join(lines) + "\n")
    message = refusal(stopped, tmp_path / "run")
    assert message.startswith(
        f"run folder {tmp_path / 'run'} cannot be continued behind experience 0: the state recorded there cannot be "
        "used ("
    )
    assert message.endswith("). Go on behind an earlier one.")


ARGUMENTS = [
    ({"resume": True}, "resume continues a run on disk; found run_folder=None. Give run_folder= too."),
    (
        {"resume": True, "run_folder": "x", "overwrite": True},
        "resume continues a run and overwrite replaces it; found both. Give one of them: resume=True begins a new "
        "run where there is none.",
    ),
    (
        {"resume": 2, "run_folder": "x", "keep_kernels": False},
        "resume needs the stored kernels, with which the next measurement is compared; found keep_kernels=False. Give "
        "keep_kernels=True.",
    ),
    (
        {"resume": "yes", "run_folder": "x"},
        "resume must be True, False, or the number of experiences trained before, at least 0; found 'yes'. Give "
        "resume=True.",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), ARGUMENTS, ids=["no folder", "overwrite", "no kernels", "a word"])
def test_arguments_are_checked_at_once(arguments, message):
    with pytest.raises(ArgumentError) as caught:
        NTKPlugin(**arguments)
    assert str(caught.value) == message
