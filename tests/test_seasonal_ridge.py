"""Regressions of deviations from a season. What holds of all experts is in the laws."""

from datetime import datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stream_forecaster.calendar import HOUR_MS, Calendar
from stream_forecaster.config import Resolution
from stream_forecaster.experts import pool
from stream_forecaster.keys import KeyTable
from stream_forecaster.regression import Harmonics
from stream_forecaster.seasonal_ridge import SeasonalRidge, _tell
from stream_forecaster.windows import Window

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_NAN = float("nan")
_FIRST = 483_168  # an hour of February 2025
_KEYS, _HORIZON = 20, 3


class Hourly:
    """One expert on a season that is known beforehand: the hour of the day itself, times ten."""

    def __init__(self) -> None:
        self.table, calendar = KeyTable(), Calendar("UTC")
        resolution = Resolution(step="1h", context=40, horizon=_HORIZON)
        self.window = Window(self.table, calendar, resolution, open_span_ms=1, is_mean=True)
        self.window.begin(_FIRST * HOUR_MS)
        self.slots = self.table.intern([b"%d" % i for i in range(_KEYS)], np.zeros(_KEYS, np.int64))
        self.expert = SeasonalRidge(
            self.table, Harmonics(calendar, HOUR_MS), self.window, _HORIZON, self.profile, "season"
        )

    def profile(self, slots: Int64 | slice, index: int, ahead: Int64) -> Float64:
        """(B, N)."""
        return np.tile(10.0 * ((index + ahead) % 24), (len(self.slots[slots]), 1))

    def tell(self, deviation: Float64) -> Float64:
        """Close a bucket that deviates by (K,); by how much the next ones are said to, (K, H)."""
        index, told = self.window.closed, np.flatnonzero(~np.isnan(deviation))
        value = self.profile(self.slots, index, np.array([0]))[:, 0] + deviation
        self.window.absorb(told, np.full(len(told), index * HOUR_MS), value[told])
        self.expert.learn(index, self.window.close())
        ahead = np.arange(1, _HORIZON + 1)
        return self.expert.predict(np.s_[:], index, ahead) - self.profile(np.s_[:], index, ahead)


def _noise(buckets: int) -> Float64:
    return np.random.default_rng(0).normal(size=(buckets, _KEYS))


def test_a_deviation_that_fades_is_followed() -> None:
    """Of an autoregression around the season only the noise is missed, one and two steps ahead."""
    hourly, noise, errors = Hourly(), _noise(900), []
    deviation, said = np.zeros(_KEYS), np.full((_KEYS, _HORIZON), _NAN)
    for shock in noise:
        deviation = 0.9 * deviation + shock
        errors.append((said[:, 0] - deviation) ** 2)
        said = hourly.tell(deviation)
    assert np.mean(errors[300:]) < 1.05
    assert np.median(said[:, 1] / said[:, 0]) == pytest.approx(0.9, abs=0.05)


def test_what_befalls_all_keys_foretells_each() -> None:
    """Though a key's own deviation hardly shows it."""
    hourly, noise, errors = Hourly(), _noise(900), []
    common, said = np.random.default_rng(1).normal(size=900), np.full((_KEYS, _HORIZON), _NAN)
    for t in range(1, 900):
        deviation = common[t] + 0.9 * common[t - 1] + noise[t]
        errors.append((said[:, 0] - deviation) ** 2)
        said = hourly.tell(deviation)
    # 1 is the key's noise and 1 the next shock; from itself alone a key is foretold to 2.5
    assert np.mean(errors[300:]) < 2.35


def test_a_burst_of_one_key_is_not_everybodys() -> None:
    """It counts for eight of the key's scales at most, of as many keys as there are."""
    hourly = Hourly()
    for deviation in _noise(100):
        hourly.tell(deviation)
    burst = np.zeros(_KEYS)
    burst[3] = 1e6
    hourly.tell(burst)
    newest = (hourly.window.closed - 1) % len(hourly.expert.arrays()["common"])
    assert hourly.expert.arrays()["common"][newest] <= 8 / _KEYS


