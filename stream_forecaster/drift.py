"""Drift: has forecasting become harder than it used to be?

Two detectors watch the mean landed loss of one resolution's pool, one value per closed bucket:
ADWIN compares the newer with the older part of a window that it keeps as long as it may;
Page-Hinkley adds up what is above the mean. A drift is where both saw a rise: ADWIN alone takes
every rhythm for one. They look at losses, not at the input: a change that the experts follow is
none, and neither is a fall. To be seen a rise needs a past: some 200 buckets for a tripling, more
for a doubling. The loss is that of the pool's own path, before the network and the agreement across
scales: beside a network that is worth nothing, which is found out, experts would miss drifts of
their own or forget where there was none.

A loss is told as a multiple of the mean so far, so that the scale cancels. Losses enter that mean
cut at four medians, and the first not at all: one absurd loss (a key's first forecast has no spread
to be measured by) would hide what comes after. The median itself is no scale for losses that are
near zero at night.

ADWIN's window lies in a compiled object and cannot be read out. So the losses themselves are kept
and told again on `restore`. To bound them, a live test forgets and tells again, too, at fixed
counts: its detectors are always a function of the losses kept, before and after a restore.

    kept    1, 2, ... 3999, 4000 -> 2000, 2001, ... 4000 -> 2000, ...

Source: Bifet and Gavaldà 2007; Page 1954; both as `river.drift` has them.
"""

import math
from bisect import insort
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_KEPT = 4000
"""Losses. With 1000, half of it right after forgetting, most doublings are missed."""
_COOL_DOWN = 60
"""Buckets for which a resolution counts as drifting. No sooner do fresh detectors agree again, in
any losses tried."""
_AGREEMENT = 120
"""Buckets by which the rises may be apart: which detector is first varies."""
_LARGEST_RATIO = 4.0
_WORST = float(np.finfo(np.float64).max)
_TOLERANCE = 0.75
"""In means: a doubling is just above it, a rhythm's crest hardly."""
_THRESHOLD = 20.0
"""In means, summed over what exceeds mean and tolerance."""


class Drift:
    """The drift test of one resolution."""

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._detectors = _Detectors()
        self._cooling = 0

    @property
    def drifting(self) -> bool:
        """Was a drift detected in the last 60 buckets?"""
        return self._cooling > 0

    def update(self, loss: float) -> bool:
        """Take in one loss; True if it completes a drift."""
        self._cooling = max(self._cooling - 1, 0)
        self._losses.append(loss)
        if self._detectors.update(loss):
            self._cooling = _COOL_DOWN
            self._losses.clear()
            return True
        if len(self._losses) == _KEPT:
            del self._losses[: _KEPT // 2]
            self._detectors = _Detectors(self._losses)
        return False

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The losses kept, and how many buckets of a cool-down are left."""
        return {"losses": np.array(self._losses, np.float64), "cooling": np.array([self._cooling])}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take `arrays` back."""
        self._losses = arrays["losses"].tolist()
        self._detectors = _Detectors(self._losses)
        self._cooling = int(arrays["cooling"][0])


class _Detectors:
    """Both detectors, told some losses. After they have agreed they start afresh."""

    def __init__(self, losses: Iterable[float] = ()) -> None:
        self._start()
        for loss in losses:
            self.update(loss)

    def update(self, loss: float) -> bool:
        """Tell both; True if they now agree that losses have risen."""
        ratio = self._ratio(loss)
        estimate = self._adwin.estimation
        # ADWIN's bound is for values from 0 to 1.
        self._adwin.update(ratio / _LARGEST_RATIO)  # type: ignore[no-untyped-call]
        self._page_hinkley.update(ratio)  # type: ignore[no-untyped-call]
        self._told += 1
        if self._adwin.drift_detected and self._adwin.estimation > estimate:
            self._rises[0] = self._told
        if self._page_hinkley.drift_detected:
            self._rises[1] = self._told
        agreed: bool = self._told - min(self._rises) <= _AGREEMENT
        if agreed:
            self._start()
        return agreed

    def _start(self) -> None:
        from river import drift  # noqa: PLC0415  (loads scipy, which takes a second)

        self._adwin = drift.ADWIN(clock=1)  # type: ignore[no-untyped-call]  # river ships no types
        self._page_hinkley = drift.PageHinkley(delta=_TOLERANCE, threshold=_THRESHOLD, mode="up")
        self._sorted: list[float] = []
        self._total = 0.0
        self._told = 0
        self._rises = [-math.inf, -math.inf]  # when each last saw one

    def _ratio(self, loss: float) -> float:
        """The loss over the mean so far; what is not a finite number is as bad as can be."""
        loss = loss if math.isfinite(loss) else _WORST
        before = len(self._sorted)
        median = self._sorted[before // 2] if before else 0.0
        insort(self._sorted, loss)
        self._total += min(loss, _LARGEST_RATIO * median)
        mean = self._total / max(before, 1)
        if loss > _LARGEST_RATIO * mean:
            return _LARGEST_RATIO
        return loss / mean if mean else 0.0
