"""Fusion against its formula; that it pays is in `laws/test_experts.py`."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from stream_forecaster.fusion import Fusion, fuse, in_effect
from stream_forecaster.keys import KeyTable

_M, _K, _G = 3, 4, 2

_losses = npst.arrays(np.float64, (_M, _K), elements=st.one_of(st.just(np.nan), st.floats(0, 200)))
_histories = st.lists(
    st.tuples(st.integers(0, _G - 1), st.sets(st.integers(0, _K - 1)), _losses), max_size=15
)
History = list[tuple[int, set[int], NDArray[np.float64]]]


def _fusion() -> Fusion:
    table = KeyTable()
    table.intern([b"%d" % i for i in range(_K)], np.zeros(_K, np.int64))
    return Fusion(table, "p", _M, _G)


def _taught(history: History) -> Fusion:
    fusion = _fusion()
    for bucket, slots, losses in history:
        landed = np.array(sorted(slots), np.int64)
        spoken = np.where(np.isnan(losses).all(axis=0), 1.0, losses)  # one expert always speaks
        fusion.learn(bucket, landed, spoken[:, landed])
    return fusion


@given(history=_histories)
def test_weights_sum_to_one(history: History) -> None:
    """Over the experts, for every key and horizon; and none is ever lost for good."""
    weights = _taught(history).weights(np.s_[:])
    assert weights.shape == (_M, _K, _G)
    np.testing.assert_allclose(weights.sum(axis=0), 1.0)
    assert (weights >= 0.01 / _M * (1 - 1e-9)).all()


@given(history=_histories)
def test_weights_are_the_formula(history: History) -> None:
    """Discounted losses, own shrunk to everyone's, through an exponential of the regret."""
    weights = _taught(history).weights(np.s_[:])
    everyone = np.zeros((_G, _M + 1))
    own = np.zeros((_K, _G, _M + 1))
    for bucket, slots, losses in history:
        if not slots:
            continue
        rows = {}
        for k in slots:
            row = [min(float(x), 100.0) for x in losses[:, k]]
            known = [x for x in row if not math.isnan(x)] or [1.0]
            rows[k] = [max(known) if math.isnan(x) else x for x in row]
            own[k, bucket] = 0.99 * own[k, bucket] + [*rows[k], 1.0]
        mean = np.mean(list(rows.values()), axis=0)
        everyone[bucket] = 0.99 * everyone[bucket] + [*mean, 1.0]
    for k in range(_K):
        for g in range(_G):
            prior = everyone[g, :_M] / max(everyone[g, _M], 1.0)
            loss = (own[k, g, :_M] + 20 * prior) / (own[k, g, _M] + 20)
            regret = (loss - loss.min()) / (loss.min() + 1e-6)
            raw = np.exp(-2 * np.sqrt(own[k, g, _M] + min(everyone[g, _M], 20)) * regret)
            expected = 0.99 * raw / raw.sum() + 0.01 / _M
            np.testing.assert_allclose(weights[:, k, g], expected, rtol=1e-3, atol=1e-5)


def test_everyone_is_equal_in_the_beginning() -> None:
    """Before any loss has landed."""
    np.testing.assert_allclose(_fusion().weights(np.s_[:]), 1 / _M)


def test_a_newcomer_has_the_weights_that_serve_the_others() -> None:
    """And a key of its own mind departs from them."""
    fusion = _fusion()
    for _ in range(100):
        losses = np.array([[0.1, 0.1, 2.0], [1.0, 1.0, 1.0], [2.0, 2.0, 0.1]])
        fusion.learn(0, np.arange(3), losses)
    weights = fusion.weights(np.s_[:])[:, :, 0]
    old, contrary, newcomer = weights[:, 0], weights[:, 2], weights[:, 3]
    assert old.argmax() == newcomer.argmax() == 0
    assert contrary.argmax() == 2


@given(scale=st.floats(0.01, 100))
def test_the_scale_of_the_losses_cancels(scale: float) -> None:
    """Twice the error for everyone moves no weight."""
    losses = np.array([[0.1], [0.12], [0.2]])
    one, scaled = _fusion(), _fusion()
    for _ in range(50):
        one.learn(0, np.array([0]), losses)
        scaled.learn(0, np.array([0]), losses * min(scale, 400))
    np.testing.assert_allclose(
        scaled.weights(np.s_[:1])[:, 0, 0], one.weights(np.s_[:1])[:, 0, 0], atol=2e-3
    )


@given(
    predictions=npst.arrays(
        np.float64, (_M, _K, _G), elements=st.one_of(st.just(np.nan), st.floats(-1e6, 1e6))
    ),
    weights=npst.arrays(np.float64, (_M, _K, _G), elements=st.floats(0.01, 1)),
)
def test_the_fused_path_is_the_mean_of_those_who_speak(
    predictions: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> None:
    """An expert without an opinion has no weight; without any the path is zero."""
    fused, effective = fuse(list(predictions), weights), in_effect(list(predictions), weights)
    for k in range(_K):
        for g in range(_G):
            said = [
                (p, w)
                for p, w in zip(predictions[:, k, g], weights[:, k, g], strict=True)
                if not math.isnan(p)
            ]
            mass = sum(w for _, w in said)
            expected = sum(p * w for p, w in said) / mass if said else 0.0
            assert fused[k, g] == pytest.approx(expected, rel=1e-9, abs=1e-6)
            shares = effective[:, k, g][~np.isnan(predictions[:, k, g])].tolist()
            assert shares == pytest.approx([w / mass for _, w in said])
            assert effective[:, k, g].sum() == pytest.approx(1.0 if said else 0.0)


def test_flat_predictions_hold_for_every_horizon() -> None:
    """(B, 1) is as good as (B, G)."""
    weights = np.full((2, 1, 3), 0.5)
    fused = fuse([np.array([[2.0]]), np.array([[1.0, 2.0, 3.0]])], weights)
    assert fused.tolist() == [[1.5, 2.0, 2.5]]


@given(history=_histories)
def test_a_restored_fusion_has_the_same_weights(history: History) -> None:
    """With the key table, which the checkpoint holds beside it."""
    fusion, restored = _taught(history), _fusion()
    restored._table.restore(fusion._table.arrays())
    restored.restore(fusion.arrays())
    np.testing.assert_array_equal(restored.weights(np.s_[:]), fusion.weights(np.s_[:]))
