"""The backtest's report: looks on while the engine goes over a log, then writes one HTML page.

It keeps little, however long the log: the last four forecasts of some keys and the truth around
them, and the experts' weights at no more than 200 points of the run. Which keys the page shows is
known at the end only, so more are followed on the way: at each of those points, the busiest so far
and some by lot. Their forecasts are not picked either: the next one kept is the first that was
published once the one before had run out.

Nothing here has a clock: the same log gives the same page.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.calendar import EARLIEST_MS, LATEST_MS
from stream_forecaster.config import Settings
from stream_forecaster.errors import ConfigError
from stream_forecaster.forecasts import Forecast
from stream_forecaster.report_contents import Contents, Fan, Look, Portrait, Series
from stream_forecaster.report_page import render
from stream_forecaster.scoring import Score
from stream_forecaster.shard import Shard, Turn

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

TURN_RECORDS = 20
"""Records a turn while a report looks on: it reads a truth after the turn that closed its bucket,
and finds it only if it is still in the window."""
_BUSIEST = _DRAWN = 3
_SPARE = 6
"""So many more are followed of each kind: the busiest of the end need a past, and who was drawn may
expire or be among the busiest."""
_MOST_LOOKS = 200


class Report:
    """What the page will show, gathered turn by turn."""

    def __init__(self, settings: Settings, directory: str) -> None:
        """Make the directory and see that it can be written: at the end would be late to learn.

        Raises:
            ConfigError: it cannot.
        """
        self._settings, self._calendar = settings, settings.input.calendar()
        self._path = Path(directory) / "index.html"
        self._part = self._path.with_suffix(".part")
        with self._writing():
            self._part.parent.mkdir(parents=True, exist_ok=True)
            self._part.touch()
            self._part.unlink()
        self._shards: dict[int, Shard] = {}
        self._followed: dict[bytes, tuple[Series, ...]] = {}
        self._looks: list[Look] = []
        self._hops, self._next_look, self._look_every = 0, 1, 1
        self._begin_ms, self._end_ms = LATEST_MS, EARLIEST_MS

    def watch(self, shard: Shard, turn: Turn) -> None:
        """Take in what came of a turn; `shard` is as the turn left it."""
        self._shards[shard.partition] = shard
        self._hops += turn.hops
        if self._hops >= self._next_look:
            self._look()
        for forecast in turn.forecasts:
            self._take_forecasts(forecast)
            self._begin_ms = min(self._begin_ms, forecast.issued_ms)
            self._end_ms = max(self._end_ms, forecast.issued_ms)
        if turn.hops:
            self._take_truths(shard)

    def write(self, counts: Mapping[str, Any], scores: Sequence[Score]) -> Path:
        """Write the page; where it lies.

        Args:
            counts: what was counted on the way, as `backtest --json` has it.
            scores: per resolution, everything that landed.

        Raises:
            ConfigError: it cannot be written.
        """
        shards = list(self._shards.values())
        contents = Contents(
            self._settings,
            self._calendar,
            counts,
            scores,
            (self._begin_ms, self._end_ms),
            tuple(self._portraits()),
            tuple(pool.experts for pool in shards[0].pools) if shards else (),
            (*self._looks, *([_look_at(shards)] if shards else [])),
        )
        with self._writing():
            self._part.write_text(render(contents), "utf-8")
            self._part.replace(self._path)
        return self._path

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be written: {error.strerror}") from None

    # -- on the way --------------------------------------------------------------------------------

    def _look(self) -> None:
        """Note the weights, and whom to follow; ever more rarely, so that the looks stay few."""
        busiest = _foremost(self._shards, _activity, _BUSIEST + _SPARE)
        drawn = _foremost(self._shards, _lot, _DRAWN + _SPARE)
        self._followed = {
            key: self._followed.get(key) or self._no_series() for key in (*busiest, *drawn)
        }
        self._looks.append(_look_at(list(self._shards.values())))
        if len(self._looks) == _MOST_LOOKS:
            self._looks = self._looks[1::2]
            self._look_every *= 2
        self._next_look = self._hops + self._look_every

    def _no_series(self) -> tuple[Series, ...]:
        return tuple(Series(r.step_ms, r.horizon) for r in self._settings.resolutions)

    def _take_forecasts(self, forecast: Forecast) -> None:
        for row, key in enumerate(forecast.keys):
            for series, paths in zip(self._followed.get(key, ()), forecast.paths, strict=False):
                first = int(self._calendar.index(paths.start_ms, paths.step_ms))
                series.add_fan(Fan(first, paths.mean[row], paths.quantiles[row]))

    def _take_truths(self, shard: Shard) -> None:
        slots = {key: shard.table.slot(key) for key in self._followed}
        known = {key: slot for key, slot in slots.items() if slot is not None}
        for i, pool in enumerate(shard.pools):
            rows = pool.window.values(np.array([*known.values()], np.int64))
            for key, row in zip(known, rows, strict=True):
                self._followed[key][i].add_truth(pool.window.closed - len(row), row)

    # -- in the end --------------------------------------------------------------------------------

    def _portraits(self) -> Iterator[Portrait]:
        """Three of the busiest keys, then three by lot among the others."""
        busiest = _foremost(self._shards, _activity, _BUSIEST + _SPARE)
        busiest = [key for key in busiest if key in self._followed][:_BUSIEST]
        drawn = _foremost(self._shards, _lot, _DRAWN + _SPARE)
        drawn = [key for key in drawn if key in self._followed and key not in busiest][:_DRAWN]
        for why, keys in (("one of the busiest", busiest), ("drawn by lot", drawn)):
            for key in keys:
                yield Portrait(key, why, self._followed[key])


def _foremost(
    shards: Mapping[int, Shard], rank: Callable[[Shard], NDArray[Any]], count: int
) -> list[bytes]:
    """The `count` keys that `rank` (K,) puts highest, over all shards, highest first."""
    found = []
    for partition, shard in shards.items():
        live = np.flatnonzero(shard.table.live)
        ranks = rank(shard)[live]
        best = np.argsort(-ranks, kind="stable")[:count]
        found += [(-ranks[i].item(), partition, int(live[i])) for i in best.tolist()]
    return [shards[partition].table.key(slot) for _, partition, slot in sorted(found)[:count]]


def _activity(shard: Shard) -> Int64:
    return shard.table["observations"]


def _lot(shard: Shard) -> Float64:
    """A slot's lot is the same at every look: longer draws begin as shorter ones do."""
    return np.random.default_rng(shard.partition).random(shard.table.size)


def _look_at(shards: Sequence[Shard]) -> Look:
    """The weights that the experts have now, averaged over the keys of all shards."""
    keys = np.maximum([shard.keys for shard in shards], 1)
    by_resolution = zip(*(shard.pools for shard in shards), strict=True)
    weights = tuple(
        np.average([pool.mean_weights() for pool in pools], axis=0, weights=keys)
        for pools in by_resolution
    )
    return Look(max(shard.watermark_ms or 0 for shard in shards), weights)
