"""What viewers are told, and what that costs and changes: nothing."""

import json
from dataclasses import replace
from importlib import resources
from typing import Any

import jsonschema
import numpy as np
import pytest
import structlog
from prometheus_client import CollectorRegistry
from sites import START_MS, population
from structlog.testing import LogCapture

from stream_forecaster import checkpoint, views
from stream_forecaster.config import Settings, parse
from stream_forecaster.edge.memory import MemoryLog, MemoryRecord, MemoryStore, MemoryTransport
from stream_forecaster.edge.saver import at_once
from stream_forecaster.edge.telemetry import Telemetry
from stream_forecaster.edge.viewers import Question, Subject, Viewers, key_id
from stream_forecaster.edge.world import World
from stream_forecaster.lookback import Lookback
from stream_forecaster.service import Service

_MINUTE_MS = 60_000
_ALL: tuple[Subject, ...] = ("overview", "keys", "key", "past", "forecasts")


def settings(*, network: bool = False, **output: object) -> Settings:
    """Every hop is published, so that what stands is what was said at the newest one."""
    return parse(
        {
            "kafka": {"group_id": "shop", "commit_interval": "0s"},
            "output": {"publish": "every_hop"} | output,
            "model": {"network": network},
        }
    )


class Process:
    """A service on a log in memory, with clocks that only move when told."""

    def __init__(self, log: MemoryLog, config: Settings | None = None) -> None:
        self.log, self.viewers, self.said = log, Viewers(), LogCapture()
        self.seconds, self.cpu, self.per_look = 100.0, 0.0, 0.0
        world = World(
            MemoryTransport(log),
            MemoryStore(log),
            Telemetry(CollectorRegistry()),
            structlog.wrap_logger(
                structlog.ReturnLogger(),
                processors=[self.said],
                wrapper_class=structlog.make_filtering_bound_logger(0),
            ),
            now_s=lambda: self.seconds,
            cpu_s=self._cpu_s,
            wall_ms=lambda: START_MS + 10 * _MINUTE_MS,
            background=at_once,
            viewers=self.viewers,
        )
        self.service = Service(config or settings(), world)

    def _cpu_s(self) -> float:
        self.cpu += self.per_look
        return self.cpu

    def step(self, seconds: float = 1.0) -> None:
        """One turn, so much later."""
        self.seconds += seconds
        self.service.step()

    def drain(self) -> None:
        """Read everything."""
        while not self.log.drained:
            self.step()

    def ask(self, question: Question) -> Any:
        """The answer, whenever it comes."""
        with self.viewers.watching([question]) as watch:
            for _ in range(1_000):
                self.step(60.0)
                if found := watch.news(0):
                    return json.loads(found[0][1])
        raise AssertionError(f"no answer: {self.said.entries[-3:]}")

    @property
    def shard(self) -> Any:
        """The shard of partition 0."""
        return self.service._held[0].shard


def busy(minutes: int = 40, users: int = 20) -> MemoryLog:
    """Users for a while."""
    events = population(users).events(START_MS, START_MS + minutes * _MINUTE_MS)
    return MemoryLog({0: [MemoryRecord(e.key, e.value, e.arrival_ms) for e in events]})


def record(key: str, at_ms: int) -> MemoryRecord:
    """An event."""
    return MemoryRecord(None, json.dumps({"user_id": key, "ts": at_ms}).encode(), at_ms)


def drained(log: MemoryLog | None = None, config: Settings | None = None) -> Process:
    """A process that has read everything."""
    process = Process(log or busy(), config)
    process.drain()
    process.step(2.0)
    return process


@pytest.mark.parametrize("network", [False, True])
def test_looking_changes_nothing(*, network: bool) -> None:
    """A shard that everything was asked of is the same, bit for bit."""
    process = drained(config=settings(network=network))
    key = process.shard.table.key(0)
    before = bytes(checkpoint.encode(process.shard.checkpoint()))

    for subject in _ALL:
        assert process.ask(Question(subject, key))
    process.ask(Question("keys", search="a"))

    assert bytes(checkpoint.encode(process.shard.checkpoint())) == before


