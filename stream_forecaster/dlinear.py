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

from stream_forecaster.compiled import compiled
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
        lags, scale = self._lags, self._scale(slots)
        known, count = np.empty(lookback.shape), np.empty(len(lookback))
        _fill(lookback, known, count)
        scaled, centre = np.empty(lookback.shape), np.empty(len(lookback))
        _relate(lookback, known.sum(axis=1), count, scale, scaled, centre)
        row = np.empty((len(lookback), 2 * lags + 1))
        row[:, :lags] = trend = scaled @ self._trend
        np.subtract(scaled, trend, out=row[:, lags:-1])
        row[:, -1] = 1.0
        return row, centre[:, None], scale[:, None]

    def _descend(self, gradient: Float64) -> None:
        """One step of Adam."""
        self._steps += 1
        (known,), (sure,) = 1 - _MOMENTUM**self._steps, 1 - _SQUARE_MEMORY**self._steps
        _adam(gradient, known, sure, self._mean, self._square, self._weights)


def _moving_average(lags: int, width: int) -> Float64:
    """(L, L) the matrix of a centred moving average whose ends are repeated."""
    matrix = np.zeros((lags, lags))
    for offset in range(-(width // 2), width - width // 2):
        np.add.at(matrix, (np.clip(np.arange(lags) + offset, 0, lags - 1), np.arange(lags)), 1.0)
    return matrix / width


# -- loops over keys and weights -------------------------------------------------------------------


@compiled("f8:2 > f8:2 f8:1")
def _fill(lookback: Float64, known: Float64, count: Float64) -> None:
    """A lookback (B, L) with 0 for what is missing, and how many of it are not (B,)."""
    for b in range(len(lookback)):
        count[b] = 0.0
        for t in range(lookback.shape[1]):
            is_missing = np.isnan(lookback[b, t])
            known[b, t] = 0.0 if is_missing else lookback[b, t]
            count[b] += not is_missing


@compiled("f8:2 f8:1 f8:1 f8:1 > f8:2 f8:1")
def _relate(
    lookback: Float64,
    total: Float64,
    count: Float64,
    scale: Float64,
    scaled: Float64,
    centre: Float64,
) -> None:
    """A lookback (B, L) from its mean, the centres (B,), in scales (B,); NaN if half is missing."""
    lags = lookback.shape[1]
    for b in range(len(lookback)):
        middle = total[b] / max(count[b], 1.0) if 2 * count[b] >= lags else np.nan
        held, told, unit = lookback[b], scaled[b], scale[b]
        centre[b] = middle
        for t in range(lags):
            told[t] = (0.0 if np.isnan(held[t]) else held[t] - middle) / unit


@compiled("f8:2 f8 f8 > f8:2 f8:2 f8:2")
def _adam(
    gradient: Float64,
    known: float,
    sure: float,
    mean: Float64,
    square: Float64,
    weights: Float64,
) -> None:
    """One step down a gradient (I, H), of whose mean and square so much is known by now."""
    for i in range(len(gradient)):
        for h in range(gradient.shape[1]):
            slope = gradient[i, h]
            mean[i, h] += (1 - _MOMENTUM) * (slope - mean[i, h])
            square[i, h] += (1 - _SQUARE_MEMORY) * (slope * slope - square[i, h])
            step = _STEP * (mean[i, h] / known)
            weights[i, h] -= step / (np.sqrt(square[i, h] / sure) + 1e-8)
