"""The demo's users: history first, then a minute in each second, and whatever they are told to say.

They run in a thread of their own. What they sent comes out of a queue; what they are to say besides
goes in by another.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from queue import SimpleQueue
from threading import Event, Lock

from stream_forecaster.calendar import DAY_MS, HOUR_MS
from stream_forecaster.config import Settings
from stream_forecaster.edge.topics import EventWriter
from stream_forecaster.synth import Population, SyntheticEvent

Extra = Callable[[int], list[SyntheticEvent]]
"""Events to be sent when the users' time is so many epoch ms."""

_USERS = 100
_SEED = 0
_EVENTS_PER_S = 1.0
"""Of all users together, in their own time."""
_SPEED = 60
_MOST_HISTORY_MS = 2 * DAY_MS
_FAST_MS = DAY_MS
"""How long the users live fast where no end is given."""
_BATCH_EVENTS = 500
_MOST_UNREAD = 10_000
"""How far the users may be ahead of the service."""
_TICK_S = 0.125


def begin_of_history(live_ms: int, history_ms: int) -> int:
    """Where a history of so long, before `live_ms`, begins (epoch ms, UTC).

    A long one is cut so that it begins early in a day, since the days' forecasts take a part of a
    day for a whole one; an hour after midnight, or late events would make a day of the minutes
    before it.
    """
    if history_ms < _MOST_HISTORY_MS:
        return live_ms - history_ms
    return -(-(live_ms - _MOST_HISTORY_MS) // DAY_MS) * DAY_MS + HOUR_MS


class Users:
    """The simulator: history first, then a minute in each second.

    Attributes:
        sent: batches of events that the broker has acknowledged.
        phase: what it is doing, in words.
        seen: how many of its events the service has read; set by the main thread.
        total: how many events the broker has acknowledged.
        stopping: ends it.
    """

    def __init__(self, settings: Settings, seconds: float | None, now_ms: int) -> None:
        self.sent: SimpleQueue[list[SyntheticEvent]] = SimpleQueue()
        self.phase, self.seen, self.stopping = "starting", 0, Event()
        self.total = 0
        self._extra: SimpleQueue[Extra] = SimpleQueue()
        self._speaking = Lock()
        self._settings = settings
        fast_ms = _FAST_MS if seconds is None else round(1_000 * seconds * _SPEED)
        history_ms = _MOST_HISTORY_MS if seconds is None else round(seconds * HOUR_MS)
        self._live_ms = now_ms - fast_ms
        self._begin_ms = begin_of_history(self._live_ms, history_ms)
        self._population = Population(
            seed=_SEED,
            users=_USERS,
            start_ms=self._begin_ms,
            events_per_s=_EVENTS_PER_S,
            allowed_lateness_ms=settings.input.allowed_lateness_ms,
        )

    def say(self, extra: Extra) -> None:
        """Send more: what `extra` makes of the users' present, epoch ms."""
        self._extra.put(extra)

    @contextmanager
    def hushed(self) -> Iterator[None]:
        """Nothing is sent while this is open."""
        with self._speaking:
            yield

    def run(self) -> None:
        """Send until told to stop."""
        with EventWriter(self._settings) as writer:
            self._send_history(writer)
            begin_s, reached_ms = time.monotonic(), self._live_ms
            while not self.stopping.wait(_TICK_S):
                lived_ms = round((time.monotonic() - begin_s) * _SPEED * 1_000)
                now_ms = time.time_ns() // 1_000_000
                until_ms = min(self._live_ms + lived_ms, now_ms)
                self.phase = "live" if until_ms == now_ms else f"live, {_SPEED} times as fast"
                self._send(writer, list(self._population.events(reached_ms, until_ms)), until_ms)
                reached_ms = until_ms

    def _send_history(self, writer: EventWriter) -> None:
        events = self._population.events(self._begin_ms, self._live_ms)
        while not self.stopping.is_set() and (batch := list(islice(events, _BATCH_EVENTS))):
            self._send(writer, batch, batch[-1].arrival_ms)
            share = (batch[-1].arrival_ms - self._begin_ms) / (self._live_ms - self._begin_ms)
            self.phase = f"history, {100 * share:.0f} % sent"
            while self.total - self.seen > _MOST_UNREAD and not self.stopping.wait(_TICK_S / 2):
                pass

    def _send(self, writer: EventWriter, batch: list[SyntheticEvent], now_ms: int) -> None:
        for _ in range(self._extra.qsize()):
            batch += self._extra.get()(now_ms)
        with self._speaking:
            self.total += writer.write((e.key, e.value, e.arrival_ms) for e in batch)
            self.sent.put(batch)
