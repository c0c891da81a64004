"""A crash campaign: real workers on a real broker, killed and stopped, against a quiet run.

Workers are `stream-forecaster run` processes of one group. While events flow they are killed (-9)
at random and from inside their transactions, stopped past the session time-out and continued, and
the broker is killed and restarted. Every forecast depends on its key's whole history, so an event
lost or counted twice shows in everything after it. In the end the committed output, read by another
client, must be what an undisturbed shard makes of the input log: no id twice, none missing, none
with other bytes.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from brokers import Served, unique
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from stream_forecaster import config
from stream_forecaster.calendar import Calendar
from stream_forecaster.edge.topics import create_topics
from stream_forecaster.forecasts import Encoder
from stream_forecaster.records import Records
from stream_forecaster.shard import Shard

_WORKER = Path(__file__).parent / "doomed_worker.py"
_TICK_S = 0.02
_EVENTS_PER_TICK = 40
_USERS_PER_PARTITION = 8
_EVENT_TIME_SPEED = 240
"""Event time runs so much faster than the clock: four one-minute hops a second."""
_DRAINED_WITHIN_S = 120.0
_STOPPED_WITHIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to happen.

    Attributes:
        seconds: how long events flow.
        seed: everything random follows from it (but the scheduling of processes).
        kills, stops, broker_kills: how many of each, spread over the time.
        doom: probability that a transaction is a worker's last.
        workers, partitions: how many.
    """

    seconds: float
    seed: int = 0
    kills: int = 10
    stops: int = 5
    broker_kills: int = 0
    doom: float = 0.01
    workers: int = 2
    partitions: int = 4


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        expected: messages of an undisturbed run.
        duplicate, missing, unexpected, wrong: against them, by id; wrong has other bytes.
        offsets_back: how often a committed offset was seen to go back.
        kills, stops, broker_kills: done from outside.
        deaths: from inside, by moment.
        exits: exit codes of workers that ended by themselves.
        events, dead_letters, aborted: records in, rejects out, and output records that
            read_committed readers never saw.
    """

    expected: int = 0
    duplicate: int = 0
    missing: int = 0
    unexpected: int = 0
    wrong: int = 0
    offsets_back: int = 0
    kills: int = 0
    stops: int = 0
    broker_kills: int = 0
    deaths: Counter[str] = field(default_factory=Counter)
    exits: Counter[int] = field(default_factory=Counter)
    events: int = 0
    dead_letters: int = 0
    aborted: int = 0

    @property
    def flawless(self) -> bool:
        """Nothing lost, nothing doubled, nothing different, nothing taken back."""
        flaws = (self.duplicate, self.missing, self.unexpected, self.wrong, self.offsets_back)
        return self.expected > 0 and not any(flaws)


class Campaign:
    """One campaign on one broker, in one directory."""

    def __init__(self, broker: Served, directory: Path, plan: Plan) -> None:
        self._broker, self._directory, self._plan = broker, directory, plan
        self._random = random.Random(plan.seed)
        self._outcome = Outcome()
        self._workers: list[subprocess.Popen[bytes] | None] = [None] * plan.workers
        self._stopped_until: dict[int, float] = {}
        self._started = 0
        self._last_offsets: dict[int, int] = {}
        self._rejected: set[tuple[bytes, bytes]] = set()
        name = unique("chaos")
        self._settings = config.parse(
            {
                "kafka": {
                    "bootstrap_servers": broker.bootstrap,
                    "group_id": name,
                    "session_timeout": "2s",
                    # longer than the broker is away, or a restarted one may leave it hanging
                    "transaction_timeout": "20s",
                },
                "input": {"topic": f"{name}.in", "allowed_lateness": "30s", "max_ahead": "30d"},
                "output": {
                    "topic": f"{name}.out",
                    "dead_letter_topic": f"{name}.dead",
                    "quantiles": [0.1, 0.5, 0.9],
                    "publish": "every_hop",
                },
                # Commits are to be many: with the network a worker on a busy core makes few.
                "model": {"network": False},
                "resolutions": [
                    {"step": "1m", "context": 10, "horizon": 4},
                    {"step": "10m", "context": 6, "horizon": 2},
                ],
                "state": {
                    "checkpoint_url": f"file://{directory}/checkpoints",
                    "checkpoint_interval": "1s",
                },
                "http": {"port": 0},
            }
        )

    def run(self) -> Outcome:
        """Carry out the plan and compare."""
        create_topics(self._settings, self._plan.partitions)
        try:
            self._disturb()
            self._drain()
        finally:
            for worker in self._workers:
                if worker is not None:
                    worker.send_signal(signal.SIGCONT)
                    worker.kill()
                    worker.wait()
        self._compare()
        return self._outcome

    # -- the load and the misfortunes ------------------------------------------------------------

    def _disturb(self) -> None:
        plan, begin = self._plan, time.monotonic()
        producer = Producer(
            {
                "bootstrap.servers": self._broker.bootstrap,
                "enable.idempotence": True,
                "linger.ms": 5,
                "log_level": 0,
            }
        )
        schedule = self._schedule()
        committed = self._committed_reader()
        events_ms = int(time.time() * 1000) - int(plan.seconds + 60) * 1000 * _EVENT_TIME_SPEED
        tick = 0
        while (elapsed := time.monotonic() - begin) < plan.seconds:
            now_ms = events_ms + int(elapsed * 1000 * _EVENT_TIME_SPEED)
            for _ in range(_EVENTS_PER_TICK):
                self._produce(producer, now_ms)
            producer.poll(0)
            self._tend_workers(doom=plan.doom)
            if schedule and schedule[0][0] < elapsed and self._strike(schedule[0][1]):
                del schedule[0]
            tick += 1
            if tick % 50 == 0:
                self._watch_offsets(committed)
            time.sleep(_TICK_S)
        producer.flush(60)
        committed.close()

    def _schedule(self) -> list[tuple[float, str]]:
        """When to do what: evenly spread, with some jitter, after a quiet start."""
        plan = self._plan
        strikes = []
        for what, times in (
            ("kill", plan.kills),
            ("stop", plan.stops),
            ("broker", plan.broker_kills),
        ):
            span = plan.seconds * 0.9 / max(times, 1)
            strikes += [
                (plan.seconds * 0.08 + span * (i + self._random.random()), what)
                for i in range(times)
            ]
        return sorted(strikes)

    def _strike(self, what: str) -> bool:
        """Do it; False if no worker is there to be struck just now."""
        if what == "broker":
            broker: Any = self._broker
            broker.kill()
            time.sleep(self._random.uniform(0, 1))
            broker.restart()
            self._outcome.broker_kills += 1
            return True
        running = [
            i
            for i, worker in enumerate(self._workers)
            if worker is not None and worker.poll() is None and i not in self._stopped_until
        ]
        if not running:
            return False
        victim = self._random.choice(running)
        worker = self._workers[victim]
        assert worker is not None
        if what == "kill":
            worker.kill()
            self._outcome.kills += 1
        else:
            worker.send_signal(signal.SIGSTOP)
            self._stopped_until[victim] = time.monotonic() + self._random.uniform(2.5, 6)
            self._outcome.stops += 1
        return True

    def _tend_workers(self, doom: float) -> None:
        """Continue those stopped for long enough, start those that are gone."""
        for i, until in list(self._stopped_until.items()):
            if time.monotonic() > until:
                del self._stopped_until[i]
                worker = self._workers[i]
                if worker is not None and worker.poll() is None:
                    worker.send_signal(signal.SIGCONT)
        for i, worker in enumerate(self._workers):
            if worker is not None and worker.poll() is None:
                continue
            if worker is not None:
                self._outcome.exits[worker.returncode] += 1
            self._workers[i] = self._start(i, doom)

    def _start(self, i: int, doom: float) -> subprocess.Popen[bytes]:
        self._started += 1
        settings = self._directory / "settings.toml"
        settings.write_text(config.to_toml(config.redacted(self._settings)))
        environment = {
            **os.environ,
            "STREAM_FORECASTER__KAFKA__INSTANCE_ID": f"worker-{i}",
            "DOOM_PROBABILITY": str(doom),
            "DOOM_SEED": str(self._plan.seed * 1_000_003 + self._started),
            "DOOM_LOG": str(self._directory / "deaths"),
        }
        command = [sys.executable, str(_WORKER), "run", "--config", str(settings)]
        with (self._directory / f"worker-{i}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def _produce(self, producer: Producer, now_ms: int) -> None:
        partition = self._random.randrange(self._plan.partitions)
        user = f"p{partition}-{self._random.randrange(_USERS_PER_PARTITION)}"
        time_ms = now_ms - self._random.randrange(60_000)
        value = f'{{"user_id":"{user}","ts":{time_ms}}}'
        if self._random.random() < 0.002:
            value = value[:-9]
        while True:
            try:
                producer.produce(self._settings.input.topic, value, user, partition=partition)
            except BufferError:
                producer.poll(0.1)
            else:
                return

    # -- the group's offsets -----------------------------------------------------------------------

    def _committed_reader(self) -> Consumer:
        return Consumer(
            {
                "bootstrap.servers": self._broker.bootstrap,
                "group.id": self._settings.kafka.group_id,
                "log_level": 0,
            }
        )

    def _partitions(self, topic: str) -> list[TopicPartition]:
        return [TopicPartition(topic, p) for p in range(self._plan.partitions)]

    def _watch_offsets(self, reader: Consumer) -> dict[int, int]:
        try:
            found = reader.committed(self._partitions(self._settings.input.topic), timeout=2)
        except Exception:  # noqa: BLE001  (the broker may be down just now)
            return {}
        offsets = {tp.partition: tp.offset for tp in found if tp.offset >= 0}
        last = self._last_offsets
        self._outcome.offsets_back += sum(o < last.get(p, 0) for p, o in offsets.items())
        last |= offsets
        return offsets

    def _drain(self) -> None:
        """Let the workers finish in peace, then stop them as an orchestrator would."""
        for i in list(self._stopped_until):
            self._stopped_until[i] = 0.0
        for worker in self._workers:
            if worker is not None and worker.poll() is None:
                worker.send_signal(signal.SIGCONT)
                worker.kill()
                worker.wait()
        reader = self._committed_reader()
        ends = {
            tp.partition: reader.get_watermark_offsets(tp, timeout=10)[1]
            for tp in self._partitions(self._settings.input.topic)
        }
        deadline = time.monotonic() + _DRAINED_WITHIN_S
        while self._watch_offsets(reader) != ends:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the workers do not get to {ends}: see {self._directory}")
            self._tend_workers(doom=0.0)
            time.sleep(0.2)
        reader.close()
        for worker in self._workers:
            if worker is not None:
                worker.send_signal(signal.SIGTERM)
        for i, worker in enumerate(self._workers):
            if worker is not None:
                self._outcome.exits[worker.wait(_STOPPED_WITHIN_S)] += 1
                self._workers[i] = None

    # -- the verdict -------------------------------------------------------------------------------

    def _compare(self) -> None:
        outcome = self._outcome
        deaths = self._directory / "deaths"
        outcome.deaths.update(deaths.read_text().splitlines() if deaths.exists() else ())
        expected = dict(self._expected())
        outcome.expected = len(expected)
        found: dict[str, bytes | None] = {}
        for record in self._read(self._settings.output.topic):
            identity = dict(record.headers())["ce_id"].decode()
            outcome.duplicate += identity in found
            found[identity] = record.value()
        outcome.missing = len(expected.keys() - found.keys())
        outcome.unexpected = len(found.keys() - expected.keys())
        outcome.wrong = sum(found[i] != expected[i] for i in expected.keys() & found.keys())
        outcome.aborted = sum(
            1 for _ in self._read(self._settings.output.topic, "read_uncommitted")
        ) - (len(found) + outcome.duplicate)
        self._compare_dead_letters()

    def _compare_dead_letters(self) -> None:
        headers = (dict(r.headers()) for r in self._read(self._settings.output.dead_letter_topic))
        seen = Counter(
            (h["__streams.errors.partition"], h["__streams.errors.offset"]) for h in headers
        )
        self._outcome.dead_letters = len(seen)
        self._outcome.duplicate += sum(n - 1 for n in seen.values())
        self._outcome.missing += len(self._rejected - seen.keys())
        self._outcome.unexpected += len(seen.keys() - self._rejected)

    def _expected(self) -> Iterator[tuple[str, bytes | None]]:
        """What an undisturbed run makes of the input log as the broker has it."""
        records: dict[int, list[Any]] = {p: [] for p in range(self._plan.partitions)}
        for record in self._read(self._settings.input.topic):
            records[record.partition()].append(record)
        encoder = Encoder(self._settings)
        for partition, rows in records.items():
            self._outcome.events += len(rows)
            shard = Shard(self._settings, Calendar("UTC"), partition, 0)
            columns = Records(
                partition,
                np.array([row.offset() for row in rows], np.int64),
                np.array([row.timestamp()[1] for row in rows], np.int64),
                [row.key() for row in rows],
                [row.value() for row in rows],
                len(rows),
            )
            turn = shard.advance(columns)
            for rejected in turn.rejects:
                self._rejected.add((b"%d" % partition, b"%d" % rejected.offset))
            for message in encoder.output(turn.output):
                yield dict(message.headers)["ce_id"].decode(), message.value

    def _read(self, topic: str, isolation: str = "read_committed") -> Iterator[Any]:
        """All records of a topic, by an independent client."""
        consumer = Consumer(
            {
                "bootstrap.servers": self._broker.bootstrap,
                "group.id": "reader",
                "isolation.level": isolation,
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "check.crcs": True,
                "log_level": 0,
            }
        )
        try:
            consumer.assign([TopicPartition(topic, p, 0) for p in range(self._plan.partitions)])
            ended: set[int] = set()
            while len(ended) < self._plan.partitions:
                for record in consumer.consume(10_000, 1.0):
                    error = record.error()
                    if error is None:
                        yield record
                    elif error.code() == KafkaError._PARTITION_EOF:
                        ended.add(record.partition() or 0)
                    else:
                        raise RuntimeError(str(error))
        finally:
            consumer.close()
