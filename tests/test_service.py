"""The loop and its recovery, on a log in memory. Deaths at any moment: `laws/test_crash.py`."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import structlog
from prometheus_client import CollectorRegistry
from streams import START_MS, busy_log, event, settings
from structlog.testing import LogCapture

from stream_forecaster import checkpoint, service
from stream_forecaster.config import Settings
from stream_forecaster.edge.http import Health, readiness
from stream_forecaster.edge.memory import (
    Fate,
    MemoryLog,
    MemoryRecord,
    MemoryStore,
    MemoryTransport,
    Point,
    Script,
    fair_weather,
)
from stream_forecaster.edge.saver import Background, at_once
from stream_forecaster.edge.telemetry import Telemetry
from stream_forecaster.edge.world import World
from stream_forecaster.errors import (
    CheckpointCorrupt,
    CheckpointMismatch,
    CheckpointTooOld,
    StateError,
)
from stream_forecaster.records import Message
from stream_forecaster.service import Service

_ROWS = busy_log(600)
_END_MS = _ROWS[-1][2]
_PER_POLL = 50
_WELL: list[Fate] = ["well"] * 4
_NEVER: list[Fate] = ["refused"] * 1000


@dataclass
class Process:
    """A service on a log in memory, with everything it says in reach."""

    log: MemoryLog
    config: Settings = field(default_factory=lambda: settings(publish="changed"))
    script: Script = fair_weather
    cold_start: bool = False
    wall_ms: int = 0
    seconds: float = 0.0
    per_poll: int = _PER_POLL
    seconds_per_look: float = 0.0
    background: Background = at_once
    gave_back: int = 0
    loaded: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.registry, self.said = CollectorRegistry(), LogCapture()
        world = World(
            MemoryTransport(self.log, lambda: self.per_poll, self.script),
            MemoryStore(self.log, self.script),
            Telemetry(self.registry),
            structlog.wrap_logger(
                structlog.ReturnLogger(),
                processors=[self.said],
                wrapper_class=structlog.make_filtering_bound_logger(0),
            ),
            now_s=self._look,
            wall_ms=lambda: self.wall_ms,
            background=self.background,
            loaded=self.loaded,
            give_back=self._give_back,
        )
        self.service = Service(self.config, world, cold_start=self.cold_start)

    def _give_back(self) -> None:
        self.gave_back += 1

    def _look(self) -> float:
        """The clock, which may go on while the service works."""
        self.seconds += self.seconds_per_look
        return self.seconds

    def steps(self, n: int, seconds_each: float = 10.0) -> "Process":
        """Turn the loop; the clock moves on between turns."""
        for _ in range(n):
            self.seconds += seconds_each
            self.service.step()
        return self

    def drain(self) -> "Process":
        """Run until everything is read, and finish."""

        def stopping() -> bool:
            self.seconds += 10.0
            return self.log.drained

        self.service.run(stopping)
        return self

    def metric(self, name: str, **labels: str) -> float | None:
        """A sample's value, by its name behind the prefix."""
        return self.registry.get_sample_value(f"streamforecaster_{name}", labels)

    def events(self, name: str) -> list[dict[str, Any]]:
        """What the log said under this name."""
        return [dict(entry) for entry in self.said.entries if entry["event"] == name]


def _log(rows: int = len(_ROWS)) -> MemoryLog:
    return MemoryLog({0: [MemoryRecord(*row) for row in _ROWS[:rows]]})


def _append(log: MemoryLog, rows: int = len(_ROWS)) -> None:
    have = len(log.partitions[0])
    log.partitions[0] += [MemoryRecord(*row) for row in _ROWS[have:rows]]


@cache
def _undisturbed() -> list[Message]:
    log = _log()
    Process(log).drain()
    return log.published


def _interrupted() -> MemoryLog:
    """Two thirds of a log worked off, with a checkpoint at half of that and one at its end."""
    return deepcopy(_worked_off())


@cache
def _worked_off() -> MemoryLog:
    log = _log(200)
    Process(log).drain()
    _append(log, 400)
    Process(log).drain()
    _append(log)
    log.checkpoints = {at: log.checkpoints[at] for at in ((0, 200), (0, 400))}
    assert log.committed[0] == 400
    return log


