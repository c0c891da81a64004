"""The transaction protocol request by request: what a lost answer, a mistake or a zombie gets.

init ----> add partitions, add offsets ----> produce, commit offsets ----> end
"""

from collections.abc import Callable
from typing import Any

import pytest
import raw
from brokers import Wire, unique
from clients import Clients, Read, eventually
from kafka.protocol.producer import (
    AddOffsetsToTxnRequest,
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    InitProducerIdRequest,
    TxnOffsetCommitRequest,
)

NONE = 0
UNKNOWN_TOPIC_OR_PARTITION = 3
INVALID_PRODUCER_EPOCH = 47
INVALID_TXN_STATE = 48
INVALID_PRODUCER_ID_MAPPING = 49
INVALID_TRANSACTION_TIMEOUT = 50
CONCURRENT_TRANSACTIONS = 51
NOT_ATTEMPTED = 55
PRODUCER_FENCED = 90
_PASSING = {14, 15, 16, CONCURRENT_TRANSACTIONS}  # starting up, or still writing the last markers


class Producer:
    """A transactional producer that sends what it is told to, in whatever order."""

    def __init__(self, clients: Clients, transactional_id: str | None = None) -> None:
        self._clients = clients
        self.id = transactional_id or unique("id")
        self._wire = clients.coordinator(self.id, transactional=True)
        self.identity = (-1, -1)
        assert self.init() == NONE

    def init(self, timeout_ms: int = 60_000, *, again: bool = False) -> int:
        """Ask for an id and an epoch, as a new producer or as the one it is."""
        producer_id, epoch = self.identity if again else (-1, -1)
        answer = self._ask(
            lambda: InitProducerIdRequest(
                transactional_id=self.id,
                transaction_timeout_ms=timeout_ms,
                producer_id=producer_id,
                producer_epoch=epoch,
            ),
            4,
            lambda a: a.error_code,
        )
        if answer.error_code == NONE:
            self.identity = (answer.producer_id, answer.producer_epoch)
        return int(answer.error_code)

    def add(self, *partitions: tuple[str, int], version: int = 3) -> list[int]:
        """Add partitions; the error code of each."""
        topic = AddPartitionsToTxnRequest.AddPartitionsToTxnTopic
        answer = self._ask(
            lambda: AddPartitionsToTxnRequest(
                v3_and_below_transactional_id=self.id,
                v3_and_below_producer_id=self.identity[0],
                v3_and_below_producer_epoch=self.identity[1],
                v3_and_below_topics=[topic(name=n, partitions=[p]) for n, p in partitions],
            ),
            version,
            lambda a: _codes(a)[0],
        )
        return _codes(answer)

    def add_offsets(self, group: str) -> int:
        """Add a group's offsets."""
        answer = self._ask(
            lambda: AddOffsetsToTxnRequest(**self._claim(), group_id=group),
            3,
            lambda a: a.error_code,
        )
        return int(answer.error_code)

    def commit_offset(self, group: str, topic: str, offset: int) -> int:
        """Commit an offset within the transaction."""
        requested = TxnOffsetCommitRequest.TxnOffsetCommitRequestTopic
        partition = requested.TxnOffsetCommitRequestPartition(
            partition_index=0, committed_offset=offset, committed_metadata=""
        )
        topics = [requested(name=topic, partitions=[partition])]
        answer = self._ask(
            lambda: TxnOffsetCommitRequest(**self._claim(), group_id=group, topics=topics),
            3,
            lambda a: a.topics[0].partitions[0].error_code,
            wire=self._clients.coordinator(group),
        )
        return int(answer.topics[0].partitions[0].error_code)

    def write(self, topic: str, value: bytes, sequence: int) -> int:
        """Write one record."""
        records = raw.batch(value, self.identity, sequence=sequence, transactional=True)
        wire: Wire = self._clients.wire(topic)
        return raw.produce(wire, topic, records, transactional_id=self.id)[0]

    def end(self, *, committed: bool, version: int = 3) -> int:
        """Commit or abort."""
        answer = self._ask(
            lambda: EndTxnRequest(**self._claim(), committed=committed),
            version,
            lambda a: a.error_code,
        )
        return int(answer.error_code)

    def _claim(self) -> dict[str, Any]:
        return {
            "transactional_id": self.id,
            "producer_id": self.identity[0],
            "producer_epoch": self.identity[1],
        }

    def _ask(
        self,
        request: Callable[[], Any],
        version: int,
        code: Callable[[Any], int],
        wire: Wire | None = None,
    ) -> Any:
        """Ask until the coordinator has finished what it was doing."""

        def ask() -> Any:
            answer = (wire or self._wire).ask(request(), version)
            return None if code(answer) in _PASSING else answer

        return eventually(ask)


def _codes(answer: Any) -> list[int]:
    return [
        result.partition_error_code
        for topic in answer.results_by_topic_v3_and_below
        for result in topic.results_by_partition
    ]


