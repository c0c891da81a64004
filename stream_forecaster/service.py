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
6. A poll is heard in pieces of so many hops that forecasts which wait for their commit stay within
   a bound, each partition in turn. What takes too long is left, and read again by the next poll: a
   member that does not poll is taken for dead. `pending` says what is shed when that is not enough.

The loop has one thread, and checkpoints are written in another; what shards are made of is loaded
in a third, until the first of them is. The clock, the log and the metrics are parameters.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from stream_forecaster.config import Settings
from stream_forecaster.edge.http import Health
from stream_forecaster.edge.scoreboard import Scoreboard
from stream_forecaster.edge.telemetry import CommitResult
from stream_forecaster.edge.world import World
from stream_forecaster.errors import CommitFailed, Fenced
from stream_forecaster.forecasts import Encoder
from stream_forecaster.pending import Pending
from stream_forecaster.records import Records
from stream_forecaster.recovery import Recovery
from stream_forecaster.saving import Saving
from stream_forecaster.shard import Shard
from stream_forecaster.showing import Showing

_POLL_S = 0.2
_REPORT_S = 1.0
_HEAR_S = 5.0
"""What a poll brought and was not heard after so long is left. A piece takes a second or two, or as
long as a single hop does."""
_WORTH_A_COMMIT = 2048
"""So many forecasts are published before the next partition is heard: they are worth the wait for
the broker, some 30 ms, in which nothing else is done."""
_MANY_FORECASTS = 4096
_GIVE_BACK_S = 10.0
"""After so many forecasts, but no sooner, freed memory is given back."""
_SHED_LOG_S = 60.0
"""Keys are shed by the thousand: a line in the log so often says how many."""


