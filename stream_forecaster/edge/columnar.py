"""Columnar fetch: what a poll brings as columns, without an object per record.

Theory of operation
-------------------
**The seam.** The client (3.0.12) keeps a partition's fetch buffer in a `PartitionRecords`, which it
looks up on its fetcher, and asks it to `take` so many records at a time. On our consumer's fetcher
that class is replaced by one whose `take` answers with `Records`. Everything else stays in the
client's hands: positions, pauses, rebalances, fetch sessions.

**Bounds.** What `take` answers is as long as it has records, though it is one object: so
`max_poll_records` counts records as ever. No more batches are decompressed than are taken.

**Nothing is judged twice.** The loops in `record_batches` read what is plain. From the first batch
on that is not (a wrong checksum, the format of before 2017, a record that does not add up) the rest
of the buffer is left to the client's own reader, which reads it or raises what it always has.

**Headers** are found, and read when somebody asks: only rejects do. Names that are not UTF-8 are
spelled out, as in `header_names`, whose repair only the client's reader needs.

**Two things differ from the client's reader**, both in our favour. A position may be past what is
never read (markers, aborted and compacted records) one poll earlier; and of control batches only
those are looked into that may end an aborted transaction, so that one whose record was compacted
away is passed over, as by the Java client, where ours would raise.

**If the client changes**, nothing breaks: at start a small buffer is read both ways, and unless all
is the same the seam is left alone and the client's records are made into columns.
`tests/edge/test_columnar.py` compares the two on random buffers; run it against a new client.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import dropwhile
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from kafka.consumer.fetcher import Fetcher
from kafka.protocol.consumer import IsolationLevel
from kafka.record import MemoryRecords
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.memory_records import MemoryRecordsBuilder
from kafka.record.util import decode_varint
from kafka.structs import TopicPartition
from numpy.typing import NDArray
from structlog.typing import FilteringBoundLogger
from typing_extensions import override

from stream_forecaster.edge import record_batches as wire
from stream_forecaster.records import BytesColumn, Headers, Records, as_text

Int64 = NDArray[np.int64]


def install(consumer: Any, log: FilteringBoundLogger) -> bool:  # noqa: ANN401  (the library has no types)
    """Have a consumer's polls bring `Records`, unless they differ from its own; whether they do."""
    fetcher = consumer._fetcher  # noqa: SLF001  (the seam)
    try:
        _require_same()
        found = fetcher.PartitionRecords
        if found is not Fetcher.PartitionRecords:
            raise TypeError(f"records of a partition are {found}")  # noqa: TRY301  (one way out)
    except Exception as error:  # noqa: BLE001  (whatever it is, there is another way)
        log.warning(
            "columnar_fetch_off",
            cause=f"{type(error).__name__}: {error}",
            hint="records are read one by one, at ten times the cost: is this a new kafka-python?",
        )
        return False
    fetcher.PartitionRecords = ColumnarRecords
    return True


def columns(partition: int, fetched: Sequence[Any], next_offset: int) -> Records:
    """What a poll brought of one partition, by either way, as one block."""
    blocks = [block for block in fetched if isinstance(block, Records)]
    if len(blocks) < len(fetched) or not blocks:
        return _of_objects(partition, fetched, next_offset)
    return Records.joined(blocks, next_offset)


