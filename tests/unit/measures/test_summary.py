"""All measures of a kernel at once give what the functions give, silently."""

import warnings

import numpy as np
import pytest

from avalanche_ntk import measures
from avalanche_ntk.measures import KernelView, summary

LABELS = np.arange(24) % 4


def kernel(seed, n=24):
    x = np.random.default_rng(seed).normal(size=(n, 40))
    return x @ x.T


def test_numbers_are_those_of_the_functions():
    k, previous, start, init = (kernel(seed) for seed in range(4))
    found = summary(k, LABELS, previous=previous, start=start, init=init, elapsed=5, ranks=(1, 3))
    assert found.reasons == {}
    expected = {
        "kernel_norm": measures.kernel_norm(k),
        "kernel_trace": measures.kernel_trace(k),
        "spectral_norm": measures.spectral_norm(k),
        "effective_rank": measures.effective_rank(k),
        "condition_number": measures.condition_number(k),
        "alignment": measures.kernel_alignment(k, LABELS),
        "eigenvector_alignment_1": measures.eigenvector_alignment(k, LABELS, 1),
        "eigenvector_alignment_3": measures.eigenvector_alignment(k, LABELS, 3),
        "distance_previous": measures.kernel_distance(previous, k),
        "distance_previous_uncentred": measures.kernel_distance(previous, k, centred=False),
        "distance_experience_start": measures.kernel_distance(start, k),
        "distance_experience_start_uncentred": measures.kernel_distance(start, k, centred=False),
        "distance_init": measures.kernel_distance(init, k),
        "distance_init_uncentred": measures.kernel_distance(init, k, centred=False),
        "velocity": measures.kernel_velocity(previous, k, 5),
        "velocity_uncentred": measures.kernel_velocity(previous, k, 5, centred=False),
    }
    # Bit for bit: a trajectory that keeps views and one that recomputes from stored kernels must be the same.
    assert found.values == expected
    views = [KernelView(v) for v in (k, previous, start, init)]
    for _ in range(2):
        again = summary(views[0], LABELS, previous=views[1], start=views[2], init=views[3], elapsed=5, ranks=(1, 3))
        assert again.values == expected
    assert all(type(value) is float for value in found.values.values())


def test_only_what_was_asked_for():
    assert set(summary(kernel(0)).values) == {
        "kernel_norm",
        "kernel_trace",
        "spectral_norm",
        "effective_rank",
        "condition_number",
    }
    assert "velocity" not in summary(kernel(0), previous=kernel(1)).values


@pytest.mark.parametrize("n", [1, 2, 3, 6])
@pytest.mark.parametrize("kind", ["zero", "constant", "nan", "infinite", "huge", "tiny"])
@pytest.mark.parametrize("classes", [1, 2])
def test_degenerate_kernels_give_reasons_and_neither_warnings_nor_errors(n, kind, classes):
    k = {
        "zero": np.zeros((n, n)),
        "constant": np.full((n, n), 0.1),
        "nan": np.full((n, n), np.nan),
        "infinite": np.full((n, n), np.inf),
        "huge": np.diag(np.arange(1.0, n + 1)) * 1e300,
        "tiny": np.diag(np.arange(1.0, n + 1)) * 1e-310,
    }[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = summary(k, np.arange(n) % classes, previous=k, start=k, init=k, elapsed=1)
    assert not set(found.values) & set(found.reasons)
    assert len(found.values) + len(found.reasons) == 5 + 4 + 6 + 2
    assert all(np.isfinite(value) for value in found.values.values())
    undefined = set(found.reasons)
    if kind in ("nan", "infinite"):
        assert found.values == {}
    if kind in ("zero", "constant") or n <= 2:
        assert {"distance_previous", "velocity", "alignment"} <= undefined
    if kind in ("zero", "constant") or n == 1:
        assert "effective_rank" in undefined
    if kind == "zero" or n == 1:
        assert "distance_previous_uncentred" in undefined
    if min(classes, n) == 1:
        assert {"alignment", "eigenvector_alignment_1"} <= undefined
    if kind in ("huge", "tiny") and n == 6:
        assert found.values["distance_previous"] == 0.0
        assert found.values["condition_number"] == pytest.approx(6.0, rel=1e-9)


def test_a_reason():
    found = summary(np.eye(3), [0, 0, 0], previous=np.zeros((3, 3)))
    assert found.reasons["alignment"] == "all samples have the same label"
    assert found.reasons["distance_previous"] == "the first kernel is exactly zero, as for a dead network"
    assert found.reasons["eigenvector_alignment_5"] == "all samples have the same label"


def test_a_kernel_is_decomposed_once(monkeypatch):
    calls = []
    original = np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda k: calls.append(k.shape) or original(k))
    view, previous = KernelView(kernel(0)), KernelView(kernel(1))
    summary(view, LABELS, previous=previous, start=previous, init=previous, elapsed=1)
    measures.eigenspace_rotation(view, view, 3)
    measures.mode_response(view, np.ones(24))
    assert calls == [(24, 24)]
