"""Quantile regression: what holds of all it says, what it learns, and that it goes on as it was."""

from collections.abc import Iterator
from datetime import datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stream_forecaster.calendar import DAY_MS, HOUR_MS, Calendar
from stream_forecaster.keys import KeyTable
from stream_forecaster.quantile_regression import QuantileRegression

Float64 = NDArray[np.float64]

LEVELS = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)
_KEYS, _EXPERTS = 20, 3
_HORIZONS = np.array([1, 12])
_FIRST = 483_168  # an hour of February 2025
_ONE = np.ones(_KEYS)
_ALL = np.arange(_KEYS)


def _regression(step_ms: int = HOUR_MS, zone: str = "UTC") -> QuantileRegression:
    table = KeyTable()
    table.intern([b"%d" % i for i in range(_KEYS)], np.zeros(_KEYS, np.int64))
    calendar = Calendar(zone)
    return QuantileRegression(table, "p", calendar, step_ms, LEVELS, _HORIZONS, experts=_EXPERTS)


def _say(
    regression: QuantileRegression, index: int, path: Float64, size: Float64, told: Float64
) -> Float64:
    """What it says in bucket 0 of all keys (K, Q)."""
    said = path[:, None], size[:, None], told[:, :, None]
    return regression.quantiles(_ALL, np.array([index]), said, np.array([0]))[:, 0]


def _live(
    regression: QuantileRegression,
    buckets: int,
    noise: Float64,
    bias: float = 0.0,
    disagreement: float = 1.0,
) -> Iterator[tuple[Float64, Float64]]:
    """Truth (K,) and the quantiles said of it (K, Q), bucket by bucket.

    The path is 50 and the expected error 1. The truth is a normal variable of mean absolute value
    `noise` (24,) by the hour, and `bias` of the first expert's deviation from the path.
    """
    rng = np.random.default_rng(0)
    for index in range(_FIRST, _FIRST + buckets):
        path = np.full(_KEYS, 50.0)
        told = path + disagreement * rng.normal(size=(_EXPERTS, _KEYS))
        size = noise[index % 24] * np.sqrt(np.pi / 2)
        truth = path + bias * (told[0] - path) + size * rng.normal(size=_KEYS)
        said = _say(regression, index, path, _ONE, told)
        yield truth, said
        regression.learn(0, _ALL, index, truth, (path, _ONE, told))
        regression.settle(index)


@settings(max_examples=30)
@given(
    residuals=st.lists(st.floats(-1e9, 1e9), max_size=80),
    path=st.floats(-1e6, 1e6),
    size=st.floats(1e-6, 1e6),
    told=st.lists(
        st.one_of(st.just(float("nan")), st.floats(-1e12, 1e12)),
        min_size=_EXPERTS,
        max_size=_EXPERTS,
    ),
)
def test_quantiles_ascend_and_are_finite(
    residuals: list[float], path: float, size: float, told: list[float]
) -> None:
    """Whatever landed, and whatever the experts say, if anything."""
    regression, rng = _regression(), np.random.default_rng(0)
    paths, sizes = np.full(_KEYS, path), np.full(_KEYS, size)
    experts = np.repeat(np.array(told)[:, None], _KEYS, axis=1)
    for index, residual in enumerate(residuals):
        truth = paths + residual * rng.normal(size=_KEYS)
        regression.learn(0, _ALL, index, truth, (paths, sizes, experts))
        regression.settle(index)
    quantiles = _say(regression, len(residuals), paths, sizes, experts)
    assert np.isfinite(quantiles).all()
    assert (np.diff(quantiles, axis=1) >= 0).all()


def test_it_begins_as_a_normal_distribution() -> None:
    """Of mean absolute value one expected error, around the path, whatever the experts say."""
    path, told = np.full(_KEYS, 10.0), np.full((_EXPERTS, _KEYS), 13.0)
    quantiles = _say(_regression(), _FIRST, path, 2 * _ONE, told)
    sigma = 2 * np.sqrt(np.pi / 2)
    normal = np.array([-1.959964, -1.281552, -0.674490, 0.0, 0.674490, 1.281552, 1.959964])
    np.testing.assert_allclose(quantiles, np.tile(10 + sigma * normal, (_KEYS, 1)), rtol=1e-6)


def test_its_quantiles_move_with_the_expert_that_knows() -> None:
    """Where the truth follows one expert, so do all levels; each covers what it says."""
    regression = _regression()
    lived = list(_live(regression, 3000, np.ones(24), bias=0.8, disagreement=2.0))
    below = np.mean([truth[:, None] <= said for truth, said in lived[1500:]], axis=(0, 1))
    np.testing.assert_allclose(below, LEVELS, atol=0.02)
    path, told = np.full(_KEYS, 50.0), np.full((_EXPERTS, _KEYS), 50.0)
    before = _say(regression, _FIRST, path, _ONE, told)
    told[0] += 1.0
    moved = _say(regression, _FIRST, path, _ONE, told) - before
    assert moved.mean() == pytest.approx(0.8, abs=0.25)


