"""Metrics: the one module that knows prometheus_client.

Names, labels and units are the contract dashboards and alerts are written against. No label ever
holds a key: the number of series depends on the settings and on the partitions held, not on the
data. Every series whose labels are known beforehand is there at zero from the start, so that a
rate sees its first increase.

The methods take plain numbers and are called by the service's loop; only `exposition` is called
from other threads.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from threading import Lock
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric, SummaryMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from stream_forecaster.errors import StoreFault
from stream_forecaster.events import Reason

PREFIX = "streamforecaster"

CommitResult = Literal["committed", "failed", "fenced"]
Origin = Literal["prior", "pool", "pool+lstm"]
Unusable = Literal["corrupt", "unreadable"]
Forecaster = Literal["published", "naive", "seasonal", "moving_average", "lstm"]

_HOP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_COMMIT_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_CHECKPOINT_SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300)
# From the record that made it due: a bucket's width and lateness are not in it, a backlog is.
_EVENT_TO_FORECAST_SECONDS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 180, 300, 600, 1800, 3600)


class Telemetry:
    """All metrics of a process.

    Args:
        registry: where they are registered; by default one of their own.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._registry = registry or CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._observe_stream()
        self._observe_state()
        self._observe_quality()

    def _observe_stream(self) -> None:
        counter = partial(Counter, namespace=PREFIX, registry=self._registry)
        gauge = partial(Gauge, namespace=PREFIX, registry=self._registry)
        histogram = partial(Histogram, namespace=PREFIX, registry=self._registry)
        self._events = counter("events", "Events read and counted.")
        self._rejects = counter("rejects", "Records that could not be events.", ["reason"])
        for reason in Reason:
            self._rejects.labels(reason)
        self._forecasts = counter("forecasts", "Forecasts published, by origin.", ["origin"])
        for origin in get_args(Origin):
            self._forecasts.labels(origin)
        self._forecasts_shed = counter(
            "forecasts_shed", "Forecasts not published, by why.", ["reason"]
        )
        self._forecasts_shed.labels("superseded")
        self._lag = gauge("lag_records", "Records of the partition not yet read.", ["partition"])
        self._watermark = gauge(
            "watermark_timestamp_seconds", "Event time the partition has reached.", ["partition"]
        )
        self._hop = histogram(
            "hop_seconds", "Time to close, score, learn and forecast.", buckets=_HOP_SECONDS
        )
        self._event_to_forecast = histogram(
            "event_to_forecast_seconds",
            "From the time of the record that made a forecast due to its commit.",
            buckets=_EVENT_TO_FORECAST_SECONDS,
        )
        self._commits = counter("commits", "Commits, by result.", ["result"])
        for result in get_args(CommitResult):
            self._commits.labels(result)
        self._commit_seconds = histogram(
            "commit_seconds", "Time to encode and commit what is due.", buckets=_COMMIT_SECONDS
        )
        self._rebalances = counter("rebalances", "Changes of the partitions held.")
        self._assigned = gauge("partitions_assigned", "Partitions held.")
        self._restoring = gauge("partitions_restoring", "Partitions held and not yet recovered.")
        self._heartbeat = gauge("heartbeat_timestamp_seconds", "When the loop last turned.")

    def _observe_state(self) -> None:
        counter = partial(Counter, namespace=PREFIX, registry=self._registry)
        gauge = partial(Gauge, namespace=PREFIX, registry=self._registry)
        histogram = partial(Histogram, namespace=PREFIX, registry=self._registry)
        self._keys = gauge("keys", "Keys held.")
        self._keys_limit = gauge("keys_limit", "Keys that the partitions held may have at most.")
        self._state_bytes = gauge("state_bytes", "Memory held by the state of all partitions.")
        self._keys_expired = counter("keys_expired", "Keys dropped after their time to live.")
        self._keys_forgotten = counter("keys_forgotten", "Keys dropped by a tombstone in the log.")
        self._keys_shed = counter("keys_shed", "Keys dropped to stay within the memory bound.")
        self._checkpoint = gauge(
            "checkpoint_timestamp_seconds", "When the last checkpoint was stored; 0: none yet."
        )
        self._checkpoint_age = gauge(
            "checkpoint_age_seconds",
            "Since a partition's state last was in a checkpoint, where that is longest ago.",
        )
        self._checkpoint_write = histogram(
            "checkpoint_write_seconds",
            "Time to write a checkpoint, stored or not.",
            buckets=_CHECKPOINT_SECONDS,
        )
        self._checkpoints_failed = counter(
            "checkpoints_failed", "Checkpoints not stored, or gone from the store.", ["reason"]
        )
        for fault in get_args(StoreFault):
            self._checkpoints_failed.labels(fault)
        self._checkpoints_unusable = counter(
            "checkpoints_unusable", "Stored checkpoints that cannot be used.", ["reason"]
        )
        for why in get_args(Unusable):
            self._checkpoints_unusable.labels(why)
        self._checkpoints_too_old = gauge(
            "checkpoints_too_old",
            "Partitions of whose last checkpoint the topic has lost the sequel: a restart stops.",
        )
        self._restore = gauge("restore_seconds", "Duration of the last recovery of a partition.")
        self._build = Info("build", "What is running.", namespace=PREFIX, registry=self._registry)

    def _observe_quality(self) -> None:
        counter = partial(Counter, namespace=PREFIX, registry=self._registry)
        gauge = partial(Gauge, namespace=PREFIX, registry=self._registry)
        self._absolute_error = _Totals(
            f"{PREFIX}_absolute_error",
            "Absolute errors of forecasts whose time has come. Of seasonal: the expert "
            "seasonal_week, what is usual at this time of the week.",
            ["resolution", "forecaster"],
        )
        self._pinball_loss = _Totals(
            f"{PREFIX}_pinball_loss",
            "Pinball losses of published quantiles, mean of all levels.",
            ["resolution"],
        )
        for totals in (self._absolute_error, self._pinball_loss):
            self._registry.register(totals)
        self._coverage = gauge(
            "interval_coverage_ratio",
            "Share of outcomes inside the central interval of this level.",
            ["resolution", "level"],
        )
        self._skill = gauge(
            "skill_ratio", "1 - error / error of the naive forecast.", ["resolution"]
        )
        self._weight = gauge(
            "expert_weight", "Mean weight of the expert in the fusion.", ["resolution", "expert"]
        )
        self._drift = counter("drift", "Drifts detected.", ["resolution"])
        self._training_steps = counter("training_steps", "Steps that trained the network.")

    def exposition(self, accept: str = "") -> tuple[str, bytes]:
        """The content type and the text of all metrics, in the best format `accept` allows.

        Called from the HTTP server's threads.
        """
        encode, content_type = choose_encoder(accept)
        return content_type, encode(self._registry)

    def build_info(self, *, version: str, pipeline: str, config_id: str) -> None:
        """Say what is running; once, at start."""
        self._build.info({"version": version, "pipeline": pipeline, "config_id": config_id})

    def events(self, n: int) -> None:
        """Count events read."""
        self._events.inc(n)

    def rejects(self, reason: str, n: int) -> None:
        """Count records that could not be events."""
        self._rejects.labels(reason).inc(n)

    def forecasts(self, origin: str, n: int) -> None:
        """Count forecasts published, by what made them ("pool", "pool+lstm")."""
        self._forecasts.labels(origin).inc(n)

    def forecasts_shed(self, reason: Literal["superseded"], n: int) -> None:
        """Count forecasts that were made and not published."""
        self._forecasts_shed.labels(reason).inc(n)

    def lag(self, records: Mapping[int, int]) -> None:
        """Set the records behind the end of each partition given."""
        for partition, n in records.items():
            self._lag.labels(partition).set(n)

    def watermark(self, partition: int, time_ms: int) -> None:
        """Set the event time a partition has reached, epoch ms."""
        self._watermark.labels(partition).set(time_ms / 1_000)

    def revoked(self, partitions: Iterable[int]) -> None:
        """Forget the series of partitions that now belong to another process."""
        for partition in partitions:
            self._lag.remove(partition)
            self._watermark.remove(partition)

    def hops(self, n: int, seconds: float) -> None:
        """Observe the computation of `n` hops that took `seconds` together, each for as long."""
        for _ in range(n):  # the library has no observation with a weight
            self._hop.observe(seconds / n)

    def event_to_forecast(self, seconds: float) -> None:
        """Observe, at a forecast's commit, the age of the record that made it due."""
        self._event_to_forecast.observe(seconds)

    def commit(self, result: CommitResult, seconds: float) -> None:
        """Count a commit, and observe how long it took, encoding included."""
        self._commits.labels(result).inc()
        self._commit_seconds.observe(seconds)

    def rebalance(self) -> None:
        """Count a change of the partitions held."""
        self._rebalances.inc()

    def partitions(self, *, assigned: int, restoring: int) -> None:
        """Set how many partitions are held, and how many of those are still being recovered."""
        self._assigned.set(assigned)
        self._restoring.set(restoring)

    def heartbeat(self, timestamp_s: float) -> None:
        """Set when the loop last turned, epoch seconds."""
        self._heartbeat.set(timestamp_s)

    def keys(self, n: int, limit: int) -> None:
        """Set the number of keys held, and how many there may be."""
        self._keys.set(n)
        self._keys_limit.set(limit)

    def state_bytes(self, n: int) -> None:
        """Set the memory held by all shards."""
        self._state_bytes.set(n)

    def keys_expired(self, n: int) -> None:
        """Count keys dropped after their time to live."""
        self._keys_expired.inc(n)

    def keys_forgotten(self, n: int) -> None:
        """Count keys dropped by a tombstone in the log."""
        self._keys_forgotten.inc(n)

    def keys_shed(self, n: int) -> None:
        """Count keys dropped to stay within the memory bound."""
        self._keys_shed.inc(n)

    def checkpoint(self, timestamp_s: float) -> None:
        """Set when the last checkpoint was stored, epoch seconds."""
        self._checkpoint.set(timestamp_s)

    def checkpoint_age(self, seconds: float) -> None:
        """Set how long ago the state was last in a checkpoint; 0: nothing has come since."""
        self._checkpoint_age.set(seconds)

    def checkpoint_write(self, seconds: float) -> None:
        """Observe how long a write of a checkpoint took, whether it succeeded or not."""
        self._checkpoint_write.observe(seconds)

    def checkpoint_failed(self, reason: StoreFault) -> None:
        """Count a checkpoint that could not be stored, or was found to be gone."""
        self._checkpoints_failed.labels(reason).inc()

    def checkpoint_unusable(self, reason: Unusable) -> None:
        """Count a stored checkpoint that recovery had to pass over."""
        self._checkpoints_unusable.labels(reason).inc()

    def checkpoints_too_old(self, partitions: int) -> None:
        """Set of how many partitions the last checkpoint could not be gone on from."""
        self._checkpoints_too_old.set(partitions)

    def restore(self, seconds: float) -> None:
        """Set how long the recovery of a partition took."""
        self._restore.set(seconds)

    def absolute_error(
        self, resolution: str, forecaster: Forecaster, *, total: float, n: int
    ) -> None:
        """Add `n` landed absolute errors that sum to `total`."""
        self._absolute_error.add((resolution, forecaster), total, n)

    def pinball_loss(self, resolution: str, *, total: float, n: int) -> None:
        """Add `n` landed pinball losses, means over the quantile levels, that sum to `total`."""
        self._pinball_loss.add((resolution,), total, n)

    def interval_coverage(self, resolution: str, level: float, ratio: float) -> None:
        """Set the share of outcomes inside the central interval of `level` (0.8 for 80 %)."""
        self._coverage.labels(resolution, f"{level:g}").set(ratio)

    def skill(self, resolution: str, ratio: float) -> None:
        """Set 1 - error / naive error: 0 is no better than naive, 1 is perfect."""
        self._skill.labels(resolution).set(ratio)

    def expert_weight(self, resolution: str, expert: str, weight: float) -> None:
        """Set the mean weight of an expert over all keys."""
        self._weight.labels(resolution, expert).set(weight)

    def training_steps(self, n: int) -> None:
        """Count steps that trained the network."""
        self._training_steps.inc(n)

    def drift(self, resolution: str, n: int) -> None:
        """Count drifts detected."""
        self._drift.labels(resolution).inc(n)


class _Totals(Collector):
    """A summary that grows by whole batches; the library's own takes one observation at a time."""

    def __init__(self, name: str, documentation: str, labels: list[str]) -> None:
        self._name, self._documentation, self._labels = name, documentation, labels
        self._totals: dict[tuple[str, ...], tuple[float, int]] = {}
        self._lock = Lock()

    def add(self, labels: tuple[str, ...], total: float, n: int) -> None:
        with self._lock:
            total_before, n_before = self._totals.get(labels, (0.0, 0))
            self._totals[labels] = total_before + total, n_before + n

    def describe(self) -> Iterable[Metric]:
        yield self._family()

    def collect(self) -> Iterable[Metric]:
        family = self._family()
        with self._lock:
            for labels, (total, n) in self._totals.items():
                family.add_metric(labels, n, total)
        yield family

    def _family(self) -> SummaryMetricFamily:
        return SummaryMetricFamily(self._name, self._documentation, labels=self._labels)
