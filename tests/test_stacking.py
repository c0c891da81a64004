"""The stack: it is the ridge regression of all that landed, within its bounds."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stream_forecaster.keys import KeyTable
from stream_forecaster.stacking import _LARGEST_LOSS, _OWN_KEYS, _POPULATION_DISCOUNT, Stack

Float64 = NDArray[np.float64]

_M, _K, _G = 3, 4, 2
_ALL = np.s_[:]
_START = np.array([0.3, -0.2, 0.0])
_DISCOUNT, _PRIOR, _BURST = 0.9, 8.0, 1.5

Landings = list[tuple[int, set[int], int]]
"""Of a bucket, slots, and the seed of what landed."""
_landings = st.lists(
    st.tuples(st.integers(0, _G - 1), st.sets(st.integers(0, _K - 1)), st.integers(0, 2**32 - 1)),
    max_size=15,
)


def _table(keys: int) -> KeyTable:
    table = KeyTable()
    table.intern([b"%d" % i for i in range(keys)], np.zeros(keys, np.int64))
    return table


def _stack(keys: int = _K, *, prior: float = _PRIOR, convex: bool = False) -> Stack:
    return Stack(
        _table(keys),
        "s",
        _G,
        _START.copy(),
        discount=_DISCOUNT,
        burst=_BURST,
        prior=prior,
        convex=convex,
    )


def _drawn(slots: set[int], seed: int) -> tuple[NDArray[np.int64], Float64, Float64]:
    """Slots (B,), deviations (M, B) and residuals (B,) that depend on them, either way.

    Some have no deviations at all, and some residuals are bursts.
    """
    rng, rows = np.random.default_rng(seed), np.array(sorted(slots), np.int64)
    deviation = rng.normal(size=(_M, len(rows))) * (rng.random(len(rows)) < 0.8)
    residual = deviation[0] - 0.5 * deviation[1] + rng.normal(size=len(rows))
    residual += 20 * (rng.random(len(rows)) < 0.1)
    return rows, deviation, residual if seed % 2 else -residual


def _regressed(landings: Landings, *, convex: bool = False) -> Stack:
    stack = _stack(convex=convex)
    for bucket, slots, seed in landings:
        stack.learn(bucket, *_drawn(slots, seed))
    stack.solve()
    return stack


def _ridge(
    rows: list[tuple[float, Float64, float]], scale: Float64, prior: float, start: Float64
) -> Float64:
    """Least squares of residuals on deviations, with the prior as so many further observations.

    Args:
        rows: weight, deviation (M,) and residual of each observation.
        scale: (M, M) what one imagined observation tells.
        prior: how many there are of them.
        start: (M,) which weights they speak for.
    """
    root = np.linalg.cholesky(prior * scale).T
    regressors = [math.sqrt(w) * d for w, d, _ in rows]
    targets = [math.sqrt(w) * r for w, _, r in rows]
    weight: Float64 = np.linalg.lstsq(
        np.array([*regressors, *root]), np.array([*targets, *(root @ start)]), rcond=None
    )[0]
    return weight


@given(landings=_landings)
def test_a_stack_is_the_ridge_regression_of_all_that_landed(landings: Landings) -> None:
    """The population's shrunk to the start, a key's own to the population's; older rows less.

    And to less of the start the worse it did than no weights at all.
    """
    weights = _regressed(landings).weights(_ALL)
    for g in range(_G):
        pooled: list[tuple[float, Float64, float]] = []
        own: dict[int, list[tuple[float, Float64, float]]] = {k: [] for k in range(_K)}
        landed, trial = 0.0, np.zeros(3)
        for bucket, slots, seed in landings:
            if bucket != g or not slots:
                continue
            landed = _POPULATION_DISCOUNT * landed + 1
            news = np.zeros(3)
            pooled = [(w * _POPULATION_DISCOUNT, d, r) for w, d, r in pooled]
            for k, deviation, r in zip(*_of_each(slots, seed), strict=True):
                w = 1 / math.sqrt(1 + (r / _BURST) ** 2)
                pooled.append((w / len(slots), deviation, r))
                if deviation.any():
                    errors = np.array([r, r - deviation @ _START])
                    news += [*np.minimum(errors**2, _LARGEST_LOSS), 1]
                older = [(u * _DISCOUNT, d, s) for u, d, s in own[k]]
                own[k] = [*older, (w, deviation, r)]
            if news[2]:
                trial = _POPULATION_DISCOUNT * trial + news / news[2]
        if landed < 2:  # too little to solve
            np.testing.assert_allclose(weights[:, :, g], np.tile(_START, (_K, 1)).T)
            continue
        mean = sum(w * np.outer(d, d) for w, d, _ in pooled) / landed
        scale = mean + (0.02 * np.trace(mean) / _M + 1e-9) * np.eye(_M)
        worse = math.sqrt(trial[2]) * max(trial[1] / trial[0] - 1, 0) if trial[2] else 0
        belief = 2 * math.exp(-worse) / (1 + math.exp(-worse))
        everyone = _ridge(pooled, scale, _PRIOR / 4, belief * _START)
        for k in range(_K):
            expected = _ridge(own[k], scale, _PRIOR, everyone)
            np.testing.assert_allclose(weights[:, k, g], expected, rtol=1e-3, atol=1e-4)


def _of_each(slots: set[int], seed: int) -> tuple[list[int], list[Float64], list[float]]:
    rows, deviation, residual = _drawn(slots, seed)
    return rows.tolist(), list(deviation.T), residual.tolist()


@given(landings=_landings)
def test_a_convex_stack_stays_within_its_bounds(landings: Landings) -> None:
    """No weight below zero once it has solved, and together at most one."""
    stack = _regressed(landings, convex=True)
    solved = [g for g in range(_G) if sum(b == g and bool(slots) for b, slots, _ in landings) > 2]
    weights = stack.weights(_ALL)[:, :, solved]
    assert (weights >= 0).all()
    assert (weights.sum(axis=0) <= 1 + 1e-6).all()


def test_a_stack_starts_with_what_it_was_given() -> None:
    """Before anything has landed, solved or not."""
    stack = _stack()
    stack.solve()
    np.testing.assert_array_equal(
        stack.weights(_ALL), np.broadcast_to(_START[:, None, None], (_M, _K, _G))
    )


def test_a_start_that_does_harm_is_given_up_soon() -> None:
    """Ridge alone would keep nearly all of it; one that does well is kept, in its bucket."""
    stack, rng = _stack(prior=1e6), np.random.default_rng(0)
    for _ in range(150):
        deviation = rng.normal(size=(_M, _K))
        for bucket, sign in enumerate((1.0, -1.0)):
            missed = sign * (_START @ deviation) + rng.normal(size=_K)
            stack.learn(bucket, np.arange(_K), deviation, missed)
    stack.solve()
    kept, refuted = stack.weights(_ALL)[:, 0].T
    np.testing.assert_allclose(kept, _START, atol=1e-3)
    assert np.abs(refuted).max() < 0.1


def test_after_a_drift_all_evidence_counts_for_a_tenth() -> None:
    """That against the start as well."""
    stack = _regressed([(0, {0, 1}, 3), (0, {2, 3}, 4)])
    before = {name: stack.arrays()[name].copy() for name in ("gram", "cross", "landed", "trial")}
    stack.forget()
    for name, evidence in before.items():
        assert evidence.any()
        np.testing.assert_allclose(stack.arrays()[name], 0.1 * evidence)


def test_keys_beyond_the_first_have_the_weights_of_the_population() -> None:
    """And so has a newcomer among the first; only who has learned by itself departs."""
    keys = _OWN_KEYS + 3
    stack, rng = _stack(keys), np.random.default_rng(0)
    learners = np.delete(np.arange(keys), 5)
    for _ in range(60):
        deviation = rng.normal(size=(_M, keys - 1))
        stack.learn(0, learners, deviation, np.where(learners % 2, 1, -1) * deviation[0])
    stack.solve()
    weights = stack.weights(_ALL)[:, :, 0]
    beyond, newcomer = weights[:, _OWN_KEYS:], weights[:, 5]
    np.testing.assert_array_equal(beyond, np.tile(beyond[:, :1], 3))
    np.testing.assert_allclose(newcomer, beyond[:, 0], atol=1e-6)
    assert weights[0, 7] > 0.3 > -0.3 > weights[0, 8]
    assert abs(newcomer[0]) < 0.2
    picked = np.array([_OWN_KEYS + 1, 7, 5])
    np.testing.assert_array_equal(stack.weights(picked)[:, :, 0], weights[:, picked])


def test_who_comes_into_a_freed_slot_has_the_weights_of_the_population() -> None:
    """At once, and after the next solution."""
    stack, rng = _stack(), np.random.default_rng(0)
    for _ in range(60):
        deviation = rng.normal(size=(_M, 2))
        stack.learn(0, np.array([1, 2]), deviation, np.array([1, -1]) * deviation[0])
    stack.solve()
    everyone = stack.arrays()["weight"][0].copy()
    stack._table.forget(b"2")
    slot = stack._table.intern([b"newcomer"], np.array([0]))
    np.testing.assert_array_equal(stack.weights(slot)[:, 0, 0], everyone)
    stack.solve()
    np.testing.assert_allclose(stack.weights(slot)[:, 0, 0], everyone, rtol=1e-6)


def test_one_burst_does_not_turn_a_regression() -> None:
    """A residual of a thousand spreads among two hundred usual ones, which say 0.5."""
    stack, rng = _stack(1), np.random.default_rng(0)
    for n in range(200):
        deviation = rng.normal(size=(_M, 1))
        burst = 1000.0 if n == 150 else 0.0
        stack.learn(0, np.array([0]), deviation, 0.5 * deviation[0] + burst)
    stack.solve()
    np.testing.assert_allclose(stack.weights(_ALL)[:, 0, 0], [0.5, 0, 0], atol=0.3)


def test_a_restored_stack_keeps_the_start_that_it_had() -> None:
    """Though stacks now begin with other weights: they are shrunk to those of their own time."""
    stack, rng = _stack(), np.random.default_rng(0)
    for _ in range(5):
        stack.learn(0, np.arange(_K), rng.normal(size=(_M, _K)), rng.normal(size=_K))
    now = np.array([0.9, 0.9, 0.9])
    restored = Stack(_table(_K), "s", _G, now, discount=_DISCOUNT, prior=_PRIOR, burst=_BURST)
    restored._table.restore({k: v.copy() for k, v in stack._table.arrays().items()})
    restored.restore({k: v.copy() for k, v in stack.arrays().items()})
    for _ in range(5):
        landed = rng.normal(size=(_M, _K)), rng.normal(size=_K)
        for each in (stack, restored):
            each.learn(0, np.arange(_K), *landed)
            each.solve()
    np.testing.assert_array_equal(restored.weights(_ALL), stack.weights(_ALL))
