"""The accuracy table: what a pass scored, for people and for programs."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from stream_forecaster import labels, tables
from stream_forecaster.baselines import out_of_reach
from stream_forecaster.calendar import DAY_MS, HOUR_MS
from stream_forecaster.config import MOST_CONTEXT, Resolution, Settings
from stream_forecaster.scoring import PUBLISHED, Score, central_intervals

_UNITS = ((DAY_MS, "day"), (HOUR_MS, "hour"), (60_000, "minute"), (1_000, "second"))
_SPARE = ("spoke", "MSE", "WAPE", "MASE")
"""What a narrow terminal does without, first to last."""
_LEGEND = """\
Every forecast was made before its truth was read, and scored when that came.
  MAE    mean absolute error: how far off, in units of the value per bucket
  MSE    mean squared error: one large miss weighs more than many small ones
  MASE   MAE relative to that of the last value one bucket ahead: 1 is no better
  WAPE   all errors over all volume: 0.2 is 20 % off
  WQL    like WAPE, for the whole range forecast and not only its middle; of a
         single number it is the WAPE
  80 %   share of truths within the 80 % interval, in %; the others likewise
  spoke  how often it had an opinion, in %, where not always: else it is scored
         as the last value
  skill  how much smaller the error is than the last value's: 1 is perfect
* the smallest MAE shown at its horizon. In bold: what is published.
EWMA: a mean that forgets exponentially. Pool: the experts without the network."""


def show(
    console: Console, settings: Settings, scores: Sequence[Score], *, experts: bool = False
) -> None:
    """Print one table per resolution, a summary of each, and what the columns mean.

    Args:
        console: where to.
        settings: of the pass.
        scores: per resolution.
        experts: with a row for each expert.
    """
    if not any(score.count.any() for score in scores):
        console.print("No forecast has come due: the events span too little time.")
        return
    for resolution, score in zip(settings.resolutions, scores, strict=True):
        if score.count.any():
            _show(console, resolution.step_ms, score, experts=experts)
    console.print(_LEGEND, markup=False, highlight=False, soft_wrap=True)
    console.print()
    for resolution, score in zip(settings.resolutions, scores, strict=True):
        line = f"{spelled(resolution.step_ms)}: {summary(score)}"
        console.print(line, highlight=False, soft_wrap=True)
    if absent := "; ".join(filter(None, map(_absent, settings.resolutions))):
        line = f"No seasonal naive where the context does not hold its season: {absent}."
        console.print(line, highlight=False, soft_wrap=True)


def _absent(resolution: Resolution) -> str:
    """The seasonal naives that a context is too short for, and which context each would need."""
    found = [
        f"{labels.label(name).rpartition(' ')[2]} needs {least:,}"
        + (" (too long)" if least > MOST_CONTEXT else "")
        for name, least in out_of_reach(resolution.step_ms, resolution.context).items()
    ]
    return f"{spelled(resolution.step_ms)}, {', '.join(found)}" if found else ""


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
    """The same numbers for a program; null where there is none.

    `context_needed`: by the names of the seasonal naives that are absent for want of it.
    """
    return [
        {
            "step_s": resolution.step_ms // 1000,
            "landed": int(score.count.sum()),
            "context_needed": out_of_reach(resolution.step_ms, resolution.context),
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
        "coverage": {f"{k:g}": _finite(r[bucket]) for k, r in score.coverages().items()},
        "forecasters": {name: _forecaster(score, name, bucket) for name in score.forecasters},
    }


def _forecaster(score: Score, name: str, bucket: int) -> dict[str, float | None]:
    """Nothing but that it never spoke of one who never did: the errors are another's."""
    spoke = float(score.spoke(name)[bucket])
    measures = {"mae": score.mae, "mse": score.mse, "mase": score.mase, "wape": score.wape}
    errors = {key: float(of(name)[bucket]) if spoke else math.nan for key, of in measures.items()}
    return {key: _finite(value) for key, value in (errors | {"spoke": spoke}).items()}


def _show(console: Console, step_ms: int, score: Score, *, experts: bool) -> None:
    sections = {
        f"{spelled(step_ms * horizon)} ahead": [*_rows(score, bucket, experts=experts)]
        for bucket, horizon in enumerate(score.horizons)
        if score.count[bucket]
    }
    columns = ("MAE", "MSE", "MASE", "WAPE", "WQL", *percents(score), "spoke")
    title = f"Buckets of {spelled(step_ms)}"
    tables.show(console, title, columns, sections, spare=(*_SPARE, *percents(score), "WQL"))


def _rows(score: Score, bucket: int, *, experts: bool) -> Iterator[tables.Row]:
    names = {
        name: label
        for name, label in labels.rows(score, experts=experts).items()
        if score.spoke(name)[bucket]
    }
    best = min(names, key=lambda name: float(score.mae(name)[bucket]))
    for name, label in names.items():
        spoke = f"{100 * score.spoke(name)[bucket]:.0f}"
        cells = {
            "MAE": tables.number(score.mae(name)[bucket]) + ("*" if name == best else " "),
            "MSE": tables.number(score.mse(name)[bucket]),
            "MASE": tables.number(score.mase(name)[bucket]),
            "WAPE": tables.number(score.wape(name)[bucket]),
            "spoke": "" if spoke == "100" else spoke,
        }
        if name == PUBLISHED:
            cells |= published_cells(score, bucket)
        yield tables.Row(label, cells, style="bold" if name == PUBLISHED else "")


def published_cells(score: Score, bucket: int) -> dict[str, str]:
    """What only a forecast with quantiles has: WQL and coverage."""
    coverages = score.coverages()
    covered = {name: float(coverages[level][bucket]) for name, level in percents(score).items()}
    shares = {name: f"{100 * share:.1f}" for name, share in covered.items()}
    return {"WQL": tables.number(score.wql()[bucket]), **shares}


def percents(score: Score) -> dict[str, float]:
    """The two widest central intervals by column, the narrower first: 80 and 95 % by default."""
    widest = sorted(central_intervals(score.levels))[-2:]
    return {f"{100 * level:g} %": level for level in widest}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
