"""Variants of the engine, to be run side by side over the same events: what each part is worth.

The two profiles, and the network in parts: without it, with the weights that it starts from and no
training, with training alone, and with both.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from stream_forecaster import accuracy, tables
from stream_forecaster.config import Model, Settings
from stream_forecaster.passes import Pass
from stream_forecaster.scoring import PUBLISHED, Score
from stream_forecaster.weights import Weights, untrained

_ERRORS = ("MSE", "MAE", "WQL")
_LEGEND = """\
One pass over the same events each; columns as above, * the smallest of each.
  as set        what the settings say: the forecasts that are published
  full, lean    the two profiles of the pool: state per key against accuracy
  pool alone    without the network
  zero-shot     the network starts from its weights and is never trained
  online only   it starts from random weights and learns from this stream alone
  both          it starts from its weights and learns on
A difference of less than 2 % may be noise."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run the engine.

    Attributes:
        names: what it is called; several, if they come to the same.
        settings: all of them.
        weights: that the network starts from; None: those that the settings name.
    """

    names: tuple[str, ...]
    settings: Settings
    weights: Weights | None = None

    def begin(self) -> Pass:
        """A pass of it.

        Raises:
            ConfigError: the weights cannot be read.
        """
        return Pass(self.settings, weights=self.weights)


Run = tuple[Variant, Pass]


def variants(settings: Settings) -> list[Variant]:
    """Those that differ, the one as set first."""
    model = settings.model

    def having(**update: object) -> Settings:
        return settings.model_copy(update={"model": model.model_copy(update=update)})

    random = untrained([r.step_ms for r in settings.resolutions], model.seed)
    every = model.train_every_hops or Model().train_every_hops
    learned = having(network=True, train_every_hops=every)
    wanted = (
        Variant(("as set",), settings),
        Variant(("full profile",), having(profile="full")),
        Variant(("lean profile",), having(profile="lean")),
        Variant(("pool alone",), having(network=False)),
        Variant(("zero-shot",), having(network=True, train_every_hops=0)),
        Variant(("online only",), learned, weights=random),
        Variant(("both",), learned),
    )
    found: dict[tuple[object, ...], Variant] = {}
    for variant in wanted:
        chosen = variant.settings.model
        learns = chosen.network and chosen.train_every_hops
        key = variant.settings.is_lean, chosen.network, variant.weights is None, learns
        same = found.get(key)
        names = (*same.names, *variant.names) if same else variant.names
        kept = same or variant
        found[key] = Variant(names, kept.settings, kept.weights)
    return [*found.values()]


def show(console: Console, settings: Settings, runs: Sequence[Run]) -> None:
    """Print one table of what the variants scored, and one of what they cost."""
    sections: dict[str, list[tables.Row]] = {}
    columns = list(_ERRORS)
    for i, resolution in enumerate(settings.resolutions):
        scores = {_named(variant): past.scores[i] for variant, past in runs}
        first = next(iter(scores.values()))
        columns += [name for name in accuracy.percents(first) if name not in columns]
        for steps in sorted({steps for score in scores.values() for steps in _chosen(score)}):
            ahead = accuracy.spelled(resolution.step_ms * steps)
            heading = f"{ahead} ahead, in buckets of {accuracy.spelled(resolution.step_ms)}"
            sections[heading] = [*_rows(scores, steps)]
    if sections:
        tables.show(console, "Variants side by side", columns, sections, spare=("MAE", "MSE"))
    cost = [tables.Row(_named(variant), _cost(past)) for variant, past in runs]
    tables.show(console, "What they cost", ("bytes per key", "seconds"), {"": cost})
    console.print(_LEGEND, markup=False, highlight=False, soft_wrap=True)
    console.print()


def as_json(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The same for a program, with every horizon and every forecaster."""
    return [
        {
            "names": list(variant.names),
            "seconds": round(past.engine_seconds, 3),
            "state_bytes_per_key": past.counts()["state_bytes_per_key"],
            "resolutions": accuracy.as_json(variant.settings, past.scores),
        }
        for variant, past in runs
    ]


def _chosen(score: Score) -> set[int]:
    """The nearest, a middle and the farthest horizon, in steps, of those at which anything landed.

    The profiles are judged at different ones.
    """
    landed = [score.horizons[bucket] for bucket in np.flatnonzero(score.count).tolist()]
    return {landed[0], landed[len(landed) // 2], landed[-1]} if landed else set()


def _rows(scores: Mapping[str, Score], steps: int) -> Iterator[tables.Row]:
    """What each variant that is judged so many steps ahead published, by its name."""
    judged = {
        name: score.horizons.index(steps)
        for name, score in scores.items()
        if steps in score.horizons
    }
    errors = {
        name: {
            "MSE": float(scores[name].mse(PUBLISHED)[bucket]),
            "MAE": float(scores[name].mae(PUBLISHED)[bucket]),
            "WQL": float(scores[name].wql()[bucket]),
        }
        for name, bucket in judged.items()
    }
    best = {column: min(found[column] for found in errors.values()) for column in _ERRORS}
    for name, found in errors.items():
        cells = accuracy.published_cells(scores[name], judged[name])
        for column, value in found.items():
            cells[column] = tables.number(value) + ("*" if value == best[column] else " ")
        yield tables.Row(name, cells)


def _cost(past: Pass) -> dict[str, str]:
    size = past.counts()["state_bytes_per_key"] or 0
    return {"bytes per key": f"{size:,}", "seconds": f"{past.engine_seconds:,.1f}"}


def _named(variant: Variant) -> str:
    return ", ".join(variant.names)