@dataclass
class _Held:
    """A partition held: its shard, and what of its output is not committed yet.

    Attributes:
        spoken: outputs of records before this offset have been published.
        committed: the group's offset; None before the first commit.
        pending: to be published with the next commit, and counted when it has succeeded.
        assigned_s: when it was assigned.
    """

    shard: Shard
    spoken: int
    committed: int | None
    assigned_s: float
    pending: Pending = field(default_factory=Pending)

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
        calendar = settings.input.calendar()
        self._recovery = Recovery(settings, calendar, world, cold_start=cold_start)
        self._encoder = Encoder(settings)
        self._saving = Saving(settings, world)
        self._held: dict[int, _Held] = {}
        self._dropped: dict[int, Shard] = {}
        self._committed_s = self._reported_s = world.now_s()
        self._published, self._gave_back_s = 0, -math.inf
        self._keys_shed, self._shed_logged_s = 0, -math.inf
        self._scoreboard = Scoreboard(world.telemetry, settings)
        self._showing = Showing(settings, world, self._scoreboard)
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
        self._hear_all(poll.records)
        if self._commit_due(idle=not any(map(len, poll.records))):
            self._commit()
        # Once more, as one is written at a time: a partition that has stood still waits its turn.
        self._saving.turn(self._settled())
        self._give_back()
        self._report()
        self._showing.turn(self._held)

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

    def _hear_all(self, blocks: Iterable[Records]) -> None:
        begin_s, queue = self._world.now_s(), deque(blocks)
        heard: set[int] = set()
        while queue:
            records = queue.popleft()
            if records.partition in heard and self._world.now_s() - begin_s >= _HEAR_S:
                shard = self._held[records.partition].shard
                self._transport.seek(records.partition, shard.offset)
                continue
            heard.add(records.partition)
            left = self._hear(records)
            if len(left):
                queue.append(left)
            waiting = sum(held.pending.forecasts for held in self._held.values())
            is_worth_it = len(left) or waiting >= _WORTH_A_COMMIT
            if queue and is_worth_it and self._commit_due() and not self._commit():
                return  # nothing is held any more

    def _hear(self, records: Records) -> Records:
        """Advance by a piece of `records`; what is left of them."""
        held = self._held[records.partition]
        most = self._settings.output.max_pending
        if held.restoring:
            silent, after = records.split(held.spoken)
            held.shard.advance(silent, aloud=False, most=most)
            if held.restoring:
                return records.split(held.shard.offset)[1]
            records = after
            seconds = self._world.now_s() - held.assigned_s
            self._telemetry.restore(seconds)
            self._log.info(
                "partition_restored", partition=records.partition, seconds=round(seconds, 3)
            )
        begin_s = self._world.now_s()
        turn = held.shard.advance(records, most=most)
        self._telemetry.hops(turn.hops, self._world.now_s() - begin_s)
        held.pending.add(turn, records)
        if held.pending.forecasts > 2 * max(self._settings.output.max_pending, held.shard.keys):
            held.pending.shed_superseded(self._shed_before_ms())
        return records.split(held.shard.offset)[1]

    # -- commit ------------------------------------------------------------------------------------

    def _commit_due(self, *, idle: bool = False) -> bool:
        """At once when there is a forecast; else so often that a restart repeats little.

        Forecasts that may be shed wait for newer ones, unless the loop is `idle`, but no longer
        than a checkpoint does: a restart begins there anyway.
        """
        waited_ms = 1000 * (self._world.now_s() - self._committed_s)
        hops_ms = [held.pending.newest_ms for held in self._held.values()]
        newest_ms = [ms for ms in hops_ms if ms is not None]
        if not newest_ms:
            return waited_ms >= self._settings.kafka.commit_interval_ms
        before_ms = self._shed_before_ms()
        is_behind = all(0 <= ms < before_ms for ms in newest_ms)
        patience_ms = self._settings.state.checkpoint_interval_ms
        return idle or not is_behind or waited_ms >= patience_ms

    def _shed_before_ms(self) -> int:
        """Forecasts that records before this time made due may be shed, epoch ms."""
        shed_after_ms = self._settings.output.shed_after_ms
        return self._world.wall_ms() - shed_after_ms if shed_after_ms else 0

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
        if before_ms := self._shed_before_ms():
            for held in ready.values():
                held.pending.shed_superseded(before_ms)
        messages = [m for held in ready.values() for m in held.pending.messages(self._encoder)]
        offsets = {partition: held.shard.offset for partition, held in ready.items()}
        try:
            self._transport.commit(messages, offsets)
        except Fenced:
            self._tell_commit("fenced")
            raise
        except CommitFailed as error:
            self._tell_commit("failed")
            self._log.warning("commit_failed", reason=str(error), messages=len(messages))
            # The next poll hands every partition out anew; until then there is nothing to hold.
            self._drop(tuple(self._held))
            return False
        self._tell_commit("committed")
        now_ms = self._world.wall_ms()
        for partition, held in ready.items():
            for read_ms in held.pending.read_ms.values():
                if read_ms >= 0:
                    self._telemetry.event_to_forecast(max(0, now_ms - read_ms) / 1000)
            held.committed = offsets[partition]
            for turn in held.pending.turns:
                self._scoreboard.count(turn, len(self._held))
                self._showing.count(turn)
                self._keys_shed += len(turn.shed)
            self._telemetry.forecasts_shed("superseded", held.pending.shed)
            held.pending = Pending()
        self._published += len(messages)
        self._saving.turn(self._settled())
        return True

    def _give_back(self) -> None:
        now_s = self._world.now_s()
        if self._published >= _MANY_FORECASTS and now_s - self._gave_back_s >= _GIVE_BACK_S:
            self._world.give_back()
            self._published, self._gave_back_s = 0, now_s

    def _tell_commit(self, result: CommitResult) -> None:
        """Of the one begun last."""
        self._telemetry.commit(result, self._world.now_s() - self._committed_s)

    def _settled(self) -> list[Shard]:
        """The shards that may become checkpoints."""
        return [held.shard for held in self._held.values() if held.settled]

    # -- what is seen from outside -----------------------------------------------------------------

    def _report(self) -> None:
        now_s = self._world.now_s()
        if self._keys_shed and now_s - self._shed_logged_s >= _SHED_LOG_S:
            self._log_keys_shed(now_s)
        restoring = tuple(p for p, held in sorted(self._held.items()) if held.restoring)
        self.health = replace(self.health, heartbeat_s=now_s, restoring=restoring)
        if now_s - self._reported_s < _REPORT_S:
            return
        self._reported_s = now_s
        shards = [held.shard for held in self._held.values()]
        lag = self._transport.lag()
        self._scoreboard.show(shards, lag)
        self._showing.note(self._held, lag)
        self._saving.show(shards)
        self._telemetry.partitions(assigned=len(shards), restoring=len(restoring))
        self._telemetry.heartbeat(self._world.wall_ms() / 1000)

    def _log_keys_shed(self, now_s: float) -> None:
        self._log.warning(
            "keys_shed",
            keys=self._keys_shed,
            max_keys=self._settings.state.max_keys,
            hint="partitions have more keys than state.max_keys: the least active make room; raise "
            "it if there is memory (stream-forecaster plan), or look for a flood of random keys",
        )
        self._keys_shed, self._shed_logged_s = 0, now_s
