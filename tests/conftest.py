"""Fixtures for every test: brokers, and clients that are closed in the end."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from brokers import ApacheKafka, Served, external, kafka_home, most_real
from clients import Clients
from hypothesis import HealthCheck, settings
from kafka.net.inet import KafkaNetSocket

from stream_forecaster.edge.broker import Broker

# How long an example takes is the benchmarks' business, not a law's.
settings.register_profile(
    "laws", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("laws")

_HAS_APACHE = external() is not None or kafka_home() is not None


def pytest_report_header() -> str:
    """Say which broker stands for Kafka in this run."""
    return f"kafka: {most_real()}"


class _ClosedWhenDropped(socket.socket):
    """A socket that nobody has to close."""

    def __del__(self) -> None:
        self.close()


@pytest.fixture(scope="session", autouse=True)
def kafka_python_may_drop_its_sockets() -> Iterator[None]:
    """Mend kafka-python 3.0.12, which leaves sockets to the garbage collector.

    It does so when a connect fails, and when a client is closed while it still writes. That is
    harmless, but warns, and warnings are errors here: in whichever test comes next.
    """

    def make(_: KafkaNetSocket, family: int, kind: int, proto: int) -> socket.socket:
        return _ClosedWhenDropped(family, kind, proto)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KafkaNetSocket, "socket", make)
        yield


@pytest.fixture(scope="session")
def apache_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    """Apache Kafka started from KAFKA_HOME, once; a test that kills it must restart it."""
    home = kafka_home()
    if home is None:
        pytest.skip("needs KAFKA_HOME")
    kafka = ApacheKafka(home, tmp_path_factory.mktemp("kafka"))
    try:
        yield kafka.start()
    finally:
        kafka.stop()


@pytest.fixture(scope="session")
def shared_embedded_broker() -> Iterator[Broker]:
    """One embedded broker for all tests that leave it as it is; use `embedded_broker` for hooks."""
    with Broker(clean_interval_s=0.2) as broker:
        yield broker


@pytest.fixture
def embedded_broker() -> Iterator[Broker]:
    """An embedded broker of the test's own."""
    with Broker() as broker:
        yield broker


@pytest.fixture(scope="session")
def real_broker(request: pytest.FixtureRequest) -> Served:
    """The most real broker at hand; the report header says which."""
    cluster = external()
    if cluster is not None:
        return cluster
    name = "apache_kafka" if kafka_home() is not None else "shared_embedded_broker"
    found: Served = request.getfixturevalue(name)
    return found


@pytest.fixture(
    scope="session",
    params=["embedded", *(["apache"] if _HAS_APACHE else [])],
)
def broker(request: pytest.FixtureRequest) -> Served:
    """Each broker in turn that the contract holds for."""
    name = "real_broker" if request.param == "apache" else "shared_embedded_broker"
    served: Served = request.getfixturevalue(name)
    return served


@pytest.fixture
def clients(broker: Served) -> Iterator[Clients]:
    """Clients of each broker of the contract in turn, closed after the test, last one first."""
    with ExitStack() as stack:
        yield Clients(broker, stack)
