"""Messages as the records of a batch, in the bytes of the Kafka protocol.

A record is a row of fields. A field is a number, and some numbers are followed by so many bytes:

    size │ attributes  time  offset │ key … │ value … │ headers │ name …  value … │ name … ...
                 since the batch's first  a length, -1: null

Numbers are zigzag varints: small ones of either sign take one byte.
"""

from itertools import chain
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.compiled import compiled
from stream_forecaster.records import Message

Bytes = NDArray[np.uint8]
Int64 = NDArray[np.int64]

_NULL = -1
_SHORT = 48
"""Bytes that are copied sooner one by one than at a stroke."""
_FIXED_FIELDS = 6
_TIME, _OFFSET, _KEY, _VALUE, _HEADERS = range(1, _FIXED_FIELDS)
LEAST_BYTES = 3
"""Attributes, time and offset of a batch's first record."""

RECORD, BYTES, COUNT, FIRST_MS, LAST_MS, ROOM, SIZE = range(7)
"""Where `write` is: the next record; of the batch the bytes and records written, its first and its
latest time, and the bytes it may have; the size of the record looked at last."""


def laid_out(messages: list[Message], now_ms: int) -> tuple[Bytes, Int64, Int64, Int64]:
    """What `write` needs to know of N messages with H headers in all.

    Returns:
        all the bytes there are; (N,) times, epoch ms; (N + 1,) where each record's fields begin;
        (F, 2) the fields: the number, and where the bytes are if there are any.
    """
    n = len(messages)
    keys, values = [m.key for m in messages], [m.value for m in messages]
    headers = [m.headers for m in messages]
    times = [now_ms if m.time_ms is None else m.time_ms for m in messages]
    pairs = list(chain.from_iterable(headers))
    numbered = _Numbered()
    name = np.fromiter(map(numbered.__getitem__, map(itemgetter(0), pairs)), np.int64, len(pairs))

    parts = [*keys, *values, *map(itemgetter(1), pairs), *map(str.encode, numbered)]
    nulls = []
    if None in keys or None in values:
        nulls = [i for i, part in enumerate(parts) if part is None]
        parts = [part or b"" for part in parts]
    run = np.zeros((len(parts), 2), np.int64)
    run[:, 0] = np.fromiter(map(len, parts), np.int64, len(parts))
    np.cumsum(run[:-1, 0], out=run[1:, 1])
    run[nulls, 0] = _NULL

    counts = np.fromiter(map(len, headers), np.int64, n)
    first = np.zeros(n + 1, np.int64)
    np.cumsum(_FIXED_FIELDS + 2 * counts, out=first[1:])
    field = np.zeros((first[-1], 2), np.int64)
    field[first[:-1] + _KEY] = run[:n]
    field[first[:-1] + _VALUE] = run[n : 2 * n]
    field[first[:-1] + _HEADERS, 0] = counts
    header = 2 * np.arange(len(pairs)) + _FIXED_FIELDS * (1 + np.repeat(np.arange(n), counts))
    field[header] = run[2 * n + len(pairs) + name]
    field[header + 1] = run[2 * n : 2 * n + len(pairs)]
    data = np.frombuffer(bytearray().join(parts), np.uint8)
    return data, np.array(times, np.int64), first, field


class _Numbered(dict[str, int]):
    """Numbers names as they come up: 0, 1, 2, ..."""

    def __missing__(self, name: str) -> int:
        self[name] = number = len(self)
        return number


@compiled("u1:1 i8:1 i8:1 > i8:2 u1:1 i8:1")
def write(  # noqa: C901, PLR0912  (a step after the other, and loops call nothing)
    data: Bytes, time_ms: Int64, first: Int64, fields: Int64, out: Bytes, at: Int64
) -> None:
    """Write records one after the other, until all are or one does not fit.

    Args:
        data: as `laid_out` has it, and so the next three.
        time_ms: of each record.
        first: where its fields begin.
        fields: times and offsets are filled in.
        out: the records of one batch, as far as they have been written.
        at: (7,) where writing is, see `RECORD` and the others.
    """
    while at[RECORD] < len(time_ms):
        record = at[RECORD]
        begin, end = first[record], first[record + 1]
        if at[COUNT] == 0:
            at[FIRST_MS] = at[LAST_MS] = time_ms[record]
        fields[begin + _TIME, 0] = time_ms[record] - at[FIRST_MS]
        fields[begin + _OFFSET, 0] = at[COUNT]
        size = 0
        for field in range(begin, end):
            number = fields[field, 0]
            left = np.uint64((number << 1) ^ (number >> 63)) >> np.uint64(7)
            size += 1
            while left:
                left >>= np.uint64(7)
                size += 1
            if field >= begin + _KEY and field != begin + _HEADERS:
                size += max(number, 0)
        at[SIZE] = size
        left = np.uint64(size) >> np.uint64(6)
        size += 1
        while left:
            left >>= np.uint64(7)
            size += 1
        if at[BYTES] + size > at[ROOM]:
            return
        place = at[BYTES]
        for field in range(begin - 1, end):
            number = at[SIZE] if field < begin else fields[field, 0]
            left = np.uint64((number << 1) ^ (number >> 63))
            while left > np.uint64(127):
                out[place] = left & np.uint64(127) | np.uint64(128)
                left >>= np.uint64(7)
                place += 1
            out[place] = left
            place += 1
            if field >= begin + _KEY and field != begin + _HEADERS:
                start = fields[field, 1]
                if number > _SHORT:
                    out[place : place + number] = data[start : start + number]
                else:
                    for i in range(number):
                        out[place + i] = data[start + i]
                place += max(number, 0)
        at[BYTES] = place
        at[COUNT] += 1
        at[LAST_MS] = max(at[LAST_MS], time_ms[record])
        at[RECORD] += 1


def hashes_of(keys: list[bytes | None]) -> Int64:
    """What the client takes keys to partitions by: (N,) from 0 to 2^31 - 1."""
    texts = [key or b"" for key in keys]
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
    hashes = np.empty(len(texts), np.int64)
    _murmur2(np.frombuffer(bytearray().join(texts), np.uint8), ends, hashes)
    return hashes


_MURMUR_SEED, _MURMUR_FACTOR, _32_BITS = 0x9747B28C, 0x5BD1E995, 0xFFFF_FFFF


@compiled("u1:1 i8:1 > i8:1")
def _murmur2(data: Bytes, ends: Int64, hashes: Int64) -> None:
    """The hash that Kafka's clients place keys by, its sign bit off."""
    begin = 0
    for i in range(len(ends)):
        length = ends[i] - begin
        state = np.int64(_MURMUR_SEED) ^ length
        for j in range(begin, ends[i], 4):
            left = min(4, ends[i] - j)
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
        begin = ends[i]
