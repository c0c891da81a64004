"""Which rows a table has, in which order, and what they are called."""

import numpy as np
import pytest

from stream_forecaster.calendar import Calendar
from stream_forecaster.config import parse
from stream_forecaster.labels import label, rows
from stream_forecaster.scoring import Score
from stream_forecaster.shard import Shard

ORDER = [
    "last value",
    "MA(3)",
    "EWMA, fast",
    "EWMA, medium",
    "EWMA, slow",
    "seasonal naive day",
    "seasonal naive week",
    "DLinear online",
    "pool",
    "pool + network",
]


def hourly(*, network: bool = True, silent: tuple[str, ...] = ()) -> Score:
    """A score of an hour's forecasters, on which all have spoken but some."""
    config = parse(
        {
            "resolutions": [{"step": "1h", "context": 168, "horizon": 24}],
            "model": {"network": network, "river": ["HoltWinters"]},
        }
    )
    score = Shard(config, Calendar("UTC"), 0, 0).pools[0].no_score()
    points = np.ones((len(score.forecasters), 1))
    for name in silent:
        points[score.forecasters.index(name)] = np.nan
    score.land(0, np.ones(1), points, np.ones((1, len(score.levels))))
    return score


def test_the_rows_that_every_report_has() -> None:
    """From the last value to what is published, each with what it adds to the one above."""
    assert list(rows(hourly(), experts=False).values()) == ORDER


def test_the_experts_stand_below() -> None:
    """All forecasters, each with a label of its own; those of river last."""
    score = hourly()
    shown = rows(score, experts=True)

    assert list(shown.values())[: len(ORDER)] == ORDER
    assert set(shown) == set(score.forecasters)
    assert len(set(shown.values())) == len(shown)
    assert list(shown.values())[-1] == "river HoltWinters"
    assert all("_" not in said for said in shown.values())
    assert all(label(name) == said for name, said in shown.items())


def test_without_a_network_the_pool_is_what_is_published() -> None:
    """One row, not two of the same numbers."""
    shown = rows(hourly(network=False), experts=False)

    assert list(shown.values()) == ORDER[:-1]
    assert shown["published"] == "pool"


@pytest.mark.parametrize("silent", ["seasonal_naive_week", "dlinear"])
def test_who_never_spoke_has_no_row(silent: str) -> None:
    """Its numbers would be the last value's."""
    shown = list(rows(hourly(silent=(silent,)), experts=True))

    assert silent not in shown
    assert shown == [name for name in rows(hourly(), experts=True) if name != silent]
