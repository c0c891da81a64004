"""Flat JSON objects, read where they lie: a few named fields of many records in one loop.

What most events look like: one object of text, numbers, true, false and null, in any order and with
any other fields between, such as

    {"user_id": "u42", "ts": 1767225600000, "type": "click", "price": 3.5}

The loop judges, it does not complain. What it takes is what any reader of JSON would take, with the
same result to the last bit; all else is not its business, and some of that is not even wrong:
objects in objects, escapes in a field that is wanted, a wanted field twice, numbers of more digits
than a float or an integer surely holds. `events` reads those one by one.
"""

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.compiled import compiled, inlined
from stream_forecaster.records import BytesColumn

Bytes = NDArray[np.uint8]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

KEY, TIME, VALUE = range(3)
_FIELDS = 3
_OTHER = _FIELDS
"""A field that nobody asked for."""

_WHOLE_DIGITS, _FRACTION_DIGITS = 18, 15
"""So many digits are exact: as an integer, and in a float that a power of ten divides."""
_POWERS = np.array([float(f"1e{i}") for i in range(_FRACTION_DIGITS + 1)])

_TAB, _LF, _CR, _SPACE, _QUOTE, _COMMA, _MINUS, _DOT = b'\t\n\r ",-.'
_ZERO, _NINE, _COLON, _BACKSLASH, _OPEN, _CLOSE = b"09:\\{}"
_LITERALS = np.frombuffer(b"true\0false" + b"null\0", np.uint8).reshape(3, 5)
_ESCAPED = np.array([chr(i) in '"\\/bfnrt' for i in range(256)])


class Scan:
    """Reads some fields of flat objects.

    >>> read = Scan("user_id", "ts", None)
    >>> keys, numbers, taken = read(BytesColumn.of([b'{"ts": 5, "user_id": "ann"}', b"[]"]))
    >>> keys[0], numbers[TIME].tolist(), taken.tolist()
    (b'ann', [5.0, 0.0], [True, False])
    """

    def __init__(self, key: str | None, time: str | None, value: str | None) -> None:
        """Names of the fields: a key is text or an integer, time and value are numbers."""
        names = BytesColumn.of(
            None if name is None else name.encode("utf-8", "surrogatepass")
            for name in (key, time, value)
        )
        self._names, self._fields = names.data, np.stack([names.start, names.size])

    def __call__(self, values: BytesColumn) -> tuple[BytesColumn, Float64, NDArray[np.bool_]]:
        """Keys (N,), numbers (3, N) by field, and which of the values (N,) were read at all."""
        places, found = np.stack([values.start, values.size]), np.empty((2, len(values)), np.int64)
        numbers = np.zeros((_FIELDS, len(values)))
        _scan(
            values.data,
            places,
            self._names,
            self._fields,
            np.zeros((_FIELDS + 1, 2)),
            found,
            numbers,
        )
        return BytesColumn(values.data, found[0], found[1]), numbers, found[0] >= 0


@inlined
def _past_space(data: Bytes, at: int, end: int) -> int:
    while at < end and (
        data[at] == _SPACE or data[at] == _LF or data[at] == _TAB or data[at] == _CR
    ):
        at += 1
    return at


@inlined
def _past_character(data: Bytes, at: int, end: int) -> int:
    """Where a character of more than one byte ends; -1 if it is not UTF-8."""
    first = data[at]
    size = 2 if 0xC2 <= first < 0xE0 else 3 if 0xE0 <= first < 0xF0 else 4
    if not 0xC2 <= first < 0xF5 or size > end - at:
        return -1
    for i in range(1, size):
        if data[at + i] & 0xC0 != 0x80:
            return -1
    second = data[at + 1]
    if (first == 0xE0 and second < 0xA0) or (first == 0xED and second >= 0xA0):
        return -1  # longer than need be, or half of a surrogate pair
    if (first == 0xF0 and second < 0x90) or (first == 0xF4 and second >= 0x90):
        return -1  # longer than need be, or beyond the last one
    return at + size


@inlined
def _past_escape(data: Bytes, at: int, end: int) -> int:
    """Where an escape that begins at a backslash ends; -1 if it is not plain."""
    if end - at < 2:
        return -1
    if _ESCAPED[data[at + 1]]:
        return at + 2
    if data[at + 1] != ord("u") or end - at < 6:
        return -1
    code = 0
    for i in range(2, 6):
        digit = int(np.int64(data[at + i]))
        if _ZERO <= digit <= _NINE:
            code = code << 4 | digit - _ZERO
        elif ord("a") <= digit | 0x20 <= ord("f"):
            code = code << 4 | (digit | 0x20) - ord("a") + 10
        else:
            return -1
    return -1 if 0xD800 <= code < 0xE000 else at + 6


@inlined
def _past_text(data: Bytes, at: int, end: int, escapes: bool) -> int:  # noqa: FBT001  (loops have no keywords)
    """Where text is closed that was opened before `at`: its quote; -1 if it is not plain."""
    while at >= 0 and at < end:
        byte = data[at]
        if byte == _QUOTE:
            return at
        if byte < _SPACE:
            return -1
        if byte == _BACKSLASH:
            at = _past_escape(data, at, end) if escapes else -1
        elif byte < 0x80:
            at += 1
        else:
            at = _past_character(data, at, end)
    return -1


@inlined
def _past_digits(data: Bytes, at: int, end: int) -> int:
    while at < end and _ZERO <= data[at] <= _NINE:
        at += 1
    return at


