import io
import math
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from stream_forecaster import accuracy
from stream_forecaster.config import parse
from stream_forecaster.scoring import NAIVE, POOL, PUBLISHED, Score

SETTINGS = parse({"resolutions": [{"step": "5m", "context": 4, "horizon": 2}]})
FORECASTERS = (PUBLISHED, NAIVE, "moving_average", POOL, "seasonal_naive_week", "lstm")
NAN = math.nan


def score(**published: Any) -> Score:
    """Four truths, 10 each, one bucket ahead; nothing has landed two buckets ahead."""
    made = Score.zero(FORECASTERS, (1, 2), (0.1, 0.5, 0.9))
    truth = np.full(4, 10.0)
    said = (published.get("off", 1.0), 2.0, -3.0, 1.5, NAN, -4.0)
    points = np.stack([truth + off for off in said])
    points[-1, 0] = NAN
    quantiles = np.array([[9.0, 10, 11]] * 3 + [[11.0, 12, 13]])
    made.land(0, truth, points, quantiles)
    return made


def shown(made: Score, width: int = 90, *, experts: bool = False) -> str:
    out = io.StringIO()
    accuracy.show(Console(file=out, width=width), SETTINGS, [made], experts=experts)
    return out.getvalue()


def row(text: str, name: str) -> list[str]:
    """The numbers of a row of the table."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"   {name}  "))
    return line.partition(name)[2].split()


def test_rows_hold_what_the_scores_say() -> None:
    """MAE, MSE, MASE and WAPE of each forecaster; WQL and coverage of the published alone."""
    text = shown(score(), experts=True)

    # mean pinball losses: .1, 0, .1 three times, and .9, 1, .3 for the one that missed
    wql = 2 * (3 * 0.2 + 2.2) / 3 / 40
    numbers = ["1.000*", "1.000", "0.5000", "0.1000", f"{wql:#.4g}", "75.0"]
    assert row(text, "pool + network") == numbers
    assert row(text, "pool") == ["1.500", "2.250", "0.7500", "0.1500"]
    assert row(text, "last value") == ["2.000", "4.000", "1.000", "0.2000"]
    assert row(text, "moving average") == ["3.000", "9.000", "1.500", "0.3000"]
    # on three of four; on the other as the last value
    assert row(text, "LSTM") == ["3.500", "13.00", "1.750", "0.3500", "75"]
    assert "5 minutes ahead" in text
    assert "10 minutes" not in text  # nothing landed there


def test_who_never_spoke_is_left_out() -> None:
    """Its errors would be the last value's."""
    assert "seasonal" not in shown(score(), experts=True).partition("Every forecast")[0]
    (resolution,) = accuracy.as_json(SETTINGS, [score()])
    week = resolution["horizons"][0]["forecasters"]["seasonal_naive_week"]
    assert week == {"mae": None, "mse": None, "mase": None, "wape": None, "spoke": 0.0}


def test_who_speaks_of_the_near_only_has_no_row_for_the_far() -> None:
    """As a week does whose window does not reach back two of them."""
    made = score()
    points = np.full((len(FORECASTERS), 1), 9.0)
    points[FORECASTERS.index("lstm")] = NAN
    made.land(1, np.array([10.0]), points, np.full((1, 3), 9.0))

    near, far = shown(made, experts=True).split("10 minutes ahead")
    assert "LSTM" in near
    assert "LSTM" not in far.partition("Every forecast")[0]


def test_experts_are_shown_where_asked_for() -> None:
    """Else only what every report compares."""
    assert "moving average" not in shown(score())


@pytest.mark.parametrize("width", [40, 60, 79, 100])
def test_no_number_is_cut(width: int) -> None:
    """In a file or a pipe the table is as wide as it has to be."""
    assert row(shown(score(), width), "pool + network") == row(shown(score()), "pool + network")


def test_large_numbers_are_spelled_out() -> None:
    """Nobody reads 1.2e+04 at a glance."""
    assert row(shown(score(off=1_234.0)), "pool + network")[:2] == ["1,234", "1,522,756"]


def test_the_asterisk_is_at_the_smallest_error() -> None:
    """Also where that is not the published forecast: the table does not flatter."""
    text = shown(score(off=5.0))

    assert row(text, "pool")[0] == "1.500*"
    assert row(text, "pool + network")[0] == "5.000"


def test_summary_compares_with_the_last_value() -> None:
    """Skill and coverage in a line."""
    assert accuracy.summary(score()) == (
        "skill +0.50 against the last value, 75.0 % within the 80 % interval; 4 forecasts scored"
    )


def test_a_season_that_the_context_does_not_hold_is_said() -> None:
    """With what it would take, which for a week of minutes is more than there can be."""
    steps = [("1m", 60), ("1h", 48), ("1d", 28)]
    rows = [{"step": step, "context": context, "horizon": 2} for step, context in steps]
    settings, out = parse({"resolutions": rows}), io.StringIO()
    accuracy.show(Console(file=out, width=90), settings, [score()] * 3)

    *_, last = out.getvalue().splitlines()
    assert last == (
        "No seasonal naive where the context does not hold its season: 1 minute, day needs 1,440, "
        "week needs 10,080 (too long); 1 hour, week needs 168."
    )
    assert [found["context_needed"] for found in accuracy.as_json(settings, [score()] * 3)] == [
        {"seasonal_naive_day": 1440, "seasonal_naive_week": 10080},
        {"seasonal_naive_week": 168},
        {},
    ]


def test_nothing_is_said_of_seasons_that_are_there() -> None:
    """Or that are no season of the step."""
    settings, out = (
        parse({"resolutions": [{"step": "1d", "context": 7, "horizon": 2}]}),
        io.StringIO(),
    )
    accuracy.show(Console(file=out, width=90), settings, [score()])

    assert "seasonal naive" not in out.getvalue().lower()


def test_nothing_scored_is_said() -> None:
    """Neither a table nor NaN."""
    nothing = Score.zero(FORECASTERS, (1, 2), (0.1, 0.5, 0.9))

    assert accuracy.summary(nothing) == "no forecast has come due yet"
    assert "No forecast has come due" in shown(nothing)


def test_json_has_null_where_nothing_landed() -> None:
    """Two buckets ahead there is no number yet."""
    (resolution,) = accuracy.as_json(SETTINGS, [score()])

    near, far = resolution["horizons"]
    assert resolution["step_s"] == 300
    assert (near["landed"], near["forecasters"]["moving_average"]["mae"]) == (4, 3.0)
    assert near["forecasters"]["lstm"]["spoke"] == 0.75
    assert near["coverage"] == {"0.8": 0.75}
    assert far["coverage"] == {"0.8": None}
    assert (far["landed"], far["wql"], far["forecasters"][NAIVE]["mae"]) == (0, None, None)


@pytest.mark.parametrize(
    ("step_ms", "words"),
    [(1_000, "1 second"), (90_000, "90 seconds"), (7_200_000, "2 hours"), (86_400_000, "1 day")],
)
def test_steps_in_words(step_ms: int, words: str) -> None:
    """The largest unit that leaves no rest."""
    assert accuracy.spelled(step_ms) == words
