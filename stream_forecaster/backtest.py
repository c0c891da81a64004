"""Backtest and replay: the engine over events files, as `run` has it over the log.

Both are one pass. Each partition's records go through a shard of its own; what the shards forecast
is what `run` would publish, byte for byte. A backtest adds up the scores that land on the way: they
are fair, as every forecast was made before its truth was read. A replay compares the forecasts with
earlier ones (`recording` says by which rule).
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from stream_forecaster import accuracy
from stream_forecaster.calendar import Calendar
from stream_forecaster.config import Settings
from stream_forecaster.edge.files import STDIN, read_events, total_bytes, write_forecasts
from stream_forecaster.edge.weights_file import read_weights
from stream_forecaster.errors import ConfigError
from stream_forecaster.forecasts import Encoder
from stream_forecaster.recording import Comparison, Recording
from stream_forecaster.records import Message, Records
from stream_forecaster.report import TURN_RECORDS, Report
from stream_forecaster.scoring import Score
from stream_forecaster.shard import Shard, Turn

_SPEAK_EVERY_S = 5.0
"""How often progress is told where no bar can be drawn."""


def backtest(  # noqa: PLR0913  (one parameter for each option of the command)
    settings: Settings,
    paths: Sequence[str],
    *,
    partitions: int = 1,
    forecasts: str | None = None,
    report: str | None = None,
    experts: bool = False,
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
        as_json: print one JSON object instead of tables.
        console: standard output. Progress goes to standard error.

    Returns:
        the exit code.

    Raises:
        ConfigError: a file cannot be read or written.
    """
    _refuse_to_overwrite(forecasts, paths)
    watching = Report(settings, report) if report is not None else None
    past = Pass(settings, watching)
    past.drive(paths, partitions=partitions, forecasts=forecasts)
    page = watching.write(past.counts(), past.scores) if watching is not None else None
    if as_json:
        out = {**past.counts(), "resolutions": accuracy.as_json(settings, past.scores)}
        if page is not None:
            out["report"] = str(page)
        _print_json(console, out)
    else:
        accuracy.show(console, settings, past.scores, experts=experts)
        _print_counts(console, past)
        if page is not None:
            console.print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)
    return 0


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
    _refuse_to_overwrite(forecasts, [*paths, *([verify] if verify is not None else [])])
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


class Pass:
    """One run of the engine over a log, and the sums of what came of it.

    Attributes:
        events, hops, forecasts, expired: how many there were; one forecast is one message.
        rejects: reason -> how many.
        scores: per resolution, everything that landed.
        seconds: how long `drive` took.
    """

    scores: tuple[Score, ...]

    def __init__(self, settings: Settings, report: Report | None = None) -> None:
        self._settings, self._report = settings, report
        self._calendar = Calendar(settings.input.timezone)
        self._encoder = Encoder(settings)
        self._weights = read_weights(settings.model.weights)
        self._shards: dict[int, Shard] = {}
        self.events = self.hops = self.forecasts = self.expired = 0
        self.rejects: Counter[str] = Counter()
        self.scores = tuple(pool.no_score() for pool in Shard(settings, self._calendar, 0, 0).pools)
        self.seconds = 0.0

    def drive(
        self,
        paths: Sequence[str],
        *,
        partitions: int,
        forecasts: str | None = None,
        comparison: Comparison | None = None,
    ) -> None:
        """Go over the files once, to the end.

        Args:
            paths: events files.
            partitions: over how many their events are spread.
            forecasts: where to write the forecasts.
            comparison: what to compare them with.

        Raises:
            ConfigError: a file cannot be read or written.
        """
        begin_s = time.monotonic()
        with _progress(total_bytes(paths), lambda: self.events) as advance:
            # How records are grouped changes nothing but how closely a report can look on.
            size = {} if self._report is None else {"block_records": TURN_RECORDS}
            blocks = read_events(
                paths, self._settings.input, partitions=partitions, advance=advance, **size
            )
            messages = self._messages(blocks, comparison, publish=forecasts is not None)
            if forecasts is not None:
                write_forecasts(forecasts, messages)
            for _ in messages:  # whatever the writer has left: all of it if there is none
                pass
        if comparison is not None:
            comparison.finish()
        self.seconds = time.monotonic() - begin_s

    def turns(self, blocks: Iterable[Records]) -> Iterator[Turn]:
        """Advance the shards block by block, and count."""
        for records in blocks:
            shard = self._shards.get(records.partition)
            if shard is None:
                begin = int(records.offset[0])
                shard = Shard(
                    self._settings, self._calendar, records.partition, begin, self._weights
                )
                self._shards[records.partition] = shard
            turn = shard.advance(records)
            self._count(turn)
            if self._report is not None:
                self._report.watch(shard, turn)
            yield turn

    def counts(self) -> dict[str, Any]:
        """All that was counted, for `--json`."""
        keys = sum(shard.keys for shard in self._shards.values())
        state_bytes = sum(shard.state_bytes for shard in self._shards.values())
        return {
            "events": self.events,
            "rejects": dict(sorted(self.rejects.items())),
            "keys": keys,
            "expired": self.expired,
            "hops": self.hops,
            "forecasts": self.forecasts,
            "partitions": len(self._shards),
            "seconds": round(self.seconds, 3),
            "events_per_s": round(self.events / self.seconds, 1) if self.seconds else None,
            "state_bytes": state_bytes,
            "state_bytes_per_key": round(state_bytes / keys) if keys else None,
        }

    def _messages(
        self, blocks: Iterable[Records], comparison: Comparison | None, *, publish: bool
    ) -> Iterator[Message]:
        """What `run` would publish, in its order; encoded only where someone looks at it."""
        for turn in self.turns(blocks):
            for forecast in turn.forecasts:
                compared = comparison is not None and comparison.covers(forecast)
                if not (publish or compared):
                    continue
                for message in self._encoder.forecast(forecast):
                    if comparison is not None and compared:
                        comparison.take(forecast, message)
                    yield message

    def _count(self, turn: Turn) -> None:
        self.events += turn.events
        self.hops += turn.hops
        self.rejects.update(reject.reason.value for reject in turn.rejects)
        self.forecasts += sum(len(forecast.keys) for forecast in turn.forecasts)
        self.expired += sum(len(forecast.expired) for forecast in turn.forecasts)
        pairs = zip(self.scores, turn.scores, strict=True)
        self.scores = tuple(old + new for old, new in pairs)


def _refuse_to_overwrite(forecasts: str | None, inputs: Sequence[str]) -> None:
    """A file that is read must not be written: it would be emptied before it is read."""
    if forecasts is not None and Path(forecasts).exists():
        for path in inputs:
            if path != STDIN and Path(path).exists() and Path(path).samefile(forecasts):
                raise ConfigError(f"{forecasts}: is read, and would be overwritten")


@contextmanager
def _progress(total: int | None, events: Callable[[], int]) -> Iterator[Callable[[int], None]]:
    """Show on standard error how far reading is: a bar on a terminal, else a line now and then."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("reading", total=total)
            yield lambda count: bar.update(task, advance=count, description=f"{events():,} events")
        return
    read, spoke_s = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal read, spoke_s
        read += count
        now_s = time.monotonic()
        if now_s - spoke_s >= _SPEAK_EVERY_S:
            spoke_s = now_s
            share = f"{100 * read / total:.0f} % of the input, " if total else ""
            console.print(f"{share}{events():,} events", highlight=False)

    yield advance


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
