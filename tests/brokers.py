"""The brokers that tests run against: Apache Kafka where there is one, else the embedded one.

Apache Kafka is found by KAFKA_BOOTSTRAP_SERVERS (a running cluster) or is started from KAFKA_HOME
(any unpacked Kafka 4; needs Java 17). Every test uses topics, groups and transactional ids of its
own, so that a shared cluster may be given.
"""

import base64
import os
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, Self

from kafka.protocol.admin import CreateTopicsRequest
from kafka.protocol.metadata import MetadataRequest, MetadataResponse

from stream_forecaster.edge.broker import Broker

_STARTS_WITHIN_S = 60.0
_STOPS_WITHIN_S = 20.0

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:{controller_port}
log.dirs={directory}/data
auto.create.topics.enable=false
# one node holds every replica
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
# be quick: no waiting for more members, short sessions, prompt time-outs and cleaning
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=100
transaction.abort.timed.out.transaction.cleanup.interval.ms=200
log.initial.task.delay.ms=200
log.retention.check.interval.ms=200
log.cleaner.backoff.ms=200
log.segment.delete.delay.ms=100
# after a crash the node is let in again when its former session has ended
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
"""


class Served(Protocol):
    """Any broker a test can connect to."""

    @property
    def bootstrap(self) -> str:
        """Its address, `host:port`."""
        ...


class External:
    """A cluster that somebody else runs."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap


class ApacheKafka:
    """One KRaft node of Apache Kafka on free loopback ports, in a directory of its own.

    Args:
        home: where Kafka is unpacked.
        directory: for its storage, settings and log.
        properties: more settings; of two lines for one setting the later counts.
        format_options: more options of `kafka-storage.sh format`.
    """

    def __init__(
        self,
        home: Path,
        directory: Path,
        properties: str = "",
        format_options: Sequence[str] = (),
    ) -> None:
        self._home, self._directory = home, directory
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._properties = directory / "server.properties"
        self._properties.write_text(
            _PROPERTIES.format(port=self._port, controller_port=free_port(), directory=directory)
            + properties.format(port=self._port)
        )
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        format_storage = [home / "bin/kafka-storage.sh", "format", "--standalone"]
        self._finish(
            [*format_storage, f"--cluster-id={cluster_id}", "-c", self._properties, *format_options]
        )

    @property
    def bootstrap(self) -> str:
        """Its address, `host:port`."""
        return f"127.0.0.1:{self._port}"

    def start(self) -> Self:
        """Start the node; returns when it serves clients."""
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [self._home / "bin/kafka-server-start.sh", self._properties],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
                start_new_session=True,  # Ctrl-C is for pytest, which stops the node itself
            )
        deadline_s = time.monotonic() + _STARTS_WITHIN_S
        while not _serves(self._port):
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self.kill()
                raise RuntimeError(f"Kafka did not start:\n{self._log_path.read_text()[-3000:]}")
            time.sleep(0.05)
        return self

    def stop(self) -> None:
        """Shut the node down cleanly; safe to call twice."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the node as a crash does: kill -9."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Start again after `stop` or `kill`, on the same port and storage."""
        self.start()

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        # the script may be a shell around the JVM, so the whole session is told
        _signal_session(process, how)
        try:
            process.wait(_STOPS_WITHIN_S)
        except subprocess.TimeoutExpired:
            _signal_session(process, signal.SIGKILL)
            process.wait()

    @property
    def _log_path(self) -> Path:
        return self._directory / "server.log"

    def _environment(self) -> dict[str, str]:
        heap = {"KAFKA_HEAP_OPTS": "-Xms256m -Xmx512m"}
        return {**heap, **os.environ, "LOG_DIR": str(self._directory / "logs")}

    def _finish(self, command: list[Any]) -> None:
        done = subprocess.run(command, capture_output=True, check=False, env=self._environment())
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed:\n{(done.stdout + done.stderr).decode()}")


def kafka_home() -> Path | None:
    """Where an Apache Kafka is unpacked, if the environment names one."""
    home = os.environ.get("KAFKA_HOME")
    return Path(home) if home else None


def external() -> External | None:
    """The running cluster that the environment names, if any."""
    bootstrap = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    return External(bootstrap) if bootstrap else None


