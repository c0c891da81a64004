"""The pool of experts: cheap forecasters of one resolution, each for all slots at once.

Two verbs. `learn` takes the values of a bucket that has just closed; `predict` says what each of
some slots will do so many steps ahead. An expert without an opinion says NaN, and the fusion passes
over it; being honest when cold is better than guessing.

What an expert keeps per key lives in the key table; what it keeps of the population is returned
by `arrays` for the checkpoint.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from stream_forecaster.calendar import DAY_MS, HOUR_MS, WEEK_MS, Calendar
from stream_forecaster.config import Resolution
from stream_forecaster.keys import KeyTable
from stream_forecaster.windows import Window

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Slots = Int64 | slice

_LONGEST_PROFILE = 168
"""Phases kept per key and season: an hour-of-week profile, the longest that pays for itself."""


class Expert(Protocol):
    """Anything that forecasts one resolution for all slots."""

    name: str

    def learn(self, index: int, value: Float64) -> None:
        """Take in bucket `index`, just closed: `value` (K,), NaN where missing."""
        ...

    def predict(self, slots: Slots, index: int, ahead: Int64) -> Float64:
        """Forecast (B, len(ahead)), or (B, 1) if the same for every step.

        Args:
            slots: which keys.
            index: the newest closed bucket.
            ahead: steps after it, from 1.
        """
        ...

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is kept of the population, for the checkpoint; by default nothing."""
        return {}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take `arrays` back."""
        del arrays


class LastValue(Expert):
    """What came last comes again: the naive forecast, and hard to beat on a random walk."""

    name = "last_value"

    def __init__(self, table: KeyTable, prefix: str) -> None:
        self._table, self._column = table, f"{prefix}.last"
        table.add(self._column, dtype=np.float64, fill=np.nan)

    @override
    def learn(self, index: int, value: Float64) -> None:
        del index
        last = self._table[self._column]
        np.copyto(last, value, where=~np.isnan(value))

    @override
    def predict(self, slots: Slots, index: int, ahead: Int64) -> Float64:
        del index, ahead
        return _flat(self._table[self._column][slots])


class MovingAverage(Expert):
    """The window's incremental moving average."""

    name = "moving_average"

    def __init__(self, window: Window) -> None:
        self._window = window

    @override
    def learn(self, index: int, value: Float64) -> None:
        """Nothing to do: the window has already moved."""

    @override
    def predict(self, slots: Slots, index: int, ahead: Int64) -> Float64:
        del index, ahead
        return self._window.moving_average(slots)[:, None]


class Ewma(Expert):
    """An exponentially weighted mean; a plain mean until it has seen 1 / rate buckets."""

    def __init__(self, table: KeyTable, prefix: str, name: str, rate: float) -> None:
        self.name, self.rate = name, rate
        self._table, self._column = table, f"{prefix}.{name}"
        table.add(self._column, (2,), dtype=np.float32)  # level, buckets seen (saturating)

    @override
    def learn(self, index: int, value: Float64) -> None:
        del index
        state = self._table[self._column]
        seen = ~np.isnan(value)
        count = np.minimum(state[:, 1] + 1, np.ceil(1 / self.rate))
        step = np.where(seen, 1 / count, 0.0)
        state[:, 0] += step * (np.nan_to_num(value) - state[:, 0])
        np.copyto(state[:, 1], count, where=seen, casting="same_kind")

    @override
    def predict(self, slots: Slots, index: int, ahead: Int64) -> Float64:
        del index, ahead
        state = self._table[self._column][slots]
        return _flat(np.where(state[:, 1] > 0, state[:, 0], np.nan))


