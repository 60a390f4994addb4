"""What is measured beside the kernel, against values worked out another way."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.errors import ArgumentError, MeasurementFailedWarning, ProbeError, UndefinedMeasureWarning
from avalanche_ntk.kernels._generic.reference import reference_jacobian, reference_ntk
from avalanche_ntk.kernels._guard import isolation
from avalanche_ntk.lab.models import MLP
from avalanche_ntk.observables import (
    BufferShare,
    ClassBlocks,
    FeatureKernel,
    KernelRegression,
    Linearisation,
    Observable,
    Observation,
    PerLayer,
    StaticKernelForecast,
    TaskOverlap,
    base,
)
from avalanche_ntk.recorder.runfolder import RunFolder
from tests.support.lines import Models, make_strategy, run, tiny_stream


def observed(*observables, probe=None, model=None, optimizer=None, batch=8, epochs=2, stream=None, **arguments):
    torch.manual_seed(0)
    models = Models()
    ntk = NTKPlugin(
        probe or ProbeSpec(size=8), Schedule.every_iterations(1), observe=observables, on_error="raise", **arguments
    )
    strategy = make_strategy(model=model, plugins=[ntk, models], batch=batch, epochs=epochs, lr=0.1)
    if optimizer is not None:
        strategy.optimizer = optimizer(strategy.model)
    run(strategy, stream or tiny_stream())
    return ntk, models.at


def linear_model():
    return nn.Linear(6, 4)


# ---------------------------------------------------------------------- linearisation


def test_linearisation_error_by_the_oracles_jacobian():
    ntk, models = observed(Linearisation(), model=MLP(6, 4, width=8, depth=1))
    x = ntk.probes["Exp000"].x
    checked = 0
    for m in ntk.trajectory:
        boundary = 0 if m.clock.experience == 0 else 6
        for which, at in (("boundary", boundary), ("init", 0)):
            column = f"linearisation_error_{which}"
            if m.clock.iteration == at:
                assert m.reasons[column] == "the parameters have not moved since"
                continue
            base, now = (copy.deepcopy(models[i]).double() for i in (at, m.clock.iteration))
            jacobian = reference_jacobian(base, x.double())
            delta = torch.cat([(p - q).flatten() for p, q in zip(now.parameters(), base.parameters(), strict=True)])
            predicted = torch.einsum("ncp,p->nc", jacobian, delta.detach())
            with torch.no_grad():
                moved = now(x.double()) - base(x.double())
            expected = ((moved - predicted).norm() / moved.norm()).item()
            assert m.values[column] == pytest.approx(expected, rel=1e-4)
            checked += 1
    assert checked > 20


def test_one_forward_mode_pass_for_each_distinct_base(monkeypatch):
    import avalanche_ntk.observables.linearisation as module

    passes = []
    push = module.jvp_prediction

    def counted(*arguments, **options):
        passes.append(options["dtype"])
        return push(*arguments, **options)

    monkeypatch.setattr(module, "jvp_prediction", counted)
    ntk, _ = observed(Linearisation(), model=MLP(6, 4, width=8, depth=1))
    # Measured at 0, 1…6, 6 and 6, 7…12, 12. In the first task the last boundary is initialisation: 7 passes for 7
    # measurements that moved; at the second boundary initialisation alone has moved; then there are two bases.
    assert len(passes) == 7 + 1 + 2 * 7
    for m in ntk.trajectory:
        boundary, init = (m.values.get(f"linearisation_error_{which}") for which in ("boundary", "init"))
        assert (boundary == init) == (m.clock.experience == 0)


def test_linearisation_of_a_model_that_refuses_float64():
    class Casts(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return self.net(x.float())

    def net():
        torch.manual_seed(3)
        return MLP(6, 4, width=8, depth=1)

    ntk, _ = observed(Linearisation(), model=Casts(), spot_check_every=0)
    plain, _ = observed(Linearisation(), model=net(), spot_check_every=0)
    for m, n in zip(ntk.trajectory, plain.trajectory, strict=True):
        for which in ("boundary", "init"):
            column = f"linearisation_error_{which}"
            assert m.values.get(column) == (pytest.approx(n.values[column], rel=1e-3) if column in n.values else None)


def test_a_linear_model_never_leaves_its_linearisation():
    ntk, _ = observed(Linearisation(), model=linear_model())
    errors = [m.values["linearisation_error_init"] for m in ntk.trajectory if "linearisation_error_init" in m.values]
    assert len(errors) > 10
    assert max(errors) < 1e-5


def test_linearisation_across_a_growing_head_says_why_not():
    from avalanche.models import IncrementalClassifier

    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), IncrementalClassifier(5, initial_out_features=2))
    ntk, _ = observed(Linearisation(), model=model)
    last = ntk.trajectory[-1]
    assert last.reasons["linearisation_error_init"] == "the model's parameters were added, removed or resized since"
    assert 0 < last.values["linearisation_error_boundary"] < 2


# ---------------------------------------------------------------------- static-kernel forecast


def plain_sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05)


def test_the_forecast_of_a_linear_model_is_what_happens():
    # Full batches of all the data, no momentum, a model that is its own linearisation: nothing is approximate.
    ntk, _ = observed(StaticKernelForecast(size=24), model=linear_model(), optimizer=plain_sgd, batch=24, epochs=6)
    second = [m for m in ntk.trajectory if m.clock.experience == 1 and m.clock.exp_iteration]
    assert len(second) == 7
    for m in second:
        assert m.values["forecast_error"] < 1e-4
        assert m.values["forecast_accuracy"] == m.values["network_accuracy_probe"]
    assert not any("forecast_error" in m.values for m in ntk.trajectory if m.clock.experience == 0)


def test_the_forecast_of_a_deep_model_is_wrong_and_says_how_much():
    ntk, _ = observed(
        StaticKernelForecast(size=24), model=MLP(6, 4, width=8, depth=2), optimizer=plain_sgd, batch=24, epochs=20
    )
    assert ntk.trajectory[-1].values["forecast_error"] > 0.01


def test_the_forecast_refuses_what_it_does_not_know():
    with pytest.warns(UndefinedMeasureWarning, match="forecast_error of probe 'Exp000' undefined") as caught:
        ntk, _ = observed(
            StaticKernelForecast(), optimizer=lambda m: torch.optim.Adam(m.parameters()), model=linear_model()
        )
    assert len(caught) == 1  # once, not at every measurement
    assert ntk.trajectory[-1].reasons["forecast_error"] == (
        "the forecast supports torch.optim.SGD only; the strategy has Adam"
    )
    with pytest.warns(UndefinedMeasureWarning, match="the new task's classes are not among the kernel's outputs"):
        ntk, _ = observed(StaticKernelForecast(), optimizer=plain_sgd, model=linear_model(), outputs=[0, 1])
    assert ntk.trajectory[-1].reasons["forecast_error"] == (
        "the new task's classes are not among the kernel's outputs (NTKPlugin(outputs='all') measures them)"
    )


# ---------------------------------------------------------------------- buffers


class Normalised(nn.Module):
    """BatchNorm, a buffer of which another module holds a reference too, and one that nothing reads."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4))
        self.shift = nn.Module()
        self.shift.register_buffer("mean", self.net[1].running_mean)
        self.register_buffer("unused", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.unused += 1  # also in eval mode: a measurement leaves it as it was
        return self.net(x) + 0.1 * self.shift.mean.sum()


def with_buffers(model, other):
    """A copy in float64 whose buffers are another model's, set by hand."""
    model = copy.deepcopy(model).double()
    norm, theirs = model.net[1], copy.deepcopy(other).double().net[1]
    norm.running_var.copy_(theirs.running_var)
    norm.running_mean.copy_(theirs.running_mean)
    model.shift.mean.copy_(theirs.running_mean)
    return model


def centred_distance(a, b):
    h = torch.eye(len(a), dtype=torch.float64) - 1 / len(a)
    a, b = (h @ k @ h / (h @ k @ h).norm() for k in (a, b))
    return 0.5 * (a - b).norm().item() ** 2


def test_the_share_of_buffers_by_the_oracle():
    ntk, models = observed(BufferShare(), model=Normalised())
    x = ntk.probes["Exp000"].x
    checked = []
    for m in ntk.trajectory:
        boundary = 0 if m.clock.experience == 0 else 6
        if m.clock.iteration == boundary:
            assert m.reasons["buffer_share"] == "no buffer has moved since the boundary"
            continue
        at_b, now = models[boundary], models[m.clock.iteration]
        before, after, mixed = (
            reference_ntk(with_buffers(a, b), x.double()) for a, b in ((at_b, at_b), (now, now), (now, at_b))
        )
        expected = centred_distance(after, mixed) / centred_distance(before, after)
        assert m.values["buffer_share"] == pytest.approx(expected, rel=1e-3)
        checked.append(expected)
    assert len(checked) == 14
    assert max(checked) > 0.05


def test_buffers_alone_move_the_kernel_where_no_weight_moves():
    ntk, _ = observed(BufferShare(), model=Normalised(), optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.0))
    shares = [m.values["buffer_share"] for m in ntk.trajectory if m.clock.exp_iteration]
    assert shares == pytest.approx([1.0] * 14, rel=1e-3)
    assert max(m.values.get("distance_experience_start", 0.0) for m in ntk.trajectory) > 1e-3


