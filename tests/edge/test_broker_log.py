"""A partition's log against a plain list: what readers see, through aborts, deletes, compaction."""

import zlib
from collections.abc import Sequence
from typing import Any

import pytest
import raw
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords

from stream_forecaster.edge.broker import batches
from stream_forecaster.edge.broker.codes import Code, Refused
from stream_forecaster.edge.broker.log import PartitionLog

EPOCH = 0
KEYS = (b"a", b"b", b"c")
NOW_MS = 1_000_000
EVERYTHING = 1 << 30
HEADERS = [("h", b"v")]


def encoded(
    records: Sequence[tuple[bytes | None, bytes | None]],
    producer_id: int = -1,
    sequence: int = -1,
    *,
    codec: int = 0,
    time_ms: int = NOW_MS,
) -> batches.Batch:
    """A batch of keys and values; with a producer it is transactional."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=codec,
        is_transactional=producer_id >= 0,
        producer_id=producer_id,
        producer_epoch=EPOCH if producer_id >= 0 else -1,
        base_sequence=sequence,
        batch_size=EVERYTHING,
    )
    for i, (key, value) in enumerate(records):
        builder.append(i, time_ms, key, value, HEADERS)
    return batches.parse(bytes(builder.build()))


def visible(log: PartitionLog, *, committed: bool) -> list[tuple[int, bytes, bytes]]:
    """What a client makes of the log: offset, key, value, without markers and what was aborted."""
    part = log.read(log.start_offset, EVERYTHING, committed=committed, force=True)
    starts = sorted((a.first_offset, a.producer_id) for a in part.aborted)
    aborted: set[int] = set()
    found = []
    for batch in MemoryRecords(part.data):
        assert batch.validate_crc()
        while starts and starts[0][0] <= batch.last_offset:
            aborted.add(starts.pop(0)[1])
        records = list(batch)
        if batch.is_control_batch:
            aborted.discard(batch.producer_id)
        elif not (batch.is_transactional and batch.producer_id in aborted):
            found += [(r.offset, r.key, r.value) for r in records]
    return [entry for entry in found if entry[0] >= log.start_offset]


class LogMachine(RuleBasedStateMachine):
    """Producers write, commit and abort in any order; the log is cleaned at any time.

    The oracle is a list of every record ever written with the outcome of its transaction.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log = PartitionLog()
        self.written: list[dict[str, Any]] = []
        self.sequences = {1: 0, 2: 0}
        self.compacted_below = 0

    @rule(
        producer=st.sampled_from([-1, 1, 2]),
        keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=4),
        codec=st.sampled_from([0, 1]),
    )
    def write(self, producer: int, keys: list[bytes], codec: int) -> None:
        """Append a batch of a transaction, or of none."""
        base = self.log.end_offset
        records = [(key, b"%d" % (base + i)) for i, key in enumerate(keys)]
        sequence = self.sequences.get(producer, -1)
        assert self.log.append(encoded(records, producer, sequence, codec=codec)) == base
        if producer > 0:
            self.sequences[producer] += len(keys)
        outcome = None if producer > 0 else True
        self.written += [
            {"at": (base + i, key, value), "producer": producer, "committed": outcome}
            for i, (key, value) in enumerate(records)
        ]

    @rule(producer=st.sampled_from([1, 2]), committed=st.booleans())
    def end(self, producer: int, *, committed: bool) -> None:
        """End the producer's transaction, which may have no record here."""
        self.log.end_transaction(batches.marker(producer, EPOCH, NOW_MS, committed=committed))
        for record in self.written:
            if record["producer"] == producer and record["committed"] is None:
                record["committed"] = committed

    @precondition(lambda self: self.written)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        """Move the start of the log."""
        offset = data.draw(st.integers(self.log.start_offset, self.log.end_offset))
        self.log.delete_before(offset)
        assert self.log.start_offset == offset

    @rule()
    def compact(self) -> None:
        """Drop what is superseded, and every marker and aborted record below the stable offset."""
        stable = self.compacted_below = self.log.last_stable_offset
        self.log.compact(oldest_marker_ms=NOW_MS + 1, min_dirty_ratio=0.0)
        newest = {key: offset for offset, key, _ in self.kept() if offset < stable}
        seen = {key: offset for offset, key, _ in visible(self.log, committed=True)}
        assert len(visible(self.log, committed=True)) == len(newest)
        assert seen == newest

    def kept(self) -> list[tuple[int, bytes, bytes]]:
        """The committed records from the start of the log on, as the oracle has them."""
        start = self.log.start_offset
        return [r["at"] for r in self.written if r["committed"] and r["at"][0] >= start]

    @invariant()
    def stable_offset_is_the_first_open_record(self) -> None:
        """Or the start of the log, if that record is deleted: its transaction has not ended."""
        open_at = [r["at"][0] for r in self.written if r["committed"] is None]
        first = min(open_at, default=self.log.end_offset)
        assert self.log.last_stable_offset == max(first, self.log.start_offset)

    @invariant()
    def committed_readers_see_what_was_committed(self) -> None:
        """All of it in order, but for what compaction may drop: never a key's newest record."""
        stable = self.log.last_stable_offset
        expected = [entry for entry in self.kept() if entry[0] < stable]
        seen = visible(self.log, committed=True)
        assert set(seen) <= set(expected)
        assert seen == sorted(seen)
        newest = {key: offset for offset, key, _ in expected if offset < self.compacted_below}
        must = [e for e in expected if e[0] >= self.compacted_below or newest[e[1]] == e[0]]
        assert set(must) <= set(seen)

    @invariant()
    def size_is_what_is_stored(self) -> None:
        """Nothing is counted twice or forgotten."""
        assert self.log.size_bytes == sum(len(b.data) for b in self.log._batches)


