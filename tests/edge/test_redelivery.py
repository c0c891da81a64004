"""Redelivery: each dead letter is sent again once, whatever happens meanwhile."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
import structlog
from brokers import Served, unique
from kafka import KafkaAdminClient
from pipelines import pipeline

from stream_forecaster import config
from stream_forecaster.config import Settings
from stream_forecaster.dead_letters import REPLAYS, dead_letter
from stream_forecaster.edge import redelivery
from stream_forecaster.edge.broker import Broker, Fault
from stream_forecaster.edge.connection import Outage
from stream_forecaster.edge.publisher import Publisher
from stream_forecaster.edge.redelivery import Outcome, Plan, Redelivery
from stream_forecaster.edge.topics import StoredRecord, read_topic
from stream_forecaster.errors import Fenced, StateError, TransportError
from stream_forecaster.events import Reason, Reject
from stream_forecaster.records import Message

NOW_MS = time.time_ns() // 1_000_000 - 60_000  # the broker deletes what is older than retention


def put(settings: Settings, messages: Iterable[Message]) -> None:
    """Write messages, as `run` does."""
    logger = structlog.get_logger()
    publisher = Publisher(settings.kafka, None, Outage(settings.kafka, logger), logger)
    publisher.deliver(list(messages))
    publisher.close()


def letter(settings: Settings, number: int, reason: Reason, replays: int = 0) -> Message:
    """A dead letter of record `number` of partition `number % 2`."""
    headers = ((REPLAYS, b"%d" % replays),) if replays else ()
    reject = Reject(
        number % 2, number, reason, "", b"\x00%d" % number, b"\xff%d" % number, NOW_MS, headers
    )
    return dead_letter(reject, settings.input.topic, settings.output.dead_letter_topic)


def with_letters(broker: Served, letters: int, *reasons: Reason) -> Settings:
    """A pipeline with so many dead letters; their reasons take turns."""
    settings = pipeline(broker)
    reasons = reasons or (Reason.NO_KEY,)
    put(settings, (letter(settings, i, reasons[i % len(reasons)]) for i in range(letters)))
    return settings


def resend(settings: Settings, **plan: Any) -> Outcome:
    """One run, in batches of ten."""
    return Redelivery(settings, structlog.get_logger()).run(Plan(**plan))


def received(settings: Settings) -> list[StoredRecord]:
    """What lies in the input topic."""
    return list(read_topic(settings, settings.input.topic))


def numbers(settings: Settings) -> list[int]:
    """Which letters lie in the input topic, with repetitions."""
    return sorted(int((record.value or b"")[1:]) for record in received(settings))


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redelivery, "_BATCH", 10)


def test_every_letter_is_sent_once(broker: Served) -> None:
    """As it was, to where it came from, at its own time; a second run finds nothing to do."""
    settings = with_letters(broker, 35)

    outcomes = [resend(settings), resend(settings)]

    assert outcomes == [Outcome(resent=35), Outcome()]
    assert numbers(settings) == list(range(35))
    for record in received(settings):
        number = int((record.value or b"")[1:])
        assert (record.key, record.value) == (b"\x00%d" % number, b"\xff%d" % number)
        assert (record.partition, record.time_ms) == (number % 2, NOW_MS)
        assert record.headers == ((REPLAYS, b"1"),)


def test_reasons_have_their_own_progress(broker: Served) -> None:
    """In any order, and then all the rest; each letter once."""
    settings = with_letters(broker, 30, Reason.NO_KEY, Reason.BAD_TIME, Reason.NOT_JSON)

    sent = [
        resend(settings, reasons=["bad_time"]).resent,
        resend(settings, reasons=["bad_time"]).resent,
        resend(settings, reasons=["no_key", "bad_time"]).resent,
        resend(settings).resent,
    ]

    assert sent == [10, 0, 10, 10]
    assert numbers(settings) == list(range(30))


def test_new_letters_are_sent_by_the_next_run(broker: Served) -> None:
    """Progress is a place in the topic, not an end."""
    settings = with_letters(broker, 5)
    resend(settings)
    put(settings, [letter(settings, 5, Reason.NO_KEY)])

    assert resend(settings) == Outcome(resent=1)
    assert numbers(settings) == list(range(6))


def test_what_came_back_too_often_is_passed_over(broker: Served) -> None:
    """The header that travels with the record is the guard."""
    settings = pipeline(broker)
    put(settings, (letter(settings, i, Reason.NO_KEY, replays=i) for i in range(6)))

    assert resend(settings, max_replays=3) == Outcome(resent=3, given_up=3)
    assert numbers(settings) == [0, 1, 2]
    assert sorted(dict(r.headers)[REPLAYS] or b"" for r in received(settings)) == [b"1", b"2", b"3"]


def test_what_is_not_ours_is_passed_over(broker: Served) -> None:
    """Letters of another topic, and records that are no letters."""
    settings = pipeline(broker)
    dead = settings.output.dead_letter_topic
    reject = Reject(0, 1, Reason.NO_KEY, "", b"k", b"v")
    put(settings, [dead_letter(reject, "elsewhere", dead), Message(dead, b"k", b"v")])

    assert resend(settings) == Outcome(foreign=2)
    assert received(settings) == []


def test_a_record_of_nothing_goes_through(broker: Served) -> None:
    """No key and no value: a heartbeat that has no time either."""
    settings = pipeline(broker)
    reject = Reject(0, 1, Reason.BAD_TIME, "", None, None, -1, (("h", None),))
    put(settings, [dead_letter(reject, settings.input.topic, settings.output.dead_letter_topic)])

    assert resend(settings) == Outcome(resent=1)
    (record,) = received(settings)
    assert (record.key, record.value) == (None, None)
    assert record.headers == (("h", b""), (REPLAYS, b"1"))


_KILLED = """
import os, signal, sys, structlog
from stream_forecaster import config
from stream_forecaster.edge import publisher, redelivery
redelivery._BATCH = 10
moment, left = sys.argv[1], int(sys.argv[2])

