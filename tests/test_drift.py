"""The drift test against river's, of which it is the arithmetic."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from river import drift

from stream_forecaster.drift import PageHinkley

_stretches = st.lists(
    st.tuples(st.integers(1, 120), st.floats(0, 20), st.floats(0, 5)), min_size=1, max_size=5
)


def _losses(stretches: list[tuple[int, float, float]], seed: int) -> list[float]:
    rng = np.random.default_rng(seed)
    parts = [np.abs(rng.normal(level, noise, n)) for n, level, noise in stretches]
    return [float(loss) for loss in np.concatenate(parts)]


@given(stretches=_stretches, seed=st.integers(0, 99))
def test_it_detects_what_river_detects(
    stretches: list[tuple[int, float, float]], seed: int
) -> None:
    """At the same losses, however often: levels that jump and fall, with noise."""
    ours, oracle = PageHinkley(), drift.PageHinkley(mode="up")
    for loss in _losses(stretches, seed):
        oracle.update(loss)  # type: ignore[no-untyped-call]  # river ships no types
        assert ours.update(loss) == oracle.drift_detected


@given(stretches=_stretches, seed=st.integers(0, 99), cut=st.integers(0, 100))
def test_a_restored_test_goes_on(
    stretches: list[tuple[int, float, float]], seed: int, cut: int
) -> None:
    """Its four numbers are all of it, before the first loss too."""
    gone_on, restored = PageHinkley(), PageHinkley()
    losses = _losses(stretches, seed)
    for loss in losses[:cut]:
        gone_on.update(loss)
    restored.restore(gone_on.arrays())
    assert [gone_on.update(x) for x in losses[cut:]] == [restored.update(x) for x in losses[cut:]]


@pytest.mark.parametrize("level", [0.1, 1.0])
def test_steady_losses_are_no_drift(level: float) -> None:
    """A week of minutes, each loss the mean over ten keys."""
    test, rng = PageHinkley(), np.random.default_rng(1)
    losses = rng.gamma(10.0, level / 10, 10_000)
    assert not any(test.update(float(loss)) for loss in losses)


def test_a_jump_is_found() -> None:
    """Within a few dozen buckets of losses that have tripled; a fall is none."""
    test = PageHinkley()
    assert not any(test.update(1.0) for _ in range(500))
    assert any(test.update(3.0) for _ in range(30))
    assert not any(test.update(1.0) for _ in range(500))
