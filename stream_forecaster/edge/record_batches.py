"""Record batches as they lie in a fetch buffer, read by loops that are compiled.

    byte  0             8        12      16      17    21           23
          ├ base offset ┼ length ┼ epoch ┼ magic ┼ crc ┼ attributes ┼ last offset's delta ─▶

    byte    27           35         43         51               53         57             61
          ─▶ ┼ first time ┼ max time ┼ producer ┼ producer epoch ┼ sequence ┼ record count ┼ body

Source: kafka.apache.org/documentation, message format v2; `kafka.record.default_records`, the slow
and plain way to read the same.

These loops judge, they do not complain: where anything is odd they stop and say where. What is
wrong with it, or whether anything is, the client's own reader finds out.
"""

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.compiled import compiled, inlined

Bytes = NDArray[np.uint8]
Int64 = NDArray[np.int64]

HEADER_BYTES = 61
BEGIN, END, OFFSET, NEXT, EPOCH, CODEC, APPENDED, FIRST_MS, MAX_MS, COUNT = range(10)
"""Columns of the table of batches: where it lies, its first offset and the one after its last, the
leader's epoch, the codec, whether times are the broker's, the times that the records' are told from
and how many records there are to read: none of a batch that is passed over."""

RECORD_OFFSET, TIME_MS, KEY, KEY_SIZE, VALUE, VALUE_SIZE, HEADERS = range(7)
"""Rows of the table of records: each one's offset and time, where key and value begin and how long
they are, and where the headers begin; -1 where there are none."""

_LEAST_RECORD_BYTES = 7
"""Length, attributes, time, offset, key, value and headers, a byte each."""

UNBEGUN, LIVE, OVER = range(3)
"""What an aborted transaction is at some place in the log."""


def _crc_tables() -> NDArray[np.uint32]:
    """(8, 256) what each byte does to a CRC-32C, alone and before up to seven others."""
    tables = np.empty((8, 256), np.uint32)
    tables[0] = np.arange(256)
    for _ in range(8):
        tables[0] = np.where(tables[0] & 1, tables[0] >> 1 ^ 0x82F63B78, tables[0] >> 1)
    for i in range(1, 8):
        tables[i] = tables[i - 1] >> 8 ^ tables[0][tables[i - 1] & 0xFF]
    return tables


_CRC_TABLES = _crc_tables()


