"""Agreement on small examples: nowcasts by hand, and coarse paths that earn their say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stream_forecaster.agreement import Agreement, draw_in, moved_along, steps_at
from stream_forecaster.calendar import HOUR_MS, Calendar
from stream_forecaster.config import Resolution
from stream_forecaster.keys import KeyTable

Float64 = NDArray[np.float64]

_UTC = Calendar("UTC")
_START_MS = 1_767_225_600_000  # 2026-01-01 00:00 UTC
_QUARTER_MS = HOUR_MS // 4


class Two:
    """Quarters of an hour (horizon 4) and hours (horizon 2) of some keys."""

    def __init__(self, keys: int = 1, aggregate: str = "count", horizon: int = 4) -> None:
        self.table, self.keys, self.aggregate = KeyTable(), keys, aggregate
        self.resolutions = [
            Resolution(step="15m", context=4, horizon=horizon),
            Resolution(step="1h", context=4, horizon=2),
        ]
        self.agreement = self.fresh(self.table)
        names = [b"%d" % i for i in range(keys)]
        self.slots = self.table.intern(names, np.zeros(keys, np.int64))

    def fresh(self, table: KeyTable) -> Agreement:
        """An agreement that has learned nothing."""
        is_count, is_mean = self.aggregate == "count", self.aggregate == "mean"
        return Agreement(table, self.resolutions, is_count=is_count, is_mean=is_mean)

    def at(
        self, quarter: int, fine: Float64 | float, coarse: Float64 | float, observed: float = 0.0
    ) -> tuple[Float64, Float64]:
        """What is agreed so many quarters into the first hour: (K, 4) and (K, 2)."""
        steps = steps_at(_START_MS + quarter * _QUARTER_MS, _UTC, self.resolutions)
        means = [
            np.broadcast_to(mean, (self.keys, r.horizon)).astype(np.float64)
            for mean, r in zip((fine, coarse), self.resolutions, strict=True)
        ]
        seen = np.full(self.keys, observed)
        errors = [np.ones_like(mean) for mean in means]
        fine_, coarse_ = self.agreement.agree(self.slots, steps, means, errors, [seen, seen])
        return fine_, coarse_

    def live(self, hours: int, fine: Float64, coarse: Float64, truth: Float64) -> None:
        """Hours with forecasts `fine` (4,) and `coarse`, random around (N,) `truth`."""
        for hour in range(hours):
            self.at(0, fine, coarse[hour])
            self.agreement.learn(1, np.full(self.keys, truth[hour]))


def test_an_open_bucket_is_what_came_and_what_its_finer_steps_will_bring() -> None:
    """A quarter into the hour: 7 came, and three of the four quarters forecast fall into it.

    hop        │
    quarters   ├─1─┼─2─┼─3─┼─4─┤
    hour   ├─7─┼───────────┤
    """
    fine, coarse = Two().at(1, np.array([1.0, 2.0, 3.0, 4.0]), 6.0, observed=7.0)
    np.testing.assert_allclose(coarse, [[13.0, 6.0]])
    np.testing.assert_allclose(fine, [[1.0, 2.0, 3.0, 4.0]])


def test_beyond_the_reach_of_finer_steps_the_coarse_path_has_its_share() -> None:
    """Half an hour is covered, of the rest it has told its half.

    hop        │
    quarters   ├─1─┼─1─┤
    hour       ├───────┼─ 6/2 ─┤
    """
    two = Two(horizon=2, aggregate="sum")
    two.agreement._population[1] = [0.0, 9e9, 1.0]  # learned: the coarse path knows nothing
    fine, coarse = two.at(0, 1.0, 6.0)
    np.testing.assert_allclose(coarse, [[5.0, 6.0]], rtol=1e-6)
    np.testing.assert_allclose(fine, [[1.0, 1.0]], rtol=1e-6)


def test_the_coarse_path_has_a_tenth_before_anything_is_known() -> None:
    """Four quarters of 1 and an hour of 6 become 4.2; counts are scaled, real values moved."""
    halves = np.array([0.5, 0.5, 1.5, 1.5])
    fine, coarse = Two().at(0, halves, 6.0)
    np.testing.assert_allclose(coarse, [[4.2, 6.0]])
    np.testing.assert_allclose(fine, [halves * 1.05])
    fine, coarse = Two(aggregate="sum").at(0, halves, 6.0)
    np.testing.assert_allclose(coarse, [[4.2, 6.0]])
    np.testing.assert_allclose(fine, [halves + 0.05])


def test_what_a_coarse_path_differed_by_is_kept_as_its_bucket_goes_by() -> None:
    """It said 2 more than its quarters at its issue; half an hour later that is worth 1.

    The prior slope there is a fortieth. That its steps changed their mind does not count for it.
    """
    two = Two(aggregate="sum")
    two.at(0, 1.0, 6.0)
    _, coarse = two.at(2, 3.0, 6.0, observed=10.0)
    np.testing.assert_allclose(coarse[0, 0], 10.0 + 6.0 + 1.0 / 40)


def test_a_bucket_that_no_hop_began_has_no_gap() -> None:
    """Its finer steps stand alone, whatever the last bucket's path differed by."""
    two = Two(aggregate="sum")
    two.at(0, 1.0, 6.0)
    two.agreement.learn(1, np.array([4.0]))
    _, coarse = two.at(2, 3.0, 60.0, observed=10.0)
    np.testing.assert_allclose(coarse[0, 0], 16.0)


