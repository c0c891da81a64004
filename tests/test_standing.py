"""What was said on the hour is said again, until something else is."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stream_forecaster.agreement import moved_along
from stream_forecaster.keys import KeyTable
from stream_forecaster.standing import Standing, Statement

Float64 = NDArray[np.float64]

_H, _Q, _M = 4, 5, 3
_KEYS = 6
_ALL = np.arange(_KEYS)
seeds = st.integers(0, 9_999)


class Speaker:
    """Six keys of which something may be said."""

    def __init__(self, *, is_short: bool = False) -> None:
        self.table = KeyTable()
        self.standing = Standing(self.table, "s", _H, _Q, _M, is_short=is_short)
        self.table.intern([b"%d" % i for i in range(_KEYS)], np.zeros(_KEYS, np.int64))

    def again(self) -> tuple[Float64, Float64, Float64]:
        """What all keys stand for: means, quantiles and weights."""
        said = self.standing.statement(_ALL)
        return said.mean, said.quantiles, said.weights


def _drawn(rng: np.random.Generator, keys: int = _KEYS) -> Statement:
    """A statement of any size; some quantiles are one, some are all the mean itself."""
    shape = (keys, _H)
    mean = rng.normal(size=shape) * 10.0 ** rng.uniform(-3, 6, shape)
    size = 10.0 ** rng.uniform(-6, 6, shape) * (rng.random(shape) < 0.8)
    deviation = np.sort(rng.standard_t(2, (*shape, _Q)), axis=2)
    deviation[..., 2] = np.where(rng.random(shape) < 0.3, deviation[..., 1], deviation[..., 2])
    quantiles = mean[..., None] + size[..., None] * deviation
    return Statement(mean, quantiles, rng.dirichlet(np.ones(_M), keys))


def _assert_as_said(
    back: tuple[Float64, Float64, Float64], said: Statement, part: float = 2**-12
) -> None:
    """Within a part of the largest deviation, and what float32 does to the mean."""
    mean, quantiles, weights = back
    np.testing.assert_allclose(mean, said.mean, rtol=2**-24)
    largest = np.abs(said.quantiles - said.mean[..., None]).max(axis=2)
    slack = part * 1.001 * largest + 2**-23 * np.abs(said.mean)
    assert (np.abs(quantiles - said.quantiles) <= slack[..., None]).all()
    np.testing.assert_allclose(weights, said.weights, atol=2**-12)


@given(seed=seeds)
def test_what_is_kept_is_said_again(seed: int) -> None:
    """Within float16 of the largest deviation of a quantile."""
    speaker, said = Speaker(), _drawn(np.random.default_rng(seed))
    speaker.standing.keep(np.s_[0:_KEYS], said)
    _assert_as_said(speaker.again(), said)
    np.testing.assert_array_equal(speaker.standing.mean(_ALL), speaker.again()[0])
    np.testing.assert_array_equal(speaker.standing.mean(np.s_[:]), speaker.again()[0])


@given(seed=seeds)
def test_in_short_memory_it_is_coarser(seed: int) -> None:
    """By half of a 127th of the largest deviation; and quantiles ascend still."""
    speaker, said = Speaker(is_short=True), _drawn(np.random.default_rng(seed))
    speaker.standing.keep(np.s_[0:_KEYS], said)
    _assert_as_said(speaker.again(), said, 0.5 / 127)
    assert (np.diff(speaker.again()[1], axis=2) >= 0).all()


@given(seed=seeds, is_count=st.booleans(), is_short=st.booleans())
def test_it_moves_along_with_its_mean(seed: int, *, is_count: bool, is_short: bool) -> None:
    """As the quantiles of the finest resolution do."""
    speaker, rng = Speaker(is_short=is_short), np.random.default_rng(seed)
    speaker.standing.keep(_ALL, _drawn(rng))
    mean, quantiles, _ = speaker.again()
    to = mean * rng.uniform(0.5, 2.0, mean.shape)
    expected = moved_along(quantiles, mean, to, is_count=is_count)
    expected = np.rint(expected) if is_count else expected
    said = speaker.standing.agreed(_ALL, to, is_count=is_count)
    np.testing.assert_array_equal(said.mean, to)
    np.testing.assert_allclose(said.quantiles, expected, rtol=1e-9, atol=1e-6 + is_count)


@given(seed=seeds)
def test_quantiles_ascend_still(seed: int) -> None:
    """Whatever rounding did to them."""
    speaker, rng = Speaker(), np.random.default_rng(seed)
    said = _drawn(rng)
    close = np.sort(said.quantiles * (1 + 1e-4 * rng.random(said.quantiles.shape)), axis=2)
    for quantiles in (said.quantiles, close):
        speaker.standing.keep(_ALL, Statement(said.mean, quantiles, said.weights))
        assert (np.diff(speaker.again()[1], axis=2) >= 0).all()


@given(
    mean=st.floats(0, 1e4),
    deviations=st.lists(st.floats(-2_000, 2_000), min_size=_Q, max_size=_Q),
)
def test_whole_numbers_come_back(mean: float, deviations: list[float]) -> None:
    """Counts, up to two thousand from their mean, when they are rounded."""
    whole = np.array([np.trunc(mean + d) if d < 0 else np.floor(mean + d) for d in deviations])
    whole = np.sort(np.clip(whole, np.ceil(max(mean - 2_000, 0)), np.floor(mean + 2_000)))
    said = Statement(
        np.full((_KEYS, _H), mean), np.tile(whole, (_KEYS, _H, 1)), np.ones((_KEYS, _M))
    )
    speaker = Speaker()
    speaker.standing.keep(_ALL, said)
    np.testing.assert_array_equal(np.rint(speaker.again()[1]), said.quantiles)


def test_what_has_not_been_said_is_nan() -> None:
    """Mean and quantiles, of a key that nobody spoke of, and of one that was forgotten since."""
    speaker, rng = Speaker(), np.random.default_rng(0)
    assert np.isnan(speaker.standing.mean(_ALL)).all()
    assert np.isnan(speaker.again()[1]).all()
    speaker.standing.keep(np.array([1, 4]), _drawn(rng, 2))
    unsaid = np.array([0, 2, 3, 5])
    assert np.isfinite(speaker.standing.mean(np.array([1, 4]))).all()
    assert np.isnan(speaker.standing.mean(unsaid)).all()
    assert np.isnan(speaker.standing.statement(unsaid).quantiles).all()
    speaker.table.forget(b"4")
    assert speaker.table.intern([b"new"], np.array([0])).tolist() == [4]
    assert np.isnan(speaker.standing.mean(np.array([4]))).all()
    assert np.isfinite(speaker.standing.mean(np.array([1]))).all()


@given(seed=seeds, slots=st.sets(st.integers(0, _KEYS - 1), min_size=1))
def test_the_newest_statement_stands(seed: int, slots: set[int]) -> None:
    """Of the keys that it is of; the others stand by their older one."""
    speaker, rng = Speaker(), np.random.default_rng(seed)
    said = _drawn(rng)
    speaker.standing.keep(np.s_[0:_KEYS], said)
    some = rng.permutation(sorted(slots))
    newer = _drawn(rng, len(some))
    speaker.standing.keep(some, newer)
    for old, new in (
        (said.mean, newer.mean),
        (said.quantiles, newer.quantiles),
        (said.weights, newer.weights),
    ):
        old[some] = new
    _assert_as_said(speaker.again(), said)


@given(seed=seeds)
def test_the_table_is_all_that_is_kept(seed: int) -> None:
    """Restored from it, the same is said, bit for bit."""
    speaker, restored = Speaker(), Speaker()
    speaker.standing.keep(_ALL, _drawn(np.random.default_rng(seed)))
    restored.table.restore({name: a.copy() for name, a in speaker.table.arrays().items()})
    for ours, theirs in zip(restored.again(), speaker.again(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
