"""Decode: records in, events and rejects out.

The invariant: any bytes become an event or a reject, never an exception. A reject is a value with
a reason; it travels with the forecasts and leaves through the same commit.

Most events of most topics look alike: a flat object with text or an integer for the key, and
numbers for time and value. Those are read where they lie by one loop (`flat_json`) and checked
together, as columns; whatever is not of that shape is decoded one by one, which says what is wrong
with it or finds that nothing is. Both ways agree on every record.

A null value is a heartbeat: it is no event, moves the watermark to the record's own time, and so
keeps a quiet partition's clock going. If the record has a key it is a tombstone too, and the shard
forgets that key; one without a time (-1) does only this.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_forecaster.calendar import EARLIEST_MS, LATEST_MS, Calendar
from stream_forecaster.config import Input
from stream_forecaster.flat_json import TIME, VALUE, Scan
from stream_forecaster.records import BytesColumn, Headers, Records

LARGEST_VALUE = 1e15
"""Larger magnitudes are rejected: their squares would not survive single precision."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DETAIL_CHARACTERS = 200
# What "auto" takes a number for: seconds end in the year 5138, milliseconds began in 1973.
_AUTO_UNITS_MS = ((1e11, 1e3), (1e14, 1.0), (1e17, 1e-3))
# Below 10**17 even as a float, to which 10**17 - 1 would be rounded: no such number is a time.
_LARGEST_NUMBER = 10**16
_NUMBER_UNITS_MS = {"epoch_s": 1e3, "epoch_ms": 1.0, "epoch_us": 1e-3}


class Reason(StrEnum):
    """Why a record is not an event."""

    NOT_JSON = "not_json"
    NO_KEY = "no_key"
    BAD_TIME = "bad_time"
    BAD_VALUE = "bad_value"
    TOO_LATE = "too_late"
    TOO_FAR_AHEAD = "too_far_ahead"
    TOO_LARGE = "too_large"


@dataclass(frozen=True, slots=True)
class Reject:
    """A record that is not an event, with its original bytes.

    Attributes:
        detail: for a person; at most 200 characters.
        time_ms: the record's own time, epoch ms; -1 where unknown.
    """

    partition: int
    offset: int
    reason: Reason
    detail: str
    key: bytes | None
    value: bytes | None
    time_ms: int = -1
    headers: Headers = ()


@dataclass(frozen=True, slots=True)
class Events:
    """Events of one partition as columns, in offset order.

    Attributes:
        row: (N,) int64, each event's row in the records it was decoded from.
        time_ms: (N,) int64, event time, epoch ms; `UNTIMED_MS` only of heartbeats.
        value: (N,) float64; 1 where events are counted.
        key: (N,) strings; null marks a heartbeat.
    """

    row: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    value: NDArray[np.float64]
    key: BytesColumn

    def __len__(self) -> int:
        return len(self.row)

    def take(self, rows: NDArray[np.int64] | slice) -> "Events":
        """The events at positions `rows` (B,), in that order."""
        return Events(self.row[rows], self.time_ms[rows], self.value[rows], self.key.take(rows))


UNTIMED_MS = -1
"""The time of a heartbeat that has none, a mere tombstone; before every other time."""

_NO_EVENTS = Events(
    np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float64), BytesColumn.of([])
)


class _Bad(Exception):
    """Carries a reason a few lines up; never leaves this module."""

    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason, self.detail = reason, detail


