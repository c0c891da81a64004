from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_forecaster.calendar import DAY_MS, HOUR_MS, Calendar
from stream_forecaster.config import Input
from stream_forecaster.events import EventDecoder, Reason
from stream_forecaster.records import BytesColumn, Records
from stream_forecaster.synth import PERSONAS, Population, SyntheticEvent

MONDAY_MS = 1_767_571_200_000
MINUTE_MS = 60_000
WEEK = Population(seed=3, users=60, start_ms=MONDAY_MS, events_per_s=0.5)


@pytest.fixture(scope="module")
def week() -> list[SyntheticEvent]:
    return list(WEEK.events(MONDAY_MS, MONDAY_MS + 7 * DAY_MS))


def times_ms(
    events: list[SyntheticEvent], persona: str
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """When events of a persona arrive, since the population began."""
    prefix = persona.encode()
    return np.array([e.arrival_ms - MONDAY_MS for e in events if e.key.startswith(prefix)])


@settings(max_examples=30)
@given(cuts=st.lists(st.integers(-5_000, 65_000)), seed=st.integers(0, 3))
def test_cuts_do_not_matter(cuts: list[int], seed: int) -> None:
    """Law: adjoining spans give what one span gives, whatever their lengths."""
    population = Population(seed=seed, users=30, start_ms=MONDAY_MS)
    edges = [MONDAY_MS + edge for edge in sorted([-5_000, *cuts, 65_000])]

    pieces = [e for a, b in pairwise(edges) for e in population.events(a, b)]

    assert pieces == list(population.events(edges[0], edges[-1]))
    assert len(pieces) > 500


def test_the_seed_is_everything() -> None:
    """Two populations of one seed send the same, those of two do not."""
    one, same, other = (
        list(
            Population(seed=seed, users=30, start_ms=MONDAY_MS).events(MONDAY_MS, MONDAY_MS + 9_000)
        )
        for seed in (1, 1, 2)
    )

    assert one == same
    assert one != other


def test_events_arrive_in_order_within_the_span() -> None:
    """Arrival never goes back; the ends are [since, until)."""
    since_ms, until_ms = MONDAY_MS + 1_234, MONDAY_MS + 61_234
    population = Population(seed=1, users=30, start_ms=MONDAY_MS, events_per_s=500)

    arrivals = [e.arrival_ms for e in population.events(since_ms, until_ms)]

    assert arrivals == sorted(arrivals)
    assert arrivals[0] >= since_ms
    assert arrivals[-1] < until_ms


def test_good_events_are_within_the_allowed_lateness(week: list[SyntheticEvent]) -> None:
    """Some come out of order; only the faulty ones come too late."""
    good = [e for e in week if e.fault is None]
    delay_ms = np.array([e.arrival_ms - e.time_ms for e in good])
    event_ms = np.array([e.time_ms for e in good])

    assert delay_ms.min() >= 0
    assert delay_ms.max() < WEEK.allowed_lateness_ms
    assert 0.03 < (delay_ms > 1_000).mean() < 0.07
    assert (np.diff(event_ms) < 0).any()


def test_every_fault_is_rejected_for_its_reason(week: list[SyntheticEvent]) -> None:
    """The decoder agrees with what each event says of itself; lateness is judged by windows."""
    arrival_ms = np.array([e.arrival_ms for e in week])
    keys, values = (
        BytesColumn.of(column) for column in zip(*((e.key, e.value) for e in week), strict=True)
    )
    records = Records(0, np.arange(len(week)), arrival_ms, keys, values, len(week))

    events, rejects = EventDecoder(Input(), Calendar("UTC"))(records)

    assert {r.offset: r.reason for r in rejects} == {
        i: e.fault for i, e in enumerate(week) if e.fault not in {None, Reason.TOO_LATE}
    }
    for row, key, time_ms in zip(events.row.tolist(), events.key, events.time_ms, strict=True):
        assert (week[row].key, week[row].time_ms) == (key, time_ms)


def test_faults_are_few_and_of_every_kind(week: list[SyntheticEvent]) -> None:
    """Their share is the one asked for."""
    faults = Counter(e.fault for e in week)

    assert set(faults) == {
        None,
        Reason.NOT_JSON,
        Reason.NO_KEY,
        Reason.BAD_TIME,
        Reason.TOO_LATE,
        Reason.TOO_FAR_AHEAD,
    }
    assert 1 - faults[None] / len(week) == pytest.approx(WEEK.fault_share, rel=0.2)


def test_no_faults_where_none_are_wanted() -> None:
    """A share of 0 is none."""
    population = Population(seed=1, users=30, start_ms=MONDAY_MS, fault_share=0)

    assert {e.fault for e in population.events(MONDAY_MS, MONDAY_MS + 60_000)} == {None}


def test_the_rate_is_about_the_one_asked_for(week: list[SyntheticEvent]) -> None:
    """Over a week, whatever the levels of its users."""
    assert len(week) / (7 * DAY_MS / 1000) == pytest.approx(WEEK.events_per_s, rel=0.35)


def test_events_are_about_a_hundred_bytes(week: list[SyntheticEvent]) -> None:
    """What the speed figures assume."""
    assert 85 < np.mean([len(e.value) for e in week if e.fault is None]) < 110


def test_a_small_population_has_every_kind() -> None:
    """Twenty users show all there is."""
    population = Population(seed=1, users=20, start_ms=MONDAY_MS, events_per_s=0.1)

    seen = {e.key.split(b"-")[0] for e in population.events(MONDAY_MS, MONDAY_MS + 12 * DAY_MS)}

    assert seen == {persona.name.encode() for persona in PERSONAS}


def test_commuters_keep_days_and_weeks(week: list[SyntheticEvent]) -> None:
    """Mornings over nights on working days; no morning peak at the weekend."""
    at = times_ms(week, "commuter")
    hour, day = at // HOUR_MS % 24, at // DAY_MS
    working, morning = day < 5, (hour >= 7) & (hour < 9)

    assert (working & morning).sum() / 5 > 5 * (working & (hour < 2)).sum() / 5
    assert (working & morning).sum() / 5 > 5 * (~working & morning).sum() / 2


def test_fading_users_fade(week: list[SyntheticEvent]) -> None:
    """The last day has a fraction of the first."""
    day = times_ms(week, "fading") // DAY_MS

    assert (day == 0).sum() > 4 * (day == 6).sum()


def test_newcomers_come_one_by_one() -> None:
    """Nobody in the first half minute, more and more over ten days."""
    population = Population(seed=1, users=400, start_ms=MONDAY_MS, events_per_s=1)
    first_ms: dict[bytes, int] = {}
    for e in population.events(MONDAY_MS, MONDAY_MS + 2 * DAY_MS):
        if e.key.startswith(b"newcomer"):
            first_ms.setdefault(e.key, e.arrival_ms - MONDAY_MS)
    newcomers = [key for key in population.keys if key.startswith(b"newcomer")]

    assert min(first_ms.values()) > 30_000
    assert min(first_ms.values()) < HOUR_MS
    assert len(newcomers) / 2 < len(first_ms) < len(newcomers)


def test_bots_come_in_bursts(week: list[SyntheticEvent]) -> None:
    """Counts per minute vary far more than chance."""
    per_minute = np.bincount(times_ms(week, "bot") // MINUTE_MS, minlength=7 * 1440)

    assert per_minute.var() > 5 * per_minute.mean()


def test_sporadic_users_are_silent_for_days(week: list[SyntheticEvent]) -> None:
    """The longest silence of one user spans a day at least; a steady user's does not."""
    longest = {}
    for kind in ("sporadic", "steady"):
        user = max(
            Counter(e.key for e in week if e.key.startswith(kind.encode())).items(),
            key=lambda u: u[1],
        )[0]
        longest[kind] = np.diff(times_ms(week, user.decode())).max()

    assert longest["sporadic"] > DAY_MS > 6 * longest["steady"]


@pytest.mark.parametrize("wrong", [{"users": 0}, {"events_per_s": 0}, {"fault_share": 1.5}])
def test_an_impossible_population_is_refused(wrong: dict[str, float]) -> None:
    """A bad call is a ValueError."""
    with pytest.raises(ValueError, match="population"):
        Population(**{"seed": 1, "users": 9, "start_ms": 0, **wrong})  # type: ignore[arg-type]  # by design
