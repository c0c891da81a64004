"""Rolling windows: one ring of buckets per key at one resolution, with its moving average.

Theory of operation. Time is cut into buckets, numbered by the calendar. A ring of W cells holds the
last `context` closed buckets, the open ones, and one spare:

      closed (context)              open            spare
    ├──┬──┬──┬──┬──┬──┬──┬──┬──┼──┬──┬──┬──┼──┤     position of bucket i = i % W
                             ▲ │
              newest closed ─┘ └─ self.closed: the first open bucket

Events are added to open buckets, one write per event. Closing a bucket makes its value final, adds
it to the span that the moving average is taken over and takes out the one that falls off the far
end, whose cell becomes the spare. Per closed bucket that is O(1) per key; the span is summed afresh
whenever the ring wraps, so rounding cannot build up.

Rules of residence:
1. Values are float64, and sums are added in log order, one event after the other, which gives the
   same bits however the log is cut. Counts are uint32, and 4,294,967,295 for all that is more.
2. A bucket before a key's first event is *missing* (NaN on reading), not zero: a newcomer's average
   divides by the buckets it was there for. With aggregate "mean" so is a bucket without events.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.calendar import DAY_MS, HOUR_MS, Calendar
from stream_forecaster.compiled import compiled
from stream_forecaster.config import Resolution
from stream_forecaster.keys import KeyTable

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_NEVER = np.iinfo(np.int64).max
_UNSET = np.iinfo(np.int64).min
_NO_COUNTS = np.empty((0, 0))


class Window:
    """The rings of all slots at one resolution.

    Attributes:
        closed: index of the first open bucket; every bucket before it is closed for ever.
    """

    def __init__(
        self,
        table: KeyTable,
        calendar: Calendar,
        resolution: Resolution,
        *,
        open_span_ms: int,
        is_mean: bool,
        is_count: bool = False,
    ) -> None:
        """Add this window's columns to `table`.

        Args:
            table: where the rings live.
            calendar: numbers the buckets.
            resolution: step and context.
            open_span_ms: the longest stretch of event time that can be open at once.
            is_mean: a bucket's value is the mean of its events, else their sum.
            is_count: values are whole numbers, for which half the memory does.
        """
        self.step_ms = resolution.step_ms
        self.context = resolution.context
        self.closed = _UNSET
        self._table, self._calendar, self._is_mean = table, calendar, is_mean
        # A span of s ms touches at most s // step + 2 buckets; a local day may have 23 hours.
        shortest_ms = resolution.step_ms - HOUR_MS * (resolution.step_ms % DAY_MS == 0)
        self.open = open_span_ms // shortest_ms + 2
        self.size = self.context + self.open + 1
        self._name = f"window.{resolution.step_ms}"
        kind = np.uint32 if is_count else np.float64
        self._most = float(np.iinfo(np.uint32).max) if is_count else np.inf
        self._unroll = _unroll_counts if is_count else _unroll
        self._absorb = _absorb_counts if is_count else _absorb
        self._turn = _turn_counts if is_count else _turn
        table.add(f"{self._name}.total", (self.size,), dtype=kind)
        if is_mean:
            table.add(f"{self._name}.count", (self.size,), dtype=np.float64)
        table.add(f"{self._name}.first", dtype=np.int64, fill=_NEVER)
        table.add(f"{self._name}.span_total", dtype=np.float64)
        table.add(f"{self._name}.span_count", dtype=np.float32)

    @property
    def oldest(self) -> int:
        """Closed buckets of the key that has most of them; at most 0: there are none."""
        return self.closed - int(self._column("first").min(initial=self.closed))

    def begin(self, time_ms: int) -> None:
        """Open the bucket of `time_ms` as the first one."""
        self.closed = int(self._calendar.index(time_ms, self.step_ms))

    def absorb(self, slots: Int64, time_ms: Int64, value: Float64) -> None:
        """Add events (N,) to their open buckets. None may be earlier than `closed`'s start."""
        if not len(slots):
            return
        step_ms = self.step_ms
        ends = self._calendar.index(np.array([time_ms.min(), time_ms.max()]), step_ms)
        index = np.arange(ends[0], ends[1] + 2)
        start_ms = self._calendar.start(index, step_ms)
        count = self._column("count") if self._is_mean else _NO_COUNTS
        values = np.asarray(value, np.float64)
        written = self._column("total"), count, self._column("first")
        self._absorb(slots, time_ms, values, start_ms, int(index[0]), self._most, *written)

    def close(self) -> Float64:
        """Close the first open bucket; its values (K,), NaN where missing."""
        index, total, first = self.closed, self._column("total"), self._column("first")
        count = self._column("count") if self._is_mean else _NO_COUNTS
        entered, left = np.empty((2, len(first)))
        self._turn(index, self.context, first, total, count, entered, left)
        self.closed = index + 1
        if index % self.size == 0:
            self._sum_span()
        else:
            _move_span(entered, left, self._column("span_total"), self._column("span_count"))
        return entered

    def skip(self, until: int) -> None:
        """Close all buckets before `until` as silent, in one step.

        For a silence longer than the whole ring; no open bucket may hold events.
        """
        self.closed = until
        self._column("total")[:] = np.nan if self._is_mean else 0.0
        if self._is_mean:
            self._column("count")[:] = 0.0
        position = np.arange(until, until + self.open + 1) % self.size
        self._column("total")[:, position] = 0.0
        self._sum_span()

    def values(self, slots: Int64 | slice = np.s_[:], newest: int | None = None) -> Float64:
        """The closed context of some slots, oldest bucket first, NaN where missing: (B, T).

        Or of it the `newest` so many buckets alone.
        """
        rows = self._table.rows(slots)
        values = np.empty((len(rows), self.context if newest is None else newest))
        self._unroll(self._column("total"), self._column("first"), rows, self.closed, values)
        return values

    def value(self, index: int) -> Float64:
        """What closed bucket `index` holds (K,); NaN where missing or not in the context."""
        first = self._column("first")
        if not self.closed - self.context <= index < self.closed:
            return np.full(len(first), np.nan)
        held = self._column("total")[:, index % self.size].astype(np.float64)
        return np.where(index >= first, held, np.nan)

    def underway(self, slots: Int64) -> Float64:
        """What the open buckets of `slots` (B,) hold so far, (B, open); NaN where missing."""
        index = self.closed + np.arange(self.open)
        total = self._column("total")[slots][:, index % self.size].astype(np.float64)
        missing = index < self.first(slots)[:, None]
        if self._is_mean:
            count = self._column("count")[slots][:, index % self.size]
            total, missing = total / np.maximum(count, 1.0), count == 0
        return np.where(missing, np.nan, total)

    def first(self, slots: Int64 | slice = np.s_[:]) -> Int64:
        """(B,) the bucket of each key's first event."""
        first: Int64 = self._column("first")[slots]
        return first

    def age(self, slots: Int64 | slice = np.s_[:]) -> Int64:
        """(B,) closed buckets since each key's first event, that one included; at most 0: none."""
        age: Int64 = self.closed - np.minimum(self._column("first")[slots], self.closed)
        return age

    def moving_average(self, slots: Int64 | slice = np.s_[:]) -> Float64:
        """Mean of the closed context's buckets that are not missing (B,); NaN where all are."""
        total, count = self._column("span_total")[slots], self._column("span_count")[slots]
        average = np.empty(len(total))
        _divide(total, count, average)
        return average

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is not in the table."""
        return {"closed": np.array([self.closed], np.int64)}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `arrays`."""
        self.closed = int(arrays["closed"][0])

    def _sum_span(self) -> None:
        values = self.values()
        self._column("span_total")[:] = np.nansum(values, axis=1)
        self._column("span_count")[:] = np.sum(~np.isnan(values), axis=1)

    def _column(self, name: str) -> NDArray[Any]:
        return self._table[f"{self._name}.{name}"]


