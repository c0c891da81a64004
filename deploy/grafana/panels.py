"""What the dashboard shows: rows of panels, marks across them, and variables.

A panel is a title, what it says to somebody on call, its unit and its queries. `build` makes
Grafana's JSON of it, which is four times as long. Every expression is evaluated by a test against a
Prometheus that scrapes a running service.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

JOB = 'job=~"$job", service=~"$service"'
WORKER = f'{JOB}, instance=~"$instance"'
PARTITION = f'{WORKER}, partition=~"$partition"'
SCALE = f'{JOB}, resolution=~"$resolution"'

Steps = Sequence[tuple[float | None, str]]
"""From which value on, which colour; the first value is None."""

GREEN: Steps = ((None, "green"),)


@dataclass(frozen=True)
class Query:
    """One expression and what its series are called."""

    expression: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: a noun.
        says: shown at its corner: how to read it, and what is normal.
        queries: its series.
        unit: Grafana's name of the unit.
        width: columns.
        kind: what it draws.
        steps: its thresholds.
        most, least: the axis goes so far, where that is known.
        repeat: one panel for each value of this variable.
        options: what it has that others have not, of its custom field settings.
    """

    title: str
    says: str
    queries: tuple[Query, ...]
    unit: str = "short"
    width: int = 8
    kind: Literal["timeseries", "stat", "table"] = "timeseries"
    steps: Steps = GREEN
    least: float | None = None
    most: float | None = None
    repeat: str = ""
    options: tuple[tuple[str, Any], ...] = ()


def stat(title: str, says: str, expression: str, unit: str, steps: Steps = GREEN) -> Panel:
    """One number with its recent course."""
    return Panel(title, says, (Query(expression),), unit, 3, "stat", steps)


def quantiles(metric: str, *levels: float) -> tuple[Query, ...]:
    """Quantiles of a histogram over all workers chosen."""
    rate = f"rate({metric}_bucket{{{WORKER}}}[$__rate_interval])"
    return tuple(
        Query(f"histogram_quantile({level:g}, sum by (le) ({rate}))", f"p{level * 100:g}")
        for level in levels
    )


def per_second(metric: str, by: str, selector: str = WORKER) -> Query:
    """A counter's rate, summed by a label."""
    return Query(f"sum by ({by}) (rate({metric}{{{selector}}}[$__rate_interval]))", f"{{{{{by}}}}}")


STACKED = (("stacking", {"mode": "normal", "group": "A"}), ("fillOpacity", 40))
SHARES = (("stacking", {"mode": "percent", "group": "A"}), ("fillOpacity", 60))
BARS = (("drawStyle", "bars"), ("fillOpacity", 80), ("stacking", {"mode": "normal", "group": "A"}))
LINES_AT = (("thresholdsStyle", {"mode": "dashed"}),)
AREA_FROM = (("thresholdsStyle", {"mode": "area"}),)

