"""One checkpoint at a time, written beside the loop.

    loop     begin ──▶ polls, advances, commits ... ──▶ outcome
             copies └▶ store.save ──────────────────────▲
                       background

A store may be slow, or hang for ever, and the loop must not: a member that does not poll is put out
of its group. So the loop hands over a copy of a shard and goes on. There is never a second write
under way: what becomes due meanwhile waits where it is, in the shard, and only gets newer. Nothing
piles up, and the memory it takes is that of one shard.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread

from stream_forecaster.checkpoint import Checkpoint, Store, encode
from stream_forecaster.errors import StoreUnusable

Background = Callable[[Callable[[], None]], None]
"""Runs a function some time, somewhere; at once and here, if everything is to be repeatable."""


def in_thread(work: Callable[[], None]) -> None:
    """Run it in a thread of its own, which a process that ends does not wait for."""
    Thread(target=work, name="checkpoint", daemon=True).start()


def at_once(work: Callable[[], None]) -> None:
    """Run it here and now."""
    work()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a write.

    Attributes:
        partition, offset: the checkpoint's.
        seconds: how long it took.
        vanished: a checkpoint was expected to be there, and there was none at all.
        error: why it is not stored; None if it is.
    """

    partition: int
    offset: int
    seconds: float
    vanished: bool = False
    error: StoreUnusable | None = None


class Saver:
    """Writes checkpoints to a store. All methods belong to one thread.

    Args:
        store: where to.
        background: where the writing is done.
        now_s: a monotonic clock.
    """

    def __init__(self, store: Store, background: Background, now_s: Callable[[], float]) -> None:
        self._store, self._background, self._now_s = store, background, now_s
        self._future: Future[Outcome] | None = None
        self._begun_s = 0.0

    @property
    def busy_s(self) -> float | None:
        """How long the present write has taken; None if there is none."""
        return None if self._future is None else self._now_s() - self._begun_s

    def begin(self, checkpoint: Checkpoint, *, expects_earlier: bool) -> None:
        """Copy the checkpoint, and begin to write it.

        Args:
            checkpoint: may change when this has returned.
            expects_earlier: earlier ones of the partition should be in the store.

        Raises:
            ValueError: a write is under way, or its outcome has not been asked for.
            MemoryError: there is none for the copy.
        """
        if self._future is not None:
            raise ValueError("a checkpoint is being written")
        begun_s, data, future = self._now_s(), encode(checkpoint), Future[Outcome]()
        partition, offset = checkpoint.partition, checkpoint.offset
        self._begun_s, self._future = begun_s, future

        def work() -> None:
            try:
                future.set_result(self._write(partition, offset, data, expects_earlier))
            except Exception as error:  # noqa: BLE001  (a bug, for the loop to die of)
                future.set_exception(error)

        self._background(work)

    def outcome(self, wait_s: float = 0.0) -> Outcome | None:
        """What came of the write, once; None while it goes on, or if there is none.

        Args:
            wait_s: for how long to wait for its end.
        """
        if self._future is None:
            return None
        try:
            outcome = self._future.result(max(0.0, wait_s))
        except TimeoutError:
            return None
        self._future = None
        return outcome

    def _write(
        self,
        partition: int,
        offset: int,
        data: bytearray,
        expects_earlier: bool,  # noqa: FBT001
    ) -> Outcome:
        error: StoreUnusable | None = None
        vanished = False
        try:
            vanished = expects_earlier and not self._store.offsets(partition)
            self._store.save(partition, offset, data)
        except StoreUnusable as fault:
            error = fault
        except MemoryError as fault:
            error = no_memory(partition, fault)
        return Outcome(partition, offset, self._now_s() - self._begun_s, vanished, error)


def no_memory(partition: int, error: MemoryError) -> StoreUnusable:
    """A checkpoint is a copy of the state, and there is no room for it."""
    return StoreUnusable(
        f"no memory for a checkpoint of partition {partition} ({error}): give the process more, or "
        'fewer keys: more processes, a smaller state.max_keys, model.profile = "lean"',
        "memory",
    )
