"""Regressions against slow obvious versions. What holds of all experts is in the laws."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stream_forecaster.calendar import DAY_MS, HOUR_MS, Calendar
from stream_forecaster.config import Resolution
from stream_forecaster.dlinear import DLinear
from stream_forecaster.keys import KeyTable
from stream_forecaster.regression import (
    RIDGE,
    Design,
    Features,
    Harmonics,
    Newest,
    RidgeAr,
    RidgePerKey,
    Scale,
    _add_outer,
    _label,
    training_slots,
)
from stream_forecaster.windows import Window

Float64 = NDArray[np.float64]

_NAN = float("nan")
_FIRST = 483_168  # an hour of February 2025
_CALENDAR = Calendar("UTC")
_HARMONICS = Harmonics(_CALENDAR, HOUR_MS)
_DESIGN = Design("ridge", lags=4, forgetting=0.9, every=1)


class Hourly:
    """A table and a window of hourly means."""

    def __init__(self, keys: int, context: int, horizon: int) -> None:
        self.table, self.horizon = KeyTable(), horizon
        resolution = Resolution(step="1h", context=context, horizon=horizon)
        self.window = Window(self.table, _CALENDAR, resolution, open_span_ms=1, is_mean=True)
        self.window.begin(_FIRST * HOUR_MS)
        self.table.intern([b"%d" % i for i in range(keys)], np.zeros(keys, np.int64))
        self.newest = Newest(self.table, "x", 2)
        self.scale = Scale(self.table, "x", self.newest)

    def tell(self, expert: RidgeAr | DLinear, values: Float64) -> Float64:
        """Close buckets of values (N, K); what is forecast then (K, H)."""
        for row in values:
            slots, index = np.flatnonzero(~np.isnan(row)), self.window.closed
            time_ms = np.full(len(slots), index * HOUR_MS)
            self.window.absorb(slots, time_ms, row[slots])
            closed = self.window.close()
            self.newest.learn(closed)
            expert.learn(index, closed)
        ahead = np.arange(1, self.horizon + 1)
        return expert.predict(np.s_[:], self.window.closed - 1, ahead)


def _ridge(hourly: Hourly, design: Design = _DESIGN) -> RidgeAr:
    return RidgeAr(_HARMONICS, hourly.window, hourly.horizon, hourly.scale, design)


def _walk(buckets: int, keys: int, seed: int = 0) -> Float64:
    return np.random.default_rng(seed).normal(size=(buckets, keys)).cumsum(axis=0)


def _root_mean_square_change(values: Sequence[float]) -> float:
    known = np.array([v for v in values if not np.isnan(v)])
    return float(np.sqrt(np.mean(np.diff(known) ** 2)))


def test_the_scale_is_the_root_mean_square_change() -> None:
    """Gaps are passed over, and a bucket told twice counts once."""
    told = [3.0, _NAN, 5.0, 4.0, _NAN, 8.0]
    hourly = Hourly(1, 4, 2)
    for index, value in enumerate(told):
        hourly.newest.learn(np.array([value]))
        for _ in range(2):
            hourly.scale.learn(index, np.array([value]))
    assert hourly.scale(np.s_[:]) == pytest.approx(_root_mean_square_change(told))


def test_a_key_that_never_changed_has_no_scale() -> None:
    """Nor one that never was."""
    hourly = Hourly(2, 4, 2)
    for index in range(5):
        hourly.newest.learn(np.array([7.0, _NAN]))
        hourly.scale.learn(index, np.array([7.0, _NAN]))
        assert np.isnan(hourly.scale(np.s_[:])).all()


def test_the_features_are_what_was_known_at_the_origin() -> None:
    """Newest lags last, the same hour of days before, the next hours a week ago, mean and one."""
    hourly = Hourly(1, 200, 3)
    features = Features(_HARMONICS, hourly.window, 3, replace(RIDGE, lags=48))
    room = np.arange(168.0)[None] ** 2
    row, anchor = features(room, _FIRST, np.array([2.0]))
    ago = [*range(47, -1, -1), *(24 * day for day in range(2, 7)), 167, 166, 165]
    expected = [(room[0, 167 - n] - room[0, 167]) / 2 for n in ago]
    assert features.size == row.shape[1] == len(ago) + 2 + 2 * 4
    assert anchor.tolist() == [167.0**2]
    np.testing.assert_allclose(row[0, : len(ago)], expected)
    np.testing.assert_allclose(row[0, len(ago)], (room.mean() - room[0, 167]) / 2)
    assert row[0, len(ago) + 1] == 1.0


@pytest.mark.parametrize(
    ("zone", "day"),
    [("Europe/Berlin", "2026-03-29"), ("America/New_York", "2026-11-01")],
)
def test_harmonics_go_by_the_wall_clock(zone: str, day: str) -> None:
    """Noons a week apart are alike, though an hour more or less lies between them."""
    calendar, change = Calendar(zone), datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone))
    harmonics = Harmonics(calendar, HOUR_MS)
    for days in range(1, 7):
        before, after = (
            int(calendar.index(int(noon.timestamp() * 1000), HOUR_MS))
            for noon in (change + timedelta(days - at, hours=12) for at in (7, 0))
        )
        assert abs(after - before - 168) == 1
        np.testing.assert_allclose(harmonics(after), harmonics(before), atol=1e-9)
        assert np.abs(harmonics(before + 168) - harmonics(before)).max() > 0.2


def test_the_calendar_comes_round_every_week() -> None:
    """An hour is told from others of the day and the week, not from itself a week later."""
    hourly = Hourly(1, 8, 3)
    features = Features(_HARMONICS, hourly.window, 3, _DESIGN)
    hours = [features(np.zeros((1, 5)), _FIRST + i, np.ones(1))[0][0] for i in range(169)]
    np.testing.assert_allclose(hours[168], hours[0], atol=1e-9)
    apart = [np.abs(hour - hours[0]).max() for hour in hours[1:168]]
    assert min(apart) > 0.01


def test_up_to_half_of_the_lags_may_be_missing() -> None:
    """They count as equal to the newest value there is; with fewer there is no opinion."""
    hourly = Hourly(3, 8, 3)
    features = Features(_HARMONICS, hourly.window, 3, _DESIGN)
    room = np.array([[1.0, _NAN, 5.0, _NAN], [_NAN, _NAN, _NAN, 5.0], [1.0, 2.0, 3.0, 5.0]])
    room = np.hstack([np.full((3, features.room - 4), _NAN), room])
    row, anchor = features(room, _FIRST, np.ones(3))
    assert row[0, :4].tolist() == [-4.0, 0.0, 0.0, 0.0]
    assert anchor[0] == 5.0
    assert np.isnan(row[1, 0])
    assert row[2, :4].tolist() == [-4.0, -3.0, -2.0, 0.0]


def test_the_pooled_ridge_solves_the_discounted_normal_equations() -> None:
    """All rows gone through once more, by hand."""
    keys, horizon, buckets = 3, 2, 60
    hourly, values = Hourly(keys, 8, horizon), _walk(buckets, keys)
    ridge = _ridge(hourly)
    said = hourly.tell(ridge, values)
    features = Features(_HARMONICS, hourly.window, horizon, _DESIGN)
    gram, products = np.zeros((features.size,) * 2), np.zeros((features.size, horizon))
    for last in range(horizon, buckets):
        origin = last - horizon
        seen = values[: last + 1].T
        scale = np.array([_root_mean_square_change(own.tolist()) for own in seen])
        room = np.full((keys, features.room), _NAN)
        known = seen[:, max(origin - features.room + 1, 0) : origin + 1]
        room[:, -known.shape[1] :] = known
        row, anchor = features(room, _FIRST + origin, scale)
        if not np.isnan(row).any():
            label = (seen[:, origin + 1 :] - anchor[:, None]) / scale[:, None]
            gram = 0.9 * gram + row.T @ row
            products = 0.9 * products + row.T @ label
    penalty = 1e-3 * np.trace(gram) / len(gram) + 1e-9
    weights = np.linalg.solve(gram + penalty * np.eye(len(gram)), products)
    row, anchor = features(values[-features.room :].T, _FIRST + buckets - 1, scale)
    expected = anchor[:, None] + scale[:, None] * (row @ weights)
    np.testing.assert_allclose(said, expected, rtol=1e-6)


def test_the_ridge_learns_what_the_next_steps_follow() -> None:
    """Of an oscillation driven by noise only the noise is missed, for keys of any size."""
    rng, buckets, sizes = np.random.default_rng(0), 500, np.array([1.0, 1e-3, 1e4])
    values = np.zeros((buckets, 3))
    noise = rng.normal(size=(buckets, 3))
    for t in range(2, buckets):
        values[t] = 1.6 * values[t - 1] - 0.8 * values[t - 2] + noise[t]
    hourly = Hourly(3, 10, 2)
    ridge = _ridge(hourly, Design("ridge", lags=4, forgetting=0.999, every=6))
    errors = []
    for row, following in pairwise(values):
        said = hourly.tell(ridge, (row * sizes)[None])[:, 0] / sizes
        errors.append((said - following) ** 2)
    assert np.mean(errors[200:]) < 1.15


def test_a_row_with_a_missing_label_teaches_nothing() -> None:
    """The pooled statistics are those of the other keys alone."""
    values = _walk(40, 2)
    gappy = values.copy()
    gappy[::2, 1] = _NAN
    kept = []
    for told in (gappy, values[:, :1]):
        hourly = Hourly(told.shape[1], 8, 2)
        ridge = _ridge(hourly)
        hourly.tell(ridge, told)
        kept.append(ridge.arrays()["gram"])
    np.testing.assert_allclose(kept[0], kept[1], rtol=1e-12)


@pytest.mark.parametrize("keys", [0, 1, 256, 257, 1000])
def test_every_slot_trains_in_its_turn(keys: int) -> None:
    """At most 256 at once, each equally often."""
    turns = max(-(-keys // 256), 1)
    taken = [training_slots(index, keys) for index in range(7, 7 + turns)]
    assert max(len(slots) for slots in taken) <= 256
    assert sorted(np.concatenate(taken).tolist()) == list(range(keys))


def test_a_key_of_its_own_ways_gets_its_own_regression() -> None:
    """Where the pooled one is in between, each key's own halves the avoidable error."""
    rng, buckets = np.random.default_rng(0), 3000
    pull = np.array([0.9, -0.9])
    values = np.zeros((buckets, 2))
    for t in range(1, buckets):
        values[t] = pull * values[t - 1] + rng.normal(size=2)
    hourly = Hourly(2, 12, 1)
    pooled = _ridge(hourly, replace(RIDGE, forgetting=0.9995))
    own = RidgePerKey(hourly.table, _HARMONICS, hourly.window, 1, hourly.scale)
    errors = []
    for t in range(buckets - 1):
        row, index = values[t], hourly.window.closed
        hourly.window.absorb(np.arange(2), np.full(2, index * HOUR_MS), row)
        closed = hourly.window.close()
        hourly.newest.learn(closed)
        for expert in (pooled, own):
            expert.learn(index, closed)
        said = [e.predict(np.s_[:], index, np.array([1]))[:, 0] for e in (pooled, own)]
        errors.append((np.array(said) - values[t + 1]) ** 2)
    by_pooled, by_own = np.mean(errors[1500:], axis=(0, 2))
    assert by_own - 1 < 0.55 * (by_pooled - 1)