class ColumnarRecords(Fetcher.PartitionRecords):  # type: ignore[misc]  # the library has no types
    """A partition's fetch buffer, taken as columns."""

    next_fetch_offset: int
    aborted_transactions: deque[Any]

    @override
    def _unpack_records(self, tp: Any, records: Any, *deserializers: Any) -> Any:
        """Called by the constructor: note the buffer; nothing is read yet."""
        self._raw = records._buffer  # noqa: SLF001  (it has no name for it)
        self._data = np.frombuffer(self._raw, np.uint8)
        self._batches: Int64 | None = None  # up to the first odd one
        self._is_odd_after = self._is_left_to_client = False
        self._next_batch = 0
        self._left = _of_objects(tp.partition, (), self.fetch_offset)  # read and not taken
        return super()._unpack_records(tp, records, *deserializers)

    @override
    def take(self, n: int | None = None) -> "_Taken":
        """The next records, at most `n`."""
        while self and not len(self._left) and not self._is_left_to_client:
            self._read(n)
        if self._is_left_to_client and not len(self._left):
            objects = super().take(n)
            found = _of_objects(self.topic_partition.partition, objects, self.next_fetch_offset)
            return _Taken(found)
        taken, self._left = self._left.first(n)
        self.next_fetch_offset = taken.next_offset
        self.records_read += len(taken)
        return _Taken(taken)

    def _read(self, n: int | None) -> None:
        """Read so many batches that `n` records are left to take; behind the last one, drain."""
        if self._batches is None:
            self._batches, _, self._is_odd_after = self._scanned()
        ahead = self._batches[self._next_batch :]
        if not len(ahead):
            self._leave_to_client() if self._is_odd_after else self.drain()
            return
        enough = np.cumsum(ahead[:, wire.COUNT]) >= (len(self._data) if n is None else n)
        ends = enough | (np.append(ahead[1:, wire.EPOCH], -1) != ahead[:, wire.EPOCH])
        run = ahead[: int(np.argmax(ends)) + 1]
        found, good = _records(self._raw, self._data, run, self.topic_partition.partition)
        if good < len(run):
            self._batches, self._is_odd_after = self._batches[: self._next_batch + good], True
        if good:
            self._left = found.split(self.fetch_offset)[1]
            self.leader_epoch = int(run[0, wire.EPOCH])
            self.bytes_read += int(run[good - 1, wire.END] - run[0, wire.BEGIN])
            self._next_batch += good
            self.next_fetch_offset = found.next_offset

    def _scanned(self, most: int | None = None) -> tuple[Int64, Int64, bool]:
        """As `record_batches.batches`, of the first `most` batches."""
        pairs = [(told.first_offset, told.producer_id) for told in self.aborted_transactions]
        committed = self.isolation_level == IsolationLevel.READ_COMMITTED
        aborted = np.array(pairs if committed else [], np.int64).reshape(-1, 2)
        return wire.batches(self._data, aborted, check_crc=self.check_crcs, most=most)

    def _leave_to_client(self) -> None:
        """Have the client's own reader go on behind the batches that were read."""
        read, begun, _ = self._scanned(self._next_batch)
        told = list(zip(self.aborted_transactions, begun.tolist(), strict=False))
        self.aborted_producer_ids = {t.producer_id for t, state in told if state == wire.LIVE}
        self.aborted_transactions = deque(t for t, state in told if state == wire.UNBEGUN)
        begin = int(read[-1, wire.END]) if len(read) else 0
        rest = MemoryRecords(memoryview(self._raw)[begin:])
        objects = super()._unpack_records(self.topic_partition, rest, None, None)
        self.record_iterator = dropwhile(self._maybe_skip_record, objects)
        self._is_left_to_client = True


class _Taken(Sequence[Records]):
    """Records one by one for the client, which counts them, and one block for whoever reads."""

    def __init__(self, records: Records) -> None:
        self._records = records

    @override
    def __len__(self) -> int:
        return len(self._records)

    @override
    def __iter__(self) -> Iterator[Records]:
        return iter((self._records,) if len(self._records) else ())

    @override
    def __getitem__(self, _: Any) -> Any:
        raise TypeError("a block of records is taken as a whole")


class _HeaderColumn(Mapping[int, Headers]):
    """Headers by offset, read when they are asked for.

    Args:
        data: where they lie.
        offset: (N,) of the records that have some.
        begin: (N,) where those of each begin.
    """

    def __init__(self, data: NDArray[np.uint8], offset: Int64, begin: Int64) -> None:
        self._data, self._offset, self._begin = data.data, offset, begin

    @override
    def __len__(self) -> int:
        return len(self._offset)

    @override
    def __iter__(self) -> Iterator[int]:
        return iter(self._offset.tolist())

    @override
    def __getitem__(self, offset: int) -> Headers:
        i = int(np.searchsorted(self._offset, offset))
        if i == len(self._offset) or self._offset[i] != offset:
            raise KeyError(offset)
        count, at = decode_varint(self._data, int(self._begin[i]))
        headers = []
        for _ in range(count):
            name, at = self._string(at)
            value, at = self._string(at)
            headers.append((as_text(name or b""), value))
        return tuple(headers)

    def _string(self, at: int) -> tuple[bytes | None, int]:
        size, at = decode_varint(self._data, at)
        return (None, at) if size < 0 else (bytes(self._data[at : at + size]), at + size)


