"""Health, metrics and the page, on one port.

The service's loop owns `HttpServer.health` and replaces it by plain assignment; handlers, each in a
thread of its own, read it once per request. Nothing a client does can reach the loop.

`/livez` asks one question: does the loop still turn? Never lag, never the broker: restarting a
process heals neither. `/readyz` asks whether its partitions are assigned and restored.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from stream_forecaster.config import Http, Kafka
from stream_forecaster.edge.listener import Listener, Reply, Request, Stream, as_json, problem
from stream_forecaster.edge.live import Live
from stream_forecaster.edge.viewers import Viewers

STALLED_AFTER_S = 60.0
"""A loop that has not turned for so long is dead: longer than any call it makes may take. A turn of
the service may take longer, as long as the group allows."""

_JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Health:
    """What the loop last said about itself.

    Attributes:
        heartbeat_s: when, by the monotonic clock.
        assigned: the partitions held; None until the group has answered.
        restoring: those of them whose shard is not recovered yet.
        not_ready: any other reason to take no part, for a person; empty if there is none.
    """

    heartbeat_s: float
    assigned: tuple[int, ...] | None = None
    restoring: tuple[int, ...] = ()
    not_ready: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One named condition and, for a person, what it found."""

    name: str
    ok: bool
    detail: str


def stalled_after_s(kafka: Kafka) -> float:
    """How long a turn of the service may take: as long as the group lets its member be silent.

    One turn recovers all partitions that were given, or makes up for a long silence. To be killed
    in it would be for nothing: the next process has the same turn before it.
    """
    return max(STALLED_AFTER_S, kafka.max_poll_interval_ms / 1_000)


def liveness(health: Health, now_s: float, stalled_after_s: float) -> list[Check]:
    """Whether the loop turns."""
    age_s = max(0.0, now_s - health.heartbeat_s)
    return [Check("loop", age_s < stalled_after_s, f"last turn {age_s:.1f} s ago")]


def readiness(health: Health) -> list[Check]:
    """Whether the partitions are assigned and restored, and nothing else is in the way."""
    assigned = "waiting for the group" if health.assigned is None else _listed(health.assigned)
    restored = f"restoring {_listed(health.restoring)}" if health.restoring else "all restored"
    return [
        Check("assigned", health.assigned is not None, assigned),
        Check("restored", not health.restoring, restored),
        Check("service", not health.not_ready, health.not_ready or "running"),
    ]


class HttpServer:
    """Serves from daemon threads until closed.

    Args:
        http: host and port; port 0 takes any free one, see `port`.
        metrics: called with an Accept header; returns content type and body.
        viewers: the box that the page's questions go into.
        stalled_after_s: the age of a heartbeat from which on `/livez` says no.
        now_s: the monotonic clock of `Health.heartbeat_s`.

    Raises:
        ConfigError: the address cannot be listened on.
    """

    def __init__(
        self,
        http: Http,
        metrics: Callable[[str], tuple[str, bytes]],
        viewers: Viewers | None = None,
        *,
        stalled_after_s: float = STALLED_AFTER_S,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.health = Health(heartbeat_s=now_s())
        self._metrics = metrics
        self._stalled_after_s = stalled_after_s
        self._now_s = now_s
        self._live = Live(viewers or Viewers(), self._said) if http.page else None
        self._listener = Listener(http, self._answer)

    @property
    def port(self) -> int:
        """The port listened on."""
        return self._listener.port

    def close(self) -> None:
        """Stop listening. Requests under way end by themselves; safe to call twice."""
        self._listener.close()

    def _answer(self, request: Request) -> Reply | Stream:
        match request.path:
            case "/livez":
                return _verdict(self._liveness())
            case "/readyz":
                return _verdict(self._readiness())
            case "/metrics":
                return HTTPStatus.OK, *self._metrics(request.accept)
            case _:
                found = self._live.answer(request) if self._live else None
                return found or problem(HTTPStatus.NOT_FOUND, "try /, /livez, /readyz or /metrics")

    def _liveness(self) -> list[Check]:
        return liveness(self.health, self._now_s(), self._stalled_after_s)

    def _readiness(self) -> list[Check]:
        return [*self._liveness(), *readiness(self.health)]

    def _said(self) -> dict[str, Any]:
        return _spelled(self._readiness())


def _verdict(checks: list[Check]) -> Reply:
    spelled = _spelled(checks)
    status = HTTPStatus.OK if spelled["ok"] else HTTPStatus.SERVICE_UNAVAILABLE
    return status, _JSON, as_json(spelled)


def _spelled(checks: list[Check]) -> dict[str, Any]:
    named = {check.name: {"ok": check.ok, "detail": check.detail} for check in checks}
    return {"ok": all(check.ok for check in checks), "checks": named}


def _listed(partitions: tuple[int, ...]) -> str:
    return f"partitions {', '.join(map(str, partitions))}" if partitions else "no partitions"