def test_a_producer_that_comes_back_gets_the_next_epoch(clients: Clients) -> None:
    """Under the same producer id, so that the logs know its sequences."""
    first = Producer(clients)
    second = Producer(clients, first.id)

    assert second.identity[0] == first.identity[0]
    assert second.identity[1] > first.identity[1]


def test_a_commit_whose_answer_was_lost_can_be_repeated(clients: Clients) -> None:
    """The same end again is fine; the other one is not."""
    topic, producer = clients.topic(), Producer(clients)
    assert producer.add((topic, 0)) == [NONE]
    assert producer.write(topic, b"x", 0) == NONE

    assert producer.end(committed=True) == NONE
    assert producer.end(committed=True) == NONE
    assert producer.end(committed=False) == INVALID_TXN_STATE
    assert eventually(lambda: clients.read(topic, committed=True) == [Read(0, None, b"x")])


def test_there_is_nothing_to_end_before_a_transaction_has_begun(clients: Clients) -> None:
    """Neither by commit nor by abort."""
    producer = Producer(clients)

    assert producer.end(committed=True) == INVALID_TXN_STATE
    assert producer.end(committed=False) == INVALID_TXN_STATE


def test_a_record_needs_its_partition_in_the_transaction(clients: Clients) -> None:
    """Else no marker would ever end it: neither before, nor after the transaction's end."""
    topic, producer = clients.topic(), Producer(clients)

    before = producer.write(topic, b"x", 0)
    producer.add((topic, 0))
    within = producer.write(topic, b"x", 0)
    producer.end(committed=True)
    eventually(lambda: clients.read(topic, committed=True))
    after = producer.write(topic, b"y", 1)

    assert (before, within, after) == (INVALID_TXN_STATE, NONE, INVALID_TXN_STATE)


def test_partitions_are_added_all_or_none(clients: Clients) -> None:
    """One that does not exist keeps the others out."""
    topic, producer = clients.topic(), Producer(clients)

    codes = producer.add((topic, 0), (unique("topic"), 0))

    assert sorted(codes) == [UNKNOWN_TOPIC_OR_PARTITION, NOT_ATTEMPTED]
    assert producer.end(committed=True) == INVALID_TXN_STATE


def test_a_zombie_is_fenced_in_every_request(clients: Clients) -> None:
    """Old versions of the protocol spell it as an invalid epoch."""
    topic, group = clients.topic(), unique("group")
    old = Producer(clients)
    old.add((topic, 0))
    old.write(topic, b"x", 0)
    Producer(clients, old.id)

    assert old.add((topic, 0)) == [PRODUCER_FENCED]
    assert old.add((topic, 0), version=1) == [INVALID_PRODUCER_EPOCH]
    assert old.add_offsets(group) == PRODUCER_FENCED
    assert old.commit_offset(group, topic, 1) == INVALID_PRODUCER_EPOCH
    assert old.write(topic, b"y", 1) == INVALID_PRODUCER_EPOCH
    assert old.end(committed=True) == PRODUCER_FENCED
    assert old.end(committed=True, version=1) == INVALID_PRODUCER_EPOCH
    assert old.init(again=True) == PRODUCER_FENCED


def test_a_producer_may_ask_for_a_new_epoch(clients: Clients) -> None:
    """After an error, which aborts its open transaction; sequences begin anew."""
    topic, producer = clients.topic(), Producer(clients)
    producer.add((topic, 0))
    producer.write(topic, b"lost", 0)
    before = producer.identity

    assert producer.init(again=True) == NONE

    assert producer.identity[0] == before[0]
    assert producer.identity[1] > before[1]
    producer.add((topic, 0))
    assert producer.write(topic, b"kept", 0) == NONE
    producer.end(committed=True)
    assert eventually(lambda: [r.value for r in clients.read(topic, committed=True)] == [b"kept"])


def test_another_producers_id_is_refused(clients: Clients) -> None:
    """An id that was never given to this transactional id."""
    producer = Producer(clients)
    producer.identity = (producer.identity[0] + 1000, producer.identity[1])

    assert producer.add((clients.topic(), 0)) == [INVALID_PRODUCER_ID_MAPPING]
    assert producer.end(committed=True) == INVALID_PRODUCER_ID_MAPPING


def test_offsets_need_their_group_in_the_transaction(clients: Clients) -> None:
    """Else they would stay pending for ever."""
    topic, group, producer = clients.topic(), unique("group"), Producer(clients)
    producer.add((topic, 0))

    before = producer.commit_offset(group, topic, 1)
    producer.add_offsets(group)
    after = producer.commit_offset(group, topic, 1)

    assert (before, after) == (INVALID_TXN_STATE, NONE)


@pytest.mark.parametrize("timeout_ms", [0, -5, 10_000_000])
def test_an_impossible_time_out_is_refused(clients: Clients, timeout_ms: int) -> None:
    """The broker's limit is a quarter of an hour by default."""
    producer = Producer(clients)

    assert producer.init(timeout_ms) == INVALID_TRANSACTION_TIMEOUT
