"""Law: where the process dies does not matter.

A log is worked off under a script of misfortunes: deaths before and after a commit and before and
after a checkpoint, commits refused or in doubt, stores that fail, rebalances. Whatever the script,
what is published is exactly what an undisturbed run publishes: each message once, in each
partition's order, byte for byte.
"""

from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import structlog
from hypothesis import example, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from streams import (
    START_MS,
    Row,
    assert_all_spoke,
    busy_log,
    forgetful,
    lessons,
    rich_settings,
    rows,
    settings,
    with_tombstones,
)

from stream_forecaster import checkpoint
from stream_forecaster.config import Settings
from stream_forecaster.edge.memory import (
    Crash,
    Fate,
    MemoryLog,
    MemoryRecord,
    MemoryStore,
    MemoryTransport,
    Point,
    Script,
    fair_weather,
)
from stream_forecaster.edge.saver import at_once
from stream_forecaster.edge.telemetry import Telemetry
from stream_forecaster.edge.world import World
from stream_forecaster.records import Message
from stream_forecaster.service import Service

_FATES: dict[Point, tuple[Fate, ...]] = {
    "poll": ("well", "well", "rebalance"),
    "commit": ("well", "well", "crash before", "crash after", "refused", "in doubt"),
    "checkpoint": ("well", "crash before", "crash after", "refused"),
}
_LATE_MS = 1 << 50
"""A time at which everything is long ago."""
_silent_log = structlog.wrap_logger(
    structlog.ReturnLogger(), wrapper_class=structlog.make_filtering_bound_logger(50)
)


def _script(draws: list[int]) -> Script:
    """A script that reads its fates from a list; fair weather when the list has run out."""
    left: Iterator[int] = iter(draws)

    def fate(point: Point) -> Fate:
        fates = _FATES[point]
        return fates[next(left, 0) % len(fates)]

    return fate


def _process(
    log: MemoryLog, config: Settings, script: Script, sizes: Callable[[], int], wall_ms: int
) -> None:
    """Run one process until the log is drained or it dies."""
    ticks = iter(range(1_000_000))
    world = World(
        MemoryTransport(log, sizes, script),
        MemoryStore(log, script),
        Telemetry(CollectorRegistry()),
        _silent_log,
        now_s=lambda: 10.0 * next(ticks),
        wall_ms=lambda: wall_ms,
        background=at_once,
    )
    Service(config, world).run(stopping=lambda: log.drained)


def _work_off(
    partitions: dict[int, list[Row]],
    config: Settings,
    script: Script,
    sizes: Callable[[], int],
    wall_ms: int = 0,
) -> list[Message]:
    """Restart processes until the log is drained; what was published in the end."""
    return _worked_off(partitions, config, script, sizes, wall_ms).published


def _worked_off(
    partitions: dict[int, list[Row]],
    config: Settings,
    script: Script,
    sizes: Callable[[], int],
    wall_ms: int = 0,
) -> MemoryLog:
    log = MemoryLog({p: [MemoryRecord(*row) for row in rows_] for p, rows_ in partitions.items()})
    for _ in range(1_000):
        try:
            _process(log, config, script, sizes, wall_ms)
        except Crash:
            continue
        return log
    raise AssertionError("it never gets there")


@pytest.mark.timeout(400)
@effort(max_examples=40)
@given(
    log=st.tuples(rows(max_size=40), rows(max_size=15)),
    draws=st.lists(st.integers(0, 11), max_size=60),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=10),
)
@example(
    log=(busy_log(300), busy_log(200, seed=1)),
    draws=[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6, 4, 3, 3, 8] * 8,
    sizes=[7, 31, 3],
)
@example(
    log=(with_tombstones(200, [(60, "ann", False), (61, "bob", True), (120, "ann", True)]), []),
    draws=[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6, 4, 3, 3, 8] * 8,
    sizes=[7, 31, 3],
)
@example(  # nothing but refused commits, now and then
    log=(busy_log(300), busy_log(200, seed=1)),
    draws=[0, 0, 0, 0, 4, 0, 0] * 20,
    sizes=[12],
)
def test_any_schedule_of_deaths_gives_the_uninterrupted_output(
    log: tuple[list[Row], list[Row]], draws: list[int], sizes: list[int]
) -> None:
    """Nothing lost, nothing doubled, nothing different, in each partition's order."""
    partitions = {0: log[0], 1: [_other_user(row) for row in log[1]]}
    _assert_undisturbed(settings(publish="changed", scores=True), partitions, draws, sizes)


@effort(max_examples=3)
@given(
    log=lessons(),
    draws=st.lists(st.integers(0, 11), min_size=5, max_size=20),
    sizes=st.lists(st.integers(10, 30), min_size=1, max_size=10),
)
def test_any_schedule_of_deaths_trains_the_same_network(
    log: list[Row], draws: list[int], sizes: list[int]
) -> None:
    """Likewise with the network, whose lessons are learned again."""
    config = settings(publish="changed", network=True)
    _assert_undisturbed(config, {0: log}, draws, sizes)


def test_any_expert_goes_on_after_a_death() -> None:
    """All of them, and the network at each resolution: the same output, and the same state."""
    config, log = rich_settings("count"), busy_log(1000)
    deaths: dict[tuple[Point, int], Fate] = {
        ("commit", 4): "crash after",
        ("checkpoint", 7): "crash before",
    }
    times = Counter[Point]()

    def fate(point: Point) -> Fate:
        times[point] += 1
        return deaths.pop((point, times[point]), "well")

    disturbed = _worked_off({0: log}, config, fate, lambda: 100)
    undisturbed = _worked_off({0: log}, config, fair_weather, lambda: 500)

    assert not deaths
    assert_all_spoke(config, disturbed.published)
    assert _as_read(disturbed.published) == _as_read(undisturbed.published)
    saved, expected = (of.checkpoints[0, len(log)] for of in (disturbed, undisturbed))
    assert checkpoint.decode(bytearray(saved)).arrays["network.steps"] > 100
    assert saved == expected


