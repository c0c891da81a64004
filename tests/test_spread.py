"""The spread of each key's values against the slow textbook, and what stands in for one."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_forecaster.keys import KeyTable
from stream_forecaster.spread import _RATE, Spread

_KEYS = 3
_value = st.one_of(st.just(np.nan), st.integers(-100, 100).map(float))
_rows = st.lists(st.tuples(*[_value] * _KEYS), max_size=150)
Rows = Sequence[Sequence[float]]


def _blank() -> tuple[KeyTable, Spread]:
    table = KeyTable()
    table.intern([b"%d" % i for i in range(_KEYS)], np.zeros(_KEYS, np.int64))
    return table, Spread(table, "p")


def _told(rows: Rows, spread: Spread | None = None) -> Spread:
    """A spread of three keys after buckets of these values; NaN where missing."""
    spread = spread or _blank()[1]
    for row in rows:
        spread.learn(np.array(row))
    return spread


def _variance(values: Sequence[float]) -> tuple[float, float]:
    """Mean and variance: all values count alike at first, later ones more once there are many."""
    weights = np.zeros(0)
    for n in range(1, len(values) + 1):
        rate = max(1 / n, _RATE)
        weights = np.append(weights * (1 - rate), rate)
    mean = float(weights @ values) if len(values) else 0.0
    return mean, float(weights @ (np.array(values) - mean) ** 2) if len(values) else 0.0


@given(rows=_rows)
def test_the_spread_is_the_weighted_standard_deviation(rows: Rows) -> None:
    """Of what came, and of an imagined zero, a tenth less with each value; not below a floor."""
    seen: list[list[float]] = [[] for _ in range(_KEYS)]
    total = weight = 0.0
    for row in rows:
        deviations = []
        for key, value in enumerate(row):
            if not np.isnan(value):
                seen[key].append(value)
                deviations.append(_variance(seen[key])[1] ** 0.5)
        if deviations:
            total, weight = 0.99 * total + np.mean(deviations), 0.99 * weight + 1
    floor = 1e-6 + (0.05 * total / weight if weight else 0.0)
    expected = []
    for values in seen:
        (mean, variance), count = _variance(values), len(values)
        imagined = max(1 - count / 10, 0.0)
        own = ((count * variance + imagined * mean**2) / (count + imagined)) ** 0.5
        expected.append(max(own, floor))
    np.testing.assert_allclose(_told(rows)(), expected, rtol=1e-3, atol=1e-3)


def test_what_is_long_past_fades() -> None:
    """Long after the values have become ten times as wide, the spread has, too."""
    rng, long = np.random.default_rng(0), int(3 / _RATE)
    values = np.concatenate([rng.normal(size=long), 10 * rng.normal(size=long)])
    spread = _told(np.tile(values[:, None], _KEYS).tolist())()
    np.testing.assert_allclose(spread, _variance(values.tolist())[1] ** 0.5, rtol=1e-4)
    np.testing.assert_allclose(spread, 10, rtol=0.1)


def test_a_key_without_values_has_a_twentieth_of_the_mean_spread() -> None:
    """So has one that never varies; none is zero, even where nobody has any."""
    assert (_blank()[1]() > 0).all()
    rng = np.random.default_rng(0)
    rows = [(value, 7.0, np.nan) for value in rng.normal(0, 2, 400).tolist()]
    varies, constant, newcomer = _told(rows)()
    assert varies == pytest.approx(2, rel=0.2)
    assert constant == newcomer == pytest.approx(0.05 * varies / 2, rel=0.2)


def test_a_first_value_is_a_spread_of_its_size_and_a_steady_level_none() -> None:
    """The level counts while nothing else is known, less with each of ten buckets."""
    spread, wide = _blank()[1], []
    for _ in range(11):
        spread.learn(np.full(_KEYS, 1000.0))
        wide.append(float(spread()[0]))
    assert 500 < wide[0] < 1000
    assert wide == sorted(wide, reverse=True)
    assert wide[9] == wide[10] == pytest.approx(1e-6)


@given(rows=_rows, scale=st.sampled_from([0.125, 4.0, 1024.0]))
def test_it_grows_with_the_values(rows: Rows, scale: float) -> None:
    """It is the unit in which keys of different size compare."""
    scaled = _told((np.array(rows).reshape(-1, _KEYS) * scale).tolist())()
    np.testing.assert_allclose(scaled, scale * _told(rows)(), rtol=1e-6, atol=1e-2)


@given(rows=_rows, slots=st.permutations(range(_KEYS)))
def test_a_part_is_the_same_as_in_the_whole(rows: Rows, slots: list[int]) -> None:
    """Whoever is asked for."""
    spread, picked = _told(rows), np.array(slots[:2])
    np.testing.assert_array_equal(spread(picked), spread()[picked])


@given(rows=_rows, more=_rows)
def test_a_restored_spread_goes_on(rows: Rows, more: Rows) -> None:
    """From the key table and its own arrays."""
    (table, gone_on), (other, restored) = _blank(), _blank()
    _told(rows, gone_on)
    other.restore({name: array.copy() for name, array in table.arrays().items()})
    restored.restore({name: array.copy() for name, array in gone_on.arrays().items()})
    np.testing.assert_array_equal(_told(more, restored)(), _told(more, gone_on)())