class EventDecoder:
    """Decodes by the `[input]` settings: which fields hold key, time and value.

    >>> decode = EventDecoder(Input(), Calendar("UTC"))
    >>> one = np.array([7]), np.array([1_700_000_000_000])
    >>> said = BytesColumn.of([None]), BytesColumn.of([b'{"user_id": "ann", "ts": 1700000000}'])
    >>> events, _ = decode(Records(0, *one, *said, 8))
    >>> list(events.key), events.time_ms.tolist(), events.value.tolist()
    ([b'ann'], [1700000000000], [1.0])
    """

    def __init__(self, settings: Input, calendar: Calendar) -> None:
        self._settings, self._calendar = settings, calendar
        fields = [*settings.key, *filter(None, (settings.time, settings.value))]
        # One attribute per field, whatever it is called; absent ones read as None.
        self._attribute = {name: f"f{i}" for i, name in enumerate(dict.fromkeys(fields))}
        row = msgspec.defstruct(
            "row",
            [(attribute, Any, None) for attribute in self._attribute.values()],
            rename={attribute: name for name, attribute in self._attribute.items()},
            gc=False,
        )
        self._decode = msgspec.json.Decoder(row).decode
        self._time_ms = self._number_ms if settings.time_format != "rfc3339" else self._rfc3339_ms
        self._key_of = self._key_reader()
        self._scan = self._plain_reader()

    def __call__(self, records: Records) -> tuple[Events, list[Reject]]:
        """Decode `records`; every row ends up in exactly one of the two results."""
        plain, others = self._together(records)
        events, rejects = self.one_by_one(records, others)
        return _merged(plain, events), rejects

    def one_by_one(self, records: Records, rows: Iterable[int]) -> tuple[Events, list[Reject]]:
        """Decode some rows, whatever they look like."""
        found: list[tuple[int, int, float, bytes | None]] = []
        rejects: list[Reject] = []
        for i in rows:
            raw, broker_ms = records.value[i], int(records.time_ms[i])
            try:
                if raw is None:
                    is_timeless = broker_ms < 0 and records.key[i]
                    time_ms = UNTIMED_MS if is_timeless else self._in_range(broker_ms)
                    found.append((i, time_ms, 0.0, None))
                else:
                    key, time_ms, value = self._event(records.key[i], raw, broker_ms)
                    found.append((i, time_ms, value, key))
            except _Bad as bad:
                rejects.append(reject(records, i, bad.reason, bad.detail))
        row, times, values, keys = zip(*found, strict=True) if found else ((), (), (), ())
        events = Events(
            np.array(row, np.int64),
            np.array(times, np.int64),
            np.array(values, np.float64),
            BytesColumn.of(keys),
        )
        return events, rejects

    def _plain_reader(self) -> Scan | None:
        """What reads records of the common shape; None if the settings ask for more than that."""
        settings = self._settings
        fields = [*settings.key, *filter(None, (settings.time, settings.value))]
        if len(settings.key) > 1 or len(set(fields)) < len(fields):
            return None
        if settings.time and settings.time_format == "rfc3339":
            return None
        key = settings.key[0] if settings.key else None
        return Scan(key, settings.time or None, settings.value or None)

    def _together(self, records: Records) -> tuple[Events, list[int]]:
        """Events of the rows of the common shape, and the numbers of all other rows."""
        settings, size = self._settings, records.value.size
        if self._scan is None:
            return _NO_EVENTS, list(range(len(records)))
        small = np.where(size <= settings.max_event_bytes, size, -1)
        keys, numbers, fit = self._scan(BytesColumn(records.value.data, records.value.start, small))
        time_ms = broker_ms = records.time_ms.astype(np.float64)
        if not settings.key:
            keys, fit = records.key, fit & (records.key.size > 0)
        if settings.time:
            time_ms = self._numbers_ms(numbers[TIME])
            fit &= (broker_ms < 0) | (np.rint(time_ms) <= broker_ms + settings.max_ahead_ms)
        fit &= (np.abs(numbers[VALUE]) <= LARGEST_VALUE) & (keys.size <= settings.max_key_bytes)
        null = size < 0
        time_ms = np.where(null, broker_ms, time_ms)
        fit = (fit | null) & (time_ms >= EARLIEST_MS) & (time_ms <= LATEST_MS - 1)
        forget = null & (broker_ms < 0) & (records.key.size > 0)
        row = np.flatnonzero(fit | forget)
        whole_ms = np.rint(np.where(forget, UNTIMED_MS, time_ms)[row]).astype(np.int64)
        value = numbers[VALUE] if settings.value else np.ones(len(records))
        key = BytesColumn(keys.data, keys.start, np.where(null, -1, keys.size))
        events = Events(row, whole_ms, np.where(null, 0.0, value)[row], key.take(row))
        return events, np.flatnonzero(~(fit | forget)).tolist()

    def _numbers_ms(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        """`_number_ms` of a column; infinite from `_LARGEST_NUMBER` on: there are no times."""
        unit_ms = _NUMBER_UNITS_MS.get(self._settings.time_format)
        if unit_ms is not None:
            return numbers * unit_ms
        limits, units_ms = np.array(_AUTO_UNITS_MS).T
        numbers = np.where(numbers < _LARGEST_NUMBER, numbers, np.inf)
        scaled: NDArray[np.float64] = (
            numbers * np.append(units_ms, np.inf)[np.searchsorted(limits, numbers, "right")]
        )
        return scaled

    def _event(self, raw_key: bytes | None, raw: bytes, broker_ms: int) -> tuple[bytes, int, float]:
        settings = self._settings
        if len(raw) > settings.max_event_bytes:
            raise _Bad(Reason.TOO_LARGE, f"value of {len(raw)} bytes")
        try:
            row = self._decode(raw)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise _Bad(Reason.NOT_JSON, str(error)) from None
        key = self._key_of(row, raw_key)
        if len(key) > settings.max_key_bytes:
            raise _Bad(Reason.TOO_LARGE, f"key of {len(key)} bytes")
        time = getattr(row, self._attribute[settings.time]) if settings.time else None
        time_ms = self._in_range(broker_ms if time is None else self._time_ms(time))
        if broker_ms >= 0 and time_ms > broker_ms + settings.max_ahead_ms:
            ahead_s = (time_ms - broker_ms) / 1000
            raise _Bad(Reason.TOO_FAR_AHEAD, f"{ahead_s:.0f} s beyond the record's own time")
        return key, time_ms, self._value(row) if settings.value else 1.0

    def _key_reader(self) -> Callable[[Any, bytes | None], bytes]:
        """A function from a decoded row and the Kafka key to the key's bytes."""
        names = self._settings.key
        if not names:
            return lambda _row, raw_key: raw_key or _no_key("the record has no key")
        if len(names) == 1:
            (name,) = names
            attribute = self._attribute[name]
            return lambda row, _raw_key: _scalar(getattr(row, attribute), name)
        fields = [(name, self._attribute[name]) for name in names]

        def compound(row: Any, _raw_key: bytes | None) -> bytes:  # noqa: ANN401  (a struct made at run time)
            parts = [(getattr(row, attribute), name) for name, attribute in fields]
            for part, name in parts:
                _scalar(part, name)
            return msgspec.json.encode([part for part, _ in parts])

        return compound

    def _value(self, row: Any) -> float:  # noqa: ANN401  (a struct made at run time)
        raw = getattr(row, self._attribute[self._settings.value])
        value = _number(raw)
        if value is None:
            raise _Bad(Reason.BAD_VALUE, f"{self._settings.value} is {_shown(raw)}")
        if not abs(value) <= LARGEST_VALUE:
            raise _Bad(Reason.BAD_VALUE, f"{self._settings.value} is {value}, beyond 1e15 or NaN")
        return value

    def _number_ms(self, time: object) -> float:
        number = _number(time)
        if number is None:
            if self._settings.time_format == "auto":
                return self._rfc3339_ms(time)
            raise _Bad(Reason.BAD_TIME, f"{self._settings.time} is {_shown(time)}, not a number")
        unit_ms = _NUMBER_UNITS_MS.get(self._settings.time_format)
        if unit_ms is None:
            unit_ms = next((unit for limit, unit in _AUTO_UNITS_MS if number < limit), math.nan)
        return number * unit_ms

    def _rfc3339_ms(self, time: object) -> float:
        try:
            moment = datetime.fromisoformat(time)  # type: ignore[arg-type]  # TypeError is caught
        except (ValueError, TypeError):
            raise _Bad(Reason.BAD_TIME, f"{self._settings.time} is {_shown(time)}") from None
        if moment.tzinfo is None:
            wall = moment.replace(tzinfo=UTC) - _EPOCH
            return self._calendar.from_local(round(wall.total_seconds() * 1000))
        return (moment - _EPOCH).total_seconds() * 1000

    def _in_range(self, time_ms: float) -> int:
        if not EARLIEST_MS <= time_ms <= LATEST_MS - 1:  # rounding must not reach LATEST_MS
            raise _Bad(Reason.BAD_TIME, f"{time_ms:.17g} ms is not between 1970 and 2100")
        return round(time_ms)


def reject(records: Records, row: int, reason: Reason, detail: str) -> Reject:
    """The record in `row` as a reject."""
    offset = int(records.offset[row])
    return Reject(
        records.partition,
        offset,
        reason,
        detail[:_DETAIL_CHARACTERS],
        records.key[row],
        records.value[row],
        int(records.time_ms[row]),
        records.headers.get(offset, ()),
    )


def _merged(a: Events, b: Events) -> Events:
    """Both, in the order of their rows."""
    if not len(b):
        return a
    both = Events(
        np.concatenate([a.row, b.row]),
        np.concatenate([a.time_ms, b.time_ms]),
        np.concatenate([a.value, b.value]),
        BytesColumn.joined([a.key, b.key]),
    )
    return both.take(np.argsort(both.row))


def _scalar(part: object, name: str) -> bytes:
    """A key field's bytes: text as it is, an integer in decimal."""
    if type(part) is str and part:
        return part.encode("utf-8", "surrogatepass")
    if type(part) is int:
        return b"%d" % part
    return _no_key(f"{name} is {_shown(part)}, not text or an integer")


def _no_key(detail: str) -> bytes:
    raise _Bad(Reason.NO_KEY, detail)


def _number(raw: object) -> float | None:
    """A JSON number or text that spells one, NaN included; None for anything else."""
    if type(raw) is float or type(raw) is int:
        return _float(raw)
    # Python reads 1_000 as a number; nobody who writes events means one by it.
    return _float(raw) if type(raw) is str and "_" not in raw else None


def _float(raw: float | str) -> float | None:
    try:
        return float(raw)
    except (ValueError, OverflowError):
        return None


def _shown(value: object) -> str:
    """A value as a detail may show it: its type, and it itself where that is short."""
    text = repr(value) if isinstance(value, str | int | float | bool | None) else ""
    return "missing" if value is None else f"{type(value).__name__} {text[:60]}".strip()
