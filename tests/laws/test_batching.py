"""Law: how the log is cut into polls does not matter, bit for bit."""

from dataclasses import replace
from functools import reduce
from itertools import pairwise
from operator import add

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from streams import (
    START_MS,
    Row,
    aggregates,
    assert_all_spoke,
    block,
    busy_log,
    cuts,
    event,
    forgetful,
    lessons,
    messages,
    rich_settings,
    rows,
    settings,
    shard,
)

from stream_forecaster import checkpoint
from stream_forecaster.config import Settings
from stream_forecaster.shard import Shard, Turn
from stream_forecaster.weights import shipped

# A log leaps over hundreds of boundaries, and at each of them everything is forecast.
_few = effort(max_examples=30)


def _advance(config: Settings, log: list[Row], edges: list[int]) -> tuple[Shard, list[Turn]]:
    cut = shard(config)
    return cut, [cut.advance(block(log, i, j)) for i, j in pairwise(edges)]


@_few
@given(
    log=rows(),
    aggregate=aggregates,
    publish=st.sampled_from(["every_hop", "changed"]),
    data=st.data(),
)
def test_any_cutting_gives_the_same_state_and_output(
    log: list[Row], aggregate: str, publish: str, data: st.DataObject
) -> None:
    """One poll or many: the same messages in the same order, the same rejects, the same bytes."""
    _assert_alike(settings(aggregate, publish, scores=True), log, data.draw(cuts(len(log))))


@_few
@given(
    log=st.one_of(rows(), forgetful()),
    most=st.integers(1, 12),
    max_keys=st.integers(1, 9),
    data=st.data(),
)
def test_stopping_at_hops_is_a_cutting(
    log: list[Row], most: int, max_keys: int, data: st.DataObject
) -> None:
    """What a bounded advance leaves is told again, and comes to the same; each keeps its bound."""
    config = settings(max_keys=max_keys)
    whole, one = _advance(config, log, [0, len(log)])
    parts, many = shard(config), []
    for i, j in pairwise(data.draw(cuts(len(log)))):
        records = block(log, i, j)
        while len(records):
            many.append(parts.advance(records, most=most))
            assert many[-1].hops < 2 or sum(len(f.keys) for f in many[-1].forecasts) <= most
            _, records = records.split(parts.offset)
    _assert_same((whole, one), (parts, many))


@_few
@given(log=forgetful(), data=st.data())
def test_any_cutting_forgets_the_same_keys(log: list[Row], data: st.DataObject) -> None:
    """A tombstone stands between two records, not at an end of a poll."""
    _assert_alike(settings(publish="changed"), log, data.draw(cuts(len(log))))


@_few
@given(log=forgetful(), max_keys=st.integers(1, 5), data=st.data())
def test_any_cutting_sheds_the_same_keys(
    log: list[Row], max_keys: int, data: st.DataObject
) -> None:
    """Who has to make room for whom is decided by the log, not by who shares a poll."""
    config = settings(publish="changed", max_keys=max_keys)
    _assert_alike(config, log, data.draw(cuts(len(log))))


@effort(max_examples=3)
@given(log=forgetful(), max_keys=st.integers(2, 5), data=st.data())
def test_any_cutting_sheds_the_same_samples(
    log: list[Row], max_keys: int, data: st.DataObject
) -> None:
    """Likewise with the network."""
    config = settings(network=True, max_keys=max_keys)
    _assert_alike(config, log, data.draw(cuts(len(log))))


@effort(max_examples=3)
@given(log=forgetful(), data=st.data())
def test_any_cutting_forgets_the_same_samples(log: list[Row], data: st.DataObject) -> None:
    """Likewise with the network, which keeps some of what keys did."""
    _assert_alike(settings(network=True), log, data.draw(cuts(len(log))))


@effort(max_examples=3)
@given(log=lessons(), aggregate=aggregates, data=st.data())
def test_any_cutting_trains_the_same_network(
    log: list[Row], aggregate: str, data: st.DataObject
) -> None:
    """Likewise with the network and everything it has learned."""
    config = settings(aggregate, "changed", network=True)
    _assert_alike(config, log, data.draw(cuts(len(log))))


@pytest.mark.parametrize("aggregate", ["sum", "mean"])
def test_any_expert_goes_on_from_a_checkpoint_and_any_cutting(aggregate: str) -> None:
    """All of them, and the network at each resolution: in parts, from bytes in the middle."""
    config, log = rich_settings(aggregate), busy_log(1000)
    whole, one = _advance(config, log, [0, len(log)])
    parts, many = _advance(config, log, [0, 1, 333, 600])
    saved = checkpoint.decode(checkpoint.encode(parts.checkpoint()))
    restored = Shard.restore(config, parts.calendar, saved)
    many += [restored.advance(block(log, i, j)) for i, j in pairwise([600, 601, 850, len(log)])]

    assert_all_spoke(config, messages(config, one))
    assert one[0].training_steps > 100
    _assert_same((whole, one), (restored, many))


