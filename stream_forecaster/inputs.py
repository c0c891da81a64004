"""What the network is told: windows, statistics and clues as float32, scaled so that keys compare.

All of it is a function of what the pool knows at a bucket's close; nothing is kept here.

Axes: B keys, T window, H horizon, M experts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.architecture import BUCKETS, CANDIDATES, CHANNELS, PATCH
from stream_forecaster.calendar import DAY_MS, WEEK_MS, Calendar

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
    """The encoder's window (B, T, CHANNELS).

    Args:
        values: (B, C) the newest closed buckets, NaN where missing; C at most T.
        level: (B,) of the key.
        spread: (B,) of its values.
        errors: (B, T) landed one-step errors in expected errors, oldest first.
    """
    b, t = errors.shape
    out = np.zeros((b, t, CHANNELS), np.float32)
    values = values[:, -t:]
    known = ~np.isnan(values)
    scaled = np.clip((values - level[:, None]) / spread[:, None], -6, 6)
    out[:, t - values.shape[1] :, 0] = np.where(known, scaled, 0)
    out[:, t - values.shape[1] :, 1] = known
    out[:, :, 2] = errors
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
    known = ~np.isnan(values)
    seen = np.maximum(known.sum(axis=1), 1)
    newest = np.where(known[:, -1], (values[:, -1] - level) / spread, 0.0)
    recent = np.where(known[:, -6:], (values[:, -6:] - level[:, None]) / spread[:, None], 0.0)
    columns = (
        np.log1p(np.abs(level)) / 3 if is_count else np.zeros(len(level)),
        np.log((spread + 1e-6) / (np.abs(level) + spread + 1e-6)),
        (known & (values == 0)).sum(axis=1) / seen,
        np.log1p(age) / 4,
        seen / values.shape[1],
        np.clip(newest, -6, 6),
        np.clip(recent.mean(axis=1), -6, 6),
        np.full(len(level), float(is_count)),
        np.full(len(level), np.log(DAY_MS / step_ms) / 4),
    )
    own = np.stack(columns, axis=1)
    return np.concatenate([own, np.tile(now, (len(own), 1))], axis=1).astype(np.float32)


def candidates(predictions: Mapping[str, Float64], path: Float64, unit: Float64) -> Float32:
    """The experts' paths (B, H, M) in expected errors around the pool's; NaN for no opinion."""
    out = np.full((*path.shape, len(CANDIDATES)), np.nan, np.float32)
    for i, name in enumerate(CANDIDATES):
        if name in predictions:
            out[:, :, i] = np.clip((predictions[name] - path) / unit, -8, 8)
    return out


def losses(landed: Float64, names: Sequence[str], bucket: Int64) -> Float32:
    """Landed losses as the decoder takes them (B, H, M): log over the best's, 0 where unknown.

    Args:
        landed: (B, G, experts) mean landed losses.
        names: of the experts.
        bucket: (H,) the horizon bucket of each step.
    """
    best = landed.min(axis=2, keepdims=True)
    relative = np.minimum(np.log((landed + 1e-6) / (best + 1e-6)), 3.0)
    out = np.zeros((*landed.shape[:2], len(CANDIDATES)), np.float32)
    for i, name in enumerate(CANDIDATES):
        if name in names:
            out[:, :, i] = relative[:, :, names.index(name)]
    return out.take(bucket, axis=1)


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
    size = np.log(np.maximum(path, 0) + 0.05) / 2 if is_count else np.zeros_like(path)
    columns = (
        np.broadcast_to(np.log2(ahead) / 4, path.shape),
        size,
        np.log(unit / (spread[:, None] + 1e-9)).clip(-4, 4),
        np.log(unit / (np.abs(path) + unit)),
        np.broadcast_to(phases[:, 4] * now[4], path.shape),
        np.broadcast_to(phases[:, 4] - now[4], path.shape),
    )
    own = np.stack(columns, axis=2)
    shared = np.broadcast_to(phases, (len(path), *phases.shape))
    flag = np.full((*path.shape, 1), float(is_count))
    return np.concatenate([own, shared, flag], axis=2).astype(np.float32)


def gate_bucket(ahead: Int64) -> Int64:
    """The gate's horizon bucket (H,) of steps ahead: 1, 2, 3-4, 5-8, ...

    >>> gate_bucket(np.array([1, 2, 3, 4, 5, 30, 500])).tolist()
    [0, 1, 2, 2, 3, 5, 7]
    """
    return np.minimum(np.ceil(np.log2(ahead)).astype(np.int64), BUCKETS - 1)