def test_where_there_is_no_share_of_buffers():
    ntk, _ = observed(BufferShare(), model=linear_model())
    assert {m.reasons["buffer_share"] for m in ntk.trajectory} == {"the model has no buffers"}

    class Still(Normalised):
        def train(self, mode=True):
            super().train(mode)
            self.net[1].eval()
            return self

        def forward(self, x):
            return self.net(x)

    ntk, _ = observed(BufferShare(), model=Still())
    assert {m.reasons["buffer_share"] for m in ntk.trajectory} == {"no buffer has moved since the boundary"}


def test_the_share_of_buffers_leaves_model_and_training_bit_for_bit():
    from tests.support.lines import BatchRecorder, differences, fingerprint, seed_everything

    results = []
    for on in (False, True):
        seed_everything()
        model, recorder = Normalised(), BatchRecorder()
        held = [(name, id(b), b.data_ptr()) for name, b in model.named_buffers()]
        ntk = NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(1), observe=[BufferShare()], on_error="raise")
        strategy = make_strategy(model=model, plugins=[ntk, recorder] if on else [recorder])
        run(strategy, tiny_stream())
        # The very same tensors are in the model's place.
        assert [(name, id(b), b.data_ptr()) for name, b in model.named_buffers()] == held
        results.append({**fingerprint(strategy), "unused": model.unused.clone(), "batches": recorder.batches})
    assert differences(*results) == []
    assert any("buffer_share" in m.values for m in ntk.trajectory)


