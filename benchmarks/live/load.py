"""Events by the million: 100 bytes of JSON each, as fast as they can be sent."""

import random
import string
from dataclasses import dataclass

from confluent_kafka import Producer

_START_MS = 1_767_312_000_000
_FILLER = "".join(random.Random(0).choices(string.ascii_letters + string.digits, k=1 << 20))
"""What makes an event 100 bytes long; a codec finds as little in it as in text of people's."""
_STRIDE = 7_919
"""Neighbours have different keys; prime, so that every key gets its turn."""


@dataclass(frozen=True, slots=True)
class Load:
    """What to put into a topic.

    Attributes:
        events: how many.
        keys: of how many keys, in turn.
        codec: of the batches.
        per_minute: how many in a minute of event time.
    """

    events: int
    keys: int
    codec: str = "none"
    per_minute: int = 60_000


def load(bootstrap: str, topic: str, partitions: int, wanted: Load) -> list[int]:
    """Put it there, those of one key into one partition; how many went into each."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "linger.ms": 50,
            "batch.num.messages": 10_000,
            "compression.type": wanted.codec,
        }
    )
    sent = [0] * partitions
    for i in range(wanted.events):
        key = i * _STRIDE % wanted.keys
        time_ms, partition = _START_MS + i * 60_000 // wanted.per_minute, key % partitions
        value = f'{{"user_id":"u{key:06d}","ts":{time_ms},"type":"click","page":"/p/{i % 997}"'
        begin, size = 37 * i % (1 << 19), 92 - len(value)
        value += f',"x":"{_FILLER[begin : begin + size]}"}}'
        while True:
            try:
                producer.produce(topic, value, f"u{key:06d}", partition=partition)
                break
            except BufferError:
                producer.poll(0.1)
        sent[partition] += 1
        if i % 1000 == 0:
            producer.poll(0)
    producer.flush()
    return sent
