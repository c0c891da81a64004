import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from stream_forecaster import accuracy
from stream_forecaster.config import parse
from stream_forecaster.scoring import NAIVE, PUBLISHED, Score

SETTINGS = parse({"resolutions": [{"step": "5m", "context": 4, "horizon": 2}]})
FORECASTERS = (PUBLISHED, NAIVE, "moving_average")


def score(**published: Any) -> Score:
    """Four truths, 10 each, one bucket ahead; nothing has landed two buckets ahead."""
    made = Score.zero(FORECASTERS, (1, 2), (0.1, 0.5, 0.9))
    truth = np.full(4, 10.0)
    points = np.stack([truth + published.get("off", 1.0), truth + 2.0, truth - 3.0])
    quantiles = np.array([[9.0, 10, 11]] * 3 + [[11.0, 12, 13]])
    made.land(0, truth, points, quantiles)
    return made


def shown(made: Score) -> str:
    out = io.StringIO()
    accuracy.show(Console(file=out, width=90), SETTINGS, [made])
    return out.getvalue()


def row(text: str, name: str) -> list[str]:
    """The numbers of a row of the table."""
    (line,) = (line for line in text.splitlines() if name in line and ":" not in line)
    return line.partition(name)[2].split()


def test_rows_hold_what_the_scores_say() -> None:
    """MAE, MSE, MASE and WAPE of each forecaster; WQL of the published quantiles alone."""
    text = shown(score())

    # mean pinball losses: .1, 0, .1 three times, and .9, 1, .3 for the one that missed
    wql = 2 * (3 * 0.2 + 2.2) / 3 / 40
    assert row(text, "published forecast") == ["1*", "1", "0.5", "0.1", f"{wql:.4g}"]
    assert row(text, "last value (naive)") == ["2", "4", "1", "0.2"]
    assert row(text, "moving average") == ["3", "9", "1.5", "0.3"]
    assert "5 minutes" in text
    assert "10 minutes" not in text  # nothing landed there


def test_large_numbers_are_spelled_out() -> None:
    """Nobody reads 1.2e+04 at a glance."""
    assert row(shown(score(off=1_234.0)), "published forecast")[:2] == ["1,234", "1,522,756"]


def test_the_asterisk_is_at_the_smallest_error() -> None:
    """Also where that is not the published forecast: the table does not flatter."""
    text = shown(score(off=5.0))

    assert row(text, "last value (naive)")[0] == "2*"
    assert row(text, "published forecast")[0] == "5"


def test_summary_compares_with_the_last_value() -> None:
    """Skill and coverage in a line."""
    assert accuracy.summary(score()) == (
        "skill +0.50 against the last value, 75.0 % within the 80 % interval; 4 forecasts scored"
    )


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
    assert (far["landed"], far["wql"], far["forecasters"][NAIVE]["mae"]) == (0, None, None)


@pytest.mark.parametrize(
    ("step_ms", "words"),
    [(1_000, "1 second"), (90_000, "90 seconds"), (7_200_000, "2 hours"), (86_400_000, "1 day")],
)
def test_steps_in_words(step_ms: int, words: str) -> None:
    """The largest unit that leaves no rest."""
    assert accuracy.spelled(step_ms) == words