# ---------------------------------------------------------------------- tasks, layers, features, classes


def test_task_overlap_by_the_oracle(tmp_path):
    ntk, models = observed(TaskOverlap(), probe=[ProbeSpec.each_task(size=6)], run_folder=tmp_path / "run")
    assert set(ntk.trajectories) == {"Exp000", "Exp001"}
    model, a, b = models[12], ntk.probes["Exp000"].x, ntk.probes["Exp001"].x

    def norm(x, y):
        return reference_ntk(model, x, y, dtype=torch.float64, reduction="trace").norm().item()

    value = ntk.trajectories["Exp000"][-1].values["task_overlap[Exp000,Exp001]"]
    assert value == pytest.approx(norm(a, b) ** 2 / (norm(a, a) * norm(b, b)), rel=1e-5)
    records = [r for r in RunFolder.open(tmp_path / "run").records() if r["kind"] == "task_overlap"]
    assert [r["clock"]["iteration"] for r in records] == [6, 12]  # the second probe exists from the second boundary on
    assert records[-1]["matrix"][0][1] == value
    assert "task_overlap" not in ntk.trajectories["Exp000"][0].reasons


def test_task_overlap_of_one_probe_says_that_it_needs_two():
    with pytest.warns(UndefinedMeasureWarning, match="there is one probe so far, and an overlap needs two"):
        ntk, _ = observed(TaskOverlap(), probe=ProbeSpec(size=6))
    told = [("task_overlap" in m.reasons, m.clock.experience > 0 and m.clock.is_boundary) for m in ntk.trajectory]
    assert {a for a, _ in told} == {True, False}
    assert all(a == b for a, b in told)


