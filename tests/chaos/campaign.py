"""A crash campaign: real workers on a real broker, killed and stopped, against a quiet run.

Workers are `stream-forecaster run` processes of one group. While events flow they are killed (-9)
at random and from inside their transactions, stopped past the session time-out and continued (also
inside a transaction), told to end, and made more and fewer; requests fail; and the broker is killed
and restarted. In the end the committed output must be what an undisturbed shard makes of the input
log (`verdict`).
"""

import itertools
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brokers import Served, unique
from confluent_kafka import Consumer, Producer
from crew import Crew
from faults import Faults
from verdict import Topics, Verdict, judge

from stream_forecaster import config
from stream_forecaster.config import Settings
from stream_forecaster.edge.topics import create_topics

_TICK_S = 0.02
_WATCH_EVERY = 20
_EVENTS_PER_TICK = 6
_USERS_PER_PARTITION = 8
_EVENT_TIME_SPEED = 120
"""Event time runs so much faster than the clock: two one-minute hops a second."""
_FAULTY_SHARE = 0.002
_DRAINED_WITHIN_S = 180.0


SESSION_MS = 1_000


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to happen.

    Attributes:
        seconds: how long events flow.
        seed: everything random follows from it (but the scheduling of processes).
        kills, stops, ends, broker_kills: how often from outside, spread over the time; one to three
            are killed at once, and an end is a SIGTERM, after which the worker is started anew.
        scalings: how often the number of workers changes, between two and all.
        deaths, self_stops: how probable it is of a transaction that its worker dies or stops in it.
        stop_at: the one moment at which they stop themselves; "": any (see `doomed_worker`).
        stop_s: how long a stop lasts, between these two; sessions run out after `SESSION_MS`.
        followed: how probable it is, when one that stopped itself has committed again, that all
            who took over are killed on the spot: what it committed is what they will find.
        faults: how probable it is of a request that it fails.
        workers, partitions: how many.
        network: all of the pool, and the network, which learns on; else the lean pool alone.
        mistake: what to put back into the workers' code (see `doomed_worker`).
    """

    seconds: float
    seed: int = 0
    kills: int = 0
    stops: int = 0
    ends: int = 0
    broker_kills: int = 0
    scalings: int = 0
    deaths: float = 0.0
    self_stops: float = 0.0
    stop_at: str = ""
    stop_s: tuple[float, float] = (1.2, 5.0)
    followed: float = 0.0
    faults: float = 0.0
    workers: int = 3
    partitions: int = 8
    network: bool = False
    mistake: str = ""


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        verdict: on the output; None until all is over.
        offsets_back: how often a committed offset was seen to go back.
        done: strikes from outside, by name; moments at which workers killed or stopped themselves.
        faults: requests that failed, by name.
        exits: exit codes of workers.
        recovered_s: from each strike until every partition was committed further, seconds.
    """

    verdict: Verdict | None = None
    offsets_back: int = 0
    done: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    exits: Counter[int] = field(default_factory=Counter)
    recovered_s: list[float] = field(default_factory=list)

    @property
    def flawless(self) -> bool:
        """Nothing lost, nothing doubled, nothing different, nothing taken back."""
        return self.verdict is not None and self.verdict.flawless and not self.offsets_back

    def inside(self, what: str) -> int:
        """How often workers "killed" or "stopped" themselves."""
        return sum(n for moment, n in self.done.items() if moment.startswith(f"{what} "))


