"""A pipeline of a test's own on any broker, and the smallest service that uses a transport."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import structlog
from brokers import Served, unique

from stream_forecaster import config
from stream_forecaster.config import Settings
from stream_forecaster.edge.kafka import KafkaTransport
from stream_forecaster.edge.topics import EventWriter, create_topics, describe_topics, read_topic
from stream_forecaster.errors import CommitFailed
from stream_forecaster.records import Message, Poll, Records


def settings_on(bootstrap: str, **kafka: Any) -> Settings:
    """Settings with names of their own; `kafka` as the settings file spells it."""
    name = unique("pipeline")
    return config.parse(
        {
            "kafka": {
                "bootstrap_servers": bootstrap,
                "group_id": name,
                "instance_id": "test",
                "session_timeout": "6s",
                **kafka,
            },
            "input": {"topic": f"{name}.events"},
            "output": {"topic": f"{name}.out", "dead_letter_topic": f"{name}.dead"},
        }
    )


def with_kafka(settings: Settings, **kafka: Any) -> Settings:
    """The same pipeline with other Kafka settings, by attribute name."""
    return settings.model_copy(update={"kafka": settings.kafka.model_copy(update=kafka)})


def pipeline(broker: Served, partitions: int = 2, events: int = 0, **kafka: Any) -> Settings:
    """Make a pipeline's topics and put `events` events in: key k0..k6, value the running number."""
    settings = settings_on(broker.bootstrap, **kafka)
    create_topics(settings, partitions)
    write_events(settings, range(events))
    return settings


def write_events(settings: Settings, numbers: Iterable[int]) -> None:
    """Append events to the input topic."""
    with EventWriter(settings) as writer:
        writer.write((b"k%d" % (i % 7), b"%d" % i, None) for i in numbers)


def connect(settings: Settings) -> KafkaTransport:
    """A transport that logs to nobody in particular."""
    return KafkaTransport(settings, structlog.get_logger())


def poll_until(transport: KafkaTransport, *, assigned: int, polls: int = 150) -> list[Poll]:
    """Poll until so many partitions were assigned; the polls that it took."""
    seen: list[Poll] = []
    while sum(len(p.assigned) for p in seen) < assigned:
        assert len(seen) < polls, f"not assigned: {seen}"
        seen.append(transport.poll(0.2))
    return seen


def read_all(transport: KafkaTransport, until: dict[int, int], polls: int = 150) -> list[Records]:
    """Poll until each partition's position is at `until`; the blocks that brought it there."""
    blocks: list[Records] = []
    reached: dict[int, int] = {}
    while any(reached.get(p, 0) < end for p, end in until.items()):
        polls -= 1
        assert polls, f"stuck at {reached}"
        for block in transport.poll(0.2).records:
            blocks.append(block)
            reached[block.partition] = block.next_offset
    return blocks


class CountingService:
    """Publishes, for every record, how often its key came before: history decides every output.

    State is lost with a partition and made again by a muted replay from the beginning.
    """

    def __init__(self, transport: KafkaTransport, settings: Settings) -> None:
        self.transport = transport
        self.failures = 0
        self.reached: dict[int, int] = {}
        """Partition -> the group's offset, as far as this member knows."""
        self._topic = settings.output.topic
        self._counts: dict[int, Counter[bytes | None]] = {}
        self._speak_from: dict[int, int] = {}

    def turn(self, timeout_s: float = 0.1) -> None:
        """One turn of the loop: poll, recover, count, commit."""
        poll = self.transport.poll(timeout_s)
        for partition in poll.revoked:
            del self._counts[partition]
        for partition in poll.assigned:
            committed = self.transport.committed(partition) or 0
            self.reached[partition] = self._speak_from[partition] = committed
            self._counts[partition] = Counter()
            self.transport.seek(partition, 0)
        messages = [m for block in poll.records for m in self._count(block)]
        offsets = {
            block.partition: block.next_offset
            for block in poll.records
            if block.next_offset > self._speak_from[block.partition]
        }
        try:
            self.transport.commit(messages, offsets)
        except CommitFailed:
            self.failures += 1
        else:
            self.reached |= offsets

    def _count(self, block: Records) -> list[Message]:
        counts = self._counts[block.partition]
        messages = []
        for offset, key in zip(block.offset.tolist(), block.key, strict=True):
            counts[key] += 1
            if offset >= self._speak_from[block.partition]:
                place = b"%d/%d" % (block.partition, offset)  # unique, as the output is compacted
                messages.append(Message(self._topic, place, place + b"=%d" % counts[key]))
        return messages


def expected_counts(settings: Settings) -> list[bytes]:
    """What one uninterrupted `CountingService` would have published, sorted."""
    counts: dict[int, Counter[bytes | None]] = {}
    values = []
    for record in read_topic(settings, settings.input.topic):
        seen = counts.setdefault(record.partition, Counter())
        seen[record.key] += 1
        values.append(b"%d/%d=%d" % (record.partition, record.offset, seen[record.key]))
    return sorted(values)


def published(settings: Settings) -> list[bytes]:
    """The values that a read_committed reader finds in the output topic, sorted."""
    return sorted(r.value or b"" for r in read_topic(settings, settings.output.topic))


def run_to_end(services: Sequence[CountingService], settings: Settings, turns: int = 500) -> None:
    """Turn until the group has committed the input topic to its end."""
    (state, *_) = describe_topics(settings)
    ends = {partition: end for partition, (_, end) in state.bounds.items()}
    while any(max(s.reached.get(p, 0) for s in services) < end for p, end in ends.items()):
        turns -= 1
        assert turns, f"stuck at {[service.reached for service in services]} of {ends}"
        for service in services:
            service.turn(0.1 / len(services))
