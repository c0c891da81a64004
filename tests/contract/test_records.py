"""Writing and reading records, looking up offsets, and idempotence."""

import threading
import time

import pytest
import raw
from clients import PATIENCE_S, Clients, Read, collect, eventually, flat
from kafka import TopicPartition
from kafka.errors import (
    InvalidRecordError,
    InvalidTimestampError,
    MessageSizeTooLargeError,
    OffsetOutOfRangeError,
)

NONE, CORRUPT_MESSAGE, UNKNOWN_TOPIC, OUT_OF_ORDER, INVALID_EPOCH, INVALID_RECORD = (
    0, 2, 3, 45, 47, 87,
)  # fmt: skip
HOUR_AGO_MS = time.time_ns() // 1_000_000 - 3_600_000  # older records may meet retention
CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
VALUES = [b"%d-%s" % (i, b"x" * 100) for i in range(200)]


@pytest.mark.parametrize("codec", CODECS)
def test_what_kafka_python_writes_both_read(clients: Clients, codec: str) -> None:
    """Every codec, unchanged and in order."""
    topic = clients.topic()
    producer = clients.producer(compression_type=None if codec == "none" else codec, linger_ms=50)

    for value in VALUES:
        producer.send(topic, value, key=b"k")
    producer.flush()

    expected = [Read(i, b"k", value) for i, value in enumerate(VALUES)]
    assert clients.read(topic) == expected
    assert clients.confluent_read(topic) == expected


@pytest.mark.parametrize("codec", CODECS)
def test_what_confluent_writes_both_read(clients: Clients, codec: str) -> None:
    """Every codec, unchanged and in order."""
    topic = clients.topic()
    producer = clients.confluent_producer(compression_type=codec, linger_ms=50)

    for value in VALUES:
        producer.produce(topic, value, key=b"k", partition=0)
    assert producer.flush(PATIENCE_S) == 0

    expected = [Read(i, b"k", value) for i, value in enumerate(VALUES)]
    assert clients.read(topic) == expected
    assert clients.confluent_read(topic) == expected


def test_keys_headers_and_times_are_kept(clients: Clients) -> None:
    """Null and empty are different things; times are the producer's."""
    topic = clients.topic()
    where = TopicPartition(topic, 0)
    producer = clients.producer()
    headers = [("a", b"1"), ("a", b"2"), ("empty", b"")]
    producer.send(topic, b"", key=b"", headers=headers, timestamp_ms=HOUR_AGO_MS + 123)
    producer.send(topic, None, key=b"k", timestamp_ms=HOUR_AGO_MS)
    producer.flush()

    consumer = clients.consumer()
    consumer.assign([where])
    records = collect(consumer, lambda records: len(records) == 2)

    assert [(r.key, r.value, r.timestamp) for r in records] == [
        (b"", b"", HOUR_AGO_MS + 123),
        (b"k", None, HOUR_AGO_MS),
    ]
    assert list(records[0].headers) == headers


def test_a_record_is_acknowledged_with_its_offset(clients: Clients) -> None:
    """Offsets count up by one, over batches."""
    topic = clients.topic()
    producer = clients.producer()

    assert [producer.send(topic, b"x").get(PATIENCE_S).offset for _ in range(3)] == [0, 1, 2]


def test_records_without_acknowledgement_arrive(clients: Clients) -> None:
    """acks=0 gets no answer, and the next request on the connection one all the same."""
    topic = clients.topic()
    producer = clients.producer(acks=0, enable_idempotence=False)
    for i in range(3):
        producer.send(topic, b"%d" % i)
        producer.flush()

    assert eventually(lambda: [r.value for r in clients.read(topic)] == [b"0", b"1", b"2"])


def test_offsets_are_found_by_time(clients: Clients) -> None:
    """The first record at or after a time, inside batches too; none after the last."""
    topic = clients.topic()
    where = TopicPartition(topic, 0)
    base_ms = HOUR_AGO_MS
    producer = clients.producer(linger_ms=20)
    for i in range(10):
        producer.send(topic, b"x", timestamp_ms=base_ms + 10 * i)
        if i == 4:
            producer.flush()
    producer.flush()
    consumer = clients.consumer()

    def found(time_ms: int) -> tuple[int, int] | None:
        answer = consumer.offsets_for_times({where: time_ms})[where]
        return answer and (answer.offset, answer.timestamp)

    assert found(0) == (0, base_ms)
    assert found(base_ms + 30) == (3, base_ms + 30)
    assert found(base_ms + 31) == (4, base_ms + 40)
    assert found(base_ms + 90) == (9, base_ms + 90)
    assert found(base_ms + 91) is None


