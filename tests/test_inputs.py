"""What the network is told: shapes, scales, and nothing that is not a number where it matters."""

from typing import Any

import numpy as np
import pytest
import slow_inputs
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from stream_forecaster import inputs
from stream_forecaster.architecture import BUCKETS, CANDIDATES, CLUES, PATCH, STATISTICS
from stream_forecaster.calendar import DAY_MS, HOUR_MS, Calendar
from stream_forecaster.inputs import Timetable

_B, _C, _H = 3, 5, 4
_MONDAY_NOON_MS = 4 * DAY_MS + DAY_MS // 2  # 1970-01-05

_values = npst.arrays(np.float64, (_B, _C), elements=st.floats(-1e6, 1e6) | st.just(np.nan))
_spreads = npst.arrays(np.float64, (_B,), elements=st.floats(1e-3, 1e6))


def _phases(time_ms: int, step_ms: int = HOUR_MS, zone: str = "UTC") -> NDArray[np.float32]:
    calendar = Calendar(zone)
    index = np.array([int(calendar.index(time_ms, step_ms))])
    row: NDArray[np.float32] = Timetable(calendar, step_ms).phases(index)[0]
    return row


def test_phases_are_the_local_clock() -> None:
    """Noon is noon in every zone, opposite of midnight; weekends are marked."""
    noon = _phases(_MONDAY_NOON_MS)
    np.testing.assert_array_equal(_phases(_MONDAY_NOON_MS - HOUR_MS, zone="Europe/Paris"), noon)
    midnight = _phases(_MONDAY_NOON_MS - 12 * HOUR_MS)
    np.testing.assert_allclose(midnight[:2], -noon[:2], atol=1e-6)
    assert noon[1] < -0.9
    assert [_phases(_MONDAY_NOON_MS + i * DAY_MS)[4] for i in range(7)] == [0, 0, 0, 0, 0, 1, 1]


def test_a_bucket_of_a_day_has_no_time_of_day() -> None:
    """All days look alike but for the week."""
    phases = [_phases(_MONDAY_NOON_MS + i * DAY_MS, DAY_MS) for i in range(7)]
    assert {(row[0], row[1]) for row in phases} == {(0.0, 1.0)}
    assert len({(row[2], row[3]) for row in phases}) == 7


@given(context=st.integers(1, 500))
def test_windows_are_whole_patches(context: int) -> None:
    """As long as the context, rounded up, but not longer than what the encoder reads."""
    length = inputs.window_length(context)
    assert length % PATCH == 0
    assert min(context, 72) <= length < min(context, 72) + PATCH


@given(values=_values, spread=_spreads)
def test_windows_mark_what_is_missing(
    values: NDArray[np.float64], spread: NDArray[np.float64]
) -> None:
    """Newest last, bounded; a missing bucket is zero and says so; what was never there likewise."""
    level, errors = np.nan_to_num(values[:, 0]), np.ones((_B, 8), np.float32)
    window = inputs.windows(values, level, spread, errors)
    assert np.isfinite(window).all()
    assert np.abs(window).max() <= 6
    np.testing.assert_array_equal(window[:, -_C:, 1], ~np.isnan(values))
    np.testing.assert_array_equal(window[:, :-_C, :2], 0)
    np.testing.assert_array_equal(window[:, -_C:, 0][np.isnan(values)], 0)
    np.testing.assert_array_equal(window[:, :, 2], 1)


def test_a_window_is_cut_to_its_newest() -> None:
    """A context longer than the window loses its oldest buckets."""
    values = np.arange(10.0)[None]
    window = inputs.windows(values, np.zeros(1), np.full(1, 10.0), np.zeros((1, 4), np.float32))
    np.testing.assert_allclose(window[0, :, 0], [0.6, 0.7, 0.8, 0.9])


