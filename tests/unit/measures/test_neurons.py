"""Units: similarity by hand and against numpy's correlation, periods of waves that are known."""

import math
import warnings

import numpy as np
import pytest

from avalanche_ntk.errors import ArgumentError, UndefinedMeasureWarning
from avalanche_ntk.measures import neuron_periodicity, neuron_similarity, tuning_similarity

RNG = np.random.default_rng(0)


def test_similarity_by_hand():
    # Columns (1, 0), (1, 1), (0, −2): |cos| = 1/√2, 0, 1/√2.
    found = neuron_similarity([[1.0, 1.0, 0.0], [0.0, 1.0, -2.0]])
    assert found.mean == pytest.approx(math.sqrt(2) / 3, rel=1e-14)
    assert found.max == pytest.approx(math.sqrt(0.5), rel=1e-14)
    assert found.silent == 0


def test_centred_similarity_is_the_absolute_correlation():
    h = RNG.normal(size=(30, 5)) + 3
    pairs = np.abs(np.corrcoef(h.T))[np.triu_indices(5, k=1)]
    found = neuron_similarity(h, centred=True)
    assert found.mean == pytest.approx(pairs.mean(), rel=1e-12)
    assert found.max == pytest.approx(pairs.max(), rel=1e-12)


@pytest.mark.parametrize("centred", [False, True])
def test_similarity_knows_no_gain_sign_or_order(centred):
    h = RNG.normal(size=(20, 6))
    base = neuron_similarity(h, centred=centred)
    gains = np.array([1e-200, 1e200, -3.0, 0.5, 2.0, -1.0])
    changed = (h * gains)[RNG.permutation(20)][:, RNG.permutation(6)]
    found = neuron_similarity(changed, centred=centred)
    assert found.mean == pytest.approx(base.mean, rel=1e-12)
    assert found.max == pytest.approx(base.max, rel=1e-12)


def test_units_without_a_direction_are_left_out():
    h = np.array([[1.0, 0.0, 2.0, 5.0], [2.0, 0.0, 4.0, 5.0], [4.0, 0.0, 8.0, 5.0]])
    found = neuron_similarity(h[:, [0, 1, 2]])
    assert (found.mean, found.silent) == (pytest.approx(1.0), 1)
    # The constant unit has a direction until its mean is taken away.
    assert neuron_similarity(h).silent == 1
    assert neuron_similarity(h, centred=True).silent == 2


