"""Hostile input, the whole way: what bounds it, and which counter says so.

The service runs on the embedded broker, as it would in production; only time is shortened.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from brokers import unique
from kafka import KafkaAdminClient
from prometheus_client import CollectorRegistry

from stream_forecaster import config
from stream_forecaster.config import Settings, redacted
from stream_forecaster.edge.broker import Broker
from stream_forecaster.edge.kafka import KafkaTransport
from stream_forecaster.edge.store import CheckpointStore
from stream_forecaster.edge.telemetry import Telemetry
from stream_forecaster.edge.topics import EventWriter, create_topics, describe_topics, read_topic
from stream_forecaster.edge.world import World
from stream_forecaster.errors import TransportError
from stream_forecaster.service import Service

_GIVE_UP_S = 60.0
_MINUTE_MS = 60_000
_YEAR_MS = 365 * 24 * 60 * _MINUTE_MS
_LATENESS_MS = 2 * _MINUTE_MS


class Site:
    """A pipeline of one partition, and what was told it.

    Args:
        broker: where it lives.
        folder: for checkpoints.
        more: settings, by section.
    """

    def __init__(self, broker: Broker, folder: Path, **more: dict[str, Any]) -> None:
        name = unique("hostile")
        base: dict[str, dict[str, Any]] = {
            "kafka": {"bootstrap_servers": broker.bootstrap, "group_id": name, "instance_id": "t"},
            "input": {"topic": f"{name}.events"},
            "output": {"topic": f"{name}.out", "dead_letter_topic": f"{name}.dead"},
            "model": {"network": False},
        }
        steps = [{"step": "1m", "context": 5, "horizon": 3}]
        sections = {s: base.get(s, {}) | more.get(s, {}) for s in base.keys() | more.keys()}
        self.settings: Settings = config.parse({**sections, "resolutions": steps})
        self.now_ms = time.time_ns() // 1_000_000
        self._folder, self._name = folder, name
        self.registry = CollectorRegistry()

    def create(self, max_message_bytes: int | None = None) -> None:
        """Make the topics, the input as its owner might have: for larger records."""
        if max_message_bytes is not None:
            _create_large(self.settings, max_message_bytes)
        create_topics(self.settings, 1)

    def write(self, events: Iterable[tuple[str, int]], record_ms: int | None = None) -> None:
        """Events of users at times; each record has its event's time, or `record_ms`."""
        self.write_raw(
            (None, b'{"user_id":"%s","ts":%d}' % (user.encode(), ms), record_ms or ms)
            for user, ms in events
        )

    def write_raw(self, records: Iterable[tuple[bytes | None, bytes | None, int | None]]) -> None:
        """Records as they are: key, value and time."""
        with EventWriter(self.settings) as writer:
            writer.write(records)

    def serve(self) -> Service:
        """Run the service to the end of the input."""
        transport = KafkaTransport(self.settings, structlog.get_logger())
        store = CheckpointStore(f"file://{self._folder}", self._name)
        silent = structlog.wrap_logger(
            structlog.ReturnLogger(), wrapper_class=structlog.make_filtering_bound_logger(50)
        )
        service = Service(self.settings, World(transport, store, Telemetry(self.registry), silent))
        (source, *_) = describe_topics(self.settings)
        end, give_up_s = source.bounds[0][1], time.monotonic() + _GIVE_UP_S

        def stopping() -> bool:
            assert time.monotonic() < give_up_s, "it does not reach the end"
            return transport._position.get(0, 0) >= end

        service.run(stopping)
        return service

    def metric(self, name: str, **labels: str) -> float:
        """A sample's value."""
        return self.registry.get_sample_value(f"streamforecaster_{name}", labels) or 0.0

    @property
    def counted(self) -> dict[str, float]:
        """Events, and rejects by reason, that are not zero."""
        samples = [s for metric in self.registry.collect() for s in metric.samples]
        rejects = {
            s.labels["reason"]: s.value
            for s in samples
            if s.name == "streamforecaster_rejects_total" and s.value
        }
        return {"events": self.metric("events_total"), **rejects}

    def messages(self, topic: str) -> list[Any]:
        """All records of one of its topics."""
        return list(read_topic(self.settings, topic))

    def forecasts(self) -> list[dict[str, Any]]:
        """All forecasts that were published, parsed."""
        return [json.loads(m.value) for m in self.messages(self.settings.output.topic) if m.value]


def _create_large(settings: Settings, max_message_bytes: int) -> None:
    admin = KafkaAdminClient(bootstrap_servers=settings.kafka.bootstrap_servers)
    topic = {"num_partitions": 1, "configs": {"max.message.bytes": str(max_message_bytes)}}
    admin.create_topics({settings.input.topic: topic})
    admin.close()


@pytest.fixture
def site(shared_embedded_broker: Broker, tmp_path: Path) -> Site:
    """A pipeline of the test's own."""
    made = Site(shared_embedded_broker, tmp_path)
    made.create()
    return made


