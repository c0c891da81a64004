import gc
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from http.client import HTTPConnection, HTTPException, HTTPResponse
from threading import Event

import pytest
from structlog.testing import capture_logs

from stream_forecaster.config import Http, Kafka
from stream_forecaster.edge.http import Health, HttpServer, stalled_after_s
from stream_forecaster.errors import ConfigError

ANYWHERE = Http(host="127.0.0.1", port=0)
STALLED_AFTER_S = 60.0


class _Clock:
    """A monotonic clock the test moves."""

    now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def _metrics(accept: str) -> tuple[str, bytes]:
    if accept == "boom":
        raise RuntimeError(accept)
    return f"text/plain; accept={accept or 'none'}", b"up 1\n"


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
def server(clock: _Clock) -> Iterator[HttpServer]:
    server = HttpServer(ANYWHERE, _metrics, stalled_after_s=STALLED_AFTER_S, now_s=clock)
    yield server
    server.close()


def _ask(
    server: HttpServer, path: str, method: str = "GET", **headers: str
) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def _raw(server: HttpServer, request: str) -> bytes:
    """Everything that comes back for a request line, headers included but for the date."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(request.encode("latin-1") + b"\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    return re.sub(rb"Date: .*\r\n", b"", answer)


def _checks(body: bytes) -> dict[str, bool]:
    return {name: check["ok"] for name, check in json.loads(body)["checks"].items()}


def test_a_process_is_alive_before_the_loop_has_turned(server: HttpServer) -> None:
    """Starting counts as a heartbeat, so a slow start is not a death."""
    response, body = _ask(server, "/livez")

    assert (response.status, response.getheader("Content-Type")) == (200, "application/json")
    assert json.loads(body) == {
        "ok": True,
        "checks": {"loop": {"ok": True, "detail": "last turn 0.0 s ago"}},
    }


@pytest.mark.parametrize(("age_s", "status"), [(59.9, 200), (60.0, 503), (61.0, 503)])
def test_liveness_is_the_age_of_the_heartbeat(
    server: HttpServer, clock: _Clock, age_s: float, status: int
) -> None:
    """The loop is dead once its last turn is as old as the bound."""
    server.health = Health(heartbeat_s=clock.now_s - age_s)

    response, body = _ask(server, "/livez")

    assert response.status == status
    assert json.loads(body)["ok"] is (status == 200)


@pytest.mark.parametrize(("interval", "seconds"), [("5m", 300.0), ("30s", STALLED_AFTER_S)])
def test_a_turn_may_take_as_long_as_the_group_allows(interval: str, seconds: float) -> None:
    """A recovery of many partitions is one turn; whoever is killed in it begins it anew."""
    assert stalled_after_s(Kafka(max_poll_interval=interval)) == seconds


def test_liveness_ignores_everything_else(server: HttpServer, clock: _Clock) -> None:
    """No partitions, a long recovery, a broker away: a restart would heal none of them."""
    server.health = Health(clock.now_s, None, (0, 1), not_ready="broker away")

    assert _ask(server, "/livez")[0].status == 200


@pytest.mark.parametrize(
    ("health", "failing"),
    [
        (Health(1_000.0, (0, 1)), set()),
        (Health(1_000.0, ()), set()),  # a spare member of the group holds nothing, and may
        (Health(1_000.0, None), {"assigned"}),
        (Health(1_000.0, (0, 1), restoring=(1,)), {"restored"}),
        (Health(1_000.0, (0, 1), not_ready="stopping"), {"service"}),
        (Health(0.0, (0, 1)), {"loop"}),
    ],
)
def test_readiness_names_what_is_missing(
    server: HttpServer, health: Health, failing: set[str]
) -> None:
    """Ready is assigned, restored, running and turning; the answer says which is not so."""
    server.health = health

    response, body = _ask(server, "/readyz")

    assert response.status == (503 if failing else 200)
    assert {name for name, ok in _checks(body).items() if not ok} == failing


def test_readiness_says_which_partitions(server: HttpServer, clock: _Clock) -> None:
    """A person reads which partitions are held and which are still being restored."""
    server.health = Health(clock.now_s, (0, 4), restoring=(4,))

    checks = json.loads(_ask(server, "/readyz")[1])["checks"]

    assert checks["assigned"]["detail"] == "partitions 0, 4"
    assert checks["restored"]["detail"] == "restoring partitions 4"


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text"])
def test_metrics_negotiates_its_own_content_type(server: HttpServer, accept: str) -> None:
    """The Accept header goes to the callable, and its content type comes back."""
    response, body = _ask(server, "/metrics", **({"Accept": accept} if accept else {}))

    assert response.getheader("Content-Type") == f"text/plain; accept={accept or 'none'}"
    assert body == b"up 1\n"


def test_the_page_leads_to_the_others_and_runs_nothing_from_elsewhere(server: HttpServer) -> None:
    """The page links the other three; its scripts and styles are files of ours, and none inline."""
    response, body = _ask(server, "/?utm=1")
    text = body.decode()

    assert response.getheader("Content-Type") == "text/html; charset=utf-8"
    for path in ("/livez", "/readyz", "/metrics"):
        assert f'href="{path}"' in text
    wanted = re.findall(r'<(?:script|link)[^>]* (?:src|href)="(/[^"]*)"', text)
    assert len(wanted) == 4
    for path in wanted:
        assert _ask(server, path)[0].status == 200
    assert not re.search(r"<script[^>]*>[^<]|<style|style=|onclick", text)
    policy = response.getheader("Content-Security-Policy") or ""
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    assert "unsafe" not in policy


def test_the_page_can_be_switched_off() -> None:
    """Then only health and metrics are there, which name no key."""
    with closing(HttpServer(Http(host="127.0.0.1", port=0, page=False), _metrics)) as server:
        statuses = {
            path: _ask(server, path)[0].status
            for path in ("/", "/page/main.js", "/api/stream", "/api/forecasts", "/livez")
        }

    assert statuses == {
        "/": 404,
        "/page/main.js": 404,
        "/api/stream": 404,
        "/api/forecasts": 404,
        "/livez": 200,
    }


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8080", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("LOCALHOST", 200),
        ("evil.example", 421),
        ("evil.example:80", 421),
        ("127.0.0.1.evil.example", 421),
    ],
)
def test_only_this_machine_s_names_are_answered_to(
    server: HttpServer, host: str, status: int
) -> None:
    """A name that was made to point at localhost reads nothing, from whatever page it comes."""
    assert _ask(server, "/", Host=host)[0].status == status


def test_a_host_in_capitals_is_answered_to() -> None:
    """Names of hosts are the same in any case, in the settings too."""
    with closing(HttpServer(Http(host="LocalHost", port=0), _metrics)) as server:
        assert _ask(server, "/livez", Host="LOCALHOST")[0].status == 200
        assert "[localhost]" in (server._listener._server.names or ())


@pytest.mark.parametrize(
    ("site", "path", "status"),
    [
        ("cross-site", "/api/stream?order=none", 403),
        ("cross-site", "/api/forecasts", 403),
        ("cross-site", "/livez", 200),  # a link to it may stand anywhere
        ("same-origin", "/api/stream?order=none", 400),
        ("none", "/api/stream?order=none", 400),
    ],
)
def test_pages_of_other_sites_cannot_make_the_loop_work(
    server: HttpServer, site: str, path: str, status: int
) -> None:
    """They may not read the answer; but to be asked for it would have cost something."""
    assert _ask(server, path, **{"Sec-Fetch-Site": site})[0].status == status


def test_one_connection_too_many_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that drip their headers hold threads, but not all there are; and they make room."""
    monkeypatch.setattr("stream_forecaster.edge.listener._MOST_CONNECTIONS", 3)
    with closing(HttpServer(ANYWHERE, _metrics)) as server, ExitStack() as dripping:
        for _ in range(3):
            client = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            dripping.enter_context(client)
            client.sendall(b"GET /livez HTTP/1.0\r\nX-Drip: ")
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as late:
            assert late.recv(64) == b""
        dripping.close()
        give_up_s = time.monotonic() + 20
        while _status(server) != 200:
            assert time.monotonic() < give_up_s
            time.sleep(0.05)


