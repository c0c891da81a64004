import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, TypeVar

import pytest
import structlog
from brokers import ApacheKafka, Served, free_port, unique
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.structs import OffsetAndMetadata
from pipelines import (
    CountingService,
    connect,
    expected_counts,
    pipeline,
    poll_until,
    published,
    read_all,
    run_to_end,
    settings_on,
    with_kafka,
    write_events,
)

from stream_forecaster.edge.broker import Broker, Fault, Hook
from stream_forecaster.edge.connection import Outage
from stream_forecaster.edge.kafka import KafkaTransport
from stream_forecaster.edge.publisher import Publisher
from stream_forecaster.errors import (
    CheckpointTooOld,
    CommitFailed,
    Fenced,
    StateError,
    TransportError,
    Unavailable,
)
from stream_forecaster.records import Message

Closing = Callable[[KafkaTransport], KafkaTransport]
_Test = TypeVar("_Test", bound=Callable[..., None])

GUARANTEES = ["exactly_once", "at_least_once"]


def without_a_broker(test: _Test) -> _Test:
    """Mark a test that connects in vain: the client leaves sockets of failed attempts to the GC."""
    pytest.mark.usefixtures("sockets_collected")(test)
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")(test)
    return test


@pytest.fixture
def closing() -> Iterator[Closing]:
    """Hand a transport to this to have it closed after the test."""
    with ExitStack() as stack:

        def close_later(transport: KafkaTransport) -> KafkaTransport:
            stack.callback(transport.close)
            return transport

        yield close_later


@pytest.fixture
def sockets_collected(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Collect what the client left before another test would be blamed for it."""
    # pytest keeps what is logged, and with it the errors, their frames and the sockets in those
    monkeypatch.setattr(logging.getLogger("kafka"), "propagate", False)
    yield
    gc.collect()


def once(fault: Fault) -> Hook:
    """Fault the first request only."""
    left = [fault]
    return lambda _: left.pop() if left else None


def before_the_next_commit(
    transport: KafkaTransport, event: Callable[[], None], *, answered: bool = False
) -> None:
    """Make something happen when all of a transaction is sent but its end.

    `answered`: go on only when the broker has answered the end of the transaction.
    """
    transport._publisher.ready()
    producer = transport._publisher._producer
    transaction = producer._transaction_manager
    begin_commit = transaction.begin_commit

    def interrupted() -> Any:
        transaction.begin_commit = begin_commit
        event()
        result = begin_commit()
        while answered and not result.is_done:
            producer._sender.wakeup()
            time.sleep(0.01)
        return result

    transaction.begin_commit = interrupted


# --- reading ----------------------------------------------------------------------------------


def test_an_assigned_partition_is_silent_until_sought(broker: Served, closing: Closing) -> None:
    """Records come only after `seek`, and from there, whether or not an offset is committed."""
    settings = pipeline(broker, partitions=1, events=10)
    transport = closing(connect(settings))
    polls = poll_until(transport, assigned=1)
    polls += [transport.poll(0.2) for _ in range(3)]

    transport.seek(0, 4)
    (block,) = read_all(transport, {0: 10})

    assert not any(p.records for p in polls)
    assert block.value == [b"%d" % i for i in range(4, 10)]
    assert block.offset.tolist() == list(range(4, 10))
    assert (block.time_ms > 1_600_000_000_000).all()


def test_a_partition_in_recovery_does_not_hold_up_the_others(
    broker: Served, closing: Closing
) -> None:
    """One is sought, the other waits: the first one's records come."""
    settings = pipeline(broker, events=50)
    transport = closing(connect(settings))
    poll_until(transport, assigned=2)
    end = transport.bounds(1)[1]

    transport.seek(1, 0)
    blocks = read_all(transport, {1: end})

    assert {block.partition for block in blocks} == {1}
    assert sum(map(len, blocks)) == end > 0


def test_a_committed_offset_moves_nothing_by_itself(broker: Served, closing: Closing) -> None:
    """A restarted member reads from where it seeks, not from where the group committed."""
    settings = pipeline(broker, partitions=1, events=10)
    first = connect(settings)
    poll_until(first, assigned=1)
    first.commit([], {0: 6})
    first.close()

    second = closing(connect(settings))
    polls = poll_until(second, assigned=1)
    polls += [second.poll(0.2) for _ in range(3)]
    committed = second.committed(0)
    second.seek(0, 2)
    (block,) = read_all(second, {0: 10})

    assert committed == 6
    assert not any(p.records for p in polls)
    assert block.offset.tolist() == list(range(2, 10))


@pytest.mark.parametrize("max_poll_records", [20_000, 2, 1])
def test_next_offset_is_past_what_readers_never_see(
    broker: Served, closing: Closing, max_poll_records: int
) -> None:
    """With markers and aborted records in the log, positions still reach its very end.

    offset   0 1 2   3     4 5   6     7   8     9
             a b c commit  X X abort   d commit  Z ... abort
    """
    settings = pipeline(broker, partitions=1, max_poll_records=max_poll_records)
    writer = KafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id=unique("writer"))
    writer.init_transactions()
    for values, end in (
        ([b"a", b"b", b"c"], writer.commit_transaction),
        ([b"X", b"X"], writer.abort_transaction),
        ([b"d"], writer.commit_transaction),
        ([b"Z"], writer.abort_transaction),
    ):
        writer.begin_transaction()
        for value in values:
            writer.send(settings.input.topic, value, partition=0)
        writer.flush()
        end()
    writer.close()

    transport = closing(connect(settings))
    poll_until(transport, assigned=1)
    transport.seek(0, 0)
    first, end_offset = transport.bounds(0)
    blocks = read_all(transport, {0: end_offset})

    assert (first, end_offset) == (0, 11)
    assert [v for b in blocks for v in b.value] == [b"a", b"b", b"c", b"d"]
    assert [o for b in blocks for o in b.offset.tolist()] == [0, 1, 2, 7]
    assert transport.lag() == {0: 0}


