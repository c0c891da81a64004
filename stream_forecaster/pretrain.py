"""Pre-training: the engine itself, run over synthetic worlds, is the network's teacher.

Theory of operation. A world is a topic that never was. Its values go bucket by bucket through the
same pools, windows and experts that serve a real topic, and the same learner draws its samples from
them; so the network is trained on exactly what it will be told. Worlds follow each other, hours or
minutes, counts or real values; the weights stay.

Before training some worlds are set aside: what the learner is told of them is kept, to measure on
it how much better than the pool alone the network has become, and with which share its paths should
enter the fusion of a stream that it has never seen. It is measured ten times on the way, and the
best is kept.

Everything follows from the seed.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.calendar import DAY_MS, HOUR_MS, Calendar
from stream_forecaster.config import Settings, parse
from stream_forecaster.keys import KeyTable
from stream_forecaster.learning import Float32, Learner
from stream_forecaster.lstm import Seats
from stream_forecaster.pace import Pace
from stream_forecaster.pool import Pool
from stream_forecaster.series import World, generate, generate_minutes
from stream_forecaster.weights import Weights
from stream_forecaster.worth import Worth, measure, score

Float64 = NDArray[np.float64]

STEPS_MS = (HOUR_MS // 60, HOUR_MS, DAY_MS)
_CONTEXTS, _HORIZONS = (60, 72, 28), (30, 48, 14)
_PACE = Pace(
    every=1, draw=96, repeat=1, rows=256, capacity=20_000, rate=2e-3, memory=0.998, speaks=False
)
"""One step a bucket: what counts is how many worlds are seen, not how often."""
_WARM_UP = 300
_DAYS_LEARNED = 4
"""Days at the start of a world that nothing is drawn from: no pool has learned anything yet."""
_FAMILIES = 8
_VALIDATION_SEED = 1
_MEASURED = 10
"""How many times on the way."""


@dataclass(frozen=True, slots=True)
class Size:
    """How large the worlds are. Pairs are the least, and one more than the most.

    Attributes:
        keys: of a family, of which a world has eight.
        days: of a world by the hour or so.
        past_days: of a world by the minute, before its minutes begin.
        live_hours: of minutes.
        set_aside: how many worlds are.
    """

    keys: tuple[int, int] = (40, 90)
    days: tuple[int, int] = (21, 60)
    past_days: tuple[int, int] = (7, 22)
    live_hours: tuple[int, int] = (6, 20)
    set_aside: int = 4


FULL_SIZE = Size()


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands.

    Attributes:
        steps: taken so far.
        worlds: seen so far; before the first step, set aside so far.
        loss: of the last steps, running mean.
        best: the lowest pinball loss so far on the worlds set aside, over the pool's; NaN before
            all of them are.
    """

    steps: int
    worlds: int
    loss: float
    best: float


class Pretraining:
    """Training that can be stopped after any step."""

    def __init__(
        self,
        seed: int,
        *,
        steps: int,
        begin_with: Weights | None = None,
        size: Size = FULL_SIZE,
    ) -> None:
        """Stand ready.

        Args:
            seed: of everything.
            steps: how many will be taken: the learning rate falls over them.
            begin_with: weights to go on from.
            size: of the worlds; smaller ones teach little, fast.
        """
        self._steps, self._seed, self._size = steps, seed, size
        self._learner = _learner(seed, _PACE, begin_with)
        self._aside = _learner(
            _VALIDATION_SEED, Pace(every=12, draw=96, repeat=0, capacity=6000, speaks=False)
        )
        self._best: dict[str, Float32] = {}
        self._report: list[Worth] = []

    def run(self) -> Iterator[Progress]:
        """Set worlds aside, then train, world after world."""
        loss = 2.0
        for aside in self._set_aside():
            yield Progress(0, aside, loss, math.nan)
        self._keep_if_better()
        rng, worlds = np.random.default_rng([self._seed, 2]), 0
        while self._learner.steps < self._steps:
            before = self._learner.steps
            for _ in _live_through(_draw(rng, self._size), self._learner):
                steps = self._learner.steps
                if steps == before:
                    continue
                loss += 0.01 * (self._learner.loss - loss)
                self._pace()
                if _MEASURED * steps // self._steps > _MEASURED * before // self._steps:
                    self._keep_if_better()
                before = steps
                yield Progress(steps, worlds + 1, loss, score(self._report))
                if steps >= self._steps:
                    break
            self._learner.leave()
            worlds += 1

    def weights(self, card: dict[str, Any]) -> Weights:
        """The best ones, with the shares that their `report` justifies."""
        shares = np.stack([worth.shares for worth in self._report])
        return Weights(STEPS_MS, self._best, shares, card)

    @property
    def report(self) -> Sequence[Worth]:
        """What the best network is worth on the worlds set aside, at each trained step (S,)."""
        return self._report

    def _set_aside(self) -> Iterator[int]:
        rng = np.random.default_rng([_VALIDATION_SEED])
        for world in range(self._size.set_aside):
            for _ in _live_through(_draw(rng, self._size), self._aside):
                pass
            self._aside.leave()
            yield world + 1

    def _keep_if_better(self) -> None:
        now = measure(self._learner, self._aside.samples)
        if not self._report or score(now) < score(self._report):
            self._report = now
            self._best = {name: a.copy() for name, a in self._learner.parameters().items()}

    def _pace(self) -> None:
        """A warm-up, then a cosine down to a fiftieth."""
        done = self._learner.steps / self._steps
        rate = min(1.0, self._learner.steps / _WARM_UP) * (0.51 + 0.49 * np.cos(np.pi * done))
        self._learner.rate = _PACE.rate * rate


