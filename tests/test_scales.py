"""All resolutions together: minutes add up to hours, and hours stand by what they said."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from numpy.typing import NDArray
from streams import MINUTE_MS, START_MS, aggregates

from stream_forecaster.calendar import Calendar
from stream_forecaster.config import Settings, parse
from stream_forecaster.keys import KeyTable
from stream_forecaster.learning import Learner
from stream_forecaster.pace import Pace
from stream_forecaster.paths import Paths
from stream_forecaster.pool import Closed, Pool
from stream_forecaster.scales import Scales
from stream_forecaster.scoring import PUBLISHED
from stream_forecaster.weights import shipped

Float64 = NDArray[np.float64]

_DAY_MINUTES = 24 * 60

Minute = Mapping[str, float]
"""Key -> value of the one event it has in a minute; of counts, how many it has."""
Steps = Sequence[tuple[str, int, int]]

_TWO = (("1m", 5, 7), ("5m", 3, 6))
_THREE = (("1m", 5, 30), ("5m", 3, 4), ("15m", 2, 2))
"""Step, context and horizon: the minutes reach beyond the quarter, the five minutes to its end."""


def _settings(aggregate: str, steps: Steps) -> Settings:
    return parse(
        {
            "input": {
                "aggregate": aggregate,
                "value": "" if aggregate == "count" else "v",
                "allowed_lateness": "60s",
            },
            "resolutions": [{"step": s, "context": c, "horizon": h} for s, c, h in steps],
            "output": {"quantiles": [0.1, 0.5, 0.9], "publish": "every_hop"},
        }
    )


class Told:
    """All resolutions of some keys, without the shard around them, told a minute at a time.

    Attributes:
        heard: key -> (minute, value) of all its events.
        landed: (resolution, what its closed bucket came to), so far.
    """

    def __init__(self, aggregate: str, steps: Steps, *, network: bool = False) -> None:
        self.config, self.table, self.calendar = _settings(aggregate, steps), KeyTable(), _UTC
        learner = _learner(self.config) if network else None
        self.scales = Scales(self.table, self.calendar, self.config, learner)
        self.scales.begin(START_MS)
        self.minute = 0
        self.heard: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self.landed: list[tuple[int, Closed]] = []

    def tell(self, values: Minute, minutes: int = 1) -> dict[str, list[Paths]]:
        """Events of the open minute; then so many go by. What is published of each key."""
        if values:
            time_ms = np.full(len(values), START_MS + self.minute * MINUTE_MS)
            slots = self.table.intern([key.encode() for key in values], time_ms)
            self.scales.absorb(slots, time_ms, np.array(list(values.values()), np.float64))
        for key, value in values.items():
            self.heard[key].append((self.minute, value))
        self.minute += minutes
        self.landed += self.scales.close(self.hop_ms)
        published: dict[str, list[Paths]] = {}
        for issued in self.scales.issue(self.hop_ms):
            slots = issued.rows.start + np.flatnonzero(self.table.live[issued.rows])
            issued.mark_sent(slots)
            for slot in slots:
                key = self.table.key(int(slot)).decode()
                published[key] = list(issued.paths(np.array([slot])))
        return published

    @property
    def hop_ms(self) -> int:
        """Where event time is."""
        return START_MS + self.minute * MINUTE_MS

    def elapsed(self, r: int) -> int:
        """How many minutes of the open bucket of a resolution have gone by."""
        return self.minute % self.minutes_of(r)

    def minutes_of(self, r: int) -> int:
        """The step of a resolution."""
        return self.config.resolutions[r].step_ms // MINUTE_MS

    def observed(self, key: str, r: int) -> float:
        """By hand: what came of the open bucket."""
        begin = self.minute - self.elapsed(r)
        return sum(value for minute, value in self.heard[key] if begin <= minute < self.minute)

    def truth(self, key: str, r: int, bucket: int) -> float | None:
        """By hand: the value of a bucket; None before the key's first, or without a mean."""
        size = self.minutes_of(r)
        inside = [value for minute, value in self.heard[key] if minute // size == bucket]
        if self.config.input.aggregate == "mean":
            return float(np.mean(inside)) if inside else None
        return sum(inside) if bucket >= self.heard[key][0][0] // size else None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Copies of all its state."""
        arrays = self.scales.arrays() | {f"t.{k}": a for k, a in self.table.arrays().items()}
        return {name: array.copy() for name, array in arrays.items()}

    def restore(self, arrays: Mapping[str, NDArray[Any]], minute: int) -> None:
        """Become the one whose they are."""
        self.table.restore({k.removeprefix("t."): a for k, a in arrays.items() if k[:2] == "t."})
        self.scales.restore(arrays)
        self.minute = minute


_UTC = Calendar("UTC")


def _learner(config: Settings) -> Learner:
    steps, contexts, horizons = zip(
        *((r.step_ms, r.context, r.horizon) for r in config.resolutions), strict=True
    )
    return Learner(steps, contexts, horizons, shipped(), seed=(0,), pace=Pace())


def _assert_same(ours: Mapping[str, list[Paths]], theirs: Mapping[str, list[Paths]]) -> None:
    """The same is published of the same keys, bit for bit."""
    assert ours.keys() == theirs.keys()
    for key, paths in ours.items():
        for a, b in zip(paths, theirs[key], strict=True):
            assert (a.start_ms, a.end_ms, a.experts) == (b.start_ms, b.end_ms, b.experts)
            for name in ("mean", "quantiles", "moving_average", "level", "weights"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def _assert_same_state(ours: Told, theirs: Told) -> None:
    one, other = ours.arrays(), theirs.arrays()
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.tobytes() == other[name].tobytes(), name


def _assert_fit_to_publish(published: Mapping[str, list[Paths]]) -> None:
    for paths in published.values():
        for path in paths:
            assert np.isfinite(path.mean).all()
            assert np.isfinite(path.quantiles).all()
            assert (np.diff(path.quantiles, axis=2) >= 0).all()
            assert np.isfinite(path.weights).all()


_keys = st.sampled_from(["ann", "bob", "cyd", "dan"])
_streams = st.lists(st.dictionaries(_keys, st.integers(1, 40)), min_size=1, max_size=40)
_additive = st.sampled_from(["count", "sum"])


def _busy(aggregate: str, minutes: int, seed: int) -> list[dict[str, float]]:
    """Keys of different rates, one of which comes late and one of which falls silent."""
    rng = np.random.default_rng(seed)
    rates = {"ann": 8.0, "bob": 0.4, "cyd": 3.0, "dan": 1.5}
    since = {"ann": 0, "bob": 3, "cyd": 0, "dan": int(rng.integers(minutes))}
    until = {"cyd": int(rng.integers(1, minutes))}
    stream: list[dict[str, float]] = []
    for minute in range(minutes):
        events = {
            key: float(rng.poisson(rate))
            for key, rate in rates.items()
            if since[key] <= minute < until.get(key, minutes)
        }
        stream.append({key: value for key, value in events.items() if value})
        if aggregate != "count":
            stream[-1] = {key: value + rng.normal(-2, 5) for key, value in stream[-1].items()}
    return stream


# -- what a path says --------------------------------------------------------------------------


@effort(max_examples=30)
@given(stream=_streams, aggregate=_additive, sign=st.sampled_from([-1, 1]))
def test_minutes_add_up_to_the_open_bucket(
    stream: list[dict[str, int]], aggregate: str, sign: int
) -> None:
    """Those that are left of it, and what came of it; likewise one resolution further up.

    hop              │
    minutes          ├─┼─┼─┼─┼─┼─┼─
    5 minutes    ├─2─┼─────┼───────
    """
    told = Told(aggregate, _THREE)
    factor = sign if aggregate == "sum" else 1
    for events in stream:
        published = told.tell({key: float(factor * value) for key, value in events.items()})
        for key, paths in published.items():
            finer, seen = paths[0].mean[0], 0.0
            for r in (1, 2):
                size, part = told.minutes_of(r), told.minutes_of(r - 1)
                reach = -(-(size - told.elapsed(r)) // part)
                came = told.observed(key, r)
                total = came + finer[:reach].sum() - seen
                assert paths[r].mean[0, 0] == pytest.approx(total, rel=1e-9, abs=1e-9)
                finer, seen = paths[r].mean[0], came


@effort(max_examples=30)
@given(stream=_streams, aggregate=_additive)
def test_finer_steps_add_up_to_every_later_bucket_that_they_reach(
    stream: list[dict[str, int]], aggregate: str
) -> None:
    """Beyond the open one: thirty minutes hold up to five more of five."""
    told = Told(aggregate, _THREE)
    for events in stream:
        published = told.tell({key: float(value) for key, value in events.items()})
        for paths in published.values():
            minutes, fives = paths[0].mean[0], paths[1].mean[0]
            begin = 5 - told.elapsed(1)
            for step, five in enumerate(fives[1:]):
                inside = minutes[begin + 5 * step : begin + 5 * step + 5]
                assert five == pytest.approx(inside.sum(), rel=1e-9, abs=1e-9)


@effort(max_examples=30)
@given(stream=_streams)
def test_a_nowcast_is_never_below_the_count_so_far(stream: list[dict[str, int]]) -> None:
    """Nor is any quantile of it; a minute without events may come next."""
    told = Told("count", _THREE)
    for events in stream:
        for key, paths in told.tell({k: float(v) for k, v in events.items()}).items():
            for r in (1, 2):
                came = told.observed(key, r) if told.elapsed(r) else 0.0
                assert paths[r].mean[0, 0] >= came
                assert (paths[r].quantiles[0, 0] >= came).all()


@pytest.mark.parametrize("aggregate", ["count", "sum", "mean"])
@pytest.mark.parametrize("seed", range(2))
def test_what_is_published_is_fit_to_publish(aggregate: str, seed: int) -> None:
    """Finite and ascending, of every live key, and it begins with the open bucket."""
    told = Told(aggregate, _TWO)
    for events in _busy(aggregate, 60, seed):
        published = told.tell(events)
        assert published.keys() == told.heard.keys()
        _assert_fit_to_publish(published)
        for paths in published.values():
            for r, path in enumerate(paths):
                size = told.minutes_of(r)
                begin = told.minute // size * size
                assert path.start_ms == START_MS + begin * MINUTE_MS
                horizon = told.config.resolutions[r].horizon
                assert path.end_ms == path.start_ms + horizon * size * MINUTE_MS
                assert path.mean.shape == (1, horizon)


# -- what stands -------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregate", ["count", "sum", "mean"])
@pytest.mark.parametrize("seed", range(3))
def test_a_coarse_path_is_judged_as_it_was_published_on_its_own_boundary(
    aggregate: str, seed: int
) -> None:
    """Keep those paths in a list, and score them by hand when their time comes."""
    told = Told(aggregate, _THREE)
    levels = told.config.output.quantiles
    said: dict[tuple[int, str, int], tuple[Float64, Float64]] = {}
    landings = 0
    for events in _busy(aggregate, 100, seed):
        before = len(told.landed)
        published = told.tell(events)
        landed = told.landed[before:]
        assert [r for r, _ in landed] == [r for r in range(3) if not told.elapsed(r)]
        for r, closed in landed:
            if r == 0:  # not all of its far forecasts are kept
                continue
            bucket, score = told.minute // told.minutes_of(r) - 1, closed.score
            for g, h in enumerate(score.horizons):
                expected = _Expected(levels)
                for key in told.heard:
                    truth = told.truth(key, r, bucket)
                    if truth is not None and (r, key, bucket - h) in said:
                        mean, quantiles = said[r, key, bucket - h]
                        expected.land(truth, float(mean[h - 1]), quantiles[h - 1])
                ours = score.absolute[score.forecasters.index(PUBLISHED), g]
                assert score.count[g] == expected.count
                assert ours == pytest.approx(expected.absolute, rel=1e-5, abs=1e-5)
                slack = expected.slack + 1e-5
                assert score.pinball[g] == pytest.approx(expected.pinball, rel=1e-5, abs=slack)
                landings += expected.count
            for key, paths in published.items():
                said[r, key, bucket] = paths[r].mean[0], paths[r].quantiles[0]
    assert landings > 100


class _Expected:
    """Sums of one horizon's scores, one forecast at a time."""

    def __init__(self, levels: tuple[float, ...]) -> None:
        self._levels = np.array(levels)
        self.count, self.absolute, self.pinball = 0, 0.0, np.zeros(len(levels))
        self.slack = 0.0

    def land(self, truth: float, mean: float, quantiles: Float64) -> None:
        """Add a forecast."""
        self.count += 1
        self.absolute += abs(truth - mean)
        miss = truth - quantiles
        self.pinball += np.maximum(self._levels * miss, (self._levels - 1) * miss)
        # Kept once as said and once to be said again, each time as a distance in 11 bits.
        self.slack += 2 * float(np.abs(quantiles - mean).max()) / 2048


@pytest.mark.parametrize("aggregate", ["count", "sum", "mean"])
@pytest.mark.parametrize("horizon", [3, 7, 12])
def test_what_finer_steps_do_not_reach_stands_until_the_next_boundary(
    aggregate: str, horizon: int
) -> None:
    """Bit for bit, mean and quantiles: a forecast of five minutes is made every five minutes.

    hop              │     │
    minutes          ├┼┼┼┼┼┼┤
    at first     ├─────┼─────┼─────┼─────┤
    later        ├─────┼─────┼─────┼─────┤     the last two are the same
    """
    told = Told(aggregate, (("1m", 5, horizon), ("5m", 3, 6)))
    stood: dict[str, Paths] = {}
    compared = moved = 0
    for events in _busy(aggregate, 80, seed=horizon):
        published = told.tell(events)
        if not told.elapsed(1):
            stood = {key: paths[1] for key, paths in published.items()}
        if told.minute < 10 or not told.elapsed(1):  # until two have closed none stands
            continue
        reached = -(-(told.elapsed(1) + horizon) // 5)  # in part or to its end
        for key, paths in published.items():
            then = stood.setdefault(key, paths[1])
            np.testing.assert_array_equal(paths[1].mean[:, reached:], then.mean[:, reached:])
            np.testing.assert_array_equal(
                paths[1].quantiles[:, reached:], then.quantiles[:, reached:]
            )
            np.testing.assert_array_equal(paths[1].weights, then.weights)
            compared += 6 - reached
            moved += bool(paths[1].mean[0, 0] != then.mean[0, 0])
    assert compared > 200
    assert moved > 50


@effort(max_examples=20)
@given(stream=_streams, aggregate=aggregates)
def test_a_single_resolution_says_what_its_pool_says_alone(
    stream: list[dict[str, int]], aggregate: str
) -> None:
    """With no one to agree with."""
    told = Told(aggregate, _TWO[:1])
    table = KeyTable()
    pool = Pool(table, _UTC, told.config.resolutions[0], told.config)
    pool.window.begin(START_MS)
    for events in stream:
        values = {key: float(value) for key, value in events.items()}
        time_ms = np.full(len(values), START_MS + told.minute * MINUTE_MS)
        slots = table.intern([key.encode() for key in values], time_ms)
        pool.window.absorb(slots, time_ms, np.array(list(values.values())))
        published = told.tell(values)
        closed = pool.close()
        pool.issue()
        (_, ours) = told.landed[-1]
        np.testing.assert_array_equal(ours.score.absolute, closed.score.absolute)
        np.testing.assert_array_equal(ours.score.pinball, closed.score.pinball)
        for key, (path,) in published.items():
            slot = table.slot(key.encode())
            alone = pool.paths(np.array([slot]), pool.statement(pool.think(np.array([slot]))))
            # What thousands of keys are told at once may be summed in another order.
            np.testing.assert_allclose(path.mean, alone.mean, rtol=1e-12)
            np.testing.assert_allclose(path.quantiles, alone.quantiles, rtol=1e-12)


def test_the_network_looks_at_a_bucket_when_it_closes() -> None:
    """At each resolution what it has seen of a key changes then, and only then, once it is old."""
    told = Told("count", _TWO, network=True)
    seen: dict[int, Float64] = {}
    for minute, events in enumerate(_busy("count", 56, seed=0)):
        told.tell(events)
        ann = told.table.slot(b"ann")
        assert ann is not None
        for r, pool in enumerate(told.scales.pools):
            assert pool._lstm
            state = pool._lstm.states(np.array([ann]))[0].astype(np.float64)
            if minute and told.elapsed(r):
                np.testing.assert_array_equal(state, seen[r])
            elif minute and np.isfinite(seen[r]).all():
                assert (state != seen[r]).any()
            seen[r] = state
    assert all(np.isfinite(state).all() for state in seen.values())


# -- silence -----------------------------------------------------------------------------------


@effort(max_examples=25)
@given(
    aggregate=aggregates,
    before=st.lists(st.dictionaries(_keys, st.integers(1, 40)), min_size=1, max_size=12),
    minutes=st.integers(2, 25),
    after=st.lists(st.dictionaries(_keys, st.integers(1, 40)), max_size=3),
)
def test_a_jump_is_many_heartbeats(
    aggregate: str, before: list[Minute], minutes: int, after: list[Minute]
) -> None:
    """Up to five contexts: the same scores, the same state, and from then on the same paths."""
    _assert_jump_is_heartbeats(Told(aggregate, _TWO), Told(aggregate, _TWO), before, minutes, after)


@pytest.mark.parametrize("minutes", [3, 17])
def test_a_jump_is_many_heartbeats_to_the_network_too(minutes: int) -> None:
    """It looks, is asked and trained at every boundary within."""
    jumped, walked = (Told("count", _TWO, network=True) for _ in range(2))
    stream: list[Minute] = [*_busy("count", 23, seed=0)]
    _assert_jump_is_heartbeats(jumped, walked, stream[:20], minutes, stream[20:])
    assert jumped.scales.training_steps == walked.scales.training_steps > 0


def _assert_jump_is_heartbeats(
    jumped: Told, walked: Told, before: list[Minute], minutes: int, after: list[Minute]
) -> None:
    for events in before[:-1]:
        _assert_same(jumped.tell(events), walked.tell(events))
    ours, theirs = jumped.tell(before[-1], minutes), walked.tell(before[-1])
    for _ in range(minutes - 1):
        theirs = walked.tell({})
    _assert_same(ours, theirs)
    for (r, one), (q, other) in zip(jumped.landed, walked.landed, strict=True):
        assert (r, one.drifted) == (q, other.drifted)
        np.testing.assert_array_equal(one.score.count, other.score.count)
        np.testing.assert_array_equal(one.score.absolute, other.score.absolute)
        np.testing.assert_array_equal(one.truth, other.truth)
    _assert_same_state(jumped, walked)
    for events in after:
        _assert_same(jumped.tell(events), walked.tell(events))


@pytest.mark.parametrize("aggregate", ["count", "sum", "mean"])
@pytest.mark.parametrize("days", [1, 30, 3_650])
def test_a_long_silence_costs_no_more_than_a_short_one(aggregate: str, days: int) -> None:
    """Five contexts of each resolution and what was open; then all is well."""
    told = Told(aggregate, _TWO)
    stream = _busy(aggregate, 30, seed=0)
    for events in stream:
        told.tell(events)
    closed_before = len(told.landed)
    told.minute += 2  # not at a coarse boundary
    published = told.tell({}, days * _DAY_MINUTES)
    closed = [r for r, _ in told.landed[closed_before:]]
    for r, pool in enumerate(told.scales.pools):
        window = pool.window
        # While five contexts of minutes are remembered, five of five minutes close.
        most = window.open + 5 * window.context + 6 * r
        assert closed.count(r) <= most
        assert window.closed == told.hop_ms // window.step_ms
        assert np.isfinite(window.moving_average()).all() == (aggregate != "mean")
    assert published.keys() == told.heard.keys()
    _assert_fit_to_publish(published)
    for events in stream:
        _assert_fit_to_publish(told.tell(events))


@pytest.mark.parametrize("aggregate", ["count", "sum"])
@pytest.mark.parametrize("minutes", [31, 44, 59, 61, 62, 89, 100, 241, 1_441])
def test_after_a_silence_minutes_add_up_again(aggregate: str, minutes: int) -> None:
    """Wherever in the coarse bucket it ends; nothing is left of what came before it."""
    told = Told(aggregate, _THREE)
    for events in _busy(aggregate, 23, seed=1):
        told.tell(events)
    published = told.tell({"ann": 1_000.0}, minutes)
    for events in [{}, *_busy(aggregate, 20, seed=2)]:
        for key, paths in published.items():
            for r in (1, 2):
                left = told.minutes_of(r) - told.elapsed(r)
                total = told.observed(key, r) + paths[0].mean[0, :left].sum()
                assert paths[r].mean[0, 0] == pytest.approx(total, rel=1e-9, abs=1e-9)
        published = told.tell(events)


@pytest.mark.parametrize("aggregate", ["count", "sum", "mean"])
def test_before_a_bucket_has_closed_coarse_paths_go_on_as_finer_ones_do(aggregate: str) -> None:
    """On the whole, with intervals around them: newcomers' at once, then every four minutes."""
    told, compared, known = Told(aggregate, (*_TWO, ("15m", 2, 3))), 0, set[str]()
    fives_each, quarters_each = (1, 1) if aggregate == "mean" else (5, 3)
    for events in _busy(aggregate, 14, seed=0):
        published = told.tell(events)
        _assert_fit_to_publish(published)
        for key, (minutes, fives, quarters) in published.items():
            if told.minute == 4 or (told.minute < 4 and key not in known):
                level = fives_each * minutes.mean[0].mean()
                assert fives.mean[0, -1] == pytest.approx(level, rel=1e-6)
                assert quarters.mean[0, -1] == pytest.approx(quarters_each * level, rel=1e-6)
            for path in (fives, quarters) if told.minute < 5 else (quarters,):
                (low, _, high), mean = path.quantiles[0, 1:].T, path.mean[0, 1:]
                assert (low < high).all()
                assert ((low <= mean) & (mean <= high)).all()
                compared += 1
        known |= published.keys()
    assert compared > 30


# -- who comes and goes ------------------------------------------------------------------------


@pytest.mark.parametrize("network", [False, True])
@pytest.mark.parametrize("minute", [0, 1, 13, 14, 15, 16])
def test_a_newcomer_has_coarse_paths_at_once(minute: int, network: bool) -> None:  # noqa: FBT001
    """At its first hop, wherever in the coarse bucket; and the others' are what they were."""
    told, without = (Told("count", _TWO, network=network) for _ in range(2))
    stream = _busy("count", 15 + minute, seed=0)
    for events in stream[:-1]:
        told.tell(events)
        without.tell(events)
    published, others = told.tell({**stream[-1], "new": 4.0}), without.tell(stream[-1])
    assert published.keys() == others.keys() | {"new"}
    _assert_fit_to_publish(published)
    assert published["new"][1].mean[0, 0] >= (4.0 if told.elapsed(1) else 0.0)
    assert (published["new"][1].mean > 0).any()
    if told.elapsed(1):
        for key in others.keys() - {"new"}:
            np.testing.assert_array_equal(published[key][1].weights, others[key][1].weights)
            np.testing.assert_array_equal(published[key][1].mean[:, 3:], others[key][1].mean[:, 3:])


@pytest.mark.parametrize("aggregate", ["count", "sum", "mean"])
def test_a_newcomer_in_a_freed_slot_is_like_any_other(aggregate: str) -> None:
    """Nothing that was said of the slot while it was free is held against it."""
    told = Told(aggregate, _THREE)
    stream = _busy(aggregate, 120, seed=0)
    for minute, events in enumerate(stream):
        others = {key: value for key, value in events.items() if key != "bob"}
        if minute <= 21:
            others["gone"] = 3.0 * (minute % 7)
        if minute >= 37:
            others |= {"reused": 2.0 + minute % 5, "unused": 2.0 + minute % 5}
        published = told.tell(others)
        if minute == 21:
            (slot,) = [told.table.slot(b"gone")]
            assert told.table.forget(b"gone")
            del told.heard["gone"]
        if minute >= 37:
            assert told.table.slot(b"reused") == slot
            for ours, theirs in zip(published["reused"], published["unused"], strict=True):
                # What is kept in 11 or 24 bits may differ in the last one.
                np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-5)
                np.testing.assert_allclose(ours.quantiles, theirs.quantiles, rtol=2e-3, atol=1e-5)


# -- state -------------------------------------------------------------------------------------


@effort(max_examples=8)
@given(
    aggregate=aggregates,
    seed=st.integers(0, 99),
    middle=st.integers(1, 34),
    silence=st.sampled_from([1, 1, 4, 40]),
)
def test_restored_in_the_middle_of_an_hour_the_same_is_said(
    aggregate: str, seed: int, middle: int, silence: int
) -> None:
    """Bit for bit, by who goes on and by who was restored."""
    gone_on, restored = Told(aggregate, _THREE), Told(aggregate, _THREE)
    _assert_goes_on(gone_on, restored, _busy(aggregate, 40, seed), middle, silence)


@pytest.mark.parametrize("middle", [14, 15, 18])
def test_restored_with_the_network_the_same_is_said(middle: int) -> None:
    """Even of a newcomer, whose coarse path is made before the coarse bucket closes."""
    gone_on, restored = (Told("count", _TWO, network=True) for _ in range(2))
    stream = _busy("count", 26, seed=1)
    for minute in range(middle, 26):
        stream[minute]["new"] = 3.0
    _assert_goes_on(gone_on, restored, stream, middle, 1)


def _assert_goes_on(
    gone_on: Told, restored: Told, stream: Sequence[Minute], middle: int, silence: int
) -> None:
    for events in stream[:middle]:
        gone_on.tell(events)
    restored.restore(gone_on.arrays(), gone_on.minute)
    _assert_same_state(restored, gone_on)
    for i, events in enumerate(stream[middle:]):
        minutes = silence if i == 0 else 1
        _assert_same(restored.tell(events, minutes), gone_on.tell(events, minutes))
    _assert_same_state(restored, gone_on)