def _then(events: dict[Point, list[Fate]]) -> Script:
    """Fates by point, one after another; fair weather afterwards."""
    left = {point: iter(fates) for point, fates in events.items()}
    return lambda point: next(left.get(point, iter(())), "well")


# -- recovery ----------------------------------------------------------------------------------


def test_a_successor_goes_on_where_the_last_one_stopped() -> None:
    """From the checkpoint at the committed offset, without reading anything twice."""
    log = _interrupted()
    process = Process(log).drain()
    assert log.published == _undisturbed()
    assert process.events("partition_assigned")[0]["recovered_from"] == "checkpoint"
    assert process.metric("events_total") == 200


def test_no_shard_is_made_before_its_parts_are_loaded() -> None:
    """And that they cannot be is what the service dies of."""

    def fail() -> None:
        raise ImportError("no such library")

    process = Process(_log(), loaded=fail)

    with pytest.raises(ImportError, match="no such library"):
        process.drain()
    assert not process.events("partition_assigned")


def test_an_older_checkpoint_gives_the_same_by_a_longer_replay() -> None:
    """What lies between it and the committed offset is read in silence."""
    log = _interrupted()
    del log.checkpoints[max(log.checkpoints)]
    process = Process(log).drain()
    assert log.published == _undisturbed()
    (assigned,) = process.events("partition_assigned")
    assert assigned["offset"] < assigned["silent_until"] == 400
    assert process.metric("events_total") == 200


def _rewritten(data: bytes, **changed: Any) -> bytes:
    """A checkpoint with another header and a checksum that fits."""
    return bytes(checkpoint.encode(replace(checkpoint.decode(data), **changed)))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:0],
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[:99] + bytes([data[99] ^ 1]) + data[100:],
        lambda data: safetensors.numpy.save({"a": np.frombuffer(data[:8])}),
        lambda data: _rewritten(data, partition=1),
        lambda data: _rewritten(data, offset=200),
        lambda data: _rewritten(data, log_id=None),
    ],
    ids=[
        "empty",
        "truncated",
        "half",
        "a bit",
        "foreign",
        "another partition's",
        "renamed",
        "ill-typed",
    ],
)
def test_a_corrupt_checkpoint_gives_way_to_an_older_one(spoil: Callable[[bytes], bytes]) -> None:
    """The operator is told."""
    log = _interrupted()
    newest = max(log.checkpoints)
    log.checkpoints[newest] = spoil(log.checkpoints[newest])
    process = Process(log).drain()
    assert log.published == _undisturbed()
    (told,) = process.events("checkpoint_unusable")
    assert (told["log_level"], told["partition"], told["offset"]) == ("error", 0, 400)


def test_corrupt_checkpoints_only_are_an_error() -> None:
    """State is not silently begun anew where there was some."""
    log = _interrupted()
    log.checkpoints = dict.fromkeys(log.checkpoints, b"junk")
    with pytest.raises(CheckpointCorrupt):
        Process(log).drain()
    assert len(log.published) > 0
    assert log.committed[0] == 400


def test_a_checkpoint_of_other_settings_is_an_error() -> None:
    """It says which differ, and nothing is published."""
    log = _interrupted()
    before = list(log.published)
    with pytest.raises(CheckpointMismatch, match=r"output\.publish"):
        Process(log, config=settings(publish="every_hop")).drain()
    assert log.published == before


@pytest.mark.parametrize("spoilt", ["corrupt", "foreign", "too old"])
def test_a_cold_start_goes_on_without_state(spoilt: str) -> None:
    """When asked for, from the committed offset, and the log says what was lost."""
    log, config = _interrupted(), settings(publish="changed")
    before = len(log.published)
    if spoilt == "corrupt":
        log.checkpoints = dict.fromkeys(log.checkpoints, b"junk")
    elif spoilt == "foreign":
        config = settings(publish="every_hop")
    else:
        log.start[0] = 450
    process = Process(log, config=config, cold_start=True).drain()
    (told,) = process.events("cold_start")
    assert told["offset"] == max(400, log.start[0])
    assert log.committed[0] == 600
    assert len(log.published) > before
    assert Process(log, config=config).steps(1).service.health.assigned == (0,)


