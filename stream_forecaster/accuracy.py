"""The accuracy table: what a pass scored, for people and for programs."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stream_forecaster.calendar import DAY_MS, HOUR_MS
from stream_forecaster.config import Settings
from stream_forecaster.scoring import NAIVE, PUBLISHED, Score

_LABELS = {
    PUBLISHED: "published forecast",
    NAIVE: "last value (naive)",
    "moving_average": "moving average",
    "ewma_fast": "EWMA, fast",
    "ewma_medium": "EWMA, medium",
    "ewma_slow": "EWMA, slow",
    "seasonal_day": "same time of day",
    "seasonal_week": "same time of week",
    "population": "population",
    "ma_3": "mean of the last three",
    "day_type_fast": "same hour, type of day",
    "day_type_slow": "the same, slow",
    "ridge": "ridge regression",
    "ridge_long": "the same, long lags",
    "ridge_key": "the same, per key",
    "dlinear": "DLinear, online",
    "lstm": "LSTM",
    "lstm_residual": "LSTM on the pool",
}
_UNITS = ((DAY_MS, "day"), (HOUR_MS, "hour"), (60_000, "minute"), (1_000, "second"))
_LEGEND = """\
Every forecast was made before its truth was read, and scored when that came.
  MAE    mean absolute error: how far off, in units of the value per bucket
  MSE    mean squared error: one large miss weighs more than many small ones
  MASE   MAE relative to that of the last value one bucket ahead: 1 is no better
  WAPE   all errors over all volume: 0.2 is 20 % off
  WQL    like WAPE, for the whole range forecast and not only its middle
  skill  how much smaller the error is than the last value's: 1 is perfect
* the smallest MAE at its horizon. EWMA: a mean that forgets exponentially.
population: the mean of all keys that have been there as long."""


def show(console: Console, settings: Settings, scores: Sequence[Score]) -> None:
    """Print one table per resolution, a summary of each, and what the columns mean."""
    if not any(score.count.any() for score in scores):
        console.print("No forecast has come due: the events span too little time.")
        return
    for resolution, score in zip(settings.resolutions, scores, strict=True):
        if score.count.any():
            console.print(_table(resolution.step_ms, score))
    console.print(_LEGEND, markup=False, highlight=False, soft_wrap=True)
    console.print()
    for resolution, score in zip(settings.resolutions, scores, strict=True):
        line = f"{spelled(resolution.step_ms)}: {summary(score)}"
        console.print(line, highlight=False, soft_wrap=True)


def summary(score: Score) -> str:
    """Skill and coverage in a line."""
    landed = int(score.count.sum())
    if not landed:
        return "no forecast has come due yet"
    coverage = ", ".join(
        f"{100 * ratio:.1f} % within the {100 * level:g} % interval"
        for level, ratio in sorted(score.coverage().items())
    )
    skill = score.skill()
    against = "" if math.isnan(skill) else f"skill {skill:+.2f} against the last value, "
    return f"{against}{coverage}; {landed:,} forecasts scored"


def spelled(step_ms: int) -> str:
    """A step in words.

    >>> spelled(60_000), spelled(300_000), spelled(86_400_000)
    ('1 minute', '5 minutes', '1 day')
    """
    unit_ms, unit = next((u for u in _UNITS if step_ms % u[0] == 0), (1, "millisecond"))
    count = step_ms // unit_ms
    return f"{count} {unit}{'s' * (count > 1)}"


def as_json(settings: Settings, scores: Sequence[Score]) -> list[dict[str, Any]]:
    """The same numbers for a program; null where there is none."""
    return [
        {
            "step_s": resolution.step_ms // 1000,
            "landed": int(score.count.sum()),
            "skill": _finite(score.skill()),
            "coverage": {f"{level:g}": _finite(r) for level, r in score.coverage().items()},
            "horizons": [_horizon(score, g) for g in range(len(score.horizons))],
        }
        for resolution, score in zip(settings.resolutions, scores, strict=True)
    ]


def _horizon(score: Score, bucket: int) -> dict[str, Any]:
    return {
        "horizon": score.horizons[bucket],
        "landed": int(score.count[bucket]),
        "wql": _finite(score.wql()[bucket]),
        "forecasters": {
            name: {
                "mae": _finite(score.mae(name)[bucket]),
                "mse": _finite(score.mse(name)[bucket]),
                "mase": _finite(score.mase(name)[bucket]),
                "wape": _finite(score.wape(name)[bucket]),
            }
            for name in score.forecasters
        },
    }


def _table(step_ms: int, score: Score) -> Table:
    title = f"Buckets of {spelled(step_ms)}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("ahead", "forecaster"):
        table.add_column(name, no_wrap=True)
    for name in ("MAE", "MSE", "MASE", "WAPE", "WQL"):
        table.add_column(name, justify="right", no_wrap=True)
    for bucket, horizon in enumerate(score.horizons):
        if score.count[bucket]:
            for i, row in enumerate(_rows(score, bucket)):
                ahead = spelled(step_ms * horizon) if i == 0 else ""
                style = "bold" if i == 0 else ""
                table.add_row(ahead, *map(Text, row), style=style)
            table.add_section()
    return table


def _rows(score: Score, bucket: int) -> Iterator[tuple[str, ...]]:
    def at(values: NDArray[np.float64]) -> str:
        value = float(values[bucket])
        if math.isnan(value):
            return ""
        return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"

    errors = {name: float(score.mae(name)[bucket]) for name in score.forecasters}
    best = min(errors, key=errors.__getitem__)
    for name in score.forecasters:
        yield (
            _LABELS.get(name, name),
            at(score.mae(name)) + ("*" if name == best else " "),
            at(score.mse(name)),
            at(score.mase(name)),
            at(score.wape(name)),
            at(score.wql()) if name == PUBLISHED else "",
        )


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
