"""The drift test: river's two detectors, both needed, and the same after a restore."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from river import drift

from stream_forecaster.drift import Drift

_LEAST = 1e-200
"""Powers of two round what is so small that it ends up subnormal."""
_stretches = st.lists(
    st.tuples(st.integers(1, 1500), st.floats(0, 20), st.floats(0, 5)), min_size=1, max_size=8
)
_SHAPES = ["gaussian", "exponential", "lognormal", "daily"]


def _losses(stretches: list[tuple[int, float, float]], seed: int) -> list[float]:
    """Levels that jump and fall, with noise."""
    rng = np.random.default_rng(seed)
    parts = [np.abs(rng.normal(level, noise, n)) for n, level, noise in stretches]
    return [float(loss) for loss in np.concatenate(parts)]


def _steady(shape: str, size: int) -> NDArray[np.float64]:
    """Losses around one whose law does not change, but for the hour of the day."""
    rng = np.random.default_rng(1)
    if shape == "gaussian":
        return np.abs(rng.normal(1.0, 0.3, size))
    if shape == "exponential":
        return rng.exponential(1.0, size)
    if shape == "lognormal":
        return rng.lognormal(-0.5, 1.0, size)
    day = np.sin(2 * np.pi * np.arange(size) / 1440)
    return np.abs((1 + 0.3 * day) * rng.normal(1.0, 0.2, size))


def _told(test: Drift, losses: list[float]) -> list[tuple[bool, bool]]:
    """What a test says to each loss."""
    return [(test.update(loss), test.drifting) for loss in losses]


def _first_agreement(losses: list[float]) -> int | None:
    """Where river's two, with the settings that `drift.py` documents, first both saw a rise."""
    adwin = drift.ADWIN(clock=1)  # type: ignore[no-untyped-call]  # river ships no types
    page_hinkley = drift.PageHinkley(delta=0.75, threshold=20.0, mode="up")
    seen: tuple[list[int], list[int]] = ([], [])
    cut: list[float] = []
    for i, loss in enumerate(losses):
        if i:
            cut.append(min(loss, 4 * sorted(losses[:i])[i // 2]))
        mean = sum(cut) / max(i, 1)
        ratio = min(loss / mean, 4.0) if mean else 4.0 * (loss > 0)
        before = adwin.estimation
        adwin.update(ratio / 4.0)  # type: ignore[no-untyped-call]
        page_hinkley.update(ratio)  # type: ignore[no-untyped-call]
        if adwin.drift_detected and adwin.estimation > before:
            seen[0].append(i)
        if page_hinkley.drift_detected:
            seen[1].append(i)
        if all(times and i - times[-1] <= 120 for times in seen):
            return i
    return None


@settings(max_examples=30)
@example(stretches=[(600, 1.0, 0.1), (100, 2.0, 0.1)], seed=0)  # Page-Hinkley is the later
@given(
    stretches=st.lists(
        st.tuples(st.integers(1, 120), st.floats(0, 20), st.floats(0, 5)), min_size=1, max_size=6
    ),
    seed=st.integers(0, 99),
)
def test_it_detects_what_both_of_river_detect(
    stretches: list[tuple[int, float, float]], seed: int
) -> None:
    """Law: the first drift is where ADWIN and Page-Hinkley have both seen a rise."""
    losses = _losses(stretches, seed)
    said = [drifted for drifted, _ in _told(Drift(), losses)]
    assert (said.index(True) if any(said) else None) == _first_agreement(losses)


@settings(max_examples=25)
@given(data=st.data(), stretches=_stretches, seed=st.integers(0, 99))
def test_a_restored_test_goes_on(
    data: st.DataObject, stretches: list[tuple[int, float, float]], seed: int
) -> None:
    """Law: restored however often, before the first loss too, it says what a live one says."""
    losses = _losses(stretches, seed)
    cuts = data.draw(st.lists(st.integers(0, len(losses)), max_size=4))
    live, said = Drift(), []
    restored = Drift()
    for begin, end in pairwise([0, *sorted(cuts), len(losses)]):
        arrays = restored.arrays()
        restored = Drift()
        restored.restore(arrays)
        said += _told(restored, losses[begin:end])
    assert said == _told(live, losses)
    for name, array in live.arrays().items():
        np.testing.assert_array_equal(restored.arrays()[name], array)


@pytest.mark.parametrize("cut", [3_999, 4_000, 4_001, 4_150])
def test_a_restore_is_exact_where_old_losses_are_forgotten(cut: int) -> None:
    """Live and restored tests measure by the same losses, so they find a jump at the same bucket.

    loss    5           1             3
          ├───────────┼─────────────┼──
          0         2000      ▲   4200
                              └ 4000: the fives are forgotten; with them, 3 would be no rise
    """
    losses = _steady("gaussian", 4_400)
    losses[:2_000] *= 5
    losses[4_200:] *= 3
    live, restored = Drift(), Drift()
    _told(live, losses[:cut].tolist())
    restored.restore(live.arrays())
    said = _told(live, losses[cut:].tolist())
    assert said == _told(restored, losses[cut:].tolist())
    assert any(drifted for drifted, _ in said)


def test_state_is_bounded() -> None:
    """However long it runs it keeps fewer than 4,000 losses, and at least half of them."""
    test = Drift()
    kept = []
    for loss in _steady("gaussian", 13_000).tolist():
        test.update(loss)
        kept.append(len(test.arrays()["losses"]))
    assert max(kept) == 3_999
    assert min(kept[4_000:]) == 2_000


@settings(max_examples=20)
@given(stretches=_stretches, seed=st.integers(0, 99), exponent=st.integers(-60, 60))
@example(stretches=[(55, 0.0, 5e-324), (46, 0.0, 1.0)], seed=0, exponent=1)
def test_scale_cancels(stretches: list[tuple[int, float, float]], seed: int, exponent: int) -> None:
    """Law: losses in another unit (a power of two: no rounding) drift at the same buckets."""
    losses = [loss if loss > _LEAST else 0.0 for loss in _losses(stretches, seed)]
    scaled = [math.ldexp(loss, exponent) for loss in losses]
    assert _told(Drift(), losses) == _told(Drift(), scaled)


@pytest.mark.parametrize("shape", _SHAPES)
def test_steady_losses_are_no_drift(shape: str) -> None:
    """Two weeks of minutes."""
    assert not any(drifted for drifted, _ in _told(Drift(), _steady(shape, 20_000).tolist()))


@pytest.mark.parametrize("shape", _SHAPES)
def test_a_jump_is_found(shape: str) -> None:
    """Losses that triple are a drift within 120 buckets; losses that fall to a third are none."""
    losses = _steady(shape, 1_620)
    losses[1_500:] *= 3
    assert any(drifted for drifted, _ in _told(Drift(), losses.tolist())[1_500:])
    losses[1_500:] /= 9
    assert not any(drifted for drifted, _ in _told(Drift(), losses.tolist()))


def test_one_absurd_loss_hides_nothing() -> None:
    """A first loss of millions, as real streams have it, or none that is a number at all."""
    for absurd in (6e6, math.inf, math.nan):
        test = Drift()
        assert not any(drifted for drifted, _ in _told(test, [absurd, *[1.0] * 500]))
        assert any(drifted for drifted, _ in _told(test, [3.0] * 30))


def test_a_drift_lasts_sixty_buckets() -> None:
    """Then the resolution is stable again, at its new level: the old one is forgotten."""
    test = Drift()
    said = _told(test, [1.0] * 500 + [3.0] * 500)
    (drift_at,) = [i for i, (drifted, _) in enumerate(said) if drifted]
    drifting = [i for i, (_, drifting) in enumerate(said) if drifting]
    assert drifting == list(range(drift_at, drift_at + 60))
    assert len(test.arrays()["losses"]) == len(said) - drift_at - 1


@pytest.mark.parametrize("silent", range(32, 60, 4))
def test_drifts_are_sixty_buckets_apart(silent: int) -> None:
    """From nothing to something is the rise seen soonest; none is seen within the cool-down."""
    test = Drift()
    said = _told(test, [1.0] * 500)
    while not test.drifting:
        said += _told(test, [3.0])
    said += _told(test, [0.0] * silent + [1.0] * 100)
    drifts = [i for i, (drifted, _) in enumerate(said) if drifted]
    assert len(drifts) == 2
    assert drifts[1] - drifts[0] >= 60


def test_a_fall_and_a_burst_are_no_drift() -> None:
    """ADWIN sees only the fall and Page-Hinkley only the burst: they do not agree on a rise."""
    losses = [2.0] * 500 + [0.5] * 60 + [40.0] * 12 + [0.5] * 100
    assert _first_agreement(losses) is None
    assert not any(drifted for drifted, _ in _told(Drift(), losses))
