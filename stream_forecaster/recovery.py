"""Recovery: the state of a partition as of an offset that is at or before the committed one.

    checkpoint S ──────── muted ───────▶ committed C ──────── aloud ────────▶
                 records are replayed,               forecasts are new
                 forecasts were published

Candidates, best first: the shard this process held until just now, the checkpoints newest first,
the log itself from the longest window before C. Nothing is given up in silence: state that was lost
or cannot be used stops the process with the reason, unless a cold start was asked for.
"""

from dataclasses import dataclass

from stream_forecaster import checkpoint
from stream_forecaster.calendar import Calendar
from stream_forecaster.checkpoint import Checkpoint
from stream_forecaster.config import Settings
from stream_forecaster.edge.world import World
from stream_forecaster.errors import (
    CheckpointCorrupt,
    CheckpointMismatch,
    CheckpointTooOld,
    StateError,
    StoreUnusable,
)
from stream_forecaster.shard import Shard

_MINUTE_MS = 60_000


@dataclass(frozen=True, slots=True)
class Recovered:
    """A shard to go on with.

    Attributes:
        shard: reads on at `shard.offset`.
        committed: the group's offset; None before the first commit.
        source: where the state came from, for the log.
    """

    shard: Shard
    committed: int | None
    source: str

    @property
    def spoken(self) -> int:
        """Forecasts that records before this offset made due have been published."""
        return max(self.committed or 0, self.shard.offset)


class Recovery:
    """Finds state for the partitions of one process."""

    def __init__(
        self, settings: Settings, calendar: Calendar, world: World, *, cold_start: bool
    ) -> None:
        self._settings, self._calendar, self._cold_start = settings, calendar, cold_start
        self._transport, self._store, self._log = world.transport, world.store, world.log
        self._wall_ms, self._weights = world.wall_ms, world.weights
        self._telemetry, self._loaded = world.telemetry, world.loaded

    def recover(self, partition: int, dropped: Shard | None) -> Recovered:
        """The best state there is for a partition that was just assigned.

        Args:
            partition: of the input.
            dropped: the shard of it that this process held before, if any.

        Raises:
            StateError: what there is cannot be used, or the log no longer holds what follows it.
        """
        self._loaded()
        committed = self._transport.committed(partition)
        first, end = self._transport.bounds(partition)
        where = f"partition {partition} of {self._settings.input.topic!r}"
        if committed is not None and committed > end:
            raise StateError(
                f"{where} ends at {end}, before the committed offset {committed}: was the topic "
                "made anew? Use a new kafka.group_id, or set the group's offsets back."
            )
        try:
            shard, source = self._find(partition, dropped, committed, first)
            if shard.offset < first:
                raise CheckpointTooOld(
                    f"{where} has to be read from offset {shard.offset}, but retention has removed "
                    f"everything before {first}: lengthen retention.ms, or go on without those "
                    "records with --cold-start."
                )
        except StateError as error:
            if not self._cold_start:
                raise
            shard, source = self._fresh(partition, max(first, committed or 0)), "nothing"
            self._log.warning(
                "cold_start", partition=partition, offset=shard.offset, reason=str(error)
            )
        return Recovered(shard, committed, source)

    def _find(
        self, partition: int, dropped: Shard | None, committed: int | None, first: int
    ) -> tuple[Shard, str]:
        if dropped is not None and committed is not None and dropped.offset <= committed:
            return dropped, "memory"
        unusable: StateError | None = None
        for offset in self._store.offsets(partition):
            if committed is not None and offset > committed:
                continue
            try:
                saved = checkpoint.decode(self._store.load(partition, offset))
                _require_place(saved, partition, offset)
            except (CheckpointCorrupt, StoreUnusable) as error:
                # An older one gives the same state, by a longer replay.
                unusable = error
                is_corrupt = isinstance(error, CheckpointCorrupt)
                self._telemetry.checkpoint_unusable("corrupt" if is_corrupt else "unreadable")
                self._log.error(
                    "checkpoint_unusable", partition=partition, offset=offset, reason=str(error)
                )
                continue
            except CheckpointMismatch as error:
                raise CheckpointMismatch(
                    f"the checkpoint of partition {partition} at offset {offset} cannot be used: "
                    f"{error}"
                ) from error
            if self._is_of_this_log(saved, committed):
                return Shard.restore(self._settings, self._calendar, saved), "checkpoint"
        if unusable is not None:
            raise type(unusable)(
                f"none of the checkpoints of partition {partition} can be used; the oldest: "
                f"{unusable}. Put them right at {self._settings.state.checkpoint_url}, or go on "
                "without that state with --cold-start."
            ) from unusable
        if committed is None:
            return self._fresh(partition, first), "nothing"
        return self._fresh(partition, self._window_start(partition, committed, first)), "log"

    def _is_of_this_log(self, saved: Checkpoint, committed: int | None) -> bool:
        """Whether a checkpoint was taken of the log that is there now.

        A group's offsets go when its topic is deleted, and also when it is away for long. Only the
        topic's id tells the two apart; where brokers have none, a missing offset decides for a new
        log, since state of another one would be wrong without anybody noticing.
        """
        now = self._transport.log_id()
        known = bool(now and saved.log_id)
        same = saved.log_id == now if known else committed is not None
        if not same:
            self._log.warning(
                "checkpoint_of_another_log", partition=saved.partition, offset=saved.offset
            )
        return same

    def _window_start(self, partition: int, committed: int, first: int) -> int:
        """Where the longest window before the committed offset begins, or what is left of it."""
        if first > committed:
            raise CheckpointTooOld(
                f"partition {partition} of {self._settings.input.topic!r}: retention has removed "
                f"records {committed} to {first - 1} before they were read; go on without them "
                "with --cold-start."
            )
        longest_ms = max(r.step_ms * r.context for r in self._settings.resolutions)
        begin_ms = self._time_before(partition, committed) - longest_ms
        start = max(first, min(self._transport.offset_at(partition, begin_ms), committed))
        self._log.warning(
            "no_checkpoint",
            partition=partition,
            replay_from=start,
            replay_to=committed,
            hint="state is rebuilt from the log; what was learned before it is lost",
        )
        return start

    def _time_before(self, partition: int, offset: int) -> int:
        """The broker's time just before `offset`, epoch ms, to the minute: by bisection."""
        low, high = 0, self._wall_ms()
        while high - low > _MINUTE_MS:
            middle = (low + high) // 2
            if self._transport.offset_at(partition, middle) >= offset:
                high = middle
            else:
                low = middle
        return low

    def _fresh(self, partition: int, offset: int) -> Shard:
        return Shard(self._settings, self._calendar, partition, offset, self._weights)


def _require_place(saved: Checkpoint, partition: int, offset: int) -> None:
    """A checkpoint that was copied or renamed would put a shard where its records are not."""
    if (saved.partition, saved.offset) != (partition, offset):
        raise CheckpointCorrupt(
            f"the checkpoint of partition {saved.partition} at offset {saved.offset} is kept as "
            f"that of partition {partition} at {offset}"
        )
