"""Events per second and CPU per event, beside Quix Streams, on one broker and one topic.

    make bench                                   # installs Quix Streams into .venv-bench
    python benchmarks/ingest.py --events 1000000 --rounds 3 --json results.json

100-byte JSON events of 10,000 keys in four partitions; a millisecond of event time between two
events, so a hop every 60,000. On Apache Kafka from KAFKA_HOME, or the cluster at
KAFKA_BOOTSTRAP_SERVERS, else on the embedded broker. The contenders take turns, one process each;
CPU is user and system time of that process over the second half of the events.

PEERS names a folder of programs for the JVM to be timed beside ours: there is to be a
`kafka-streams/run BOOTSTRAP TOPIC EVENTS consume`, which prints events/s and CPU-s per million.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

from brokers import create_topic, most_real, most_real_broker
from confluent_kafka import Producer
from rich.console import Console
from rich.table import Table

from stream_forecaster import config
from stream_forecaster.edge.topics import create_topics

_HERE = Path(__file__).parent
_OURS = _HERE / "contenders" / "ours.py"
_QUIX = _HERE / "contenders" / "quixstreams_count.py"
_PARTITIONS = 4
_START_MS = 1_767_312_000_000
_OUT_OF = {
    "quixstreams: tumbling count": ("quix", ""),
    "kafka-python: poll": ("ours", "client"),
    "Java consumer, JSON parsed": ("java", "consume"),
    "ours: records as columns": ("ours", "poll"),
    "ours: events, keys as slots": ("ours", "arrays"),
    "ours: windows at three resolutions": ("ours", "windows"),
    "ours: and closing, scoring, learning": ("ours", "hops"),
    "ours: everything, published exactly once": ("ours", "all"),
}


def load(bootstrap: str, topic: str, events: int, keys: int) -> None:
    """Put `events` events of 100 bytes into the topic."""
    producer = Producer(
        {"bootstrap.servers": bootstrap, "linger.ms": 50, "batch.num.messages": 10_000}
    )
    for i in range(events):
        key = i * 7_919 % keys
        value = (
            f'{{"user_id":"u{key:06d}","ts":{_START_MS + i},"type":"click","page":"/p/{i % 997}"'
        )
        value += f',"x":"{"y" * (92 - len(value))}"}}'
        while True:
            try:
                producer.produce(topic, value, f"u{key:06d}", partition=key % _PARTITIONS)
                break
            except BufferError:
                producer.poll(0.1)
        if i % 1000 == 0:
            producer.poll(0)
    producer.flush()


def measure(name: str, bootstrap: str, topic: str, events: int, quix: str) -> dict[str, float]:
    """One run of one contender, in a process of its own."""
    kind, mode = _OUT_OF[name]
    told = [bootstrap, topic, str(events)]
    command = {
        "quix": [quix, str(_QUIX), *told],
        "java": [f"{os.environ.get('PEERS')}/kafka-streams/run", *told, mode],
        "ours": [sys.executable, str(_OURS), *told, mode],
    }[kind]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode or not done.stdout.strip():
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    last = done.stdout.splitlines()[-1]
    if kind == "java":  # the third time over the topic, when it is warm
        *_, rate, _, _, cpu, _ = last.split()
        return {
            "events": events,
            "wall_s": events / float(rate),
            "cpu_s": float(cpu) * events / 1e6,
        }
    result: dict[str, float] = json.loads(last)
    return result


def show(results: dict[str, list[dict[str, float]]], events: int) -> None:
    """The table: medians over the rounds."""
    table = Table(title=f"{events:,} events, {most_real()}; medians of the rounds")
    for column in ("", "events/s", "CPU-s per million", "times less CPU than Quix", "also"):
        table.add_column(column, justify="left" if column in {"", "also"} else "right")
    cpu = {
        name: statistics.median(run["cpu_s"] / run["events"] for run in runs) * 1e6
        for name, runs in results.items()
    }
    quix = cpu.get("quixstreams: tumbling count")
    for name, runs in results.items():
        rate = statistics.median(run["events"] / run["wall_s"] for run in runs)
        others = {k: v for k, v in runs[-1].items() if k not in {"events", "wall_s", "cpu_s"}}
        also = ", ".join(f"{v:,.0f} {k.replace('_', ' ')}" for k, v in others.items())
        ratio = f"{quix / cpu[name]:.1f}" if quix else "-"
        table.add_row(name, f"{rate:,.0f}", f"{cpu[name]:.2f}", ratio, also)
    Console(width=130).print(table)


def main() -> None:
    """Load, let them take turns, show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=500_000)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quix", default=".venv-bench/bin/python", help="a Python that has it")
    parser.add_argument("--only", default="", help="contenders whose names have this in them")
    parser.add_argument("--json", help="write every run's figures there")
    options = parser.parse_args()
    there = {"ours": True, "quix": Path(options.quix).exists(), "java": "PEERS" in os.environ}
    names = [n for n in _OUT_OF if there[_OUT_OF[n][0]] and (options.only in n)]
    if not all(there.values()):
        print(f"left out: {[kind for kind in there if not there[kind]]}", file=sys.stderr)
    with most_real_broker() as broker:
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
        print(f"loading {options.events:,} events ...", file=sys.stderr)
        load(broker.bootstrap, topic, options.events, options.keys)
        results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for turn in range(options.rounds):
            for name in names:
                print(f"round {turn + 1}/{options.rounds}: {name}", file=sys.stderr)
                results[name].append(
                    measure(name, broker.bootstrap, topic, options.events, options.quix)
                )
    show(results, options.events)
    if options.json:
        machine = {"machine": platform.platform(), "cpus": os.cpu_count(), "broker": most_real()}
        Path(options.json).write_text(json.dumps(machine | {"results": results}, indent=1))


if __name__ == "__main__":
    main()
