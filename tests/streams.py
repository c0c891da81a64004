"""Streams for the laws: small settings, and logs with everything that can befall a log."""

import json
from collections.abc import Iterable, Sequence
from itertools import count
from typing import Any

import numpy as np
from hypothesis import strategies as st

from stream_forecaster.calendar import Calendar
from stream_forecaster.config import Settings, parse
from stream_forecaster.forecasts import Encoder
from stream_forecaster.records import BytesColumn, Message, Records
from stream_forecaster.shard import Shard, Turn
from stream_forecaster.weights import Weights

START_MS = 1_767_312_000_000  # 2026-01-02 00:00 UTC
MINUTE_MS = 60_000

_STEPS: list[dict[str, Any]] = [
    {"step": "1m", "context": 5, "horizon": 3},
    {"step": "5m", "context": 3, "horizon": 2},
    {"step": "1h", "context": 2, "horizon": 1},
]

_RICH_STEPS: list[dict[str, Any]] = [
    {"step": "1m", "context": 40, "horizon": 12},
    {"step": "5m", "context": 16, "horizon": 4},
    {"step": "15m", "context": 14, "horizon": 3},
]

Row = tuple[bytes | None, bytes | None, int]
"""Key, value and the broker's time of one record."""


def settings(
    aggregate: str = "count",
    publish: str = "every_hop",
    ttl: str = "2h",
    *,
    network: bool = False,
    max_keys: int = 100_000,
    scores: bool = False,
) -> Settings:
    """Three resolutions small enough for every ring to wrap often; the network costs time."""
    return parse(
        {
            "input": _input(aggregate),
            "resolutions": _STEPS,
            "output": {
                "publish": publish,
                "quantiles": [0.1, 0.5, 0.9],
                "scores_topic": "scores" if scores else "",
            },
            "model": {"network": network},
            "state": {"key_ttl": ttl, "max_keys": max_keys},
            "kafka": {"commit_interval": "0s"},
        }
    )


def rich_settings(aggregate: str) -> Settings:
    """Room for regressions, and a network that is trained at every other boundary: seconds.

    Sums have river's forecasters as well, and means a lean pool.
    """
    return parse(
        {
            "input": _input(aggregate),
            "resolutions": _RICH_STEPS,
            "output": {"publish": "every_hop", "quantiles": [0.1, 0.5, 0.9]},
            "model": {
                "train_every_hops": 2,
                "river": ["HoltWinters", "SNARIMAX"] if aggregate == "sum" else [],
                "profile": "lean" if aggregate == "mean" else "full",
            },
            "kafka": {"commit_interval": "0s"},
        }
    )


def _input(aggregate: str) -> dict[str, str]:
    value = "" if aggregate == "count" else "v"
    return {"aggregate": aggregate, "value": value, "allowed_lateness": "90s"}


aggregates = st.sampled_from(["count", "sum", "mean"])

_gaps_ms = st.one_of(
    *[st.integers(0, 20_000)] * 8,
    *[st.integers(0, 2 * MINUTE_MS)] * 6,
    *[st.just(5 * MINUTE_MS)] * 2,
    # Into the next hour, and beyond what a shard remembers; rare, since boundaries take time.
    st.sampled_from([70 * MINUTE_MS, 26 * 60 * MINUTE_MS]),
)
_delays_ms = st.one_of(st.just(0), st.integers(0, 100_000), st.integers(0, 20 * MINUTE_MS))
_users = st.sampled_from(["ann", "bob", "cyd", "dan", "é"])
_values = st.floats(-1e6, 1e6, allow_nan=False).map(lambda v: round(v, 3))
_garbage = st.sampled_from([b"", b"{", b"[]", b'{"user_id":"ann"}', b'{"ts":1,"v":1}', b"\xff"])


@st.composite
def rows(draw: st.DrawFn, max_size: int = 60) -> list[Row]:
    """A log: events out of order, late, repeated and far apart; heartbeats; tombstones; garbage."""
    now_ms = START_MS
    log: list[Row] = []
    seen: list[str] = []
    kinds = st.sampled_from(["event"] * 12 + ["heartbeat", "forget", "forget", "garbage", "repeat"])
    for kind in draw(st.lists(kinds, min_size=1, max_size=max_size)):
        now_ms += draw(_gaps_ms)
        if kind == "event":
            user, time_ms = draw(_users), now_ms - draw(_delays_ms)
            log.append((None, event(user, time_ms, draw(_values)), now_ms))
            seen.append(user)
        elif kind == "heartbeat":
            log.append((None, None, now_ms))
        elif kind == "forget":
            user = draw(st.sampled_from(seen[-3:] or ["ann"]))
            log.append((user.encode(), None, draw(st.sampled_from([-1, now_ms]))))
        elif kind == "garbage":
            log.append((b"k", draw(_garbage), now_ms))
        elif log:
            log.append(log[-1])
    return log


