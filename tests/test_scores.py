"""Scores that are published: what was forecast of a bucket and what came, once each, and true."""

import json
import math
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as effort
from jsonschema import Draft202012Validator
from oracle import Oracle
from slow_encoder import SlowEncoder
from streams import Row, aggregates, block, busy_log, messages, rows, settings, shard

from stream_forecaster import asyncapi
from stream_forecaster.config import Settings
from stream_forecaster.forecasts import Encoder
from stream_forecaster.shard import Turn

VALID = Draft202012Validator(json.loads(asyncapi.schema("score")))


def _run(log: list[Row], aggregate: str = "count") -> tuple[Settings, Turn]:
    config = settings(aggregate, ttl="400d", scores=True)
    return config, shard(config).advance(block(log))


def _values(config: Settings, turn: Turn) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Forecasts, and scores."""
    told = messages(config, [turn])
    of = config.output
    forecasts, scores = (
        [json.loads(m.value) for m in told if m.topic == topic and m.value is not None]
        for topic in (of.topic, of.scores_topic)
    )
    return forecasts, scores


def _ms(time: str) -> int:
    return round(datetime.fromisoformat(time).timestamp() * 1000)


def _never_forgotten(log: list[Row]) -> list[Row]:
    return [row for row in log if row[1] is not None or not row[0]]


@effort(max_examples=40)
@given(log=rows(), aggregate=aggregates)
def test_what_came_is_what_came(log: list[Row], aggregate: str) -> None:
    """Law: the value is that of the events in the bucket, counted again from the log."""
    log = _never_forgotten(log)
    config, turn = _run(log, aggregate)
    oracle = Oracle(config)
    oracle.advance(log)

    for score in _values(config, turn)[1]:
        VALID.validate(score)
        came = oracle._bucket(
            score["key"].encode(), _ms(score["start"]), step_ms := 1000 * score["step_s"]
        )
        assert score["value"] == pytest.approx(came, rel=6e-5, abs=1e-9)
        assert _ms(score["start"]) == _ms(score["issued_at"]) + (score["ahead"] - 1) * step_ms


def _published(forecasts: list[dict[str, Any]]) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """(key, step, issue) -> the resolution's part, of forecasts made as its bucket closed."""
    for forecast in forecasts:
        for part in forecast["resolutions"]:
            if part["start"] == forecast["issued_at"]:
                yield (forecast["key"], part["step_s"], part["start"]), part


@pytest.mark.parametrize("aggregate", ["count", "sum", "mean"])
def test_what_is_judged_is_what_was_published(aggregate: str) -> None:
    """Means, quantiles: those of the message, but for what keeping them costs; and each once."""
    config, turn = _run(busy_log(600), aggregate)
    forecasts, scores = _values(config, turn)
    published = dict(_published(forecasts))

    found = 0
    for score in scores:
        part = published.get((score["key"], score["step_s"], score["issued_at"]))
        if part is None:  # a boundary in a jump: nothing was published
            continue
        found += 1
        mean = part["mean"][score["ahead"] - 1]
        assert score["mean"] == pytest.approx(mean, rel=1e-4)
        for level, path in part["quantiles"].items():
            near = 1e-3 * abs(path[score["ahead"] - 1] - mean) + 2e-4 * abs(mean)
            assert score["quantiles"][level] == pytest.approx(path[score["ahead"] - 1], abs=near)
    assert found > 500
    names = [(s["key"], s["step_s"], s["start"], s["ahead"]) for s in scores]
    assert len(set(names)) == len({s["id"] for s in scores}) == len(names)


def test_every_forecast_of_the_next_bucket_is_scored() -> None:
    """Of counts, which are missing before a key's first event only: as the bucket has closed."""
    config, turn = _run(log := busy_log(300))
    forecasts, scores = _values(config, turn)
    oracle = Oracle(config)
    oracle.advance(log)
    scored = {(s["key"], s["step_s"], s["issued_at"]) for s in scores if s["ahead"] == 1}
    newest = max(s["start"] for s in scores if s["step_s"] == 60)

    due = {
        (key, step_s, issued_at)
        for (key, step_s, issued_at), _ in _published(forecasts)
        if step_s == 60 and issued_at <= newest
        if not math.isnan(oracle._bucket(key.encode(), _ms(issued_at), 60_000))
    }

    assert len(due) > 100
    assert due <= scored


def test_they_are_those_of_the_slow_encoder() -> None:
    """Byte for byte, headers too."""
    config, turn = _run(busy_log(200), "mean")

    assert turn.scored
    for scored in turn.scored:
        quick, slow = (list(e(config).scores(scored)) for e in (Encoder, SlowEncoder))
        assert quick == slow


def test_nobody_asks_and_nothing_is_told() -> None:
    """By default, and while a log is replayed that has been published."""
    log = block(busy_log(100))

    assert shard(settings()).advance(log).scored == ()
    assert shard(settings(scores=True)).advance(log, aloud=False).scored == ()