def test_without_a_viewer_nothing_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The only cost is to look whether somebody is there."""
    process = drained()

    def answer(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(process.service._showing, "_answer", answer)
    for _ in range(50):
        process.step(10.0)

    assert not process.said.entries[-1]["event"].startswith("showing")


def test_viewers_get_a_fiftieth_of_a_core() -> None:
    """After an answer that took a tenth of a second there is none for five seconds."""
    process = drained()
    with process.viewers.watching([Question("overview")]) as watch:
        process.step(60.0)
        assert watch.news(0)
        process.per_look = 0.05  # every look at the clock; three in an answer

        process.step(60.0)
        assert watch.news(0)
        process.step(4.0)
        assert not watch.news(0)
        process.step(1.5)
        assert watch.news(0)


def test_what_is_new_is_answered_sooner() -> None:
    """A page that opens waits for a tenth of that; those that are open do not profit."""
    process = drained()
    with process.viewers.watching([Question("overview")]) as watch:
        process.per_look = 0.05
        process.step(60.0)
        assert watch.news(0)
        with process.viewers.watching([Question("keys")]) as other:
            process.step(0.3)
            assert not other.news(0)
            process.step(0.3)
            assert other.news(0)
            assert not watch.news(0)


def test_who_always_asks_something_new_gets_no_more() -> None:
    """What is answered sooner is lent, and paid back."""
    process = drained()
    process.step(60.0)
    process.per_look = 0.05
    answered, lasted_s = 0, 1_000.0
    for number in range(int(lasted_s / 0.5)):
        with process.viewers.watching([Question("key", b"%d" % number)]) as watch:
            process.step(0.5)
            answered += len(watch.news(0))
    cost_s = 2 * process.per_look

    assert 0.8 * 0.02 * lasted_s < answered * cost_s < 1.2 * 0.02 * lasted_s


def test_no_question_starves() -> None:
    """Where there is time for one answer only, each has its turn."""
    process = drained()
    questions = [Question("keys", order=order) for order in ("active", "surprising", "newest")]
    with process.viewers.watching(questions) as watch:
        process.per_look = 0.03
        heard = []
        for _ in range(6):
            process.step(60.0)
            heard.append([question for question, _ in watch.news(0)])

    assert sorted(len(of) for of in heard) == [1] * 6
    assert {of[0] for of in heard[:3]} == set(questions)


def test_a_key_s_forecast_is_the_message_that_was_published() -> None:
    """Word for word, once the key has been looked at and a hop has come."""
    log = busy()
    process = drained(log)
    key = process.shard.table.key(int(np.argmin(process.shard.table["activity"])))
    first = process.ask(Question("key", key))
    at_ms = log.partitions[0][-1].time_ms

    log.partitions[0] += [record("commuter-0001", at_ms + i * _MINUTE_MS) for i in range(1, 4)]
    process.drain()
    answer = process.ask(Question("key", key))

    published = [m.value for m in log.published if m.key == key and m.value]
    assert (first["published"], answer["published"]) == (False, True)
    assert answer["forecast"] == json.loads(published[-1] or b"")
    assert answer["id"] == key_id(key)
    resolution = answer["windows"][0]
    assert len(resolution["values"]) == resolution["closed"] == 60
    assert len(resolution["at"]) == 60 + 30


def test_what_was_forecast_before_is_kept_of_keys_that_are_looked_at() -> None:
    """Fans and weights of each issue, oldest first, of coarse resolutions as they were issued."""
    log = busy()
    process = drained(log)
    key = process.shard.table.key(3)
    process.ask(Question("key", key))
    at_ms = log.partitions[0][-1].time_ms
    log.partitions[0] += [record("commuter-0001", at_ms + i * _MINUTE_MS) for i in range(1, 9)]
    process.drain()

    minute, *_ = process.ask(Question("past", key))["resolutions"]

    assert len(minute["issued_ms"]) >= 6
    assert minute["issued_ms"] == sorted(minute["issued_ms"])
    assert np.array(minute["mean"]).shape == (len(minute["issued_ms"]), 30)
    assert [band["level"] for band in minute["bands"]] == [0.95, 0.8]
    assert len(minute["weights"][0]) == len(minute["experts"])


@pytest.mark.parametrize(
    ("quantiles", "levels"),
    [
        ([0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975], [0.95, 0.8]),
        ([0.005, 0.025, 0.1, 0.5, 0.9, 0.975, 0.995], [0.95, 0.8]),
        ([0.05, 0.25, 0.5, 0.75, 0.95], [0.9, 0.5]),
        ([0.1, 0.5, 0.9], [0.8]),
        ([0.1, 0.5], []),
    ],
)
def test_the_newest_fan_the_past_ones_and_the_list_show_the_same_intervals(
    quantiles: list[float], levels: list[float]
) -> None:
    """Of 95 and 80 % where there are such, else the widest; and each with the level it has."""
    process = drained(config=settings(quantiles=quantiles))
    key = process.shard.table.key(3)
    process.ask(Question("key", key))
    end_ms = process.log.partitions[0][-1].time_ms
    process.log.partitions[0] += [record("loud", end_ms + i * _MINUTE_MS) for i in range(1, 4)]
    process.drain()

    now, past = process.ask(Question("key", key)), process.ask(Question("past", key))
    listed = process.ask(Question("keys"))

    for bands in (now["bands"], past["resolutions"][0]["bands"], listed["bands"]):
        assert [band["level"] for band in bands] == levels
    said = now["forecast"]["resolutions"][0]["quantiles"]
    for band, before in zip(now["bands"], past["resolutions"][0]["bands"], strict=True):
        assert float(band["high"]) - float(band["low"]) == pytest.approx(band["level"])
        assert (said[band["low"]], said[band["high"]]) == (before["low"][-1], before["high"][-1])
    assert {len(row["next"]) for row in listed["rows"]} == {3 if levels else 1}


def test_the_past_is_told_once_for_each_forecast() -> None:
    """It is long: it comes when a viewer does, and when there is more of it."""
    process = drained()
    question = Question("past", process.shard.table.key(3))
    with process.viewers.watching([question]) as watch:
        process.step(60.0)
        assert watch.news(0)
        process.step(60.0)
        assert not watch.news(0)
    with process.viewers.watching([question]) as watch:
        process.step(60.0)
        assert watch.news(0)


def test_forecasts_follow_the_schema_and_survive_a_death() -> None:
    """A process that recovers from a checkpoint and the log says the same, under the same ids."""
    log = busy()
    before = drained(log).ask(Question("forecasts"))
    saved = sorted(log.checkpoints)
    for place in saved[len(saved) // 2 :]:  # an older one: some of the log has to be read again
        del log.checkpoints[place]

    after = drained(log).ask(Question("forecasts"))

    assert len(before) > 15
    assert after == before
    schema = json.loads(
        (resources.files("stream_forecaster") / "schemas" / "forecast-1.json").read_text()
    )
    for said in before:
        jsonschema.validate(said, schema)


def test_there_are_no_more_forecasts_where_there_are_more_partitions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The most active keys of all together, whichever partition has them."""
    monkeypatch.setattr("stream_forecaster.showing._FORECASTS", 5)
    records, end_ms = busy().partitions[0], START_MS + 40 * _MINUTE_MS
    loud = [record(f"loud-{i}", end_ms) for i in range(3) for _ in range(200)]
    process = drained(MemoryLog({0: records, 1: records[:-1] + loud}))

    said = process.ask(Question("forecasts"))

    assert len(said) == 5
    assert {f"loud-{i}" for i in range(3)} <= {of["key"] for of in said}
    assert {of["source"]["partition"] for of in said} <= {0, 1}


