"""Laws: of every expert; that fusing them pays; that calibrated quantiles cover."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from stream_forecaster.calendar import Calendar
from stream_forecaster.calibration import Calibration
from stream_forecaster.config import Resolution
from stream_forecaster.experts import Expert, pool
from stream_forecaster.fusion import Fusion
from stream_forecaster.keys import KeyTable
from stream_forecaster.windows import Window

Float64 = NDArray[np.float64]

_KEYS = 4
_HORIZON = 5
_AHEAD = np.arange(1, _HORIZON + 1)
_FIRST_MS = 1_767_312_000_000  # 2026-01-02 00:00 UTC


class _Kind(NamedTuple):
    """A kind of pool.

    Attributes:
        step: width of a bucket.
        context: how many are remembered.
        lean: is it one for many keys?
        clean: after so many buckets without gaps everyone in it has an opinion.
        who: is told the laws; in the order of the pool, but not all of it.
    """

    step: str
    context: int
    lean: bool
    clean: int
    who: tuple[str, ...]


_KINDS = {
    "minutes": _Kind(
        "1m",
        12,
        lean=False,
        clean=25,
        who=(
            "last_value",
            "moving_average",
            "ma_3",
            "ewma_fast",
            "ewma_medium",
            "ewma_slow",
            "seasonal_day",
            "seasonal_week",
            "day_type_fast",
            "day_type_slow",
            "population",
            "ridge",
            "ridge_key",
            "dlinear",
            "day_type_fast_ridge",
            "day_type_slow_ridge",
            "river_HoltWinters",
            "river_SNARIMAX",
        ),
    ),
    # Others have all that they want of a context of 12.
    "many": _Kind("1m", 77, lean=False, clean=73, who=("ridge_long",)),
    "days": _Kind("1d", 12, lean=False, clean=18, who=("seasonal_week", "seasonal_week_ridge")),
    # Of two newest values, and of an hour of each type of day.
    "lean": _Kind(
        "1h",
        12,
        lean=True,
        clean=25,
        who=("last_value", "day_type_fast", "ridge", "ridge_key", "day_type_fast_ridge"),
    ),
}
_NAMES = [f"{kind}-{name}" for kind, told in _KINDS.items() for name in told.who]

experts = pytest.mark.parametrize("name", _NAMES)
a_few = settings(max_examples=15)  # of each law, for each of these experts
_warm = st.booleans()
_any = st.floats(-1e15, 1e15)
_values = st.one_of(
    [
        npst.arrays(np.float64, st.tuples(st.integers(0, longest), st.just(_KEYS)), elements=values)
        for longest, values in ((12, st.one_of(st.just(np.nan), _any)), (40, _any))
    ]
)


class Stream:
    """One expert beside its window, told a stream of means (so that buckets may be missing)."""

    def __init__(self, name: str, *, warm: bool = False) -> None:
        """`warm`: after as many clean buckets as it takes for an opinion."""
        kind, _, self.name = name.partition("-")
        self.kind = _KINDS[kind]
        self.table, calendar = KeyTable(), Calendar("UTC")
        resolution = Resolution(step=self.kind.step, context=self.kind.context, horizon=_HORIZON)
        self.window = Window(self.table, calendar, resolution, open_span_ms=1, is_mean=True)
        self.window.begin(_FIRST_MS)
        lean, river = self.kind.lean, ("HoltWinters", "SNARIMAX")
        everyone = {
            expert.name: expert
            for expert in pool(
                self.table, calendar, self.window, resolution, lean=lean, river=river
            )
        }
        self.everyone = tuple(everyone)
        self.expert: Expert = everyone[self.name]
        # Whom it asks, who have learned before it: of the newest values, and of its season.
        asked = (everyone["last_value"], everyone[self.name.removesuffix("_ridge")])
        self._taught = tuple(dict.fromkeys((*asked, self.expert)))
        self.keys = [b"%d" % i for i in range(_KEYS)]
        self.table.intern(self.keys, np.zeros(_KEYS, np.int64))
        if warm:
            self.tell(self.clean())

    def clean(self) -> Float64:
        """(N, K) values without gaps, as many as it takes for an opinion."""
        return np.random.default_rng(0).normal(3.0, 0.1, (self.kind.clean, _KEYS))

    def tell(self, values: Float64) -> Float64:
        """Close one bucket after another, of values (N, K); what is forecast then (K, H)."""
        for row in values:
            self.tell_one(row)
        return self.forecast()

    def tell_one(self, row: Float64) -> None:
        """Close one bucket of values (K,)."""
        slots, index = np.flatnonzero(~np.isnan(row)), self.window.closed
        time_ms = np.full(len(slots), index * self.window.step_ms)
        self.window.absorb(slots, time_ms, row[slots])
        closed = self.window.close()
        before = closed.copy()
        for expert in self._taught:
            expert.learn(index, closed)
        np.testing.assert_array_equal(closed, before)

    def forecast(self) -> Float64:
        """(K, H) for all keys."""
        said = self.expert.predict(np.s_[:], self.window.closed - 1, _AHEAD)
        assert said.dtype == np.float64
        assert said.shape in {(_KEYS, 1), (_KEYS, _HORIZON)}
        return np.broadcast_to(said, (_KEYS, _HORIZON))


@pytest.mark.parametrize("kind", _KINDS)
def test_every_expert_is_told_the_laws(kind: str) -> None:
    """Of the usual pool all of them, and of the others whom there is none like in it."""
    who = _KINDS[kind].who
    everyone = Stream(f"{kind}-{who[0]}").everyone
    assert who == tuple(name for name in everyone if name in who)
    assert kind != "minutes" or who == everyone


@experts
def test_an_expert_has_an_opinion(name: str) -> None:
    """Of every key and step, once it has seen so many buckets without gaps; else laws are void."""
    assert np.isfinite(Stream(name, warm=True).forecast()).all()


@experts
@a_few
@given(values=_values, warm=_warm)
def test_forecasts_are_finite_or_no_opinion(name: str, values: Float64, *, warm: bool) -> None:
    """Of the right shape, whatever was learned, and learning leaves its input as it was."""
    assert not np.isinf(Stream(name, warm=warm).tell(values)).any()


@experts
@a_few
@given(values=_values, warm=_warm)
def test_forecasting_changes_nothing(name: str, values: Float64, *, warm: bool) -> None:
    """Asked twice, an expert says the same, and learns the same afterwards."""
    asked, left_alone = Stream(name, warm=warm), Stream(name, warm=warm)
    for row in values:
        asked.tell_one(row)
        left_alone.tell_one(row)
        np.testing.assert_array_equal(asked.forecast(), asked.forecast())
    np.testing.assert_array_equal(asked.forecast(), left_alone.forecast())


@experts
@a_few
@given(values=_values, slots=st.permutations(range(_KEYS)), warm=_warm)
def test_a_key_is_forecast_alike_alone_and_among_others(
    name: str, values: Float64, slots: list[int], *, warm: bool
) -> None:
    """Which keys are asked for together does not matter, up to the rounding of a matrix product."""
    stream = Stream(name, warm=warm)
    together = stream.tell(values)
    index = stream.window.closed - 1
    picked = np.array(slots[:2])
    said = stream.expert.predict(picked, index, _AHEAD)
    rounding = 1e-9 * np.nanmax(np.abs(values), initial=3.0)
    np.testing.assert_allclose(
        np.broadcast_to(said, (2, _HORIZON)), together[picked], rtol=1e-9, atol=rounding
    )


@experts
def test_an_expert_is_honest_when_cold(name: str) -> None:
    """Before a key's first value it has no opinion; only the population speaks for a newcomer."""
    stream = Stream(name)
    values = np.tile(stream.clean(), (2, 1))
    values[:, 2:] = np.nan
    said = stream.tell(values)
    known, newcomers = said[:2], said[2:]
    assert np.isfinite(known).all()
    if stream.name == "population":
        np.testing.assert_allclose(newcomers, 3.0, rtol=0.1)
    else:
        assert np.isnan(newcomers).all()


