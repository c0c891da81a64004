"""Law: the future moves no forecast."""

import json

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from streams import (
    Row,
    aggregates,
    assert_all_spoke,
    block,
    busy_log,
    lessons,
    messages,
    rich_settings,
    rows,
    settings,
    shard,
)

from stream_forecaster.config import Settings
from stream_forecaster.records import Message


@given(log=rows(), other=rows(), aggregate=aggregates, data=st.data())
def test_destroying_the_future_moves_no_forecast(
    log: list[Row], other: list[Row], aggregate: str, data: st.DataObject
) -> None:
    """Replace everything behind a record: what was issued before it stays, byte for byte."""
    _assert_unmoved(settings(aggregate), log, other, data.draw(st.integers(0, len(log))))


@effort(max_examples=3)
@given(log=lessons(), other=lessons(), aggregate=aggregates, data=st.data())
def test_nor_does_the_network_know_the_future(
    log: list[Row], other: list[Row], aggregate: str, data: st.DataObject
) -> None:
    """Likewise of a network that is trained on the way, before the middle and after it."""
    config = settings(aggregate, network=True)
    _assert_unmoved(config, log, other[::2], data.draw(st.integers(30, len(log))))


@pytest.mark.parametrize("aggregate", ["count", "sum", "mean"])
def test_nor_does_any_expert_know_the_future(aggregate: str) -> None:
    """All of the experts, and the network at each resolution: as if the log had ended there."""
    config, log, middle = rich_settings(aggregate), busy_log(1000), 900
    until_then = shard(config).advance(block(log, 0, middle))
    told = messages(config, [until_then])
    assert_all_spoke(config, told)
    assert until_then.training_steps > 100
    assert _issued_before(middle, messages(config, [shard(config).advance(block(log))])) == told


def _assert_unmoved(config: Settings, log: list[Row], other: list[Row], middle: int) -> None:
    told = messages(config, [shard(config).advance(block(log))])
    retold = messages(config, [shard(config).advance(block(log[:middle] + other))])
    assert _issued_before(middle, told) == _issued_before(middle, retold)


def _issued_before(offset: int, published: list[Message]) -> list[Message]:
    """Forecasts made due by a record before `offset`."""
    values = ((m, m.value) for m in published)
    return [m for m, v in values if v and json.loads(v)["source"]["offset"] < offset]
