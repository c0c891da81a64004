"""Record batches, format 2: what a partition's log is made of.

The broker stores batches as the producer sent them, compressed or not, and looks only at their
header. The base offset and the leader epoch lie outside the checksum, so giving a batch its place
in the log does not touch the rest. Records are decoded only to compact and to look up times.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from kafka.record.util import calc_crc32c

from stream_forecaster.edge.broker.codes import Code, Refused

# base offset, length, leader epoch, magic, crc, attributes, last offset delta, first and
# greatest timestamp, producer id, producer epoch, base sequence, number of records
_HEADER = struct.Struct(">qiibIhiqqqhii")
_LENGTH_AT, _EPOCH_AT, _CRC_AT, _ATTRIBUTES_AT, _LAST_DELTA_AT = 8, 12, 17, 21, 23
_BEFORE_LENGTH_BYTES = 12  # the length field counts what follows it
_TRANSACTIONAL, _CONTROL = 0x10, 0x20

Record: TypeAlias = Any
"""A decoded record: offset, timestamp, key, value, headers. `kafka.record` ships no types."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One stored batch; `data` are its bytes, the rest is read from its header."""

    base_offset: int
    last_offset: int
    max_time_ms: int
    attributes: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    data: bytes

    @property
    def transactional(self) -> bool:
        """Part of a transaction: data or marker."""
        return bool(self.attributes & _TRANSACTIONAL)

    @property
    def control(self) -> bool:
        """A transaction's end marker."""
        return bool(self.attributes & _CONTROL)

    @property
    def last_sequence(self) -> int:
        """The producer's sequence number of the last record; wraps past 2^31 - 1."""
        return (self.base_sequence + self.last_offset - self.base_offset) & 0x7FFFFFFF

    def at(self, base_offset: int) -> "Batch":
        """Give the batch its place in a log."""
        data = bytearray(self.data)
        struct.pack_into(">q", data, 0, base_offset)
        struct.pack_into(">i", data, _EPOCH_AT, 0)
        return replace(
            self,
            base_offset=base_offset,
            last_offset=base_offset + self.last_offset - self.base_offset,
            data=bytes(data),
        )

    def records(self) -> list[Record]:
        """Decode the records.

        Raises:
            Refused: CORRUPT_MESSAGE: the checksum was right, but not what it was made of.
        """
        try:
            return list(DefaultRecordBatch(self.data))
        except Exception as error:  # each of four codecs has errors of its own
            raise Refused(Code.CORRUPT_MESSAGE, f"undecodable records: {error}") from error


def parse(records: bytes | memoryview | None) -> Batch:
    """Read the one batch that a produce request may hold for a partition.

    Raises:
        Refused: CORRUPT_MESSAGE or INVALID_RECORD, as Kafka answers it.
    """
    data = bytes(records or b"")
    if len(data) < _HEADER.size:
        raise Refused(Code.CORRUPT_MESSAGE, "truncated record batch")
    batch = _parse(data)
    magic, length = data[16], struct.unpack_from(">i", data, _LENGTH_AT)[0]
    if magic != 2:
        raise Refused(Code.INVALID_RECORD, f"record format {magic}, not 2")
    if length + _BEFORE_LENGTH_BYTES < len(data):
        raise Refused(Code.INVALID_RECORD, "more than one batch for a partition")
    if length + _BEFORE_LENGTH_BYTES > len(data) or batch.last_offset < batch.base_offset:
        raise Refused(Code.CORRUPT_MESSAGE, "truncated record batch")
    if calc_crc32c(memoryview(data)[_ATTRIBUTES_AT:]) != struct.unpack_from(">I", data, _CRC_AT)[0]:
        raise Refused(Code.CORRUPT_MESSAGE, "checksum mismatch")
    if batch.control:
        raise Refused(Code.INVALID_RECORD, "clients may not write control batches")
    if _HEADER.unpack_from(data)[-1] != batch.last_offset - batch.base_offset + 1:
        raise Refused(Code.INVALID_RECORD, "the number of records does not fit their offsets")
    return batch


def marker(producer_id: int, producer_epoch: int, now_ms: int, *, committed: bool) -> Batch:
    """Build the control batch that ends a transaction."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=True,
        producer_id=producer_id,
        producer_epoch=producer_epoch,
        base_sequence=-1,
        batch_size=1024,
    )
    # key: version and type (0 abort, 1 commit); value: version and coordinator epoch
    key, value = struct.pack(">hh", 0, int(committed)), struct.pack(">hi", 0, 0)
    builder.append(0, now_ms, key, value, [])
    data = builder.build()
    struct.pack_into(">h", data, _ATTRIBUTES_AT, _TRANSACTIONAL | _CONTROL)
    return _parse(_sealed(data))


def commits(batch: Batch) -> bool:
    """Whether a marker ends its transaction by commit."""
    return bool(struct.unpack(">hh", batch.records()[0].key)[1])


def without_data(batch: Batch) -> Batch:
    """Only the header's fields, for remembering a batch longer than its records."""
    return replace(batch, data=b"")


def rebuild(batch: Batch, records: Iterable[Record]) -> Batch:
    """Make a smaller batch of some of its records; every offset stays what it was.

    The result carries no producer: it is written only when the transaction is long over and
    committed, and the log keeps the producers' sequences elsewhere.
    """
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=batch.attributes & DefaultRecordBatch.CODEC_MASK,
        is_transactional=False,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=1 << 62,  # no limit: what is kept was accepted once
    )
    for record in records:
        delta = record.offset - batch.base_offset
        builder.append(delta, record.timestamp, record.key, record.value, record.headers)
    data = builder.build()
    struct.pack_into(">i", data, _LAST_DELTA_AT, batch.last_offset - batch.base_offset)
    return _parse(_sealed(data)).at(batch.base_offset)


def _parse(data: bytes) -> Batch:
    base, _, _, _, _, attributes, delta, _, max_time_ms, pid, epoch, sequence, _ = (
        _HEADER.unpack_from(data)
    )
    return Batch(base, base + delta, max_time_ms, attributes, pid, epoch, sequence, data)


def _sealed(data: bytearray) -> bytes:
    struct.pack_into(">I", data, _CRC_AT, calc_crc32c(memoryview(data)[_ATTRIBUTES_AT:]))
    return bytes(data)
