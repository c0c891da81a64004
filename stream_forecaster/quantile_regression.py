"""Quantiles of real values by regression on what the experts disagree about.

Where the experts lie around the fused path says where the truth may: if most of them are above it,
so are the quantiles, and the more they disagree, the wider. For horizon bucket b and level q

    quantile = path + sigma * (theta[b, q] . (1, (expert - path) / sigma for every expert))
    sigma    = expected error * exp(beta[b] . (1, log phase factor, log disagreement))

* `theta` is pooled over keys and found by an online Newton method: the gradient of the pinball loss
  is preconditioned by one Gram matrix a bucket, which serves all levels, and divided by the density
  of the errors at the level.
* `beta` is pooled too, by recursive least squares on the working response of a log-linear scale
  (Fisher scoring; the errors' sizes count as exponential).
* the phase factor is a key's own: how large its errors are at this hour of the day, or on this day
  of the week where steps are days, beside their size at all hours. There are two, one for the next
  steps and one for those further ahead, where errors have other hours. They are updated when all
  horizons have learned: the errors of one moment are alike, so none must foretell what it is of.

Crossing is removed outwards from the median. Counts do without: of small numbers the rounded
quantiles of the mixture are better.

Axes: B keys, M experts, G horizon buckets, H horizon, Q levels, F = 1 + M features.

Sources: Koenker and Bassett 1978, quantile regression; the Newton step as in conquer, He et al.
2023, with the density by a uniform kernel.
"""

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.calendar import DAY_MS, HOUR_MS, WEEK_MS, Calendar
from stream_forecaster.keys import KeyTable

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Slots = Int64 | slice

_MEMORY = 0.9998
_SCALE_MEMORY = 0.9995
_PRIOR, _SCALE_PRIOR = 100.0, 50.0
"""How many landed forecasts what it began with weighs as much as."""
_SOLVE_EVERY = 6
_FEWEST = 48
"""Landed forecasts of a bucket before the regression departs from where it began."""
_TRUSTED = 300.0
"""Landed forecasts of a bucket after which it is believed by half."""
_PHASE_RATE = 0.08
_LEAST_FACTOR = 0.1
_NEXT_STEPS = 4
"""Their errors' hours are not those of steps further ahead; of each bucket alone there are few."""
_FARTHEST_EXPERT, _FARTHEST_TRUTH = 6.0, 12.0
"""In sigmas: beyond, a deviation has nothing more to say."""
_BEGIN = np.array([0.0, 1.0, 0.0])
"""Of beta: the phase factor as it is, and no word of the disagreement."""


