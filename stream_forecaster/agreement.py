"""Agreement across scales: the day is what has come of it and what its hours will bring.

Theory of operation. At a hop every resolution has a path. The finest begins at the hop; a coarser
one was issued when its last bucket closed, and its first step is the bucket that is still open:

    hop                       │
    minutes                   ├─┼─┼─┼─┼─┼─┼─┼─┼─┼─┼─┤
    hours       ├─ observed ──┼─ left ┼───────────────┼───────────────┤

What was observed of the open bucket is a fact; only what is left of it is a forecast. So that all
paths begin at the hop, paths are turned into *amounts*, those of an open bucket without what was
observed. A coarse step is *covered* where finer steps reach to its end. Where they do not even
reach to the end of the open bucket, that is filled up with its own path's share of the time, the
*rest*, as if it were one more finer step.

1. *Up*, from fine to coarse: the sum f of the finer steps meets the coarse step's own forecast c,
   and becomes f + slope (c - f). For the open bucket that is the nowcast.
2. *Down*, from coarse to fine: what has become of a coarse step is spread over its finer steps, so
   that they sum to it. Counts are scaled, and stay positive; real values are moved in proportion
   to their expected squared error.

At its issue a coarse path knows as much as the finer one; from then on the finer one learns more.
So what is kept of c is the gap, c - f at the issue, and later c is f and the gap, of the open
bucket its share of the time left. (The path's own share of that time would not do: half of a day is
not half of its flights.)

The slope is the regression of f's landed error on c - f, by key, shrunk to the population and to a
prior: a tenth when the coarse bucket begins, and less as it goes by. It is learned for each of the
bucket's quarters, from what was said at the last hop of it: by then f has learned more and the gap
is as old as it gets, so at no hop is c believed more than it deserved. (Learned from the first hop
of each quarter, where c is as fresh as f, and from chance as well, hourly forecasts of ETTh2 lost
3 % of squared error.) A coarse path that errs more than its finer one thus loses its say.

With the aggregate "mean" an amount is a time integral (value x time), since nobody knows how many
events a bucket will have: the mean of a day's hours, weighted by time, is the day's, which is true
as far as events come evenly.

Sources: temporal hierarchies, Athanasopoulos et al. 2017; shrinking towards coherence by the
forecasts' errors, Wickramasuriya et al. 2019, done here on one edge of the tree at a time; James
and Stein 1961.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.calendar import Calendar
from stream_forecaster.compiled import compiled
from stream_forecaster.config import Resolution
from stream_forecaster.keys import KeyTable

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_QUARTERS = 4
_DISCOUNT = 0.995
_PRIOR_BUCKETS = 20.0
"""How many of a key's own landed buckets weigh as much as the population's experience."""
_PRIOR_SLOPE = 0.1 * (1 - np.arange(_QUARTERS) / _QUARTERS) ** 2
"""Small: what moves the coarse step moves the fine ones, which had better be left alone. With 0.5
instead the next quarter of an hour of a social network's mentions lost 4 % of its squared error."""
_RIDGE = 5.0
"""The prior's weight, in squared expected errors: paths that differ little teach little."""
_DOUBT = 6.0
"""Two standard errors of a slope, squared, if its evidence were one: an error whose mean size is
one has a variance of about 1.5."""
_LARGEST = 3.0
"""Errors count for at most so many expected ones: a burst must not decide the slope."""
_NOTHING = 1e-9
"""A count so small is none, and nothing to scale by."""


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of one resolution's path, as a hop finds them.

    Attributes:
        left_ms: (H,) how long each lasts from the hop on.
        elapsed_ms: how long the first has lasted before; 0 if it begins at the hop.
        covered: (J,) the steps that finer ones add up to; none at the finest resolution.
        first: (J,) the first finer step of each.
        sizes: (J,) how many finer steps each has, the rest included.
        rest: share of what is left of the first step that finer ones do not reach. If above zero,
            the first is the only one covered.
    """

    left_ms: Int64
    elapsed_ms: int
    covered: Int64
    first: Int64
    sizes: Int64
    rest: float

    @property
    def open_share(self) -> float:
        """Share of the first step that is left."""
        return float(self.left_ms[0] / (self.left_ms[0] + self.elapsed_ms))

    @property
    def quarter(self) -> int:
        """How many quarters of the first step have gone by."""
        return _QUARTERS * self.elapsed_ms // int(self.left_ms[0] + self.elapsed_ms)


def steps_at(
    hop_ms: int, calendar: Calendar, resolutions: Sequence[Resolution]
) -> tuple[Steps, ...]:
    """The steps of all resolutions at a hop, finest first.

    A finer step belongs to the coarse one that it begins in. It also ends there, save where local
    midnight is no full hour (as in India): there a day is made up of the hours that begin in it.
    """
    steps: list[Steps] = []
    finer_ms = np.array([hop_ms])  # edges of the finer steps, here none
    for resolution in resolutions:
        step_ms, horizon = resolution.step_ms, resolution.horizon
        index = int(calendar.index(hop_ms, step_ms))
        start_ms = calendar.start(index + np.arange(horizon + 1), step_ms)
        edges_ms = np.maximum(start_ms, hop_ms)
        # A coarse step has the finer ones from the first that begins in it to the next one's first.
        begins = np.searchsorted(finer_ms[:-1], start_ms)
        sizes = np.diff(begins)
        is_covered = edges_ms[1:] <= finer_ms[-1]
        is_covered[0] = True
        covered = np.flatnonzero(is_covered & (sizes > 0))
        first, sizes = begins[covered], sizes[covered]
        rest = 0.0
        if steps and finer_ms[-1] < edges_ms[1]:
            rest = float((edges_ms[1] - finer_ms[-1]) / (edges_ms[1] - hop_ms))
            sizes = sizes + 1
        elapsed_ms = hop_ms - int(start_ms[0])
        steps.append(Steps(np.diff(edges_ms), elapsed_ms, covered, first, sizes, rest))
        finer_ms = edges_ms
    return tuple(steps)


class Agreement:
    """Reconciles the paths of R resolutions, and learns how far to trust the coarse ones."""

    def __init__(
        self, table: KeyTable, resolutions: Sequence[Resolution], *, is_count: bool, is_mean: bool
    ) -> None:
        self._table, self._is_count, self._is_mean = table, is_count, is_mean
        self._names = [f"agreement.{resolution.step_ms}" for resolution in resolutions]
        for name, (finer, coarse) in zip(self._names[1:], pairwise(resolutions), strict=True):
            # Two more than a horizon holds: the open bucket, and a short day.
            most = finer.horizon * finer.step_ms // coarse.step_ms + 2
            table.add(f"{name}.gap", (min(most, coarse.horizon),), dtype=np.float32)
            # Of the open bucket, f, c and c's expected error.
            table.add(f"{name}.held", (_QUARTERS, 3), dtype=np.float32, fill=np.nan)
            # Sums of f's error x (c - f) and of (c - f)^2.
            table.add(f"{name}.landed", (_QUARTERS, 2), dtype=np.float32)
            # What came of the open bucket: sum, and in how many of the finest buckets.
            table.add(f"{name}.came", (2,), dtype=np.float64)
        self._population = np.zeros((len(resolutions), _QUARTERS, 3))

    def agree(
        self,
        slots: Int64 | slice,
        steps: Sequence[Steps],
        means: Sequence[Float64],
        errors: Sequence[Float64],
        observed: Sequence[Float64],
    ) -> list[Float64]:
        """The R means (B, H), reconciled.

        What is said of an open bucket at the last hop of each quarter is kept until it closes.
        Asked again at the same hop, it says the same.

        Args:
            slots: which keys (B,).
            steps: of each resolution, finest first, by `steps_at`.
            means: R times (B, H), the paths as they were issued.
            errors: R times (B, H), the mean |residual| to expect of them; above zero. Of counts
                only those of the first step are asked for, (B, 1).
            observed: R times (B,), what came of the first step before the hop: the sum of its
                events, or with aggregate "mean" their mean, NaN if there were none. Not asked of
                a step that begins at the hop, like the finest's.
        """
        weights = [self._weight(each) for each in steps]
        amounts = [mean * weight for mean, weight in zip(means, weights, strict=True)]
        if self._is_count:
            amounts = [np.where(amount > _NOTHING, amount, 0.0) for amount in amounts]
        rows = self._table.rows(slots)
        parts = [amounts[0]]  # of each resolution: the finer steps and the rest, as they go up
        totals = [amounts[0]]  # of each covered step's parts
        for r in range(1, len(steps)):
            parts.append(_with_rest(amounts[r - 1], amounts[r], steps[r]))
            totals.append(fine := _totals(parts[r], steps[r]))
            own = self._renewed(r, slots, steps[r], fine, amounts[r][:, steps[r].covered])
            said = [self._open(side[:, 0], steps[r], observed[r]) for side in (fine, own)]
            held, quarter = self._table[f"{self._names[r]}.held"], steps[r].quarter
            held[rows, quarter] = np.stack([*said, errors[r][:, 0]], axis=1)
            slope = self._slope(r, rows, quarter)
            amounts[r][:, steps[r].covered] = fine + slope[:, None] * (own - fine)
        for r in range(len(steps) - 1, 0, -1):
            share, whole = parts[r], totals[r]
            if not self._is_count:
                finer, own = ((errors[i] * weights[i]) ** 2 for i in (r - 1, r))
                share = _with_rest(finer, own, steps[r])
                whole = _totals(share, steps[r])
            change = amounts[r][:, steps[r].covered] - totals[r]
            reach = parts[r].shape[1] - (steps[r].rest > 0)
            moved = np.empty((len(rows), reach))
            _share_out(parts[r], share, whole, change, steps[r].sizes, moved)
            amounts[r - 1][:, :reach] = moved
        return [
            self._means(amount, each, weight, came)
            for amount, each, weight, came in zip(amounts, steps, weights, observed, strict=True)
        ]

    def observe(self, truth: Float64) -> None:
        """Take in the values (K,) of a bucket of the finest resolution, NaN where missing."""
        for name in self._names[1:]:
            _observe(truth, self._table[f"{name}.came"])

    def observed(self, slots: Int64 | slice) -> list[Float64]:
        """R times (B,) what came of the open bucket, as `agree` asks for it; zero of the finest."""
        finest = np.zeros(len(self._table.live[slots]))
        return [finest, *(self._observed(name, slots) for name in self._names[1:])]

    def _observed(self, name: str, slots: Int64 | slice) -> Float64:
        came: Float64 = self._table[f"{name}.came"][slots]
        total, buckets = came[:, 0], came[:, 1]
        if self._is_mean:
            total = np.where(buckets > 0, total / np.maximum(buckets, 1.0), np.nan)
        return total

    def learn(self, r: int, truth: Float64) -> None:
        """Take in the values (K,) of the bucket of resolution `r` that has just closed.

        NaN where missing, or where what was said of it is to be forgotten unscored.
        """
        held = self._table[f"{self._names[r]}.held"]
        fine, own, unit = np.moveaxis(held.astype(np.float64), 2, 0)  # (K, quarters) each
        error = np.clip((truth[:, None] - fine) / unit, -_LARGEST, _LARGEST)
        gap = error - np.clip((truth[:, None] - own) / unit, -_LARGEST, _LARGEST)
        news = np.stack([error * gap, gap**2, np.ones_like(gap)], axis=2)
        known = ~np.isnan(gap)
        news = np.where(known[:, :, None], news, 0.0)
        landed, count = self._table[f"{self._names[r]}.landed"], known.sum(axis=0)
        landed *= np.where(known, _DISCOUNT, 1.0)[:, :, None]
        landed += news[:, :, :2]
        self._population[r] *= np.where(count > 0, _DISCOUNT, 1.0)[:, None]
        self._population[r] += news.sum(axis=0) / np.maximum(count, 1)[:, None]
        held[:] = np.nan
        self._table[f"{self._names[r]}.gap"][:] = 0.0
        self._table[f"{self._names[r]}.came"][:] = 0.0

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is kept of the population."""
        return {"population": self._population}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take `arrays` back."""
        self._population[:] = arrays["population"]

    def _weight(self, steps: Steps) -> Float64:
        """(H,) what turns a mean into an amount."""
        if self._is_mean:
            # A local date that was left out (Samoa, 2011) lasts no time at all.
            return np.maximum(steps.left_ms, 1).astype(np.float64)
        weight = np.ones(len(steps.left_ms))
        weight[0] = steps.open_share
        return weight

    def _means(self, amounts: Float64, steps: Steps, weight: Float64, observed: Float64) -> Float64:
        """Amounts (B, H) as means, the open bucket with what was observed."""
        means = amounts / weight if self._is_mean else amounts.copy()
        means[:, 0] = self._open(amounts[:, 0], steps, observed)
        return means

    def _open(self, amount: Float64, steps: Steps, observed: Float64) -> Float64:
        """(B,) the value of the first step, of what was observed of it and the amount left."""
        if not self._is_mean:
            return observed + amount if steps.elapsed_ms else amount
        elapsed_ms = np.where(np.isnan(observed), 0, steps.elapsed_ms)
        value: Float64 = np.nan_to_num(observed) * elapsed_ms + amount
        value /= elapsed_ms + steps.left_ms[0]
        return value

    def _renewed(
        self, r: int, slots: Int64 | slice, steps: Steps, fine: Float64, own: Float64
    ) -> Float64:
        """(B, J) what the coarse path would say of its covered steps if it were issued now."""
        gaps = self._table[f"{self._names[r]}.gap"]
        if not steps.elapsed_ms:
            gap = np.zeros((len(own), gaps.shape[1]))
            gap[:, steps.covered] = own - fine
            gaps[slots] = gap
            return own
        gap = gaps[slots][:, steps.covered].astype(np.float64)
        gap[:, 0] *= steps.open_share
        return np.maximum(fine + gap, 0.0) if self._is_count else fine + gap

    def _slope(self, r: int, rows: Int64, quarter: int) -> Float64:
        """(B,) how far a coarse step's own forecast draws the sum of its finer steps."""
        population = self._population[r, quarter] / max(self._population[r, quarter, 2], 1.0)
        own, slope = self._table[f"{self._names[r]}.landed"], np.empty(len(rows))
        _regress(own, rows, quarter, population, _PRIOR_SLOPE[quarter], slope)
        return slope


