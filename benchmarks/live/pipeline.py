"""One topic, and a worker over it as a process: what benchmarks of a whole service start with."""

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from brokers import Served, create_topic
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from stream_forecaster.config import from_assignments, parse
from stream_forecaster.edge.topics import create_topics

START_MS = 1_767_571_200_000
"""2026-01-05, a Monday."""
_PATIENCE_S = 600.0


class Pipeline:
    """A topic of events, the events of it, and one worker at a time.

    Args:
        served: the broker.
        directory: for checkpoints and the worker's log.
        partitions: of the topic.
        settings: `section.key` -> value, beside those that name topics and places.
        topic_settings: of the topic of events and the topic of forecasts.
    """

    def __init__(
        self,
        served: Served,
        directory: Path,
        partitions: int,
        settings: Mapping[str, str],
        topic_settings: Mapping[str, str] | None = None,
    ) -> None:
        self._topic, self._partitions = create_topic(served, partitions, topic_settings), partitions
        self._log = directory / "worker.log"
        said = {
            "kafka.bootstrap_servers": served.bootstrap,
            "kafka.group_id": self._topic,
            "input.topic": self._topic,
            "output.topic": create_topic(served, partitions, topic_settings),
            "output.dead_letter_topic": f"{self._topic}.dead",
            "state.checkpoint_url": f"file://{directory}/checkpoints",
            "http.port": "0",
            **settings,
        }
        assignments = [f"{name}={value}" for name, value in said.items()]
        create_topics(parse(from_assignments(assignments)), partitions)
        self._command = [sys.executable, "-m", "stream_forecaster", "run"]
        self._command += [word for assignment in assignments for word in ("--set", assignment)]
        client = {"bootstrap.servers": served.bootstrap, "log_level": 0}
        self._producer = Producer({**client, "linger.ms": 20})
        self._watcher = Consumer({**client, "group.id": self._topic, "enable.auto.commit": False})
        self.sent = [0] * partitions

    def send(self, key: int, at_ms: int) -> None:
        """One event."""
        partition = key % self._partitions
        value = b'{"user_id":"u%06d","ts":%d}' % (key, at_ms)
        while True:
            try:
                self._producer.produce(self._topic, value, partition=partition)
                break
            except BufferError:
                self._producer.poll(0.1)
        self.sent[partition] += 1

    def flush(self) -> None:
        """Wait until the broker has all that was sent."""
        self._producer.flush()

    @contextmanager
    def worker(self) -> Iterator["subprocess.Popen[bytes]"]:
        """A worker; killed in the end, if it still lives."""
        with self._log.open("wb") as log:
            process = subprocess.Popen(self._command, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def committed(self) -> list[int]:
        """The group's offsets, 0 where there is none yet."""
        asked = [TopicPartition(self._topic, p) for p in range(self._partitions)]
        with suppress(KafkaException):  # before the group has a coordinator
            return [max(0, p.offset) for p in self._watcher.committed(asked, timeout=10)]
        return [0] * self._partitions

    def wait(self, process: "subprocess.Popen[bytes]") -> None:
        """Until the group's offsets cover all that was sent."""
        deadline_s = time.monotonic() + _PATIENCE_S
        while self.committed() != self.sent:
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise SystemExit(f"the worker did not get there:\n{self.log()[-3000:]}")
            time.sleep(0.01)

    def log(self) -> str:
        """What the last worker has logged."""
        return self._log.read_text()
