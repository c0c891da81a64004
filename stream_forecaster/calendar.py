"""Civil time in one zone: which bucket a moment falls into, which phase, and what kind of day.

Steps below a day divide UTC evenly. Steps of whole days follow local midnight, so that a day has
23 or 25 hours when the clocks change. All of it is arithmetic on arrays; the zone's rules are read
once, into two small tables.
"""

from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
WEEK_MS = 7 * DAY_MS
EARLIEST_MS = 0
LATEST_MS = 4_102_444_800_000
"""1970-01-01 to 2100-01-01 UTC: the times that an event may have."""

# 1970-01-01 was a Thursday; weeks begin on Monday.
_MONDAY_SHIFT_MS = 3 * DAY_MS
_MARGIN_DAYS = 3_000
"""How far beyond them an hour may lie that a window reaches back to, or a horizon on to."""
# No zone changes its offset twice within six days; the shortest summer time, in Recife in 2000, was
# an hour short of a week.
_SAMPLE_MS = 6 * DAY_MS


@dataclass(frozen=True)
class Calendar:
    """Buckets and phases in one IANA time zone, where some dates are `holidays`.

    >>> zurich = Calendar("Europe/Zurich")
    >>> start = zurich.start(zurich.index(1_774_742_400_000, DAY_MS), DAY_MS)  # 29 March 2026
    >>> int(zurich.start(zurich.index(int(start), DAY_MS) + 1, DAY_MS) - start) // HOUR_MS
    23
    """

    timezone: str
    holidays: tuple[date, ...] = ()
    _change_ms: Int64 = field(init=False, repr=False)
    _offset_ms: Int64 = field(init=False, repr=False)
    _midnight_ms: Int64 = field(init=False, repr=False)
    _day_type: Int64 = field(init=False, repr=False)  # of days since 1970-01-01

    def __post_init__(self) -> None:
        change, offset = _transitions(ZoneInfo(self.timezone))
        object.__setattr__(self, "_change_ms", change)
        object.__setattr__(self, "_offset_ms", offset)
        object.__setattr__(self, "_midnight_ms", self._midnights())
        object.__setattr__(self, "_day_type", self._day_types())

    def index(self, time_ms: Int64 | int, step_ms: int) -> Int64:
        """The bucket that `time_ms` falls into; ascends with time, consecutive for neighbours."""
        time = np.asarray(time_ms, np.int64)
        if step_ms % DAY_MS:
            return time // step_ms
        day = np.searchsorted(self._midnight_ms, time, side="right") - 1
        return day.astype(np.int64) // (step_ms // DAY_MS)

    def start(self, index: Int64 | int, step_ms: int) -> Int64:
        """The first moment of bucket `index`, epoch ms."""
        bucket = np.asarray(index, np.int64)
        if step_ms % DAY_MS:
            return bucket * step_ms
        day = bucket * (step_ms // DAY_MS)
        last = len(self._midnight_ms) - 1
        # Past the table (the horizon of an event in December 2099) days are 24 hours.
        known = np.minimum(np.maximum(day, 0), last)
        return self._midnight_ms[known] + (day - known) * DAY_MS

    def local(self, time_ms: Int64 | int) -> Int64:
        """The wall clock's reading as if it were UTC, ms."""
        time = np.asarray(time_ms, np.int64)
        return time + self._offset_ms[np.searchsorted(self._change_ms, time, side="right")]

    def phase(self, time_ms: Int64 | int, period_ms: int, width_ms: int) -> Int64:
        """Which of the `period_ms // width_ms` parts of the local day or week a moment is in."""
        return (self.local(time_ms) + _MONDAY_SHIFT_MS) % period_ms // width_ms

    def day_type(self, time_ms: Int64 | int) -> Int64:
        """0 from Monday to Friday, 1 on Saturdays, 2 on Sundays and holidays."""
        return self._day_type[self.local(time_ms) // DAY_MS + _MARGIN_DAYS]

    def from_local(self, local_ms: int) -> int:
        """The moment at which the wall clock reads `local_ms`, as `zoneinfo` has it with fold 0.

        The earlier one of two; where the clocks skip a reading, as if they had not changed yet.
        """
        until = self._change_ms + np.maximum(self._offset_ms[:-1], self._offset_ms[1:])
        return local_ms - int(self._offset_ms[np.searchsorted(until, local_ms, side="right")])

    def _day_types(self) -> Int64:
        """(days,) of each local day from the margin before 1970 on, to the one after 2099."""
        day = np.arange(-_MARGIN_DAYS, LATEST_MS // DAY_MS + _MARGIN_DAYS)
        types = np.clip((day + _MONDAY_SHIFT_MS // DAY_MS) % 7 - 4, 0, 2)
        holiday = np.array(self.holidays, "datetime64[D]").astype(np.int64)
        types[np.isin(day, holiday)] = 2
        return types

    def _midnights(self) -> Int64:
        """(days,) the first moment of each local day since 1970-01-01.

        The first, not "the" one: where the clocks spring forward at midnight there is no 00:00,
        and where they fall back over it there are two.
        """
        day = np.arange((LATEST_MS + WEEK_MS) // DAY_MS, dtype=np.int64) * DAY_MS
        at = np.searchsorted(self._change_ms, day)
        starts = np.full(len(day), np.iinfo(np.int64).max)
        for shift in (-1, 0, 1):
            candidate = day - self._offset_ms[np.clip(at + shift, 0, len(self._offset_ms) - 1)]
            reached = self.local(candidate) >= day
            starts = np.where(reached, np.minimum(starts, candidate), starts)
        return starts


def _transitions(zone: ZoneInfo) -> tuple[Int64, Int64]:
    """Moments (C,) at which the zone's offset changes, and the offsets (C + 1,) between them."""

    def offset(time_ms: int) -> int:
        delta = datetime.fromtimestamp(time_ms / 1000, UTC).astimezone(zone).utcoffset()
        return round(delta.total_seconds() * 1000) if delta is not None else 0

    changes: list[int] = []
    offsets = [offset(EARLIEST_MS)]
    for after in range(EARLIEST_MS + _SAMPLE_MS, LATEST_MS + 2 * _SAMPLE_MS, _SAMPLE_MS):
        if (now := offset(after)) == offsets[-1]:
            continue
        low, high = after - _SAMPLE_MS, after
        while high - low > 1000:
            middle = (low + high) // 2000 * 1000
            low, high = (low, middle) if offset(middle) == now else (middle, high)
        changes.append(high)
        offsets.append(now)
    return np.array(changes, np.int64), np.array(offsets, np.int64)
