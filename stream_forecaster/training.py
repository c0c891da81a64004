"""The commands that train the network before it serves: progress, report, model card.

`pretrain` makes the weights in the wheel, `fit` adapts weights to a history.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from stream_forecaster import __version__
from stream_forecaster.config import Settings, without_passwords
from stream_forecaster.edge.files import read_events, refuse_to_overwrite, total_bytes
from stream_forecaster.edge.weights_file import read_weights, require_writable, write_weights
from stream_forecaster.fit import Fitting, History, Lessons
from stream_forecaster.pretrain import STEPS_MS, Pretraining
from stream_forecaster.weights import Weights, shipped
from stream_forecaster.worth import Worth, score

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
_HISTORY_DATA = "A history of events of whoever ran `fit`, beside what the weights begun with saw."
_HISTORY_LIMITS = (
    "Adapted to one history, at its resolutions; what it is worth was measured on the last part of "
    "that history, which was not trained on but chose the pass that was kept, so the figures are "
    "slightly kind. A resolution without samples there is as it was begun with, beside encoders "
    "that have moved."
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
        ConfigError: there is no folder for `out`.
        StoreUnusable: `out` or `begin_with` cannot be written or read.
        WeightsMismatch: `begin_with` is of another architecture.
    """
    begin_s = time.monotonic()
    require_writable(out)
    told = Console(stderr=True)
    training = Pretraining(
        seed, steps=steps, begin_with=read_weights(begin_with) if begin_with else None
    )
    with _progress(told, "steps", steps) as speak:
        for now in training.run():
            trained = f"world {now.worlds}, loss {now.loss:.3f}, best pinball {now.best:.4f}"
            speak(now.steps, trained if now.steps else f"world {now.worlds} is set aside")
    card = {
        "data": _DATA,
        "limits": _LIMITS,
        "seed": seed,
        "steps": steps,
        "begun_with": begin_with or "random weights",
        "version": __version__,
        "minutes": _minutes_since(begin_s),
        "worth": [_as_json(*pair) for pair in zip(STEPS_MS, training.report, strict=True)],
    }
    write_weights(out, training.weights(card))
    console.print(_table("On worlds set aside", STEPS_MS, {"": training.report}))
    console.print(f"{out}: {steps:,} steps in {card['minutes']} minutes", markup=False)
    return 0


def fit(  # noqa: PLR0913  (one parameter for each option of the command)
    settings: Settings,
    paths: Sequence[str],
    out: str,
    *,
    passes: int,
    partitions: int = 1,
    as_json: bool = False,
    console: Console,
) -> int:
    """Adapt the network to a history of events and write its weights to `out`.

    Where no pass over the history makes it better on the history's last part, `out` holds the
    weights begun with, and the report says so: it can be deployed either way, and is at least as
    good as what there was. Their shares in the fusion are measured on the history all the same.

    Args:
        settings: all of them; `model.weights` are begun with.
        paths: events files, "-" for standard input.
        out: a file or any fsspec URL.
        passes: over the samples of the history, at most.
        partitions: over how many the events are spread by key, as Kafka's producer does.
        as_json: print one JSON object instead of tables.
        console: standard output. Progress goes to standard error.

    Returns:
        the exit code.

    Raises:
        ConfigError: a file cannot be read, there is no folder for `out`, too little history, or no
            network to fit.
        StoreUnusable: `out` or `model.weights` cannot be written or read.
        WeightsMismatch: `model.weights` are of another architecture.
    """
    begin_s = time.monotonic()
    refuse_to_overwrite(out, paths)
    require_writable(out)
    begun_with = read_weights(settings.model.weights) or shipped()
    history = History(settings, begun_with, partitions=partitions)
    told = Console(stderr=True)
    _hear(history, settings, paths, partitions, told)
    lessons = history.lessons()
    fitting = Fitting(settings, begun_with, lessons)
    with _progress(told, "passes", passes) as speak:
        for now in fitting.run(passes):
            line = f"loss {now.loss:.3f}, later pinball {now.score:.4f}, best {now.best:.4f}"
            speak(now.passes, line)
    report = _report(settings, history, lessons, fitting)
    report["minutes"] = _minutes_since(begin_s)
    write_weights(out, _with_card(fitting, settings, report))
    if as_json:
        text = json.dumps({"weights": without_passwords(out), **report}, allow_nan=False)
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    else:
        _print_fit(console, settings, without_passwords(out), report, fitting)
    return 0


def _hear(
    history: History, settings: Settings, paths: Sequence[str], partitions: int, told: Console
) -> None:
    """The one pass of the engine over the events files."""
    total, read_bytes = total_bytes(paths), 0

    def advance(count: int) -> None:
        nonlocal read_bytes
        read_bytes += count

    blocks = read_events(paths, settings.input, partitions=partitions, advance=advance)
    with _progress(told, "MB", None if total is None else total / 1e6) as speak:
        for records in blocks:
            history.hear(records)
            speak(read_bytes / 1e6, f"{history.events:,} events")