def test_of_buckets_passed_over_nothing_is_common() -> None:
    """What stood in their place in the ring is gone."""
    hourly = Hourly()
    for deviation in 3 + _noise(100):
        hourly.tell(deviation)
    common = hourly.expert.arrays()["common"]
    assert (common != 0).all()
    hourly.window.skip(hourly.window.closed + 5)
    hourly.tell(np.ones(_KEYS))
    assert np.count_nonzero(common) == len(common) - 5
    hourly.window.skip(hourly.window.closed + 500)
    hourly.tell(np.ones(_KEYS))
    assert np.count_nonzero(common) == 1


@pytest.mark.parametrize(
    ("zone", "day"),
    [("Europe/Berlin", "2026-03-29"), ("America/New_York", "2026-11-01")],
)
def test_a_change_of_clocks_is_no_deviation(zone: str, day: str) -> None:
    """On a season of the wall clock: forecasts made before, and those made after it, follow it."""
    table, calendar, rng = KeyTable(), Calendar(zone), np.random.default_rng(0)
    resolution = Resolution(step="1h", context=40, horizon=12)
    window = Window(table, calendar, resolution, open_span_ms=1, is_mean=True)
    change = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone))
    midnight, slots = int(change.timestamp()) // 3600, np.arange(_KEYS)
    window.begin((midnight - 24 * 40) * HOUR_MS)
    table.intern([b"%d" % i for i in slots], np.zeros(_KEYS, np.int64))
    everyone = {expert.name: expert for expert in pool(table, calendar, window, resolution)}
    taught = [everyone[name] for name in ("day_type_fast", "day_type_fast_ridge")]

    def season(index: int) -> float:
        return 10.0 * datetime.fromtimestamp(3600 * index, change.tzinfo).hour

    while window.closed < midnight + 24:
        index = window.closed
        if index >= midnight:
            said = taught[1].predict(slots, index - 1, np.arange(1, 13))
            expected = [season(index + steps) for steps in range(12)]
            np.testing.assert_allclose(said, np.tile(expected, (_KEYS, 1)), atol=4)
        value = season(index) + rng.normal(size=_KEYS)
        window.absorb(slots, np.full(_KEYS, index * HOUR_MS), value)
        closed = window.close()
        for expert in taught:
            expert.learn(index, closed)


@pytest.mark.parametrize(("missing", "speaks"), [(12, True), (13, False)])
def test_up_to_half_of_the_lags_may_be_missing(missing: int, *, speaks: bool) -> None:
    """They count as what the season says; with fewer there is no opinion."""
    hourly, noise = Hourly(), _noise(200)
    noise[-missing:, 0] = _NAN
    for deviation in noise:
        said = hourly.tell(deviation)
    assert np.isfinite(said[0]).all() == speaks
    assert np.isfinite(said[1:]).all()


@given(
    values=st.lists(
        st.lists(st.one_of(st.just(np.nan), st.floats(-1e6, 1e6)), min_size=3, max_size=3),
        max_size=12,
    )
)
def test_what_is_told_of_a_bucket_is_as_of_arrays(values: list[list[float]]) -> None:
    """Bit for bit: mean square deviations as they are kept, and deviations in their roots."""
    state, slow = np.zeros((3, 2), np.float32), np.zeros((3, 2), np.float32)
    profile = np.array([0.0, 1.5, -3.0])
    for row in values:
        value, told = np.array(row), np.empty(3)
        told = told[: _tell(value, profile, state, told)]
        deviation, (square, count) = value - profile, slow.T
        seen = ~np.isnan(deviation)
        count += seen
        rate = 1 / np.clip(count, 1, 1000.0)
        square += np.where(seen, rate * (deviation**2 - square), 0.0)
        wide = square.astype(np.float64)
        expected = deviation / np.sqrt(np.where(wide > 0, wide, np.nan))
        np.testing.assert_array_equal(told, np.clip(expected[~np.isnan(expected)], -8.0, 8.0))
        np.testing.assert_array_equal(state, slow)