def test_an_hour_of_large_errors_is_known_for_it() -> None:
    """Its intervals are wide and those of quiet hours narrow; both cover what they say."""
    noise = np.where(np.arange(24) < 12, 0.4, 1.6)
    lived = list(_live(_regression(), 3000, noise))[1500:]
    widths = np.array([(said[:, 5] - said[:, 1]).mean() for _, said in lived])
    inside = np.array(
        [np.mean((said[:, 1] <= truth) & (truth <= said[:, 5])) for truth, said in lived]
    )
    loud = noise[(_FIRST + 1500 + np.arange(len(lived))) % 24] > 1
    assert widths[loud].mean() / widths[~loud].mean() == pytest.approx(4, rel=0.2)
    for part in (inside[loud], inside[~loud]):
        assert part.mean() == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
    ("zone", "day"),
    [("Europe/Berlin", "2026-03-29"), ("America/New_York", "2026-11-01")],
)
def test_an_hour_of_large_errors_is_one_of_the_wall_clock(zone: str, day: str) -> None:
    """What was learned of noon is said of noon when the clocks have changed."""
    regression, rng = _regression(zone=zone), np.random.default_rng(0)
    path, told = np.full(_KEYS, 50.0), np.full((_EXPERTS, _KEYS), 50.0)
    change = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone))
    first = int(change.timestamp()) // 3600
    for index in range(first - 24 * 30, first):
        is_noon = datetime.fromtimestamp(3600 * index, change.tzinfo).hour == 12
        truth = path + (1.6 if is_noon else 0.4) * rng.normal(size=_KEYS)
        regression.learn(0, _ALL, index, truth, (path, _ONE, told))
        regression.settle(index)
    width = {
        datetime.fromtimestamp(3600 * index, change.tzinfo).hour: float(
            np.ptp(_say(regression, index, path, _ONE, told), axis=1).mean()
        )
        for index in range(first, first + 24)
    }
    noon = width.pop(12)
    assert noon > 2 * max(width.values())


def test_hours_that_are_hard_to_foretell_far_ahead_may_be_easy_from_nearby() -> None:
    """Each of both has its own hours of large errors."""
    regression, rng = _regression(), np.random.default_rng(0)
    path, told = np.full(_KEYS, 50.0), np.full((_EXPERTS, _KEYS), 50.0)
    for index in range(_FIRST, _FIRST + 24 * 60):
        loud = 0 if index % 24 < 12 else 1
        for bucket in (0, 1):
            size = 1.6 if bucket == loud else 0.4
            truth = path + size * rng.normal(size=_KEYS)
            regression.learn(bucket, _ALL, index, truth, (path, _ONE, told))
        regression.settle(index)
    morning, evening = _FIRST // 24 * 24 + np.array([6, 18])
    said = path[:, None], _ONE[:, None], told[:, :, None]
    for bucket, ratio in ((0, 4), (1, 1 / 4)):
        widths = [
            np.ptp(regression.quantiles(_ALL, np.array([i]), said, np.array([bucket])))
            for i in (morning, evening)
        ]
        assert widths[0] / widths[1] == pytest.approx(ratio, rel=0.3)


def test_where_experts_disagree_the_quantiles_are_wider() -> None:
    """If errors have been larger there."""
    regression, rng = _regression(), np.random.default_rng(0)
    path = np.full(_KEYS, 50.0)
    for index in range(1500):
        apart = rng.choice([0.3, 3.0], _KEYS)
        told = path + apart * rng.normal(size=(_EXPERTS, _KEYS))
        truth = path + np.sqrt(apart) * rng.normal(size=_KEYS)
        regression.learn(0, _ALL, index, truth, (path, _ONE, told))
        regression.settle(index)
    around = np.array([[1.0], [-1.0], [1.0]])
    widths = [
        np.ptp(_say(regression, _FIRST, path, _ONE, path + apart * around), axis=1).mean()
        for apart in (0.3, 3.0)
    ]
    assert 2 < widths[1] / widths[0] < 5  # the roots of 0.3 and 3 are 3.2 apart


def test_horizons_learn_apart() -> None:
    """What lands far ahead leaves the near quantiles as they were, but for the hours."""
    regression = _regression(DAY_MS)
    path, told = np.full(_KEYS, 50.0), np.full((_EXPERTS, _KEYS), 51.0)
    for index in range(300):
        regression.learn(1, _ALL, index, path + 5.0, (path, _ONE, told))
    arrays = regression.arrays()
    assert (arrays["landed"] > 0).tolist() == [False, True]
    for name in ("gram", "gradient", "scale_gram", "scale_cross"):
        assert not arrays[name][0].any(), name


def test_a_restored_regression_goes_on_alike() -> None:
    """Bit for bit, given the key table that the checkpoint holds beside it."""
    gone_on, restored = _regression(), _regression()
    for _ in _live(gone_on, 101, np.ones(24)):
        pass
    restored._table.restore({k: v.copy() for k, v in gone_on._table.arrays().items()})
    restored.restore({k: v.copy() for k, v in gone_on.arrays().items()})
    again = (list(_live(r, 60, np.ones(24), bias=0.5)) for r in (gone_on, restored))
    for (_, one), (_, other) in zip(*again, strict=True):
        np.testing.assert_array_equal(one, other)
