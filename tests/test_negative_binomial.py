"""Quantiles of counts: those of the distribution, whatever the mean; and how wide it is, found."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stream_forecaster.negative_binomial import NegativeBinomial, spread_quantiles

Float64 = NDArray[np.float64]

_LEVELS = (0.025, 0.1, 0.3, 0.5, 0.7, 0.9, 0.975)
_HERE = np.array([0])
_dispersions = st.floats(0.01, 10.0)


def _oracle(mean: Float64, dispersion: float) -> Float64:
    """(N, Q) the slow way: add up masses until there is enough."""
    size = 1 / dispersion
    return np.array([[_quantile(m, size, level) for level in _LEVELS] for m in mean.tolist()])


def _quantile(mean: float, size: float, level: float) -> int:
    upto = 0.0
    for count in range(600):
        ways = math.lgamma(count + size) - math.lgamma(size) - math.lgamma(count + 1)
        log_mass = size * math.log(size / (size + mean)) + count * math.log(mean / (size + mean))
        upto += math.exp(ways + log_mass)
        if upto >= level:
            return count
    return 600


@given(mean=st.lists(st.floats(0.001, 64.0), min_size=1, max_size=9), dispersion=_dispersions)
def test_rounded_quantiles_are_the_distributions(mean: list[float], dispersion: float) -> None:
    """Up to what the table holds; level and mass never meet so closely that rounding matters."""
    means = np.array(mean)
    ours = np.rint(spread_quantiles(means, dispersion, np.array(_LEVELS)))
    theirs = _oracle(means, dispersion)
    less, more = (_oracle(means * factor, dispersion) for factor in (1 - 1e-9, 1 + 1e-9))
    assert ((ours == theirs) | (theirs > 512) | (less < more)).all()


@given(dispersion=_dispersions)
def test_quantiles_move_smoothly_with_the_mean(dispersion: float) -> None:
    """No step of a whole unit between means that are a hundredth apart; and they ascend."""
    means = np.geomspace(0.001, 64.0, 1_100)
    quantiles = spread_quantiles(means, dispersion, np.array(_LEVELS))
    inside = quantiles[:, -1] < 500
    assert (np.abs(np.diff(quantiles[inside], axis=0)) < 0.5 + 0.1 * quantiles[inside][1:]).all()
    assert (np.diff(quantiles, axis=0) >= -1e-9).all()
    assert (np.diff(quantiles, axis=1) >= 0).all()
    assert (quantiles >= 0).all()


def _taught(draw: NDArray[np.floating[Any]], mean: Float64) -> NegativeBinomial:
    """By buckets (N, B) of counts with means (B,)."""
    counts = NegativeBinomial(_LEVELS, 1)
    for index, truth in enumerate(draw):
        counts.learn(0, mean, truth)
        counts.settle(index)
    return counts


@pytest.mark.parametrize("dispersion", [0.0, 0.3, 2.0])
def test_the_dispersion_is_found(dispersion: float) -> None:
    """By counts of means from a twentieth to twenty; and then the table holds what it says."""
    rng, mean = np.random.default_rng(0), np.geomspace(0.05, 20, 40)
    rate = mean * (rng.gamma(1 / dispersion, dispersion, (600, 40)) if dispersion else 1.0)
    counts = _taught(rng.poisson(rate, (600, 40)) + 0.0, mean)
    found = float(counts.arrays()["dispersion"][0])
    assert found == pytest.approx(max(dispersion, 0.01), rel=0.15, abs=0.01)
    asked = np.geomspace(0.01, 60, 500)
    said = np.rint(counts.quantiles(asked[:, None], _HERE)[:, 0])
    expected = _oracle(asked, found)
    assert np.mean(said == expected) > 0.97
    assert np.abs(said - expected).max() <= 1


def test_after_forgetting_another_dispersion_is_found_sooner() -> None:
    """A drift was detected: what comes now counts for more than what came before."""
    rng, mean = np.random.default_rng(0), np.geomspace(0.05, 20, 40)
    before = rng.poisson(mean * rng.gamma(0.5, 2.0, (600, 40))) + 0.0
    now = rng.poisson(mean, (60, 40)) + 0.0
    found = []
    for forgets in (False, True):
        counts = _taught(before, mean)
        if forgets:
            counts.forget()
        for index, truth in enumerate(now):
            counts.learn(0, mean, truth)
            counts.settle(index)
        found.append(float(counts.arrays()["dispersion"][0]))
    assert found[1] < 0.6 * found[0]


def test_it_begins_somewhere() -> None:
    """Before anything has landed: a little wider than Poisson, and finite down to nothing."""
    counts = NegativeBinomial(_LEVELS, 2)
    said = counts.quantiles(np.array([[0.0, 4.0]]), np.array([0, 1]))[0]
    assert said[0].max() < 0.5
    np.testing.assert_allclose(np.rint(said[1]), _oracle(np.array([4.0]), 0.2)[0])


def test_large_counts_have_none() -> None:
    """They scale, and others know how."""
    counts = NegativeBinomial(_LEVELS, 1)
    said = counts.quantiles(np.array([[64.0], [64.1]]), _HERE)
    assert np.isfinite(said[0]).all()
    assert np.isnan(said[1]).all()
    counts.learn(0, np.array([1e6]), np.array([0.0]))
    assert (counts.arrays()["moments"] == 0).all()


def test_one_burst_does_not_blow_it_up() -> None:
    """A million instead of one, once."""
    rng, mean = np.random.default_rng(0), np.ones(20)
    draw = rng.poisson(1.0, (200, 20)) + 0.0
    draw[100, 3] = 1e6
    assert _taught(draw, mean).arrays()["dispersion"][0] < 0.5


def test_horizons_are_apart_and_a_restored_one_goes_on() -> None:
    """The table follows from what is kept."""
    rng, mean = np.random.default_rng(0), np.full(30, 2.0)
    counts, restored = NegativeBinomial(_LEVELS, 2), NegativeBinomial(_LEVELS, 2)
    wide = rng.negative_binomial(0.5, 0.2, (90, 30)) + 0.0
    for index, truth in enumerate(wide):
        counts.learn(1, mean, truth)
        counts.settle(index)
    restored.restore({name: array.copy() for name, array in counts.arrays().items()})
    asked = np.array([[2.0, 2.0]]), np.array([0, 1])
    narrow, broad = counts.quantiles(*asked)[0]
    assert broad[-1] > narrow[-1] + 2
    for each in (counts, restored):
        each.learn(1, mean, wide[0])
        each.settle(90)
    np.testing.assert_array_equal(restored.quantiles(*asked), counts.quantiles(*asked))
