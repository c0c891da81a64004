"""One resolution of a shard: its window, its experts, and what was learned of their forecasts.

Theory of operation. Everything happens when a bucket closes, in this order:

1. *score*: the closed values are the truth for forecasts issued 1, 2, 3, 6, 12, ... buckets ago;
2. *learn*: the landed losses move the fusion's weights and the calibration's quantiles, and the
   experts take in the values;
3. *issue*: every key is forecast anew, and what was said is kept until its time comes.

So a forecast is only ever judged by data that it has not seen. What is kept until it lands are the
experts' and the fused forecasts at G representative horizons. Horizon buckets end at 1, 2, 4, ...
H, and each is represented by its middle, h[g]: learning from all its steps is no better, and from
its last one clearly worse. Of bucket g exactly h[g] forecasts are under way, in a ring: what was
issued at bucket i sits at i % h[g], and is read, h[g] buckets later, just before it is overwritten.

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
from stream_forecaster.calibration import Calibration, Mixture
from stream_forecaster.config import Resolution, Settings
from stream_forecaster.drift import Drift
from stream_forecaster.fusion import Fusion, Stack
from stream_forecaster.keys import KeyTable, nested, under
from stream_forecaster.learning import Learner
from stream_forecaster.lstm import ABSOLUTE, LAST_STEP, ONE_STEP, RESIDUAL, Lstm, View
from stream_forecaster.scoring import NAIVE, PUBLISHED, Score, central_intervals
from stream_forecaster.spread import Spread
from stream_forecaster.windows import Window

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_CHUNK = 4096
"""Slots handled at once: bounds the temporaries and keeps them in the cache."""
_MOVED = 0.1
"""A forecast has moved when it differs by so many of its own expected errors."""
_QUALITY_DISCOUNT = 0.98


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
class _Said:
    """What is said of B keys, H steps."""

    predictions: list[Float64]  # of all forecasters but the published: (B, H) or (B, 1)
    pooled: Float64  # (B, H) the experts fused
    fused: Float64  # (B, H) and the network's paths with them: what is published
    quantiles: Float64  # (B, H, Q)
    outside: Float64 | None  # (B, H, Q) the network's quantiles
    weights: Float64  # (M, B, H)


@dataclass(frozen=True, slots=True)
class _Landed:
    """Forecasts of horizon bucket `bucket` whose truth is known, of slots (B,)."""

    bucket: int
    slots: Int64
    truth: Float64  # (B,)
    predictions: Float64  # (M, B)
    pooled: Float64  # (B,)
    fused: Float64  # (B,)
    quantiles: Float64  # (B, Q)
    outside: Float64  # (B, Q), empty without a network


class Network:
    """What the pools of a shard share: the learner, and each resolution's seat at it."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.seats: list[Lstm] = []