@inlined
def _past_number(data: Bytes, at: int, end: int) -> tuple[int, int, int]:
    """Where a number's whole part, its fraction and all of it end; -1 if it is not plain."""
    begin = at + (data[at] == _MINUS)
    whole = fraction = stop = _past_digits(data, begin, end)
    if whole == begin or whole - begin > _WHOLE_DIGITS:
        return -1, -1, -1
    if data[begin] == _ZERO and (
        whole - begin > 1 or (at < begin and not _has_dot(data, whole, end))
    ):
        return -1, -1, -1  # 01 is no number, and -0 not the same one to everybody
    if _has_dot(data, whole, end):
        fraction = stop = _past_digits(data, whole + 1, end)
        if fraction == whole + 1 or fraction - begin - 1 > _FRACTION_DIGITS:
            return -1, -1, -1
    if stop < end and data[stop] | 0x20 == ord("e"):
        power = stop + 1
        if power < end and (data[power] == _MINUS or data[power] == ord("+")):
            power += 1
        stop = _past_digits(data, power, end)
        if not 1 <= stop - power <= 2:
            return -1, -1, -1
    return whole, fraction, stop


@inlined
def _has_dot(data: Bytes, at: int, end: int) -> bool:
    return at < end and bool(data[at] == _DOT)


@inlined
def _number(data: Bytes, at: int, whole: int, fraction: int) -> float:
    """The number that begins at `at`, without an exponent."""
    begin = at + (data[at] == _MINUS)
    digits = 0
    for i in range(begin, fraction):
        if i != whole:
            digits = 10 * digits + int(np.int64(data[i])) - _ZERO
    number = float(digits) / float(_POWERS[max(fraction - whole - 1, 0)])
    return -number if at < begin else number


@inlined
def _past_literal(data: Bytes, at: int, end: int) -> int:
    """Where true, false or null ends; -1 if it is none of them."""
    for literal in range(3):
        size = 5 if literal == 1 else 4
        same = size <= end - at
        for i in range(size):
            same = same and data[at + i] == _LITERALS[literal, i]
        if same:
            return at + size
    return -1


@inlined
def _field(data: Bytes, begin: int, end: int, names: Bytes, fields: Int64) -> int:
    """Which field a name is."""
    for field in range(_FIELDS):
        if fields[1, field] != end - begin:
            continue
        same = True
        for i in range(end - begin):
            if names[fields[0, field] + i] != data[begin + i]:
                same = False
                break
        if same:
            return field
    return _OTHER


@inlined
def _past_value(data: Bytes, at: int, end: int, field: int, told: Float64) -> int:
    """Where a value ends; -1 if it is not plain. Of a wanted one where it lies, or the number."""
    if data[at] == _QUOTE:
        if field in (TIME, VALUE):
            return -1
        close = _past_text(data, at + 1, end, field == _OTHER)
        told[field, 0], told[field, 1] = at + 1, close
        return -1 if close < 0 or (field == KEY and close == at + 1) else close + 1
    if data[at] == _MINUS or _ZERO <= data[at] <= _NINE:
        whole, fraction, stop = _past_number(data, at, end)
        if stop < 0 or field == _OTHER:
            return stop
        if field == KEY:
            told[KEY, 0], told[KEY, 1] = at, stop
            return stop if stop == whole else -1
        told[field, 0] = _number(data, at, whole, fraction)
        return stop if stop == fraction else -1
    return _past_literal(data, at, end) if field == _OTHER else -1


@inlined
def _past_field(data: Bytes, at: int, end: int, field: int, told: Float64) -> int:
    """Where what follows a field's name ends: colon, value, and white space; -1 if not plain."""
    at = _past_space(data, at, end)
    if at >= end or data[at] != _COLON:
        return -1
    at = _past_space(data, at + 1, end)
    if at < end:
        at = _past_value(data, at, end, field, told)
        if 0 <= at < end:
            return _past_space(data, at, end)
    return -1


@inlined
def _is_plain(data: Bytes, at: int, end: int, names: Bytes, fields: Int64, told: Float64) -> bool:
    """Whether all of it is a plain object that has every wanted field once; reads these."""
    missing = 0
    for field in range(_FIELDS):
        missing |= (fields[1, field] >= 0) << field
    at = _past_space(data, at, end)
    comma = _OPEN  # what has to come before a name
    while at < end and data[at] == comma:
        at = _past_space(data, at + 1, end)
        close = _past_text(data, at + 1, end, False) if at < end and data[at] == _QUOTE else -1  # noqa: FBT003  (loops have no keywords)
        if close < 0:
            return False
        field = _field(data, at + 1, close, names, fields)
        if field != _OTHER:
            if not missing >> field & 1:
                return False
            missing ^= 1 << field
        at, comma = _past_field(data, close + 1, end, field, told), _COMMA
        if at < 0:
            return False
    is_closed = at < end and comma == _COMMA and data[at] == _CLOSE
    return is_closed and missing == 0 and _past_space(data, at + 1, end) == end


@compiled("u1:1! i8:2 u1:1! i8:2 > f8:2 i8:2 f8:2")
def _scan(  # noqa: PLR0913, PLR0917  (what is read, and where to)
    data: Bytes,
    places: Int64,
    names: Bytes,
    fields: Int64,
    told: Float64,
    found: Int64,
    numbers: Float64,
) -> None:
    """See `Scan`; of what is not plain the key begins at -1. There is room for what is `told`."""
    for i in range(places.shape[1]):
        begin, size = places[0, i], places[1, i]
        if size > 0 and _is_plain(data, begin, begin + size, names, fields, told):
            found[0, i], found[1, i] = int(told[KEY, 0]), int(told[KEY, 1] - told[KEY, 0])
            numbers[TIME, i], numbers[VALUE, i] = told[TIME, 0], told[VALUE, 0]
        else:
            found[0, i] = found[1, i] = -1