def test_without_a_checkpoint_the_longest_window_is_replayed() -> None:
    """In silence, from its beginning in the log to the committed offset."""
    log = _interrupted()
    log.checkpoints.clear()
    window_ms = 2 * 3_600_000
    process = Process(log, wall_ms=_END_MS).drain()
    (told,) = process.events("no_checkpoint")
    replayed_from = log.partitions[0][told["replay_from"]].time_ms
    before = log.partitions[0][max(0, told["replay_from"] - 1)].time_ms
    assert before < _END_MS - window_ms <= replayed_from or told["replay_from"] == 0
    assert told["replay_to"] == 400
    assert process.metric("events_total") == 200


def test_the_whole_log_replayed_is_the_whole_state() -> None:
    """Where the windows reach back to its beginning."""
    log = _interrupted()
    log.checkpoints.clear()
    Process(log, wall_ms=0).drain()
    assert log.published == _undisturbed()


def test_a_checkpoint_older_than_retention_is_an_error() -> None:
    """The records that follow it are gone: stop, and say what to do."""
    log = _interrupted()
    del log.checkpoints[max(log.checkpoints)]
    log.start[0] = min(log.checkpoints)[1] + 1
    with pytest.raises(CheckpointTooOld, match="--cold-start"):
        Process(log).drain()


def test_records_lost_before_they_were_read_are_an_error() -> None:
    """With a checkpoint or without one."""
    for has_checkpoint in (True, False):
        log = _interrupted()
        log.start[0] = 450
        if not has_checkpoint:
            log.checkpoints.clear()
        with pytest.raises(CheckpointTooOld, match=r"450|449"):
            Process(log).drain()


def test_a_topic_made_anew_is_an_error() -> None:
    """The committed offset lies beyond its end."""
    log = _interrupted()
    log.partitions[0] = log.partitions[0][:100]
    with pytest.raises(StateError, match="ends at 100, before the committed offset 400"):
        Process(log).drain()


def test_a_new_group_reads_from_the_beginning() -> None:
    """Of what the log still holds."""
    log = _log()
    log.start[0] = 123
    process = Process(log).steps(1)
    assert process.events("partition_assigned")[0]["offset"] == 123


def test_offsets_that_have_expired_are_made_up_for_by_the_checkpoint() -> None:
    """Kafka forgets the offsets of a group that is gone for a week; the checkpoint knows better."""
    log = _interrupted()
    log.committed.clear()
    Process(log).drain()
    assert log.published == _undisturbed()


def test_a_checkpoint_ahead_of_the_committed_offset_is_not_used() -> None:
    """Its forecasts were never published: the group was set back."""
    log = _interrupted()
    log.committed[0] = min(log.checkpoints)[1]
    process = Process(log).steps(1)
    (assigned,) = process.events("partition_assigned")
    assert assigned["offset"] == assigned["silent_until"] == log.committed[0]


# -- commits and checkpoints -------------------------------------------------------------------


def test_commits_that_fail_lose_nothing() -> None:
    """Refused or in doubt: everything is published once, in order, and the failures counted."""
    log = _log()
    fates: list[Fate] = ["well", "refused", "well", "in doubt", "refused", "well"]
    process = Process(log, script=_then({"commit": fates})).drain()
    assert log.published == _undisturbed()
    assert process.metric("commits_total", result="failed") == 3
    assert len(process.events("commit_failed")) == 3


def test_a_store_that_fails_stops_nothing() -> None:
    """It is counted and logged; older checkpoints stay."""
    log = _log()
    script = _then({"checkpoint": ["well", *_NEVER]})
    process = Process(log, script=script).drain()
    assert log.published == _undisturbed()
    assert len(log.checkpoints) == 1
    assert process.metric("checkpoints_failed_total", reason="other") == len(
        process.events("checkpoint_failed")
    )
    assert len(process.events("checkpoint_failed")) > 0


def test_a_store_that_fails_is_not_asked_at_every_commit() -> None:
    """But again when the next checkpoint is due, thirty seconds later."""
    log = _log()
    script = _then({"checkpoint": _NEVER})
    process = Process(log, script=script).steps(11, seconds_each=10.0)
    assert process.metric("checkpoints_failed_total", reason="other") == 4


