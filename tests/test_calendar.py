"""The calendar against zoneinfo, one moment at a time."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stream_forecaster.calendar import DAY_MS, HOUR_MS, LATEST_MS, WEEK_MS, Calendar

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CALENDARS = {
    name: Calendar(name)
    for name in (
        "UTC",
        "Europe/Zurich",
        "America/Sao_Paulo",  # sprang forward at midnight
        "America/St_Johns",  # fell back at one minute past midnight
        "America/Recife",  # a summer time of one week
        "Africa/Casablanca",  # winter time for a month, moving through the year
        "Australia/Lord_Howe",  # half an hour of summer time
        "Asia/Kolkata",  # no hour of UTC begins a day
        "Pacific/Apia",  # had no 30 December 2011
        "Pacific/Kiritimati",  # had no 31 December 1994, and changed its offset in 1979
    )
}
_STEPS_MS = [1_000, 60_000, HOUR_MS, 6 * HOUR_MS, DAY_MS, 2 * DAY_MS, WEEK_MS]

calendars = st.sampled_from(sorted(_CALENDARS)).map(_CALENDARS.__getitem__)
# A day inside the range, so that buckets and zones have both neighbours.
moments_ms = st.integers(2 * WEEK_MS, LATEST_MS - 1)


def _ms(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def _wall(time_ms: int, zone: ZoneInfo) -> datetime:
    return (_EPOCH + timedelta(milliseconds=time_ms)).astimezone(zone)


def _at(zone: str, text: str) -> int:
    return _ms(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)))


def _first_moment_of(day: datetime, zone: ZoneInfo) -> int:
    """The slow way: the first minute whose local date is `day` or later."""
    noon_before = day - timedelta(hours=36)
    start_ms = _ms(noon_before.replace(tzinfo=UTC))
    minutes = (start_ms + i * 60_000 for i in range(4 * 1440))
    return next(m for m in minutes if _wall(m, zone).replace(tzinfo=None) >= day)


@given(calendar=calendars, time_ms=moments_ms, step_ms=st.sampled_from(_STEPS_MS))
def test_a_moment_lies_in_its_bucket(calendar: Calendar, time_ms: int, step_ms: int) -> None:
    """Not before its bucket's start, and before the next one's."""
    index = calendar.index(time_ms, step_ms)
    assert calendar.start(index, step_ms) <= time_ms < calendar.start(index + 1, step_ms)


@given(
    calendar=calendars,
    times_ms=st.lists(moments_ms, min_size=2, max_size=20).map(sorted),
    step_ms=st.sampled_from(_STEPS_MS),
)
def test_buckets_ascend_with_time(calendar: Calendar, times_ms: list[int], step_ms: int) -> None:
    """A later moment is never in an earlier bucket."""
    assert (np.diff(calendar.index(np.array(times_ms), step_ms)) >= 0).all()


@given(calendar=calendars, time_ms=moments_ms)
@example(calendar=_CALENDARS["America/Recife"], time_ms=971_400_000_000)
def test_local_time_is_what_zoneinfo_says(calendar: Calendar, time_ms: int) -> None:
    """To the millisecond, in every zone and year."""
    wall = _wall(time_ms, ZoneInfo(calendar.timezone)).replace(tzinfo=UTC)
    assert int(calendar.local(time_ms)) == _ms(wall)


@given(calendar=calendars, local_ms=moments_ms)
def test_a_wall_clock_reading_is_the_moment_zoneinfo_says(
    calendar: Calendar, local_ms: int
) -> None:
    """The earlier of two, and beyond a gap as if the clocks had not changed yet: fold 0."""
    wall = (_EPOCH + timedelta(milliseconds=local_ms)).replace(tzinfo=ZoneInfo(calendar.timezone))
    assert calendar.from_local(local_ms) == _ms(wall)


@pytest.mark.parametrize(
    ("zone", "reading"),
    [
        ("Europe/Zurich", "2026-03-29T02:30"),  # does not exist
        ("Europe/Zurich", "2026-10-25T02:30"),  # exists twice
        ("Australia/Lord_Howe", "2025-10-05T02:15"),  # does not exist, for half an hour
        ("Pacific/Apia", "2011-12-30T12:00"),  # does not exist, for a day
        ("Pacific/Kiritimati", "1994-12-31T06:00"),  # likewise
        ("America/Sao_Paulo", "2017-10-15T00:00"),  # does not exist, at midnight
    ],
)
def test_readings_that_are_not_one_moment(zone: str, reading: str) -> None:
    """Gaps and repetitions are resolved as zoneinfo does."""
    local_ms = _ms(datetime.fromisoformat(reading).replace(tzinfo=UTC))
    assert _CALENDARS[zone].from_local(local_ms) == _at(zone, reading)


@given(
    calendar=calendars,
    time_ms=moments_ms,
    period_ms=st.sampled_from([DAY_MS, WEEK_MS]),
    width_ms=st.sampled_from([60_000, 600_000, HOUR_MS, DAY_MS]),
)
def test_phases_follow_the_wall_clock(
    calendar: Calendar, time_ms: int, period_ms: int, width_ms: int
) -> None:
    """Counted from local midnight, or from Monday's; within the period."""
    wall = _wall(time_ms, ZoneInfo(calendar.timezone))
    since_midnight_ms = ((wall.hour * 60 + wall.minute) * 60 + wall.second) * 1000
    since_monday_ms = wall.weekday() * DAY_MS + since_midnight_ms
    into_ms = since_monday_ms if period_ms == WEEK_MS else since_midnight_ms
    phase = int(calendar.phase(time_ms, period_ms, width_ms))
    assert phase == into_ms // width_ms
    assert 0 <= phase < period_ms // width_ms