def test_tuning_by_hand():
    before = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    now = np.array([[2.0, -1.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    # cos = 1, −1; the third has died and is left out.
    assert tuning_similarity(now, before) == pytest.approx(0.0, abs=1e-15)
    assert tuning_similarity(before, before) == pytest.approx(1.0, rel=1e-15)
    h = RNG.normal(size=(12, 4))
    expected = np.mean([np.corrcoef(h[:, i], h[:, i] ** 3)[0, 1] for i in range(4)])
    assert tuning_similarity(h + 7, h**3, centred=True) == pytest.approx(expected, rel=1e-12)


def test_units_that_exchange_roles_keep_the_kernel_and_not_their_tuning():
    h = np.eye(4)
    swapped = h[:, [1, 0, 3, 2]]
    assert np.array_equal(h @ h.T, swapped @ swapped.T)
    assert tuning_similarity(swapped, h) == 0.0


def test_periods_of_waves():
    t = np.arange(24)
    waves = np.stack(
        [
            np.cos(2 * np.pi * t / 6 + 1.0) + 40,
            (-1.0) ** t,
            t.astype(float),
            np.full(24, 3.0),
            2 * np.cos(2 * np.pi * t / 8) + np.cos(2 * np.pi * t / 3),
        ],
        axis=1,
    )
    found = neuron_periodicity(waves)
    assert found.period[[0, 1, 2, 4]].tolist() == [6.0, 2.0, 24.0, 8.0]
    assert math.isnan(found.period[3]) and math.isnan(found.share[3]) and found.flat == 1
    # Amplitudes 2 and 1 carry variances 2 and 1/2; a ramp has Σ t̃² = N(N² − 1)/12 and |H_1| = N / (2 sin(π/N)).
    ramp = 2 * (24 / (2 * math.sin(math.pi / 24))) ** 2 / 24 / (24 * (24**2 - 1) / 12)
    assert found.share[[0, 1, 2, 4]] == pytest.approx([1.0, 1.0, ramp, 0.8], rel=1e-12)
    # The trend is none of the three, though most of its power is at one frequency.
    assert ramp > 0.5 and found.fraction == 3 / 5
    assert neuron_periodicity(waves, threshold=0.8).fraction == 3 / 5
    assert neuron_periodicity(waves, threshold=0.9).fraction == 2 / 5


@pytest.mark.parametrize("n", [4, 7, 16, 25])
def test_the_share_is_the_variance_that_a_fitted_wave_explains(n):
    h = RNG.normal(size=n) + 5
    found = neuron_periodicity(h[:, None])
    t, angle = np.arange(n), 2 * np.pi / found.period[0]
    basis = np.stack([np.ones(n), np.cos(angle * t), np.sin(angle * t)], axis=1)
    fitted = basis @ np.linalg.lstsq(basis, h, rcond=None)[0]
    assert found.share[0] == pytest.approx(np.var(fitted) / np.var(h), rel=1e-10)
    # No other frequency of the sweep explains more.
    assert found.share[0] >= 1 / (n // 2)


def test_flat_is_flat_to_the_precision_of_the_activations():
    h = np.full((8, 2), 0.1, dtype=np.float32)
    h[::2, 0] = np.nextafter(np.float32(0.1), np.float32(1))
    h[0, 1] = 0.2
    assert neuron_periodicity(h).flat == 1
    assert neuron_similarity(np.hstack([h, h[:, [1]]]), centred=True).silent == 1


def told(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = call()
    assert [w.category for w in caught] == [UndefinedMeasureWarning]
    return value, str(caught[0].message)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            lambda: neuron_similarity([[1.0, 0.0], [2.0, 0.0]]).max,
            "neuron_similarity is undefined (NaN): 1 of 2 units has a direction, and a pair needs two",
        ),
        (
            lambda: neuron_similarity([[1.0, 2.0]]).mean,
            "neuron_similarity is undefined (NaN): below 2 samples every unit has the same direction, found N=1",
        ),
        (
            lambda: neuron_similarity([[1.0, 2.0], [2.0, 1.0]], centred=True).mean,
            "neuron_similarity is undefined (NaN): below 3 samples every centred unit has the same direction, found"
            " N=2",
        ),
        (
            lambda: tuning_similarity([[0.0], [0.0]], [[1.0], [0.0]]),
            "tuning_similarity is undefined (NaN): no unit has a direction both now and before",
        ),
        (
            lambda: tuning_similarity([[math.nan], [0.0]], [[1.0], [0.0]]),
            "tuning_similarity is undefined (NaN): the activations have 1 non-finite entries of 2",
        ),
        (
            lambda: neuron_periodicity(np.ones((5, 2))).fraction,
            "neuron_periodicity is undefined (NaN): every unit is flat over the probe",
        ),
        (
            lambda: neuron_periodicity(np.eye(3)).fraction,
            "neuron_periodicity is undefined (NaN): a period needs at least four samples in order, found N=3",
        ),
    ],
)
def test_undefined(call, expected):
    value, message = told(call)
    assert math.isnan(value)
    assert message == expected


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            lambda: neuron_similarity([1.0, 2.0]),
            "neuron_similarity needs activations of shape (N, D), N samples and D units, found (2,). Flatten each "
            "sample's activations into one row.",
        ),
        (
            lambda: tuning_similarity(np.eye(3), np.eye(3)[:, :2]),
            "tuning_similarity compares the same units on the same samples, found shapes (3, 3) and (3, 2). Pass"
            " activations of one layer on one probe.",
        ),
        (
            lambda: neuron_periodicity(np.eye(4), threshold=0.0),
            "threshold must lie in (0, 1], found 0.0. Use 0.5, for example.",
        ),
    ],
)
def test_messages(call, expected):
    with pytest.raises(ArgumentError) as error:
        call()
    assert str(error.value) == expected