def test_partitions_take_turns_in_a_slow_store() -> None:
    """One checkpoint is written at a time; those that stand still wait, and get theirs."""
    works: list[Callable[[], None]] = []
    log = MemoryLog({p: [MemoryRecord(*row) for row in _ROWS[:20]] for p in range(3)})
    process = Process(log, background=works.append)
    for _ in range(30):
        process.steps(1, seconds_each=2.0)
        assert len(works) <= 1
        while works:
            works.pop()()
    assert log.checkpoints.keys() >= {(0, 20), (1, 20), (2, 20)}


def test_no_checkpoint_is_ahead_of_the_committed_offset() -> None:
    """Whatever fails: at every save the commit that covers it has been made."""
    log = _log()
    ahead: list[int] = []

    def fate(point: Point) -> Fate:
        if point == "checkpoint":
            ahead.extend(o for p, o in log.checkpoints if o > log.committed.get(p, -1))
        return next(fates[point], "well")

    fates: dict[Point, Any] = {
        "commit": iter(["well", "refused", "well", "refused"] * 5),
        "checkpoint": iter(()),
        "poll": iter(["well", "well", "well", "rebalance"] * 5),
    }
    Process(log, script=fate).drain()
    assert ahead == []
    assert all(offset <= log.committed[0] for _, offset in log.checkpoints)


def test_finishing_publishes_commits_and_checkpoints() -> None:
    """What was read is kept, so that the successor starts at once."""
    log = _log(100)
    process = Process(log).steps(2, seconds_each=0.0)
    assert log.committed == {} or log.committed[0] < 100
    process.steps(1, seconds_each=0.0).service.finish()
    assert log.committed[0] == 100
    assert (0, 100) in log.checkpoints
    assert checkpoint.decode(log.checkpoints[0, 100]).offset == 100


def test_finishing_in_the_middle_of_a_restore_changes_nothing() -> None:
    """The committed offset does not go back, and no half-read state is saved."""
    log = _interrupted()
    del log.checkpoints[max(log.checkpoints)]
    kept = dict(log.checkpoints)
    process = Process(log).steps(2)
    assert process.service.health.restoring == (0,)
    process.service.finish()
    assert log.committed[0] == 400
    assert log.checkpoints == kept


def test_offsets_are_committed_without_forecasts_too() -> None:
    """At the latest when the interval is over, so that a restart repeats little."""
    log = _log(3)
    Process(log).steps(3)
    assert log.committed[0] == 3
    assert log.published == []


def test_a_rebalance_that_gives_a_partition_back_needs_no_checkpoint() -> None:
    """What was dropped is still in memory."""
    log = _log()
    script = _then({"poll": [*_WELL, "rebalance"], "checkpoint": _NEVER})
    process = Process(log, script=script).drain()
    sources = [entry["recovered_from"] for entry in process.events("partition_assigned")]
    assert sources == ["nothing", "memory"]
    assert log.published == _undisturbed()


# -- what is seen from outside -----------------------------------------------------------------


def test_metrics_after_a_run() -> None:
    """Counted from what was published, read off the log."""
    log = _log()
    log.partitions[0].insert(300, MemoryRecord(b"k", b"junk", START_MS))
    config = settings(publish="changed")
    process = Process(log, wall_ms=_END_MS + 5_000).drain()
    forecasts = [m for m in log.published if m.topic == config.output.topic]
    counted = sum(process.metric("forecasts_total", origin=o) or 0 for o in ("pool", "prior"))
    assert counted == len(forecasts) > 0
    assert process.metric("events_total") == 600
    assert process.metric("rejects_total", reason="not_json") == 1
    assert process.metric("rejects_total", reason="too_late") == 0
    assert process.metric("keys") == 6
    assert process.metric("keys_limit") == 100_000
    assert process.metric("partitions_assigned") == 1
    assert process.metric("partitions_restoring") == 0
    assert process.metric("heartbeat_timestamp_seconds") == (_END_MS + 5_000) / 1000
    assert process.metric("drift_total", resolution="60s") == 0
    assert (process.metric("state_bytes") or 0) > 0
    assert process.metric("lag_records", partition="0") == 0
    watermark_s = process.metric("watermark_timestamp_seconds", partition="0")
    assert watermark_s == (_END_MS - 90_000) / 1000
    assert process.metric("checkpoint_timestamp_seconds") == (_END_MS + 5_000) / 1000
    assert process.metric("rebalances_total") == 1
    assert (process.metric("commits_total", result="committed") or 0) > 1
    assert (process.metric("hop_seconds_count") or 0) > 1
    waited = process.metric("event_to_forecast_seconds_count")
    assert waited is not None
    assert waited > 0
    for forecaster in ("published", "naive", "moving_average", "seasonal"):
        labels = {"resolution": "60s", "forecaster": forecaster}
        assert (process.metric("absolute_error_count", **labels) or 0) > 100
    judged = process.metric("absolute_error_count", resolution="60s", forecaster="published")
    assert process.metric("pinball_loss_count", resolution="60s") == judged
    assert (process.metric("pinball_loss_sum", resolution="60s") or 0) > 0
    assert process.metric("skill_ratio", resolution="60s") is not None
    coverage = process.metric("interval_coverage_ratio", resolution="60s", level="0.8")
    assert coverage is not None
    assert 0.65 < coverage <= 1  # quantiles of counts are whole numbers, and over-cover
    weights = [
        process.metric("expert_weight", resolution="60s", expert=name) or 0.0
        for name in ("last_value", "moving_average", "ewma_fast", "ewma_medium", "ewma_slow")
    ]
    assert 0 < sum(weights) <= 1


