"""Backtest and replay: the engine over events files, as `run` has it over the log.

Both are one pass. Each partition's records go through a shard of its own; what the shards forecast
is what `run` would publish, byte for byte. A backtest adds up the scores that land on the way: they
are fair, as every forecast was made before its truth was read. A replay compares the forecasts with
earlier ones (`recording` says by which rule).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from stream_forecaster import accuracy, variants
from stream_forecaster.config import Settings
from stream_forecaster.edge.files import refuse_to_overwrite
from stream_forecaster.passes import Pass
from stream_forecaster.recording import Comparison, Recording
from stream_forecaster.report import Report


def backtest(  # noqa: PLR0913  (one parameter for each option of the command)
    settings: Settings,
    paths: Sequence[str],
    *,
    partitions: int = 1,
    forecasts: str | None = None,
    report: str | None = None,
    experts: bool = False,
    compare: bool = False,
    as_json: bool = False,
    console: Console,
) -> int:
    """Run the engine over events files and print how accurate its forecasts were.

    Args:
        settings: all of them; `kafka` only as far as it appears in the forecasts.
        paths: events files, "-" for standard input.
        partitions: over how many the events are spread by key, as Kafka's producer does.
        forecasts: where to write what `run` would publish; None: nowhere.
        report: directory of the page to write (`report`); None: none.
        experts: print a row for each expert, too.
        compare: run the other variants of the engine beside it, and print what they scored.
        as_json: print one JSON object instead of tables.
        console: standard output. Progress goes to standard error.

    Returns:
        the exit code: 1 if no event was counted.

    Raises:
        ConfigError: a file cannot be read or written.
    """
    refuse_to_overwrite(forecasts, paths)
    watching = Report(settings, report) if report is not None else None
    past = Pass(settings, watching)
    compared = variants.variants(settings) if compare else []
    beside = [variant.begin() for variant in compared[1:]]
    past.drive(paths, partitions=partitions, forecasts=forecasts, beside=beside)
    runs = [*zip(compared, [past, *beside], strict=False)]
    page = watching.write(past.counts(), past.scores) if watching is not None else None
    if as_json:
        out = {**past.counts(), "resolutions": accuracy.as_json(settings, past.scores)}
        if runs:
            out["variants"] = variants.as_json(runs)
        if page is not None:
            out["report"] = str(page)
        _print_json(console, out)
    else:
        accuracy.show(console, settings, past.scores, experts=experts)
        if runs:
            variants.show(console, settings, runs)
        _print_counts(console, past)
        if page is not None:
            console.print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)
    return 0 if past.events else 1


def replay(  # noqa: PLR0913  (one parameter for each option of the command)
    settings: Settings,
    paths: Sequence[str],
    *,
    verify: str | None = None,
    partitions: int = 1,
    forecasts: str | None = None,
    as_json: bool = False,
    console: Console,
) -> int:
    """Run the engine over events files and compare its forecasts with a recording.

    Args:
        settings: those of the pipeline that was recorded, `group_id` and topics included.
        paths: events files, "-" for standard input.
        verify: the recording; None: only count.
        partitions: as many as the input topic had.
        forecasts: where to write the forecasts; None: nowhere.
        as_json: print one JSON object.
        console: standard output. Progress goes to standard error.

    Returns:
        the exit code: 1 if the recording is not exactly what the log gives.

    Raises:
        ConfigError: a file cannot be read or written, or `verify` is no recording.
    """
    refuse_to_overwrite(forecasts, [*paths, *([verify] if verify is not None else [])])
    comparison = Comparison(Recording(verify)) if verify is not None else None
    past = Pass(settings)
    past.drive(paths, partitions=partitions, forecasts=forecasts, comparison=comparison)
    if as_json:
        report = past.counts()
        if comparison is not None:
            report["verify"] = _verdict(comparison)
        _print_json(console, report)
    else:
        _print_counts(console, past)
        if comparison is not None:
            _print_verdict(console, comparison)
    return 0 if comparison is None or comparison.holds else 1


def _print_counts(console: Console, past: Pass) -> None:
    counts = past.counts()
    rejects = ", ".join(f"{n:,} {reason}" for reason, n in counts["rejects"].items())
    total = sum(counts["rejects"].values())
    lines = [
        f"{counts['events']:,} events counted, {total:,} rejected ({rejects or 'none'})",
        f"{counts['keys']:,} keys, {counts['expired']:,} more expired on the way",
        f"{counts['forecasts']:,} forecasts at {counts['hops']:,} hops",
        f"{counts['seconds']:.1f} s, {counts['events_per_s'] or 0:,.0f} events/s",
        f"{counts['state_bytes_per_key'] or 0:,} bytes of state per key",
    ]
    if total and not counts["events"]:
        lines.append(
            "No record is an event: do input.key, input.time and input.value name its fields?"
        )
    if not total and not counts["events"]:
        lines.append("No record was found: are these the files, and do they hold a line for each?")
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _verdict(comparison: Comparison) -> dict[str, Any]:
    return {
        "holds": comparison.holds,
        "equal": comparison.equal,
        "missing": comparison.missing,
        "missing_at_ends": comparison.missing_at_ends,
        "unexpected": comparison.unexpected,
        "different": comparison.different,
        "contradictory": comparison.contradictory,
        "first_difference": asdict(comparison.first) if comparison.first else None,
    }


def _print_verdict(console: Console, comparison: Comparison) -> None:
    lines = [
        "",
        f"equal       {comparison.equal:>12,}  recorded, and replayed byte for byte",
        f"different   {comparison.different:>12,}  recorded, but the log gives other bytes",
        f"missing     {comparison.missing:>12,}  the log gives them, but they were not recorded",
        f"unexpected  {comparison.unexpected:>12,}  recorded, but the log does not give them",
    ]
    if comparison.contradictory:
        lines.append(
            f"contradict  {comparison.contradictory:>12,}  recorded again with another value"
        )
    lines += comparison.explain()
    if comparison.holds:
        lines.append("The log gives exactly the recorded forecasts.")
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _print_json(console: Console, report: dict[str, Any]) -> None:
    console.print(
        json.dumps(report, allow_nan=False), markup=False, highlight=False, soft_wrap=True
    )
