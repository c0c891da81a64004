import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_forecaster.processes import (
    INDEPENDENT,
    Traits,
    accumulate,
    hold,
    oscillate,
    since,
    switch,
    wander,
)


def traits(spread: float, keys: int = 400, seed: int = 1) -> Traits:
    return Traits(np.random.default_rng(seed), keys, spread)


@pytest.mark.parametrize("spread", [0.1, 0.5, INDEPENDENT])
def test_traits_are_uniform_over_worlds(spread: float) -> None:
    """However alike the keys of a world are, worlds cover the whole range evenly."""
    drawn = np.array([traits(spread, keys=1, seed=seed).unit()[0] for seed in range(2000)])

    deciles = np.quantile(drawn, np.arange(1, 10) / 10)
    np.testing.assert_allclose(deciles, np.arange(1, 10) / 10, atol=0.04)


def test_a_family_resembles_itself() -> None:
    """The smaller the spread, the closer the draws; the independent have the full variance."""
    for alike, loose in ((0.05, 0.5), (0.5, INDEPENDENT)):
        near, far = traits(alike), traits(loose)
        assert near.unit().std() < far.unit().std() / 2
        assert near.normal().std() < far.normal().std()
    assert traits(INDEPENDENT).unit().std() == pytest.approx(12**-0.5, rel=0.1)
    assert traits(INDEPENDENT).normal().std() == pytest.approx(1, rel=0.1)


def test_sometimes_is_for_a_share_and_within_its_range() -> None:
    """The others have 0."""
    drawn = traits(INDEPENDENT, keys=5000).sometimes(0.3, 2, 8)

    assert (drawn > 0).mean() == pytest.approx(0.3, abs=0.03)
    assert (drawn[drawn > 0] >= 2).all()
    assert drawn.max() <= 8


def test_shocks_fade() -> None:
    """Against the sum written out."""
    shocks = np.random.default_rng(2).random((12, 2))
    decay = np.array([0.7, 5.0])
    left = np.exp(-np.arange(12)[:, None] / decay)
    expected = [(shocks[: t + 1] * left[t::-1]).sum(0) for t in range(12)]

    np.testing.assert_allclose(accumulate(shocks.copy(), decay), expected)


@pytest.mark.parametrize("decay", [0.5, 3.0, 20.0])
def test_wandering_is_stationary(decay: float) -> None:
    """Unit variance from the first bucket on, and memory of the decay asked for."""
    path = wander(np.random.default_rng(3), 60, np.full(4000, decay))

    np.testing.assert_allclose(path.std(1), 1, atol=0.05)
    assert np.mean(path[1:] * path[:-1]) == pytest.approx(np.exp(-1 / decay), abs=0.03)


def test_cycles_have_their_period() -> None:
    """Half a period ago is opposite, a period ago alike; the size stays about 1."""
    path = oscillate(np.random.default_rng(4), 400, np.full(500, 30.0), np.full(500, 12.0))[200:]

    assert path.std() == pytest.approx(1, abs=0.2)
    assert np.mean(path[6:] * path[:-6]) < -0.4 < 0.4 < np.mean(path[12:] * path[:-12])


def test_switches_stay_as_long_as_they_should() -> None:
    """Mean lengths and the share of time."""
    on = switch(np.random.default_rng(5), 3000, np.full(50, 5.0), np.full(50, 15.0))
    starts = on[1:] & ~on[:-1]

    assert on.mean() == pytest.approx(0.25, abs=0.02)
    assert on.sum() / starts.sum() == pytest.approx(5, rel=0.05)


@given(st.lists(st.tuples(st.floats(-9, 9), st.booleans()), min_size=1, max_size=20))
def test_a_stuck_value_is_the_last_fresh_one(row: list[tuple[float, bool]]) -> None:
    """Against a loop; at the very start there is nothing else to repeat."""
    values, stuck = np.array(row).T[:, :, None]
    expected = values.copy()
    for t in range(1, len(row)):
        if stuck[t]:
            expected[t] = expected[t - 1]

    np.testing.assert_array_equal(hold(values, stuck.astype(bool)), expected)


def test_since_begins_once_for_a_share() -> None:
    """And lasts to the end."""
    begun = since(traits(INDEPENDENT, keys=3000), 50, 0.4)

    assert (begun[1:] >= begun[:-1]).all()
    assert begun[-1].mean() == pytest.approx(0.4, abs=0.03)
    assert begun[25].mean() == pytest.approx(0.2, abs=0.03)