def moved_along(quantiles: Float64, mean: Float64, agreed: Float64, *, is_count: bool) -> Float64:
    """Quantiles (B, H, Q), moved along as their means (B, H) became `agreed`; they ascend still."""
    if not is_count:
        return quantiles + (agreed - mean)[:, :, None]
    moved = np.empty(quantiles.shape)
    _scale(quantiles, mean, agreed, moved)
    return moved


def draw_in(
    quantiles: Float64, agreed: Float64, steps: Steps, observed: Float64, *, is_count: bool
) -> None:
    """Draw in quantiles (B, H, Q) as the first step goes by: what came of it is certain by now.

    Variance grows with the mean of counts, and with time for real values. A count is a whole number
    and never below what was `observed` (B,). Their means (B, H) are what was `agreed`.
    """
    if steps.elapsed_ms:
        _draw_in(agreed[:, 0], observed, steps.open_share, is_count, quantiles)


def _with_rest(finer: Float64, own: Float64, steps: Steps) -> Float64:
    """(B, sum of sizes) the finer steps that are added up, and the rest if there is one."""
    size = int(steps.sizes.sum())
    if not steps.rest:
        return finer[:, :size]
    return np.column_stack([finer[:, : size - 1], own[:, 0] * steps.rest])


def _totals(parts: Float64, steps: Steps) -> Float64:
    """(B, J) the sum of each covered step's parts."""
    total: Float64 = np.add.reduceat(parts, steps.first, axis=1)
    return total


