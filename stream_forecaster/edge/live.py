"""The live page: its files, and what it is told.

    /                the page, and /page/... what it is made of: files, read once
    /api/stream      server-sent events: `health` once a second, and answers as they come
    /api/forecasts   what is forecast now of the most active keys, as the messages say it

A stream is told what to speak of by its query: `order` and `search` for a list of keys, `key` for
one. All it can do is wait for answers in a box (`viewers`); the loop is not touched.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from importlib import resources
from typing import get_args

from stream_forecaster.edge.listener import Reply, Request, Stream, problem
from stream_forecaster.edge.viewers import (
    Order,
    Question,
    TooManyViewers,
    Viewers,
    Watch,
    key_of,
)

STREAM = "text/event-stream"
_JSON = "application/json"
_LEAST_S = 0.4
"""Between two chunks of a stream."""
_PULSE_S = 1.0
_PATIENCE_S = 10.0
_MOST_SEARCHED = 100
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
}


class Live:
    """Answers requests for the page.

    Args:
        viewers: the box that the loop answers into.
        health: what `health` events say, as JSON can hold it.
    """

    def __init__(self, viewers: Viewers, health: Callable[[], object]) -> None:
        self._viewers, self._health = viewers, health
        self._files = page_files()

    def answer(self, request: Request) -> Reply | Stream | None:
        """The reply, or None if this is no request for the page."""
        match request.path:
            case "/api/stream":
                return self._stream(request)
            case "/api/forecasts":
                return self._once(Question("forecasts"))
            case path:
                return self._files.get(path)

    def _stream(self, request: Request) -> Reply | Stream:
        try:
            questions = _questions(request)
        except ValueError:
            return problem(HTTPStatus.BAD_REQUEST, "no such order, or no key")
        return Stream(STREAM, self._tell(questions))

    def _tell(self, questions: Sequence[Question]) -> Iterator[bytes]:
        try:
            with self._viewers.watching(questions) as watch:
                yield from self._events(watch)
        except TooManyViewers as error:
            yield event("full", json.dumps(str(error)).encode())

    def _events(self, watch: Watch) -> Iterator[bytes]:
        told_s, news = -_PULSE_S, watch.news(0)
        while True:
            chunk = b"".join(event(question.subject, data) for question, data in news)
            if time.monotonic() - told_s >= _PULSE_S:
                told_s = time.monotonic()
                chunk = event("health", json.dumps(self._health()).encode()) + chunk
            if chunk:
                yield chunk
                time.sleep(_LEAST_S)
            news = watch.news(max(0.0, told_s + _PULSE_S - time.monotonic()))

    def _once(self, question: Question) -> Reply:
        try:
            with self._viewers.watching([question]) as watch:
                found = watch.news(_PATIENCE_S)
        except TooManyViewers as error:
            return problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        if not found:
            return problem(HTTPStatus.SERVICE_UNAVAILABLE, "the loop has not answered; try again")
        return HTTPStatus.OK, _JSON, found[0][1]


def event(name: str, data: bytes) -> bytes:
    r"""A server-sent event; `data` is one line.

    >>> event("health", b"{}")
    b'event: health\ndata: {}\n\n'
    """
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


def _questions(request: Request) -> list[Question]:
    """What a stream is to speak of.

    Raises:
        ValueError: an order or a key that is none.
    """
    query, found = request.query, [Question("overview")]
    if "order" in query:
        order: Order = query["order"]  # type: ignore[assignment]  # looked at in the next line
        if order not in get_args(Order):
            raise ValueError(order)
        search = query.get("search", "")[:_MOST_SEARCHED].lower()
        found.append(Question("keys", order=order, search=search))
    if "key" in query:
        key = key_of(query["key"])
        found += [Question("key", key), Question("past", key)]
    return found


def page_files() -> dict[str, Reply]:
    """Path -> the file, of all that the page is made of."""
    folder = resources.files("stream_forecaster") / "edge" / "page"
    found: dict[str, Reply] = {}
    for at, prefix in ((folder, "/page/"), (folder / "vendor", "/page/vendor/")):
        for file in at.iterdir():
            kind = file.name.rpartition(".")[2]
            if file.is_file() and kind in _TYPES:
                path = "/" if file.name == "index.html" else prefix + file.name
                found[path] = HTTPStatus.OK, _TYPES[kind], file.read_bytes()
    return found