TestLog = LogMachine.TestCase


@given(cut=st.integers(0, 200), flip=st.integers(0, 200), bit=st.integers(0, 7))
def test_a_damaged_batch_is_refused(cut: int, flip: int, bit: int) -> None:
    """Any bit and any length but the right one; the base offset is the broker's to set."""
    whole = raw.batch(b"value")
    flipped = bytearray(whole)
    at = 16 + flip % (len(whole) - 16)
    flipped[at] ^= 1 << bit

    for damaged in (whole[: cut % len(whole)], bytes(flipped), whole + b"x"):
        with pytest.raises(Refused):
            batches.parse(damaged)


def test_records_that_do_not_decode_are_corrupt() -> None:
    """A checksum over nonsense is right all the same."""
    nonsense = bytearray(raw.batch(b"value" * 20))
    nonsense[70:80] = b"\xff" * 10
    batch = batches.parse(raw.with_attributes(bytes(nonsense), 1))  # says gzip, is not

    with pytest.raises(Refused) as refused:
        batch.records()

    assert refused.value.code is Code.CORRUPT_MESSAGE
    with pytest.raises(zlib.error):
        zlib.decompress(bytes(nonsense[61:]))


def test_sequences_go_on_after_the_greatest_number() -> None:
    """2^31 - 1 is followed by 0."""
    log = PartitionLog()
    greatest = 0x7FFFFFFF
    assert log.append(encoded([(b"a", b"")] * 2, 1, greatest - 1)) == 0

    assert log.append(encoded([(b"a", b"")], 1, 0)) == 2


def test_only_the_last_five_batches_are_known_again() -> None:
    """An older repeat is out of order, as in Kafka: its client keeps five in flight at most."""
    log = PartitionLog()
    for i in range(6):
        log.append(encoded([(b"a", b"")], 1, i))

    assert log.append(encoded([(b"a", b"")], 1, 1)) == 1
    with pytest.raises(Refused) as refused:
        log.append(encoded([(b"a", b"")], 1, 0))

    assert refused.value.code is Code.OUT_OF_ORDER_SEQUENCE
    assert log.end_offset == 6


def test_a_marker_of_a_new_epoch_shuts_out_the_old_one() -> None:
    """So that what a fenced producer still has on its way never arrives."""
    log = PartitionLog()
    log.append(encoded([(b"a", b"")], 1, 0))

    log.end_transaction(batches.marker(1, EPOCH + 1, NOW_MS, committed=False))
    with pytest.raises(Refused) as refused:
        log.append(encoded([(b"a", b"")], 1, 1))

    assert refused.value.code is Code.INVALID_PRODUCER_EPOCH


def test_retention_stops_at_an_open_transaction() -> None:
    """However old it is: its records are not yet decided."""
    log = PartitionLog()
    log.append(encoded([(b"a", b"old")], time_ms=1))
    log.append(encoded([(b"a", b"open")], 1, 0, time_ms=1))
    log.append(encoded([(b"a", b"old too")], time_ms=1))

    log.retain(oldest_ms=100, max_bytes=0)

    assert log.start_offset == 1


@pytest.mark.parametrize("codec", range(5), ids=["none", "gzip", "snappy", "lz4", "zstd"])
def test_compaction_takes_single_records_out_of_a_batch(codec: int) -> None:
    """The others keep their offsets, times, headers and codec, and the batch its last offset."""
    log = PartitionLog()
    log.append(encoded([(b"a", b"x" * 300), (b"b", b"y" * 300), (b"a", b"z" * 300)], codec=codec))
    log.append(encoded([(b"a", b"w" * 300)]))

    log.compact(oldest_marker_ms=0, min_dirty_ratio=0.5)

    assert visible(log, committed=False) == [(1, b"b", b"y" * 300), (3, b"a", b"w" * 300)]
    first, _ = log._batches
    (record,) = first.records()
    assert (first.base_offset, first.last_offset, first.attributes) == (0, 2, codec)
    assert (record.timestamp, record.headers) == (NOW_MS, HEADERS)


def test_old_tombstones_go() -> None:
    """Those that slow readers may still need stay."""
    log = PartitionLog()
    for key, value, time_ms in ((b"a", b"1", 1), (b"a", None, 50), (b"b", None, 200)):
        log.append(encoded([(key, value)], time_ms=time_ms))

    log.compact(oldest_marker_ms=100, min_dirty_ratio=0.5)

    assert [offset for offset, _, _ in visible(log, committed=False)] == [2]
    assert log.end_offset == 3


def test_a_clean_log_is_left_alone() -> None:
    """Until enough has been appended since it was compacted."""
    log = PartitionLog()
    for _ in range(10):
        log.append(encoded([(b"a", b"x" * 100)]))
    log.compact(oldest_marker_ms=0, min_dirty_ratio=0.5)
    log.append(encoded([(b"b", b"x" * 100)]))
    log.append(encoded([(b"b", b"x" * 100)]))

    log.compact(oldest_marker_ms=0, min_dirty_ratio=0.9)
    before = len(visible(log, committed=False))
    log.compact(oldest_marker_ms=0, min_dirty_ratio=0.5)

    assert (before, len(visible(log, committed=False))) == (3, 2)
