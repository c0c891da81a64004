"""How long a worker takes to start, and with many keys to come back from its local checkpoint.

    python benchmarks/recovery.py [--keys 100000] [--partitions 1] [--rounds 3] [--profile full]

A first worker hears every key in three minutes and is told to stop, which leaves a checkpoint.
Then, round by round, one event more comes for each of a thousand keys, in the same minute, so that
no forecast is due; a worker is started as a process, and is killed once the group's offsets cover
those events. It notes when it first polls: all before that is the start, which is the same with any
number of keys; the first worker has kept its compiled loops. On Apache Kafka from KAFKA_HOME, or
the cluster at KAFKA_BOOTSTRAP_SERVERS, else on the embedded broker.
"""

import json
import signal
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from brokers import most_real_broker

from benchmarks.live.pipeline import START_MS, Pipeline
from benchmarks.measure.figures import Bound, Report, Row, parser, say
from benchmarks.measure.machine import apart, pinned
from benchmarks.measure.turns import median, take_turns

_TOUCHED = 1_000
"""Keys that move before each start."""
_ENDS_WITHIN_S = 120.0
_POLLS_WITHIN_S = 3.0
_WORKER = """\
import json, sys, time
from stream_forecaster import cli

class Noting(cli.KafkaTransport):
    def poll(self, timeout_s):
        told = {"event": "first poll", "at_s": time.time(), "cpu_s": time.process_time()}
        print(json.dumps(told), file=sys.stderr, flush=True)
        del Noting.poll
        return self.poll(timeout_s)

cli.KafkaTransport = Noting
cli.main(sys.argv[1:])
"""


@dataclass(frozen=True, slots=True)
class Start:
    """What one worker took, from the start of its process.

    Attributes:
        poll_s: to its first poll.
        cpu_s: of a core, to its first poll.
        commit_s: to its first commit.
    """

    poll_s: float
    cpu_s: float
    commit_s: float


def events(log: str, name: str) -> list[dict[str, Any]]:
    """What a worker logged under this name."""
    return [event for event in map(json.loads, log.splitlines()) if event["event"] == name]


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


def start(pipeline: Pipeline, at_ms: int, core: list[int]) -> Start:
    """A worker, until its first commit, over some new events."""
    for key in range(_TOUCHED):
        pipeline.send(key, at_ms)
    pipeline.flush()
    begin_s = time.time()
    with pipeline.worker(core, ("-c", _WORKER)) as process:
        pipeline.wait(process)
        commit_s = time.time() - begin_s
    (poll,) = events(pipeline.log(), "first poll")
    found = {event["recovered_from"] for event in events(pipeline.log(), "partition_assigned")}
    if found != {"checkpoint"}:
        raise SystemExit(f"state came from {found}, not from checkpoints")
    return Start(poll["at_s"] - begin_s, poll["cpu_s"], commit_s)


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
        runs = take_turns({"start": lambda: start(pipeline, next(at_ms), core)}, options.rounds)
    poll_s, cpu_s, commit_s = (
        median(getattr(run, name) for run in runs["start"])
        for name in ("poll_s", "cpu_s", "commit_s")
    )
    rows = [
        Row(
            "from start to first poll",
            poll_s,
            "s",
            also=f"{cpu_s:.2f} s of a core",
            must=Bound(most=_POLLS_WITHIN_S),
        ),
        Row("from start to first committed turn", commit_s, "s"),
        Row("recovery: the difference", commit_s - poll_s, "s"),
    ]
    case = f"{options.keys:,} keys, {options.profile}, {size / 1e6:,.0f} MB of checkpoints"
    taken = {name: [asdict(run) for run in each] for name, each in runs.items()}
    Report("recovery", [replace(row, case=case) for row in rows], taken).finish(options)


if __name__ == "__main__":
    main()
