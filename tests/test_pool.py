"""One resolution: what was said comes due at the right bucket, and is scored as it was said."""

import math
from collections import defaultdict
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from streams import settings

from stream_forecaster.calendar import Calendar
from stream_forecaster.config import Settings, parse
from stream_forecaster.keys import KeyTable
from stream_forecaster.learning import Learner
from stream_forecaster.lstm import Seats
from stream_forecaster.pace import Pace
from stream_forecaster.paths import Opinion, Paths
from stream_forecaster.pool import Pool, _averaged, horizon_buckets
from stream_forecaster.scoring import NAIVE, PUBLISHED, Score

_MINUTE_MS = 60_000
_FIRST = 29_455_200  # a minute of January 2026


class Alone:
    """The finest resolution of `settings`, without the shard around it."""

    def __init__(self, config: Settings, seats: Seats | None = None) -> None:
        self.table, self.config = KeyTable(), config
        self.pool = Pool(self.table, Calendar("UTC"), config.resolutions[0], config, seats)
        self.pool.window.begin(_FIRST * _MINUTE_MS)

    def tell(self, values: dict[str, float]) -> Score:
        """Close a bucket with one event of each key; what landed then."""
        window = self.pool.window
        time_ms = np.full(len(values), window.closed * window.step_ms)
        slots = self.table.intern([key.encode() for key in values], time_ms)
        window.absorb(slots, time_ms, np.array(list(values.values()), np.float64))
        score = self.pool.close().score
        self.pool.issue()
        return score

    def paths(self, slots: NDArray[np.int64]) -> Paths:
        """What is published of some slots."""
        return self.pool.paths(slots, self.pool.statement(self.pool.think(slots)))

    def slot(self, key: str) -> NDArray[np.int64]:
        """A key's slot (1,)."""
        return np.array([self.table.slot(key.encode())])


def _far(aggregate: str) -> Settings:
    """A horizon whose buckets end at 1, 2, 4, 7 and have their middles at 1, 2, 3, 6."""
    return parse(
        {
            "input": {"aggregate": aggregate, "value": "v"},
            "resolutions": [{"step": "1m", "context": 5, "horizon": 7}],
            "output": {"quantiles": [0.1, 0.5, 0.9]},
        }
    )


_streams = st.lists(
    st.dictionaries(st.sampled_from(["ann", "bob", "cyd"]), st.integers(-50, 50)),
    min_size=1,
    max_size=25,
)
aggregates = st.sampled_from(["sum", "mean"])


def _values(stream: list[dict[str, int]], aggregate: str) -> dict[str, list[float | None]]:
    """Key -> value of each bucket; None before its first event, or where a mean has no events."""
    out: dict[str, list[float | None]] = {}
    for t, events in enumerate(stream):
        for key in events:
            out.setdefault(key, [None] * t)
        for key, column in out.items():
            silent = None if aggregate == "mean" else 0.0
            column.append(float(events[key]) if key in events else silent)
    return out


@given(stream=_streams, aggregate=aggregates)
def test_the_last_value_errs_by_what_the_stream_moved(
    stream: list[dict[str, int]], aggregate: str
) -> None:
    """At horizon h its errors are |y[t] - y[t - h]|, by hand, over all keys and buckets."""
    alone = Alone(_far(aggregate))
    horizons = alone.pool.no_score().horizons
    values = _values(stream, aggregate)
    for t, events in enumerate(stream):
        score = alone.tell({key: float(value) for key, value in events.items()})
        for g, h in enumerate(horizons):
            errors = []
            for column in values.values():
                truth, past = column[t], [v for v in column[: max(0, t - h + 1)] if v is not None]
                if truth is not None and past:
                    errors.append(abs(truth - past[-1]))
            assert score.count[g] == len(errors)
            ours = score.absolute[score.forecasters.index(NAIVE), g]
            # It is kept as its distance from what was published, in 11 bits.
            assert ours == pytest.approx(sum(errors), rel=1e-3, abs=0.1)


