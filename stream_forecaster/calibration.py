"""Calibration: quantiles around the fused path, learned from its landed residuals.

A residual is measured in units that make keys comparable, and the quantiles of those units are
tracked online for the whole population:

    quantile = path + unit * width[key, bucket] * shape[bucket, level]

* `unit` is the residual's expected size from the level alone: sqrt(path + c) for counts (as for a
  Poisson variable), the key's spread for real values.
* `width` is the key's own mean |residual| in these units, shrunk to the population's.
* `shape` moves a little with every landed forecast until a share `level` of the truths lies at or
  below it (stochastic quantile tracking, Robbins and Monro 1951).

Quantiles ascend because the shape is kept sorted; counts are cut off at zero.

These are not the only quantiles: counts have those of their distribution, real values those of a
regression, and the network has its own. A mixture takes all: an average of quantiles, level by
level, with weights that follow the landed pinball loss. An average is narrower than what it
averages, so real values are tracked once more, by how often what was published held the truth.
Counts are rounded instead: a count is a whole number, and so are its quantiles, which then hold the
truth at least as often as they say.
"""

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.compiled import compiled
from stream_forecaster.fusion import FORGET, ExponentialWeights
from stream_forecaster.keys import KeyTable, nested, under

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_DISCOUNT = 0.99
_PRIOR_BUCKETS = 20.0
_RATE = 0.02
_LARGEST = 100.0
"""Residuals count for at most so many units: one burst must not blow up a key's widths."""
_SHARPNESS = 1.0
"""Of the mixture: pinball losses of members differ by a few percent, squared errors by more."""
_SHIFT_RATE = 0.01
_COUNT_FLOOR = 0.05
"""Keeps the unit of a count that is forecast as zero from vanishing."""


class Calibration:
    """Quantile offsets for all slots, G horizon buckets and Q levels."""

    def __init__(
        self,
        table: KeyTable,
        prefix: str,
        levels: tuple[float, ...],
        buckets: int,
        *,
        is_count: bool,
    ) -> None:
        self._table, self._prefix, self._is_count = table, prefix, is_count
        self._levels = np.array(levels)
        table.add(f"{prefix}.residual", (buckets, 2), dtype=np.float32)  # sum, weight
        # Begin as a normal distribution whose mean absolute value is one.
        normal = [NormalDist().inv_cdf(level) * np.sqrt(np.pi / 2) for level in levels]
        self._shape = np.tile(np.array(normal), (buckets, 1))
        self._residual = np.zeros((buckets, 2))

    def learn(self, bucket: int, landed: Int64, residual: Float64, unit: Float64) -> None:
        """Take in residuals (B,) of landed forecasts of slots (B,) in their `unit`s (B,)."""
        if not len(landed):
            return
        scaled = np.clip(residual / unit, -_LARGEST, _LARGEST)
        relative = scaled / self._widths(landed)[:, bucket]
        below = np.array([np.count_nonzero(relative <= level) for level in self._shape[bucket]])
        below = below / len(landed)
        # Fast at first, slower as evidence grows; the far levels have further to go.
        rate = _RATE * (1 + 7 / np.sqrt(1 + self._residual[bucket, 1]))
        self._shape[bucket] += rate * (self._levels - below) * (0.3 + np.abs(self._shape[bucket]))
        self._shape[bucket].sort()
        size = np.abs(scaled)
        own = self._table[f"{self._prefix}.residual"]
        own[landed, bucket] *= _DISCOUNT
        own[landed, bucket] += np.stack([size, np.ones_like(size)], axis=1)
        self._residual[bucket] = _DISCOUNT * self._residual[bucket] + (size.mean(), 1.0)

    def forget(self) -> None:
        """Count what was learned of the widths for a tenth: a drift was detected."""
        self._table[f"{self._prefix}.residual"][:] *= FORGET
        self._residual *= FORGET

    def unit(self, path: Float64, spread: Float64) -> Float64:
        """(B,) the size of a residual to expect of any key at this `path` with this `spread`."""
        return np.sqrt(np.maximum(path, 0.0) + _COUNT_FLOOR) if self._is_count else spread

    def expected_error(
        self, slots: Int64 | slice, path: Float64, spread: Float64, bucket: Int64
    ) -> Float64:
        """Mean |residual| (B, H) to expect.

        Args:
            slots: which keys (B,).
            path: (B, H) fused means.
            spread: (B,) the keys' spreads.
            bucket: (H,) the horizon bucket of each step.
        """
        error = np.empty(path.shape)
        _expect(self._widths(slots), path, spread, bucket, self._is_count, error)
        return error

    def quantiles(self, path: Float64, size: Float64, bucket: Int64) -> Float64:
        """Quantiles (B, H, Q), ascending.

        Args:
            path: (B, H) fused means.
            size: (B, H) their `expected_error`.
            bucket: (H,) the horizon bucket of each step.
        """
        quantiles = np.empty((*path.shape, len(self._levels)))
        least = 0.0 if self._is_count else -np.inf
        _spread(path, size, bucket, self._shape, least, quantiles)
        return quantiles

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is kept of the population."""
        return {"shape": self._shape, "residual": self._residual}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take `arrays` back."""
        self._shape[:], self._residual[:] = arrays["shape"], arrays["residual"]

    def _widths(self, slots: Int64 | slice) -> Float64:
        """(B, G) mean |residual| of each key in units, shrunk to the population's; never zero."""
        own = self._table[f"{self._prefix}.residual"][slots].astype(np.float64)
        total, weight = self._residual[:, 0], self._residual[:, 1]
        population = (total + 1.0) / (weight + 1.0)
        width: Float64 = (own[..., 0] + _PRIOR_BUCKETS * population) / (
            own[..., 1] + _PRIOR_BUCKETS
        )
        return np.maximum(width, 1e-9)


