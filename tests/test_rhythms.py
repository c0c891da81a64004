from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_forecaster.calendar import DAY_MS, HOUR_MS
from stream_forecaster.processes import INDEPENDENT, Traits
from stream_forecaster.rhythms import Clock, profiles, seasons

MONDAY = datetime(2026, 1, 5, tzinfo=UTC)


def clock(seed: int, step_ms: int, buckets: int = 300) -> Clock:
    traits = Traits(np.random.default_rng(seed), 12, INDEPENDENT)
    return Clock.draw(traits, int(MONDAY.timestamp() * 1000), step_ms, buckets)


@settings(max_examples=10)
@given(st.integers(0, 2**32), st.sampled_from([HOUR_MS // 12, HOUR_MS, 3 * HOUR_MS, 6 * HOUR_MS]))
def test_each_key_lives_in_some_zone(seed: int, step_ms: int) -> None:
    """Law: weekday and part of the day are those of real time, shifted by whole hours."""
    drawn = clock(seed, step_ms)
    zones = []
    for shift_h in range(-11, 13):
        local = [MONDAY + timedelta(milliseconds=step_ms * t, hours=shift_h) for t in range(300)]
        parts = [(m.hour * HOUR_MS + m.minute * 60_000) // step_ms for m in local]
        zones.append([(m.weekday(), part) for m, part in zip(local, parts, strict=True)])

    for weekday, cell in zip(drawn.weekday.T.tolist(), drawn.cell.T.tolist(), strict=True):
        assert list(zip(weekday, cell, strict=True)) in zones


@given(st.integers(0, 2**32))
def test_days_are_days_of_their_zone(seed: int) -> None:
    """Law: at a step of a day no key is shifted, or Monday would become Sunday."""
    drawn = clock(seed, DAY_MS)

    assert (drawn.weekday == (np.arange(300) % 7)[:, None]).all()
    assert (drawn.cell == 0).all()
    assert drawn.days == 300


def test_most_worlds_rest_on_saturday_and_sunday() -> None:
    """All but the holidays, which are Sundays, and the few worlds with another week."""
    usual = []
    for seed in range(60):
        drawn = clock(seed, DAY_MS)
        expected = np.maximum(drawn.weekday - 4, 0)
        differs = drawn.type_of_day != expected
        usual.append((drawn.type_of_day[differs] == 2).all() and differs.mean() < 0.1)

    assert 0.8 < np.mean(usual) < 1


@pytest.mark.parametrize("cells", [1, 2, 24, 288])
def test_profiles_are_of_one_size(cells: int) -> None:
    """Mean 0 and variance 1, but nothing to see where a day is one bucket."""
    drawn = profiles(Traits(np.random.default_rng(1), 200, INDEPENDENT), cells)

    np.testing.assert_allclose(drawn.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(drawn.std(0), float(cells > 1), atol=1e-6)


def test_profiles_differ_and_families_resemble() -> None:
    """Independent keys have profiles of their own, alike keys nearly one."""
    apart, alike = (
        np.corrcoef(profiles(Traits(np.random.default_rng(2), 60, spread), 24).T)
        for spread in (INDEPENDENT, 0.01)
    )

    assert abs(np.median(apart)) < 0.2
    assert np.median(alike) > 0.95


def test_who_keeps_to_the_calendar_repeats_week_by_week() -> None:
    """With nothing straying, most series are the same a week later."""
    traits = Traits(np.random.default_rng(3), 200, INDEPENDENT)
    drawn = Clock.draw(traits, int(MONDAY.timestamp() * 1000), HOUR_MS, 24 * 21)
    path = seasons(traits, drawn, np.zeros(200))

    assert np.mean(np.abs(path[168:336] - path[:168]).max(0) < 1e-9) > 0.75
    assert np.mean(path.std(0) > 0.1) > 0.8
