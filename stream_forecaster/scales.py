"""The pools of all resolutions, and what they agree on.

Theory of operation. Event time passes boundaries of the finest resolution, one after the other. At
each of them every bucket that ends there is closed, finest first; then all resolutions speak:

    close      minutes, and on the hour hours: score · learn
    think      what each resolution whose bucket closed says by itself; the others said it before
    agree      minutes add up to the hour, which is what came of it and what is left
    keep       what was agreed on, until its time comes
    publish    some keys, if anybody listens

A forecast of an hour is judged as it was published on the hour. What is published of it later, a
minute at a time, is the same path with what has come since, and is not judged.

Before an hour has closed its pool knows nothing, and of the first one often only a part. Until a
second one has closed, hours are said to go on as minutes will on the whole.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from stream_forecaster.agreement import Agreement, Steps, draw_in, steps_at
from stream_forecaster.calendar import Calendar
from stream_forecaster.compiled import compile_all
from stream_forecaster.config import Settings
from stream_forecaster.keys import KeyTable, Part, arrays_of, restore_all
from stream_forecaster.lstm import Seats
from stream_forecaster.paths import Opinion, Paths
from stream_forecaster.pool import Closed, Pool, chunks
from stream_forecaster.standing import Standing, Statement

if TYPE_CHECKING:  # it loads torch: a process without a network does without
    from stream_forecaster.learning import Learner

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_SILENT_CONTEXTS = 5
"""A silence is closed bucket by bucket for so many contexts; a longer one counts as that long."""

_YOUNG = 2
"""With fewer closed buckets a resolution does not speak for itself: the first may be a part."""
_FOLLOWED = 4
"""Until then it follows its finer one once in so many of the finest buckets."""


@dataclass(frozen=True, slots=True)
class Issued:
    """What all R resolutions say of a run of slots, B rows, at one hop.

    Attributes:
        rows: the slots.
        moved: (B,) whose forecast is not what was last sent.
    """

    rows: slice
    moved: NDArray[np.bool_]
    _pools: tuple[Pool, ...]
    _standing: tuple[Standing, ...]
    _steps: tuple[Steps, ...]
    _opinion: Opinion
    _means: list[Float64]
    _observed: list[Float64]
    _is_count: bool

    def paths(self, slots: Int64) -> tuple[Paths, ...]:
        """The forecasts of some of the slots, finest resolution first."""
        rows = slots - self.rows.start
        means = [mean[rows] for mean in self._means]
        fine = self._pools[0].some(self._opinion, rows, slots)
        quantiles = self._pools[0].quantiles(fine, means[0])
        said = [Statement(means[0], quantiles, fine.weights)]
        for standing, mean, steps, observed in zip(
            self._standing, means[1:], self._steps[1:], self._observed[1:], strict=True
        ):
            agreed = standing.agreed(slots, mean, is_count=self._is_count)
            draw_in(agreed.quantiles, mean, steps, observed[rows], is_count=self._is_count)
            said.append(agreed)
        return tuple(pool.paths(slots, each) for pool, each in zip(self._pools, said, strict=True))

    def mark_sent(self, slots: Int64) -> None:
        """Note that the forecasts of some of the slots are published."""
        for pool, mean in zip(self._pools, self._means, strict=True):
            pool.mark_sent(slots, mean[slots - self.rows.start])


class Scales:
    """All that a shard knows of its keys' values, at every resolution.

    Attributes:
        pools: one per resolution, finest first.
        learner: the network; None without one.
    """

    def __init__(
        self,
        table: KeyTable,
        calendar: Calendar,
        settings: Settings,
        learner: "Learner | None" = None,
    ) -> None:
        """Add the columns of all resolutions to `table`.

        Args:
            table: the shard's.
            calendar: of the input's time zone.
            settings: all of them.
            learner: the shard's network; None: the experts alone.
        """
        compile_all()
        # One process per core: more threads of a product wait for each other. And the same bits
        # whatever the machine.
        threadpool_limits(1, user_api="blas")
        self._table, self._calendar, self.learner = table, calendar, learner
        self._resolutions = settings.resolutions
        self._is_count = settings.input.aggregate == "count"
        self._is_mean = settings.input.aggregate == "mean"
        seats = Seats(learner) if learner else None
        self.pools = tuple(
            Pool(table, calendar, resolution, settings, seats) for resolution in self._resolutions
        )
        self._agreement = Agreement(
            table,
            self._resolutions,
            is_count=self._is_count,
            is_mean=self._is_mean,
        )
        self._fresh: list[int] = []  # the resolutions that closed a bucket at the newest boundary
        levels = len(settings.output.quantiles)
        self._standing = tuple(
            Standing(
                table,
                f"standing.{pool.resolution.step_ms}",
                pool.resolution.horizon,
                levels,
                len(pool.experts),
                is_short=settings.is_lean,
            )
            for pool in self.pools[1:]
        )

    @property
    def training_steps(self) -> int:
        """Steps that have trained the network."""
        return self.learner.steps if self.learner else 0

    def begin(self, time_ms: int) -> None:
        """Open the buckets of `time_ms` as the first ones."""
        for pool in self.pools:
            pool.window.begin(time_ms)

    def absorb(self, slots: Int64, time_ms: Int64, value: Float64) -> None:
        """Add events (N,) to their open buckets."""
        for pool in self.pools:
            pool.window.absorb(slots, time_ms, value)

    def forget(self, slots: Int64) -> None:
        """Erase what is kept of the keys in `slots` outside of the table."""
        if self.learner:
            self.learner.forget(slots)

    def close(self, hop_ms: int) -> Iterator[tuple[int, Closed]]:
        """Close every bucket that ends by the hop: yields its resolution, and what it came to.

        At boundaries before the hop forecasts are issued as well; those of the hop are left to
        `issue`.
        """
        *before, last = self._boundaries(hop_ms)
        for boundary_ms in before:
            yield from self._close(boundary_ms)
            for _ in self.issue(boundary_ms):
                pass
        yield from self._close(last)

    def issue(self, hop_ms: int) -> Iterator[Issued]:
        """Forecast every key at the hop, a run of slots at a time; go through it to the end."""
        steps = steps_at(hop_ms, self._calendar, self._resolutions)
        fresh = {r: self.pools[r] for r in self._fresh}
        ages = [pool.window.oldest for pool in self.pools[1:]]
        for pool in fresh.values():
            pool.look()
        for rows in chunks(self._table.size):
            opinions = {r: pool.think(rows) for r, pool in fresh.items()}
            means, observed = self._means(rows, opinions, ages), self._agreement.observed(rows)
            if len(self.pools) > 1:
                means = self._agreement.agree(
                    rows, steps, means, self._errors(rows, means), observed
                )
            moved = np.zeros(len(means[0]), np.bool_)
            for r, pool in fresh.items():
                pool.keep(rows, opinions[r], means[r])
                moved |= pool.moved(rows, means[r])
            yield Issued(
                rows,
                moved,
                self.pools,
                self._standing,
                steps,
                opinions[0],
                means,
                observed,
                self._is_count,
            )
        for pool in fresh.values():
            pool.train()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is not in the table, for the checkpoint."""
        return arrays_of(self._parts())

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take `arrays` back."""
        restore_all(self._parts(), arrays)

    def _parts(self) -> Iterator[tuple[str, Part]]:
        for pool in self.pools:
            yield f"pool.{pool.resolution.step_ms}", pool
        yield "agreement", self._agreement
        if self.learner:
            yield "network", self.learner

    # -- close -----------------------------------------------------------------------------------

    def _boundaries(self, hop_ms: int) -> list[int]:
        """Ends of the finest resolution's buckets up to the hop, save those of a long silence."""
        window = self.pools[0].window
        first, until = window.closed, int(self._calendar.index(hop_ms, window.step_ms))
        ends = np.arange(first + 1, until + 1)
        if _is_long(window.open, window.context, until - first):
            far = until - _SILENT_CONTEXTS * window.context
            ends = ends[(ends <= first + window.open) | (ends > far)]
        boundaries: list[int] = self._calendar.start(ends, window.step_ms).tolist()
        return boundaries

    def _close(self, boundary_ms: int) -> Iterator[tuple[int, Closed]]:
        """Close what ends at or before a boundary, finest first."""
        self._fresh = []
        for r, pool in enumerate(self.pools):
            window = pool.window
            until = int(self._calendar.index(boundary_ms, window.step_ms))
            if until > window.closed:
                self._fresh.append(r)
            if r == 0 and until - window.closed > 1:
                pool.skip(until - 1)  # the silence that the boundaries leave out
            elif _is_long(window.open, window.context, until - window.closed):
                # A silence beyond memory: what is open, then all at once, then what is remembered.
                for _ in range(window.open):
                    yield r, self._close_one(r)
                pool.skip(until - _SILENT_CONTEXTS * window.context)
            while window.closed < until:
                yield r, self._close_one(r)

    def _close_one(self, r: int) -> Closed:
        closed = self.pools[r].close()
        if r == 0:
            self._agreement.observe(closed.truth)
        else:
            self._agreement.learn(r, closed.truth)
        return closed

    # -- issue -----------------------------------------------------------------------------------

    def _means(
        self, rows: slice, opinions: dict[int, Opinion], ages: Sequence[int]
    ) -> list[Float64]:
        """R times (B, H) what each resolution says by itself, now or when its bucket closed.

        Those that are too young for it, by the ages in buckets of the coarse ones, follow their
        finer ones now and then, and their opinions are replaced.
        """
        means, spoke = [opinions[0].mean], self.pools[0].window.closed % _FOLLOWED == 0
        coarse = zip(self.pools[1:], self._standing, ages, strict=True)
        for r, (pool, standing, age) in enumerate(coarse, 1):
            is_fresh, is_young = r in opinions, age < _YOUNG
            if is_fresh and not is_young:
                standing.keep(rows, pool.statement(opinions[r]))
            mean = standing.mean(rows)
            spoke = is_fresh or (is_young and spoke)
            is_new = np.isnan(mean[:, 0]) & self._table.live[rows]
            asked = np.flatnonzero(is_new | (is_young and spoke))
            if len(asked):
                slots = rows.start + asked
                if is_young:
                    finest = self.pools[0].some(opinions[0], asked, slots)
                    thought = opinions[r] if is_fresh else pool.think(slots)
                    is_judged = is_fresh or age > 0
                    thought, said = self._from_finer(r, finest, thought, is_judged=is_judged)
                    if is_fresh:
                        opinions[r] = thought
                else:
                    said = pool.statement(pool.think(slots))
                standing.keep(slots, said)
                mean = standing.mean(rows)
            means.append(mean)
        return means

    def _from_finer(
        self, r: int, finest: Opinion, thought: Opinion, *, is_judged: bool
    ) -> tuple[Opinion, Statement]:
        """What resolution `r` thinks and says if it goes on as the finer one will on the whole.

        What is judged it has to say in its own words; else they are the finer one's where it knows
        of no errors yet.
        """
        pool, finer = self.pools[r], self.pools[r - 1]
        told = self._standing[r - 2].statement(finest.slots) if r > 1 else finer.statement(finest)
        each = 1.0 if self._is_mean else pool.resolution.step_ms / finer.resolution.step_ms
        level = each * told.mean.mean(axis=1, keepdims=True)
        thought = replace(thought, mean=np.repeat(level, pool.resolution.horizon, axis=1))
        if self._is_count or is_judged:
            return thought, pool.statement(thought)
        around = each * (told.quantiles - told.mean[..., None]).mean(axis=1, keepdims=True)
        return thought, Statement(thought.mean, thought.mean[..., None] + around, thought.weights)

    def _errors(self, rows: slice, means: list[Float64]) -> list[Float64]:
        """R times (B, H) what errors to expect of means; of counts (B, 1), which will do."""
        first = 1 if self._is_count else None
        return [
            pool.expected_error(rows, mean[:, :first], pool.bucket[:first])
            for pool, mean in zip(self.pools, means, strict=True)
        ]


def _is_long(open_buckets: int, context: int, behind: int) -> bool:
    """Is a window so far `behind` that not all of it is closed one by one?"""
    return behind > open_buckets + _SILENT_CONTEXTS * context
