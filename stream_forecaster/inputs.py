"""What the network is told: windows, statistics and clues as float32, scaled so that keys compare.

All of it is a function of what the pool knows at a bucket's close; nothing is kept here.

Axes: B keys, T window, H horizon, M experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.architecture import (
    BUCKETS,
    CANDIDATES,
    CHANNELS,
    CLUES,
    PATCH,
    STATISTICS,
)
from stream_forecaster.calendar import DAY_MS, WEEK_MS, Calendar
from stream_forecaster.compiled import compiled, inlined

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

_LONGEST = 72
"""Buckets that the encoder reads; beyond, the experts' paths stand for what was."""


@dataclass(frozen=True, slots=True)
class Timetable:
    """Where buckets stand in the local day and week."""

    calendar: Calendar
    step_ms: int

    def phases(self, index: Int64) -> Float32:
        """Sines and cosines of the day and the week, and is it a weekend: (len(index), 5)."""
        local = self.calendar.local(self.calendar.start(index, self.step_ms) + self.step_ms // 2)
        # 1970-01-01 was a Thursday; weeks begin on Monday.
        week = (local + 3 * DAY_MS) % WEEK_MS
        day = week % DAY_MS * (2 * np.pi / DAY_MS) if self.step_ms < DAY_MS else np.zeros(len(week))
        turn = week * (2 * np.pi / WEEK_MS)
        columns = (np.sin(day), np.cos(day), np.sin(turn), np.cos(turn), week >= 5 * DAY_MS)
        return np.stack(columns, axis=1).astype(np.float32)


def window_length(context: int) -> int:
    """Buckets of the window that the encoder reads: whole patches."""
    return PATCH * -(-min(context, _LONGEST) // PATCH)


def windows(values: Float64, level: Float64, spread: Float64, errors: Float32) -> Float32:
    """The encoder's window (B, T, CHANNELS): value, is it there, error.

    Args:
        values: (B, C) the newest closed buckets, NaN where missing; more than T are cut.
        level: (B,) of the key.
        spread: (B,) of its values.
        errors: (B, T) landed one-step errors in expected errors, oldest first.
    """
    out = np.zeros((*errors.shape, CHANNELS), np.float32)
    _window(values, level, spread, errors, out)
    return out


def statistics(  # noqa: PLR0913  (what is known of a key, each of its own kind)
    values: Float64,
    level: Float64,
    spread: Float64,
    age: Int64,
    now: Float32,
    *,
    step_ms: int,
    is_count: bool,
) -> Float32:
    """(B, STATISTICS) of keys: how large, how wide, how old, and what time it is.

    Args:
        values: (B, C) the closed context, NaN where missing.
        level: (B,) its mean.
        spread: (B,) standard deviation of the key's values.
        age: (B,) closed buckets since the key's first event.
        now: (5,) phases of the newest closed bucket.
        step_ms: bucket width.
        is_count: are the values counts?
    """
    out = np.empty((len(values), STATISTICS), np.float32)
    _describe(values, level, spread, age, now, np.log(DAY_MS / step_ms) / 4, is_count, out)
    return out


def candidates(names: Sequence[str], predictions: Float64, path: Float64, unit: Float64) -> Float32:
    """The experts' paths (B, H, M) in expected errors around the pool's; NaN for no opinion.

    Args:
        names: of the first of the experts; nothing is read of any others.
        predictions: (B, experts, H).
        path: (B, H) the pool's.
        unit: (B, H) its expected error.
    """
    out = np.empty((*path.shape, len(CANDIDATES)), np.float32)
    _relate(_columns(names), predictions, path, unit, out)
    return out


def losses(names: Sequence[str], landed: Float64, bucket: Int64) -> Float32:
    """Landed losses as the decoder takes them (B, H, M): log over the best's, 0 where unknown.

    Args:
        names: of the experts.
        landed: (B, G, experts) mean landed losses.
        bucket: (H,) the horizon bucket of each step, ascending.
    """
    out = np.empty((len(landed), len(bucket), len(CANDIDATES)), np.float32)
    _compare(_columns(names), landed, bucket, out)
    return out


def clues(  # noqa: PLR0913  (likewise)
    path: Float64,
    unit: Float64,
    spread: Float64,
    ahead: Int64,
    phases: Float32,
    now: Float32,
    *,
    is_count: bool,
) -> Float32:
    """(B, H, CLUES) what is known of each step.

    Args:
        path: (B, H) the pool's.
        unit: (B, H) its expected error.
        spread: (B,) of the key's values.
        ahead: (H,) steps ahead, from 1.
        phases: (H, 5) of the targets.
        now: (5,) of the newest closed bucket.
        is_count: are the values counts?
    """
    nothing = np.zeros(len(ahead))
    weekend = phases[:, 4]
    shared = (
        np.log2(ahead) / 4,
        *(nothing, nothing, nothing),  # what each key has of its own
        *(weekend * now[4], weekend - now[4]),
        *phases.T,
        nothing + is_count,
    )
    out = np.empty((*path.shape, CLUES), np.float32)
    out[:] = np.stack(shared, axis=1)
    _size(path, unit, spread, is_count, out)
    return out


def gate_bucket(ahead: Int64) -> Int64:
    """The gate's horizon bucket (H,) of steps ahead: 1, 2, 3-4, 5-8, ...

    >>> gate_bucket(np.array([1, 2, 3, 4, 5, 30, 500])).tolist()
    [0, 1, 2, 2, 3, 5, 7]
    """
    return np.minimum(np.ceil(np.log2(ahead)).astype(np.int64), BUCKETS - 1)


def _columns(names: Sequence[str]) -> Int64:
    """(M,) where each candidate is among `names`; -1: nowhere."""
    return np.array([names.index(c) if c in names else -1 for c in CANDIDATES], np.int64)


# -- loops over keys -------------------------------------------------------------------------------


@inlined
def _clipped(x: float, most: float) -> float:
    """Between -most and most; NaN of NaN."""
    x = min(x, most)
    return max(x, -most)


@compiled("f8:2 f8:1 f8:1 f4:2 > f4:3")
def _window(
    values: Float64, level: Float64, spread: Float64, errors: Float32, out: Float32
) -> None:
    length, context = errors.shape[1], values.shape[1]
    for b in range(len(values)):
        for t in range(max(length - context, 0), length):
            value = values[b, context - length + t]
            if not np.isnan(value):
                out[b, t, 0] = _clipped((value - level[b]) / spread[b], 6.0)
                out[b, t, 1] = 1.0
        for t in range(length):
            out[b, t, 2] = errors[b, t]


_RECENT = 6
"""Newest buckets whose mean is told."""


@compiled("f8:2 f8:1 f8:1 i8:1 f4:1 f8 b1 > f4:2")
def _describe(  # noqa: PLR0913, PLR0917  (a loop has no objects to keep arrays in)
    values: Float64,
    level: Float64,
    spread: Float64,
    age: Int64,
    now: Float32,
    per_day: float,
    is_count: bool,  # noqa: FBT001  (loops have no keywords)
    out: Float32,
) -> None:
    context = values.shape[1]
    recent = min(_RECENT, context)
    for b in range(len(values)):
        seen = zeros = 0
        for t in range(context):
            seen += not np.isnan(values[b, t])
            zeros += values[b, t] == 0
        newest = total = 0.0
        for t in range(context - recent, context):
            known = not np.isnan(values[b, t])
            newest = (values[b, t] - level[b]) / spread[b] if known else 0.0
            total += newest
        seen, size = max(seen, 1), abs(level[b])
        out[b, 0] = np.log1p(size) / 3 if is_count else 0.0
        out[b, 1] = np.log((spread[b] + 1e-6) / (size + spread[b] + 1e-6))
        out[b, 2] = zeros / seen
        out[b, 3] = np.log1p(age[b]) / 4
        out[b, 4] = seen / context
        out[b, 5] = _clipped(newest, 6.0)
        out[b, 6] = _clipped(total / recent, 6.0)
        out[b, 7] = is_count
        out[b, 8] = per_day
        for i in range(len(now)):
            out[b, 9 + i] = now[i]


@compiled("i8:1 f8:3 f8:2 f8:2 > f4:3")
def _relate(
    column: Int64, predictions: Float64, path: Float64, unit: Float64, out: Float32
) -> None:
    keys, horizon = path.shape
    for b in range(keys):
        for h in range(horizon):
            per_unit = 1 / unit[b, h]
            for m in range(len(column)):
                if column[m] < 0:
                    out[b, h, m] = np.nan
                else:
                    apart = predictions[b, column[m], h] - path[b, h]
                    out[b, h, m] = _clipped(apart * per_unit, 8.0)


@compiled("i8:1 f8:3 i8:1 > f4:3")
def _compare(column: Int64, landed: Float64, bucket: Int64, out: Float32) -> None:
    for b in range(len(landed)):
        for h in range(len(bucket)):
            if h and bucket[h] == bucket[h - 1]:
                for m in range(len(column)):
                    out[b, h, m] = out[b, h - 1, m]
                continue
            of = landed[b, bucket[h]]
            best = of[0]
            for loss in of:
                best = min(best, loss)
            for m in range(len(column)):
                out[b, h, m] = 0.0
                if column[m] >= 0:
                    relative = np.log((of[column[m]] + 1e-6) / (best + 1e-6))
                    out[b, h, m] = min(relative, 3.0)


@compiled("f8:2 f8:2 f8:1 b1 > f4:3")
def _size(
    path: Float64,
    unit: Float64,
    spread: Float64,
    is_count: bool,  # noqa: FBT001  (as above)
    out: Float32,
) -> None:
    """What each key has of its own, beside what all have."""
    keys, horizon = path.shape
    for b in range(keys):
        for h in range(horizon):
            if is_count:
                out[b, h, 1] = np.log(max(path[b, h], 0.0) + 0.05) / 2
            out[b, h, 2] = _clipped(np.log(unit[b, h] / (spread[b] + 1e-9)), 4.0)
            out[b, h, 3] = np.log(unit[b, h] / (abs(path[b, h]) + unit[b, h]))
