"""Laws of agreement: coarse steps are the sum of their finer ones, whatever the calendar does."""

from datetime import datetime
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stream_forecaster.agreement import Agreement, Steps, draw_in, moved_along, steps_at
from stream_forecaster.calendar import DAY_MS, HOUR_MS, Calendar
from stream_forecaster.config import Resolution
from stream_forecaster.keys import KeyTable

Float64 = NDArray[np.float64]

_CALENDARS = {
    name: Calendar(name)
    for name in ("UTC", "Europe/Zurich", "Australia/Lord_Howe", "Pacific/Apia", "Asia/Kolkata")
}
# Every midnight is a bucket's boundary at each finer step: in Lord Howe and Apia of half hours.
_ALIGNED = {
    "UTC": ("1m", "15m", "30m", "1h", "6h", "1d", "7d"),
    "Europe/Zurich": ("1m", "15m", "30m", "1h", "1d", "7d"),
    "Australia/Lord_Howe": ("1m", "15m", "30m", "1d", "2d"),
    "Pacific/Apia": ("1m", "15m", "30m", "1h", "1d", "2d"),
}
_DATES = ("2026-03-28", "2026-10-24", "2025-10-04", "2011-12-29", "2026-06-01")
"""The days before the clocks change, before the day that Samoa left out, and before none of it."""
_KEYS = 3
aggregates = st.sampled_from(["count", "sum", "mean"])


class Said:
    """Paths of some keys at one hop, and what was observed of their open buckets."""

    def __init__(self, zone: str, resolutions: list[Resolution], hop_ms: int, seed: int) -> None:
        self.calendar, self.resolutions, self.hop_ms = _CALENDARS[zone], resolutions, hop_ms
        self.steps = steps_at(hop_ms, self.calendar, resolutions)
        self._rng = np.random.default_rng(seed)
        self.errors = [self._draw(r) + 0.1 for r in resolutions]

    def _draw(self, resolution: Resolution) -> Float64:
        return self._rng.gamma(0.5, 4.0, (_KEYS, resolution.horizon))

    def told(self, aggregate: str) -> tuple[list[Float64], list[Float64]]:
        """R means and what was observed of R open buckets; silence and newcomers among them."""
        shift = 0.0 if aggregate == "count" else 3.0
        means = [self._draw(r) - shift for r in self.resolutions]
        for mean in means:
            mean[self._rng.random(mean.shape) < 0.2] = 0.0
        observed = [self._rng.gamma(0.5, 4.0, _KEYS) - shift for _ in self.resolutions]
        for seen in observed:
            seen[self._rng.random(_KEYS) < 0.3] = np.nan if aggregate == "mean" else 0.0
        return means, observed


@st.composite
def said(draw: st.DrawFn, zones: tuple[str, ...] = tuple(_ALIGNED)) -> Said:
    """Two to four resolutions at any hop of two days around a change of the clocks."""
    zone = draw(st.sampled_from(zones))
    names = draw(st.lists(st.sampled_from(_ALIGNED[zone]), min_size=2, max_size=4, unique=True))
    steps = [name for name in _ALIGNED[zone] if name in names]
    resolutions = [
        Resolution(step=step, context=2, horizon=draw(st.integers(1, 60))) for step in steps
    ]
    midnight = datetime.fromisoformat(draw(st.sampled_from(_DATES))).replace(tzinfo=ZoneInfo(zone))
    since_ms = draw(st.integers(0, 2 * DAY_MS))
    hop_ms = int(midnight.timestamp() * 1000) + since_ms
    fine_ms = resolutions[0].step_ms
    hop_ms = int(_CALENDARS[zone].start(_CALENDARS[zone].index(hop_ms, fine_ms), fine_ms))
    return Said(zone, resolutions, hop_ms, draw(st.integers(0, 99)))


def _agreement(case: Said, aggregate: str) -> tuple[Agreement, NDArray[np.int64]]:
    table = KeyTable()
    slots = table.intern([b"%d" % i for i in range(_KEYS)], np.zeros(_KEYS, np.int64))
    is_count, is_mean = aggregate == "count", aggregate == "mean"
    return Agreement(table, case.resolutions, is_count=is_count, is_mean=is_mean), slots


def _intervals(case: Said, r: int) -> list[tuple[int, int]]:
    """Start and end of each step of resolution `r`, as they are on the wall."""
    step_ms = case.resolutions[r].step_ms
    first = int(case.calendar.index(case.hop_ms, step_ms))
    edges = [
        int(case.calendar.start(first + i, step_ms)) for i in range(case.resolutions[r].horizon + 1)
    ]
    return list(pairwise(edges))


