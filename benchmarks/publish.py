"""Records per CPU-second beside two other producers, and JSON beside two other encoders.

    make bench
    PYTHONPATH=tests python benchmarks/publish.py --seconds 3 --rounds 3 --json results.json

Records whose bytes are ready, in transactions, on Apache Kafka from KAFKA_HOME or the cluster at
KAFKA_BOOTSTRAP_SERVERS, else on the embedded broker. The contenders take turns, one process each,
see `contenders/publishing.py`. Then default messages of 4.8 KB from a hop's arrays, beside what
orjson and msgspec take to write such a message from ready dictionaries and lists; these take
turns in this process.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import orjson
from brokers import create_topic, most_real, most_real_broker
from drawn import drawn_forecast
from rich.console import Console
from rich.table import Table

from stream_forecaster.config import parse
from stream_forecaster.forecasts import Encoder

_HERE = Path(__file__).parent
_PUBLISHING = _HERE / "contenders" / "publishing.py"
_PARTITIONS = 4
_WHO = ("kafka-python", "confluent", "ours")
_SHAPES = ("small", "forecast")
_CODECS = ("none", "zstd")
_KEYS = 1_000
Runs = dict[str, list[dict[str, float]]]


def measure(bootstrap: str, who: str, codec: str, shape: str, seconds: float) -> dict[str, float]:
    """One run of one producer, in a process of its own, on a topic of its own."""
    topic = create_topic(_Served(bootstrap), _PARTITIONS)
    command = [sys.executable, str(_PUBLISHING), bootstrap, topic, who, codec, shape, str(seconds)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{who} failed:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


class _Served:
    """A broker by its address."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap


def encoders() -> dict[str, Callable[[], Any]]:
    """What makes the messages of a hop, or just their JSON."""
    settings = parse({})
    forecast, encoder = drawn_forecast(settings, _KEYS), Encoder(settings)
    values = [orjson.loads(m.value) for m in encoder.forecast(forecast) if m.value]
    encode = msgspec.json.Encoder().encode
    return {
        "ours: whole messages, from arrays": lambda: list(encoder.forecast(forecast)),
        "orjson: values, from dicts and lists": lambda: [orjson.dumps(value) for value in values],
        "msgspec: values, from dicts and lists": lambda: [encode(value) for value in values],
    }


def encode(rounds: int) -> dict[str, list[float]]:
    """Microseconds of CPU a message, round by round."""
    contenders = encoders()
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            begin_s = time.process_time()
            run()
            taken[name].append((time.process_time() - begin_s) / _KEYS * 1e6)
    return taken


def show(published: Runs, encoded: dict[str, list[float]]) -> None:
    """Two tables: medians over the rounds."""
    table = Table(title=f"records published in transactions, {most_real()}; medians of the rounds")
    for column in ("", "records/s", "CPU-s per million", "x kafka-python", "x confluent"):
        table.add_column(column, justify="right" if column else "left")
    cost = {
        name: statistics.median(run["cpu_s"] / run["records"] * 1e6 for run in runs)
        for name, runs in published.items()
    }
    for name, runs in published.items():
        what = name.rpartition(", ")[0]
        rate = statistics.median(run["records"] / run["wall_s"] for run in runs)
        ratios = [f"{cost[f'{what}, {other}'] / cost[name]:.1f}" for other in _WHO[:2]]
        table.add_row(name, f"{rate:,.0f}", f"{cost[name]:.2f}", *ratios)
    Console(width=120).print(table)
    table = Table(title="JSON of a default message; medians of the rounds, and the best")
    for column in ("", "us a message", "best", "x ours"):
        table.add_column(column, justify="right" if column else "left")
    medians = {name: statistics.median(taken) for name, taken in encoded.items()}
    least = next(iter(medians.values()))
    for name, taken in encoded.items():
        ratio = medians[name] / least
        table.add_row(name, f"{medians[name]:.1f}", f"{min(taken):.1f}", f"{ratio:.2f}")
    Console(width=120).print(table)


def main() -> None:
    """Let them take turns, show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="of CPU, in each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="write every run's figures there")
    options = parser.parse_args()
    published: Runs = {}
    with most_real_broker() as broker:
        for turn in range(options.rounds):
            for shape in _SHAPES:
                for codec in _CODECS:
                    for who in _WHO:
                        name = f"{shape}, {codec}, {who}"
                        print(f"round {turn + 1}/{options.rounds}: {name}", file=sys.stderr)
                        run = measure(broker.bootstrap, who, codec, shape, options.seconds)
                        published.setdefault(name, []).append(run)
    encoded = encode(5 * options.rounds)
    show(published, encoded)
    if options.json:
        machine = {"machine": platform.platform(), "cpus": os.cpu_count(), "broker": most_real()}
        results = {"published": published, "encoded_us": encoded}
        Path(options.json).write_text(json.dumps(machine | results, indent=1))


if __name__ == "__main__":
    main()