def batches(
    data: Bytes, aborted: Int64, *, check_crc: bool, most: int | None = None
) -> tuple[Int64, Int64, bool]:
    """The whole batches in a fetch buffer.

    Args:
        data: the buffer; what is left of a batch at its end is passed over.
        aborted: (A, 2) the first offset and the producer of the aborted transactions whose records
            are to be passed over, by offset.
        check_crc: compare checksums.
        most: stop after so many.

    Returns:
        the table of batches (B, 10), up to the first odd one; what each aborted transaction is
        there; and whether there is an odd one.
    """
    found = np.empty((len(data) // HEADER_BYTES + 1 if most is None else most, 10), np.int64)
    begun = np.full(len(aborted), UNBEGUN)
    n = _scan(data, _CRC_TABLES, check_crc, aborted, begun, found)
    return found[: n if n >= 0 else ~n], begun, n < 0


def records(data: Bytes, bodies: Int64, found: Int64) -> tuple[Int64, int | None]:
    """The records (7, N) of some batches, and the first batch that is odd, if one is.

    Args:
        data: where the bodies lie, not compressed.
        bodies: (B, 2) where each begins and ends.
        found: (B, 10) the batches.
    """
    odd = np.flatnonzero(found[:, COUNT] * _LEAST_RECORD_BYTES > bodies[:, 1] - bodies[:, 0])
    if len(odd):  # no word of it is believed, and no memory asked for
        return np.empty((7, 0), np.int64), int(odd[0])
    out = np.empty((7, int(found[:, COUNT].sum())), np.int64)
    n = _decode(data, bodies, found, out)
    return (out, None) if n >= 0 else (out[:, :0], ~n)


# -- loops -----------------------------------------------------------------------------------------


@inlined
def _whole(data: Bytes, at: int, size: int) -> int:
    """A number of `size` bytes, the highest first."""
    number = int(np.int64(data[at]))  # signed before it is whole, or the sum would be a float
    if number >= 128:
        number -= 256
    for i in range(1, size):
        number = number << 8 | int(np.int64(data[at + i]))
    return number


@inlined
def _unsigned(data: Bytes, at: int) -> int:
    """One of four bytes that has no sign."""
    return _whole(data, at, 4) & 0xFFFFFFFF


@inlined
def _varint(data: Bytes, at: int, end: int) -> tuple[int, int]:
    """A number of variable length, and where it ends: -1 if it does not before `end`."""
    number = shift = 0
    while at < end and shift < 70:
        byte = int(np.int64(data[at]))
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            if shift == 63 and byte > 1:
                break
            return (number >> 1 & 0x7FFFFFFFFFFFFFFF) ^ -(number & 1), at
        shift += 7
    return 0, -1


@inlined
def _crc32c(tables: NDArray[np.uint32], data: Bytes, at: int, end: int) -> int:
    crc = np.uint32(0xFFFFFFFF)
    while end - at >= 8:
        low = crc ^ (
            np.uint32(data[at])
            | np.uint32(data[at + 1]) << np.uint32(8)
            | np.uint32(data[at + 2]) << np.uint32(16)
            | np.uint32(data[at + 3]) << np.uint32(24)
        )
        crc = (
            tables[7, low & 0xFF]
            ^ tables[6, low >> 8 & 0xFF]
            ^ tables[5, low >> 16 & 0xFF]
            ^ tables[4, low >> 24]
            ^ tables[3, data[at + 4]]
            ^ tables[2, data[at + 5]]
            ^ tables[1, data[at + 6]]
            ^ tables[0, data[at + 7]]
        )
        at += 8
    while at < end:
        crc = tables[0, (crc ^ data[at]) & 0xFF] ^ np.uint32(crc >> 8)
        at += 1
    return int(np.int64(crc ^ np.uint32(0xFFFFFFFF)))


@inlined
def _marker(data: Bytes, at: int, end: int) -> int:
    """What a control batch's one record says of its transaction: 0 is aborted; -1 is odd."""
    length, at = _varint(data, at, end)
    if at < 0 or length > end - at:
        return -1
    for _ in range(3):  # attributes, time, offset
        if at >= 0:
            _, at = _varint(data, at, end)
    if at >= 0:
        length, at = _varint(data, at, end)
    if at < 0 or length != 4 or end - at < 4:
        return -1
    return max(_whole(data, at + 2, 2), -1)


@inlined
def _note(data: Bytes, at: int, end: int, batch: Int64) -> None:
    """A batch's row of the table; what it says of its control and its producer is left out."""
    attributes, base = _whole(data, at + 21, 2), _whole(data, at, 8)
    batch[BEGIN], batch[END] = at, end
    batch[OFFSET], batch[NEXT] = base, base + _whole(data, at + 23, 4) + 1
    batch[EPOCH], batch[CODEC] = _whole(data, at + 12, 4), attributes & 7
    batch[APPENDED] = attributes & 8
    batch[FIRST_MS], batch[MAX_MS] = _whole(data, at + 27, 8), _whole(data, at + 35, 8)
    batch[COUNT] = _whole(data, at + 57, 4)


@inlined
def _pass_aborted(data: Bytes, aborted: Int64, begun: Int64, batch: Int64) -> bool:
    """Pass over a batch of an aborted transaction, and note when one ends; False if it is odd."""
    attributes = _whole(data, batch[BEGIN] + 21, 2)
    producer = _whole(data, batch[BEGIN] + 43, 8)
    is_control, is_transactional = attributes & 0x20, attributes & 0x10
    marker = 1
    for i in range(len(aborted)):
        if aborted[i, 0] >= batch[NEXT]:
            break
        if begun[i] == UNBEGUN:
            begun[i] = LIVE
        if begun[i] == LIVE and aborted[i, 1] == producer:
            if is_control and batch[COUNT]:
                marker = _marker(data, batch[BEGIN] + HEADER_BYTES, batch[END])
                begun[i] = OVER if marker == 0 else LIVE
            elif is_transactional:
                batch[COUNT] = 0
    if is_control:
        batch[COUNT] = 0
    return marker >= 0


@compiled("u1:1! u4:2 b1 i8:2 > i8:1 i8:2 = i8")
def _scan(
    data: Bytes,
    tables: NDArray[np.uint32],
    check_crc: bool,  # noqa: FBT001  (loops have no keywords)
    aborted: Int64,
    begun: Int64,
    found: Int64,
) -> int:
    """See `batches`: how many there are; the complement of that if the next one is odd."""
    at = n = 0
    while len(data) - at >= 12 and n < len(found):
        end = at + 12 + _whole(data, at + 8, 4)
        if end > len(data):
            break
        if end - at < HEADER_BYTES or data[at + 16] != 2:
            return ~n
        if check_crc and _crc32c(tables, data, at + 21, end) != _unsigned(data, at + 17):
            return ~n
        _note(data, at, end, found[n])
        if found[n, COUNT] < 0 or found[n, NEXT] <= found[n, OFFSET]:
            return ~n
        if not _pass_aborted(data, aborted, begun, found[n]):
            return ~n
        at, n = end, n + 1
    return n


@inlined
def _past_headers(data: Bytes, at: int, stop: int, count: int) -> int:
    """Where `count` headers end; -1 if they are odd."""
    for _ in range(count):
        size, at = _varint(data, at, stop)
        if at < 0 or size < 0 or size > stop - at:
            return -1
        size, at = _varint(data, at + size, stop)
        if at < 0 or size > stop - at:
            return -1
        at += max(size, 0)
    return at


@inlined
def _record(data: Bytes, at: int, end: int, out: Int64, i: int) -> int:
    """Note record `i`, offset and time as told from the batch's; where it ends, -1 if it is odd."""
    length, at = _varint(data, at, end)
    if at < 0 or length < 1 or length > end - at or data[at] >= 0x80:
        return -1
    stop = at + length
    out[TIME_MS, i], at = _varint(data, at + 1, stop)
    if at < 0:
        return -1
    out[RECORD_OFFSET, i], at = _varint(data, at, stop)
    for field in (KEY, VALUE):
        if at < 0:
            return -1
        size, at = _varint(data, at, stop)
        if at < 0 or size > stop - at:
            return -1
        out[field, i], out[field + 1, i] = at, max(size, -1)
        at += max(size, 0)
    begin = at
    count, at = _varint(data, at, stop)
    out[HEADERS, i] = begin if count else -1
    if at < 0 or count < 0:
        return -1
    return stop if _past_headers(data, at, stop, count) == stop else -1


@compiled("u1:1! i8:2 i8:2 > i8:2 = i8")
def _decode(data: Bytes, bodies: Int64, found: Int64, out: Int64) -> int:
    """See `records`: how many there are; the complement of a batch's number if that is odd."""
    i = 0
    newest = -1
    for batch in range(len(found)):
        at, end = bodies[batch, 0], bodies[batch, 1]
        if not found[batch, COUNT]:
            continue
        for _ in range(found[batch, COUNT]):
            at = _record(data, at, end, out, i)
            if at < 0:
                return ~batch
            out[RECORD_OFFSET, i] += found[batch, OFFSET]
            if found[batch, APPENDED]:
                out[TIME_MS, i] = found[batch, MAX_MS]
            else:
                out[TIME_MS, i] += found[batch, FIRST_MS]
            if not newest < out[RECORD_OFFSET, i] < found[batch, NEXT]:
                return ~batch
            newest = out[RECORD_OFFSET, i]
            i += 1
        if at != end:
            return ~batch
    return i
