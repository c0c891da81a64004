"""What the network is worth: ratios and shares against plain arithmetic."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from stream_forecaster.architecture import LEVELS
from stream_forecaster.learning import Learner
from stream_forecaster.pace import Pace
from stream_forecaster.samples import Samples
from stream_forecaster.weights import shipped
from stream_forecaster.worth import Worth, _shares, measure, score

_H = 3
_STEPS_MS = (60_000, 3_600_000)


@pytest.fixture(scope="module")
def learner() -> Learner:
    """Two resolutions, begun with the weights that ship."""
    return Learner(_STEPS_MS, (8, 4), (_H, _H), shipped(), seed=(0,), pace=Pace(capacity=1))


def _samples(size: int) -> Samples:
    """Keys about which anything was told; nothing has landed."""
    rng = np.random.default_rng(7)
    samples = Samples.room(size, (8, 4), _H)
    for name in ("window.0", "window.1", "statistics", "candidates", "clues"):
        array = samples.arrays[name]
        array[:] = rng.standard_normal(array.shape)
    samples.arrays["present"][:] = True
    return samples


def test_ratios_are_mean_losses_over_the_pools(learner: Learner) -> None:
    """Of what has landed, and of nothing else; the pool's path is 0 in its own units."""
    samples = _samples(40)
    truth = samples.arrays["truth"]
    truth[:30] = np.random.default_rng(8).standard_normal((30, _H)) * 2
    truth[:10, 1] = np.nan
    found = measure(learner, [samples, _samples(4)])[0]
    absolute, residual, quantiles, landed = learner.examine(0, samples)
    pairs = [(i, h) for i in range(30) for h in range(_H) if not np.isnan(landed[i, h])]
    y = np.array([landed[i, h] for i, h in pairs], np.float64)

    def error(path: NDArray[np.float32]) -> float:
        said = np.array([path[i, h] for i, h in pairs], np.float64)
        return float(np.sum((y - said) ** 2) / np.sum(y**2))

    def loss(said: NDArray[np.float64]) -> float:
        miss = y[:, None] - said
        return float(np.where(miss >= 0, miss * LEVELS, miss * (np.array(LEVELS) - 1)).sum())

    normal = 1.2533 * np.array([-1.95996, -1.28155, -0.84162, -0.5244, -0.25335, 0.0])
    normal = np.concatenate([normal, -normal[-2::-1]])[None]
    own = loss(np.array([quantiles[i, h] for i, h in pairs], np.float64))
    assert found.samples == 30
    assert found.absolute == pytest.approx(error(absolute))
    assert found.residual == pytest.approx(error(residual))
    assert found.pinball == pytest.approx(own / loss(normal), rel=1e-4)


def test_a_score_is_over_all_samples_of_all_resolutions() -> None:
    """So a resolution of which there are few has little to say, and one without samples nothing."""
    nan, none = float("nan"), np.zeros(2)
    worth = [
        Worth(3, 0.5, 1.0, 1.0, none),
        Worth(0, nan, nan, nan, none),
        Worth(1, 0.9, 1.0, 1.0, none),
    ]
    assert score(worth) == pytest.approx(0.6)


def test_without_samples_nothing_is_claimed(learner: Learner) -> None:
    """And the shares are those it began with."""
    for resolution, worth in enumerate(measure(learner, [_samples(4), _samples(0)])):
        assert worth.samples == 0
        assert np.isnan([worth.pinball, worth.absolute, worth.residual]).all()
        np.testing.assert_array_equal(worth.shares, learner.shares[resolution])


_numbers = npst.arrays(np.float64, (3, 20), elements=st.floats(-10, 10, width=32))


@given(numbers=_numbers)
def test_shares_are_the_best_admissible(numbers: NDArray[np.float64]) -> None:
    """None negative, one at most together, and no worse than none at all."""
    paths, truth = numbers[:2], numbers[2]
    shares = _shares(paths, truth)
    assert (shares >= 0).all()
    assert shares.sum() <= 1 + 1e-9
    assert np.sum((truth - shares @ paths) ** 2) <= np.sum(truth**2) * (1 + 1e-9) + 1e-6


@pytest.mark.parametrize("true", [(0.0, 0.0), (0.3, 0.5), (1.0, 0.0), (0.0, 0.7)])
def test_shares_that_made_the_truth_are_found(true: tuple[float, float]) -> None:
    """The absolute path's first."""
    paths = np.random.default_rng(1).standard_normal((2, 500))
    np.testing.assert_allclose(_shares(paths, np.array(true) @ paths), true, atol=1e-6)
