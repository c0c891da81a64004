"""Calibration: quantiles around the fused path, learned from its landed residuals.

A residual is measured in units that make keys comparable, and the quantiles of those units are
tracked online for the whole population:

    quantile = path + unit * width[key, bucket] * shape[bucket, level]

* `unit` is the residual's expected size from the level alone: sqrt(path + c + d path^2) for counts
  (a Poisson variable's where they are small, a seventh of the path where they are large), the key's
  spread for real values.
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

from stream_forecaster.compiled import compiled, inlined
from stream_forecaster.fusion import ExponentialWeights
from stream_forecaster.keys import KeyTable, nested, under
from stream_forecaster.stacking import FORGET

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_DISCOUNT = 0.99
_PRIOR_BUCKETS = 20.0
_RATE = 0.02
_LARGEST = 100.0
"""Residuals count for at most so many units: one burst must not blow up a key's widths."""
_SHARPNESS, _COUNT_SHARPNESS = 3.0, 1.0
"""Of the mixture: pinball losses of members differ by a few percent, squared errors by more. Of
real values the network's are the worse ones as a rule, and at 1 keep too much of a say."""
_SHIFT_RATE = 0.01
_NO_COUNT = 1e-9
"""As for `agreement.moved_along`: so little is nothing to scale by."""
_COUNT_FLOOR = 0.05
"""Keeps the unit of a count that is forecast as zero from vanishing."""
_DISPERSION = 0.02
"""Of counts, beyond a Poisson variable's: whose thousands a day would be foretold to 3 %."""


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
        self._table, self._column, self._is_count = table, f"{prefix}.residual", is_count
        self._levels = np.array(levels)
        table.add(self._column, (buckets, 2), dtype=np.float32)  # sum, weight
        # Begin as a normal distribution whose mean absolute value is one.
        normal = [NormalDist().inv_cdf(level) * np.sqrt(np.pi / 2) for level in levels]
        self._shape = np.tile(np.array(normal), (buckets, 1))
        self._residual = np.zeros((buckets, 2))

    def learn(self, bucket: int, landed: Int64, residual: Float64, unit: Float64) -> None:
        """Take in residuals (B,) of landed forecasts of slots (B,) in their `unit`s (B,)."""
        if not len(landed):
            return
        shape = self._shape[bucket]
        below = np.zeros(len(shape))
        _track(
            bucket, landed, residual, unit, self._levels, below, shape, self._residual, self._own
        )
        shape.sort()

    def forget(self) -> None:
        """Count what was learned of the widths for a tenth: a drift was detected."""
        self._own[:] *= FORGET
        self._residual *= FORGET

    def unit(self, path: Float64, spread: Float64) -> Float64:
        """(...) the size of a residual to expect of any key at this `path` with this `spread`."""
        if not self._is_count:
            return spread
        size = np.empty(path.size)
        _unit(path.ravel(), size)
        return size.reshape(path.shape)

    def expected_error(
        self, slots: Int64 | slice, path: Float64, spread: Float64, bucket: Int64
    ) -> Float64:
        """Mean |residual| (B, H) to expect.

        Args:
            slots: which keys (B,).
            path: (B, H) fused means.
            spread: (B,) the keys' spreads; not asked of counts.
            bucket: (H,) the horizon bucket of each step.
        """
        rows, error = self._table.rows(slots), np.empty(path.shape)
        _expect(self._own, rows, self._residual, path, spread, bucket, self._is_count, error)
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

    @property
    def shape(self) -> Float64:
        """(G, Q) the quantiles of errors in expected ones."""
        return self._shape

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is kept of the population."""
        return {"shape": self._shape, "residual": self._residual}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take `arrays` back."""
        self._shape[:], self._residual[:] = arrays["shape"], arrays["residual"]

    @property
    def _own(self) -> NDArray[np.float32]:
        """(K, G, 2) of every key its |residuals|, summed up, and their weight."""
        return self._table[self._column]


