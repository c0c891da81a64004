"""JSON texts of one shape by the thousand: what is the same in all, and numbers between it.

Theory of operation. Nearly all of a forecast's JSON is numbers with five significant digits, and
most of the rest is the same for all keys of a hop. So the shape is laid out once, and two compiled
loops fill it in, row by row:

    {"mean":[ 1.5 , 0.00012 , 3.0 ],"level": null ,"weights":{ "lstm": 0.25 }, ...
    ╰─ text ╯ ╰──── numbers ────╯ ╰─ text ─╯

The first finds the digits: five of them, and the power of ten of the first. It keeps to the
arithmetic of `forecasts.five_digits`, and of a number so rounded no text is shorter. The second
spells them out as orjson does, which made these texts before it; eight bytes at a time, of which
those that are too many are written over by what comes next.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.compiled import compiled, inlined

Bytes = NDArray[np.uint8]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

DIGITS, WHOLE, DECIMALS = range(3)
"""How a number is written:

DIGITS: with five significant digits, or null where it is not finite.
WHOLE: as a whole number; it is from 0 to 2^52.
DECIMALS: with three decimals, and five digits; where that is zero it is left out, and so is its
    text, which begins with a comma: one too many at the beginning of an object.
"""
_IF, _UNLESS = 3, 4

_AT_ONCE = 64
"""Rows filled in at once: bounds the temporaries and keeps them in the cache."""
_LONGEST = 25
"""Bytes of a number with its comma: more than any has."""
_WORD = 8
"""Bytes read and written at a time, though the last of a text may be fewer."""
_LEAST, _MOST = -22, 308
_TENS = np.array([float(f"1e{power}") for power in range(_LEAST, _MOST + 1)] + [np.inf])
"""10^-22 to 10^308."""
_POWER_BITS = 10
_POWER_MASK = (1 << _POWER_BITS) - 1
_ZEROTH = 500
_NONE = 501
"""Digits and power are packed into one number; a power of so much says that there is no number."""
_TWO, _THREE = (
    np.array([int.from_bytes(b"%0*d" % (n, i), "little") for i in range(10**n)], np.uint64)
    for n in (2, 3)
)
_THREE |= np.uint64(0x30_3030 << 24)
"""How digits are spelled, the first one lowest; behind three of them zeros."""
_NULL = np.frombuffer(b"null", np.uint8)
_COMMA, _MINUS, _PLUS, _POINT, _ZERO, _E, _BRACE = b",-+.0e{"


class Rows:
    """The shape of B texts, and the numbers in them."""

    def __init__(self) -> None:
        self._blocks: list[tuple[Float64, int, int]] = []
        self._width = 0
        self._texts = bytearray()
        self._parts: list[tuple[int, ...]] = []

    def block(self, numbers: NDArray[Any], kind: int = DIGITS) -> int:
        """Take in numbers (B,) or (B, ...) of one kind.

        Returns:
            the column of the first of them; those of the others follow.
        """
        column, width = self._width, math.prod(numbers.shape[1:])
        self._blocks.append(
            (np.asarray(numbers, np.float64).reshape(len(numbers), width), kind, column)
        )
        self._width += width
        return column

    def text(self, text: str) -> None:
        """Go on with a text."""
        self._add(text, 0, 0, 1, DIGITS)

    def choice(self, column: int, text: str, otherwise: str) -> None:
        """Go on with a text where the number in that column is not zero, else with another."""
        self._add(text, column, 0, 1, _IF)
        self._add(otherwise, column, 0, 1, _UNLESS)

    def numbers(self, text: str, column: int, count: int = 1, stride: int = 1) -> None:
        """Go on with a text and so many numbers behind it: every `stride`th from a column on."""
        kind = next(kind for _, kind, first in reversed(self._blocks) if first <= column)
        self._add(text, column, count, stride, kind)

    def _add(self, text: str, *numbers: int) -> None:
        begin = len(self._texts)
        self._texts += text.encode()
        self._parts.append((begin, len(self._texts), *numbers))

    def filled(self, heads: Sequence[bytes]) -> Iterator[bytes]:
        """The texts, row by row, behind the beginning that each row has to itself."""
        texts = np.frombuffer(self._texts + bytes(_WORD), np.uint8)
        parts = np.array(self._parts, np.int64)
        rows = min(_AT_ONCE, len(heads))
        digits, ends = np.empty((rows, self._width), np.int64), np.empty(rows, np.int64)
        longest = len(texts) + _LONGEST * int(parts[:, 3].sum())
        out = np.empty(rows * longest + _WORD, np.uint8)
        written = out.data
        for first in range(0, len(heads), _AT_ONCE):
            some = heads[first : first + _AT_ONCE]
            for numbers, kind, column in self._blocks:
                _find_digits(numbers[first : first + _AT_ONCE], kind, column, digits)
            _write(texts, parts, digits[: len(some)], out, ends)
            begin = 0
            for head, end in zip(some, ends.tolist(), strict=False):
                yield b"".join((head, written[begin:end]))
                begin = end


@compiled("f8:2 i8 i8 > i8:2")
def _find_digits(  # noqa: C901  (a step after the other, and loops call nothing)
    numbers: Float64, kind: int, column: int, digits: Int64
) -> None:
    """Five digits with their sign, and the power of ten of the first one, of each number."""
    power = 0  # neighbours are alike: the last one's is a good guess
    for i in range(len(numbers)):
        for j in range(numbers.shape[1]):
            number = abs(numbers[i, j])
            if kind == WHOLE:
                digits[i, column + j] = np.int64(number) << _POWER_BITS
                continue
            if kind == DECIMALS:
                number = np.rint(number * 1000.0) / 1000.0
            if not number < np.inf:
                digits[i, column + j] = _NONE + _ZEROTH
                continue
            while number >= _TENS[power + 1 - _LEAST]:
                power += 1
            while power > -18 and number < _TENS[power - _LEAST]:
                power -= 1
            # Dividing by an exact power of ten rounds correctly; multiplying by an inexact one
            # does not. 10^22 is the largest exact one.
            if power <= 4:
                five = np.int64(np.rint(number * _TENS[4 - power - _LEAST]))
            else:
                five = np.int64(np.rint(number / _TENS[power - 4 - _LEAST]))
            first = power
            if five > 99_999:
                five, first = np.int64(10_000), power + 1
            if five == 0:
                first = 0
            while 0 < five < 10_000:
                five, first = 10 * five, first - 1
            signed = five if numbers[i, j] > 0 else -five
            digits[i, column + j] = (signed << _POWER_BITS) + first + _ZEROTH


@inlined
def _spelled(five: int) -> np.uint64:
    """Eight bytes: five digits, the first one lowest, and zeros."""
    first = np.uint32(five) // np.uint32(1_000)
    rest = np.uint32(five) - first * np.uint32(1_000)
    return np.uint64(_TWO[first] | _THREE[rest] << np.uint64(16))


@inlined
def _eight(texts: Bytes, place: int) -> np.uint64:
    """Eight bytes, the first one lowest."""
    begin, eight = np.uint64(place), np.uint64(0)
    for i in range(_WORD):  # one instruction
        eight |= np.uint64(texts[begin + np.uint64(i)]) << np.uint64(8 * i)
    return eight


@inlined
def _put(out: Bytes, place: int, eight: np.uint64) -> None:
    """Write eight bytes: more than are wanted, what comes next goes over the rest."""
    begin = np.uint64(place)
    for i in range(_WORD):  # one instruction
        out[begin + np.uint64(i)] = eight >> np.uint64(8 * i)


@inlined
def _put_pointed(out: Bytes, place: int, eight: np.uint64, point: int) -> None:
    """Write eight bytes with a point after the first so many of them, at most six."""
    before, after = np.uint64(8 * point), np.uint64(8 * point + 8)
    low = eight & (np.uint64(1) << before) - np.uint64(1)
    _put(out, place, low | np.uint64(_POINT) << before | eight >> before << after)


@compiled("u1:1 i8:2 i8:2 > u1:1 i8:1")
def _write(  # noqa: C901, PLR0912, PLR0915  (a number is written step by step)
    texts: Bytes, parts: Int64, digits: Int64, out: Bytes, ends: Int64
) -> None:
    """Fill in a row of digits after the other; `ends` is where each text ends."""
    place = 0
    for row in range(len(digits)):
        for part in range(len(parts)):
            begin, end, column = parts[part, 0], parts[part, 1], parts[part, 2]
            count, stride, kind = parts[part, 3], parts[part, 4], parts[part, 5]
            is_zero = digits[row, column] >> _POWER_BITS == 0
            if kind >= DECIMALS and is_zero != (kind == _UNLESS):
                continue
            if kind == DECIMALS and out[place - 1] == _BRACE:
                begin += 1
            for i in range(begin, end, _WORD):
                _put(out, place + i - begin, _eight(texts, i))
            place += end - begin
            for j in range(count):
                if j:
                    out[place] = _COMMA
                    place += 1
                packed = digits[row, column + j * stride]
                number, power = packed >> _POWER_BITS, (packed & _POWER_MASK) - _ZEROTH
                if kind == WHOLE:
                    unit = 1
                    while number // unit >= 10:
                        unit *= 10
                    while unit:
                        out[place] = _ZERO + number // unit % 10
                        place += 1
                        unit //= 10
                    continue
                if power == _NONE:
                    for i in range(4):
                        out[place + i] = _NULL[i]
                    place += 4
                    continue
                if number < 0:
                    out[place] = _MINUS
                    place += 1
                spelled, length = _spelled(abs(number)), 5
                while length > 1 and spelled >> np.uint64(8 * length - 8) & np.uint64(15) == 0:
                    length -= 1
                if 0 <= power <= 4:
                    _put_pointed(out, place, spelled, power + 1)
                    place += max(length, power + 2) + 1
                elif -5 <= power < 0:
                    _put_pointed(out, place, _spelled(0), 1)
                    _put(out, place + 1 - power, spelled)
                    place += 1 - power + length
                elif 4 < power <= 15:
                    _put(out, place, spelled)
                    _put(out, place + 8, _spelled(0))
                    _put_pointed(out, place + power, _spelled(0), 1)
                    place += power + 3
                else:
                    _put_pointed(out, place, spelled, 1)
                    place += length + 1 if length > 1 else 1
                    out[place] = _E
                    out[place + 1] = _PLUS if power > 0 else _MINUS
                    place += 2
                    for unit in (100, 10, 1):
                        if abs(power) >= unit:
                            out[place] = _ZERO + abs(power) // unit % 10
                            place += 1
        ends[row] = place
