"""Consumer groups as clients see them: joining, leaving, rebalances, committed offsets."""

import threading
from collections.abc import Callable
from typing import Any

import confluent_kafka
import pytest
from brokers import unique
from clients import PATIENCE_S, Clients, eventually, flat
from kafka import TopicPartition
from kafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from kafka.errors import GroupSubscribedToTopicError, KafkaError, NoError
from kafka.structs import OffsetAndMetadata


def test_committed_offsets_are_kept_with_their_metadata(clients: Clients) -> None:
    """As long as nobody commits anew."""
    topic, group = clients.topic(), unique("group")
    where = TopicPartition(topic, 0)
    consumer = clients.consumer(group_id=group)
    consumer.assign([where])
    assert consumer.committed(where) is None

    consumer.commit({where: OffsetAndMetadata(7, "note", -1)})

    stored = consumer.committed(where, metadata=True)
    assert (stored.offset, stored.metadata) == (7, "note")


def test_both_libraries_read_what_the_other_committed(clients: Clients) -> None:
    """An offset of the group is nobody's own."""
    topic, group = clients.topic(), unique("group")
    where, theirs = TopicPartition(topic, 0), confluent_kafka.TopicPartition(topic, 0)
    ours, other = clients.consumer(group_id=group), clients.confluent_consumer(group_id=group)
    ours.assign([where])

    ours.commit({where: OffsetAndMetadata(7, "", -1)})
    seen = [p.offset for p in other.committed([theirs], timeout=PATIENCE_S)]
    theirs.offset = 8
    other.commit(offsets=[theirs], asynchronous=False)

    assert seen == [7]
    assert ours.committed(where) == 8


def test_a_new_member_goes_on_from_the_committed_offset(clients: Clients) -> None:
    """What the first member read and committed is not read again."""
    topic, group = clients.topic(), unique("group")
    clients.send(topic, [b"%d" % i for i in range(10)])
    first, records = clients.member(topic, group, max_poll_records=4)
    assert [r.offset for r in records or flat(first.poll(1000))] == [0, 1, 2, 3]
    first.commit()
    first.close()

    second, records = clients.member(topic, group)

    assert (records or eventually(lambda: flat(second.poll(200))))[0].offset == 4


