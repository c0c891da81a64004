"""The pool of experts: cheap forecasters of one resolution, each for all slots at once.

Two verbs. `learn` takes the values of a bucket that has just closed; `predict` says what each of
some slots will do so many steps ahead. An expert without an opinion says NaN, and the fusion passes
over it; being honest when cold is better than guessing.

What an expert keeps per key lives in the key table; what it keeps of the population is returned
by `arrays` for the checkpoint.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from stream_forecaster.calendar import DAY_MS, HOUR_MS, WEEK_MS, Calendar
from stream_forecaster.compiled import compiled
from stream_forecaster.config import Resolution
from stream_forecaster.dlinear import DLinear
from stream_forecaster.keys import KeyTable
from stream_forecaster.regression import (
    RIDGE,
    RIDGE_LONG,
    Harmonics,
    Newest,
    RidgeAr,
    RidgePerKey,
    Scale,
)
from stream_forecaster.river_adapter import RiverForecaster
from stream_forecaster.seasonal_ridge import SeasonalRidge
from stream_forecaster.windows import Window

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Slots = Int64 | slice

_FEWEST_LAGS = 4
_DAY_TYPES = 3
_LONGEST_GAP_DAYS = 8
"""Between days of a type; further back nobody looks for the last one."""
_STRETCH = 512
"""Buckets of which it is worked out at once when they come."""
_LARGEST = float(np.finfo(np.float64).max)
_NEWEST, _LEAN_NEWEST = 3, 2
"""Values kept of a key; of two on the regressions' scale can be told."""
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
    """What came last comes again: the naive forecast, and hard to beat on a random walk.

    It is who tells `newest` of a bucket, for all that look there: it has to learn before they do.
    """

    name = "last_value"

    def __init__(self, newest: Newest) -> None:
        self._newest = newest

    @override
    def learn(self, index: int, value: Float64) -> None:
        del index
        self._newest.learn(value)

    @override
    def predict(self, slots: Slots, index: int, ahead: Int64) -> Float64:
        del index, ahead
        return self._newest(slots)[:, -1:].copy()


class MovingAverage(Expert):
    """The window's incremental moving average, over the whole context."""

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


class ShortAverage(Expert):
    """The mean of a key's newest values, as many as are kept."""

    name = "ma_3"

    def __init__(self, newest: Newest) -> None:
        self._newest = newest

    @override
    def learn(self, index: int, value: Float64) -> None:
        """Nothing to do: they have already been told."""

    @override
    def predict(self, slots: Slots, index: int, ahead: Int64) -> Float64:
        del index, ahead
        newest = self._newest(slots)
        said = np.empty((len(newest), 1))
        _average(newest, said)
        return said


class Ewma(Expert):
    """An exponentially weighted mean; a plain mean until it has seen 1 / rate buckets."""

    def __init__(self, table: KeyTable, prefix: str, name: str, rate: float) -> None:
        self.name, self.rate = name, rate
        self._table, self._column = table, f"{prefix}.{name}"
        table.add(self._column, (2,), dtype=np.float32)  # level, buckets seen (saturating)

    @override
    def learn(self, index: int, value: Float64) -> None:
        del index
        _smooth(value, self.rate, self._table[self._column])

    @override
    def predict(self, slots: Slots, index: int, ahead: Int64) -> Float64:
        del index, ahead
        state = self._table[self._column][slots]
        said = np.empty((len(state), 1))
        _level(state, said)
        return said


@dataclass(frozen=True, slots=True)
class Season:
    """What comes again.

    Attributes:
        name: the expert's.
        cycle: a local day, a local week, or a day of the same type: Monday to Friday, Saturday, or
            Sunday and holidays.
        rate: weight of a phase's newest visit.
    """

    name: str
    cycle: Literal["day", "week", "day_type"]
    rate: float

    @property
    def period_ms(self) -> int:
        """Time in which the phases are passed through once."""
        return WEEK_MS if self.cycle == "week" else DAY_MS


