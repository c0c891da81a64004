"""One topic, and workers over it as processes: what benchmarks of a whole service start with."""

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from brokers import Served, create_topic, unique
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Producer, TopicPartition

from benchmarks.measure.machine import pinned
from stream_forecaster.config import from_assignments, parse
from stream_forecaster.edge.topics import create_topics

START_MS = 1_767_571_200_000
"""2026-01-05, a Monday."""
_PATIENCE_S = 600.0


class Pipeline:
    """A topic of events, the events of it, and the workers of one group at a time.

    Attributes:
        topic: of events.
        output: the topic of forecasts.
        sent: how many events are in each partition.
    """

    def __init__(
        self,
        served: Served,
        directory: Path,
        partitions: int,
        settings: Mapping[str, str],
        topic_settings: Mapping[str, str] | None = None,
    ) -> None:
        """Create the topics.

        Args:
            served: the broker.
            directory: for checkpoints and the workers' logs.
            partitions: of the topics.
            settings: `section.key` -> value, beside those that name topics and places.
            topic_settings: of the topic of events and the topic of forecasts.
        """
        self.topic = create_topic(served, partitions, topic_settings)
        self.output = create_topic(served, partitions, topic_settings)
        self._directory, self._partitions, self._said = directory, partitions, settings
        self._client = {"bootstrap.servers": served.bootstrap, "log_level": 0}
        self._producer = Producer({**self._client, "linger.ms": 5})
        self.sent = [0] * partitions
        self.begin()

    def begin(self) -> None:
        """A new group, that has read nothing and has no checkpoint."""
        group = unique("group")
        said = {
            "kafka.bootstrap_servers": self._client["bootstrap.servers"],
            "kafka.group_id": group,
            "input.topic": self.topic,
            "output.topic": self.output,
            "output.dead_letter_topic": f"{self.topic}.dead",
            "state.checkpoint_url": f"file://{self._directory}/{group}",
            "http.port": "0",
            **self._said,
        }
        assignments = [f"{name}={value}" for name, value in said.items()]
        create_topics(parse(from_assignments(assignments)), self._partitions)
        self._told = [word for assignment in assignments for word in ("--set", assignment)]
        watcher = {**self._client, "group.id": group, "enable.auto.commit": False}
        self._watcher = Consumer(watcher)
        self._log = self._directory / f"{group}.log"

    def send(self, key: int, at_ms: int) -> None:
        """One event."""
        partition = key % self._partitions
        value = b'{"user_id":"u%06d","ts":%d}' % (key, at_ms)
        while True:
            try:
                self._producer.produce(self.topic, value, partition=partition)
                break
            except BufferError:
                self._producer.poll(0.1)
        self.sent[partition] += 1

    def flush(self) -> None:
        """Wait until the broker has all that was sent."""
        self._producer.flush()

    @contextmanager
    def worker(
        self, core: Sequence[int] = (), program: Sequence[str] = ("-m", "stream_forecaster")
    ) -> Iterator["subprocess.Popen[bytes]"]:
        """A worker, pinned to a core if there is one; killed in the end, if it still lives.

        Args:
            core: the cores that it may use.
            program: that Python runs; is given what the command line is.
        """
        self._log = self._directory / f"{unique('worker')}.log"
        with self._log.open("wb") as log, pinned(core):
            command = [sys.executable, *program, "run", *self._told]
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def reader(self) -> Consumer:
        """Reads what has been committed to the topic of forecasts, from its beginning."""
        reader = Consumer(
            {
                **self._client,
                "group.id": unique("reader"),
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 10,
            }
        )
        parts = range(self._partitions)
        reader.assign([TopicPartition(self.output, p, OFFSET_BEGINNING) for p in parts])
        return reader

    def committed(self) -> list[int]:
        """The group's offsets, 0 where there is none yet."""
        asked = [TopicPartition(self.topic, p) for p in range(self._partitions)]
        with suppress(KafkaException):  # before the group has a coordinator
            return [max(0, p.offset) for p in self._watcher.committed(asked, timeout=10)]
        return [0] * self._partitions

    def wait(self, *processes: "subprocess.Popen[bytes]") -> None:
        """Until the group's offsets cover all that was sent."""
        deadline_s = time.monotonic() + _PATIENCE_S
        while self.committed() != self.sent:
            if time.monotonic() > deadline_s:
                raise SystemExit(f"the worker did not get there:\n{self.log()[-3000:]}")
            self.check(*processes)
            time.sleep(0.01)

    def check(self, *processes: "subprocess.Popen[bytes]") -> None:
        """End with what it said if a worker has ended."""
        for process in processes:
            if process.poll() is not None:
                raise SystemExit(f"a worker ended with {process.returncode}:\n{self.log()[-3000:]}")

    def log(self) -> str:
        """What the worker started last has logged."""
        return self._log.read_text()
