"""What one resolution says of some keys: its opinion of their next steps, and what is published."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Slots = Int64 | slice


@dataclass(frozen=True, slots=True)
class Paths:
    """What one resolution has to say about B keys.

    Attributes:
        step_ms: bucket width.
        start_ms, end_ms: start of the first forecast bucket and end of the last, epoch ms.
        mean: (B, H).
        quantiles: (B, H, Q), ascending along Q.
        moving_average: (B,) NaN before a key's first closed bucket.
        level: (B,) the fast exponentially weighted mean; NaN likewise.
        weights: (B, M) with which the experts spoke, averaged over the horizon.
        experts: their M names.
    """

    step_ms: int
    start_ms: int
    end_ms: int
    mean: Float64
    quantiles: Float64
    moving_average: Float64
    level: Float64
    weights: Float64
    experts: tuple[str, ...]

    def take(self, rows: Int64) -> "Paths":
        """The paths of some of the keys."""
        return replace(
            self,
            mean=self.mean[rows],
            quantiles=self.quantiles[rows],
            moving_average=self.moving_average[rows],
            level=self.level[rows],
            weights=self.weights[rows],
        )

    @classmethod
    def joined(cls, parts: Sequence["Paths"]) -> "Paths":
        """The paths of all their keys, which were issued together."""
        first = parts[0]

        def all_of(name: str) -> Float64:
            return np.concatenate([getattr(part, name) for part in parts])

        return cls(
            first.step_ms,
            first.start_ms,
            first.end_ms,
            all_of("mean"),
            all_of("quantiles"),
            all_of("moving_average"),
            all_of("level"),
            all_of("weights"),
            first.experts,
        )


@dataclass(frozen=True, slots=True)
class Opinion:
    """What one resolution by itself thinks of B keys' next H steps.

    Attributes:
        slots: which keys.
        index: (H,) the buckets of time that are forecast.
        bucket: (H,) the horizon bucket of each step.
        predictions: (M, B, H) of the forecasters, the network's last; NaN for no opinion.
        pooled: (B, H) the experts fused.
        mean: (B, H) and the network's paths with them.
        weights: (B, M) with which they spoke, averaged over the horizon.
        outside: (B, H, Q) the network's quantiles; None without one.
    """

    slots: Slots
    index: Int64
    bucket: Int64
    predictions: Float64
    pooled: Float64
    mean: Float64
    weights: Float64
    outside: Float64 | None

    def at(self, ahead: Int64) -> "Opinion":
        """The same at some steps, (G,) counted from 1."""
        steps = ahead - 1
        return Opinion(
            self.slots,
            self.index[steps],
            self.bucket[steps],
            self.predictions.transpose(1, 0, 2).take(steps, axis=2).transpose(1, 0, 2),
            self.pooled.take(steps, axis=1),
            self.mean.take(steps, axis=1),
            self.weights,
            None if self.outside is None else self.outside.take(steps, axis=1),
        )