@given(stream=_streams, aggregate=aggregates)
def test_what_is_scored_is_what_was_published(stream: list[dict[str, int]], aggregate: str) -> None:
    """Keep every path in a list, and score it by hand when its time comes."""
    alone = Alone(_far(aggregate))
    values, horizons = _values(stream, aggregate), alone.pool.no_score().horizons
    assert horizons == (1, 2, 3, 6)
    levels = alone.config.output.quantiles
    said: dict[tuple[str, int], tuple[Any, Any]] = {}
    for t, events in enumerate(stream):
        score = alone.tell({key: float(value) for key, value in events.items()})
        for g, h in enumerate(horizons):
            expected: dict[str, float] = defaultdict(float)
            for key, column in values.items():
                truth = column[t]
                if truth is None or (key, t - h) not in said:
                    continue
                mean, quantiles = said[key, t - h]
                expected["count"] += 1
                expected["absolute"] += abs(truth - mean[h - 1])
                expected["pinball"] += sum(
                    max(level * (truth - q), (level - 1) * (truth - q))
                    for q, level in zip(quantiles[h - 1], levels, strict=True)
                )
                # Quantiles are kept as their distance from the mean, in 11 bits.
                expected["slack"] += np.abs(quantiles[h - 1] - mean[h - 1]).sum() / 2048
            assert score.count[g] == expected["count"]
            ours = score.absolute[score.forecasters.index(PUBLISHED), g]
            assert ours == pytest.approx(expected["absolute"], rel=1e-5, abs=1e-4)
            slack = expected["slack"] + 1e-4
            ours = score.pinball[g].sum()
            assert ours == pytest.approx(expected["pinball"], rel=1e-5, abs=slack)
        for key in values:
            if alone.table.slot(key.encode()) is not None:
                paths = alone.paths(alone.slot(key))
                said[key, t] = paths.mean[0], paths.quantiles[0]


def _quarters(aggregate: str) -> Settings:
    """Quarters of a day, so that a day and a week are short."""
    return parse(
        {
            "input": {"aggregate": aggregate, "value": "v", "timezone": "UTC"},
            "resolutions": [{"step": "6h", "context": 28, "horizon": 7}],
            "output": {"quantiles": [0.1, 0.5, 0.9]},
        }
    )


@pytest.mark.parametrize("aggregate", ["sum", "mean"])
def test_a_seasonal_naive_errs_by_what_a_day_or_a_week_changed(aggregate: str) -> None:
    """|y[t] - y[t - 4]|, a step more than a day ahead y[t - 8]; else as the last value."""
    alone, rng = Alone(_quarters(aggregate)), np.random.default_rng(0)
    stream = [
        {key: int(rng.integers(-50, 50)) for key in ("ann", "bob") if rng.random() < 0.8}
        for _ in range(40)
    ]
    values, horizons = _values(stream, aggregate), alone.pool.no_score().horizons
    assert horizons == (1, 2, 3, 6)
    for t, events in enumerate(stream):
        score = alone.tell({key: float(value) for key, value in events.items()})
        for name, period in (("seasonal_naive_day", 4), ("seasonal_naive_week", 28)):
            for g, h in enumerate(horizons):
                errors, ago = [], period * (1 + (h > period))
                for column in values.values():
                    truth = column[t]
                    past = [v for v in column[: max(0, t - h + 1)] if v is not None]
                    if truth is not None and past:
                        then = column[t - ago] if t >= ago else None
                        errors.append(abs(truth - (past[-1] if then is None else then)))
                ours = score.absolute[score.forecasters.index(name), g]
                assert ours == pytest.approx(sum(errors), rel=1e-3, abs=0.1)


