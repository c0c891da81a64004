"""How long a worker with many keys takes to come back from its local checkpoint.

    python benchmarks/recovery.py [--keys 100000] [--partitions 1] [--rounds 3] [--profile full]

A first worker hears every key in three minutes and is told to stop, which leaves a checkpoint.
Then, round by round, one event more comes for each of a thousand keys, in the same minute, so that
no forecast is due; a worker is started as a process, and is killed once the group's offsets cover
those events. What imports take is measured by a process that does nothing else, and is taken off.
On Apache Kafka from KAFKA_HOME, or the cluster at KAFKA_BOOTSTRAP_SERVERS, else on the embedded
broker.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from brokers import most_real, most_real_broker
from rich.console import Console
from rich.table import Table

from benchmarks.live.pipeline import START_MS, Pipeline

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


def seconds_of_imports() -> float:
    """What a process takes that loads what a worker loads, from its start to its end."""
    begin_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", _IMPORTS], check=True)
    return time.perf_counter() - begin_s


def main() -> None:
    """Make the checkpoint, come back from it round by round, show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--partitions", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", default="full", choices=("full", "lean"))
    options = parser.parse_args()
    table = Table("", "seconds", title=f"{options.keys:,} keys, {most_real()}")
    with tempfile.TemporaryDirectory() as name, most_real_broker() as served:
        directory = Path(name)
        pipeline = Pipeline(
            served, directory, options.partitions, {"model.profile": options.profile}
        )
        for minute in range(3):
            for key in range(options.keys):
                pipeline.send(key, START_MS + 60_000 * minute)
        pipeline.flush()
        print(f"a first worker hears {options.keys:,} keys ...", file=sys.stderr)
        with pipeline.worker() as process:
            pipeline.wait(process)
            process.send_signal(signal.SIGTERM)
            if process.wait(_ENDS_WITHIN_S):
                raise SystemExit(f"the first worker ended with {process.returncode}")
        size = sum(f.stat().st_size for f in directory.rglob("*.ckpt"))
        whole_s, imports_s = [], []
        for turn in range(options.rounds):
            print(f"round {turn + 1}/{options.rounds}", file=sys.stderr)
            imports_s.append(seconds_of_imports())
            for key in range(_TOUCHED):
                pipeline.send(key, START_MS + 121_000 + turn)
            pipeline.flush()
            begin_s = time.perf_counter()
            with pipeline.worker() as process:
                pipeline.wait(process)
                whole_s.append(time.perf_counter() - begin_s)
            if (found := sources(pipeline.log())) != {"checkpoint"}:
                raise SystemExit(f"state came from {found}, not from checkpoints")
    whole, imports = statistics.median(whole_s), statistics.median(imports_s)
    table.add_row("from start to first committed turn", f"{whole:.2f}")
    table.add_row("imports", f"{imports:.2f}")
    table.add_row("recovery", f"{whole - imports:.2f}")
    Console().print(table)
    print(f"{size / 1e6:,.0f} MB of checkpoints; rounds: {[round(s, 2) for s in whole_s]} s")


if __name__ == "__main__":
    main()
