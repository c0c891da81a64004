"""Quantiles of counts that are drawn from negative binomial distributions.

A count with mean m varies by m if its events know nothing of each other, and by more where they
come in bursts or where m itself is uncertain: variance = m + dispersion * m^2. Quantiles of small
counts do not scale with the mean, as calibration's do: of a mean of 0.3 the 0.7 quantile is 0 and
the 0.8 quantile is 1. Here they come from the distribution itself.

The dispersion of a horizon bucket is the population's, by moments of landed forecasts. So a key
that is unlike the others is badly served; the mixture finds out.

Quantiles are spread within the half unit around each whole number, so that they move smoothly with
the mean, mix with others, and become the distribution's own when they are rounded. They are looked
up in a table over means; above its largest there are none, but such counts do scale.

Axes: B keys, G horizon buckets, H horizon, Q levels, N means in the table.

Source: Hilbe 2011, negative binomial regression (NB2).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.compiled import compiled, inlined
from stream_forecaster.stacking import FORGET

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_MEMORY = 0.998
_PRIOR = 20.0
"""So many landed buckets of means near one weigh as much as what it began with."""
_BEGIN, _LEAST, _MOST = 0.2, 0.01, 10.0
"""Dispersions. The least is a Poisson distribution in all but name."""
_SOLVE_EVERY = 6
_SMALLEST, _LARGEST, _STEPS = 0.001, 64.0, 159
"""Means in the table, and the steps between them, which are factors."""
_MEANS = np.geomspace(_SMALLEST, _LARGEST, _STEPS + 1)
_LARGEST_COUNT = 512
_PER_STEP = float(_STEPS / np.log(_LARGEST / _SMALLEST))


class NegativeBinomial:
    """The quantiles of G horizon buckets at Q levels."""

    def __init__(self, levels: tuple[float, ...], buckets: int) -> None:
        self._levels = np.array(levels)
        self._moments = np.zeros((buckets, 2))  # of variance beyond the mean, and of mean^2
        self._dispersion = np.full(buckets, _BEGIN)
        self._tables = np.empty((buckets, len(_MEANS), len(levels)))
        self._tabulate(np.arange(buckets))

    def learn(self, bucket: int, mean: Float64, truth: Float64) -> None:
        """Take in forecasts (B,) of one horizon bucket that have come due, and what was true."""
        _add_up(mean, truth, self._moments[bucket])

    def settle(self, index: int) -> None:
        """Turn moments into dispersions now and then; `index` is the bucket's, for a replay."""
        if index % _SOLVE_EVERY:
            return
        beyond, square = self._moments.T
        dispersion = (beyond + _PRIOR * _BEGIN) / (square + _PRIOR)
        dispersion = np.clip(dispersion, _LEAST, _MOST)
        changed = np.flatnonzero(np.abs(dispersion - self._dispersion) > 0.02 * self._dispersion)
        self._dispersion[changed] = dispersion[changed]
        self._tabulate(changed)

    def forget(self) -> None:
        """Count what was learned of the dispersions for a tenth: a drift was detected."""
        self._moments *= FORGET

    def quantiles(self, mean: Float64, bucket: Int64) -> Float64:
        """Quantiles (B, H, Q), ascending, of means (B, H) in horizon buckets (H,); NaN if large."""
        quantiles = np.empty((*mean.shape, len(self._levels)))
        _look_up(mean, bucket, self._tables, quantiles)
        return quantiles

    @property
    def tables(self) -> Float64:
        """(G, N, Q) the quantiles of the means in the table."""
        return self._tables

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is kept of the population."""
        return {"moments": self._moments, "dispersion": self._dispersion}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take `arrays` back."""
        self._moments[:], self._dispersion[:] = arrays["moments"], arrays["dispersion"]
        self._tabulate(np.arange(len(self._dispersion)))

    def _tabulate(self, buckets: Int64) -> None:
        for bucket in buckets.tolist():
            dispersion = float(self._dispersion[bucket])
            self._tables[bucket] = spread_quantiles(_MEANS, dispersion, self._levels)


def spread_quantiles(mean: Float64, dispersion: float, levels: Float64) -> Float64:
    """(N, Q) of negative binomials with means (N,), spread around the whole numbers.

    The mass of each count is spread evenly over the half unit to either side of it. Beyond the
    largest count of the table there is none.
    """
    quantiles = np.empty((len(mean), len(levels)))
    _tabulate(mean, dispersion, levels, quantiles)
    return quantiles


def places(mean: Float64) -> Float64:
    """Where in the table means (B, H) or (B,) are, from 0 to N - 1; NaN if too large for it."""
    place = np.empty(mean.size)
    _place(mean.ravel(), place)
    return place.reshape(mean.shape)


# -- loops over keys -----------------------------------------------------------------------------


@inlined
def _placed(mean: float) -> float:
    """Where in the table a mean is; NaN if it is too large for it."""
    at = np.log(max(mean, _SMALLEST) / _SMALLEST) * _PER_STEP
    return np.nan if mean > _LARGEST else at


@compiled("f8:1 > f8:1")
def _place(mean: Float64, place: Float64) -> None:
    """Each of means (N,)."""
    for n in range(len(mean)):
        place[n] = _placed(mean[n])


@compiled("f8:2 i8:1 f8:3 > f8:3")
def _look_up(mean: Float64, bucket: Int64, tables: Float64, quantiles: Float64) -> None:
    """Quantiles (B, H, Q) of means (B, H), between those of tables (G, N, Q)."""
    for b in range(len(mean)):
        for h in range(len(bucket)):
            at = _placed(mean[b, h])
            if np.isnan(at):
                quantiles[b, h] = np.nan
                continue
            below = min(int(at), _STEPS - 1)
            part, table = at - below, tables[bucket[h]]
            for q in range(quantiles.shape[2]):
                quantiles[b, h, q] = (1 - part) * table[below, q] + part * table[below + 1, q]


@compiled("f8:1 f8:1 > f8:1")
def _add_up(mean: Float64, truth: Float64, moments: Float64) -> None:
    """Variance beyond the mean, and mean^2, of means (B,) in the table, if there are any."""
    excess, square, keys = 0.0, 0.0, 0
    for b in range(len(mean)):
        m = mean[b]
        if not _SMALLEST < m <= _LARGEST:
            continue
        # By the variance that is to be expected, or the largest means would decide alone.
        weight = 1 / (m + _BEGIN * m * m) ** 2
        beyond = min((truth[b] - m) ** 2, 100 * (m + m * m)) - m
        excess += weight * beyond * m * m
        square += weight * m**4
        keys += 1
    if keys:
        moments[0] = _MEMORY * moments[0] + excess / keys
        moments[1] = _MEMORY * moments[1] + square / keys


@compiled("f8:1 f8 f8:1 > f8:2")
def _tabulate(mean: Float64, dispersion: float, levels: Float64, quantiles: Float64) -> None:
    """Add up the masses of one count after the other, until every level (Q,) is reached."""
    size = 1 / dispersion
    for n in range(len(mean)):
        ratio = mean[n] / (mean[n] + size)
        count, before, mass = 0, 0.0, np.exp(size * np.log1p(-ratio))
        for q in range(len(levels)):
            while before + mass < levels[q] and count < _LARGEST_COUNT:
                before += mass
                count += 1
                mass *= ratio * (count - 1 + size) / count
            part = min(max((levels[q] - before) / max(mass, 1e-300), 0.0), 1.0)
            quantiles[n, q] = max(count - 0.5 + part, 0.0)
