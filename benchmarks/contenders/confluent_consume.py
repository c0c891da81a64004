"""confluent-kafka's bare consume loop: librdkafka's consumer, an object per record, nothing parsed.

    confluent_consume.py BOOTSTRAP TOPIC EVENTS

Every record's value is fetched and its length added up. Prints one JSON line when EVENTS events
have been read; it times the second half of them.
"""

import json
import sys
import time

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from benchmarks.measure.clock import HalfTime

_AT_ONCE = 5_000


def main() -> None:
    """Measure once."""
    bootstrap, topic, events = sys.argv[1], sys.argv[2], int(sys.argv[3])
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"confluent-{time.time_ns()}",
            "enable.auto.commit": False,
            "max.partition.fetch.bytes": 4 << 20,
        }
    )
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in partitions])
    clock, size = HalfTime(events), 0
    while clock.read < events:
        records = consumer.consume(_AT_ONCE, timeout=0.2)
        size += sum(len(record.value() or b"") for record in records)
        clock.count(len(records))
    result = clock.result()
    consumer.close()
    print(json.dumps(result), flush=True)
    assert size


main()
