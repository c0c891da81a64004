"""Columnar fetch reads what the client's own reader reads, of any buffer."""

import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import structlog
from hypothesis import example, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.protocol.consumer import IsolationLevel
from kafka.record import MemoryRecords
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.memory_records import MemoryRecordsBuilder
from raw import with_attributes, with_odd_header

from stream_forecaster.edge import columnar, header_names, record_batches
from stream_forecaster.edge.columnar import ColumnarRecords, columns
from stream_forecaster.records import Records

TP = TopicPartition("events", 3)
TIME_MS = 1_767_312_000_000
LEVELS = [IsolationLevel.READ_UNCOMMITTED, IsolationLevel.READ_COMMITTED]
GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4


@dataclass(frozen=True)
class Aborted:
    """What a broker says of an aborted transaction."""

    producer_id: int
    first_offset: int


@dataclass(frozen=True)
class Fetch:
    """A fetch buffer, what comes with it, and from where it was asked for."""

    data: bytes
    aborted: tuple[Aborted, ...] = ()
    offset: int = 0


@dataclass(frozen=True)
class Read:
    """What came of a fetch: rows, the position, and the error that ended it."""

    rows: list[tuple[Any, ...]]
    position: int
    error: str | None


def read_by(reader: type, fetch: Fetch, level: IsolationLevel, most: int | None) -> Read:
    """All of a fetch, so many records at a time, as the client would take them."""
    part = reader(
        fetch.offset,
        TP,
        MemoryRecords(fetch.data),
        isolation_level=level,
        aborted_transactions=fetch.aborted,
    )
    rows: list[tuple[Any, ...]] = []
    try:
        while part:
            taken = part.take(most)
            assert most is None or len(taken) <= most
            block = columns(TP.partition, [*taken], 1 << 62)
            assert len(block) == len(taken)
            rows += [
                (*row, tuple(block.headers.get(row[0], ())))
                for row in zip(
                    block.offset.tolist(),
                    block.time_ms.tolist(),
                    block.key,
                    block.value,
                    strict=True,
                )
            ]
    except CorruptRecordError as error:
        return Read(rows, part.next_fetch_offset, str(error))
    return Read(rows, part.next_fetch_offset, None)


def batch(
    offset: int,
    rows: list[tuple[int, bytes | None, bytes | None, list[Any]]],
    codec: int = 0,
    producer: int = -1,
    gap: int = 0,
) -> tuple[bytes, int]:
    """A batch and the offset after it; `producer` writes in a transaction."""
    told = {"transactional": True, "producer_id": producer, "producer_epoch": 0, "base_sequence": 0}
    builder = MemoryRecordsBuilder(2, codec, 1 << 20, **(told if producer >= 0 else {}))
    for i, row in enumerate(rows):
        builder.skip(gap * (i % 2))
        builder.append(*row)
    size = builder.next_offset()
    builder.close()
    data = bytearray(builder.buffer())
    struct.pack_into(">q", data, 0, offset)
    return bytes(data), offset + size


def marker(offset: int, producer: int, *, commits: bool) -> tuple[bytes, int]:
    """The end of a producer's transaction."""
    plain, after = batch(
        offset, [(TIME_MS, struct.pack(">hh", 0, commits), b"\0" * 6, [])], producer=producer
    )
    return with_attributes(plain, 0x30), after


_strings = st.one_of(st.none(), st.binary(max_size=4), st.binary(min_size=60, max_size=300))
_headers = st.lists(st.tuples(st.text(max_size=3), st.binary(max_size=3)), max_size=2)
_rows = st.lists(
    st.tuples(
        st.integers(TIME_MS - 10**6, TIME_MS + 10**6),
        _strings,
        _strings,
        st.one_of(st.just([]), _headers),
    ),
    min_size=1,
    max_size=8,
)


@st.composite
def fetches(draw: st.DrawFn) -> Fetch:
    """Batches of every codec, gaps, transactions that end either way, and a cut last batch."""
    offset = begin = draw(st.sampled_from([0, 5, 1 << 33]))
    data, aborted = b"", []
    open_since: dict[int, int] = {}
    kinds = st.sampled_from(["plain", "plain", "transactional", "end", "log append"])
    for kind in draw(st.lists(kinds, max_size=8)):
        producer = draw(st.sampled_from([7, 8])) if kind in {"transactional", "end"} else -1
        if kind == "end":
            commits = draw(st.booleans())
            if producer in open_since and not commits:
                aborted.append(Aborted(producer, open_since.pop(producer)))
            piece, offset = marker(offset, producer, commits=commits)
            open_since.pop(producer, None)
        else:
            open_since.setdefault(producer, offset)
            codec, gap = draw(st.integers(0, 4)), draw(st.integers(0, 2))
            piece, offset = batch(offset, draw(_rows), codec, producer, gap)
            if kind == "log append":
                piece = with_attributes(piece, piece[22] | 8)
        data += piece
    data = data[: len(data) - draw(st.sampled_from([0, 0, 1, 40, 70]))]
    return Fetch(data, tuple(aborted), draw(st.integers(begin, offset)))


