"""The scoreboard: what turns and shards come to as metrics.

Turns are counted when they are committed, not before: a turn whose commit failed is taken again,
and must not count twice.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.config import Settings
from stream_forecaster.edge.telemetry import Forecaster, Telemetry
from stream_forecaster.scoring import NAIVE, PUBLISHED, Score
from stream_forecaster.shard import Shard, Turn

Float64 = NDArray[np.float64]

_SHOWN: dict[Forecaster, str] = {
    "published": PUBLISHED,
    "naive": NAIVE,
    "moving_average": "moving_average",
    "seasonal": "seasonal_week",
    "lstm": "lstm",
}
"""The metric's forecasters, and what the scores call them."""
_SCORE_MEMORY = 0.995
"""How much a running score keeps when a bucket has landed in all partitions: ratios speak of the
last few hundred buckets, of however many partitions, and however many of them a turn takes."""


class Scoreboard:
    """Counts for one process; the only state is the running score of each resolution.

    Attributes:
        scores: that, finest first; empty before anything was committed.
        weights: per resolution, (M,) the mean weight of each expert when it was last shown.
    """

    def __init__(self, telemetry: Telemetry, settings: Settings) -> None:
        self._telemetry = telemetry
        self._names = [f"{r.step_ms // 1000}s" for r in settings.resolutions]
        finest_ms = settings.resolutions[0].step_ms
        self._buckets_of_hop = [finest_ms / r.step_ms for r in settings.resolutions]
        self._max_keys = settings.state.max_keys
        for name in self._names:
            telemetry.drift(name, 0)
        self.scores: list[Score] = []
        self.weights: list[Float64] = []

    def count(self, turn: Turn, partitions: int) -> None:
        """Add a turn that has been committed, of one of so many partitions."""
        self._telemetry.events(turn.events)
        for reason, n in Counter(rejected.reason.value for rejected in turn.rejects).items():
            self._telemetry.rejects(reason, n)
        self._telemetry.keys_forgotten(len(turn.forgotten))
        self._telemetry.keys_shed(len(turn.shed))
        for forecast in turn.forecasts:
            self._telemetry.keys_expired(len(forecast.expired))
            for origin, n in Counter(forecast.origins).items():
                self._telemetry.forecasts(origin, n)
        self._telemetry.training_steps(turn.training_steps)
        if turn.hops:
            self._count_scores(turn, partitions)

    def show(self, shards: Sequence[Shard], lag: Mapping[int, int]) -> None:
        """Set what is held now: keys, bytes, watermarks, weights; and the lag."""
        self._telemetry.keys(sum(shard.keys for shard in shards), len(shards) * self._max_keys)
        self._telemetry.state_bytes(sum(shard.state_bytes for shard in shards))
        self._telemetry.lag(lag)
        for shard in shards:
            if shard.watermark_ms is not None:
                self._telemetry.watermark(shard.partition, shard.watermark_ms)
        self.weights = []
        for i, name in enumerate(self._names if shards else ()):
            pools = [shard.pools[i] for shard in shards]
            weights = np.mean([pool.mean_weights() for pool in pools], axis=0)
            self.weights.append(weights)
            for expert, weight in zip(pools[0].experts, weights.tolist(), strict=True):
                self._telemetry.expert_weight(name, expert, weight)

    def _count_scores(self, turn: Turn, partitions: int) -> None:
        scores = self.scores or [score * 0.0 for score in turn.scores]
        # Of a coarse resolution a turn that lands anything lands at least one bucket.
        landed_buckets = [max(1.0, turn.hops * part) for part in self._buckets_of_hop]
        self.scores = [
            old * (_SCORE_MEMORY ** (n / partitions) if new.count.any() else 1.0) + new
            for old, new, n in zip(scores, turn.scores, landed_buckets, strict=True)
        ]
        rows = zip(self._names, turn.scores, self.scores, turn.drifts, strict=True)
        for name, new, running, drifts in rows:
            if drifts:
                self._telemetry.drift(name, drifts)
            if landed := int(new.count.sum()):
                self._show_scores(name, new, running, landed)

    def _show_scores(self, name: str, new: Score, running: Score, landed: int) -> None:
        for forecaster, scored_as in _SHOWN.items():
            if scored_as in new.forecasters:
                total = float(new.absolute[new.forecasters.index(scored_as)].sum())
                self._telemetry.absolute_error(name, forecaster, total=total, n=landed)
        pinball = float(new.pinball.mean(axis=1).sum())
        self._telemetry.pinball_loss(name, total=pinball, n=landed)
        self._telemetry.skill(name, running.skill())
        for level, ratio in running.coverage().items():
            self._telemetry.interval_coverage(name, level, ratio)
