"""This project, over a topic of JSON events.

    ours.py BOOTSTRAP TOPIC EVENTS poll|windows|all

poll:     the transport alone: records as columns.
windows:  and decoding, keys, windows at three resolutions, closing, scoring and learning at every
          hop; nothing is published.
all:      the whole service: forecasts of all keys that moved, in transactions.

Prints one JSON line and ends when EVENTS events have been read.
"""

import json
import resource
import sys
import tempfile
import time
from typing import TYPE_CHECKING

import structlog
from prometheus_client import CollectorRegistry

from stream_forecaster import config
from stream_forecaster.calendar import Calendar
from stream_forecaster.config import Settings
from stream_forecaster.edge.kafka import KafkaTransport
from stream_forecaster.edge.store import CheckpointStore
from stream_forecaster.edge.telemetry import Telemetry
from stream_forecaster.edge.world import World
from stream_forecaster.service import Service
from stream_forecaster.shard import Shard

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.wrap_logger(
    structlog.PrintLogger(sys.stderr), wrapper_class=structlog.make_filtering_bound_logger(30)
)


def cpu_s() -> float:
    """CPU seconds of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def shards_alone(settings: Settings, events: int, *, absorb: bool) -> dict[str, float]:
    """Poll, and let shards advance in silence."""
    transport = KafkaTransport(settings, log)
    calendar, shards, read = Calendar("UTC"), dict[int, Shard](), 0
    begin_s, begin_cpu_s = 0.0, 0.0
    while read < events:
        poll = transport.poll(0.2)
        for partition in poll.assigned:
            shards[partition] = Shard(settings, calendar, partition, 0)
            transport.seek(partition, 0)
        for records in poll.records:
            if read == 0:
                begin_s, begin_cpu_s = time.perf_counter(), cpu_s()
            read += len(records)
            if absorb:
                shards[records.partition].advance(records, aloud=False)
    result = {"wall_s": time.perf_counter() - begin_s, "cpu_s": cpu_s() - begin_cpu_s}
    keys = sum(shard.keys for shard in shards.values())
    state_bytes = sum(shard.state_bytes for shard in shards.values())
    transport.close()
    return result | {"keys": keys, "state_bytes_per_key": state_bytes / max(keys, 1)}


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
        begin: list[float] = []

        def stopping() -> bool:
            if not begin and total("events"):
                begin.extend((time.perf_counter(), cpu_s()))
            return total("events") >= events

        running = Service(settings, world)
        running.run(stopping)
    return {
        "wall_s": time.perf_counter() - begin[0],
        "cpu_s": cpu_s() - begin[1],
        "forecasts": total("forecasts", origin="pool") + total("forecasts", origin="prior"),
    }


def main() -> None:
    """Measure once."""
    bootstrap, topic, events, mode = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    settings = config.parse(
        {
            "kafka": {"bootstrap_servers": bootstrap, "group_id": f"ours-{time.time_ns()}"},
            "input": {"topic": topic, "max_ahead": "3650d"},
            "output": {"topic": f"{topic}.forecasts", "dead_letter_topic": f"{topic}.dead"},
        }
    )
    measure: dict[str, Callable[[], dict[str, float]]] = {
        "poll": lambda: shards_alone(settings, events, absorb=False),
        "windows": lambda: shards_alone(settings, events, absorb=True),
        "all": lambda: service(settings, events),
    }
    print(json.dumps(measure[mode]()), flush=True)


main()
