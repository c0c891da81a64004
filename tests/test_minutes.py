import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stream_forecaster.minutes import split_amounts, split_counts


@given(st.integers(0, 2**32), st.integers(1, 5))
def test_nothing_is_lost_and_nothing_comes_early(seed: int, live_hours: int) -> None:
    """Law: for any hours, counts sum exactly, amounts but for rounding; unborn is unborn."""
    rng = np.random.default_rng(seed)
    hours = rng.poisson(rng.choice([0.01, 1, 500], 6), (5, 6)).astype(float)
    hours[:3, 0] = np.nan
    live = hours[-live_hours:]

    for split in (split_counts, split_amounts):
        minutes = split(rng, hours, live_hours).reshape(live_hours, 60, 6)
        np.testing.assert_allclose(minutes.sum(1), live, rtol=1e-9, atol=1e-12)
        assert (np.isnan(minutes) == np.isnan(live)[:, None]).all()
        assert (minutes[np.isfinite(minutes)] >= 0).all()


def shares(per_hour: float) -> NDArray[np.float64]:
    """Many series that do as much every hour, (hours, 60, K)."""
    hours = np.full((24, 50), per_hour)
    split = [split_counts(np.random.default_rng(seed), hours, 24) for seed in range(20)]
    return np.hstack(split).reshape(24, 60, -1)


@given(st.integers(0, 2**32))
def test_levels_keep_their_sum(seed: int) -> None:
    """Law: what has a sign sums to the hour as well."""
    rng = np.random.default_rng(seed)
    hours = rng.normal(0, 100, (7, 5))
    minutes = split_amounts(rng, hours, 4).reshape(4, 60, 5)

    np.testing.assert_allclose(minutes.sum(1), hours[3:], rtol=1e-9, atol=1e-9)


def test_users_are_there_for_some_minutes_then_gone() -> None:
    """Many series cluster more than if each event chose its minute by itself, and some do not."""
    dispersion = shares(30).var(1).mean(0) / 0.5

    assert np.quantile(dispersion, 0.5) > 2
    assert np.quantile(dispersion, 0.05) < 1.3


def test_machines_start_on_the_minute() -> None:
    """Some series have a minute of the hour at which they do most."""
    busiest = shares(60).mean(0).max(0)

    assert 0.02 < (busiest > 6).mean() < 0.3


def test_levels_move_smoothly_through_the_hour() -> None:
    """A level keeps near the line through the hours; what is stuck by the hour stays stuck."""
    hours = np.repeat([[0.0], [60.0], [120.0], [120.0], [120.0]], 300, axis=1) - 30
    minutes = split_amounts(np.random.default_rng(3), hours, 4).reshape(4, 60, 300)

    assert np.median(minutes[1, 50:] - minutes[1, :10]) == pytest.approx(0.4, abs=0.2)
    np.testing.assert_allclose(np.diff(minutes[3], axis=0), 0, atol=1e-9)
