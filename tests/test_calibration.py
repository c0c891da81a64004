"""Calibration: what holds of all quantiles. Coverage is in `laws/test_experts.py`."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_forecaster.calibration import Calibration, Mixture
from stream_forecaster.keys import KeyTable
from stream_forecaster.negative_binomial import NegativeBinomial, places

LEVELS = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)
_K, _G = 3, 2

_residuals = st.lists(
    st.tuples(
        st.integers(0, _G - 1),
        st.dictionaries(st.integers(0, _K - 1), st.floats(-1e9, 1e9), max_size=_K),
    ),
    max_size=25,
)
Residuals = list[tuple[int, dict[int, float]]]


def _calibration(*, is_count: bool) -> Calibration:
    table = KeyTable()
    table.intern([b"%d" % i for i in range(_K)], np.zeros(_K, np.int64))
    return Calibration(table, "p", LEVELS, _G, is_count=is_count)


def _taught(residuals: Residuals, *, is_count: bool) -> Calibration:
    calibration = _calibration(is_count=is_count)
    for bucket, by_slot in residuals:
        slots = np.array(sorted(by_slot), np.int64)
        values = np.array([by_slot[slot] for slot in sorted(by_slot)])
        calibration.learn(bucket, slots, values, np.ones(len(slots)))
    return calibration


@given(residuals=_residuals, is_count=st.booleans(), path=st.floats(0, 1e9))
def test_quantiles_ascend_and_are_finite(
    residuals: Residuals, path: float, *, is_count: bool
) -> None:
    """Whatever landed, for every key and horizon; counts are not negative."""
    calibration = _taught(residuals, is_count=is_count)
    paths = np.full((_K, _G), path)
    size = calibration.expected_error(np.s_[:], paths, np.full(_K, 2.0), np.arange(_G))
    quantiles = calibration.quantiles(paths, size, np.arange(_G))
    assert quantiles.shape == (_K, _G, len(LEVELS))
    assert np.isfinite(quantiles).all()
    assert (np.diff(quantiles, axis=2) >= 0).all()
    assert not is_count or (quantiles >= 0).all()


def test_it_begins_as_a_normal_distribution() -> None:
    """Of mean absolute error one unit, around the path."""
    calibration = _calibration(is_count=False)
    path, bucket = np.array([[10.0]]), np.array([0])
    size = calibration.expected_error(np.s_[:1], path, np.array([2.0]), bucket)
    quantiles = calibration.quantiles(path, size, bucket)[0, 0]
    # of a normal distribution whose mean absolute value is 2
    sigma = 2 * np.sqrt(np.pi / 2)
    np.testing.assert_allclose(
        quantiles,
        10 + sigma * np.array([-1.959964, -1.281552, -0.674490, 0.0, 0.674490, 1.281552, 1.959964]),
        rtol=1e-6,
    )


@pytest.mark.parametrize("mean", [3.0, 30.0, 4_000.0])
def test_before_anything_has_landed_counts_vary_as_counts_do(mean: float) -> None:
    """Small ones as a Poisson variable, large ones by a seventh, as one day from another."""
    calibration, rng = _calibration(is_count=True), np.random.default_rng(0)
    path, bucket = np.array([[mean]]), np.array([0])
    size = calibration.expected_error(np.s_[:1], path, np.ones(1), bucket)
    low, high = np.rint(calibration.quantiles(path, size, bucket)[0, 0, [1, 5]])
    truth = rng.poisson(mean * rng.gamma(50, 1 / 50, 10_000))
    assert 0.78 <= np.mean((low <= truth) & (truth <= high)) <= 0.97


@pytest.mark.parametrize("path", [0.0, 0.5, 100.0])
def test_a_count_is_as_wide_as_its_level_makes_it(path: float) -> None:
    """Whatever its spread so far."""
    calibration = _calibration(is_count=True)
    paths = np.array([[path]])
    narrow, wide = (calibration.unit(paths, np.array([[spread]])) for spread in (0.1, 9.0))
    assert narrow == wide
    assert narrow[0, 0] == pytest.approx(np.sqrt(path + 0.02 * path**2), abs=0.25)


def test_a_keys_own_errors_make_its_intervals() -> None:
    """A noisy key's are wide and a quiet one's narrow; a newcomer's are everyone's."""
    calibration, rng = _calibration(is_count=False), np.random.default_rng(0)
    for _ in range(300):
        residual = rng.normal(0, [1.0, 10.0])
        calibration.learn(0, np.array([0, 1]), residual, np.ones(2))
    quiet, noisy, newcomer = calibration.expected_error(
        np.s_[:], np.zeros((3, 1)), np.ones(3), np.array([0])
    )[:, 0]
    assert 3 < noisy / quiet <= 10
    assert quiet < newcomer < noisy


def test_horizons_are_calibrated_apart() -> None:
    """What lands far ahead widens the far intervals only."""
    calibration = _calibration(is_count=False)
    before = calibration.expected_error(np.s_[:], np.zeros((3, 2)), np.ones(3), np.arange(2))
    for sign in (1.0, -1.0) * 20:
        calibration.learn(1, np.arange(3), np.full(3, 50.0 * sign), np.ones(3))
    after = calibration.expected_error(np.s_[:], np.zeros((3, 2)), np.ones(3), np.arange(2))
    assert (after[:, 0] == before[:, 0]).all()
    assert (after[:, 1] > 5 * before[:, 1]).all()


def test_one_burst_does_not_blow_up_the_widths() -> None:
    """A residual counts for at most a hundred units."""
    calibration = _calibration(is_count=False)
    calibration.learn(0, np.array([0]), np.array([1e12]), np.ones(1))
    error = calibration.expected_error(np.s_[:1], np.zeros((1, 1)), np.ones(1), np.array([0]))
    assert error[0, 0] <= 100


@given(residuals=_residuals)
def test_a_restored_calibration_says_the_same(residuals: Residuals) -> None:
    """Given the key table that the checkpoint holds beside it."""
    calibration, restored = _taught(residuals, is_count=False), _calibration(is_count=False)
    restored._table.restore(calibration._table.arrays())
    restored.restore(calibration.arrays())
    asked = np.s_[:], np.ones((_K, _G)), np.ones(_K), np.arange(_G)
    size = calibration.expected_error(*asked)
    np.testing.assert_array_equal(restored.expected_error(*asked), size)
    again, said = (
        each.quantiles(np.ones((_K, _G)), size, np.arange(_G)) for each in (restored, calibration)
    )
    np.testing.assert_array_equal(again, said)


_LEVELS = (0.1, 0.5, 0.9)
_FIRST = np.array([0])


def _mixture(*, is_count: bool, members: int = 2) -> Mixture:
    table = KeyTable()
    table.intern([b"a"], np.zeros(1, np.int64))
    return Mixture(table, "x", _LEVELS, 1, prior=[1.0] * members, is_count=is_count)


@pytest.mark.parametrize("is_count", [False, True])
def test_the_mixture_follows_whoever_has_the_smaller_losses(is_count: bool) -> None:  # noqa: FBT001  (pytest names it)
    """Quantiles that are right win against those that are far off."""
    mixture, rng = _mixture(is_count=is_count), np.random.default_rng(0)
    right, wrong = np.array([[8.0, 10.0, 12.0]]), np.array([[28.0, 30.0, 32.0]])
    for _ in range(100):
        truth = rng.normal(10, 1.5, 1)
        mixture.learn(0, _FIRST, truth, (wrong, right), (right, np.ones(1)))
    said = mixture.quantiles(_FIRST, [wrong[None], right[None]], np.ones((1, 1)), _FIRST)
    np.testing.assert_allclose(said[0, 0], right[0], atol=1.0)


def test_quantiles_of_counts_are_whole_numbers() -> None:
    """Rounded once they are mixed."""
    members = [np.array([[[0.2, 0.6, 1.4]]]), np.array([[[0.0, 0.5, 2.2]]])]
    said = _mixture(is_count=True).quantiles(_FIRST, members, np.ones((1, 1)), _FIRST)
    assert said.tolist() == [[[0.0, 1.0, 2.0]]]


def test_the_first_member_stands_in_for_those_that_are_silent() -> None:
    """NaN is no opinion: when it is said, and when it is judged."""
    tracked, silent = np.array([[[-1.0, 0.0, 1.0]]]), np.full((1, 1, 3), np.nan)
    alone, both = _mixture(is_count=False, members=1), _mixture(is_count=False)
    for mixture, members in ((alone, [tracked]), (both, [tracked, silent])):
        said = mixture.quantiles(_FIRST, members, np.ones((1, 1)), _FIRST)
        np.testing.assert_allclose(said, tracked)
        landed = [member[0] for member in members]
        mixture.learn(0, _FIRST, np.array([5.0]), landed, (said[0], np.ones(1)))
    np.testing.assert_array_equal(both._weights.weights(_FIRST), 0.5)


def test_too_narrow_a_mixture_of_real_values_is_widened() -> None:
    """Until its intervals hold what they say; a restored one goes on alike."""
    mixture, rng = _mixture(is_count=False), np.random.default_rng(0)
    narrow, inside = np.array([[-0.3, 0.0, 0.3]]), []
    for i in range(3000):
        truth = rng.normal(0, 1, 1)
        said = mixture.quantiles(_FIRST, [narrow[None]] * 2, np.ones((1, 1)), _FIRST)[0, 0]
        assert (np.diff(said) >= 0).all()
        if i >= 1000:
            inside.append(said[0] <= truth[0] <= said[2])
        mixture.learn(0, _FIRST, truth, (narrow, narrow), (said[None], np.ones(1)))
    assert 0.77 < np.mean(inside) < 0.83
    restored = _mixture(is_count=False)
    restored.restore(mixture.arrays())
    again = restored.quantiles(_FIRST, [narrow[None]] * 2, np.ones((1, 1)), _FIRST)
    np.testing.assert_array_equal(
        again, mixture.quantiles(_FIRST, [narrow[None]] * 2, np.ones((1, 1)), _FIRST)
    )


def test_the_shift_goes_by_what_was_published() -> None:
    """What would be said today, knowing errors of the same time, is not what has to hold."""
    mixture, rng = _mixture(is_count=False), np.random.default_rng(0)
    today, published = np.array([[-1.3, 0.0, 1.3]]), np.array([[-0.3, 0.0, 0.3]])
    for _ in range(200):
        mixture.learn(0, _FIRST, rng.normal(0, 1, 1), (today, today), (published, np.ones(1)))
    said = mixture.quantiles(_FIRST, [today[None]] * 2, np.ones((1, 1)), _FIRST)[0, 0]
    assert said[0] < -1.6
    assert said[2] > 1.6


@given(seed=st.integers(0, 2**16), has_network=st.booleans())
def test_counts_are_judged_by_what_the_members_say(seed: int, *, has_network: bool) -> None:
    """The same bits as judging their quantiles, also where a mean is too large for the table."""
    rng, keys, levels, buckets = np.random.default_rng(seed), 5, (0.1, 0.5, 0.9), 3
    table = KeyTable()
    table.intern([b"%d" % key for key in range(keys)], np.zeros(keys, np.int64))
    calibration = Calibration(table, "x", levels, buckets, is_count=True)
    counts = NegativeBinomial(levels, buckets)
    one, other = (
        Mixture(table, name, levels, buckets, prior=[1.0] * (2 + has_network), is_count=True)
        for name in ("one", "other")
    )
    for _ in range(4):
        bucket, slots = int(rng.integers(buckets)), np.flatnonzero(rng.random(keys) < 0.7)
        mean = rng.choice([0.0, 0.3, 5.0, 63.9, 64.1, 500.0], len(slots))
        truth, size = rng.poisson(mean).astype(np.float64), rng.uniform(0.1, 5.0, len(slots))
        path, buckets_of = mean[:, None], np.array([bucket])
        tracked = calibration.quantiles(path, size[:, None], buckets_of)[:, 0]
        members = [tracked, counts.quantiles(path, buckets_of)[:, 0]]
        outside = np.sort(rng.normal(mean[:, None], 1.0, (len(slots), 3)))
        outside[rng.random(len(slots)) < 0.3] = np.nan
        heard = outside if has_network else np.empty((0, 0))
        one.learn(bucket, slots, truth, members + [outside] * has_network, (tracked, size))
        shapes = calibration.shape, places(mean), counts.tables, heard
        other.learn_counts(bucket, slots, truth, (mean, size), shapes)
        unit = calibration.unit(mean, size)
        calibration.learn(bucket, slots, truth - mean, unit)
        counts.learn(bucket, mean, truth)
        counts.settle(0)
    np.testing.assert_array_equal(one._weights.weights(np.s_[:]), other._weights.weights(np.s_[:]))


@given(residuals=_residuals)
def test_shapes_and_widths_move_as_arrays_would(residuals: Residuals) -> None:
    """Bit for bit: all residuals of a landing are judged by the shape before it."""
    calibration = _calibration(is_count=False)
    shape, everyone = calibration.shape.copy(), np.zeros((_G, 2))
    own, levels = np.zeros((_K, _G, 2), np.float32), calibration._levels
    for bucket, by_slot in residuals:
        slots = np.array(sorted(by_slot), np.int64)
        values = np.array([by_slot[slot] for slot in sorted(by_slot)])
        calibration.learn(bucket, slots, values, np.ones(len(slots)))
        if not len(slots):
            continue
        scaled = np.clip(values, -100.0, 100.0)
        mean = (everyone[bucket, 0] + 1.0) / (everyone[bucket, 1] + 1.0)
        total, weight = own[slots, bucket].astype(np.float64).T
        width = np.maximum((total + 20.0 * mean) / (weight + 20.0), 1e-9)
        below = np.zeros(len(levels))
        for relative in scaled / width:
            below += relative <= shape[bucket]
        rate = 0.02 * (1 + 7 / np.sqrt(1 + everyone[bucket, 1]))
        shape[bucket] += rate * (levels - below / len(slots)) * (0.3 + np.abs(shape[bucket]))
        shape[bucket].sort()
        summed = 0.0
        for size in np.abs(scaled):
            summed += size
        news = np.stack([np.abs(scaled), np.ones(len(slots))], axis=1)
        own[slots, bucket] = 0.99 * own[slots, bucket].astype(np.float64) + news
        everyone[bucket] = 0.99 * everyone[bucket] + (summed / len(slots), 1.0)
        np.testing.assert_array_equal(calibration.shape, shape)
        np.testing.assert_array_equal(calibration._residual, everyone)
        np.testing.assert_array_equal(calibration._own, own)