class Seasonal(Expert):
    """Exponential smoothing of each phase of a season on its own.

    Its phases are as wide as the step, or an hour where that would be more than 168 of them. While
    a key visits a wide phase for the first time, that is the plain mean of its buckets so far. What
    was never seen of a Saturday or a Sunday is expected to be as from Monday to Friday.
    """

    def __init__(self, table: KeyTable, calendar: Calendar, window: Window, season: Season) -> None:
        step_ms = window.step_ms
        self.name, self.cycle = season.name, season.cycle
        self._table, self._window = table, window
        few = season.period_ms // step_ms <= _LONGEST_PROFILE
        width_ms = step_ms if few else HOUR_MS
        self._times = _Timetable(calendar, season, step_ms, width_ms)
        self._column = f"experts.{step_ms}.{self.name}"
        # A phase wider than the step is visited several times a period: slower per visit.
        self._rate = season.rate * step_ms / width_ms
        types = _DAY_TYPES if season.cycle == "day_type" else 1
        table.add(self._column, (types * self._times.phases,), dtype=np.float32, fill=np.nan)

    @override
    def learn(self, index: int, value: Float64) -> None:
        cell, visits, between = self._times.visit(index)
        profile, first = self._table[self._column], self._window.first()
        _visit(value, first, self._window.closed, cell, visits, between, self._rate, profile)

    @override
    def predict(self, slots: Slots, index: int, ahead: Int64) -> Float64:
        rows, cell = self._table.rows(slots), self._times.cells(index + ahead)
        said = np.empty((len(rows), len(cell)))
        _recall(self._table[self._column], rows, cell, self._times.phases, said)
        return said


