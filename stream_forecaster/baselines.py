"""Baselines: forecasters that learn nothing and have no weight, for the others to be measured by.

The *seasonal naive*: what was there one day, or one week, ago on the local clock comes again. Of
step h ahead that is the newest bucket of the target's phase that was known at the origin, so one
period before the target, or as many as it takes to come back to what had closed:

      ◆─────────●─────◇───────────────◆──▶
    t - 16   t - 11  t - 8             t         period 8, horizon 11
     said    origin  unknown yet     target

Nothing is kept until it lands. Closed buckets are final, so what it said h buckets ago can be read
off when the target closes: from the window, which then still holds it.
"""

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.calendar import DAY_MS, WEEK_MS, Calendar
from stream_forecaster.windows import Window

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_PERIODS_MS = {"seasonal_naive_day": DAY_MS, "seasonal_naive_week": WEEK_MS}


class SeasonalNaive:
    """The value of the same local time, a whole number of days or weeks ago.

    Attributes:
        name: as the scores call it.
    """

    def __init__(self, name: str, calendar: Calendar, window: Window) -> None:
        """Of the period that `name` says."""
        self.name = name
        self._calendar, self._window, self._period_ms = calendar, window, _PERIODS_MS[name]

    def said(self, index: int, horizons: Int64) -> list[Float64]:
        """What it had said of bucket `index`, for each of some horizons: (K,), NaN without opinion.

        It has none where the key was not there yet, the bucket was missing, or the window does not
        reach back so far.

        Args:
            index: the first open bucket. Closed, it would push the oldest one out of the window,
                and a context of one period would no longer do.
            horizons: (G,) how many buckets before it the forecast was made, ascending.
        """
        said: list[Float64] = []
        source, periods, values = index, 0, np.empty(0)
        for horizon in horizons.tolist():
            while source > index - horizon:  # not closed at the origin
                periods += 1
                source = self._earlier(index, periods)
                values = self._window.value(source)
            said.append(values)
        return said

    def _earlier(self, index: int, periods: int) -> int:
        """The bucket so many periods before, by the local clock."""
        step_ms = self._window.step_ms
        # By its middle: when the clocks change, buckets of several hours no longer begin alike.
        begin_ms, end_ms = self._calendar.start(np.array([index, index + 1]), step_ms).tolist()
        local_ms = int(self._calendar.local((begin_ms + end_ms) // 2)) - periods * self._period_ms
        return int(self._calendar.index(self._calendar.from_local(local_ms), step_ms))


def seasonal_naive(calendar: Calendar, window: Window) -> tuple[SeasonalNaive, ...]:
    """Those of a window: of periods that are several whole steps and fit into its context."""
    return tuple(
        SeasonalNaive(name, calendar, window)
        for name, period in _periods(window.step_ms).items()
        if period <= window.context
    )


def out_of_reach(step_ms: int, context: int) -> dict[str, int]:
    """The seasonal naives that a context is too short for, and the least that would do.

    >>> out_of_reach(3_600_000, 48)
    {'seasonal_naive_week': 168}
    """
    return {name: period for name, period in _periods(step_ms).items() if period > context}


def _periods(step_ms: int) -> dict[str, int]:
    """In steps, of the seasons that are several whole ones."""
    return {
        name: period_ms // step_ms
        for name, period_ms in _PERIODS_MS.items()
        if step_ms < period_ms and period_ms % step_ms == 0
    }
