"""The command in a process of its own, its log in a file, killed in the end."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from stream_forecaster.config import ENVIRONMENT_PREFIX

WAITS_S = 90.0


def wait(holds: Callable[[], object], patience_s: float = WAITS_S) -> None:
    """Until something holds."""
    give_up_s = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < give_up_s, "it never does"
        time.sleep(0.1)


def fetch(address: str, path: str) -> tuple[int, str]:
    """The status and the text of an answer to GET, whatever it is."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


class Native:
    """Runs while open.

    Args:
        arguments: of the command.
        log: where what it says is kept.
        environment: settings of it; none are taken from the machine.
    """

    def __init__(
        self, arguments: list[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        own = {k: v for k, v in os.environ.items() if not k.startswith(ENVIRONMENT_PREFIX)}
        self._command = [sys.executable, "-m", "stream_forecaster", *arguments]
        self._environment = {**own, **(environment or {})}
        self._log = log

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=self._environment
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def end(self) -> int:
        """Ask it to end as a supervisor does; its exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Until it ends by itself; its exit code."""
        return self._process.wait(WAITS_S)

    @property
    def address(self) -> str:
        """The host and port that it listens on, once it has said so."""
        wait(lambda: self.said("started") or self._process.poll() is not None)
        (started,) = self.said("started")
        return f"127.0.0.1:{started['http_port']}"

    def said(self, event: str) -> list[dict[str, Any]]:
        """Its log lines of this event so far."""
        *lines, _ = self._log.read_text().split("\n")
        told = [json.loads(line) for line in lines if line.startswith("{")]
        return [line for line in told if line["event"] == event]

    def asked(self, path: str) -> tuple[int, str]:
        """The status and the text of an answer to GET."""
        return fetch(self.address, path)
