"""The README's quick start, word for word, against a broker: what it says works, or this fails.

The fenced blocks of "On your own topic" and "Reading forecasts" are taken as they stand. Only the
broker's address and the folder for checkpoints are others.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from stream_forecaster import config
from stream_forecaster.edge.broker import Broker
from stream_forecaster.edge.topics import EventWriter

README = (Path(__file__).parent.parent / "README.md").read_text()
MINUTE_MS = 60_000
WAITS_S = 90.0


def blocks(heading: str) -> list[tuple[str, str]]:
    """Language and content of the fenced blocks below a heading."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert section is not None, f"no section {heading!r}"
    return re.findall(r"^```(\w*)\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)


def the_block(heading: str, language: str) -> str:
    """The one block of this language below a heading."""
    (found,) = (body for kind, body in blocks(heading) if kind == language)
    return found


class QuickStart:
    """A folder with the settings file, a broker, and the commands as they are typed."""

    def __init__(self, folder: Path, broker: Broker) -> None:
        self.folder, self.bootstrap = folder, broker.bootstrap
        toml = self.here(the_block("On your own topic", "toml"))
        (folder / "forecaster.toml").write_text(toml)
        self.settings = config.load(toml, {}, {}, read_file=str)
        program = folder / "stream-forecaster"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m stream_forecaster "$@"\n')
        program.chmod(0o755)
        kept = {k: v for k, v in os.environ.items() if not k.startswith("STREAM_FORECASTER__")}
        path = f"{folder}:{os.environ['PATH']}"
        port = {"STREAM_FORECASTER__HTTP__PORT": "0"}  # 8080 may be taken on this machine
        self.environment = kept | port | {"PATH": path, "PYTHONUNBUFFERED": "1"}

    def here(self, text: str) -> str:
        """Addresses and folders of this test in the place of those that are meant."""
        assert "localhost:9092" in text
        return text.replace("localhost:9092", self.bootstrap).replace(
            "file:///var/lib/stream-forecaster", f"file://{self.folder}/state"
        )

    def command(self, verb: str) -> list[str]:
        """The command line that begins with this verb."""
        lines = the_block("On your own topic", "").splitlines()
        (found,) = (line for line in lines if line.startswith(f"stream-forecaster {verb} "))
        return shlex.split(found, comments=True)

    def run(self, verb: str) -> tuple[int, str]:
        """Type a command that ends: its exit code, and what it prints."""
        done = subprocess.run(
            self.command(verb),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=WAITS_S,
        )
        return done.returncode, done.stdout + done.stderr

    @contextmanager
    def started(self, words: Sequence[str]) -> Iterator["subprocess.Popen[str]"]:
        """Type a command that goes on; it is killed in the end."""
        with subprocess.Popen(
            words,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def send(self, *times_ms: int) -> None:
        """The event that the README shows, at these times."""
        shown = json.loads(the_block("On your own topic", "json"))
        of = self.settings.input
        with EventWriter(self.settings) as writer:
            writer.write(
                (shown[of.key[0]].encode(), json.dumps({**shown, of.time: time_ms}).encode(), None)
                for time_ms in times_ms
            )


@pytest.fixture
def quick_start(tmp_path: Path, embedded_broker: Broker) -> QuickStart:
    """A broker of its own, whose topics have the README's names."""
    return QuickStart(tmp_path, embedded_broker)


@pytest.mark.timeout(300)  # seven processes start, each of which waits for the one before
def test_the_quick_start_does_what_it_says(quick_start: QuickStart) -> None:
    """What is missing is made, the service reads and publishes, and both readers see it."""
    hour_ago_ms = time.time_ns() // 1_000_000 - 60 * MINUTE_MS

    code, said = quick_start.run("check")
    assert (code, "stream-forecaster topics create" in said) == (1, True), said
    assert quick_start.run("topics create")[0] == 0
    code, said = quick_start.run("check")
    assert code == 0, said
    quick_start.send(*range(hour_ago_ms, hour_ago_ms + 20 * MINUTE_MS, 1_000))
    program = quick_start.here(the_block("Reading forecasts", "python"))
    with (
        quick_start.started(quick_start.command("run")),
        quick_start.started(quick_start.command("tail")) as tail,
        quick_start.started([sys.executable, "-c", program]) as subscriber,
    ):
        tailed, printed = _first_lines(quick_start, hour_ago_ms + 20 * MINUTE_MS, tail, subscriber)

    shown = json.loads(the_block("On your own topic", "json"))
    key = shown[quick_start.settings.input.key[0]]
    assert json.loads(tailed)["key"] == key
    assert re.match(rf"{key} 20\d\d-\d\d-\d\dT[0-9:.]+Z \[[^]]+\] \[[^]]+\]$", printed), printed


def _first_lines(
    start: QuickStart, since_ms: int, *processes: "subprocess.Popen[str]"
) -> list[str]:
    """What each prints first. They begin when they begin, so events go on until they have."""
    deadline_s = time.monotonic() + WAITS_S
    with ThreadPoolExecutor() as threads:
        reads = [threads.submit(p.stdout.readline) for p in processes if p.stdout]
        for i in count():
            if all(read.done() for read in reads):
                break
            if time.monotonic() > deadline_s:
                for process in processes:
                    process.kill()  # which ends the reading
            start.send(since_ms + i * MINUTE_MS // 6)
            time.sleep(0.2)
        return [read.result() for read in reads]


def test_the_files_of_the_quick_start_are_what_they_seem() -> None:
    """One event, one settings file, four commands, and a subscriber that sees what is committed."""
    kinds = [kind for kind, _ in blocks("On your own topic")]
    subscriber = the_block("Reading forecasts", "python")

    assert sorted(kinds) == ["", "json", "toml"]
    assert len(the_block("On your own topic", "").splitlines()) == 4
    assert 'isolation_level="read_committed"' in subscriber
