"""What is under way: it lands when its time comes, once, and as it was said."""

from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stream_forecaster.due import Due, Landed, Said
from stream_forecaster.keys import KeyTable
from stream_forecaster.pool import horizon_buckets

Float64 = NDArray[np.float64]

_M, _Q = 3, 4  # forecasters and levels
_KEYS = 3
_FIRST = 29_455_200  # a minute of January 2026


class Ring:
    """Some keys of whom anything may be said."""

    def __init__(
        self, horizons: list[int], most: int = 8, *, members: int = 2, whole: bool = False
    ) -> None:
        self.horizons, self.members, self.whole = horizons, members, whole
        self.table = KeyTable()
        self.due = Due(
            self.table,
            "p",
            np.array(horizons),
            forecasters=_M,
            levels=_Q,
            members=members,
            whole=whole,
            most=most,
        )
        self.table.intern([b"%d" % i for i in range(_KEYS)], np.zeros(_KEYS, np.int64))

    def said(self, rng: np.random.Generator) -> Said:
        """Forecasts of all sizes, close to their mean and far from it; some say nothing."""
        b, g = _KEYS, len(self.horizons)
        mean = rng.normal(size=(b, g)) * 10.0 ** rng.uniform(-3, 6, (b, g))
        unit = 10.0 ** rng.uniform(-6, 3, (b, g))

        def around(*leading: int) -> Float64:
            far = 10.0 ** rng.uniform(-6, 6, (*leading, b, g))
            size = np.where(rng.random(far.shape) < 0.5, unit, far)
            return mean + size * rng.standard_t(2, far.shape)

        def levels(count: int) -> Float64:
            return np.moveaxis(around(count), 0, 2)

        predictions, quantiles = around(_M), np.sort(levels(_Q), axis=2)
        if self.whole:
            mean = np.abs(np.clip(mean, -1e5, 1e5))
            away = rng.uniform(-900, 900, (b, g, _Q))
            quantiles = np.sort(np.rint(mean[..., None] + away), axis=2)
        predictions[rng.random(predictions.shape) < 0.2] = np.nan
        inside, outside = levels(_Q * (self.members > 1)), levels(_Q * (self.members > 0))
        outside[rng.random((b, g)) < 0.2] = np.nan
        mean[rng.random((b, g)) < 0.2] = np.nan
        return Said(mean, unit, predictions, around(), quantiles, inside, outside)

    def constant(self, mean: float = 5.0, unit: float = 1.0, prediction: float = 6.0) -> Said:
        """The same of all keys and horizons."""
        shape = (_KEYS, len(self.horizons))
        return Said(
            np.full(shape, mean),
            np.full(shape, unit),
            np.full((_M, *shape), prediction),
            np.full(shape, mean),
            np.full((*shape, _Q), mean),
            np.full((*shape, _Q * (self.members > 1)), mean),
            np.full((*shape, _Q * (self.members > 0)), mean),
        )

    def keep(self, index: int, said: Said) -> None:
        """Keep it of all keys."""
        self.due.keep(np.s_[0:_KEYS], index, said)

    def land(self, index: int, truth: Float64 | None = None) -> list[Landed]:
        """What lands in a bucket."""
        return list(self.due.land(index, np.ones(_KEYS) if truth is None else truth))


_horizons = st.integers(1, 40).map(lambda horizon: horizon_buckets(horizon)[1].tolist())


class Everything:
    """The slow way: a list of everything that was said and has not landed."""

    def __init__(self) -> None:
        self.said: dict[tuple[int, int, int], Said] = {}  # bucket, issued, key

    def keep(self, index: int, said: Said) -> None:
        """One entry for each key and horizon that something was said of."""
        for key, g in zip(*np.nonzero(~np.isnan(said.mean)), strict=True):
            self.said[int(g), index, int(key)] = Said(
                said.mean[key, g],
                said.unit[key, g],
                said.predictions[:, key, g],
                said.pooled[key, g],
                said.quantiles[key, g],
                said.inside[key, g],
                said.outside[key, g],
            )

    def land(self, bucket: int, issued: int, truth: Float64) -> dict[int, Said]:
        """What was said after a bucket of the keys that have a truth."""
        found = {key: self.said.pop((bucket, issued, key), None) for key in range(_KEYS)}
        return {k: said for k, said in found.items() if said and not np.isnan(truth[k])}

    def forget(self, key: int | None = None) -> None:
        """Nothing was said, of one key or of any."""
        self.said = {k: said for k, said in self.said.items() if key is not None and k[2] != key}


