"""The rhythm of synthetic series: days, weeks and holidays on a real calendar, and odd periods."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from stream_forecaster.calendar import DAY_MS, HOUR_MS
from stream_forecaster.processes import Float64, Int64, Traits, accumulate, since, wander

_HARMONICS = 6
_BUMPS = 4
_ODD_CELLS = 48
_MONDAY_TO_FRIDAY, _SATURDAY, _SUNDAY = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Clock:
    """Where each bucket lies in each key's calendar, (T, K) each.

    Attributes:
        day: since the first, from 0.
        weekday: from Monday, 0 to 6.
        type_of_day: Monday to Friday, Saturday, Sunday; a holiday is a Sunday.
        cell: which part of the day, 0 to `cells` - 1.
        cells: parts of a day.
    """

    day: Int64
    weekday: Int64
    type_of_day: Int64
    cell: Int64
    cells: int

    @property
    def days(self) -> int:
        """How many days there are."""
        return int(self.day.max()) + 1

    @classmethod
    def draw(cls, traits: Traits, start_ms: int, step_ms: int, buckets: int) -> Self:
        """One zone and one set of holidays for most keys; UTC in most worlds."""
        rng, keys = traits.rng, traits.keys
        shift_h = np.full(keys, rng.integers(-11, 13) if rng.random() < 0.4 else 0)
        elsewhere = rng.random(keys) < rng.choice([0.0, 0.0, 0.1])
        shift_h[elsewhere] = rng.integers(-11, 13, int(elsewhere.sum()))
        if step_ms >= DAY_MS:  # its buckets are days of the zone already
            shift_h[:] = 0
        local_ms = start_ms + step_ms * np.arange(buckets)[:, None] + HOUR_MS * shift_h
        cells = max(DAY_MS // step_ms, 1)
        epoch_day = local_ms // DAY_MS
        day = epoch_day - epoch_day.min()
        weekday = (epoch_day + 3) % 7
        # Some rest on other days than Saturday and Sunday.
        resting = (weekday + (rng.integers(1, 7) if rng.random() < 0.08 else 0)) % 7
        type_of_day = np.maximum(resting - 4, _MONDAY_TO_FRIDAY)
        if rng.random() < 0.5:
            holiday = rng.random(int(day.max()) + 1) < rng.uniform(0.01, 0.06)
            type_of_day[holiday[day] & traits.chance(0.8)] = _SUNDAY
        return cls(day, weekday, type_of_day, local_ms % DAY_MS * cells // DAY_MS, cells)


def seasons(traits: Traits, clock: Clock, strays: Float64) -> Float64:
    """Days, weeks, odd periods, and days that differ, (T, K)."""
    rng, key = traits.rng, np.arange(traits.keys)
    buckets = len(clock.day)
    table, level = _day_types(traits, clock.cells)
    by_weekday = traits.sometimes(0.4, 0.02, 0.5) * traits.normal(7)
    louder = traits.sometimes(0.4, 0.02, 0.4) * traits.normal(7)
    era = since(traits, buckets, share=0.1).astype(np.int64)
    daily = table[clock.cell, era, clock.type_of_day, key] * (1 + louder[clock.weekday, key])
    daily += level[clock.type_of_day, key] + by_weekday[clock.weekday, key]
    # A day's own level and size: weather, and weeks that are not alike.
    day_level = wander(rng, clock.days, traits.log_uniform(0.3, 8))
    daily += (strays * traits.sometimes(0.35, 0.05, 0.7) * day_level)[clock.day, key]
    drift = traits.sometimes(0.6, 0.03, 0.6) * wander(rng, buckets, traits.log_uniform(8, 400))

    period = np.round(traits.log_uniform(4, 220))
    moment = (np.arange(buckets)[:, None] / period + traits.unit()) % 1
    odd = profiles(traits, _ODD_CELLS)[(moment * _ODD_CELLS).astype(np.int64), key]
    free = traits.chance(0.1)
    odd *= np.where(free, 1.0, traits.sometimes(0.1, 0.1, 1))
    size = np.where(traits.chance(0.92), np.exp(0.5 * traits.normal()), 0.0)
    return size * np.exp(strays * drift) * np.where(free, odd, daily + odd)


def _day_types(traits: Traits, cells: int) -> tuple[Float64, Float64]:
    """Profiles (cells, 2 eras, 3 types of day, K) and levels (3 types of day, K).

    In the second era habits have changed: another profile, or the old one some hours later.
    """
    kind, working = traits.unit(), profiles(traits, cells)
    own = traits.uniform(0.2, 1)
    fainter, different = working * traits.uniform(0.1, 1), profiles(traits, cells)
    different = own * different + (1 - own) * working
    sunday = np.select([kind < 0.35, kind < 0.65], [fainter, different], working)
    fall = -traits.uniform(0, 1.2)
    sunday_level = np.select([kind < 0.35, kind < 0.65], [fall, 0.6 * traits.normal()], 0.0)
    alike = np.where(traits.chance(0.6), 1.0, traits.unit())
    saturday = alike * sunday + (1 - alike) * working
    level = np.stack([np.zeros(traits.keys), alike * sunday_level, sunday_level])
    before = np.stack([working, saturday, sunday], axis=1)
    later = np.roll(before, int(traits.rng.integers(-3, 4) * cells / 24), axis=0)
    other = profiles(traits, cells)[:, None]
    after = np.where(traits.chance(0.5), other, later)
    return np.stack([before, after], axis=1), level


def profiles(traits: Traits, cells: int) -> Float64:
    """What a period looks like, (cells, K): mean 0 and variance 1, or 0 all over.

    Waves, rush hours, opening hours or daylight, and profiles without any order.
    """
    kind = traits.unit()
    shapes = [_waves(traits, cells), _bumps(traits, cells), _plateau(traits, cells)]
    rough = accumulate(traits.normal(2 * cells), traits.log_uniform(0.3, 10))[cells:]
    profile = np.select([kind < 0.35, kind < 0.65, kind < 0.92], shapes, rough)
    profile -= profile.mean(0)
    deviation = profile.std(0)
    return profile / np.where(deviation > 1e-9, deviation, 1.0)


def _waves(traits: Traits, cells: int) -> Float64:
    """Harmonics, (cells, K), the higher the weaker."""
    order = np.arange(1, _HARMONICS + 1)[:, None]
    size = traits.normal(_HARMONICS) * order ** -traits.uniform(0.4, 2)
    size *= order <= np.minimum(traits.uniform(1, _HARMONICS + 1), max(cells / 2, 1))
    angle = 2 * np.pi * (order * _positions(cells)[:, None, None] + traits.unit())
    return np.asarray((size * np.cos(angle)).sum(1))


def _bumps(traits: Traits, cells: int) -> Float64:
    """One to four rush hours, (cells, K); some are dips."""
    profile = np.zeros((cells, traits.keys))
    for bump in range(_BUMPS):
        height = traits.uniform(0.2, 1) * np.where(traits.chance(0.85), 1, -1)
        width = traits.log_uniform(0.02, 0.2) + 0.4 / cells
        away = _away(cells, traits.unit()) / width
        profile += (traits.chance(1 - bump / _BUMPS) * height) * np.exp(-(away**2) / 2)
    return profile


def _plateau(traits: Traits, cells: int) -> Float64:
    """Opening hours or daylight, (cells, K): rises, stays or tilts, falls; most are open by day."""
    middle = np.where(traits.chance(0.6), traits.uniform(0.5, 0.75), traits.unit())
    edge = traits.log_uniform(0.01, 0.12) + 0.05 / cells
    away = _away(cells, middle)
    inside = np.tanh((traits.uniform(0.1, 0.4) - np.abs(away)) / edge / 2)
    return (1 + inside) * (1 + traits.uniform(-1, 1) * away)


def _away(cells: int, middle: Float64) -> Float64:
    """Signed distance from `middle` (K,) around the circle, (cells, K), in periods."""
    return (_positions(cells)[:, None] - middle + 0.5) % 1 - 0.5


def _positions(cells: int) -> Float64:
    return (np.arange(cells) + 0.5) / cells
