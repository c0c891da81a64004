"""The one port: health, metrics, and a page that says where they are.

The service's loop owns `HttpServer.health` and replaces it by plain assignment; handlers, each in a
thread of its own, read it once per request. Nothing a client does can reach the loop.

`/livez` asks one question: does the loop still turn? Never lag, never the broker: restarting a
process heals neither. `/readyz` asks whether its partitions are assigned and restored.
"""

import html
import json
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from threading import Thread

import structlog

from stream_forecaster import __version__
from stream_forecaster.config import Http
from stream_forecaster.errors import ConfigError

STALLED_AFTER_S = 60.0
"""A loop that has not turned for so long is dead: longer than any call it makes may take."""

_CLIENT_TIMEOUT_S = 10.0
_POLL_S = 0.1  # how soon close() is noticed
_JSON = "application/json"

Reply = tuple[HTTPStatus, str, bytes]
"""Status, content type, body."""

log = structlog.get_logger(__name__)


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
        stalled_after_s: the age of a heartbeat from which on `/livez` says no.
        now_s: the monotonic clock of `Health.heartbeat_s`.

    Raises:
        ConfigError: the address cannot be listened on.
    """

    def __init__(
        self,
        http: Http,
        metrics: Callable[[str], tuple[str, bytes]],
        *,
        stalled_after_s: float = STALLED_AFTER_S,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.health = Health(heartbeat_s=now_s())
        self._metrics = metrics
        self._stalled_after_s = stalled_after_s
        self._now_s = now_s
        self._server = _listen(http, self._reply)
        self._thread = Thread(
            target=self._server.serve_forever, args=(_POLL_S,), name="http", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port listened on."""
        port: int = self._server.server_address[1]
        return port

    def close(self) -> None:
        """Stop listening. Requests under way end by themselves; safe to call twice."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _reply(self, path: str, accept: str) -> Reply:
        health = self.health
        match path:
            case "/livez":
                return _verdict(self._liveness(health))
            case "/readyz":
                return _verdict([*self._liveness(health), *readiness(health)])
            case "/metrics":
                return HTTPStatus.OK, *self._metrics(accept)
            case "/":
                return _page([*self._liveness(health), *readiness(health)])
            case _:
                return _problem(HTTPStatus.NOT_FOUND, "try /, /livez, /readyz or /metrics")

    def _liveness(self, health: Health) -> list[Check]:
        return liveness(health, self._now_s(), self._stalled_after_s)


class _Server(ThreadingMixIn, TCPServer):
    # HTTPServer would look up the host's name when it binds, which can take seconds.
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, http: Http, reply: Callable[[str, str], Reply]) -> None:
        found = socket.getaddrinfo(http.host, http.port, type=socket.SOCK_STREAM)
        self.address_family = found[0][0]
        self.reply = reply
        super().__init__((http.host, http.port), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client went away in the middle: no news, and no traceback on stderr."""
        del request
        log.debug("http_client_lost", client=str(client_address), error=repr(sys.exception()))


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "stream_forecaster"
    sys_version = ""
    timeout = _CLIENT_TIMEOUT_S

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        try:
            reply = self.server.reply(path, self.headers.get("Accept", ""))
        except Exception:
            log.exception("http_request_failed", path=path)
            reply = _problem(HTTPStatus.INTERNAL_SERVER_ERROR, "see the log")
        self._send(reply)

    def do_HEAD(self) -> None:
        self.do_GET()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library refuses is refused in JSON too."""
        del explain
        if code == HTTPStatus.NOT_IMPLEMENTED:  # its word for a method without a do_...
            code, message = HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD"
        self._send(_problem(HTTPStatus(code), message or ""))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the library's name)
        """No access log: probes and scrapes come every few seconds."""

    def _send(self, reply: Reply) -> None:
        status, content_type, body = reply
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
        self.send_header("X-Content-Type-Options", "nosniff")
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _listen(http: Http, reply: Callable[[str, str], Reply]) -> _Server:
    try:
        return _Server(http, reply)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {http.host}:{http.port}: {error.strerror or error}. Set http.host "
            "and http.port (STREAM_FORECASTER__HTTP__PORT) to a free address; port 0 takes any"
        ) from error


def _verdict(checks: list[Check]) -> Reply:
    ok = all(check.ok for check in checks)
    status = HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE
    named = {check.name: {"ok": check.ok, "detail": check.detail} for check in checks}
    return status, _JSON, _json({"ok": ok, "checks": named})


def _problem(status: HTTPStatus, detail: str) -> Reply:
    return status, _JSON, _json({"error": status.phrase, "detail": detail})


def _json(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _page(checks: list[Check]) -> Reply:
    rows = "".join(
        f"<tr><td>{html.escape(check.name)}</td><td>{'ok' if check.ok else 'no'}</td>"
        f"<td>{html.escape(check.detail)}</td></tr>"
        for check in checks
    )
    links = "".join(f'<li><a href="{path}">{path}</a></li>' for path in _LINKS)
    body = _PAGE.format(version=html.escape(__version__), rows=rows, links=links)
    return HTTPStatus.OK, "text/html; charset=utf-8", body.encode()


def _listed(partitions: tuple[int, ...]) -> str:
    return f"partitions {', '.join(map(str, partitions))}" if partitions else "no partitions"


_LINKS = ("/livez", "/readyz", "/metrics")
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>stream_forecaster</title>
<style>
  :root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }}
  body {{ max-width: 40rem; margin: 3rem auto; padding: 0 1rem }}
  td {{ padding-right: 1.5rem }}
</style>
<h1>stream_forecaster {version}</h1>
<table>{rows}</table>
<ul>{links}</ul>
</html>
"""
