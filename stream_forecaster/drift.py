"""Drift: has forecasting become harder than it used to be?

A Page-Hinkley test on the mean landed loss of one resolution, one value per closed bucket. It looks
at losses, not at the input: a change that the experts follow is none.

Source: Page 1954; Mouss et al. 2004. The arithmetic is that of `river.drift.PageHinkley` in mode
"up", which the tests use as oracle; it is kept here as four numbers so that it fits a checkpoint.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WARM_UP = 30
_TOLERANCE = 0.005
_THRESHOLD = 50.0
_MEMORY = 0.9999


class PageHinkley:
    """One test. After a detection it starts afresh."""

    def __init__(self) -> None:
        self._count, self._mean, self._sum, self._least = 0.0, 0.0, 0.0, np.inf

    def update(self, loss: float) -> bool:
        """Take in one loss; True if it completes a drift."""
        self._count += 1
        self._mean += (loss - self._mean) / self._count
        self._sum = _MEMORY * self._sum + loss - self._mean - _TOLERANCE
        self._least = min(self._least, self._sum)
        drifted = self._count >= _WARM_UP and self._sum - self._least > _THRESHOLD
        if drifted:
            self.__init__()  # type: ignore[misc]  # a fresh start is the definition
        return drifted

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The test's state."""
        return {"state": np.array([self._count, self._mean, self._sum, self._least])}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take `arrays` back."""
        self._count, self._mean, self._sum, self._least = arrays["state"].tolist()
