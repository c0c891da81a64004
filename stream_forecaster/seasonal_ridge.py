"""Ridge regression of how far the next H buckets will be from their season: experts of the pool.

A season (an hour of a type of day, say) is one kind of memory and an autoregression is another.
Here the second works on what the first leaves: the newest deviations of a key from its profile,
those of all keys together, and the time of day foretell the next deviations. What the keys have in
common is what no regression of a key on itself can know: one airport's fog delays all that fly.

As in `regression`, the rows are built afresh from the window's ring and nothing waits for its
labels. The profile is taken as it stands when a row is built, so it has already seen a little of
the labels that a row is trained on; as those have landed, nothing leaks, and the regression is only
told of slightly smaller deviations than it will meet.

What is common to all keys is one number a bucket: the mean of their deviations, each in its own
scale and clipped, so that one burst is not everybody's. It is kept in a ring:

    newest closed bucket ─┐
    ┌──── lags ────┐┌─ H ─┐         a row is trained at its left border, and
    ├──┬──┬──┬──┬──┼──┬──┬┤         a forecast is made at the right one
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from stream_forecaster.calendar import Calendar
from stream_forecaster.compiled import compiled
from stream_forecaster.keys import KeyTable
from stream_forecaster.regression import Design, Harmonics, Ridge, Slots
from stream_forecaster.windows import Window

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Profile = Callable[[Slots, int, Int64], Float64]
"""What a season says of slots (B,) so many steps (N,) after a bucket, or before it: (B, N)."""

_COMMON_LAGS = 6
_COMMON_SPAN = 24
"""Buckets that the mean of what is common is taken over."""
_LARGEST = 8.0
"""A deviation counts for at most so many of its key's own scales."""
_SCALE_RATE = 0.001


class SeasonalRidge(Ridge):
    """A ridge regression, pooled over keys, of deviations from a season."""

    def __init__(
        self,
        table: KeyTable,
        calendar: Calendar,
        window: Window,
        horizon: int,
        profile: Profile,
        season: str,
    ) -> None:
        """Add the columns of this expert to `table`.

        Args:
            table: where the keys' scales live.
            calendar: numbers the buckets.
            window: the resolution's.
            horizon: H.
            profile: of a season that learns of a bucket before this expert does.
            season: its name, which this expert's begins with.
        """
        design = Design(f"{season}_ridge", lags=24, forgetting=0.9995, every=24)
        self._lags = min(design.lags, window.context - horizon)
        self._harmonics = Harmonics(calendar, window.step_ms)
        size = self._lags + _COMMON_LAGS + 1 + self._harmonics.size + 1
        super().__init__(window, horizon, design, self._lags, size)
        self._profile = profile
        self._table, self._column = table, f"experts.{window.step_ms}.{self.name}"
        table.add(self._column, (2,), dtype=np.float32)  # mean square deviation, buckets seen
        self._common = np.zeros(horizon + _COMMON_SPAN)
        self._newest = np.zeros(1, np.int64)

    @override
    def learn(self, index: int, value: Float64) -> None:
        deviation = value - self._profile(np.s_[:], index, np.zeros(1, np.int64))[:, 0]
        seen = ~np.isnan(deviation)
        square, count = self._table[self._column].T
        count += seen
        rate = 1 / np.clip(count, 1, 1 / _SCALE_RATE)
        square += np.where(seen, rate * (deviation**2 - square), 0.0)
        # Of buckets that were passed over nothing is known: not what stood in their place before.
        unheard = np.arange(max(int(self._newest[0]), index - len(self._common)) + 1, index + 1)
        self._common[unheard % len(self._common)] = 0.0
        self._newest[0] = index
        told = deviation / self._scale(np.s_[:])
        told = told[~np.isnan(told)]
        if len(told):
            mean = np.clip(told, -_LARGEST, _LARGEST).mean()
            self._common[index % len(self._common)] = mean
        super().learn(index, value)

    @override
    def arrays(self) -> dict[str, NDArray[Any]]:
        return {**super().arrays(), "common": self._common, "newest": self._newest}

    @override
    def _row(
        self, slots: Slots, room: Float64, index: int, ahead: Int64
    ) -> tuple[Float64, Float64, Float64]:
        lags = self._lags
        profile = self._profile(slots, index, np.concatenate([np.arange(1 - lags, 1), ahead]))
        scale, row = self._scale(slots), np.empty((len(room), len(self._gram)))
        _deviate(room, profile, scale, row)
        common = self._common[np.arange(index - _COMMON_SPAN + 1, index + 1) % len(self._common)]
        shared = [*common[-_COMMON_LAGS:], common.mean(), *self._harmonics(index), 1.0]
        row[:, lags:] = shared
        return row, profile[:, lags:], scale[:, None]

    def _scale(self, slots: Slots) -> Float64:
        """(B,) root mean square deviation; NaN for a key that has not deviated yet."""
        square = self._table[self._column][slots, 0].astype(np.float64)
        return np.sqrt(np.where(square > 0, square, np.nan))


# -- loops over keys -----------------------------------------------------------------------------


@compiled("f8:2 f8:2 > f8:1 f8:2")
def _deviate(room: Float64, profile: Float64, scale: Float64, row: Float64) -> None:
    """How far the buckets of a room (B, L) are from a profile (B, L or more), in scales (B,).

    The first L columns of `row`, and scales, are NaN where less than half is known.
    """
    lags = room.shape[1]
    for b in range(len(room)):
        known = 0
        for t in range(lags):
            known += not np.isnan(room[b, t] - profile[b, t])
        if 2 * known < lags:
            scale[b] = np.nan
        for t in range(lags):
            deviation = room[b, t] - profile[b, t]
            row[b, t] = (0.0 if np.isnan(deviation) else deviation) / scale[b]
