"""Scores of forecasts whose time has come.

A `Score` holds sums, not means, so that scores add: over keys, buckets, polls, partitions and
processes. The ratios people read (MAE, MASE, WAPE, WQL, coverage, skill) are properties.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.compiled import compiled

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

PUBLISHED = "published"
NAIVE = "last_value"
"""The forecaster that all others have to beat."""
POOL = "pool"
"""What would have been published without the network."""


def pinball(truth: Float64, quantiles: Float64, levels: Float64) -> Float64:
    """Pinball loss (..., Q) of `quantiles` (..., Q) at `levels` (Q,) against `truth` (...).

    >>> pinball(np.array([3.0]), np.array([[1.0, 4.0]]), np.array([0.5, 0.9])).round(2).tolist()
    [[1.0, 0.1]]
    """
    miss = truth[..., None] - quantiles
    loss: Float64 = np.maximum(levels * miss, (levels - 1.0) * miss)
    return loss


@cache
def central_intervals(levels: tuple[float, ...]) -> Mapping[float, tuple[int, int]]:
    """Nominal coverage -> the two columns of `levels` that bound it, for symmetric pairs.

    >>> central_intervals((0.025, 0.1, 0.5, 0.9, 0.975))
    {0.95: (0, 4), 0.8: (1, 3)}
    """
    pairs = {}
    for low, level in enumerate(levels):
        high = next((j for j, other in enumerate(levels) if abs(level + other - 1) < 1e-9), low)
        if level < 0.5 and high > low:
            pairs[round(1 - 2 * level, 6)] = (low, high)
    return pairs


@cache
def _bounds(levels: tuple[float, ...]) -> tuple[Float64, Int64]:
    """Levels (Q,) and the columns (C, 2) that bound their central intervals, as loops take them."""
    pairs = list(central_intervals(levels).values())
    return np.array(levels), np.array(pairs, np.int64).reshape(-1, 2)


@dataclass(frozen=True, slots=True)
class Score:
    """Sums over landed forecasts of one resolution, by horizon bucket (G,).

    Attributes:
        forecasters: names of the F forecasters; the first is what was published.
        horizons: the G horizons, in steps, at which forecasts are scored.
        levels: the Q quantile levels.
        count: (G,) landed forecasts.
        spoken: (F, G) how often each forecaster had an opinion of its own on them.
        absolute: (F, G) sum of |truth - forecast|.
        squared: (F, G) sum of its square.
        magnitude: (G,) sum of |truth|.
        pinball: (G, Q) sum of pinball losses of the published quantiles.
        covered: (C, G) how often each of the C central intervals held the truth.
        below, at_most: (G, Q) how often the truth was below each published quantile, and how often
            below or equal to it.
    """

    forecasters: tuple[str, ...]
    horizons: tuple[int, ...]
    levels: tuple[float, ...]
    count: Float64
    spoken: Float64
    absolute: Float64
    squared: Float64
    magnitude: Float64
    pinball: Float64
    covered: Float64
    below: Float64
    at_most: Float64

    @classmethod
    def zero(
        cls, forecasters: Sequence[str], horizons: Sequence[int], levels: Sequence[float]
    ) -> "Score":
        """Nothing landed yet."""
        f, g, q = len(forecasters), len(horizons), len(levels)
        c = len(central_intervals(tuple(levels)))
        return cls(
            tuple(forecasters),
            tuple(horizons),
            tuple(levels),
            np.zeros(g),
            np.zeros((f, g)),
            np.zeros((f, g)),
            np.zeros((f, g)),
            np.zeros(g),
            np.zeros((g, q)),
            np.zeros((c, g)),
            np.zeros((g, q)),
            np.zeros((g, q)),
        )

    def land(self, bucket: int, truth: Float64, points: Float64, quantiles: Float64) -> None:
        """Add the forecasts of one horizon bucket.

        All forecasters are judged on the same truths. Where one has no opinion (NaN) it is scored
        as the last value, and where that has none, as what was published.

        Args:
            bucket: which of the G horizons.
            truth: (B,) what came.
            points: (F, B) what each forecaster had said.
            quantiles: (B, Q) the published quantiles.
        """
        levels, bounds = _bounds(self.levels)
        naive = self.forecasters.index(NAIVE)
        sums = np.zeros((3, len(points)))
        _judge(bucket, truth, points.T, naive, sums, self.spoken, self.absolute, self.squared)
        _judge_quantiles(
            bucket,
            truth,
            quantiles,
            levels,
            bounds,
            self.pinball,
            self.below,
            self.at_most,
            self.covered,
        )
        self.count[bucket] += len(truth)
        self.magnitude[bucket] += np.abs(truth).sum()

    def __add__(self, other: "Score") -> "Score":
        if (self.forecasters, self.horizons, self.levels) != (
            other.forecasters,
            other.horizons,
            other.levels,
        ):
            raise ValueError("scores of different forecasters, horizons or levels do not add")
        return Score(
            self.forecasters,
            self.horizons,
            self.levels,
            self.count + other.count,
            self.spoken + other.spoken,
            self.absolute + other.absolute,
            self.squared + other.squared,
            self.magnitude + other.magnitude,
            self.pinball + other.pinball,
            self.covered + other.covered,
            self.below + other.below,
            self.at_most + other.at_most,
        )

    def __mul__(self, factor: float) -> "Score":
        """The same, counting for less: how a running score forgets."""
        return Score(
            self.forecasters,
            self.horizons,
            self.levels,
            self.count * factor,
            self.spoken * factor,
            self.absolute * factor,
            self.squared * factor,
            self.magnitude * factor,
            self.pinball * factor,
            self.covered * factor,
            self.below * factor,
            self.at_most * factor,
        )

    def mae(self, forecaster: str) -> Float64:
        """(G,) mean absolute error; NaN before anything landed."""
        return _ratio(self.absolute[self.forecasters.index(forecaster)], self.count)

    def mse(self, forecaster: str) -> Float64:
        """(G,) mean squared error."""
        return _ratio(self.squared[self.forecasters.index(forecaster)], self.count)

    def mase(self, forecaster: str) -> Float64:
        """(G,) MAE over the one-step error of the last value, on the same truths.

        Source: Hyndman and Koehler 2006; scaled here by the errors of the scored period.
        """
        scaled: Float64 = self.mae(forecaster) / self.mae(NAIVE)[0]
        return scaled

    def wape(self, forecaster: str) -> Float64:
        """(G,) sum of absolute errors over the sum of magnitudes."""
        return _ratio(self.absolute[self.forecasters.index(forecaster)], self.magnitude)

    def wql(self) -> Float64:
        """(G,) weighted quantile loss: twice the mean pinball loss over the mean magnitude."""
        return _ratio(2 * self.pinball.mean(axis=1), self.magnitude)

    def spoke(self, forecaster: str) -> Float64:
        """(G,) share of landed forecasts on which it had an opinion; the rest is the last value."""
        return _ratio(self.spoken[self.forecasters.index(forecaster)], self.count)

    def coverage(self) -> dict[float, float]:
        """Nominal coverage -> share of truths inside, over all horizons."""
        total = self.count.sum()
        levels = central_intervals(self.levels)
        return {
            level: float(self.covered[i].sum() / total) if total else float("nan")
            for i, level in enumerate(levels)
        }

    def coverages(self) -> dict[float, Float64]:
        """Nominal coverage -> (G,) share of truths inside, by horizon."""
        levels = central_intervals(self.levels)
        return {level: _ratio(self.covered[i], self.count) for i, level in enumerate(levels)}

    def reliability(self) -> tuple[Float64, Float64]:
        """Share of truths below each quantile, and below or equal (Q,), over all horizons.

        A quantile is right where its level lies between the two. Of counts many are equal to it,
        and neither share alone says anything.
        """
        total = np.atleast_1d(self.count.sum())
        return _ratio(self.below.sum(axis=0), total), _ratio(self.at_most.sum(axis=0), total)

    def skill(self, against: str = NAIVE) -> float:
        """1 - MAE of what was published over MAE of `against`, over all horizons."""
        base = self.absolute[self.forecasters.index(against)].sum()
        return float(1 - self.absolute[0].sum() / base) if base else float("nan")


def _ratio(numerator: Float64, denominator: Float64) -> Float64:
    out: Float64 = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    np.divide(numerator, denominator, out=out, where=denominator > 0)
    return out


# -- loops over keys -----------------------------------------------------------------------------


@compiled("i8 f8:1 f8:2 i8 > f8:2 f8:2 f8:2 f8:2")
def _judge(  # noqa: PLR0913, PLR0917  (what a score is made of)
    bucket: int,
    truth: Float64,
    points: Float64,
    naive: int,
    sums: Float64,
    spoken: Float64,
    absolute: Float64,
    squared: Float64,
) -> None:
    """Add points (B, F) to sums (F, G): had an opinion, absolute error, its square.

    Those of this horizon bucket first, `sums` (3, F).
    """
    opinions, errors, squares = sums[0], sums[1], sums[2]
    for b in range(len(truth)):
        said = points[b]
        instead = said[0] if np.isnan(said[naive]) else said[naive]
        for f in range(len(said)):
            error = abs((instead if np.isnan(said[f]) else said[f]) - truth[b])
            opinions[f] += not np.isnan(said[f])
            errors[f] += error
            squares[f] += error * error
    for f in range(len(errors)):
        spoken[f, bucket] += opinions[f]
        absolute[f, bucket] += errors[f]
        squared[f, bucket] += squares[f]


@compiled("i8 f8:1 f8:2 f8:1 i8:2 > f8:2 f8:2 f8:2 f8:2")
def _judge_quantiles(  # noqa: PLR0913, PLR0917  (likewise)
    bucket: int,
    truth: Float64,
    quantiles: Float64,
    levels: Float64,
    bounds: Int64,
    pinball: Float64,
    below: Float64,
    at_most: Float64,
    covered: Float64,
) -> None:
    """Add quantiles (B, Q) to sums (G, Q): pinball loss, was the truth below, or equal.

    And to (C, G): was it between the two that bound an interval, (C, 2)?
    """
    for q in range(len(levels)):
        loss, under, to = 0.0, 0.0, 0.0
        for b in range(len(truth)):
            miss = truth[b] - quantiles[b, q]
            loss += max(levels[q] * miss, (levels[q] - 1.0) * miss)
            under += miss < 0
            to += miss <= 0
        pinball[bucket, q] += loss
        below[bucket, q] += under
        at_most[bucket, q] += to
    for c in range(len(bounds)):
        low, high = bounds[c]
        for b in range(len(truth)):
            covered[c, bucket] += quantiles[b, low] <= truth[b] <= quantiles[b, high]
