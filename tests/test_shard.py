"""The shard, one rule at a time; what holds of every stream is in `laws/`."""

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streams import (
    MINUTE_MS,
    START_MS,
    Row,
    block,
    busy_log,
    event,
    messages,
    rows,
    settings,
    shard,
)

from stream_forecaster import checkpoint
from stream_forecaster.config import Settings, parse, redacted
from stream_forecaster.events import UNTIMED_MS, Reason
from stream_forecaster.forecasts import Forecast
from stream_forecaster.keys import under
from stream_forecaster.shard import Shard, Turn

# In `settings` lateness is 90 s and the finest step a minute: the hop of minute m is due with the
# first event at or after m minutes and 90 seconds.
_LATENESS_S = 90


class Told:
    """A shard that is told one record at a time, at seconds since START_MS."""

    def __init__(self, config: Settings) -> None:
        self.config, self.shard = config, shard(config)
        self.log: list[Row] = []
        self.turns: list[Turn] = []

    def tell(self, second: float, user: str | None = "ann", *, broker: float | None = None) -> Turn:
        """An event of a user, or without one a heartbeat."""
        time_ms = START_MS + round(1000 * second)
        broker_ms = time_ms if broker is None else START_MS + round(1000 * broker)
        self.log.append((None, event(user, time_ms) if user else None, broker_ms))
        self.turns.append(self.shard.advance(block(self.log, len(self.log) - 1)))
        return self.turns[-1]

    def forget(self, user: str, second: float | None = None) -> Turn:
        """A tombstone of a user, by default one without a time."""
        time_ms = UNTIMED_MS if second is None else START_MS + round(1000 * second)
        self.log.append((user.encode(), None, time_ms))
        self.turns.append(self.shard.advance(block(self.log, len(self.log) - 1)))
        return self.turns[-1]

    def tell_all(self, seconds: "range | list[float]", user: str = "ann") -> list[Turn]:
        """One event at each of these seconds."""
        return [self.tell(second, user) for second in seconds]

    def minute_of(self, forecast: Forecast) -> float:
        """When a forecast was issued, in minutes."""
        return (forecast.issued_ms - START_MS) / MINUTE_MS

    @property
    def forecasts(self) -> list[Forecast]:
        """All so far."""
        return [f for turn in self.turns for f in turn.forecasts]

    @property
    def values(self) -> list[dict[str, Any]]:
        """All messages so far, parsed; tombstones are left out."""
        sent = messages(self.config, self.turns)
        return [json.loads(m.value) for m in sent if m.value is not None]


def test_a_hop_is_due_when_lateness_has_passed() -> None:
    """Not a millisecond before."""
    told = Told(settings())
    told.tell_all([0, _LATENESS_S])
    assert told.tell(60 + _LATENESS_S - 0.001).forecasts == ()
    (forecast,) = told.tell(60 + _LATENESS_S).forecasts
    assert told.minute_of(forecast) == 1


def test_a_forecast_does_not_see_the_record_that_made_it_due() -> None:
    """But every one before it."""
    told = Told(settings())
    told.tell_all([0, 10, 20])
    (forecast,) = told.tell(60 + _LATENESS_S).forecasts
    assert forecast.observations.tolist() == [3]
    assert forecast.paths[0].moving_average.tolist() == [3.0]


def test_the_source_is_the_record_that_made_it_due() -> None:
    """Its offset is in the message, whatever else the poll brought."""
    told = Told(settings())
    told.tell_all([0, 10, 60 + _LATENESS_S, 70 + _LATENESS_S, 121 + _LATENESS_S])
    assert [value["source"]["offset"] for value in told.values] == [2, 4]
    at_once = shard(told.config).advance(block(told.log))
    assert [forecast.offset for forecast in at_once.forecasts] == [2, 4]
    assert {value["source"]["partition"] for value in told.values} == {0}


def test_a_gap_speaks_once() -> None:
    """At its last boundary; every bucket in it is closed all the same."""
    told = Told(settings())
    told.tell(0)
    turn = told.tell(10 * 60 + _LATENESS_S)
    assert [told.minute_of(f) for f in turn.forecasts] == [10]
    assert turn.hops == 1
    fine = told.shard.pools[0].window
    assert fine.closed * MINUTE_MS == START_MS + 10 * MINUTE_MS
    assert fine.values()[0].tolist() == [0, 0, 0, 0, 0]