def test_the_end_is_past_the_last_record(clients: Clients) -> None:
    """Over several batches, as both libraries say; and "latest" reads what comes after."""
    topic = clients.topic()
    where = TopicPartition(topic, 0)
    consumer = clients.consumer(auto_offset_reset="latest")
    assert consumer.end_offsets([where]) == {where: 0}
    for _ in range(3):
        clients.send(topic, [b"old"] * 100)
    consumer.assign([where])

    assert consumer.position(where) == 300
    clients.send(topic, [b"new"])
    assert [r.value for r in eventually(lambda: flat(consumer.poll(100)))] == [b"new"]
    assert consumer.beginning_offsets([where]) == {where: 0}
    assert consumer.end_offsets([where]) == {where: 301}


@pytest.mark.parametrize("offset", [2, 1000])
def test_an_offset_outside_the_log_is_reset_by_policy(clients: Clients, offset: int) -> None:
    """Before the start or past the end: back to the earliest record there is."""
    topic = clients.topic()
    where = TopicPartition(topic, 0)
    clients.send(topic, [b"%d" % i for i in range(10)])
    clients.admin.delete_records({where: 5})
    consumer = clients.consumer(auto_offset_reset="earliest")
    consumer.assign([where])

    consumer.seek(where, offset)

    assert eventually(lambda: flat(consumer.poll(100)))[0].offset == 5


def test_an_offset_outside_the_log_is_an_error_without_a_policy(clients: Clients) -> None:
    """The broker says so, rather than let the reader wait for ever."""
    topic = clients.topic()
    where = TopicPartition(topic, 0)
    consumer = clients.consumer(auto_offset_reset="none")
    consumer.assign([where])
    consumer.seek(where, 1000)

    with pytest.raises(OffsetOutOfRangeError):
        eventually(lambda: flat(consumer.poll(100)))


def test_a_waiting_fetch_returns_when_a_record_arrives(clients: Clients) -> None:
    """Not when its time is up: that is a minute away, and patience is shorter."""
    topic = clients.topic()
    consumer = clients.consumer(fetch_max_wait_ms=60_000, request_timeout_ms=90_000)
    consumer.assign([TopicPartition(topic, 0)])
    assert consumer.poll(200) == {}

    late = threading.Timer(0.1, clients.send, (topic, [b"x"]))
    late.start()
    began_s = time.monotonic()
    found = eventually(lambda: flat(consumer.poll(1000)))
    late.join()

    assert [r.value for r in found] == [b"x"]
    assert time.monotonic() - began_s < PATIENCE_S


def test_small_fetches_get_through_large_batches(clients: Clients) -> None:
    """A batch larger than the reader's limit is delivered all the same."""
    topic = clients.topic()
    clients.send(topic, [b"y" * 5000] * 20)
    reader = clients.consumer(max_partition_fetch_bytes=1000, fetch_max_bytes=1000)
    reader.assign([TopicPartition(topic, 0)])

    found = collect(reader, lambda records: len(records) == 20)

    assert [r.offset for r in found] == list(range(20))


def test_too_large_a_record_is_refused(clients: Clients) -> None:
    """The topic's limit holds, whatever the client would send."""
    topic = clients.topic(max_message_bytes="1000")
    producer = clients.producer()

    with pytest.raises(MessageSizeTooLargeError):
        producer.send(topic, b"z" * 2000).get(PATIENCE_S)


def test_a_record_dated_hours_ahead_is_refused(clients: Clients) -> None:
    """An hour ahead of the broker's clock is the limit by default."""
    topic = clients.topic()
    tomorrow_ms = time.time_ns() // 1_000_000 + 86_400_000

    with pytest.raises(InvalidTimestampError):
        clients.producer().send(topic, b"x", timestamp_ms=tomorrow_ms).get(PATIENCE_S)


