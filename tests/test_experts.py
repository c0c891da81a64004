"""What each expert says, worked out by hand. What holds of all is in `laws/test_experts.py`."""

from collections.abc import Sequence
from datetime import date, datetime
from typing import Literal
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stream_forecaster.calendar import DAY_MS, HOUR_MS, Calendar
from stream_forecaster.config import Resolution
from stream_forecaster.experts import (
    Ewma,
    Expert,
    LastValue,
    Population,
    Season,
    Seasonal,
    ShortAverage,
    _Timetable,
    pool,
)
from stream_forecaster.keys import KeyTable
from stream_forecaster.regression import Newest
from stream_forecaster.windows import Window

_NAN = float("nan")
_SOON = np.array([1, 2, 3])


def _table(keys: int = 1) -> KeyTable:
    table = KeyTable()
    table.intern([b"%d" % i for i in range(keys)], np.zeros(keys, np.int64))
    return table


def _tell(expert: Expert, values: Sequence[float], first: int = 0) -> int:
    """Teach an expert one key's values; the last bucket's index."""
    for index, value in enumerate(values, first):
        expert.learn(index, np.array([value]))
    return first + len(values) - 1


class _Season:
    """A seasonal expert of one key, with the window that tells it the key's age."""

    def __init__(
        self,
        calendar: Calendar,
        step_ms: int,
        cycle: Literal["day", "week", "day_type"],
        rate: float,
    ) -> None:
        table = _table()
        resolution = Resolution.model_validate(
            {"step": f"{step_ms // 1000}s", "context": 10, "horizon": 3}
        )
        self.window = Window(table, calendar, resolution, open_span_ms=0, is_mean=False)
        self.expert = Seasonal(table, calendar, self.window, Season("season", cycle, rate))
        self._calendar = calendar

    def tell(self, values: Sequence[float], first: int = 0) -> int:
        """Let the buckets from `first` on close with these values; the last one's index."""
        start_ms = int(self._calendar.start(first, self.window.step_ms))
        self.window.begin(start_ms)
        return self.go_on(values, first)

    def go_on(self, values: Sequence[float], first: int) -> int:
        """The same for the buckets that come next."""
        for index, value in enumerate(values, first):
            start = self._calendar.start(np.array([index]), self.window.step_ms)
            self.window.absorb(np.array([0]), start, np.array([value]))
            self.expert.learn(index, self.window.close())
        return first + len(values) - 1


def test_the_last_value_passes_over_what_is_missing() -> None:
    """A bucket without events, where means are taken, changes nothing."""
    expert = LastValue(Newest(_table(), "x", 2))
    index = _tell(expert, [3.0, 5.0, _NAN])
    assert expert.predict(np.s_[:], index, _SOON).tolist() == [[5.0]]


def test_an_ewma_is_a_plain_mean_first() -> None:
    """Until it has seen as many buckets as its rate remembers, then it forgets."""
    expert = Ewma(_table(), "x", "ewma", 0.25)
    for values in ([8.0], [8.0, 4.0], [8.0, 4.0, _NAN, 3.0], [8.0, 4.0, 3.0, 1.0]):
        expert = Ewma(_table(), "x", "ewma", 0.25)
        index = _tell(expert, values)
        assert expert.predict(np.s_[:], index, _SOON)[0, 0] == pytest.approx(np.nanmean(values))
    _tell(expert, [12.0])
    assert expert.predict(np.s_[:], 4, _SOON)[0, 0] == pytest.approx(0.75 * 4 + 0.25 * 12)


def test_a_season_repeats_the_same_time_of_day() -> None:
    """Tomorrow at this hour is as today at this hour, also on a day of 23 hours."""
    calendar = Calendar("Europe/Zurich")
    first = int(calendar.index(1_774_569_600_000, HOUR_MS))  # 27 March 2026 00:00 UTC
    season = _Season(calendar, HOUR_MS, "day", 0.15)
    hours = first + np.arange(24)
    wall_hour = calendar.phase(calendar.start(hours, HOUR_MS), DAY_MS, HOUR_MS)
    index = season.tell(wall_hour.astype(float).tolist(), first)
    ahead = np.arange(1, 73)  # over the change of the clocks on 29 March
    expected = calendar.phase(calendar.start(index + ahead, HOUR_MS), DAY_MS, HOUR_MS)
    assert season.expert.predict(np.s_[:], index, ahead)[0].tolist() == expected.tolist()
    assert (np.diff(expected) % 24 == 2).any()  # the clocks did change


