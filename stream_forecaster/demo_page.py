"""The demo's page: the service's own, and buttons that make its life hard.

The page is served from here, so that it is still there when the service is not: its files are the
same, and what the service says is passed on. Only here is there anything to POST to.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from threading import Lock
from typing import Any

from stream_forecaster.config import Http
from stream_forecaster.edge.listener import Listener, Reply, Request, Stream, as_json, problem
from stream_forecaster.edge.live import STREAM, event, page_files
from stream_forecaster.edge.viewers import key_of
from stream_forecaster.errors import StreamForecasterError

_HOST = "127.0.0.1"
_RETRY_S = 0.3
_SILENT_S = 5.0
_PREFIX = "/demo/"


@dataclass(frozen=True, slots=True)
class Action:
    """What a button does.

    Attributes:
        label, hint: for people.
        act: does it, for the key that is looked at; returns what was done, in a sentence.
    """

    label: str
    hint: str
    act: Callable[[bytes | None], str]


class DemoPage:
    """Serves until closed.

    Args:
        actions: by name.
        port: of the service; None while there is none.
    """

    def __init__(self, actions: Mapping[str, Action], port: Callable[[], int | None]) -> None:
        self._actions, self._port = actions, port
        self._files, self._acting, self._said = page_files(), Lock(), ""
        self._listener = Listener(Http(host=_HOST, port=0), self._answer, posts=True)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://{_HOST}:{self._listener.port}/"

    def close(self) -> None:
        """Stop serving."""
        self._listener.close()

    def tell(self, said: str) -> None:
        """Have every page say so."""
        self._said = said

    def _answer(self, request: Request) -> Reply | Stream:
        if request.method == "POST":
            return self._act(request)
        if request.path == "/api/stream":
            return Stream(STREAM, self._relay(request))
        return self._files.get(request.path) or self._forward(request)

    def _act(self, request: Request) -> Reply:
        action = self._actions.get(request.path.removeprefix(_PREFIX))
        if action is None or not request.path.startswith(_PREFIX):
            return problem(HTTPStatus.NOT_FOUND, f"try {_PREFIX}{{{'|'.join(self._actions)}}}")
        try:
            key = json.loads(request.body or b"{}").get("key")
            key = None if key is None else key_of(key)
        except (ValueError, AttributeError, TypeError):
            return problem(HTTPStatus.BAD_REQUEST, 'the body is {"key": ...} or nothing')
        if not self._acting.acquire(blocking=False):
            return problem(HTTPStatus.CONFLICT, "one thing at a time")
        try:
            self.tell(action.act(key))
        except StreamForecasterError as error:
            return problem(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        finally:
            self._acting.release()
        return HTTPStatus.OK, "application/json", as_json({"said": self._said})

    # -- what the service says ---------------------------------------------------------------------

    def _forward(self, request: Request) -> Reply:
        port = self._port()
        try:
            if port is None:
                raise ConnectionError
            with closing(HTTPConnection(_HOST, port, timeout=_SILENT_S)) as connection:
                connection.request("GET", request.path, headers={"Accept": request.accept})
                answer = connection.getresponse()
                kind = answer.getheader("Content-Type", "text/plain")
                return HTTPStatus(answer.status), kind, answer.read()
        except (OSError, HTTPException):
            return problem(HTTPStatus.SERVICE_UNAVAILABLE, "the service is not there just now")

    def _relay(self, request: Request) -> Iterator[bytes]:
        """The service's events, whichever process it is just now, and our own between them."""
        buttons = [
            {"name": name, "label": action.label, "hint": action.hint}
            for name, action in self._actions.items()
        ]
        said = self._said
        yield event("demo", as_json({"actions": buttons, "said": said}).strip())
        while True:
            for chunk in self._events(request):
                yield chunk
                if said != self._said:
                    said = self._said
                    yield event("demo", as_json({"said": said}).strip())
            yield event("worker", b'{"state": "down"}')
            time.sleep(_RETRY_S)

    def _events(self, request: Request) -> Iterator[bytes]:
        """Whole events of one process, until it ends."""
        port, rest = self._port(), b""
        if port is None:
            return
        with closing(HTTPConnection(_HOST, port, timeout=_SILENT_S)) as connection:
            try:
                connection.request("GET", f"{request.path}?{request.raw_query}")
                answer = connection.getresponse()
                while answer.status == HTTPStatus.OK and (data := answer.read1(1 << 16)):
                    whole, end, rest = (rest + data).rpartition(b"\n\n")
                    if end:
                        yield whole + end
            except (OSError, HTTPException):
                return


def differing(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> int:
    """How many forecasts are not the same, number for number, or are missing on one side.

    >>> differing([{"id": "a", "key": "u1"}], [{"id": "a", "key": "u1"}])
    0
    >>> differing([{"id": "a", "key": "u1"}], [{"id": "b", "key": "u1"}, {"id": "c", "key": "u2"}])
    2
    """
    old, new = ({said["key"]: said for said in side} for side in (before, after))
    return sum(old.get(key) != new.get(key) for key in old.keys() | new.keys())
