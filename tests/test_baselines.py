"""The seasonal naive against wall clocks and dictionaries, one key and one bucket at a time."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_forecaster.baselines import seasonal_naive
from stream_forecaster.calendar import DAY_MS, HOUR_MS, Calendar
from stream_forecaster.config import parse
from stream_forecaster.keys import KeyTable
from stream_forecaster.windows import Window

DAYS = {"seasonal_naive_day": 1, "seasonal_naive_week": 7}
KEYS = (b"ann", b"bob", b"cyd")


class Stream:
    """A window and its seasonal naives, and all values that closed, in a dictionary."""

    def __init__(self, zone: str, step: str, context: int, *, is_mean: bool = False) -> None:
        spec = {"step": step, "context": context, "horizon": 1}
        resolution = parse({"resolutions": [spec]}).resolutions[0]
        self.zone, self.step_ms, self.context = zone, resolution.step_ms, context
        self.calendar, self.table, self.is_mean = Calendar(zone), KeyTable(), is_mean
        self.window = Window(
            self.table, self.calendar, resolution, open_span_ms=resolution.step_ms, is_mean=is_mean
        )
        self.baselines = seasonal_naive(self.calendar, self.window)
        self.values: dict[tuple[bytes, int], float] = {}

    def absorb(self, events: dict[bytes, int]) -> None:
        """One event of each key, in the first open bucket."""
        for key, value in events.items():
            time_ms = self.calendar.start(np.array([self.window.closed]), self.step_ms)
            slots = self.table.intern([key], time_ms)
            self.window.absorb(slots, time_ms, np.array([float(value)]))

    def close(self, events: dict[bytes, int]) -> None:
        """Close the bucket that has absorbed `events`."""
        index = self.window.closed
        silent = set() if self.is_mean else {key for key, _ in self.values}
        self.values |= {(key, index): 0.0 for key in silent}
        self.values |= {(key, index): float(value) for key, value in events.items()}
        self.window.close()

    def slowly(self, days: int, horizon: int) -> dict[bytes, float]:
        """What came so many days ago, or twice, thrice ... as many, by the wall clock."""
        target, zone = self.window.closed, ZoneInfo(self.zone)
        begin_ms, end_ms = (int(self.calendar.start(i, self.step_ms)) for i in (target, target + 1))
        middle = datetime.fromtimestamp((begin_ms + end_ms) / 2000, UTC).astimezone(zone)
        wall, bucket = middle.replace(tzinfo=None), target
        while bucket > target - horizon:
            wall -= timedelta(days=days)
            moment_ms = round(wall.replace(tzinfo=zone).timestamp() * 1000)
            bucket = int(self.calendar.index(moment_ms, self.step_ms))
        reached = bucket >= target - self.context
        return {k: self.values.get((k, bucket), np.nan) if reached else np.nan for k in KEYS}


CHANGES = [
    ("UTC", "2026-03-01"),
    ("Europe/Zurich", "2026-03-29"),
    ("Europe/Zurich", "2026-10-25"),
    ("America/Los_Angeles", "2026-03-08"),
    ("America/Los_Angeles", "2026-11-01"),
    ("Australia/Lord_Howe", "2026-04-05"),  # by half an hour
    ("America/Havana", "2026-03-08"),  # at midnight
    ("Asia/Kolkata", "2026-05-01"),  # never; half an hour off the hour
]
"""Zones, and the days on which their clocks change."""


@given(
    change=st.sampled_from(CHANGES),
    lead_days=st.integers(1, 9),
    step=st.sampled_from(["1h", "2h", "6h", "12h", "1d"]),
    context_days=st.integers(1, 15),
    horizons=st.sets(st.integers(1, 30), min_size=1, max_size=4).map(sorted),
    seed=st.integers(0, 999),
    is_mean=st.booleans(),
)
def test_it_says_what_the_wall_clock_says(  # noqa: PLR0913, PLR0917  (one for each thing that varies)
    change: tuple[str, str],
    lead_days: int,
    step: str,
    context_days: int,
    horizons: list[int],
    seed: int,
    is_mean: bool,  # noqa: FBT001
) -> None:
    """Over changes of the clocks, missing values and newcomers, as far back as the window goes."""
    zone, day = change
    step_ms = DAY_MS if step == "1d" else int(step[:-1]) * HOUR_MS
    alone = Stream(zone, step, max(context_days * DAY_MS // step_ms, 1) + seed % 3, is_mean=is_mean)
    begin = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone)) - timedelta(days=lead_days)
    alone.window.begin(round(begin.timestamp() * 1000))
    rng, probability = np.random.default_rng(seed), {b"ann": 0.9, b"bob": 0.4, b"cyd": 0.05}
    for _ in range(min((lead_days + 9) * DAY_MS // step_ms, 120)):
        events = {
            key: int(rng.integers(-50, 50)) for key in KEYS if rng.random() < probability[key]
        }
        alone.absorb(events)  # open, so it must not matter
        for baseline in alone.baselines:
            said = baseline.said(alone.window.closed, np.array(horizons))
            assert len(said) == len(horizons)
            for horizon, values in zip(horizons, said, strict=True):
                expected = alone.slowly(DAYS[baseline.name], horizon)
                slots = {key: slot for key in KEYS if (slot := alone.table.slot(key)) is not None}
                found = {key: values[slot] for key, slot in slots.items()}
                np.testing.assert_equal(found, {key: expected[key] for key in slots})
        alone.close(events)


def test_a_day_of_25_hours_is_a_day() -> None:
    """The night that the clocks go back: noon comes 25 hours after noon."""
    alone = Stream("Europe/Zurich", "1h", 30)
    alone.window.begin(round(datetime(2026, 10, 24, 0, 0, tzinfo=UTC).timestamp() * 1000))
    for hour in range(35):
        alone.absorb({b"ann": hour})
        alone.close({b"ann": hour})
    # 11:00 UTC is noon now; it was 10:00 UTC, hour 10 of the stream, the day before
    assert alone.window.closed * HOUR_MS == datetime(2026, 10, 25, 11, tzinfo=UTC).timestamp() * 1e3
    (day,) = alone.baselines
    assert [said[0] for said in day.said(alone.window.closed, np.array([1, 25]))] == [10.0, 10.0]


def test_a_window_of_one_period_will_do() -> None:
    """The hours of one day, and it speaks of every horizon of the next."""
    alone = Stream("UTC", "1h", 24)
    alone.window.begin(DAY_MS)
    for hour in range(24):
        alone.absorb({b"ann": hour})
        alone.close({b"ann": hour})
    (day,) = alone.baselines
    said = day.said(alone.window.closed, np.array([1, 12, 24, 25]))
    np.testing.assert_equal([values[0] for values in said], [0.0, 0.0, 0.0, np.nan])


@pytest.mark.parametrize(
    ("step", "context", "names"),
    [
        ("1m", 60, []),
        ("1h", 23, []),
        ("1h", 24, ["seasonal_naive_day"]),
        ("1h", 168, ["seasonal_naive_day", "seasonal_naive_week"]),
        ("1d", 6, []),
        ("1d", 7, ["seasonal_naive_week"]),
        ("2d", 28, []),
        ("7d", 28, []),
    ],
)
def test_only_periods_of_several_steps_that_the_window_holds(
    step: str, context: int, names: list[str]
) -> None:
    """The others would never have an opinion, or be the last value by another name."""
    assert [baseline.name for baseline in Stream("UTC", step, context).baselines] == names