# -- loops over events and keys ------------------------------------------------------------------


def _absorbed(  # noqa: PLR0913, PLR0917  (a loop has no objects to keep arrays in)
    slots: Int64,
    time_ms: Int64,
    value: Float64,
    start_ms: Int64,
    base: int,
    most: float,
    total: Float64 | NDArray[np.uint32],
    count: Float64,
    first: Int64,
) -> None:
    """Add events to their cells one after the other; `start_ms` is of the buckets from `base` on.

    The next event is mostly in the bucket of the last one, or not far from it.
    """
    bucket, size = 0, total.shape[1]
    for i in range(len(slots)):
        while time_ms[i] >= start_ms[bucket + 1]:
            bucket += 1
        while time_ms[i] < start_ms[bucket]:
            bucket -= 1
        at = (base + bucket) % size
        total[slots[i], at] = min(np.float64(total[slots[i], at]) + value[i], most)
        if len(count):
            count[slots[i], at] += 1.0
        first[slots[i]] = min(first[slots[i]], base + bucket)


_absorb = compiled("i8:1 i8:1 f8:1 i8:1 i8 f8 > f8:2 f8:2 i8:1")(_absorbed)
_absorb_counts = compiled("i8:1 i8:1 f8:1 i8:1 i8 f8 > u4:2 f8:2 i8:1")(_absorbed)