class _Member:
    """A kafka-python consumer in a thread that counts a record once its commit has succeeded."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.counted: list[tuple[int, int]] = []
        self._consumer = make()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def assignment(self) -> set[Any]:
        return set(self._consumer.assignment())

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._consumer.close(autocommit=False)

    def _work(self) -> None:
        while not self._stop.is_set():
            polled = self._consumer.poll(50, max_records=20)
            # without partitions a commit does nothing, and does not say so
            if not polled or not self._consumer.assignment():
                continue
            try:
                self._consumer.commit()
            except KafkaError:
                continue  # the partitions are another's now, who reads these records again
            self.counted += [(r.partition, r.offset) for r in flat(polled)]


@pytest.mark.parametrize("assignor", ["range", "sticky"])
def test_a_growing_and_shrinking_group_counts_every_record_once(
    clients: Clients, assignor: str
) -> None:
    """Members come, share, leave; nothing is lost and nothing is counted twice."""
    topic, group = clients.topic(partitions=4), unique("group")
    settings: dict[str, Any] = {"group_id": group}
    if assignor == "sticky":
        settings["partition_assignment_strategy"] = [StickyPartitionAssignor]
    producer = clients.producer()

    def feed(count: int) -> None:
        for i in range(count):
            producer.send(topic, b"x", partition=i % 4)
        producer.flush()

    def join() -> _Member:
        return _Member(lambda: clients.consumer(topic, **settings))

    members: list[_Member] = []
    for _ in range(3):
        members.append(join())
        feed(200)
        eventually(lambda: _shared(members, partitions=4))
    feed(200)
    members[0].stop()
    feed(200)
    eventually(lambda: sum(len(m.counted) for m in members) >= 1000)
    for member in members[1:]:
        member.stop()

    counted = sorted(pair for member in members for pair in member.counted)
    assert counted == [(p, o) for p in range(4) for o in range(250)]


def _shared(members: list[_Member], partitions: int) -> bool:
    """Whether each partition has exactly one owner, and every member some."""
    owned = [m.assignment() for m in members]
    return all(owned) and sum(map(len, owned)) == len(set().union(*owned)) == partitions


def test_both_libraries_share_one_group(clients: Clients) -> None:
    """A member of each gets half of the partitions, by the assignor that both know."""
    topic, group = clients.topic(partitions=4), unique("group")
    ours = _Member(lambda: clients.consumer(topic, group_id=group))
    theirs = clients.confluent_consumer(group_id=group, heartbeat_interval_ms=100)
    theirs.subscribe([topic])

    def shared() -> bool:
        theirs.poll(0.05)
        return len(theirs.assignment()) == 2 and len(ours.assignment()) == 2

    assert eventually(shared)
    ours.stop()


def test_a_static_member_comes_back_without_a_rebalance(clients: Clients) -> None:
    """Same instance, same partitions, same generation; the others notice nothing."""
    topic, group = clients.topic(partitions=2), unique("group")
    first, _ = clients.member(topic, group, group_instance_id="one")
    before = first.group_metadata()
    owned = first.assignment()
    first.close()

    again, _ = clients.member(topic, group, group_instance_id="one")

    after = again.group_metadata()
    assert again.assignment() == owned
    assert after.generation_id == before.generation_id
    assert after.member_id != before.member_id


def test_groups_are_listed_and_described(clients: Clients) -> None:
    """State, protocol and the members with what they own, as both libraries read them."""
    topic, group = clients.topic(partitions=2), unique("group")
    consumer, _ = clients.member(topic, group, client_id="somebody")

    def stable() -> Any:
        described = clients.admin.describe_groups([group])[group]
        return described if described["group_state"] == "Stable" else None

    described = eventually(stable)
    assert described["protocol_type"] == "consumer"
    (member,) = described["members"]
    assert member["client_id"] == "somebody"
    assert member["member_assignment"]["assigned_partitions"] == [
        {"topic": topic, "partitions": [0, 1]}
    ]
    assert group in [listed["group_id"] for listed in clients.admin.list_groups()]

    theirs = clients.confluent_admin.describe_consumer_groups([group])[group].result(PATIENCE_S)
    assert theirs.state == confluent_kafka.ConsumerGroupState.STABLE
    assert [m.member_id for m in theirs.members] == [member["member_id"]]
    assert consumer.assignment()


def test_a_group_is_deleted_once_it_is_empty(clients: Clients) -> None:
    """Members keep it; afterwards its offsets are gone with it."""
    topic, group = clients.topic(), unique("group")
    where = TopicPartition(topic, 0)
    consumer, _ = clients.member(topic, group)
    consumer.commit({where: OffsetAndMetadata(3, "", -1)})

    def outcome() -> str:
        return str(clients.admin.delete_groups([group])[group])

    while_used = outcome()
    consumer.close()
    eventually(lambda: clients.admin.describe_groups([group])[group]["group_state"] == "Empty")
    when_empty = outcome()
    afterwards = outcome()

    assert (while_used, when_empty) == ("NonEmptyGroupError", "OK")
    assert afterwards == "GroupIdNotFoundError"
    other = clients.consumer(group_id=group)
    other.assign([where])
    assert other.committed(where) is None


def test_tools_read_and_delete_a_groups_offsets(clients: Clients) -> None:
    """Not while a member reads from the topic."""
    topic, group = clients.topic(partitions=2), unique("group")
    one, two = TopicPartition(topic, 0), TopicPartition(topic, 1)
    consumer, _ = clients.member(topic, group)
    consumer.commit({one: OffsetAndMetadata(3, "", -1), two: OffsetAndMetadata(4, "", -1)})

    while_used = clients.admin.delete_group_offsets(group, [one])
    consumer.close()
    eventually(lambda: clients.admin.describe_groups([group])[group]["group_state"] == "Empty")
    when_empty = clients.admin.delete_group_offsets(group, [one])

    assert while_used == {one: GroupSubscribedToTopicError}
    assert when_empty == {one: NoError}
    left = clients.admin.list_group_offsets([group])[group]
    assert {where: stored.offset for where, stored in left.items()} == {two: 4}


def test_groups_can_be_listed_by_state(clients: Clients) -> None:
    """A live one is stable, and not empty."""
    group = unique("group")
    _member, _ = clients.member(clients.topic(), group)

    def listed(state: str) -> bool:
        found = clients.admin.list_groups(states_filter=[state])
        return group in [entry["group_id"] for entry in found]

    assert eventually(lambda: listed("Stable"))
    assert not listed("Empty")


def test_offsets_of_a_deleted_topic_are_forgotten(clients: Clients) -> None:
    """A new topic of the name starts without them."""
    topic, group = clients.topic(), unique("group")
    where = TopicPartition(topic, 0)
    consumer = clients.consumer(group_id=group)
    consumer.assign([where])
    consumer.commit({where: OffsetAndMetadata(3, "", -1)})

    clients.admin.delete_topics([topic])

    assert eventually(lambda: consumer.committed(where) is None)
