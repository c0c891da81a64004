"""Synthetic series, on which the network is trained before it sees a stream.

A world is what one topic may look like at one step: some hundred keys, each with a value a bucket.
User events come first (sparse, over-dispersed and bursty counts with the rhythm of days and weeks,
users who come and go), then real values (sensors, loads, sums of amounts). No real series went into
it. Shares and sizes were set so that the statistics of real series lie among those of these.

A world is a function of its generator's state: the same state gives the same bits.
"""

from dataclasses import dataclass

import numpy as np

from stream_forecaster.calendar import HOUR_MS
from stream_forecaster.minutes import split_amounts, split_counts
from stream_forecaster.processes import (
    INDEPENDENT,
    Float64,
    Int64,
    Traits,
    accumulate,
    hold,
    oscillate,
    since,
    switch,
    wander,
)
from stream_forecaster.rhythms import Clock, seasons

LARGEST = 9e6
"""No value is further from 0, but for rounding."""

_EARLIEST_MS, _LATEST_MS = 1_262_304_000_000, 1_893_456_000_000
"""2010-01-01 to 2030-01-01 UTC: when a world may begin."""
_MOST_EVENTS = 1e6
"""Per bucket, in the mean: far enough below `LARGEST` for the gamma's tail to be cut rarely."""
_FURTHER = 2.0
"""How much further the levels of real values wander than the logarithms of counts do."""