def _status(server: HttpServer) -> int | None:
    """Of /livez; None if it was hung up on."""
    try:
        return _ask(server, "/livez")[0].status
    except (HTTPException, ConnectionError):
        return None


def test_a_stream_that_fails_is_logged_as_our_fault(server: HttpServer) -> None:
    """Not as a client that has left."""
    with capture_logs() as logs:
        server._live._health = object  # type: ignore[union-attr]  # JSON cannot hold it
        _ask(server, "/api/stream")
        _until_no_request_is_under_way()

    assert [(entry["event"], entry["log_level"]) for entry in logs] == [
        ("http_answer_failed", "error")
    ]


def _until_no_request_is_under_way() -> None:
    for thread in threading.enumerate():
        if "process_request" in thread.name:
            thread.join(10)


def test_head_is_get_without_the_body(server: HttpServer) -> None:
    """HEAD sends the same status and headers, and nothing behind them."""
    got, head = (_raw(server, f"{method} /metrics HTTP/1.0") for method in ("GET", "HEAD"))

    assert got.removesuffix(b"up 1\n") == head
    assert head.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("path", ["/nope", "/livez/", "/../etc/passwd"])
def test_other_paths_are_not_found_in_json(server: HttpServer, path: str) -> None:
    """There are four paths; a client that asks for another one is told so in JSON."""
    response, body = _ask(server, path)

    assert response.status == 404
    assert json.loads(body)["error"] == "Not Found"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"])
