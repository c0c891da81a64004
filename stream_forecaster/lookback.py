"""What was forecast of a few keys before: for the page, which shows it beside what came true.

A shard keeps of its forecasts what it will learn from, and no more. What people want to see, whole
fans of the last hour and who carried them, is kept here, of the keys that somebody looks at and of
a handful that are most active, so that a page that is opened has something to show. It is a glance
back for people: it is not in a checkpoint, and a process begins without it.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from stream_forecaster.forecasts import Forecast
from stream_forecaster.paths import Paths

_ISSUES = 48
"""Fans of a resolution kept of a key."""
_MOST_KEYS = 40
"""Of all who were ever looked at, the last so many are followed."""


@dataclass(frozen=True, slots=True)
class Issue:
    """The forecast of one key at one resolution, as it was published: arrays of one row."""

    issued_ms: int
    paths: Paths


class Lookback:
    """The newest forecast of each key that is followed, and the issues before it."""

    def __init__(self) -> None:
        self._followed: OrderedDict[bytes, list[deque[Issue]]] = OrderedDict()
        self._newest: dict[bytes, Forecast] = {}

    def follow(self, keys: Iterable[bytes]) -> None:
        """From now on keep what is forecast of `keys`; those not named for longest make room."""
        for key in keys:
            self._followed.setdefault(key, [])
            self._followed.move_to_end(key)
        while len(self._followed) > _MOST_KEYS:
            key, _ = self._followed.popitem(last=False)
            self._newest.pop(key, None)

    def hear(self, forecast: Forecast) -> None:
        """Take in what was published at one hop."""
        if not self._followed:
            return
        for key in self._followed.keys() & forecast.expired:
            self.forget(key)
        rows = [row for row, key in enumerate(forecast.keys) if key in self._followed]
        for row in rows:
            # Not the keys that expired: that can be all there were, and has nothing to do with it.
            self._keep(replace(forecast.take(np.array([row], np.int64)), expired=()))

    def forget(self, key: bytes) -> None:
        """A key that was forgotten is not known here either; nothing happens if it was not."""
        self._newest.pop(key, None)
        if key in self._followed:
            self._followed[key] = []

    def newest(self, key: bytes) -> Forecast | None:
        """What was last published of `key` since it is followed; None if nothing was."""
        return self._newest.get(key)

    def issues(self, key: bytes) -> list[list[Issue]]:
        """Per resolution what was published of `key`, oldest first; [] if nothing was."""
        return [list(issues) for issues in self._followed.get(key, ())]

    def _keep(self, forecast: Forecast) -> None:
        (key,) = forecast.keys
        self._newest[key] = forecast
        kept = self._followed[key]
        if len(kept) != len(forecast.paths):
            kept[:] = [deque(maxlen=_ISSUES) for _ in forecast.paths]
        for issues, paths in zip(kept, forecast.paths, strict=True):
            # The path of a coarse resolution is moved every hop; what counts is how it was issued.
            if not issues or issues[-1].paths.start_ms < paths.start_ms:
                issues.append(Issue(forecast.issued_ms, paths))
