"""Fusion: experts' forecasts into one, by weights learned from landed losses.

Two fusions, averaged, since their errors differ:

* *exponential weights*: discounted, for every key and horizon bucket. A key's own losses are shrunk
  to the population's, so a newcomer starts with the weights that serve the others and departs from
  them as it earns its own. The sharpness grows with the square root of the evidence, relative to
  the loss of the best expert: the scale of the series cancels.
* a *stack* on top of them: recursive ridge regression of what the weighted mean missed on the
  experts' deviations from it. The first keys have a regression of their own, shrunk to the
  population's, and that is shrunk to the weights it began with.

The same stack, begun with the share that their training justifies, lets the network's paths in.

Axes: the M experts lead here, and only here. B slots, G horizon buckets, H horizon.

Sources: Cesa-Bianchi and Lugosi 2006, chapters 2.11 and 5.2 (a fixed share keeps every expert
alive, so that the weights can turn when the best one changes); Wolpert 1992 for stacking.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.keys import KeyTable, nested, under

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Slots = Int64 | slice

_DISCOUNT = 0.998
_SHARPNESS = 1.0
_SHARE = 0.01
_PRIOR_BUCKETS = 20.0
"""How many of a key's own landed forecasts weigh as much as the population's experience."""
_LARGEST_LOSS = 25.0
"""Losses are in squared spreads of the key; one outlier must not decide the weights."""
_OWN_KEYS = 64
"""Keys with a stack of their own: its matrices are too dear for every key."""
_POPULATION_DISCOUNT = 0.9995
_SOLVE_EVERY = 6
_POOLED = 0.25
"""Of a stack's prior, for the population: its evidence is a mean over many keys, less noisy."""
_NO_MASS = 1e-12
_ALL = slice(None)
FORGET = 0.1
"""The share of the evidence that is kept when a drift was detected."""


