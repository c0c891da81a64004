"""Transactions as clients use them, with the traps that a client has to know of."""

from typing import Any

import confluent_kafka
import pytest
from brokers import unique
from clients import PATIENCE_S, Clients, Read, eventually, flat
from kafka import TopicPartition
from kafka.errors import CommitFailedError, KafkaError, ProducerFencedError
from kafka.protocol.consumer import OffsetFetchRequest
from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata

UNSTABLE_OFFSET_COMMIT = 88


def values(records: list[Read]) -> list[bytes | None]:
    """What the records say."""
    return [record.value for record in records]


def offsets(topic: str, offset: int, partition: int = 0) -> dict[Any, OffsetAndMetadata]:
    """What to commit for one partition."""
    return {TopicPartition(topic, partition): OffsetAndMetadata(offset, "", -1)}


def stored_offset(clients: Clients, group: str, topic: str, *, stable: bool) -> tuple[int, int]:
    """The error code and the offset that a fetch of the group's offset brings."""
    wanted = OffsetFetchRequest.OffsetFetchRequestTopic(name=topic, partition_indexes=[0])
    request = OffsetFetchRequest(group_id=group, topics=[wanted], require_stable=stable)
    answer = clients.coordinator(group).ask(request, 7).topics[0].partitions[0]
    return answer.error_code, answer.committed_offset


def test_a_transaction_commits_records_and_offsets_together(clients: Clients) -> None:
    """Neither is there before, both are after; and both libraries agree."""
    source, target, group = clients.topic(), clients.topic(partitions=2), unique("group")
    producer = clients.transactional(unique("id"))
    producer.begin_transaction()
    producer.send(target, b"a", partition=0)
    producer.send(target, b"b", partition=1)
    producer.flush()
    producer.send_offsets_to_transaction(offsets(source, 7), group)

    before = [clients.read(target, p, committed=True) for p in (0, 1)]
    producer.commit_transaction()

    assert before == [[], []]
    assert eventually(lambda: stored_offset(clients, group, source, stable=True) == (0, 7))
    for partition, value in ((0, b"a"), (1, b"b")):
        assert clients.read(target, partition, committed=True) == [Read(0, None, value)]
        assert clients.confluent_read(target, partition, committed=True) == [Read(0, None, value)]


def test_an_aborted_transaction_leaves_nothing_to_committed_readers(clients: Clients) -> None:
    """Others still see the records; offsets do not move."""
    source, target, group = clients.topic(), clients.topic(), unique("group")
    producer = clients.transactional(unique("id"))
    producer.begin_transaction()
    producer.send(target, b"aborted")
    producer.send_offsets_to_transaction(offsets(source, 7), group)
    producer.flush()
    producer.abort_transaction()
    producer.begin_transaction()
    producer.send(target, b"kept")
    producer.commit_transaction()

    assert values(clients.read(target, committed=True)) == [b"kept"]
    assert values(clients.confluent_read(target, committed=True)) == [b"kept"]
    assert values(clients.read(target)) == [b"aborted", b"kept"]
    assert stored_offset(clients, group, source, stable=True) == (0, -1)


def test_an_open_transaction_holds_back_committed_readers(clients: Clients) -> None:
    """Whatever comes behind it waits, although it belongs to no transaction."""
    topic = clients.topic()
    where = TopicPartition(topic, 0)
    clients.send(topic, [b"before"])
    producer = clients.transactional(unique("id"))
    producer.begin_transaction()
    producer.send(topic, b"open")
    producer.flush()
    clients.send(topic, [b"after"])
    committed = clients.consumer(isolation_level="read_committed")

    assert committed.end_offsets([where]) == {where: 1}
    assert values(clients.read(topic, committed=True)) == [b"before"]
    assert values(clients.confluent_read(topic, committed=True)) == [b"before"]
    assert values(clients.read(topic)) == [b"before", b"open", b"after"]
    producer.commit_transaction()
    assert eventually(
        lambda: values(clients.read(topic, committed=True)) == [b"before", b"open", b"after"]
    )


def test_a_waiting_reader_is_woken_by_the_commit(clients: Clients) -> None:
    """A committed reader that waits at an open transaction gets its records when it ends."""
    topic = clients.topic()
    reader = clients.consumer(
        isolation_level="read_committed", fetch_max_wait_ms=60_000, request_timeout_ms=90_000
    )
    reader.assign([TopicPartition(topic, 0)])
    producer = clients.transactional(unique("id"))
    producer.begin_transaction()
    producer.send(topic, b"x")
    producer.flush()
    assert reader.poll(300) == {}

    producer.commit_transaction()

    assert values(eventually(lambda: flat(reader.poll(200)))) == [b"x"]