@given(
    seconds=st.lists(st.integers(0, 1_200), min_size=1, max_size=30),
)
def test_what_is_too_late_is_judged_by_the_greatest_time_before(seconds: list[int]) -> None:
    """An event counts while its bucket is open, as each record by itself finds it."""
    told = Told(settings())
    newest = seconds[0]
    for second in seconds:
        turn = told.tell(second)
        closed_s = (newest - _LATENESS_S) // 60 * 60
        late = second < closed_s
        assert [r.reason for r in turn.rejects] == [Reason.TOO_LATE] * late
        assert turn.events == 1 - late
        newest = max(newest, second)


def test_a_late_event_in_an_open_bucket_counts() -> None:
    """In the bucket of its own time."""
    told = Told(settings())
    told.tell_all([0, 60, 120])
    assert told.tell(45).events == 1
    (forecast,) = told.tell(60 + _LATENESS_S).forecasts
    assert forecast.paths[0].moving_average.tolist() == [2.0]


def test_a_reject_for_lateness_says_how_late() -> None:
    """And keeps the record, as every reject does."""
    told = Told(settings())
    told.tell_all([0, 600])
    (rejected,) = told.tell(30).rejects
    assert rejected.detail.startswith("570 s behind")
    assert (rejected.offset, rejected.value) == (2, told.log[2][1])


def test_a_heartbeat_moves_the_watermark() -> None:
    """By the record's own time, and is no event."""
    told = Told(settings())
    told.tell(0)
    turn = told.tell(60 + _LATENESS_S, None)
    assert (turn.events, turn.rejects, len(turn.forecasts)) == (0, (), 1)
    assert told.shard.watermark_ms == START_MS + MINUTE_MS


def test_a_heartbeat_that_is_behind_says_nothing() -> None:
    """No reject, no step back: a broker's clock may be behind the events'."""
    told = Told(settings())
    told.tell_all([0, 600])
    before = told.shard.watermark_ms
    turn = told.tell(0, None)
    assert (turn.events, turn.rejects, turn.forecasts) == (0, (), ())
    assert told.shard.watermark_ms == before


def test_time_begins_with_the_first_record() -> None:
    """Before it there is no watermark; a heartbeat may be the first."""
    told = Told(settings())
    assert told.shard.watermark_ms is None
    told.tell(300, None)
    assert told.shard.watermark_ms == START_MS + (300 - _LATENESS_S) * 1000
    assert told.tell(290).events == 1


def test_a_newcomer_is_forecast_from_the_population_and_marked() -> None:
    """Prior until its first bucket closes, a cold start for ten, with its own events counted."""
    told = Told(settings())
    told.tell_all(range(0, 60 * 30, 20), "old")
    told.tell_all(range(60 * 30, 60 * 45, 20), "new")
    first, *later = [value for value in told.values if value["key"] == "new"]
    assert first["quality"]["origin"] == "prior"
    assert first["quality"]["cold_start"]
    assert first["resolutions"][0]["moving_average"] is None
    assert first["resolutions"][0]["mean"][0] == pytest.approx(3.0, rel=0.2)
    marks = [value["quality"]["cold_start"] for value in later]
    origins = [value["quality"]["origin"] for value in later]
    closed_before = origins.index("pool")
    assert set(origins[:closed_before]) <= {"prior"}
    assert set(origins[closed_before:]) == {"pool"}
    assert marks == [True] * (closed_before + 9) + [False] * (len(marks) - closed_before - 9)


def test_an_expired_key_leaves_a_tombstone_and_returns_as_a_newcomer() -> None:
    """Nothing is left of what it was."""
    told = Told(settings(ttl="5m"))
    told.tell_all(range(0, 120, 5), "gone")
    told.tell_all(range(120, 12 * 60, 20), "there")
    sent = messages(told.config, told.turns)
    tombstones = [i for i, m in enumerate(sent) if m.value is None]
    assert [sent[i].key for i in tombstones] == [b"gone"]
    assert not any(m.key == b"gone" for m in sent[tombstones[0] + 1 :])
    assert told.shard.keys == 1

    told.tell(12 * 60, "gone")
    told.tell_all(range(12 * 60, 16 * 60, 20), "there")
    returned = [v for v in told.values if v["key"] == "gone"]
    again = next(v for v in returned if v["issued_at"] >= "2026-01-02T00:10:30")
    assert again["quality"] | {"coverage_80": None, "skill": None} == {
        "origin": "prior",
        "cold_start": True,
        "observations": 1,
        "coverage_80": None,
        "skill": None,
        "drift": "stable",
    }


