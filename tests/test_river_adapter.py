"""River's forecasters as experts: their failures cost them their opinion, and nothing else."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from river import time_series

from stream_forecaster.calendar import HOUR_MS
from stream_forecaster.errors import ConfigError
from stream_forecaster.keys import KeyTable
from stream_forecaster.river_adapter import RiverForecaster

_SOON = np.array([1, 2, 3])


def _expert(model: str = "HoltWinters", keys: int = 1) -> tuple[RiverForecaster, KeyTable]:
    table = KeyTable()
    table.intern([b"%d" % i for i in range(keys)], np.zeros(keys, np.int64))
    return RiverForecaster(table, HOUR_MS, 3, model), table


def _tell(expert: RiverForecaster, values: Sequence[float]) -> list[float]:
    """Teach one key's values; what is said of it then."""
    for index, value in enumerate(values):
        expert.learn(index, np.array([value]))
    said: list[float] = expert.predict(np.s_[:], len(values) - 1, _SOON)[0].tolist()
    return said


class Faulty(time_series.base.Forecaster):
    """Says the last value, unless that is a sign to fail."""

    made: ClassVar[list[list[float]]] = []

    def __init__(self) -> None:
        self.told: list[float] = []
        Faulty.made.append(self.told)

    def learn_one(self, y: float, x: Any = None) -> None:
        """Raise if told -1; run out of memory if told -2."""
        del x
        if y == -1:
            raise ZeroDivisionError
        if y == -2:
            raise MemoryError
        self.told.append(y)

    def forecast(self, horizon: int, xs: Any = None) -> list[float]:
        """Infinite, not a number, absurd, an exception, no memory after 11, 12, 13, 14 and 15."""
        del xs
        last = self.told[-1]
        if last == 14:
            raise IndexError
        if last == 15:
            raise MemoryError
        return [
            {11.0: np.inf, 12.0: np.nan, 13.0: 1e9}.get(last, last + len(self.told) / 1000)
        ] * horizon


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> RiverForecaster:
    """An expert of such models, as if river had them."""
    monkeypatch.setattr(time_series, "Faulty", Faulty, raising=False)
    return _expert("Faulty")[0]


def test_an_unknown_name_lists_those_there_are() -> None:
    """So that a typing error is mended at once."""
    names = "no forecaster 'Prophet', only HoltWinters, SNARIMAX"
    with pytest.raises(ConfigError, match=rf"^model\.river: .*{names}$"):
        _expert("Prophet")


def test_it_says_what_river_says() -> None:
    """The same numbers as the model itself, at the steps asked for."""
    values = np.random.default_rng(0).normal(10, 1, 100).tolist()
    expert, _ = _expert()
    holt_winters: Any = time_series.HoltWinters
    model = holt_winters(alpha=0.3, beta=0.01, gamma=0.1, seasonality=24)
    for value in values:
        model.learn_one(value)
    assert _tell(expert, values) == model.forecast(3)
    assert expert.predict(np.s_[:], 99, np.array([2]))[0].tolist() == model.forecast(3)[1:2]


def test_a_gap_is_filled_with_the_last_value() -> None:
    """River models know only the next step; before the first value there is none."""
    nan = float("nan")
    gappy = _tell(_expert()[0], [nan, 1.0, nan, 3.0] * 20)
    assert gappy == _tell(_expert()[0], [1.0, 1.0, 3.0, *([3.0, 1.0, 1.0, 3.0] * 19)])


@pytest.mark.parametrize("sign", [-1.0, 11.0, 12.0, 13.0])
def test_a_failure_is_no_opinion_and_a_fresh_start(faulty: RiverForecaster, sign: float) -> None:
    """An exception, infinity, not a number, or a divergence; the next value begins anew."""
    assert np.isnan(_tell(faulty, [1.0, 2.0, sign])).all()
    assert _tell(faulty, [5.0]) == [5.001] * 3


def test_a_model_that_is_not_ready_goes_on(faulty: RiverForecaster) -> None:
    """An exception in forecasting is how river says that it has seen too little."""
    assert np.isnan(_tell(faulty, [1.0, 14.0])).all()
    assert _tell(faulty, [5.0]) == [5.003] * 3


@pytest.mark.parametrize("sign", [-2.0, 15.0])
def test_memory_that_ends_is_not_the_models_fault(faulty: RiverForecaster, sign: float) -> None:
    """A replay on a larger machine would not fail there, and has to give the same."""
    with pytest.raises(MemoryError):
        _tell(faulty, [1.0, sign])


def test_only_the_first_slots_have_models() -> None:
    """The others hear nothing."""
    expert, _ = _expert(keys=20)
    for index in range(30):
        expert.learn(index, np.full(20, 1.0 + index % 3))
    said = expert.predict(np.array([19, 15, 0]), 29, _SOON)
    assert np.isnan(said).all(axis=1).tolist() == [True, False, False]


@pytest.mark.parametrize("model", ["HoltWinters", "SNARIMAX"])
@pytest.mark.parametrize("until", [700, 1024, 1025, 1600])
def test_a_restored_model_goes_on_bit_for_bit(model: str, until: int) -> None:
    """Wherever the values kept are cut, before, at and after the half of them was dropped."""
    values = np.random.default_rng(0).normal(10, 1, 2100).tolist()
    gone_on, table = _expert(model)
    _tell(gone_on, values[:until])
    restored, other = _expert(model)
    _tell(restored, [1.0, 2.0, 3.0])  # what it was told before has no part in it
    other.restore({name: array.copy() for name, array in table.arrays().items()})
    restored.restore(gone_on.arrays())
    for more in (values[until : until + 50], values[until + 50 :]):
        assert _tell(restored, more) == _tell(gone_on, more)


def test_the_models_are_made_anew_at_a_fixed_rhythm(faulty: RiverForecaster) -> None:
    """From the newer half of what was kept, once every 512 values."""
    Faulty.made.clear()
    values = [20.0 + i % 7 for i in range(1536)]
    _tell(faulty, values[:1024])
    assert Faulty.made == [values[:1024]]
    _tell(faulty, values[1024:])
    assert Faulty.made == [values[:1024], values[512:]]