def _learner(seed: int, pace: Pace, begin_with: Weights | None = None) -> Learner:
    return Learner(STEPS_MS, _CONTEXTS, _HORIZONS, begin_with, seed=(seed,), pace=pace)


def _draw(rng: np.random.Generator, size: Size) -> tuple[World, World | None]:
    """A world by the hour or so, or one by the hour and then by the minute."""
    is_count = bool(rng.random() < 0.65)
    keys = int(rng.integers(*size.keys))
    if rng.random() < 0.4:
        past = int(rng.integers(24 * size.past_days[0], 24 * size.past_days[1]))
        live = int(rng.integers(*size.live_hours))
        return generate_minutes(
            rng,
            hours=past + live,
            live_hours=live,
            keys=keys,
            is_count=is_count,
            families=_FAMILIES,
        )
    step_ms = int(rng.choice([15, 30, 60, 60, 60, 60, 120])) * HOUR_MS // 60
    buckets = min(int(rng.integers(*size.days)) * DAY_MS // step_ms, 24 * 50)
    world = generate(
        rng, step_ms=step_ms, buckets=buckets, keys=keys, is_count=is_count, families=_FAMILIES
    )
    return world, None


def _settings(world: World) -> Settings:
    steps = ("1m", f"{world.step_ms // 60_000}m", "1d")
    rows = zip(steps, _CONTEXTS, _HORIZONS, strict=True)
    value = {"aggregate": "count"} if world.is_count else {"aggregate": "sum", "value": "value"}
    return parse(
        {
            "input": value,
            "resolutions": [{"step": s, "context": c, "horizon": h} for s, c, h in rows],
        }
    )


def _live_through(worlds: tuple[World, World | None], learner: Learner) -> Iterator[None]:
    """Send the worlds through pools of their own; yields after each bucket."""
    coarse, minutes = worlds
    life, live = _Life(coarse, learner), len(minutes.values) // 60 if minutes else 0
    for t, row in enumerate(coarse.values):
        hour = t - (len(coarse.values) - live)
        if minutes is None or hour < 0:
            life.bucket(1, coarse, t, row)
            yield
            continue
        for minute in range(60 * hour, 60 * hour + 60):
            life.bucket(0, minutes, minute, minutes.values[minute])
            yield


class _Life:
    """One world on its way through the engine."""

    def __init__(self, world: World, learner: Learner) -> None:
        settings = _settings(world)
        self._table, self._learner, self._calendar = KeyTable(), learner, Calendar("UTC")
        seats = Seats(learner)
        self._pools = tuple(
            Pool(self._table, self._calendar, resolution, settings, seats)
            for resolution in settings.resolutions
        )
        for pool in self._pools:
            pool.window.begin(world.start_ms)
        self._slots = np.full(world.values.shape[1], -1, np.int64)
        self._learn_from_ms = world.start_ms + _DAYS_LEARNED * DAY_MS

    def bucket(self, finest: int, world: World, index: int, row: Float64) -> None:
        """Take in one bucket of the finest resolution there is, and close what ends with it."""
        start_ms, end_ms = (world.start_ms + i * world.step_ms for i in (index, index + 1))
        if finest == 0 and index == 0:
            self._pools[0].window.begin(start_ms)
        active = np.flatnonzero(~np.isnan(row) & ((row != 0) | (not world.is_count)))
        new = active[self._slots[active] < 0]
        if len(new):
            times = np.full(len(new), start_ms)
            self._slots[new] = self._table.intern([b"%d" % key for key in new.tolist()], times)
        for pool in self._pools[finest:]:
            pool.window.absorb(self._slots[active], np.full(len(active), start_ms), row[active])
        self._learner.quiet = end_ms < self._learn_from_ms
        for pool in self._pools[finest:]:
            window = pool.window
            while window.closed < int(self._calendar.index(end_ms, window.step_ms)):
                pool.close()
                pool.issue()
