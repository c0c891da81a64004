"""What a second worker adds: events per second of everything, with one process and with two.

    python benchmarks/workers.py [--events 12000000] [--per-minute 3000000] [--keys 10000]

A topic of four partitions is full of 100-byte events before the first worker starts. One worker as
`run` starts it, on a core of its own beside the broker, then two on a core each, beside whichever
the broker shares: with two cores it takes its time from one of them. Everything is on: network,
training, transactions, checkpoints. Events per second and CPU seconds are those of the workers
from when a quarter of the events is committed until nine tenths are. So many events make a minute
of event time; after every minute all keys are scored, learned from and forecast. At the rate R a
service that keeps up has 60 R events in a minute: with fewer, forecasting is the larger part.
Linux only: it reads /proc.
"""

import argparse
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from subprocess import Popen

from brokers import most_real_broker

from benchmarks.live.load import Load, load
from benchmarks.live.pipeline import Pipeline
from benchmarks.measure.figures import Bound, Ratio, Report, Row, parser, say
from benchmarks.measure.machine import apart, cores, cpu_of, pinned
from benchmarks.measure.turns import median, per_million, take_turns

_PARTITIONS = 4
_FROM, _TO = 0.25, 0.9
_LEAST_SHARE = 0.1
_SETTINGS = {"input.max_ahead": "3650d", "input.allowed_lateness": "1s"}
_MUST = Bound(least=500_000.0)
Run = dict[str, float]


def measure(pipeline: Pipeline, workers: int) -> Run:
    """One group of so many, from nothing to nine tenths of the events."""
    pipeline.begin()
    others, core = apart()
    places = [core, others][:workers] if core else [[]] * workers
    with ExitStack() as stack:
        processes = [stack.enter_context(pipeline.worker(place)) for place in places]
        begin = _when(pipeline, processes, _FROM)
        end = _when(pipeline, processes, _TO)
    used_s = [after - before for before, after in zip(begin[2], end[2], strict=True)]
    if min(used_s) < _LEAST_SHARE * sum(used_s):
        raise SystemExit(f"the workers did not share the work: {used_s} CPU-s")
    return {"events": end[1] - begin[1], "wall_s": end[0] - begin[0], "cpu_s": sum(used_s)}


def _when(
    pipeline: Pipeline, processes: list[Popen[bytes]], share: float
) -> tuple[float, int, list[float]]:
    """When that share is committed: the time, events committed, CPU seconds of each worker."""
    while (done := sum(pipeline.committed())) < share * sum(pipeline.sent):
        pipeline.check(*processes)
        time.sleep(0.02)
    return time.perf_counter(), done, [cpu_of(process.pid) for process in processes]


def rows(options: argparse.Namespace, results: dict[str, list[Run]]) -> list[Row]:
    """Medians, and what the second adds."""
    case = (
        f"{options.keys:,} keys, everything on, a hop every {options.per_minute:,} events, "
        f"{len(cores())} cores for workers and broker"
    )
    rate = {
        name: median(run["events"] / run["wall_s"] for run in runs)
        for name, runs in results.items()
    }
    alone = next(iter(rate))
    return [
        Row(
            name,
            rate[name],
            "events/s",
            case,
            also=f"{per_million(runs, 'cpu_s', 'events'):.2f} CPU-s per million events",
            ratios=() if name == alone else (Ratio(rate[name] / rate[alone], f"x {alone}"),),
            must=_MUST if name == alone else None,
        )
        for name, runs in results.items()
    ]


def main() -> None:
    """Load once, let them take turns."""
    asked = parser(__doc__, rounds=3)
    asked.add_argument("--events", type=int, default=12_000_000)
    asked.add_argument("--per-minute", type=int, default=3_000_000)
    asked.add_argument("--keys", type=int, default=10_000)
    options = asked.parse_args()
    with tempfile.TemporaryDirectory() as name, pinned(apart()[0]), most_real_broker() as served:
        pipeline = Pipeline(served, Path(name), _PARTITIONS, _SETTINGS)
        say(f"loading {options.events:,} events ...")
        wanted = Load(options.events, options.keys, per_minute=options.per_minute)
        pipeline.sent = load(served.bootstrap, pipeline.topic, _PARTITIONS, wanted)
        contenders = {
            name: partial(measure, pipeline, n) for n, name in ((1, "1 worker"), (2, "2 workers"))
        }
        taken = take_turns(contenders, options.rounds)
    Report("workers", rows(options, taken), taken).finish(options)


if __name__ == "__main__":
    main()
