"""The service: the loop around the shards, recovery, and shutdown.

    poll ─▶ drop what was revoked ─▶ recover what was assigned ─▶ advance
      ▲                                                              │
      └──── checkpoint when due ◀── commit when due ◀────────────────┘

The rules, and why:

1. A commit is forecasts, dead letters and offsets in one transaction. It covers whole turns.
2. A checkpoint is saved only after the commit that covers it (`saving`). So a checkpoint's offset
   is never beyond the committed one, and the records between the two can be replayed.
3. Recovery (`recovery`) finds state at or before the committed offset, and the loop advances it in
   silence up to there: those forecasts have been published. From there it speaks.
4. A shard that was dropped is one more checkpoint, labelled with its own offset.
5. After a failed commit nothing in memory past the committed offsets may be used.

The loop has one thread, and checkpoints are written in another; the clock, the log and the metrics
are parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from stream_forecaster.calendar import Calendar
from stream_forecaster.config import Settings
from stream_forecaster.edge.http import Health
from stream_forecaster.edge.scoreboard import Scoreboard
from stream_forecaster.edge.world import World
from stream_forecaster.errors import CommitFailed, Fenced
from stream_forecaster.forecasts import Encoder
from stream_forecaster.records import Message, Records
from stream_forecaster.recovery import Recovery
from stream_forecaster.saving import Saving
from stream_forecaster.shard import Shard, Turn

_POLL_S = 0.2
_REPORT_S = 1.0


@dataclass
class _Held:
    """A partition held: its shard, and what of its output is not committed yet.

    Attributes:
        spoken: outputs of records before this offset have been published.
        committed: the group's offset; None before the first commit.
        messages: to be published with the next commit.
        turns: to be counted when it has succeeded.
        read_ms: the broker's times of the records that made these forecasts due.
        assigned_s: when it was assigned.
    """

    shard: Shard
    spoken: int
    committed: int | None
    assigned_s: float
    messages: list[Message] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    read_ms: list[int] = field(default_factory=list)

    @property
    def restoring(self) -> bool:
        return self.shard.offset < self.spoken

    @property
    def settled(self) -> bool:
        """All that came of it is published: only then may it become a checkpoint."""
        return self.shard.offset == self.committed


class Service:
    """One consumer process, or one that thinks it is: every part of the world is a parameter."""

    def __init__(self, settings: Settings, world: World, *, cold_start: bool = False) -> None:
        """Nothing happens before `run` or `step`.

        Args:
            settings: all of them.
            world: all that is outside.
            cold_start: where state cannot be recovered, begin without instead of stopping.
        """
        self._settings, self._world = settings, world
        self._transport = world.transport
        self._telemetry, self._log = world.telemetry, world.log
        calendar = Calendar(settings.input.timezone)
        self._recovery = Recovery(settings, calendar, world, cold_start=cold_start)
        self._encoder = Encoder(settings)
        self._saving = Saving(settings, world)
        self._held: dict[int, _Held] = {}
        self._dropped: dict[int, Shard] = {}
        self._committed_s = self._reported_s = world.now_s()
        self._scoreboard = Scoreboard(world.telemetry, settings)
        self.health = Health(world.now_s())

    def run(
        self, stopping: Callable[[], bool], observe: Callable[[Health], None] = lambda _: None
    ) -> None:
        """Turn until `stopping` says so, then finish: publish, commit, checkpoint, leave.

        Args:
            stopping: asked before every turn.
            observe: told the loop's health after every turn.
        """
        try:
            while not stopping():
                self.step()
                observe(self.health)
            self.health = replace(self.health, not_ready="stopping")
            observe(self.health)
            self.finish()
        finally:
            self._transport.close()

    def step(self) -> None:
        """One turn of the loop."""
        poll = self._transport.poll(_POLL_S)
        if poll.revoked or poll.assigned:
            self._telemetry.rebalance()
        self._drop(poll.revoked)
        for partition in poll.assigned:
            self._recover(partition)
        if poll.revoked or poll.assigned:
            self.health = replace(self.health, assigned=tuple(sorted(self._held)))
        if poll.assigned:
            self._dropped.clear()
        for records in poll.records:
            self._hear(records)
        if self._commit_due():
            self._commit()
        # Once more, as one is written at a time: a partition that has stood still waits its turn.
        self._saving.turn(self._settled())
        self._report()

    def finish(self) -> None:
        """Publish, commit and checkpoint what is ready, so that the successor starts at once."""
        if self._commit():
            self._saving.finish(self._settled())

    # -- partitions come and go --------------------------------------------------------------------

    def _drop(self, partitions: tuple[int, ...]) -> None:
        for partition in partitions:
            held = self._held.pop(partition, None)
            if held is not None:
                self._dropped[partition] = held.shard
                self._saving.drop(partition)
                self._telemetry.revoked([partition])
                self._log.info("partition_revoked", partition=partition, offset=held.shard.offset)

    def _recover(self, partition: int) -> None:
        """Have a shard whose offset is at or before the committed one, and seek to it."""
        found = self._recovery.recover(partition, self._dropped.get(partition))
        self._transport.seek(partition, found.shard.offset)
        held = _Held(found.shard, found.spoken, found.committed, self._world.now_s())
        self._held[partition] = held
        self._saving.hold(partition, found)
        self._log.info(
            "partition_assigned",
            partition=partition,
            offset=found.shard.offset,
            recovered_from=found.source,
            silent_until=found.spoken,
            keys=found.shard.keys,
        )
        if not held.restoring:
            self._telemetry.restore(0.0)

    # -- records come in ---------------------------------------------------------------------------

    def _hear(self, records: Records) -> None:
        held = self._held[records.partition]
        if held.restoring:
            silent, records = records.split(held.spoken)
            held.shard.advance(silent, aloud=False)
            if held.restoring:
                return
            seconds = self._world.now_s() - held.assigned_s
            self._telemetry.restore(seconds)
            self._log.info(
                "partition_restored", partition=records.partition, seconds=round(seconds, 3)
            )
        begin_s = self._world.now_s()
        turn = held.shard.advance(records)
        if turn.hops:
            self._telemetry.hop((self._world.now_s() - begin_s) / turn.hops)
        self._collect(held, records, turn)

    def _collect(self, held: _Held, records: Records, turn: Turn) -> None:
        """Turn into messages, in an order that depends on the log alone."""
        held.messages += self._encoder.output(turn.output)
        for forecast in turn.forecasts:
            row = int(np.searchsorted(records.offset, forecast.offset))
            held.read_ms.append(int(records.time_ms[row]))
        held.messages += map(self._encoder.dead_letter, turn.rejects)
        held.turns.append(turn)

    # -- commit ------------------------------------------------------------------------------------

    def _commit_due(self) -> bool:
        """At once when there is a forecast; else so often that a restart repeats little."""
        if any(held.read_ms for held in self._held.values()):
            return True
        waited_ms = 1000 * (self._world.now_s() - self._committed_s)
        return waited_ms >= self._settings.kafka.commit_interval_ms

    def _commit(self) -> bool:
        """Publish what is ready and move the group's offsets; True if it worked."""
        self._committed_s = self._world.now_s()
        ready = {
            partition: held
            for partition, held in self._held.items()
            if not held.restoring and not held.settled
        }
        if not ready:
            return True
        messages = [message for held in ready.values() for message in held.messages]
        offsets = {partition: held.shard.offset for partition, held in ready.items()}
        try:
            self._transport.commit(messages, offsets)
        except Fenced:
            self._telemetry.commit("fenced")
            raise
        except CommitFailed as error:
            self._telemetry.commit("failed")
            self._log.warning("commit_failed", reason=str(error), messages=len(messages))
            # The next poll hands every partition out anew; until then there is nothing to hold.
            self._drop(tuple(self._held))
            return False
        self._telemetry.commit("committed")
        now_ms = self._world.wall_ms()
        for partition, held in ready.items():
            for read_ms in held.read_ms:
                if read_ms >= 0:
                    self._telemetry.event_to_forecast(max(0, now_ms - read_ms) / 1000)
            held.committed = offsets[partition]
            for turn in held.turns:
                self._scoreboard.count(turn)
            held.messages, held.turns, held.read_ms = [], [], []
        self._saving.turn(self._settled())
        return True

    def _settled(self) -> list[Shard]:
        """The shards that may become checkpoints."""
        return [held.shard for held in self._held.values() if held.settled]

    # -- what is seen from outside -----------------------------------------------------------------

    def _report(self) -> None:
        now_s = self._world.now_s()
        restoring = tuple(p for p, held in sorted(self._held.items()) if held.restoring)
        self.health = replace(self.health, heartbeat_s=now_s, restoring=restoring)
        if now_s - self._reported_s < _REPORT_S:
            return
        self._reported_s = now_s
        shards = [held.shard for held in self._held.values()]
        self._scoreboard.show(shards, self._transport.lag())
        self._saving.show(shards)
