"""`stream-forecaster run` that kills itself, now and then, at the worst moments.

Started by the campaign with DOOM_PROBABILITY (per transaction), DOOM_SEED and DOOM_LOG, a file that
gets a line for each death. The arguments are the command's own.
"""

import os
import random
import runpy
import signal
import sys
import threading
from typing import Any

from kafka import KafkaProducer

from stream_forecaster.edge import kafka, publisher, store

_MOMENTS = (
    "between sends",
    "before offsets",
    "after offsets",
    "during commit",
    "after commit",
    "during checkpoint",
)
_LONGEST_COMMIT_S = 0.03
_MOST_SENDS = 8


class Doom:
    """Decides, at the start of every transaction, whether and where it will be the last."""

    def __init__(self) -> None:
        self._random = random.Random(int(os.environ["DOOM_SEED"]))
        self._probability = float(os.environ["DOOM_PROBABILITY"])
        self._moment = ""
        self._sends_left = 0

    def draw(self) -> None:
        """A transaction begins."""
        doomed = self._random.random() < self._probability
        self._moment = self._random.choice(_MOMENTS) if doomed else ""
        self._sends_left = self._random.randrange(_MOST_SENDS)

    def at(self, moment: str) -> None:
        """Die if this is the moment."""
        if self._moment == moment:
            self._die()

    def at_send(self) -> None:
        """Die after as many sends as were drawn."""
        self._sends_left -= 1
        if self._sends_left < 0:
            self.at("between sends")

    def soon(self, moment: str) -> None:
        """Die within the next few milliseconds if this is the moment."""
        if self._moment == moment:
            delay_s = self._random.random() * _LONGEST_COMMIT_S
            threading.Timer(delay_s, self._die).start()

    def _die(self) -> None:
        with open(os.environ["DOOM_LOG"], "a") as log:  # noqa: PTH123  (no time for more)
            log.write(f"{self._moment}\n")
        os.kill(os.getpid(), signal.SIGKILL)


doom = Doom()


class DoomedProducer(KafkaProducer):  # type: ignore[misc]  # the library has no types
    """The stock producer, with death between two sends."""

    def send(self, *args: Any, **kwargs: Any) -> Any:
        """As the client's."""
        doom.at_send()
        return super().send(*args, **kwargs)


class DoomedPublisher(publisher.Publisher):
    """The real publisher, with death around each step of a transaction."""

    _answers = 0

    def transact(self, *args: Any) -> None:
        """As the publisher's."""
        doom.draw()
        self._answers = 0
        super().transact(*args)
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


class DoomedStore(store.CheckpointStore):
    """The real store, with death while it writes."""

    def save(self, partition: int, offset: int, data: bytes) -> None:
        """As the store's."""
        doom.soon("during checkpoint")
        super().save(partition, offset, data)


if __name__ == "__main__":
    setattr(publisher, "KafkaProducer", DoomedProducer)  # noqa: B010  (mypy would mind, rightly)
    setattr(kafka, "Publisher", DoomedPublisher)  # noqa: B010
    setattr(store, "CheckpointStore", DoomedStore)  # noqa: B010
    sys.argv[0] = "stream-forecaster"
    runpy.run_module("stream_forecaster", run_name="__main__")