def test_a_tombstone_forgets_its_key_where_it_stands() -> None:
    """At once, between two hops; what comes after it is a newcomer's."""
    told = Told(settings())
    told.tell_all(range(0, 600, 20))
    told.tell(600, "bob")
    turn = told.forget("ann")
    assert [(f.key, f.offset) for f in turn.forgotten] == [(b"ann", 31)]
    assert (turn.forecasts, turn.rejects, turn.hops) == ((), (), 0)
    assert b"ann" not in told.shard.table
    told.tell_all(range(601, 760, 20))
    again = [value for value in told.values if value["key"] == "ann"][-1]
    assert again["quality"]["observations"] < 10
    assert again["quality"]["cold_start"]


def test_a_tombstone_in_one_poll_with_forecasts_keeps_its_place() -> None:
    """A reader of the key sees forecasts, then that there are none, then those of a newcomer."""
    told = Told(settings())
    told.tell_all(range(0, 600, 20))
    told.forget("ann")
    told.tell_all(range(600, 1_200, 20))
    whole = shard(told.config).advance(block(told.log))
    values = [m.value for m in messages(told.config, [whole])]
    place = values.index(None)
    before, after = (
        [json.loads(v or b"")["quality"]["observations"] for v in part]
        for part in (values[:place], values[place + 1 :])
    )
    assert (before, after) == (sorted(before), sorted(after))
    assert before[-1] > 2 * after[0]
    assert messages(told.config, told.turns) == messages(told.config, [whole])


def test_a_hop_comes_before_the_tombstone_that_makes_it_due() -> None:
    """The key is forecast once more, from what was known, and then forgotten."""
    told = Told(settings())
    told.tell(0)
    turn = told.forget("ann", 60 + _LATENESS_S)
    said = messages(told.config, [turn])
    assert [(m.key, m.value is None) for m in said] == [(b"ann", False), (b"ann", True)]
    assert told.shard.keys == 0


def test_a_tombstone_without_a_time_moves_nothing() -> None:
    """A log whose past is being read stays there; before the first event there is no time."""
    told = Told(settings())
    told.forget("ann")
    assert told.shard.watermark_ms is None
    told.tell(0)
    before = told.shard.watermark_ms
    told.forget("bob")
    assert told.shard.watermark_ms == before == START_MS - 1000 * _LATENESS_S


def test_in_silence_a_tombstone_only_forgets() -> None:
    """It was published before; saying it again could take back what came after it."""
    told = Told(settings())
    told.tell(0)
    log: list[Row] = [*told.log, (b"ann", None, UNTIMED_MS)]
    assert told.shard.advance(block(log, 1), aloud=False).output == []
    assert told.shard.keys == 0


def test_a_tombstone_of_nobody_is_a_heartbeat() -> None:
    """Nothing is published of a key that was never known, and of a known one only once."""
    told = Told(settings())
    told.tell(0)
    turn = told.forget("nobody", 60 + _LATENESS_S)
    assert (turn.forgotten, len(turn.forecasts)) == ((), 1)
    assert len(told.forget("ann").forgotten) == 1
    assert told.forget("ann").forgotten == ()


def test_a_checkpoint_after_a_tombstone_has_nothing_of_the_key() -> None:
    """No bytes of it, an empty row in every column, and no sample of the network's."""
    told = Told(settings("mean", network=True))
    for minute in range(40):
        for user in ("secret-user", "ann", "bob"):
            told.tell(60 * minute, user)
    slot = told.shard.table.slot(b"secret-user")
    assert slot is not None
    arrays = told.shard.checkpoint().arrays
    sampled = [name for name in arrays if name.endswith(".slot")]
    assert any((arrays[name] == slot).any() for name in sampled)

    told.forget("secret-user")

    saved = told.shard.checkpoint()
    assert b"secret-user" not in checkpoint.encode(saved)
    assert not any((saved.arrays[name] == slot).any() for name in sampled)
    for name, column in under("table.column", saved.arrays).items():
        if slot < len(column):
            np.testing.assert_array_equal(
                column[slot], np.full_like(column[slot], _fill(told, name))
            )


