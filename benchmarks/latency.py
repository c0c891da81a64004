"""How long after the event that makes it due a forecast can be read, under a fixed load.

    python benchmarks/latency.py [--rate 50000] [--keys 10000] [--seconds 300] [--pace 1]

One worker, as `run` starts it, on a core of its own; broker, load and reader share the others. The
load is open: so many events a second are sent whether or not the worker keeps up. In event time a
hop is due once a minute, in time `--pace` times as often. A forecast says which record made it due
(`source`), and the load knows when it wrote that one; the reader, `read_committed`, notes when the
forecast is there. The difference is the latency: it has the way of the event through the broker,
the hop of its partition and of those before it, encoding, the transaction and the way to the
reader; and up to 10 ms more, since one loop sends and reads. Before that every key was heard for
ten minutes of event time, which is not measured. Linux only: it reads /proc.
"""

import argparse
import re
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from brokers import free_port, most_real_broker
from confluent_kafka import Consumer

from benchmarks.live.pipeline import START_MS, Pipeline
from benchmarks.measure.figures import Bound, Report, Row, parser, say
from benchmarks.measure.machine import apart, cpu_of, pinned
from benchmarks.measure.turns import percentile

_PARTITIONS = 4
_STRIDE = 7_919
_TICK_S = 0.01
_WARM_UP_MINUTES = 10
_AT_ONCE = 1_000
_SOURCE = re.compile(rb'"source":\{"topic":"[^"]*","partition":(\d+),"offset":(\d+)\}')
_MUST = Bound(most=250.0)
_LEVELS = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Seen:
    """A forecast that was read.

    Attributes:
        partition, offset: of the record that made it due.
        at_s: when it was read, on the clock of `time.perf_counter`.
    """

    partition: int
    offset: int
    at_s: float


class Generator:
    """Sends events and notes when it wrote each.

    Attributes:
        written_s: partition -> when each of its records was written, by offset.
    """

    def __init__(self, pipeline: Pipeline, keys: int) -> None:
        self._pipeline, self._keys, self._next = pipeline, keys, 0
        self.written_s: dict[int, list[float]] = defaultdict(list)

    def send(self, events: int, at_ms: int) -> None:
        """So many events, of one key after the other, all of one time."""
        now_s = time.perf_counter()
        for i in range(self._next, self._next + events):
            key = i * _STRIDE % self._keys
            self._pipeline.send(key, at_ms)
            self.written_s[key % _PARTITIONS].append(now_s)
        self._next += events


def read(reader: Consumer, timeout_s: float) -> list[Seen]:
    """What there is now, or within that time."""
    messages = reader.consume(_AT_ONCE, timeout=timeout_s)
    at_s = time.perf_counter()
    return [found for message in messages if (found := source(message.value(), at_s))]


def source(value: bytes | None, at_s: float) -> Seen | None:
    """What a message says of where it comes from; None of a tombstone."""
    said = _SOURCE.search(value or b"")
    return Seen(int(said[1]), int(said[2]), at_s) if said else None


def warm_up(pipeline: Pipeline, generator: Generator, keys: int) -> None:
    """Every key is heard once a minute of event time."""
    for minute in range(_WARM_UP_MINUTES):
        generator.send(keys, START_MS + 60_000 * minute)
    pipeline.flush()


def drive(generator: Generator, reader: Consumer, options: argparse.Namespace) -> list[Seen]:
    """Send at a fixed rate, and read meanwhile."""
    seen: list[Seen] = []
    sent, ticks = 0, 0
    base_ms = START_MS + 60_000 * _WARM_UP_MINUTES + 30_000  # no hop is due at the very end
    begin_s = time.perf_counter()
    while (elapsed_s := time.perf_counter() - begin_s) < options.seconds:
        due = round(elapsed_s * options.rate) - sent
        generator.send(due, base_ms + round(1000 * elapsed_s * options.pace))
        sent, ticks = sent + due, ticks + 1
        seen += read(reader, max(0.0, begin_s + _TICK_S * ticks - time.perf_counter()))
        ticks = max(ticks, int(elapsed_s / _TICK_S))  # what was missed is not made up for
    return seen