# -- loops over keys -----------------------------------------------------------------------------


@compiled("f8:3 f8:2 f8:2 > f8:3")
def _scale(quantiles: Float64, mean: Float64, agreed: Float64, scaled: Float64) -> None:
    """Quantiles (B, H, Q) by the factor between means (B, H); of nothing there is none."""
    for b in range(len(mean)):
        for h in range(mean.shape[1]):
            factor = agreed[b, h] / mean[b, h] if mean[b, h] > _NOTHING else 1.0
            for q in range(quantiles.shape[2]):
                scaled[b, h, q] = quantiles[b, h, q] * factor


@compiled("f8:1 > f8:2")
def _observe(truth: Float64, came: Float64) -> None:
    """Add values (K,) that are there to sums, and to how many they are of, (K, 2)."""
    for k in range(len(truth)):
        if not np.isnan(truth[k]):
            came[k, 0] += truth[k]
            came[k, 1] += 1.0


@compiled("f4:3 i8:1 i8 f8:1 f8 > f8:1")
def _regress(
    own: NDArray[np.float32],
    rows: Int64,
    quarter: int,
    population: Float64,
    prior: float,
    slope: Float64,
) -> None:
    """Slopes (B,) by sums (K, quarters, 2) of rows (B,), shrunk to the population's and a prior.

    What speaks for the coarse path is not heard before it is two standard errors, and then less
    than in full (the positive part of James and Stein's estimator): chance alone would let it in.
    """
    for b in range(len(rows)):
        product = own[rows[b], quarter, 0] + _PRIOR_BUCKETS * population[0]
        square = own[rows[b], quarter, 1] + _PRIOR_BUCKETS * population[1]
        if product > 0:
            product = max(product - _DOUBT * square / product, 0.0)
        slope[b] = min(max((product + _RIDGE * prior) / (square + _RIDGE), 0.0), 1.0)