@given(values=_values, spread=_spreads, is_count=st.booleans())
def test_statistics_are_finite(
    values: NDArray[np.float64], spread: NDArray[np.float64], *, is_count: bool
) -> None:
    """Also of a key that has no closed bucket yet."""
    age = np.array([0, 1, 10_000])
    told = inputs.statistics(
        values,
        np.nan_to_num(values[:, 0]),
        spread,
        age,
        np.zeros(5, np.float32),
        step_ms=HOUR_MS,
        is_count=is_count,
    )
    assert told.shape == (_B, STATISTICS)
    assert np.isfinite(told).all()


@given(factor=st.sampled_from([1e-3, 10.0, 1e6]))
def test_real_values_are_told_without_their_unit(factor: float) -> None:
    """Grams or tons: the same window, statistics and clues, up to rounding."""
    rng = np.random.default_rng(1)
    values, path = rng.normal(5, 1, (_B, _C)), rng.normal(5, 1, (_B, _H))

    def told(unit: float) -> list[NDArray[Any]]:
        spread = np.full(_B, unit)
        level = unit * values.mean(axis=1)
        now = np.zeros(5, np.float32)
        ahead, phases = np.arange(1, _H + 1), np.zeros((_H, 5), np.float32)
        age = np.full(_B, _C)
        return [
            inputs.windows(unit * values, level, spread, np.zeros((_B, 8), np.float32)),
            inputs.statistics(
                unit * values, level, spread, age, now, step_ms=HOUR_MS, is_count=False
            ),
            inputs.clues(
                unit * path, np.full((_B, _H), unit), spread, ahead, phases, now, is_count=False
            ),
        ]

    for one, other in zip(told(1.0), told(factor), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-3)


def test_candidates_are_in_expected_errors_around_the_pool() -> None:
    """One column per known name; NaN for those that are not there."""
    path, unit = np.full((_B, _H), 10.0), np.full((_B, _H), 2.0)
    said = np.stack([np.full((_B, _H), 13.0), path], axis=1)
    told = inputs.candidates(("ridge", "else"), said, path, unit)
    ridge = CANDIDATES.index("ridge")
    np.testing.assert_allclose(told[:, :, ridge], 1.5)
    assert np.isnan(np.delete(told, ridge, axis=2)).all()


def test_no_opinion_stays_none() -> None:
    """A prediction that is not there is not a prediction of zero; a wild one is bounded."""
    wild = np.array([[[np.nan, 1e9, -1e9, 0.0]]])
    told = inputs.candidates(("ridge",), wild, np.zeros((1, _H)), np.ones((1, _H)))
    np.testing.assert_array_equal(told[0, :, CANDIDATES.index("ridge")], [np.nan, 8, -8, 0])


def test_losses_are_zero_where_unknown() -> None:
    """Each expert's in its own column, by horizon bucket, as the log of how much worse it is."""
    landed = np.tile([[[1.0, 1.0, 2.0], [3.0, 1.0, 1.0]]], (_B, 1, 1))  # two buckets, three experts
    told = inputs.losses(("ridge", "else", "population"), landed, np.array([0, 0, 1, 1]))
    assert told.shape == (_B, 4, len(CANDIDATES))
    expected = {"ridge": [0, 0, np.log(3), np.log(3)], "population": [np.log(2)] * 2 + [0, 0]}
    for i, name in enumerate(CANDIDATES):
        np.testing.assert_allclose(told[0, :, i], expected.get(name, [0] * 4), atol=1e-5)


def test_a_hopeless_loss_is_bounded() -> None:
    """An expert a million times worse is not told of as such."""
    told = inputs.losses(("ridge", "population"), np.array([[[1.0, 1e6]]]), np.array([0]))
    assert told.max() == 3


@given(is_count=st.booleans(), zone=st.sampled_from(["UTC", "Europe/Paris"]))
def test_clues_are_finite(zone: str, *, is_count: bool) -> None:
    """Of a path at or below zero too, and of a key without any spread."""
    times = Timetable(Calendar(zone), HOUR_MS)
    path = np.array([[0.0, -3.0, 1e-9, 1e6]])
    told = inputs.clues(
        path,
        np.full(path.shape, 1e-6),
        np.zeros(1),
        np.arange(1, _H + 1),
        times.phases(np.arange(100, 100 + _H)),
        times.phases(np.array([99]))[0],
        is_count=is_count,
    )
    assert told.shape == (1, _H, CLUES)
    assert np.isfinite(told).all()


