"""The windows again, with dictionaries: slow and obviously right.

One record at a time; every value is worked out from the list of all events a key has had since it
was last forgotten.
"""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from streams import Row

from stream_forecaster.config import Settings


class Oracle:
    """What a shard should know, for zones without daylight saving and steps below a day.

    Attributes:
        events: key -> (time, value) of all its events since it was last forgotten.
        rejected: how many records were rejects.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.events: dict[bytes, list[tuple[int, float]]] = defaultdict(list)
        self.rejected = 0
        self.newest_ms = -math.inf

    def advance(self, log: Sequence[Row]) -> None:
        """Take in records, one at a time."""
        for record_key, value, broker_ms in log:
            if value is None:
                if broker_ms >= 0:
                    self._move_time(broker_ms)
                if record_key:
                    self.events.pop(record_key, None)
                continue
            event = self._decode(value, broker_ms)
            if event is None or event[1] < self.closed(0):
                self.rejected += 1
                continue
            key, time_ms, number = event
            self._move_time(time_ms)
            self.events[key].append((time_ms, number))

    def closed(self, resolution: int) -> float:
        """The time up to which buckets are closed: the hop, cut down to the resolution's step."""
        hop = self._floor(self.newest_ms - self.settings.input.allowed_lateness_ms, 0)
        return self._floor(hop, resolution)

    def values(self, key: bytes, resolution: int) -> list[float]:
        """The closed context, oldest first, NaN where missing."""
        step_ms = self.settings.resolutions[resolution].step_ms
        context = self.settings.resolutions[resolution].context
        end = self.closed(resolution)
        return [self._bucket(key, end - i * step_ms, step_ms) for i in range(context, 0, -1)]

    def moving_average(self, key: bytes, resolution: int) -> float:
        """The mean of the context's buckets that are not missing."""
        there = [v for v in self.values(key, resolution) if not math.isnan(v)]
        return fmean(there) if there else math.nan

    def _bucket(self, key: bytes, start: float, step_ms: int) -> float:
        events = self.events[key]
        inside = [value for time_ms, value in events if start <= time_ms < start + step_ms]
        aggregate = self.settings.input.aggregate
        if aggregate == "mean":
            return fmean(inside) if inside else math.nan
        if start + step_ms <= min(time_ms for time_ms, _ in events):
            return math.nan
        return float(len(inside)) if aggregate == "count" else math.fsum(inside)

    def _move_time(self, time_ms: int) -> None:
        before = self.closed(0)
        self.newest_ms = max(self.newest_ms, time_ms)
        if before != -math.inf and self.closed(0) > before:
            stale = self.closed(0) - self.settings.state.key_ttl_ms
            for key in [k for k, e in self.events.items() if max(t for t, _ in e) < stale]:
                del self.events[key]

    def _floor(self, time_ms: float, resolution: int) -> float:
        step_ms = self.settings.resolutions[resolution].step_ms
        return time_ms // step_ms * step_ms if math.isfinite(time_ms) else time_ms

    def _decode(self, value: bytes, broker_ms: int) -> tuple[bytes, int, float] | None:
        try:
            row = json.loads(value)
            number = row["v"] if self.settings.input.value else 1.0
            return row["user_id"].encode(), row.get("ts", broker_ms), number
        except (ValueError, KeyError, TypeError):
            return None