def test_a_season_moves_towards_what_comes() -> None:
    """A fifteenth hundredth of the way at each visit."""
    season = _Season(Calendar("UTC"), HOUR_MS, "day", 0.15)
    index = season.tell([10.0] * 24 + [20.0] * 24)
    said = season.expert.predict(np.s_[:], index, _SOON)[0]
    np.testing.assert_allclose(said, 11.5, rtol=1e-6)


def test_a_wide_phase_begins_as_a_plain_mean() -> None:
    """An hour of minutes: what its first minute happened to be has no more say than the others."""
    season = _Season(Calendar("UTC"), 60_000, "day", 0.15)
    season.tell([60.0, *([0.0] * 59), 7.0])
    said = season.expert.predict(np.s_[:], 60, np.array([1, 24 * 60 - 60]))[0]
    np.testing.assert_allclose(said, [7.0, 1.0], rtol=1e-5)


def test_a_phase_never_seen_has_no_opinion() -> None:
    """Honest when cold."""
    season = _Season(Calendar("UTC"), DAY_MS, "week", 0.25)
    index = season.tell([1.0, 2.0, 3.0])
    said = season.expert.predict(np.s_[:], index, np.arange(1, 8))[0]
    assert np.isnan(said[:4]).all()
    assert said[4:].tolist() == [1.0, 2.0, 3.0]


def test_a_short_average_is_that_of_the_newest_values() -> None:
    """Three, fewer at first; a missing bucket takes no value's place."""
    newest = Newest(_table(), "x", 3)
    expert = ShortAverage(newest)
    for value, mean in ((6.0, 6.0), (2.0, 4.0), (_NAN, 4.0), (1.0, 3.0), (9.0, 4.0)):
        _tell(LastValue(newest), [value])
        assert expert.predict(np.s_[:], 0, _SOON).tolist() == [[mean]]


def _hours(calendar: Calendar, local: str, count: int) -> NDArray[np.int64]:
    """So many hours from a local time on."""
    start = datetime.fromisoformat(local).replace(tzinfo=ZoneInfo(calendar.timezone))
    first = int(calendar.index(int(start.timestamp()) * 1000, HOUR_MS))
    return first + np.arange(count)


def _type_and_hour(calendar: Calendar, hours: NDArray[np.int64]) -> list[float]:
    """What each hour's wall clock says: 100 on a Saturday, 200 on a Sunday, plus the hour."""
    starts = calendar.start(hours, HOUR_MS).tolist()
    zone = ZoneInfo(calendar.timezone)
    local = [datetime.fromtimestamp(start / 1000, zone) for start in starts]
    return [100.0 * max(at.weekday() - 4, 0) + at.hour for at in local]


def test_a_day_is_as_others_of_its_type() -> None:
    """Also the days on which the clocks change, both of them Sundays."""
    for change in ("2026-03-16", "2026-10-12"):
        calendar = Calendar("Europe/Zurich")
        season = _Season(calendar, HOUR_MS, "day_type", 0.15)
        told = _hours(calendar, change, 7 * 24)  # a whole week from a Monday
        index = season.tell(_type_and_hour(calendar, told), int(told[0]))
        ahead = np.arange(1, 14 * 24)
        said = season.expert.predict(np.s_[:], index, ahead)[0]
        assert said.tolist() == _type_and_hour(calendar, index + ahead)


def test_a_holiday_is_foretold_by_sundays() -> None:
    """And teaches them, not the working days around it."""
    thursday, friday = date(2026, 12, 24), date(2026, 12, 25)
    calendar = Calendar("UTC", (thursday, friday))
    season = _Season(calendar, HOUR_MS, "day_type", 0.5)
    told = _hours(calendar, "2026-12-14", 10 * 24)  # from a Monday to a Wednesday
    index = season.tell(_type_and_hour(calendar, told), int(told[0]))
    said = season.expert.predict(np.s_[:], index, np.arange(1, 49))[0]
    assert said.tolist() == [200.0 + hour for hour in range(24)] * 2
    season.go_on([0.0] * 24, index + 1)
    said = season.expert.predict(np.s_[:], index + 24, np.arange(25, 97))[0]  # from Saturday on
    expected = [100.0 + hour for hour in range(24)], [100.0 + hour / 2 for hour in range(24)]
    assert said[:48].tolist() == [*expected[0], *expected[1]]
    assert said[48:].tolist() == [float(hour) for hour in range(24)]


