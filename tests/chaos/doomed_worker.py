"""`stream-forecaster run` that kills or stops itself, now and then, at the worst moments.

Started by the crew with DOOM_SEED, DOOM_LOG (a file that gets a line for each moment), and how
probable it is of a transaction that the worker dies in it (DOOM_DEATHS) or stops (DOOM_STOPS): it
raises SIGSTOP and waits for somebody to continue it, as if the machine had gone to sleep; at any
moment there is, or always at DOOM_STOP_AT. Only one does so at a time, who then has the file
DOOM_ALONE: others are to take over. When it has committed again it notes that it is back.
DOOM_MISTAKE names a mistake that is put into the code, to see that the campaign finds it.
"""

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kafka import KafkaProducer

from stream_forecaster import cli, recovery
from stream_forecaster.edge import kafka, publisher, store

_DEATHS = (
    "between sends",
    "before offsets",
    "after offsets",
    "during commit",
    "after commit",
    "during checkpoint",
)
BACK = "back after a stop: "
STOPS = ("before membership is checked", "before offsets", "after offsets")
_LONGEST_COMMIT_S = 0.03
_LONGEST_REPLAY_S = 0.3
_RARER_IN_REPLAY = 8
"""A worker replays each of its partitions when it starts: it has to come through now and then."""
_MOST_SENDS = 8
_LOOKS_AROUND_S = 0.6
"""A worker that is continued learns from a heartbeat that it was given up, before it goes on."""


class Doom:
    """Decides, at the start of every transaction, what will happen in it, and when."""

    def __init__(self) -> None:
        self._random = random.Random(int(os.environ["DOOM_SEED"]))
        self._deaths = float(os.environ["DOOM_DEATHS"])
        self._stops = float(os.environ["DOOM_STOPS"])
        only = os.environ["DOOM_STOP_AT"]
        self._stop_moments = (only,) if only else STOPS
        self._death = self._stop = ""
        self._sends_left = 0
        self._was_stopped = False

    def draw(self) -> None:
        """A transaction begins."""
        self._death = self._drawn(self._deaths, _DEATHS)
        self._stop = self._drawn(self._stops, self._stop_moments)
        self._sends_left = self._random.randrange(_MOST_SENDS)

    def _drawn(self, probability: float, moments: tuple[str, ...]) -> str:
        moment = self._random.choice(moments)
        return moment if self._random.random() < probability else ""

    def at(self, moment: str) -> None:
        """Die or stop if this is the moment."""
        if self._death == moment:
            self._die()
        if self._stop == moment:
            self._stop = ""
            if _is_alone():
                _note(f"stopped {moment}")
                self._was_stopped = True
                os.kill(os.getpid(), signal.SIGSTOP)
                time.sleep(_LOOKS_AROUND_S)

    def committed(self) -> None:
        """A transaction has ended well."""
        if self._was_stopped:
            self._was_stopped = False
            _note(f"{BACK}{os.getpid()}")

    def at_send(self) -> None:
        """Die after as many sends as were drawn."""
        self._sends_left -= 1
        if self._sends_left < 0:
            self.at("between sends")

    def soon(self, moment: str) -> None:
        """Die within the next few milliseconds if this is the moment."""
        if self._death == moment:
            delay_s = self._random.random() * _LONGEST_COMMIT_S
            threading.Timer(delay_s, self._die).start()

    def at_replay(self) -> None:
        """A checkpoint was read: perhaps die while what follows it is replayed."""
        if self._random.random() < self._deaths / _RARER_IN_REPLAY:
            self._death = "during replay"
            threading.Timer(self._random.random() * _LONGEST_REPLAY_S, self._die).start()

    def _die(self) -> None:
        _note(f"killed {self._death}")
        os.kill(os.getpid(), signal.SIGKILL)


def _is_alone() -> bool:
    """Is no other stopped, or just continued? None will be before the crew says so."""
    with suppress(FileExistsError), open(os.environ["DOOM_ALONE"], "x") as file:  # noqa: PTH123
        file.write(str(os.getpid()))
        return True
    return False


def _note(what: str) -> None:
    with open(os.environ["DOOM_LOG"], "a") as log:  # noqa: PTH123  (no time for more)
        log.write(f"{what}\n")


doom: Doom


class DoomedProducer(KafkaProducer):  # type: ignore[misc]  # the library has no types
    """The stock producer, with death between two sends."""

    def send(self, *args: Any, **kwargs: Any) -> Any:
        """As the client's."""
        doom.at_send()
        return super().send(*args, **kwargs)


class DoomedPublisher(publisher.Publisher):
    """The real publisher, with doom around each step of a transaction."""

    _answers = 0

    def transact(self, *args: Any) -> None:
        """As the publisher's."""
        self._answers = 0
        super().transact(*args)
        doom.committed()
        doom.at("after commit")

    def _send(self, *args: Any) -> None:
        super()._send(*args)
        doom.at("before offsets")

    def _await(self, *args: Any) -> None:
        """The first answer waited for is to the offsets, the second to the commit."""
        self._answers += 1
        if self._answers == 1:
            super()._await(*args)
            doom.at("after offsets")
        else:
            doom.soon("during commit")
            super()._await(*args)


class DoomedTransport(kafka.KafkaTransport):
    """The real transport, with doom between a poll and the commit of what it brought."""

    def commit(self, *args: Any) -> None:
        """As the transport's."""
        doom.draw()
        doom.at("before membership is checked")
        super().commit(*args)


class DoomedStore(store.CheckpointStore):
    """The real store, with death while it writes, and soon after it was read."""

    def save(self, partition: int, offset: int, data: bytes | bytearray) -> None:
        """As the store's."""
        doom.soon("during checkpoint")
        super().save(partition, offset, data)

    def load(self, partition: int, offset: int) -> bytearray:
        """As the store's."""
        data = super().load(partition, offset)
        doom.at_replay()
        return data


class ReusingPublisher(DoomedPublisher):
    """The mistake of keeping a producer whose transaction has failed."""

    def discard(self) -> None:
        """Abort and go on, as the client's documentation has it."""
        try:
            self._producer.abort_transaction()
        except Exception:  # noqa: BLE001  (then there is no way but the right one)
            super().discard()


class LateTransport(DoomedTransport):
    """The mistake of asking for the membership when the commit is made."""

    def _check_membership(self, offsets: Any) -> None:
        del offsets
        self._membership = self._consumer.group_metadata()


def _put_in_place(mistake: str) -> None:
    """The doomed parts instead of the real ones, one of them with a mistake."""
    late, reused = mistake == "late membership", mistake == "reused producer"
    parts: dict[tuple[Any, str], Any] = {
        (publisher, "KafkaProducer"): DoomedProducer,
        (kafka, "Publisher"): ReusingPublisher if reused else DoomedPublisher,
        (cli, "KafkaTransport"): LateTransport if late else DoomedTransport,
        (cli, "CheckpointStore"): DoomedStore,
    }
    if mistake == "loud replay":  # what was published before the crash is published again
        parts[recovery.Recovered, "spoken"] = property(lambda found: found.shard.offset)
    for (owner, name), part in parts.items():
        setattr(owner, name, part)


def work(environment: Mapping[str, str], arguments: list[str], log: Path) -> None:
    """Be the command, in a process of its own that had imported it before."""
    global doom  # noqa: PLW0603  (this process has one)
    with log.open("ab") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    os.environ.update(environment)
    doom = Doom()
    _put_in_place(os.environ["DOOM_MISTAKE"])
    cli.main(arguments)
