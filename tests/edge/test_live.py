import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPResponse
from threading import Event, Thread

import pytest

from stream_forecaster.config import Http
from stream_forecaster.edge.http import HttpServer
from stream_forecaster.edge.live import page_files
from stream_forecaster.edge.viewers import MOST_VIEWERS, Viewers, key_id

_MOST_BYTES = 150_000
_LONG_S = 3.0


class Served:
    """A server whose box is answered as fast as it can be."""

    def __init__(self) -> None:
        self.viewers = Viewers()
        self.server = HttpServer(
            Http(host="127.0.0.1", port=0), lambda _: ("text/plain", b""), self.viewers
        )
        self.asked: set[object] = set()
        self._stopping = Event()
        self._thread = Thread(target=self._answer)
        self._thread.start()

    def _answer(self) -> None:
        while not self._stopping.wait(0.001):
            for question, answers in self.viewers.asked().items():
                self.asked.add(question)
                self.viewers.answer(question, b"%d" % answers)

    def close(self) -> None:
        """Stop both."""
        self._stopping.set()
        self._thread.join()
        self.server.close()

    @contextmanager
    def get(self, path: str) -> Iterator[HTTPResponse]:
        """The answer to a GET, for as long as this is open."""
        connection = HTTPConnection("127.0.0.1", self.server.port, timeout=10)
        try:
            connection.request("GET", path)
            with connection.getresponse() as response:
                yield response
        finally:
            connection.close()


@pytest.fixture
def served() -> Iterator[Served]:
    with closing(Served()) as served:
        yield served


def _until(holds: object) -> None:
    give_up_s = time.monotonic() + 20
    while not holds():  # type: ignore[operator]  # a function without arguments
        assert time.monotonic() < give_up_s
        time.sleep(0.05)


def _events(response: HTTPResponse, seconds: float) -> list[tuple[str, str]]:
    """Name and data of what comes in so many seconds."""
    found, name, end_s = [], "", time.monotonic() + seconds
    while time.monotonic() < end_s:
        line = response.readline().decode().rstrip("\n")
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            found.append((name, line.removeprefix("data: ")))
    return found


def test_a_stream_is_a_few_events_a_second_however_fast_the_loop_answers(served: Served) -> None:
    """A thousand answers a second come to three at most of each kind, and health once a second."""
    with served.get("/api/stream?order=active") as response:
        assert response.getheader("Content-Type") == "text/event-stream"
        events = _events(response, _LONG_S)

    for name in ("overview", "keys"):
        heard = [data for of, data in events if of == name]
        assert 2 <= len(heard) <= 3 * _LONG_S + 1
        assert heard == sorted(heard, key=int)
    assert 2 <= sum(name == "health" for name, _ in events) <= _LONG_S + 1


def test_a_stream_asks_for_what_its_query_says(served: Served) -> None:
    """The overview always; a list, and a key, where they are named."""
    with served.get(f"/api/stream?order=newest&search=ANN&key={key_id(b'u1')}") as response:
        events = _events(response, 1.0)

    assert {name for name, _ in events} == {"health", "overview", "keys", "key", "past"}
    asked = {(q.subject, q.order, q.search, q.key) for q in served.asked}  # type: ignore[attr-defined]
    assert ("keys", "newest", "ann", b"") in asked
    assert ("key", "active", "", b"u1") in asked


def test_health_comes_where_the_loop_says_nothing() -> None:
    """Before there is a loop a page already says what it waits for."""
    server = HttpServer(Http(host="127.0.0.1", port=0), lambda _: ("text/plain", b""))
    connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request("GET", "/api/stream")
        events = _events(connection.getresponse(), 1.5)
    finally:
        connection.close()
        server.close()

    assert {name for name, _ in events} == {"health"}
    assert json.loads(events[0][1])["checks"]["assigned"]["detail"] == "waiting for the group"


def test_who_leaves_is_forgotten(served: Served) -> None:
    """A closed page costs the loop nothing from the next event on."""
    with served.get("/api/stream?order=active") as response:
        _events(response, 0.5)
        assert served.viewers.asked()

    _until(lambda: not served.viewers.asked())


@pytest.mark.parametrize("query", ["order=fastest", "key=%C3%A9", "key=a"])
def test_a_stream_of_nonsense_is_refused(served: Served, query: str) -> None:
    """Orders and keys that are none."""
    with served.get(f"/api/stream?{query}") as response:
        assert response.status == 400


def test_one_page_too_many_is_told_so(served: Served) -> None:
    """In the stream, which a page understands; and the others go on."""
    opened = [served.get("/api/stream") for _ in range(MOST_VIEWERS)]
    for one in opened:
        one.__enter__()
    with served.get("/api/stream") as response:
        assert response.readline() == b"event: full\n"
    for one in opened:
        one.__exit__(None, None, None)


def test_the_page_is_small_and_whole() -> None:
    """All files together; the chart library with its licence beside it; nothing from elsewhere."""
    files = page_files()

    assert sum(len(body) for _, _, body in files.values()) < _MOST_BYTES
    assert {"/", "/page/main.js", "/page/page.css", "/page/vendor/uPlot.iife.min.js"} <= set(files)
    for path, (_, _, body) in files.items():
        if "/vendor/" not in path:
            assert b"innerHTML" not in body
            assert b"insertAdjacentHTML" not in body
            assert b"https://" not in body