class Mixture:
    """Several members' quantiles into one, by landed pinball loss."""

    def __init__(
        self,
        table: KeyTable,
        prefix: str,
        levels: tuple[float, ...],
        buckets: int,
        *,
        prior: Sequence[float],
        is_count: bool,
    ) -> None:
        """Add the columns to `table`.

        Args:
            table: the shard's.
            prefix: of the columns.
            levels: Q.
            buckets: G.
            prior: of each member, from 0 to 1, how much it is believed before anything has landed.
            is_count: are the values counts?
        """
        self._levels, self._is_count = np.array(levels), is_count
        sharpness = _COUNT_SHARPNESS if is_count else _SHARPNESS
        self._weights = ExponentialWeights(
            table,
            f"{prefix}.mixture",
            len(prior),
            buckets,
            sharpness=sharpness,
            prior=np.array(prior),
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

    def learn_counts(
        self,
        bucket: int,
        landed: Int64,
        truth: Float64,
        said: tuple[Float64, Float64],
        members: tuple[Float64, Float64, Float64, Float64],
    ) -> None:
        """`learn` of what `of_counts` mixes, without those quantiles on the way.

        Args:
            bucket: which horizon bucket.
            landed: (B,) slots, each at most once.
            truth: (B,).
            said: (B,) means, and their expected errors.
            members: (G, Q) shapes; (B,) where in the tables (G, N, Q), those too; and the network's
                quantiles (B, Q), or none at all.
        """
        if not len(landed):
            return
        losses = np.empty((len(landed), self._weights.members))
        _judge_counts(bucket, truth, *said, *members, self._levels, losses)
        self._weights.learn(bucket, landed, losses.T)

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

    def of_counts(
        self,
        slots: Int64 | slice,
        path: tuple[Float64, Float64, Float64],
        members: tuple[Float64, Float64, Float64, Float64],
        bucket: Int64,
    ) -> Float64:
        """The mixed quantiles (B, H, Q) of counts, moved along to another mean: whole numbers.

        What `quantiles` says of `Calibration.quantiles`, `NegativeBinomial.quantiles` and the
        network's, and `moved_along` of that, in one go and without those on the way.

        Args:
            slots: which keys (B,).
            path: (B, H) means, their expected errors, and the means to move to.
            members: (G, Q) shapes; (B, H) where in the tables (G, N, Q), those too; and the
                network's quantiles (B, H, Q), or none at all.
            bucket: (H,) the horizon bucket of each step.
        """
        quantiles = np.empty((*path[0].shape, len(self._levels)))
        _mix_counts(*path, *members, bucket, self._weights.weights(slots), quantiles)
        return quantiles

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


@inlined
def _width(own: NDArray[np.float32], all_keys: Float64) -> float:
    """Mean |residual| of a key in units, (2,) sum and weight, shrunk to all keys'; never zero."""
    population = (all_keys[0] + 1.0) / (all_keys[1] + 1.0)
    total, weight = np.float64(own[0]), np.float64(own[1])
    width: float = (total + _PRIOR_BUCKETS * population) / (weight + _PRIOR_BUCKETS)
    return max(width, 1e-9)


@inlined
def _count_unit(path: float) -> float:
    """The size of a residual to expect of a count."""
    mean = max(path, 0.0)
    unit: float = np.sqrt(mean + _COUNT_FLOOR + _DISPERSION * mean**2)
    return unit


@compiled("f8:1 > f8:1")
def _unit(path: Float64, unit: Float64) -> None:
    """Of counts (N,)."""
    for n in range(len(path)):
        unit[n] = _count_unit(path[n])


@compiled("f4:3 i8:1 f8:2 f8:2 f8:1 i8:1 b1 > f8:2")
def _expect(  # noqa: PLR0913, PLR0917  (what an error is made of)
    own: NDArray[np.float32],
    rows: Int64,
    all_keys: Float64,
    path: Float64,
    spread: Float64,
    bucket: Int64,
    is_count: bool,  # noqa: FBT001  (loops have no keywords)
    error: Float64,
) -> None:
    """Widths of rows (B,) times units: of paths (B, H) of counts, or spreads (B,)."""
    for b in range(len(path)):
        kept, said, expected = own[rows[b]], path[b], error[b]
        for h in range(len(bucket)):
            expected[h] = _count_unit(said[h]) if is_count else spread[b]
        width = 0.0
        for h in range(len(bucket)):
            if not h or bucket[h] != bucket[h - 1]:
                width = _width(kept[bucket[h]], all_keys[bucket[h]])
            expected[h] *= width


@compiled("i8 i8:1 f8:1 f8:1 f8:1 > f8:1 f8:1 f8:2 f4:3")
def _track(  # noqa: PLR0913, PLR0917  (what is learned of a residual)
    bucket: int,
    landed: Int64,
    residual: Float64,
    unit: Float64,
    levels: Float64,
    below: Float64,
    shape: Float64,
    all_keys: Float64,
    own: NDArray[np.float32],
) -> None:
    """Move each shape (Q,) by how many residuals (B,) lie at or below it, and add up their sizes.

    Of every key (K, G, 2), and of all (G, 2). How many that are is counted in `below` (Q,).
    """
    total, keys = 0.0, len(landed)
    for b in range(keys):
        scaled = min(max(residual[b] / unit[b], -_LARGEST), _LARGEST)
        kept = own[landed[b], bucket]
        relative, size = scaled / _width(kept, all_keys[bucket]), abs(scaled)
        for q in range(len(shape)):
            below[q] += relative <= shape[q]
        kept[0] = _DISCOUNT * kept[0] + size
        kept[1] = _DISCOUNT * kept[1] + 1
        total += size
    # Fast at first, slower as evidence grows; the far levels have further to go.
    rate = _RATE * (1 + 7 / np.sqrt(1 + all_keys[bucket, 1]))
    for q in range(len(shape)):
        shape[q] += rate * (levels[q] - below[q] / keys) * (0.3 + abs(shape[q]))
    all_keys[bucket, 0] = _DISCOUNT * all_keys[bucket, 0] + total / keys
    all_keys[bucket, 1] = _DISCOUNT * all_keys[bucket, 1] + 1.0


@inlined
def _pinball(miss: float, level: float) -> float:
    """Loss of a quantile that the truth is so far above."""
    return max(level * miss, (level - 1.0) * miss)


@compiled("i8 f8:1 f8:1 f8:1 f8:2 f8:1 f8:3 f8:2 f8:1 > f8:2")
def _judge_counts(  # noqa: PLR0913, PLR0917  (all that has a say)
    bucket: int,
    truth: Float64,
    mean: Float64,
    size: Float64,
    shape: Float64,
    place: Float64,
    tables: Float64,
    outside: Float64,
    levels: Float64,
    loss: Float64,
) -> None:
    """Mean pinball losses (B, members) of what `_mix_counts` mixes, in expected errors (B,)."""
    has_network = outside.shape[0] > 0
    for b in range(len(truth)):
        at = place[b]
        below = 0 if np.isnan(at) else min(int(at), tables.shape[1] - 2)
        part, low, high = at - below, tables[bucket, below], tables[bucket, below + 1]
        tracking = drawing = listening = 0.0
        for q in range(len(levels)):
            tracked = max(mean[b] + size[b] * shape[bucket, q], 0.0)
            drawn = tracked if np.isnan(at) else (1 - part) * low[q] + part * high[q]
            tracking += _pinball(truth[b] - tracked, levels[q])
            drawing += _pinball(truth[b] - drawn, levels[q])
            if has_network:
                heard = tracked if np.isnan(outside[b, q]) else outside[b, q]
                listening += _pinball(truth[b] - heard, levels[q])
        loss[b, 0] = tracking / len(levels) / size[b]
        loss[b, 1] = drawing / len(levels) / size[b]
        if has_network:
            loss[b, 2] = listening / len(levels) / size[b]


@compiled("f8:2 f8:2 f8:2 f8:2 f8:2 f8:3 f8:3 i8:1 f8:3 > f8:3")
def _mix_counts(  # noqa: PLR0913, PLR0917  (all that has a say)
    path: Float64,
    size: Float64,
    to: Float64,
    shape: Float64,
    place: Float64,
    tables: Float64,
    outside: Float64,
    bucket: Int64,
    weight: Float64,
    quantiles: Float64,
) -> None:
    """Quantiles (B, H, Q) of counts, mixed by weights (members, B, G), moved and rounded."""
    levels, has_network = quantiles.shape[2], outside.shape[0] > 0
    for b in range(len(path)):
        for h in range(len(bucket)):
            g, said = bucket[h], quantiles[b, h]
            mean, error, at = path[b, h], size[b, h], place[b, h]
            factor = to[b, h] / mean if mean > _NO_COUNT else 1.0
            below = 0 if np.isnan(at) else min(int(at), tables.shape[1] - 2)
            part, own = at - below, 0.0 if np.isnan(at) else weight[1, b, g]
            part = 0.0 if np.isnan(at) else part
            low, high = tables[g, below], tables[g, below + 1]
            for q in range(levels):
                tracked = max(mean + error * shape[g, q], 0.0)
                drawn = (1 - part) * low[q] + part * high[q]
                mixed = tracked + own * (drawn - tracked)
                if has_network:
                    change = weight[2, b, g] * (outside[b, h, q] - tracked)
                    mixed += 0.0 if np.isnan(change) else change
                said[q] = np.rint(np.rint(mixed) * factor)


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
            total += _pinball(truth[b] - said, levels[q])
        loss[b] = total / len(levels) / size[b]