class Mixture:
    """Several members' quantiles into one, by landed pinball loss."""

    def __init__(
        self,
        table: KeyTable,
        prefix: str,
        levels: tuple[float, ...],
        buckets: int,
        *,
        members: int,
        is_count: bool,
    ) -> None:
        self._levels, self._is_count = np.array(levels), is_count
        self._weights = ExponentialWeights(
            table, f"{prefix}.mixture", members, buckets, sharpness=_SHARPNESS
        )
        self._shift = np.zeros((buckets, len(levels)))  # in expected errors

    def learn(
        self,
        bucket: int,
        landed: Int64,
        truth: Float64,
        members: Sequence[Float64],
        said: tuple[Float64, Float64],
    ) -> None:
        """Take in truths that have come.

        Args:
            bucket: which horizon bucket.
            landed: (B,) slots, each at most once.
            truth: (B,).
            members: their quantiles (B, Q); where one said nothing, NaN, the first stands in.
            said: the mixture of them that was published (B, Q), and the expected error (B,).
        """
        if not len(landed):
            return
        published, size = said
        losses = np.empty((len(members), len(landed)))
        for loss, member in zip(losses, members, strict=True):
            _judge(truth, member, members[0], self._levels, size, loss)
        self._weights.learn(bucket, landed, losses)
        if not self._is_count:
            # Not by what it would say today: that has heard of errors like the one it is to hold.
            below = (truth[:, None] <= published).mean(axis=0)
            self._shift[bucket] += _SHIFT_RATE * (self._levels - below)

    def quantiles(
        self, slots: Int64 | slice, members: Sequence[Float64], size: Float64, bucket: Int64
    ) -> Float64:
        """The mixed quantiles (B, H, Q), ascending.

        Args:
            slots: which keys (B,).
            members: their quantiles (B, H, Q); where one says nothing, NaN, the first stands in.
            size: (B, H) the expected error.
            bucket: (H,) the horizon bucket of each step.
        """
        first, *others = members
        mixed, weights = first.copy(), self._weights.weights(slots)[1:]
        for weight, member in zip(weights, others, strict=True):
            _mix(first, member, weight, bucket, mixed)
        if self._is_count:
            return np.rint(mixed, out=mixed)
        _shift(size, self._shift, bucket, mixed)
        return mixed

    def forget(self) -> None:
        """Count what was learned of the members for a tenth."""
        self._weights.forget()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is kept of the population."""
        return {"shift": self._shift, **nested("weights", self._weights.arrays())}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take `arrays` back."""
        self._shift[:] = arrays["shift"]
        self._weights.restore(under("weights", arrays))


# -- loops over keys -----------------------------------------------------------------------------


@compiled("f8:2 f8:2 f8:1 i8:1 b1 > f8:2")
def _expect(
    width: Float64,
    path: Float64,
    spread: Float64,
    bucket: Int64,
    is_count: bool,  # noqa: FBT001  (loops have no keywords)
    error: Float64,
) -> None:
    """Widths (B, G) times units: of paths (B, H) of counts, or spreads (B,)."""
    for b in range(len(path)):
        for h in range(len(bucket)):
            unit = np.sqrt(max(path[b, h], 0.0) + _COUNT_FLOOR) if is_count else spread[b]
            error[b, h] = width[b, bucket[h]] * unit


@compiled("f8:2 f8:2 i8:1 f8:2 f8 > f8:3")
def _spread(
    path: Float64, size: Float64, bucket: Int64, shape: Float64, least: float, quantiles: Float64
) -> None:
    """Quantiles (B, H, Q) around a path (B, H), by sizes (B, H) times shapes (G, Q)."""
    for b in range(len(path)):
        for h in range(len(bucket)):
            for q in range(shape.shape[1]):
                quantiles[b, h, q] = max(path[b, h] + size[b, h] * shape[bucket[h], q], least)


@compiled("f8:3 f8:3 f8:2 i8:1 > f8:3")
def _mix(first: Float64, member: Float64, weight: Float64, bucket: Int64, mixed: Float64) -> None:
    """Move quantiles (B, H, Q) from the first's to a member's, by its weight (B, G)."""
    for b in range(len(mixed)):
        for h in range(len(bucket)):
            for q in range(mixed.shape[2]):
                change = weight[b, bucket[h]] * (member[b, h, q] - first[b, h, q])
                mixed[b, h, q] += 0.0 if np.isnan(change) else change


@compiled("f8:2 f8:2 i8:1 > f8:3")
def _shift(size: Float64, shift: Float64, bucket: Int64, quantiles: Float64) -> None:
    """Move quantiles (B, H, Q) by shifts (G, Q) in sizes (B, H), and sort those that cross."""
    for b in range(len(quantiles)):
        for h in range(len(bucket)):
            said = quantiles[b, h]
            for q in range(len(said)):
                moved, at = said[q] + size[b, h] * shift[bucket[h], q], q
                while at and said[at - 1] > moved:
                    said[at] = said[at - 1]
                    at -= 1
                said[at] = moved


@compiled("f8:1 f8:2 f8:2 f8:1 f8:1 > f8:1")
def _judge(
    truth: Float64, member: Float64, first: Float64, levels: Float64, size: Float64, loss: Float64
) -> None:
    """Mean pinball losses (B,) of quantiles (B, Q), in expected errors (B,)."""
    for b in range(len(truth)):
        total = 0.0
        for q in range(len(levels)):
            said = first[b, q] if np.isnan(member[b, q]) else member[b, q]
            miss = truth[b] - said
            total += max(levels[q] * miss, (levels[q] - 1.0) * miss)
        loss[b] = total / len(levels) / size[b]