def test_an_open_transaction_makes_committed_offsets_unstable(clients: Clients) -> None:
    """Whoever asks for stable offsets is told to wait; others get the old ones."""
    source, target, group = clients.topic(), clients.topic(), unique("group")
    producer = clients.transactional(unique("id"))
    for offset in (5, 9):
        producer.begin_transaction()
        producer.send(target, b"x")
        producer.send_offsets_to_transaction(offsets(source, offset), group)
        producer.flush()
        if offset == 5:
            producer.commit_transaction()
            eventually(lambda: stored_offset(clients, group, source, stable=True) == (0, 5))

    assert stored_offset(clients, group, source, stable=True)[0] == UNSTABLE_OFFSET_COMMIT
    assert stored_offset(clients, group, source, stable=False) == (0, 5)
    producer.commit_transaction()
    assert eventually(lambda: stored_offset(clients, group, source, stable=True) == (0, 9))


def test_a_successor_aborts_what_its_predecessor_left_open(clients: Clients) -> None:
    """At once, not when the time is up; and the predecessor can neither commit nor write."""
    source, topic, group = clients.topic(), clients.topic(), unique("group")
    transactional_id = unique("id")
    old = clients.transactional(transactional_id)
    old.begin_transaction()
    old.send(topic, b"old")
    old.send_offsets_to_transaction(offsets(source, 7), group)
    old.flush()

    new = clients.transactional(transactional_id)
    new.begin_transaction()
    new.send(topic, b"new")
    new.commit_transaction()

    with pytest.raises(ProducerFencedError):
        old.commit_transaction()
    with pytest.raises(KafkaError):
        old.begin_transaction()
    assert eventually(lambda: values(clients.read(topic, committed=True)) == [b"new"])
    assert stored_offset(clients, group, source, stable=True) == (0, -1)


def test_a_fenced_producer_cannot_write(clients: Clients) -> None:
    """Its records fail, even in a transaction that it begins only now."""
    topic, transactional_id = clients.topic(), unique("id")
    old = clients.transactional(transactional_id)
    clients.transactional(transactional_id)
    old.begin_transaction()

    with pytest.raises(KafkaError):
        old.send(topic, b"old").get(PATIENCE_S)

    assert clients.read(topic) == []


def test_a_transaction_that_takes_too_long_is_aborted(clients: Clients) -> None:
    """Readers go on without it, and its producer is told when it comes back."""
    topic = clients.topic()
    producer = clients.transactional(unique("id"), transaction_timeout_ms=500)
    producer.begin_transaction()
    producer.send(topic, b"late")
    producer.flush()
    clients.send(topic, [b"other"])

    assert eventually(lambda: values(clients.read(topic, committed=True)) == [b"other"])
    with pytest.raises(KafkaError):
        producer.commit_transaction()


def test_only_the_present_generation_may_commit_offsets(clients: Clients) -> None:
    """An older one, or a stranger, is refused, and none of its transaction remains."""
    source, target, group = clients.topic(), clients.topic(), unique("group")
    consumer, _ = clients.member(source, group)
    live = consumer.group_metadata()
    stale = live._replace(generation_id=live.generation_id - 1)
    stranger = live._replace(member_id="stranger")

    for membership in (stale, stranger):
        producer = clients.transactional(unique("id"))
        producer.begin_transaction()
        producer.send(target, b"zombie")
        with pytest.raises(CommitFailedError):
            producer.send_offsets_to_transaction(offsets(source, 3), membership)
        producer.abort_transaction()
    producer = clients.transactional(unique("id"))
    producer.begin_transaction()
    producer.send(target, b"live")
    producer.send_offsets_to_transaction(offsets(source, 4), live)
    producer.commit_transaction()

    assert eventually(lambda: consumer.committed(TopicPartition(source, 0)) == 4)
    assert values(clients.read(target, committed=True)) == [b"live"]


def test_trap_a_membership_without_a_generation_is_not_checked(clients: Clients) -> None:
    """What a consumer hands out after it has lost its membership commits unfenced.

    Kafka accepts it for the sake of old clients. So whoever processes records must take the
    membership when they are polled, and never commit with a negative generation.
    """
    source, target, group = clients.topic(), clients.topic(), unique("group")
    consumer, _ = clients.member(source, group)
    lost = ConsumerGroupMetadata(group, -1, "", None, None)
    producer = clients.transactional(unique("id"))

    producer.begin_transaction()
    producer.send(target, b"zombie")
    producer.send_offsets_to_transaction(offsets(source, 3), lost)
    producer.commit_transaction()

    assert eventually(lambda: consumer.committed(TopicPartition(source, 0)) == 3)


