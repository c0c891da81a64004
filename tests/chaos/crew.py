"""The workers of a campaign: processes that are started, killed, stopped, continued, replaced.

They are forked from a process that has imported what they need: loading it takes a second of a
processor, and a campaign starts a thousand of them.
"""

import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from doomed_worker import BACK, work

from stream_forecaster import config
from stream_forecaster.config import Settings

_STOPPED_WITHIN_S = 30.0
_ALONE_FOR_S = 2.0
"""From when a worker is continued until the next may stop itself."""


class Crew:
    """Some `stream-forecaster run` processes of one group.

    Attributes:
        wanted: how many there are to be; a change takes effect with the next `tend`.
        deaths, stops: how probable it is of a transaction that a worker dies or stops in it.
        stop_at: the one moment at which they stop; "": any.
        stop_s: how long a stopped one stays so, between these two.
        mistake: what is put back into their code (see `doomed_worker`).
        exits: exit codes of workers that are gone; those that were killed from outside count -9.
        back: process ids of workers that stopped themselves and have committed again, and of whom
            nobody has taken notice.
    """

    def __init__(self, settings: Settings, directory: Path, seed: int) -> None:
        self._directory, self._seed = directory, seed
        self._random = random.Random(seed)
        self._settings = directory / "settings.toml"
        self._settings.write_text(config.to_toml(config.redacted(settings)))
        self._workers: dict[int, ForkServerProcess] = {}
        self._continue_at: dict[int, float] = {}
        self._alone_until: dict[int, float] = {}  # by process id
        self._read = 0
        self.back: list[int] = []
        self._forking = multiprocessing.get_context("forkserver")
        networks = ["stream_forecaster.learning"] if settings.model.network else []
        self._forking.set_forkserver_preload(["stream_forecaster.cli", *networks])
        self._told_to_end: set[int] = set()
        self._started = 0
        self.wanted, self.deaths, self.stops = 0, 0.0, 0.0
        self.stop_at, self.stop_s, self.mistake = "", (0.0, 0.0), ""
        self.exits: Counter[int] = Counter()

    def tend(self) -> None:
        """Continue those stopped for long enough, start those that are missing."""
        for i, worker in list(self._workers.items()):
            if worker.exitcode is not None:
                self._bury(i)
            elif i not in self._continue_at and _is_stopped(_pid(worker)):
                self._continue_at[i] = time.monotonic() + self._random.uniform(*self.stop_s)
            elif i >= self.wanted and i not in self._continue_at and i not in self._told_to_end:
                self._told_to_end.add(i)  # a second signal would end it at once
                _send(worker, signal.SIGTERM)
        for i, moment in list(self._continue_at.items()):
            if time.monotonic() > moment:
                del self._continue_at[i]
                self._alone_until[_pid(self._workers[i])] = time.monotonic() + _ALONE_FOR_S
                _send(self._workers[i], signal.SIGCONT)
        for i in range(self.wanted):
            if i not in self._workers:
                self._workers[i] = self._start(i)
        self._let_another_stop()
        self._listen()

    def strike(self, how: signal.Signals) -> bool:
        """Send a signal to one that runs; False if there is none just now."""
        running = [i for i in self._workers if i not in self._continue_at and self._runs(i)]
        if running:
            _send(self._workers[self._random.choice(running)], how)
        return bool(running)

    def kill_others(self, pid: int) -> int:
        """Kill all that run but one; how many."""
        others = [w for w in self._workers.values() if w.exitcode is None and w.pid != pid]
        for worker in others:
            _send(worker, signal.SIGKILL)
        return len(others)

    def let_go(self) -> None:
        """Kill those that were to misbehave."""
        for worker in self._workers.values():
            _send(worker, signal.SIGKILL)
        for i in list(self._workers):
            self._bury(i)
        self._alone.unlink(missing_ok=True)

    def end(self) -> None:
        """Stop all, as an orchestrator would."""
        for worker in self._workers.values():
            _send(worker, signal.SIGTERM)
        for i in list(self._workers):
            self._bury(i)

    def moments(self) -> Counter[str]:
        """At which moments workers killed or stopped themselves."""
        lines = self._log.read_text().splitlines() if self._log.exists() else ()
        return Counter(line.partition(":")[0] for line in lines)

    @property
    def _log(self) -> Path:
        return self._directory / "moments"

    @property
    def _alone(self) -> Path:
        return self._directory / "alone"

    def _let_another_stop(self) -> None:
        """Once the last that stopped itself is gone, or has been back for a while."""
        with suppress(OSError, ValueError):
            pid = int(self._alone.read_text())
            lives = any(worker.pid == pid for worker in self._workers.values())
            if not lives or time.monotonic() > self._alone_until.get(pid, float("inf")):
                self._alone.unlink()

    def _listen(self) -> None:
        """Hear who is back."""
        if not self._log.exists() or self._log.stat().st_size == self._read:
            return
        with self._log.open() as log:
            log.seek(self._read)
            lines = log.read()
        whole = lines[: lines.rfind("\n") + 1]
        self._read += len(whole)
        self.back += [int(x.removeprefix(BACK)) for x in whole.splitlines() if x.startswith(BACK)]

    def _runs(self, i: int) -> bool:
        return self._workers[i].exitcode is None

    def _bury(self, i: int) -> None:
        self._continue_at.pop(i, None)
        self._told_to_end.discard(i)
        worker = self._workers.pop(i)
        worker.join(_STOPPED_WITHIN_S)
        if worker.exitcode is None:
            raise TimeoutError(f"worker {i} does not end")
        self.exits[worker.exitcode] += 1

    def _start(self, i: int) -> ForkServerProcess:
        self._started += 1
        environment = {
            "STREAM_FORECASTER__KAFKA__INSTANCE_ID": f"worker-{i}",
            "DOOM_DEATHS": str(self.deaths),
            "DOOM_STOPS": str(self.stops),
            "DOOM_STOP_AT": self.stop_at,
            "DOOM_MISTAKE": self.mistake,
            "DOOM_SEED": str(self._seed * 1_000_003 + self._started),
            "DOOM_LOG": str(self._log),
            "DOOM_ALONE": str(self._alone),
        }
        arguments = ["run", "--config", str(self._settings)]
        log = self._directory / f"worker-{i}.log"
        worker = self._forking.Process(target=work, args=(environment, arguments, log), daemon=True)
        worker.start()
        return worker


def _pid(worker: ForkServerProcess) -> int:
    assert worker.pid is not None  # it has been started
    return worker.pid


def _send(worker: ForkServerProcess, how: signal.Signals) -> None:
    """Send a signal, if there is still somebody to get it."""
    with suppress(ProcessLookupError):
        os.kill(_pid(worker), how)


def _is_stopped(pid: int) -> bool:
    """Has the process been stopped by a signal? Linux tells; elsewhere it is never known."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "T"