def _steady(
    site: Site, minutes: int, users: Sequence[str] = ("ann", "bob")
) -> list[tuple[str, int]]:
    """Events of some users, four a minute each, that end now."""
    begin_ms = site.now_ms - minutes * _MINUTE_MS
    times = range(begin_ms, site.now_ms, _MINUTE_MS // 4)
    return [(user, ms) for ms in times for user in users]


def test_random_keys_do_not_throw_out_those_that_stay(
    shared_embedded_broker: Broker, tmp_path: Path
) -> None:
    """The table is full and stays so; the counter says how many went, none of them a regular."""
    site = Site(shared_embedded_broker, tmp_path, state={"max_keys": 200})
    site.create()
    regulars = [f"regular{i}" for i in range(100)]
    steady = _steady(site, 6, regulars)
    flood = [(f"random{i}", ms) for i, (_, ms) in enumerate(steady[len(steady) // 3 :])]
    site.write(sorted([*steady, *flood], key=lambda event: event[1]))
    service = site.serve()

    table = service._held[0].shard.table
    assert site.counted == {"events": len(steady) + len(flood)}
    assert len(table) <= 200
    assert site.metric("keys_shed_total") == 100 + len(flood) - len(table)
    assert all(regular.encode() in table for regular in regulars)
    taken_back = {m.key for m in site.messages(site.settings.output.topic) if m.value is None}
    assert taken_back
    assert all(key.startswith(b"random") for key in taken_back)


def test_a_key_of_a_megabyte_is_a_dead_letter(
    shared_embedded_broker: Broker, tmp_path: Path
) -> None:
    """Of the record or in the value; the bound is `input.max_key_bytes`."""
    for key in ([], ["user_id"]):
        site = Site(shared_embedded_broker, tmp_path, input={"key": key, "topic": unique("in")})
        site.create()
        long, ms = b"k" * 1_000_000, site.now_ms
        inside = b'{"user_id":"%s","ts":%d}' % (long, ms)
        record = (None, inside, ms) if key else (long, b'{"ts":%d}' % ms, ms)
        site.write_raw([record, (b"k", b'{"user_id":"k","ts":%d}' % ms, ms)])
        site.serve()

        assert site.counted == {"events": 1, "too_large": 1}
        (letter,) = site.messages(site.settings.output.dead_letter_topic)
        assert (letter.key, letter.value) == record[:2]


def test_a_value_of_ten_megabytes_is_a_dead_letter_that_fits(
    shared_embedded_broker: Broker, tmp_path: Path
) -> None:
    """Cut, so that it stops nothing; where the record lies is in the headers."""
    site = Site(shared_embedded_broker, tmp_path)
    site.create(max_message_bytes=12 << 20)
    value = b'{"user_id":"ann","ts":%d,"x":"%s"}' % (site.now_ms, b"x" * (10 << 20))
    site.write_raw([(b"a", value, site.now_ms)])
    site.write(_steady(site, 1))
    site.serve()

    assert site.counted == {"events": 8, "too_large": 1}
    (letter,) = site.messages(site.settings.output.dead_letter_topic)
    assert value.startswith(letter.value)
    headers = dict(letter.headers)
    assert headers["__streams.errors.offset"] == b"0"
    assert int(headers["stream_forecaster.cut"]) == len(value) + 1


def test_a_hot_key_is_one_key(site: Site) -> None:
    """Nine events in ten are its own: all are counted, and the others have their forecasts."""
    rng = np.random.default_rng(1)
    times = np.sort(rng.integers(site.now_ms - 6 * _MINUTE_MS, site.now_ms, 20_000))
    hot = rng.random(20_000) < 0.9
    users = np.where(hot, "hot", np.char.add("cold", rng.integers(0, 50, 20_000).astype(str)))
    site.write(zip(users.tolist(), times.tolist(), strict=True))
    service = site.serve()

    assert site.counted == {"events": 20_000}
    assert service._held[0].shard.keys == 51
    shard = service._held[0].shard
    assert shard.table["observations"][shard.table.slot(b"hot")] == hot.sum()
    last = {f["key"]: f for f in site.forecasts()}
    assert len(last) == 51
    assert last["hot"]["intent"]["short_term"] > 100 * last["cold7"]["intent"]["short_term"]


def test_a_hundred_thousand_events_at_once_are_one_bucket(site: Site) -> None:
    """With one timestamp: counted, and no hop but the one before them."""
    at_ms = site.now_ms - _MINUTE_MS
    site.write([("ann", at_ms - 4 * _MINUTE_MS), ("ann", at_ms - 3 * _MINUTE_MS)])
    site.write(("ann", at_ms) for _ in range(100_000))
    site.write([("ann", site.now_ms + 3 * _MINUTE_MS)], record_ms=site.now_ms)
    service = site.serve()

    assert site.counted == {"events": 100_003}
    values = service._held[0].shard.pools[0].window.values()
    assert np.nanmax(values) == 100_000
    assert len(site.forecasts()) <= 5


def test_clocks_that_jump_cost_their_own_events_only(site: Site) -> None:
    """Ahead is refused by the record's own time, behind by the watermark; the rest counts."""
    steady = _steady(site, 6)
    wild = [
        (ms + offset_ms, ms)
        for i, (_, ms) in enumerate(steady)
        for offset_ms in ([3_600_000] if i % 2 else [-3_600_000])
    ]
    records = [("ann", ms, record_ms) for ms, record_ms in wild]
    records += [(user, ms, ms) for user, ms in steady]
    records.sort(key=lambda row: row[2])
    site.write_raw(
        (None, b'{"user_id":"%s","ts":%d}' % (user.encode(), ms), record_ms)
        for user, ms, record_ms in records
    )
    service = site.serve()

    # Before the first event there is no watermark that one could be behind.
    assert site.counted["events"] in {len(steady), len(steady) + 1}
    assert site.counted["too_far_ahead"] == len(steady) // 2
    assert site.counted["too_late"] >= len(steady) // 2 - 1
    watermark_ms = service._held[0].shard.watermark_ms
    assert watermark_ms == steady[-1][1] - _LATENESS_MS


def test_one_event_from_2031_moves_nothing(site: Site) -> None:
    """It is refused, and what comes after it is not late."""
    steady = _steady(site, 6)
    half = len(steady) // 2
    site.write(steady[:half])
    site.write([("ann", 1_930_000_000_000)], record_ms=steady[half][1])
    site.write(steady[half:])
    service = site.serve()

    assert site.counted == {"events": len(steady), "too_far_ahead": 1}
    assert service._held[0].shard.watermark_ms == steady[-1][1] - _LATENESS_MS


def test_a_record_that_says_2031_itself_is_refused_by_the_broker(site: Site) -> None:
    """`message.timestamp.after.max.ms` of the topic, an hour by default since Kafka 4."""
    with pytest.raises(TransportError, match="imestamp"):
        site.write([("ann", 1_930_000_000_000)])


def test_a_producer_that_replays_last_year_is_late(site: Site) -> None:
    """All of it goes to the dead letters, and nothing is counted twice."""
    steady = _steady(site, 6)
    site.write(steady)
    site.write([(user, ms - _YEAR_MS) for user, ms in steady], record_ms=site.now_ms)
    site.serve()

    assert site.counted == {"events": len(steady), "too_late": len(steady)}
    assert len(site.messages(site.settings.output.dead_letter_topic)) == len(steady)


_RESIDENT = """
import json, resource, sys
from pathlib import Path
import numpy as np
from stream_forecaster import config
from stream_forecaster.calendar import Calendar
from stream_forecaster.records import BytesColumn, Records
from stream_forecaster.shard import Shard

settings = config.parse(json.loads(sys.argv[1]))
shard, n, keys = Shard(settings, Calendar("UTC"), 0, 0), 5_000, int(sys.argv[2])
rng, shed = np.random.default_rng(0), 0
for i in range(0, keys, n):
    # two minutes a block, so that all of them are forecast as well
    time_ms = 1_767_312_000_000 + np.linspace(i / n, i / n + 1, n).astype(float) * 120_000
    names = rng.integers(0, 2**63, n).tolist()
    value = [b'{"user_id":"%x","ts":%d}' % row for row in zip(names, time_ms.tolist())]
    columns = BytesColumn.of([None] * n), BytesColumn.of(value)
    records = Records(0, np.arange(i, i + n), time_ms.astype(np.int64), *columns, i + n)
    while len(records):
        shed += len(shard.advance(records, most=settings.output.max_pending).shed)
        records = records.split(shard.offset)[1]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"peak": peak, "keys": shard.keys, "shed": shed, "state": shard.state_bytes}))
"""


def test_memory_stays_where_the_bound_puts_it() -> None:
    """Twenty times as many random keys as there is room for: as much as a table that is full."""
    settings = config.parse({"state": {"max_keys": 1_000}, "model": {"network": False}})
    once, often = (_resident(settings, keys) for keys in (5_000, 20_000))

    assert all(980 <= found["keys"] <= 1_000 for found in (once, often))
    assert once["state"] >= often["state"] - 100_000  # but for the keys' own bytes
    assert often["shed"] == 20_000 - often["keys"]
    assert often["peak"] - once["peak"] < 30e6


def _resident(settings: Settings, keys: int) -> dict[str, int]:
    """What a process of its own takes for so many random keys."""
    command = [sys.executable, "-c", _RESIDENT, json.dumps(redacted(settings)), str(keys)]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    found: dict[str, int] = json.loads(done.stdout)
    return found
