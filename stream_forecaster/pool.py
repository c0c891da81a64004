"""One resolution of a shard: its window, its experts, and what was learned of their forecasts.

Theory of operation. Everything happens when a bucket closes, in this order:

1. *score*: the closed values are the truth for forecasts issued 1, 2, 3, 6, 12, ... buckets ago;
2. *learn*: the landed losses move the fusion's weights and the calibration's quantiles, and the
   experts take in the values;
3. *issue*: every key is forecast anew, and what is said is kept until its time comes (`due`).

So a forecast is only ever judged by data that it has not seen. Between saying and keeping, the
resolutions agree on their means (`scales`): what is kept and judged is what is published.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_forecaster import experts
from stream_forecaster.agreement import moved_along
from stream_forecaster.baselines import seasonal_naive
from stream_forecaster.calendar import DAY_MS, Calendar
from stream_forecaster.calibration import Calibration, Mixture
from stream_forecaster.compiled import compiled
from stream_forecaster.config import Resolution, Settings
from stream_forecaster.drift import Drift
from stream_forecaster.due import Due, Landed, Matured, Said
from stream_forecaster.fusion import Fusion
from stream_forecaster.keys import KeyTable, Part, arrays_of, restore_all
from stream_forecaster.lstm import ABSOLUTE, RESIDUAL, Lstm, Seats, View
from stream_forecaster.negative_binomial import NegativeBinomial, places
from stream_forecaster.paths import Opinion, Paths
from stream_forecaster.quantile_regression import QuantileRegression
from stream_forecaster.scoring import NAIVE, POOL, PUBLISHED, Score, central_intervals
from stream_forecaster.spread import Spread
from stream_forecaster.standing import Statement
from stream_forecaster.windows import Window

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Slots = Int64 | slice

_CHUNK = 4096
"""Slots handled at once: bounds the temporaries and keeps them in the cache."""
_MOVED = 0.1
"""A forecast has moved when it differs by so many of its own expected errors."""
_QUALITY_DISCOUNT = 0.98
_UNASKED = np.empty(0)
_NO_NETWORK = np.empty((0, 0))
_NO_INTERVAL = np.empty((0, 2))
_KEPT, _LEAN_KEPT = 8, 1
"""Forecasts of a horizon bucket that are kept until they land."""
_LEAN_GROWTH = 8
"""A horizon bucket ends so many times as far ahead as the one before; else at twice as far."""


@dataclass(frozen=True, slots=True)
class Closed:
    """What closing a bucket came to.

    Attributes:
        score: of what landed.
        drifted: was a drift detected?
        truth: (K,) the values.
        matured: what landed, one by one, nearest horizon first; only where it is published.
    """

    score: Score
    drifted: bool
    truth: Float64
    matured: tuple[Matured, ...]


class Pool:
    """All state of one resolution, for all slots of the shard.

    Attributes:
        resolution: which.
        window: its rings.
        bucket: (H,) the horizon bucket of each step.
    """

    def __init__(
        self,
        table: KeyTable,
        calendar: Calendar,
        resolution: Resolution,
        settings: Settings,
        seats: Seats | None = None,
    ) -> None:
        """Add the columns of this resolution to `table`.

        Args:
            table: the shard's.
            calendar: of the input's time zone.
            resolution: which.
            settings: all of them.
            seats: at the shard's network; None: the experts alone.
        """
        self.resolution = resolution
        self.window = Window(
            table,
            calendar,
            resolution,
            open_span_ms=settings.input.allowed_lateness_ms + settings.resolutions[0].step_ms,
            is_mean=settings.input.aggregate == "mean",
            is_count=settings.input.aggregate == "count",
        )
        self._table, self._calendar = table, calendar
        self._levels = settings.output.quantiles
        self._tells_scores = bool(settings.output.scores_topic)
        self._is_lean = settings.is_lean
        self._is_count = settings.input.aggregate == "count"
        self._experts = experts.pool(
            table,
            calendar,
            self.window,
            resolution,
            lean=self._is_lean,
            river=settings.model.river,
        )
        self._baselines = seasonal_naive(calendar, self.window)
        self._names = tuple(expert.name for expert in self._experts)
        growth = _LEAN_GROWTH if self._is_lean else 2
        day = max(DAY_MS // resolution.step_ms, 1)
        ends, self._horizons = horizon_buckets(resolution.horizon, growth, day)
        self._ahead = np.arange(1, resolution.horizon + 1)
        self.bucket = np.searchsorted(ends, self._ahead)
        self._name = f"pool.{resolution.step_ms}"
        self._spread = Spread(table, self._name)
        self._naive, self._fast = (
            self._names.index(NAIVE),
            self._experts[self._names.index("ewma_fast")],
        )
        self._interval = list(central_intervals(self._levels).get(0.8, ()))
        self._drift = Drift()
        self._weighed: tuple[int, Float64] | None = None
        self._add_fusion(seats, settings)
        self._add_calibration()
        add = table.add
        add(f"{self._name}.sent", (len(self._horizons),), dtype=np.float32, fill=np.nan)
        add(f"{self._name}.quality", (4,), dtype=np.float32)  # |error|, naive's, covered, weight
        add(f"{self._name}.surprise", dtype=np.float32)

    def _add_fusion(self, seats: Seats | None, settings: Settings) -> None:
        buckets = len(self._horizons)
        self._fusion = Fusion(self._table, self._name, len(self._experts), buckets)
        self._lstm: Lstm | None = None
        if seats is not None:
            table, calendar, window = self._table, self._calendar, self.window
            self._lstm = Lstm(seats, table, calendar, window, self._spread, settings, buckets)

    def _add_calibration(self) -> None:
        table, name, levels = self._table, self._name, self._levels
        buckets, is_count = len(self._horizons), self._is_count
        self._calibration = Calibration(table, name, levels, buckets, is_count=is_count)
        self._distribution = NegativeBinomial(levels, buckets) if is_count else None
        self._regression: QuantileRegression | None = None
        if not is_count:
            self._regression = QuantileRegression(
                table,
                name,
                self._calendar,
                self.resolution.step_ms,
                levels,
                self._horizons,
                experts=len(self.experts),
            )
        prior = [1.0] * (1 + is_count) + ([self._lstm.share] if self._lstm else [])
        self._mixture = Mixture(table, name, levels, buckets, prior=prior, is_count=is_count)
        self._due = Due(
            table,
            name,
            self._horizons,
            forecasters=len(self.experts),
            levels=len(levels),
            members=(1 if is_count else 2) if self._lstm else 0,
            whole=is_count,
            most=_LEAN_KEPT if self._is_lean else _KEPT,
        )

    @property
    def experts(self) -> tuple[str, ...]:
        """Who has a weight in the published forecast: the pool's experts, then the network."""
        return (*self._names, ABSOLUTE, RESIDUAL) if self._lstm else self._names

    @property
    def forecasters(self) -> tuple[str, ...]:
        """Whose errors a score reports; the published forecast first."""
        baselines = (baseline.name for baseline in self._baselines)
        return (PUBLISHED, *self.experts, POOL, *baselines)

    @property
    def drifting(self) -> bool:
        """Was a drift detected in the last 60 buckets?"""
        return self._drift.drifting

    def no_score(self) -> Score:
        """A score of nothing."""
        return Score.zero(self.forecasters, self._horizons.tolist(), self._levels)

    # -- score and learn -------------------------------------------------------------------------

    def close(self) -> Closed:
        """Close one bucket: score and learn. What is said next is for `issue`."""
        index = self.window.closed
        baselines = [baseline.said(index, self._horizons) for baseline in self._baselines]
        truth = self.window.close()
        score, losses, spreads = self.no_score(), [], self._spread()
        matured: list[Matured] = []
        if self._lstm:
            self._lstm.land(index, truth)
        for group in self._due.land(index, truth):
            self._score(score, group, baselines)
            if self._tells_scores:
                matured.append(self._matured(index, group))
            loss = self._learn(index, group, spreads[group.slots])
            if len(loss):
                losses.append(float(loss.mean()))
        return Closed(score, self._settle(index, truth, losses), truth, tuple(matured))

    def skip(self, until: int) -> None:
        """Close all buckets before `until` at once as silent; what would land there is not scored.

        For a silence longer than is remembered, after its open buckets were closed one by one.
        """
        self.window.skip(until)
        self._due.forget()

    def _score(self, score: Score, group: Landed, baselines: list[list[Float64]]) -> None:
        """Baselines: what each had said at each of the G horizons, (K,)."""
        said = group.said
        m, count = len(said.predictions), len(group.slots)
        points = np.empty((count, m + 2 + len(baselines))).T  # key by key, as a loop takes them
        points[0], points[1 : m + 1] = said.mean, said.predictions
        points[m + 1] = self._pooled(said)
        for point, baseline in zip(points[m + 2 :], baselines, strict=True):
            point[:] = baseline[group.bucket][group.slots]
        score.land(group.bucket, group.truth, points, said.quantiles)

    def _matured(self, index: int, group: Landed) -> Matured:
        ahead, step_ms = int(self._horizons[group.bucket]), self.resolution.step_ms
        start_ms, issued_ms = (
            int(self._calendar.start(i, step_ms)) for i in (index, index - ahead + 1)
        )
        mean, quantiles = group.said.mean, group.said.quantiles
        return Matured(
            step_ms, start_ms, issued_ms, ahead, group.slots, group.truth, mean, quantiles
        )

    def _learn(self, index: int, group: Landed, spread: Float64) -> Float64:
        """From one horizon bucket: the losses (B,) of the pool's path, in calibration's units.

        One at a time: what they had said of all keys at all horizons would take a lot of memory.
        """
        self._learn_weights(index, group, spread)
        self._learn_quantiles(index, group, spread)
        if group.bucket == 0:
            self._note_quality(group)
        pooled = self._pooled(group.said)
        loss: Float64 = np.abs(group.truth - pooled) / self._calibration.unit(pooled, spread)
        return loss

    def _pooled(self, said: Said) -> Float64:
        """The pool's own path, before the network and the agreement across scales."""
        return np.maximum(said.pooled, 0.0) if self._is_count else said.pooled

    def _settle(self, index: int, truth: Float64, losses: list[float]) -> bool:
        """All horizons have learned: what is left to do. Was a drift detected?"""
        self._spread.learn(truth)
        self._fusion.settle(index)
        if self._distribution:
            self._distribution.settle(index)
        if self._regression:
            self._regression.settle(index)
        if self._lstm:
            self._lstm.settle(index)
        for expert in self._experts:
            expert.learn(index, truth)
        drifted = bool(losses) and self._drift.update(float(np.mean(losses)))
        if drifted:
            self._forget()
        return drifted

    def _forget(self) -> None:
        """Count what was learned of forecasts for a tenth.

        Not the network's shares, which would go back to what synthetic worlds justify, nor the
        regression of quantiles: both were worse for it. What is learned of published errors is
        forgotten as well, though a drift is one of the pool's path: a network that goes astray is
        dealt with by its shares.
        """
        for part in (self._fusion, self._calibration, self._mixture):
            part.forget()
        if self._distribution:
            self._distribution.forget()

    def _learn_weights(self, index: int, group: Landed, spread: Float64) -> None:
        """Of the experts, then of the network, which is also told of the pool's errors."""
        said, m = group.said, len(self._names)
        self._fusion.learn(group.bucket, group.slots, said.predictions[:m], group.truth, spread)
        if not self._lstm:
            return
        missed, deviation = group.truth - said.pooled, said.predictions[m:] - said.pooled
        self._lstm.learn_shares(group.bucket, group.slots, deviation / spread, missed / spread)
        if group.bucket == 0:
            path, bucket = said.pooled[:, None], np.array([group.bucket])
            unit = self.expected_error(group.slots, path, bucket)[:, 0]
            self._lstm.note(index, group.slots, missed / unit)

    def _learn_quantiles(self, index: int, group: Landed, spread: Float64) -> None:
        """The mixture of members, then the members themselves.

        Members of counts are judged by what they would say today. A regression has more to learn
        by heart, and is judged by what it said when it had not heard of errors like these.
        """
        said, slots, truth, bucket = group.said, group.slots, group.truth, group.bucket
        size = self._calibration.expected_error(
            slots, said.mean[:, None], spread, np.array([bucket])
        )[:, 0]
        if self._distribution:
            shapes, tables = self._calibration.shape, self._distribution.tables
            members = shapes, places(said.mean), tables, said.outside if self._lstm else _NO_NETWORK
            self._mixture.learn_counts(bucket, slots, truth, (said.mean, size), members)
            self._distribution.learn(bucket, said.mean, truth)
        else:  # one alone, and nothing to weigh; or the network beside it
            of_real = (said.inside, said.outside) if self._lstm else (said.quantiles,)
            self._mixture.learn(bucket, slots, truth, of_real, (said.quantiles, size))
        if self._regression:
            told = said.mean, size, said.predictions
            self._regression.learn(bucket, slots, index, truth, told)
        unit = self._calibration.unit(said.mean, spread)
        self._calibration.learn(bucket, slots, truth - said.mean, unit)

    def _note_quality(self, group: Landed) -> None:
        """One step ahead: errors, coverage and surprise of each key."""
        said, naive = group.said, group.said.predictions[self._naive]
        quantiles = said.quantiles[:, self._interval] if self._interval else _NO_INTERVAL
        _note(
            group.slots,
            group.truth,
            said.mean,
            said.unit,
            naive,
            quantiles,
            self._column("quality"),
            self._column("surprise"),
        )

    # -- issue -----------------------------------------------------------------------------------

    def issue(self) -> None:
        """Forecast every live key by this resolution alone, and keep what is said."""
        self.look()
        for rows in chunks(self._table.size):
            opinion = self.think(rows, self._horizons)
            self.keep(rows, opinion, opinion.mean)
        self.train()

    def look(self) -> None:
        """Let the network look at the bucket just closed; before anyone thinks."""
        if self._lstm:
            self._lstm.look(np.flatnonzero(self._table.live))

    def think(self, slots: Slots, ahead: Int64 | None = None) -> Opinion:
        """What is to be said of `slots` (B,), `ahead` (H,) steps after the newest closed bucket."""
        index = self.window.closed - 1
        ahead = self._ahead if ahead is None else ahead
        bucket = self.bucket[ahead - 1]
        predictions, pooled, weights = self._fused(slots, ahead)
        # Of the steps that are asked for, so many are in each horizon bucket.
        part = np.bincount(bucket, minlength=len(self._horizons)) / len(bucket)
        mean, spoken, outside = pooled, _averaged(weights, part), None
        if self._lstm:
            rows, by_key = self._table.rows(slots), predictions.transpose(1, 0, 2)
            asked = self._lstm.asked(rows)
            view = self._view(rows[asked], ahead, by_key[asked], pooled[asked])
            *paths, said = self._lstm.answer(view)
            path, share = self._lstm.let_in(view, paths)
            theirs = weights[asked] * (1 - share.sum(axis=2, keepdims=True))
            predictions[-2:], mean = np.nan, pooled.copy()
            predictions[-2, asked], predictions[-1, asked] = paths
            outside = np.full((*mean.shape, len(self._levels)), np.nan)
            spoken = np.column_stack([spoken, np.zeros((len(rows), 2))])
            mean[asked], outside[asked] = path, np.maximum(said, 0.0) if self._is_count else said
            spoken[asked] = _averaged(np.concatenate([theirs, share], axis=2), part)
        if self._is_count:
            mean = np.maximum(mean, 0.0)
        return Opinion(slots, index + ahead, bucket, predictions, pooled, mean, spoken, outside)

    def keep(self, rows: slice, opinion: Opinion, mean: Float64) -> None:
        """Keep what is said of `rows`, at G or all H steps, until its time comes.

        Args:
            rows: whose opinion it is.
            opinion: of this resolution.
            mean: (B, G or H) what is published, after all resolutions have agreed.
        """
        if mean.shape[1] != len(self._horizons):
            opinion, mean = opinion.at(self._horizons), mean.take(self._horizons - 1, axis=1)
        outside = np.empty((*mean.shape, 0)) if opinion.outside is None else opinion.outside
        if self._is_count:
            quantiles, inside = self._of_counts(opinion, mean), outside[..., :0]
        else:
            inside, quantiles = self._of_real_values(opinion)
            inside = inside if self._lstm else outside[..., :0]
            inside, quantiles = (self._moved(of, opinion.mean, mean) for of in (inside, quantiles))
        said = Said(
            np.where(self._table.live[rows, None], mean, np.nan),
            self.expected_error(opinion.slots, mean, opinion.bucket),
            opinion.predictions,
            opinion.pooled,
            quantiles,
            inside,
            self._moved(outside, opinion.mean, mean),
        )
        self._due.keep(rows, self.window.closed - 1, said)

    def statement(self, opinion: Opinion) -> Statement:
        """What an opinion comes to."""
        return Statement(opinion.mean, self.quantiles(opinion, opinion.mean), opinion.weights)

    def some(self, opinion: Opinion, rows: Int64, slots: Int64) -> Opinion:
        """What `quantiles` asks of an opinion of `slots`, which are `rows` of its arrays."""
        if len(rows) == len(opinion.mean):
            return opinion
        outside = opinion.outside
        return replace(
            opinion,
            slots=slots,
            predictions=opinion.predictions[:, rows[: None if self._regression else 0]],
            mean=opinion.mean[rows],
            weights=opinion.weights[rows],
            outside=None if outside is None else outside[rows],
        )

    def quantiles(self, opinion: Opinion, agreed: Float64) -> Float64:
        """Those of an opinion (B, H, Q), moved along as its mean became `agreed` (B, H)."""
        if self._is_count:
            return self._of_counts(opinion, agreed)
        return self._moved(self._of_real_values(opinion)[1], opinion.mean, agreed)

    def _moved(self, quantiles: Float64, mean: Float64, agreed: Float64) -> Float64:
        return moved_along(quantiles, mean, agreed, is_count=self._is_count)

    def expected_error(self, slots: Slots, path: Float64, bucket: Int64 | None = None) -> Float64:
        """(B, H) mean |residual| to expect of `path` (B, H)."""
        bucket = self.bucket if bucket is None else bucket
        spread = _UNASKED if self._is_count else self._spread(slots)
        return self._calibration.expected_error(slots, path, spread, bucket)

    def train(self) -> None:
        """Take samples of what is known now and train the network, if it is time to."""
        if not self._lstm:
            return
        slots = self._lstm.due(self.window.closed - 1, lifted=self.drifting)
        if slots is None or not len(slots):
            return
        predictions, pooled, _ = self._fused(slots, self._ahead)
        self._lstm.learn(self._view(slots, self._ahead, predictions.transpose(1, 0, 2), pooled))

    def _fused(self, slots: Slots, ahead: Int64) -> tuple[Float64, Float64, Float64]:
        """What forecasters say (M, B, H), with room for the network's, and what comes of it.

        That is the path (B, H), and the experts' weights (B, G, M).
        """
        index, bucket = self.window.closed - 1, self.bucket[ahead - 1]
        rows, m = self._table.rows(slots), len(self._experts)
        # Key by key, as loops go through them.
        predictions = np.empty((len(rows), len(self.experts), len(ahead))).transpose(1, 0, 2)
        for said, expert in zip(predictions[:m], self._experts, strict=True):
            said[:] = expert.predict(slots, index, ahead)
        pooled, weights = self._fusion.fuse(slots, predictions[:m], bucket)
        return predictions, pooled, weights.transpose(1, 2, 0)

    def _of_counts(self, opinion: Opinion, agreed: Float64) -> Float64:
        """(B, H, Q) whole numbers, moved along as the opinion's mean became `agreed` (B, H)."""
        assert self._distribution  # noqa: S101  (it is there if values are counts)
        slots, mean, bucket = opinion.slots, opinion.mean, opinion.bucket
        outside = np.empty((0, 0, 0)) if opinion.outside is None else opinion.outside
        return self._mixture.of_counts(
            slots,
            (mean, self.expected_error(slots, mean, bucket), agreed),
            (self._calibration.shape, places(mean), self._distribution.tables, outside),
            bucket,
        )

    def _of_real_values(self, opinion: Opinion) -> tuple[Float64, Float64]:
        """(B, H, Q) around the opinion's mean: the first member's, and those of the mixture."""
        slots, mean, bucket = opinion.slots, opinion.mean, opinion.bucket
        size = self.expected_error(slots, mean, bucket)
        members = [self._calibration.quantiles(mean, size, bucket)]
        if self._regression:  # which is believed as it learns
            told = mean, size, opinion.predictions
            regressed = self._regression.quantiles(slots, opinion.index, told, bucket)
            trust = self._regression.trust[bucket][:, None]
            members[0] += trust * (regressed - members[0])
        if opinion.outside is not None:
            members.append(opinion.outside)
        return members[0], self._mixture.quantiles(slots, members, size, bucket)

    def _view(self, slots: Int64, ahead: Int64, predictions: Float64, pooled: Float64) -> View:
        bucket = self.bucket[ahead - 1]
        return View(
            slots,
            self.window.closed - 1,
            ahead,
            bucket,
            self._names,
            predictions,
            self._fusion.losses(slots),
            pooled,
            self.expected_error(slots, pooled, bucket),
        )

    # -- publish ---------------------------------------------------------------------------------

    def paths(self, slots: Int64, said: Statement) -> Paths:
        """The forecast of `slots` (B,): what is said of them, after all resolutions have agreed."""
        first, step_ms = self.window.closed, self.resolution.step_ms
        ends = np.array([first, first + self.resolution.horizon])
        start_ms, end_ms = self._calendar.start(ends, step_ms).tolist()
        return Paths(
            step_ms,
            start_ms,
            end_ms,
            said.mean,
            said.quantiles,
            self.window.moving_average(slots),
            self._fast.predict(slots, first - 1, self._ahead[:1])[:, 0],
            said.weights,
            self.experts,
        )

    def moved(self, slots: Slots, mean: Float64) -> NDArray[np.bool_]:
        """(B,) whose mean (B, H) is not what was last sent, by a tenth of its expected error."""
        now, bucket = mean.take(self._horizons - 1, axis=1), np.arange(len(self._horizons))
        unit = self.expected_error(slots, now, bucket)
        moved = np.empty(len(now), np.bool_)
        _differ(now, self._column("sent")[slots], unit, moved)
        return moved

    def mark_sent(self, slots: Int64, mean: Float64) -> None:
        """Note that the forecasts of slots (B,) are published, with these means (B, H)."""
        self._column("sent")[slots] = mean.take(self._horizons - 1, axis=1)

    # -- look at ---------------------------------------------------------------------------------

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
        """(M,) the experts' weights, averaged over horizon buckets and live keys.

        This is asked every second: of very many keys some thousand speak for all, and what they
        said stands until another bucket has closed.
        """
        if self._weighed is None or self._weighed[0] != self.window.closed:
            self._weighed = self.window.closed, self._weigh()
        return self._weighed[1]

    def _weigh(self) -> Float64:
        live = np.flatnonzero(self._table.live)
        if not len(live):
            return np.full(len(self.experts), 1 / len(self.experts))
        mean: Float64 = self._mixed(live[:: -(-len(live) // _CHUNK)]).mean(axis=(1, 2))
        return mean

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is not in the table, for the checkpoint."""
        return arrays_of(self._parts())

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take `arrays` back."""
        restore_all(self._parts(), arrays)

    def _parts(self) -> Iterator[tuple[str, Part]]:
        """All that has state outside of the table."""
        yield "window", self.window
        yield "spread", self._spread
        yield "fusion", self._fusion
        yield "calibration", self._calibration
        yield "mixture", self._mixture
        yield "drift", self._drift
        if self._distribution:
            yield "distribution", self._distribution
        if self._regression:
            yield "regression", self._regression
        if self._lstm:
            yield "lstm", self._lstm
        for expert in self._experts:
            yield expert.name, expert

    def _mixed(self, slots: Int64) -> Float64:
        """(M, B, G) the weights of all who have one; the network's where it is asked."""
        weights = self._fusion.weights(slots)
        return self._lstm.beside(weights, slots) if self._lstm else weights

    def _column(self, name: str) -> NDArray[Any]:
        return self._table[f"{self._name}.{name}"]


def horizon_buckets(horizon: int, growth: int = 2, day: int = 1) -> tuple[Int64, Int64]:
    """The last step of each of G horizon buckets, and its middle, which represents it.

    One ends a day ahead, and none that has other steps is represented by whole days: so far ahead
    the last value is of the same hour, and better than it is anywhere else in the bucket.

    Args:
        horizon: steps ahead.
        growth: a bucket ends at most so many times as far ahead as the one before.
        day: steps in a day.

    >>> [part.tolist() for part in horizon_buckets(24)]
    [[1, 2, 4, 8, 16, 24], [1, 2, 3, 6, 12, 20]]
    >>> [part.tolist() for part in horizon_buckets(96, day=24)]
    [[1, 2, 4, 8, 16, 24, 48, 96], [1, 2, 3, 6, 12, 20, 36, 60]]
    >>> [part.tolist() for part in horizon_buckets(24, 8)]
    [[1, 8, 24], [1, 5, 16]]
    """
    powers = [growth**i for i in range(max(horizon, day).bit_length())]
    ends = [*(p for p in powers if p < day), *(day * p for p in powers)]
    end = np.array([*(e for e in ends if e < horizon), horizon], np.int64)
    first = np.concatenate([[0], end[:-1]]) + 1
    middle = (first + end) // 2
    return end, np.where(middle % day, middle, np.maximum(middle - day // 2, first))


def chunks(size: int) -> Iterator[slice]:
    """Slices of so many slots that their temporaries stay small."""
    return (slice(i, min(i + _CHUNK, size)) for i in range(0, size, _CHUNK))


def _averaged(weights: Float64, part: Float64) -> Float64:
    """Weights (B, G, M), averaged by parts (G,): (B, M)."""
    average = np.empty((len(weights), weights.shape[2]))
    _average(weights, part, average)
    return average


# -- loops over keys -----------------------------------------------------------------------------


@compiled("f8:3 f8:1 > f8:2")
def _average(weights: Float64, part: Float64, average: Float64) -> None:
    """Weights (B, G, M), averaged by parts (G,)."""
    for b in range(len(weights)):
        for m in range(weights.shape[2]):
            average[b, m] = 0.0
        for g in range(len(part)):
            for m in range(weights.shape[2]):
                average[b, m] += part[g] * weights[b, g, m]


@compiled("i8:1 f8:1 f8:1 f8:1 f8:1 f8:2 > f4:2 f4:1")
def _note(  # noqa: PLR0913, PLR0917  (what is known of a key's quality)
    slots: Int64,
    truth: Float64,
    mean: Float64,
    unit: Float64,
    naive: Float64,
    interval: Float64,
    quality: NDArray[np.float32],
    surprise: NDArray[np.float32],
) -> None:
    """Note of slots (B,) how a mean did beside a naive one; was the truth in the interval (B, 2)?

    Where there is no interval, (0, 2), nobody knows.
    """
    for b in range(len(slots)):
        kept, residual, covered = quality[slots[b]], truth[b] - mean[b], np.nan
        if len(interval):
            covered = np.float64(interval[b, 0] <= truth[b] <= interval[b, 1])
        error = abs(residual)
        lost = error if np.isnan(naive[b]) else abs(truth[b] - naive[b])  # nothing said
        for i, news in enumerate((error, lost, covered, 1.0)):
            kept[i] = np.float32(np.float32(_QUALITY_DISCOUNT) * kept[i]) + news
        surprise[slots[b]] = residual / unit[b]


@compiled("f8:2 f4:2 f8:2 > b1:1")
def _differ(
    mean: Float64, sent: NDArray[np.float32], unit: Float64, moved: NDArray[np.bool_]
) -> None:
    """Is a mean (B, G) not what was sent, by units (B, G)? Never sent, which is NaN, is moved."""
    for b in range(len(mean)):
        moved[b] = False
        for g in range(mean.shape[1]):
            if not abs(mean[b, g] - sent[b, g]) <= _MOVED * unit[b, g]:
                moved[b] = True
