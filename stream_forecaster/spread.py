"""The spread of each key's values: the unit in which keys of different size compare."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.compiled import compiled
from stream_forecaster.keys import KeyTable

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_RATE = 0.003
_IMAGINED_BUCKETS = 10


class Spread:
    """Exponentially weighted standard deviation of each key's values around their mean."""

    def __init__(self, table: KeyTable, prefix: str) -> None:
        self._table, self._column = table, f"{prefix}.spread"
        table.add(self._column, (3,), dtype=np.float32)  # mean, variance, buckets seen
        self._mean = np.zeros(2)  # sum, weight

    def __call__(self, slots: Int64 | slice = np.s_[:]) -> Float64:
        """(B,) standard deviations; never below a twentieth of the mean one.

        While a key has seen little, an imagined observation of zero keeps it from vanishing; it
        fades within ten buckets, so that a high level does not pass for a wide spread.
        """
        state = self._table[self._column][slots]
        total, weight = self._mean
        floor = 0.05 * total / weight if weight else 0.0
        spread = np.empty(len(state))
        _deviate(state, floor + 1e-6, spread)
        return spread

    def learn(self, truth: Float64) -> None:
        """Take in the values of a bucket (K,), NaN where missing."""
        deviation = np.empty(len(truth))
        if count := _vary(truth, self._table[self._column], deviation):
            self._mean = 0.99 * self._mean + (deviation[:count].mean(), 1.0)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is kept of the population."""
        return {"mean": self._mean}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take `arrays` back."""
        self._mean[:] = arrays["mean"]


# -- loops over keys -----------------------------------------------------------------------------


@compiled("f8:1 > f4:2 f8:1 = i8")
def _vary(truth: Float64, state: NDArray[np.float32], deviation: Float64) -> int:
    """Take in the values (K,) that are there; state (K, 3) is mean, variance, buckets seen.

    Writes the standard deviations that come of it, one after the other, and returns how many.
    """
    seen = 0
    for k in range(len(truth)):
        if np.isnan(truth[k]):
            continue
        mean, variance = np.float64(state[k, 0]), np.float64(state[k, 1])
        count = min(np.float64(state[k, 2]) + 1, 1 / _RATE)
        step = truth[k] - mean
        mean += step / count
        variance += (step * (truth[k] - mean) - variance) / count
        state[k, 0], state[k, 1], state[k, 2] = mean, variance, count
        deviation[seen] = np.sqrt(variance)
        seen += 1
    return seen


@compiled("f4:2 f8 > f8:1")
def _deviate(state: NDArray[np.float32], least: float, deviation: Float64) -> None:
    """Standard deviations (B,) of states (B, 3), never below the least."""
    for b in range(len(state)):
        mean, variance = np.float64(state[b, 0]), np.float64(state[b, 1])
        count = np.float64(state[b, 2])
        imagined = max(1 - count / _IMAGINED_BUCKETS, 0.0)
        own = np.sqrt((count * variance + imagined * mean**2) / (count + imagined + 1e-9))
        deviation[b] = max(own, least)