@pytest.mark.parametrize(
    ("search", "found"),
    [("steady", 5), ("0003", 1), ("nobody", 0), ("<script>", 1)],
)
def test_search_finds_what_keys_contain(search: str, found: int) -> None:
    """Anywhere in the key, in any case."""
    log = busy()
    log.partitions[0].append(record("<SCRIPT>alert(1)</SCRIPT>", START_MS + 40 * _MINUTE_MS))
    answer = drained(log).ask(Question("keys", search=search))

    assert (answer["found"], len(answer["rows"])) == (found, found)
    assert all(search in row["key"].lower() for row in answer["rows"])


def test_a_search_goes_on_where_it_left_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many keys there are, no turn looks for longer than it may."""
    monkeypatch.setattr("stream_forecaster.showing._SCANNED", 2)
    process = drained()
    with process.viewers.watching([Question("keys", search="0019")]) as watch:
        process.per_look = 0.03
        turns = 0
        while not (found := watch.news(0)):
            process.step(60.0)
            turns += 1

    assert turns > 5
    assert json.loads(found[0][1])["found"] == 1


def test_who_leaves_in_the_middle_of_a_search_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A search holds the shards that it goes through, which may be lost meanwhile."""
    monkeypatch.setattr("stream_forecaster.showing._SCANNED", 2)
    process = drained()
    with process.viewers.watching([Question("keys", search="0019")]) as watch:
        process.per_look = 0.03
        process.step(60.0)
        assert not watch.news(0)
        assert process.service._showing._scans

    process.step()

    assert not process.service._showing._scans