class ExponentialWeights:
    """Weights of M experts for all slots and G horizon buckets."""

    def __init__(
        self,
        table: KeyTable,
        prefix: str,
        experts: int,
        buckets: int,
        *,
        sharpness: float = _SHARPNESS,
    ) -> None:
        self._table, self._prefix, self._sharpness = table, prefix, sharpness
        table.add(f"{prefix}.loss", (buckets, experts), dtype=np.float32)
        table.add(f"{prefix}.landed", (buckets,), dtype=np.float32)
        self._loss = np.zeros((buckets, experts))
        self._landed = np.zeros(buckets)

    def learn(self, bucket: int, landed: Int64, loss: Float64) -> None:
        """Take in the losses of forecasts that have come due.

        Args:
            bucket: which horizon bucket.
            landed: (B,) slots, each at most once.
            loss: (M, B) squared errors over the key's squared spread; NaN where an expert had
                no opinion, which costs it the loss of the worst.
        """
        if not len(landed):
            return
        loss = np.minimum(loss, _LARGEST_LOSS)
        worst = np.nanmax(loss, axis=0)
        loss = np.where(np.isnan(loss), worst, loss)
        own, count = self._table[f"{self._prefix}.loss"], self._table[f"{self._prefix}.landed"]
        own[landed, bucket] = _DISCOUNT * own[landed, bucket] + loss.T
        count[landed, bucket] = _DISCOUNT * count[landed, bucket] + 1
        self._loss[bucket] = _DISCOUNT * self._loss[bucket] + loss.mean(axis=1)
        self._landed[bucket] = _DISCOUNT * self._landed[bucket] + 1

    def losses(self, slots: Slots, buckets: slice = _ALL) -> Float64:
        """Mean landed losses (B, G, M), a key's own shrunk to the population's."""
        own = self._table[f"{self._prefix}.loss"][slots, buckets].astype(np.float64)
        count = self._table[f"{self._prefix}.landed"][slots, buckets].astype(np.float64)[..., None]
        population = self._loss[buckets] / np.maximum(self._landed[buckets], 1.0)[:, None]
        mean: Float64 = (own + _PRIOR_BUCKETS * population) / (count + _PRIOR_BUCKETS)
        return mean

    def weights(self, slots: Slots, buckets: slice = _ALL) -> Float64:
        """Weights (M, B, G) in some horizon buckets, summing to one over the experts."""
        mean = self.losses(slots, buckets)
        count = self._table[f"{self._prefix}.landed"][slots, buckets].astype(np.float64)[..., None]
        best = mean.min(axis=2, keepdims=True)
        evidence = np.sqrt(count + np.minimum(self._landed[buckets], _PRIOR_BUCKETS)[:, None])
        weight = np.exp(-self._sharpness * evidence * (mean - best) / (best + 1e-6))
        weight /= weight.sum(axis=2, keepdims=True)
        shared: Float64 = (1 - _SHARE) * weight + _SHARE / weight.shape[2]
        return np.moveaxis(shared, 2, 0)

    def forget(self) -> None:
        """Keep a tenth of the evidence: what was learned before a drift counts for less."""
        self._table[f"{self._prefix}.loss"][:] *= FORGET
        self._table[f"{self._prefix}.landed"][:] *= FORGET
        self._loss *= FORGET
        self._landed *= FORGET

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is kept of the population."""
        return {"loss": self._loss, "landed": self._landed}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take `arrays` back."""
        self._loss[:], self._landed[:] = arrays["loss"], arrays["landed"]


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
        convex: bool = False,
    ) -> None:
        """Add this stack's columns to `table`.

        Args:
            table: where the first keys' own regressions live.
            prefix: of the columns.
            buckets: G.
            start: (M,) the weights to begin with and to shrink to.
            discount: per landed forecast, of a key's own evidence.
            prior: how many landed forecasts the start weighs as much as.
            convex: no weight below zero, and all of them together at most one. For paths that are
                nearly the same, of which a regression would take the difference times ten.
        """
        m = len(start)
        self._table, self._prefix = table, prefix
        self._start, self._discount, self._prior = start, discount, prior
        self._convex, self._ridge = convex, 0.5 if convex else 0.02
        add = table.add
        add(f"{prefix}.gram", (buckets, m, m), dtype=np.float32, most=_OWN_KEYS)
        add(f"{prefix}.cross", (buckets, m), dtype=np.float32, most=_OWN_KEYS)
        add(f"{prefix}.weight", (buckets, m), dtype=np.float32, fill=np.nan, most=_OWN_KEYS)
        self._gram, self._cross = np.zeros((buckets, m, m)), np.zeros((buckets, m))
        self._landed = np.zeros(buckets)
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
        weight = 1 / np.sqrt(1 + residual**2)  # one burst must not turn the regression
        told = deviation.T  # (B, M)
        weighted, target = told * weight[:, None], weight * residual
        gram, cross = weighted.T @ told / len(slots), target @ told / len(slots)
        self._gram[bucket] = _POPULATION_DISCOUNT * self._gram[bucket] + gram
        self._cross[bucket] = _POPULATION_DISCOUNT * self._cross[bucket] + cross
        self._landed[bucket] = _POPULATION_DISCOUNT * self._landed[bucket] + 1
        own = np.flatnonzero(slots < _OWN_KEYS)
        slots, told, weighted, target = slots[own], told[own], weighted[own], target[own]
        grams, crosses = self._column("gram"), self._column("cross")
        gram, cross = weighted[:, :, None] * told[:, None, :], told * target[:, None]
        grams[slots, bucket] = self._discount * grams[slots, bucket] + gram
        crosses[slots, bucket] = self._discount * crosses[slots, bucket] + cross

    def settle(self, index: int) -> None:
        """Solve now and then; `index` is the bucket's, so that a replay does it alike."""
        if index % _SOLVE_EVERY == 0:
            self.solve()

    def solve(self) -> None:
        """Turn what was learned into weights."""
        m = len(self._start)
        for bucket in np.flatnonzero(self._landed >= 2).tolist():
            mean = self._gram[bucket] / self._landed[bucket]
            scale = mean + (self._ridge * np.trace(mean) / m + 1e-9) * np.eye(m)
            solved = np.linalg.solve(
                self._gram[bucket] + _POOLED * self._prior * scale,
                self._cross[bucket] + _POOLED * self._prior * scale @ self._start,
            )
            self._weight[bucket] = self._admissible(solved)
            grams = self._column("gram")[:, bucket].astype(np.float64)
            crosses = self._column("cross")[:, bucket].astype(np.float64)
            shrunk = crosses + self._prior * scale @ self._weight[bucket]
            solved = np.linalg.solve(grams + self._prior * scale, shrunk[..., None])[..., 0]
            self._column("weight")[:, bucket] = self._admissible(solved)

    def _admissible(self, weight: Float64) -> Float64:
        """Weights (..., M) within their bounds."""
        if not self._convex:
            return weight
        positive: Float64 = np.maximum(weight, 0.0)
        positive /= np.maximum(positive.sum(axis=-1, keepdims=True), 1.0)
        return positive

    def weights(self, slots: Slots) -> Float64:
        """Weights (M, B, G) of the deviations."""
        rows = np.arange(self._table.size)[slots] if isinstance(slots, slice) else slots
        weight = np.tile(self._weight, (len(rows), 1, 1))  # (B, G, M)
        first = np.flatnonzero(rows < _OWN_KEYS)
        own = self._column("weight")[rows[first]].astype(np.float64)
        weight[first] = np.where(np.isnan(own), weight[first], own)
        return np.moveaxis(weight, 2, 0)

    def forget(self) -> None:
        """Keep a tenth of the evidence."""
        self._column("gram")[:] *= FORGET
        self._column("cross")[:] *= FORGET
        self._gram *= FORGET
        self._cross *= FORGET
        self._landed *= FORGET

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is kept of the population."""
        return {
            "start": self._start,  # of the weights it began with, which may since be others
            "gram": self._gram,
            "cross": self._cross,
            "landed": self._landed,
            "weight": self._weight,
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take `arrays` back."""
        self._start[:] = arrays["start"]
        self._gram[:], self._cross[:] = arrays["gram"], arrays["cross"]
        self._landed[:], self._weight[:] = arrays["landed"], arrays["weight"]

    def _column(self, name: str) -> NDArray[Any]:
        return self._table[f"{self._prefix}.{name}"]