def _inside(case: Said, r: int, step: int) -> list[int] | None:
    """The finer steps within a step of `r`; None unless they reach from hop to its end."""
    start, end = _intervals(case, r)[step]
    finer = _intervals(case, r - 1)
    begins = [max(a, case.hop_ms) for a, _ in finer]
    inside = [i for i, a in enumerate(begins) if start <= a < end and finer[i][1] <= end]
    reached = finer[-1][1] >= end > max(start, case.hop_ms)
    return inside if reached else None


@given(case=said(), aggregate=aggregates)
def test_a_covered_step_is_the_sum_of_its_finer_ones(case: Said, aggregate: str) -> None:
    """With what was observed; of means, of their integrals over time."""
    agreement, slots = _agreement(case, aggregate)
    means, observed = case.told(aggregate)
    agreed = agreement.agree(slots, case.steps, means, case.errors, observed)
    for r in range(1, len(case.resolutions)):
        for step, (start, _) in enumerate(_intervals(case, r)):
            inside = _inside(case, r, step)
            if inside is None:
                continue
            total, lasted = _observed(case, observed[r], start, aggregate)
            for i in inside:
                a, b = _intervals(case, r - 1)[i]
                fine = agreed[r - 1][:, i]
                if r > 1 and a < case.hop_ms:  # of an open bucket only what is left
                    seen, gone = _observed(case, observed[r - 1], a, aggregate)
                    whole = fine * (gone + b - case.hop_ms) if aggregate == "mean" else fine
                    total = total + whole - seen
                else:
                    # The date that Samoa left out counts as a millisecond.
                    total = total + fine * (max(b - a, 1) if aggregate == "mean" else 1.0)
                lasted = lasted + b - max(a, case.hop_ms)
            expected = total / lasted if aggregate == "mean" else total
            np.testing.assert_allclose(agreed[r][:, step], expected, rtol=1e-9, atol=1e-9)


def _observed(
    case: Said, observed: Float64, start_ms: int, aggregate: str
) -> tuple[Float64, Float64]:
    """Amount (B,) observed of a bucket that began at `start_ms`, and the time (B,) it is of."""
    gone = np.where(np.isnan(observed), 0.0, max(case.hop_ms - start_ms, 0))
    amount = np.where(gone > 0, observed, 0.0)
    return amount * gone if aggregate == "mean" else amount, gone


@given(case=said(), aggregate=aggregates)
def test_agreed_paths_are_fit_to_publish(case: Said, aggregate: str) -> None:
    """Finite; counts never negative; quantiles ascending, never below what was counted."""
    agreement, slots = _agreement(case, aggregate)
    means, observed = case.told(aggregate)
    kept = [m.copy() for m in means]
    agreed = agreement.agree(slots, case.steps, means, case.errors, observed)
    for r, (mean, now) in enumerate(zip(means, agreed, strict=True)):
        np.testing.assert_array_equal(mean, kept[r])
        assert np.isfinite(now).all()
        offsets = np.array([-9.0, -1.0, 0.0, 0.5, 4.0])
        quantiles = mean[:, :, None] + offsets
        is_count = aggregate == "count"
        quantiles = np.maximum(quantiles, 0.0) if is_count else quantiles
        moved = moved_along(quantiles, mean, now, is_count=is_count)
        draw_in(moved, now, case.steps[r], observed[r], is_count=is_count)
        assert np.isfinite(moved).all()
        assert (np.diff(moved, axis=2) >= 0).all()
        if is_count:
            assert (now >= 0).all()
            assert (moved >= 0).all()
            if case.steps[r].elapsed_ms:
                assert (moved[:, 0] >= observed[r][:, None]).all()
                assert (now[:, 0] >= observed[r]).all()


@given(case=said(), aggregate=aggregates, key=st.integers(0, _KEYS - 1))
def test_a_key_agrees_alike_alone_and_among_others(case: Said, aggregate: str, key: int) -> None:
    """Which keys are asked for together does not matter, nor that one is asked for twice."""
    together, slots = _agreement(case, aggregate)
    alone, _ = _agreement(case, aggregate)
    means, observed = case.told(aggregate)
    all_of_them = together.agree(slots, case.steps, means, case.errors, observed)
    again = together.agree(slots, case.steps, means, case.errors, observed)
    row = [key]
    one = alone.agree(
        slots[row],
        case.steps,
        [m[row] for m in means],
        [e[row] for e in case.errors],
        [o[row] for o in observed],
    )
    for a, b, c in zip(all_of_them, again, one, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a[row], c, rtol=1e-12)