def lessons(max_size: int = 20) -> st.SearchStrategy[list[Row]]:
    """Logs in which the network is trained before anything befalls them."""
    return rows(max_size).map(lambda log: busy_log(60) + log)


def forgetful(size: int = 80) -> st.SearchStrategy[list[Row]]:
    """Busy logs with some tombstones in them, of keys that are known, timed or not."""
    users = st.sampled_from(["ann", "bob", "cyd", "dan", "eve", "fay"])
    tombstones = st.tuples(st.integers(size // 4, size - 1), users, st.booleans())
    return st.lists(tombstones, min_size=1, max_size=5).map(lambda t: with_tombstones(size, t))


def with_tombstones(size: int, tombstones: Iterable[tuple[int, str, bool]]) -> list[Row]:
    """A busy log with a tombstone before each of these rows: of whom, and whether timed."""
    log = busy_log(size)
    for i, user, timed in sorted(tombstones, reverse=True):
        log.insert(i, (user.encode(), None, log[i][2] if timed else -1))
    return log


def event(user: str, time_ms: int, value: float = 1.0) -> bytes:
    """An event's bytes."""
    return f'{{"user_id":"{user}","ts":{time_ms},"v":{value}}}'.encode()


def block(log: Sequence[Row], begin: int = 0, end: int | None = None) -> Records:
    """Rows `begin` to `end` of a log as one poll would bring them."""
    end = len(log) if end is None else end
    part = log[begin:end]
    return Records(
        0,
        np.arange(begin, end),
        np.array([time_ms for _, _, time_ms in part], np.int64),
        BytesColumn.of(key for key, _, _ in part),
        BytesColumn.of(value for _, value, _ in part),
        end,
    )


def cuts(size: int) -> st.SearchStrategy[list[int]]:
    """Where to cut a log of `size` records: from 0 to `size`, not descending."""
    return st.lists(st.integers(0, size), max_size=8).map(lambda c: [0, *sorted(c), size])


def shard(config: Settings, weights: Weights | None = None) -> Shard:
    """A shard that has seen nothing."""
    return Shard(config, Calendar(config.input.timezone), 0, 0, weights)


def messages(config: Settings, turns: Iterable[Turn]) -> list[Message]:
    """What turns publish: the output topic in order, then the scores."""
    encoder, turns = Encoder(config), list(turns)
    output = [m for turn in turns for m in encoder.output(turn.output)]
    return output + [m for turn in turns for told in turn.scored for m in encoder.scores(told)]


def assert_all_spoke(config: Settings, published: Iterable[Message]) -> None:
    """Each expert has a weight in some forecast, and the network at each resolution."""
    pools, spoke = shard(config).pools, [set[str]() for _ in config.resolutions]
    for message in published:
        for names, said in zip(spoke, json.loads(message.value or b"")["resolutions"], strict=True):
            names.update(said["weights"])
    assert set().union(*spoke) == {name for pool in pools for name in pool.experts}
    assert all({"lstm", "lstm_residual"} <= names for names in spoke)


def busy_log(size: int, seed: int = 0) -> list[Row]:
    """A long plain log: `size` events of six users, about four a minute."""
    rng = np.random.default_rng(seed)
    times = START_MS + np.cumsum(rng.exponential(15_000, size)).astype(np.int64)
    users = rng.choice(["ann", "bob", "cyd", "dan", "eve", "fay"], size)
    levels = rng.gamma(2.0, 3.0, size)
    return [
        (None, event(str(user), int(time_ms), round(float(v), 3)), int(time_ms))
        for _, time_ms, user, v in zip(count(), times, users, levels, strict=False)
    ]


# Lengths around those that take one byte more to say; times far apart, either way.
_parts = st.binary(max_size=8) | st.sampled_from([62, 63, 64, 65, 8191, 8192]).map(bytes)
_names = st.text(max_size=4) | st.sampled_from(["ce_id", "ce_time", "é" * 40])
_times_ms = st.none() | st.integers(0, 5000) | st.integers(-(2**61), 2**61)
any_messages = st.builds(
    Message,
    topic=st.just("topic"),
    key=st.none() | _parts,
    value=st.none() | _parts,
    headers=st.lists(st.tuples(_names, _parts), max_size=4).map(tuple),
    time_ms=_times_ms,
)
"""Messages to publish, with anything in them that a record can hold."""