class Fusion:
    """Exponential weights and a stack on top of them, averaged."""

    def __init__(self, table: KeyTable, prefix: str, experts: int, buckets: int) -> None:
        self._buckets = buckets
        self._exponential = ExponentialWeights(table, prefix, experts, buckets)
        start = np.zeros(experts)
        self._stack = Stack(
            table, f"{prefix}.stack", buckets, start, discount=_DISCOUNT, prior=350.0
        )

    def learn(
        self,
        bucket: int,
        slots: Int64,
        predictions: Float64,
        truth: Float64,
        spread: Float64,
    ) -> None:
        """Take in forecasts that have come due.

        Args:
            bucket: which horizon bucket.
            slots: (B,) each at most once.
            predictions: (M, B), NaN for no opinion.
            truth: (B,).
            spread: (B,) of the keys' values.
        """
        error = (predictions - truth) / spread
        self._exponential.learn(bucket, slots, error**2)
        weight = self._exponential.weights(slots, slice(bucket, bucket + 1))[:, :, 0]
        weight *= ~np.isnan(predictions)
        mass = np.maximum(weight.sum(axis=0), _NO_MASS)
        anchor = (weight * or_zero(predictions)).sum(axis=0) / mass
        deviation = or_zero((predictions - anchor) / spread)
        self._stack.learn(bucket, slots, deviation, (truth - anchor) / spread)

    def settle(self, index: int) -> None:
        """Solve the regressions now and then."""
        self._stack.settle(index)

    def fuse(
        self, slots: Slots, predictions: Sequence[Float64], bucket: Int64
    ) -> tuple[Float64, Float64]:
        """The fused path (B, H), and the weights (M, B, G) with which experts spoke.

        One that has no opinion on some step of a horizon bucket is not heard on all of it. Where
        nobody is, the path is 0.

        Args:
            slots: which keys.
            predictions: M arrays (B, H) or (B, 1), NaN for no opinion.
            bucket: (H,) the horizon bucket of each step.
        """
        member = (bucket[:, None] == np.arange(self._buckets)).astype(np.float32)  # (H, G)
        known = np.ones((len(predictions), len(predictions[0]), self._buckets))
        for opinion, prediction in zip(known, predictions, strict=True):
            silent = np.isnan(prediction)
            if silent.any():
                opinion[:] = ~silent if silent.shape[1] == 1 else silent @ member == 0
        exponential, stacked = self._exponential.weights(slots), self._stack.weights(slots)
        weights = _mixed(known * exponential, known * stacked)
        return _weighted(predictions, weights, bucket), weights

    def weights(self, slots: Slots) -> Float64:
        """The weights (M, B, G) that experts have where all have an opinion."""
        return _mixed(self._exponential.weights(slots), self._stack.weights(slots))

    def losses(self, slots: Slots) -> Float64:
        """Mean landed losses (B, G, M) of the experts, in squared spreads."""
        return self._exponential.losses(slots)

    def forget(self) -> None:
        """Count what was learned for a tenth: a drift was detected."""
        self._exponential.forget()
        self._stack.forget()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is kept of the population."""
        return {
            **nested("exponential", self._exponential.arrays()),
            **nested("stack", self._stack.arrays()),
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take `arrays` back."""
        self._exponential.restore(under("exponential", arrays))
        self._stack.restore(under("stack", arrays))


def _mixed(exponential: Float64, stacked: Float64) -> Float64:
    """Both kinds of weights (M, ...) into one: the stack bends the exponentially weighted mean."""
    part = (1 - stacked.sum(axis=0) / 2) / np.maximum(exponential.sum(axis=0), _NO_MASS)
    exponential *= part
    mixed: Float64 = np.add(exponential, stacked / 2, out=exponential)
    return mixed


def _weighted(predictions: Sequence[Float64], weights: Float64, bucket: Int64) -> Float64:
    """The sum (B, H) of weight times path; the flat paths are added up by horizon bucket."""
    flat = np.zeros(weights.shape[1:])
    steep = np.zeros((len(flat), len(bucket)))
    for prediction, weight in zip(predictions, weights, strict=True):
        path = or_zero(prediction)
        if path.shape[1] == 1:
            flat += weight * path
        else:
            steep += weight[:, bucket] * path
    steep += flat[:, bucket]
    return steep


def or_zero(opinion: Float64) -> Float64:
    """The same with 0 for no opinion, which is NaN: a fifth of the time of `np.nan_to_num`."""
    return np.where(np.isnan(opinion), 0.0, opinion)