# -- the slow way ------------------------------------------------------------------------------


def _slowly(case: Said, key: int, means: list[Float64], slopes: list[float]) -> list[list[float]]:
    """What counts agree on at the first boundary of everything: one number at a time."""
    amounts = [m[key].tolist() for m in means]
    parts: list[dict[int, dict[Any, float]]] = [{}]
    for r in range(1, len(amounts)):
        parts.append({})
        for step in range(len(amounts[r])):
            inside = _inside(case, r, step)
            if inside is not None:
                parts[r][step] = {i: amounts[r - 1][i] for i in inside}
            elif step == 0:
                finer = _intervals(case, r - 1)
                start, end = _intervals(case, r)[0]
                parts[r][0] = {i: amounts[r - 1][i] for i in range(len(finer))}
                parts[r][0]["rest"] = amounts[r][0] * (end - finer[-1][1]) / (end - start)
        for step, part in parts[r].items():
            fine = sum(part.values())
            amounts[r][step] = fine + slopes[r] * (amounts[r][step] - fine)
    for r in range(len(amounts) - 1, 0, -1):
        for step, part in parts[r].items():
            fine = sum(part.values())
            for i, value in part.items():
                if i != "rest":
                    ratio = amounts[r][step] / fine if fine else 0.0
                    amounts[r - 1][i] = value * ratio if fine else amounts[r][step] / len(part)
    return amounts


@given(case=said(zones=("UTC", "Europe/Zurich")))
def test_counts_agree_as_they_do_one_by_one(case: Said) -> None:
    """Against loops over steps, where every bucket begins at the hop."""
    case = Said(case.calendar.timezone, case.resolutions, _aligned_hop(case), seed=case.hop_ms % 97)
    agreement, slots = _agreement(case, "count")
    means, observed = case.told("count")
    agreed = agreement.agree(slots, case.steps, means, case.errors, observed)
    for key in range(_KEYS):
        expected = _slowly(case, key, means, [0.1] * len(means))
        for ours, theirs in zip(agreed, expected, strict=True):
            np.testing.assert_allclose(ours[key], theirs, rtol=1e-9, atol=1e-9)


def _aligned_hop(case: Said) -> int:
    step_ms = case.resolutions[-1].step_ms
    return int(case.calendar.start(case.calendar.index(case.hop_ms, step_ms), step_ms))


@pytest.mark.parametrize(("date", "hours"), [("2026-03-29", 23), ("2026-10-25", 25)])
def test_a_day_has_the_hours_that_the_clocks_give_it(date: str, hours: int) -> None:
    """23 or 25; a horizon of 24 covers the one and not the other."""
    zurich = _CALENDARS["Europe/Zurich"]
    start_ms = int(
        datetime.fromisoformat(date).replace(tzinfo=ZoneInfo("Europe/Zurich")).timestamp()
    )
    resolutions = [
        Resolution(step="1h", context=2, horizon=24),
        Resolution(step="1d", context=2, horizon=3),
    ]
    _, day = steps_at(start_ms * 1000, zurich, resolutions)
    assert day.left_ms[0] == hours * HOUR_MS
    assert day.covered.tolist() == [0]
    assert day.sizes.tolist() == [23 if hours == 23 else 25]  # 24 hours and the rest
    assert day.rest == pytest.approx(0.0 if hours == 23 else 1 / 25)


@given(minutes=st.integers(0, 3 * 24))
def test_where_midnight_is_no_full_hour_a_day_has_the_hours_that_begin_in_it(minutes: int) -> None:
    """Every finer step belongs to one coarse one, and agreement still holds between them."""
    resolutions = [
        Resolution(step="1h", context=2, horizon=60),
        Resolution(step="1d", context=2, horizon=3),
    ]
    hop_ms = 1_767_225_600_000 + minutes * HOUR_MS  # a full hour of January 2026
    case = Said("Asia/Kolkata", resolutions, hop_ms, seed=minutes)
    agreement, slots = _agreement(case, "count")
    means, observed = case.told("count")
    hours, days = agreement.agree(slots, case.steps, means, case.errors, observed)
    day: Steps = case.steps[1]
    for step, first, size in zip(day.covered, day.first, day.sizes, strict=True):
        total = hours[:, first : first + size].sum(axis=1)
        seen = observed[1] if step == 0 and day.elapsed_ms else 0.0
        np.testing.assert_allclose(days[:, step], total + seen, rtol=1e-9, atol=1e-9)
