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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from brokers import Served, create_topic, most_real, most_real_broker
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from rich.console import Console
from rich.table import Table

from stream_forecaster.config import from_assignments, parse
from stream_forecaster.edge.topics import create_topics

_START_MS = 1_767_571_200_000
_TOUCHED = 1_000
"""Keys that move before each start."""
_PATIENCE_S = 600.0
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


class Pipeline:
    """One topic, and workers over it.

    Args:
        served: the broker.
        directory: for checkpoints and logs.
        partitions: of the topic.
        profile: `model.profile`.
    """

    def __init__(self, served: Served, directory: Path, partitions: int, profile: str) -> None:
        self._topic, self._partitions = create_topic(served, partitions), partitions
        self._log = directory / "worker.log"
        settings = {
            "kafka.bootstrap_servers": served.bootstrap,
            "kafka.group_id": self._topic,
            "input.topic": self._topic,
            "output.topic": f"{self._topic}.forecasts",
            "output.dead_letter_topic": f"{self._topic}.dead",
            "model.profile": profile,
            "state.checkpoint_url": f"file://{directory}/checkpoints",
            "http.port": "0",
        }
        assignments = [f"{name}={value}" for name, value in settings.items()]
        create_topics(parse(from_assignments(assignments)), partitions)
        self._command = [sys.executable, "-m", "stream_forecaster", "run"]
        self._command += [word for assignment in assignments for word in ("--set", assignment)]
        client = {"bootstrap.servers": served.bootstrap, "log_level": 0}
        self._producer = Producer({**client, "linger.ms": 20})
        self._watcher = Consumer({**client, "group.id": self._topic, "enable.auto.commit": False})
        self._sent = [0] * partitions

    def send(self, keys: range, at_ms: int) -> None:
        """One event of each key."""
        for key in keys:
            partition = key % self._partitions
            value = b'{"user_id":"u%06d","ts":%d}' % (key, at_ms)
            self._producer.produce(self._topic, value, partition=partition)
            self._sent[partition] += 1
            if key % 1_000 == 0:
                self._producer.poll(0)
        self._producer.flush()

    @contextmanager
    def worker(self) -> Iterator["subprocess.Popen[bytes]"]:
        """A worker; killed in the end, if it still lives."""
        with self._log.open("wb") as log:
            process = subprocess.Popen(self._command, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def wait(self, process: "subprocess.Popen[bytes]") -> None:
        """Until the group's offsets cover all that was sent."""
        asked = [TopicPartition(self._topic, p) for p in range(self._partitions)]
        deadline_s = time.monotonic() + _PATIENCE_S
        while True:
            with suppress(KafkaException):  # before the group has a coordinator
                found = self._watcher.committed(asked, timeout=10)
                if [place.offset for place in found] == self._sent:
                    return
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise SystemExit(f"the worker did not get there:\n{self._log.read_text()[-3000:]}")
            time.sleep(0.01)

    def sources(self) -> set[str]:
        """Where the last worker had the state of its partitions from."""
        events = map(json.loads, self._log.read_text().splitlines())
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
        pipeline = Pipeline(served, directory, options.partitions, options.profile)
        for minute in range(3):
            pipeline.send(range(options.keys), _START_MS + 60_000 * minute)
        print(f"a first worker hears {options.keys:,} keys ...", file=sys.stderr)
        with pipeline.worker() as process:
            pipeline.wait(process)
            process.send_signal(signal.SIGTERM)
            if process.wait(_PATIENCE_S):
                raise SystemExit(f"the first worker ended with {process.returncode}")
        size = sum(f.stat().st_size for f in directory.rglob("*.ckpt"))
        whole_s, imports_s = [], []
        for turn in range(options.rounds):
            print(f"round {turn + 1}/{options.rounds}", file=sys.stderr)
            imports_s.append(seconds_of_imports())
            pipeline.send(range(_TOUCHED), _START_MS + 121_000 + turn)
            begin_s = time.perf_counter()
            with pipeline.worker() as process:
                pipeline.wait(process)
                whole_s.append(time.perf_counter() - begin_s)
            if pipeline.sources() != {"checkpoint"}:
                raise SystemExit(f"state came from {pipeline.sources()}, not from checkpoints")
    whole, imports = statistics.median(whole_s), statistics.median(imports_s)
    table.add_row("from start to first committed turn", f"{whole:.2f}")
    table.add_row("imports", f"{imports:.2f}")
    table.add_row("recovery", f"{whole - imports:.2f}")
    Console().print(table)
    print(f"{size / 1e6:,.0f} MB of checkpoints; rounds: {[round(s, 2) for s in whole_s]} s")


if __name__ == "__main__":
    main()