@experts
@a_few
@given(
    level=st.floats(-1e6, 1e6),
    buckets=st.integers(1, 30),
)
def test_a_constant_is_forecast_as_itself(name: str, level: float, buckets: int) -> None:
    """From the first bucket on, to single precision, by all who have an opinion."""
    said = Stream(name).tell(np.full((buckets, _KEYS), level))
    known = said[~np.isnan(said)]
    np.testing.assert_allclose(known, level, rtol=1e-5, atol=1e-6)


@experts
def test_memory_does_not_grow_with_time(name: str) -> None:
    """Neither the columns nor what is kept of the population."""
    stream, rng = Stream(name), np.random.default_rng(0)

    def size() -> int:
        kept = sum(array.nbytes for array in stream.expert.arrays().values())
        return stream.table.nbytes + kept

    stream.tell(rng.normal(size=(10, _KEYS)))
    before = size()
    stream.tell(rng.normal(size=(500, _KEYS)))
    assert size() == before


@experts
@a_few
@given(values=_values, more=_values, warm=_warm)
def test_a_restored_expert_goes_on(
    name: str, values: Float64, more: Float64, *, warm: bool
) -> None:
    """From the key table and its own arrays."""
    gone_on, restored = Stream(name, warm=warm), Stream(name)
    gone_on.tell(values)
    restored.table.restore({k: v.copy() for k, v in gone_on.table.arrays().items()})
    restored.window.restore(gone_on.window.arrays())
    restored.expert.restore({k: v.copy() for k, v in gone_on.expert.arrays().items()})
    np.testing.assert_array_equal(restored.tell(more), gone_on.tell(more))