def test_lag_counts_what_is_not_read(broker: Served, closing: Closing) -> None:
    """Lag is the distance of the position from the end that the last fetch saw."""
    settings = pipeline(broker, partitions=1, events=10, max_poll_records=4)
    transport = closing(connect(settings))
    poll_until(transport, assigned=1)
    transport.seek(0, 0)

    before = transport.lag()
    while not transport.poll(0.2).records:
        pass

    assert before == {}
    assert transport.lag() == {0: 6}


def test_offset_at_finds_the_first_record_from_a_time_on(broker: Served, closing: Closing) -> None:
    """By broker time: at it, between two, before all, after all."""
    settings = pipeline(broker, partitions=1)
    now_ms = int(time.time() * 1_000) - 60_000
    with_times = KafkaProducer(bootstrap_servers=broker.bootstrap)
    for i in range(3):
        with_times.send(settings.input.topic, b"x", timestamp_ms=now_ms + 1_000 * i)
    with_times.close()
    transport = closing(connect(settings))

    asked = [0, now_ms + 1_000, now_ms + 1_001, now_ms + 5_000]

    assert [transport.offset_at(0, t) for t in asked] == [0, 1, 2, 3]


def test_records_removed_by_retention_are_an_error(broker: Served, closing: Closing) -> None:
    """Reading below the log's beginning stops with both offsets; nothing is skipped."""
    settings = pipeline(broker, partitions=1, events=10)
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    admin.delete_records({TopicPartition(settings.input.topic, 0): 5})
    admin.close()
    transport = closing(connect(settings))
    poll_until(transport, assigned=1)
    transport.seek(0, 3)

    with pytest.raises(CheckpointTooOld, match=r"offset 3 .* before 5"):
        read_all(transport, {0: 10})