def test_keys_that_are_shed_are_counted_and_logged_now_and_then() -> None:
    """A counter for all, taken-back forecasts in the output, and a line a minute."""
    log, config = _log(), settings(publish="changed", max_keys=5)
    process = Process(log, config=config).drain()
    shed = process.metric("keys_shed_total") or 0
    told = process.events("keys_shed")
    tombstones = [m for m in log.published if m.value is None]
    assert 0 < len(tombstones) <= shed
    assert process.metric("keys") == 5
    assert 1 < len(told) < shed
    assert sum(entry["keys"] for entry in told) <= shed
    assert "state.max_keys" in told[0]["hint"]


def _output(**changed: Any) -> Settings:
    config = settings(publish="changed")
    return config.model_copy(update={"output": config.output.model_copy(update=changed)})


def test_a_poll_of_many_hops_is_committed_in_pieces() -> None:
    """So that what waits stays within its bound, and the same is published in the end."""
    log = _log()
    process = Process(log, config=_output(max_pending=12), per_poll=600).drain()
    assert log.published == _undisturbed()
    assert (process.metric("commits_total", result="committed") or 0) > 60


def test_what_takes_too_long_is_left_for_the_next_poll() -> None:
    """A member that does not poll is taken for dead: after some seconds it polls again."""
    log = _log()
    process = Process(log, config=_output(max_pending=6), per_poll=600, seconds_per_look=1.0)
    process.steps(2)
    first = process.service._held[0].shard.offset
    assert 0 < first < 600
    assert process.metric("lag_records", partition="0") == 600 - first
    process.drain()
    assert log.published == _undisturbed()


def test_each_partition_has_its_turn() -> None:
    """One with a backlog does not hold up the others."""
    rows = [MemoryRecord(*row) for row in _ROWS]
    log = MemoryLog({0: rows, 1: [replace(row) for row in rows]})
    process = Process(log, config=_output(max_pending=6), per_poll=600, seconds_per_look=1.0)
    process.steps(2)
    assert all(0 < held.shard.offset < 600 for held in process.service._held.values())


