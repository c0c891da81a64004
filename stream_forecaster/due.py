"""What was said of every key and has not come true yet.

Theory of operation. Horizon buckets end at 1, 2, 4, ... steps, then at 1, 2, 4, ... days, and at H.
Each is represented by its middle, h[g]: learning from all its steps is no better, and from its last
one clearly worse. Of bucket g exactly h[g] forecasts are under way, in a ring: what was issued at
bucket i sits at i % h[g], and is read, h[g] buckets later, just before it is overwritten.

    bucket closed   7   8   9  10  11        h[g] = 4
    issued at       7   8   9  10  11        ring position  3 0 1 2 3
    lands at       11  12  13  14  15        11 % 4 = 3: reads what 7 said, then writes what 11 says

Far ahead neighbouring forecasts are nearly the same. So of a far bucket only one in s[g] is kept,
judged and learned from. Which one of each s[g] is drawn by lot, or only some minutes of the hour or
hours of the day would ever be judged. Where memory is short only one is kept at a time: of two h[g]
buckets the lot is drawn among the first, so that it lands before another may come.

This is most of what is remembered of a key. So only the published mean is kept in float32; all else
in float16, as a deviation from that mean in expected errors, which is at most 2^-11 off (counts'
quantiles, being whole numbers, not at all). Last comes the expected error itself, in the upper half
of a float32: deviations are told in what is left of it, so nothing else becomes less exact.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.compiled import compiled, halved, inlined, widened
from stream_forecaster.keys import KeyTable

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_MOST = 6e4
"""The largest deviation; float16 ends at 65,504."""


@dataclass(frozen=True, slots=True)
class Said:
    """Forecasts of one horizon bucket, or at G of them, of some keys; axes (..., B) or (..., B, G).

    Attributes:
        mean: what was published.
        unit: its expected error. What lands may say more: a 60,000th of the farthest deviation,
            which float16 needs, where a key has hardly moved and a forecaster is far off.
        predictions: (M, ...) of the forecasters; NaN for no opinion.
        pooled: of the experts, before the network and the agreement across scales had their say.
        quantiles: (..., Q) published.
        inside: (..., Q or 0) without the network's.
        outside: (..., Q or 0) the network's.
    """

    mean: Float64
    unit: Float64
    predictions: Float64
    pooled: Float64
    quantiles: Float64
    inside: Float64
    outside: Float64


@dataclass(frozen=True, slots=True)
class Landed:
    """Forecasts of horizon bucket `bucket` whose `truth` (B,) is known, of `slots` (B,)."""

    bucket: int
    slots: Int64
    truth: Float64
    said: Said


@dataclass(frozen=True, slots=True)
class Matured:
    """Published forecasts of one bucket, made so many steps before, and what came (B keys).

    Attributes:
        step_ms: bucket width.
        start_ms: start of the bucket, epoch ms.
        issued_ms: when they were issued, epoch ms.
        ahead: steps from there to the bucket, 1 for the next one.
        slots: (B,) whose they are.
        truth: (B,) what came.
        mean: (B,) what was published.
        quantiles: (B, Q) likewise.
    """

    step_ms: int
    start_ms: int
    issued_ms: int
    ahead: int
    slots: Int64
    truth: Float64
    mean: Float64
    quantiles: Float64


class Due:
    """The forecasts under way of all slots at one resolution."""

    def __init__(  # noqa: PLR0913  (what is kept of a key)
        self,
        table: KeyTable,
        prefix: str,
        horizons: Int64,
        *,
        forecasters: int,
        levels: int,
        members: int,
        whole: bool,
        most: int,
    ) -> None:
        """Add the columns to `table`.

        Args:
            table: the shard's.
            prefix: of the columns.
            horizons: (G,) steps ahead, one for each horizon bucket.
            forecasters: M.
            levels: Q.
            members: of how many that the published quantiles are mixed of those are kept, too.
            whole: are published quantiles whole numbers?
            most: how many forecasts of a horizon bucket are kept at a time.
        """
        self._table, self._horizons, self._whole = table, horizons, whole
        if most == 1:
            self._stride = np.maximum(2 * horizons - 1, 1)
            self._lots, self._size = horizons, np.ones_like(horizons)
        else:
            self._stride = self._lots = -(-horizons // most)
            # Of two drawn by lot the older may come late and the newer early.
            self._size = -(-horizons // self._stride) + (self._stride > 1)
        self._ring = np.concatenate([[0], np.cumsum(self._size)])
        self._parts = (forecasters, levels, levels * (members > 1), levels * (members > 0))
        self._means, self._others = f"{prefix}.due", f"{prefix}.due_others"
        others = sum(self._parts) + 2
        table.add(self._means, (self._ring[-1],), dtype=np.float32, fill=np.nan)
        table.add(self._others, (self._ring[-1], others), dtype=np.float16)

    def keep(self, rows: slice, index: int, said: Said) -> None:
        """Keep what was `said` (..., B, G) of `rows` after bucket `index`; NaN means: nothing."""
        kept, position = self._drawn(np.full(len(self._horizons), index))
        _keep(
            said.mean,
            said.unit,
            said.predictions.transpose(1, 0, 2),
            said.pooled,
            said.quantiles,
            said.inside,
            said.outside,
            kept,
            position,
            rows.start,
            np.empty(sum(self._parts) + 1),
            self._table[self._means],
            self._table[self._others],
        )

    def land(self, index: int, truth: Float64) -> Iterator[Landed]:
        """The forecasts of bucket `index`, closed with `truth` (K,), one group per horizon bucket.

        They are read once.
        """
        means = self._table[self._means]
        kept, positions = self._drawn(index - self._horizons)
        for bucket, position in zip(kept.tolist(), positions.tolist(), strict=True):
            slots = np.empty(len(truth), np.int64)
            slots = slots[: _find(truth, means, position, slots)]
            said = self._said(slots, position)
            means[:, position] = np.nan
            yield Landed(bucket, slots, truth[slots], said)

    def _said(self, slots: Int64, position: int) -> Said:
        """What is kept of `slots` (B,) at a position of the rings."""
        b, (forecasters, *levels) = len(slots), self._parts
        mean, unit, pooled = np.empty((3, b))
        predictions = np.empty((b, forecasters))
        quantiles, inside, outside = (np.empty((b, size)) for size in levels)
        _recall(
            self._table[self._others],
            self._table[self._means],
            slots,
            position,
            self._whole,
            mean,
            unit,
            predictions,
            pooled,
            quantiles,
            inside,
            outside,
        )
        return Said(mean, unit, predictions.T, pooled, quantiles, inside, outside)

    def forget(self) -> None:
        """Nothing that is under way will be scored."""
        self._table[self._means][:] = np.nan

    def _drawn(self, index: Int64) -> tuple[Int64, Int64]:
        """Of forecasts issued after buckets (G,): whose are kept, and where in the rings."""
        kept, position = np.empty((2, len(index)), np.int64)
        count = _draw(index, self._stride, self._lots, self._size, self._ring, kept, position)
        return kept[:count], position[:count]


# -- loops over keys and horizon buckets -----------------------------------------------------------


@inlined
def _lot(block: int) -> int:
    """A number as if drawn at random for a block, from 0 to 2^32 - 1.

    Source: the finaliser of MurmurHash3, Appleby 2008. A multiplication alone keeps a rhythm, and
    with it some minutes of the hour are never drawn.
    """
    bits = block & 0xFFFFFFFF
    bits ^= bits >> 16
    bits = bits * 0x85EBCA6B & 0xFFFFFFFF  # overflows, which leaves the low 32 bits as they are
    bits ^= bits >> 13
    bits = bits * 0xC2B2AE35 & 0xFFFFFFFF
    return bits ^ bits >> 16


@compiled("i8:1 i8:1 i8:1 i8:1 i8:1 > i8:1 i8:1 = i8")
def _draw(  # noqa: PLR0913, PLR0917  (what a ring is made of)
    index: Int64,
    stride: Int64,
    lots: Int64,
    size: Int64,
    first: Int64,
    kept: Int64,
    position: Int64,
) -> int:
    """The horizon buckets of which what is issued after bucket `index` (G,) is kept; how many."""
    count = 0
    for g in range(len(index)):
        block = index[g] // stride[g]
        if index[g] % stride[g] == _lot(block) % lots[g]:
            kept[count], position[count] = g, first[g] + block % size[g]
            count += 1
    return count


@inlined
def _upper_half(number: float) -> np.int64:
    """Sign, exponent and seven bits of a number in single precision; the rest is cut off."""
    return np.int64(np.float32(number).view(np.uint32)) >> 16


@inlined
def _of_upper_half(bits: np.int64) -> np.float32:
    """The number of which that is left."""
    return np.uint32(np.int64(bits) << 16).view(np.float32)


@compiled("f8:1 f4:2 i8 > i8:1 = i8")
def _find(truth: Float64, means: NDArray[np.float32], position: int, slots: Int64) -> int:
    """The slots with a truth (K,), and a mean at a position of their rings (K, P); how many."""
    count = 0
    for k in range(len(truth)):
        if not np.isnan(truth[k]) and not np.isnan(means[k, position]):
            slots[count] = k
            count += 1
    return count


@compiled("f8:2 f8:2 f8:3 f8:2 f8:3 f8:3 f8:3 i8:1 i8:1 i8 > f8:1 f4:2 f2:3")
def _keep(  # noqa: PLR0913, PLR0917  (what is kept of a key, one after the other)
    mean: Float64,
    unit: Float64,
    predictions: Float64,
    pooled: Float64,
    quantiles: Float64,
    inside: Float64,
    outside: Float64,
    kept: Int64,
    position: Int64,
    first: int,
    deviation: Float64,
    means: NDArray[np.float32],
    others: NDArray[np.float16],
) -> None:
    """Keep horizon buckets `kept` of what is said of B rows from the `first` on, at positions.

    A key that has hardly moved has an expected error, its unit, of next to nothing; it is made as
    large as the farthest deviation needs. One forecast's are in `deviation` meanwhile.
    """
    experts, levels = predictions.shape[1], quantiles.shape[2]
    size, at = others.shape[2] - 1, experts + 1 + levels
    for b in range(len(mean)):
        for k in range(len(kept)):
            g = kept[k]
            middle, scale = mean[b, g], unit[b, g]
            for m in range(experts):
                deviation[m] = predictions[b, m, g] - middle
            deviation[experts] = pooled[b, g] - middle
            for q in range(levels):
                deviation[experts + 1 + q] = quantiles[b, g, q] - middle
            for q in range(inside.shape[2]):
                deviation[at + q] = inside[b, g, q] - middle
            for q in range(outside.shape[2]):
                deviation[at + inside.shape[2] + q] = outside[b, g, q] - middle
            farthest = 0.0
            for i in range(size):
                away = abs(deviation[i])
                farthest = max(farthest, away)
            half = _upper_half(max(scale, farthest / _MOST))
            scale = np.float64(_of_upper_half(half))
            kept_there = others[first + b, position[k]]
            for i in range(size):
                kept_there[i] = halved(deviation[i] / scale)
            kept_there[size] = half
            means[first + b, position[k]] = middle


@compiled("f2:3 f4:2 i8:1 i8 b1 > f8:1 f8:1 f8:2 f8:1 f8:2 f8:2 f8:2")
def _recall(  # noqa: PLR0913, PLR0917  (likewise)
    others: NDArray[np.float16],
    means: NDArray[np.float32],
    slots: Int64,
    position: int,
    whole: bool,  # noqa: FBT001  (loops have no keywords)
    mean: Float64,
    unit: Float64,
    predictions: Float64,
    pooled: Float64,
    quantiles: Float64,
    inside: Float64,
    outside: Float64,
) -> None:
    """What was kept of slots (B,), as it was said; quantiles are rounded if they are `whole`."""
    experts, levels = predictions.shape[1], quantiles.shape[1]
    at = experts + 1 + levels
    for b in range(len(slots)):
        kept = others[slots[b], position]
        middle = np.float64(means[slots[b], position])
        scale = np.float64(_of_upper_half(kept[len(kept) - 1]))
        mean[b], unit[b] = middle, scale
        for m in range(experts):
            predictions[b, m] = middle + scale * np.float64(widened(kept[m]))
        pooled[b] = middle + scale * np.float64(widened(kept[experts]))
        for q in range(levels):
            said = middle + scale * np.float64(widened(kept[experts + 1 + q]))
            quantiles[b, q] = np.rint(said) if whole else said
        for q in range(inside.shape[1]):
            inside[b, q] = middle + scale * np.float64(widened(kept[at + q]))
        for q in range(outside.shape[1]):
            other = kept[at + inside.shape[1] + q]
            outside[b, q] = middle + scale * np.float64(widened(other))
