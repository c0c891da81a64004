"""What happens within the hours of synthetic series: each hour's value, split into 60 minutes.

Users are there for some minutes, then gone; a click brings the next; machines start on the hour.
"""

import numpy as np

from stream_forecaster.processes import Float64, Traits, accumulate, switch, wander

_HOUR = 60
_TINY = 1e-9
"""A share that lets an hour in which nobody is on be split all the same."""


def split_counts(rng: np.random.Generator, hours: Float64, live_hours: int) -> Float64:
    """Numbers of events by the minute, (60 x `live_hours`, K), NaN where the hour is.

    Args:
        rng: where all randomness comes from.
        hours: (T, K) events by the hour, the last `live_hours` of which are split.
        live_hours: at least 1, at most T.
    """
    traits = Traits(rng, hours.shape[1], float(rng.choice([0.3, 2.0])))
    weights = _weights(traits, hours, live_hours)
    live = hours[-live_hours:]
    events = np.nan_to_num(live).astype(np.int64)
    minutes = rng.multinomial(events, np.moveaxis(weights, 1, 2)).astype(np.float64)
    minutes[np.isnan(live)] = np.nan
    return np.moveaxis(minutes, 2, 1).reshape(-1, hours.shape[1])


def split_amounts(rng: np.random.Generator, hours: Float64, live_hours: int) -> Float64:
    """Real values by the minute, as `split_counts`; they sum to the hour's but for rounding.

    What touches 0 but never crosses it is a sum of amounts and is shared out; anything else is a
    level and moves smoothly through the hour, with noise of its own.
    """
    traits = Traits(rng, hours.shape[1], float(rng.choice([0.3, 2.0])))
    live = hours[-live_hours:, None]
    shared = live * _weights(traits, hours, live_hours)
    known = np.nan_to_num(hours)
    # Hours that did not move stuck: their minutes do too.
    moves = np.abs(np.diff(known, axis=0, prepend=known[:1]))[-live_hours:, None] / _HOUR
    noise = wander(rng, live_hours * _HOUR, traits.log_uniform(0.3, 60))
    noise = noise.reshape(live_hours, _HOUR, -1) * traits.log_uniform(0.1, 3) * (moves > 0)
    usual = moves.mean(0)
    noise *= np.where(traits.chance(0.3), moves, usual)
    path = _through(known, live_hours) / _HOUR + noise
    smooth = path - path.mean(1, keepdims=True) + live / _HOUR
    # What is positive by the hour is positive by the minute.
    positive = np.maximum(path, 0.05 * live / _HOUR)
    positive *= live / _HOUR / np.maximum(positive.mean(1, keepdims=True), _TINY)
    lowest = np.fmin.reduce(hours)
    kinds = [lowest == 0, lowest > 0]
    return np.select(kinds, [shared, positive], smooth).reshape(-1, hours.shape[1])


def _weights(traits: Traits, hours: Float64, live_hours: int) -> Float64:
    """Shares of the minutes in their hour, (`live_hours`, 60, K), summing to 1."""
    rng, minutes = traits.rng, live_hours * _HOUR
    path = np.maximum(_through(np.nan_to_num(hours), live_hours), 0).reshape(minutes, -1)
    path += 0.02 * np.nanmean(np.maximum(np.nan_to_num(hours), 0), axis=0) + _TINY
    path *= _on_the_minute(traits, minutes)
    noise = wander(rng, minutes, traits.log_uniform(1, 60))
    path *= np.exp(traits.sometimes(0.5, 0.05, 1.5) * noise)
    there = traits.log_uniform(5, 40)
    visits = switch(rng, minutes, there, there * traits.log_uniform(0.5, 8))
    path *= visits | ~traits.chance(0.4)
    # A click brings the next: clusters of a few minutes, as a self-exciting process has them.
    hits = rng.random(path.shape) < traits.log_uniform(0.01, 0.3)
    clusters = accumulate(hits * rng.standard_exponential(path.shape), traits.log_uniform(0.7, 8))
    path *= np.where(traits.chance(0.4), clusters, 1.0)
    silent = switch(rng, minutes, traits.log_uniform(10, 90), traits.log_uniform(120, 2000))
    path *= ~(silent & traits.chance(0.15))
    weights = path.reshape(live_hours, _HOUR, -1)
    weights = weights + _TINY * (1 + weights.max(1, keepdims=True))
    return np.asarray(weights / weights.sum(1, keepdims=True))


def _on_the_minute(traits: Traits, minutes: int) -> Float64:
    """How much more happens at some minutes of the hour, (minutes, K); 1 for most series."""
    every = np.array([5, 10, 15, 30, 60, 60])[(traits.unit() * 5.99).astype(np.int64)]
    offset = np.where(traits.chance(0.6), 0, np.floor(traits.unit() * 59.99))
    since = (np.arange(minutes)[:, None] - offset) % every
    bump = np.exp(-since / traits.log_uniform(0.1, 5))
    return np.asarray(1 + traits.sometimes(0.25, 0.5, 60) * bump)


def _through(hours: Float64, live_hours: int) -> Float64:
    """The hours' values as a line through their middles, (`live_hours`, 60, K)."""
    live = np.arange(len(hours) - live_hours, len(hours))
    before, after = hours[np.maximum(live - 1, 0)], hours[np.minimum(live + 1, len(hours) - 1)]
    here = hours[live][:, None]
    place = ((np.arange(_HOUR) + 0.5) / _HOUR - 0.5)[:, None]  # -1/2 to 1/2
    other = np.where(place < 0, before[:, None], after[:, None])
    return here + np.abs(place) * (other - here)