SLO = (
    stat(
        "Firing alerts",
        "Alerts of this service that fire now. docs/runbooks.md has a section on each.",
        'count(ALERTS{alertname=~"StreamForecaster.*", alertstate="firing"}) or vector(0)',
        "short",
        ((None, "green"), (1, "red")),
    ),
    stat(
        "Workers",
        "Processes that answer Prometheus.",
        f"sum(up{{{WORKER}}})",
        "short",
        ((None, "red"), (1, "green")),
    ),
    stat(
        "Ready partitions",
        "Share of the partitions held that are recovered and publish. Below 1: somebody replays.",
        f"1 - sum(streamforecaster_partitions_restoring{{{WORKER}}})"
        f" / sum(streamforecaster_partitions_assigned{{{WORKER}}})",
        "percentunit",
        ((None, "red"), (0.5, "yellow"), (1, "green")),
    ),
    stat(
        "In time",
        "Share of the forecasts in the time shown that were published within 30 s of the record "
        "that made them due. We want 99 %.",
        f'sum(increase(streamforecaster_event_to_forecast_seconds_bucket{{{WORKER}, le="30.0"}}'
        f"[$__range])) / sum(increase(streamforecaster_event_to_forecast_seconds_count{{{WORKER}}}"
        "[$__range]))",
        "percentunit",
        ((None, "red"), (0.95, "yellow"), (0.99, "green")),
    ),
    stat(
        "Event to forecast, p95",
        "One forecast in twenty is published later than this after the record that made it due. "
        "Above 30 s there is an alert.",
        quantiles("streamforecaster_event_to_forecast_seconds", 0.95)[0].expression,
        "s",
        ((None, "green"), (10, "yellow"), (30, "red")),
    ),
    stat(
        "Events",
        "Events counted in a second, of all workers.",
        f"sum(rate(streamforecaster_events_total{{{WORKER}}}[$__rate_interval]))",
        "eps",
    ),
    stat(
        "Forecasts",
        "Forecasts published in a second, of all workers.",
        f"sum(rate(streamforecaster_forecasts_total{{{WORKER}}}[$__rate_interval]))",
        "cps",
    ),
    stat(
        "Lag",
        "Records not yet read, of all partitions.",
        f"sum(streamforecaster_lag_records{{{PARTITION}}})",
        "short",
        ((None, "green"), (10_000, "yellow"), (100_000, "red")),
    ),
    Panel(
        "Event to forecast",
        "From the time of the record that made a forecast due to its commit. The width of the "
        "bucket and the lateness allowed are not in it; a backlog is.",
        quantiles("streamforecaster_event_to_forecast_seconds", 0.5, 0.95, 0.99),
        "s",
        steps=((None, "transparent"), (30, "red")),
        least=0,
        options=LINES_AT,
    ),
    Panel(
        "Events and forecasts",
        "What comes in and what goes out. Forecasts come in bursts, at every bucket boundary.",
        (
            Query(
                f"sum(rate(streamforecaster_events_total{{{WORKER}}}[$__rate_interval]))", "events"
            ),
            Query(
                f"sum(rate(streamforecaster_forecasts_total{{{WORKER}}}[$__rate_interval]))",
                "forecasts",
            ),
        ),
        "cps",
        least=0,
    ),
    Panel(
        "Time since the loop turned",
        "A few seconds at most. Rises where a worker waits for the broker, or hangs.",
        (
            Query(
                f"time() - (streamforecaster_heartbeat_timestamp_seconds{{{WORKER}}} > 0)",
                "{{instance}}",
            ),
        ),
        "s",
        steps=((None, "transparent"), (120, "red")),
        least=0,
        options=LINES_AT,
    ),
)

KAFKA = (
    Panel(
        "Lag",
        "Records of each partition not yet read. One line above the others is one busy partition; "
        "all of them rising is too few workers.",
        (
            Query(
                f"max by (partition) (streamforecaster_lag_records{{{PARTITION}}})", "{{partition}}"
            ),
        ),
        least=0,
    ),
    Panel(
        "Event time behind the clock",
        "How far the watermark of each partition is behind now. Never less than the lateness "
        "allowed. High with no lag: the data itself is old, or the partition is silent. High with "
        "lag: the workers are slow.",
        (
            Query(
                "time() - max by (partition) "
                f"(streamforecaster_watermark_timestamp_seconds{{{PARTITION}}})",
                "{{partition}}",
            ),
        ),
        "s",
    ),
    Panel(
        "Rejects",
        "Records that could not be events, by reason. They are in the dead-letter topic; "
        "`stream-forecaster dlq list` shows them.",
        (per_second("streamforecaster_rejects_total", "reason"),),
        "cps",
        least=0,
        options=STACKED,
    ),
    Panel(
        "Commits",
        "Transactions by result. A few failed ones follow every rebalance; `fenced` means that "
        "another process has the same kafka.instance_id.",
        (per_second("streamforecaster_commits_total", "result"),),
        "cps",
        width=6,
        least=0,
        options=STACKED,
    ),
    Panel(
        "Time of a commit",
        "Encoding, sending and committing. Long ones come from the broker.",
        quantiles("streamforecaster_commit_seconds", 0.5, 0.95),
        "s",
        width=6,
        least=0,
    ),
    Panel(
        "Partitions held",
        "By worker. They add up to the partitions of the topic.",
        (
            Query(f"streamforecaster_partitions_assigned{{{WORKER}}}", "{{instance}}"),
            Query(
                f"sum(streamforecaster_partitions_restoring{{{WORKER}}})", "of those, not recovered"
            ),
        ),
        width=6,
        least=0,
    ),
    Panel(
        "Rebalances",
        "Changes of assignment in five minutes. A deployment makes a few for each worker.",
        (Query(f"increase(streamforecaster_rebalances_total{{{WORKER}}}[5m])", "{{instance}}"),),
        width=6,
        least=0,
        options=BARS,
    ),
)

