"""A stack: what an anchor misses, regressed on how far others are from it.

Recursive ridge regression. The first keys have one of their own, shrunk to the population's, and
that is shrunk to the weights that it began with, as far as these have not been refuted. Experts are
stacked so on their weighted mean (`fusion`); the network's paths are let in beside the pool's
(`lstm`), beginning with the share that their training justifies.

Axes: the M stacked paths lead. B slots, G horizon buckets.

Source: Wolpert 1992.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.compiled import compiled
from stream_forecaster.keys import KeyTable

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Slots = Int64 | slice

_OWN_KEYS = 64
"""Keys with a stack of their own: its matrices are too dear for every key."""
_POPULATION_DISCOUNT = 0.9995
_SOLVE_EVERY = 6
_POOLED = 0.25
"""Of a stack's prior, for the population: its evidence is a mean over many keys, less noisy."""
_LARGEST_LOSS = 100.0
"""In squared spreads of the key. A burst must not decide, but two days ahead errors of five spreads
are usual."""
FORGET = 0.1
"""The share of the evidence that is kept when a drift was detected."""


class Stack:
    """Recursive ridge regression of an anchor's errors on M deviations from it."""

    def __init__(  # noqa: PLR0913  (what a regression is made of)
        self,
        table: KeyTable,
        prefix: str,
        buckets: int,
        start: Float64,
        *,
        discount: float,
        prior: float,
        burst: float,
        convex: bool = False,
    ) -> None:
        """Add this stack's columns to `table`.

        Args:
            table: where the first keys' own regressions live.
            prefix: of the columns.
            buckets: G.
            start: (M,) the weights to begin with, and to shrink to while they do no harm.
            discount: per landed forecast, of a key's own evidence.
            prior: how many landed forecasts the population's weights count for in a key's own; a
                quarter as many the start does in the population's.
            burst: a residual of so many spreads has a weight of 0.7, larger ones less.
            convex: no weight below zero, and all of them together at most one. For paths that are
                nearly the same, of which a regression would take the difference times ten.
        """
        m = len(start)
        self._table, self._prefix = table, prefix
        self._start, self._discount, self._prior = start, discount, prior
        self._convex, self._ridge, self._burst = convex, 0.5 if convex else 0.02, burst
        add = table.add
        add(f"{prefix}.gram", (buckets, m, m), dtype=np.float32, most=_OWN_KEYS)
        add(f"{prefix}.cross", (buckets, m), dtype=np.float32, most=_OWN_KEYS)
        add(f"{prefix}.weight", (buckets, m), dtype=np.float32, fill=np.nan, most=_OWN_KEYS)
        self._gram, self._cross = np.zeros((buckets, m, m)), np.zeros((buckets, m))
        self._landed = np.zeros(buckets)
        # Where others had something to say: squared losses of anchor and start, how many landed.
        self._trial = np.zeros((buckets, 3))
        self._weight = np.tile(start, (buckets, 1))

    def learn(self, bucket: int, slots: Int64, deviation: Float64, residual: Float64) -> None:
        """Take in forecasts that have come due.

        Args:
            bucket: which horizon bucket.
            slots: (B,) each at most once.
            deviation: (M, B) the experts' from the anchor, in spreads of the key.
            residual: (B,) truth less anchor, likewise.
        """
        if not len(slots):
            return
        told = deviation.T
        weighted, target, trial = np.empty(told.shape), np.empty(len(slots)), np.zeros(3)
        _soften(told, residual, self._start, self._burst, weighted, target, trial)
        gram, cross = weighted.T @ told, target @ told
        if trial[2]:
            self._trial[bucket] *= _POPULATION_DISCOUNT
            self._trial[bucket] += trial / trial[2]
        _pool(bucket, len(slots), gram, cross, self._gram, self._cross, self._landed)
        grams, crosses = self._column("gram"), self._column("cross")
        _add_up(bucket, slots, told, weighted, target, self._discount, grams, crosses)

    def settle(self, index: int) -> None:
        """Solve now and then; `index` is the bucket's, so that a replay does it alike."""
        if index % _SOLVE_EVERY == 0:
            self.solve()

    def solve(self) -> None:
        """Turn what was learned into weights."""
        m, prior = len(self._start), self._prior
        some = np.flatnonzero(self._landed >= 2)
        mean = self._gram[some] / self._landed[some, None, None]
        ridge = self._ridge * np.trace(mean, axis1=1, axis2=2) / m + 1e-9
        scale = mean + ridge[:, None, None] * np.eye(m)
        pull = _POOLED * prior * scale
        start = self._belief()[some, None] * self._start
        target = self._cross[some] + (pull @ start[:, :, None])[..., 0]
        solved = np.linalg.solve(self._gram[some] + pull, target[..., None])[..., 0]
        self._weight[some] = self._admissible(solved)
        pull = prior * scale
        grams = self._column("gram")[:, some] + pull
        targets = self._column("cross")[:, some] + (pull @ self._weight[some, :, None])[..., 0]
        solved = np.linalg.solve(grams, targets[..., None])[..., 0]
        self._column("weight")[:, some] = self._admissible(solved)

    def _belief(self) -> Float64:
        """(G,) what is left of the start, from 0 to 1: all, unless it does worse than no weights.

        By ridge alone, as old evidence fades, some of it would stay for ever, whatever it costs. If
        the relative difference of the mean losses is d and n forecasts have landed, it is twice the
        weight that exponential weights give to the start.
        """
        anchor, start, landed = self._trial.T
        worse = np.maximum(start - anchor, 0.0) / np.maximum(anchor, 1e-9)
        odds: Float64 = np.exp(-np.sqrt(landed) * worse)
        return 2 * odds / (1 + odds)

    def _admissible(self, weight: Float64) -> Float64:
        """Weights (..., M) within their bounds."""
        if not self._convex:
            return weight
        positive: Float64 = np.maximum(weight, 0.0)
        positive /= np.maximum(positive.sum(axis=-1, keepdims=True), 1.0)
        return positive

    def weights(self, slots: Slots) -> Float64:
        """Weights (M, B, G) of the deviations."""
        return self.weights_of(slots).transpose(2, 0, 1)

    def weights_of(self, slots: Slots) -> Float64:
        """The same, key by key: (B, G, M)."""
        rows = self._table.rows(slots)
        weights = np.empty((len(rows), *self._weight.shape))
        weights[:] = self._weight
        first = np.flatnonzero(rows < _OWN_KEYS)
        if len(first):
            own = self._column("weight")[rows[first]].astype(np.float64)
            weights[first] = np.where(np.isnan(own), weights[first], own)
        return weights

    def forget(self) -> None:
        """Keep a tenth of the evidence."""
        self._column("gram")[:] *= FORGET
        self._column("cross")[:] *= FORGET
        self._gram *= FORGET
        self._cross *= FORGET
        self._landed *= FORGET
        self._trial *= FORGET

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is kept of the population."""
        return {
            "start": self._start,  # of the weights it began with, which may since be others
            "gram": self._gram,
            "cross": self._cross,
            "landed": self._landed,
            "trial": self._trial,
            "weight": self._weight,
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take `arrays` back."""
        self._start[:] = arrays["start"]
        self._gram[:], self._cross[:] = arrays["gram"], arrays["cross"]
        self._landed[:], self._trial[:] = arrays["landed"], arrays["trial"]
        self._weight[:] = arrays["weight"]

    def _column(self, name: str) -> NDArray[Any]:
        return self._table[f"{self._prefix}.{name}"]