def test_of_a_single_key_the_pooled_statistics_are_its_own() -> None:
    """To single precision."""
    hourly = Hourly(1, 12, 2)
    ridge = RidgePerKey(hourly.table, _HARMONICS, hourly.window, 2, hourly.scale)
    hourly.tell(ridge, _walk(480, 1))
    pooled = ridge.arrays()
    for name in ("gram", "products"):
        own = hourly.table[f"experts.3600000.ridge_key.{name}"][0]
        np.testing.assert_allclose(own, pooled[name], atol=1e-4 * np.abs(pooled[name]).max())


def test_who_came_after_the_last_solution_is_not_heard_yet() -> None:
    """Though its lags are known: not even the newest value stands for its own regression."""
    hourly, values = Hourly(2, 12, 2), _walk(490, 2)
    values[:476, 1] = _NAN
    ridge = RidgePerKey(hourly.table, _HARMONICS, hourly.window, 2, hourly.scale)
    said = hourly.tell(ridge, values)
    assert np.isfinite(said[0]).all()
    assert np.isnan(said[1]).all()
    assert np.isfinite(hourly.tell(ridge, _walk(24, 2))).all()


def test_only_the_first_slots_have_a_regression_of_their_own() -> None:
    """The others hear nothing; what is kept does not grow with them."""
    hourly = Hourly(70, 12, 2)
    ridge = RidgePerKey(hourly.table, _HARMONICS, hourly.window, 2, hourly.scale)
    said = hourly.tell(ridge, _walk(60, 70))
    assert np.isfinite(said[:64]).all()
    assert np.isnan(said[64:]).all()
    assert hourly.table["experts.3600000.ridge_key.gram"].shape[0] == 64
    picked = ridge.predict(np.array([69, 3]), hourly.window.closed - 1, np.array([2]))
    np.testing.assert_allclose(picked[:, 0], [_NAN, said[3, 1]], rtol=1e-12)


