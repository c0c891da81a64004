"""Fusion: experts' forecasts into one, by weights learned from landed losses.

Two fusions, averaged, since their errors differ:

* *exponential weights*: discounted, for every key and horizon bucket. A key's own losses are shrunk
  to the population's, so a newcomer starts with the weights that serve the others and departs from
  them as it earns its own. The sharpness grows with the square root of the evidence, relative to
  the loss of the best expert: the scale of the series cancels.
* a *stack* on top of them: recursive ridge regression of what the weighted mean missed on the
  experts' deviations from it (`stacking`).

Axes: the M experts lead here, and only here. B slots, G horizon buckets, H horizon.

Source: Cesa-Bianchi and Lugosi 2006, chapters 2.11 and 5.2 (a fixed share keeps every expert
alive, so that the weights can turn when the best one changes).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.compiled import compiled, exp_below_zero, inlined
from stream_forecaster.keys import KeyTable, nested, under
from stream_forecaster.stacking import FORGET, Stack

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
_LEAST_PRIOR = 0.01
_PRIOR_FADES = 200.0
"""Landed forecasts, a key's own and of all keys, after which a prior counts for half."""
_NO_MASS = 1e-12


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
        prior: Float64 | None = None,
    ) -> None:
        """Add the columns to `table`.

        Args:
            table: the shard's.
            prefix: of the columns.
            experts: M.
            buckets: G.
            sharpness: how much a loss tells.
            prior: (M,) from 0 to 1, how much each is believed before anything has landed; None: all
                alike. It counts for half when a hundred forecasts of a key have landed, and of all
                keys as many.
        """
        self._table, self._prefix, self._sharpness = table, prefix, sharpness
        self._doubt = np.zeros(experts)  # (M,) minus the logarithm of the prior
        if prior is not None:
            self._doubt[:] = -np.log(np.maximum(prior, _LEAST_PRIOR))
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
        total = np.zeros(self.members)
        _take_in(bucket, landed, loss.T, total, *self._own(), self._loss, self._landed)

    def learn_errors(
        self,
        bucket: int,
        landed: Int64,
        predictions: Float64,
        truth: Float64,
        spread: Float64,
    ) -> tuple[Float64, Float64]:
        """Take in forecasts that have come due: `learn` of their errors, squared.

        Returns (B, M) how far experts are from their weighted mean, as it is now, and what that
        missed (B,), in spreads. No opinion has no weight and does not deviate.

        Args:
            bucket: which horizon bucket.
            landed: (B,) slots, each at most once.
            predictions: (M, B), NaN for no opinion.
            truth: (B,).
            spread: (B,) of the keys' values.
        """
        told, deviation, residual = (
            predictions.T,
            np.empty(predictions.T.shape),
            np.empty(len(truth)),
        )
        _miss(
            bucket,
            landed,
            told,
            truth,
            spread,
            self._sharpness,
            self._doubt,
            np.zeros((3, self.members)),
            np.empty(self._loss.shape),
            *self._own(),
            self._loss,
            self._landed,
            deviation,
            residual,
        )
        return deviation, residual

    def losses(self, slots: Slots) -> Float64:
        """Mean landed losses (B, G, M), a key's own shrunk to the population's."""
        own, landed = self._own()
        count = landed[slots].astype(np.float64)[..., None]
        mean: Float64 = (own[slots] + _PRIOR_BUCKETS * self._population()) / (
            count + _PRIOR_BUCKETS
        )
        return mean

    def weights(self, slots: Slots) -> Float64:
        """Weights (M, B, G) summing to one over the experts."""
        evidence = self.evidence(slots)
        weights = np.empty((len(evidence[2]), *self._loss.shape))
        _weigh(*evidence, weights)
        return weights.transpose(2, 0, 1)

    def evidence(
        self, slots: Slots
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], Int64, Float64, Float64, float, Float64]:
        """What the weights of `slots` (B,) are made of, as loops take it."""
        rows = self._table.rows(slots)
        return (
            *self._own(),
            rows,
            self._population(),
            self._landed,
            self._sharpness,
            self._doubt,
        )

    @property
    def members(self) -> int:
        """M."""
        return self._loss.shape[1]

    def forget(self) -> None:
        """Keep a tenth of the evidence: what was learned before a drift counts for less."""
        self._table[f"{self._prefix}.loss"][:] *= FORGET
        self._table[f"{self._prefix}.landed"][:] *= FORGET
        self._loss *= FORGET
        self._landed *= FORGET

    def _own(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Of every key (K, G, M) sums of losses, (K, G) how many landed, both discounted."""
        return self._table[f"{self._prefix}.loss"], self._table[f"{self._prefix}.landed"]

    def _population(self) -> Float64:
        """(G, M) its mean losses."""
        mean: Float64 = self._loss / np.maximum(self._landed, 1.0)[:, None]
        return mean

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is kept of the population."""
        return {
            "doubt": self._doubt,  # of the weights it began with, which may since be others
            "loss": self._loss,
            "landed": self._landed,
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take `arrays` back."""
        self._doubt[:] = arrays["doubt"]
        self._loss[:], self._landed[:] = arrays["loss"], arrays["landed"]


class Fusion:
    """Exponential weights and a stack on top of them, averaged."""

    def __init__(self, table: KeyTable, prefix: str, experts: int, buckets: int) -> None:
        self._exponential = ExponentialWeights(table, prefix, experts, buckets)
        start = np.zeros(experts)
        self._stack = Stack(
            table, f"{prefix}.stack", buckets, start, discount=_DISCOUNT, prior=350.0, burst=2.0
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
        if not len(slots):
            return
        deviation, residual = self._exponential.learn_errors(
            bucket, slots, predictions, truth, spread
        )
        self._stack.learn(bucket, slots, deviation.T, residual)

    def settle(self, index: int) -> None:
        """Solve the regressions now and then."""
        self._stack.settle(index)

    def fuse(self, slots: Slots, predictions: Float64, bucket: Int64) -> tuple[Float64, Float64]:
        """The fused path (B, H), and the weights (M, B, G) with which experts spoke.

        One that has no opinion on some step of a horizon bucket is not heard on all of it. Where
        nobody is, the path is 0.

        Args:
            slots: which keys.
            predictions: (M, B, H), NaN for no opinion.
            bucket: (H,) the horizon bucket of each step.
        """
        said = predictions.transpose(1, 0, 2)
        path, stacked = np.empty((len(said), len(bucket))), self._stack.weights_of(slots)
        weights, spare = np.empty(stacked.shape), np.empty((2, len(bucket)))
        silent, evidence = np.empty(said.shape[1], np.int64), self._exponential.evidence(slots)
        _fuse(said, bucket, *evidence, spare, silent, stacked, weights, path)
        return path, weights.transpose(2, 0, 1)

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
    mixed: Float64 = exponential * (1 - stacked.sum(axis=0) / 2) + stacked / 2
    return mixed


# -- loops over keys -----------------------------------------------------------------------------


@inlined
def _take_in_one(
    loss: Float64,
    slot: int,
    bucket: int,
    own: NDArray[np.float32],
    count: NDArray[np.float32],
    total: Float64,
) -> None:
    """Add a key's losses (M,) to its sums (K, G, M) and counts (K, G), and to a total (M,)."""
    worst = 0.0
    for m in range(len(loss)):
        worst = max(worst, loss[m])
    for m in range(len(loss)):
        felt = min(worst if np.isnan(loss[m]) else loss[m], _LARGEST_LOSS)
        own[slot, bucket, m] = _DISCOUNT * own[slot, bucket, m] + felt
        total[m] += felt
    count[slot, bucket] = _DISCOUNT * count[slot, bucket] + 1


@inlined
def _take_in_all(
    total: Float64, keys: int, bucket: int, population: Float64, landed: Float64
) -> None:
    """Add the mean of so many keys' losses, their total (M,), to the population's sums (G, M)."""
    for m in range(len(total)):
        population[bucket, m] = _DISCOUNT * population[bucket, m] + total[m] / keys
    landed[bucket] = _DISCOUNT * landed[bucket] + 1


@compiled("i8 i8:1 f8:2 > f8:1 f4:3 f4:2 f8:2 f8:1")
def _take_in(  # noqa: PLR0913, PLR0917  (what is learned of a loss)
    bucket: int,
    landing: Int64,
    loss: Float64,
    total: Float64,
    own: NDArray[np.float32],
    count: NDArray[np.float32],
    population: Float64,
    landed: Float64,
) -> None:
    """Add losses (B, M) of slots (B,) to what is kept of them and of the population.

    Their total (M,) is zero before.
    """
    for b in range(len(landing)):
        _take_in_one(loss[b], landing[b], bucket, own, count, total)
    _take_in_all(total, len(landing), bucket, population, landed)


@inlined
def _weigh_one(  # noqa: PLR0913, PLR0917  (what weights are made of)
    own: NDArray[np.float32],
    count: NDArray[np.float32],
    row: int,
    population: Float64,
    landed: Float64,
    sharpness: float,
    doubt: Float64,
    bucket: int,
    weight: Float64,
) -> None:
    """Weights (M,) of one key in a horizon bucket by its losses, and by how much each is in doubt.

    Four sums at a time, and four minima: each of one alone waits for the one before.
    """
    experts, heard = len(weight), np.float64(count[row, bucket])
    fours, part = experts // 4 * 4, 1 / (heard + _PRIOR_BUCKETS)
    for m in range(experts):
        loss = own[row, bucket, m] + _PRIOR_BUCKETS * population[bucket, m]
        weight[m] = loss * part
    a = b = c = d = np.inf
    for m in range(0, fours, 4):
        a, b = min(a, weight[m]), min(b, weight[m + 1])
        c, d = min(c, weight[m + 2]), min(d, weight[m + 3])
    for m in range(fours, experts):
        a = min(a, weight[m])
    best = min(a, b, c, d)
    evidence = np.sqrt(heard + min(landed[bucket], _PRIOR_BUCKETS))
    factor = -sharpness * evidence / (best + 1e-6)
    fade = _PRIOR_FADES / (_PRIOR_FADES + heard + landed[bucket])
    for m in range(experts):
        weight[m] = exp_below_zero(factor * (weight[m] - best) - fade * doubt[m])
    w = x = y = z = 0.0
    for m in range(0, fours, 4):
        w, x, y, z = w + weight[m], x + weight[m + 1], y + weight[m + 2], z + weight[m + 3]
    for m in range(fours, experts):
        w += weight[m]
    total = (w + x) + (y + z)
    for m in range(experts):
        weight[m] = (1 - _SHARE) * weight[m] / total + _SHARE / experts


@compiled("f4:3 f4:2 i8:1 f8:2 f8:1 f8 f8:1 > f8:3")
def _weigh(  # noqa: PLR0913, PLR0917  (likewise)
    own: NDArray[np.float32],
    count: NDArray[np.float32],
    rows: Int64,
    population: Float64,
    landed: Float64,
    sharpness: float,
    doubt: Float64,
    weights: Float64,
) -> None:
    """Weights (B, G, M) of rows (B,) by their losses, the population's being (G, M)."""
    for b in range(len(rows)):
        for g in range(weights.shape[1]):
            _weigh_one(own, count, rows[b], population, landed, sharpness, doubt, g, weights[b, g])


@compiled("i8 i8:1 f8:2 f8:1 f8:1 f8 f8:1 > f8:2 f8:2 f4:3 f4:2 f8:2 f8:1 f8:2 f8:1")
def _miss(  # noqa: PLR0913, PLR0917  (what is learned of a forecast)
    bucket: int,
    landing: Int64,
    predictions: Float64,
    truth: Float64,
    spread: Float64,
    sharpness: float,
    doubt: Float64,
    spare: Float64,
    mean: Float64,
    own: NDArray[np.float32],
    count: NDArray[np.float32],
    population: Float64,
    landed: Float64,
    deviation: Float64,
    residual: Float64,
) -> None:
    """Take in the squares of errors, predictions (B, M) less truths (B,) in spreads (B,).

    Then say how far they are from their mean by the weights that come of it, and what that missed.
    There is room to `spare` (3, M), zero, and for the population's `mean` losses (G, M).
    """
    keys, experts = predictions.shape
    total, loss, weight = spare[0], spare[1], spare[2]
    for b in range(keys):
        said, error, came, unit = predictions[b], deviation[b], truth[b], spread[b]
        for m in range(experts):
            error[m] = (said[m] - came) / unit
            loss[m] = error[m] * error[m]
        _take_in_one(loss, landing[b], bucket, own, count, total)
    _take_in_all(total, keys, bucket, population, landed)
    for m in range(experts):
        mean[bucket, m] = population[bucket, m] / max(landed[bucket], 1.0)
    for b in range(keys):
        error = deviation[b]
        _weigh_one(own, count, landing[b], mean, landed, sharpness, doubt, bucket, weight)
        mass, missed = 0.0, 0.0
        for m in range(experts):
            if not np.isnan(error[m]):
                mass += weight[m]
                missed += weight[m] * error[m]
        miss = -missed / max(mass, _NO_MASS)
        residual[b] = miss
        for m in range(experts):
            error[m] = 0.0 if np.isnan(error[m]) else error[m] + miss


@compiled("f8:3 i8:1 f4:3 f4:2 i8:1 f8:2 f8:1 f8 f8:1 > f8:2 i8:1 f8:3 f8:3 f8:2")
def _fuse(  # noqa: C901, PLR0912, PLR0913, PLR0917  (loops in a loop over what weights are made of)
    predictions: Float64,
    bucket: Int64,
    own: NDArray[np.float32],
    count: NDArray[np.float32],
    rows: Int64,
    population: Float64,
    landed: Float64,
    sharpness: float,
    doubt: Float64,
    spare: Float64,
    silent: Int64,
    stacked: Float64,
    weights: Float64,
    path: Float64,
) -> None:
    """Weigh predictions (B, M, H) by weights (B, G, M) that are bent by what is `stacked`.

    Weights are zero of those who are not heard. There is room to `spare` (2, H), and to count the
    steps on which experts are `silent` (M,).
    """
    _, buckets, experts = weights.shape
    steps, line, wide = len(bucket), spare[0], spare[1]
    for b in range(len(rows)):
        weight, bend, said = weights[b], stacked[b], predictions[b]
        for g in range(buckets):
            _weigh_one(own, count, rows[b], population, landed, sharpness, doubt, g, weight[g])
        for m in range(experts):
            silent[m] = 0
            for h in range(steps):
                silent[m] += np.isnan(said[m, h])
            last = -1
            for h in range(steps if silent[m] else 0):
                if np.isnan(said[m, h]) and bucket[h] != last:
                    last = bucket[h]
                    weight[last, m] = bend[last, m] = 0.0
        for g in range(buckets):
            mass, bent = 0.0, 0.0
            for m in range(experts):
                mass += weight[g, m]
                bent += bend[g, m]
            part = (1 - bent / 2) / max(mass, _NO_MASS)
            for m in range(experts):
                weight[g, m] = part * weight[g, m] + bend[g, m] / 2
        for h in range(steps):
            line[h] = 0.0
        for m in range(experts):
            if silent[m] == steps:
                continue
            for h in range(steps):
                wide[h] = weight[bucket[h], m]
            for h in range(steps):
                line[h] += wide[h] * (0.0 if np.isnan(said[m, h]) else said[m, h])
        for h in range(steps):
            path[b, h] = line[h]