class QuantileRegression:
    """The quantiles of all slots, G horizon buckets and Q levels."""

    def __init__(  # noqa: PLR0913  (what a regression is made of)
        self,
        table: KeyTable,
        prefix: str,
        calendar: Calendar,
        step_ms: int,
        levels: tuple[float, ...],
        horizons: Int64,
        *,
        experts: int,
    ) -> None:
        """Add a column to `table`: the phase factors.

        Args:
            table: of the keys.
            prefix: of the column.
            calendar: of the input's time zone.
            step_ms: bucket width.
            levels: Q of them, ascending.
            horizons: (G,) steps ahead, one for each horizon bucket.
            experts: M.
        """
        self._table, self._column = table, f"{prefix}.phase"
        self._calendar, self._step_ms = calendar, step_ms
        self._period_ms, self._width_ms = (
            (DAY_MS, HOUR_MS) if step_ms < DAY_MS else (WEEK_MS, DAY_MS)
        )
        phases = self._period_ms // self._width_ms
        self._is_far = (horizons > _NEXT_STEPS).astype(np.int64)
        table.add(self._column, (2, phases), dtype=np.float32, fill=1.0)
        self._levels = np.array(levels)
        self._tail = np.minimum(self._levels, 1 - self._levels)
        self._middle = int(np.argmin(np.abs(self._levels - 0.5)))
        # A normal distribution whose mean absolute value is one.
        normal = np.array([NormalDist().inv_cdf(q) * np.sqrt(np.pi / 2) for q in levels])
        self._kernel = 0.2 * (0.5 + np.abs(normal))  # (Q,) half widths
        buckets, q = len(horizons), len(levels)
        self._theta = np.zeros((buckets, q, 1 + experts))
        self._theta[:, :, 0] = normal
        self._gradient = np.zeros_like(self._theta)
        self._gram = np.zeros((buckets, 1 + experts, 1 + experts))
        self._density = np.tile(self._tail, (buckets, 1))
        self._landed = np.zeros(buckets)
        self._beta = np.tile(_BEGIN, (buckets, 1))
        self._scale_gram, self._scale_cross = np.zeros((buckets, 3, 3)), np.zeros((buckets, 3))
        self._scale_landed = np.zeros(buckets)
        # Of this bucket, the next steps' and those of steps further ahead: slots, |error| / size.
        self._errors: tuple[list[tuple[Int64, Float64]], ...] = ([], [])

    def learn(
        self,
        bucket: int,
        slots: Int64,
        index: int,
        truth: Float64,
        said: tuple[Float64, Float64, Float64],
    ) -> None:
        """Take in forecasts that have come due.

        Args:
            bucket: which horizon bucket.
            slots: (B,) each at most once.
            index: the bucket of time that the truth is of.
            truth: (B,).
            said: the path (B,), its expected error (B,), and the experts' predictions (M, B).
        """
        if not len(slots):
            return
        path, size, predictions = said
        told, log_scale = self._scale(slots, np.array([index]), path, size, predictions, bucket)
        sigma = size * np.exp(log_scale)
        features = _features(path, sigma, predictions)
        relative = np.clip((truth - path) / sigma, -_FARTHEST_TRUTH, _FARTHEST_TRUTH)
        error = relative[:, None] - features @ self._theta[bucket].T  # (B, Q)
        count = len(slots)
        self._gram[bucket] = _MEMORY * self._gram[bucket] + features.T @ features / count
        self._landed[bucket] = _MEMORY * self._landed[bucket] + 1
        self._gradient[bucket] += (self._levels - (error < 0)).T @ features / count
        near = (np.abs(error) < self._kernel).mean(axis=0) / (2 * self._kernel)
        rate = np.clip(1 / self._landed[bucket], 0.003, 0.05)
        self._density[bucket] += rate * (near - self._density[bucket])
        missed = np.abs(truth - path) / size
        self._learn_scale(bucket, told, log_scale, missed)
        self._errors[self._is_far[bucket]].append((slots, np.minimum(missed, 5.0)))

    def settle(self, index: int) -> None:
        """Bucket `index` has been learned of: update the phase factors, and solve now and then."""
        phase = int(self._phase(np.array([index]))[0])
        for is_far, landed in enumerate(self._errors):
            if not landed:
                continue
            slots, errors = (np.concatenate(part) for part in zip(*landed, strict=True))
            total, count = np.zeros((2, self._table.size))
            np.add.at(total, slots, errors)
            np.add.at(count, slots, 1.0)
            seen, factor = np.flatnonzero(count), self._table[self._column][:, is_far, phase]
            factor[seen] += _PHASE_RATE * (total[seen] / count[seen] - factor[seen])
            landed.clear()
        if index % _SOLVE_EVERY == 0:
            for bucket in np.flatnonzero(self._landed > _FEWEST).tolist():
                self._solve(bucket)

    def quantiles(
        self,
        slots: Slots,
        index: Int64,
        said: tuple[Float64, Float64, Float64],
        bucket: Int64,
    ) -> Float64:
        """Quantiles (B, H, Q), ascending.

        Args:
            slots: which keys (B,).
            index: (H,) the buckets of time that are forecast.
            said: the path (B, H), its expected error (B, H), and predictions (M, B, H).
            bucket: (H,) the horizon bucket of each step.
        """
        path, size, predictions = said
        _, log_scale = self._scale(slots, index, path, size, predictions, bucket)
        sigma = size * np.exp(log_scale)
        features = _features(path, sigma, predictions)
        relative = np.empty((*path.shape, len(self._levels)))
        for own in np.unique(bucket).tolist():
            steps = bucket == own
            relative[:, steps] = features[:, steps] @ self._theta[own].T
        np.clip(relative, -_FARTHEST_TRUTH, _FARTHEST_TRUTH, out=relative)
        middle = self._middle
        upper, lower = relative[..., middle:], relative[..., middle::-1]  # views
        np.maximum.accumulate(upper, axis=-1, out=upper)
        np.minimum.accumulate(lower, axis=-1, out=lower)
        quantiles: Float64 = path[..., None] + sigma[..., None] * relative
        return quantiles

    @property
    def trust(self) -> Float64:
        """(G,) how far it is to be believed, which begins at 0 and goes to 1 as forecasts land."""
        return self._landed / (self._landed + _TRUSTED)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is kept of the population."""
        return {
            "theta": self._theta,
            "gradient": self._gradient,
            "gram": self._gram,
            "density": self._density,
            "landed": self._landed,
            "beta": self._beta,
            "scale_gram": self._scale_gram,
            "scale_cross": self._scale_cross,
            "scale_landed": self._scale_landed,
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take `arrays` back."""
        for name, own in self.arrays().items():
            own[:] = arrays[name]

    def _scale(
        self,
        slots: Slots,
        index: Int64,
        path: Float64,
        size: Float64,
        predictions: Float64,
        bucket: Int64 | int,
    ) -> tuple[Float64, Float64]:
        """What the scale is told (B, ..., 3), and its logarithm (B, ...) over the expected error.

        Path and size are (B, ...), predictions (M, B, ...).
        """
        factors, is_far = self._table[self._column][slots], self._is_far[bucket]
        factor = factors[:, is_far, self._phase(index)].astype(np.float64)
        factor = np.maximum(factor, _LEAST_FACTOR).reshape(path.shape)
        disagreement = np.abs(np.nan_to_num(predictions - path)).mean(axis=0) / size
        told = np.stack([np.ones_like(path), np.log(factor), np.log(disagreement + 0.05)], axis=-1)
        log_scale: Float64 = np.clip((told * self._beta[bucket]).sum(axis=-1), -3, 3)
        return told, log_scale

    def _learn_scale(
        self, bucket: int, told: Float64, log_scale: Float64, relative: Float64
    ) -> None:
        """Errors (B,) in expected ones, where `told` (B, 3) made the scale what it was (B,)."""
        response = log_scale + np.clip(relative * np.exp(-log_scale) - 1, -1, 4)
        gram, cross = told.T @ told / len(told), told.T @ response / len(told)
        self._scale_gram[bucket] = _SCALE_MEMORY * self._scale_gram[bucket] + gram
        self._scale_cross[bucket] = _SCALE_MEMORY * self._scale_cross[bucket] + cross
        self._scale_landed[bucket] = _SCALE_MEMORY * self._scale_landed[bucket] + 1

    def _solve(self, bucket: int) -> None:
        """The newest beta, and a Newton step of theta down what has been gathered."""
        gram = self._scale_gram[bucket]
        prior = _SCALE_PRIOR * (np.diag(gram) / self._scale_landed[bucket] + 0.02)
        self._beta[bucket] = np.linalg.solve(
            gram + np.diag(prior), self._scale_cross[bucket] + prior * _BEGIN
        )
        gram = self._gram[bucket] / self._landed[bucket]
        penalty = _PRIOR * (1 - _MEMORY) * (np.diag(gram) + 0.01)
        penalty[0] = 0.0  # the intercept is free
        density = np.maximum(self._density[bucket], 0.25 * self._tail)[:, None]
        slope = self._gradient[bucket] / density - _SOLVE_EVERY * penalty * self._theta[bucket]
        step = np.linalg.solve(gram + np.diag(penalty + 1e-9), slope.T).T
        self._theta[bucket] += min(0.02, 1 / self._landed[bucket]) * step
        self._gradient[bucket] = 0.0

    def _phase(self, index: Int64) -> Int64:
        """(N,) of buckets of time (N,)."""
        start_ms = self._calendar.start(index, self._step_ms)
        return self._calendar.phase(start_ms, self._period_ms, self._width_ms)


def _features(path: Float64, sigma: Float64, predictions: Float64) -> Float64:
    """(B, ..., F) of path and sigma (B, ...) and predictions (M, B, ...); NaN deviates by 0."""
    out = np.empty((*path.shape, 1 + len(predictions)))
    out[..., 0] = 1.0
    deviation = np.nan_to_num((predictions - path) / sigma)
    np.clip(np.moveaxis(deviation, 0, -1), -_FARTHEST_EXPERT, _FARTHEST_EXPERT, out=out[..., 1:])
    return out