def test_dlinear_begins_as_the_mean_of_its_lookback() -> None:
    """As its authors start it: the two maps are plain averages of inputs around their mean."""
    hourly, values = Hourly(2, 12, 3), _walk(7, 2)
    said = hourly.tell(DLinear(hourly.window, 3, hourly.scale), values)
    np.testing.assert_allclose(said, np.tile(values.mean(axis=0)[:, None], 3), rtol=1e-9)


def test_dlinear_learns_a_rhythm() -> None:
    """After a while its errors are well below those of the mean that it began as."""
    rng, horizon, buckets = np.random.default_rng(0), 6, 3000
    phase = 2 * np.pi * np.arange(buckets)[:, None] / 12
    values = np.sin(phase + np.array([0.0, 1.0])) + 0.1 * rng.normal(size=(buckets, 2))
    hourly = Hourly(2, 30, horizon)
    expert = DLinear(hourly.window, horizon, hourly.scale)
    said = hourly.tell(expert, values[:-horizon])
    error = np.mean((said - values[-horizon:].T) ** 2)
    assert error < 0.2 * np.var(values)


def test_daily_steps_know_the_weekday() -> None:
    """Without a day to be in; and steps that no week is made of know nothing of it."""
    for step, harmonics in (("1d", 2), ("7d", 0)):
        resolution = Resolution(step=step, context=28, horizon=7)
        assert resolution.step_ms % DAY_MS == 0
        window = Window(KeyTable(), _CALENDAR, resolution, open_span_ms=1, is_mean=True)
        features = Features(Harmonics(_CALENDAR, window.step_ms), window, 7, RIDGE)
        assert features.lags == features.room == 21
        assert features.size == 21 + 2 * harmonics + 2