def test_task_overlap_of_heads_of_their_own():
    from avalanche.models import MultiHeadClassifier, MultiTaskModule

    class Heads(MultiTaskModule):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
            self.head = MultiHeadClassifier(8, initial_out_features=2)

        def forward(self, x, task_labels):
            return self.head(self.body(x), task_labels)

    stream = tiny_stream(task_labels=True, class_ids_from_zero_in_each_exp=True)
    ntk, models = observed(TaskOverlap(), probe=[ProbeSpec.each_task(size=6)], model=Heads(), stream=stream)
    a, b = ntk.probes["Exp000"], ntk.probes["Exp001"]

    def norm(p, q):
        return (
            reference_ntk(
                models[12], p.x, q.x, task_labels=p.task_labels, task_labels2=q.task_labels, dtype=torch.float64
            )
            .norm()
            .item()
        )

    value = ntk.trajectories["Exp000"][-1].values["task_overlap[Exp000,Exp001]"]
    assert value == pytest.approx(norm(a, b) ** 2 / (norm(a, a) * norm(b, b)), rel=1e-4)
    assert 0 < value < 1


def test_layers_by_the_oracle():
    ntk, models = observed(PerLayer({"head": ["classifier.*"]}))
    x = ntk.probes["Exp000"].x
    last = ntk.trajectory[-1]
    kernels = ntk.trajectory.kernels(last.index)
    assert set(kernels) == {"kernel", "layer[head]", "layer[other]"}
    names = [name for name, _ in models[12].named_parameters()]
    for group, prefix in (("head", "classifier"), ("other", "features")):
        mine = [name for name in names if name.startswith(prefix)]
        expected = reference_ntk(models[12], x, params=mine, dtype=torch.float64, reduction="trace").numpy()
        np.testing.assert_allclose(kernels[f"layer[{group}]"], expected, rtol=1e-4, atol=1e-4 * expected.max())
        assert last.values[f"layer[{group}].kernel_norm"] == pytest.approx(np.linalg.norm(expected), rel=1e-4)


def test_layers_come_with_the_kernel_and_leave_it_as_it_is(monkeypatch):
    """One pass gives both, and the whole kernel is bit for bit the one without them."""
    import avalanche_ntk.recorder.measurer

    calls = []
    for name in ("empirical_ntk", "empirical_ntk_by_group"):
        real = getattr(avalanche_ntk.recorder.measurer, name)
        monkeypatch.setattr(
            avalanche_ntk.recorder.measurer, name, lambda *a, r=real, n=name, **k: calls.append(n) or r(*a, **k)
        )
    plain, _ = observed(params=["features.*"])
    assert set(calls) == {"empirical_ntk"}
    calls.clear()
    ntk, _ = observed(PerLayer({"weights": ["*.weight"]}), params=["features.*"])
    assert set(calls) == {"empirical_ntk_by_group"} and len(calls) == len(ntk.trajectory)
    for m in ntk.trajectory:
        kernels = ntk.trajectory.kernels(m.index)
        assert set(kernels) == {"kernel", "layer[weights]", "layer[other]"}
        np.testing.assert_array_equal(kernels["kernel"], plain.trajectory.kernel(m.index))
        parts = kernels["layer[weights]"] + kernels["layer[other]"]
        np.testing.assert_allclose(parts, kernels["kernel"], rtol=1e-5, atol=1e-6 * kernels["kernel"].max())
        for key in ("asymmetry", "min_eigenvalue", "max_eigenvalue", "methods"):
            assert m.trust[key] == plain.trajectory[m.index].trust[key]