@pytest.mark.parametrize("fresh", [False, True], ids=["same producer", "new producer"])
def test_trap_offsets_of_an_aborted_transaction_leak_into_the_next(
    clients: Clients, *, fresh: bool
) -> None:
    """kafka-python keeps refused offsets and sends them again: a new producer is the remedy.

    transaction 1: partition 0 -> 50, refused, aborted
    transaction 2: partition 1 -> 10, committed       and with it partition 0 -> 50
    """
    source, target, group = clients.topic(partitions=2), clients.topic(), unique("group")
    consumer, _ = clients.member(source, group)
    live = consumer.group_metadata()
    stale = live._replace(generation_id=live.generation_id - 1)
    transactional_id = unique("id")
    producer = clients.transactional(transactional_id)
    producer.begin_transaction()
    producer.send(target, b"lost")
    with pytest.raises(CommitFailedError):
        producer.send_offsets_to_transaction(offsets(source, 50), stale)
    producer.abort_transaction()

    if fresh:
        producer.close(timeout=0)
        producer = clients.transactional(transactional_id)
    producer.begin_transaction()
    producer.send(target, b"kept")
    producer.send_offsets_to_transaction(offsets(source, 10, partition=1), live)
    producer.commit_transaction()

    assert eventually(lambda: consumer.committed(TopicPartition(source, 1)) == 10)
    leaked = consumer.committed(TopicPartition(source, 0))
    assert leaked == (None if fresh else 50)
    assert values(clients.read(target, committed=True)) == [b"kept"]


def test_many_transactions_interleave(clients: Clients) -> None:
    """Two producers take turns on one partition; readers see what was committed, in order."""
    topic = clients.topic()
    one, two = clients.transactional(unique("id")), clients.transactional(unique("id"))
    expected = []
    for i in range(12):
        for producer in (one, two):
            producer.begin_transaction()
        for j in range(3):
            for name, producer in ((b"one", one), (b"two", two)):
                producer.send(topic, b"%s-%d-%d" % (name, i, j)).get(PATIENCE_S)
        one.commit_transaction() if i % 3 else one.abort_transaction()
        two.commit_transaction() if i % 2 else two.abort_transaction()
        expected += [
            b"%s-%d-%d" % (name, i, j)
            for j in range(3)
            for name, kept in ((b"one", i % 3), (b"two", i % 2))
            if kept
        ]

    assert eventually(lambda: len(clients.read(topic, committed=True)) == len(expected))
    assert values(clients.read(topic, committed=True)) == expected
    assert values(clients.confluent_read(topic, committed=True)) == expected


def test_the_other_library_commits_aborts_and_is_fenced(clients: Clients) -> None:
    """confluent-kafka: the same promises over code of another making."""
    source, target, group = clients.topic(), clients.topic(), unique("group")
    clients.send(source, [b"x"] * 3)
    consumer = clients.confluent_consumer(group_id=group)
    consumer.subscribe([source])
    eventually(lambda: consumer.poll(0.1))
    transactional_id = unique("id")
    producer = clients.confluent_producer(transactional_id=transactional_id)
    producer.init_transactions(PATIENCE_S)
    for value, offset in ((b"kept", 2), (b"aborted", 3)):
        producer.begin_transaction()
        producer.produce(target, value)
        producer.send_offsets_to_transaction(
            [confluent_kafka.TopicPartition(source, 0, offset)],
            consumer.consumer_group_metadata(),
            PATIENCE_S,
        )
        if value == b"kept":
            producer.commit_transaction(PATIENCE_S)
        else:
            producer.abort_transaction(PATIENCE_S)
    producer.begin_transaction()
    producer.produce(target, b"fenced")
    producer.flush(PATIENCE_S)
    clients.transactional(transactional_id)

    with pytest.raises(confluent_kafka.KafkaException) as fenced:
        producer.commit_transaction(PATIENCE_S)

    assert fenced.value.args[0].code() == confluent_kafka.KafkaError._FENCED
    assert values(clients.read(target, committed=True)) == [b"kept"]
    assert stored_offset(clients, group, source, stable=True) == (0, 2)