def test_a_log_that_ends_before_the_position_is_an_error(broker: Served, closing: Closing) -> None:
    """A topic made anew is noticed, not waited on."""
    settings = pipeline(broker, partitions=1, events=10)
    transport = closing(connect(settings))
    poll_until(transport, assigned=1)
    transport.seek(0, 1_000)

    with pytest.raises(StateError, match=r"offset 1000 .* ends at 10"):
        read_all(transport, {0: 1_000})


def test_only_held_partitions_can_be_sought(broker: Served, closing: Closing) -> None:
    """Seeking what is not ours is a mistake of the caller."""
    transport = closing(connect(pipeline(broker)))

    with pytest.raises(ValueError, match="not held"):
        transport.seek(0, 0)


# --- committing -------------------------------------------------------------------------------


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_a_quiet_run_publishes_everything_once(
    broker: Served, closing: Closing, guarantee: str
) -> None:
    """Headers, keys and tombstones arrive as given; offsets end at the log's end."""
    settings = pipeline(broker, events=100, guarantee=guarantee)
    transport = closing(connect(settings))
    service = CountingService(transport, settings)

    run_to_end([service], settings)
    transport.commit([Message(settings.output.dead_letter_topic, b"k", None, (("h", b"1"),))], {})

    assert published(settings) == expected_counts(settings)
    assert [transport.committed(p) for p in (0, 1)] == [transport.bounds(p)[1] for p in (0, 1)]


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_offsets_alone_can_be_committed(broker: Served, closing: Closing, guarantee: str) -> None:
    """A turn that publishes nothing still moves the group on."""
    settings = pipeline(broker, events=10, guarantee=guarantee)
    transport = closing(connect(settings))
    poll_until(transport, assigned=2)
    before = transport.committed(0)

    transport.commit([], {0: 3})
    transport.commit([], {})

    assert before is None
    assert transport.committed(0) == 3


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_a_member_past_its_poll_interval_cannot_commit(
    broker: Served, closing: Closing, guarantee: str
) -> None:
    """Membership is checked before anything is sent; polling again assigns again."""
    settings = pipeline(broker, events=10, guarantee=guarantee, max_poll_interval="1s")
    transport = closing(connect(settings))
    poll_until(transport, assigned=2)
    while transport._consumer.group_metadata().generation_id >= 0:
        time.sleep(0.1)

    with pytest.raises(CommitFailed, match="no longer a member"):
        transport.commit([Message(settings.output.topic, b"k", b"zombie")], {0: 1})

    again = poll_until(transport, assigned=2)
    assert [p for poll in again for p in poll.revoked] == [0, 1]
    assert published(settings) == []
    assert transport.committed(0) is None


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_a_negative_generation_is_refused_here(
    broker: Served, closing: Closing, guarantee: str
) -> None:
    """The broker would accept it unchecked, from a zombie too."""
    settings = pipeline(broker, events=10, guarantee=guarantee)
    transport = closing(connect(settings))

    with pytest.raises(CommitFailed):
        transport.commit([Message(settings.output.topic, b"k", b"zombie")], {0: 1})

    assert published(settings) == []


def test_the_broker_refuses_a_stale_generation_and_nothing_leaks(
    broker: Served, closing: Closing
) -> None:
    """A refused transaction's offsets do not ride along with the next one."""
    settings = pipeline(broker, events=10)
    transport = closing(connect(settings))
    poll_until(transport, assigned=2)
    logger = structlog.get_logger()
    publisher = Publisher(settings.kafka, unique("id"), Outage(settings.kafka, logger), logger)
    stale = transport._membership._replace(generation_id=transport._membership.generation_id - 1)
    zero, one = (TopicPartition(settings.input.topic, p) for p in (0, 1))

    with pytest.raises(CommitFailed):
        publisher.transact(
            [Message(settings.output.topic, b"k", b"lost")],
            {zero: OffsetAndMetadata(3, "", -1)},
            stale,
        )
    publisher.transact(
        [Message(settings.output.topic, b"k", b"kept")],
        {one: OffsetAndMetadata(2, "", -1)},
        transport._membership,
    )
    publisher.close()

    assert [transport.committed(p) for p in (0, 1)] == [None, 2]
    assert published(settings) == [b"kept"]


