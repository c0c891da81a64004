"""The workers of a campaign: processes that are started, killed, stopped, continued, replaced."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from stream_forecaster import config
from stream_forecaster.config import Settings

_WORKER = Path(__file__).parent / "doomed_worker.py"
_STOPPED_WITHIN_S = 30.0


class Crew:
    """Some `stream-forecaster run` processes of one group.

    Attributes:
        wanted: how many there are to be; a change takes effect with the next `tend`.
        deaths, stops: how probable it is of a transaction that a worker dies or stops in it.
        stop_at: the one moment at which they stop; "": any.
        stop_s: how long a stopped one stays so, between these two.
        mistake: what is put back into their code (see `doomed_worker`).
        exits: exit codes of workers that are gone; those that were killed from outside count -9.
    """

    def __init__(self, settings: Settings, directory: Path, seed: int) -> None:
        self._directory, self._seed = directory, seed
        self._random = random.Random(seed)
        self._settings = directory / "settings.toml"
        self._settings.write_text(config.to_toml(config.redacted(settings)))
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        self._continue_at: dict[int, float] = {}
        self._told_to_end: set[int] = set()
        self._started = 0
        self.wanted, self.deaths, self.stops = 0, 0.0, 0.0
        self.stop_at, self.stop_s, self.mistake = "", (0.0, 0.0), ""
        self.exits: Counter[int] = Counter()

    def tend(self) -> None:
        """Continue those stopped for long enough, start those that are missing."""
        for i, worker in list(self._workers.items()):
            if worker.poll() is not None:
                self._bury(i)
            elif i not in self._continue_at and _is_stopped(worker.pid):
                self._continue_at[i] = time.monotonic() + self._random.uniform(*self.stop_s)
            elif i >= self.wanted and i not in self._continue_at and i not in self._told_to_end:
                self._told_to_end.add(i)  # a second signal would end it at once
                worker.send_signal(signal.SIGTERM)
        for i, moment in list(self._continue_at.items()):
            if time.monotonic() > moment:
                del self._continue_at[i]
                self._workers[i].send_signal(signal.SIGCONT)
        for i in range(self.wanted):
            if i not in self._workers:
                self._workers[i] = self._start(i)

    def strike(self, how: signal.Signals) -> bool:
        """Send a signal to one that runs; False if there is none just now."""
        running = [i for i in self._workers if i not in self._continue_at and self._runs(i)]
        if running:
            self._workers[self._random.choice(running)].send_signal(how)
        return bool(running)

    def let_go(self) -> None:
        """Kill those that were to misbehave."""
        for i, worker in list(self._workers.items()):
            worker.send_signal(signal.SIGCONT)
            worker.kill()
            self._bury(i)

    def end(self) -> None:
        """Stop all, as an orchestrator would."""
        for worker in self._workers.values():
            worker.send_signal(signal.SIGTERM)
        for i in list(self._workers):
            self._bury(i)

    def moments(self) -> Counter[str]:
        """At which moments workers killed or stopped themselves."""
        return Counter(self._log.read_text().splitlines() if self._log.exists() else ())

    @property
    def _log(self) -> Path:
        return self._directory / "moments"

    def _runs(self, i: int) -> bool:
        return self._workers[i].poll() is None

    def _bury(self, i: int) -> None:
        self._continue_at.pop(i, None)
        self._told_to_end.discard(i)
        self.exits[self._workers.pop(i).wait(_STOPPED_WITHIN_S)] += 1

    def _start(self, i: int) -> subprocess.Popen[bytes]:
        self._started += 1
        environment = {
            **os.environ,
            "STREAM_FORECASTER__KAFKA__INSTANCE_ID": f"worker-{i}",
            "DOOM_DEATHS": str(self.deaths),
            "DOOM_STOPS": str(self.stops),
            "DOOM_STOP_AT": self.stop_at,
            "DOOM_MISTAKE": self.mistake,
            "DOOM_SEED": str(self._seed * 1_000_003 + self._started),
            "DOOM_LOG": str(self._log),
        }
        command = [sys.executable, str(_WORKER), "run", "--config", str(self._settings)]
        with (self._directory / f"worker-{i}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def _is_stopped(pid: int) -> bool:
    """Has the process been stopped by a signal? Linux tells; elsewhere it is never known."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "T"
