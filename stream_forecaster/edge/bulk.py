"""Messages by the thousand, as ready-made record batches in the client's own accumulator.

Theory of operation. `KafkaProducer.send` makes every record byte by byte in Python, and a future
with it: 20 microseconds and more. Here one compiled loop writes the records of a batch, the
client's builder takes them in, and the batch goes to where `send` would have put it:

    messages ─▶ by topic and partition ─▶ records, cut into batches ─▶ the partition's queue
                with the client's hash     where `send` would cut       from here on the client's

So transactions, sequence numbers, checksums, retries, time-outs and the splitting of batches that
are too large remain the client's. What arrives is equal, byte for byte, to what `send` would have
sent, but that messages without key and partition go to one random partition together, that
messages without a time of their own have the same one, and that zstd works less hard (`_Builder`).

A batch is acknowledged or refused as a whole, and one future tells which. A split is the exception:
the client then binds the future of every record to the half that it went to. So it is shown a
sequence that makes them as they are asked for (`_Futures`).

All this leans on private names. `check` uses each of them without a broker and reads back what was
written, so that whoever sends can fall back to `send` when a new client has changed them.
"""

# ruff: noqa: SLF001  (see the theory above: no public word for any of it; the client is pinned <3.1)

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from operator import attrgetter
from typing import Any

import numpy as np
import zstandard
from kafka import KafkaProducer, TopicPartition
from kafka.errors import IllegalStateError, KafkaError
from kafka.partitioner import murmur2
from kafka.producer.future import FutureRecordMetadata
from kafka.producer.producer_batch import ProducerBatch
from kafka.producer.record_accumulator import RecordAccumulator
from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder

from stream_forecaster.edge.record_writing import (
    BYTES,
    COUNT,
    FIRST_MS,
    LAST_MS,
    LEAST_BYTES,
    RECORD,
    ROOM,
    SIZE,
    Bytes,
    Int64,
    hashes_of,
    laid_out,
    write,
)
from stream_forecaster.records import Message

_HEADER_BYTES = DefaultRecordBatchBuilder.header_size_in_bytes()
_OVERHEAD_BYTES = _HEADER_BYTES + DefaultRecordBatchBuilder.MAX_RECORD_OVERHEAD
"""What the client reckons for a record beside its key, value and headers."""
_LONGEST_LENGTH_BYTES = 5
_ZSTD = zstandard.ZstdCompressionParameters.from_level(1, window_log=18, hash_log=13, min_match=7)
_AT_ONCE, _BYTES_AT_ONCE = 512, 256 << 10
"""Messages laid out at once: bounds the temporaries and keeps them in the cache."""


def send(producer: KafkaProducer, messages: Iterable[Message]) -> list[list[Any]]:
    """Put messages on their way, in their order in each partition.

    Args:
        producer: its serialisers are passed over: keys and values are bytes or None.
        messages: to any topics and partitions.

    Returns:
        the futures of each batch, to be looked at after a flush: a split makes them more.

    Raises:
        KafkaError: no partitions of a topic are known, a message is larger than
            `max_request_size`, or the transaction has failed.
        ValueError: a topic has no such partition.
    """
    now_ms = int(time.time() * 1_000)
    by_topic: dict[str, list[Message]] = defaultdict(list)
    for topic, run in groupby(messages, attrgetter("topic")):
        by_topic[topic] += run
    placed = {
        TopicPartition(topic, partition): of_partition
        for topic, of_topic in by_topic.items()
        for partition, of_partition in _by_partition(producer, topic, of_topic).items()
    }
    transaction, queues = producer._transaction_manager, producer._accumulator
    if transaction and transaction.is_transactional():
        for tp in placed:
            transaction.maybe_add_partition_to_transaction(tp)
        producer._sender.wakeup()  # one request for all, on its way while the batches are made
    refuse = producer._ensure_valid_record_size
    futures = [
        _put(queues, batch)
        for tp, of_partition in placed.items()
        for batch in _batches(queues.config, refuse, tp, of_partition, now_ms)
    ]
    producer._sender.wakeup()
    return futures


