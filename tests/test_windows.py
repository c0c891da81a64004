"""Windows, drawn: one column per bucket; `.` no event, `_` missing, `|` closed up to here.

What all of them hold together is in `laws/test_windows.py`, against a slow oracle.
"""

import math
from datetime import datetime
from itertools import pairwise
from statistics import fmean
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_forecaster.calendar import DAY_MS, HOUR_MS, Calendar
from stream_forecaster.config import Resolution
from stream_forecaster.keys import KeyTable
from stream_forecaster.windows import Window

_MINUTE_MS = 60_000
_ZURICH = ZoneInfo("Europe/Zurich")


class Drawing:
    """A window of one key, fed from drawings."""

    def __init__(
        self,
        context: int,
        *,
        is_mean: bool = False,
        is_count: bool = False,
        open_buckets: int = 3,
    ) -> None:
        self.table = KeyTable()
        self.window = Window(
            self.table,
            Calendar("UTC"),
            Resolution(step="1m", context=context, horizon=1),
            open_span_ms=open_buckets * _MINUTE_MS,
            is_mean=is_mean,
            is_count=is_count,
        )
        self.window.begin(0)

    def feed(self, drawing: str) -> str:
        """Absorb each bucket's events (`2+3`: two of them) and close it at `|`; the window then."""
        ahead = self.window.closed
        for mark in drawing.split():
            if mark == "|":
                while self.window.closed < ahead:
                    self.window.close()
                continue
            for value in mark.split("+") if mark != "." else ():
                self.put(ahead, float(value))
            ahead += 1
        return self.show()

    def put(self, bucket: int, value: float) -> None:
        """One event in the middle of a bucket."""
        time_ms = np.array([bucket * _MINUTE_MS + 30_000])
        self.window.absorb(self.table.intern([b"ann"], time_ms), time_ms, np.array([value]))

    def show(self) -> str:
        """The closed context, oldest first."""
        marks = ["_" if math.isnan(v) else f"{v:g}" for v in self.window.values()[0]]
        return " ".join(marks)

    @property
    def average(self) -> float:
        """The moving average."""
        return float(self.window.moving_average()[0])


@pytest.mark.parametrize(
    ("events", "window", "average"),
    [
        ("4 |", "_ _ _ 4", 4),  # it divides by the buckets seen, the newest one among them
        ("4 2 |", "_ _ 4 2", 3),
        (". . 6 |", "_ _ _ 6", 6),  # what was before the first event is missing, not zero
        ("6 . |", "_ _ 6 0", 3),  # what is silent after it is zero
        ("1 2 3 4 | 5 |", "2 3 4 5", 3.5),  # the oldest falls out
        ("1 2 3 4 | 5 6", "1 2 3 4", 2.5),  # open buckets do not count
        ("1+1+1 . | 2 |", "_ 3 0 2", 5 / 3),  # a bucket is the sum of its events
        ("9 . . . | . |", "0 0 0 0", 0),
    ],
)
def test_windows_of_sums(events: str, window: str, average: float) -> None:
    """A bucket is the sum of its events, and the average that of the closed ones."""
    drawing = Drawing(context=4)
    assert drawing.feed(events) == window
    assert drawing.average == average


@pytest.mark.parametrize(
    ("events", "window", "average"),
    [
        ("4 |", "_ _ _ 4", 4),
        ("2+4 . |", "_ _ 3 _", 3),  # no events, no mean: missing, not zero
        ("2+4 . 5 |", "_ 3 _ 5", 4),  # of bucket means, each counting once
        ("2 . . . | . |", "_ _ _ _", math.nan),
        ("2 . . . | . | 8 |", "_ _ _ 8", 8),  # and it recovers
    ],
)
def test_windows_of_means(events: str, window: str, average: float) -> None:
    """A bucket is the mean of its events; without events it is missing."""
    drawing = Drawing(context=4, is_mean=True)
    assert drawing.feed(events) == window
    assert drawing.average == pytest.approx(average, nan_ok=True)


def test_a_late_event_counts_while_its_bucket_is_open() -> None:
    """It may even be the key's first: the drawing is 1 2 3, told in the order 3 1 2."""
    drawing = Drawing(context=3)
    for bucket in (2, 0, 1):
        drawing.put(bucket, bucket + 1)
    assert drawing.feed(". . . |") == "1 2 3"


