"""What each expert says, worked out by hand. What holds of all is in `laws/test_experts.py`."""

from collections.abc import Sequence

import numpy as np
import pytest

from stream_forecaster.calendar import DAY_MS, HOUR_MS, WEEK_MS, Calendar
from stream_forecaster.config import Resolution
from stream_forecaster.experts import Ewma, Expert, LastValue, Population, Seasonal, pool
from stream_forecaster.keys import KeyTable
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

    def __init__(self, calendar: Calendar, step_ms: int, period_ms: int, rate: float) -> None:
        table = _table()
        resolution = Resolution.model_validate(
            {"step": f"{step_ms // 1000}s", "context": 10, "horizon": 3}
        )
        self.window = Window(table, calendar, resolution, open_span_ms=0, is_mean=False)
        self.expert = Seasonal(table, calendar, self.window, period_ms, rate)
        self._calendar = calendar

    def tell(self, values: Sequence[float], first: int = 0) -> int:
        """Let the buckets from `first` on close with these values; the last one's index."""
        start_ms = int(self._calendar.start(first, self.window.step_ms))
        self.window.begin(start_ms)
        for index, value in enumerate(values, first):
            start = self._calendar.start(np.array([index]), self.window.step_ms)
            self.window.absorb(np.array([0]), start, np.array([value]))
            self.expert.learn(index, self.window.close())
        return first + len(values) - 1


def test_the_last_value_passes_over_what_is_missing() -> None:
    """A bucket without events, where means are taken, changes nothing."""
    expert = LastValue(_table(), "x")
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
    season = _Season(calendar, HOUR_MS, DAY_MS, 0.15)
    hours = first + np.arange(24)
    wall_hour = calendar.phase(calendar.start(hours, HOUR_MS), DAY_MS, HOUR_MS)
    index = season.tell(wall_hour.astype(float).tolist(), first)
    ahead = np.arange(1, 73)  # over the change of the clocks on 29 March
    expected = calendar.phase(calendar.start(index + ahead, HOUR_MS), DAY_MS, HOUR_MS)
    assert season.expert.predict(np.s_[:], index, ahead)[0].tolist() == expected.tolist()
    assert (np.diff(expected) % 24 == 2).any()  # the clocks did change


def test_a_season_moves_towards_what_comes() -> None:
    """A fifteenth hundredth of the way at each visit."""
    season = _Season(Calendar("UTC"), HOUR_MS, DAY_MS, 0.15)
    index = season.tell([10.0] * 24 + [20.0] * 24)
    said = season.expert.predict(np.s_[:], index, _SOON)[0]
    np.testing.assert_allclose(said, 11.5, rtol=1e-6)


def test_a_wide_phase_begins_as_a_plain_mean() -> None:
    """An hour of minutes: what its first minute happened to be has no more say than the others."""
    season = _Season(Calendar("UTC"), 60_000, DAY_MS, 0.15)
    season.tell([60.0, *([0.0] * 59), 7.0])
    said = season.expert.predict(np.s_[:], 60, np.array([1, 24 * 60 - 60]))[0]
    np.testing.assert_allclose(said, [7.0, 1.0], rtol=1e-5)


def test_a_phase_never_seen_has_no_opinion() -> None:
    """Honest when cold."""
    season = _Season(Calendar("UTC"), DAY_MS, WEEK_MS, 0.25)
    index = season.tell([1.0, 2.0, 3.0])
    said = season.expert.predict(np.s_[:], index, np.arange(1, 8))[0]
    assert np.isnan(said[:4]).all()
    assert said[4:].tolist() == [1.0, 2.0, 3.0]


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
        ("1m", {"seasonal_day", "seasonal_week"}),
        ("1h", {"seasonal_day", "seasonal_week"}),
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
    assert {name for name in names if name.startswith("seasonal")} == seasons