@pytest.mark.parametrize(("worth", "commits"), [(1, 2), (100_000, 1)])
def test_many_forecasts_of_a_partition_do_not_wait_for_the_next_one(
    worth: int, commits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are published before its hop; few wait, so that partitions share a transaction."""
    monkeypatch.setattr(service, "_WORTH_A_COMMIT", worth)
    rows = [MemoryRecord(*row) for row in _ROWS]
    log = MemoryLog({0: rows, 1: [replace(row) for row in rows]})
    process = Process(log, per_poll=600).steps(1)
    before = process.metric("commits_total", result="committed") or 0
    assert process.steps(1).metric("commits_total", result="committed") == before + commits
    assert log.committed == {0: 600, 1: 600}
    assert len(log.published) == 2 * len(_undisturbed())


def test_far_behind_superseded_forecasts_are_shed_and_counted() -> None:
    """Every event counts, each key's last forecast is there, and what is left out is a metric."""
    log = _log()
    config = _output(shed_after_ms=60_000)
    process = Process(log, config=config, wall_ms=_END_MS + 3_600_000).drain()
    whole = _undisturbed()
    assert process.metric("events_total") == 600
    assert process.metric("forecasts_shed_total", reason="superseded") == len(whole) - len(
        log.published
    )
    assert len(log.published) < len(whole) / 2
    last, last_of_whole = ({m.key: m for m in log_} for log_ in (log.published, whole))
    assert last == last_of_whole
    counted = sum(process.metric("forecasts_total", origin=o) or 0 for o in ("pool", "prior"))
    assert counted == len(log.published)


def test_while_it_keeps_up_nothing_is_shed() -> None:
    """Whatever is in one commit; the setting is about forecasts that are late."""
    log = _log()
    config = _output(shed_after_ms=60_000)
    process = Process(log, config=config, wall_ms=_ROWS[0][2], per_poll=600).drain()
    assert log.published == _undisturbed()
    assert process.metric("forecasts_shed_total", reason="superseded") == 0


def test_an_idle_loop_publishes_what_waits() -> None:
    """The last forecasts of a log that ended long ago do not wait for newer ones."""
    log = _log()
    config = _output(shed_after_ms=60_000)
    process = Process(log, config=config, wall_ms=_END_MS + 3_600_000, per_poll=600)
    process.steps(2, seconds_each=0.0)
    assert log.published == []
    process.steps(1, seconds_each=0.0)
    assert len({m.key for m in log.published}) == len(log.published) == 6


def test_what_waits_to_be_superseded_is_bounded() -> None:
    """By a few forecasts of each key, however long the backlog is."""
    log = _log()
    config = _output(shed_after_ms=60_000, max_pending=1)
    process = Process(log, config=config, wall_ms=_END_MS + 3_600_000, per_poll=600)
    process.steps(2, seconds_each=0.0)
    assert log.published == []
    assert process.service._held[0].pending.forecasts <= 12


def test_readiness_follows_the_restore() -> None:
    """Not before the group answers, not while restoring, not when stopping."""
    log = _interrupted()
    del log.checkpoints[max(log.checkpoints)]
    process = Process(log)

    def ready(health: Health) -> list[str]:
        return [check.name for check in readiness(health) if not check.ok]

    assert ready(process.service.health) == ["assigned"]
    process.steps(1)
    assert ready(process.service.health) == ["restored"]
    while process.service.health.restoring:
        process.steps(1)
    assert ready(process.service.health) == []
    assert (process.metric("restore_seconds") or 0) > 0
    seen: list[Health] = []
    process.service.run(lambda: True, seen.append)
    assert ready(seen[-1]) == ["service"]


def test_the_heartbeat_follows_the_clock() -> None:
    """So a loop that hangs is seen."""
    process = Process(_log()).steps(3)
    assert process.service.health.heartbeat_s == process.seconds


def test_dead_letters_are_published_without_forecasts() -> None:
    """A log of junk comes out as it went in."""
    log = MemoryLog({0: [MemoryRecord(b"k", b"junk %d" % i, START_MS) for i in range(5)]})
    config = settings()
    Process(log, config=config).drain()
    assert [m.value for m in log.published] == [b"junk %d" % i for i in range(5)]
    assert {m.topic for m in log.published} == {config.output.dead_letter_topic}


def test_what_was_opened_is_closed() -> None:
    """The transport is left even when the loop dies of an error."""
    process = Process(_log()).steps(2)
    transport = process.service._transport
    assert transport.lag() != {}

    def broken() -> bool:
        raise RuntimeError("in the loop")

    with pytest.raises(RuntimeError):
        process.service.run(broken)
    assert transport.lag() == {}


def test_freed_memory_is_given_back_after_many_forecasts() -> None:
    """Now and then: not after each of many such commits, and never after few."""
    minutes = [_ROWS[0][2] + 60_000 * minute for minute in range(4)]
    log = MemoryLog(
        {
            0: [
                MemoryRecord(None, event(f"user-{user}", time_ms, 1.0), time_ms)
                for time_ms in minutes
                for user in range(4_500)
            ]
        }
    )
    process = Process(log, per_poll=4_500).steps(8, seconds_each=1.0)
    assert len(log.published) >= 2 * 4_500
    assert process.gave_back == 1
    assert Process(_log()).drain().gave_back == 0
