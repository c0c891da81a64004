"""What was said of every key and has not come true yet.

Theory of operation. Horizon buckets end at 1, 2, 4, ... H, and each is represented by its middle,
h[g]: learning from all its steps is no better, and from its last one clearly worse. Of bucket g
exactly h[g] forecasts are under way, in a ring: what was issued at bucket i sits at i % h[g], and
is read, h[g] buckets later, just before it is overwritten.

    bucket closed   7   8   9  10  11        h[g] = 4
    issued at       7   8   9  10  11        ring position  3 0 1 2 3
    lands at       11  12  13  14  15        11 % 4 = 3: reads what 7 said, then writes what 11 says

Far ahead neighbouring forecasts are nearly the same. So of a far bucket only one in s[g] is kept,
judged and learned from. Which one of each s[g] is drawn by lot, or only some minutes of the hour or
hours of the day would ever be judged.

This is most of what is remembered of a key. So only the published mean and its expected error are
kept in float32; all else in float16, as a deviation from that mean in expected errors, which is at
most 2^-11 off (counts' quantiles, being whole numbers, not at all).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.compiled import compiled
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
        quantiles: (Q, ...) published.
        inside: (Q or 0, ...) without the network's.
        outside: (Q or 0, ...) the network's.
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
        self._stride = -(-horizons // most)
        # Positions of each ring. Of two drawn by lot the older may come late and the newer early.
        self._size = -(-horizons // self._stride) + (self._stride > 1)
        self._ring = np.concatenate([[0], np.cumsum(self._size)])
        self._parts = np.cumsum([forecasters, 1, levels, levels * (members > 1)])
        self._means, self._others = f"{prefix}.due", f"{prefix}.due_others"
        others = self._parts[-1] + levels * (members > 0)
        table.add(self._means, (self._ring[-1], 2), dtype=np.float32, fill=np.nan)
        table.add(self._others, (self._ring[-1], others), dtype=np.float16)

    def keep(self, rows: slice, index: int, said: Said) -> None:
        """Keep what was `said` (..., B, G) of `rows` after bucket `index`; NaN means: nothing."""
        kept = np.flatnonzero(self._is_kept(index))
        position = self._position(index)[kept]
        parts = (said.predictions, said.pooled[None], said.quantiles, said.inside, said.outside)
        others = np.concatenate([part.take(kept, axis=-1) for part in parts])  # (P, B, kept)
        means = np.empty((*others.shape[1:], 2))
        means[..., 0], means[..., 1] = said.mean[:, kept], said.unit[:, kept]
        deviation = np.empty((*others.shape[1:], len(others)), np.float32)
        _deviate(others, means, deviation)
        self._table[self._means][rows, position] = means
        self._table[self._others][rows, position] = deviation

    def land(self, index: int, truth: Float64) -> Iterator[Landed]:
        """The forecasts of bucket `index`, closed with `truth` (K,), one group per horizon bucket.

        They are read once.
        """
        means, others = self._table[self._means], self._table[self._others]
        issued = index - self._horizons
        positions = self._position(issued).tolist()
        for bucket in np.flatnonzero(self._is_kept(issued)).tolist():
            position = positions[bucket]
            slots = np.flatnonzero(~np.isnan(truth) & ~np.isnan(means[:, position, 0]))
            mean, unit = means[slots, position].T.astype(np.float64, order="C")
            rest = others[slots, position].T.astype(np.float64, order="C")
            rest *= unit
            rest += mean
            predictions, pooled, quantiles, inside, outside = np.split(rest, self._parts)
            if self._whole:
                np.rint(quantiles, out=quantiles)
            means[:, position] = np.nan
            said = Said(mean, unit, predictions, pooled[0], quantiles, inside, outside)
            yield Landed(bucket, slots, truth[slots], said)

    def forget(self) -> None:
        """Nothing that is under way will be scored."""
        self._table[self._means][:] = np.nan

    def _position(self, index: Int64 | int) -> Int64:
        """(G,) where in the rings the forecasts issued after bucket `index`, one or (G,), are."""
        position: Int64 = self._ring[:-1] + index // self._stride % self._size
        return position

    def _is_kept(self, index: Int64 | int) -> NDArray[np.bool_]:
        """(G,) whether what is issued after bucket `index`, one or (G,), is kept."""
        lot = _lots(index // self._stride) % self._stride
        drawn: NDArray[np.bool_] = index % self._stride == lot
        return drawn


def _lots(block: Int64) -> Int64:
    """(G,) a number as if drawn at random for each block, from 0 to 2^32 - 1.

    Source: the finaliser of MurmurHash3, Appleby 2008. A multiplication alone keeps a rhythm, and
    with it some minutes of the hour are never drawn.
    """
    bits = block & 0xFFFFFFFF
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        bits ^= bits >> shift
        bits = bits * factor & 0xFFFFFFFF  # overflows, which leaves the low 32 bits as they are
    return bits


@compiled("f8:3 > f8:3 f4:3")
def _deviate(others: Float64, means: Float64, deviation: NDArray[np.float32]) -> None:
    """What others (P, B, G) say, as deviations (B, G, P) from `means` (B, G, 2) in their units.

    A key that has hardly moved has an expected error, its unit, of next to nothing; it is made as
    large as the farthest deviation needs.
    """
    parts, rows, buckets = others.shape
    for b in range(rows):
        for g in range(buckets):
            mean, unit = means[b, g, 0], means[b, g, 1]
            for p in range(parts):
                least = abs(others[p, b, g] - mean) / _MOST
                if not least <= unit and not np.isnan(least):
                    unit = least
            means[b, g, 1] = unit
            for p in range(parts):
                deviation[b, g, p] = (others[p, b, g] - mean) / unit
