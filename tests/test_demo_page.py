import json
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from threading import Event, Thread
from typing import Any

import pytest

from stream_forecaster.config import Http
from stream_forecaster.demo_board import Readings
from stream_forecaster.demo_page import Action, DemoPage, differing
from stream_forecaster.edge.http import HttpServer
from stream_forecaster.errors import StreamForecasterError


class Demo:
    """The demo's page, with buttons that do nothing but note it."""

    def __init__(self) -> None:
        self.port: int | None = None
        self.done: list[bytes | None] = []
        self.going_on, self.begun = Event(), Event()
        actions = {
            "note": Action("Note", "that it was pressed", self._note),
            "fail": Action("Fail", "as things do", self._fail),
            "wait": Action("Wait", "for the test", self._wait),
        }
        self.page = DemoPage(actions, lambda: self.port)

    def _note(self, key: bytes | None) -> str:
        self.done.append(key)
        return "noted"

    def _fail(self, key: bytes | None) -> str:
        raise StreamForecasterError(f"no {key!r}")

    def _wait(self, key: bytes | None) -> str:
        del key
        self.begun.set()
        assert self.going_on.wait(20)
        return "waited"

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON."""
        host = self.page.url.removeprefix("http://").rstrip("/")
        connection = HTTPConnection(host, timeout=20)
        origin = {"Origin": f"http://{host}"} if method == "POST" else {}
        data = None if body is None else json.dumps(body)
        try:
            connection.request(method, path, data, origin | headers)
            response = connection.getresponse()
            said = response.read()
        finally:
            connection.close()
        is_json = response.getheader("Content-Type") == "application/json"
        return response.status, json.loads(said) if is_json else said

    def events(self, most: int) -> list[tuple[str, Any]]:
        """The first so many events of a stream."""
        connection = HTTPConnection(self.page.url.removeprefix("http://").rstrip("/"), timeout=20)
        found: list[tuple[str, Any]] = []
        try:
            connection.request("GET", "/api/stream?order=active")
            with connection.getresponse() as response:
                while len(found) < most:
                    name = response.readline().decode().strip().removeprefix("event: ")
                    data = response.readline().decode().strip().removeprefix("data: ")
                    response.readline()
                    found.append((name, json.loads(data)))
        finally:
            connection.close()
        return found


@pytest.fixture
def demo() -> Iterator[Demo]:
    demo = Demo()
    with closing(demo.page):
        yield demo


def test_the_page_is_there_when_the_service_is_not(demo: Demo) -> None:
    """Its files come from the demo; what only the service can say is not to be had."""
    assert demo.ask("GET", "/")[0] == 200
    assert demo.ask("GET", "/page/main.js")[0] == 200
    assert demo.ask("GET", "/metrics")[0] == 503


def test_a_page_is_told_that_the_worker_is_gone(demo: Demo) -> None:
    """First which buttons there are, then, again and again, that nobody is there."""
    (first, buttons), *others = demo.events(3)

    assert first == "demo"
    assert [action["name"] for action in buttons["actions"]] == ["note", "fail", "wait"]
    assert others == [("worker", {"state": "down"})] * 2


def test_what_the_service_says_is_passed_on(demo: Demo) -> None:
    """Its events and its answers, as they are."""
    with closing(HttpServer(Http(port=0), lambda _: ("text/plain", b"up 1\n"))) as server:
        demo.port = server.port

        assert [name for name, _ in demo.events(3)] == ["demo", "health", "health"]
        assert demo.ask("GET", "/metrics") == (200, b"up 1\n")
        assert demo.ask("GET", "/readyz")[0] == 503


def test_a_button_acts_on_the_key_that_is_looked_at(demo: Demo) -> None:
    """Or on none."""
    assert demo.ask("POST", "/demo/note", {"key": "dTQy"}) == (200, {"said": "noted"})
    assert demo.ask("POST", "/demo/note", {}) == (200, {"said": "noted"})
    assert demo.done == [b"u42", None]


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/demo/note", {}, {"Origin": "http://evil.example"}, 403),
        ("/demo/note", {}, {"Host": "evil.example", "Origin": "http://evil.example"}, 421),
        ("/demo/nothing", {}, {}, 404),
        ("/note", {}, {}, 404),
        ("/", {}, {}, 404),
        ("/demo/note", {"key": 7}, {}, 400),
        ("/demo/note", {"key": "é"}, {}, 400),
        ("/demo/note", [], {}, 400),
        ("/demo/note", {"key": "x" * 5_000}, {}, 400),
        ("/demo/fail", {}, {}, 500),
    ],
)
def test_other_posts_do_nothing(
    demo: Demo, path: str, body: object, headers: dict[str, str], status: int
) -> None:
    """From another page, to no button, or of nonsense."""
    code, said = demo.ask("POST", path, body, **headers)

    assert code == status
    assert said["detail"]
    assert demo.done == []


def test_one_thing_at_a_time(demo: Demo) -> None:
    """A button that is pressed while another works is told so."""
    waiting = Thread(target=demo.ask, args=("POST", "/demo/wait", {}))
    waiting.start()
    assert demo.begun.wait(20)

    assert demo.ask("POST", "/demo/note", {})[0] == 409

    demo.going_on.set()
    waiting.join(20)
    assert demo.ask("POST", "/demo/note", {})[0] == 200


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ([{"id": "a", "key": "u1", "mean": [1.5]}, {"id": "b", "key": "u2", "mean": [2]}], 0),
        ([{"id": "a", "key": "u1", "mean": [1.6]}, {"id": "b", "key": "u2", "mean": [2]}], 1),
        ([{"id": "c", "key": "u1", "mean": [1.5]}, {"id": "b", "key": "u2", "mean": [2]}], 1),
        ([{"id": "b", "key": "u2", "mean": [2]}], 1),
        ([], 2),
    ],
)
def test_one_number_or_id_that_differs_is_seen(after: list[dict[str, Any]], expected: int) -> None:
    """And so is a forecast that is missing."""
    before = [{"id": "a", "key": "u1", "mean": [1.5]}, {"id": "b", "key": "u2", "mean": [2]}]

    assert differing(before, after) == expected
    assert differing(after, before) == expected


def test_what_a_killed_process_had_counted_is_not_lost() -> None:
    """Counts are added up; levels are those of the process that is there."""
    before = Readings(10, {"not_json": 1}, 5, keys=3, lag=7)
    now = Readings(1, {"not_json": 1, "no_key": 2}, 2, keys=4, lag=0)

    assert now.after(before) == Readings(11, {"not_json": 2, "no_key": 2}, 7, keys=4, lag=0)