def _unrolled(
    total: Float64 | NDArray[np.uint32], first: Int64, rows: Int64, closed: int, values: Float64
) -> None:
    """Values (B, T) of rings (K, W), oldest first; NaN before a key's first bucket."""
    size, context = total.shape[1], values.shape[1]
    oldest = closed - context
    at = oldest % size
    straight = min(context, size - at)  # until the ring wraps
    for b in range(len(rows)):
        ring, held = total[rows[b]], values[b]
        for t in range(straight):
            held[t] = ring[at + t]
        for t in range(straight, context):
            held[t] = ring[at + t - size]
        for t in range(min(first[rows[b]], closed) - oldest):
            held[t] = np.nan


_unroll = compiled("f8:2 i8:1 i8:1 i8 > f8:2")(_unrolled)
_unroll_counts = compiled("u4:2 i8:1 i8:1 i8 > f8:2")(_unrolled)


def _turned(  # noqa: PLR0913, PLR0917  (likewise)
    index: int,
    context: int,
    first: Int64,
    total: Float64 | NDArray[np.uint32],
    count: Float64,
    entered: Float64,
    left: Float64,
) -> None:
    """Close bucket `index` of rings (K, W): what enters the context (K,), and what leaves it.

    Totals become means where there are counts. The cell of what leaves is free again.
    """
    size = total.shape[1]
    position, leaving = index % size, (index - context) % size
    for k in range(len(first)):
        left[k] = total[k, leaving] if index - context >= first[k] else np.nan
        if len(count):
            total[k, position] /= count[k, position]  # 0 / 0: no events, hence missing
            count[k, leaving] = 0.0
        entered[k] = total[k, position] if index >= first[k] else np.nan
        total[k, leaving] = 0.0


_turn = compiled("i8 i8 i8:1 > f8:2 f8:2 f8:1 f8:1")(_turned)
_turn_counts = compiled("i8 i8 i8:1 > u4:2 f8:2 f8:1 f8:1")(_turned)


@compiled("f8:1 f8:1 > f8:1 f4:1")
def _move_span(entered: Float64, left: Float64, total: Float64, count: NDArray[np.float32]) -> None:
    """Add what entered (K,), and take out what left, of sums and of how many are known (K,)."""
    for k in range(len(total)):
        came, went = not np.isnan(entered[k]), not np.isnan(left[k])
        total[k] += (entered[k] if came else 0.0) - (left[k] if went else 0.0)
        count[k] += came - went


@compiled("f8:1 f4:1 > f8:1")
def _divide(total: Float64, count: NDArray[np.float32], average: Float64) -> None:
    """The means of sums (B,) of so many (B,); NaN of none."""
    for b in range(len(total)):
        average[b] = total[b] / count[b] if count[b] > 0 else np.nan
