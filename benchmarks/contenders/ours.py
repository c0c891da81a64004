"""This project, over a topic of JSON events.

    ours.py BOOTSTRAP TOPIC EVENTS client|poll|arrays|windows|hops|all

client:   not ours: the client's own poll, an object per record.
poll:     the transport alone: records as columns.
arrays:   and decoding, and keys as slots.
windows:  and windows of six hours, twelve and a day, so that no hop is due in the time of a few
          million events: what events cost, whatever is made of them.
hops:     the same at the default resolutions, of which the finest is a minute, and closing,
          scoring and learning at every hop; nothing is published.
all:      the whole service: forecasts of all keys that moved, in transactions.

Prints one JSON line and ends when EVENTS events have been read. The second half of them is what is
timed: by then all keys are known, and tables have grown and loops been compiled.
"""

import json
import sys
import tempfile
import time
from typing import TYPE_CHECKING

import structlog
from kafka import KafkaConsumer, TopicPartition
from prometheus_client import CollectorRegistry

from benchmarks.measure.clock import HalfTime
from stream_forecaster import config
from stream_forecaster.calendar import Calendar
from stream_forecaster.compiled import compile_all
from stream_forecaster.config import Settings
from stream_forecaster.edge.kafka import KafkaTransport
from stream_forecaster.edge.store import CheckpointStore
from stream_forecaster.edge.telemetry import Telemetry
from stream_forecaster.edge.world import World
from stream_forecaster.events import EventDecoder
from stream_forecaster.records import Records
from stream_forecaster.service import Service
from stream_forecaster.shard import Shard

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.wrap_logger(
    structlog.PrintLogger(sys.stderr), wrapper_class=structlog.make_filtering_bound_logger(30)
)


_ROOM = 1 << 20
"""Where no key is forecast there is room for a million of them in each partition: none is shed."""


def client(bootstrap: str, topic: str, events: int) -> dict[str, float]:
    """Poll with the client's defaults, but for as many records at once as ours."""
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap, max_poll_records=20_000, max_partition_fetch_bytes=4 << 20
    )
    consumer.assign([TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic)])
    consumer.seek_to_beginning()
    clock = HalfTime(events)
    while clock.read < events:
        clock.count(sum(map(len, consumer.poll(200).values())))
    result = clock.result()
    consumer.close()
    return result


def shards_alone(
    settings: Settings, events: int, take: "Callable[[Shard, Records], object]"
) -> dict[str, float]:
    """Poll, and have shards take what comes."""
    transport = KafkaTransport(settings, log)
    calendar, shards, clock = Calendar("UTC"), dict[int, Shard](), HalfTime(events)
    while clock.read < events:
        poll = transport.poll(0.2)
        for partition in poll.assigned:
            shards[partition] = Shard(settings, calendar, partition, 0)
            transport.seek(partition, 0)
        for records in poll.records:
            take(shards[records.partition], records)
            clock.count(len(records))
    result = clock.result()
    transport.close()
    return result


def service(settings: Settings, events: int) -> dict[str, float]:
    """The service as `run` builds it."""
    registry = CollectorRegistry()

    def total(name: str, **labels: str) -> float:
        return registry.get_sample_value(f"streamforecaster_{name}_total", labels) or 0.0

    with tempfile.TemporaryDirectory() as directory:
        world = World(
            KafkaTransport(settings, log),
            CheckpointStore(f"file://{directory}", settings.kafka.group_id),
            Telemetry(registry),
            log,
        )
        clock = HalfTime(events)

        def stopping() -> bool:
            clock.count(int(total("events")) - clock.read)
            return clock.read >= events

        running = Service(settings, world)
        running.run(stopping)
    return clock.result() | {
        "forecasts": total("forecasts", origin="pool") + total("forecasts", origin="prior"),
    }


def main() -> None:
    """Measure once."""
    bootstrap, topic, events, mode = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    coarse = [{"step": step, "context": 24, "horizon": 12} for step in ("6h", "12h", "1d")]
    settings = config.parse(
        {
            "kafka": {"bootstrap_servers": bootstrap, "group_id": f"ours-{time.time_ns()}"},
            "input": {"topic": topic, "max_ahead": "3650d"},
            "output": {"topic": f"{topic}.forecasts", "dead_letter_topic": f"{topic}.dead"},
            **({"resolutions": coarse} if mode == "windows" else {}),
            **({} if mode in {"hops", "all"} else {"state": {"max_keys": _ROOM}}),
        }
    )
    decode = EventDecoder(settings.input, Calendar("UTC"))

    def intern(shard: Shard, records: Records) -> None:
        events, _ = decode(records)
        shard.table.intern(events.key, events.time_ms)

    def advance(shard: Shard, records: Records) -> None:
        shard.advance(records, aloud=False)

    compile_all()
    measure: dict[str, Callable[[], dict[str, float]]] = {
        "client": lambda: client(bootstrap, topic, events),
        "poll": lambda: shards_alone(settings, events, lambda _shard, _records: None),
        "arrays": lambda: shards_alone(settings, events, intern),
        "windows": lambda: shards_alone(settings, events, advance),
        "hops": lambda: shards_alone(settings, events, advance),
        "all": lambda: service(settings, events),
    }
    print(json.dumps(measure[mode]()), flush=True)


main()
