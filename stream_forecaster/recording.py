"""Recorded forecasts, and how those of a replay compare with them.

A recording is what `--forecasts` wrote, or the output topic's values read back, one a line, in any
order. It need not be whole. Which of the replayed forecasts ought to be in it follows from where
they came from in the log:

* a partition takes part if the recording holds any forecast of it;
* there, the forecasts whose `source.offset` lies between the least and the greatest one recorded,
  both included. What the log says before and after that is not compared.

All forecasts of one hop share an offset, so a recording that was cut in the middle of a hop lacks
the rest of it at that end; such forecasts count as missing like any other, and are pointed out.
A compacted topic has lost all but the newest forecast of each key: it is no recording.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from stream_forecaster.edge.files import STDIN, read_lines
from stream_forecaster.errors import ConfigError
from stream_forecaster.forecasts import Forecast
from stream_forecaster.records import Message

_LONGEST_LINE_BYTES = 16 << 20
"""More than any broker takes as one message."""


class _Source(msgspec.Struct):
    partition: int
    offset: int


class _Line(msgspec.Struct):
    """Of a forecast only what is needed to place it."""

    id: str
    source: _Source


_decode_line = msgspec.json.Decoder(_Line).decode


@dataclass(frozen=True, slots=True)
class Difference:
    """One forecast that is not as recorded.

    Attributes:
        kind: "different", "missing", "unexpected" or "contradictory", as in `Comparison`.
        key: of the forecast.
        issued_at: its hop, RFC 3339.
        path: the first field that differs, such as `resolutions[0].mean[2]`; empty if the whole is
            missing, or if only the spelling differs.
        recorded: the field's value in the recording; None where there is none.
        replayed: likewise in the replay, or in the other record of the same id.
    """

    kind: str
    key: str
    issued_at: str
    path: str
    recorded: Any
    replayed: Any


class Recording:
    """An index of a recording: what each forecast was, as a digest, and the span of the log.

    Attributes:
        span: partition -> the least and the greatest `source.offset` recorded.
        contradictory: lines whose id came before with another value.

    Raises:
        ConfigError: the file cannot be read, or is not a recording.
    """

    def __init__(self, path: str) -> None:
        if path != STDIN and (not Path(path).exists() or Path(path).is_dir()):
            raise ConfigError(f"{path}: no such recording; `backtest --forecasts` writes one")
        self.path = path
        self.span: dict[int, tuple[int, int]] = {}
        self.contradictory = 0
        self.first_contradictory: Difference | None = None
        self._digest: dict[str, bytes] = {}
        for value, line in self._lines():
            digest = _digest(value)
            if self._digest.setdefault(line.id, digest) != digest:
                self.contradictory += 1
                if self.first_contradictory is None:
                    earlier = self.value(line.id)
                    self.first_contradictory = difference("contradictory", earlier, value)
            offset = line.source.offset
            first, last = self.span.get(line.source.partition, (offset, offset))
            self.span[line.source.partition] = min(first, offset), max(last, offset)

    def __len__(self) -> int:
        """How many forecasts were recorded, each id once."""
        return len(self._digest)

    def digests(self) -> dict[str, bytes]:
        """Id -> digest of the value; a copy."""
        return dict(self._digest)

    def value(self, *ids: str) -> bytes:
        """The first recorded value with one of these ids, read from the file once more."""
        wanted = set(ids)
        return next(value for value, line in self._lines() if line.id in wanted)

    def _lines(self) -> Iterator[tuple[bytes, _Line]]:
        lines = read_lines(self.path, _LONGEST_LINE_BYTES)
        for number, text in enumerate(lines, 1):
            value = text.rstrip(b"\r")
            try:
                yield value, _decode_line(value)
            except msgspec.MsgspecError as error:
                if not value and next(lines, None) is None:
                    return  # the file ends with the end of a line
                raise ConfigError(
                    f"{self.path}, line {number}: not a recorded forecast: {error}"
                ) from None


class Comparison:
    """Replayed forecasts against a recording.

    Attributes:
        equal: recorded, and replayed byte for byte.
        different: recorded, and replayed with the same id but other bytes.
        missing: replayed within the recorded span, but not recorded.
        missing_at_ends: those of the missing that belong to the first or last hop recorded.
        first: the first difference met; None if there is none (yet).
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._left = recording.digests()
        self.equal = self.different = self.missing = self.missing_at_ends = 0
        self.first = recording.first_contradictory

    @property
    def unexpected(self) -> int:
        """Recorded, and not replayed; final when the replay is over."""
        return len(self._left)

    @property
    def contradictory(self) -> int:
        """Recorded more than once, with different values."""
        return self._recording.contradictory

    @property
    def holds(self) -> bool:
        """Is the recording exactly what the log gives over its span?"""
        return not (self.different or self.missing or self.unexpected or self.contradictory)

    def covers(self, forecast: Forecast) -> bool:
        """Ought what was forecast at this hop to be in the recording?"""
        first, last = self._recording.span.get(forecast.partition, (0, -1))
        return first <= forecast.offset <= last

    def take(self, forecast: Forecast, message: Message) -> None:
        """Compare one message of a forecast that the recording covers; not tombstones."""
        value = message.value
        if value is None:
            return
        identity = _decode_line(value).id
        recorded = self._left.pop(identity, None)
        if recorded is None:
            self.missing += 1
            self.missing_at_ends += forecast.offset in self._recording.span[forecast.partition]
            self.first = self.first or difference("missing", None, value)
        elif recorded == _digest(value):
            self.equal += 1
        else:
            self.different += 1
            if self.first is None:
                self.first = difference("different", self._recording.value(identity), value)

    def explain(self) -> Iterator[str]:
        """What to know about the differences, for a person."""
        if (first := self.first) is not None:
            yield f"First difference: {first.kind}, key {first.key!r}, issued at {first.issued_at}"
            if first.path:
                yield f"  {first.path}: recorded {first.recorded!r}, now {first.replayed!r}"
            elif first.kind in {"different", "contradictory"}:
                yield "  The content is equal, the bytes are not: was the recording written anew?"
        if self.missing_at_ends:
            yield (
                f"Of those missing, {self.missing_at_ends:,} belong to the first or last hop "
                "recorded: was the recording cut in the middle of one?"
            )
        if self.unexpected and not self.equal and not self.different:
            yield (
                "No recorded id was met. Ids depend on kafka.group_id and on every setting that "
                "forecasts depend on: are these the settings that were recorded?"
            )

    def finish(self) -> None:
        """Find an example among what was recorded and not replayed, if nothing else differed."""
        if self._left and self.first is None:
            self.first = difference("unexpected", self._recording.value(*self._left), None)


def difference(kind: str, recorded: bytes | None, replayed: bytes | None) -> Difference:
    """Where two values of one forecast part; or what the one is that has no other."""
    if recorded is None or replayed is None:
        one = msgspec.json.decode(recorded or replayed or b"{}")
        return Difference(kind, one["key"], one["issued_at"], "", None, None)
    left, right = msgspec.json.decode(recorded), msgspec.json.decode(replayed)
    path, a, b = next(_unequal(left, right), ("", None, None))
    return Difference(kind, left["key"], left["issued_at"], path, a, b)


def _unequal(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:  # noqa: ANN401  (walks JSON)
    if isinstance(a, dict) and isinstance(b, dict):
        for name in dict.fromkeys((*a, *b)):
            yield from _unequal(a.get(name), b.get(name), f"{path}.{name}".lstrip("."))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (left, right) in enumerate(zip(a, b, strict=True)):
            yield from _unequal(left, right, f"{path}[{i}]")
    elif a != b:
        yield path, a, b


def _digest(value: bytes) -> bytes:
    return blake2b(value, digest_size=16).digest()
