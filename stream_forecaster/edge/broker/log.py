"""One partition's log. Pure state: no clock, no I/O.

Theory of operation
-------------------
Offsets, from left to right:

    start_offset          last_stable_offset              end_offset
    |                     |                               |
    [b][b][b]...[b][c][b] [b of an open transaction][b][b]

* Readers see whole batches. `read_committed` readers stop at the *last stable offset*: the first
  offset of the oldest transaction still open. Below it every transaction has ended, and `aborted`
  tells readers which producers' records to skip: a range per aborted transaction.
* A transaction ends by a marker (a control batch), which takes an offset as any record does.
* Idempotence: per producer the last five batches' sequences are kept. A batch seen before is not
  appended again and gets its old offset; a gap is refused. A producer that the log does not know
  may start anywhere (its records may have been deleted), as in Kafka.
* The high watermark is the end offset: there is one replica.

Kafka deletes and compacts whole closed segments and so lags behind its own settings; here a batch
is the unit and the settings hold at once. A reader cannot tell, as Kafka promises no more than
that removed records may still be there.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from stream_forecaster.edge.broker import batches
from stream_forecaster.edge.broker.batches import Batch, Record
from stream_forecaster.edge.broker.codes import Code, Refused

_MAX_SEQUENCE = 0x7FFFFFFF


@dataclass(frozen=True, slots=True)
class Aborted:
    """The offsets of one aborted transaction: first record to marker."""

    producer_id: int
    first_offset: int
    last_offset: int


@dataclass(frozen=True, slots=True)
class Slice:
    """What one read brought; `aborted` is empty unless the read was read_committed."""

    data: bytes
    aborted: tuple[Aborted, ...]


@dataclass(slots=True)
class _Producer:
    epoch: int
    recent: deque[Batch] = field(default_factory=lambda: deque(maxlen=5))


class PartitionLog:
    """The batches of one partition, in offset order, with what is known of their producers."""

    def __init__(self) -> None:
        self.start_offset = 0
        self.end_offset = 0
        self.size_bytes = 0
        self._dirty_bytes = 0
        self._batches: list[Batch] = []
        self._producers: dict[int, _Producer] = {}
        self._open: dict[int, int] = {}  # producer id -> first offset of its transaction here
        self._aborted: list[Aborted] = []

    @property
    def last_stable_offset(self) -> int:
        """The end of what read_committed readers may see."""
        return max(self.start_offset, min(self._open.values(), default=self.end_offset))

    def append(self, batch: Batch) -> int:
        """Store a batch from a producer and return its base offset.

        A batch that was stored before is not stored again: its first base offset is returned.

        Raises:
            Refused: INVALID_PRODUCER_EPOCH or OUT_OF_ORDER_SEQUENCE.
        """
        if batch.producer_id < 0:
            return self._store(batch).base_offset
        producer = self._producers.get(batch.producer_id)
        if producer is not None and batch.producer_epoch == producer.epoch:
            for stored in producer.recent:
                if (stored.base_sequence, stored.last_sequence) == (
                    batch.base_sequence,
                    batch.last_sequence,
                ):
                    return stored.base_offset
        self._check_sequence(producer, batch)
        if producer is None or producer.epoch != batch.producer_epoch:
            producer = self._producers[batch.producer_id] = _Producer(batch.producer_epoch)
        stored = self._store(batch)
        # only the sequence and the place are needed; the bytes would outlive retention
        producer.recent.append(batches.without_data(stored))
        if stored.transactional:
            self._open.setdefault(stored.producer_id, stored.base_offset)
        return stored.base_offset

    def end_transaction(self, marker: Batch) -> None:
        """Append the marker that commits or aborts the producer's transaction.

        The marker's epoch becomes the producer's: a fenced producer is refused from here on.
        """
        stored = self._store(marker)
        first_offset = self._open.pop(marker.producer_id, None)
        if first_offset is not None and not batches.commits(marker):
            self._aborted.append(Aborted(marker.producer_id, first_offset, stored.base_offset))
        producer = self._producers.get(marker.producer_id)
        if producer is None or producer.epoch < marker.producer_epoch:
            self._producers[marker.producer_id] = _Producer(marker.producer_epoch)

    def read(self, offset: int, max_bytes: int, *, committed: bool, force: bool) -> Slice:
        """Read whole batches from the one that holds `offset` on.

        Args:
            offset: where to start.
            max_bytes: stop before the batch that would exceed it.
            committed: stop at the last stable offset and name the aborted transactions.
            force: bring one batch even if it is larger than `max_bytes`.

        Raises:
            Refused: OFFSET_OUT_OF_RANGE.
        """
        if not self.start_offset <= offset <= self.end_offset:
            raise Refused(Code.OFFSET_OUT_OF_RANGE)
        limit = self.last_stable_offset if committed else self.end_offset
        found: list[Batch] = []
        size_bytes = 0
        for i in range(self._index(offset), len(self._batches)):
            batch = self._batches[i]
            size_bytes += len(batch.data)
            if batch.last_offset >= limit or (size_bytes > max_bytes and (found or not force)):
                break
            found.append(batch)
        aborted: tuple[Aborted, ...] = ()
        if committed and found:
            last = found[-1].last_offset
            aborted = tuple(
                a for a in self._aborted if a.last_offset >= offset and a.first_offset <= last
            )
        return Slice(b"".join(b.data for b in found), aborted)

    def find_time(self, time_ms: int, *, committed: bool) -> tuple[int, int] | None:
        """Find the first record dated `time_ms` or later: its offset and its time, epoch ms."""
        limit = self.last_stable_offset if committed else self.end_offset
        for batch in self._batches:
            if batch.max_time_ms < time_ms or batch.control:
                continue
            for record in batch.records():
                if record.timestamp >= time_ms and record.offset >= self.start_offset:
                    return (record.offset, record.timestamp) if record.offset < limit else None
        return None

    def delete_before(self, offset: int) -> None:
        """Move the start of the log to `offset`.

        Raises:
            Refused: OFFSET_OUT_OF_RANGE when that is past the end.
        """
        if not 0 <= offset <= self.end_offset:
            raise Refused(Code.OFFSET_OUT_OF_RANGE)
        if offset <= self.start_offset:
            return
        self.start_offset = offset
        gone = self._index(offset)
        self.size_bytes -= sum(len(b.data) for b in self._batches[:gone])
        del self._batches[:gone]
        self._aborted = [a for a in self._aborted if a.last_offset >= offset]

    def retain(self, oldest_ms: int | None, max_bytes: int | None) -> None:
        """Delete the oldest batches: those dated before `oldest_ms`, and what `max_bytes` exceeds.

        None means no limit. Nothing from the last stable offset on is touched.
        """
        excess_bytes = 0 if max_bytes is None else self.size_bytes - max_bytes
        offset = self.start_offset
        for batch in self._batches:
            too_old = oldest_ms is not None and 0 <= batch.max_time_ms < oldest_ms
            excess_bytes -= len(batch.data)
            if batch.last_offset >= self.last_stable_offset or not (too_old or excess_bytes >= 0):
                break
            offset = batch.last_offset + 1
        self.delete_before(offset)

    def compact(self, oldest_marker_ms: int, min_dirty_ratio: float) -> None:
        """Keep the newest committed record of every key.

        Tombstones and transaction markers stay until they are dated before `oldest_marker_ms`, so
        that a reader who is slower than compaction still learns of them. Nothing is done until
        what was appended since the last time is at least `min_dirty_ratio` of the log.
        """
        if not self._dirty_bytes or self._dirty_bytes < min_dirty_ratio * self.size_bytes:
            return
        stable = self.last_stable_offset
        closed = [b for b in self._batches if b.last_offset < stable]
        aborted = self._aborted_test()
        data = [(b, b.records()) for b in closed if not (b.control or aborted(b))]
        newest = {record.key: record.offset for _, records in data for record in records}

        def live(record: Record) -> bool:
            tombstone_is_due = record.value is None and record.timestamp < oldest_marker_ms
            return newest[record.key] == record.offset and not tombstone_is_due

        kept = [b for b in closed if b.control and b.max_time_ms >= oldest_marker_ms]
        for batch, records in data:
            left = [record for record in records if live(record)]
            if left:
                whole = len(left) == len(records)
                kept.append(batch if whole else batches.rebuild(batch, left))
        kept.sort(key=lambda batch: batch.base_offset)
        self._batches[: len(closed)] = kept
        self.size_bytes = sum(len(b.data) for b in self._batches)
        self._dirty_bytes = sum(len(b.data) for b in self._batches[len(kept) :])
        # what was aborted below the stable offset is gone, so nothing is left to skip
        self._aborted = [a for a in self._aborted if a.last_offset >= stable]

    def _store(self, batch: Batch) -> Batch:
        stored = batch.at(self.end_offset)
        self._batches.append(stored)
        self.end_offset = stored.last_offset + 1
        self.size_bytes += len(stored.data)
        self._dirty_bytes += len(stored.data)
        return stored

    def _check_sequence(self, producer: _Producer | None, batch: Batch) -> None:
        if producer is None:
            return
        if batch.producer_epoch < producer.epoch:
            raise Refused(Code.INVALID_PRODUCER_EPOCH)
        fresh = batch.producer_epoch > producer.epoch or not producer.recent
        due = 0 if fresh else (producer.recent[-1].last_sequence + 1) & _MAX_SEQUENCE
        if batch.base_sequence != due:
            raise Refused(
                Code.OUT_OF_ORDER_SEQUENCE, f"sequence {batch.base_sequence}, expected {due}"
            )

    def _index(self, offset: int) -> int:
        """The first batch that ends at or after `offset`."""
        return bisect_left(self._batches, offset, key=lambda batch: batch.last_offset)

    def _aborted_test(self) -> Callable[[Batch], bool]:
        ranges: dict[int, list[Aborted]] = {}
        for entry in self._aborted:
            ranges.setdefault(entry.producer_id, []).append(entry)

        def aborted(batch: Batch) -> bool:
            return batch.transactional and any(
                a.first_offset <= batch.base_offset <= a.last_offset
                for a in ranges.get(batch.producer_id, ())
            )

        return aborted
