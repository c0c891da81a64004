"""Forecasts read back from messages, the naive rows, and what both score.

All scores at horizon h are over every step 1..h of every origin. A forecast issued when bucket i
begins has its origin at i - 1, the last bucket it could have seen.
"""

from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache

import numpy as np
import orjson
from numpy.typing import NDArray

from benchmarks.protocol.streams import LEVELS, Float64, Truth

Float32 = NDArray[np.float32]

_DECILES = range(1, 10)
_MEDIAN = LEVELS.index(0.5)
_INTERVALS = {"coverage_80": (1, 9), "coverage_95": (0, 10)}
_EWMA_RATES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)


def read_paths(lines: Iterable[bytes], truth: Truth, horizon: int) -> Float32:
    """The published paths of the finest resolution: (N, K, 1 + Q, H), the mean first.

    Args:
        lines: message values, as `backtest --forecasts` writes them.
        truth: whose keys and origins to look for; what else there is is passed over.
        horizon: H.

    Raises:
        ValueError: forecasts are missing.
    """
    column = {key: k for k, key in enumerate(truth.keys)}
    levels = [str(level) for level in LEVELS]
    origins = len(truth.values) - truth.first
    paths = np.full((origins, len(column), 1 + len(levels), horizon), np.nan, np.float32)
    for line in lines:
        message = orjson.loads(line)
        fine = message["resolutions"][0]
        bucket = (_epoch_ms(fine["start"]) - truth.begin_ms) // truth.step_ms
        key, row = column.get(message["key"]), bucket - truth.first
        if key is not None and 0 <= row < origins:
            quantiles = fine["quantiles"]
            paths[row, key] = [fine["mean"], *(quantiles[level] for level in levels)]
    # Only origins whose first step is known are scored; the last of all has none.
    if missing := int(np.isnan(paths[:, :, 0, 0]).sum()):
        raise ValueError(f"{missing:,} of {origins * len(column):,} forecasts are missing")
    return paths


def score(truth: Truth, paths: Float32, horizon: int) -> dict[str, float]:
    """What published paths (N, K, 1 + Q, H) score over the steps 1..`horizon`."""
    targets = truth.targets(horizon)
    paths = paths[: len(targets), :, :, :horizon]
    median = paths[:, :, 1 + _MEDIAN].astype(np.float64)
    total = np.abs(targets).sum()
    pinball = [_pinball(targets, paths[:, :, 1 + q], LEVELS[q]) for q in _DECILES]
    found = score_points(truth, paths[:, :, 0].astype(np.float64), horizon)
    found["wql"] = float(2 * np.mean(pinball) / total)
    found["mase_median"] = score_points(truth, median, horizon)["mase"]
    for name, (low, high) in _INTERVALS.items():
        inside = (paths[:, :, 1 + low] <= targets) & (targets <= paths[:, :, 1 + high])
        found[name] = float(inside.mean())
    found["off"] = max(_off(targets, paths[:, :, 1 + q], level) for q, level in enumerate(LEVELS))
    return found


def score_points(truth: Truth, points: Float64, horizon: int) -> dict[str, float]:
    """What points (N, K, h) score; WQL as of quantiles that all lie there.

    MSE and MAE are in units of each key's warm-up deviation. MASE is per key, then averaged.
    """
    targets = truth.targets(horizon)
    error = points[: len(targets)] - targets
    standard = error / truth.unit[:, None]
    return {
        "mse": float(np.mean(standard**2)),
        "mae": float(np.mean(np.abs(standard))),
        "wql": float(np.abs(error).sum() / np.abs(targets).sum()),
        "mase": float(np.mean(np.abs(error).mean(axis=(0, 2)) / truth.mase_unit)),
        "origins": len(targets),
    }


def naive_scores(truth: Truth, horizon: int) -> dict[str, dict[str, float]]:
    """What the simple forecasters score on the same origins."""
    values, origins = truth.values, np.arange(truth.first - 1, len(truth.values) - horizon)
    third = (values[origins] + values[origins - 1] + values[origins - 2]) / 3
    smooth = _tuned_average(truth, horizon)[origins]
    flat = {"last value": values[origins], "MA(3)": third, "EWMA": smooth}
    points = {name: np.repeat(level[:, :, None], horizon, 2) for name, level in flat.items()}
    for name, season in (("seasonal naive day", truth.day), ("seasonal naive week", 7 * truth.day)):
        ahead = np.arange(1, horizon + 1)
        ago = -(-ahead // season) * season - ahead
        points[name] = values[origins[:, None] - ago].transpose(0, 2, 1)
    return {name: score_points(truth, point, horizon) for name, point in points.items()}


def _tuned_average(truth: Truth, horizon: int) -> Float64:
    """(T, K) the average whose rate does best between the warm-up and the first origin."""
    targets = np.lib.stride_tricks.sliding_window_view(
        truth.values[truth.warm_up + 1 : truth.first], horizon, axis=0
    )

    def loss(level: Float64) -> float:
        known = level[truth.warm_up :][: len(targets), :, None]
        return float(np.mean(((known - targets) / truth.unit[:, None]) ** 2))

    return min((_average(truth.values, rate) for rate in _EWMA_RATES), key=loss)


def _average(values: Float64, rate: float) -> Float64:
    """(T, K) the exponentially weighted average after each bucket."""
    level = values.copy()
    for now, before in zip(level[1:], level, strict=False):
        now[:] = before + rate * (now - before)
    return level


def _off(targets: Float64, quantile: Float32, level: float) -> float:
    """How far a level is from the share of truths below its quantile.

    Where truths are whole numbers many lie on it, of which any part may count as below: the level
    is off only if it is less than the share below, or more than that below or on it.
    """
    below, reached = float((targets < quantile).mean()), float((targets <= quantile).mean())
    return max(below - level, level - reached, 0.0)


def _pinball(targets: Float64, quantile: Float32, level: float) -> float:
    above = targets - quantile
    return float(np.maximum(level * above, (level - 1) * above).sum())


@lru_cache(maxsize=1024)
def _epoch_ms(moment: str) -> int:
    return round(datetime.fromisoformat(moment).timestamp() * 1000)