def test_an_unseen_weekend_is_expected_to_be_as_other_days() -> None:
    """The other way round nothing is known."""
    calendar = Calendar("UTC")
    told = _hours(calendar, "2026-03-19", 48)  # Thursday and Friday
    season = _Season(calendar, HOUR_MS, "day_type", 0.15)
    index = season.tell([float(i % 24) for i in range(48)], int(told[0]))
    said = season.expert.predict(np.s_[:], index, np.arange(1, 73))[0]
    assert said.tolist() == [float(i % 24) for i in range(72)]
    told = _hours(calendar, "2026-03-21", 24)  # a Saturday
    season = _Season(calendar, HOUR_MS, "day_type", 0.15)
    index = season.tell([1.0] * 24, int(told[0]))
    assert np.isnan(season.expert.predict(np.s_[:], index, np.arange(1, 73))).all()


@pytest.mark.parametrize(
    ("begun", "visited", "away"),
    [
        ("2026-03-20", "2026-03-21", 7),
        ("2026-03-21", "2026-03-23", 1),
        ("2026-03-18", "2026-03-22", 7),
    ],
)
def test_a_wide_phase_begins_as_a_plain_mean_on_each_type_of_day(
    begun: str, visited: str, away: int
) -> None:
    """However old the key is by its first Saturday, Monday or Sunday; the next is none."""
    calendar, day = Calendar("UTC"), 24 * 60
    season = _Season(calendar, 60_000, "day_type", 0.6)
    first, visit = (int(_hours(calendar, at, 1)[0]) * 60 for at in (begun, visited))
    hour = [60.0] + [0.0] * 59
    index = season.tell([5.0] * (visit - first) + hour, first)
    said = season.expert.predict(np.s_[:], index, np.array([away * day]))[0, 0]
    np.testing.assert_allclose(said, 1.0, rtol=1e-4)
    index = season.go_on([0.0] * (away * day - 60) + [61.0], index + 1)
    said = season.expert.predict(np.s_[:], index, np.array([1]))[0, 0]
    np.testing.assert_allclose(said, 1.0 + 0.01 * 60, rtol=1e-4)


def test_the_population_speaks_by_age() -> None:
    """A newcomer is expected to do what others did in their first buckets."""
    expert = Population(table := _table(9), "x", horizon=3)
    lives = np.array([10.0, 6.0, 2.0, 1.0, 1.0, 1.0])
    for index in range(14):
        ages = index - np.arange(9)
        expert.learn(index, np.where((ages >= 0) & (ages < 6), lives[ages.clip(0, 5)], np.nan))
    newcomer = table.intern([b"newcomer"], np.array([0]))
    first, second, third = expert.predict(newcomer, 13, _SOON)[0]
    assert 8 < first < 10
    assert 5 < second < 7
    assert 2 < third < 3


def test_before_anyone_came_the_population_is_silent_people() -> None:
    """Nothing is known: zero."""
    expert = Population(_table(), "x", horizon=3)
    assert expert.predict(np.s_[:], 0, _SOON).tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("step", "seasons"),
    [
        ("1m", {"seasonal_day", "seasonal_week", "day_type_fast", "day_type_slow"}),
        ("1h", {"seasonal_day", "seasonal_week", "day_type_fast", "day_type_slow"}),
        ("1d", {"seasonal_week"}),
        ("2d", set()),  # a week is no number of them
        ("7d", set()),
    ],
)
def test_seasons_are_those_that_the_step_divides(step: str, seasons: set[str]) -> None:
    """And are shorter than."""
    table, calendar = _table(), Calendar("UTC")
    resolution = Resolution(step=step, context=4, horizon=3)
    window = Window(table, calendar, resolution, open_span_ms=1, is_mean=False)
    names = {expert.name for expert in pool(table, calendar, window, resolution)}
    found = {name for name in names if name.startswith(("seasonal", "day_type"))}
    assert found == seasons


def _names(context: int, horizon: int, *, lean: bool = False) -> set[str]:
    table, calendar = _table(), Calendar("UTC")
    resolution = Resolution(step="1h", context=context, horizon=horizon)
    window = Window(table, calendar, resolution, open_span_ms=1, is_mean=False)
    return {expert.name for expert in pool(table, calendar, window, resolution, lean=lean)}