@dataclass(frozen=True, slots=True)
class World:
    """What a topic may look like at one step.

    Attributes:
        step_ms: the width of a bucket.
        start_ms: when the first bucket begins, epoch ms.
        is_count: all values are numbers of events; otherwise they are real.
        values: (T, K) a value per bucket and key, NaN before a key's birth and never after.
    """

    step_ms: int
    start_ms: int
    is_count: bool
    values: Float64


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a value is made of, (T, K) each.

    Attributes:
        clock: where in the calendar.
        shape: rhythm and level.
        noise: what nothing explains.
        life: what being new, and losing interest, add to the logarithm.
    """

    clock: Clock
    shape: Float64
    noise: Float64
    life: Float64


def generate(
    rng: np.random.Generator,
    *,
    step_ms: int,
    buckets: int,
    keys: int,
    is_count: bool,
    families: int = 1,
) -> World:
    """A world of `families` times `keys` series of `buckets` steps of five minutes to a day.

    The series of a family mostly resemble each other; families have only the calendar in common.
    """
    start_ms = int(rng.integers(_EARLIEST_MS, _LATEST_MS)) // step_ms * step_ms
    members = [_family(rng, start_ms, step_ms, (buckets, keys), is_count) for _ in range(families)]
    return World(step_ms, start_ms, is_count, np.concatenate(members, axis=1))


def _family(
    rng: np.random.Generator,
    start_ms: int,
    step_ms: int,
    size: tuple[int, int],
    is_count: bool,  # noqa: FBT001  (as the world is)
) -> Float64:
    """The values (T, K) of one family."""
    buckets, keys = size
    resemble = rng.random() < 0.65
    spread = float(np.exp(rng.uniform(np.log(0.01), np.log(0.4)))) if resemble else INDEPENDENT
    traits = Traits(rng, keys, spread)
    birth = np.where(rng.random(keys) < 0.3, rng.integers(buckets, size=keys), 0)
    age = np.arange(buckets)[:, None] - birth

    clock = Clock.draw(traits, start_ms, step_ms, buckets)
    # How far a series strays from its calendar; some keep to it.
    strays = np.where(traits.chance(0.25), traits.log_uniform(0.02, 0.5), 1.0)
    rhythm = seasons(traits, clock, strays)
    level = (0.7 if is_count else _FURTHER) * _level(traits, buckets)
    parts = _Parts(
        clock=clock,
        shape=rhythm + strays * (level + _common(traits, buckets, step_ms)),
        noise=strays * _noise(traits, rhythm),
        life=_life(traits, age),
    )
    values = _counts(traits, parts) if is_count else _reals(traits, parts)
    values[age < 0] = np.nan
    return values


def generate_minutes(
    rng: np.random.Generator,
    *,
    hours: int,
    live_hours: int,
    keys: int,
    is_count: bool,
    families: int = 1,
) -> tuple[World, World]:
    """A world by the hour, and the last `live_hours` of it by the minute.

    The minutes of an hour sum to the hour's value, exactly.
    """
    hourly = generate(
        rng, step_ms=HOUR_MS, buckets=hours, keys=keys, is_count=is_count, families=families
    )
    split = split_counts if is_count else split_amounts
    minutes = split(rng, hourly.values, live_hours)
    # Shares of a real value sum to it but for rounding; the sum has the last word.
    hourly.values[-live_hours:] = minutes.reshape(live_hours, 60, -1).sum(1)
    start_ms = hourly.start_ms + (hours - live_hours) * HOUR_MS
    return hourly, World(HOUR_MS // 60, start_ms, is_count, minutes)


def _level(traits: Traits, buckets: int) -> Float64:
    """What moves slowly, (T, K): wandering, walking, a trend, shifts."""
    rng, kind = traits.rng, traits.unit()
    slow = wander(rng, buckets, traits.log_uniform(20, 2000)) * traits.log_uniform(0.03, 2)
    walk = rng.standard_normal((buckets, traits.keys)).cumsum(0) * traits.log_uniform(0.003, 0.15)
    smooth = wander(rng, buckets, traits.log_uniform(20, 600))
    decay = traits.log_uniform(5, 100)
    smooth = accumulate(smooth / decay, decay) * traits.log_uniform(0.1, 1.5)
    level = np.select([kind < 0.4, kind < 0.6, kind < 0.72], [slow, walk, smooth], 0.0)
    elapsed = np.arange(buckets)[:, None] - rng.integers(-buckets, buckets, traits.keys)
    slope = traits.chance(0.25) * traits.normal() * 1.2 / buckets
    level += slope * np.maximum(elapsed, 0)
    for share in (0.15, 0.06):
        size = traits.normal() * traits.log_uniform(0.3, 3)
        level += size * since(traits, buckets, share)
    return level


def _common(traits: Traits, buckets: int, step_ms: int) -> Float64:
    """What happens to all keys of a world at once, (T, K): weather, campaigns, outages."""
    rng, one = traits.rng, np.ones(1)
    common = np.zeros((buckets, 1))
    if rng.random() < 0.3:
        common += rng.uniform(0.05, 0.6) * wander(rng, buckets, one * rng.uniform(2, 100))
    if rng.random() < 0.35:
        hours = np.exp(rng.uniform(np.log(1), np.log(72)))
        lasts = max(hours * HOUR_MS / step_ms, 1.0)
        size = rng.normal() * np.exp(rng.uniform(np.log(0.5), np.log(3)))
        between = buckets / rng.uniform(1, 6)
        if rng.random() < 0.5:
            common += size * switch(rng, buckets, one * lasts, one * between)
        else:
            hits = rng.random((buckets, 1)) * between < 1
            common += accumulate(size * hits * rng.exponential(size=(buckets, 1)), one * lasts)
    return np.asarray(common * traits.chance(0.85) * np.exp(0.4 * traits.normal()))


def _noise(traits: Traits, rhythm: Float64) -> Float64:
    """What nothing explains, (T, K): AR noise, heavy tails, cycles, changing volatility, bursts."""
    rng, buckets = traits.rng, len(rhythm)
    white = rng.standard_normal(rhythm.shape)
    tail = traits.log_uniform(2.2, 12)
    heavy = np.sqrt(rng.standard_gamma(tail / 2, rhythm.shape) * 2 / tail + 0.05)
    white /= np.where(traits.chance(0.3), heavy, 1.0)
    parts = (
        white,
        wander(rng, buckets, traits.log_uniform(1, 14)),
        wander(rng, buckets, traits.log_uniform(12, 120)),
    )
    weights = [traits.unit() * traits.chance(share) for share in (1.0, 0.7, 0.6)]
    length = np.sqrt(sum(w**2 for w in weights)) + 1e-6
    noise = sum((w / length * part for w, part in zip(weights, parts, strict=True)), np.zeros(1))
    cycle = oscillate(rng, buckets, traits.log_uniform(3, 50), traits.log_uniform(3, 60))
    noise += traits.sometimes(0.12, 0.2, 1) * cycle
    volatility = traits.sometimes(0.4, 0.1, 0.8)
    noise *= np.exp(volatility * wander(rng, buckets, traits.log_uniform(6, 300)))
    noise *= np.exp(traits.chance(0.4) * traits.uniform(-0.8, 0.8) * np.clip(rhythm, -2.5, 2.5))
    noise *= traits.log_uniform(0.04, 1.3)
    hits = rng.random(rhythm.shape) < traits.sometimes(0.12, 0.002, 0.02)
    bursts = traits.log_uniform(0.5, 5) * hits * rng.standard_exponential(rhythm.shape)
    return noise + accumulate(bursts, traits.log_uniform(1, 24))


def _life(traits: Traits, age: Int64) -> Float64:
    """How a key's interest rises and fades, (T, K), as an exponent; most stay as they are."""
    buckets, lived = len(age), np.maximum(age, 0)
    newcomer = age[0] < 0
    rush = traits.uniform(-2, 3) * newcomer * traits.chance(0.7)
    life = rush * np.exp(-lived / (buckets * traits.log_uniform(0.01, 0.3)))
    fades = traits.unit() < np.where(newcomer, 0.3, 0.06)
    life -= fades * lived / (buckets * traits.log_uniform(0.03, 1))
    return np.asarray(np.maximum(life, -12.0))