def test_of_a_bucket_under_way_the_rest_is_a_share_of_what_is_left() -> None:
    """A quarter is gone, a quarter is covered: of 8 in an hour two quarters are 4."""
    _, coarse = Two(horizon=1).at(1, 1.0, 8.0, observed=7.0)
    np.testing.assert_allclose(coarse, [[12.0, 8.0]])


def test_counts_stay_counts() -> None:
    """A path below zero, one next to nothing, and one with less to come than was thought."""
    for fine in (-1.0, 1e-300):
        said, coarse = Two().at(0, fine, 8.0)
        np.testing.assert_allclose(said, [[0.2] * 4])
        np.testing.assert_allclose(coarse, [[0.8, 8.0]])
    two = Two()
    two.at(0, 5.0, 0.0)
    fine_, coarse = two.at(2, 0.1, 0.0, observed=3.0)
    assert (fine_ >= 0).all()
    assert coarse[0, 0] >= 3.0


def test_a_mean_is_weighted_by_time() -> None:
    """A quarter of 8 and three of 4 are an hour of 5; where nothing came, the rest stands alone."""
    two = Two(aggregate="mean")
    _, coarse = two.at(1, 4.0, 4.0, observed=8.0)
    np.testing.assert_allclose(coarse, [[5.0, 4.0]])
    _, coarse = two.at(1, 4.0, 4.0, observed=np.nan)
    np.testing.assert_allclose(coarse, [[4.0, 4.0]])


def test_what_is_silent_is_filled_evenly() -> None:
    """Quarters forecast as zero have nothing to scale."""
    fine, coarse = Two().at(0, 0.0, 8.0)
    np.testing.assert_allclose(coarse[0, 0], 0.8)
    np.testing.assert_allclose(fine, [[0.2] * 4])


@pytest.mark.parametrize("keys", [1, 20])
def test_the_path_that_knows_better_is_believed(keys: int) -> None:
    """After two hundred hours within a tenth of it, be it the coarse or the fine one."""
    rng = np.random.default_rng(0)
    truth = rng.normal(20.0, 3.0, 200)
    guess = rng.normal(20.0, 3.0, 200)
    coarse_knows, fine_knows = Two(keys, "sum"), Two(keys, "sum")
    coarse_knows.live(200, np.full(4, 5.0), truth, truth)
    fine_knows.live(200, np.full(4, 5.0), guess, np.full(200, 20.0))
    _, coarse = coarse_knows.at(0, 5.0, 24.0)
    assert coarse[0, 0] > 23.6
    _, coarse = fine_knows.at(0, 5.0, 24.0)
    assert coarse[0, 0] < 20.4


