from decimal import Decimal

import numpy as np
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stream_forecaster.forecasts import five_digits
from stream_forecaster.json_rows import DECIMALS, WHOLE, Rows

_five_digits = st.builds(
    lambda digits, power: digits * 10.0**power, st.integers(-99_999, 99_999), st.integers(-27, 19)
)
_numbers = _five_digits | st.floats(-1e24, 1e24) | st.floats(-10, 10) | st.floats(-1e-4, 1e-4)


def written(numbers: list[float], *kind: int) -> list[bytes]:
    """Each number by itself."""
    rows = Rows()
    rows.numbers("", rows.block(np.array(numbers, float), *kind))
    return list(rows.filled([b""] * len(numbers)))


@given(st.lists(_numbers, min_size=1, max_size=200))
@example(
    [0.0, -0.0, 5e-324, -1e-23, 1e-22, 99_999.4, 99_999.5, 0.99999499999, 9_999.95, 1e15, 1e16]
)
@example([sign * 10.0**power for power in range(-25, 25) for sign in (-1, 1)])
@example([np.nextafter(10.0**p, to) for p in range(-25, 25) for to in (-np.inf, np.inf)])
def test_five_digits_are_written_as_by_orjson(numbers: list[float]) -> None:
    """Law: the same text, which is the shortest that reads back as the rounded number."""
    rounded = five_digits(np.array(numbers)).tolist()

    assert written(numbers) == list(map(orjson.dumps, rounded))
    assert [float(text) for text in written(numbers)] == rounded


@given(st.floats(1e24, 1e308))
def test_what_no_events_add_up_to_has_five_digits(number: float) -> None:
    """Law: as far as floats go."""
    (text,) = written([number])

    assert len(Decimal(text.decode()).normalize().as_tuple().digits) <= 5
    assert float(text) == pytest.approx(number, rel=6e-5)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_json_cannot_say_is_null(number: float) -> None:
    """And its neighbours are none the worse."""
    assert written([1.5, number, 2.5]) == [b"1.5", b"null", b"2.5"]


@given(st.lists(st.integers(0, 2**52), min_size=1))
def test_whole_numbers_have_no_point(numbers: list[int]) -> None:
    """Law: all their digits."""
    assert written([float(n) for n in numbers], WHOLE) == [b"%d" % n for n in numbers]


@given(st.lists(st.floats(-99, 99) | st.floats(-0.002, 0.002), min_size=3, max_size=3))
def test_what_rounds_to_nothing_is_left_out(weights: list[float]) -> None:
    """Law: three decimals, and an object without what is zero."""
    rows = Rows()
    rows.text("{")
    first = rows.block(np.array([weights]), DECIMALS)
    for i in range(3):
        rows.numbers(f',"{i}":', first + i)
    rows.text("}")
    rounded = {str(i): round_ for i, round_ in enumerate(np.round(weights, 3).tolist()) if round_}

    assert list(rows.filled([b""])) == [orjson.dumps(rounded)]


@given(n=st.integers(1, 150), width=st.integers(1, 5), seed=st.integers(0, 9))
def test_rows_are_filled_each_with_its_own(n: int, width: int, seed: int) -> None:
    """Law: columns may be written in any order and more than once, heads go before."""
    rng = np.random.default_rng(seed)
    pairs, flags = np.round(rng.gamma(2.0, 3.0, (n, width, 2)), 2), rng.random(n) < 0.5
    rows = Rows()
    column, flag = rows.block(pairs), rows.block(flags, WHOLE)
    rows.numbers('"odd":[', column + 1, width, 2)
    rows.numbers('],"even":[', column, width, 2)
    rows.text('],"flag":')
    rows.choice(flag, "true", "false")
    rows.text("}")

    filled = list(rows.filled([b'{"i":%d,' % i for i in range(n)]))

    assert [orjson.loads(text) for text in filled] == [
        {"i": i, "odd": odd, "even": even, "flag": flag}
        for i, (odd, even, flag) in enumerate(
            zip(pairs[:, :, 1].tolist(), pairs[:, :, 0].tolist(), flags.tolist(), strict=True)
        )
    ]


def test_no_rows_are_no_texts() -> None:
    """A hop may have nothing but expired keys."""
    rows = Rows()
    rows.numbers("", rows.block(np.empty((0, 3))), 3)

    assert list(rows.filled([])) == []