class _Timetable:
    """When a season's phases come: a function of the calendar, worked out a stretch at a time.

    Attributes:
        phases: of one cycle; days of each type have as many.
    """

    def __init__(self, calendar: Calendar, season: Season, step_ms: int, width_ms: int) -> None:
        self.phases = season.period_ms // width_ms
        self._calendar, self._season = calendar, season
        self._step_ms, self._width_ms = step_ms, width_ms
        self._first = 0
        self._cell = self._visits = self._between = np.empty(0, np.int64)

    def cells(self, index: Int64) -> Int64:
        """Where in the profile buckets (N,), which ascend, are."""
        self._reach(int(index[0]), int(index[-1]))
        return self._cell[index - self._first]

    def visit(self, index: int) -> tuple[int, int, int]:
        """Of a bucket: where it is, which visit of this phase, and buckets since the last one."""
        self._reach(index, index)
        at = index - self._first
        return int(self._cell[at]), int(self._visits[at]), int(self._between[at])

    def _reach(self, first: int, last: int) -> None:
        """Have worked out the buckets from `first` to `last`."""
        if self._first <= first and last < self._first + len(self._cell):
            return
        self._first = first - _STRETCH // 2
        index = np.arange(self._first, max(first + _STRETCH // 2, last) + 1)
        start_ms = self._calendar.start(index, self._step_ms)
        self._cell = self._calendar.phase(start_ms, self._season.period_ms, self._width_ms)
        if self._season.cycle == "day_type":
            self._cell += self.phases * self._calendar.day_type(start_ms)
        local_ms = self._calendar.local(start_ms)
        self._visits = local_ms % self._width_ms // self._step_ms + 1
        self._between = self._since_last_ms(start_ms, local_ms) // self._step_ms

    def _since_last_ms(self, start_ms: Int64, local_ms: Int64) -> Int64:
        """(N,) time between phases (N,) and their previous visits."""
        if self._season.cycle != "day_type":
            return np.full(len(start_ms), self._season.period_ms)
        noon_ms = start_ms - local_ms % DAY_MS + DAY_MS // 2
        days = np.arange(1, _LONGEST_GAP_DAYS)
        types = self._calendar.day_type(noon_ms[:, None] - DAY_MS * days)
        alike = types == self._calendar.day_type(noon_ms)[:, None]
        since = np.where(alike.any(axis=1), days[alike.argmax(axis=1)], _LONGEST_GAP_DAYS)
        return DAY_MS * since


_SEASONS = (
    Season("seasonal_day", "day", 0.15),
    Season("seasonal_week", "week", 0.25),
    Season("day_type_fast", "day_type", 0.15),
    Season("day_type_slow", "day_type", 0.05),
)
_EWMAS = (("ewma_fast", 0.3), ("ewma_medium", 0.1), ("ewma_slow", 0.02))


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
        self._total *= self._memory
        self._count *= self._memory
        _come_of_age(value, self._table[self._column], self._total, self._count)

    @override
    def predict(self, slots: Slots, index: int, ahead: Int64) -> Float64:
        del index
        age = self._table[self._column][slots]
        said = np.empty((len(age), len(ahead)))
        _of_age(self._mean(), age, ahead, said)
        return said

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
    table: KeyTable,
    calendar: Calendar,
    window: Window,
    resolution: Resolution,
    *,
    lean: bool = False,
    river: Sequence[str] = (),
) -> Sequence[Expert]:
    """The experts of one resolution, in the order in which fusion keeps their weights.

    Args:
        table: where the experts keep what they know of each key.
        calendar: numbers the buckets.
        window: the resolution's.
        resolution: step, context and horizon.
        lean: without those that are missed least, for many keys.
        river: names of classes in `river.time_series` that join in, for the first keys.

    Raises:
        ConfigError: river has no such forecaster.
    """
    prefix, horizon = f"experts.{resolution.step_ms}", resolution.horizon
    newest = Newest(table, prefix, _LEAN_NEWEST if lean else _NEWEST)
    seasons = _seasonal(table, calendar, window, lean=lean)
    harmonics = Harmonics(calendar, resolution.step_ms)
    return (
        LastValue(newest),
        MovingAverage(window),
        *([] if lean else [ShortAverage(newest)]),
        *(Ewma(table, prefix, name, rate) for name, rate in _EWMAS[: 1 if lean else None]),
        *seasons,
        Population(table, prefix, horizon),
        *_regressions(table, harmonics, window, horizon, newest, lean=lean),
        *_on_seasons(seasons, table, harmonics, window, horizon),
        *(RiverForecaster(table, window.step_ms, horizon, name) for name in river),
    )


def _seasonal(table: KeyTable, calendar: Calendar, window: Window, *, lean: bool) -> list[Seasonal]:
    """The seasons longer than the step that are a number of steps; of a lean pool one."""
    step_ms = window.step_ms
    return [
        Seasonal(table, calendar, window, season)
        for season in _SEASONS
        if step_ms < season.period_ms and season.period_ms % step_ms == 0
        if not lean or season.name == _season_for(step_ms)
    ]


def _season_for(step_ms: int) -> str:
    """The one that is missed most."""
    if step_ms < HOUR_MS:
        return "seasonal_day"
    return "day_type_fast" if step_ms < DAY_MS else "seasonal_week"


def _regressions(
    table: KeyTable,
    harmonics: Harmonics,
    window: Window,
    horizon: int,
    newest: Newest,
    *,
    lean: bool,
) -> list[Expert]:
    """What fits the context: a regression needs room for its lags before H labels."""
    room = window.context - horizon
    if room < _FEWEST_LAGS:
        return []
    scale = Scale(table, f"experts.{window.step_ms}", newest)
    found: list[Expert] = [RidgeAr(harmonics, window, horizon, scale, RIDGE)]
    if not lean and 2 * room >= 3 * RIDGE.lags:
        found.append(RidgeAr(harmonics, window, horizon, scale, RIDGE_LONG))
    # Of a bounded number of keys, so that a lean pool can afford it, and dear to go without.
    found.append(RidgePerKey(table, harmonics, window, horizon, scale))
    return found if lean else [*found, DLinear(window, horizon, scale)]


def _on_seasons(
    seasons: Sequence[Seasonal],
    table: KeyTable,
    harmonics: Harmonics,
    window: Window,
    horizon: int,
) -> list[Expert]:
    """Regressions of the deviations from days of a type; from the week, where steps are days."""
    if window.context - horizon < _FEWEST_LAGS:
        return []
    cycle = "day_type" if window.step_ms < DAY_MS else "week"
    return [
        SeasonalRidge(table, harmonics, window, horizon, season.predict, season.name)
        for season in seasons
        if season.cycle == cycle
    ]


# -- loops over keys -----------------------------------------------------------------------------


@compiled("f8:2 > f8:2")
def _average(newest: Float64, said: Float64) -> None:
    """The means (B, 1) of what is known of the newest values (B, N); NaN of none."""
    for b in range(len(newest)):
        total, count = 0.0, 0
        for n in range(newest.shape[1]):
            if not np.isnan(newest[b, n]):
                total += newest[b, n]
                count += 1
        said[b, 0] = total / count if count else np.nan


@compiled("f8:1 f8 > f4:2")
def _smooth(value: Float64, rate: float, state: NDArray[np.float32]) -> None:
    """Move levels by values (K,) that are there; state (K, 2) is a level and buckets seen."""
    most = np.ceil(1 / rate)
    for k in range(len(value)):
        if np.isnan(value[k]):
            continue
        count = min(np.float64(state[k, 1]) + 1, most)
        finite = min(max(value[k], -_LARGEST), _LARGEST)
        state[k, 0] += 1 / count * (finite - state[k, 0])
        state[k, 1] = count


@compiled("f4:2 > f8:2")
def _level(state: NDArray[np.float32], said: Float64) -> None:
    """The levels (B, 1) of states (B, 2); NaN before anything was seen."""
    for b in range(len(state)):
        said[b, 0] = state[b, 0] if state[b, 1] > 0 else np.nan


@compiled("f8:1 i8:1 i8 i8 i8 i8 f8 > f4:2")
def _visit(  # noqa: PLR0913, PLR0917  (what is known of a visit)
    value: Float64,
    first: Int64,
    closed: int,
    cell: int,
    visits: int,
    between: int,
    rate: float,
    profile: NDArray[np.float32],
) -> None:
    """Move one cell of profiles (K, P) towards values (K,) that are there.

    Of keys that began with bucket `first` (K,) no longer ago than `between` it is the plain mean of
    this phase's buckets so far, of which there are at most as many as there were `visits`.
    """
    for k in range(len(value)):
        if np.isnan(value[k]):
            continue
        smoothed = np.float64(profile[k, cell])
        age = max(closed - first[k], 0)
        step = 1 / min(max(age, 1), visits) if age <= between else rate
        moved = smoothed + step * (value[k] - smoothed)
        profile[k, cell] = value[k] if np.isnan(smoothed) else moved


@compiled("f4:2 i8:1 i8:1 i8 > f8:2")
def _recall(
    profile: NDArray[np.float32], rows: Int64, cell: Int64, phases: int, said: Float64
) -> None:
    """What profiles (K, P) of rows (B,) hold in cells (N,), or where that is NaN, of a weekday.

    Neighbours are mostly of one cell: many minutes of an hour.
    """
    for b in range(len(rows)):
        held, value = profile[rows[b]], np.nan
        for n in range(len(cell)):
            if not n or cell[n] != cell[n - 1]:
                value = held[cell[n]]
                if np.isnan(value):
                    value = held[cell[n] % phases]
            said[b, n] = value


@compiled("f8:1 > i4:1 f8:1 f8:1")
def _come_of_age(value: Float64, age: NDArray[np.int32], total: Float64, count: Float64) -> None:
    """Add values (K,) to totals and counts (ages,) of their keys' ages (K,), which grow."""
    for k in range(len(value)):
        if not np.isnan(value[k]):
            at = min(age[k], len(total) - 1)
            total[at] += value[k]
            count[at] += 1.0
            age[k] += 1


@compiled("f8:1 i4:1 i8:1 > f8:2")
def _of_age(mean: Float64, age: NDArray[np.int32], ahead: Int64, said: Float64) -> None:
    """Of means by age the ones that keys of ages (B,) come to, so many steps (N,) ahead."""
    for b in range(len(age)):
        for n in range(len(ahead)):
            said[b, n] = mean[min(age[b] + ahead[n] - 1, len(mean) - 1)]
