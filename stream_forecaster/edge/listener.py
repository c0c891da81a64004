"""The one port: who listens on it, what a request is, and how it is refused.

Handlers run in a thread for each connection. What they answer comes from a function of the request:
a reply, or a stream of chunks that goes on until one of the two has enough.

There are so many connections at a time and no more: who sends a request byte by byte holds a
thread.

Browsers are told to run and to load nothing that does not come from here. A page elsewhere can make
a browser ask us, though. So where only this machine may connect, only this machine's names are
answered to, or a name that was made to point here would do (DNS rebinding); what changes something
has to come from a page of ours; and what costs the loop something is not for pages of other sites,
which could not read it, but ask again and again.
"""

import ipaddress
import json
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from threading import BoundedSemaphore, Thread
from urllib.parse import parse_qsl

import structlog

from stream_forecaster.config import Http
from stream_forecaster.errors import ConfigError

_CLIENT_TIMEOUT_S = 10.0
_POLL_S = 0.1  # how soon close() is noticed
_MOST_CONNECTIONS = 128
"""Four times as many as may watch the page: probes and scrapes find room beside them."""
_MOST_BODY_BYTES = 4096
_COSTLY = "/api/"
_JSON = "application/json"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks: the path without its query, which is apart."""

    method: str
    path: str
    raw_query: str = ""
    accept: str = ""
    body: bytes = b""

    @property
    def query(self) -> Mapping[str, str]:
        """The query's parameters; of one that is given twice, the last."""
        return dict(parse_qsl(self.raw_query))


Reply = tuple[HTTPStatus, str, bytes]
"""Status, content type, body."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Chunks to be sent as they come; closed when the client has gone."""

    content_type: str
    chunks: Iterator[bytes]


Answer = Callable[[Request], Reply | Stream]


class Listener:
    """Answers from daemon threads until closed.

    Args:
        http: host and port; port 0 takes any free one, see `port`.
        answer: to a GET, which HEAD is too, or a POST.
        posts: are POSTs let through?

    Raises:
        ConfigError: the address cannot be listened on.
    """

    def __init__(self, http: Http, answer: Answer, *, posts: bool = False) -> None:
        self._server = _listen(http, answer, posts=posts)
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
        """Stop listening. Requests under way end by themselves, streams at their next chunk.

        Safe to call twice.
        """
        self._server.closing = True
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


_Connection = socket.socket | tuple[bytes, socket.socket]
"""What the standard library says a request may be; ours are sockets."""


class _Server(ThreadingMixIn, TCPServer):
    # HTTPServer would look up the host's name when it binds, which can take seconds.
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, http: Http, answer: Answer, *, posts: bool) -> None:
        found = socket.getaddrinfo(http.host, http.port, type=socket.SOCK_STREAM)
        self.address_family = found[0][0]
        self.answer, self.posts, self.closing = answer, posts, False
        is_local = _is_loopback(str(found[0][4][0]))
        host = http.host.lower()
        self.names = _LOCAL_NAMES | {host, f"[{host}]"} if is_local else None
        self._room = BoundedSemaphore(_MOST_CONNECTIONS)
        super().__init__((http.host, http.port), _Handler)

    def process_request(self, request: _Connection, client_address: object) -> None:
        """Give it a thread, or hang up where there are too many."""
        if not self._room.acquire(blocking=False):
            log.debug("http_client_refused", client=str(client_address))
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread was begun that would make room again
            self._room.release()
            raise

    def process_request_thread(self, request: _Connection, client_address: object) -> None:
        """Answer; in a thread of its own."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client went away in the middle: no news, and no traceback on stderr. Else it was us."""
        del request
        if isinstance(error := sys.exception(), OSError):
            log.debug("http_client_lost", client=str(client_address), error=repr(error))
        else:
            log.error("http_answer_failed", exc_info=True)  # noqa: LOG014  (it is handled)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "stream_forecaster"
    sys_version = ""
    timeout = _CLIENT_TIMEOUT_S

    def do_GET(self) -> None:
        if self._is_ours() and self._is_of_no_other_site():
            self._answer(b"")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        if not self.server.posts:
            self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)
        elif self._is_ours() and self._is_of_our_page():
            size = self.headers.get("Content-Length", "")
            if not size.isdecimal() or int(size) > _MOST_BODY_BYTES:
                self._send(problem(HTTPStatus.BAD_REQUEST, "a small body with its length, please"))
            else:
                self._answer(self.rfile.read(int(size)))

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library refuses is refused in JSON too."""
        del explain
        if code in (HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.METHOD_NOT_ALLOWED):
            # The former is its word for a method without a do_...
            code, message = HTTPStatus.METHOD_NOT_ALLOWED, f"only {self._allowed()}"
        self._send(problem(HTTPStatus(code), message or ""))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the library's name)
        """No access log: probes and scrapes come every few seconds, and addresses name keys."""

    def _allowed(self) -> str:
        return "GET, HEAD and POST" if self.server.posts else "GET and HEAD"

    def _is_ours(self) -> bool:
        """Was it addressed to this machine, where nobody else may connect?"""
        host = self.headers.get("Host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        if self.server.names is None or not host or name.lower() in self.server.names:
            return True
        detail = "reached as localhost only; to be reached by other names, set http.host"
        self._send(problem(HTTPStatus.MISDIRECTED_REQUEST, detail))
        return False

    def _is_of_no_other_site(self) -> bool:
        elsewhere = self.headers.get("Sec-Fetch-Site", "") == "cross-site"  # browsers say so
        if not (elsewhere and self.path.startswith(_COSTLY)):
            return True
        self._send(problem(HTTPStatus.FORBIDDEN, "not from a page of another site, please"))
        return False

    def _is_of_our_page(self) -> bool:
        if self.headers.get("Origin") == f"http://{self.headers.get('Host')}":
            return True
        self._send(problem(HTTPStatus.FORBIDDEN, "from the page itself, please"))
        return False

    def _answer(self, body: bytes) -> None:
        path, _, query = self.path.partition("?")
        accept = self.headers.get("Accept", "")
        request = Request(self.command, path, query, accept, body)
        try:
            answer = self.server.answer(request)
        except Exception:
            log.exception("http_request_failed", path=path)
            answer = problem(HTTPStatus.INTERNAL_SERVER_ERROR, "see the log")
        if isinstance(answer, Stream):
            self._send_stream(answer)
        else:
            self._send(answer)

    def _send(self, reply: Reply) -> None:
        status, content_type, body = reply
        self._send_head(status, content_type, length=len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_stream(self, stream: Stream) -> None:
        try:
            self._send_head(HTTPStatus.OK, stream.content_type)
            if self.command != "HEAD":
                for chunk in stream.chunks:
                    if self.server.closing:
                        break
                    self.wfile.write(chunk)
        finally:
            stream.chunks.close()  # type: ignore[attr-defined]  # a generator, which may be open

    def _send_head(self, status: HTTPStatus, content_type: str, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", self._allowed().replace(" and", ","))
        self.end_headers()


def problem(status: HTTPStatus, detail: str) -> Reply:
    """A refusal, for programs and for people."""
    return status, _JSON, as_json({"error": status.phrase, "detail": detail})


def as_json(value: object) -> bytes:
    """A line of JSON."""
    return json.dumps(value).encode() + b"\n"


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _listen(http: Http, answer: Answer, *, posts: bool) -> _Server:
    try:
        return _Server(http, answer, posts=posts)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {http.host}:{http.port}: {error.strerror or error}. Set http.host "
            "and http.port (STREAM_FORECASTER__HTTP__PORT) to a free address; port 0 takes any"
        ) from error
