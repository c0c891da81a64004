import time

import pytest
from brokers import Served, free_port
from clients import Clients
from kafka import OffsetAndMetadata, TopicPartition
from pipelines import pipeline, settings_on

from stream_forecaster.edge.lag import Lag, lag
from stream_forecaster.edge.topics import EventWriter
from stream_forecaster.errors import TransportError, Unavailable

NOON_MS = time.time_ns() // 1_000_000 - 3_600_000
"""Some moment that retention does not reach."""


def test_each_partition_has_its_own(clients: Clients) -> None:
    """Read, half read, never read, and with a record that has no time."""
    settings = pipeline(clients.served, partitions=4)
    topic = settings.input.topic
    producer = clients.producer()
    for partition in (0, 1, 2):
        for i in range(4):
            time_ms = NOON_MS + 1_000 * (10 * partition + i)
            producer.send(topic, b"{}", partition=partition, timestamp_ms=time_ms)
    producer.flush()
    with EventWriter(settings) as writer:
        writer.forget(b"ann")  # one without a time behind each
    consumer = clients.consumer(group_id=settings.kafka.group_id)
    read = {TopicPartition(topic, p): OffsetAndMetadata(n, "", -1) for p, n in ((0, 5), (1, 2))}
    consumer.assign(list(read))
    consumer.commit(read)

    assert lag(settings) == (
        Lag(0, 5, 5, 0, None),
        Lag(1, 2, 5, 3, NOON_MS + 12_000),
        Lag(2, None, 5, 5, NOON_MS + 20_000),
        Lag(3, None, 1, 1, None),
    )


@pytest.mark.parametrize(
    ("records", "oldest_ms", "waiting_s"),
    [(0, None, 0.0), (3, 5_000, 5.0), (3, 10_009, 0.0), (3, None, None)],
)
def test_how_long_the_oldest_has_waited(
    records: int, oldest_ms: int | None, waiting_s: float | None
) -> None:
    """Nothing waits where nothing is, nobody knows without a time, and no clock runs backwards."""
    assert Lag(0, 7, 10, records, oldest_ms).waiting_s(10_000) == waiting_s


def test_no_topic_and_no_broker(broker: Served) -> None:
    """Each by its name."""
    settings = settings_on(broker.bootstrap)

    with pytest.raises(TransportError, match=f"no topic '{settings.input.topic}'"):
        lag(settings)
    with pytest.raises(Unavailable, match="is a broker running there"):
        lag(settings_on(f"127.0.0.1:{free_port()}"))
