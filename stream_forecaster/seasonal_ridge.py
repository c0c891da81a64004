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
_SPAN = np.arange(1 - _COMMON_SPAN, 1)
_NOW = np.zeros(1, np.int64)
_LARGEST = 8.0
"""A deviation counts for at most so many of its key's own scales."""
_SCALE_RATE = 0.001


class SeasonalRidge(Ridge):
    """A ridge regression, pooled over keys, of deviations from a season."""

    def __init__(
        self,
        table: KeyTable,
        harmonics: Harmonics,
        window: Window,
        horizon: int,
        profile: Profile,
        season: str,
    ) -> None:
        """Add the columns of this expert to `table`.

        Args:
            table: where the keys' scales live.
            harmonics: of the resolution's buckets.
            window: the resolution's.
            horizon: H.
            profile: of a season that learns of a bucket before this expert does.
            season: its name, which this expert's begins with.
        """
        design = Design(f"{season}_ridge", lags=24, forgetting=0.9995, every=24)
        self._lags = min(design.lags, window.context - horizon)
        self._back = np.arange(1 - self._lags, 1)
        self._harmonics = harmonics
        size = self._lags + _COMMON_LAGS + 1 + harmonics.size + 1
        super().__init__(window, horizon, design, self._lags, size)
        self._profile = profile
        self._table, self._column = table, f"experts.{window.step_ms}.{self.name}"
        table.add(self._column, (2,), dtype=np.float32)  # mean square deviation, buckets seen
        self._common = np.zeros(horizon + _COMMON_SPAN)
        self._newest = np.zeros(1, np.int64)

    @override
    def learn(self, index: int, value: Float64) -> None:
        profile, told = self._profile(np.s_[:], index, _NOW)[:, 0], np.empty(len(value))
        told = told[: _tell(value, profile, self._table[self._column], told)]
        # Of buckets that were passed over nothing is known: not what stood in their place before.
        size = len(self._common)
        for unheard in range(max(int(self._newest[0]), index - size) + 1, index + 1):
            self._common[unheard % size] = 0.0
        self._newest[0] = index
        if len(told):
            self._common[index % size] = told.mean()
        super().learn(index, value)

    @override
    def arrays(self) -> dict[str, NDArray[Any]]:
        return {**super().arrays(), "common": self._common, "newest": self._newest}

    @override
    def _row(
        self, slots: Slots, room: Float64, index: int, ahead: Int64
    ) -> tuple[Float64, Float64, Float64]:
        lags, state = self._lags, self._table[self._column][slots]
        profile = self._profile(slots, index, np.concatenate([self._back, ahead]))
        scale, row = np.empty(len(room)), np.empty((len(room), len(self._gram)))
        common = self._common[(index + _SPAN) % len(self._common)]
        mean = common.sum() / _COMMON_SPAN
        _deviate(room, profile, state, common[-_COMMON_LAGS:], mean, scale, row)
        row[:, -1 - self._harmonics.size : -1] = self._harmonics(index)
        return row, profile[:, lags:], scale


# -- loops over keys -----------------------------------------------------------------------------


@compiled("f8:1 f8:1 > f4:2 f8:1 = i8")
def _tell(value: Float64, profile: Float64, state: NDArray[np.float32], told: Float64) -> int:
    """How far values (K,) are from a profile (K,), in scales, one after the other where known.

    State (K, 2) is the mean square deviation and how many were seen. Returns how many are known.
    """
    known = 0
    for k in range(len(value)):
        deviation = value[k] - profile[k]
        if np.isnan(deviation):
            continue
        state[k, 1] += np.float32(1)
        count = min(max(state[k, 1], np.float32(1)), np.float32(1 / _SCALE_RATE))
        square = np.float64(state[k, 0])
        rate = np.float64(np.float32(1) / count)
        state[k, 0] = square + rate * (deviation * deviation - square)
        relative = deviation / np.sqrt(np.float64(state[k, 0])) if state[k, 0] > 0 else np.nan
        if not np.isnan(relative):
            told[known] = min(max(relative, -_LARGEST), _LARGEST)
            known += 1
    return known


@compiled("f8:2 f8:2 f4:2 f8:1 f8 > f8:1 f8:2")
def _deviate(  # noqa: PLR0913, PLR0917  (what a row is made of)
    room: Float64,
    profile: Float64,
    state: NDArray[np.float32],
    common: Float64,
    mean: float,
    scale: Float64,
    row: Float64,
) -> None:
    """How far the buckets of a room (B, L) are from a profile (B, L or more), in scales (B,).

    The first L columns of `row`, and scales, which are by states (B, 2), are NaN where less than
    half is known. Then come what is common, newest last, and its mean; and a one in the end.
    """
    lags = room.shape[1]
    for b in range(len(room)):
        known, square = 0, np.float64(state[b, 0])
        for t in range(lags):
            known += not np.isnan(room[b, t] - profile[b, t])
        scale[b] = np.sqrt(square) if square > 0 and 2 * known >= lags else np.nan
        for t in range(lags):
            deviation = room[b, t] - profile[b, t]
            row[b, t] = (0.0 if np.isnan(deviation) else deviation) / scale[b]
        for t in range(len(common)):
            row[b, lags + t] = common[t]
        row[b, lags + len(common)] = mean
        row[b, -1] = 1.0
