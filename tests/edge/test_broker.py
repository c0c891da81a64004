"""The embedded broker beyond the contract: loopback, frames, planned faults, outages, its process.

What it has in common with Apache Kafka is in `tests/contract`.
"""

import gc
import logging
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from typing import Any

import pytest
import raw
from brokers import Wire, unique
from clients import PATIENCE_S, Clients, Read, eventually
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.protocol.metadata import ApiVersionsRequest, ApiVersionsResponse, MetadataRequest
from kafka.protocol.producer import EndTxnResponse
from kafka.structs import OffsetAndMetadata

from stream_forecaster.edge.broker import MAX_REQUEST_BYTES, Broker, Delay, Fault
from stream_forecaster.edge.broker.dispatch import Call, MalformedRequest

UNSUPPORTED_VERSION = 35


@pytest.fixture
def own(embedded_broker: Broker) -> Iterator[Clients]:
    """Clients of this test's own embedded broker."""
    with ExitStack() as stack:
        yield Clients(embedded_broker, stack)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.1", "::", "8.8.8.8"])  # noqa: S104  # refused
def test_only_loopback_is_served(host: str) -> None:
    """Anything else is a mistake of the caller."""
    with pytest.raises(ValueError, match="loopback"):
        Broker(host=host)


def test_a_taken_port_is_reported(embedded_broker: Broker) -> None:
    """As the operating system says it, from the thread that asked."""
    port = int(embedded_broker.bootstrap.rpartition(":")[2])

    with pytest.raises(OSError, match="address already in use"):
        Broker(port=port).start()


def test_a_broker_is_started_once(embedded_broker: Broker) -> None:
    """A second start is a mistake of the caller; a second stop is not."""
    with pytest.raises(RuntimeError):
        embedded_broker.start()

    embedded_broker.stop()
    embedded_broker.stop()