def test_one_that_returns_something_else_is_told_and_takes_nothing_with_it():
    class Wrong(Observable):
        name = "wrong"

        def observe(self, moment):
            return {"a": 1.0}

    ntk = NTKPlugin(ProbeSpec(size=8), Schedule.boundaries_only(), observe=[Wrong(), ClassBlocks()])
    with pytest.warns(MeasurementFailedWarning, match="wrong of the NTK failed"):
        run(make_strategy(plugins=[ntk]), tiny_stream())
    for m in ntk.trajectory:
        assert m.reasons["wrong"] == "TypeError: observe must return an Observation, found dict"
        assert "class_block[0,1]" in m.values and m.values["kernel_norm"] > 0


@pytest.mark.parametrize("groups", [{"a": ["nothing_like_it"]}, {}, None])  # wrong from the start, none, an error
def test_groups_that_cannot_be_take_nothing_with_them(groups):
    class Grouped(Observable):
        name = "grouped"

        def groups(self, model, params):
            if groups is None:
                raise RuntimeError("no luck")
            return groups

        def observe(self, moment):
            return Observation({"seen": float(len(moment.groups.get(self.name, {})))})

    def go():
        ntk = NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(1), observe=[Grouped(), ClassBlocks()])
        torch.manual_seed(0)
        run(make_strategy(model=linear_model(), plugins=[ntk], batch=8, epochs=2, lr=0.1), tiny_stream())
        return ntk

    if groups:  # nothing has been trained yet: a wrong argument ends it here
        with pytest.raises(ArgumentError, match="'nothing_like_it'"):
            go()
        return
    if groups is None:
        with pytest.warns(MeasurementFailedWarning, match="grouped of the NTK failed"):
            ntk = go()
        assert {m.reasons["grouped"] for m in ntk.trajectory} == {"RuntimeError: no luck"}
    else:
        ntk = go()
        assert {m.values["seen"] for m in ntk.trajectory} == {0.0}
    plain, _ = observed(model=linear_model())
    for m in ntk.trajectory:
        np.testing.assert_array_equal(ntk.trajectory.kernel(m.index), plain.trajectory.kernel(m.index))
        assert "class_block[0,1]" in m.values


def test_features_are_what_the_head_sees():
    ntk, models = observed(FeatureKernel())
    with torch.no_grad():
        h = models[12].features(ntk.probes["Exp000"].x).double().numpy()
    last = ntk.trajectory[-1]
    np.testing.assert_allclose(ntk.trajectory.kernel(last.index, "features"), h @ h.T, rtol=1e-5)
    assert 0 < last.values["features.distance_init"] < 1
    assert last.values["features.alignment"] == pytest.approx(ntk.trajectory[-2].values["features.alignment"], abs=0.2)


def test_class_blocks_are_means():
    ntk, _ = observed(ClassBlocks())
    last = ntk.trajectory[-1]
    kernel, y = ntk.trajectory.kernel(last.index).astype(float), ntk.probes["Exp000"].y.numpy()
    assert last.values["class_block[0,1]"] == pytest.approx(kernel[y == 0][:, y == 1].mean())
    assert last.values["class_block[1,1]"] == pytest.approx(kernel[y == 1][:, y == 1].mean())
    same = np.equal.outer(y, y)
    assert last.values["class_block_within"] == pytest.approx(kernel[same].mean())
    assert last.values["class_block_between"] == pytest.approx(kernel[~same].mean())


