"""The forecast of forgetting, beside linear models that are really trained."""

import math

import numpy as np
import pytest
from scipy.linalg import expm
from scipy.stats import spearmanr

from avalanche_ntk.errors import ArgumentError, UndefinedMeasureWarning
from avalanche_ntk.measures import forecast_error, forgetting_forecast, mode_share, rank_correlation


@pytest.fixture
def linear():
    """Features of 5 old and 4 new samples, first weights of 3 outputs, new targets."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(5, 7)), rng.normal(size=(4, 7)), rng.normal(size=(7, 3)), rng.normal(size=(4, 3))


def trained(new, w, y, steps, size):
    for _ in range(steps):
        w = w - size / len(new) * new.T @ (new @ w - y)
    return w


class TestForgettingForecast:
    def test_steps_are_those_of_a_linear_model_that_is_trained(self, linear):
        old, new, w, y = linear
        change = old @ (trained(new, w, y, 37, 0.1) - w)
        forecast = forgetting_forecast(old @ new.T, new @ new.T, y - new @ w, steps=37, step_size=0.1, samples=4)
        np.testing.assert_allclose(forecast, change, atol=1e-12)

    def test_the_full_kernel_says_the_same_as_one_column_an_output(self, linear):
        old, new, w, y = linear
        residual = y - new @ w
        columns = forgetting_forecast(old @ new.T, new @ new.T, residual, steps=5, step_size=0.1)
        full = [np.kron(k, np.eye(3)) for k in (old @ new.T, new @ new.T)]
        flat = forgetting_forecast(*full, residual.ravel(), steps=5, step_size=0.1)
        np.testing.assert_allclose(flat.reshape(5, 3), columns, atol=1e-12)

    def test_the_limit_is_the_nearest_weights_that_fit(self, linear):
        old, new, w, y = linear
        fitted = w + np.linalg.lstsq(new, y - new @ w, rcond=None)[0]
        forecast = forgetting_forecast(old @ new.T, new @ new.T, y - new @ w)
        np.testing.assert_allclose(forecast, old @ (fitted - w), atol=1e-10)

    def test_flow_by_the_matrix_exponential(self, linear):
        old, new, w, y = linear
        own, time = new @ new.T, 0.3 * 11 / 4
        expected = old @ new.T @ np.linalg.solve(own, (np.eye(4) - expm(-own * time)) @ (y - new @ w))
        found = forgetting_forecast(old @ new.T, own, y - new @ w, steps=11, step_size=0.3, samples=4, flow=True)
        np.testing.assert_allclose(found, expected, atol=1e-11)

    @pytest.mark.parametrize("flow", [False, True])
    def test_samples_seen_twice_leave_nothing_undefined(self, linear, flow):
        """Twice the sample is once the sample with twice the weight, though the kernel has no inverse."""
        old, new, w, y = linear
        twice = np.concatenate([new, new])
        residual = y - new @ w
        once = forgetting_forecast(old @ new.T, new @ new.T, residual, steps=6, step_size=0.2, samples=4, flow=flow)
        both = forgetting_forecast(
            old @ twice.T, twice @ twice.T, np.tile(residual, (2, 1)), steps=6, step_size=0.2, samples=8, flow=flow
        )
        np.testing.assert_allclose(both, once, atol=1e-12)
        limits = [
            forgetting_forecast(old @ a.T, a @ a.T, r) for a, r in ((new, residual), (twice, np.tile(residual, (2, 1))))
        ]
        np.testing.assert_allclose(*limits, atol=1e-10)

    def test_steps_beyond_the_stability_limit_alternate_as_descent_does(self):
        # One sample, λ = 1, η = 1.5: the residual 1 is followed by −1/2, 1/4, …: 1.5, 0.75 is learnt.
        assert forgetting_forecast([[1.0]], [[1.0]], [1.0], steps=1, step_size=1.5)[0] == pytest.approx(1.5)
        assert forgetting_forecast([[1.0]], [[1.0]], [1.0], steps=2, step_size=1.5)[0] == pytest.approx(0.75)

    def test_divergence_is_undefined(self):
        with pytest.warns(UndefinedMeasureWarning) as caught:
            found = forgetting_forecast([[1.0]], [[1.0]], [1.0], steps=5000, step_size=4.0)
        assert np.isnan(found).all()
        assert str(caught[0].message) == (
            "forgetting_forecast is undefined (NaN): 5000 steps of size 4.0 diverge: they must be below 2n/λ_max"
        )

    def test_a_tiny_rate_does_not_cancel(self):
        found = forgetting_forecast([[1.0]], [[1e-12]], [1.0], steps=2, step_size=1e-6)[0]
        assert found == pytest.approx(2e-6, rel=1e-12)

    def test_refused(self):
        with pytest.raises(ArgumentError) as error:
            forgetting_forecast(np.zeros((2, 3)), np.eye(2), [1.0, 1.0])
        assert str(error.value) == (
            "forgetting_forecast needs Θ(X_old, X_new) of shape (R, 2) and a residual of shape (2,) or (2, C) "
            "beside a Θ(X_new, X_new) of shape (2, 2), found (2, 3) and (2,). Pass full kernels as matrices "
            "(as_matrix)."
        )
        with pytest.raises(ArgumentError, match="steps and step_size belong together"):
            forgetting_forecast(np.eye(2), np.eye(2), [1.0, 1.0], steps=3)
        with pytest.raises(ArgumentError, match="samples above 0"):
            forgetting_forecast(np.eye(2), np.eye(2), [1.0, 1.0], samples=0)


class TestModeShare:
    def test_by_hand(self):
        # Eigenvectors (1, 1)/√2 and (1, −1)/√2 with eigenvalues 3 and 1; Δ = (1, 0) lies half in each.
        assert mode_share([[2.0, 1.0], [1.0, 2.0]], [1.0, 0.0], 1) == pytest.approx(0.5)
        assert mode_share([[2.0, 1.0], [1.0, 2.0]], [[1.0, 2.0], [1.0, 2.0]], 1) == pytest.approx(1.0)

    def test_undefined(self):
        with pytest.warns(UndefinedMeasureWarning, match="nothing has changed"):
            assert math.isnan(mode_share(np.eye(3), np.zeros(3), 1))
        with pytest.warns(UndefinedMeasureWarning, match="span the whole space"):
            assert math.isnan(mode_share(np.eye(3), np.ones(3), 3))


def test_forecast_error():
    assert forecast_error([0.0, 0.0], [3.0, 4.0]) == 1.0
    assert forecast_error([[3.0, 4.0]], [[3.0, 4.0]]) == 0.0
    with pytest.warns(UndefinedMeasureWarning, match="nothing has changed"):
        assert math.isnan(forecast_error([1.0], [0.0]))


class TestRankCorrelation:
    @pytest.mark.parametrize("seed", range(5))
    def test_as_scipy_has_it_with_ties(self, seed):
        rng = np.random.default_rng(seed)
        a, b = rng.integers(0, 4, 12).astype(float), rng.normal(size=12)
        assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-14)

    def test_undefined(self):
        with pytest.warns(UndefinedMeasureWarning, match="a series is constant"):
            assert math.isnan(rank_correlation([1.0, 1.0], [1.0, 2.0]))
