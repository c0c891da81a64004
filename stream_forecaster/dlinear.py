"""DLinear, trained online: a moving-average trend and the remainder, each mapped linearly.

The lookback (B, L) is cut into a trend, its moving average, and what remains; two maps (L, H),
shared by all keys, send both to the next H buckets. One small Adam step per closed bucket, on the
labels that have just landed, as in `regression`: of the origin H buckets ago, rebuilt from the
window.

Source: Zeng et al. 2023, "Are Transformers Effective for Time Series Forecasting?". As there, the
trend is taken over 25 buckets and both maps start as plain averages.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.regression import Scale, training_slots
from stream_forecaster.windows import Window

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Slots = Int64 | slice

_LAGS = 48
_TREND_BUCKETS = 25
_STEP = 2e-4
_MOMENTUM = 0.9
_SQUARE_MEMORY = 0.999


class DLinear:
    """Two linear maps, pooled over keys; an expert."""

    name = "dlinear"

    def __init__(self, window: Window, horizon: int, scale: Scale) -> None:
        self._window, self._horizon, self._scale = window, horizon, scale
        self._lags = lags = min(_LAGS, window.context - horizon)
        self._trend = _moving_average(lags, min(_TREND_BUCKETS, lags))
        self._weights = np.full((2 * lags + 1, horizon), 1 / lags)  # of trend, remainder, and 1
        self._weights[-1] = 0.0
        self._mean, self._square = np.zeros_like(self._weights), np.zeros_like(self._weights)
        self._steps = np.zeros(1)

    def learn(self, index: int, value: Float64) -> None:
        """Take in bucket `index`, just closed: `value` (K,), NaN where missing."""
        self._scale.learn(index, value)
        slots = training_slots(index, len(value))
        horizon = self._horizon
        values = self._window.values(slots, self._lags + horizon)
        row, centre, scale = self._row(slots, values[:, :-horizon])
        error = row @ self._weights - (values[:, -horizon:] - centre) / scale
        complete = ~np.isnan(error).any(axis=1)
        if complete.any():
            error = error[complete]
            self._descend(row[complete].T @ error * (2 / error.size))

    def predict(self, slots: Slots, index: int, ahead: Int64) -> Float64:
        """(B, len(ahead))."""
        del index
        row, centre, scale = self._row(slots, self._window.values(slots, self._lags))
        said: Float64 = row @ self._weights[:, ahead - 1]
        said *= scale
        said += centre
        return said

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is kept of the population."""
        return {
            "weights": self._weights,
            "mean": self._mean,
            "square": self._square,
            "steps": self._steps,
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take `arrays` back."""
        for name, own in self.arrays().items():
            own[:] = arrays[name]

    def _row(self, slots: Slots, lookback: Float64) -> tuple[Float64, Float64, Float64]:
        """Inputs (B, 2 L + 1), centres (B, 1), scales (B, 1); NaN where half is missing."""
        known = ~np.isnan(lookback)
        count = known.sum(axis=1, keepdims=True)
        total = np.where(known, lookback, 0.0).sum(axis=1, keepdims=True)
        centre = np.where(2 * count >= self._lags, total / np.maximum(count, 1), np.nan)
        scale = self._scale(slots)[:, None]
        scaled = np.where(known, lookback - centre, 0.0) / scale
        trend = scaled @ self._trend
        return np.hstack([trend, scaled - trend, np.ones_like(centre)]), centre, scale

    def _descend(self, gradient: Float64) -> None:
        """One step of Adam."""
        self._steps += 1
        self._mean += (1 - _MOMENTUM) * (gradient - self._mean)
        self._square += (1 - _SQUARE_MEMORY) * (gradient**2 - self._square)
        mean = self._mean / (1 - _MOMENTUM**self._steps)
        square = self._square / (1 - _SQUARE_MEMORY**self._steps)
        self._weights -= _STEP * mean / (np.sqrt(square) + 1e-8)


def _moving_average(lags: int, width: int) -> Float64:
    """(L, L) the matrix of a centred moving average whose ends are repeated."""
    matrix = np.zeros((lags, lags))
    for offset in range(-(width // 2), width - width // 2):
        np.add.at(matrix, (np.clip(np.arange(lags) + offset, 0, lags - 1), np.arange(lags)), 1.0)
    return matrix / width
