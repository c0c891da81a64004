import sys
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from stream_forecaster.edge.telemetry import CommitResult, Forecaster, Origin, Telemetry
from stream_forecaster.errors import StoreFault
from stream_forecaster.events import Reason

CONTRACT = {
    "events": ("counter", set()),
    "rejects": ("counter", {"reason"}),
    "forecasts": ("counter", {"origin"}),
    "forecasts_shed": ("counter", {"reason"}),
    "lag_records": ("gauge", {"partition"}),
    "watermark_timestamp_seconds": ("gauge", {"partition"}),
    "hop_seconds": ("histogram", set()),
    "event_to_forecast_seconds": ("histogram", set()),
    "commits": ("counter", {"result"}),
    "commit_seconds": ("histogram", set()),
    "rebalances": ("counter", set()),
    "partitions_assigned": ("gauge", set()),
    "partitions_restoring": ("gauge", set()),
    "heartbeat_timestamp_seconds": ("gauge", set()),
    "keys": ("gauge", set()),
    "keys_limit": ("gauge", set()),
    "keys_expired": ("counter", set()),
    "keys_forgotten": ("counter", set()),
    "keys_shed": ("counter", set()),
    "state_bytes": ("gauge", set()),
    "checkpoint_timestamp_seconds": ("gauge", set()),
    "checkpoint_age_seconds": ("gauge", set()),
    "checkpoint_write_seconds": ("histogram", set()),
    "checkpoints_failed": ("counter", {"reason"}),
    "checkpoints_unusable": ("counter", {"reason"}),
    "checkpoints_too_old": ("gauge", set()),
    "restore_seconds": ("gauge", set()),
    "absolute_error": ("summary", {"resolution", "forecaster"}),
    "pinball_loss": ("summary", {"resolution"}),
    "interval_coverage_ratio": ("gauge", {"resolution", "level"}),
    "skill_ratio": ("gauge", {"resolution"}),
    "expert_weight": ("gauge", {"resolution", "expert"}),
    "drift": ("counter", {"resolution"}),
    "training_steps": ("counter", set()),
    "build": ("info", {"version", "pipeline", "config_id"}),
}
"""Every family without its prefix -> its type and labels, as dashboards and alerts rely on them.
In samples a counter ends in `_total`, an info in `_info`."""


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def telemetry(registry: CollectorRegistry) -> Telemetry:
    return Telemetry(registry)


def _value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"streamforecaster_{name}", labels)


def _exercise(telemetry: Telemetry) -> None:
    """Touch every metric once."""
    telemetry.build_info(version="1.2", pipeline="p", config_id="c0ffee")
    telemetry.events(5)
    telemetry.rejects("not_json", 2)
    telemetry.forecasts("pool", 3)
    telemetry.lag({0: 7, 1: 0})
    telemetry.watermark(0, 1_500)
    telemetry.hops(1, 0.02)
    telemetry.event_to_forecast(70.0)
    telemetry.commit("committed", 0.03)
    telemetry.rebalance()
    telemetry.partitions(assigned=4, restoring=1)
    telemetry.heartbeat(1_700_000_001.5)
    telemetry.keys(11, 400)
    telemetry.state_bytes(4096)
    telemetry.keys_expired(1)
    telemetry.keys_shed(6)
    telemetry.forecasts_shed("superseded", 4)
    telemetry.checkpoint(1_700_000_000.5)
    telemetry.checkpoint_failed("full")
    telemetry.checkpoint_unusable("corrupt")
    telemetry.checkpoint_age(12.5)
    telemetry.checkpoint_write(0.25)
    telemetry.checkpoints_too_old(2)
    telemetry.restore(2.5)
    telemetry.absolute_error("1m", "published", total=3.0, n=4)
    telemetry.pinball_loss("1m", total=1.5, n=4)
    telemetry.interval_coverage("1m", 0.8, 0.79)
    telemetry.skill("1h", 0.34)
    telemetry.expert_weight("1h", "ewma_fast", 0.2)
    telemetry.drift("1d", 1)
    telemetry.training_steps(3)