def _assert_as_said(back: Said, said: Said, *, whole: bool) -> None:
    """Within 2^-11 of the distance from the mean, and what float32 does to the mean."""
    assert back.mean == pytest.approx(float(said.mean), rel=2**-24)
    names = ("predictions", "pooled", "quantiles", "inside", "outside")
    farthest = float(np.nanmax([np.nanmax(np.abs(_distance(said, n)), initial=0) for n in names]))
    # float16 has steps of 2^-24 in the end.
    least = float(said.unit) + farthest / 6e4
    for name in names:
        ours, theirs = np.atleast_1d(getattr(back, name)), np.atleast_1d(getattr(said, name))
        if whole and name == "quantiles":
            np.testing.assert_array_equal(ours, theirs)
            continue
        np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
        slack = 2**-11 * 1.001 * np.abs(_distance(said, name))
        slack += 2**-23 * np.abs(said.mean) + 2**-25 * least
        assert (np.isnan(theirs) | (np.abs(ours - theirs) <= slack)).all()


def _distance(said: Said, name: str) -> Float64:
    distance: Float64 = np.atleast_1d(getattr(said, name)) - said.mean
    return distance


def _one(landed: Landed, i: int) -> Said:
    said = landed.said
    return Said(
        said.mean[i],
        said.unit[i],
        said.predictions[:, i],
        said.pooled[i],
        said.quantiles[i],
        said.inside[i],
        said.outside[i],
    )


@given(
    horizons=_horizons,
    most=st.integers(1, 9),
    members=st.integers(0, 2),
    whole=st.booleans(),
    seed=st.integers(0, 999),
    befalls=st.lists(st.sampled_from([""] * 9 + ["silence", "key"]), min_size=1, max_size=60),
)
def test_what_lands_was_said_so_many_buckets_ago(
    horizons: list[int],
    most: int,
    members: int,
    whole: bool,  # noqa: FBT001  (drawn by Hypothesis)
    seed: int,
    befalls: list[str],
) -> None:
    """Against a list of everything said: the same keys, the same values, nothing forgotten."""
    rng = np.random.default_rng(seed)
    ring, slow = Ring(horizons, most, members=members, whole=whole), Everything()
    for index, befallen in enumerate(befalls, _FIRST + int(rng.integers(100))):
        truth = np.where(rng.random(_KEYS) < 0.2, np.nan, rng.normal(size=_KEYS))
        for landed in ring.land(index, truth):
            expected = slow.land(landed.bucket, index - horizons[landed.bucket], truth)
            assert landed.slots.tolist() == sorted(expected)
            np.testing.assert_array_equal(landed.truth, truth[landed.slots])
            for i, key in enumerate(landed.slots.tolist()):
                _assert_as_said(_one(landed, i), expected[key], whole=whole)
        if befallen == "silence":
            ring.due.forget()
            slow.forget()
        elif befallen == "key":  # another takes its slot
            ring.table.forget(ring.table.key(1))
            assert ring.table.intern([b"new"], np.array([0])).tolist() == [1]
            slow.forget(1)
        said = ring.said(rng)
        ring.keep(index, said)
        slow.keep(index, said)


