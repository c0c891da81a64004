"""Scores against the formulas, one number at a time."""

import math
from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_forecaster.scoring import NAIVE, PUBLISHED, Score, central_intervals, pinball

LEVELS = (0.1, 0.5, 0.9)
FORECASTERS = (PUBLISHED, NAIVE, "seasonal")

_numbers = st.floats(-1e3, 1e3).map(lambda v: round(v, 2))
_rows = st.lists(
    st.tuples(
        st.integers(0, 1),  # horizon bucket
        _numbers,  # truth
        st.tuples(_numbers, *[st.one_of(st.just(math.nan), _numbers)] * 2),  # points
        st.lists(_numbers, min_size=3, max_size=3).map(sorted),  # quantiles
    ),
    min_size=1,
    max_size=20,
)
Row = tuple[int, float, tuple[float, float, float], list[float]]


def _landed(rows: list[Row]) -> Score:
    score = Score.zero(FORECASTERS, (1, 4), LEVELS)
    for bucket in (0, 1):
        chosen = [row for row in rows if row[0] == bucket]
        if chosen:
            truth, points, quantiles = (np.array(column) for column in list(zip(*chosen))[1:])  # noqa: B905  (rows of one shape)
            score.land(bucket, truth, points.T, quantiles)
    return score


def _said(points: tuple[float, float, float], forecaster: str) -> float:
    """What counts as a forecaster's word: its own, else the last value's, else the published."""
    own, naive = points[FORECASTERS.index(forecaster)], points[1]
    return next(p for p in (own, naive, points[0]) if not math.isnan(p))


def _mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else math.nan


@given(rows=_rows)
def test_errors_are_the_formulas(rows: list[Row]) -> None:
    """MAE, MSE and WAPE of each forecaster at each horizon."""
    score = _landed(rows)
    for bucket in (0, 1):
        chosen = [(truth, points) for b, truth, points, _ in rows if b == bucket]
        volume = sum(abs(truth) for truth, _ in chosen)
        for name in FORECASTERS:
            errors = [abs(truth - _said(points, name)) for truth, points in chosen]
            assert score.mae(name)[bucket] == pytest.approx(_mean(errors), nan_ok=True)
            squares = [e * e for e in errors]
            assert score.mse(name)[bucket] == pytest.approx(_mean(squares), nan_ok=True)
            wape = sum(errors) / volume if volume else math.nan
            assert score.wape(name)[bucket] == pytest.approx(wape, nan_ok=True)


@given(rows=_rows)
def test_quantile_scores_are_the_formulas(rows: list[Row]) -> None:
    """WQL and coverage, by the definition of the pinball loss."""
    score = _landed(rows)
    for bucket in (0, 1):
        chosen = [(truth, quantiles) for b, truth, _, quantiles in rows if b == bucket]
        losses = [
            level * (truth - q) if truth >= q else (1 - level) * (q - truth)
            for truth, quantiles in chosen
            for q, level in zip(quantiles, LEVELS, strict=True)
        ]
        volume = sum(abs(truth) for truth, _ in chosen)
        wql = 2 * sum(losses) / len(LEVELS) / volume if volume else math.nan
        assert score.wql()[bucket] == pytest.approx(wql, nan_ok=True, abs=1e-9)
    inside = [quantiles[0] <= truth <= quantiles[2] for _, truth, _, quantiles in rows]
    assert score.coverage() == {0.8: pytest.approx(_mean([float(i) for i in inside]))}
    for bucket in (0, 1):
        here = [float(i) for i, row in zip(inside, rows, strict=True) if row[0] == bucket]
        assert score.coverages()[0.8][bucket] == pytest.approx(_mean(here), nan_ok=True)


@given(rows=_rows)
def test_a_quantile_splits_the_truths(rows: list[Row]) -> None:
    """Shares below each level's quantile, without and with those equal to it."""
    below, at_most = _landed(rows).reliability()
    for q in range(len(LEVELS)):
        assert below[q] == pytest.approx(_mean([t < qs[q] for _, t, _, qs in rows]))
        assert at_most[q] == pytest.approx(_mean([t <= qs[q] for _, t, _, qs in rows]))


@given(rows=_rows)
def test_skill_and_mase_compare_with_the_last_value(rows: list[Row]) -> None:
    """On the same truths, so a forecaster that says nothing gains nothing."""
    score = _landed(rows)
    ours = sum(abs(truth - points[0]) for _, truth, points, _ in rows)
    naive = sum(abs(truth - _said(points, NAIVE)) for _, truth, points, _ in rows)
    expected = 1 - ours / naive if naive else math.nan
    assert score.skill() == pytest.approx(expected, nan_ok=True)
    one_step = score.mae(NAIVE)[0]
    if one_step > 0:
        expected_mase = score.mae(PUBLISHED) / one_step
        np.testing.assert_allclose(score.mase(PUBLISHED), expected_mase)