@given(calendar=calendars, time_ms=moments_ms, days=st.sets(st.integers(-9, 9)))
def test_a_holiday_is_a_sunday(calendar: Calendar, time_ms: int, days: set[int]) -> None:
    """From its local midnight to the next; other days are what the week makes of them."""
    today = _wall(time_ms, ZoneInfo(calendar.timezone)).date()
    holidays = tuple(today + timedelta(days=day) for day in days)
    with_holidays = replace(calendar, holidays=holidays)
    expected = 2 if 0 in days else max(today.weekday() - 4, 0)
    assert int(with_holidays.day_type(time_ms)) == expected
    assert calendar.day_type(np.array([time_ms])).tolist() == [max(today.weekday() - 4, 0)]


_eventful_days = [
    ("Europe/Zurich", "2026-03-29"),
    ("Europe/Zurich", "2026-10-25"),
    ("America/Sao_Paulo", "2017-10-15"),
    ("America/Sao_Paulo", "2018-02-18"),
    ("America/St_Johns", "2006-10-29"),
    ("America/Recife", "2000-10-08"),
    ("America/Recife", "2000-10-15"),
    ("Africa/Casablanca", "2026-02-15"),
    ("Africa/Casablanca", "2026-03-22"),
    ("Australia/Lord_Howe", "2025-10-05"),
    ("Asia/Kolkata", "2026-01-01"),
    ("Pacific/Apia", "2011-12-30"),
]


@pytest.mark.parametrize(("zone", "date"), _eventful_days)
def test_days_begin_when_the_local_date_changes(zone: str, date: str) -> None:
    """The days around a change of the clocks begin at their first moment, found by search."""
    calendar, middle = _CALENDARS[zone], datetime.fromisoformat(date)
    first = (middle - datetime(1970, 1, 1)).days  # noqa: DTZ001  (a date, not a moment)
    for shift in (-1, 0, 1, 2):
        expected = _first_moment_of(middle + timedelta(days=shift), ZoneInfo(zone))
        assert int(calendar.start(first + shift, DAY_MS)) == expected


@given(
    calendar=calendars.filter(lambda c: c.timezone != "America/St_Johns"),
    time_ms=moments_ms,
)
def test_a_day_is_a_local_date(calendar: Calendar, time_ms: int) -> None:
    """Bucket numbers of days count local dates since 1970, where no date comes back."""
    wall = _wall(time_ms, ZoneInfo(calendar.timezone))
    days = (wall.replace(tzinfo=None) - datetime(1970, 1, 1)).days  # noqa: DTZ001  (likewise)
    assert int(calendar.index(time_ms, DAY_MS)) == days


@pytest.mark.parametrize(
    ("zone", "date", "hours"),
    [
        ("Europe/Zurich", "2026-03-29", 23),
        ("Europe/Zurich", "2026-10-25", 25),
        ("Australia/Lord_Howe", "2025-10-05", 23.5),
        ("Pacific/Apia", "2011-12-30", 0),
        ("Asia/Kolkata", "2026-06-01", 24),
    ],
)
def test_days_are_as_long_as_the_clocks_make_them(zone: str, date: str, hours: float) -> None:
    """23 and 25 hours, half hours, and the day that Samoa left out."""
    calendar = _CALENDARS[zone]
    day = (datetime.fromisoformat(date) - datetime(1970, 1, 1)).days  # noqa: DTZ001  (likewise)
    length = calendar.start(day + 1, DAY_MS) - calendar.start(day, DAY_MS)
    assert int(length) == hours * HOUR_MS


def test_the_horizon_may_reach_past_the_table() -> None:
    """A forecast issued in December 2099 has starts for all its days."""
    calendar = _CALENDARS["Europe/Zurich"]
    last = int(calendar.index(LATEST_MS - 1, DAY_MS))
    starts = calendar.start(np.arange(last, last + 400), DAY_MS)
    assert (np.diff(starts) == DAY_MS).all()