def test_a_new_key_that_finds_no_room_takes_it_from_the_least_active() -> None:
    """At once and between hops: its event counts, and the other's forecasts are taken back."""
    told = Told(settings(max_keys=2))
    told.tell_all(range(0, 600, 20))
    told.tell_all(range(600, 660, 30), "bob")
    turn = told.tell(661, "cyd")
    assert (turn.events, turn.rejects) == (1, ())
    assert [(f.key, f.offset, f.published) for f in turn.shed] == [(b"bob", 32, True)]
    turn = told.tell(662, "eve")
    assert [(f.key, f.offset, f.published) for f in turn.shed] == [(b"cyd", 33, False)]
    assert turn.output == []
    told.tell_all(range(680, 900, 20))
    turn = told.tell(901, "dan")
    assert [(f.key, f.why, f.published) for f in turn.shed] == [(b"eve", "shed", True)]
    (taken_back,) = messages(told.config, [turn])
    assert (taken_back.key, taken_back.value) == (b"eve", None)
    assert dict(taken_back.headers)["ce_type"] == b"io.streamforecaster.forecast.shed.v1"
    assert {b"ann", b"dan"} == {told.shard.table.key(slot) for slot in (0, 1)}


def test_in_silence_a_key_that_is_shed_is_not_told() -> None:
    """It was published before; the key may be back since."""
    told = Told(settings(max_keys=1))
    told.tell_all([0, 200])
    log: list[Row] = [*told.log, (None, event("bob", START_MS + 210_000), START_MS + 210_000)]
    turn = told.shard.advance(block(log, 2), aloud=False)
    assert (turn.shed, turn.output) == ((), [])
    assert b"bob" in told.shard.table


def test_nothing_is_left_of_a_key_that_is_shed() -> None:
    """An empty row in every column, bounded ones too, and no sample of the network's."""
    config = settings("mean", network=True, max_keys=3)
    river = {"model": redacted(config)["model"] | {"river": ["HoltWinters"]}}
    told = Told(parse(redacted(config) | river))
    for minute in range(40):
        for user in ("idle", "ann", "bob")[minute % 4 > 0 :]:
            told.tell(60 * minute, user)
    slot = told.shard.table.slot(b"idle")
    assert slot is not None
    arrays = told.shard.checkpoint().arrays
    sampled = [name for name in arrays if name.endswith(".slot")]
    assert any((arrays[name] == slot).any() for name in sampled)
    assert any((arrays[n][slot] > 0).any() for n in arrays if n.endswith("HoltWinters.count"))

    (shed,) = told.shard._shed(0)

    assert shed.key == b"idle"
    saved = told.shard.checkpoint()
    assert b"idle" not in checkpoint.encode(saved)
    assert not any((saved.arrays[name] == slot).any() for name in sampled)
    for name, column in under("table.column", saved.arrays).items():
        if slot < len(column):
            np.testing.assert_array_equal(
                column[slot], np.full_like(column[slot], _fill(told, name))
            )


def _fill(told: Told, column: str) -> float:
    return told.shard.table._fill[column]


def test_a_key_that_expires_while_silent_is_told_once() -> None:
    """By a single tombstone, at the hop that finds it."""
    told = Told(settings(ttl="5m"))
    told.tell(0, "gone")
    turn = told.tell(3_600, "there")
    assert [f.expired for f in turn.forecasts] == [(b"gone",)]
    told.tell_all(range(3_600, 4_200, 20), "there")
    assert sum(len(f.expired) for f in told.forecasts) == 1


@given(log=rows(max_size=80))
def test_a_reader_is_never_left_with_an_expired_forecast(log: list[Row]) -> None:
    """After every hop each live key's last message is still valid, though unchanged ones rest."""
    config = settings(publish="changed")
    told = shard(config)
    valid_until: dict[bytes, str] = {}
    for i in range(len(log)):
        turn = told.advance(block(log, i, i + 1))
        for message in messages(config, [turn]):
            assert message.key is not None
            if message.value is None:
                valid_until.pop(message.key, None)
            else:
                valid_until[message.key] = json.loads(message.value)["valid_until"]
        for forecast in turn.forecasts:
            issued_at = np.datetime_as_string(np.datetime64(forecast.issued_ms, "ms"))
            live = {told.table.key(int(s)) for s in np.flatnonzero(told.table.live)}
            # Keys that came with the record that made the hop due are not forecast yet.
            for key in live & valid_until.keys():
                assert valid_until[key] > issued_at


def test_unchanged_forecasts_rest() -> None:
    """A steady key is published at half its horizon, not at every hop."""
    steady = {
        "input": {"allowed_lateness": "90s"},
        "resolutions": [{"step": "1m", "context": 5, "horizon": 20}],
        "state": {"key_ttl": "2h"},
    }
    every, changed = (
        Told(parse({**steady, "output": {"publish": publish}}))
        for publish in ("every_hop", "changed")
    )
    for told in (every, changed):
        told.tell_all(range(0, 3 * 3_600, 20))
    minutes = [changed.minute_of(f) for f in changed.forecasts if len(f.keys)]
    assert len(every.values) > 170
    late = [b - a for a, b in pairwise(minutes) if a > 60]
    assert max(late) == 10
    assert len(minutes) < 60