def hops(port: int) -> tuple[int, float]:
    """How many hops the worker has had, and the seconds they took."""
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    lines = re.findall(r"^streamforecaster_hop_seconds_(\w+) (\S+)$", text, re.MULTILINE)
    said = {name: float(value) for name, value in lines}
    return int(said["count"]), said["sum"]


def rows(options: argparse.Namespace, latencies_s: list[float], found: dict[str, Any]) -> list[Row]:
    """Percentiles, and what they consist of."""
    case = (
        f"{options.rate:,} events/s of {options.keys:,} keys, one worker on one core, a hop every "
        f"{60 / options.pace:.0f} s"
    )
    boundary_ms = 1000 * found["hop_s"]
    result = []
    for level in _LEVELS:
        ms = 1000 * percentile(latencies_s, level)
        also = f"{ms - boundary_ms:,.0f} ms without the hop itself"
        must = _MUST if level == 99 else None
        result.append(Row(f"event to forecast, p{level}", ms, "ms", case, also=also, must=must))
    does = "closing, scoring, learning and forecasting, all partitions, on average"
    result.append(Row("the hop itself", boundary_ms, "ms", case, does))
    also = f"{found['sent_per_s']:,.0f} events/s sent, {len(latencies_s):,} forecasts read"
    result.append(Row("of the worker's core", 100 * found["core"], "%", case, also=also))
    return result


def main() -> None:
    """Warm up, load, read, show."""
    asked = parser(__doc__)
    asked.add_argument("--rate", type=int, default=50_000, help="events a second")
    asked.add_argument("--keys", type=int, default=10_000)
    asked.add_argument("--seconds", type=float, default=300.0)
    asked.add_argument("--pace", type=float, default=1.0, help="of event time")
    asked.add_argument("--set", action="append", default=[], help="section.key=VALUE")
    options = asked.parse_args()
    told = dict(assignment.split("=", 1) for assignment in options.set)
    (others, core), port = apart(), free_port()
    with tempfile.TemporaryDirectory() as name, pinned(others), most_real_broker() as served:
        pipeline = Pipeline(served, Path(name), _PARTITIONS, {"http.port": str(port), **told})
        generator, reader = Generator(pipeline, options.keys), pipeline.reader()
        say("warming up ...")
        warm_up(pipeline, generator, options.keys)
        with pipeline.worker(core) as process:
            pipeline.wait(process)
            first = list(pipeline.sent)
            while read(reader, 1.0):
                pass
            say(f"{options.rate:,} events a second for {options.seconds:.0f} s ...")
            before, before_cpu_s = hops(port), cpu_of(process.pid)
            seen = drive(generator, reader, options)
            used_s = cpu_of(process.pid) - before_cpu_s
            sent = sum(pipeline.sent) - sum(first)
            pipeline.flush()
            pipeline.wait(process)
            while more := read(reader, 2.0):
                seen += more
            due, took_s = (after - b for after, b in zip(hops(port), before, strict=True))
    latencies_s = [
        each.at_s - generator.written_s[each.partition][each.offset]
        for each in seen
        if each.offset >= first[each.partition]
    ]
    if not latencies_s:
        raise SystemExit("no hop was due: more seconds, or a faster pace")
    found = {
        "hop_s": took_s / max(1.0, due / _PARTITIONS),
        "hops": due,
        "sent_per_s": sent / options.seconds,
        "core": used_s / options.seconds,
        "latencies_ms": {level: 1000 * percentile(latencies_s, level) for level in range(1, 101)},
    }
    Report("latency", rows(options, latencies_s, found), found).finish(options)


if __name__ == "__main__":
    main()
