"""A broker that goes away and comes back: what it acknowledged is there, at the same address."""

from contextlib import ExitStack

import pytest
from brokers import ApacheKafka
from clients import Clients


@pytest.mark.kafka
@pytest.mark.chaos
def test_a_killed_node_comes_back_with_its_records(apache_kafka: ApacheKafka) -> None:
    """Apache Kafka after kill -9, on its own storage."""
    address = apache_kafka.bootstrap
    with ExitStack() as stack:
        clients = Clients(apache_kafka, stack)
        topic = clients.topic()
        clients.send(topic, [b"before"])
    try:
        apache_kafka.kill()
    finally:
        apache_kafka.restart()
    with ExitStack() as stack:
        clients = Clients(apache_kafka, stack)
        clients.send(topic, [b"after"])

        assert [r.value for r in clients.read(topic)] == [b"before", b"after"]
    assert apache_kafka.bootstrap == address
