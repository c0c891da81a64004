"""Fusion against its formulas; that it pays is in `laws/test_experts.py`."""

import math
from collections.abc import Callable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from stream_forecaster.fusion import (
    _DISCOUNT,
    _LARGEST_LOSS,
    _LEAST_PRIOR,
    _PRIOR_BUCKETS,
    _PRIOR_FADES,
    _SHARE,
    _SHARPNESS,
    ExponentialWeights,
    Fusion,
)
from stream_forecaster.keys import KeyTable
from stream_forecaster.stacking import _SOLVE_EVERY, FORGET

Float64 = NDArray[np.float64]

_M, _K, _G = 3, 4, 2
_ALL = np.s_[:]

_buckets = st.integers(0, _G - 1)
_slots = st.sets(st.integers(0, _K - 1))
_maybe = st.one_of(st.just(np.nan), st.floats(0, 200))
_losses = npst.arrays(np.float64, (_M, _K), elements=_maybe)
_histories = st.lists(st.tuples(_buckets, _slots, _losses), max_size=15)
History = list[tuple[int, set[int], Float64]]

_seeds = st.integers(0, 2**32 - 1)
_landings = st.lists(st.tuples(_buckets, _slots, _seeds), max_size=15)
Landings = list[tuple[int, set[int], int]]


def _table(keys: int = _K) -> KeyTable:
    table = KeyTable()
    table.intern([b"%d" % i for i in range(keys)], np.zeros(keys, np.int64))
    return table


# -- exponential weights ---------------------------------------------------------------------------


_priors = st.none() | npst.arrays(np.float64, _M, elements=st.floats(0, 1))


def _exponential(prior: Float64 | None = None) -> ExponentialWeights:
    return ExponentialWeights(_table(), "p", _M, _G, prior=prior)


def _taught(history: History, prior: Float64 | None = None) -> ExponentialWeights:
    exponential = _exponential(prior)
    for bucket, slots, losses in history:
        landed = np.array(sorted(slots), np.int64)
        spoken = np.where(np.isnan(losses).all(axis=0), 1.0, losses)  # one expert always speaks
        exponential.learn(bucket, landed, spoken[:, landed])
    return exponential


@given(history=_histories)
def test_weights_sum_to_one(history: History) -> None:
    """Over the experts, for every key and horizon; and none is ever lost for good."""
    weights = _taught(history).weights(_ALL)
    assert weights.shape == (_M, _K, _G)
    np.testing.assert_allclose(weights.sum(axis=0), 1.0)
    assert (weights >= _SHARE / _M * (1 - 1e-9)).all()


