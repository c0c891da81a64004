"""One resolution of a shard: its window, its experts, and what was learned of their forecasts.

Theory of operation. Everything happens when a bucket closes, in this order:

1. *score*: the closed values are the truth for forecasts issued 1, 2, 4, ... H buckets ago;
2. *learn*: the landed losses move the fusion's weights and the calibration's quantiles, and the
   experts take in the values;
3. *issue*: every key is forecast anew, and what was said is kept until its time comes.

So a forecast is only ever judged by data that it has not seen. What is kept until it lands are the
experts' and the fused forecasts at G representative horizons, 1, 2, 4, ... H: horizon bucket g
covers the steps up to its horizon h[g]. Of bucket g exactly h[g] forecasts are under way, in a
ring: what was issued at bucket i sits at i % h[g], and is read, h[g] buckets later, just before it
is overwritten.

    bucket closed   7   8   9  10  11        h[g] = 4
    issued at       7   8   9  10  11        ring position  3 0 1 2 3
    lands at       11  12  13  14  15        11 % 4 = 3: reads what 7 said, then writes what 11 says
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_forecaster import experts
from stream_forecaster.calendar import Calendar
from stream_forecaster.calibration import Calibration
from stream_forecaster.config import Resolution, Settings
from stream_forecaster.drift import PageHinkley
from stream_forecaster.fusion import Fusion, fuse, in_effect
from stream_forecaster.keys import KeyTable, nested, under
from stream_forecaster.scoring import NAIVE, PUBLISHED, Score, central_intervals
from stream_forecaster.windows import Window

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_CHUNK = 4096
"""Slots handled at once: bounds the temporaries and keeps them in the cache."""
_MOVED = 0.1
"""A forecast has moved when it differs by so many of its own expected errors."""
_QUALITY_DISCOUNT = 0.98
_SPREAD_RATE = 0.01
_IMAGINED_BUCKETS = 10
_DRIFT_BUCKETS = 60
"""How long after a detection the resolution counts as drifting."""


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


@dataclass(frozen=True, slots=True)
class _Landed:
    """Forecasts of horizon bucket `bucket` whose truth is known, of slots (B,)."""

    bucket: int
    slots: Int64
    truth: Float64  # (B,)
    predictions: Float64  # (M, B)
    fused: Float64  # (B,)
    quantiles: Float64  # (B, Q)


class Pool:
    """All state of one resolution, for all slots of the shard."""

    def __init__(
        self, table: KeyTable, calendar: Calendar, resolution: Resolution, settings: Settings
    ) -> None:
        self.resolution = resolution
        self.window = Window(
            table,
            calendar,
            resolution,
            open_span_ms=settings.input.allowed_lateness_ms + settings.resolutions[0].step_ms,
            is_mean=settings.input.aggregate == "mean",
        )
        self._table, self._calendar = table, calendar
        self._levels = settings.output.quantiles
        self._experts = experts.pool(table, calendar, self.window, resolution)
        self.experts = tuple(expert.name for expert in self._experts)
        self._horizons = representative_horizons(resolution.horizon)
        self._bucket = np.searchsorted(self._horizons, np.arange(1, resolution.horizon + 1))
        self._ring = np.concatenate([[0], np.cumsum(self._horizons)])
        self._name = f"pool.{resolution.step_ms}"
        buckets, said = len(self._horizons), len(self.experts) + 1 + len(self._levels)
        self._fusion = Fusion(table, self._name, len(self.experts), buckets)
        self._calibration = Calibration(
            table,
            self._name,
            self._levels,
            buckets,
            is_count=settings.input.aggregate == "count",
        )
        self._drift = PageHinkley()
        self._drifted_until = np.iinfo(np.int64).min
        self._mean_spread = np.zeros(2)  # sum, weight
        add = table.add
        add(f"{self._name}.due", (self._ring[-1], said), dtype=np.float32, fill=np.nan)
        add(f"{self._name}.sent", (buckets,), dtype=np.float32, fill=np.nan)
        add(f"{self._name}.spread", (3,), dtype=np.float32)  # mean, variance, buckets seen
        add(f"{self._name}.quality", (4,), dtype=np.float32)  # |error|, naive's, covered, weight
        add(f"{self._name}.surprise", dtype=np.float32)

    @property
    def forecasters(self) -> tuple[str, ...]:
        """Whose errors a score reports; the published forecast first."""
        return (PUBLISHED, *self.experts)

    @property
    def drifting(self) -> bool:
        """Was a drift detected in the last 60 buckets?"""
        return self.window.closed <= self._drifted_until

    def no_score(self) -> Score:
        """A score of nothing."""
        return Score.zero(self.forecasters, self._horizons.tolist(), self._levels)

    def close(self) -> tuple[Score, bool]:
        """Close one bucket: score, learn, issue. Returns the score and if a drift was detected."""
        index = self.window.closed
        truth = self.window.close()
        landed = list(self._landed(index, truth))
        score = self._score(landed)
        drifted = self._learn(index, truth, landed)
        self._issue(index)
        return score, drifted

    def skip(self, until: int) -> None:
        """Close all buckets before `until` at once as silent; what would land there is not scored.

        For a silence longer than is remembered, after its open buckets were closed one by one.
        """
        self.window.skip(until)
        self._column("due")[:] = np.nan

    def paths(self, slots: Int64) -> Paths:
        """The forecast of slots (B,) issued at the newest closed bucket."""
        index, horizon = self.window.closed - 1, self.resolution.horizon
        mean = np.empty((len(slots), horizon))
        quantiles = np.empty((len(slots), horizon, len(self._levels)))
        weights = np.empty((len(slots), len(self.experts)))
        for rows in _chunks(len(slots)):
            chunk = slots[rows]
            weight = self._fusion.weights(chunk)[:, :, self._bucket]  # (M, B, H)
            predictions = self._predict(chunk, index, np.arange(1, horizon + 1))
            mean[rows] = fuse(predictions, weight)
            quantiles[rows] = self._quantiles(chunk, mean[rows], self._bucket)
            weights[rows] = in_effect(predictions, weight).mean(axis=2).T
        fast = self._experts[self.experts.index("ewma_fast")]
        step_ms = self.resolution.step_ms
        return Paths(
            step_ms,
            int(self._calendar.start(index + 1, step_ms)),
            int(self._calendar.start(index + 1 + horizon, step_ms)),
            mean,
            quantiles,
            self.window.moving_average(slots),
            fast.predict(slots, index, np.array([1]))[:, 0],
            weights,
            self.experts,
        )

    def moved(self) -> NDArray[np.bool_]:
        """(K,) whose forecast differs from the one last sent by more than a tenth of its error."""
        now, sent = self._issued(), self._column("sent")
        expected = np.empty(now.shape)
        for rows in _chunks(len(now)):
            expected[rows] = self._expected_error(rows, now[rows], np.arange(now.shape[1]))
        # Never sent is NaN and counts as moved; not issued yet (a newcomer) cannot have moved.
        moved = ~(np.abs(now - sent) <= _MOVED * expected) & ~np.isnan(now)
        any_step: NDArray[np.bool_] = moved.any(axis=1)
        return any_step

    def mark_sent(self, slots: Int64) -> None:
        """Note that slots (B,) are published as they are now."""
        self._column("sent")[slots] = self._issued()[slots]

    def quality(self, slots: Int64) -> tuple[Float64, Float64]:
        """Skill against the last value and coverage of the 80 % interval (B,); NaN if unscored."""
        error, naive, covered, weight = self._column("quality")[slots].astype(np.float64).T
        with np.errstate(divide="ignore", invalid="ignore"):
            skill = np.where(naive > 0, 1 - error / naive, np.nan)
            coverage = np.where(weight > 0, covered / weight, np.nan)
        return skill, coverage

    def surprise(self, slots: Int64) -> Float64:
        """(B,) the newest closed bucket against the forecast of it, in expected errors."""
        return self._column("surprise")[slots].astype(np.float64)

    def mean_weights(self) -> Float64:
        """(M,) the experts' weights, averaged over live keys and horizon buckets."""
        live = np.flatnonzero(self._table.live)
        if not len(live):
            return np.full(len(self.experts), 1 / len(self.experts))
        parts = [self._fusion.weights(live[rows]).mean(axis=2) for rows in _chunks(len(live))]
        mean: Float64 = np.concatenate(parts, axis=1).mean(axis=1)
        return mean

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is not in the table, for the checkpoint."""
        out = {
            "drifted_until": np.array([self._drifted_until]),
            "mean_spread": self._mean_spread,
            **nested("window", self.window.arrays()),
            **nested("fusion", self._fusion.arrays()),
            **nested("calibration", self._calibration.arrays()),
            **nested("drift", self._drift.arrays()),
        }
        for expert in self._experts:
            out |= nested(expert.name, expert.arrays())
        return out

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take `arrays` back."""
        self._drifted_until = int(arrays["drifted_until"][0])
        self._mean_spread[:] = arrays["mean_spread"]
        self.window.restore(under("window", arrays))
        self._fusion.restore(under("fusion", arrays))
        self._calibration.restore(under("calibration", arrays))
        self._drift.restore(under("drift", arrays))
        for expert in self._experts:
            expert.restore(under(expert.name, arrays))

    # -- score -----------------------------------------------------------------------------------

    def _landed(self, index: int, truth: Float64) -> Iterator[_Landed]:
        """The forecasts for bucket `index`, one group per horizon bucket."""
        due, m = self._column("due"), len(self.experts)
        for bucket, horizon in enumerate(self._horizons):
            said = due[:, self._ring[bucket] + index % horizon]  # (K, M + 1 + Q)
            slots = np.flatnonzero(~np.isnan(truth) & ~np.isnan(said[:, m]))
            rows = said[slots].astype(np.float64)
            yield _Landed(bucket, slots, truth[slots], rows[:, :m].T, rows[:, m], rows[:, m + 1 :])

    def _score(self, landed: list[_Landed]) -> Score:
        score = self.no_score()
        for group in landed:
            points = np.concatenate([group.fused[None], group.predictions])
            score.land(group.bucket, group.truth, points, group.quantiles)
        return score

    # -- learn -----------------------------------------------------------------------------------

    def _learn(self, index: int, truth: Float64, landed: list[_Landed]) -> bool:
        losses = []
        spreads = self._spread(np.s_[:])
        for group in landed:
            spread = spreads[group.slots]
            loss = ((group.predictions - group.truth) / spread) ** 2
            self._fusion.learn(group.bucket, group.slots, loss)
            unit = self._calibration.unit(group.fused, spread)
            residual = group.truth - group.fused
            if group.bucket == 0:
                self._note_quality(
                    group, self._expected_error(group.slots, group.fused[:, None], 0)
                )
            self._calibration.learn(group.bucket, group.slots, residual, unit)
            if len(residual):
                losses.append(float(np.mean(np.abs(residual) / unit)))
        self._learn_spread(truth)
        for expert in self._experts:
            expert.learn(index, truth)
        drifted = bool(losses) and self._drift.update(float(np.mean(losses)))
        if drifted:
            self._drifted_until = index + _DRIFT_BUCKETS
        return drifted

    def _note_quality(self, group: _Landed, expected: Float64) -> None:
        """One step ahead: errors, coverage and surprise of each key."""
        quality = self._column("quality")
        error = np.abs(group.truth - group.fused)
        naive = np.abs(group.truth - group.predictions[self.experts.index(NAIVE)])
        naive = np.where(np.isnan(naive), error, naive)  # nothing said, nothing lost
        inside = np.full(len(error), np.nan)
        if 0.8 in (intervals := central_intervals(self._levels)):
            low, high = group.quantiles[:, intervals[0.8]].T
            inside[:] = (low <= group.truth) & (group.truth <= high)
        news = np.stack([error, naive, inside, np.ones_like(error)], axis=1)
        quality[group.slots] = _QUALITY_DISCOUNT * quality[group.slots] + news
        self._column("surprise")[group.slots] = (group.truth - group.fused) / expected[:, 0]

    def _learn_spread(self, truth: Float64) -> None:
        """Exponentially weighted variance of each key's values around their mean."""
        state = self._column("spread")
        seen = np.flatnonzero(~np.isnan(truth))
        mean, variance, count = state[seen].astype(np.float64).T
        count = np.minimum(count + 1, 1 / _SPREAD_RATE)
        step = truth[seen] - mean
        mean = mean + step / count
        variance = variance + (step * (truth[seen] - mean) - variance) / count
        state[seen] = np.stack([mean, variance, count], axis=1)
        if len(seen):
            self._mean_spread = 0.99 * self._mean_spread + (np.sqrt(variance).mean(), 1.0)

    def _spread(self, slots: Int64 | slice) -> Float64:
        """(B,) standard deviation of each key's values; never below a twentieth of the mean one.

        While a key has seen little, an imagined observation of zero keeps it from vanishing; it
        fades within ten buckets, so that a high level does not pass for a wide spread.
        """
        mean, variance, count = self._column("spread")[slots].astype(np.float64).T
        imagined = np.maximum(1 - count / _IMAGINED_BUCKETS, 0.0)
        own = np.sqrt((count * variance + imagined * mean**2) / (count + imagined + 1e-9))
        total, weight = self._mean_spread
        floor = 0.05 * total / weight if weight else 0.0
        spread: Float64 = np.maximum(own, floor + 1e-6)
        return spread

    # -- issue -----------------------------------------------------------------------------------

    def _issue(self, index: int) -> None:
        """Forecast every live key at the representative horizons and keep what was said."""
        due, live, m = self._column("due"), self._table.live, len(self.experts)
        position = self._ring[:-1] + index % self._horizons
        buckets = np.arange(len(self._horizons))
        for rows in _chunks(self._table.size):
            predictions = self._predict(rows, index, self._horizons)
            fused = fuse(predictions, self._fusion.weights(rows))
            said = np.empty((*fused.shape, due.shape[2]), np.float32)  # (B, G, M + 1 + Q)
            for i, prediction in enumerate(predictions):
                said[:, :, i] = prediction
            said[:, :, m] = fused
            said[:, :, m + 1 :] = self._quantiles(rows, fused, buckets)
            said[~live[rows]] = np.nan
            due[rows, position] = said

    def _issued(self) -> NDArray[np.float32]:
        """(K, G) the fused forecasts issued at the newest closed bucket."""
        position = self._ring[:-1] + (self.window.closed - 1) % self._horizons
        return self._column("due")[:, position, len(self.experts)]

    def _predict(self, slots: Int64 | slice, index: int, ahead: Int64) -> list[Float64]:
        return [expert.predict(slots, index, ahead) for expert in self._experts]

    def _quantiles(self, slots: Int64 | slice, path: Float64, bucket: Int64) -> Float64:
        return self._calibration.quantiles(slots, path, self._spread(slots), bucket)

    def _expected_error(
        self, slots: Int64 | slice, path: NDArray[np.floating[Any]], bucket: Int64 | int
    ) -> Float64:
        """(B, H) mean |residual| to expect of `path` (B, H)."""
        steps = np.broadcast_to(bucket, path.shape[1:])
        return self._calibration.expected_error(
            slots, path.astype(np.float64), self._spread(slots), steps
        )

    def _column(self, name: str) -> NDArray[Any]:
        return self._table[f"{self._name}.{name}"]


def representative_horizons(horizon: int) -> Int64:
    """1, 2, 4, ... and `horizon` itself: the far end of each horizon bucket (G,).

    >>> representative_horizons(24).tolist()
    [1, 2, 4, 8, 16, 24]
    """
    powers = [1 << i for i in range(horizon.bit_length()) if 1 << i < horizon]
    return np.array([*powers, horizon], np.int64)


def _chunks(size: int) -> Iterator[slice]:
    return (slice(i, min(i + _CHUNK, size)) for i in range(0, size, _CHUNK))
