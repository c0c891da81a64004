"""Messages as the records of a batch, in the bytes of the Kafka protocol.

A record is a row of numbers, some of them followed by so many bytes:

    size │ attributes  time  offset │ key … │ value … │ headers │ name …  value … │ name … ...
                 since the batch's first  a length, -1: null

Numbers are zigzag varints: small ones of either sign take one byte.
"""

from collections.abc import Sequence
from itertools import chain
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.compiled import compiled, inlined
from stream_forecaster.records import BytesColumn, Message

Bytes = NDArray[np.uint8]
Int64 = NDArray[np.int64]

LEAST_BYTES = 3
"""Attributes, time and offset of a batch's first record."""

RECORD, BYTES, COUNT, FIRST_MS, LAST_MS, ROOM, SIZE = range(7)
"""Where `write` is: the next record; of the batch the bytes and records written, its first and its
latest time, and the bytes it may have; the size of the record looked at last."""


def laid_out(
    messages: Sequence[Message], now_ms: int
) -> tuple[Bytes, Int64, Int64, Int64, Int64, Int64]:
    """What `write` needs to know of N messages, at least one, with H headers and L names in all.

    Returns:
        all the bytes there are; (2 N + H + L,) where in them each key, value, header's value and
        header's name begins, and how long it is, -1 for null; (N,) times, epoch ms; (N + 1,) each
        record's first header; (H,) the number of each header's name.
    """
    _, keys, values, headers, _, times = zip(*messages, strict=True)
    first = np.zeros(len(messages) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, headers), np.int64, len(headers)), out=first[1:])
    pairs = list(chain.from_iterable(headers))
    numbered = _Numbered()
    name = np.fromiter(map(numbered.__getitem__, map(itemgetter(0), pairs)), np.int64, len(pairs))
    parts = BytesColumn.of(
        chain(keys, values, map(itemgetter(1), pairs), map(str.encode, numbered))
    )
    time_ms = np.array([now_ms if time is None else time for time in times], np.int64)
    return parts.data, parts.start, parts.size, time_ms, first, name


class _Numbered(dict[str, int]):
    """Numbers names as they come up: 0, 1, 2, ..."""

    def __missing__(self, name: str) -> int:
        self[name] = number = len(self)
        return number


@inlined
def _varint_bytes(number: int) -> int:
    """Of a number of variable length."""
    left, size = np.uint64((number << 1) ^ (number >> 63)) >> np.uint64(7), 1
    while left:
        left >>= np.uint64(7)
        size += 1
    return size


@inlined
def _string_bytes(size: int) -> int:
    """Of a string of that size, with its length before it."""
    return _varint_bytes(size) + max(size, 0)


@inlined
def _put_varint(number: int, out: Bytes, place: int) -> int:
    """Write a number of variable length; where it ends."""
    left = np.uint64((number << 1) ^ (number >> 63))
    while left > np.uint64(127):
        out[place] = left & np.uint64(127) | np.uint64(128)
        left >>= np.uint64(7)
        place += 1
    out[place] = left
    return place + 1


@inlined
def _put_string(data: Bytes, start: int, size: int, out: Bytes, place: int) -> int:
    """Write a string with its length before it; where it ends."""
    place = _put_varint(size, out, place)
    begin, end = np.uint64(start), np.uint64(place)
    for i in range(max(size, 0)):  # many at a time: no place is below zero
        out[end + np.uint64(i)] = data[begin + np.uint64(i)]
    return place + max(size, 0)


@compiled("u1:1! i8:1 i8:1 i8:1 i8:1 i8:1 > u1:1 i8:1")
def write(  # noqa: PLR0913, PLR0917  (all that is known of messages)
    data: Bytes,
    start: Int64,
    size: Int64,
    time_ms: Int64,
    first: Int64,
    name: Int64,
    out: Bytes,
    at: Int64,
) -> None:
    """Write records one after the other, until all are or one does not fit.

    Args:
        data: as `laid_out` has it, and so the next five.
        start: where strings begin.
        size: how long they are.
        time_ms: of each record.
        first: its first header.
        name: of each header.
        out: the records of one batch, as far as they have been written.
        at: (7,) where writing is, see `RECORD` and the others.
    """
    records = len(time_ms)
    values, names = 2 * records, 2 * records + len(name)
    for record in range(at[RECORD], records):
        if at[COUNT] == 0:
            at[FIRST_MS] = at[LAST_MS] = time_ms[record]
        since_ms, headers = time_ms[record] - at[FIRST_MS], first[record + 1] - first[record]
        whole = 1 + _varint_bytes(since_ms) + _varint_bytes(at[COUNT]) + _varint_bytes(headers)
        whole += _string_bytes(size[record]) + _string_bytes(size[records + record])
        for header in range(first[record], first[record + 1]):
            whole += _string_bytes(size[names + name[header]])
            whole += _string_bytes(size[values + header])
        at[SIZE] = whole
        if at[BYTES] + _varint_bytes(whole) + whole > at[ROOM]:
            return
        place = _put_varint(whole, out, at[BYTES])
        out[place] = 0  # attributes: there are none
        place = _put_varint(since_ms, out, place + 1)
        place = _put_varint(at[COUNT], out, place)
        for part in (record, records + record):
            place = _put_string(data, start[part], size[part], out, place)
        place = _put_varint(headers, out, place)
        for header in range(first[record], first[record + 1]):
            for part in (names + name[header], values + header):
                place = _put_string(data, start[part], size[part], out, place)
        at[BYTES] = place
        at[COUNT] += 1
        at[LAST_MS] = max(at[LAST_MS], time_ms[record])
        at[RECORD] = record + 1


def hashes_of(keys: Sequence[bytes | None]) -> Int64:
    """What the client takes keys to partitions by: (N,) from 0 to 2^31 - 1."""
    column = BytesColumn.of(keys)
    hashes = np.empty(len(column), np.int64)
    _murmur2(column.data, column.start, column.size, hashes)
    return hashes


_MURMUR_SEED, _MURMUR_FACTOR, _32_BITS = 0x9747B28C, 0x5BD1E995, 0xFFFF_FFFF


@compiled("u1:1! i8:1 i8:1 > i8:1")
def _murmur2(data: Bytes, start: Int64, size: Int64, hashes: Int64) -> None:
    """The hash that Kafka's clients place keys by, its sign bit off; null is as if empty."""
    for i in range(len(start)):
        begin, end = start[i], start[i] + max(size[i], 0)
        state = np.int64(_MURMUR_SEED) ^ (end - begin)
        for j in range(begin, end, 4):
            left = min(4, end - j)
            word = np.int64(0)
            for k in range(left):
                word |= np.int64(data[j + k]) << (8 * k)
            if left == 4:
                word = word * _MURMUR_FACTOR & _32_BITS
                word = (word ^ word >> 24) * _MURMUR_FACTOR & _32_BITS
                state = state * _MURMUR_FACTOR & _32_BITS ^ word
            else:
                state = (state ^ word) * _MURMUR_FACTOR & _32_BITS
        state = (state ^ state >> 13) * _MURMUR_FACTOR & _32_BITS
        hashes[i] = (state ^ state >> 15) & 0x7FFF_FFFF