class Campaign:
    """One campaign on one broker, in one directory."""

    def __init__(
        self, broker: Served, directory: Path, plan: Plan, faults: Faults | None = None
    ) -> None:
        """Stand ready; `faults` are those that stand before the broker."""
        self._broker, self._plan, self._faults = broker, plan, faults
        self._random = random.Random(plan.seed)
        self._outcome = Outcome()
        self._settings = _settings(broker.bootstrap, directory, network=plan.network)
        self._topics = Topics(broker.bootstrap, plan.partitions)
        self._crew = Crew(self._settings, directory, plan.seed)
        self._offsets: dict[int, int] = {}
        self._struck: list[tuple[float, dict[int, int]]] = []
        self._elsewhere = ThreadPoolExecutor(1)
        self._restart: Future[None] | None = None

    def run(self, progress: Callable[[float], object] = lambda _: None) -> Outcome:
        """Carry out the plan and compare.

        Args:
            progress: is told now and then how many seconds of the plan have passed.

        Raises:
            TimeoutError: the workers do not come to an end in peace.
        """
        create_topics(self._settings, self._plan.partitions)
        try:
            self._disturb(progress)
            self._drain()
        finally:
            self._crew.let_go()
        outcome = self._outcome
        outcome.exits = self._crew.exits
        outcome.done += self._crew.moments()
        if self._faults:
            outcome.faults = self._faults.drawn
        outcome.verdict = judge(self._broker.bootstrap, self._settings, self._plan.partitions)
        return outcome

    # -- the load and the misfortunes ------------------------------------------------------------

    def _disturb(self, progress: Callable[[float], object]) -> None:
        plan, crew, begin = self._plan, self._crew, time.monotonic()
        crew.wanted, crew.mistake = plan.workers, plan.mistake
        crew.deaths, crew.stops = plan.deaths, plan.self_stops
        crew.stop_at, crew.stop_s = plan.stop_at, plan.stop_s
        self._set_faults(plan.faults)
        producer, committed = self._producer(), self._watcher()
        schedule = self._schedule()
        events_ms = int(time.time() * 1000) - int(plan.seconds + 60) * 1000 * _EVENT_TIME_SPEED
        for tick in itertools.count():
            elapsed = time.monotonic() - begin
            if elapsed >= plan.seconds:
                break
            now_ms = events_ms + int(elapsed * 1000 * _EVENT_TIME_SPEED)
            for _ in range(_EVENTS_PER_TICK):
                self._produce(producer, now_ms)
            producer.poll(0)
            crew.tend()
            self._follow()
            if schedule and schedule[0][0] < elapsed and self._strike(schedule[0][1]):
                del schedule[0]
            if tick % _WATCH_EVERY == 0:
                self._watch(committed)
                progress(elapsed)
            time.sleep(_TICK_S)
        if self._restart:
            self._restart.result()
        producer.flush(60)
        committed.close()

    def _schedule(self) -> list[tuple[float, str]]:
        """When to do what: evenly spread, with some jitter, after a quiet start."""
        plan, strikes = self._plan, []
        wanted = {
            "kill": plan.kills,
            "stop": plan.stops,
            "end": plan.ends,
            "broker": plan.broker_kills,
            "scale": plan.scalings,
        }
        for what, times in wanted.items():
            span = plan.seconds * 0.9 / max(times, 1)
            strikes += [
                (plan.seconds * 0.08 + span * (i + self._random.random()), what)
                for i in range(times)
            ]
        return sorted(strikes)

    def _strike(self, what: str) -> bool:
        """Do it; False if there is nobody to be struck just now."""
        match what:
            case "broker":
                if self._restart and not self._restart.done():
                    return False
                broker: Any = self._broker
                broker.kill()
                away_s = self._random.uniform(0, 1)
                self._restart = self._elsewhere.submit(lambda: _restart(broker, away_s))
            case "scale":
                self._crew.wanted = self._random.randint(
                    min(2, workers := self._plan.workers), workers
                )
            case "kill":  # several at once: the others pause as long for one as for three
                return self._kill(self._random.randint(1, 3))
            case _:
                signals = {"stop": signal.SIGSTOP, "end": signal.SIGTERM}
                if not self._crew.strike(signals[what]):
                    return False
        return self._did(what)

    def _kill(self, most: int) -> bool:
        """Kill some that run, so many at most."""
        killed = sum(self._crew.strike(signal.SIGKILL) for _ in range(most))
        return killed > 0 and self._did("kill", killed)

    def _did(self, what: str, times: int = 1) -> bool:
        self._outcome.done[what] += times
        self._struck.append((time.monotonic(), dict(self._offsets)))
        return True

    def _follow(self) -> None:
        """Somebody has come back after a stop: perhaps kill those who took over."""
        for pid in self._crew.back:
            if self._random.random() < self._plan.followed:
                self._did("kill", self._crew.kill_others(pid))
        self._crew.back.clear()

    def _set_faults(self, probability: float) -> None:
        if self._faults:
            self._faults.probability = probability

    def _producer(self) -> Producer:
        return Producer(
            {
                "bootstrap.servers": self._broker.bootstrap,
                "enable.idempotence": True,
                "linger.ms": 5,
                "log_level": 0,
            }
        )

    def _produce(self, producer: Producer, now_ms: int) -> None:
        partition = self._random.randrange(self._plan.partitions)
        user = f"p{partition}-{self._random.randrange(_USERS_PER_PARTITION)}"
        time_ms = now_ms - self._random.randrange(60_000)
        value = f'{{"user_id":"{user}","ts":{time_ms}}}'
        if self._random.random() < _FAULTY_SHARE:
            value = value[:-9]
        while True:
            try:
                producer.produce(self._settings.input.topic, value, user, partition=partition)
            except BufferError:
                producer.poll(0.1)
            else:
                return

    # -- the group's offsets -----------------------------------------------------------------------

    @property
    def _group(self) -> str:
        return self._settings.kafka.group_id

    def _watcher(self) -> Consumer:
        """Sees what is committed now, and does not wait for what a killed worker left open."""
        return self._topics.consumer(self._group, "read_uncommitted")

    def _watch(self, reader: Consumer) -> dict[int, int]:
        """The group's offsets now; {} if nobody says."""
        if self._restart and not self._restart.done():
            return {}
        try:
            found = reader.committed(self._topics.partitions(self._settings.input.topic), timeout=1)
        except Exception:  # noqa: BLE001  (the broker may be down just now)
            return {}
        offsets = {tp.partition: tp.offset for tp in found if tp.offset >= 0}
        self._outcome.offsets_back += sum(o < self._offsets.get(p, 0) for p, o in offsets.items())
        self._offsets |= offsets
        for struck in list(self._struck):
            moment, then = struck
            if len(offsets) == self._plan.partitions and all(
                offset > then.get(p, -1) for p, offset in offsets.items()
            ):
                self._outcome.recovered_s.append(time.monotonic() - moment)
                self._struck.remove(struck)
        return offsets

    def _drain(self) -> None:
        """Let the workers finish in peace, then stop them as an orchestrator would."""
        crew = self._crew
        self._set_faults(0.0)
        crew.let_go()
        crew.wanted, crew.deaths, crew.stops = self._plan.workers, 0.0, 0.0
        reader = self._watcher()
        ends = {
            tp.partition: reader.get_watermark_offsets(tp, timeout=10)[1]
            for tp in self._topics.partitions(self._settings.input.topic)
        }
        deadline = time.monotonic() + _DRAINED_WITHIN_S
        while self._watch(reader) != ends:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the workers do not get from {self._offsets} to {ends}")
            crew.tend()
            time.sleep(0.2)
        reader.close()
        crew.end()