def _assert_alike(config: Settings, log: list[Row], edges: list[int]) -> None:
    _assert_same(_advance(config, log, [0, len(log)]), _advance(config, log, edges))


def _assert_same(some: tuple[Shard, list[Turn]], other: tuple[Shard, list[Turn]]) -> None:
    (whole, one), (parts, many) = some, other
    config = whole._settings
    assert messages(config, many) == messages(config, one)
    assert [r for turn in many for r in turn.rejects] == [r for turn in one for r in turn.rejects]
    assert sum(turn.events for turn in many) == sum(turn.events for turn in one)
    assert sum(turn.training_steps for turn in many) == sum(turn.training_steps for turn in one)
    assert checkpoint.encode(parts.checkpoint()) == checkpoint.encode(whole.checkpoint())


@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=12),
    aggregate=st.sampled_from(["sum", "mean"]),
    data=st.data(),
)
def test_a_crowded_bucket_is_the_same_sum(
    values: list[float], aggregate: str, data: st.DataObject
) -> None:
    """Many events of one key in one bucket: added one after another, wherever polls are cut."""
    config = settings(aggregate)
    log: list[Row] = [(None, event("ann", START_MS, value), START_MS) for value in values]
    whole, _ = _advance(config, log, [0, len(log)])
    parts, _ = _advance(config, log, data.draw(cuts(len(log))))

    assert checkpoint.encode(parts.checkpoint()) == checkpoint.encode(whole.checkpoint())


@_few
@given(log=rows(), data=st.data())
def test_scores_add_up(log: list[Row], data: st.DataObject) -> None:
    """The parts' scores sum to the whole's, up to the rounding of a sum in another order."""
    config = settings()
    _, one = _advance(config, log, [0, len(log)])
    _, many = _advance(config, log, data.draw(cuts(len(log))))

    for whole, *parts in zip(one[0].scores, *(turn.scores for turn in many), strict=True):
        added = reduce(add, parts)
        np.testing.assert_array_equal(added.count, whole.count)
        np.testing.assert_allclose(added.absolute, whole.absolute, rtol=1e-9)
        np.testing.assert_allclose(added.pinball, whole.pinball, rtol=1e-9)


@_few
@given(log=rows(), data=st.data())
def test_silence_leaves_the_same_state(log: list[Row], data: st.DataObject) -> None:
    """Advancing in silence differs from speaking in nothing but the silence."""
    config = settings(publish="changed")
    loud, quiet = shard(config), shard(config)
    middle = data.draw(st.integers(0, len(log)))

    loud.advance(block(log, 0, middle))
    muted = quiet.advance(block(log, 0, middle), aloud=False)

    assert muted.forecasts == ()
    after_loud, after_quiet = (s.advance(block(log, middle)) for s in (loud, quiet))
    assert messages(config, [after_loud]) == messages(config, [after_quiet])


@_few
@given(log=rows(), data=st.data())
def test_a_checkpoint_is_the_shard(log: list[Row], data: st.DataObject) -> None:
    """Going on from the bytes of a checkpoint is going on."""
    config = settings("mean", publish="changed")
    _assert_goes_on(config, shard(config), log, data.draw(st.integers(0, len(log))))


@effort(max_examples=3)
@given(log=lessons(), data=st.data())
def test_a_checkpoint_is_the_network_too(log: list[Row], data: st.DataObject) -> None:
    """Whatever weights it began with, and whichever ship by now."""
    config = settings("mean", network=True)
    begun = replace(shipped(), shares=np.tile([0.1, 0.4], (3, 1)))
    middle = data.draw(st.integers(30, len(log)))
    _assert_goes_on(config, shard(config, begun), log, middle)


def _assert_goes_on(config: Settings, gone_on: Shard, log: list[Row], middle: int) -> None:
    gone_on.advance(block(log, 0, middle))
    saved = checkpoint.decode(checkpoint.encode(gone_on.checkpoint()))
    restored = Shard.restore(config, gone_on.calendar, saved)

    turns = [s.advance(block(log, middle)) for s in (gone_on, restored)]
    assert messages(config, turns[:1]) == messages(config, turns[1:])
    assert checkpoint.encode(gone_on.checkpoint()) == checkpoint.encode(restored.checkpoint())
