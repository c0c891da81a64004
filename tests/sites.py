"""The page as people see it: the real service in a thread, on a log in memory, and its server."""

import time
from collections.abc import Iterable
from threading import Event, Thread
from typing import Self

import structlog
from prometheus_client import CollectorRegistry
from structlog.testing import LogCapture

from stream_forecaster.config import Http, Settings, parse
from stream_forecaster.edge.http import Health, HttpServer
from stream_forecaster.edge.memory import MemoryLog, MemoryRecord, MemoryStore, MemoryTransport
from stream_forecaster.edge.saver import at_once
from stream_forecaster.edge.telemetry import Telemetry
from stream_forecaster.edge.viewers import Viewers
from stream_forecaster.edge.world import World
from stream_forecaster.service import Service
from stream_forecaster.synth import Population, SyntheticEvent

START_MS = 1_767_571_200_000  # Monday 2026-01-05, 00:00 UTC
HOUR_MS = 3_600_000
WAITS_S = 30.0
_TURN_S = 0.02


def settings(**output: object) -> Settings:
    """As they come but for `output`, and for the network, which takes a second to load."""
    return parse({"kafka": {"group_id": "shop"}, "output": output, "model": {"network": False}})


def population(users: int = 30) -> Population:
    """Some users."""
    return Population(seed=0, users=users, start_ms=START_MS, events_per_s=0.5)


class Site:
    """The service and its page.

    Attributes:
        log: what the service reads and writes.
        said: what it has logged.
    """

    def __init__(self, settings: Settings, events: Iterable[SyntheticEvent] = ()) -> None:
        self.settings = settings
        self.log = MemoryLog({0: []})
        self.said = LogCapture()
        self.write(events)
        self._port = self._starts = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where the page is; the same after a restart."""
        return f"http://127.0.0.1:{self._port}/"

    @property
    def end_ms(self) -> int:
        """The time of the newest record."""
        return self.log.partitions[0][-1].time_ms

    def write(self, events: Iterable[SyntheticEvent]) -> None:
        """Append to the log."""
        self.log.partitions[0] += [MemoryRecord(e.key, e.value, e.arrival_ms) for e in events]

    def start(self) -> None:
        """Begin where the log says the last process was."""
        self._telemetry, self._viewers = Telemetry(CollectorRegistry()), Viewers()
        http = Http(host="127.0.0.1", port=self._port)
        self._server = HttpServer(http, self._telemetry.exposition, self._viewers)
        self._port = self._server.port
        self._starts += 1
        self._stopping = Event()
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End without a word to anybody, as a process that is killed does."""
        self._stopping.set()
        self._thread.join()
        self._server.close()

    def wait_until_read(self) -> None:
        """Wait until all records are committed."""
        give_up_s = time.monotonic() + WAITS_S
        while not self.log.drained:
            assert time.monotonic() < give_up_s, self.said.entries[-3:]
            time.sleep(_TURN_S)

    def _wall_ms(self) -> int:
        """Five seconds after the newest record; a process that starts later does so later."""
        newest_ms = self.end_ms if self.log.partitions[0] else START_MS
        return newest_ms + 5_000 + self._starts

    def _run(self) -> None:
        log = structlog.wrap_logger(
            structlog.ReturnLogger(),
            processors=[self.said],
            wrapper_class=structlog.make_filtering_bound_logger(0),
        )
        world = World(
            MemoryTransport(self.log),
            MemoryStore(self.log),
            self._telemetry,
            log,
            wall_ms=self._wall_ms,
            background=at_once,
            viewers=self._viewers,
        )
        service = Service(self.settings, world)
        while not self._stopping.wait(_TURN_S):
            service.step()
            self._server.health = service.health
        self._server.health = Health(0.0)
