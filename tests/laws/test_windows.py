"""Law: windows equal a slow oracle, whatever the order, the gaps and the repetitions."""

import math

import numpy as np
import pytest
from hypothesis import given
from oracle import Oracle
from streams import Row, aggregates, block, rows, settings, shard


@given(log=rows(), aggregate=aggregates)
def test_windows_equal_the_oracle(log: list[Row], aggregate: str) -> None:
    """Keys, rejects, values and moving averages, at every resolution."""
    config = settings(aggregate)
    ours, slow = shard(config), Oracle(config)

    turn = ours.advance(block(log))
    slow.advance(log)

    known = {ours.table.key(int(slot)): int(slot) for slot in np.flatnonzero(ours.table.live)}
    assert known.keys() == slow.events.keys()
    assert len(turn.rejects) == slow.rejected
    for i, pool in enumerate(ours.pools):
        for key, slot in known.items():
            slots = np.array([slot])
            values = pool.window.values(slots)[0]
            np.testing.assert_allclose(values, slow.values(key, i), rtol=1e-12, atol=1e-9)
            average = float(pool.window.moving_average(slots)[0])
            expected = slow.moving_average(key, i)
            assert average == pytest.approx(expected, rel=1e-9, abs=1e-6, nan_ok=True)


@given(log=rows())
def test_every_event_counts_once_at_every_resolution(log: list[Row]) -> None:
    """A key's cells, open and closed, hold as many events as have not left its window."""
    config = settings()
    ours, slow = shard(config), Oracle(config)

    ours.advance(block(log))
    slow.advance(log)

    for pool in ours.pools:
        oldest = (pool.window.closed - pool.window.context) * pool.window.step_ms
        for key, events in slow.events.items():
            slot = ours.table.slot(key)
            held = ours.table[f"window.{pool.window.step_ms}.total"][slot].sum()
            assert held == sum(time_ms >= oldest for time_ms, _ in events)


def test_the_oracle_can_fail() -> None:
    """A bucket too many in the oracle shows: the comparison above is not empty."""
    config = settings()
    slow = Oracle(config)
    slow.advance([(None, b'{"user_id":"ann","ts":1767312000000,"v":1}', 1_767_312_000_000)])
    assert all(math.isnan(v) for v in slow.values(b"ann", 0))
    slow.advance([(None, None, 1_767_312_000_000 + 160_000)])
    assert slow.values(b"ann", 0)[-1] == 1.0
