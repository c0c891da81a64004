"""The demo's service: `stream-forecaster run` in a process of its own, told by its environment.

It may be killed and started again (`die_and_return`), by another thread than the one that looks
after it: one lock keeps them from taking that for an end nobody asked for.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from threading import Lock
from typing import Any, Self

from stream_forecaster.config import ENVIRONMENT_PREFIX
from stream_forecaster.demo_board import Readings
from stream_forecaster.errors import StreamForecasterError

_HOST = "127.0.0.1"
_ASK_EVERY_S = 0.1
_ANSWERS_WITHIN_S = 2.0
_LAST_WORDS_LINES = 10


class ServiceProcess:
    """Runs while open.

    Args:
        mapping: sections and settings, all given as text.
        log: where what it writes to standard error is kept.
    """

    def __init__(self, mapping: Mapping[str, Mapping[str, str]], log: Path) -> None:
        self._mapping, self._log = mapping, log
        self._port: int | None = None
        self._stopped = False
        self._lock = Lock()
        self._before = Readings()
        """What processes that were killed had counted."""

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._stopped = True
            self._end()

    @property
    def port(self) -> int | None:
        """Where it listens; None while it does not."""
        return self._port

    def _start(self) -> None:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "stream_forecaster", "run"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(self._mapping),
                start_new_session=True,  # Ctrl-C is for the demo, which ends the service in time
            )

    def _end(self) -> None:
        self._port = None
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def die_and_return(self, patience_s: float) -> None:
        """Kill the process, start another one, and wait until it has recovered.

        Everything sent has to be counted by then: what a process counted dies with it.

        Raises:
            StreamForecasterError: it did not come back.
        """
        counted = self.readings()
        with self._lock:
            if self._stopped or counted is None:
                raise StreamForecasterError("the demo is over, or the service does not answer")
            self._before = counted
            self._end()
            self._start()
        self.wait_until_started(patience_s)
        give_up_s = time.monotonic() + patience_s
        while self.ask("/readyz") is None:
            if time.monotonic() > give_up_s:
                raise self._failure(f"did not recover within {patience_s:.0f} s")
            time.sleep(_ASK_EVERY_S)

    def wait_until_started(self, patience_s: float) -> str:
        """Wait for the service's first word; the address of its page.

        Raises:
            StreamForecasterError: it ended, or did not speak in time.
        """
        give_up_s = time.monotonic() + patience_s
        while self._port is None:
            if time.monotonic() > give_up_s:
                raise self._failure(f"did not start within {patience_s:.0f} s")
            self._require_alive()
            time.sleep(_ASK_EVERY_S)
            self._port = next(self._ports(), None)
        return f"http://{_HOST}:{self._port}/"

    def readings(self) -> Readings | None:
        """What `/metrics` says now; None if it does not answer, or the service was stopped.

        Raises:
            StreamForecasterError: the process has ended by itself.
        """
        with self._lock:
            if self._port is None or self._stopped:
                return None
            self._require_alive()
            said = self.ask("/metrics")
        return None if said is None else Readings.parse(said.decode()).after(self._before)

    def ask(self, path: str, patience_s: float = _ANSWERS_WITHIN_S) -> bytes | None:
        """What it answers to a GET; None if it does not answer, or not with 200."""
        port = self._port
        if port is None:
            return None
        connection = HTTPConnection(_HOST, port, timeout=patience_s)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, HTTPException):
            return None
        finally:
            connection.close()
        return body if answer.status == HTTPStatus.OK else None

    def stop(self, patience_s: float) -> None:
        """Ask the service to finish, as a supervisor does.

        Raises:
            StreamForecasterError: it did not within the time given, or not cleanly.
        """
        with self._lock:
            self._stopped = True
            self._process.terminate()
        try:
            code = self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            raise self._failure(f"did not finish within {patience_s:.0f} s") from None
        if code:
            raise self._failure(f"ended with exit code {code}")

    def _require_alive(self) -> None:
        code = self._process.poll()
        if code is not None:
            raise self._failure(f"ended by itself with exit code {code}")

    def _failure(self, what: str) -> StreamForecasterError:
        lines = self._log.read_text("utf-8", "replace").splitlines()[-_LAST_WORDS_LINES:]
        return StreamForecasterError("\n".join((f"the service {what}; its last words:", *lines)))

    def _ports(self) -> Iterator[int]:
        """The port that the service says it listens on, once it does."""
        for line in self._log.read_text("utf-8", "replace").splitlines():
            try:
                said: Any = json.loads(line)
            except ValueError:
                continue
            if isinstance(said, dict) and said.get("event") == "started":
                yield int(said["http_port"])


def _environment(mapping: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Ours without its settings, which are for a real pipeline, and with the demo's."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(ENVIRONMENT_PREFIX)}
    return inherited | {
        f"{ENVIRONMENT_PREFIX}{section}__{name}".upper(): value
        for section, settings in mapping.items()
        for name, value in settings.items()
    }