def test_a_silent_forecaster_is_not_the_best() -> None:
    """Errors it never made do not count as errors of zero."""
    score = _landed([(0, 10.0, (9.0, 7.0, math.nan), [8.0, 9.0, 11.0])])
    assert score.mae("seasonal")[0] == score.mae(NAIVE)[0] == 3.0
    score = _landed([(0, 10.0, (9.0, math.nan, math.nan), [8.0, 9.0, 11.0])])
    assert score.mae("seasonal")[0] == score.mae(NAIVE)[0] == 1.0
    assert score.skill() == 0.0


@given(rows=_rows)
def test_who_spoke_is_counted(rows: list[Row]) -> None:
    """The share of landed forecasts on which each had a word of its own, by horizon."""
    score = _landed(rows)
    for bucket in (0, 1):
        points = [points for b, _, points, _ in rows if b == bucket]
        for i, name in enumerate(FORECASTERS):
            spoke = _mean([float(not math.isnan(own[i])) for own in points])
            assert score.spoke(name)[bucket] == pytest.approx(spoke, nan_ok=True)


@given(rows=_rows)
def test_more_rows_change_no_other(rows: list[Row]) -> None:
    """All are judged on the same truths, whoever else is."""
    score = _landed(rows)
    fewer = Score.zero(FORECASTERS[:2], (1, 4), LEVELS)
    for bucket, truth, points, quantiles in rows:
        said = np.array(points[:2])[:, None]
        fewer.land(bucket, np.array([truth]), said, np.array([quantiles]))
    np.testing.assert_array_equal(fewer.count, score.count)
    np.testing.assert_allclose(fewer.absolute, score.absolute[:2])
    np.testing.assert_allclose(fewer.squared, score.squared[:2])
    np.testing.assert_allclose(fewer.pinball, score.pinball)


@given(rows=_rows, cut=st.integers(0, 20))
def test_scores_add(rows: list[Row], cut: int) -> None:
    """The score of all is the sum of the scores of the parts."""
    whole, parts = _landed(rows), reduce(add, [_landed(rows[:cut]), _landed(rows[cut:])])
    sums = (
        "count",
        "spoken",
        "absolute",
        "squared",
        "magnitude",
        "pinball",
        "covered",
        "below",
        "at_most",
    )
    for name in sums:
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), atol=1e-9)


@given(rows=_rows, factor=st.floats(0.1, 1.0))
def test_forgetting_changes_no_ratio(rows: list[Row], factor: float) -> None:
    """A score that counts for less has the same means."""
    score = _landed(rows)
    less = score * factor
    for name in FORECASTERS:
        np.testing.assert_allclose(less.mae(name), score.mae(name))
    np.testing.assert_allclose(less.wql(), score.wql(), atol=1e-12)
    assert less.coverage() == pytest.approx(score.coverage())
    np.testing.assert_allclose(less.reliability(), score.reliability())
    assert less.skill() == pytest.approx(score.skill(), nan_ok=True)


def test_nothing_landed_is_nan() -> None:
    """Not zero, which would be perfect."""
    score = Score.zero(FORECASTERS, (1, 4), LEVELS)
    numbers = [score.mae(NAIVE), score.mse(NAIVE), score.wql()]
    assert all(np.isnan(number).all() for number in numbers)
    assert math.isnan(score.skill())
    assert math.isnan(score.coverage()[0.8])


def test_scores_of_different_things_do_not_add() -> None:
    """Mixing resolutions is a bug in the caller."""
    with pytest.raises(ValueError, match="do not add"):
        _ = Score.zero(FORECASTERS, (1, 4), LEVELS) + Score.zero(FORECASTERS, (1, 2), LEVELS)


@given(truth=_numbers, level=st.floats(0.01, 0.99), data=st.data())
def test_pinball_is_least_at_the_quantile(truth: float, level: float, data: st.DataObject) -> None:
    """Averaged over a sample, no other number does better than the sample's own quantile."""
    sample = np.array([truth, *data.draw(st.lists(_numbers, min_size=1, max_size=9))])
    best = np.quantile(sample, level, method="inverted_cdf")
    other = data.draw(_numbers)
    candidates = np.array([best, other])
    losses = pinball(sample, np.tile(candidates, (len(sample), 1)), np.array([level])).mean(axis=0)
    assert losses[0] <= losses[1] + 1e-9


@given(low=st.lists(st.integers(1, 49), max_size=4, unique=True), with_median=st.booleans())
def test_symmetric_levels_bound_the_central_intervals(low: list[int], *, with_median: bool) -> None:
    """Each pair of levels that add up to one, by its nominal coverage."""
    percent = sorted([*low, *(100 - p for p in low), *([50] if with_median else [])])
    levels = tuple(p / 100 for p in percent)
    found = central_intervals(levels)
    assert sorted(found) == sorted(round(1 - 2 * p / 100, 6) for p in low)
    for nominal, (i, j) in found.items():
        assert levels[j] - levels[i] == pytest.approx(nominal)


def test_lopsided_levels_bound_none() -> None:
    """A level without its counterpart."""
    assert central_intervals((0.1, 0.5, 0.8)) == {}
