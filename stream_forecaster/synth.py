"""Synthetic users: what `demo` and `simulate` send, and tests read.

A population is a function of its seed. Time is cut into steps; what happens in a step is drawn from
a generator seeded by the population's seed and the step's number, and from nothing else. So any
span of time can be asked for, in any order and in any cuts, and is always the same.

Events are drawn where they *arrive*; their own time lies a delay earlier. Most delays are
milliseconds, some come out of order within the allowed lateness, and a few faulty ones are too
late. The other faults are what producers really send: halves of objects, no key, no usable time,
NaN, clocks years ahead. Each says with which reason it ought to be rejected.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.calendar import DAY_MS, HOUR_MS
from stream_forecaster.events import Reason

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_MINUTE_MS = 60_000
_YEAR_MS = 365 * DAY_MS
# A step is as long as it takes for so many events: drawing one costs what formatting 100 costs.
_EVENTS_PER_STEP = 64
_OUT_OF_ORDER_SHARE = 0.05
_TYPES = (b"view", b"view", b"view", b"click", b"click", b"cart", b"purchase")
_ITEMS = 2_000
# The spread of users' activity: a few are ten times as busy as most.
_LEVEL_SIGMA = 0.8


class SyntheticEvent(NamedTuple):
    """One record to send.

    Attributes:
        arrival_ms: when it reaches the broker, epoch ms; events come in this order.
        time_ms: its own time; what it says in `ts` unless it is faulty.
        key: the Kafka key, the user's id.
        value: a JSON object with user_id, ts, type, item and amount; or a fault.
        fault: why it ought to be rejected; None for a good event.
    """

    arrival_ms: int
    time_ms: int
    key: bytes
    value: bytes
    fault: Reason | None


@dataclass(frozen=True, slots=True)
class Moment:
    """What a persona's activity depends on, for its B users.

    Attributes:
        hour: (B,) of the day, by each user's own clock.
        weekend: whether it is Saturday or Sunday.
        age_ms: since the population began.
        trait: (B,) each user's own number, 0 to 1, for ever.
        draw: (B,) numbers, 0 to 1, that change every so many milliseconds.
    """

    hour: Float64
    weekend: bool
    age_ms: int
    trait: Float64
    draw: Callable[[int], Float64]


@dataclass(frozen=True, slots=True)
class Persona:
    """A kind of user: its share of the population and its activity, about 1 in the mean."""

    name: str
    share: float
    activity: Callable[[Moment], Float64]


@dataclass(frozen=True, slots=True)
class _Group:
    """The users of one persona, (B,) each: clock shift, trait, and level of activity."""

    persona: Persona
    shift_h: Float64
    trait: Float64
    level: Float64


@dataclass(frozen=True)
class Population:
    """Users of seven kinds, whose ids say which: commuter-0000, bot-0093.

    Attributes:
        seed: everything follows from it.
        users: how many; at least one of each kind wants 20.
        start_ms: when it begins, epoch ms; nothing arrives earlier.
        events_per_s: of all users together, in the mean over a week.
        fault_share: of all records.
        allowed_lateness_ms: what out-of-order events stay within and late ones exceed.
        keys: the ids of all users.

    >>> monday_ms = 1_767_571_200_000
    >>> population = Population(seed=1, users=20, start_ms=monday_ms)
    >>> first = next(population.events(monday_ms, monday_ms + 60_000))
    >>> first.key, first.value[:41]
    (b'fading-0015', b'{"user_id":"fading-0015","ts":17675712000')
    """

    seed: int
    users: int
    start_ms: int
    events_per_s: float = 50.0
    fault_share: float = 0.002
    allowed_lateness_ms: int = 120_000
    keys: tuple[bytes, ...] = field(init=False, repr=False)
    _groups: tuple[_Group, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.users < 1 or self.events_per_s <= 0 or not 0 <= self.fault_share <= 1:
            raise ValueError("a population has users, events, and a share of faults within 0 to 1")
        rng = np.random.default_rng((self.seed, self.users))
        shares = np.cumsum([persona.share for persona in PERSONAS])
        ends = np.round(shares / shares[-1] * self.users).astype(int).tolist()
        sizes = np.diff([0, *ends]).tolist()
        groups = tuple(
            _Group(
                persona,
                shift_h=rng.normal(0.0, 0.7, size),
                trait=rng.random(size),
                level=rng.lognormal(-(_LEVEL_SIGMA**2) / 2, _LEVEL_SIGMA, size),
            )
            for persona, size in zip(PERSONAS, sizes, strict=True)
        )
        names = [g.persona.name for g in groups for _ in g.trait]
        keys = tuple(f"{name}-{i:04d}".encode() for i, name in enumerate(names))
        object.__setattr__(self, "_groups", groups)
        object.__setattr__(self, "keys", keys)

    @property
    def _step_ms(self) -> int:
        return round(min(max(1000 * _EVENTS_PER_STEP / self.events_per_s, 1_000), _MINUTE_MS))

    def events(self, since_ms: int, until_ms: int) -> Iterator[SyntheticEvent]:
        """Everything that arrives from `since_ms` to before `until_ms`, in order of arrival.

        Spans that adjoin give what one span over both gives.
        """
        since_ms = max(since_ms, self.start_ms)
        first = (since_ms - self.start_ms) // self._step_ms
        last = (until_ms - 1 - self.start_ms) // self._step_ms
        for step in range(first, last + 1):
            yield from self._step(step, since_ms, until_ms)

    def _step(self, step: int, since_ms: int, until_ms: int) -> Iterator[SyntheticEvent]:
        begin_ms = self.start_ms + step * self._step_ms
        rng = np.random.default_rng((self.seed, step))
        rate = np.cumsum(
            np.concatenate([self._rate(i, begin_ms) for i in range(len(self._groups))])
        )
        n = rng.poisson(rate[-1] / self.users * self.events_per_s * self._step_ms / 1000)
        arrival_ms = np.sort(rng.integers(begin_ms, begin_ms + self._step_ms, n))
        user = np.searchsorted(rate, rng.random(n) * rate[-1], side="right")
        faulty = rng.random(n) < self.fault_share
        fault = np.where(faulty, rng.integers(0, len(_FAULTS), n), -1)
        columns = (
            arrival_ms,
            arrival_ms - self._delay_ms(rng, fault),
            np.minimum(user, self.users - 1),
            rng.integers(0, len(_TYPES), n),
            rng.integers(0, _ITEMS, n),
            rng.integers(50, 20_000, n),
            fault,
        )
        i, j = np.searchsorted(arrival_ms, (since_ms, until_ms))
        for row in zip(*(column[i:j].tolist() for column in columns), strict=True):
            yield self._event(row)

    def _rate(self, index: int, time_ms: int) -> Float64:
        """Events per user of a group, 1 being the mean over all users, (B,)."""
        group = self._groups[index]

        def draw(block_ms: int) -> Float64:
            seed = (self.seed, index, block_ms, time_ms // block_ms)
            return np.random.default_rng(seed).random(len(group.trait))

        moment = Moment(
            hour=(time_ms / HOUR_MS + group.shift_h) % 24,
            weekend=(time_ms // DAY_MS + 3) % 7 >= 5,
            age_ms=time_ms - self.start_ms,
            trait=group.trait,
            draw=draw,
        )
        return group.level * group.persona.activity(moment)

    def _delay_ms(self, rng: np.random.Generator, fault: Int64) -> Int64:
        n, lateness_ms = len(fault), self.allowed_lateness_ms
        usual = rng.exponential(20.0, n)
        held_up = rng.random(n) < _OUT_OF_ORDER_SHARE
        usual[held_up] += rng.exponential(lateness_ms / 10, n)[held_up]
        too_late = lateness_ms * (2 + rng.random(n)) + 10 * _MINUTE_MS
        delay = np.where(fault == _TOO_LATE, too_late, np.minimum(usual, lateness_ms / 2))
        return delay.astype(np.int64)

    def _event(self, row: tuple[int, ...]) -> SyntheticEvent:
        arrival_ms, time_ms, user, kind, item, cents, fault = row
        key = self.keys[user]
        reason, template = _FAULTS[fault] if fault >= 0 else (None, _GOOD)
        said_ms = time_ms + (3 * _YEAR_MS if reason is Reason.TOO_FAR_AHEAD else 0)
        value = template % {
            b"user": key,
            b"ts": said_ms,
            b"type": _TYPES[kind],
            b"item": item,
            b"amount": cents / 100,
        }
        return SyntheticEvent(arrival_ms, time_ms, key, value, reason)


def _bump(hour: Float64, middle: float, width: float) -> Float64:
    return np.exp(-(((hour - middle) / width) ** 2) / 2)


def _commuter(now: Moment) -> Float64:
    """Two peaks on working days, a flat afternoon at the weekend."""
    if now.weekend:
        return 0.25 + 1.5 * _bump(now.hour, 14, 3)
    return 0.25 + 5.0 * (_bump(now.hour, 8, 0.8) + _bump(now.hour, 17.5, 0.8))


def _steady(now: Moment) -> Float64:
    """Around the clock, a little more by day."""
    return 1 + 0.3 * np.sin((now.hour - 9) * np.pi / 12)


def _binge(now: Moment) -> Float64:
    """Some evenings, twenty minutes at a time."""
    return np.where(now.draw(20 * _MINUTE_MS) < 0.5 * _bump(now.hour, 21, 2), 8.0, 0.15)


def _fading(now: Moment) -> Float64:
    """Gone after half a day to four days."""
    return 3 * np.exp(-now.age_ms / DAY_MS / (0.5 + 3.5 * now.trait))


def _newcomer(now: Moment) -> Float64:
    """Not there at first: the earliest appears after half a minute, the last after ten days."""
    return np.where(now.age_ms >= 30_000 * 28_800**now.trait, 1.2, 0.0)


def _sporadic(now: Moment) -> Float64:
    """Silent for days, then there for six hours."""
    return np.where(now.draw(6 * HOUR_MS) < 0.15, 6.0, 0.0)


def _bot(now: Moment) -> Float64:
    """Silent, but for one minute in twenty-five at full speed."""
    return np.where(now.draw(_MINUTE_MS) < 0.04, 25.0, 0.0)


PERSONAS = (
    Persona("commuter", 0.30, _commuter),
    Persona("steady", 0.25, _steady),
    Persona("binge", 0.15, _binge),
    Persona("fading", 0.10, _fading),
    Persona("newcomer", 0.08, _newcomer),
    Persona("sporadic", 0.07, _sporadic),
    Persona("bot", 0.05, _bot),
)

_GOOD = (
    b'{"user_id":"%(user)b","ts":%(ts)d,"type":"%(type)b",'
    b'"item":"item-%(item)04d","amount":%(amount).2f}'
)
_FAULTS = (
    (Reason.TOO_LATE, _GOOD),
    (Reason.TOO_FAR_AHEAD, _GOOD),
    (Reason.NO_KEY, b'{"ts":%(ts)d,"type":"%(type)b"}'),
    (Reason.BAD_TIME, b'{"user_id":"%(user)b","ts":"yesterday","type":"%(type)b"}'),
    (Reason.BAD_TIME, b'{"user_id":"%(user)b","ts":-1,"type":"%(type)b"}'),
    (Reason.NOT_JSON, b'{"user_id":"%(user)b","ts":%(ts)d,"amount":NaN}'),
    (Reason.NOT_JSON, b'{"user_id":"%(user)b","ts":%(ts)d,"ty'),
    (Reason.NOT_JSON, b"\xff\xfe%(user)b viewed item-%(item)04d"),
)
_TOO_LATE = 0
