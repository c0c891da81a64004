"""Transactions of records whose bytes are ready, by one of three producers.

    publishing.py BOOTSTRAP TOPIC ours|kafka-python|confluent CODEC SHAPE SECONDS

ours:          the client's producer, sent to in bulk, as `edge.publisher` does.
kafka-python:  the same producer, record by record.
confluent:     confluent-kafka's.

Each commits transactions of 10,000 small records or 2,000 forecasts until so many CPU seconds are
spent, every record's acknowledgement checked; the first transaction is not counted. SHAPE is
`small`, 130 bytes without headers, or `forecast`, default messages of 4.8 KB with seven headers.
CPU is user and system time of all threads of the process. Prints one JSON line.
"""

import json
import sys
import time
import uuid
from collections.abc import Callable
from itertools import chain
from typing import Any

from confluent_kafka import Producer
from drawn import forecast_messages
from kafka import KafkaProducer

from benchmarks.measure.clock import cpu_s
from stream_forecaster.edge import bulk
from stream_forecaster.records import Message

_RECORDS = {"small": 10_000, "forecast": 2_000}
Transaction = Callable[[], None]


def messages(shape: str, topic: str) -> list[Message]:
    """The records of one transaction."""
    n = _RECORDS[shape]
    if shape == "forecast":
        return forecast_messages(topic, n)
    value = b'{"user_id":"u%06d","h":[1.0,2.5,3.25,4.0],"pad":"' + b"x" * 74 + b'"}'
    return [Message(topic, b"u%06d" % i, value % i) for i in range(n)]


def _kafka_python(bootstrap: str, codec: str | None) -> KafkaProducer:
    producer = KafkaProducer(
        bootstrap_servers=bootstrap,
        transactional_id=str(uuid.uuid4()),
        compression_type=codec,
        linger_ms=50,
        batch_size=512 << 10,
        max_request_size=16 << 20,
        retry_backoff_ms=5,
        metrics_enabled=False,
    )
    producer.init_transactions()
    return producer


def ours(bootstrap: str, codec: str | None, batch: list[Message]) -> Transaction:
    """Records in bulk, one future a batch."""
    producer = _kafka_python(bootstrap, codec)
    bulk.check(producer)

    def transaction() -> None:
        producer.begin_transaction()
        futures = chain.from_iterable(bulk.send(producer, batch))
        producer.flush()
        assert all(future.succeeded() for future in futures)
        producer.commit_transaction()

    return transaction


def kafka_python(bootstrap: str, codec: str | None, batch: list[Message]) -> Transaction:
    """A record and a future at a time."""
    producer = _kafka_python(bootstrap, codec)
    records = [(m.topic, m.value, m.key, list(m.headers)) for m in batch]

    def transaction() -> None:
        producer.begin_transaction()
        futures = [producer.send(*record) for record in records]
        producer.flush()
        assert all(future.succeeded() for future in futures)
        producer.commit_transaction()

    return transaction


def confluent(bootstrap: str, codec: str | None, batch: list[Message]) -> Transaction:
    """librdkafka; a transaction does not commit unless all of it was acknowledged."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "transactional.id": str(uuid.uuid4()),
            "compression.type": codec or "none",
            "linger.ms": 50,
            "batch.size": 512 << 10,
            "queue.buffering.max.messages": 100_000,
        }
    )
    producer.init_transactions()
    records = [(m.topic, m.value, m.key, list[tuple[str, Any]](m.headers)) for m in batch]

    def transaction() -> None:
        producer.begin_transaction()
        for topic, value, key, headers in records:
            producer.produce(topic, value, key, headers=headers)
        producer.commit_transaction()

    return transaction


def main() -> None:
    """Measure once."""
    bootstrap, topic, who, codec, shape, seconds = sys.argv[1:]
    batch = messages(shape, topic)
    contenders = {"ours": ours, "kafka-python": kafka_python, "confluent": confluent}
    transaction = contenders[who](bootstrap, None if codec == "none" else codec, batch)
    transaction()
    begin_s, begin_cpu_s, records = time.perf_counter(), cpu_s(), 0
    while cpu_s() - begin_cpu_s < float(seconds):
        transaction()
        records += len(batch)
    result = {"wall_s": time.perf_counter() - begin_s, "cpu_s": cpu_s() - begin_cpu_s}
    print(json.dumps(result | {"records": records}), flush=True)


main()
