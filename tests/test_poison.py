"""Poison, the whole way: rejected by the service, resent, and counted once the settings are right.

On each broker in turn.
"""

import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import raw
import structlog
from brokers import Served, Wire, unique
from kafka.record.default_records import DefaultRecordBatch
from prometheus_client import CollectorRegistry

from stream_forecaster import config
from stream_forecaster.config import Settings
from stream_forecaster.dead_letters import REPLAYS
from stream_forecaster.edge.connection import Outage
from stream_forecaster.edge.kafka import KafkaTransport
from stream_forecaster.edge.publisher import Publisher
from stream_forecaster.edge.redelivery import Outcome, Plan, Redelivery
from stream_forecaster.edge.store import CheckpointStore
from stream_forecaster.edge.telemetry import Telemetry
from stream_forecaster.edge.topics import create_topics, describe_topics, read_topic
from stream_forecaster.edge.world import World
from stream_forecaster.records import Message
from stream_forecaster.service import Service

GIVE_UP_S = 30.0


class Pipeline:
    """A pipeline of the test's own; `fix` changes what an event's key is called."""

    def __init__(self, broker: Served, folder: Path) -> None:
        name = unique("poison")
        self._mapping: dict[str, Any] = {
            "kafka": {
                "bootstrap_servers": broker.bootstrap,
                "group_id": name,
                "instance_id": "test",
                "session_timeout": "6s",
            },
            "input": {"topic": f"{name}.events", "key": ["user_id"]},
            "output": {"topic": f"{name}.out", "dead_letter_topic": f"{name}.dead"},
            "resolutions": [{"step": "1h", "context": 3, "horizon": 2}],
            "model": {"network": False},
        }
        self._store = CheckpointStore(f"file://{folder}", name)
        create_topics(self.settings, 2)

    @property
    def settings(self) -> Settings:
        """As they are now."""
        return config.parse(self._mapping)

    def fix(self, *key: str) -> None:
        """Have the key in these fields from now on."""
        self._mapping["input"]["key"] = list(key)

    def write(self, field: str, numbers: range, **more: Any) -> None:
        """Write events whose key is in `field`, each with a header of its own."""
        logger, now_ms = structlog.get_logger(), time.time_ns() // 1_000_000
        publisher = Publisher(
            self.settings.kafka, None, Outage(self.settings.kafka, logger), logger
        )
        publisher.deliver(
            [
                Message(
                    self.settings.input.topic,
                    b"k%d" % (i % 3),
                    b'{"%s":"u%d","ts":%d,"n":%d}' % (field.encode(), i % 3, now_ms, i),
                    (("trace", b"%d" % i),),
                    **more,
                )
                for i in numbers
            ]
        )
        publisher.close()

    def serve(self, *, cold_start: bool = False) -> tuple[int, int]:
        """Run the service to the end of the input; how many events it counted and rejected."""
        registry = CollectorRegistry()
        transport = KafkaTransport(self.settings, structlog.get_logger())
        world = World(transport, self._store, Telemetry(registry), structlog.get_logger())
        give_up_s = time.monotonic() + GIVE_UP_S
        source, *_ = describe_topics(self.settings)
        ends = {p: end for p, (_, end) in source.bounds.items() if end}

        def stopping() -> bool:
            assert time.monotonic() < give_up_s, "it does not reach the end"
            return bool(transport._held) and all(
                transport._position.get(p, 0) >= end for p, end in ends.items()
            )

        Service(self.settings, world, cold_start=cold_start).run(stopping)
        samples = [s for metric in registry.collect() for s in metric.samples]
        return (
            int(sum(s.value for s in samples if s.name == "streamforecaster_events_total")),
            int(sum(s.value for s in samples if s.name == "streamforecaster_rejects_total")),
        )

    def replay(self, **plan: Any) -> Outcome:
        """Resend dead letters."""
        return Redelivery(self.settings, structlog.get_logger()).run(Plan(**plan))

    def input_numbers(self) -> list[int]:
        """The events in the input topic, resent ones twice, by their header."""
        records = read_topic(self.settings, self.settings.input.topic)
        return sorted(int(dict(r.headers)["trace"] or b"") for r in records)


@pytest.fixture
def poisoned(broker: Served, tmp_path: Path) -> Pipeline:
    """A pipeline with 40 events and 20 that name their key otherwise."""
    made = Pipeline(broker, tmp_path)
    made.write("user_id", range(40))
    made.write("uid", range(40, 60))
    return made


def test_after_the_fix_nothing_is_lost_or_doubled(poisoned: Pipeline) -> None:
    """What was rejected is counted once, and the second replay sends nothing."""
    before = poisoned.serve()
    poisoned.fix("uid")
    sent = poisoned.replay(), poisoned.replay()
    after = poisoned.serve(cold_start=True)

    assert before == (40, 20)
    assert sent == (Outcome(resent=20), Outcome())
    assert after == (20, 0)
    assert poisoned.input_numbers() == sorted([*range(60), *range(40, 60)])
    dead = list(read_topic(poisoned.settings, poisoned.settings.output.dead_letter_topic))
    assert sorted(int(dict(r.headers)["trace"] or b"") for r in dead) == list(range(40, 60))


def test_a_header_name_that_is_not_utf_8_stops_nothing(
    poisoned: Pipeline, broker: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record is rejected like any other, and what follows it is counted."""
    monkeypatch.setattr(DefaultRecordBatch, "_read_msg", DefaultRecordBatch._read_msg)
    with closing(Wire(broker.bootstrap)) as wire:
        code, _ = raw.produce(wire, poisoned.settings.input.topic, raw.with_odd_header(b"junk"))
    poisoned.write("user_id", range(60, 70))

    counted = poisoned.serve()

    assert code == 0
    assert counted == (50, 21)
    dead = read_topic(poisoned.settings, poisoned.settings.output.dead_letter_topic)
    (letter,) = [record for record in dead if record.value == b"junk"]
    assert letter.headers[:2] == ((r"\xff\xfe", b"1"), ("none", b""))


def test_without_a_fix_the_loop_ends(poisoned: Pipeline) -> None:
    """A record that is rejected again and again is resent three times, then passed over."""
    counted = [poisoned.serve()]
    sent = []
    for _ in range(5):
        sent.append(poisoned.replay())
        counted.append(poisoned.serve())

    assert sent == [*[Outcome(resent=20)] * 3, Outcome(given_up=20), Outcome()]
    assert counted == [(40, 20), *[(0, 20)] * 3, (0, 0), (0, 0)]
    dead = read_topic(poisoned.settings, poisoned.settings.output.dead_letter_topic)
    replays = [int(dict(r.headers).get(REPLAYS) or b"0") for r in dead]
    assert sorted(replays) == sorted([*range(4)] * 20)
