import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_forecaster import series
from stream_forecaster.calendar import DAY_MS, HOUR_MS
from stream_forecaster.processes import INDEPENDENT, Traits
from stream_forecaster.series import LARGEST, World, generate, generate_minutes

seeds = st.integers(0, 2**32)
steps_ms = st.sampled_from([HOUR_MS // 12, HOUR_MS // 4, HOUR_MS, 6 * HOUR_MS, DAY_MS])


def worlds(*, is_count: bool, step_ms: int = HOUR_MS, buckets: int = 1344) -> list[World]:
    rng = np.random.default_rng(7)
    return [
        generate(rng, step_ms=step_ms, buckets=buckets, keys=20, is_count=is_count)
        for _ in range(40)
    ]


def mean_autocorrelation(drawn: list[World], lag: int) -> float:
    """Over all series that are there from the start and vary."""
    values = np.hstack([w.values for w in drawn])
    z = values[:, np.isfinite(values[0]) & (np.nanstd(values, axis=0) > 0)]
    z = (z - z.mean(0)) / z.std(0)
    return float((z[lag:] * z[:-lag]).mean())


@settings(max_examples=40)
@given(
    seed=seeds,
    step_ms=steps_ms,
    buckets=st.integers(1, 400),
    keys=st.integers(1, 30),
    is_count=st.booleans(),
)
def test_a_world_is_what_it_says(
    *, seed: int, step_ms: int, buckets: int, keys: int, is_count: bool
) -> None:
    """Law: shape, clock and range hold for every seed and size; no value is missing after birth."""
    world = generate(
        np.random.default_rng(seed), step_ms=step_ms, buckets=buckets, keys=keys, is_count=is_count
    )
    born = np.isfinite(world.values)

    assert world.values.shape == (buckets, keys)
    assert (world.step_ms, world.is_count, world.start_ms % step_ms) == (step_ms, is_count, 0)
    assert (born[1:] >= born[:-1]).all()
    assert born[-1].all()
    assert np.nanmax(np.abs(world.values)) < LARGEST + 1
    if is_count:
        assert (world.values[born] >= 0).all()
        assert (world.values[born] == np.floor(world.values[born])).all()


@settings(max_examples=20)
@given(
    seed=seeds,
    live_hours=st.integers(1, 12),
    earlier=st.integers(0, 40),
    is_count=st.booleans(),
)
def test_the_minutes_of_an_hour_sum_to_it(
    *, seed: int, live_hours: int, earlier: int, is_count: bool
) -> None:
    """Law: exactly so, births included; the minutes begin where they say."""
    hourly, minutely = generate_minutes(
        np.random.default_rng(seed),
        hours=earlier + live_hours,
        live_hours=live_hours,
        keys=9,
        is_count=is_count,
    )
    sums = minutely.values.reshape(live_hours, 60, 9).sum(1)

    np.testing.assert_array_equal(sums, hourly.values[earlier:])
    assert minutely.start_ms == hourly.start_ms + earlier * HOUR_MS
    assert minutely.step_ms * 60 == hourly.step_ms
    if is_count:
        born = minutely.values[np.isfinite(minutely.values)]
        assert (born >= 0).all()
        assert (born == np.floor(born)).all()


@settings(max_examples=5)
@given(seed=seeds, is_count=st.booleans())
def test_the_generator_is_everything(*, seed: int, is_count: bool) -> None:
    """Law: the same state gives the same bits, and another state another world."""
    one, same, other = (
        generate_minutes(
            np.random.default_rng(s), hours=60, live_hours=2, keys=8, is_count=is_count
        )
        for s in (seed, seed, seed + 1)
    )

    for a, b in zip(one, same, strict=True):
        assert a.start_ms == b.start_ms
        assert a.values.tobytes() == b.values.tobytes()
    assert one[0].values.tobytes() != other[0].values.tobytes()


@pytest.mark.parametrize("is_count", [True, False])
def test_days_and_weeks_return(*, is_count: bool) -> None:
    """What was a day or a week ago says more than what was 11 hours or 5.5 days ago."""
    drawn = worlds(is_count=is_count)
    day, week, no_day, no_week = (mean_autocorrelation(drawn, lag) for lag in (24, 168, 11, 132))

    assert day > no_day + 0.15
    assert week > no_week + 0.15


def test_the_weekend_is_on_the_calendar() -> None:
    """Over many series Saturday and Sunday differ from the week more than other pairs of days."""
    contrasts = np.zeros(7)
    for world in worlds(is_count=True, step_ms=DAY_MS, buckets=280):
        logs = np.log1p(world.values[:, np.isfinite(world.values[0])])
        weekday = (world.start_ms // DAY_MS + 3 + np.arange(280)) % 7
        for day in range(7):
            pair = (weekday == day) | (weekday == (day + 1) % 7)
            contrasts[day] += np.abs(logs[pair].mean(0) - logs[~pair].mean(0)).mean()

    assert contrasts.argmax() == 5
    assert contrasts[5] > 1.3 * np.median(contrasts)


def test_users_are_of_every_age_and_size() -> None:
    """Around 30 % are born late; rates span orders of magnitude; many buckets are empty."""
    values = np.hstack([w.values for w in worlds(is_count=True)])
    born_late = np.isnan(values[0])
    old = values[:, ~born_late]

    assert born_late.mean() == pytest.approx(0.3, abs=0.06)
    assert np.quantile(old.mean(0), 0.9) > 1000 * np.quantile(old.mean(0), 0.1)
    assert 0.2 < (old == 0).mean() < 0.7


def strangers() -> Traits:
    return Traits(np.random.default_rng(3), 3000, INDEPENDENT)


def test_some_stop_for_ever_and_some_pause() -> None:
    """Whoever is gone is gone at once; most are always there."""
    there = series._presence(strangers(), 800) > 0

    assert (~there[-200:]).all(0).mean() == pytest.approx(0.07 * 0.75, abs=0.03)
    assert there.all(0).mean() == pytest.approx(0.75, abs=0.1)


def test_newcomers_rise_and_fade() -> None:
    """Interest in what is new settles; among the old only a few lose theirs."""
    age = np.arange(500)[:, None] - np.repeat([0, 100], 1500)
    life = series._life(strangers(), age)
    old, new = life[:, :1500], life[100:, 1500:]

    assert (old == 0).all(0).mean() == pytest.approx(0.94, abs=0.03)
    assert (old <= 0).all()
    assert (new[0] > 0.5).mean() > 0.2 < (new[0] < -0.5).mean()
    assert (new[-1] < -1).mean() > 0.1


def test_bursts_are_rare_and_decay() -> None:
    """Never less than usual; for most series nothing, for some now and then much more."""
    more = series._bursts(strangers(), 800)
    bursty = (more > 3).any(0)

    assert (more >= 0).all()
    assert (more == 0).all(0).mean() == pytest.approx(0.7, abs=0.06)
    assert 0.15 < bursty.mean() < 0.3
    assert np.median((more[:, bursty] > 1).mean(0)) < 0.15


def test_counts_are_over_dispersed_but_timetables_are_not() -> None:
    """Most vary more than Poisson around their mean; a few repeat week by week."""
    values = np.hstack([w.values for w in worlds(is_count=True)])
    old = values[:, np.isfinite(values[0])]
    apart = np.abs(old[168:] - old[:-168]).mean(0)

    assert np.median(old.var(0) / np.maximum(old.mean(0), 1e-9)) > 1.5
    assert 0.003 < ((apart < 0.05 * old.std(0)) & (old.std(0) > 0)).mean() < 0.1


def test_real_values_are_of_many_kinds() -> None:
    """Some cross zero, some never do, some are exactly zero often."""
    values = np.hstack([w.values for w in worlds(is_count=False)])
    lowest, zeros = np.nanmin(values, axis=0), np.nanmean(values == 0, axis=0)

    for kind in (lowest < 0, lowest > 0, zeros > 0.1):
        assert 0.1 < kind.mean() < 0.8


def test_some_worlds_are_families() -> None:
    """In some worlds the keys move together, in others they have nothing in common."""
    together = []
    for world in worlds(is_count=False, buckets=672):
        old = world.values[:, np.isfinite(world.values[0])]
        together.append(np.median(np.corrcoef(old[:, old.std(0) > 0].T)))

    assert max(together) > 0.5
    assert sum(abs(c) < 0.1 for c in together) > 10