def _restart(broker: Any, away_s: float) -> None:
    """Start a killed broker again, after a while."""
    time.sleep(away_s)
    broker.restart()


def _settings(bootstrap: str, directory: Path, *, network: bool) -> Settings:
    name = unique("chaos")
    return config.parse(
        {
            "kafka": {
                "bootstrap_servers": bootstrap,
                "group_id": name,
                "session_timeout": f"{SESSION_MS}ms",
                # longer than the broker is away, or a restarted one may leave it hanging
                "transaction_timeout": "20s",
                # a member that works off a backlog in one turn keeps the group from going on
                "max_poll_records": 200,
            },
            "input": {"topic": f"{name}.in", "allowed_lateness": "30s", "max_ahead": "30d"},
            "output": {
                "topic": f"{name}.out",
                "dead_letter_topic": f"{name}.dead",
                "scores_topic": f"{name}.scores",
                "quantiles": [0.1, 0.5, 0.9],
                "publish": "every_hop",
            },
            # Commits are to be many: with the network a worker on a busy core makes few.
            "model": {
                "network": network,
                "profile": "full" if network else "lean",
                "train_every_hops": 2,
            },
            "resolutions": [
                # Of 80 every regression finds its lags.
                {"step": "1m", "context": 80 if network else 10, "horizon": 4},
                {"step": "10m", "context": 12 if network else 6, "horizon": 2},
            ],
            "state": {
                "checkpoint_url": f"file://{directory}/checkpoints",
                "checkpoint_interval": "1s",
            },
            "http": {"port": 0},
        }
    )