@given(horizons=_horizons, most=st.integers(1, 9), begin=st.integers(0, 10**6))
def test_of_a_far_bucket_one_in_so_many_is_kept(horizons: list[int], most: int, begin: int) -> None:
    """Exactly one of each stretch of them, and of a near bucket every one.

    Where there is room for one alone, the stretch is nearly twice as far as the bucket is ahead.
    """
    ring = Ring(horizons, most)
    kept: dict[int, list[int]] = defaultdict(list)
    for index in range(begin, begin + 120):
        for landed in ring.land(index):
            assert len(landed.slots) in (0, _KEYS)
            if len(landed.slots):
                kept[landed.bucket].append(index - horizons[landed.bucket])
        ring.keep(index, ring.constant())
    for g, h in enumerate(horizons):
        stride = 2 * h - 1 if most == 1 else -(-h // most)
        stretches = [issued // stride for issued in kept[g]]
        whole = range(-(-begin // stride), (begin + 120 - h) // stride)
        assert set(whole) <= set(stretches)
        assert all(a < b for a, b in pairwise(stretches))
    # Of two in a stretch the older may come late and the newer early.
    spare = most > 1
    assert ring.table["p.due"].shape[1] <= sum(min(h, most + spare) for h in horizons)


@pytest.mark.parametrize(
    ("ahead", "cycle", "buckets"),
    [
        (20, 60, 7 * 24 * 60),
        (40, 60, 7 * 24 * 60),
        (77, 60, 7 * 24 * 60),
        (157, 24, 180 * 24),
    ],
)
def test_every_minute_of_the_hour_is_judged_and_every_hour_of_the_day(
    ahead: int, cycle: int, buckets: int
) -> None:
    """Which forecast is kept is drawn by lot, not by the clock: a week of minutes, half a year."""
    ring = Ring([1, ahead])
    begin = _FIRST if cycle == 60 else _FIRST // 60
    judged = set()
    for index in range(begin, begin + buckets):
        for landed in ring.land(index):
            if landed.bucket == 1 and len(landed.slots):
                judged.add((index - ahead) % cycle)
        ring.keep(index, ring.constant())
    assert sorted(judged) == list(range(cycle))


def test_what_has_landed_does_not_land_again() -> None:
    """Even where its truth was missing."""
    ring = Ring([1, 2])
    ring.keep(7, ring.constant())
    near, far = ring.land(8, np.array([1.0, np.nan, 2.0]))
    assert (near.bucket, near.slots.tolist(), near.truth.tolist()) == (0, [0, 2], [1.0, 2.0])
    assert far.slots.tolist() == []
    assert ring.land(8)[0].slots.tolist() == []
    assert ring.land(9)[1].slots.tolist() == [0, 1, 2]
    assert not any(len(landed.slots) for index in (8, 9) for landed in ring.land(index))


def test_nothing_lands_of_what_was_said_before_it_was_forgotten() -> None:
    """At no horizon; what is said afterwards does."""
    ring = Ring([1, 2, 3, 6])
    for index in range(10):
        ring.keep(index, ring.constant())
    ring.due.forget()
    for index in range(10, 20):
        for landed in ring.land(index):
            since = index - ring.horizons[landed.bucket]
            assert len(landed.slots) == (_KEYS if since >= 10 else 0)
        ring.keep(index, ring.constant())


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("unit", [1e-6, 1e-3, 1.0])
@pytest.mark.parametrize("mean", [0.0, 5.0, -3e4])
def test_a_prediction_far_beyond_the_expected_error_comes_back(
    mean: float, unit: float, sign: int
) -> None:
    """A key that has hardly moved expects next to no error; what misses it must not look close."""
    ring = Ring([1])
    said = ring.constant(mean, unit, prediction=sign * 1e6)
    said.predictions[1], said.predictions[2] = mean + 1e-3, np.nan
    ring.keep(0, said)
    (landed,) = ring.land(1)
    far, near, none = landed.said.predictions
    np.testing.assert_allclose(far, sign * 1e6, rtol=1e-3)
    np.testing.assert_allclose(near, mean + 1e-3, atol=2e-6 + 2**-23 * abs(mean))
    assert np.isnan(none).all()
    np.testing.assert_allclose(landed.said.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(landed.said.quantiles, mean, rtol=1e-6)


def test_whole_quantiles_stay_whole() -> None:
    """Exactly those that were said up to a thousand from the mean, and beyond it whole ones."""
    ring = Ring([1], whole=True)
    said = ring.constant(mean=1234.56, unit=0.05)
    said.quantiles[:] = np.array([240.0, 1234.0, 2233.0, 98_765.0])
    ring.keep(0, said)
    (landed,) = ring.land(1)
    for key in range(_KEYS):
        assert landed.said.quantiles[key, :3].tolist() == [240.0, 1234.0, 2233.0]
        assert landed.said.quantiles[key, 3] == pytest.approx(98_765.0, rel=2**-11)
    assert (landed.said.quantiles % 1 == 0).all()


@given(horizons=_horizons, most=st.integers(1, 9), seed=st.integers(0, 999))
def test_the_table_is_all_that_is_kept(horizons: list[int], most: int, seed: int) -> None:
    """Restored from it, the same lands, bit for bit."""
    rng = np.random.default_rng(seed)
    ring, restored = Ring(horizons, most), Ring(horizons, most)
    middle = _FIRST + int(rng.integers(50))
    for index in range(_FIRST, middle):
        ring.land(index)
        ring.keep(index, ring.said(rng))
    restored.table.restore({name: a.copy() for name, a in ring.table.arrays().items()})
    for index in range(middle, middle + max(horizons) + 1):
        for ours, theirs in zip(restored.land(index), ring.land(index), strict=True):
            assert (ours.bucket, ours.slots.tolist()) == (theirs.bucket, theirs.slots.tolist())
            for name in ("mean", "unit", "predictions", "pooled", "quantiles", "outside"):
                np.testing.assert_array_equal(getattr(ours.said, name), getattr(theirs.said, name))
