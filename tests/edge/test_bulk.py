"""What is sent in bulk is what the client would have sent, and fails as it would have failed."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import structlog
from brokers import Served, unique
from clients import Clients, collect
from confluent_kafka import TopicPartition as ConfluentPartition
from drawn import forecast_messages
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.codec import zstd_decode
from kafka.errors import KafkaError, MessageSizeTooLargeError
from kafka.producer.producer_batch import ProducerBatch
from kafka.producer.record_accumulator import RecordAccumulator
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder
from pipelines import settings_on
from streams import any_messages

from stream_forecaster.edge import bulk
from stream_forecaster.edge.broker import Broker
from stream_forecaster.edge.connection import Outage
from stream_forecaster.edge.publisher import Publisher, _NullableValues, _send_each
from stream_forecaster.errors import TransportError
from stream_forecaster.records import Message

CODECS = [None, "gzip", "snappy", "lz4", "zstd"]
TP = TopicPartition("topic", 0)
NOW_MS = 1_767_312_000_000
Seen = tuple[bytes | None, bytes | None, list[tuple[str, bytes]] | None, int]


@pytest.fixture(scope="module")
def shared_clients(shared_embedded_broker: Broker) -> Iterator[Clients]:
    """Clients that outlive an example."""
    with ExitStack() as stack:
        yield Clients(shared_embedded_broker, stack)


def refuse(size: int) -> None:
    """Nothing is too large."""
    del size


def queues_of(batch_size: int, compression: int) -> Any:
    """What a producer keeps batches in until they are sent."""
    return RecordAccumulator(batch_size=batch_size, compression_attrs=compression)


def sent(queues: Any) -> list[bytes]:
    """The batches in it, as they go over the wire."""
    found = []
    for batch in queues._batches[TP]:
        batch.records.set_producer_state(7, 1, 40, is_transactional=True)
        batch.records.close()
        found.append(bytes(batch.records.buffer()))
    return found


def opened(batch: bytes) -> tuple[Any, ...]:
    """What is in a batch that zstd may have been at; its length and checksum are right."""
    (read,) = MemoryRecords(batch)
    assert read.validate_crc()
    assert read.size_in_bytes == len(batch)
    _, _, epoch, magic, _, attributes, *rest = DefaultRecordBatch.HEADER_STRUCT.unpack_from(batch)
    body = batch[DefaultRecordBatch.HEADER_STRUCT.size :]
    if read.compression_type:
        body = zstd_decode(body)
    return (epoch, magic, attributes & ~DefaultRecordBatch.CODEC_MASK, *rest, body)


@settings(max_examples=200)
@given(
    batch=st.lists(any_messages, max_size=30),
    batch_size=st.sampled_from([100, 400, 9000, 1 << 19]),
    compression=st.integers(0, 4),
)
def test_batches_are_those_of_the_client(
    batch: list[Message], batch_size: int, compression: int
) -> None:
    """Law: equal bytes, header and checksum with them, and cut at the same records.

    Of what zstd makes, equal when it is taken apart again.
    """
    second = int(time.time())
    stock, ours = queues_of(batch_size, compression), queues_of(batch_size, compression)
    for m in batch:
        time_ms = NOW_MS if m.time_ms is None else m.time_ms
        stock.append(TP, time_ms, m.key, m.value, list(m.headers))

    for made in bulk._batches(ours.config, refuse, TP, batch, NOW_MS):
        bulk._put(ours, made)

    own, theirs = sent(ours), sent(stock)
    assume(CODECS[compression] != "gzip" or int(time.time()) == second)  # it writes the time
    if CODECS[compression] == "zstd":
        assert list(map(opened, own)) == list(map(opened, theirs))
    else:
        assert own == theirs
    assert len(ours._incomplete.all()) == len(ours._batches[TP])


def test_forecasts_are_no_larger_than_the_client_would_make_them() -> None:
    """Within a hundredth: less work is asked of zstd, see `bulk._Builder`."""
    batch = forecast_messages("topic", 100)
    stock, ours = queues_of(1 << 19, 4), queues_of(1 << 19, 4)
    for m in batch:
        stock.append(TP, NOW_MS, m.key, m.value, list(m.headers))

    for made in bulk._batches(ours.config, refuse, TP, batch, NOW_MS):
        bulk._put(ours, made)

    (own,), (theirs,) = sent(ours), sent(stock)
    assert opened(own) == opened(theirs)
    assert own != theirs
    assert len(own) < 1.01 * len(theirs)


def test_what_zstd_makes_no_smaller_is_sent_as_it_is() -> None:
    """As by the client."""
    (made,) = bulk._batches(
        queues_of(4_000, 4).config, refuse, TP, [Message("topic", None, os.urandom(900))], NOW_MS
    )
    made.records.close()

    (read,) = MemoryRecords(bytes(made.records.buffer()))

    assert read.compression_type == 0
    assert read.validate_crc()


def test_more_than_is_laid_out_at_once_fills_its_batches() -> None:
    """Where a thousand small messages are cut has nothing to do with how they are laid out."""
    batch = [Message("topic", b"%d" % i, b"v" * (i % 7), time_ms=NOW_MS + i) for i in range(2_000)]
    stock, ours = queues_of(4_000, 0), queues_of(4_000, 0)
    for m in batch:
        stock.append(TP, m.time_ms, m.key, m.value, [])

    for made in bulk._batches(ours.config, refuse, TP, batch, NOW_MS):
        bulk._put(ours, made)

    assert sent(ours) == sent(stock)


def test_a_failed_batch_tells() -> None:
    """The future of the batch itself would not."""
    (batch,) = bulk._batches(
        queues_of(400, 0).config, refuse, TP, [Message("topic", b"k", b"v")], 0
    )
    error = KafkaError("refused")

    batch.complete_exceptionally(error, lambda _: error)

    (future,) = batch._record_futures.made
    assert batch.produce_future.succeeded()
    assert future.exception is error


def test_a_stopped_producer_takes_nothing() -> None:
    """Else it would wait for ever."""
    queues = queues_of(400, 0)
    (batch,) = bulk._batches(queues.config, refuse, TP, [Message("topic", b"k", b"v")], 0)
    queues.close()

    with pytest.raises(KafkaError, match="stopped"):
        bulk._put(queues, batch)

    assert not queues.has_incomplete
    assert queues._appends_in_progress.get() == 0


# --- through a broker ---------------------------------------------------------------------------


def plan() -> list[tuple[list[Message], bool]]:
    """Transactions, and whether each is committed."""
    sizes = [0, 1, 60, 200, 5_000, 70_000]
    with_headers = (("ce_id", b"1"), ("ce_id", b""), ("naïve", os.urandom(50)))
    transactions = []
    now_ms = int(time.time() * 1_000)  # retention is at work, too
    for turn in range(6):
        batch = [
            Message(
                "",
                None if i % 11 == 5 else b"key %d" % (i % 7),
                None if i % 5 == 2 else os.urandom(sizes[(i + turn) % len(sizes)]),
                with_headers[: i % 4],
                # an unkeyed message goes anywhere, unless it is told where
                i % 3 if i % 4 == 3 or i % 11 == 5 else None,
                now_ms - 7_000 * i,
            )
            for i in range(turn, 60)
        ]
        transactions.append((batch, turn % 3 != 1))
    return transactions


def to(topic: str, batch: list[Message]) -> list[Message]:
    """The same messages, to a topic."""
    return [Message(topic, m.key, m.value, m.headers, m.partition, m.time_ms) for m in batch]


def seen_by_kafka_python(clients: Clients, topic: str) -> dict[int, list[Seen]]:
    """What its consumer reads of each partition."""
    reader = clients.consumer(isolation_level="read_committed", check_crcs=True)
    partitions = [TopicPartition(topic, partition) for partition in range(3)]
    reader.assign(partitions)
    reader.seek_to_beginning(*partitions)
    ends = reader.end_offsets(partitions)
    read = collect(reader, lambda _: all(reader.position(tp) >= ends[tp] for tp in partitions))
    found: dict[int, list[Seen]] = {partition: [] for partition in range(3)}
    for r in read:
        found[r.partition].append((r.key, r.value, list(r.headers) or None, r.timestamp))
    return found


def seen_by_confluent(clients: Clients, topic: str) -> dict[int, list[Seen]]:
    """The same, of librdkafka."""
    reader = clients.confluent_consumer(
        group_id=unique("group"),
        isolation_level="read_committed",
        check_crcs=True,
        enable_partition_eof=True,
    )
    reader.assign([ConfluentPartition(topic, partition, 0) for partition in range(3)])
    found: dict[int, list[Seen]] = {partition: [] for partition in range(3)}
    ends = 0
    while ends < 3:
        for m in reader.consume(1_000, 0.2):
            if m.error():
                ends += 1
            else:
                seen = m.key(), m.value(), m.headers(), m.timestamp()[1]
                found[m.partition()].append(seen)
    return found


@pytest.mark.parametrize("codec", CODECS)
def test_readers_see_what_the_client_would_have_sent(clients: Clients, codec: str | None) -> None:
    """Keys, values, headers, times and order in each partition; of committed transactions only."""
    topics = []
    transactions = plan()
    for send in (_send_each, bulk.send):
        topic = clients.topic(3)
        producer = clients.transactional(
            unique("id"),
            compression_type=codec,
            batch_size=20_000,
            value_serializer=_NullableValues(),
        )
        for batch, committed in transactions:
            producer.begin_transaction()
            futures = [f for made in send(producer, to(topic, batch)) for f in made]
            producer.flush()
            assert all(future.succeeded() for future in futures)
            producer.commit_transaction() if committed else producer.abort_transaction()
        topics.append(topic)

    expected, found = (seen_by_kafka_python(clients, topic) for topic in topics)

    assert found == expected
    assert sum(map(len, found.values())) == sum(len(batch) for batch, ok in transactions if ok)
    assert seen_by_confluent(clients, topics[1]) == found


def publisher_on(broker: Served, transactional_id: str | None = None) -> Publisher:
    """Ours, on its own."""
    kafka, logger = settings_on(broker.bootstrap).kafka, structlog.get_logger()
    return Publisher(kafka, transactional_id, Outage(kafka, logger), logger)


def test_a_batch_too_large_for_its_topic_is_split(clients: Clients) -> None:
    """Messages that fit go through, in their order, whatever a batch of them comes to."""
    topic = clients.topic(1, max_message_bytes="100000")
    values = [os.urandom(30_000 + i) for i in range(23)]
    publisher = publisher_on(clients.served)

    publisher.deliver([Message(topic, b"key", value) for value in values])
    publisher.close()

    assert [read.value for read in clients.read(topic)] == values


def test_a_message_too_large_among_others_is_refused(clients: Clients) -> None:
    """The batch is split until the one that the topic never takes is alone."""
    topic = clients.topic(1, max_message_bytes="100000")
    values = [os.urandom(size) for size in (30_000, 50_000, 150_000, 100)]
    publisher = publisher_on(clients.served)

    with pytest.raises(TransportError, match="MessageSizeTooLarge"):
        publisher.deliver([Message(topic, b"key", value) for value in values])


@pytest.mark.parametrize("size", [1_000_000, 999_913, 999_912])
def test_a_message_larger_than_a_request_is_refused_as_by_the_client(
    shared_clients: Clients, size: int
) -> None:
    """With the same words, from the same size on."""
    topic = shared_clients.topic()
    producer = shared_clients.producer(max_request_size=1_000_000)
    message = Message(topic, b"k", bytes(size))

    outcomes = []
    for send in (_send_each, bulk.send):
        try:
            (((future,)),) = send(producer, [message])
            outcomes.append("taken")
            producer.flush()
            assert future.succeeded()
        except MessageSizeTooLargeError as error:
            outcomes.append(str(error))

    assert outcomes[0] == outcomes[1]
    assert (outcomes[0] == "taken") == (size == 999_912)


def test_a_partition_that_is_not_there_is_a_mistake(shared_clients: Clients) -> None:
    """Of the caller, as with `send`."""
    topic = shared_clients.topic(2)

    with pytest.raises(ValueError, match="no partition 2"):
        bulk.send(shared_clients.producer(), [Message(topic, b"k", b"v", partition=2)])


# --- a client that has changed ------------------------------------------------------------------


def test_the_client_is_as_it_is_thought_to_be(shared_clients: Clients) -> None:
    """The pinned one."""
    for codec in CODECS:
        bulk.check(shared_clients.producer(compression_type=codec))


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (RecordAccumulator, "_tp_lock"),
        (RecordAccumulator, "split_and_reenqueue"),
        (MemoryRecordsBuilder, "_next_offset"),
        (ProducerBatch, "record_count"),
    ],
)
def test_a_client_without_what_is_needed_is_noticed(
    shared_clients: Clients, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    """Whatever a new client has renamed."""
    producer = shared_clients.producer()
    monkeypatch.delattr(owner, name)

    with pytest.raises(AttributeError, match=name):
        bulk.check(producer)


def test_a_client_that_hashes_otherwise_is_noticed(
    shared_clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is there, and means something else."""
    producer = shared_clients.producer()
    monkeypatch.setattr(bulk, "murmur2", len)

    with pytest.raises(RuntimeError, match="partitions are not"):
        bulk.check(producer)


def test_a_client_that_splits_otherwise_is_noticed(
    shared_clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that does not bind the futures of a batch's records to its halves."""
    producer = shared_clients.producer()
    monkeypatch.setattr(bulk._Futures, "__len__", lambda _: 0)

    with pytest.raises(RuntimeError, match="halves of a batch are not"):
        bulk.check(producer)


def test_a_changed_client_still_publishes(
    shared_clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Record by record, and the log says so."""
    topic = shared_clients.topic()
    monkeypatch.delattr(RecordAccumulator, "split_and_reenqueue")

    with structlog.testing.capture_logs() as lines:
        publisher = publisher_on(shared_clients.served)
        publisher.deliver([Message(topic, b"k", b"v"), Message(topic, None, None)])
        publisher.close()

    assert [(r.key, r.value) for r in shared_clients.read(topic)] == [(b"k", b"v"), (None, None)]
    assert [line["event"] for line in lines] == ["messages are sent one by one, far slower"]
    assert "split_and_reenqueue" in lines[0]["cause"]
