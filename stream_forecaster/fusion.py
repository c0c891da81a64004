"""Fusion: experts' forecasts into one, by weights learned from landed losses.

Discounted exponential weights for every key and horizon bucket. A key's own losses are shrunk to
the population's, so a newcomer starts with the weights that serve the others and departs from them
as it earns its own. The sharpness grows with the square root of the evidence, relative to the loss
of the best expert: the scale of the series cancels.

Axes: the M experts lead here, and only here.

Source: discounted exponential weighting, Cesa-Bianchi and Lugosi 2006, chapters 2.11 and 5.2 (a
fixed share keeps every expert alive, so that the weights can turn when the best one changes).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.keys import KeyTable

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_DISCOUNT = 0.99
_SHARPNESS = 2.0
_SHARE = 0.01
_PRIOR_BUCKETS = 20.0
"""How many of a key's own landed forecasts weigh as much as the population's experience."""
_LARGEST_LOSS = 100.0
"""Losses are in squared spreads of the key; one outlier must not decide the weights."""


class Fusion:
    """Weights of M experts for all slots and G horizon buckets."""

    def __init__(self, table: KeyTable, prefix: str, experts: int, buckets: int) -> None:
        self._table, self._prefix = table, prefix
        table.add(f"{prefix}.loss", (buckets, experts), dtype=np.float32)
        table.add(f"{prefix}.landed", (buckets,), dtype=np.float32)
        self._loss = np.zeros((buckets, experts))
        self._landed = np.zeros(buckets)

    def learn(self, bucket: int, landed: Int64, loss: Float64) -> None:
        """Take in the losses of forecasts that have come due.

        Args:
            bucket: which horizon bucket.
            landed: (B,) slots, each at most once.
            loss: (M, B) squared errors over the key's squared spread; NaN where an expert had
                no opinion, which costs it the loss of the worst.
        """
        if not len(landed):
            return
        loss = np.minimum(loss, _LARGEST_LOSS)
        worst = np.nanmax(loss, axis=0)
        loss = np.where(np.isnan(loss), worst, loss)
        own, count = self._table[f"{self._prefix}.loss"], self._table[f"{self._prefix}.landed"]
        own[landed, bucket] = _DISCOUNT * own[landed, bucket] + loss.T
        count[landed, bucket] = _DISCOUNT * count[landed, bucket] + 1
        self._loss[bucket] = _DISCOUNT * self._loss[bucket] + loss.mean(axis=1)
        self._landed[bucket] = _DISCOUNT * self._landed[bucket] + 1

    def weights(self, slots: Int64 | slice) -> Float64:
        """Weights (M, B, G), summing to one over the experts."""
        own = self._table[f"{self._prefix}.loss"][slots].astype(np.float64)  # (B, G, M)
        count = self._table[f"{self._prefix}.landed"][slots].astype(np.float64)[..., None]
        population = self._loss / np.maximum(self._landed, 1.0)[:, None]  # (G, M)
        mean = (own + _PRIOR_BUCKETS * population) / (count + _PRIOR_BUCKETS)
        best = mean.min(axis=2, keepdims=True)
        evidence = np.sqrt(count + np.minimum(self._landed, _PRIOR_BUCKETS)[:, None])
        weight = np.exp(-_SHARPNESS * evidence * (mean - best) / (best + 1e-6))
        weight /= weight.sum(axis=2, keepdims=True)
        shared: Float64 = (1 - _SHARE) * weight + _SHARE / weight.shape[2]
        return np.moveaxis(shared, 2, 0)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is kept of the population."""
        return {"loss": self._loss, "landed": self._landed}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take `arrays` back."""
        self._loss[:], self._landed[:] = arrays["loss"], arrays["landed"]


def fuse(predictions: list[Float64], weights: Float64) -> Float64:
    """The weighted mean (B, H) over the experts that have an opinion; 0 where none has.

    Args:
        predictions: M arrays (B, H) or (B, 1), NaN for no opinion.
        weights: (M, B, H).
    """
    total, mass = np.zeros(weights.shape[1:]), np.zeros(weights.shape[1:])
    for prediction, weight in zip(predictions, weights, strict=True):
        known = ~np.isnan(prediction)
        total += weight * np.where(known, prediction, 0.0)
        mass += weight * known
    return total / np.maximum(mass, 1e-12)


def in_effect(predictions: list[Float64], weights: Float64) -> Float64:
    """The weights (M, B, H) that `fuse` gives these predictions: zero for those without opinion."""
    shape = weights.shape[1:]
    heard: Float64 = weights * [np.broadcast_to(~np.isnan(p), shape) for p in predictions]
    heard /= np.maximum(heard.sum(axis=0), 1e-12)
    return heard