STATE = (
    Panel(
        "Keys",
        "Keys held by each worker, and how many it may have (`state.max_keys` times its "
        "partitions). Beyond that the least active make room.",
        (
            Query(f"streamforecaster_keys{{{WORKER}}}", "{{instance}}"),
            Query(f"streamforecaster_keys_limit{{{WORKER}}}", "{{instance}}, at most"),
        ),
        width=6,
        least=0,
    ),
    Panel(
        "Memory",
        "What the state takes, and all that the process does. Making a checkpoint takes a copy of "
        "a partition's state for a while.",
        (
            Query(f"streamforecaster_state_bytes{{{WORKER}}}", "{{instance}}, state"),
            Query(f"process_resident_memory_bytes{{{WORKER}}}", "{{instance}}, resident"),
        ),
        "bytes",
        width=6,
        least=0,
    ),
    Panel(
        "State of a key",
        "Bytes; `stream-forecaster plan --keys N` says what holds them. Few keys share much.",
        (
            Query(
                f"sum(streamforecaster_state_bytes{{{WORKER}}})"
                f" / sum(streamforecaster_keys{{{WORKER}}})",
                "bytes per key",
            ),
        ),
        "bytes",
        width=6,
        least=0,
    ),
    Panel(
        "Keys that leave",
        "Expired after `state.key_ttl`, forgotten by a tombstone, or shed to make room.",
        tuple(
            Query(
                f"sum(rate(streamforecaster_keys_{why}_total{{{WORKER}}}[$__rate_interval]))", why
            )
            for why in ("expired", "forgotten", "shed")
        ),
        "cps",
        width=6,
        least=0,
        options=STACKED,
    ),
    Panel(
        "Age of the last checkpoint",
        "Since a partition's state last was in a checkpoint, where that is longest ago; 0: nothing "
        "has come since. A few `state.checkpoint_interval` at most.",
        (Query(f"streamforecaster_checkpoint_age_seconds{{{WORKER}}}", "{{instance}}"),),
        "s",
        width=6,
        steps=((None, "transparent"), (600, "red")),
        least=0,
        options=LINES_AT,
    ),
    Panel(
        "Time to write a checkpoint",
        "Stored or not. Forecasts do not wait for it.",
        quantiles("streamforecaster_checkpoint_write_seconds", 0.5, 0.95),
        "s",
        width=6,
        least=0,
    ),
    Panel(
        "Checkpoints that failed",
        "In five minutes: not stored, by reason, and found unusable at a recovery.",
        (
            Query(
                f"sum by (reason) (increase(streamforecaster_checkpoints_failed_total{{{WORKER}}}"
                "[5m]))",
                "{{reason}}",
            ),
            Query(
                f"sum by (reason) (increase(streamforecaster_checkpoints_unusable_total{{{WORKER}}}"
                "[5m]))",
                "unusable: {{reason}}",
            ),
        ),
        width=6,
        least=0,
        options=BARS,
    ),
    Panel(
        "Last recovery",
        "How long the last recovery of a partition took.",
        (Query(f"streamforecaster_restore_seconds{{{WORKER}}}", "{{instance}}"),),
        "s",
        width=6,
        least=0,
    ),
)

MODEL = (
    Panel(
        "Time of a hop",
        "To close, score, learn and forecast at one bucket boundary of a partition.",
        quantiles("streamforecaster_hop_seconds", 0.5, 0.95),
        "s",
        width=6,
        least=0,
    ),
    Panel(
        "Cores in use",
        "A worker is one process for one core: near 1 it is busy all the time, and lag follows.",
        (Query(f"rate(process_cpu_seconds_total{{{WORKER}}}[$__rate_interval])", "{{instance}}"),),
        width=6,
        least=0,
    ),
    Panel(
        "Where forecasts come from",
        "`prior`: of the population, for new keys; `pool`: the experts; `pool+lstm`: with the "
        "network.",
        (per_second("streamforecaster_forecasts_total", "origin"),),
        "cps",
        width=6,
        options=SHARES,
    ),
    Panel(
        "Training steps",
        "Of the network, in a second.",
        (
            Query(
                f"rate(streamforecaster_training_steps_total{{{WORKER}}}[$__rate_interval])",
                "{{instance}}",
            ),
        ),
        "cps",
        width=6,
        least=0,
    ),
    Panel(
        "Weights of the experts at $resolution",
        "Mean share of each expert in the fusion, over all keys. They move when the input does.",
        (
            Query(
                f"avg by (expert) (streamforecaster_expert_weight{{{SCALE}, "
                'instance=~"$instance"})',
                "{{expert}}",
            ),
        ),
        "percentunit",
        width=8,
        least=0,
        repeat="resolution",
        options=STACKED,
    ),
    Panel(
        "What runs",
        "Version, pipeline and settings of each worker. Two config_ids at once are a deployment, "
        "or a mistake.",
        (Query(f"streamforecaster_build_info{{{WORKER}}}"),),
        width=24,
        kind="table",
    ),
)

