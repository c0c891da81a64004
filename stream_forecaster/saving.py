"""Saving: when checkpoints are written, and what is said of those that are not.

What a checkpoint that cannot be written means, and why the service goes on:

* All that was published stays so, and the records since the last good checkpoint are still in the
  topic: the next start reads them again in silence. So whatever is wrong with the store while the
  service runs, it costs time at the next start, and nothing else.
* That holds until retention removes records that follow the last good checkpoint. From then on a
  start would stop (`recovery`), while this process still has the state. It is worth more alive than
  dead, so it goes on, and says so at every failure.

At the start it is the other way round: nothing is lost by not starting, and somebody is looking. So
the store is probed first, and one that cannot be written ends the start.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stream_forecaster.config import Settings
from stream_forecaster.edge.saver import Outcome, Saver, no_memory
from stream_forecaster.edge.world import World
from stream_forecaster.errors import StoreFault, StoreUnusable
from stream_forecaster.recovery import Recovered
from stream_forecaster.shard import Shard

_LAST_WRITES_S = 20.0
"""How long the end of the process waits for the store; what is not stored by then is replayed."""

_SLOW_S = 1.0
"""Nobody calls a store slow that takes less, however short the interval."""


@dataclass
class _Place:
    """What is known of the checkpoints of a partition held.

    Attributes:
        since_s: when the state was last in a checkpoint, or was taken over.
        tried_s: when a write was last begun.
        failures: since the last one that succeeded.
        too_old: the topic has lost records that follow the last good one.
    """

    since_s: float
    tried_s: float | None = None
    failures: int = 0
    too_old: bool = False


class Saving:
    """The checkpoints of the partitions that one process holds."""

    def __init__(self, settings: Settings, world: World) -> None:
        self._interval_s = settings.state.checkpoint_interval_ms / 1000
        self._transport, self._telemetry = world.transport, world.telemetry
        self._log, self._now_s, self._wall_ms = world.log, world.now_s, world.wall_ms
        self._saver = Saver(world.store, world.background, world.now_s)
        self._places: dict[int, _Place] = {}
        self._stored: dict[int, int] = {}
        """Partition -> offset of the newest good checkpoint that this process knows of."""
        self._slow_told_s = 0.0

    def hold(self, partition: int, found: Recovered) -> None:
        """A partition was assigned, and its state `found`."""
        self._places[partition] = _Place(self._now_s())
        if found.source == "checkpoint":
            self._stored[partition] = found.shard.offset
        elif found.source != "memory":
            self._stored.pop(partition, None)

    def drop(self, partition: int) -> None:
        """A partition was revoked."""
        self._places.pop(partition, None)
        self._tell_too_old()

    def turn(self, settled: Sequence[Shard]) -> None:
        """Hear what came of the last write, and begin another where one is due; never waits.

        Args:
            settled: the shards that are exactly at their committed offsets.
        """
        self._hear(self._saver.outcome())
        due = [shard for shard in settled if self._is_due(shard)]
        for shard in sorted(due, key=lambda shard: self._places[shard.partition].tried_s or 0.0):
            if self._saver.busy_s is not None:
                self._tell_slow(self._saver.busy_s)
                return
            self._begin(shard)
            self._hear(self._saver.outcome())

    def finish(self, settled: Iterable[Shard]) -> None:
        """Write what is not stored yet, so that the successor starts at once; waits, not for ever.

        Args:
            settled: as for `turn`.
        """
        give_up_s = self._now_s() + _LAST_WRITES_S
        for shard in (*settled, None):
            self._hear(self._saver.outcome(give_up_s - self._now_s()))
            if self._saver.busy_s is not None:
                self._fail_slow(self._saver.busy_s)
                return
            if shard and self._stored.get(shard.partition) != shard.offset:
                self._begin(shard)

    def show(self, shards: Iterable[Shard]) -> None:
        """Tell the metrics how old the checkpoints are."""
        now_s = self._now_s()
        ages_s = [
            now_s - self._places[shard.partition].since_s
            for shard in shards
            if self._stored.get(shard.partition) != shard.offset
        ]
        self._telemetry.checkpoint_age(max(ages_s, default=0.0))

    def _is_due(self, shard: Shard) -> bool:
        tried_s = self._places[shard.partition].tried_s
        waited = tried_s is None or self._now_s() - tried_s >= self._interval_s
        return waited and self._stored.get(shard.partition) != shard.offset

    def _begin(self, shard: Shard) -> None:
        self._places[shard.partition].tried_s = self._slow_told_s = self._now_s()
        earlier = shard.partition in self._stored
        try:
            checkpoint = shard.checkpoint(self._transport.log_id())
            self._saver.begin(checkpoint, expects_earlier=earlier)
        except MemoryError as error:
            self._fail(shard.partition, shard.offset, no_memory(shard.partition, error))

    def _hear(self, outcome: Outcome | None) -> None:
        if outcome is None:
            return
        self._telemetry.checkpoint_write(outcome.seconds)
        if outcome.vanished:
            self._lose_all(outcome.partition)
        if outcome.error is not None:
            self._fail(outcome.partition, outcome.offset, outcome.error)
            return
        self._stored[outcome.partition] = outcome.offset
        self._telemetry.checkpoint(self._wall_ms() / 1000)
        place = self._places.get(outcome.partition)
        if place is None:  # revoked meanwhile
            return
        if place.failures:
            self._log.info(
                "checkpoints_resumed", partition=outcome.partition, failures=place.failures
            )
        place.since_s, place.failures, place.too_old = self._now_s(), 0, False
        self._tell_too_old()

    def _lose_all(self, partition: int) -> None:
        """Somebody has removed what was stored: nothing of it is counted on any more."""
        self._stored.clear()
        self._telemetry.checkpoint_failed("gone")
        self._log.error(
            "checkpoints_vanished",
            partition=partition,
            hint="the state is still in memory and is being stored anew; who removes checkpoints?",
        )

    def _fail(self, partition: int, offset: int, error: StoreUnusable) -> None:
        self._telemetry.checkpoint_failed(error.fault)
        place = self._places.get(partition)
        if place is None:
            return
        place.failures += 1
        self._log.error(
            "checkpoint_failed",
            partition=partition,
            offset=offset,
            fault=error.fault,
            reason=str(error),
            unsaved_s=round(self._now_s() - place.since_s, 1),
            last_good=self._stored.get(partition),
        )
        self._check_retention(partition, place)

    def _tell_slow(self, busy_s: float) -> None:
        """One more checkpoint is due and the last one is still being written; once an interval."""
        now_s = self._now_s()
        if now_s - self._slow_told_s >= max(self._interval_s, _SLOW_S):
            self._slow_told_s = now_s
            self._fail_slow(busy_s)

    def _fail_slow(self, busy_s: float) -> None:
        fault: StoreFault = "slow"
        self._telemetry.checkpoint_failed(fault)
        self._log.error(
            "checkpoint_slow",
            fault=fault,
            writing_s=round(busy_s, 1),
            hint="forecasts go on; the next start has more to replay. A faster store, or a longer "
            "state.checkpoint_interval",
        )
        for partition, place in self._places.items():
            self._check_retention(partition, place)

    def _check_retention(self, partition: int, place: _Place) -> None:
        """Could a successor go on from the last good checkpoint?"""
        stored = self._stored.get(partition)
        if stored is None:
            return
        first, _ = self._transport.bounds(partition)
        place.too_old = stored < first
        self._tell_too_old()
        if place.too_old:
            self._log.error(
                "checkpoint_too_old",
                partition=partition,
                last_good=stored,
                first_in_topic=first,
                hint="retention has removed records after the last checkpoint: this process has "
                "the state, but a restart would stop with exit 4. Mend the store before it ends, "
                "and lengthen retention.ms",
            )

    def _tell_too_old(self) -> None:
        self._telemetry.checkpoints_too_old(sum(p.too_old for p in self._places.values()))