def _by_partition(
    producer: KafkaProducer, topic: str, messages: list[Message]
) -> dict[int, list[Message]]:
    known = sorted(producer.partitions_for(topic))
    keys = [message.key for message in messages]
    told = {message.partition for message in messages if message.partition is not None}
    if unknown := told - {*known}:
        raise ValueError(f"topic {topic!r} has no partition {min(unknown)}")
    partitions = np.array(known)[hashes_of(keys) % len(known)].tolist()
    if told or None in keys:
        anywhere = producer._partition(topic, None, None, None, None, None)
        partitions = [
            (anywhere if m.key is None else by_key) if m.partition is None else m.partition
            for m, by_key in zip(messages, partitions, strict=True)
        ]
    found: dict[int, list[Message]] = defaultdict(list)
    for message, partition in zip(messages, partitions, strict=True):
        found[partition].append(message)
    return found


def _batches(
    config: Mapping[str, Any],
    refuse: Callable[[int], None],
    tp: TopicPartition,
    messages: list[Message],
    now_ms: int,
) -> Iterator[ProducerBatch]:
    """Messages of one partition as batches, each as full as can be.

    Args:
        config: the accumulator's.
        refuse: told the size of a message larger than a batch, raises if it is too large.
        tp: where to.
        messages: in their order.
        now_ms: of those without a time of their own.
    """
    room = config["batch_size"] - _HEADER_BYTES
    out, at = np.empty(room, np.uint8), np.zeros(7, np.int64)
    at[ROOM] = room
    # Messages of one partition are much alike in size.
    size = 1 + sum(len(message.value or b"") for message in messages[:1])
    at_once = max(1, min(_AT_ONCE, _BYTES_AT_ONCE // size))
    for begin in range(0, len(messages), at_once):
        some = messages[begin : begin + at_once]
        columns = laid_out(some, now_ms)
        at[RECORD] = 0
        write(*columns, out, at)
        while at[RECORD] < len(some):
            if at[COUNT]:
                yield _batch(config, tp, out, at)
                at[BYTES] = at[COUNT] = 0
                at[ROOM] = room
            else:  # larger than a batch: it gets one of its own size
                size = int(at[SIZE])
                refuse(size - LEAST_BYTES + _OVERHEAD_BYTES)
                out = np.empty(size + _LONGEST_LENGTH_BYTES, np.uint8)
                at[ROOM] = len(out)
            write(*columns, out, at)
    if at[COUNT]:
        yield _batch(config, tp, out, at)


def _batch(config: Mapping[str, Any], tp: TopicPartition, out: Bytes, at: Int64) -> ProducerBatch:
    """What has been written, as if the client had."""
    records = MemoryRecordsBuilder(
        config["message_version"], config["compression_attrs"], config["batch_size"]
    )
    count = int(at[COUNT])
    records._next_offset = count
    records._builder = builder = _Builder(
        config["message_version"],
        config["compression_attrs"],
        is_transactional=False,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=config["batch_size"],
    )
    builder._buffer += out[: at[BYTES]].data
    builder._num_records, builder._last_offset = count, count - 1
    builder._first_timestamp, builder._max_timestamp = int(at[FIRST_MS]), int(at[LAST_MS])
    batch = ProducerBatch(tp, records)
    batch._record_futures = _Futures(batch)
    return batch


class _Builder(DefaultRecordBatchBuilder):  # type: ignore[misc]  # the library has no types
    """The client's, but that it asks less of zstd.

    The client compresses at zstd's default level, 3, and has no setting for another. Forecasts,
    nearly all of them digits, come out as small if it looks no further back than for a few dozen of
    them, and at nothing shorter than seven bytes, in a quarter of the time.
    """

    __slots__ = ()

    def _maybe_compress(self) -> bool:
        if self._compression_type != self.CODEC_ZSTD:
            compressed: bool = super()._maybe_compress()
            return compressed
        with memoryview(self._buffer)[_HEADER_BYTES:] as records:
            made = zstandard.ZstdCompressor(compression_params=_ZSTD).compress(records)
            is_smaller = len(made) < len(records)
        if is_smaller:
            self._buffer[_HEADER_BYTES:] = made
        return is_smaller


def _put(queues: RecordAccumulator, batch: ProducerBatch) -> list[Any]:
    """Hand a batch over as the client's own `append` does; its futures."""
    # The count keeps a producer that is stopped from missing what arrives meanwhile.
    queues._appends_in_progress.increment()
    try:
        with queues._tp_lock(batch.topic_partition):
            if queues._closed:
                raise IllegalStateError("the producer has been stopped")
            queues._batches[batch.topic_partition].append(batch)
            queues._incomplete.add(batch)
    finally:
        queues._appends_in_progress.decrement()
    made: list[Any] = batch._record_futures.made
    return made


class _Futures:
    """The futures of a batch's records: the first one's, and the others' when they are asked for.

    A failed batch succeeds with a function that tells each record's failure, so its own future says
    nothing; that of a record does.

    Attributes:
        made: those that there are, in the records' order.
    """

    def __init__(self, batch: ProducerBatch) -> None:
        self._result = batch.produce_future
        self._count: int = batch.record_count
        self.made: list[Any] = []
        _ = self[0]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> Any:  # noqa: ANN401  (the library has no types)
        while len(self.made) <= i:
            self.made.append(
                FutureRecordMetadata(self._result, len(self.made), None, None, -1, -1, -1)
            )
        return self.made[i]


def check(producer: KafkaProducer) -> None:
    """Try all that is not public, on queues of its own: nothing is sent.

    Raises:
        Exception: of any kind, if the client is not as it is thought to be.
    """
    producer._sender.wakeup()
    hashes = [murmur2(key) & 0x7FFF_FFFF for key in _KEYS]
    _require("partitions", holds=hashes == hashes_of(_KEYS).tolist())
    config = producer._accumulator.config | {"batch_size": 2_000, "transaction_manager": None}
    queues, tp = RecordAccumulator(**config), TopicPartition("check", 0)
    refuse = producer._ensure_valid_record_size
    batches = list(_batches(queues.config, refuse, tp, _MESSAGES, 5))
    futures = [_put(queues, batch) for batch in batches]
    for batch in batches:
        batch.records.close()
    told = [(m.time_ms or 5, m.key, m.value, list(m.headers)) for m in _MESSAGES]
    _require("records", holds=told == [record for batch in batches for record in _read(batch)])

    queues._batches[tp].popleft()  # as when it is sent, and refused as too large
    queues.split_and_reenqueue(batches[0])
    queues.deallocate(batches[0])
    for sent in tuple(queues._batches[tp]):
        sent.complete(0, -1)
        queues.deallocate(sent)
    succeeded = [future.succeeded() for made in futures for future in made]
    count = batches[0].record_count + len(batches) - 1
    _require("halves of a batch", holds=count > len(batches) and succeeded == [True] * count)
    batch = next(_batches(queues.config, refuse, tp, _MESSAGES, 5))
    (future,) = _put(queues, batch)
    queues.abort_batches(KafkaError("aborted"))
    _require("aborted batches", holds=future.failed())


def _read(batch: ProducerBatch) -> Iterator[tuple[int, bytes | None, bytes | None, list[Any]]]:
    (written,) = MemoryRecords(bytes(batch.records.buffer()))
    _require("checksums", holds=written.validate_crc())
    for offset, record in enumerate(written):
        _require("offsets", holds=record.offset == offset)
        yield record.timestamp, record.key, record.value, record.headers


def _require(what: str, *, holds: bool) -> None:
    if not holds:
        raise RuntimeError(f"{what} are not what the client makes them")


_KEYS: list[bytes | None] = [bytes(range(200, 200 + n)) for n in range(13)]
_MESSAGES = [
    Message("", b"key", b"value", (("name", b"value"), ("", b"")), time_ms=1_767_312_000_000),
    Message("", b"", None, time_ms=1_767_311_000_000),
    Message("", None, b"", (("n\u00e4me", b"\0" * 200),)),
    Message("", b"k" * 70, b"v" * 3_000, time_ms=1_767_312_000_001),
] * 3
