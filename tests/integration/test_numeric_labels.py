"""Probes with numeric targets: what is defined is measured, what needs classes says why it is absent, everywhere."""

import numpy as np
import pytest
import torch
from torch import nn

from avalanche_ntk import NTKPlugin, Probe, Schedule, ntk_metrics
from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.measures import kernel_regression
from avalanche_ntk.observables import ClassBlocks, KernelRegression, StaticKernelForecast
from avalanche_ntk.recorder.runfolder import RunFolder
from avalanche_ntk.recorder.trajectory import Trajectory
from avalanche_ntk.report import images, write_report
from tests.support.lines import make_strategy, run, tiny_stream

NO_CLASSES = "the labels are numeric targets, not classes"
pytestmark = pytest.mark.filterwarnings("ignore:.*undefined.*numeric targets:UserWarning")


def targets(n, columns, seed=0):
    return torch.randn(n, columns, generator=torch.Generator().manual_seed(seed))


def watched(folder=None, columns=3, **arguments):
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(1))
    probes = [
        Probe.from_tensors(x[:8], targets(8, columns), name="first"),
        Probe.from_tensors(x[8:], targets(4, columns, 1), name="first_test"),
    ]
    ntk = NTKPlugin(
        probes,
        Schedule.every_iterations(1),
        run_folder=folder,
        observe=[ClassBlocks(), KernelRegression(), StaticKernelForecast(size=8)],
        on_error="raise",
        **arguments,
    )
    metrics = [ntk_metrics(ntk, class_blocks=True, regression=True, forecast=True, kernel_image=True)]
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    strategy = make_strategy(model=model, plugins=[ntk], metrics=metrics, epochs=1)
    strategy.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run(strategy, tiny_stream())
    return ntk


def centred(kernel):
    h = np.eye(len(kernel)) - 1 / len(kernel)
    return h @ kernel.astype(np.float64) @ h


def test_what_is_defined_is_measured():
    ntk = watched()
    trajectory, y = ntk.trajectories["first"], ntk.probes["first"].y.numpy()
    assert trajectory.labels.dtype == np.float64
    np.testing.assert_array_equal(trajectory.labels, targets(8, 3).double().numpy())
    yc = y - y.mean(0)
    for m in trajectory:
        kernel = trajectory.kernel(m.index)
        k, t = centred(kernel), centred(y @ y.T)
        cka = (k * t).sum() / np.linalg.norm(k) / np.linalg.norm(t)
        assert m.values["alignment"] == pytest.approx(cka, rel=1e-6)
        leading = np.linalg.eigh(kernel.astype(np.float64))[1][:, -1]
        expected = ((leading @ yc) ** 2).sum() / (yc**2).sum()
        assert m.values["eigenvector_alignment_1"] == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_what_needs_classes_says_why_it_is_absent():
    ntk = watched()
    boundary = next(m for m in ntk.trajectories["first"] if m.clock.event == "experience_start")
    absent = ["class_block_within", "class_block_between", "regression_accuracy", "network_accuracy_held_out"]
    for column in absent:
        assert boundary.reasons[column] == NO_CLASSES
        assert column not in boundary.values
    assert boundary.values["regression_loss"] > 0
    last = ntk.trajectories["first"][-2]
    assert last.clock.experience == 1
    assert last.values["forecast_error"] > 0  # it needs the new task's labels only, and these are classes
    assert last.reasons["forecast_accuracy"] == last.reasons["network_accuracy_probe"] == NO_CLASSES


@pytest.mark.parametrize("columns", [1, 3])
def test_the_run_folder_and_the_report(tmp_path, columns):
    ntk = watched(tmp_path / "run", columns)
    stored = RunFolder.open(tmp_path / "run").meta["probes"][0]["labels"]
    assert stored == targets(8, columns).double().tolist()
    read = Trajectory.load(tmp_path / "run")
    np.testing.assert_array_equal(read.labels, ntk.trajectories["first"].labels)
    assert read.to_xarray()["label"].dims == ("sample", "target")
    written = write_report([tmp_path / "run"], tmp_path / "report")
    page = written.page.read_text(encoding="utf-8")
    assert "no usable labels" not in page
    assert ("samples sorted by their target" if columns == 1 else "samples in the probe's order") in page.replace(
        "&#x27;", "'"
    )


@pytest.mark.parametrize(
    ("labels", "axis", "ticks"),
    [
        ([1, 0, 1, 0], "class", ["0", "1"]),
        (np.array([0.3, 0.1, 0.2, 0.0]), "sample, by target", None),
        (targets(4, 2).numpy(), "sample", None),
    ],
)
def test_the_picture_of_a_kernel(labels, axis, ticks):
    kernel = np.diag([4.0, 3.0, 2.0, 1.0]) + 0.5
    figure = images.kernel_figure(kernel, labels, "a kernel")
    drawn = figure.axes[0]
    assert drawn.get_xlabel() == drawn.get_ylabel() == axis
    if ticks:
        assert [t.get_text() for t in drawn.get_xticklabels()] == ticks
    order = {"class": [1, 3, 0, 2], "sample, by target": [3, 1, 2, 0], "sample": [0, 1, 2, 3]}[axis]
    norms = np.sqrt(np.diag(kernel))
    cosines = (kernel / np.outer(norms, norms))[np.ix_(order, order)]
    np.testing.assert_allclose(drawn.images[0].get_array(), cosines)


def test_verdicts_compare_targets():
    a, b, c = watched(), watched(), watched(columns=1)
    assert set(a.trajectory.verdicts(b.trajectory)) == {1}
    with pytest.raises(ArgumentError) as caught:
        a.trajectory.verdicts(c.trajectory)
    assert str(caught.value) == (
        "a control watches a probe of the same numeric targets: expected other numbers of shape (8, 3), found other "
        "numbers of shape (8, 1). Train the control on the same first task."
    )


def test_regression_of_numeric_targets_is_scikit_learns():
    from sklearn.kernel_ridge import KernelRidge

    rng = np.random.default_rng(0)
    x, x_test = rng.normal(size=(20, 6)), rng.normal(size=(7, 6))
    y, y_test = rng.normal(size=(20, 2)), rng.normal(size=(7, 2))
    k = x @ x.T
    scale = np.trace(k) / 20
    found = kernel_regression(k, y, x_test @ x.T, y_test, ridges=[0.3])
    published = KernelRidge(alpha=0.3 * scale, kernel="precomputed").fit(k, y - y.mean(0))
    predicted = published.predict(x_test @ x.T) + y.mean(0)
    assert found.loss == pytest.approx(np.mean(np.sum((predicted - y_test) ** 2, axis=1)), rel=1e-9)
    assert np.isnan(found.accuracy)
    one = kernel_regression(k, y[:, 0], x_test @ x.T, y_test[:, 0], ridges=[0.3])
    assert one.loss == pytest.approx(np.mean((predicted[:, 0] - y_test[:, 0]) ** 2), rel=1e-9)


def test_regression_refuses_labels_of_two_kinds():
    with pytest.raises(ArgumentError) as caught:
        kernel_regression(np.eye(4), [0, 1, 0, 1], np.eye(4), np.ones((4, 2)))
    assert str(caught.value) == (
        "labels and labels_test must both be classes or both be numeric targets, found one of each. Pass the same kind "
        "of labels for both."
    )
    with pytest.raises(ArgumentError) as caught:
        kernel_regression(np.eye(4), np.ones((4, 3)), np.eye(4), np.ones((4, 2)))
    assert str(caught.value) == (
        "labels and labels_test must have the same number of targets per sample, found 3 and 2. Pass the same targets "
        "for both."
    )
