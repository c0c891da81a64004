"""How long a worker with many keys takes to come back from its local checkpoint.

    python benchmarks/recovery.py [--keys 100000] [--partitions 1] [--rounds 3] [--profile full]

A first worker hears every key in three minutes and is told to stop, which leaves a checkpoint.
Then, round by round, one event more comes for each of a thousand keys, in the same minute, so that
no forecast is due; a worker is started as a process, and is killed once the group's offsets cover
those events. What imports take is measured by a process that does nothing else, and is taken off.
On Apache Kafka from KAFKA_HOME, or the cluster at KAFKA_BOOTSTRAP_SERVERS, else on the embedded
broker.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from brokers import most_real_broker

from benchmarks.live.pipeline import START_MS, Pipeline
from benchmarks.measure.figures import Report, Row, parser, say
from benchmarks.measure.machine import apart, pinned
from benchmarks.measure.turns import median, take_turns

if TYPE_CHECKING:
    from collections.abc import Callable

_TOUCHED = 1_000
"""Keys that move before each start."""
_ENDS_WITHIN_S = 120.0
_IMPORTS = """\
from stream_forecaster import cli, compiled
from stream_forecaster.config import parse
from stream_forecaster.weights import shipped
from stream_forecaster.shard import learner_for
compiled.compile_all()
shipped()
learner_for(parse({}), 0)
"""
"""All that `run` loads before it joins its group."""


def sources(log: str) -> set[str]:
    """Where a worker had the state of its partitions from."""
    events = map(json.loads, log.splitlines())
    return {e["recovered_from"] for e in events if e["event"] == "partition_assigned"}


def seconds_of_imports(core: list[int]) -> float:
    """What a process takes that loads what a worker loads, from its start to its end."""
    begin_s = time.perf_counter()
    with pinned(core):
        subprocess.run([sys.executable, "-c", _IMPORTS], check=True)
    return time.perf_counter() - begin_s


def write_checkpoint(pipeline: Pipeline, keys: int, core: list[int]) -> None:
    """Have a first worker hear every key, and end."""
    say(f"a first worker hears {keys:,} keys ...")
    for minute in range(3):
        for key in range(keys):
            pipeline.send(key, START_MS + 60_000 * minute)
    pipeline.flush()
    with pipeline.worker(core) as process:
        pipeline.wait(process)
        process.send_signal(signal.SIGTERM)
        if process.wait(_ENDS_WITHIN_S):
            raise SystemExit(f"the first worker ended with {process.returncode}")


def seconds_to_return(pipeline: Pipeline, at_ms: int, core: list[int]) -> float:
    """From the start of a worker to its first commit, over some new events."""
    for key in range(_TOUCHED):
        pipeline.send(key, at_ms)
    pipeline.flush()
    begin_s = time.perf_counter()
    with pipeline.worker(core) as process:
        pipeline.wait(process)
        took_s = time.perf_counter() - begin_s
    if (found := sources(pipeline.log())) != {"checkpoint"}:
        raise SystemExit(f"state came from {found}, not from checkpoints")
    return took_s


def main() -> None:
    """Make the checkpoint, come back from it round by round."""
    asked = parser(__doc__, rounds=3)
    asked.add_argument("--keys", type=int, default=100_000)
    asked.add_argument("--partitions", type=int, default=1)
    asked.add_argument("--profile", default="full", choices=("full", "lean"))
    options = asked.parse_args()
    others, core = apart()
    with tempfile.TemporaryDirectory() as name, pinned(others), most_real_broker() as served:
        directory, told = Path(name), {"model.profile": options.profile}
        pipeline = Pipeline(served, directory, options.partitions, told)
        write_checkpoint(pipeline, options.keys, core)
        size = sum(f.stat().st_size for f in directory.rglob("*.ckpt"))
        at_ms = count(START_MS + 121_000)
        contenders: dict[str, Callable[[], float]] = {
            "imports": partial(seconds_of_imports, core),
            "start": lambda: seconds_to_return(pipeline, next(at_ms), core),
        }
        taken = take_turns(contenders, options.rounds)
    whole_s, imports_s = (median(taken[name]) for name in ("start", "imports"))
    rows = [
        Row("from start to first committed turn", whole_s, "s"),
        Row("imports and compiled loops alone", imports_s, "s"),
        Row("recovery: the difference", whole_s - imports_s, "s"),
    ]
    case = f"{options.keys:,} keys, {options.profile}, {size / 1e6:,.0f} MB of checkpoints"
    Report("recovery", [replace(row, case=case) for row in rows], taken).finish(options)


if __name__ == "__main__":
    main()
