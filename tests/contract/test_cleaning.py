"""Retention and compaction: what a topic's settings make the broker forget.

Kafka cleans closed segments only, so these topics close theirs at once and each test writes a last
record behind what it looks at. A shared cluster cleans minutes later, and is not waited for.
"""

import time

import pytest
from brokers import External
from clients import Clients, eventually

DAY_MS = 86_400_000


@pytest.fixture(autouse=True)
def prompt_cleaning(clients: Clients) -> None:
    """Skip where the broker's own settings decide how soon it cleans."""
    if isinstance(clients.served, External):
        pytest.skip("a shared cluster cleans when it likes")


def test_old_records_go(clients: Clients) -> None:
    """retention.ms counts from the records' own times."""
    topic = clients.topic(retention_ms=str(3 * DAY_MS), segment_ms="100")
    now_ms = time.time_ns() // 1_000_000
    producer = clients.producer()
    for age_days in (9, 8, 1, 0):
        producer.send(topic, b"x", timestamp_ms=now_ms - age_days * DAY_MS).get(10)
        time.sleep(0.15)  # a segment is closed when a record comes after its time

    assert eventually(lambda: [r.offset for r in clients.read(topic)] == [2, 3])


def test_excess_records_go(clients: Clients) -> None:
    """retention.bytes keeps at least that much, and loses the oldest first."""
    topic = clients.topic(retention_bytes="2500", segment_ms="100")
    producer = clients.producer()
    for _ in range(5):
        producer.send(topic, b"x" * 1000).get(10)
        time.sleep(0.15)

    assert eventually(lambda: [r.offset for r in clients.read(topic)] == [2, 3, 4])


def test_compaction_keeps_the_newest_committed_record_of_a_key(clients: Clients) -> None:
    """Offsets stay; an aborted record neither survives nor replaces one."""
    topic = clients.topic(
        cleanup_policy="compact", segment_ms="100", min_cleanable_dirty_ratio="0.01"
    )
    producer = clients.transactional(topic, linger_ms=20)
    for round_ in range(3):
        producer.begin_transaction()
        for key in (b"a", b"b"):
            producer.send(topic, b"%d" % round_, key=key)
        producer.commit_transaction()
        time.sleep(0.15)
    producer.begin_transaction()
    producer.send(topic, b"aborted", key=b"a")
    producer.flush()
    producer.abort_transaction()
    time.sleep(0.15)
    clients.producer().send(topic, b"last", key=b"z").get(10)

    def kept() -> bool:
        found = [(r.offset, r.key, r.value) for r in clients.read(topic, committed=True)]
        return found == [(6, b"a", b"2"), (7, b"b", b"2"), (11, b"z", b"last")]

    assert eventually(kept)
    assert clients.confluent_read(topic, committed=True) == clients.read(topic, committed=True)


def test_compaction_keeps_a_tombstone_for_slow_readers(clients: Clients) -> None:
    """The value goes, the tombstone stays for delete.retention.ms."""
    topic = clients.topic(
        cleanup_policy="compact", segment_ms="100", min_cleanable_dirty_ratio="0.01"
    )
    producer = clients.producer()
    for key, value in ((b"a", b"1"), (b"b", b"1"), (b"a", None), (b"z", b"last")):
        producer.send(topic, value, key=key).get(10)
        time.sleep(0.15)

    def kept() -> bool:
        found = [(r.offset, r.key, r.value) for r in clients.read(topic)]
        return found == [(1, b"b", b"1"), (2, b"a", None), (3, b"z", b"last")]

    assert eventually(kept)