def assert_same(fetch: Fetch, level: IsolationLevel, most: int | None) -> Read:
    """Both ways come to the same; what."""
    fast = read_by(ColumnarRecords, fetch, level, most)
    assert fast == read_by(Fetcher.PartitionRecords, fetch, level, most)
    return fast


@effort(max_examples=200)
@given(fetch=fetches(), level=st.sampled_from(LEVELS), most=st.sampled_from([None, 1, 3, 500]))
def test_columns_are_the_clients_records(
    fetch: Fetch, level: IsolationLevel, most: int | None
) -> None:
    """Offsets, times, keys, values, headers and the position behind them."""
    assert_same(fetch, level, most)


@given(
    fetch=fetches(),
    at=st.integers(0, 10_000),
    bits=st.integers(1, 255),
    fixed=st.booleans(),
)
@example(fetch=Fetch(batch(0, [(TIME_MS, None, b"v", [])])[0]), at=61, bits=1, fixed=True)
@example(
    fetch=Fetch(batch(0, [(TIME_MS, None, b"v", [("\x80", b"")])])[0]), at=14, bits=2, fixed=True
)
@patch.object(DefaultRecordBatch, "_read_msg", header_names._read_spelling_out)
def test_what_is_damaged_is_left_to_the_client(
    fetch: Fetch, at: int, bits: int, *, fixed: bool
) -> None:
    """Wherever it is, and whether the checksum tells or not: the same records, the same error.

    Of the client once it spells names of headers out that are not UTF-8 any more, as columns do.
    """
    data = bytearray(fetch.data)
    begins = _begins(fetch.data)
    places = [i for b, e in pairwise(begins) for i in (*range(b + 16, b + 21), *range(b + 61, e))]
    if not places:
        return
    at = places[at % len(places)]  # a magic byte, a checksum or a body
    data[at] ^= bits
    begin = max(i for i in begins if i <= at)
    if data[begin + 22] & 0x20:
        return  # a control batch is looked into only where it matters
    end = begin + 12 + struct.unpack_from(">i", data, begin + 8)[0]
    if fixed and at - begin >= 61:
        data[begin:end] = with_attributes(bytes(data[begin:end]), data[begin + 22])
    plain = Fetch(bytes(data), fetch.aborted, fetch.offset)
    try:
        slow = read_by(Fetcher.PartitionRecords, plain, LEVELS[1], 3)
    except Exception as error:  # noqa: BLE001  (a codec's, or the client's own oversight)
        with pytest.raises(type(error)):
            read_by(ColumnarRecords, plain, LEVELS[1], 3)
    else:
        assert read_by(ColumnarRecords, plain, LEVELS[1], 3) == slow


def _begins(data: bytes) -> list[int]:
    """Where whole batches begin, and where the last one ends."""
    begins = [0]
    while len(data) - begins[-1] >= 12:
        end = begins[-1] + 12 + struct.unpack_from(">i", data, begins[-1] + 8)[0]
        if end > len(data):
            break
        begins.append(end)
    return begins


# -- what only some buffers have -------------------------------------------------------------------


def _plain(offset: int, *values: bytes) -> bytes:
    return batch(offset, [(TIME_MS, None, value, []) for value in values])[0]


@pytest.mark.parametrize("magic", [0, 1])
def test_the_format_of_before_2017_is_still_read(magic: int) -> None:
    """By the client; what is in front of it is not held up."""
    old = MemoryRecordsBuilder(magic, 0, 1 << 16, 2)
    old.append(TIME_MS, b"k", b"old")
    old.close()
    fetch = Fetch(_plain(0, b"a", b"b") + bytes(old.buffer()))
    assert [row[3] for row in assert_same(fetch, LEVELS[1], 500).rows] == [b"a", b"b", b"old"]


def test_a_wrong_checksum_is_an_error_behind_what_is_right() -> None:
    """Of the same words as ever."""
    data = bytearray(_plain(0, b"a") + _plain(1, b"b"))
    data[-1] ^= 1
    read = assert_same(Fetch(bytes(data)), LEVELS[1], 500)
    assert [row[3] for row in read.rows] == [b"a"]
    assert read.error is not None
    assert "crc" in read.error