@compiled("f8:2 f8:2 f8:2 f8:2 i8:1 > f8:2")
def _share_out(
    parts: Float64,
    share: Float64,
    whole: Float64,
    change: Float64,
    sizes: Int64,
    moved: Float64,
) -> None:
    """Move parts (B, P) by their steps' changes (B, J), each by its share (B, P) of `whole` (B, J).

    Where a step has nothing to share by, its parts, of which there are `sizes` (J,), move alike.
    """
    for b in range(len(moved)):
        part = 0
        for j in range(len(sizes)):
            evenly = whole[b, j] <= 0
            each = change[b, j] / (sizes[j] if evenly else whole[b, j])
            for _ in range(sizes[j]):
                if part < moved.shape[1]:  # the rest is nobody's
                    moved[b, part] = parts[b, part] + each * (1.0 if evenly else share[b, part])
                part += 1


@compiled("f8:1 f8:1 f8 b1 > f8:3")
def _draw_in(
    agreed: Float64,
    observed: Float64,
    open_share: float,
    is_count: bool,  # noqa: FBT001  (loops have no keywords)
    quantiles: Float64,
) -> None:
    """Draw in the first step's quantiles (B, H, Q) around what was agreed (B,)."""
    for b in range(len(agreed)):
        now, came, said = agreed[b], observed[b], quantiles[b, 0]
        share = 1.0 if np.isnan(came) else open_share
        share = 1 - came / max(now, _NOTHING) if is_count else share
        width = np.sqrt(min(max(share, 0.0), 1.0))
        for q in range(len(said)):
            drawn = now + width * (said[q] - now)
            said[q] = max(np.rint(drawn), came) if is_count else drawn