def test_only_get_and_head(server: HttpServer, method: str) -> None:
    """Nothing can be changed over this port, and the answer says what is allowed."""
    response, body = _ask(server, "/", method)

    assert (response.status, response.getheader("Allow")) == (405, "GET, HEAD")
    assert json.loads(body)["error"] == "Method Not Allowed"


def test_by_default_only_this_machine_can_ask() -> None:
    """Health and metrics are nobody else's business until the settings say so."""
    with closing(HttpServer(Http(port=0), _metrics)) as server:
        assert server._listener._server.server_address[0] == "127.0.0.1"


def test_a_failing_handler_answers_and_the_server_goes_on(server: HttpServer) -> None:
    """An error is logged with its traceback, tells the client nothing, and harms no one else."""
    with capture_logs() as logs:
        response, body = _ask(server, "/metrics", Accept="boom")

    assert response.status == 500
    assert b"boom" not in body
    assert [(entry["event"], entry["exc_info"]) for entry in logs] == [
        ("http_request_failed", True)
    ]
    assert _ask(server, "/livez")[0].status == 200


def test_garbage_is_refused_in_json(server: HttpServer, capfd: pytest.CaptureFixture[str]) -> None:
    """Bytes that are no HTTP get a 400, and nothing is printed."""
    answer = _raw(server, "\x16\x03\x01 garbage garbage garbage")

    assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["error"] == "Bad Request"
    assert capfd.readouterr() == ("", "")


def test_a_client_that_leaves_is_no_error(clock: _Clock, capfd: pytest.CaptureFixture[str]) -> None:
    """A reset connection is noted at debug level: no traceback, and the server goes on."""
    asked, gone = Event(), Event()

    def metrics(accept: str) -> tuple[str, bytes]:
        del accept
        asked.set()
        gone.wait(10)
        return "text/plain", b"x" * 10_000_000

    server = HttpServer(ANYWHERE, metrics, now_s=clock)
    with capture_logs() as logs:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            # Lingering for no time at all makes close() a reset.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert asked.wait(10)
        gone.set()
        _until_no_request_is_under_way()
        status = _ask(server, "/livez")[0].status
    server.close()

    assert [(entry["event"], entry["log_level"]) for entry in logs] == [
        ("http_client_lost", "debug")
    ]
    assert status == 200
    assert capfd.readouterr() == ("", "")


def test_a_silent_client_does_not_hold_up_the_others(server: HttpServer) -> None:
    """A connection that never asks occupies a thread of its own, not the server."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10):
        assert _ask(server, "/livez")[0].status == 200


def test_a_port_in_use_names_the_setting(server: HttpServer) -> None:
    """The message says which address, why, and what to set."""
    with pytest.raises(ConfigError) as raised:
        HttpServer(Http(host="127.0.0.1", port=server.port), _metrics)

    message = str(raised.value)
    assert f"127.0.0.1:{server.port}: Address already in use" in message
    assert "http.port (STREAM_FORECASTER__HTTP__PORT)" in message


def test_a_host_that_is_not_ours_names_the_setting() -> None:
    """An address of another machine cannot be listened on either."""
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1:0: .*Set http\.host"):
        HttpServer(Http(host="192.0.2.1", port=0), _metrics)


def test_closing_twice_frees_the_port_once() -> None:
    """After close the port can be taken again, no socket is left, and a second close is quiet."""
    first = HttpServer(ANYWHERE, _metrics)
    port = first.port
    _ask(first, "/livez")

    first.close()
    first.close()
    gc.collect()

    second = HttpServer(Http(host="127.0.0.1", port=port), _metrics)
    second.close()
    assert second.port == port


def _has_ipv6_loopback() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _has_ipv6_loopback(), reason="no IPv6 on this machine")
def test_a_host_may_be_ipv6() -> None:
    """A host in IPv6 notation is listened on as such."""
    server = HttpServer(Http(host="::1", port=0), _metrics)
    try:
        with socket.create_connection(("::1", server.port), timeout=10) as client:
            client.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
            assert client.recv(64).startswith(b"HTTP/1.0 200")
    finally:
        server.close()