def test_regression_pairs_each_probe_with_the_held_out_one_of_its_task():
    specs = [ProbeSpec.each_task(size=16), ProbeSpec(size=8, split="test")]
    ntk, _ = observed(KernelRegression(), probe=specs)
    assert "regression_accuracy" in ntk.trajectories["Exp000"][-1].values
    second = ntk.trajectories["Exp001"][-1]
    assert "regression_accuracy" not in second.values
    assert second.reasons["regression_accuracy"] == "there is no held-out probe 'Exp001_test'"


def test_regression_uses_the_held_out_probe():
    specs = [ProbeSpec(size=16), ProbeSpec(size=8, split="test")]
    ntk, models = observed(KernelRegression(), probe=specs)
    at = [m for m in ntk.trajectories["Exp000"] if m.clock.is_boundary]
    assert [("regression_accuracy" in m.values) for m in at] == [True] * 4
    assert at[0].values["regression_accuracy"] == at[0].values["regression_accuracy_init"]
    held_out = ntk.probes["Exp000_test"]
    with torch.no_grad():
        expected = (models[6](held_out.x).argmax(1) == held_out.y).double().mean().item()
    assert at[1].values["network_accuracy_held_out"] == expected
    assert at[1].values["regression_accuracy"] >= 0.75  # two Gaussian blobs, two standard deviations apart and more


# ---------------------------------------------------------------------- the frame


def test_one_that_fails_takes_nothing_with_it():
    class Fails(Observable):
        name = "fails"

        def observe(self, moment):
            raise RuntimeError("no luck")

    ntk = NTKPlugin(ProbeSpec(size=8), Schedule.boundaries_only(), observe=[Fails(), FeatureKernel()])
    with pytest.warns(MeasurementFailedWarning, match="fails of the NTK failed at iteration 0 and training goes on"):
        run(make_strategy(plugins=[ntk]), tiny_stream())
    for m in ntk.trajectory:
        assert m.failure is None
        assert m.reasons["fails"] == "RuntimeError: no luck"
        assert m.values["kernel_norm"] > 0
        assert m.values["features.kernel_norm"] > 0


def test_missing_held_out_probe_is_told():
    ntk = NTKPlugin(ProbeSpec(size=8), Schedule.boundaries_only(), on_error="raise")
    ntk_metrics(ntk, regression=True)
    with pytest.raises(ProbeError) as caught:
        run(make_strategy(plugins=[ntk]), tiny_stream())
    assert str(caught.value) == (
        "kernel regression needs the held-out probe 'Exp000_test'; the plugin has 'Exp000'. Give the plugin that probe "
        "too: NTKPlugin([ProbeSpec(size=64), ProbeSpec(size=64, split='test')])."
    )


def test_requests_are_checked():
    ntk = NTKPlugin(observe=[PerLayer({"a": ["x*"]})])
    ntk.request(PerLayer({"a": ["x*"]}))
    assert len(ntk.observables) == 1
    with pytest.raises(ArgumentError) as caught:
        ntk.request(PerLayer())
    assert str(caught.value) == (
        "per_layer is already measured as {'name': 'per_layer', 'groups': {'a': ['x*']}}; found a second one, "
        "{'name': 'per_layer', 'groups': None}. Give one of them."
    )
    with pytest.raises(ArgumentError) as caught:
        ntk.request("per_layer")
    assert str(caught.value) == (
        "observe takes objects of avalanche_ntk.observables, such as PerLayer(); found 'per_layer'."
    )
    with pytest.raises(ArgumentError) as caught:
        PerLayer({})
    assert str(caught.value) == (
        "groups needs at least one group, such as {'features': ['features.*']}; found none. "
        "Give None for a group of each module."
    )


def test_all_of_them_leave_training_as_it_was():
    from tests.support.lines import differences, fingerprint, seed_everything

    results = []
    for on in (False, True):
        seed_everything()
        specs = [ProbeSpec.each_task(size=8), ProbeSpec(size=8, split="test")]
        everything = [
            PerLayer(),
            FeatureKernel(),
            ClassBlocks(),
            Linearisation(),
            StaticKernelForecast(),
            TaskOverlap(),
            BufferShare(),
        ]
        ntk = NTKPlugin(
            specs, Schedule.every_iterations(1), observe=[*everything, KernelRegression()], on_error="raise"
        )
        strategy = make_strategy(model=MLP(6, 4, width=8, depth=1), plugins=[ntk] if on else [])
        run(strategy, tiny_stream())
        results.append(fingerprint(strategy))
    assert differences(*results) == []


