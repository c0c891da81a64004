"""The real service on a broker, one turn at a time, with a store that fails when told."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any, Self

import structlog
from brokers import Served, unique
from prometheus_client import CollectorRegistry
from structlog.testing import LogCapture
from verdict import judge

from stream_forecaster import config
from stream_forecaster.config import Settings
from stream_forecaster.edge.kafka import KafkaTransport
from stream_forecaster.edge.store import CheckpointStore
from stream_forecaster.edge.telemetry import Telemetry
from stream_forecaster.edge.topics import EventWriter, create_topics, describe_topics
from stream_forecaster.edge.world import World
from stream_forecaster.service import Service

WAITS_S = 30.0
_EVERY_MS = 5_000
_AGO_MS = 6 * 3_600_000
"""Events begin so long ago: recent enough for every topic's retention."""


class FaultyStore(CheckpointStore):
    """The real store, on a disk that can be told what to answer.

    Attributes:
        writing: the error number that every write meets; None: it succeeds.
        listing: likewise for every look into a folder.
        flowing: a write waits until it is set.
        begun: writes that were begun.
    """

    def __init__(self, url: str, pipeline: str) -> None:
        super().__init__(url, pipeline)
        self.writing: int | None = None
        self.listing: int | None = None
        self.flowing = Event()
        self.flowing.set()
        self.begun = 0

    def _write(self, path: str, data: bytes | bytearray) -> None:
        self.begun += 1
        _raise(self.writing)
        assert self.flowing.wait(WAITS_S)
        super()._write(path, data)

    def _names(self, folder: str) -> list[str]:
        _raise(self.listing)
        return super()._names(folder)


def _raise(number: int | None) -> None:
    if number is not None:
        raise OSError(number, os.strerror(number))


class Pipeline:
    """Topics and a store of the test's own, and events whose time runs on."""

    def __init__(self, broker: Served, folder: Path) -> None:
        self._broker, self.name = broker, unique("served")
        self.folder = folder / self.name / "00000"
        self.mapping: dict[str, Any] = {
            "kafka": {
                "bootstrap_servers": broker.bootstrap,
                "group_id": self.name,
                "instance_id": "test",
                "session_timeout": "3s",
                "commit_interval": "50ms",
            },
            "input": {"topic": f"{self.name}.in", "allowed_lateness": "30s"},
            "output": {
                "topic": f"{self.name}.out",
                "dead_letter_topic": f"{self.name}.dead",
                "scores_topic": f"{self.name}.scores",
                "quantiles": [0.1, 0.5, 0.9],
                "publish": "every_hop",
            },
            "model": {"network": False},
            "resolutions": [
                {"step": "1m", "context": 10, "horizon": 4},
                {"step": "10m", "context": 6, "horizon": 2},
            ],
            "state": {"checkpoint_url": folder.as_uri(), "checkpoint_interval": "50ms"},
        }
        self.store = FaultyStore(folder.as_uri(), self.name)
        self._written, self._start_ms = 0, time.time_ns() // 1_000_000 - _AGO_MS
        create_topics(self.settings, 1)

    @property
    def settings(self) -> Settings:
        """As they are now."""
        return config.parse(self.mapping)

    @property
    def end(self) -> int:
        """The end of the input."""
        state, *_ = describe_topics(self.settings)
        return state.bounds[0][1]

    @property
    def committed(self) -> int | None:
        """The group's offset."""
        state, *_ = describe_topics(self.settings)
        return state.committed.get(0)

    def write(self, events: int) -> None:
        """Append events of five users, one every five seconds of event time."""
        numbers = range(self._written, self._written + events)
        self._written += events
        with EventWriter(self.settings) as writer:
            writer.write(
                (b"u%d" % (i % 5), b'{"user_id":"u%d","ts":%d}' % (i % 5, time_ms), time_ms)
                for i, time_ms in ((i, self._start_ms + _EVERY_MS * i) for i in numbers)
            )

    def run(self, *, cold_start: bool = False) -> "Run":
        """A process of the group."""
        return Run(self, cold_start=cold_start)

    def assert_undisturbed(self) -> None:
        """What was published is what an undisturbed shard makes of the input, byte for byte."""
        verdict = judge(self._broker.bootstrap, self.settings, 1)
        assert verdict.flawless, verdict
        assert verdict.events == self._written


class Run:
    """The service in this process. Left without `finish`, it has been killed."""

    def __init__(self, pipeline: Pipeline, *, cold_start: bool) -> None:
        settings, self._pipeline = pipeline.settings, pipeline
        self.registry, self.said = CollectorRegistry(), LogCapture()
        log = structlog.wrap_logger(
            structlog.ReturnLogger(),
            processors=[self.said],
            wrapper_class=structlog.make_filtering_bound_logger(0),
        )
        self._transport = KafkaTransport(settings, log)
        telemetry, self._writes = Telemetry(self.registry), list[Thread]()
        world = World(
            self._transport, pipeline.store, telemetry, log, background=self._in_background
        )
        self.service = Service(settings, world, cold_start=cold_start)
        self.longest_step_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """A write under way comes to its end, unless it hangs: no store changes behind a test."""
        self._transport.close()
        if self._pipeline.store.flowing.is_set():
            for write in self._writes:
                write.join(WAITS_S)

    def _in_background(self, work: Callable[[], None]) -> None:
        self._writes.append(Thread(target=work, name="checkpoint", daemon=True))
        self._writes[-1].start()

    def step(self) -> None:
        """One turn, and how long it took."""
        begin_s = time.monotonic()
        self.service.step()
        self.longest_step_s = max(self.longest_step_s, time.monotonic() - begin_s)

    def until(self, holds: Callable[[], object]) -> None:
        """Turn until something holds."""
        give_up_s = time.monotonic() + WAITS_S
        while not holds():
            assert time.monotonic() < give_up_s, f"it never does: {self.said.entries[-5:]}"
            self.step()

    def read(self, events: int) -> None:
        """Write so many events and turn until all are committed."""
        self._pipeline.write(events)
        end = self._pipeline.end
        self.until(lambda: self.committed == end)

    def checkpoint(self) -> None:
        """Turn until the state is in the store, and the service knows."""
        end = self._pipeline.end
        self.until(lambda: self.service._saving._stored.get(0) == end)
        assert end in self._pipeline.store.offsets(0)

    @property
    def committed(self) -> int | None:
        """The group's offset."""
        held = self.service._held.get(0)
        return held.committed if held else None

    def finish(self) -> None:
        """End as SIGTERM does."""
        self.service.finish()

    def events(self, name: str) -> list[dict[str, Any]]:
        """What the log said under this name."""
        return [dict(entry) for entry in self.said.entries if entry["event"] == name]

    def metric(self, name: str, **labels: str) -> float:
        """A sample's value, by its name behind the prefix."""
        value = self.registry.get_sample_value(f"streamforecaster_{name}", labels)
        assert value is not None, f"no {name}"
        return value


FAULTS = {
    "full": errno.ENOSPC,
    "read_only": errno.EROFS,
    "denied": errno.EACCES,
    "gone": errno.ENOENT,
    "slow": errno.ETIMEDOUT,
    "memory": errno.ENOMEM,
    "other": errno.EIO,
}
"""By what it is called, an error that a write can meet."""
