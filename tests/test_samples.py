"""Samples: labels land when and where they should, and room is made for new ones."""

import numpy as np
import pytest
from numpy.typing import NDArray

from stream_forecaster.network import CANDIDATES, CHANNELS, CLUES, STATISTICS
from stream_forecaster.samples import Samples, Told

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