_paths = npst.arrays(np.float64, (_B, _H), elements=st.floats(-1e6, 1e6))
_units = npst.arrays(np.float64, (_B, _H), elements=st.floats(1e-6, 1e6))
_opinions = npst.arrays(
    np.float64, (_B, 4, _H), elements=st.floats(-1e6, 1e6) | st.sampled_from([np.nan, 1e12])
)
_losses = npst.arrays(np.float64, (_B, 3, 4), elements=st.floats(0, 25))
_names = st.lists(st.sampled_from([*CANDIDATES, "river"]), min_size=4, max_size=4, unique=True)
_contexts = npst.arrays(np.float64, (_B, 9), elements=st.floats(-1e6, 1e6) | st.just(np.nan))
_ages = npst.arrays(np.int64, (_B,), elements=st.integers(0, 10**6))


def _assert_close(ours: NDArray[np.float32], slow: NDArray[np.float32]) -> None:
    """Within rounding in single precision."""
    assert ours.dtype == slow.dtype == np.float32
    np.testing.assert_allclose(ours, slow, rtol=3e-7, atol=1e-7)


@given(
    values=_contexts,
    spread=_spreads,
    age=_ages,
    length=st.integers(1, 12),
    is_count=st.booleans(),
)
def test_a_key_is_described_as_by_arrays_as_a_whole(
    values: NDArray[np.float64],
    spread: NDArray[np.float64],
    age: NDArray[np.int64],
    length: int,
    *,
    is_count: bool,
) -> None:
    """Its window and its statistics."""
    level, now = np.nan_to_num(values[:, 0]), np.linspace(-1, 1, 5, dtype=np.float32)
    errors = np.linspace(-8, 8, _B * length, dtype=np.float32).reshape(_B, length)
    told = values, level, spread
    _assert_close(inputs.windows(*told, errors), slow_inputs.windows(*told, errors))
    ours, slow = (
        of.statistics(*told, age, now, step_ms=HOUR_MS, is_count=is_count)
        for of in (inputs, slow_inputs)
    )
    _assert_close(ours, slow)


@given(
    path=_paths,
    unit=_units,
    spread=_spreads,
    opinions=_opinions,
    losses=_losses,
    names=_names,
    is_count=st.booleans(),
)
def test_steps_are_told_of_as_by_arrays_as_a_whole(  # noqa: PLR0913
    path: NDArray[np.float64],
    unit: NDArray[np.float64],
    spread: NDArray[np.float64],
    opinions: NDArray[np.float64],
    losses: NDArray[np.float64],
    names: list[str],
    *,
    is_count: bool,
) -> None:
    """Experts' paths, their losses and the clues."""
    bucket, ahead = np.array([0, 1, 1, 2]), np.arange(1, _H + 1)
    phases = np.sin(np.arange(5.0 * _H)).reshape(_H, 5).astype(np.float32)
    said, landed = (names, opinions, path, unit), (names, losses, bucket)
    step = path, unit, spread, ahead, phases, phases[0]
    _assert_close(inputs.candidates(*said), slow_inputs.candidates(*said))
    _assert_close(inputs.losses(*landed), slow_inputs.losses(*landed))
    _assert_close(
        inputs.clues(*step, is_count=is_count), slow_inputs.clues(*step, is_count=is_count)
    )


@pytest.mark.parametrize("horizon", [1, 30, 1000])
def test_gate_buckets_ascend(horizon: int) -> None:
    """From the first to at most the last there is."""
    buckets = inputs.gate_bucket(np.arange(1, horizon + 1))
    assert buckets[0] == 0
    assert (np.diff(buckets) >= 0).all()
    assert buckets.max() < BUCKETS