def most_real() -> str:
    """In words, the most real broker that this run has."""
    cluster = external()
    if cluster is not None:
        return f"the cluster at {cluster.bootstrap}"
    if kafka_home() is not None:
        return f"Apache Kafka from {kafka_home()}"
    return "the embedded broker (set KAFKA_HOME or KAFKA_BOOTSTRAP_SERVERS for Apache Kafka)"


@contextmanager
def most_real_broker() -> Iterator[Served]:
    """That broker; started for it, if it is not a running cluster."""
    cluster, home = external(), kafka_home()
    if cluster is not None:
        yield cluster
    elif home is not None:
        with tempfile.TemporaryDirectory() as directory:
            kafka = ApacheKafka(home, Path(directory)).start()
            try:
                yield kafka
            finally:
                kafka.stop()
    else:
        with Broker() as broker:
            yield broker


def free_port() -> int:
    """A loopback port that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def unique(prefix: str) -> str:
    """A name that no other test uses."""
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def create_topic(
    served: Served, partitions: int = 1, settings: Mapping[str, str] | None = None
) -> str:
    """Create a topic with a name of its own and return the name once all partitions are led."""
    name = unique("topic")
    wanted = CreateTopicsRequest.CreatableTopic
    configs = [wanted.CreatableTopicConfig(name=n, value=v) for n, v in (settings or {}).items()]
    topic = wanted(
        name=name,
        num_partitions=partitions,
        replication_factor=-1,
        assignments=[],
        configs=configs,
    )
    wire = Wire(served.bootstrap)
    try:
        answer = wire.ask(CreateTopicsRequest(topics=[topic], timeout_ms=10_000), 4).topics[0]
        assert answer.error_code == 0, answer
        while not _led(wire, name, partitions):
            time.sleep(0.01)
    finally:
        wire.close()
    return name


class Wire:
    """A connection that speaks the protocol itself, for what no client would send."""

    def __init__(self, bootstrap: str, timeout_s: float = 10.0) -> None:
        host, _, port = bootstrap.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout_s)
        self._response: Any = None

    def ask(self, request: Any, version: int) -> Any:
        """Send a request and wait for the answer."""
        self.post(request, version)
        return self.answer()

    def post(self, request: Any, version: int) -> None:
        """Send a request whose answer may take its time; `answer` takes it."""
        request.API_VERSION = version
        request.with_header(correlation_id=1)
        self.send(bytes(request.encode(header=True, framed=True)))
        self._response = request.header.get_response_class()

    def answer(self) -> Any:
        """Wait for the answer to the request posted last."""
        frame = self.receive_frame()
        if not frame:
            raise ConnectionResetError("the broker has hung up")
        return self._response.decode(frame, header=True)

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._socket.sendall(data)

    def receive_frame(self) -> bytes:
        """Receive one frame, without its length; b"" when the broker has hung up."""
        prefix = self._receive(4)
        return self._receive(int.from_bytes(prefix, "big")) if prefix else b""

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                more = self._socket.recv(size - len(data))
            except ConnectionResetError:
                more = b""
            if not more:
                return b""
            data += more
        return data

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def _led(wire: Wire, topic: str, partitions: int) -> bool:
    """Whether the broker knows of a leader for every partition: the controller is ahead of it."""
    wanted = [MetadataRequest.MetadataRequestTopic(name=topic)]
    answer = wire.ask(MetadataRequest(topics=wanted, allow_auto_topic_creation=False), 8)
    led = [p for p in answer.topics[0].partitions if p.error_code == 0 and p.leader_id >= 0]
    return len(led) == partitions


def _serves(port: int) -> bool:
    """Whether a node answers there and knows itself to be part of the cluster."""
    try:
        wire = Wire(f"127.0.0.1:{port}", timeout_s=2.0)
    except OSError:
        return False
    try:
        answer = wire.ask(MetadataRequest(topics=[]), 8)
        return isinstance(answer, MetadataResponse) and bool(answer.brokers)
    except (OSError, ValueError, IndexError):
        return False
    finally:
        wire.close()


def _signal_session(process: "subprocess.Popen[bytes]", how: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, how)
