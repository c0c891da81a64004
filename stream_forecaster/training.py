"""The command that makes the weights in the wheel: progress, report, model card."""

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from stream_forecaster import __version__
from stream_forecaster.edge.weights_file import read_weights, require_writable, write_weights
from stream_forecaster.pretrain import STEPS_MS, Pretraining
from stream_forecaster.worth import Worth

_SPEAK_EVERY_S = 30.0
_DATA = (
    "Synthetic series only (stream_forecaster.series), drawn from the seed. No real series went "
    "in; the shares of their shapes were set while looking at summary statistics of public bike "
    "trips, departures, mentions and transformer loads, which accuracy is also measured on."
)
_LIMITS = (
    "Trained at steps of 1 minute, 15 minutes to 2 hours, and 1 day, at horizons up to 30, 48 and "
    "14 steps. The network corrects a pool of experts and is worth nothing without it. Worlds last "
    "7 to 60 days, so it has seen young pools only: an old one has less left to correct."
)


def pretrain(out: str, *, steps: int, seed: int, begin_with: str | None, console: Console) -> int:
    """Train the network on synthetic worlds and write its weights to `out`.

    Args:
        out: a file or any fsspec URL.
        steps: of training; the same steps and seed give the same weights.
        seed: of the worlds and of everything else.
        begin_with: weights to go on from; None: random ones.
        console: standard output. Progress goes to standard error.

    Returns:
        the exit code.

    Raises:
        StoreUnusable: `out` or `begin_with` cannot be written or read.
        WeightsMismatch: `begin_with` is of another architecture.
    """
    begin_s = time.monotonic()
    require_writable(out)
    told = Console(stderr=True)
    told.print("Setting worlds aside to measure on ...")
    training = Pretraining(
        seed, steps=steps, begin_with=read_weights(begin_with) if begin_with else None
    )
    _train(training, steps, told)
    report = training.report()
    card = {
        "data": _DATA,
        "limits": _LIMITS,
        "seed": seed,
        "steps": steps,
        "begun_with": begin_with or "random weights",
        "version": __version__,
        "minutes": round((time.monotonic() - begin_s) / 60, 1),
        "worth": _as_json(STEPS_MS, report),
    }
    write_weights(out, training.weights(report, card))
    console.print(_table(report))
    console.print(f"{out}: {steps:,} steps in {card['minutes']} minutes", markup=False)
    return 0


def _train(training: Pretraining, steps: int, told: Console) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps"),
        TimeRemainingColumn(),
    )
    spoke_s = time.monotonic()
    with Progress(*columns, console=told, disable=not told.is_terminal) as bar:
        task = bar.add_task("training", total=steps)
        for now in training.run():
            line = f"world {now.worlds + 1}, loss {now.loss:.3f}"
            bar.update(task, completed=now.steps, description=line)
            if not told.is_terminal and time.monotonic() - spoke_s > _SPEAK_EVERY_S:
                spoke_s = time.monotonic()
                told.print(f"{now.steps:,} of {steps:,} steps, {line}", highlight=False)


def _as_json(steps_ms: Sequence[int], report: Sequence[Worth]) -> list[dict[str, Any]]:
    return [
        {
            "step_s": step_ms // 1000,
            "samples": worth.samples,
            "pinball_ratio": round(worth.pinball, 4),
            "absolute_mse_ratio": round(worth.absolute, 4),
            "residual_mse_ratio": round(worth.residual, 4),
            "shares": worth.shares.round(3).tolist(),
        }
        for step_ms, worth in zip(steps_ms, report, strict=True)
    ]


def _table(report: Sequence[Worth]) -> Table:
    table = Table(title="On worlds set aside, against the pool alone (below 1 is better)")
    for column in ("step", "samples", "pinball", "MSE, absolute", "MSE, residual", "shares"):
        table.add_column(column, justify="right")
    for row in _as_json(STEPS_MS, report):
        ratios = (row["pinball_ratio"], row["absolute_mse_ratio"], row["residual_mse_ratio"])
        shares = " / ".join(f"{share:.2f}" for share in row["shares"])
        table.add_row(f"{row['step_s']} s", f"{row['samples']:,}", *map(str, ratios), shares)
    return table