_told = st.lists(
    st.lists(st.one_of(st.just(_NAN), st.floats(-1e6, 1e6)), min_size=3, max_size=3), max_size=12
)


@given(values=_told)
def test_scales_of_keys_are_those_of_arrays(values: list[list[float]]) -> None:
    """Bit for bit, in the precision they are kept in, whatever is missing."""
    hourly = Hourly(3, 8, 1)
    last, square, count = np.zeros((3, 3))
    for index, row in enumerate(values):
        value = np.array(row)
        hourly.newest.learn(value)
        hourly.scale.learn(index, value)
        known = ~np.isnan(value)
        change = np.where(known & (count > 0), value - last, 0.0)
        square += np.where(known, 1 / np.clip(count, 1, 2000) * (change**2 - square), 0.0)
        square = square.astype(np.float32).astype(np.float64)
        count += known
        last[known] = value[known]
    expected = np.sqrt(np.where(square > 0, square, _NAN))
    np.testing.assert_array_equal(hourly.scale(np.s_[:]), expected)
    np.testing.assert_array_equal(hourly.scale(np.array([2, 0])), expected[[2, 0]])


@given(
    seed=st.integers(0, 99),
    slots=st.sets(st.integers(0, 6)),
    forgetting=st.sampled_from([0.9, 0.9995]),
)
def test_rows_are_labelled_and_added_as_arrays_would(
    seed: int, slots: set[int], forgetting: float
) -> None:
    """Bit for bit: labels and which are complete; products in the precision they are kept in."""
    rng, rows = np.random.default_rng(seed), np.array(sorted(slots), np.int64)
    values, row = rng.normal(size=(len(rows), 9)), rng.normal(size=(len(rows), 4))
    values[rng.random(values.shape) < 0.05], row[rng.random(len(rows)) < 0.2] = _NAN, _NAN
    scale = rng.uniform(0.1, 2.0, len(rows))
    for anchor in (rng.normal(size=(len(rows), 1)), rng.normal(size=(len(rows), 3))):
        label, complete = np.empty((len(rows), 3)), np.empty(len(rows), np.bool_)
        count = _label(values, anchor, scale, row, label, complete)
        expected = (values[:, -3:] - anchor) / scale[:, None]
        np.testing.assert_array_equal(label, expected)
        known = ~np.isnan(row[:, 0]) & ~np.isnan(expected).any(axis=1)
        np.testing.assert_array_equal(complete, known)
        assert count == known.sum()
        kept = rng.normal(size=(7, 4, 3)).astype(np.float32)
        slow = kept.copy()
        slow[rows] *= forgetting
        slow[rows] += row[:, :, None] * label[:, None]
        _add_outer(rows, row, label, forgetting, kept)
        np.testing.assert_array_equal(kept, slow)