def test_only_held_partitions_can_be_committed(broker: Served, closing: Closing) -> None:
    """Another member's partition is refused before anything is sent."""
    settings = pipeline(broker, events=10)
    transport = closing(connect(settings))
    poll_until(transport, assigned=2)

    with pytest.raises(CommitFailed, match="partition 7"):
        transport.commit([Message(settings.output.topic, b"k", b"v")], {0: 1, 7: 1})

    assert transport.committed(0) is None
    assert published(settings) == []


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_a_message_the_broker_never_takes_stops_the_service(
    broker: Served, closing: Closing, guarantee: str
) -> None:
    """Recovering would meet it again and again; nothing of the commit is done."""
    settings = pipeline(broker, events=10, guarantee=guarantee)
    transport = closing(connect(settings))
    poll_until(transport, assigned=2)
    huge = Message(settings.output.topic, b"k", os.urandom(2 << 20))

    with pytest.raises(TransportError, match="MessageSizeTooLarge") as refused:
        transport.commit([huge], {0: 1})

    assert not isinstance(refused.value, CommitFailed)
    assert transport.committed(0) is None
    assert published(settings) == []


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_a_failed_send_is_never_committed(
    embedded_broker: Broker, closing: Closing, guarantee: str
) -> None:
    """The client would commit such a transaction, without the message."""
    settings = pipeline(embedded_broker, events=10, guarantee=guarantee, transaction_timeout="1s")
    transport = closing(connect(settings))
    poll_until(transport, assigned=2)
    embedded_broker.hooks["Produce"] = lambda _: Fault.DROP

    with pytest.raises(CommitFailed):
        transport.commit([Message(settings.output.topic, b"k", b"lost")], {0: 1})
    del embedded_broker.hooks["Produce"]

    assert transport.committed(0) is None
    assert published(settings) == []


def test_a_commit_without_an_answer_is_in_doubt_after_a_while(
    embedded_broker: Broker, closing: Closing
) -> None:
    """The client would try for ever; recovery finds out what became of it."""
    settings = pipeline(embedded_broker, events=100, transaction_timeout="1s", max_poll_records=40)
    service = CountingService(closing(connect(settings)), settings)
    embedded_broker.hooks["EndTxn"] = lambda _: Fault.CLOSE

    while not service.failures:
        service.turn()
    del embedded_broker.hooks["EndTxn"]
    run_to_end([service], settings)

    assert published(settings) == expected_counts(settings)


def test_a_failed_commit_revokes_and_assigns_everything(
    embedded_broker: Broker, closing: Closing
) -> None:
    """The shards are recovered before another record comes."""
    settings = pipeline(embedded_broker, events=10)
    transport = closing(connect(settings))
    poll_until(transport, assigned=2)
    for partition in (0, 1):
        transport.seek(partition, 0)
    embedded_broker.hooks["AddOffsetsToTxn"] = once(Fault.CLOSE)
    transport._membership = transport._membership._replace(member_id="somebody-else")

    with pytest.raises(CommitFailed):
        transport.commit([Message(settings.output.topic, b"k", b"v")], {0: 1})
    poll = transport.poll(0.5)

    assert poll.revoked == poll.assigned == (0, 1)
    assert not poll.records
    assert not transport.poll(0.3).records