@pytest.mark.parametrize(
    "frame",
    [
        b"\x00\x00\x00\x00",
        b"\xff\xff\xff\xff",
        struct.pack(">i", MAX_REQUEST_BYTES + 1),
        b"\x00\x00\x00\x03abc",
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">ihhi", 8, 999, 0, 1),  # no such request
        struct.pack(">ihhi", 8, 0, 99, 1),  # no such version of Produce
        struct.pack(">ihhi", 8, 3, 1, 1),  # Metadata without a body
        struct.pack(">ihhihi", 14, 3, 1, 1, -1, 0x7FFFFFFF),  # with two thousand million topics
    ],
)
def test_a_malformed_frame_ends_its_connection_only(
    embedded_broker: Broker, frame: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The sender is hung up on, the others do not notice, and the log says why."""
    bystander, sender = Wire(embedded_broker.bootstrap), Wire(embedded_broker.bootstrap)

    sender.send(frame)

    assert sender.receive_frame() == b""
    assert bystander.ask(MetadataRequest(topics=[]), 8).brokers
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    bystander.close()
    sender.close()


def test_a_length_that_lies_costs_no_memory(embedded_broker: Broker) -> None:
    """Room is made for the bytes that come, not for those that are announced."""
    wire = Wire(embedded_broker.bootstrap)
    tracemalloc.start()

    wire.send(struct.pack(">i", MAX_REQUEST_BYTES) + b"x" * 1000)
    bystander = Wire(embedded_broker.bootstrap)
    bystander.ask(MetadataRequest(topics=[]), 8)
    _, peak_bytes = tracemalloc.get_traced_memory()

    tracemalloc.stop()
    assert peak_bytes < MAX_REQUEST_BYTES / 10
    wire.close()
    bystander.close()


@given(
    key=st.integers(-1, 80),
    version=st.integers(-1, 14),
    body=st.binary(max_size=200),
)
def test_any_frame_is_a_request_or_malformed(key: int, version: int, body: bytes) -> None:
    """Decoding raises nothing else, whatever the bytes."""
    dispatch = Broker()._dispatch

    try:
        decoded = dispatch.decode(struct.pack(">hhi", key, version, 1) + body)
    except MalformedRequest:
        return

    assert isinstance(decoded, (Call, bytes))


# What lengths, counts and numbers of variable length may be at their worst, among any bytes.
_bodies = st.lists(
    st.one_of(
        st.sampled_from(
            [
                b"\xff\xff\xff\xff",
                b"\x7f\xff\xff\xff",
                b"\x0f\xff\xff\xff",
                b"\xff\xff",
                b"\x7f\xff",
                b"\x00",
                b"\x00\x00\x00\x01",
                b"\xff\xff\xff\xff\x0f",
                b"\xff" * 10 + b"\x01",
                b"\x80" * 12,
                b"\x80" * 5_000,
            ]
        ),
        st.binary(max_size=8),
    ),
    max_size=12,
).map(b"".join)


_REQUESTS = [
    (key, version)
    for key, api in Broker()._dispatch._apis.items()
    for version in range(api.min_version, api.max_version + 1)
]


@given(
    kind=st.sampled_from(_REQUESTS),
    tags=st.sampled_from([b"", b"\x00"]),  # newer requests begin with them, here with none
    body=_bodies,
)
@example(kind=(14, 4), tags=b"\x00", body=b"\xff" * 10 + b"\x01")  # a length beyond any integer
def test_any_body_behind_a_valid_head_is_a_request_or_malformed(
    kind: tuple[int, int], tags: bytes, body: bytes
) -> None:
    """Of every request in every version; in little time and memory, whatever lengths it claims."""
    dispatch = Broker()._dispatch
    tracemalloc.start()

    try:
        dispatch.decode(struct.pack(">hhih", *kind, 1, -1) + tags + body)
    except MalformedRequest:
        pass
    finally:
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert peak_bytes < 200 * len(body) + 1_000_000


def test_a_number_without_end_costs_no_time(embedded_broker: Broker) -> None:
    """A megabyte of it would keep the broker busy for half a minute."""
    bystander, sender = Wire(embedded_broker.bootstrap), Wire(embedded_broker.bootstrap)
    frame = struct.pack(">hhihB", 14, 4, 1, -1, 0) + b"\xff" * 1_000_000 + b"\x01"
    began_s = time.monotonic()

    sender.send(struct.pack(">i", len(frame)) + frame)

    assert sender.receive_frame() == b""
    assert bystander.ask(MetadataRequest(topics=[]), 8).brokers
    assert time.monotonic() - began_s < 5
    bystander.close()
    sender.close()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    streams=st.lists(
        st.one_of(
            st.binary(max_size=100),
            st.builds(
                lambda key, version, body, short: (
                    struct.pack(">ihhih", len(body) + 10, key, version, 1, -1)
                    + body[: len(body) - short]
                ),
                st.integers(0, 60),
                st.integers(0, 9),
                _bodies.map(lambda body: body[:2_000]),
                st.integers(0, 3),
            ),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_the_broker_outlives_any_bytes(embedded_broker: Broker, streams: list[bytes]) -> None:
    """Whole frames, half ones and none at all, on connections that end there."""
    for stream in streams:
        wire = Wire(embedded_broker.bootstrap)
        with suppress(ConnectionError):
            wire.send(stream)
        wire.close()

    bystander = Wire(embedded_broker.bootstrap)
    assert bystander.ask(MetadataRequest(topics=[]), 8).brokers
    bystander.close()
    eventually(lambda: len(embedded_broker._connections) == 0)


def test_a_client_from_the_future_learns_the_versions(embedded_broker: Broker) -> None:
    """ApiVersions is answered in its oldest form when the version asked for is not known."""
    wire = Wire(embedded_broker.bootstrap)
    wire.send(struct.pack(">ihhi", 8, ApiVersionsRequest.API_KEY, 99, 7))

    answer = ApiVersionsResponse.decode(wire.receive_frame(), version=0, header=True)

    assert answer.error_code == UNSUPPORTED_VERSION
    assert ApiVersionsRequest.API_KEY in [api.api_key for api in answer.api_keys]
    wire.close()


def test_a_misspelt_hook_is_refused(embedded_broker: Broker) -> None:
    """It would never fire, and the test that plans it would prove nothing."""
    with pytest.raises(ValueError, match="EndTransaction"):
        embedded_broker.hooks["EndTransaction"] = lambda _: Fault.DROP


def test_a_dropped_request_is_never_answered(embedded_broker: Broker) -> None:
    """The connection stays, and the next request on it is answered."""
    wire = Wire(embedded_broker.bootstrap, timeout_s=0.2)
    embedded_broker.hooks["Metadata"] = lambda _: Fault.DROP

    with pytest.raises(TimeoutError):
        wire.ask(MetadataRequest(topics=[]), 8)

    assert wire.ask(ApiVersionsRequest(), 0).api_keys
    wire.close()


def test_a_closed_request_was_never_processed(embedded_broker: Broker, own: Clients) -> None:
    """The batch that met the fault is not in the log."""
    topic = own.topic()
    wire = own.wire(topic)
    embedded_broker.hooks["Produce"] = lambda _: Fault.CLOSE

    with pytest.raises(ConnectionResetError):
        raw.produce(wire, topic, raw.batch(b"x"))

    assert own.read(topic) == []


def test_a_lost_answer_was_processed(embedded_broker: Broker, own: Clients) -> None:
    """The client sends again, and idempotence keeps the record from being stored twice."""
    topic = own.topic()
    seen = []

    def lose_the_first(request: Any) -> Fault | None:
        seen.append(request)
        return Fault.LOSE_ANSWER if len(seen) == 1 else None

    embedded_broker.hooks["Produce"] = lose_the_first
    own.send(topic, [b"x"])

    assert len(seen) == 2
    assert own.read(topic) == [Read(0, None, b"x")]


def test_a_delayed_request_is_processed_in_the_end(embedded_broker: Broker, own: Clients) -> None:
    """Other connections are served meanwhile."""
    topic = own.topic()
    wire, other = own.wire(topic), own.wire(topic)
    embedded_broker.hooks["Produce"] = lambda _: Delay(0.5)
    began_s = time.monotonic()
    writing = threading.Thread(target=raw.produce, args=(wire, topic, raw.batch(b"x")))
    writing.start()

    assert other.ask(MetadataRequest(topics=[]), 8).brokers
    assert writing.is_alive()
    writing.join()
    assert time.monotonic() - began_s >= 0.5
    assert [r.value for r in own.read(topic)] == [b"x"]


def test_a_hook_may_answer_itself(embedded_broker: Broker, own: Clients) -> None:
    """The request is not processed: the transaction is still open."""
    topic = own.topic()
    producer = own.transactional(unique("id"), retry_backoff_ms=5)
    producer.begin_transaction()
    producer.send(topic, b"x")
    answered = []

    def busy_at_first(_: Any) -> Any:
        answered.append(len(own_reads()))
        return EndTxnResponse(error_code=51) if len(answered) == 1 else None

    def own_reads() -> list[Any]:
        log = embedded_broker._topics.log(topic, 0)
        return log._batches

    embedded_broker.hooks["EndTxn"] = busy_at_first
    producer.commit_transaction()

    assert answered == [1, 1]
    assert [r.value for r in own.read(topic, committed=True)] == [b"x"]


def test_a_mistake_in_a_hook_ends_its_connection_only(
    embedded_broker: Broker, own: Clients, caplog: pytest.LogCaptureFixture
) -> None:
    """And is logged with its traceback."""
    topic = own.topic()
    wire = own.wire(topic)
    embedded_broker.hooks["Produce"] = lambda request: request.no_such_field

    with pytest.raises(ConnectionResetError):
        raw.produce(wire, topic, raw.batch(b"x"))

    assert "no_such_field" in caplog.text
    assert own.read(topic) == []


def test_an_outage_loses_nothing(embedded_broker: Broker, own: Clients) -> None:
    """After stop and start: the same port, topics, records, offsets, groups and transactions."""
    topic, group = own.topic(), unique("group")
    where = TopicPartition(topic, 0)
    consumer, _ = own.member(topic, group)
    consumer.commit({where: OffsetAndMetadata(1, "", -1)})
    producer = own.transactional(unique("id"))
    producer.begin_transaction()
    producer.send(topic, b"before")
    producer.flush()
    address = embedded_broker.bootstrap

    embedded_broker.stop()
    late = producer.send(topic, b"during")
    embedded_broker.start()
    late.get(PATIENCE_S)
    producer.commit_transaction()

    assert embedded_broker.bootstrap == address
    assert consumer.committed(where) == 1
    values = eventually(lambda: [r.value for r in own.read(topic, committed=True)])
    assert values == [b"before", b"during"]


def test_stopping_leaves_no_socket_open() -> None:
    """Not even of clients that connect at that moment; warnings are errors in these tests."""
    broker = Broker().start()
    over = threading.Event()

    def connect() -> None:
        while not over.is_set():
            with suppress(OSError), closing(Wire(broker.bootstrap)) as wire:
                wire.send(struct.pack(">ihhi", 8, ApiVersionsRequest.API_KEY, 99, 7))
                wire.receive_frame()

    clients = [threading.Thread(target=connect) for _ in range(3)]
    for client in clients:
        client.start()
    for _ in range(15):
        time.sleep(0.01)
        broker.stop()
        broker.start()
    over.set()
    for client in clients:
        client.join()
    broker.stop()
    gc.collect()


def test_joining_a_group_takes_under_half_a_second(own: Clients) -> None:
    """The best of three, as the machine may be busy; Kafka's own default is three seconds."""
    topic = own.topic()
    durations_s = []
    for _ in range(3):
        began_s = time.monotonic()
        own.member(topic, unique("group"))
        durations_s.append(time.monotonic() - began_s)

    assert min(durations_s) < 0.5


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_runs_as_a_process_of_its_own(how: signal.Signals) -> None:
    """It prints its address, serves, and ends cleanly when told to."""
    command = [sys.executable, "-m", "stream_forecaster.edge.broker", "--partitions", "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stdout is not None
        wire = Wire(process.stdout.readline().strip())

        brokers = wire.ask(MetadataRequest(topics=[]), 8).brokers
        process.send_signal(how)

        assert process.wait(PATIENCE_S) == 0
    assert [broker.host for broker in brokers] == ["127.0.0.1"]
    wire.close()