def test_a_compacted_topic_refuses_records_without_a_key(clients: Clients) -> None:
    """They could never be replaced."""
    topic = clients.topic(cleanup_policy="compact")

    with pytest.raises(InvalidRecordError):
        clients.producer().send(topic, b"x").get(PATIENCE_S)


def test_a_batch_sent_twice_is_stored_once(clients: Clients) -> None:
    """A retry after a lost answer gets the offset of the first; a later batch goes on from there.

    Without idempotence the same bytes are two batches.
    """
    topic = clients.topic()
    wire = clients.wire(topic)
    producer = raw.init_producer(wire)
    first = raw.batch(b"a", producer, sequence=0)

    answers = [
        raw.produce(wire, topic, first),
        raw.produce(wire, topic, first),
        raw.produce(wire, topic, raw.batch(b"b", producer, sequence=1)),
        raw.produce(wire, topic, first),
    ]

    assert answers == [(NONE, 0), (NONE, 0), (NONE, 1), (NONE, 0)]
    plain = raw.batch(b"c")
    assert [raw.produce(wire, topic, plain), raw.produce(wire, topic, plain)] == [
        (NONE, 2),
        (NONE, 3),
    ]
    assert [r.value for r in clients.read(topic)] == [b"a", b"b", b"c", b"c"]


def test_a_gap_in_a_producers_sequence_is_refused(clients: Clients) -> None:
    """A batch went missing; storing the next would reorder."""
    topic = clients.topic()
    wire = clients.wire(topic)
    producer = raw.init_producer(wire)
    assert raw.produce(wire, topic, raw.batch(b"a", producer, sequence=0)) == (NONE, 0)

    code, _ = raw.produce(wire, topic, raw.batch(b"c", producer, sequence=2))

    assert code == OUT_OF_ORDER
    assert [r.value for r in clients.read(topic)] == [b"a"]


def test_a_producers_older_epoch_is_refused(clients: Clients) -> None:
    """A new epoch starts at sequence 0 and shuts out the one before."""
    topic = clients.topic()
    wire = clients.wire(topic)
    producer = raw.init_producer(wire)
    raw.produce(wire, topic, raw.batch(b"a", producer, sequence=0))

    newer = (producer[0], producer[1] + 1)

    gap = raw.produce(wire, topic, raw.batch(b"b", newer, sequence=1))
    fresh = raw.produce(wire, topic, raw.batch(b"b", newer, sequence=0))
    late = raw.produce(wire, topic, raw.batch(b"c", producer, sequence=1))

    assert (gap[0], fresh, late[0]) == (OUT_OF_ORDER, (NONE, 1), INVALID_EPOCH)


def test_a_batch_that_fails_its_checksum_is_refused(clients: Clients) -> None:
    """One flipped bit."""
    topic = clients.topic()
    batch = bytearray(raw.batch(b"a"))
    batch[-2] ^= 1

    assert raw.produce(clients.wire(topic), topic, bytes(batch))[0] == CORRUPT_MESSAGE
    assert clients.read(topic) == []


def test_clients_may_not_write_markers(clients: Clients) -> None:
    """Control batches are the broker's own."""
    topic = clients.topic()
    batch = raw.with_attributes(raw.batch(b"a"), 0x20)

    assert raw.produce(clients.wire(topic), topic, batch)[0] == INVALID_RECORD


def test_a_batch_that_claims_more_records_than_it_has_is_refused(clients: Clients) -> None:
    """Its offsets would leave a gap."""
    topic = clients.topic()
    batch = bytearray(raw.batch(b"a"))
    batch[23:27] = (5).to_bytes(4, "big")  # the last offset delta
    batch = bytearray(raw.with_attributes(bytes(batch), 0))

    assert raw.produce(clients.wire(topic), topic, bytes(batch))[0] == INVALID_RECORD


def test_writing_to_an_unknown_partition_is_refused(clients: Clients) -> None:
    """The topic has one partition."""
    topic = clients.topic()

    assert raw.produce(clients.wire(topic), topic, raw.batch(b"a"), partition=7)[0] == UNKNOWN_TOPIC