@pytest.mark.parametrize("seed", range(5))
def test_what_may_be_chance_is_not_believed(seed: int) -> None:
    """Two hundred hours with a coarse path that has nothing to do with what comes."""
    rng = np.random.default_rng(seed)
    two = Two(aggregate="sum")
    two.live(200, np.full(4, 5.0), rng.normal(20.0, 1.0, 200), rng.normal(20.0, 1.25, 200))
    _, coarse = two.at(0, 5.0, 24.0)
    assert 20.0 <= coarse[0, 0] < 20.05


def test_a_coarse_path_is_never_outdone() -> None:
    """Where the truth goes twice as far as it says, or the other way, agreement stays between."""
    said = np.random.default_rng(0).normal(20.0, 3.0, 200)
    for factor, expected in ((2.0, 24.0), (-2.0, 20.0)):
        two = Two(aggregate="sum")
        two.live(200, np.full(4, 5.0), said, 20.0 + factor * (said - 20.0))
        _, coarse = two.at(0, 5.0, 24.0)
        assert coarse[0, 0] == pytest.approx(expected)


def test_each_key_learns_whom_to_believe() -> None:
    """Of two keys one has a coarse path that is right, the other one that is not."""
    two, rng = Two(2, "sum"), np.random.default_rng(0)
    for _ in range(200):
        said = rng.normal(20.0, 3.0, 2)
        two.at(0, 5.0, np.tile(said[:, None], (1, 2)))
        two.agreement.learn(1, np.array([said[0], 20.0]))
    _, coarse = two.at(0, 5.0, 24.0)
    assert coarse[0, 0] > 23.0
    assert coarse[1, 0] < 21.0


def test_only_what_was_said_of_a_bucket_lands() -> None:
    """A missing truth, a closed bucket and a quarter without a hop teach nothing."""
    two = Two()
    two.at(0, 1.0, 8.0)
    two.agreement.learn(1, np.array([np.nan]))
    two.agreement.learn(1, np.array([8.0]))
    assert not two.agreement.arrays()["population"].any()
    two.at(1, 1.0, 8.0)
    two.agreement.learn(1, np.array([8.0]))
    assert two.agreement.arrays()["population"][1, :, 2].tolist() == [0.0, 1.0, 0.0, 0.0]


def test_the_last_word_of_a_quarter_counts() -> None:
    """It is what lands: as a bucket goes by, its fine path learns, and the coarse one ages."""
    last, both = Two(horizon=60), Two(horizon=60)
    for two in (last, both):
        two.resolutions[0] = Resolution(step="5m", context=4, horizon=60)
        two.agreement = two.fresh(KeyTable())
        two.agreement._table.intern([b"0"], np.zeros(1, np.int64))
        for minute, heard in ((0, 1.0), (10, 6.0)):
            steps = steps_at(_START_MS + minute * 60_000, _UTC, two.resolutions)
            means = [np.full((1, 60), heard), np.full((1, 2), 20.0)]
            if two is last and not minute:
                means[0] += 3.0
                means[1] += 12 * 3.0
            two.agreement.agree(two.slots, steps, means, means, [np.zeros(1)] * 2)
        two.agreement.learn(1, np.array([90.0]))
    np.testing.assert_array_equal(
        last.agreement.arrays()["population"], both.agreement.arrays()["population"]
    )