def test_regressions_are_those_that_the_context_has_room_for() -> None:
    """None without lags to look at; the long one where it would see clearly more than the other."""
    regressions = {"ridge", "ridge_key", "dlinear", "day_type_fast_ridge"}
    assert not regressions & _names(context=26, horizon=24)
    assert "ridge" in _names(context=28, horizon=24)
    assert regressions < _names(context=48, horizon=24)
    assert "ridge_long" not in _names(context=119, horizon=48)
    assert "ridge_long" in _names(context=120, horizon=48)


def test_a_lean_pool_goes_without_those_that_are_missed_least() -> None:
    """And has one season."""
    kept = {"last_value", "moving_average", "ewma_fast", "population", "ridge", "ridge_key"}
    assert _names(48, 24, lean=True) == kept | {"day_type_fast", "day_type_fast_ridge"}
    assert _names(48, 24, lean=True) < _names(48, 24)


_told = st.lists(
    st.lists(st.one_of(st.just(_NAN), st.floats(-1e6, 1e6)), min_size=3, max_size=3), max_size=12
)


@given(values=_told, rate=st.sampled_from([0.3, 0.1, 0.02]))
def test_averages_of_keys_are_those_of_arrays(values: list[list[float]], rate: float) -> None:
    """Bit for bit, whatever is missing."""
    table = _table(3)
    newest = Newest(table, "x", 3)
    ewma, short = Ewma(table, "x", "ewma", rate), ShortAverage(newest)
    level, seen = np.zeros(3, np.float32), np.zeros(3, np.float32)
    for index, row in enumerate(values):
        value = np.array(row)
        for expert in (ewma, LastValue(newest)):
            expert.learn(index, value)
        known = ~np.isnan(value)
        count = np.minimum(seen + 1.0, np.ceil(1 / rate))
        level += np.where(known, 1 / count, 0.0) * (np.nan_to_num(value) - level)
        seen[known] = count[known]
    said = np.where(seen > 0, level.astype(np.float64), _NAN)[:, None]
    np.testing.assert_array_equal(ewma.predict(np.s_[:], 0, _SOON), said)
    for k, (mean,) in enumerate(short.predict(np.s_[:], 0, _SOON)):
        last = [row[k] for row in values if not np.isnan(row[k])][-3:]
        np.testing.assert_array_equal(mean, sum(last) / len(last) if last else _NAN)


@given(
    first=st.lists(st.integers(-2_000, 40_000), min_size=1, max_size=4),
    cycle=st.sampled_from(["day", "week", "day_type"]),
    step_ms=st.sampled_from([HOUR_MS, HOUR_MS // 4, HOUR_MS // 60]),
    zone=st.sampled_from(["UTC", "America/Santiago", "Asia/Kolkata"]),
)
def test_a_timetable_is_the_calendars_wherever_it_was_asked_before(
    first: list[int], cycle: Literal["day", "week", "day_type"], step_ms: int, zone: str
) -> None:
    """What was worked out of one stretch of time is not told of another."""
    calendar, width_ms = Calendar(zone, (date(2026, 1, 6),)), max(step_ms, HOUR_MS)
    season = Season("season", cycle, 0.1)
    times = _Timetable(calendar, season, step_ms, width_ms)
    begin = int(calendar.index(1_767_571_200_000, step_ms))
    for index in (begin + at + np.arange(-3, 40) for at in first):
        start_ms = calendar.start(index, step_ms)
        cell = calendar.phase(start_ms, season.period_ms, width_ms)
        if cycle == "day_type":
            cell = cell + times.phases * calendar.day_type(start_ms)
        np.testing.assert_array_equal(times.cells(index), cell)
        at, visits, between = times.visit(int(index[7]))
        assert at == cell[7]
        assert visits == int(calendar.local(start_ms[7])) % width_ms // step_ms + 1
        assert between == _since(calendar, season, int(start_ms[7])) // step_ms


def _since(calendar: Calendar, season: Season, start_ms: int) -> int:
    """Time since the phase of a moment was last visited, looked for day by day."""
    if season.cycle != "day_type":
        return season.period_ms
    noon_ms = start_ms - int(calendar.local(start_ms)) % DAY_MS + DAY_MS // 2
    day = 1
    while day < 8 and calendar.day_type(noon_ms - DAY_MS * day) != calendar.day_type(noon_ms):
        day += 1
    return DAY_MS * day
