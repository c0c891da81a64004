"""The verdict: what the group has published, against what an undisturbed shard makes of its input.

Read by another client, after everything. Every forecast depends on its key's whole history, so an
event lost or counted twice shows in everything after it.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from confluent_kafka import Consumer, KafkaError, TopicPartition

from stream_forecaster.calendar import Calendar
from stream_forecaster.config import Settings
from stream_forecaster.forecasts import Encoder
from stream_forecaster.records import BytesColumn, Records
from stream_forecaster.shard import Shard


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came out.

    Attributes:
        events: records in the input topic.
        expected: messages of an undisturbed run.
        duplicate, missing, unexpected, wrong: against them, by id; wrong has other bytes. Dead
            letters are counted among the first three.
        dead_letters: rejected records.
        aborted: output records that read_committed readers never saw.
        training_steps: that the network took in an undisturbed run.
    """

    events: int
    expected: int
    duplicate: int
    missing: int
    unexpected: int
    wrong: int
    dead_letters: int
    aborted: int
    training_steps: int

    @property
    def flawless(self) -> bool:
        """Nothing lost, nothing doubled, nothing different."""
        flaws = (self.duplicate, self.missing, self.unexpected, self.wrong)
        return self.expected > 0 and not any(flaws)


def judge(bootstrap: str, settings: Settings, partitions: int) -> Verdict:
    """Read input and output, and compare."""
    topics = Topics(bootstrap, partitions)
    expected, rejected, events, training_steps = _undisturbed(topics, settings)
    told = [name for name in (settings.output.topic, settings.output.scores_topic) if name]
    found, duplicate = _by_id(chain.from_iterable(map(topics.read, told)))
    letters = Counter(
        (headers["__streams.errors.partition"], headers["__streams.errors.offset"])
        for headers in (
            dict(record.headers()) for record in topics.read(settings.output.dead_letter_topic)
        )
    )
    written = sum(1 for name in told for _ in topics.read(name, "read_uncommitted"))
    return Verdict(
        events=events,
        expected=len(expected),
        duplicate=duplicate + letters.total() - len(letters),
        missing=len(expected.keys() - found.keys()) + len(rejected - letters.keys()),
        unexpected=len(found.keys() - expected.keys()) + len(letters.keys() - rejected),
        wrong=sum(found[i] != expected[i] for i in expected.keys() & found.keys()),
        dead_letters=len(letters),
        aborted=written - len(found) - duplicate,
        training_steps=training_steps,
    )


class Topics:
    """The topics of a campaign, to an independent client."""

    def __init__(self, bootstrap: str, partitions: int) -> None:
        self._bootstrap, self._partitions = bootstrap, partitions

    def read(self, topic: str, isolation: str = "read_committed") -> Iterator[Any]:
        """All records of a topic."""
        consumer = self.consumer("reader", isolation)
        try:
            consumer.assign(self.partitions(topic))
            ended: set[int] = set()
            while len(ended) < self._partitions:
                for record in consumer.consume(10_000, 0.1):
                    error = record.error()
                    if error is None:
                        yield record
                    elif error.code() == KafkaError._PARTITION_EOF:
                        ended.add(record.partition() or 0)
                    else:
                        raise RuntimeError(str(error))
        finally:
            consumer.close()

    def consumer(self, group: str, isolation: str = "read_committed") -> Consumer:
        """Of a group, of which it need not be a member."""
        return Consumer(
            {
                "bootstrap.servers": self._bootstrap,
                "group.id": group,
                "isolation.level": isolation,
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "check.crcs": True,
                "log_level": 0,
            }
        )

    def partitions(self, topic: str) -> list[TopicPartition]:
        """All partitions of a topic, from their beginning."""
        return [TopicPartition(topic, p, 0) for p in range(self._partitions)]


def _by_id(records: Iterator[Any]) -> tuple[dict[str, bytes | None], int]:
    """Values by id, and how many ids came again."""
    found: dict[str, bytes | None] = {}
    duplicate = 0
    for record in records:
        identity = dict(record.headers())["ce_id"].decode()
        duplicate += identity in found
        found[identity] = record.value()
    return found, duplicate


def _undisturbed(
    topics: Topics, settings: Settings
) -> tuple[dict[str, bytes | None], set[tuple[bytes, bytes]], int, int]:
    """What one shard a partition makes of the input log.

    Messages by id, rejects, the log's size, and how many steps trained the networks.
    """
    rows: dict[int, list[Any]] = {}
    for record in topics.read(settings.input.topic):
        rows.setdefault(record.partition(), []).append(record)
    encoder = Encoder(settings)
    expected: dict[str, bytes | None] = {}
    rejected: set[tuple[bytes, bytes]] = set()
    training_steps = 0
    for partition, records in rows.items():
        turn = Shard(settings, Calendar("UTC"), partition, 0).advance(_columns(partition, records))
        training_steps += turn.training_steps
        rejected |= {(b"%d" % partition, b"%d" % reject.offset) for reject in turn.rejects}
        scores = (encoder.scores(scored) for scored in turn.scored)
        for message in chain(encoder.output(turn.output), *scores):
            expected[dict(message.headers)["ce_id"].decode()] = message.value
    return expected, rejected, sum(map(len, rows.values())), training_steps


def _columns(partition: int, rows: list[Any]) -> Records:
    return Records(
        partition,
        np.array([row.offset() for row in rows], np.int64),
        np.array([row.timestamp()[1] for row in rows], np.int64),
        BytesColumn.of(row.key() for row in rows),
        BytesColumn.of(row.value() for row in rows),
        len(rows),
    )