@pytest.mark.timeout(400)
@effort(max_examples=15)
@given(
    log=forgetful(),
    draws=st.lists(st.integers(0, 11), min_size=5, max_size=60),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=10),
)
def test_any_schedule_of_deaths_forgets_the_same_keys(
    log: list[Row], draws: list[int], sizes: list[int]
) -> None:
    """A tombstone is published once, however often it is read; and the key stays forgotten."""
    _assert_undisturbed(settings(publish="changed"), {0: log}, draws, sizes)


_LONG_SILENCE: list[Row] = [
    (None, b'{"user_id":"ann","ts":%d,"v":0.0}' % time_ms, time_ms)
    for time_ms in (*[START_MS] * 5, *[START_MS + 93_600_000] * 2, *[START_MS + 93_900_000] * 3)
]
"""More than the longest window between two hops of one poll: whoever dies between their commits, or
behind the second, goes on as before only if each of them was followed by a checkpoint."""


@pytest.mark.timeout(400)
@effort(max_examples=15)
@given(
    log=st.one_of(forgetful(), rows(max_size=40)),
    max_keys=st.integers(1, 5),
    draws=st.lists(st.integers(0, 11), min_size=5, max_size=60),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=10),
)
def test_any_schedule_of_deaths_sheds_the_same_keys(
    log: list[Row], max_keys: int, draws: list[int], sizes: list[int]
) -> None:
    """With more users than there is room for."""
    config = settings(publish="changed", max_keys=max_keys)
    _assert_undisturbed(config, {0: log}, draws, sizes)


@pytest.mark.timeout(400)
@effort(max_examples=15)
@given(
    log=st.tuples(forgetful(), rows(max_size=30)),
    draws=st.lists(st.integers(0, 11), min_size=5, max_size=60),
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=10),
    most=st.integers(1, 20),
)
def test_any_schedule_of_deaths_in_pieces_gives_the_uninterrupted_output(
    log: tuple[list[Row], list[Row]], draws: list[int], sizes: list[int], most: int
) -> None:
    """Polls are heard in pieces with commits between them, and what takes too long is left."""
    config = _with_output(settings(publish="changed"), max_pending=most)
    partitions = {0: log[0], 1: [_other_user(row) for row in log[1]]}
    _assert_undisturbed(config, partitions, draws, sizes)


@pytest.mark.timeout(400)
@effort(max_examples=15)
@given(
    log=st.one_of(forgetful(), rows(max_size=40)),
    publish=st.sampled_from(["changed", "every_hop"]),
    draws=st.lists(st.integers(0, 11), min_size=5, max_size=60),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=10),
    most=st.sampled_from([1, 20, 1_000]),
)
@example(log=_LONG_SILENCE, publish="changed", draws=[0, 0, 3, 0, 0, 1], sizes=[7], most=1)
def test_what_is_shed_is_old_news(
    log: list[Row], publish: str, draws: list[int], sizes: list[int], most: int
) -> None:
    """Far behind, forecasts are left out, and nothing else changes.

    Of every key a reader sees some of what it would have seen, in that order and once, and the same
    last word; all tombstones and all dead letters are there.
    """
    config = settings(publish=publish, ttl="10m")
    shedding = _with_output(config, max_pending=most, shed_after_ms=1)
    turn = iter(sizes * 10_000)
    shed = _as_read(_work_off({0: log}, shedding, _script(draws), lambda: next(turn, 12), _LATE_MS))
    whole = _as_read(_work_off({0: log}, config, fair_weather, lambda: 500))

    assert shed.keys() == whole.keys()
    for reader, messages in whole.items():
        left = iter(messages)
        assert all(message in left for message in shed[reader]), "in that order, and once"
        assert shed[reader][-1] == messages[-1]
        is_output = reader[0] == config.output.topic
        must = [m for m in messages if not is_output or m.value is None]
        assert [m for m in shed[reader] if not is_output or m.value is None] == must


def _with_output(config: Settings, **output: int) -> Settings:
    return config.model_copy(update={"output": config.output.model_copy(update=output)})


def _assert_undisturbed(
    config: Settings, partitions: dict[int, list[Row]], draws: list[int], sizes: list[int]
) -> None:
    turn = iter(sizes * 10_000)
    disturbed = _work_off(partitions, config, _script(draws), lambda: next(turn, 12))
    undisturbed = _work_off(partitions, config, fair_weather, lambda: 500)

    assert _as_read(disturbed) == _as_read(undisturbed)


def _other_user(row: Row) -> Row:
    """A key belongs to one partition."""
    key, value, time_ms = row
    if value is None:  # a tombstone names its key
        key = key and b"other-" + key
    return key, value and value.replace(b'"user_id":"', b'"user_id":"other-'), time_ms


def _as_read(published: list[Message]) -> dict[tuple[str, bytes | None, bytes], list[Message]]:
    """Messages in the order in which a reader of one key sees them.

    The order between keys and partitions is that of the commits, which the polls' sizes may change.
    """
    seen: dict[tuple[str, bytes | None, bytes], list[Message]] = {}
    for message in published:
        partition = dict(message.headers).get("__streams.errors.partition", b"")
        seen.setdefault((message.topic, message.key, partition), []).append(message)
    return seen