@pytest.mark.parametrize("fault", [Fault.CLOSE, Fault.LOSE_ANSWER, Fault.DROP])
@pytest.mark.parametrize(
    "request_name",
    ["AddPartitionsToTxn", "Produce", "AddOffsetsToTxn", "TxnOffsetCommit", "EndTxn"],
)
def test_a_connection_lost_in_a_commit_loses_and_doubles_nothing(
    embedded_broker: Broker, closing: Closing, request_name: str, fault: Fault
) -> None:
    """Wherever the wire breaks, before or after the broker acted, the output is exact."""
    settings = pipeline(embedded_broker, events=100, transaction_timeout="1s", max_poll_records=40)
    service = CountingService(closing(connect(settings)), settings)
    embedded_broker.hooks[request_name] = once(fault)

    run_to_end([service], settings)

    assert published(settings) == expected_counts(settings)


@pytest.mark.parametrize("fault", [Fault.CLOSE, Fault.LOSE_ANSWER, Fault.DROP])
@pytest.mark.parametrize("request_name", ["Produce", "OffsetCommit"])
def test_at_least_once_loses_nothing_when_a_connection_is_lost(
    embedded_broker: Broker, closing: Closing, request_name: str, fault: Fault
) -> None:
    """Whatever breaks, every output is there; some may be there twice, with equal values."""
    settings = pipeline(
        embedded_broker,
        events=100,
        guarantee="at_least_once",
        transaction_timeout="1s",
        max_poll_records=40,
    )
    service = CountingService(closing(connect(settings)), settings)
    embedded_broker.hooks[request_name] = once(fault)

    run_to_end([service], settings)

    assert sorted(set(published(settings))) == expected_counts(settings)


# --- several members --------------------------------------------------------------------------


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_members_that_come_and_go_publish_like_one(
    broker: Served, closing: Closing, guarantee: str
) -> None:
    """Rebalances move partitions between members; the output is that of an uninterrupted run."""
    settings = pipeline(
        broker, partitions=4, guarantee=guarantee, max_poll_records=50, session_timeout="1500ms"
    )

    def member(name: str) -> CountingService:
        return CountingService(closing(connect(with_kafka(settings, instance_id=name))), settings)

    first, second = member("one"), member("two")
    for burst in range(6):
        write_events(settings, range(200))
        for _ in range(6):
            first.turn(0.05)
            second.turn(0.05)
        if burst % 2:
            second.transport.close()
            second = member("two")
    run_to_end([first, second], settings)

    assert published(settings) == expected_counts(settings)


def test_a_second_process_with_the_same_id_fences_the_first(
    broker: Served, closing: Closing
) -> None:
    """Two live processes must not fence each other for ever: the first one stops."""
    settings = pipeline(broker, events=10)
    first = closing(connect(settings))
    poll_until(first, assigned=2)
    first.commit([Message(settings.output.topic, b"k", b"1")], {0: 1})
    closing(connect(settings))

    with pytest.raises(Fenced, match=r"kafka\.instance_id"):
        first.commit([Message(settings.output.topic, b"k", b"2")], {0: 2})

    assert published(settings) == [b"1"]


def test_a_transaction_that_outlived_its_timeout_is_not_a_take_over(
    broker: Served, closing: Closing
) -> None:
    """The broker fences both alike; the clock tells them apart."""
    settings = pipeline(broker, events=10, transaction_timeout="1s")
    transport = closing(connect(settings))
    poll_until(transport, assigned=2)
    before_the_next_commit(transport, lambda: time.sleep(2.5), answered=True)

    with pytest.raises(CommitFailed):
        transport.commit([Message(settings.output.topic, b"k", b"late")], {0: 1})
    poll_until(transport, assigned=2)
    transport.commit([Message(settings.output.topic, b"k", b"kept")], {0: 1})

    assert published(settings) == [b"kept"]


# --- brokers that are away --------------------------------------------------------------------


@without_a_broker
def test_nobody_there_is_an_error_only_past_the_bound() -> None:
    """It names the address and how long; the log says it once."""
    settings = settings_on(f"127.0.0.1:{free_port()}", give_up_after="1s")

    with structlog.testing.capture_logs() as lines, pytest.raises(Unavailable) as given_up:
        connect(settings)

    assert settings.kafka.bootstrap_servers in str(given_up.value)
    assert [line["log_level"] for line in lines] == ["warning"]
    assert "ECONNREFUSED" in lines[0]["cause"]