@experts
@a_few
@given(values=_values, warm=_warm)
def test_a_slot_keeps_nothing_of_its_last_key(name: str, values: Float64, *, warm: bool) -> None:
    """Who comes into a freed row is forecast as any newcomer."""
    stream = Stream(name, warm=warm)
    stream.tell(values)
    stream.table.forget(b"2")
    slot = stream.table.intern([b"newcomer"], np.array([0]))
    never_used = stream.table.intern([b"other"], np.array([0]))
    index = stream.window.closed - 1
    said, expected = (stream.expert.predict(s, index, _AHEAD) for s in (slot, never_used))
    np.testing.assert_array_equal(said, expected)


# -- fusion ------------------------------------------------------------------------------------


def _fuse_along(
    noise: Float64, keys: int, seed: int, forget_at: int = -1
) -> tuple[Float64, Float64]:
    """Fuse experts who are wrong by `noise` (N, M) standard deviations of the truth.

    Where the noise is NaN, the expert is silent. Just before bucket `forget_at` the fusion is told
    of a drift. Returns mean squared errors by bucket: the experts' (N, M) and the fused (N,).
    """
    rng, (buckets, m) = np.random.default_rng(seed), noise.shape
    table = KeyTable()
    slots = table.intern([b"%d" % i for i in range(keys)], np.zeros(keys, np.int64))
    fusion = Fusion(table, "p", m, 1)
    single, fused = np.empty((buckets, m)), np.empty(buckets)
    for n in range(buckets):
        if n == forget_at:
            fusion.forget()
        truth = rng.normal(size=keys)
        said = noise[n, :, None] * rng.normal(size=(m, keys))
        path, _ = fusion.fuse(slots, said[:, :, None], np.array([0]))
        fusion.learn(0, slots, said, truth, np.ones(keys))
        fusion.settle(n)
        single[n] = ((said - truth) ** 2).mean(axis=1)
        fused[n] = np.mean((path[:, 0] - truth) ** 2)
    return single, fused


@pytest.mark.parametrize("keys", [1, 20, 80])
@pytest.mark.parametrize(
    "noise",
    [
        (0.1, 0.5, 1.0),
        (0.5, 0.5, 0.5),
        (0.3, 2.0, 5.0),
        (0.0, 0.2, 0.4, 9.0),
        (0.1, *[1.0] * 15),
        (0.0, 0.5, np.nan),
    ],
)
def test_fusing_is_never_much_worse_than_the_best_expert(
    noise: tuple[float, ...], keys: int
) -> None:
    """On average four per cent, learning included, over five hundred buckets of a steady stream.

    Of eighty keys sixteen have no regression of their own.
    """
    ratios = []
    for seed in range(5):
        single, fused = _fuse_along(np.tile(noise, (500, 1)), keys, seed)
        ratios.append(fused.mean() / np.nanmin(single.mean(axis=0)))
    assert np.mean(ratios) <= 1.04


@pytest.mark.parametrize("keys", [1, 20])
def test_equally_good_experts_are_better_together(keys: int) -> None:
    """Their independent errors cancel."""
    single, fused = _fuse_along(np.full((500, 3), 1.0), keys, 0)
    assert fused.mean() < 0.9 * single.mean(axis=0).min()


@pytest.mark.parametrize("keys", [1, 20])
def test_experts_that_err_alike_are_weighted_against_each_other(keys: int) -> None:
    """What no weighted mean can: the better one, less a part of what sets the worse one apart."""
    rng, table = np.random.default_rng(0), KeyTable()
    slots = table.intern([b"%d" % i for i in range(keys)], np.zeros(keys, np.int64))
    fusion, fused, best = Fusion(table, "p", 2, 1), [], []
    for n in range(1000):
        truth, shared = rng.normal(size=(2, keys))
        said = truth + np.array([[1.0], [2.0]]) * shared
        path, _ = fusion.fuse(slots, said[:, :, None], np.array([0]))
        fusion.learn(0, slots, said, truth, np.ones(keys))
        fusion.settle(n)
        fused.append(np.mean((path[:, 0] - truth) ** 2))
        best.append(np.mean((said[0] - truth) ** 2))
    assert np.mean(fused[500:]) < 0.75 * np.mean(best[500:])


_CHANGE = np.concatenate([np.tile([0.1, 2.0], (400, 1)), np.tile([2.0, 0.1], (500, 1))])
"""After four hundred buckets the best of two experts becomes the worse."""


