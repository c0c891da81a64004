"""For subscribers: the forecasts topic as Python values, and as one row for each step ahead.

    from stream_forecaster.reader import Reader, rows

    reader = Reader("localhost:9092", "forecasts")
    table = reader.latest()                     # key -> its newest forecast, as of now
    for change in reader.changes():             # all there is, and then what comes, for ever
        print(change.key, change.forecast and change.forecast.intent.momentum)
    rows(table.values(), step_s=3600)           # unique_id, ds, StreamForecaster, -lo-80, ...

The topic is a table in the form of its changes: a key's newest message replaces the one before, and
one without a value (a tombstone) removes the key. Only what was published exactly once is seen
(`read_committed`). Nothing is committed and no group is joined, so any number may read.

A message of another schema than `forecast/1` stops the reader; fields that this version does not
know are passed over, since `forecast/1` may gain some.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import datetime
from functools import lru_cache
from threading import Event
from typing import Any, Literal
from zoneinfo import ZoneInfo

import msgspec

from stream_forecaster.calendar import Calendar
from stream_forecaster.config import parse
from stream_forecaster.edge.topics import StoredRecord, read_topic
from stream_forecaster.errors import SchemaMismatch

SCHEMA = "forecast/1"
"""What this version reads."""
COLUMN = "StreamForecaster"
"""What the columns of `rows` are named after, as Nixtla names them after the model."""

_GONE = "io.streamforecaster.forecast."


class Source(msgspec.Struct, frozen=True):
    """The last input record that was read before the issue."""

    topic: str
    partition: int
    offset: int


class Resolution(msgspec.Struct, frozen=True):
    """The paths at one bucket width; all have H entries, one for each bucket from `start` on."""

    step_s: int
    start: datetime
    mean: tuple[float, ...]
    quantiles: dict[str, tuple[float, ...]]
    moving_average: float | None
    level: float | None
    weights: dict[str, float]


class Intent(msgspec.Struct, frozen=True):
    """What a ranking model wants to know of the key."""

    short_term: float
    long_term: float
    momentum: float
    surprise: float


class Quality(msgspec.Struct, frozen=True):
    """How far the forecast can be trusted."""

    origin: str
    cold_start: bool
    observations: int
    coverage_80: float | None
    skill: float | None
    drift: str


class Forecast(msgspec.Struct, frozen=True):
    """Everything forecast for one key at one moment; `stream-forecaster schema` says it in full."""

    schema: str
    id: str
    pipeline: str
    key: str
    issued_at: datetime
    valid_until: datetime
    source: Source
    resolutions: tuple[Resolution, ...]
    intent: Intent
    quality: Quality

    def at(self, step_s: int | None = None) -> Resolution:
        """The resolution with buckets of `step_s` seconds; None: the finest.

        Raises:
            ValueError: there is none such.
        """
        if step_s is None:
            return self.resolutions[0]
        for resolution in self.resolutions:
            if resolution.step_s == step_s:
                return resolution
        known = ", ".join(str(resolution.step_s) for resolution in self.resolutions)
        raise ValueError(f"no resolution of {step_s} s; there are {known}")


class Change(msgspec.Struct, frozen=True):
    """One message: a key has a new forecast, or has none any more.

    Attributes:
        key: the message's key, the bytes of the event's own; forecasts have it as text.
        forecast: None if the key is gone.
        gone: why: "expired", "forgotten", or "shed" for want of room; empty if it is not gone, or
            whoever wrote the tombstone did not say.
        time: of the tombstone of an expired key, in event time.
        partition, offset: where the message lies.
    """

    key: bytes
    forecast: Forecast | None
    gone: str
    time: datetime | None
    partition: int
    offset: int


class _Schema(msgspec.Struct):
    schema: str = ""


_decode = msgspec.json.Decoder(Forecast).decode
_decode_schema = msgspec.json.Decoder(_Schema).decode


class Reader:
    """Reads a forecasts topic; every iteration has a connection of its own.

    Args:
        bootstrap_servers: the broker, "host:port", or several with commas.
        topic: `output.topic` of the service.
        kafka: how to get in: `security_protocol`, `sasl_mechanism`, `ssl_cafile` and so on, as in
            the section [kafka] of the settings.

    Raises:
        ConfigError: one of them is unknown or does not go with the others.
    """

    def __init__(
        self, bootstrap_servers: str = "localhost:9092", topic: str = "forecasts", **kafka: object
    ) -> None:
        self._settings = parse({"kafka": {"bootstrap_servers": bootstrap_servers, **kafka}})
        self._topic = topic

    def changes(
        self,
        *,
        start: Literal["beginning", "now"] = "beginning",
        follow: bool = True,
        idle_s: float | None = None,
        stopping: Event | None = None,
    ) -> Iterator[Change]:
        """What the topic holds, and what comes, in order within each partition and so of each key.

        Closing the iterator, which the end of a `for` loop does when nothing else holds it, closes
        the connection.

        Args:
            start: with all that is there; or with what comes after the first `next`.
            follow: go on past the end that was found at the beginning.
            idle_s: end when nothing has come for so long.
            stopping: ends it from another thread, within a fraction of a second.

        Raises:
            SchemaMismatch: a message is of another schema, or no forecast at all.
            Unavailable, TransportError: no broker, no such topic, or it refuses.
        """
        quiet = _Quiet(idle_s, stopping)
        records = read_topic(
            self._settings,
            self._topic,
            start="earliest" if start == "beginning" else "latest",
            follow=follow,
            stopping=quiet,
        )
        with closing(records):
            for record in records:
                yield decode(record)
                quiet.heard()

    def latest(self) -> dict[bytes, Forecast]:
        """The newest forecast of each key that has one, as of now.

        Raises:
            SchemaMismatch, Unavailable, TransportError: as `changes`.
        """
        table: dict[bytes, Forecast] = {}
        for change in self.changes(follow=False):
            if change.forecast is None:
                table.pop(change.key, None)
            else:
                table[change.key] = change.forecast
        return table


class _Quiet(Event):
    """Set when nothing has been heard for so long, or when another event is.

    The time runs from the first look on after something was heard: neither connecting nor what the
    user does with a message is silence.
    """

    def __init__(self, idle_s: float | None, stopping: Event | None) -> None:
        super().__init__()
        self._idle_s, self._stopping = idle_s, stopping
        self._since_s: float | None = None

    def heard(self) -> None:
        """Something has come: begin to wait anew."""
        self._since_s = None

    def is_set(self) -> bool:
        now_s = time.monotonic()
        self._since_s = now_s if self._since_s is None else self._since_s
        quiet = self._idle_s is not None and now_s - self._since_s >= self._idle_s
        return quiet or (self._stopping is not None and self._stopping.is_set())


def decode(record: StoredRecord) -> Change:
    """A record of the forecasts topic, whoever has read it.

    Raises:
        SchemaMismatch: its value is of another schema, or no forecast at all.
    """
    forecast, gone, moment = None, "", None
    if record.value is not None:
        forecast = _forecast(record)
    else:
        headers = {name: value or b"" for name, value in record.headers}
        kind = headers.get("ce_type", b"").decode("utf-8", "replace")
        if kind.startswith(_GONE):
            gone = kind.removeprefix(_GONE).partition(".")[0]
        if "ce_time" in headers:
            moment = _time(headers["ce_time"])
    return Change(record.key or b"", forecast, gone, moment, record.partition, record.offset)


def _forecast(record: StoredRecord) -> Forecast:
    found = "something else"
    try:
        forecast = _decode(record.value or b"")
        if forecast.schema == SCHEMA:
            return forecast
        found = repr(forecast.schema)
    except msgspec.DecodeError as error:
        found = f"no forecast ({error})"
        try:
            schema = _decode_schema(record.value or b"").schema
        except msgspec.DecodeError:
            schema = ""
        if schema not in {"", SCHEMA}:
            found = repr(schema)
    place = f"{record.topic}, partition {record.partition}, offset {record.offset}"
    raise SchemaMismatch(
        f"{place}: this version reads {SCHEMA!r}, and there is {found}: read the topic that the "
        "service's output.topic names, with the version of stream-forecaster that writes it"
    )


def _time(text: bytes) -> datetime | None:
    try:
        return datetime.fromisoformat(text.decode())
    except ValueError:
        return None


def rows(
    forecasts: Iterable[Forecast], *, step_s: int | None = None, timezone: str = "UTC"
) -> Iterator[dict[str, Any]]:
    """One row for each step ahead of one resolution, in Nixtla's columns.

        unique_id | ds | cutoff | StreamForecaster | -lo-95 | -lo-80 | -median | -hi-80 | -hi-95

    `ds` is where the step begins, `cutoff` when the forecast was issued, StreamForecaster the mean.
    A quantile q is the bound, lower or upper, of the central interval of 100 |1 - 2q| percent.

    Args:
        forecasts: of as many keys, and of each as many, as you like.
        step_s: the width of its buckets; None: the finest.
        timezone: the service's `input.timezone`, in which days begin; `ds` is in it.

    Raises:
        ValueError: a forecast has no such resolution, or has days of another time zone.
    """
    zone = ZoneInfo(timezone)
    for forecast in forecasts:
        resolution = forecast.at(step_s)
        columns = {COLUMN: resolution.mean} | {
            _column(level): path for level, path in resolution.quantiles.items()
        }
        for ahead, begin in enumerate(_begins(resolution, timezone)):
            yield {
                "unique_id": forecast.key,
                "ds": datetime.fromtimestamp(begin / 1_000, zone),
                "cutoff": forecast.issued_at.astimezone(zone),
                **{name: path[ahead] for name, path in columns.items()},
            }


def frame(
    forecasts: Iterable[Forecast], *, step_s: int | None = None, timezone: str = "UTC"
) -> Any:  # noqa: ANN401  (pandas is not a dependency, so its types are not at hand)
    """`rows` as a pandas DataFrame.

    Raises:
        ImportError: pandas is not installed.
        ValueError: as `rows`.
    """
    try:
        import pandas as pd  # noqa: PLC0415  (who has no use for it need not have it)
    except ImportError:
        raise ImportError(
            "frame() needs pandas: pip install pandas; rows() gives the same as dictionaries"
        ) from None
    return pd.DataFrame(rows(forecasts, step_s=step_s, timezone=timezone))


def _begins(resolution: Resolution, timezone: str) -> list[int]:
    """(H,) where each step begins, epoch ms: days are local ones, whatever their length.

    Raises:
        ValueError: the first of them does not begin there in this time zone.
    """
    calendar, step_ms = _calendar(timezone), resolution.step_s * 1_000
    start_ms = round(resolution.start.timestamp() * 1_000)
    first = calendar.index(start_ms, step_ms)
    if calendar.start(first, step_ms) != start_ms:
        raise ValueError(
            f"steps of {resolution.step_s} s begin at {resolution.start.isoformat()}, which is no "
            f"midnight in {timezone}: give rows() or frame() the service's input.timezone"
        )
    return [int(calendar.start(first + h, step_ms)) for h in range(len(resolution.mean))]


@lru_cache(maxsize=8)
def _calendar(timezone: str) -> Calendar:
    return Calendar(timezone)


@lru_cache(maxsize=128)
def _column(level: str) -> str:
    """The name that Nixtla's libraries give a quantile."""
    q = float(level)
    if q == 0.5:
        return f"{COLUMN}-median"
    return f"{COLUMN}-{'lo' if q < 0.5 else 'hi'}-{abs(100 - 200 * q):.6g}"
