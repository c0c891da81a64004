"""Events per second and CPU per event, broker to windows, beside what others need for it.

    make bench                                   # installs Quix Streams into .venv-bench
    PEERS=/folder python benchmarks/ingest.py --keys 10000 --codecs none --events 1000000
    python benchmarks/ingest.py --keys 10000 --codecs zstd --only everything \
        --per-minute 30000000 --events 60000000 --rounds 1

100-byte JSON events in four partitions of one topic, a millisecond of event time between two, so a
hop every 60,000, unless `--per-minute` says otherwise. The second line is a stream that brings half
a million events a second when it is live; it is told, then, whether one core can keep up with it.
Every combination of `--keys` and `--codecs` is a topic of its own. On Apache Kafka from KAFKA_HOME,
or the cluster at KAFKA_BOOTSTRAP_SERVERS, else on the embedded broker. The contenders take turns,
one process each, on a core of its own; CPU is user and system time of that process over the second
half of the events. There are at least four times as many as keys, since not every partition is read
as fast: in the second half all keys are to be known.

PEERS names a folder of programs for the JVM to be timed beside ours: `kafka-streams/run BOOTSTRAP
TOPIC EVENTS consume|mem` and `flink/run BOOTSTRAP TOPIC EVENTS window`, which print events/s and
CPU-s per million of their second half (the consumer: of its third time over the topic). They read
four partitions; Kafka Streams writes to a topic `ks-out`. With few events they do not get warm.
"""

import argparse
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from brokers import Served, Wire, create_topic, most_real_broker
from kafka.protocol.admin import CreateTopicsRequest

from benchmarks.live.load import Load, load
from benchmarks.measure.figures import Bound, Ratio, Report, Row, parser, say, spelled
from benchmarks.measure.machine import apart, pinned, run_alone
from benchmarks.measure.turns import median, per_million, take_turns
from stream_forecaster import config
from stream_forecaster.edge.topics import create_topics