@pytest.mark.parametrize("keys", [1, 20])
def test_fusion_turns_when_another_expert_becomes_the_best(keys: int) -> None:
    """Three hundred buckets after the two have changed places it is within a twentieth of it."""
    for seed in range(3):
        single, fused = _fuse_along(_CHANGE, keys, seed)
        assert fused[700:].mean() <= 1.05 * single[700:, 1].mean()


@pytest.mark.parametrize("keys", [1, 20])
def test_fusion_turns_sooner_when_told_of_a_drift(keys: int) -> None:
    """Told thirty buckets late, it is within a tenth of the new best after seventy more."""
    for seed in range(3):
        single, fused = _fuse_along(_CHANGE, keys, seed, forget_at=430)
        _, unaware = _fuse_along(_CHANGE, keys, seed)
        assert fused[500:].mean() <= 1.1 * single[500:, 1].mean()
        assert unaware[500:600].mean() > 1.5 * fused[500:600].mean()


def test_a_silent_expert_does_no_harm() -> None:
    """It counts as the worst in what it did not say, and has no part in what the others say."""
    table, here = KeyTable(), np.array([0])
    slots = table.intern([b"ann"], np.array([0]))
    fusion = Fusion(table, "p", 3, 1)
    for n in range(50):
        fusion.learn(0, slots, np.array([[1.0], [np.nan], [1.1]]), np.zeros(1), np.ones(1))
        fusion.settle(n)
    losses = fusion.losses(slots)[0, 0]
    assert losses[1] == losses[2] > losses[0]
    path, weights = fusion.fuse(slots, np.array([[[4.0]], [[np.nan]], [[4.0]]]), here)
    np.testing.assert_allclose(path, 4.0)
    assert weights[1, 0, 0] == 0


# -- calibration -------------------------------------------------------------------------------

_LEVELS = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)
Draw = Callable[[np.random.Generator, Float64], NDArray[np.floating[Any]]]

_DRAWS: dict[str, tuple[Draw, Float64, bool]] = {
    "normal": (lambda rng, mean: rng.normal(mean, 3.0), np.full(20, 50.0), False),
    "normal, of all widths": (
        lambda rng, mean: rng.normal(mean, mean),
        np.arange(1.0, 21.0),
        False,
    ),
    "skewed": (lambda rng, mean: rng.exponential(mean), np.full(20, 50.0), False),
    "one key": (lambda rng, mean: rng.normal(mean, 3.0), np.full(1, 50.0), False),
    "large counts": (lambda rng, mean: rng.poisson(mean) + 0.0, np.full(20, 400.0), True),
    "small counts": (lambda rng, mean: rng.poisson(mean) + 0.0, np.full(20, 5.0), True),
    "sparse counts": (lambda rng, mean: rng.poisson(mean) + 0.0, np.full(20, 0.3), True),
    "bursty counts": (
        lambda rng, mean: rng.negative_binomial(1, 1 / (1 + mean)) + 0.0,
        np.geomspace(0.5, 50.0, 20),
        True,
    ),
}


@pytest.mark.parametrize("kind", _DRAWS)
def test_quantiles_cover_as_they_say(kind: str) -> None:
    """Each level within 3 %, and the 80 % and 95 % intervals within 2 %, after 300 buckets.

    Of counts a share `level` lies at or below a quantile, and at most so much strictly below it:
    nothing closer can be asked of whole numbers.
    """
    draw, mean, is_count = _DRAWS[kind]
    rng, keys = np.random.default_rng(0), len(mean)
    table = KeyTable()
    slots = table.intern([b"%d" % i for i in range(keys)], np.zeros(keys, np.int64))
    calibration = Calibration(table, "p", _LEVELS, 1, is_count=is_count)
    path, spread = mean[:, None], np.full(keys, 1.0)
    below, at_or_below, covered = [], [], []
    for bucket in range(1300):
        truth = draw(rng, mean).astype(np.float64)
        size = calibration.expected_error(slots, path, spread, np.array([0]))
        quantiles = calibration.quantiles(path, size, np.array([0]))[:, 0]
        if bucket >= 300:
            below.append((truth[:, None] < quantiles).mean(axis=0))
            at_or_below.append((truth[:, None] <= quantiles).mean(axis=0))
            inside = (quantiles[:, :2] <= truth[:, None]) & (truth[:, None] <= quantiles[:, :-3:-1])
            covered.append(inside.mean(axis=0))
        unit = calibration.unit(path, spread[:, None])[:, 0]
        calibration.learn(0, slots, truth - mean, unit)
    levels = np.array(_LEVELS)
    assert (np.mean(below, axis=0) <= levels + 0.03).all()
    assert (np.mean(at_or_below, axis=0) >= levels - 0.03).all()
    ninety_five, eighty = np.mean(covered, axis=0)
    assert ninety_five >= 0.93
    assert eighty >= 0.78
    assert is_count or max(ninety_five - 0.95, eighty - 0.8) <= 0.02