@given(stream=_streams, aggregate=aggregates)
def test_baselines_only_look_on(stream: list[dict[str, int]], aggregate: str) -> None:
    """With them and without, the same is forecast, and the others score the same, bit for bit."""
    config = _quarters(aggregate)
    alone, without = Alone(config), Alone(config)
    assert alone.pool._baselines
    without.pool._baselines = ()
    for events in stream:
        said = {key: float(value) for key, value in events.items()}
        score, other = alone.tell(said), without.tell(said)
        assert score.forecasters[: len(other.forecasters)] == other.forecasters
        for name in ("count", "magnitude", "pinball", "covered", "below", "at_most"):
            np.testing.assert_array_equal(getattr(score, name), getattr(other, name))
        for name in ("spoken", "absolute", "squared"):
            ours = getattr(score, name)[: len(other.forecasters)]
            np.testing.assert_array_equal(ours, getattr(other, name))
    for ours, theirs in zip(
        alone.table.arrays().values(), without.table.arrays().values(), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@given(stream=_streams, aggregate=aggregates)
def test_paths_are_fit_to_publish(stream: list[dict[str, int]], aggregate: str) -> None:
    """Finite, ascending, with weights of those who spoke that sum to one."""
    alone = Alone(settings(aggregate))
    for events in stream:
        alone.tell({key: float(value) for key, value in events.items()})
        paths = alone.paths(np.flatnonzero(alone.table.live))
        assert np.isfinite(paths.mean).all()
        assert np.isfinite(paths.quantiles).all()
        assert (np.diff(paths.quantiles, axis=2) >= 0).all()
        np.testing.assert_allclose(paths.weights.sum(axis=1), 1.0)
        assert paths.start_ms == alone.pool.window.closed * _MINUTE_MS


def test_only_the_population_speaks_for_a_newcomer() -> None:
    """The others have no opinion, and so no weight in the message."""
    alone = Alone(settings())
    for _ in range(20):
        alone.tell({"ann": 1.0})
    newcomer = alone.table.intern([b"newcomer"], np.array([0]))
    weights = dict(zip(alone.pool.experts, alone.paths(newcomer).weights[0], strict=True))
    assert weights.pop("population") == pytest.approx(1.0)
    assert all(weight == 0 for weight in weights.values())


def test_a_constant_stream_is_forecast_as_that_constant() -> None:
    """From its first closed bucket on."""
    alone = Alone(settings("sum"))
    for _ in range(30):
        alone.tell({"ann": 7.0})
        np.testing.assert_allclose(alone.paths(alone.slot("ann")).mean, 7.0, rtol=1e-5)


def test_nothing_lands_across_a_silence() -> None:
    """What was said before a skip is not scored after it."""
    alone = Alone(settings())
    for _ in range(10):
        alone.tell({"ann": 1.0})
    alone.pool.skip(alone.pool.window.closed + 1000)
    assert not alone.pool.close().score.count.any()


def test_a_slot_is_not_judged_by_what_was_said_of_its_last_key() -> None:
    """Nor by what was said while it was free."""
    alone = Alone(settings())
    for _ in range(5):
        alone.tell({"gone": 1.0, "there": 1.0})
    alone.table.forget(b"gone")
    for _ in range(5):
        alone.tell({"there": 1.0})
    assert alone.tell({"there": 1.0, "new": 1.0}).count.tolist() == [1, 1, 1]
    assert alone.slot("new") == [0]


def test_a_forecast_moves_by_a_tenth_of_its_error() -> None:
    """Newcomers count as moved, steady keys do not, a jump does."""
    alone = Alone(settings("sum"))
    rng = np.random.default_rng(0)
    for _ in range(50):
        alone.tell({"ann": 10.0 + rng.normal()})
    ann = alone.slot("ann")
    assert alone.pool.moved(ann, alone.paths(ann).mean)
    alone.pool.mark_sent(ann, alone.paths(ann).mean)
    assert not alone.pool.moved(ann, alone.paths(ann).mean)
    alone.tell({"ann": 40.0})
    assert alone.pool.moved(ann, alone.paths(ann).mean)


_NO_LESSONS = Pace(every=0)


class Coins:
    """Twenty keys that are each a level or zero, as a coin falls."""

    def __init__(self, aggregate: str = "count", pace: Pace = _NO_LESSONS) -> None:
        resolution = {"step": "1m", "context": 5, "horizon": 1}
        value = {"aggregate": aggregate} | ({} if aggregate == "count" else {"value": "v"})
        self.learner = Learner([_MINUTE_MS], [5], [1], None, seed=(0,), pace=pace)
        config = parse({"input": value, "resolutions": [resolution]})
        self.alone = Alone(config, Seats(self.learner))
        self._rng = np.random.default_rng(0)

    def close(self, level: float) -> bool:
        """Close a bucket; was a drift detected?"""
        pool = self.alone.pool
        time_ms = np.full(20, pool.window.closed * _MINUTE_MS)
        slots = self.alone.table.intern([b"%d" % i for i in range(20)], time_ms)
        pool.window.absorb(slots, time_ms, np.where(self._rng.random(20) < 0.5, level, 0.0))
        drifted = pool.close().drifted
        pool.issue()
        return drifted

    def evidence(self) -> dict[str, float]:
        """How many landed forecasts each part counts, of the population and of the keys."""
        pool, table = self.alone.pool.arrays(), self.alone.table
        names = ("fusion.exponential", "fusion.stack", "mixture.weights")
        counts = {name: pool[f"{name}.landed"] for name in names}
        counts |= {"residual": pool["calibration.residual"][..., 1]}
        counts |= {"own": table[f"pool.{_MINUTE_MS}.landed"]}
        counts |= {"own mixture": table[f"pool.{_MINUTE_MS}.mixture.landed"]}
        counts |= {"own residual": table[f"pool.{_MINUTE_MS}.residual"][..., 1]}
        return {name: array.sum() / max(array.size, 1) for name, array in counts.items()}


def test_a_drift_lasts_sixty_buckets() -> None:
    """From its detection on, the resolution says that it drifts; then it is stable again."""
    coins = Coins()
    assert not any(coins.close(10.0) for _ in range(200))
    assert not coins.alone.pool.drifting
    assert any(coins.close(2_000.0) for _ in range(60))
    lasted = 0
    while coins.alone.pool.drifting:
        lasted += 1
        assert not coins.close(0.0)
    assert lasted == 60


@pytest.mark.parametrize("aggregate", ["count", "sum"])
def test_a_drift_makes_all_that_learns_of_forecasts_forget(aggregate: str) -> None:
    """A tenth of the evidence is left, of the keys' and of the population's; it grows otherwise."""
    coins, drifted, before = Coins(aggregate), False, {}
    for n in range(260):
        before = coins.evidence()
        drifted = coins.close(10.0 if n < 200 else 2_000.0)
        if drifted:
            break
        assert all(coins.evidence()[name] >= count for name, count in before.items())
    assert drifted
    after = coins.evidence()
    for name, count in before.items():
        assert count > 50, name
        assert 0.09 * count < after[name] < 0.12 * count, name


def test_a_drift_lifts_the_pace_of_training() -> None:
    """While it lasts there is a step after every bucket, before it after one in six."""
    coins = Coins(pace=Pace(every=6, draw=4, rows=4, speaks=False))
    learner = coins.learner
    for _ in range(6):
        coins.close(10.0)
    before = learner.steps
    assert not any(coins.close(10.0) for _ in range(198))
    assert learner.steps - before == 198 // 6
    assert any(coins.close(2_000.0) for _ in range(60))
    before, lasted = learner.steps, 0
    while coins.alone.pool.drifting:
        lasted += 1
        coins.close(0.0)
    assert learner.steps - before >= lasted - 1 > 50
    before = learner.steps
    for _ in range(60):
        coins.close(0.0)
    assert learner.steps - before == 60 // 6


_horizon, _growth = st.integers(1, 1000), st.sampled_from([2, 8])
_day = st.sampled_from([1, 2, 3, 4, 6, 12, 24, 48, 96, 1440])


@given(horizon=_horizon, growth=_growth, day=_day)
def test_horizon_buckets_cover_the_horizon(horizon: int, growth: int, day: int) -> None:
    """Each ends up to so many times as far as the one before; the last is the end."""
    ends = horizon_buckets(horizon, growth, day)[0].tolist()
    assert ends[0] == 1
    assert ends[-1] == horizon
    assert all(a < b <= growth * a for a, b in pairwise(ends))
    assert day in ends or day > horizon


@given(horizon=_horizon, growth=_growth, day=_day)
def test_a_horizon_bucket_is_represented_by_its_middle_step(
    horizon: int, growth: int, day: int
) -> None:
    """As many of its steps lie below as above, or one more above; but never by whole days."""
    ends, middles = (of.tolist() for of in horizon_buckets(horizon, growth, day))
    for begin, middle, end in zip([0, *ends], middles, ends, strict=False):
        assert begin < middle <= end
        if day == 1 or (begin + 1 + end) // 2 % day:
            assert 0 <= end - middle - (middle - begin - 1) <= 1
        else:
            assert middle % day or end - begin == 1


@given(horizon=_horizon, growth=_growth, more=st.integers(0, 1000))
def test_horizon_buckets_within_a_day_are_as_if_there_were_none(
    horizon: int, growth: int, more: int
) -> None:
    """What is forecast up to a day ahead does not hang on how many steps that is."""
    of_a_day = horizon_buckets(horizon, growth, horizon + more)
    for one, other in zip(of_a_day, horizon_buckets(horizon, growth), strict=True):
        np.testing.assert_array_equal(one, other)


def test_quality_is_of_the_key() -> None:
    """Skill and coverage of one step ahead; NaN before anything has landed."""
    alone, rng = Alone(settings("sum")), np.random.default_rng(0)
    alone.tell({"ann": 1.0})
    assert all(math.isnan(float(q[0])) for q in alone.pool.quality(alone.slot("ann")))
    for _ in range(300):
        alone.tell({"ann": rng.normal(10.0, 3.0), "bob": rng.normal(0.0, 1.0)})
    skill, coverage = alone.pool.quality(alone.slot("ann"))
    assert 0.1 < skill[0] < 0.5  # a mean errs by 1 / sqrt(2) of what the last value errs by
    assert 0.65 < coverage[0] < 0.95


# -- the network -----------------------------------------------------------------------------------


def _asked_first(most: int, minutes: int = 8) -> tuple[Pool, Opinion]:
    """The opinion after so many minutes, where the network answers for so many of four keys.

    After eight it is the first one in which the network has a say.
    """
    resolution = {"step": "1m", "context": 8, "horizon": 7}
    config = parse({"model": {"network_keys": most}, "resolutions": [resolution]})
    learner = Learner([_MINUTE_MS], [8], [7], None, seed=(0,), pace=Pace(every=0))
    learner.shares[:] = 0.3, 0.2
    alone = Alone(config, Seats(learner))
    for minute in range(minutes):
        alone.tell({key: float(minute % (2 + at)) for at, key in enumerate("abcd")})
    return alone.pool, alone.pool.think(np.s_[0:4])


def test_who_is_not_asked_about_has_the_forecast_of_the_pool() -> None:
    """And nothing changes for the others: they are answered for as if all were."""
    pool, few = _asked_first(2)
    _, all_of_them = _asked_first(0)
    silent = np.isnan(few.predictions[-1, :, 0])
    assert silent.sum() == 2
    assert pool.experts[-2:] == ("lstm", "lstm_residual")
    np.testing.assert_array_equal(few.mean[silent], few.pooled[silent])
    assert np.isnan(few.predictions[-2:, silent]).all()
    assert not few.weights[silent, -2:].any()
    assert few.outside is not None
    assert all_of_them.outside is not None
    assert np.isnan(few.outside[silent]).all()
    assert (all_of_them.mean != all_of_them.pooled).any(axis=1).all()
    np.testing.assert_array_equal(few.predictions[:, ~silent], all_of_them.predictions[:, ~silent])
    for name in ("mean", "weights", "outside"):
        ours, theirs = getattr(few, name), getattr(all_of_them, name)
        np.testing.assert_array_equal(ours[~silent], theirs[~silent])
    np.testing.assert_allclose(few.weights.sum(axis=1), 1.0)


@pytest.mark.parametrize(("most", "share"), [(0, 0.5), (2, 0.25)])
def test_in_the_mean_the_network_weighs_what_it_is_asked_for(most: int, share: float) -> None:
    """Not what it would weigh if it had been asked about every key."""
    pool, _ = _asked_first(most)

    mean = pool.mean_weights()

    assert mean[-2:].sum() == pytest.approx(share)
    assert mean.sum() == pytest.approx(1.0)


def test_who_is_too_young_to_be_asked_about_carries_nothing() -> None:
    """Nor does the network appear to carry a resolution before it has spoken there."""
    pool, _ = _asked_first(0, minutes=3)

    assert pool.mean_weights()[-2:].tolist() == [0.0, 0.0]


@given(seed=st.integers(0, 2**32 - 1), keys=st.integers(0, 3))
def test_weights_of_a_path_are_those_of_its_steps_averaged(seed: int, keys: int) -> None:
    """Step by step, each with the weights of its horizon bucket."""
    weights, steps = np.random.default_rng(seed).random((keys, 3, 5)), np.array([0, 1, 2, 2, 2])
    part = np.bincount(steps) / len(steps)
    expected = weights[:, steps].mean(axis=1)
    np.testing.assert_allclose(_averaged(weights, part), expected, rtol=1e-12)