def _counts(traits: Traits, parts: _Parts) -> Float64:
    """Numbers of events, (T, K): Poisson around an intensity that is itself random."""
    rng, size = traits.rng, parts.shape.shape
    noisy = np.where(traits.chance(0.5), 0.5, 0.0)
    planned = traits.chance(0.08)
    path = parts.shape + np.where(planned, 0.0, noisy) * parts.noise
    effect = traits.uniform(0.3, 1.5) / np.maximum(path.std(0), 0.3)
    path = np.clip(effect * (path - path.mean(0)), -6, 3.5) + parts.life
    intensity = _rates(traits) * np.exp(path) * _presence(traits, size[0])
    intensity *= 1 + np.where(planned, 0.0, _bursts(traits, size[0]))
    intensity = np.minimum(intensity, _MOST_EVENTS)
    dispersion = np.maximum(traits.sometimes(0.5, 0.01, 2.5), 1e-4)
    events = rng.poisson(intensity * rng.standard_gamma(1 / dispersion, size) * dispersion)
    # Machines and timetables: a fraction of an event comes at the same hours every day.
    due = rng.random((parts.clock.cells, traits.keys))[parts.clock.cell, np.arange(traits.keys)]
    return np.asarray(np.minimum(np.where(planned, np.floor(intensity + due), events), LARGEST))


def _bursts(traits: Traits, buckets: int) -> Float64:
    """How much more happens for a while, (T, K), in multiples: what goes round comes at once."""
    hits = traits.rng.random((buckets, traits.keys)) < traits.sometimes(0.3, 0.001, 0.03)
    sizes = traits.rng.standard_exponential(hits.shape) ** 1.7 * hits
    return accumulate(traits.log_uniform(0.5, 8) * sizes, traits.log_uniform(0.2, 12))


def _presence(traits: Traits, buckets: int) -> Float64:
    """A factor of the intensity, (T, K): sessions, outages, and users who have left for ever."""
    there = traits.log_uniform(1, 8)
    visits = switch(traits.rng, buckets, there, there * traits.log_uniform(0.5, 20))
    visits |= ~traits.chance(0.15)
    outage = switch(traits.rng, buckets, traits.log_uniform(3, 60), buckets / traits.uniform(1, 4))
    gone = (outage & traits.chance(0.08)) | since(traits, buckets, share=0.07)
    return np.asarray(visits * ~gone / np.maximum(visits.mean(0), 0.02))


def _rates(traits: Traits) -> Float64:
    """Events per bucket, (K,): from one in a hundred buckets to a thousand in one."""
    rng = traits.rng
    if traits.spread >= INDEPENDENT:
        return traits.log_uniform(0.01, 1000)
    share = (1.0 + rng.permutation(traits.keys)) ** -rng.uniform(0, 1.5)  # Zipf's law
    share /= np.exp(np.log(share).mean())
    return np.clip(traits.log_uniform(0.01, 1000) * share, 0.003, 5000)


def _reals(traits: Traits, parts: _Parts) -> Float64:
    """Real values, (T, K): levels, what is always positive, what has a floor, sums of amounts."""
    rng, kind = traits.rng, traits.unit()
    amounts = _counts(traits, parts)
    each = traits.log_uniform(0.3, 30)
    amounts = np.where(amounts > 0, rng.standard_gamma(amounts * each + 1e-9) / each, 0.0)
    plain = parts.shape + parts.noise + 0.5 * np.maximum(parts.life, -4)
    mean, deviation = plain.mean(0), plain.std(0) + 1e-9
    unit = (plain - mean) / deviation
    link = np.exp(np.clip(traits.uniform(0.15, 1.1) * unit, -6, 5))
    floor = np.maximum(unit - traits.uniform(-1, 0.8), 0)
    linear = _sensor(traits, unit)
    values = np.select([kind < 0.17, kind < 0.37, kind < 0.47], [amounts, link, floor], linear)
    # In units large and small; never by clipping, which would look like a ceiling.
    largest = np.maximum(np.abs(values).max(0), 1e-9)
    values *= np.minimum(traits.log_uniform(0.01, 1e4), LARGEST / largest)
    stuck = switch(rng, len(values), traits.log_uniform(3, 60), len(values) / traits.uniform(1, 4))
    dead = stuck & traits.chance(0.1)
    return np.where(dead & traits.chance(0.4), 0.0, hold(values, dead))


def _sensor(traits: Traits, unit: Float64) -> Float64:
    """A measured level, (T, K): with an offset, spikes, a ceiling, rounded, upside down."""
    rng = traits.rng
    spikes = rng.random(unit.shape) < traits.sometimes(0.15, 0.001, 0.02)
    values = unit + spikes * rng.standard_normal(unit.shape) * traits.log_uniform(1.5, 8)
    values = np.minimum(values, np.where(traits.chance(0.06), traits.uniform(0.6, 1.8), np.inf))
    values = np.where(traits.chance(0.15), -values, values)
    values += traits.sometimes(0.7, 0.3, 30) * np.where(traits.chance(0.85), 1, -1)
    grain = traits.log_uniform(0.03, 0.6)
    return np.where(traits.chance(0.15), np.round(values / grain) * grain, values)