def _records(
    raw: "bytes | memoryview", data: NDArray[np.uint8], run: Int64, partition: int
) -> tuple[Records, int]:
    """The records of some batches, up to the first odd one, and how many batches that is."""
    bodies: Int64 = run[:, [wire.BEGIN, wire.END]] + np.array([wire.HEADER_BYTES, 0])
    if run[run[:, wire.COUNT] > 0, wire.CODEC].any():
        data, bodies = _decompressed(raw, run)
    found, odd = wire.records(data, bodies, run[: len(bodies)])
    good = len(bodies) if odd is None else odd
    if odd is not None:
        found, _ = wire.records(data, bodies[:good], run[:good])
    has_headers = found[wire.HEADERS] >= 0
    records = Records(
        partition,
        found[wire.RECORD_OFFSET],
        found[wire.TIME_MS],
        BytesColumn(data, found[wire.KEY], found[wire.KEY_SIZE]),
        BytesColumn(data, found[wire.VALUE], found[wire.VALUE_SIZE]),
        int(run[good - 1, wire.NEXT]) if good else 0,
        _HeaderColumn(
            data, found[wire.RECORD_OFFSET][has_headers], found[wire.HEADERS][has_headers]
        )
        if has_headers.any()
        else {},
    )
    return records, good


def _decompressed(raw: "bytes | memoryview", run: Int64) -> tuple[NDArray[np.uint8], Int64]:
    """The bodies of some batches in one buffer, up to the first that cannot be decompressed."""
    view, bodies = memoryview(raw), []
    for batch in run:
        body: Any = b""
        begin, end = int(batch[wire.BEGIN]), int(batch[wire.END])
        if batch[wire.COUNT]:
            reader = DefaultRecordBatch(view[begin:end])
            try:
                reader._maybe_uncompress()  # noqa: SLF001  (it has no public word for it)
            except Exception:  # noqa: BLE001  (every codec has its own; the client's reader meets it again)
                break
            body = memoryview(reader._buffer)[reader._pos :]  # noqa: SLF001  (as above)
        bodies.append(body)
    ends = np.cumsum([len(body) for body in bodies], dtype=np.int64)
    begins = np.append(0, ends)[: len(ends)]
    return np.frombuffer(b"".join(bodies), np.uint8), np.stack([begins, ends], axis=1)


def _of_objects(partition: int, objects: Sequence[Any], next_offset: int) -> Records:
    """The client's records as columns."""
    n, times = len(objects), (-1 if r.timestamp is None else r.timestamp for r in objects)
    return Records(
        partition=partition,
        offset=np.fromiter(map(attrgetter("offset"), objects), np.int64, n),
        time_ms=np.fromiter(times, np.int64, n),
        key=BytesColumn.of(map(attrgetter("key"), objects)),
        value=BytesColumn.of(map(attrgetter("value"), objects)),
        next_offset=next_offset,
        headers={r.offset: tuple(r.headers) for r in objects if r.headers},
    )


# -- self-test -------------------------------------------------------------------------------------


def _require_same() -> None:
    """Read a buffer that has a bit of everything both ways.

    Raises:
        ValueError: something differs.
    """
    aborted = [_Aborted(7, 0)]
    buffer = b"".join(_sample())
    settings = {"isolation_level": IsolationLevel.READ_COMMITTED, "aborted_transactions": aborted}
    read = []
    for reader in (Fetcher.PartitionRecords, ColumnarRecords):
        part = reader(3, TopicPartition("self-test", 0), MemoryRecords(buffer), **settings)
        taken: list[Any] = []
        while part:
            taken.extend(part.take(2))
        records = columns(0, taken, part.next_fetch_offset)
        read.append((records, part.next_fetch_offset, part.leader_epoch, part.records_read))
    (slow, *slow_state), (fast, *fast_state) = read
    same = (
        slow.offset.tolist() == fast.offset.tolist()
        and slow.time_ms.tolist() == fast.time_ms.tolist()
        and (slow.key, slow.value) == (fast.key, fast.value)
        and dict(slow.headers) == dict(fast.headers)
        and slow_state == fast_state
    )
    if not same:
        raise ValueError(f"of a sample, columns are {fast}, and the client's records {slow}")


class _Aborted(NamedTuple):
    """What a broker says of an aborted transaction."""

    producer_id: int
    first_offset: int


def _sample() -> Iterator[bytes]:
    """Batches: an aborted one and its end, a plain one, one that is compressed."""
    producer = {"transactional": True, "producer_id": 7, "producer_epoch": 0, "base_sequence": 0}
    for codec, offset, told in ((0, 0, producer), (0, 4, {}), (1, 8, {})):
        batch = MemoryRecordsBuilder(2, codec, 1 << 16, offset, **told)
        batch.append(
            1_700_000_000_000, b"key", b"value" * 20, [("name", b"header"), ("null", None)]
        )
        batch.append(1_700_000_000_001, None, b"")
        batch.skip(1)
        batch.append(1_699_999_999_000, b"", None)
        batch.close()
        yield bytes(batch.buffer())
