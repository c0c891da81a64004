"""What a coarse resolution says between two of its buckets: what it said when the last one closed.

An hour's forecast is made once an hour, and published with every minute's. So it is kept whole, as
it was before the resolutions agreed: agreement begins anew at every hop. The quantiles are kept as
`due` keeps them, as deviations from the mean in float16.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.keys import KeyTable

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Slots = Int64 | slice


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
        self, table: KeyTable, prefix: str, horizon: int, levels: int, forecasters: int
    ) -> None:
        """Add the columns to `table`.

        Args:
            table: the shard's.
            prefix: of the columns.
            horizon: H.
            levels: Q.
            forecasters: M.
        """
        self._table, self._prefix = table, prefix
        # Of each step the mean, and the largest deviation of a quantile from it.
        table.add(f"{prefix}.mean", (horizon, 2), dtype=np.float32, fill=np.nan)
        table.add(f"{prefix}.quantiles", (horizon, levels), dtype=np.float16)
        table.add(f"{prefix}.weights", (forecasters,), dtype=np.float16)

    def keep(self, slots: Slots, said: Statement) -> None:
        """From now on `slots` (B,) stand for what was `said`."""
        deviation = said.quantiles - said.mean[..., None]
        largest = np.abs(deviation).max(axis=2)
        deviation /= np.maximum(largest, np.finfo(np.float32).tiny)[..., None]
        self._column("mean")[slots] = np.stack([said.mean, largest], axis=2)
        self._column("quantiles")[slots] = deviation
        self._column("weights")[slots] = said.weights

    def mean(self, slots: Slots) -> Float64:
        """(B, H); NaN where nothing was said."""
        mean: Float64 = self._column("mean")[slots][..., 0].astype(np.float64)
        return mean

    def statement(self, slots: Slots) -> Statement:
        """What `slots` (B,) stand for."""
        mean, largest = np.moveaxis(self._column("mean")[slots], 2, 0).astype(np.float64, order="C")
        deviation = self._column("quantiles")[slots].astype(np.float64)
        quantiles = mean[..., None] + largest[..., None] * deviation
        return Statement(mean, quantiles, self._column("weights")[slots].astype(np.float64))

    def _column(self, name: str) -> NDArray[np.float32]:
        return self._table[f"{self._prefix}.{name}"]