# -- loops over keys -----------------------------------------------------------------------------


@compiled("f8:2 f8:1 f8:1 f8 > f8:2 f8:1 f8:1")
def _soften(  # noqa: PLR0913, PLR0917  (what a regression is made of)
    deviation: Float64,
    residual: Float64,
    start: Float64,
    burst: float,
    weighted: Float64,
    target: Float64,
    trial: Float64,
) -> None:
    """Deviations (B, M) and residuals (B,), weighted: one burst must not turn the regression.

    Adds up in `trial` (3,) the squares of what the anchor misses and of what weights `start` (M,)
    would, and how many forecasts they are of: those without any deviation tell nothing of them.
    """
    for b in range(len(residual)):
        weight = 1 / np.sqrt(1 + (residual[b] / burst) ** 2)
        missed, told = residual[b], 0.0
        for m in range(deviation.shape[1]):
            weighted[b, m] = weight * deviation[b, m]
            missed -= start[m] * deviation[b, m]
            told += abs(deviation[b, m])
        target[b] = weight * residual[b]
        if told > 0:
            trial[0] += min(residual[b] ** 2, _LARGEST_LOSS)
            trial[1] += min(missed**2, _LARGEST_LOSS)
            trial[2] += 1


@compiled("i8 i8 f8:2 f8:1 > f8:3 f8:2 f8:1")
def _pool(  # noqa: PLR0913, PLR0917  (what a regression is made of)
    bucket: int,
    keys: int,
    gram: Float64,
    cross: Float64,
    grams: Float64,
    crosses: Float64,
    landed: Float64,
) -> None:
    """Add so many keys' products (M, M) and (M,), as their mean, to the population's, by bucket."""
    for i in range(len(cross)):
        crosses[bucket, i] = _POPULATION_DISCOUNT * crosses[bucket, i] + cross[i] / keys
        for j in range(len(cross)):
            kept = _POPULATION_DISCOUNT * grams[bucket, i, j]
            grams[bucket, i, j] = kept + gram[i, j] / keys
    landed[bucket] = _POPULATION_DISCOUNT * landed[bucket] + 1


@compiled("i8 i8:1 f8:2 f8:2 f8:1 f8 > f4:4 f4:3")
def _add_up(  # noqa: PLR0913, PLR0917  (what a regression is made of)
    bucket: int,
    slots: Int64,
    told: Float64,
    weighted: Float64,
    target: Float64,
    discount: float,
    grams: NDArray[np.float32],
    crosses: NDArray[np.float32],
) -> None:
    """Add regressors (B, M), weighted and not, and targets (B,) to what slots (B,) have kept."""
    for b in range(len(slots)):
        if slots[b] >= len(grams):
            continue
        gram, cross = grams[slots[b], bucket], crosses[slots[b], bucket]
        for i in range(told.shape[1]):
            cross[i] = discount * cross[i] + told[b, i] * target[b]
            for j in range(told.shape[1]):
                gram[i, j] = discount * gram[i, j] + weighted[b, i] * told[b, j]