def fatal(name, after):
    whole = getattr(publisher.Publisher, name)
    def doomed(*arguments):
        global left
        left -= 1
        if left < 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = whole(*arguments)
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(publisher.Publisher, name, doomed)

fatal(*{"before send": ("_send", False), "after send": ("_send", True),
        "after await": ("_await", True), "after commit": ("transact", True)}[moment])
redelivery.Redelivery(config.load(sys.stdin.read(), {}, {}, str), structlog.get_logger()).run(
    redelivery.Plan())
"""


@pytest.mark.parametrize(
    ("moment", "calls"),
    [
        ("before send", 0),
        ("after send", 1),  # records are there, offsets are not
        ("after await", 2),  # offsets are held by an open transaction
        ("after await", 3),  # the commit is done or about to be
        ("after commit", 1),
    ],
)
def test_a_killed_run_is_finished_by_the_next(broker: Served, moment: str, calls: int) -> None:
    """Wherever it was killed: nothing lost, nothing doubled."""
    settings = with_letters(broker, 40)

    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, moment, str(calls)],
        input=config.to_toml(config.redacted(settings)),
        text=True,
        capture_output=True,
        check=False,
        env=os.environ,
    )
    resend(settings)

    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert numbers(settings) == list(range(40))


def test_a_lost_answer_to_a_commit_is_settled(embedded_broker: Broker) -> None:
    """The run goes on by itself, from what the broker has."""
    settings = with_letters(embedded_broker, 30)
    seen = Counter[str]()

    def lose_the_second(_: object) -> Fault | None:
        seen["EndTxn"] += 1
        return Fault.LOSE_ANSWER if seen["EndTxn"] == 2 else None

    embedded_broker.hooks["EndTxn"] = lose_the_second
    resend(settings)

    assert seen["EndTxn"] > 2
    assert numbers(settings) == list(range(30))


def test_of_two_runs_at_once_one_gives_way(broker: Served) -> None:
    """The later one fences the earlier one, and everything is sent once."""
    settings = with_letters(broker, 40)

    def meanwhile(_: int) -> None:
        assert numbers(settings)
        resend(settings)

    with pytest.raises(Fenced):
        Redelivery(settings, structlog.get_logger(), meanwhile).run(Plan())

    assert numbers(settings) == list(range(40))


def test_old_letters_are_in_doubt_without_progress(broker: Served) -> None:
    """Brokers forget an idle group; then only the operator can know."""
    settings = with_letters(broker, 5)
    in_eight_days = lambda: NOW_MS + 10**12  # noqa: E731  (any time long after)
    late = Redelivery(settings, structlog.get_logger(), now_ms=in_eight_days)

    with pytest.raises(StateError, match="--first"):
        late.run(Plan())
    assert received(settings) == []

    first = Redelivery(settings, structlog.get_logger(), now_ms=in_eight_days).run(Plan(first=True))
    again = Redelivery(settings, structlog.get_logger(), now_ms=in_eight_days).run(Plan())
    assert (first, again) == (Outcome(resent=5), Outcome())


def test_a_topic_made_anew_is_an_error(embedded_broker: Broker) -> None:
    """Its letters would be passed over by the progress of its predecessor."""
    settings = with_letters(embedded_broker, 20)
    resend(settings)
    admin = KafkaAdminClient(bootstrap_servers=embedded_broker.bootstrap)
    group = f"{settings.kafka.group_id}.dlq"
    topic = settings.output.dead_letter_topic
    known = admin.list_group_offsets({group: None})[group]
    admin.alter_group_offsets(
        group, {tp: found._replace(offset=found.offset + 1) for tp, found in known.items()}
    )
    admin.close()

    with pytest.raises(StateError, match=f"{topic}.*made anew"):
        resend(settings)


def test_no_topic_is_an_error(broker: Served) -> None:
    """And says which."""
    settings = pipeline(broker)
    output = settings.output.model_copy(update={"dead_letter_topic": unique("none")})

    with pytest.raises(TransportError, match="no topic"):
        resend(settings.model_copy(update={"output": output}))