def test_what_is_under_way_can_be_looked_at() -> None:
    """Open buckets as they are so far: sums, or means with gaps where nothing came."""
    sums, means = Drawing(4), Drawing(4, is_mean=True)
    for drawing in (sums, means):
        drawing.feed("1 | 2+4 .")

    assert sums.window.underway(np.array([0]))[0].tolist()[:3] == [6, 0, 0]
    np.testing.assert_equal(means.window.underway(np.array([0]))[0][:3], [3, np.nan, np.nan])
    assert sums.show() == "_ _ _ 1"


@given(
    level=st.floats(-1e6, 1e6),
    context=st.integers(1, 7),
    buckets=st.integers(1, 40),
    is_mean=st.booleans(),
)
def test_the_average_of_a_constant_is_that_constant(
    level: float, context: int, buckets: int, *, is_mean: bool
) -> None:
    """From the first bucket on, through many turns of the ring."""
    drawing = Drawing(context, is_mean=is_mean)
    for bucket in range(buckets):
        drawing.put(bucket, level)
        drawing.window.close()
        assert drawing.average == pytest.approx(level, rel=1e-12, abs=1e-12)


@given(
    first=st.integers(-9, 9),
    then=st.lists(st.one_of(st.none(), st.integers(-9, 9)), max_size=60),
    context=st.integers(1, 7),
    is_mean=st.booleans(),
)
def test_the_average_is_the_mean_of_what_is_there(
    first: int, then: list[int | None], context: int, *, is_mean: bool
) -> None:
    """At every close, of the last `context` buckets; a silent one is zero, or in means missing."""
    drawing = Drawing(context, is_mean=is_mean)
    seen: list[float | None] = []
    for bucket, value in enumerate([first, *then]):
        if value is not None:
            drawing.put(bucket, value)
        drawing.window.close()
        seen.append(0.0 if value is None and not is_mean else value)
        there = [v for v in seen[-context:] if v is not None]
        expected = fmean(there) if there else math.nan
        assert drawing.average == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_after_a_million_buckets_the_average_is_the_direct_mean() -> None:
    """To 1e-9, whatever the turn of the ring: nothing builds up."""
    context, stretch, closes = 60, 500, 1_000_000
    drawing = Drawing(context, open_buckets=stretch)
    window, rng = drawing.window, np.random.default_rng(0)
    slots = drawing.table.intern([b"ann"] * stretch, np.zeros(stretch, np.int64))
    worst = 0.0
    for begin in range(0, closes, stretch):
        # Large values first, then small ones, in which what the large ones left behind would show.
        values = rng.lognormal(0.0, 1.0, stretch) * (1e6 if begin < closes // 2 else 1e-3)
        window.absorb(slots, np.arange(begin, begin + stretch) * _MINUTE_MS, values)
        for _ in range(stretch):
            window.close()
        direct = values[-context:].mean()
        if begin != closes // 2:  # the ring has not turned yet since the fall
            worst = max(worst, abs(drawing.average / direct - 1))
    assert window.closed == closes
    assert worst < 1e-9


@pytest.mark.parametrize("is_mean", [False, True])
def test_a_silence_longer_than_the_ring(is_mean: bool) -> None:  # noqa: FBT001  (a parameter)
    """Skipping it leaves the window that closing every bucket leaves, then and later."""
    skipped, closed = (Drawing(context=4, is_mean=is_mean) for _ in range(2))
    for drawing in (skipped, closed):
        drawing.feed("1 2 3 4 5 |")
    until = closed.window.closed + 1000
    while closed.window.closed < until:
        closed.window.close()
    skipped.window.skip(until)
    assert skipped.show() == closed.show()
    assert skipped.average == pytest.approx(closed.average, nan_ok=True)
    for more in ("7 . 2+2 |", ". . . . . |", "1 |"):
        assert skipped.feed(more) == closed.feed(more)
        assert skipped.average == pytest.approx(closed.average, nan_ok=True)


@pytest.mark.parametrize(
    ("date", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-06-01", 24)]
)
def test_a_day_holds_its_local_hours(date: str, hours: int) -> None:
    """One event an hour: the days before, on and after a change of the clocks hold 24, n, 24."""
    midnight = datetime.fromisoformat(date).replace(tzinfo=_ZURICH)
    start_ms = round(midnight.timestamp() * 1000)
    table, calendar = KeyTable(), Calendar("Europe/Zurich")
    daily = Resolution(step="1d", context=3, horizon=1)
    window = Window(table, calendar, daily, open_span_ms=3 * DAY_MS, is_mean=False)
    window.begin(start_ms - 24 * HOUR_MS)
    times_ms = np.arange(start_ms - 24 * HOUR_MS, start_ms + (hours + 24) * HOUR_MS, HOUR_MS)
    slots = table.intern([b"ann"] * len(times_ms), times_ms)
    window.absorb(slots, times_ms, np.ones(len(times_ms)))
    for _ in range(3):
        window.close()
    assert window.values()[0].tolist() == [24, hours, 24]


@pytest.mark.parametrize("lateness_ms", [0, 120_000, 3 * HOUR_MS, 5 * DAY_MS])
@pytest.mark.parametrize(
    ("zone", "date"),
    [
        ("UTC", "2026-01-01"),
        ("Europe/Zurich", "2026-03-29"),
        ("Pacific/Apia", "2011-12-30"),  # a day of no length
        ("Antarctica/Troll", "2026-03-29"),  # a day of 22 hours
    ],
)
@pytest.mark.parametrize("step", ["1m", "1h", "1d"])
def test_the_ring_has_room_for_all_that_can_be_open(
    zone: str, date: str, step: str, lateness_ms: int
) -> None:
    """The last moment that can be open falls into no cell of the context nor of the oldest open."""
    table, calendar = KeyTable(), Calendar(zone)
    resolution = Resolution(step=step, context=2, horizon=1)
    span_ms = lateness_ms + _MINUTE_MS
    window = Window(table, calendar, resolution, open_span_ms=span_ms, is_mean=False)
    around = round(datetime.fromisoformat(date).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1000)
    for hop_ms in range(around - 30 * HOUR_MS, around + 30 * HOUR_MS, 17 * _MINUTE_MS):
        window.begin(hop_ms)
        last = int(calendar.index(hop_ms + span_ms, window.step_ms))
        assert last - window.closed <= window.open


def test_the_cells_used_next_are_empty() -> None:
    """Closing clears the cell that the newest open bucket moves on to."""
    drawing = Drawing(context=4, open_buckets=2)
    size, column = drawing.window.size, drawing.table
    for bucket in range(3 * size):
        drawing.put(bucket, 1.0)
        drawing.window.close()
        ahead = np.arange(drawing.window.closed, drawing.window.closed + drawing.window.open + 1)
        assert (column["window.60000.total"][0, ahead % size] == 0).all()


def test_neighbours_do_not_mix() -> None:
    """Each key has its own row, at the ring's edges too."""
    drawing = Drawing(context=3)
    table, window = drawing.table, drawing.window
    keys = [b"a", b"b", b"c"]
    for bucket in range(2 * window.size):
        times_ms = np.full(3, bucket * _MINUTE_MS)
        window.absorb(table.intern(keys, times_ms), times_ms, np.array([1.0, 10.0, 100.0]))
        window.close()
        average = window.moving_average()
        assert all(b == 10 * a for a, b in pairwise(average.tolist()))


@given(
    counts=st.lists(st.lists(st.integers(0, 2**31), max_size=4), min_size=1, max_size=40),
    context=st.integers(1, 6),
)
def test_counts_are_as_good_as_sums(counts: list[list[int]], context: int) -> None:
    """In half the memory, as long as none is above the largest there is."""
    sums, whole = Drawing(context), Drawing(context, is_count=True)
    for bucket, added in enumerate(counts):
        room = 2**32 - 1
        for count in added:
            for drawing in (sums, whole):
                drawing.put(bucket, min(count, room))
            room -= min(count, room)
        if bucket > 1 and len(sums.table):
            np.testing.assert_array_equal(whole.window.close(), sums.window.close())
            np.testing.assert_array_equal(whole.window.values(), sums.window.values())
            average = sums.window.moving_average()
            np.testing.assert_array_equal(whole.window.moving_average(), average)
    assert whole.table.nbytes < sums.table.nbytes


def test_a_count_ends_at_the_largest_there_is() -> None:
    """There it stays."""
    whole = Drawing(2, is_count=True)
    whole.put(0, 2.0**32 - 2)
    for _ in range(3):
        whole.put(0, 1.0)
    assert whole.window.close().tolist() == [2.0**32 - 1]