class Pool:
    """All state of one resolution, for all slots of the shard."""

    def __init__(
        self,
        table: KeyTable,
        calendar: Calendar,
        resolution: Resolution,
        settings: Settings,
        network: Network | None = None,
    ) -> None:
        """Add the columns of this resolution to `table`.

        Args:
            table: the shard's.
            calendar: of the input's time zone.
            resolution: which.
            settings: all of them.
            network: the shard's; None: the experts alone.
        """
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
        self._is_count = settings.input.aggregate == "count"
        self._experts = experts.pool(
            table,
            calendar,
            self.window,
            resolution,
            lean=settings.model.profile == "lean",
            river=settings.model.river,
        )
        self._names = tuple(expert.name for expert in self._experts)
        ends, self._horizons = horizon_buckets(resolution.horizon)
        self._bucket = np.searchsorted(ends, np.arange(1, resolution.horizon + 1))
        self._ring = np.concatenate([[0], np.cumsum(self._horizons)])
        self._name = f"pool.{resolution.step_ms}"
        buckets = len(self._horizons)
        self._spread = Spread(table, self._name)
        self._fusion = Fusion(table, self._name, len(self._experts), buckets)
        self._lstm: Lstm | None = None
        if network is not None:
            learner, seats = network.learner, network.seats
            self._lstm = Lstm(seats, learner, table, calendar, self.window, self._spread, settings)
            self._final = Stack(
                table,
                f"{self._name}.final",
                buckets,
                self._lstm.shares,
                discount=0.9995,
                prior=300.0,
                convex=True,
            )
        self._calibration = Calibration(
            table, self._name, self._levels, buckets, is_count=self._is_count
        )
        self._mixture = Mixture(
            table,
            self._name,
            self._levels,
            buckets,
            network=network is not None,
            is_count=self._is_count,
        )
        self._drift = Drift()
        said = len(self.experts) + 2 + len(self._levels) * (1 + (network is not None))
        add = table.add
        add(f"{self._name}.due", (self._ring[-1], said), dtype=np.float32, fill=np.nan)
        add(f"{self._name}.sent", (buckets,), dtype=np.float32, fill=np.nan)
        add(f"{self._name}.quality", (4,), dtype=np.float32)  # |error|, naive's, covered, weight
        add(f"{self._name}.surprise", dtype=np.float32)

    @property
    def experts(self) -> tuple[str, ...]:
        """Who has a weight in the published forecast: the pool's experts, then the network."""
        return (*self._names, ABSOLUTE, RESIDUAL) if self._lstm else self._names

    @property
    def forecasters(self) -> tuple[str, ...]:
        """Whose errors a score reports; the published forecast first."""
        return (PUBLISHED, *self.experts)

    @property
    def drifting(self) -> bool:
        """Was a drift detected in the last 60 buckets?"""
        return self._drift.drifting

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
            said = self._say(slots[rows], index, np.arange(1, horizon + 1), self._bucket)
            mean[rows], quantiles[rows] = said.fused, said.quantiles
            weights[rows] = said.weights.mean(axis=2).T
        fast = self._experts[self._names.index("ewma_fast")]
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
        parts = [self._mixed(live[rows]).mean(axis=2) for rows in _chunks(len(live))]
        mean: Float64 = np.concatenate(parts, axis=1).mean(axis=1)
        return mean

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is not in the table, for the checkpoint."""
        out = {
            **nested("window", self.window.arrays()),
            **nested("spread", self._spread.arrays()),
            **nested("fusion", self._fusion.arrays()),
            **nested("calibration", self._calibration.arrays()),
            **nested("mixture", self._mixture.arrays()),
            **nested("drift", self._drift.arrays()),
        }
        if self._lstm:
            out |= nested("final", self._final.arrays())
        for expert in self._experts:
            out |= nested(expert.name, expert.arrays())
        return out

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take `arrays` back."""
        self.window.restore(under("window", arrays))
        self._spread.restore(under("spread", arrays))
        self._fusion.restore(under("fusion", arrays))
        self._calibration.restore(under("calibration", arrays))
        self._mixture.restore(under("mixture", arrays))
        self._drift.restore(under("drift", arrays))
        if self._lstm:
            self._final.restore(under("final", arrays))
        for expert in self._experts:
            expert.restore(under(expert.name, arrays))

    # -- score -----------------------------------------------------------------------------------

    def _landed(self, index: int, truth: Float64) -> Iterator[_Landed]:
        """The forecasts for bucket `index`, one group per horizon bucket."""
        due, m, q = self._column("due"), len(self.experts), len(self._levels)
        for bucket, horizon in enumerate(self._horizons):
            said = due[:, self._ring[bucket] + index % horizon]  # (K, M + 2 + Q or 2 Q)
            slots = np.flatnonzero(~np.isnan(truth) & ~np.isnan(said[:, m]))
            rows = said[slots].astype(np.float64)
            predictions, pooled, fused, quantiles, outside = np.split(
                rows.T, [m, m + 1, m + 2, m + 2 + q]
            )
            yield _Landed(
                bucket,
                slots,
                truth[slots],
                predictions,
                pooled[0],
                fused[0],
                quantiles.T,
                outside.T,
            )

    def _score(self, landed: list[_Landed]) -> Score:
        score = self.no_score()
        for group in landed:
            points = np.concatenate([group.fused[None], group.predictions])
            score.land(group.bucket, group.truth, points, group.quantiles)
        return score

    # -- learn -----------------------------------------------------------------------------------

    def _learn(self, index: int, truth: Float64, landed: list[_Landed]) -> bool:
        losses, m = [], len(self._names)
        spreads = self._spread()
        if self._lstm:
            self._lstm.open(index)
            self._lstm.land(index, truth)
        for group in landed:
            spread = spreads[group.slots]
            self._fusion.learn(
                group.bucket, group.slots, group.predictions[:m], group.truth, spread
            )
            if self._lstm:
                self._learn_network(index, group, spread)
            unit = self._calibration.unit(group.fused, spread)
            residual = group.truth - group.fused
            if group.bucket == 0:
                self._note_quality(
                    group, self._expected_error(group.slots, group.fused[:, None], 0)
                )
            self._learn_quantiles(group, spread, residual, unit)
            if len(residual):
                losses.append(float(np.mean(np.abs(residual) / unit)))
        self._spread.learn(truth)
        self._fusion.settle(index)
        if self._lstm and index % 6 == 0:
            self._final.solve()
        for expert in self._experts:
            expert.learn(index, truth)
        drifted = bool(losses) and self._drift.update(float(np.mean(losses)))
        if drifted:
            self._fusion.forget()
        return drifted

    def _learn_quantiles(
        self, group: _Landed, spread: Float64, residual: Float64, unit: Float64
    ) -> None:
        """The mixture, by what its members would say today; then the tracked quantiles."""
        path, bucket = group.fused[:, None], np.array([group.bucket])
        tracked = self._calibration.quantiles(group.slots, path, spread, bucket)[:, 0]
        members = tracked, group.outside if self._lstm else None
        size = self._calibration.expected_error(group.slots, path, spread, bucket)[:, 0]
        self._mixture.learn(group.bucket, group.slots, group.truth, members, size)
        self._calibration.learn(group.bucket, group.slots, residual, unit)

    def _learn_network(self, index: int, group: _Landed, spread: Float64) -> None:
        """The network's weights in the final fusion, and the errors that it is told of."""
        if not self._lstm:
            return
        deviation = np.nan_to_num(group.predictions[-2:] - group.pooled) / spread
        residual = (group.truth - group.pooled) / spread
        self._final.learn(group.bucket, group.slots, deviation, residual)
        error = self._expected_error(group.slots, group.pooled[:, None], group.bucket)[:, 0]
        error = (group.truth - group.pooled) / error
        if group.bucket == 0:
            self._lstm.note(index, ONE_STEP, group.slots, error)
        if group.bucket == len(self._horizons) - 1:
            self._lstm.note(index, LAST_STEP, group.slots, error)

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

    # -- issue -----------------------------------------------------------------------------------

    def _issue(self, index: int) -> None:
        """Forecast every live key at the representative horizons and keep what was said."""
        due, live, m = self._column("due"), self._table.live, len(self.experts)
        if self._lstm:
            self._lstm.encode(np.flatnonzero(live))
        position = self._ring[:-1] + index % self._horizons
        buckets = np.arange(len(self._horizons))
        for rows in _chunks(self._table.size):
            said = self._say(rows, index, self._horizons, buckets)
            kept = np.empty((*said.fused.shape, due.shape[2]), np.float32)
            for i, prediction in enumerate(said.predictions):
                kept[:, :, i] = prediction
            kept[:, :, m], kept[:, :, m + 1] = said.pooled, said.fused
            kept[:, :, m + 2 : m + 2 + len(self._levels)] = said.quantiles
            if said.outside is not None:
                kept[:, :, m + 2 + len(self._levels) :] = said.outside
            kept[~live[rows]] = np.nan
            due[rows, position] = kept
        if self._lstm and (slots := self._lstm.due(index)) is not None and len(slots):
            self._lstm.learn(self._view(slots, index, np.arange(1, self.resolution.horizon + 1)))

    def _say(self, slots: Int64 | slice, index: int, ahead: Int64, bucket: Int64) -> _Said:
        """What is said of `slots` (B,) after bucket `index`, `ahead` (H,) steps of it."""
        predictions = [expert.predict(slots, index, ahead) for expert in self._experts]
        pooled, weights = self._fusion.fuse(slots, predictions, bucket)
        outside, fused = None, pooled
        if self._lstm:
            view = self._view_of(slots, index, ahead, bucket, predictions, pooled)
            absolute, residual, outside = self._lstm.answer(view)
            predictions += [absolute, residual]
            share = self._final.weights(slots)[:, :, bucket]  # (2, B, H)
            deviations = np.nan_to_num(np.stack([absolute - pooled, residual - pooled]))
            fused = pooled + (share * deviations).sum(axis=0)
            weights = np.concatenate([weights * (1 - share.sum(axis=0)), share])
        if self._is_count:
            fused = np.maximum(fused, 0.0)
        tracked = self._calibration.quantiles(slots, fused, self._spread(slots), bucket)
        size = self._expected_error(slots, fused, bucket)
        quantiles = self._mixture.quantiles(slots, tracked, outside, size, bucket)
        return _Said(predictions, pooled, fused, quantiles, outside, weights)

    def _view(self, slots: Int64, index: int, ahead: Int64) -> View:
        bucket = self._bucket[ahead - 1]
        predictions = [expert.predict(slots, index, ahead) for expert in self._experts]
        pooled, _ = self._fusion.fuse(slots, predictions, bucket)
        return self._view_of(slots, index, ahead, bucket, predictions, pooled)

    def _view_of(
        self,
        slots: Int64 | slice,
        index: int,
        ahead: Int64,
        bucket: Int64,
        predictions: list[Float64],
        pooled: Float64,
    ) -> View:
        loss = self._fusion.losses(slots)  # (B, G, M)
        relative = np.log((loss + 1e-6) / (loss.min(axis=2, keepdims=True) + 1e-6))
        relative = np.minimum(relative, 3.0)[:, bucket]  # (B, H, M)
        unit = self._expected_error(slots, pooled, bucket)
        return View(
            slots,
            index,
            ahead,
            dict(zip(self._names, predictions, strict=True)),
            {name: relative[:, :, i] for i, name in enumerate(self._names)},
            pooled,
            unit,
        )

    def _mixed(self, slots: Int64) -> Float64:
        """(M, B, G) the weights of all who have one."""
        weights = self._fusion.weights(slots)
        if not self._lstm:
            return weights
        share = self._final.weights(slots)
        return np.concatenate([weights * (1 - share.sum(axis=0)), share])

    def _issued(self) -> NDArray[np.float32]:
        """(K, G) the fused forecasts issued at the newest closed bucket."""
        position = self._ring[:-1] + (self.window.closed - 1) % self._horizons
        return self._column("due")[:, position, len(self.experts) + 1]

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


def horizon_buckets(horizon: int) -> tuple[Int64, Int64]:
    """The last step of each of G horizon buckets, and its middle, which represents it.

    >>> [part.tolist() for part in horizon_buckets(24)]
    [[1, 2, 4, 8, 16, 24], [1, 2, 3, 6, 12, 20]]
    """
    powers = [1 << i for i in range(horizon.bit_length()) if 1 << i < horizon]
    ends = np.array([*powers, horizon], np.int64)
    return ends, (np.concatenate([[0], ends[:-1]]) + 1 + ends) // 2


def _chunks(size: int) -> Iterator[slice]:
    return (slice(i, min(i + _CHUNK, size)) for i in range(0, size, _CHUNK))