def test_a_reason_that_is_a_sentence_ends_once():
    class Overlap(Observable):
        name = "task_overlap"

        def observe(self, moment):
            raise RuntimeError("There was no luck.")

    ntk = NTKPlugin(ProbeSpec(size=8), Schedule.boundaries_only(), observe=[Overlap()])
    with pytest.warns(MeasurementFailedWarning), pytest.warns(UndefinedMeasureWarning) as caught:
        run(make_strategy(plugins=[ntk], epochs=1), tiny_stream())
    told = [str(w.message) for w in caught if issubclass(w.category, UndefinedMeasureWarning)]
    assert told == [
        "task_overlap of probe 'Exp000' undefined (NaN) at iteration 0: RuntimeError: There was no luck. (Warned once; "
        "every measurement's reasons are in the trajectory.)"
    ]


# ---------------------------------------------------------------------- what observables share


def test_what_several_ask_for_is_computed_once(monkeypatch):
    decomposed, passes = [], []
    ntk = NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(1), on_error="raise", spot_check_every=0)

    def noted(function, calls):
        def call(first, *args, **kwargs):
            calls.append((len(ntk.trajectory), first.tobytes() if isinstance(first, np.ndarray) else function))
            return function(first, *args, **kwargs)

        return call

    def again(*_, **__):
        raise AssertionError("the kernel has its eigenvalues already")

    monkeypatch.setattr(np.linalg, "eigh", noted(np.linalg.eigh, decomposed))
    monkeypatch.setattr("avalanche_ntk.kernels.info.eigvalsh", again)
    monkeypatch.setattr(base, "penultimate_features", noted(base.penultimate_features, passes))
    monkeypatch.setattr(base.Moment, "_outputs", noted(base.Moment._outputs, passes))
    flags = dict.fromkeys(["features", "neurons", "plasticity", "linearisation", "class_blocks", "spectrum"], True)
    metrics = [ntk_metrics(ntk, **flags)]
    make_strategy(MLP(6, 4, width=8, depth=1), plugins=[ntk], metrics=metrics).train(tiny_stream().train_stream[0])
    n = len(ntk.trajectory)
    assert len(decomposed) == len(set(decomposed)) >= 2 * n  # the whole and the features
    assert len(passes) == len(set(passes)) == 2 * n
    for m in ntk.trajectory:
        values = np.linalg.eigvalsh(ntk.trajectory.kernel(m.index).astype(np.float64))
        assert m.trust["max_eigenvalue"] == pytest.approx(values[-1])
        assert m.trust["min_eigenvalue"] == pytest.approx(values[0], abs=1e-6 * values[-1])


def test_the_model_is_put_into_the_state_of_a_measurement_once(monkeypatch):
    entered = []
    original = isolation.preserve_modules

    def noted(model):
        entered.append((len(ntk.trajectory), model))
        return original(model)

    monkeypatch.setattr(isolation, "preserve_modules", noted)
    ntk = NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(1), on_error="raise", spot_check_every=0)
    flags = dict.fromkeys(["features", "neurons", "linearisation", "forecast", "class_blocks", "per_layer"], True)
    strategy = make_strategy(MLP(6, 4, width=8, depth=1), plugins=[ntk], metrics=[ntk_metrics(ntk, **flags)])
    strategy.train(tiny_stream().train_stream[0])
    times = [sum(at == n and model is strategy.model for at, model in entered) for n in range(len(ntk.trajectory))]
    assert times == [2, *[1] * (len(times) - 1)]  # the first time once more: whether it writes into its parameters