_CONTENDERS = Path(__file__).parent / "contenders"
_PARTITIONS = 4
_EVENTS_PER_KEY, _PER_MINUTE = 4, 60_000
_PATIENCE_S = 900.0
_UNIT = "CPU-s per million events"
Run = dict[str, float]


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to read a topic.

    Attributes:
        kind: what starts it: ours, confluent, quix, or a folder of PEERS.
        mode: what it is told to do.
        does: what it does, and what not.
        most_keys: with more it takes too long.
    """

    kind: str
    mode: str
    does: str
    most_keys: int = 1 << 30


_OURS = "ours: windows at three resolutions"
_ALL = "ours: everything, exactly once"
_JAVA = "Java consumer, JSON parsed"
_STREAMS = "Kafka Streams: windowed count"
_FLINK = "Flink: windowed count"
_QUIX = "quixstreams: tumbling count"
CONTENDERS = {
    _QUIX: Contender(
        "quix", "", "JSON decoded, counts per key and 10 s in RocksDB, without a changelog"
    ),
    _STREAMS: Contender(
        "kafka-streams",
        "mem",
        "JSON parsed, counts per key and 10 s, grace 2 min, in memory with a changelog on the "
        "broker, changes published; at least once",
    ),
    _FLINK: Contender(
        "flink",
        "window",
        "JSON parsed, counts per key and 10 s of event time, 2 min of lateness, on the heap; "
        "local, no checkpoints, results discarded",
    ),
    "kafka-python: poll": Contender(
        "ours", "client", "our client as it comes: an object per record, nothing parsed", 100_000
    ),
    "confluent-kafka: consume": Contender(
        "confluent", "", "librdkafka: an object per record, nothing parsed, nothing counted"
    ),
    _JAVA: Contender(
        "kafka-streams",
        "consume",
        "the Java client and Jackson's streaming parser: nothing grouped, nothing counted; warm",
    ),
    "ours: records as columns": Contender("ours", "poll", "fetched and decoded, nothing parsed"),
    "ours: events, keys as slots": Contender("ours", "arrays", "and JSON decoded, keys looked up"),
    _OURS: Contender(
        "ours",
        "windows",
        "and counted per key at three resolutions (6 h, 12 h, day: no hop is due); no output",
    ),
    "ours: and closing, scoring, learning": Contender(
        "ours",
        "hops",
        "at the default resolutions with a hop every 60,000 events: every key is scored, learned "
        "from and forecast, network and training included; no output",
        100_000,
    ),
    _ALL: Contender(
        "ours", "all", "and forecasts that moved published in transactions with offsets", 100_000
    ),
}
_MUST = {
    _QUIX: Bound(least=25.0),
    _STREAMS: Bound(least=10.0),
    _FLINK: Bound(least=5.0),
    _JAVA: Bound(least=1.0),
}
"""How many times cheaper than these our windows must be."""


def measure(name: str, told: list[str], quix: str, core: list[int]) -> Run:
    """One run of one contender, in a process of its own."""
    contender = CONTENDERS[name]
    command = {
        "quix": [quix, str(_CONTENDERS / "quixstreams_count.py"), *told],
        "confluent": [sys.executable, str(_CONTENDERS / "confluent_consume.py"), *told],
        "ours": [sys.executable, str(_CONTENDERS / "ours.py"), *told, contender.mode],
    }.get(contender.kind) or [f"{os.environ['PEERS']}/{contender.kind}/run", *told, contender.mode]
    done = run_alone(command, core, _PATIENCE_S)
    if done.returncode or not done.stdout.strip():
        raise SystemExit(f"{name} failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
    if contender.kind not in {"ours", "confluent", "quix"}:
        return said_by_peer(done.stdout, int(told[2]))
    result: Run = json.loads(done.stdout.splitlines()[-1])
    return result


def said_by_peer(output: str, events: int) -> Run:
    """What a program for the JVM has measured, as ours say it.

    They print lines of `RATE ev/s cpu SECONDS s/M`, the warmest part last.

    Raises:
        ValueError: there is no such thing, or not of as many events.
    """
    found = re.findall(r"([\d.]+) ev/s\s+cpu ([\d.]+) s/M", output)
    if not found:
        raise ValueError(f"no figures in what it says: {output[-500:]!r}")
    rate, cpu = map(float, found[-1])
    if not rate or not cpu:
        raise ValueError(f"it has not counted to the end: {output[-500:]!r}")
    return {"events": events, "wall_s": events / rate, "cpu_s": cpu * events / 1e6}


def rows(case: str, results: dict[str, list[Run]], keeps_up: Bound | None = None) -> list[Row]:
    """Medians over the rounds, how many times cheaper our windows are, and do we keep up?"""
    cost = {name: per_million(runs, "cpu_s", "events") for name, runs in results.items()}
    found = []
    for name, runs in results.items():
        rate = median(run["events"] / run["wall_s"] for run in runs)
        others = {k: v for k, v in runs[-1].items() if k not in {"events", "wall_s", "cpu_s"}}
        also = [f"{rate:,.0f} events/s"]
        also += [f"{spelled(v)} {k.replace('_', ' ')}" for k, v in others.items()]
        ours = name.startswith("ours")
        ratios = tuple(
            Ratio(cost[other] / cost[name], f"x cheaper than {other}", must)
            for other, must in _MUST.items()
            if name == _OURS and other in cost
        )
        does, must = CONTENDERS[name].does, keeps_up if name == _ALL else None
        also_said = ", ".join(also)
        found.append(Row(name, cost[name], _UNIT, case, does, also_said, ratios, must, ours=ours))
    return found


def in_the_way(quix: str) -> dict[str, str]:
    """Kinds of contenders that cannot be had here, and why."""
    missing = {}
    if not shutil.which(quix):
        missing["quix"] = f"quixstreams: no {quix} (make .venv-bench/installed)"
    for kind in ("kafka-streams", "flink"):
        if "PEERS" not in os.environ:
            missing[kind] = f"{kind}: PEERS names no folder"
        elif not shutil.which("javac"):
            missing[kind] = f"{kind}: no Java compiler"
    return missing


def prepare(broker: Served, wanted: Load) -> str:
    """A loaded topic, and those that ours publish to."""
    topic = create_topic(broker, _PARTITIONS)
    create_topics(
        config.parse(
            {
                "kafka": {"bootstrap_servers": broker.bootstrap},
                "input": {"topic": topic},
                "output": {"topic": f"{topic}.forecasts", "dead_letter_topic": f"{topic}.dead"},
            }
        ),
        _PARTITIONS,
    )
    say(f"loading {wanted.events:,} events of {wanted.keys:,} keys, {wanted.codec} ...")
    load(broker.bootstrap, topic, _PARTITIONS, wanted)
    return topic


def create_output_of_streams(broker: Served) -> None:
    """The topic that Kafka Streams is to write to; it may be there."""
    topic = CreateTopicsRequest.CreatableTopic(
        name="ks-out", num_partitions=_PARTITIONS, replication_factor=-1, assignments=[], configs=[]
    )
    wire = Wire(broker.bootstrap)
    wire.ask(CreateTopicsRequest(topics=[topic], timeout_ms=10_000), 4)
    wire.close()


def _options() -> argparse.Namespace:
    options = parser(__doc__, rounds=3)
    options.add_argument("--events", type=int, default=1_000_000)
    options.add_argument("--keys", default="10000,1000000")
    options.add_argument("--codecs", default="none,zstd", help="of the topic's batches")
    options.add_argument("--per-minute", type=int, default=_PER_MINUTE, help="of event time")
    options.add_argument("--quix", default=".venv-bench/bin/python", help="a Python that has it")
    options.add_argument("--only", default="", help="names of contenders, or parts of them")
    return options.parse_args()


def main() -> None:
    """Load, let them take turns, show."""
    options = _options()
    missing, (others, core) = in_the_way(options.quix), apart()
    found, runs = [], {}
    with pinned(others), most_real_broker() as broker:
        create_output_of_streams(broker)
        for keys, codec in product(map(int, options.keys.split(",")), options.codecs.split(",")):
            events = max(options.events, _EVENTS_PER_KEY * keys)
            topic = prepare(broker, Load(events, keys, codec, options.per_minute))
            told = [broker.bootstrap, topic, str(events)]
            contenders = {
                name: partial(measure, name, told, options.quix, core)
                for name, contender in CONTENDERS.items()
                if contender.kind not in missing
                and any(part in name for part in options.only.split(","))
                and keys <= contender.most_keys
            }
            case, keeps_up = f"{keys:,} keys, {'uncompressed' if codec == 'none' else codec}", None
            if options.per_minute != _PER_MINUTE:
                case += f", {options.per_minute / 60:,.0f} events a second of event time"
                keeps_up = Bound(most=60e6 / options.per_minute)
            runs[case] = take_turns(contenders, options.rounds)
            found += rows(case, runs[case], keeps_up)
    Report("ingest", found, runs, left_out=[*missing.values()]).finish(options)


if __name__ == "__main__":
    main()