@without_a_broker
def test_a_stop_ends_the_waiting() -> None:
    """A process told to stop does not wait for a broker."""
    stopping = threading.Event()
    stopping.set()

    with pytest.raises(Unavailable, match="stopped"):
        KafkaTransport(settings_on("127.0.0.1:1"), structlog.get_logger(), stopping)


def test_a_missing_topic_names_itself_and_the_way_out(broker: Served) -> None:
    """Nothing is created by accident."""
    settings = settings_on(broker.bootstrap)

    with pytest.raises(TransportError, match="topics create") as missing:
        connect(settings)

    assert repr(settings.input.topic) in str(missing.value)


def test_the_wrong_protocol_names_the_cause(broker: Served) -> None:
    """TLS to a plain listener fails for ever; the error has the client's own words.

    In a process of its own, as the client never closes the sockets of failed handshakes.
    """
    script = (
        "import structlog, sys; from stream_forecaster import config\n"
        "from stream_forecaster.edge.kafka import KafkaTransport\n"
        "kafka = {'bootstrap_servers': sys.argv[1], 'security_protocol': 'SSL'}\n"
        "settings = config.parse({'kafka': kafka | {'give_up_after': '500ms'}})\n"
        "KafkaTransport(settings, structlog.get_logger())\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script, broker.bootstrap], capture_output=True, check=False
    )

    last_line = done.stderr.decode().splitlines()[-1]
    assert last_line.startswith("stream_forecaster.errors.Unavailable")
    assert "Handshake failed" in last_line


@without_a_broker
def test_a_restarted_broker_is_waited_for(closing: Closing) -> None:
    """Members notice, say so, and go on where the group is when it is back."""
    port = free_port()
    with Broker(port=port) as broker:
        settings = pipeline(broker, partitions=1, events=10)
        transport = closing(connect(settings))
        poll_until(transport, assigned=1)

    with structlog.testing.capture_logs() as lines:
        while not lines:
            transport.poll(0.2)
        with Broker(port=port):
            while len(lines) < 2:
                transport.poll(0.2)

    assert [line["event"] for line in lines] == [
        "kafka does not answer; trying again with back-off",
        "kafka answers again",
    ]
    assert lines[0]["bootstrap_servers"] == settings.kafka.bootstrap_servers


@without_a_broker
@pytest.mark.kafka
@pytest.mark.chaos
def test_apache_kafka_killed_in_the_middle_of_a_commit(
    apache_kafka: ApacheKafka, closing: Closing
) -> None:
    """A broker that crashes under the end of a transaction costs time, never a message."""
    settings = pipeline(apache_kafka, events=300, max_poll_records=100)
    service = CountingService(closing(connect(settings)), settings)

    def crash() -> None:
        apache_kafka.kill()
        apache_kafka.restart()

    before_the_next_commit(service.transport, crash)
    run_to_end([service], settings)

    assert published(settings) == expected_counts(settings)


@without_a_broker
@pytest.mark.kafka
@pytest.mark.chaos
def test_a_frozen_apache_kafka_does_not_hang_the_service(
    apache_kafka: ApacheKafka, closing: Closing
) -> None:
    """The client would wait for ever; the commit is in doubt after the transaction's time-out."""
    settings = pipeline(apache_kafka, events=300, transaction_timeout="2s", max_poll_records=100)
    service = CountingService(closing(connect(settings)), settings)
    process = apache_kafka._process
    assert process is not None

    before_the_next_commit(service.transport, lambda: os.killpg(process.pid, signal.SIGSTOP))
    while not service.failures:
        service.turn()
    os.killpg(process.pid, signal.SIGCONT)
    run_to_end([service], settings)

    assert published(settings) == expected_counts(settings)