QUALITY = (
    Panel(
        "Skill against the last value",
        "1 - our absolute error / that of the last value, of the forecasts that landed within an "
        "hour. 0: no better than naive; 1: perfect. Below 0 there is an alert.",
        (
            Query(
                f"max by (resolution) (job_resolution:streamforecaster_skill:ratio1h{{{SCALE}}})",
                "{{resolution}}",
            ),
        ),
        "percentunit",
        most=1,
        steps=((None, "red"), (0, "transparent")),
        options=AREA_FROM,
    ),
    Panel(
        "Coverage of 80 % intervals",
        "Share of what came that lay inside. Of real values four in five; intervals of counts are "
        "whole numbers and hold more. Below 70 % there is an alert.",
        (
            Query(
                "max by (resolution) (job_resolution_level:"
                f'streamforecaster_interval_coverage_ratio:avg{{{SCALE}, level="0.8"}})',
                "{{resolution}}",
            ),
        ),
        "percentunit",
        least=0.5,
        most=1,
        steps=((None, "red"), (0.7, "transparent"), (0.8, "green")),
        options=LINES_AT,
    ),
    Panel(
        "Coverage of 95 % intervals",
        "Likewise; below 88 % there is an alert.",
        (
            Query(
                "max by (resolution) (job_resolution_level:"
                f'streamforecaster_interval_coverage_ratio:avg{{{SCALE}, level="0.95"}})',
                "{{resolution}}",
            ),
        ),
        "percentunit",
        least=0.5,
        most=1,
        steps=((None, "red"), (0.88, "transparent"), (0.95, "green")),
        options=LINES_AT,
    ),
    Panel(
        "Error at $resolution",
        "Mean absolute error, in units of the events, of forecasts that landed within an hour: "
        "what was published beside what it has to beat.",
        (
            Query(
                "max by (forecaster) (job_resolution_forecaster:"
                f"streamforecaster_absolute_error:mean1h{{{SCALE}}})",
                "{{forecaster}}",
            ),
        ),
        least=0,
        repeat="resolution",
    ),
    Panel(
        "Pinball loss",
        "Mean over the published quantiles, of forecasts that landed within an hour: how good the "
        "intervals are, place and width in one number.",
        (
            Query(
                f"sum by (resolution) (increase(streamforecaster_pinball_loss_sum{{{SCALE}, "
                'instance=~"$instance"}[1h])) / sum by (resolution) '
                f"(increase(streamforecaster_pinball_loss_count{{{SCALE}, "
                'instance=~"$instance"}[1h]))',
                "{{resolution}}",
            ),
        ),
        width=12,
        least=0,
    ),
    Panel(
        "Drifts",
        "In an hour: losses rose for good, and what was learned counts for a tenth since.",
        (
            Query(
                f"sum by (resolution) (increase(streamforecaster_drift_total{{{SCALE}, "
                'instance=~"$instance"}[1h]))',
                "{{resolution}}",
            ),
        ),
        width=12,
        least=0,
        options=BARS,
    ),
)

ROWS = (
    ("Are forecasts there, and in time?", SLO),
    ("Kafka", KAFKA),
    ("State", STATE),
    ("Model", MODEL),
    ("How good are the forecasts?", QUALITY),
)

MARKS = (
    (
        "Alerts",
        "red",
        'ALERTS{alertname=~"StreamForecaster.*", alertstate="firing"}',
        "{{alertname}}",
    ),
    (
        "Restarts",
        "blue",
        f"changes(process_start_time_seconds{{{WORKER}}}[1m]) > 0",
        "{{instance}} restarted",
    ),
)
"""Vertical lines through all panels: name, colour, expression, text."""

VARIABLES = (
    ("job", "Job", "label_values(streamforecaster_build_info, job)", False),
    (
        "service",
        "Pipeline",
        'label_values(streamforecaster_build_info{job=~"$job"}, service)',
        True,
    ),
    ("instance", "Worker", f"label_values(streamforecaster_build_info{{{JOB}}}, instance)", True),
    (
        "partition",
        "Partition",
        f"label_values(streamforecaster_lag_records{{{JOB}}}, partition)",
        True,
    ),
    (
        "resolution",
        "Resolution",
        f"label_values(streamforecaster_drift_total{{{JOB}}}, resolution)",
        True,
    ),
)
"""Name, label, query, whether several may be chosen. Only Kubernetes has services."""
