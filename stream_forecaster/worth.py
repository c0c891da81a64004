"""What the network is worth: how much better than the pool alone it does on samples set aside.

And with which weights its paths should enter the fusion of a stream like theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.architecture import LEVELS, NORMAL
from stream_forecaster.learning import Learner
from stream_forecaster.samples import Samples
from stream_forecaster.scoring import pinball

Float64 = NDArray[np.float64]

_FURTHEST = 10.0
"""A truth further from the pool's path, in expected errors, counts as that far."""


@dataclass(frozen=True, slots=True)
class Worth:
    """The network against the pool alone at one resolution; the ratios are NaN without samples.

    Attributes:
        samples: how many with a label.
        pinball: mean pinball loss of its quantiles over that of the pool's path with normal ones.
        absolute, residual: mean squared error of its paths over that of the pool's.
        shares: (2,) of absolute and residual path, by least squares, none negative.
    """

    samples: int
    pinball: float
    absolute: float
    residual: float
    shares: Float64


def measure(learner: Learner, samples: Sequence[Samples]) -> list[Worth]:
    """What the average of `learner` is worth on samples of each of its resolutions (R,).

    Where no sample has a label, the shares are those that the learner began with.
    """
    return [_measured(learner, resolution, of) for resolution, of in enumerate(samples)]


def score(worth: Sequence[Worth]) -> float:
    """Mean ratio to the pool's pinball loss, all samples of all resolutions alike."""
    told = [of for of in worth if of.samples]
    return sum(of.samples * of.pinball for of in told) / sum(of.samples for of in told)


def _measured(learner: Learner, resolution: int, samples: Samples) -> Worth:
    if not len(samples.labelled):
        nan = float("nan")
        return Worth(0, nan, nan, nan, learner.shares[resolution].copy())
    *answers, truth = learner.examine(resolution, samples)
    landed = ~np.isnan(truth)
    y = np.clip(truth[landed].astype(np.float64), -_FURTHEST, _FURTHEST)
    *paths, quantiles = (answer[landed].astype(np.float64) for answer in answers)
    levels, normal = np.array(LEVELS), np.array([NORMAL])
    own, pools = (pinball(y, said, levels).mean() for said in (quantiles, normal))
    base = max(float(np.mean(y**2)), 1e-12)
    absolute, residual = (float(np.mean((y - path) ** 2)) / base for path in paths)
    shares = _shares(np.stack(paths), y)
    return Worth(len(truth), float(own / pools), absolute, residual, shares)


def _shares(paths: Float64, truth: Float64) -> Float64:
    """The weights (2,) of two paths by least squares; none negative, one at most together."""
    gram = paths @ paths.T + 1e-6 * np.eye(2)
    share = np.linalg.solve(gram, paths @ truth)
    if share.min() < 0:  # the better path alone, if at all
        alone = int(np.argmax(share))
        share = np.zeros(2)
        share[alone] = max(paths[alone] @ truth / gram[alone, alone], 0.0)
    admissible: Float64 = share / max(share.sum(), 1.0)
    return admissible