def test_transactions_go_on_where_the_client_takes_over() -> None:
    """What was aborted before stays so, and what has ended has ended."""
    data, offset, aborted = b"", 0, []
    for producer, commits in ((7, False), (8, True), (7, True), (8, False)):
        aborted += [] if commits else [Aborted(producer, offset)]
        begun, offset = batch(offset, [(TIME_MS, None, b"%d" % producer, [])], producer=producer)
        ended, offset = marker(offset, producer, commits=commits)
        data += begun + ended
    old = MemoryRecordsBuilder(1, 0, 1 << 16, offset)
    old.append(TIME_MS, b"k", b"old")
    old.close()
    late, _ = batch(offset + 1, [(TIME_MS, None, b"late", [])], producer=8)
    for begin in range(0, offset, 2):
        read = assert_same(
            Fetch(data + bytes(old.buffer()) + late, tuple(aborted), begin), LEVELS[1], 1
        )
        assert read.rows[-1][3] == b"late"


def test_an_empty_control_batch_is_passed_over() -> None:
    """Compaction leaves such; the client's own reader raises there."""
    end, after = marker(1, 7, commits=False)
    empty = bytearray(with_attributes(end, 0x30)[:61])
    struct.pack_into(">i", empty, 8, 61 - 12)
    struct.pack_into(">i", empty, 57, 0)
    begun, _ = batch(0, [(TIME_MS, None, b"aborted", [])], producer=7)
    data = begun + with_attributes(bytes(empty), 0x30) + _plain(after, b"next")
    read = read_by(ColumnarRecords, Fetch(data, (Aborted(7, 0),)), LEVELS[1], 500)
    assert [row[3] for row in read.rows] == [b"next"]


def test_a_header_name_that_is_not_utf8_is_spelled_out() -> None:
    """When it is read, and not before."""
    fetch = Fetch(with_odd_header(b"v"))
    (row,) = read_by(ColumnarRecords, fetch, LEVELS[1], 500).rows
    assert row[4] == (("\\xff\\xfe", b"1"), ("none", None))


def test_headers_of_several_blocks_are_found() -> None:
    """Each by the offset of its record; others have none."""
    rows: list[Any] = [(TIME_MS, None, b"v", [("h", b"%d" % i)] if i else []) for i in range(3)]
    blocks = [
        block
        for offset in (0, 3)
        for block in ColumnarRecords(offset, TP, MemoryRecords(batch(offset, rows)[0])).take(500)
    ]
    joined = columns(TP.partition, blocks, 6)
    assert dict(joined.headers) == {i: (("h", b"%d" % (i % 3)),) for i in (1, 2, 4, 5)}
    assert joined.headers.get(3) is None
    assert joined.value == [b"v"] * 6


# -- the seam --------------------------------------------------------------------------------------


class Consumer:
    """As much of a consumer as has the seam."""

    class _fetcher:  # noqa: N801  (the client's name)
        PartitionRecords = Fetcher.PartitionRecords


def test_columns_are_taken_up() -> None:
    """By the installed client; without this it would fall back in silence of the tests."""
    consumer = Consumer()
    logged = structlog.testing.CapturingLogger()
    assert columnar.install(consumer, logged)
    assert consumer._fetcher.PartitionRecords is ColumnarRecords
    assert logged.calls == []


def test_a_client_that_differs_is_read_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a line in the log says so."""
    monkeypatch.setattr(record_batches, "TIME_MS", 0)
    consumer, logged = Consumer(), structlog.testing.CapturingLogger()
    consumer._fetcher.PartitionRecords = Fetcher.PartitionRecords
    assert not columnar.install(consumer, logged)
    assert consumer._fetcher.PartitionRecords is Fetcher.PartitionRecords
    assert logged.calls[0].method_name == "warning"


def test_the_clients_records_make_the_same_columns() -> None:
    """Which is what the fallback lives on."""
    fetch = Fetch(b"".join(columnar._sample()))
    parts = [
        reader(0, TP, MemoryRecords(fetch.data)).take(500)
        for reader in (Fetcher.PartitionRecords, ColumnarRecords)
    ]
    slow, fast = (columns(TP.partition, [*part], 12) for part in parts)
    assert isinstance(fast, Records)
    assert (slow.key, slow.value) == (fast.key, fast.value)
    np.testing.assert_array_equal(slow.offset, fast.offset)
    assert dict(slow.headers) == dict(fast.headers)