@given(index=st.lists(st.integers(_FIRST, _FIRST + 2000), max_size=20))
def test_harmonics_that_were_asked_for_before_are_the_same(index: list[int]) -> None:
    """In any order."""
    for each in [*index, *index]:
        fresh = Harmonics(_CALENDAR, HOUR_MS)(each)
        np.testing.assert_array_equal(_HARMONICS(each), fresh)


@given(seed=st.integers(0, 99), steps=st.integers(1, 5), missing=st.floats(0, 0.7))
def test_dlinear_steps_as_arrays_would(seed: int, steps: int, missing: float) -> None:
    """Bit for bit: its inputs, and its steps by Adam."""
    hourly, rng = Hourly(3, 12, 3), np.random.default_rng(seed)
    dlinear = DLinear(hourly.window, 3, hourly.scale)
    hourly.tell(dlinear, _walk(12, 3, seed))
    lookback = rng.normal(size=(3, 9))
    lookback[rng.random(lookback.shape) < missing] = _NAN
    row, centre, _ = dlinear._row(np.s_[:], lookback)
    known = ~np.isnan(lookback)
    count = known.sum(axis=1, keepdims=True)
    total = np.where(known, lookback, 0.0).sum(axis=1, keepdims=True)
    mean = np.where(2 * count >= 9, total / np.maximum(count, 1), _NAN)
    scaled = np.where(known, lookback - mean, 0.0) / hourly.scale(np.s_[:])[:, None]
    trend = scaled @ dlinear._trend
    np.testing.assert_array_equal(row, np.hstack([trend, scaled - trend, np.ones((3, 1))]))
    np.testing.assert_array_equal(centre, mean)
    before = {name: array.copy() for name, array in dlinear.arrays().items()}
    for _ in range(steps):
        gradient = rng.normal(size=before["weights"].shape)
        dlinear._descend(gradient)
        before["steps"] += 1
        before["mean"] += (1 - 0.9) * (gradient - before["mean"])
        before["square"] += (1 - 0.999) * (gradient**2 - before["square"])
        step = before["mean"] / (1 - 0.9 ** before["steps"])
        square = before["square"] / (1 - 0.999 ** before["steps"])
        before["weights"] -= 2e-4 * step / (np.sqrt(square) + 1e-8)
    for name, array in dlinear.arrays().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
