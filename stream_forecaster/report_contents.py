"""What the report's page shows: gathered in the course of a pass, rendered in its end."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.calendar import Calendar
from stream_forecaster.config import Settings
from stream_forecaster.scoring import Score

Float64 = NDArray[np.float64]

_FANS = 4


@dataclass(frozen=True, slots=True)
class Fan:
    """A forecast of one key as it was published.

    Attributes:
        first: index of its first bucket.
        mean: (H,).
        quantiles: (H, Q).
    """

    first: int
    mean: Float64
    quantiles: Float64

    @property
    def end(self) -> int:
        """Index of the bucket after its last."""
        return self.first + len(self.mean)


@dataclass(slots=True)
class Series:
    """One key at one resolution: its last four forecasts that do not overlap, and the truth.

    Attributes:
        step_ms: bucket width.
        horizon: of the forecasts.
        fans: oldest first.
        truth: bucket index -> value, from a horizon before the oldest forecast on.
    """

    step_ms: int
    horizon: int
    fans: deque[Fan] = field(default_factory=lambda: deque(maxlen=_FANS))
    truth: dict[int, float] = field(default_factory=dict)

    def add_fan(self, fan: Fan) -> None:
        """Keep a forecast, if the last one that was kept has run out."""
        if not self.fans or fan.first >= self.fans[-1].end:
            self.fans.append(fan)

    def add_truth(self, first: int, values: Float64) -> None:
        """Add closed buckets (T,) from `first` on, and forget what is too old to be shown."""
        begin = (self.fans[0].first if self.fans else first + len(values)) - self.horizon
        self.truth |= enumerate(values.tolist(), first)
        self.truth = {index: value for index, value in self.truth.items() if index >= begin}


@dataclass(frozen=True, slots=True)
class Portrait:
    """A key to show: why it of all, and its series by resolution."""

    key: bytes
    why: str
    series: tuple[Series, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """The experts' weights, averaged over the keys, at one time, by resolution: (M,) each."""

    time_ms: int
    weights: tuple[Float64, ...]


@dataclass(frozen=True, slots=True)
class Contents:
    """All that a page shows.

    Attributes:
        settings: of the pass.
        calendar: of its time zone.
        counts: what was counted, as `backtest --json` has it.
        scores: per resolution.
        issued_ms: first and last hop with a forecast.
        portraits: of the keys to show.
        experts: per resolution, the names of those who have a weight.
        looks: the weights in the course of the pass.
    """

    settings: Settings
    calendar: Calendar
    counts: Mapping[str, Any]
    scores: Sequence[Score]
    issued_ms: tuple[int, int]
    portraits: Sequence[Portrait]
    experts: Sequence[tuple[str, ...]]
    looks: Sequence[Look]