def test_records_out_of_place_are_a_bug() -> None:
    """Of another partition, or read already."""
    told = Told(settings())
    told.tell_all([0, 1])
    with pytest.raises(ValueError, match="before 2"):
        told.shard.advance(block(told.log, 1))
    other = Shard(told.config, told.shard.calendar, 1, 0)
    with pytest.raises(ValueError, match="partition 0"):
        other.advance(block(told.log))


def test_offsets_move_past_what_holds_no_records() -> None:
    """An empty block still says where reading goes on."""
    told = shard(settings())
    nothing, _ = block([(None, None, START_MS)]).split(0)
    told.advance(replace(nothing, next_offset=17))
    assert told.offset == 17


@given(
    zone=st.sampled_from(["UTC", "Asia/Kolkata", "Europe/Zurich", "Australia/Lord_Howe"]),
    start_s=st.sampled_from([1_774_569_600, 1_792_800_000, 1_767_312_000, 1_759_600_000]),
    gaps=st.lists(st.integers(0, 20_000), min_size=1, max_size=60),
    delays=st.lists(st.integers(0, 10_000), min_size=60, max_size=60),
)
def test_every_event_counts_in_every_zone(
    zone: str, start_s: int, gaps: list[int], delays: list[int]
) -> None:
    """Days may begin in the middle of an hour and last 23: each resolution holds all events."""
    config = parse(
        {
            "input": {"timezone": zone, "allowed_lateness": "2h"},
            "resolutions": [
                {"step": "1h", "context": 400, "horizon": 2},
                {"step": "1d", "context": 20, "horizon": 2},
            ],
        }
    )
    times_s = start_s + np.cumsum(gaps) - np.array(delays[: len(gaps)])
    log: list[Row] = [(None, event("ann", int(t) * 1000), int(t) * 1000) for t in times_s]
    told = shard(config)
    turn = told.advance(block(log))
    for pool in told.pools:
        total = told.table[f"window.{pool.window.step_ms}.total"]
        assert total.sum() == turn.events
    assert turn.events + len(turn.rejects) == len(log)


# -- training --------------------------------------------------------------------------------------


def _trained(**model: int) -> tuple[Shard, list[Turn]]:
    """A shard with these settings of its network, after an hour, and its turns."""
    base = settings(network=True)
    config = parse({**redacted(base), "model": {"network": True, **model}})
    told, log = shard(config), busy_log(240)
    return told, [told.advance(block(log, i, i + 60)) for i in range(0, len(log), 60)]


@pytest.mark.parametrize("every", [2, 5])
def test_training_is_metered_by_the_buckets_of_each_resolution(every: int) -> None:
    """One step at each that is due and has a label to learn from."""
    told, turns = _trained(train_every_hops=every)
    steps = 0
    for pool in told.pools:
        first = (START_MS - 1000 * _LATENESS_S) // pool.resolution.step_ms
        closed = np.arange(first, pool.window.closed)
        due = closed[closed % every == 0]
        steps += len(due) - 1  # the first samples have no label yet
    assert sum(turn.training_steps for turn in turns) == steps


def test_a_network_that_is_never_trained_forecasts() -> None:
    """With the weights it began with, to the end."""
    told, turns = _trained(train_every_hops=0)
    assert not any(turn.training_steps for turn in turns)
    begun = shard(settings(network=True)).checkpoint().arrays
    for name, array in told.checkpoint().arrays.items():
        if name.startswith(("network.network.", "network.average.")):
            np.testing.assert_array_equal(array, begun[name])
    weights = turns[-1].forecasts[-1].paths[0].weights.mean(axis=0)
    assert weights[told.pools[0].experts.index("lstm")] > 0


def test_rows_bound_what_a_step_learns_from() -> None:
    """As many steps, on fewer samples: another network."""
    (few, turns), (many, others) = _trained(train_rows=1), _trained(train_rows=64)
    assert [t.training_steps for t in turns] == [t.training_steps for t in others]
    name = "network.network.decoders.0.out.weight"
    assert (few.checkpoint().arrays[name] != many.checkpoint().arrays[name]).any()