def test_a_search_that_failed_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """One failure is not for ever."""
    process, matching = drained(), views.matching

    def fail(*_: object) -> None:
        monkeypatch.setattr(views, "matching", matching)
        raise ValueError

    monkeypatch.setattr(views, "matching", fail)

    assert process.ask(Question("keys", search="0019"))["found"] == 1
    assert [e["error"] for e in process.said.entries if e["event"] == "showing_failed"] == [
        "ValueError"
    ]


def test_what_is_kept_of_a_key_is_not_what_expired_beside_it() -> None:
    """Else every look at it would encode the tombstones of all the others."""
    process, lookback = drained(), Lookback()
    key = process.shard.table.key(3)
    said = views.stated(settings(), process.shard, np.array([3]))
    lookback.follow([key])

    lookback.hear(replace(said, expired=(b"gone", b"gone too")))

    kept = lookback.newest(key)
    assert kept is not None
    assert (kept.keys, kept.expired) == ((key,), ())


@pytest.mark.parametrize(("order", "first"), [("newest", "late-comer"), ("active", "loud")])
def test_lists_are_ordered(order: Any, first: str) -> None:
    """By when they came, by how much they do."""
    log, end_ms = busy(), START_MS + 41 * _MINUTE_MS
    log.partitions[0] += [record("loud", end_ms) for _ in range(400)]
    log.partitions[0] += [record("late-comer", end_ms + _MINUTE_MS)]
    log.partitions[0] += [record("commuter-0001", end_ms + i * _MINUTE_MS) for i in range(2, 5)]

    rows = drained(log).ask(Question("keys", order=order))["rows"]

    assert rows[0]["key"] == first


def test_the_most_surprising_come_first() -> None:
    """By how far off the newest forecast was, too high or too low."""
    rows = drained().ask(Question("keys", order="surprising"))["rows"]

    sizes = [abs(row["surprise"]) for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


def test_a_forgotten_key_is_not_shown() -> None:
    """Neither it, nor what was forecast of it."""
    log = busy()
    process = drained(log)
    key = process.shard.table.key(3)
    process.ask(Question("key", key))
    log.partitions[0].append(MemoryRecord(key, None, log.partitions[0][-1].time_ms))
    process.drain()

    assert process.ask(Question("key", key)) == {
        "id": key_id(key),
        "key": key.decode(),
        "known": False,
    }
    assert process.ask(Question("past", key))["resolutions"] == []


def test_a_failure_is_logged_without_the_key_and_the_stream_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A page is no reason to stop forecasting."""
    process = drained()

    def fail(*_: object) -> None:
        raise ValueError("secret-key")

    monkeypatch.setattr("stream_forecaster.views.windows", fail)
    with process.viewers.watching([Question("key", process.shard.table.key(0))]) as watch:
        for _ in range(3):
            process.step(60.0)
            assert not watch.news(0)

    said = [entry for entry in process.said.entries if entry["event"] == "showing_failed"]
    assert [(entry["subject"], entry["error"]) for entry in said] == [("key", "ValueError")]
    assert "secret-key" not in str(process.said.entries)


@pytest.mark.parametrize("subject", _ALL)
def test_everything_can_be_asked_before_there_is_anything(subject: Any) -> None:
    """No partition, then no event."""
    process = Process(MemoryLog({0: []}))

    answer = process.ask(Question(subject, b"u1"))

    if subject == "overview":
        assert (answer["watermark_ms"], answer["keys"]) == (None, 0)
    assert not [e for e in process.said.entries if e["event"] == "showing_failed"]