class Seasonal(Expert):
    """Exponential smoothing of each phase of a local day or week on its own.

    Its phases are as wide as the step, or an hour where that would be more than 168 of them. Within
    a key's first period a wide phase is the plain mean of its buckets so far.
    """

    def __init__(
        self, table: KeyTable, calendar: Calendar, window: Window, period_ms: int, rate: float
    ) -> None:
        step_ms = window.step_ms
        self.name = "seasonal_day" if period_ms == DAY_MS else "seasonal_week"
        self._table, self._calendar, self._window = table, calendar, window
        self._period_ms, self._step_ms = period_ms, step_ms
        self._width_ms = step_ms if period_ms // step_ms <= _LONGEST_PROFILE else HOUR_MS
        self._column = f"experts.{step_ms}.{self.name}"
        # A phase wider than the step is visited several times a period: slower per visit.
        self._rate = rate * step_ms / self._width_ms
        table.add(self._column, (period_ms // self._width_ms,), dtype=np.float32, fill=np.nan)

    @override
    def learn(self, index: int, value: Float64) -> None:
        smoothed = self._table[self._column][:, int(self._phase(np.array([index]))[0])]
        start_ms = int(self._calendar.start(index, self._step_ms))
        visits = int(self._calendar.local(start_ms)) % self._width_ms // self._step_ms + 1
        age = self._window.age()
        in_first_period = age <= self._period_ms // self._step_ms
        rate = np.where(in_first_period, 1 / np.clip(age, 1, visits), self._rate)
        new = smoothed + rate * (value - smoothed)
        np.copyto(smoothed, np.where(np.isnan(smoothed), value, new), where=~np.isnan(value))

    @override
    def predict(self, slots: Slots, index: int, ahead: Int64) -> Float64:
        profile = self._table[self._column][slots]
        return profile[:, self._phase(index + ahead)].astype(np.float64)

    def _phase(self, index: Int64) -> Int64:
        start = self._calendar.start(index, self._step_ms)
        return self._calendar.phase(start, self._period_ms, self._width_ms)


class Population(Expert):
    """What keys of this age do on average: the prior of a newcomer that knows nothing of itself.

    Age is counted in buckets since a key's first; the last age kept stands for all beyond it.
    """

    name = "population"
    _memory = 0.999

    def __init__(self, table: KeyTable, prefix: str, horizon: int) -> None:
        self._table, self._column = table, f"{prefix}.age"
        table.add(self._column, dtype=np.int32)
        ages = 2 * horizon + 1
        self._total, self._count = np.zeros(ages), np.zeros(ages)

    @override
    def learn(self, index: int, value: Float64) -> None:
        del index
        seen = np.flatnonzero(~np.isnan(value))
        age = self._table[self._column]
        bucket = np.minimum(age[seen], len(self._total) - 1)
        self._total *= self._memory
        self._count *= self._memory
        np.add.at(self._total, bucket, value[seen])
        np.add.at(self._count, bucket, 1.0)
        age[seen] += 1

    @override
    def predict(self, slots: Slots, index: int, ahead: Int64) -> Float64:
        del index
        age = self._table[self._column][slots]
        return self._mean()[np.minimum(age[:, None] + ahead - 1, len(self._total) - 1)]

    @override
    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"total": self._total, "count": self._count}

    @override
    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._total[:], self._count[:] = arrays["total"], arrays["count"]

    def _mean(self) -> Float64:
        """(ages,) mean by age, shrunk to the mean over all ages by one observation's weight."""
        overall = self._total.sum() / max(self._count.sum(), 1.0)
        mean: Float64 = (self._total + overall) / (self._count + 1.0)
        return mean


def pool(
    table: KeyTable, calendar: Calendar, window: Window, resolution: Resolution
) -> Sequence[Expert]:
    """The experts of one resolution, in the order in which fusion keeps their weights."""
    prefix = f"experts.{resolution.step_ms}"
    seasons = [
        Seasonal(table, calendar, window, period_ms, rate)
        for period_ms, rate in ((DAY_MS, 0.15), (WEEK_MS, 0.25))
        if resolution.step_ms < period_ms and period_ms % resolution.step_ms == 0
    ]
    return (
        LastValue(table, prefix),
        MovingAverage(window),
        Ewma(table, prefix, "ewma_fast", 0.3),
        Ewma(table, prefix, "ewma_medium", 0.1),
        Ewma(table, prefix, "ewma_slow", 0.02),
        *seasons,
        Population(table, prefix, resolution.horizon),
    )


def _flat(level: NDArray[np.floating[Any]]) -> Float64:
    return level.astype(np.float64)[:, None]