@given(history=_histories, prior=_priors)
def test_weights_are_the_formula(history: History, prior: Float64 | None) -> None:
    """Discounted losses, own shrunk to everyone's, through an exponential of the regret."""
    exponential = _taught(history, prior)
    weights, losses = exponential.weights(_ALL), exponential.losses(_ALL)
    everyone = np.zeros((_G, _M + 1))
    own = np.zeros((_K, _G, _M + 1))
    for bucket, slots, landed in history:
        if not slots:
            continue
        rows = {}
        for k in slots:
            row = [min(float(x), _LARGEST_LOSS) for x in landed[:, k]]
            known = [x for x in row if not math.isnan(x)] or [1.0]
            rows[k] = [max(known) if math.isnan(x) else x for x in row]
            own[k, bucket] = _DISCOUNT * own[k, bucket] + [*rows[k], 1.0]
        mean = np.mean(list(rows.values()), axis=0)
        everyone[bucket] = _DISCOUNT * everyone[bucket] + [*mean, 1.0]
    for k in range(_K):
        for g in range(_G):
            population = everyone[g, :_M] / max(everyone[g, _M], 1.0)
            count = own[k, g, _M]
            loss = (own[k, g, :_M] + _PRIOR_BUCKETS * population) / (count + _PRIOR_BUCKETS)
            regret = (loss - loss.min()) / (loss.min() + 1e-6)
            evidence = np.sqrt(count + min(everyone[g, _M], _PRIOR_BUCKETS))
            raw = np.exp(-_SHARPNESS * evidence * regret)
            fade = _PRIOR_FADES / (_PRIOR_FADES + count + everyone[g, _M])
            raw *= np.maximum(1.0 if prior is None else prior, _LEAST_PRIOR) ** fade
            expected = (1 - _SHARE) * raw / raw.sum() + _SHARE / _M
            np.testing.assert_allclose(losses[k, g], loss, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(weights[:, k, g], expected, rtol=1e-3, atol=1e-5)


def test_who_is_not_believed_is_heard_as_it_earns_it() -> None:
    """Beginning with next to nothing; equal losses leave it below the others, ever less so."""
    exponential = _exponential(np.array([1.0, 1.0, 0.0]))
    begun, equal = exponential.weights(_ALL)[2, 0, 0], np.ones((_M, _K))
    assert begun < 0.02
    for _ in range(1500):
        exponential.learn(0, np.arange(_K), equal)
    assert 0.1 < exponential.weights(_ALL)[2, 0, 0] < 1 / 3
    for _ in range(500):
        exponential.learn(0, np.arange(_K), equal * [[1.0], [1.0], [0.8]])
    assert exponential.weights(_ALL)[2, 0, 0] > 0.6


@given(history=_histories, slots=_slots)
def test_a_part_of_the_weights_is_the_same_as_in_the_whole(
    history: History, slots: set[int]
) -> None:
    """Of some slots."""
    exponential, rows = _taught(history), np.array(sorted(slots), np.int64)
    np.testing.assert_array_equal(exponential.weights(rows), exponential.weights(_ALL)[:, rows])


@given(history=_histories, bucket=_buckets, slots=_slots, seed=st.integers(0, 99))
def test_errors_are_learned_as_losses_and_weighed_by_what_comes_of_it(
    history: History, bucket: int, slots: set[int], seed: int
) -> None:
    """The same bits as their squares one by one, and their deviations from the weighted mean."""
    one, other, rows = _taught(history), _taught(history), np.array(sorted(slots), np.int64)
    rng = np.random.default_rng(seed)
    said, truth = rng.normal(size=(_M, len(rows))), rng.normal(size=len(rows))
    said[rng.random(said.shape) < 0.2] = np.nan
    spread = rng.uniform(0.5, 2.0, len(rows))
    error = (said - truth) / spread
    if not len(rows):
        return
    deviation, residual = one.learn_errors(bucket, rows, said, truth, spread)
    other.learn(bucket, rows, error**2)
    weights = other.weights(rows)[:, :, bucket]
    np.testing.assert_array_equal(one.weights(_ALL), other.weights(_ALL))
    weights, known = np.where(np.isnan(error), 0.0, weights), np.nan_to_num(error)
    missed = -(weights * known).sum(axis=0) / np.maximum(weights.sum(axis=0), 1e-12)
    np.testing.assert_allclose(residual, missed, rtol=1e-12, atol=1e-12)
    expected = np.where(np.isnan(error), 0.0, error + residual).T
    np.testing.assert_array_equal(deviation, expected)


def test_everyone_is_equal_in_the_beginning() -> None:
    """Before any loss has landed."""
    np.testing.assert_allclose(_exponential().weights(_ALL), 1 / _M)


def test_a_newcomer_has_the_weights_that_serve_the_others() -> None:
    """And a key of its own mind departs from them."""
    exponential = _exponential()
    for _ in range(100):
        losses = np.array([[0.1, 0.1, 2.0], [1.0, 1.0, 1.0], [2.0, 2.0, 0.1]])
        exponential.learn(0, np.arange(3), losses)
    weights = exponential.weights(_ALL)[:, :, 0]
    old, contrary, newcomer = weights[:, 0], weights[:, 2], weights[:, 3]
    assert old.argmax() == newcomer.argmax() == 0
    assert contrary.argmax() == 2


@given(scale=st.floats(0.01, 100))
def test_the_scale_of_the_losses_cancels(scale: float) -> None:
    """Twice the error for everyone moves no weight."""
    losses = np.array([[0.1], [0.12], [0.2]])
    one, scaled = _exponential(), _exponential()
    for _ in range(50):
        one.learn(0, np.array([0]), losses)
        scaled.learn(0, np.array([0]), losses * scale)
    np.testing.assert_allclose(
        scaled.weights(np.s_[:1])[:, 0, 0], one.weights(np.s_[:1])[:, 0, 0], atol=2e-3
    )


# -- both ------------------------------------------------------------------------------------------


def _fusion() -> Fusion:
    return Fusion(_table(), "p", _M, _G)


def _told(landings: Landings, fusion: Fusion | None = None) -> Fusion:
    """Learned from random forecasts, of which a fifth is silent but never the last expert's."""
    fusion = fusion or _fusion()
    for index, (bucket, slots, seed) in enumerate(landings):
        rng, rows = np.random.default_rng(seed), np.array(sorted(slots), np.int64)
        truth = rng.normal(5, 2, len(rows))
        predictions = truth + rng.normal(0, [[0.3], [1.0], [3.0]], (_M, len(rows)))
        predictions[:-1][rng.random((_M - 1, len(rows))) < 0.2] = np.nan
        fusion.learn(bucket, rows, predictions, truth, np.full(len(rows), 2.0))
        fusion.settle(index * _SOLVE_EVERY)
    return fusion


_predictions = npst.arrays(
    np.float64, (_M, _K, 4), elements=st.one_of(st.just(np.nan), st.floats(-1e6, 1e6))
)
_STEPS = np.array([0, 1, 1, 0])  # the horizon bucket of each


@given(landings=_landings, predictions=_predictions)
def test_the_path_is_the_sum_of_its_published_weights(
    landings: Landings, predictions: Float64
) -> None:
    """Which are one in total, and zero for the silent; without any opinion the path is zero."""
    fusion = _told(landings)
    path, weights = fusion.fuse(_ALL, predictions, _STEPS)
    assert weights.shape == (_M, _K, _G)
    silent = _silent(predictions)
    assert (weights[silent] == 0).all()
    total = np.where(silent.all(axis=0), 0.0, 1.0)
    np.testing.assert_allclose(weights.sum(axis=0), total, atol=1e-9)
    expected = (weights[:, :, _STEPS] * np.nan_to_num(predictions)).sum(axis=0)
    np.testing.assert_allclose(path, expected, rtol=1e-9, atol=1e-6)


def _silent(predictions: Float64) -> NDArray[np.bool_]:
    """(M, K, G) who has no opinion on some step of a horizon bucket."""
    steps = [np.isnan(predictions[:, :, g == _STEPS]).any(axis=2) for g in range(_G)]
    return np.stack(steps, axis=2)


@given(landings=_landings, predictions=_predictions)
def test_the_path_is_the_mean_of_both_fusions(landings: Landings, predictions: Float64) -> None:
    """Of the weighted mean, and of that with the regression of its errors on top."""
    fusion = _told(landings)
    path, _ = fusion.fuse(_ALL, predictions, _STEPS)
    heard = ~_silent(predictions)[:, :, _STEPS]
    said = np.nan_to_num(predictions)
    weights = fusion._exponential.weights(_ALL)[:, :, _STEPS] * heard
    anchor = (weights * said).sum(axis=0) / np.maximum(weights.sum(axis=0), 1e-300)
    deviation = np.where(heard, said - anchor, 0.0)
    stacked = anchor + (fusion._stack.weights(_ALL)[:, :, _STEPS] * deviation).sum(axis=0)
    expected = np.where(heard.any(axis=0), (anchor + stacked) / 2, 0.0)
    np.testing.assert_allclose(path, expected, rtol=1e-9, atol=1e-5)


@given(landings=_landings)
def test_the_weights_are_those_of_a_path_in_which_all_speak(landings: Landings) -> None:
    """By horizon bucket."""
    fusion = _told(landings)
    _, heard = fusion.fuse(_ALL, np.ones((_M, _K, _G)), np.arange(_G))
    np.testing.assert_allclose(fusion.weights(_ALL), heard, atol=1e-12)


@given(landings=_landings, predictions=_predictions, slots=_slots)
def test_a_key_is_fused_alike_alone_and_among_others(
    landings: Landings, predictions: Float64, slots: set[int]
) -> None:
    """Which keys are asked for together does not matter."""
    fusion, rows = _told(landings), np.array(sorted(slots), np.int64)
    together, _ = fusion.fuse(_ALL, predictions, _STEPS)
    some, _ = fusion.fuse(rows, predictions[:, rows], _STEPS)
    np.testing.assert_array_equal(some, together[rows])


@given(landings=_landings, others=_predictions)
def test_an_expert_that_never_speaks_does_no_harm(landings: Landings, others: Float64) -> None:
    """The others' path is the same in a pool of three of which one is silent, as without it."""
    three, two = _fusion(), Fusion(_table(), "p", 2, _G)
    for index, (bucket, slots, seed) in enumerate(landings):
        rng, rows = np.random.default_rng(seed), np.array(sorted(slots), np.int64)
        truth = rng.normal(size=len(rows))
        said = truth + rng.normal(0, [[0.5], [1.0]], (2, len(rows)))
        silent = np.full((1, len(rows)), np.nan)
        for fusion, predictions in ((three, np.concatenate([said, silent])), (two, said)):
            fusion.learn(bucket, rows, predictions, truth, np.ones(len(rows)))
            fusion.settle(index * _SOLVE_EVERY)
    speaking = np.nan_to_num(others[:2] / 1e6)
    silent = np.full_like(speaking[:1], np.nan)
    path, weights = three.fuse(_ALL, np.concatenate([speaking, silent]), _STEPS)
    expected, _ = two.fuse(_ALL, speaking, _STEPS)
    assert (weights[2] == 0).all()
    np.testing.assert_allclose(path, expected, atol=0.02)


def test_regressions_are_solved_now_and_then() -> None:
    """Which bucket it is decides, so that replay does it alike."""
    landed = np.arange(_K), np.arange(12.0).reshape(_M, _K), np.ones(_K), np.ones(_K)
    for index in range(2 * _SOLVE_EVERY):
        fusion = _fusion()
        for _ in range(5):
            fusion.learn(0, *landed)
        fusion.settle(index)
        assert fusion._stack.weights(_ALL).any() == (index % _SOLVE_EVERY == 0)


def test_the_scale_of_the_series_cancels() -> None:
    """A key a thousand times as large, with its spread, has the same weights."""
    one, large = _fusion(), _fusion()
    rng = np.random.default_rng(0)
    for _ in range(50):
        truth = rng.normal(size=_K)
        said = truth + rng.normal(0, [[0.3], [1.0], [3.0]], (_M, _K))
        one.learn(0, np.arange(_K), said, truth, np.ones(_K))
        large.learn(0, np.arange(_K), 1000 * said, 1000 * truth, np.full(_K, 1000.0))
    one.settle(0)
    large.settle(0)
    assert one._stack.weights(_ALL).any()
    np.testing.assert_allclose(large.weights(_ALL), one.weights(_ALL), rtol=1e-4, atol=1e-6)


def test_forgetting_keeps_a_tenth_of_the_evidence() -> None:
    """Of the population's and of every key's, in both fusions."""
    fusion, rng = _fusion(), np.random.default_rng(0)
    for _ in range(100):
        truth = rng.normal(size=_K)
        said = truth + rng.normal(0, [[0.3], [1.0], [3.0]], (_M, _K))
        fusion.learn(0, np.arange(_K), said, truth, np.ones(_K))
    before = _evidence(fusion)
    fusion.forget()
    after = _evidence(fusion)
    assert len(before) == 9
    for name, array in before.items():
        assert array.any()
        np.testing.assert_allclose(after[name], FORGET * array, rtol=1e-6, err_msg=name)


def _kept_by(fusion: Fusion) -> KeyTable:
    return fusion._exponential._table


def _evidence(fusion: Fusion) -> dict[str, Float64]:
    """Everything that adds up as forecasts land; not the weights that follow from it."""
    kept = fusion.arrays() | _kept_by(fusion).arrays()
    last = ("loss", "landed", "gram", "cross")
    kept = {name: array for name, array in kept.items() if name.split(".")[-1] in last}
    return {name: array.astype(np.float64) for name, array in kept.items()}


@given(landings=_landings, more=_landings, forgets=st.booleans())
def test_a_restored_fusion_goes_on(landings: Landings, more: Landings, *, forgets: bool) -> None:
    """With the key table, which the checkpoint holds beside it."""
    fusion, restored = _told(landings), _fusion()
    if forgets:
        fusion.forget()
    _kept_by(restored).restore({k: v.copy() for k, v in _kept_by(fusion).arrays().items()})
    restored.restore({k: v.copy() for k, v in fusion.arrays().items()})
    for each in (fusion, restored):
        _kept_by(each).intern([b"newcomer"], np.array([0]))
    for ask in _QUESTIONS:
        np.testing.assert_array_equal(ask(restored), ask(fusion))
        np.testing.assert_array_equal(ask(_told(more, restored)), ask(_told(more, fusion)))


_QUESTIONS: tuple[Callable[[Fusion], Float64], ...] = (
    lambda fusion: fusion.weights(_ALL),
    lambda fusion: fusion.losses(_ALL),
)