def test_the_contract_is_kept(telemetry: Telemetry, registry: CollectorRegistry) -> None:
    """Every name, type and label that others rely on is there, exactly so; no label holds a key."""
    _exercise(telemetry)

    assert {
        family.name.removeprefix("streamforecaster_"): (
            family.type,
            {label for sample in family.samples for label in sample.labels} - {"le"},
        )
        for family in registry.collect()
        if family.name.startswith("streamforecaster_")
    } == CONTRACT


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("events_total", {}, 5),
        ("rejects_total", {"reason": "not_json"}, 2),
        ("forecasts_total", {"origin": "pool"}, 3),
        ("lag_records", {"partition": "0"}, 7),
        ("watermark_timestamp_seconds", {"partition": "0"}, 1.5),
        ("hop_seconds_sum", {}, 0.02),
        ("hop_seconds_bucket", {"le": "0.025"}, 1),
        ("hop_seconds_bucket", {"le": "0.01"}, 0),
        ("event_to_forecast_seconds_bucket", {"le": "120.0"}, 1),
        ("event_to_forecast_seconds_bucket", {"le": "60.0"}, 0),
        ("commits_total", {"result": "committed"}, 1),
        ("rebalances_total", {}, 1),
        ("keys", {}, 11),
        ("state_bytes", {}, 4096),
        ("keys_expired_total", {}, 1),
        ("keys_shed_total", {}, 6),
        ("forecasts_shed_total", {"reason": "superseded"}, 4),
        ("checkpoint_timestamp_seconds", {}, 1_700_000_000.5),
        ("checkpoints_failed_total", {"reason": "full"}, 1),
        ("checkpoints_failed_total", {"reason": "slow"}, 0),
        ("checkpoints_unusable_total", {"reason": "corrupt"}, 1),
        ("checkpoints_unusable_total", {"reason": "unreadable"}, 0),
        ("checkpoint_age_seconds", {}, 12.5),
        ("checkpoint_write_seconds_sum", {}, 0.25),
        ("checkpoints_too_old", {}, 2),
        ("restore_seconds", {}, 2.5),
        ("absolute_error_sum", {"resolution": "1m", "forecaster": "published"}, 3),
        ("absolute_error_count", {"resolution": "1m", "forecaster": "published"}, 4),
        ("pinball_loss_sum", {"resolution": "1m"}, 1.5),
        ("pinball_loss_count", {"resolution": "1m"}, 4),
        ("partitions_assigned", {}, 4),
        ("partitions_restoring", {}, 1),
        ("heartbeat_timestamp_seconds", {}, 1_700_000_001.5),
        ("commit_seconds_sum", {}, 0.03),
        ("keys_limit", {}, 400),
        ("training_steps_total", {}, 3),
        ("interval_coverage_ratio", {"resolution": "1m", "level": "0.8"}, 0.79),
        ("skill_ratio", {"resolution": "1h"}, 0.34),
        ("expert_weight", {"resolution": "1h", "expert": "ewma_fast"}, 0.2),
        ("drift_total", {"resolution": "1d"}, 1),
        ("build_info", {"version": "1.2", "pipeline": "p", "config_id": "c0ffee"}, 1),
    ],
)
def test_each_number_lands_in_its_series(
    telemetry: Telemetry,
    registry: CollectorRegistry,
    name: str,
    labels: dict[str, str],
    expected: float,
) -> None:
    """What the loop reports is what a dashboard reads, in base units."""
    _exercise(telemetry)

    assert _value(registry, name, **labels) == expected


def test_counters_add_and_gauges_replace(telemetry: Telemetry, registry: CollectorRegistry) -> None:
    """A second report adds to a total and replaces a level."""
    _exercise(telemetry)
    _exercise(telemetry)

    assert _value(registry, "events_total") == 10
    assert _value(registry, "keys") == 11


@given(
    reports=st.lists(
        st.tuples(
            st.sampled_from(["1m", "1h"]),
            st.sampled_from(["published", "naive", "seasonal", "moving_average"]),
            st.integers(0, 1000),
            st.integers(0, 1000),
        )
    )
)
def test_absolute_errors_add_up(reports: list[tuple[str, Forecaster, int, int]]) -> None:
    """Sum and count of every series are those of all its batches, whatever their order."""
    registry = CollectorRegistry()
    telemetry = Telemetry(registry)

    for resolution, forecaster, total, n in reports:
        telemetry.absolute_error(resolution, forecaster, total=total, n=n)

    for labels in {report[:2] for report in reports}:
        series = {"resolution": labels[0], "forecaster": labels[1]}
        mine = [report[2:] for report in reports if report[:2] == labels]
        assert _value(registry, "absolute_error_sum", **series) == sum(t for t, _ in mine)
        assert _value(registry, "absolute_error_count", **series) == sum(n for _, n in mine)


