"""Any forecaster of `river.time_series` as an expert, for a bounded number of keys.

Theory of operation. A river model is an object that we cannot put into a checkpoint. So it is
nothing but a function of numbers that we can: the newest values that its key had. When those fill
their column, the older half is dropped and the model is made anew from the rest, live just as
after a restore, where it is made anew from what the column holds. Both are the same model, bit for
bit.

      ┌── 512 values ──┬── 512 values ──┐ full: drop the older half, replay the newer one
      ├────────────────┤◀───────────────┤
      ├────────────────┼──▶ learn on

A model fails by an exception in learning, or by a forecast that is not finite or far outside of all
that its key has been. Then it says nothing and starts afresh.
"""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.calendar import DAY_MS, WEEK_MS
from stream_forecaster.errors import ConfigError
from stream_forecaster.keys import KeyTable

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Slots = Int64 | slice

_KEYS = 16
"""A river model is a Python object: a tenth to a half of a millisecond a bucket."""
_KEPT = 1024
_ABSURD = 10.0
"""A forecast so many times as large as the largest value kept is a divergence."""
_LONGEST_SEASON = 48


class _Model(Protocol):
    def learn_one(self, y: float) -> None: ...

    def forecast(self, horizon: int) -> list[float]: ...


class RiverForecaster:
    """One river model for each of the first 16 slots; no opinion on the others."""

    def __init__(self, table: KeyTable, step_ms: int, horizon: int, model: str) -> None:
        """Add this expert's columns to `table`.

        Args:
            table: of the keys.
            step_ms: bucket width; a day's steps, or a week's, are the model's season.
            horizon: steps to forecast.
            model: the name of a class in `river.time_series`.

        Raises:
            ConfigError: there is no such class; the message lists those there are.
        """
        classes = _forecasters()
        if model not in classes:
            there_are = ", ".join(classes)
            raise ConfigError(f"model.river: river has no forecaster {model!r}, only {there_are}")
        self.name = f"river_{model}"
        self._class, self._horizon = classes[model], horizon
        self._parameters = _parameters(model, step_ms)
        self._models: dict[int, _Model] = {}
        self._table, self._prefix = table, f"experts.{step_ms}.{self.name}"
        table.add(f"{self._prefix}.kept", (_KEPT,), dtype=np.float64, fill=np.nan, most=_KEYS)
        table.add(f"{self._prefix}.count", dtype=np.int64, most=_KEYS)
        table.add(f"{self._prefix}.said", (horizon,), dtype=np.float64, fill=np.nan, most=_KEYS)

    def learn(self, index: int, value: Float64) -> None:
        """Take in bucket `index`, just closed: `value` (K,), NaN where missing."""
        del index
        for slot, new in enumerate(value[:_KEYS].tolist()):
            self._learn_one(slot, new)

    def predict(self, slots: Slots, index: int, ahead: Int64) -> Float64:
        """(B, len(ahead)): what the models said when the bucket closed."""
        del index
        slots = self._table.rows(slots)
        said, own = np.full((len(slots), len(ahead)), np.nan), slots < _KEYS
        said[own] = self._column("said")[slots[own]][:, ahead - 1]
        return said

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Nothing: all of it is in the table."""
        return {}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Forget the models; the table's values make them anew."""
        del arrays
        self._models.clear()

    def _learn_one(self, slot: int, value: float) -> None:
        kept, count = self._column("kept")[slot], self._column("count")
        if np.isnan(value):
            if not count[slot]:
                return
            value = kept[count[slot] - 1]  # a river model knows no gaps, only the next step
        said = self._column("said")[slot]
        try:
            with warnings.catch_warnings(action="ignore"):
                model = self._model(slot)
                model.learn_one(value)
                kept[count[slot]] = value
                count[slot] += 1
                said[:] = self._forecast(model, kept[: count[slot]])
        except MemoryError:
            raise  # the machine's fault: a replay would not meet it again, and come out differently
        except Exception:  # noqa: BLE001  (other people's models fail each in their own way)
            said[:], kept[:], count[slot] = np.nan, np.nan, 0

    def _model(self, slot: int) -> _Model:
        """The model of a slot: exactly what its kept values make of a new one."""
        kept, count = self._column("kept")[slot], self._column("count")
        is_full, is_new = count[slot] == _KEPT, count[slot] == 0
        if is_full:
            count[slot] = _KEPT // 2
            kept[: count[slot]] = kept[-count[slot] :]
            kept[count[slot] :] = np.nan
        if is_full or is_new or slot not in self._models:
            model = self._models[slot] = self._class(**self._parameters)
            for value in kept[: count[slot]].tolist():
                model.learn_one(value)
        return self._models[slot]

    def _forecast(self, model: _Model, kept: Float64) -> Float64:
        """(H,) NaN while the model is not ready.

        Raises:
            ValueError: it has diverged.
        """
        try:
            said = np.array(model.forecast(self._horizon), np.float64)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001  (river's way to say that it has seen too little)
            return np.full(self._horizon, np.nan)
        if not (np.abs(said) <= _ABSURD * np.abs(kept).max()).all():
            raise ValueError("diverged")
        return said

    def _column(self, name: str) -> NDArray[Any]:
        return self._table[f"{self._prefix}.{name}"]


def _forecasters() -> dict[str, type[Any]]:
    """The classes of `river.time_series` that forecast, by name."""
    from river import time_series  # noqa: PLC0415  (loads scipy, and few ask for it)

    found = inspect.getmembers(time_series, inspect.isclass)
    return {name: it for name, it in found if issubclass(it, time_series.base.Forecaster)}


def _parameters(model: str, step_ms: int) -> dict[str, Any]:
    """What river leaves to its user: the season, and rates that follow a stream slowly."""
    seasons = [period_ms // step_ms for period_ms in (DAY_MS, WEEK_MS)]
    season = next((n for n in seasons if 1 < n <= _LONGEST_SEASON), None)
    match model:
        case "HoltWinters" if season:
            return {"alpha": 0.3, "beta": 0.01, "gamma": 0.1, "seasonality": season}
        case "HoltWinters":
            return {"alpha": 0.3}
        case "SNARIMAX" if season:
            return {"p": 3, "d": 1, "q": 0, "m": season, "sp": 1}
        case "SNARIMAX":
            return {"p": 3, "d": 1, "q": 0}
        case _:
            return {}
