"""Does a worker under full load stay as large as it is? Memory, descriptors and threads over time.

    python benchmarks/soak.py [--minutes 20] [--keys 2000] [--json samples.jsonl]

Events of a fixed number of keys are sent as fast as one worker takes them, at most two seconds'
worth ahead of it: default settings, four partitions, network and training included, 10 ms of event
time between two events, so that hours and days go by as well. Every five seconds the worker's
resident memory, open descriptors and threads are read. After the first quarter, which is warm-up,
a straight line is laid through the memory. It is called flat if what that line rises until the end
is under 2 % of the memory, and descriptors and threads if their last minute's median is not above
that of the first minute after the warm-up; else the exit status is 1.

On Apache Kafka from KAFKA_HOME, or the cluster at KAFKA_BOOTSTRAP_SERVERS, else on the embedded
broker; topics keep 256 MB a partition at most. Linux only: it reads /proc.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from statistics import median
from subprocess import Popen
from typing import NamedTuple

import numpy as np
from brokers import most_real_broker
from rich.console import Console
from rich.table import Table

from benchmarks.live.pipeline import START_MS, Pipeline
from benchmarks.measure.machine import broker, resident_bytes, status

_EVERY_S = 5.0
_WARM_UP = 0.25
_FLAT = 0.02
_PARTITIONS = 4
_AHEAD_S, _LEAST_AHEAD = 2.0, 20_000
"""How far what is sent may be ahead of what is committed: seconds, and events."""
_PIECE = 500
"""Events between two looks at the clock."""
_KEPT = {"retention.bytes": str(256 << 20), "segment.bytes": str(64 << 20)}


class Sample(NamedTuple):
    """A worker at one moment.

    Attributes:
        at_s: since the beginning.
        events: committed so far.
        resident_bytes: of its memory.
        descriptors, threads: how many.
    """

    at_s: float
    events: int
    resident_bytes: int
    descriptors: int
    threads: int


def look(pid: int, at_s: float, events: int) -> Sample:
    """Read /proc."""
    descriptors = len([*Path(f"/proc/{pid}/fd").iterdir()])
    return Sample(at_s, events, resident_bytes(pid), descriptors, int(status(pid)["Threads"]))


def soak(pipeline: Pipeline, process: Popen[bytes], seconds: float, keys: int) -> Iterator[Sample]:
    """Keep it busy and look at it from time to time."""
    rng, times_ms = np.random.default_rng(0), count(START_MS, 10)
    begin_s = looked_s = time.monotonic()
    done, seen, ahead = 0, 0, _LEAST_AHEAD
    while (now_s := time.monotonic()) - begin_s < seconds:
        pipeline.check(process)
        if now_s - looked_s >= _EVERY_S:
            before, seen = seen, sum(pipeline.committed())
            ahead = max(_LEAST_AHEAD, round(_AHEAD_S * (seen - before) / (now_s - looked_s)))
            looked_s = now_s
            yield look(process.pid, now_s - begin_s, seen)
        elif sum(pipeline.sent) - done > ahead:
            pipeline.flush()
            time.sleep(0.05)
            done = sum(pipeline.committed())
        else:
            for key in rng.integers(0, keys, _PIECE).tolist():
                pipeline.send(key, next(times_ms))


def show(samples: list[Sample]) -> bool:
    """Print what became of it; True if it stayed as large as it was."""
    after = [s for s in samples if s.at_s >= _WARM_UP * samples[-1].at_s]
    at_s = np.array([s.at_s for s in after])
    resident = np.array([s.resident_bytes for s in after])
    (slope, _), covariance = np.polyfit(at_s, resident, 1, cov=True)
    rise = slope * (at_s[-1] - at_s[0])
    minute = round(60 / _EVERY_S)
    table = Table("", "first minute after warm-up", "last minute", title=broker())
    flat = bool(rise < _FLAT * resident.mean())
    for name in ("resident_bytes", "descriptors", "threads"):
        first, last = (
            median(getattr(s, name) for s in part) for part in (after[:minute], after[-minute:])
        )
        table.add_row(name.replace("_", " "), f"{first:,.0f}", f"{last:,.0f}")
        flat &= name == "resident_bytes" or last <= first
    Console().print(table)
    rate = (after[-1].events - after[0].events) / (at_s[-1] - at_s[0])
    error = 2 * covariance[0, 0] ** 0.5
    print(
        f"{after[-1].events:,} events, {rate:,.0f} a second after the warm-up\n"
        f"resident memory {slope * 3600 / 1e6:+.1f} +- {error * 3600 / 1e6:.1f} MB an hour, "
        f"{100 * rise / resident.mean():+.2f} % in {(at_s[-1] - at_s[0]) / 60:.0f} minutes: "
        f"{'flat' if flat else 'NOT flat'}"
    )
    return flat


def main() -> int:
    """0 if it stayed as large as it was."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--keys", type=int, default=2_000)
    parser.add_argument("--json", type=Path, help="write every sample there, a line each")
    options = parser.parse_args()
    samples = []
    with tempfile.TemporaryDirectory() as name, most_real_broker() as served:
        pipeline = Pipeline(served, Path(name), _PARTITIONS, {}, _KEPT)
        with pipeline.worker() as process:
            for sample in soak(pipeline, process, 60 * options.minutes, options.keys):
                samples.append(sample)
                print(
                    f"\r{sample.at_s / 60:5.1f} min, {sample.events:,} events, "
                    f"{sample.resident_bytes / 1e6:,.0f} MB",
                    end="",
                    file=sys.stderr,
                )
    print(file=sys.stderr)
    if options.json:
        options.json.write_text("".join(f"{json.dumps(s._asdict())}\n" for s in samples))
    return 0 if show(samples) else 1


if __name__ == "__main__":
    sys.exit(main())