def test_revoked_partitions_leave_no_series(
    telemetry: Telemetry, registry: CollectorRegistry
) -> None:
    """Another process reports them now; two would contradict each other."""
    telemetry.lag({0: 7, 1: 8})
    telemetry.watermark(0, 1_000)
    telemetry.watermark(1, 2_000)

    telemetry.revoked([0, 5])

    assert _value(registry, "lag_records", partition="0") is None
    assert _value(registry, "watermark_timestamp_seconds", partition="0") is None
    assert _value(registry, "lag_records", partition="1") == 8
    assert _value(registry, "watermark_timestamp_seconds", partition="1") == 2


KNOWN = [
    *(("rejects_total", "reason", reason.value) for reason in Reason),
    *(("commits_total", "result", result) for result in get_args(CommitResult)),
    *(("forecasts_total", "origin", origin) for origin in get_args(Origin)),
    *(("checkpoints_failed_total", "reason", fault) for fault in get_args(StoreFault)),
]


@pytest.mark.parametrize(("name", "label", "value"), KNOWN)
def test_what_is_known_beforehand_is_there_from_the_start(
    telemetry: Telemetry, registry: CollectorRegistry, name: str, label: str, value: str
) -> None:
    """A rate cannot see the first increase of a series that appears with it."""
    del telemetry

    assert _value(registry, name, **{label: value}) == 0


@pytest.mark.parametrize("result", get_args(CommitResult))
def test_a_commit_counts_towards_its_own_result(
    telemetry: Telemetry, registry: CollectorRegistry, result: CommitResult
) -> None:
    """And only to that."""
    telemetry.commit(result, 0.1)

    assert {r: _value(registry, "commits_total", result=r) for r in get_args(CommitResult)} == {
        r: int(r == result) for r in get_args(CommitResult)
    }


def test_without_accept_the_text_format_is_served(telemetry: Telemetry) -> None:
    """Any Prometheus, and a person with curl, gets the classic text format."""
    telemetry.events(5)

    content_type, text = telemetry.exposition()

    families = {family.name: family for family in parse_plain(text.decode())}
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert families["streamforecaster_events"].samples[0].value == 5


def test_openmetrics_is_served_when_asked_for(telemetry: Telemetry) -> None:
    """The stricter format parses too, with every metric touched."""
    _exercise(telemetry)

    content_type, text = telemetry.exposition("application/openmetrics-text; version=1.0.0")

    families = {family.name for family in parse_openmetrics(text.decode())}  # type: ignore[no-untyped-call]  # the library left its parser untyped
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert "streamforecaster_absolute_error" in families


def test_two_of_a_kind_do_not_share_numbers() -> None:
    """Nothing is registered globally: each service in a process counts for itself."""
    one, other = Telemetry(), Telemetry()

    one.events(5)

    assert b"streamforecaster_events_total 5.0" in one.exposition()[1]
    assert b"streamforecaster_events_total 0.0" in other.exposition()[1]


@pytest.mark.skipif(sys.platform != "linux", reason="the library reads /proc")
def test_the_process_itself_is_measured(telemetry: Telemetry) -> None:
    """Memory and file descriptors come with the metrics."""
    assert b"process_resident_memory_bytes" in telemetry.exposition()[1]


def test_every_hop_of_a_turn_counts(telemetry: Telemetry, registry: CollectorRegistry) -> None:
    """A hundred slow ones in a backlog are not one; a turn without any is none."""
    telemetry.hops(100, 200.0)
    telemetry.hops(0, 1.0)
    telemetry.hops(1, 0.002)

    def count(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"streamforecaster_hop_seconds_{name}", labels)

    assert count("count") == 101
    assert count("bucket", le="1.0") == 1
    assert count("bucket", le="2.5") == 101
    assert count("sum") == pytest.approx(200.002)
