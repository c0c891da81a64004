"""The spread of each key's values: the unit in which keys of different size compare."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
        mean, variance, count = self._table[self._column][slots].astype(np.float64).T
        imagined = np.maximum(1 - count / _IMAGINED_BUCKETS, 0.0)
        own = np.sqrt((count * variance + imagined * mean**2) / (count + imagined + 1e-9))
        total, weight = self._mean
        floor = 0.05 * total / weight if weight else 0.0
        spread: Float64 = np.maximum(own, floor + 1e-6)
        return spread

    def learn(self, truth: Float64) -> None:
        """Take in the values of a bucket (K,), NaN where missing."""
        state = self._table[self._column]
        seen = np.flatnonzero(~np.isnan(truth))
        mean, variance, count = state[seen].astype(np.float64).T
        count = np.minimum(count + 1, 1 / _RATE)
        step = truth[seen] - mean
        mean = mean + step / count
        variance = variance + (step * (truth[seen] - mean) - variance) / count
        state[seen] = np.stack([mean, variance, count], axis=1)
        if len(seen):
            self._mean = 0.99 * self._mean + (np.sqrt(variance).mean(), 1.0)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is kept of the population."""
        return {"mean": self._mean}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take `arrays` back."""
        self._mean[:] = arrays["mean"]
