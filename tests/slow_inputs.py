"""What the network is told again, by arrays as a whole: slow, obviously right; as `inputs`."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.architecture import CANDIDATES, CHANNELS
from stream_forecaster.calendar import DAY_MS

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]


def windows(values: Float64, level: Float64, spread: Float64, errors: Float32) -> Float32:
    """(B, T, CHANNELS)."""
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
    """(B, STATISTICS)."""
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


def candidates(names: Sequence[str], predictions: Float64, path: Float64, unit: Float64) -> Float32:
    """(B, H, M)."""
    out = np.full((*path.shape, len(CANDIDATES)), np.nan, np.float32)
    for i, name in enumerate(CANDIDATES):
        if name in names:
            said = predictions[:, names.index(name)]
            out[:, :, i] = np.clip((said - path) / unit, -8, 8)
    return out


def losses(names: Sequence[str], landed: Float64, bucket: Int64) -> Float32:
    """(B, H, M)."""
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
    """(B, H, CLUES)."""
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
