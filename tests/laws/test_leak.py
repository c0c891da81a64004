"""Law: the future moves no forecast."""

import json

from hypothesis import given
from hypothesis import strategies as st
from streams import Row, aggregates, block, messages, rows, settings, shard

from stream_forecaster.records import Message


@given(log=rows(), other=rows(), aggregate=aggregates, data=st.data())
def test_destroying_the_future_moves_no_forecast(
    log: list[Row], other: list[Row], aggregate: str, data: st.DataObject
) -> None:
    """Replace everything behind a record: what was issued before it stays, byte for byte."""
    config = settings(aggregate)
    middle = data.draw(st.integers(0, len(log)))
    changed = log[:middle] + other

    told = messages(config, [shard(config).advance(block(log))])
    retold = messages(config, [shard(config).advance(block(changed))])

    assert _issued_before(middle, told) == _issued_before(middle, retold)


def _issued_before(offset: int, published: list[Message]) -> list[Message]:
    """Forecasts made due by a record before `offset`."""
    values = ((m, m.value) for m in published)
    return [m for m, v in values if v and json.loads(v)["source"]["offset"] < offset]
