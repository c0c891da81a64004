"""Random processes for synthetic series: many at once, a column each.

Recursions run over time in a loop of operations on all columns, which at a thousand columns is as
fast as compiled code. Everything is drawn from the generator that is handed in.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Bool = NDArray[np.bool_]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

INDEPENDENT = 2.0
"""The `spread` at which the series of a world have nothing in common."""


@dataclass(frozen=True, slots=True)
class Traits:
    """Draws a parameter for all series of a world, so that they resemble each other.

    Seen over many worlds each draw has the distribution that its method says; within a world the
    draws lie `spread` around a place that the world has drawn.

    Attributes:
        rng: where all randomness comes from.
        keys: how many series, K.
        spread: above 0 (all alike) to `INDEPENDENT`.
    """

    rng: np.random.Generator
    keys: int
    spread: float

    def unit(self) -> Float64:
        """Uniform in 0 to 1, (K,)."""
        # A triangle wave: a place near an end is mirrored there, which keeps the draw uniform.
        place = self.rng.uniform(0, 2) + self.spread * (self.rng.random(self.keys) - 0.5)
        return np.abs(place % 2 - 1)

    def uniform(self, low: float, high: float) -> Float64:
        """Uniform in `low` to `high`, (K,)."""
        return low + (high - low) * self.unit()

    def log_uniform(self, low: float, high: float) -> Float64:
        """With uniform logarithm in `low` to `high`, (K,)."""
        return np.exp(self.uniform(np.log(low), np.log(high)))

    def normal(self, *shape: int) -> Float64:
        """Standard normal, (*shape, K)."""
        own = min(self.spread, 1.0)
        shared = self.rng.standard_normal((*shape, 1))
        alone = self.rng.standard_normal((*shape, self.keys))
        return np.asarray(np.sqrt(1 - own**2) * shared + own * alone)

    def chance(self, share: float) -> Bool:
        """True for `share` of the series, (K,)."""
        return self.unit() < share

    def sometimes(self, share: float, low: float, high: float) -> Float64:
        """`log_uniform` for `share` of the series, 0 for the others, (K,)."""
        return np.where(self.chance(share), self.log_uniform(low, high), 0.0)


def accumulate(shocks: Float64, decay: Float64) -> Float64:
    """The sum of the shocks so far, each fading, in place.

    Args:
        shocks: (T, K).
        decay: (K,) time after which 1/e of a shock is left, buckets.
    """
    kept = np.exp(-1 / decay)
    for before, now in pairwise(shocks):
        np.add(now, kept * before, out=now)
    return shocks


def wander(rng: np.random.Generator, buckets: int, decay: Float64) -> Float64:
    """A stationary AR(1) process of unit variance, (T, K), that forgets after `decay` (K,)."""
    shocks = rng.standard_normal((buckets, len(decay)))
    shocks[1:] *= np.sqrt(-np.expm1(-2 / decay))
    return accumulate(shocks, decay)


def oscillate(rng: np.random.Generator, buckets: int, decay: Float64, period: Float64) -> Float64:
    """A stochastic cycle, an AR(2) process of about unit variance, (T, K)."""
    kept = np.exp(-1 / decay)
    wave = rng.standard_normal((buckets, len(decay)))
    wave[2:] *= np.sqrt(-np.expm1(-2 / decay)) * np.sqrt(2) * np.abs(np.sin(2 * np.pi / period))
    ahead, behind = 2 * kept * np.cos(2 * np.pi / period), kept**2
    for older, old, now in zip(wave, wave[1:], wave[2:], strict=False):
        np.add(now, ahead * old - behind * older, out=now)
    return wave


def switch(rng: np.random.Generator, buckets: int, on: Float64, off: Float64) -> Bool:
    """Stretches of being on, (T, K), whose mean lengths in buckets are `on` and `off` (K,)."""
    chance = rng.random((buckets, len(on)))
    state = np.empty(chance.shape, bool)
    state[0] = chance[0] * (on + off) < on
    starts, stays = chance < 1 / off, chance >= 1 / on
    for t in range(1, buckets):
        state[t] = np.where(state[t - 1], stays[t], starts[t])
    return state


def hold(values: Float64, stuck: Bool) -> Float64:
    """`values` (T, K), repeating the last one wherever `stuck`."""
    fresh = np.where(stuck, 0, np.arange(len(values))[:, None])
    return np.take_along_axis(values, np.maximum.accumulate(fresh), axis=0)


def since(traits: Traits, buckets: int, share: float) -> Bool:
    """From a random moment on, for `share` of the series, (T, K)."""
    moment = np.where(traits.chance(share), traits.rng.integers(0, buckets, traits.keys), buckets)
    return np.arange(buckets)[:, None] >= moment