def test_a_restored_agreement_goes_on() -> None:
    """From the key table and its own arrays."""
    gone_on, rng = Two(3), np.random.default_rng(0)
    restored = Two(3)
    gone_on.live(20, np.full(4, 5.0), rng.normal(20.0, 3.0, 20), rng.normal(20.0, 3.0, 20))
    gone_on.at(0, 4.0, 21.0)
    restored.table.restore({k: v.copy() for k, v in gone_on.table.arrays().items()})
    restored.agreement.restore({k: v.copy() for k, v in gone_on.agreement.arrays().items()})
    np.testing.assert_array_equal(restored.agreement._population, gone_on.agreement._population)
    for ours, theirs in zip(restored.at(2, 3.0, 21.0), gone_on.at(2, 3.0, 21.0), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_quantiles_of_an_open_bucket_draw_in() -> None:
    """With half of it observed the variance is half; no count is less than what has come."""
    steps = steps_at(_START_MS + 2 * _QUARTER_MS, _UTC, Two().resolutions)[1]
    agreed, observed = np.array([[20.0, 30.0]]), np.array([10.0])
    quantiles = np.array([[[0.0, 20.0, 40.0], [15.0, 30.0, 60.0]]])
    drawn = quantiles.copy()
    draw_in(drawn, agreed, steps, observed, is_count=True)
    wide = 20.0 * np.sqrt(0.5)
    np.testing.assert_allclose(drawn[0], [[10.0, 20.0, 34.0], [15.0, 30.0, 60.0]])
    drawn = quantiles.copy()
    draw_in(drawn, agreed, steps, observed, is_count=False)
    np.testing.assert_allclose(drawn[0], [[20.0 - wide, 20.0, 20.0 + wide], [15.0, 30.0, 60.0]])


def test_quantiles_move_with_their_mean() -> None:
    """Counts by a factor, which nothing has none of; real values by what the mean moved."""
    quantiles = np.array([[[10.0, 20.0, 40.0], [0.0, 0.0, 1.0]]])
    mean, agreed = np.array([[20.0, 0.0]]), np.array([[30.0, 2.0]])
    moved = moved_along(quantiles, mean, agreed, is_count=True)
    np.testing.assert_allclose(moved[0], [[15.0, 30.0, 60.0], [0.0, 0.0, 1.0]])
    moved = moved_along(quantiles, mean, agreed, is_count=False)
    np.testing.assert_allclose(moved[0], [[20.0, 30.0, 50.0], [2.0, 2.0, 3.0]])


def test_what_came_of_an_open_bucket_is_added_up_until_it_closes() -> None:
    """Sums are sums; of means, the mean of the buckets that had events."""
    for aggregate, quarters, expected in (
        ("sum", [3.0, np.nan, 5.0], 8.0),
        ("mean", [3.0, np.nan, 5.0], 4.0),
        ("mean", [np.nan], np.nan),
    ):
        two = Two(aggregate=aggregate)
        for quarter in quarters:
            two.agreement.observe(np.array([quarter]))
        none, came = two.agreement.observed(two.slots)
        np.testing.assert_array_equal([*none, *came], [0.0, expected])
        two.agreement.learn(1, np.array([9.0]))
        nothing = np.nan if aggregate == "mean" else 0.0
        np.testing.assert_array_equal(two.agreement.observed(two.slots)[1], [nothing])


@given(
    minutes=st.integers(0, 60 * 24 * 400),
    zone=st.sampled_from(["UTC", "Asia/Kolkata", "America/Santiago"]),
    horizons=st.tuples(st.integers(1, 70), st.integers(1, 30), st.integers(1, 7)),
)
def test_a_finer_step_belongs_to_the_coarse_one_that_it_begins_in(
    minutes: int, zone: str, horizons: tuple[int, int, int]
) -> None:
    """Counted one by one."""
    calendar, hop_ms = Calendar(zone), _START_MS + minutes * 60_000
    resolutions = [
        Resolution(step=step, context=4, horizon=horizon)
        for step, horizon in zip(("1m", "1h", "1d"), horizons, strict=True)
    ]
    finer_ms = np.array([hop_ms])
    for steps, each in zip(steps_at(hop_ms, calendar, resolutions), resolutions, strict=True):
        index = int(calendar.index(hop_ms, each.step_ms))
        start_ms = calendar.start(index + np.arange(each.horizon + 1), each.step_ms)
        edges_ms = np.maximum(start_ms, hop_ms)
        owners: dict[int, list[int]] = {}
        for i, begin_ms in enumerate(finer_ms[:-1]):
            owner = int(calendar.index(int(begin_ms), each.step_ms)) - index
            if owner < each.horizon and (owner == 0 or edges_ms[owner + 1] <= finer_ms[-1]):
                owners.setdefault(owner, []).append(i)
        has_rest = len(finer_ms) > 1 and finer_ms[-1] < edges_ms[1]
        assert steps.covered.tolist() == list(owners)
        assert steps.first.tolist() == [parts[0] for parts in owners.values()]
        assert steps.sizes.tolist() == [len(parts) + has_rest for parts in owners.values()]
        np.testing.assert_array_equal(steps.left_ms, np.diff(edges_ms))
        finer_ms = edges_ms
