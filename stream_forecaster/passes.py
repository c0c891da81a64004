"""One run of the engine over events files, alone or side by side with others."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
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

from stream_forecaster.config import Settings
from stream_forecaster.edge.files import read_events, total_bytes, write_forecasts
from stream_forecaster.edge.weights_file import read_weights
from stream_forecaster.forecasts import Encoder
from stream_forecaster.recording import Comparison
from stream_forecaster.records import Message, Records
from stream_forecaster.report import TURN_RECORDS, Report
from stream_forecaster.scoring import Score
from stream_forecaster.shard import Shard, Turn
from stream_forecaster.weights import Weights

_SPEAK_EVERY_S = 5.0
"""How often progress is told where no bar can be drawn."""
_SHARED_RECORDS = 2048
"""Records of a block that several passes take in turns: few, so that progress is seen."""


class Pass:
    """One run of the engine over a log, and the sums of what came of it.

    Attributes:
        events, hops, forecasts, expired: how many there were; one forecast is one message.
        rejects: reason -> how many.
        scores: per resolution, everything that landed.
        seconds: how long `drive` took.
        engine_seconds: how long the shards took, without reading, writing and other passes.
    """

    scores: tuple[Score, ...]

    def __init__(
        self,
        settings: Settings,
        report: Report | None = None,
        *,
        weights: Weights | None = None,
    ) -> None:
        """Begin with no record read.

        Args:
            settings: all of them.
            report: that looks on.
            weights: that the network starts from; None: those that the settings name.
        """
        self._settings, self._report = settings, report
        self._calendar = settings.input.calendar()
        self._encoder = Encoder(settings)
        self._weights = weights or read_weights(settings.model.weights)
        self._shards: dict[int, Shard] = {}
        self.events = self.hops = self.forecasts = self.expired = 0
        self.rejects: Counter[str] = Counter()
        self.scores = tuple(pool.no_score() for pool in Shard(settings, self._calendar, 0, 0).pools)
        self.seconds = self.engine_seconds = 0.0

    def drive(
        self,
        paths: Sequence[str],
        *,
        partitions: int,
        forecasts: str | None = None,
        comparison: Comparison | None = None,
        beside: Sequence["Pass"] = (),
    ) -> None:
        """Go over the files once, to the end.

        Args:
            paths: events files.
            partitions: over how many their events are spread.
            forecasts: where to write the forecasts.
            comparison: what to compare them with.
            beside: passes that take the same events; of them only sums are kept.

        Raises:
            ConfigError: a file cannot be read or written.
        """
        begin_s = time.monotonic()
        told = f", {len(beside) + 1} variants" if beside else ""
        with _progress(total_bytes(paths), lambda: f"{self.events:,} events{told}") as advance:
            # How records are grouped changes nothing but how closely one can look on.
            size = {"block_records": _SHARED_RECORDS} if beside else {}
            size |= {"block_records": TURN_RECORDS} if self._report is not None else {}
            blocks = read_events(
                paths, self._settings.input, partitions=partitions, advance=advance, **size
            )
            shared = _shared(blocks, beside)
            messages = self._messages(shared, comparison, publish=forecasts is not None)
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
            yield self.take(records)

    def take(self, records: Records) -> Turn:
        """Advance the shard of one block, and count."""
        shard = self._shards.get(records.partition)
        if shard is None:
            shard = self._shards[records.partition] = Shard(
                self._settings,
                self._calendar,
                records.partition,
                int(records.offset[0]),
                self._weights,
            )
        begin_s = time.monotonic()
        turn = shard.advance(records)
        self.engine_seconds += time.monotonic() - begin_s
        self._count(turn)
        if self._report is not None:
            self._report.watch(shard, turn)
        return turn

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


def _shared(blocks: Iterable[Records], passes: Sequence[Pass]) -> Iterator[Records]:
    """The blocks, each after `passes` have taken it."""
    for records in blocks:
        for past in passes:
            past.take(records)
        yield records


@contextmanager
def _progress(total: int | None, said: Callable[[], str]) -> Iterator[Callable[[int], None]]:
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
            yield lambda count: bar.update(task, advance=count, description=said())
        return
    read, spoke_s = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal read, spoke_s
        read += count
        now_s = time.monotonic()
        if now_s - spoke_s >= _SPEAK_EVERY_S:
            spoke_s = now_s
            share = f"{100 * read / total:.0f} % of the input, " if total else ""
            console.print(f"{share}{said()}", highlight=False)

    yield advance
