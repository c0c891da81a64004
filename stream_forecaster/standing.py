"""What a coarse resolution says between two of its buckets: what it said when the last one closed.

An hour's forecast is made once an hour, and published with every minute's. So it is kept whole, as
it was before the resolutions agreed: agreement begins anew at every hop. The quantiles are kept as
`due` keeps them, as deviations from the mean in float16; where memory is short, in 127ths of the
largest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.compiled import compiled, halved, inlined, widened
from stream_forecaster.keys import KeyTable

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Slots = Int64 | slice
_Loop = Callable[..., None]

_LEAST = float(np.finfo(np.float32).tiny)
_PARTS = 127.0
_NOTHING = 1e-9
"""As for `agreement.moved_along`: so little is nothing to scale by."""


@dataclass(frozen=True, slots=True)
class Statement:
    """What one resolution by itself says of B keys' next H steps.

    Attributes:
        mean: (B, H).
        quantiles: (B, H, Q), ascending.
        weights: (B, M) of the forecasters, averaged over the horizon.
    """

    mean: Float64
    quantiles: Float64
    weights: Float64


class Standing:
    """The newest statement of every slot at one resolution."""

    def __init__(
        self,
        table: KeyTable,
        prefix: str,
        horizon: int,
        levels: int,
        forecasters: int,
        *,
        is_short: bool = False,
    ) -> None:
        """Add the columns to `table`.

        Args:
            table: the shard's.
            prefix: of the columns.
            horizon: H.
            levels: Q.
            forecasters: M.
            is_short: is memory short?
        """
        self._table, self._prefix = table, prefix
        self._keep: _Loop = _keep_short if is_short else _keep
        self._say: _Loop = _say_short if is_short else _say
        # Of each step the mean, and the largest deviation of a quantile from it.
        table.add(f"{prefix}.mean", (horizon, 2), dtype=np.float32, fill=np.nan)
        kind = np.int8 if is_short else np.float16
        table.add(f"{prefix}.quantiles", (horizon, levels), dtype=kind)
        table.add(f"{prefix}.weights", (forecasters,), dtype=np.float16)

    def keep(self, slots: Slots, said: Statement) -> None:
        """From now on `slots` (B,) stand for what was `said`."""
        rows = self._table.rows(slots)
        means, deviations = self._column("mean"), self._column("quantiles")
        told = np.empty(deviations[0].size)
        self._keep(said.mean, said.quantiles, rows, told, means, deviations)
        self._column("weights")[slots] = said.weights

    def mean(self, slots: Slots) -> Float64:
        """(B, H); NaN where nothing was said."""
        mean: Float64 = self._column("mean")[slots][..., 0].astype(np.float64)
        return mean

    def statement(self, slots: Slots) -> Statement:
        """What `slots` (B,) stand for."""
        return self.agreed(slots, self.mean(slots), is_count=False)

    def agreed(self, slots: Slots, mean: Float64, *, is_count: bool) -> Statement:
        """The same, moved along to other means (B, H) as `agreement.moved_along` does it.

        Quantiles of counts are whole numbers.
        """
        rows = self._table.rows(slots)
        means, deviations = self._column("mean"), self._column("quantiles")
        told, quantiles = np.empty(deviations[0].size), np.empty((*mean.shape, deviations.shape[2]))
        self._say(means, deviations, rows, mean, is_count, told, quantiles)
        return Statement(mean, quantiles, self._column("weights")[slots].astype(np.float64))

    def _column(self, name: str) -> NDArray[Any]:
        return self._table[f"{self._prefix}.{name}"]


# -- loops over keys -----------------------------------------------------------------------------


@inlined
def _part(
    mean: Float64, quantiles: Float64, parts: float, kept: NDArray[np.float32], told: Float64
) -> None:
    """One key's means (H,), and its largest deviations, to be kept (H, 2); of its quantiles (H, Q).

    Told (H * Q,) are their deviations in so many parts of the largest.
    """
    levels = quantiles.shape[1]
    for h in range(len(mean)):
        middle, largest = mean[h], 0.0
        for q in range(levels):
            largest = max(largest, abs(quantiles[h, q] - middle))
        kept[h, 0], kept[h, 1] = middle, largest
        unit = max(largest, _LEAST) / parts
        for q in range(levels):
            told[h * levels + q] = (quantiles[h, q] - middle) / unit


@inlined
def _place(
    kept: NDArray[np.float32],
    told: Float64,
    parts: float,
    mean: Float64,
    is_count: bool,  # noqa: FBT001  (loops have no keywords)
    quantiles: Float64,
) -> None:
    """One key's quantiles (H, Q) around means (H,), of what `_part` made; counts' are whole again.

    They are what was said, moved along to other means.
    """
    levels = quantiles.shape[1]
    for h in range(len(mean)):
        middle = np.float64(kept[h, 0])
        unit = np.float64(kept[h, 1]) / parts
        factor = mean[h] / middle if middle > _NOTHING else 1.0
        for q in range(levels):
            said = middle + unit * told[h * levels + q]
            whole = np.rint(np.rint(said) * factor)  # as it was before it was kept
            quantiles[h, q] = whole if is_count else said + (mean[h] - middle)


@compiled("f8:2 f8:3 i8:1 > f8:1 f4:3 f2:3")
def _keep(
    mean: Float64,
    quantiles: Float64,
    rows: Int64,
    told: Float64,
    means: NDArray[np.float32],
    deviations: NDArray[np.float16],
) -> None:
    """Keep means (B, H) and quantiles (B, H, Q) of rows (B,)."""
    for b in range(len(rows)):
        _part(mean[b], quantiles[b], 1.0, means[rows[b]], told)
        kept = deviations[rows[b]].reshape(len(told))
        for i in range(len(told)):
            kept[i] = halved(told[i])


@compiled("f4:3 f2:3 i8:1 f8:2 b1 > f8:1 f8:3")
def _say(  # noqa: PLR0913, PLR0917  (what was kept, and of whom)
    means: NDArray[np.float32],
    deviations: NDArray[np.float16],
    rows: Int64,
    mean: Float64,
    is_count: bool,  # noqa: FBT001  (loops have no keywords)
    told: Float64,
    quantiles: Float64,
) -> None:
    """Quantiles (B, H, Q) of rows (B,) around means (B, H)."""
    for b in range(len(rows)):
        kept = deviations[rows[b]].reshape(len(told))
        for i in range(len(told)):
            told[i] = widened(kept[i])
        _place(means[rows[b]], told, 1.0, mean[b], is_count, quantiles[b])


@compiled("f8:2 f8:3 i8:1 > f8:1 f4:3 i1:3")
def _keep_short(
    mean: Float64,
    quantiles: Float64,
    rows: Int64,
    told: Float64,
    means: NDArray[np.float32],
    deviations: NDArray[np.int8],
) -> None:
    """As `_keep`."""
    for b in range(len(rows)):
        _part(mean[b], quantiles[b], _PARTS, means[rows[b]], told)
        kept = deviations[rows[b]].reshape(len(told))
        for i in range(len(told)):
            kept[i] = np.rint(told[i])


@compiled("f4:3 i1:3 i8:1 f8:2 b1 > f8:1 f8:3")
def _say_short(  # noqa: PLR0913, PLR0917  (likewise)
    means: NDArray[np.float32],
    deviations: NDArray[np.int8],
    rows: Int64,
    mean: Float64,
    is_count: bool,  # noqa: FBT001  (loops have no keywords)
    told: Float64,
    quantiles: Float64,
) -> None:
    """As `_say`."""
    for b in range(len(rows)):
        kept = deviations[rows[b]].reshape(len(told))
        for i in range(len(told)):
            told[i] = kept[i]
        _place(means[rows[b]], told, _PARTS, mean[b], is_count, quantiles[b])