def _report(
    settings: Settings, history: History, lessons: Lessons, fitting: Fitting
) -> dict[str, Any]:
    """What came of it, as JSON has it: for the card, `--json` and the tables."""
    rows = zip(settings.resolutions, lessons.taught, fitting.before, fitting.after, strict=True)
    return {
        "is_better": fitting.is_better,
        "pinball_ratio_before": round(score(fitting.before), 4),
        "pinball_ratio_after": round(score(fitting.after), 4),
        "passes": fitting.passes,
        "best_pass": fitting.best_pass,
        "steps": fitting.steps,
        "events": history.events,
        "keys": history.keys,
        "history": {
            name: datetime.fromtimestamp(time_ms / 1000, UTC).isoformat()
            for name, time_ms in (
                ("begin", lessons.begin_ms),
                ("split", lessons.split_ms),
                ("end", lessons.end_ms),
            )
        },
        "resolutions": [
            {
                "step_s": resolution.step_ms // 1000,
                "trained_on": len(taught.labelled),
                "before": _as_json(resolution.step_ms, before),
                "after": _as_json(resolution.step_ms, after),
            }
            for resolution, taught, before, after in rows
        ],
    }


def _with_card(fitting: Fitting, settings: Settings, report: dict[str, Any]) -> Weights:
    return fitting.weights(
        {
            "data": _HISTORY_DATA,
            "limits": _HISTORY_LIMITS,
            "seed": settings.model.seed,
            "begun_with": settings.model.weights or "those that ship",
            "version": __version__,
            **report,
        }
    )


def _print_fit(
    console: Console, settings: Settings, out: str, report: dict[str, Any], fitting: Fitting
) -> None:
    steps_ms = [resolution.step_ms for resolution in settings.resolutions]
    title = f"On the history from {report['history']['split']} on"
    console.print(_table(title, steps_ms, {"before": fitting.before, "after": fitting.after}))
    ratios = f"{report['pinball_ratio_before']} before, {report['pinball_ratio_after']} after"
    verdict = (
        f"Better than what it began with: {ratios}, after pass {fitting.best_pass}."
        if fitting.is_better
        else "Nothing was learned that is better on that part: the weights are those it began "
        "with, and only their shares are new."
    )
    effort = f"{report['passes']} passes, {report['steps']:,} steps, {report['minutes']} minutes"
    lines = [
        verdict,
        f"{report['events']:,} events of {report['keys']:,} keys, {effort}",
        f"weights: {out}",
    ]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _progress(
    told: Console, unit: str, total: float | None
) -> Iterator[Callable[[float, str], None]]:
    """Show how far work is: a bar on a terminal, else a line now and then.

    What it yields is told how much of `total` is done, and a few words.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeRemainingColumn(),
    )
    spoke_s = time.monotonic()
    of = "" if total is None else f"/{total:,.0f}"
    with Progress(*columns, console=told, disable=not told.is_terminal) as bar:
        task = bar.add_task("", total=total, count="")

        def speak(done: float, words: str) -> None:
            nonlocal spoke_s
            count = f"{done:,.0f}{of} {unit}"
            bar.update(task, completed=done, description=words, count=count)
            if not told.is_terminal and time.monotonic() - spoke_s > _SPEAK_EVERY_S:
                spoke_s = time.monotonic()
                told.print(f"{count}, {words}", highlight=False)

        yield speak


def _as_json(step_ms: int, worth: Worth) -> dict[str, Any]:
    return {
        "step_s": step_ms // 1000,
        "samples": worth.samples,
        "pinball_ratio": _rounded(worth.pinball),
        "absolute_mse_ratio": _rounded(worth.absolute),
        "residual_mse_ratio": _rounded(worth.residual),
        "shares": worth.shares.round(3).tolist(),
    }


def _rounded(ratio: float) -> float | None:
    return None if math.isnan(ratio) else round(ratio, 4)


def _table(what: str, steps_ms: Sequence[int], reports: dict[str, Sequence[Worth]]) -> Table:
    """A row for each step and report (name -> worth at each step)."""
    caption = "Pinball loss and squared errors are over the pool's: below 1 is better"
    table = Table(title=what, caption=caption)
    for column in ("step", "", "samples", "pinball", "absolute", "residual", "shares"):
        table.add_column(column, justify="right", no_wrap=True)
    for i, step_ms in enumerate(steps_ms):
        for name, report in reports.items():
            row = _as_json(step_ms, report[i])
            ratios = (row["pinball_ratio"], row["absolute_mse_ratio"], row["residual_mse_ratio"])
            cells = ["-" if ratio is None else f"{ratio:.4f}" for ratio in ratios]
            shares = " / ".join(f"{share:.2f}" for share in row["shares"])
            table.add_row(f"{row['step_s']} s", name, f"{row['samples']:,}", *cells, shares)
    return table


def _minutes_since(begin_s: float) -> float:
    return round((time.monotonic() - begin_s) / 60, 1)
