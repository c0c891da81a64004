"""Samples: labels land when and where they should, and room is made for new ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stream_forecaster.architecture import CANDIDATES, CHANNELS, CLUES, STATISTICS
from stream_forecaster.samples import EvenSamples, Samples, Told

_K, _H = 6, 3
_ALL = np.arange(_K)
_SINCE = np.zeros(_K, np.int64)


def _told(size: int) -> Told:
    """Nothing; around a path of 0, in units of 2."""
    return Told(
        [np.zeros((size, 8, CHANNELS), np.float32)],
        np.zeros((size, 1, STATISTICS), np.float32),
        np.ones((size, 1), np.bool_),
        candidates=np.zeros((size, _H, len(CANDIDATES)), np.float32),
        losses=np.zeros((size, _H, len(CANDIDATES)), np.float32),
        clues=np.zeros((size, _H, CLUES), np.float32),
        path=np.zeros((size, _H)),
        unit=np.full((size, _H), 2.0),
    )


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def one() -> Samples:
    """Room for one, of key 2, taken at bucket 10."""
    samples = Samples.room(1, (8,), _H)
    samples.add(_rng(), 10, np.array([2]), np.array([4]), _told(1))
    return samples


def _land(samples: Samples, index: int, first: int = 4, truth: float = 6.0) -> None:
    values, since = np.full(_K, 100.0), np.zeros(_K, np.int64)
    values[2], since[2] = truth, first
    samples.land(index, values, since)


def _labels(samples: Samples) -> NDArray[np.float32]:
    return samples.arrays["truth"]


def test_labels_land_when_their_bucket_closes(one: Samples) -> None:
    """Each at its step, in expected errors around the path; none before, none after."""
    nan = np.nan
    expected = {9: [nan] * 3, 10: [nan] * 3, 11: [3, nan, nan], 12: [3, 3, nan], 13: [3] * 3}
    for index in range(9, 15):
        _land(one, index)
        np.testing.assert_array_equal(_labels(one)[0], expected.get(index, [3, 3, 3]))


def test_another_key_in_the_slot_lands_nothing(one: Samples) -> None:
    """Its first bucket is later than that of the key that was sampled."""
    _land(one, 11, first=11)
    assert np.isnan(_labels(one)).all()


def test_a_missing_bucket_lands_nothing(one: Samples) -> None:
    """And the steps after it land all the same."""
    _land(one, 11, truth=np.nan)
    _land(one, 12)
    np.testing.assert_array_equal(_labels(one)[0], [np.nan, 3, np.nan])


def test_a_label_is_bounded(one: Samples) -> None:
    """One burst teaches no more than a large error."""
    _land(one, 11, truth=1e12)
    assert _labels(one)[0, 0] == 30


def test_a_forgotten_key_leaves_no_sample() -> None:
    """Neither what it did nor a place for labels of whoever takes its slot; others stay."""
    samples = Samples.room(_K, (8,), _H)
    samples.add(_rng(), 3, _ALL, _SINCE, _told(_K))
    _land(samples, 4)
    kept = samples.arrays["slot"] != 2
    before = {name: array[kept].copy() for name, array in samples.arrays.items()}

    samples.forget(np.array([2]))
    _land(samples, 5)

    fresh = Samples.room(1, (8,), _H)
    for name, array in samples.arrays.items():
        np.testing.assert_array_equal(array[~kept], fresh.arrays[name], name)
        if name != "truth":
            np.testing.assert_array_equal(array[kept], before[name], name)
    assert len(samples.labelled) == _K - 1


def test_nothing_lands_after_leaving(one: Samples) -> None:
    """In another log the slot is another key's, whatever its first bucket."""
    one.leave()
    _land(one, 11)
    assert np.isnan(_labels(one)).all()


def test_labelled_are_those_with_any_label(one: Samples) -> None:
    """A part of them is enough."""
    assert not len(one.labelled)
    _land(one, 12)
    assert one.labelled.tolist() == [0]


def test_samples_are_bounded_and_new_ones_replace_complete_ones() -> None:
    """What still has labels to come is kept as long as there is room."""
    samples = Samples.room(10, (8,), _H)
    for index in range(0, 200, 2):
        samples.add(_rng(index), index, _ALL[:4], _SINCE[:4], _told(4))
        kept = samples.arrays["index"]
        assert len(kept) == 10
        assert (kept == index).sum() == 4
        assert index < 2 or (kept == index - 2).sum() == 4


# -- evenly ----------------------------------------------------------------------------------------


def _kept(capacity: int, buckets: int, keys: int, seed: int = 0) -> EvenSamples:
    """What is kept of so many buckets of so many keys; the truth is 2 times the bucket."""
    samples, rng = EvenSamples.room(capacity, (8,), _H), _rng(seed)
    since = np.zeros(keys, np.int64)
    for index in range(buckets):
        samples.land(index, np.full(keys, 2.0 * index), since)
        slots = samples.choose(rng, np.arange(keys), 64)
        assert (np.diff(slots) > 0).all()
        samples.add(rng, index, slots, since[slots], _told(len(slots)))
    return samples


@given(
    capacity=st.integers(1, 60),
    buckets=st.integers(1, 80),
    keys=st.integers(1, 20),
    seed=st.integers(0, 99),
)
@settings(max_examples=30)
def test_however_long_the_log_there_is_room(
    capacity: int, buckets: int, keys: int, seed: int
) -> None:
    """Each key and bucket at most once, and its labels are those of the buckets after it."""
    samples = _kept(capacity, buckets, keys, seed)
    taken = samples.arrays["slot"] >= 0
    index, truth = samples.arrays["index"][taken], samples.arrays["truth"][taken]
    pairs = set(zip(samples.arrays["slot"][taken].tolist(), index.tolist(), strict=True))
    assert len(pairs) == taken.sum() <= capacity
    ahead = index[:, None] + np.arange(1, _H + 1)
    np.testing.assert_array_equal(truth, np.where(ahead < buckets, np.minimum(ahead, 30), np.nan))
    assert (samples.first, samples.last) == (0, buckets - 1)
    assert np.isnan(samples.arrays["truth"][~taken]).all()


def test_as_long_as_there_is_room_all_are_kept() -> None:
    """Every key of every bucket."""
    assert (_kept(1000, 50, 20).arrays["slot"] >= 0).sum() == 1000


def test_old_and_new_are_kept_alike() -> None:
    """Of 20,000 about 400 fit: a quarter of them from each quarter, give or take four sigma."""
    samples = _kept(600, 1000, 20)
    index = samples.arrays["index"][samples.arrays["slot"] >= 0]
    assert 300 <= len(index) <= 600
    quarters = np.histogram(index, bins=[0, 250, 500, 750, 1000])[0]
    assert np.abs(quarters - len(index) / 4).max() < 4 * np.sqrt(len(index) * 3 / 16)


def test_joined_are_copies_of_the_rows() -> None:
    """Of the first, then of the second; the originals are left alone."""
    one, other = _kept(9, 3, 3), _kept(4, 2, 2)
    joined = Samples.joined([(one, np.array([2, 0])), (other, np.array([3]))])
    for name, array in joined.arrays.items():
        rows = [one.arrays[name][2], one.arrays[name][0], other.arrays[name][3]]
        np.testing.assert_array_equal(array, rows)
    joined.arrays["slot"][:] = 99
    assert 99 not in one.arrays["slot"]
