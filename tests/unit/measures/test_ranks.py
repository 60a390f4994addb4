"""Ranks by hand, and what tells one from another."""

import math

import numpy as np
import pytest

from avalanche_ntk.errors import ArgumentError, UndefinedMeasureWarning
from avalanche_ntk.measures import effective_rank, feature_ranks, kernel_norm, kernel_ranks, kernel_trace


def turned(values, seed=0):
    """A kernel with a given spectrum in a random basis."""
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    return q * np.asarray(values) @ q.T


class TestKernel:
    def test_by_hand(self):
        found = kernel_ranks(turned([6.0, 3.0, 1.0, 0.0]), delta=0.1)
        assert found.numerical == 3
        assert found.approximate == 2  # 9 of 10 is all but a tenth
        assert found.participation == pytest.approx(100 / 46)
        p = np.array([0.6, 0.3, 0.1])
        assert found.effective == pytest.approx(math.exp(-np.sum(p * np.log(p))))

    def test_participation_needs_no_eigenvalues(self):
        k = turned([5.0, 2.0, 0.5])
        assert kernel_ranks(k).participation == pytest.approx(kernel_trace(k) ** 2 / kernel_norm(k) ** 2)

    def test_equal_modes_have_every_rank_equal(self):
        found = kernel_ranks(np.eye(7))
        assert (found.numerical, found.approximate) == (7, 7)
        assert found.participation == pytest.approx(7) and found.effective == pytest.approx(7)

    def test_centred(self):
        """A constant is one dimension, and goes when the kernel is centred."""
        assert kernel_ranks(np.eye(4) + 50, centred=True).numerical == 3
        k = turned([4.0, 2.0, 1.0])
        assert kernel_ranks(k, centred=True).effective == pytest.approx(effective_rank(k), rel=1e-12)

    def test_the_precision_is_that_of_the_kernel(self):
        spectrum = [1.0, 1e-3, 1e-9]
        assert kernel_ranks(turned(spectrum)).numerical == 3
        assert kernel_ranks(turned(spectrum).astype(np.float32)).numerical == 2

    def test_undefined(self):
        with pytest.warns(UndefinedMeasureWarning) as caught:
            assert math.isnan(kernel_ranks(np.zeros((3, 3))).numerical)
        assert str(caught[0].message) == (
            "kernel_ranks is undefined (NaN): the kernel has no positive eigenvalue above working precision"
        )
        with pytest.warns(UndefinedMeasureWarning, match="the centred kernel has no positive"):
            assert math.isnan(kernel_ranks(np.ones((3, 3)), centred=True).effective)
        with pytest.raises(ArgumentError, match="delta must be a share between 0 and 1"):
            kernel_ranks(np.eye(2), delta=1.0)


class TestFeatures:
    def test_by_hand(self):
        """σ = 8, 1, 1: squares 64, 1, 1. The first has 64 of 66 of the energy and 8 of 10 of the sum."""
        found = feature_ranks(np.diag([8.0, 1.0, 1.0]), delta=0.1)
        assert (found.numerical, found.approximate, found.srank) == (3, 1, 2)
        assert found.participation == pytest.approx(66**2 / (64**2 + 2))
        p = np.array([0.8, 0.1, 0.1])
        assert found.effective == pytest.approx(math.exp(-np.sum(p * np.log(p))))

    def test_energy_ranks_are_those_of_the_features_kernel(self):
        phi = np.random.default_rng(3).normal(size=(9, 4))
        of_kernel, found = kernel_ranks(phi @ phi.T), feature_ranks(phi)
        assert found.participation == pytest.approx(of_kernel.participation)
        assert (found.numerical, found.approximate) == (of_kernel.numerical, of_kernel.approximate)
        centred = kernel_ranks(phi @ phi.T, centred=True), feature_ranks(phi, centred=True)
        assert centred[0].participation == pytest.approx(centred[1].participation)

    def test_undefined(self):
        with pytest.warns(UndefinedMeasureWarning, match="the features are exactly zero"):
            assert math.isnan(feature_ranks(np.zeros((3, 2))).srank)
        with pytest.warns(UndefinedMeasureWarning, match="nothing is left of the features after centring"):
            assert math.isnan(feature_ranks(np.ones((3, 2)), centred=True).srank)
