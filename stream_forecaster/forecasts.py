"""Forecasts, and the messages they become.

One message per key holds all resolutions and horizons, as JSON that follows the schema
`forecast/1` in `schemas/forecast-1.json`: numbers are finite and have five significant digits,
times are RFC 3339 in UTC, quantiles ascend. The headers are a CloudEvent in binary mode, so a
tombstone (no value) is one too.

Where a topic for them is set, so do scores, by `schemas/score-1.json`: one message per key, horizon
and bucket for each forecast whose time has come.

The id is a function of what the message is about, not of when it was made: the same log gives the
same ids, and a reader may use them to drop what it has seen.
"""

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha1
from typing import Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from stream_forecaster.config import Settings
from stream_forecaster.dead_letters import dead_letter
from stream_forecaster.due import Matured
from stream_forecaster.events import Reject
from stream_forecaster.json_rows import DECIMALS, WHOLE, Rows
from stream_forecaster.lstm import ABSOLUTE
from stream_forecaster.paths import Paths
from stream_forecaster.records import Message, as_text

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Headers = tuple[tuple[str, bytes], ...]

SCHEMA = "forecast/1"
SCORE_SCHEMA = "score/1"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://stream-forecaster/forecast")
_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}
"""The digit of a UUID of which two bits are fixed."""
_NOTHING = 1e-9
"""A level that is none. One event in a month of minutes is 2e-5."""
MOST = 100.0
"""Momentum and surprise are features: one absurd number must not decide a ranking."""
_LARGEST_EXPONENT = 300
_EXPONENT = np.arange(-_LARGEST_EXPONENT, _LARGEST_EXPONENT + 1)
_LARGEST_EXACT = 22
_UP = 10.0 ** np.clip(4 - _EXPONENT, 0, _LARGEST_EXACT)
_DOWN = 10.0 ** np.maximum(_EXPONENT - 4, 0)
"""What brings a number of each decimal exponent to five digits before the point, as up / down.
10^22 is the largest power of ten that a float holds exactly."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What was forecast at one hop, for B keys of one partition.

    Attributes:
        partition: the input partition.
        offset: the last record read before the issue: the one whose time made the hop due.
        issued_ms: the hop, a bucket boundary in event time, epoch ms.
        expired: keys forgotten at this hop, not seen for longer than `state.key_ttl`.
        keys: (B,) key bytes.
        paths: one per resolution, finest first.
        intent: see `Intent`.
        observations: (B,) events counted so far.
        cold_start: (B,) too young for a forecast of its own; the population still helps out.
        prior: (B,) nothing of the key is known yet: the forecast is the population's.
        coverage_80: (B,) how often the 80 % interval held so far; NaN before anything landed.
        skill: (B,) 1 - error / error of the last value; NaN likewise.
        drifting: has the finest resolution become harder to forecast of late?
    """

    partition: int
    offset: int
    issued_ms: int
    expired: tuple[bytes, ...]
    keys: tuple[bytes, ...]
    paths: tuple[Paths, ...]
    intent: "Intent"
    observations: NDArray[np.int64]
    cold_start: NDArray[np.bool_]
    prior: NDArray[np.bool_]
    coverage_80: Float64
    skill: Float64
    drifting: bool

    def take(self, rows: Int64) -> "Forecast":
        """The forecasts of some of the keys; the expired ones stay."""
        intent = self.intent
        return replace(
            self,
            keys=tuple(self.keys[row] for row in rows.tolist()),
            paths=tuple(paths.take(rows) for paths in self.paths),
            intent=Intent(
                intent.short_term[rows],
                intent.long_term[rows],
                intent.momentum[rows],
                intent.surprise[rows],
            ),
            observations=self.observations[rows],
            cold_start=self.cold_start[rows],
            prior=self.prior[rows],
            coverage_80=self.coverage_80[rows],
            skill=self.skill[rows],
        )

    @property
    def known_origin(self) -> str:
        """What made those that are not the population's alone: the experts, or with the network."""
        return "pool+lstm" if ABSOLUTE in self.paths[0].experts else "pool"

    @property
    def origins(self) -> list[str]:
        """(B,) what made each: the population alone, the experts, or they and the network."""
        known = self.known_origin
        return ["prior" if prior else known for prior in self.prior.tolist()]


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A key that was forgotten at a place in the log.

    Attributes:
        partition: the input partition.
        offset: of the record that made it so.
        key: its key bytes.
        why: the record is its tombstone; or a new key's event, for which there was no room.
        published: whether the output topic has to be told.
    """

    partition: int
    offset: int
    key: bytes
    why: Literal["forgotten", "shed"] = "forgotten"
    published: bool = True


@dataclass(frozen=True, slots=True)
class Scored:
    """Forecasts of B keys of one partition whose time has come.

    Attributes:
        partition: the input partition.
        offset: of the record whose time closed the bucket.
        keys: (B,) key bytes.
        matured: the forecasts, and what came.
    """

    partition: int
    offset: int
    keys: tuple[bytes, ...]
    matured: Matured


@dataclass(frozen=True, slots=True)
class Intent:
    """What a ranking model wants to know of B keys, in values per bucket of the finest resolution.

    With L, A the finest resolution's level and moving average, A' the coarsest resolution's moving
    average and f, c their bucket widths:

        short_term = L, or the forecast of the next bucket before anything closed
        long_term  = A' * f / c (A' where values are means), or A, or short_term: the first known
        momentum   = (short_term - long_term) / max(|long_term|, 1e-9), from -100 to 100
        surprise   = (x - forecast of x) / expected |error| of it, from -100 to 100,
                     where x is the newest closed bucket that has a value; 0 before there is one

    Where levels are positive momentum is short_term / long_term - 1, hence at least -1 for counts.
    The 1e-9 keeps what is left of a silent key, by decay or rounding, from passing for a trend.
    All are finite. A larger newest bucket never lowers short_term or surprise; a larger short_term
    with the same long_term never lowers momentum.
    """

    short_term: Float64
    long_term: Float64
    momentum: Float64
    surprise: Float64

    @classmethod
    def of(cls, paths: tuple[Paths, ...], surprise: Float64, *, is_mean: bool) -> "Intent":
        """Derive the four numbers (B,) from the paths and unbounded surprises (B,)."""
        fine, coarse = paths[0], paths[-1]
        short = np.where(np.isnan(fine.level), fine.mean[:, 0], fine.level)
        scale = 1.0 if is_mean else fine.step_ms / coarse.step_ms
        long = coarse.moving_average * scale
        long = np.where(np.isnan(long), fine.moving_average, long)
        long = np.where(np.isnan(long), short, long)
        momentum = (short - long) / np.maximum(np.abs(long), _NOTHING)
        return cls(short, long, np.clip(momentum, -MOST, MOST), np.clip(surprise, -MOST, MOST))


class Encoder:
    """Turns forecasts and rejects into messages, by the settings."""

    def __init__(self, settings: Settings) -> None:
        self._pipeline, self._config_id = settings.kafka.group_id, settings.config_id
        self._topics = settings.input.topic, settings.output.topic
        self._dead_letter_topic = settings.output.dead_letter_topic
        self._scores_topic = settings.output.scores_topic
        self._levels = [_json(str(level)) for level in settings.output.quantiles]
        self._source = f"/stream-forecaster/{self._pipeline}".encode()

    def output(self, output: Iterable[Forecast | Forgotten]) -> Iterator[Message]:
        """All messages of the output topic, in their order."""
        for said in output:
            if isinstance(said, Forgotten):
                yield self.forgotten(said)
            else:
                yield from self.forecast(said)

    def forgotten(self, forgotten: Forgotten) -> Message:
        """A tombstone. It belongs to a place in the log, not to an event time, and has none."""
        identify = self._identities(forgotten.partition, f"{forgotten.why} at {forgotten.offset}")
        kind = self._kind(f"forecast.{forgotten.why}.v1")
        headers = _headers(kind, identify(forgotten.key), as_text(forgotten.key))
        return Message(self._topics[1], forgotten.key, None, headers)

    def forecast(self, forecast: Forecast) -> Iterator[Message]:
        """One message per key: the tombstones of the expired ones first, then the forecasts."""
        issued_at = rfc3339(forecast.issued_ms)
        identify = self._identities(forecast.partition, issued_at)
        time, topic = (("ce_time", issued_at.encode()),), self._topics[1]
        kind = self._kind("forecast.expired.v1")
        for key in forecast.expired:
            yield Message(topic, key, None, _headers(kind, identify(key), as_text(key), time))
        kind, rows = self._kind("forecast.v1"), self.values(forecast)
        for key, identity, text, value in self._filled(SCHEMA, forecast.keys, identify, rows):
            yield Message(topic, key, value, _headers(kind, identity, text, time))

    def values(self, forecast: Forecast) -> Rows:
        """The messages' values but for their beginning, which has the id and the key."""
        intent, rows = forecast.intent, Rows()
        issued_at = rfc3339(forecast.issued_ms)
        valid_until = rfc3339(forecast.paths[0].end_ms)
        rows.text(f',"issued_at":"{issued_at}","valid_until":"{valid_until}","source":')
        rows.text(f'{self._place(forecast.partition, forecast.offset)},"resolutions":[')
        for i, paths in enumerate(forecast.paths):
            rows.text("," if i else "")
            self._resolution(rows, paths)
        rows.numbers('],"intent":{"short_term":', rows.block(intent.short_term))
        rows.numbers(',"long_term":', rows.block(intent.long_term))
        rows.numbers(',"momentum":', rows.block(intent.momentum))
        rows.numbers(',"surprise":', rows.block(intent.surprise))
        rows.text('},"quality":{"origin":')
        rows.choice(rows.block(forecast.prior, WHOLE), '"prior"', _json(forecast.known_origin))
        rows.text(',"cold_start":')
        rows.choice(rows.block(forecast.cold_start, WHOLE), "true", "false")
        rows.numbers(',"observations":', rows.block(forecast.observations, WHOLE))
        rows.numbers(',"coverage_80":', rows.block(forecast.coverage_80))
        rows.numbers(',"skill":', rows.block(forecast.skill))
        rows.text(f',"drift":"{"drift" if forecast.drifting else "stable"}"}}}}')
        return rows

    def scores(self, scored: Scored) -> Iterator[Message]:
        """One message per key."""
        matured, rows = scored.matured, Rows()
        start, issued_at = rfc3339(matured.start_ms), rfc3339(matured.issued_ms)
        step_s, ahead = matured.step_ms // 1000, matured.ahead
        rows.text(f',"step_s":{step_s},"start":"{start}","issued_at":"{issued_at}"')
        rows.text(f',"ahead":{ahead},"source":{self._place(scored.partition, scored.offset)}')
        rows.numbers(',"value":', rows.block(matured.truth))
        rows.numbers(',"mean":', rows.block(matured.mean))
        quantiles = rows.block(matured.quantiles)
        for q, level in enumerate(self._levels):
            before = "," if q else ',"quantiles":{'
            rows.numbers(f"{before}{level}:", quantiles + q)
        rows.text("}}")
        identify = self._identities(scored.partition, f"{start}|{step_s} s|{ahead} ahead")
        kind, time = self._kind("score.v1"), (("ce_time", start.encode()),)
        for key, identity, text, value in self._filled(SCORE_SCHEMA, scored.keys, identify, rows):
            headers = _headers(kind, identity, text, time)
            yield Message(self._scores_topic, key, value, headers)

    def dead_letter(self, reject: Reject) -> Message:
        """The record as it was, and why it is no event."""
        return dead_letter(reject, self._topics[0], self._dead_letter_topic)

    def _filled(
        self, schema: str, keys: Sequence[bytes], identify: Callable[[bytes], bytes], rows: Rows
    ) -> Iterator[tuple[bytes, bytes, str, bytes]]:
        """Key, id, key as text and value: schema, id and key, then what is in `rows`."""
        texts, identities = list(map(as_text, keys)), list(map(identify, keys))
        begin = f'{{"schema":"{schema}","id":"'.encode()
        then = f'","pipeline":{_json(self._pipeline)},"key":'.encode()
        heads = [
            b"".join((begin, identity, then, orjson.dumps(text)))
            for identity, text in zip(identities, texts, strict=True)
        ]
        return zip(keys, identities, texts, rows.filled(heads), strict=True)

    def _place(self, partition: int, offset: int) -> str:
        """A record of the input, as JSON."""
        topic = _json(self._topics[0])
        return f'{{"topic":{topic},"partition":{partition},"offset":{offset}}}'

    def _identities(self, partition: int, at: str) -> Callable[[bytes], bytes]:
        """The ids of a place in the log, by key: version 5 UUIDs, as `uuid.uuid5` makes them."""
        before = _NAMESPACE.bytes + f"{self._pipeline}|{partition}|".encode()
        after = f"|{at}|{self._config_id}".encode()

        def identify(key: bytes) -> bytes:
            # Latin-1 keeps all bytes apart; two keys that are not UTF-8 may have the same text.
            name = key if key.isascii() else key.decode("latin-1").encode()
            t = sha1(before + name + after, usedforsecurity=False).hexdigest()
            last = f"{_VARIANT[t[16]]}{t[17:20]}-{t[20:32]}"
            return f"{t[:8]}-{t[8:12]}-5{t[13:16]}-{last}".encode()

        return identify

    def _kind(self, kind: str) -> Headers:
        """The headers of all messages of one kind."""
        return (
            ("content-type", b"application/json"),
            ("ce_specversion", b"1.0"),
            ("ce_type", b"io.streamforecaster." + kind.encode()),
            ("ce_source", self._source),
        )

    def _resolution(self, rows: Rows, paths: Paths) -> None:
        """An entry of `resolutions`."""
        start, horizon = rfc3339(paths.start_ms), paths.mean.shape[1]
        rows.numbers(
            f'{{"step_s":{paths.step_ms // 1000},"start":"{start}","mean":[',
            rows.block(paths.mean),
            horizon,
        )
        quantiles = rows.block(paths.quantiles)
        for q, level in enumerate(self._levels):
            before = "]," if q else '],"quantiles":{'
            rows.numbers(f"{before}{level}:[", quantiles + q, horizon, len(self._levels))
        rows.numbers(']},"moving_average":', rows.block(paths.moving_average))
        rows.numbers(',"level":', rows.block(paths.level))
        rows.text(',"weights":{')
        weights = rows.block(paths.weights, DECIMALS)
        for m, expert in enumerate(paths.experts):
            rows.numbers(f",{_json(expert)}:", weights + m)
        rows.text("}}")


def _json(text: str) -> str:
    return orjson.dumps(text).decode()


def _headers(kind: Headers, identity: bytes, subject: str, time: Headers = ()) -> Headers:
    return (*kind, ("ce_id", identity), ("ce_subject", subject.encode()), *time)


def five_digits(number: Float64) -> Float64:
    """Round to five significant digits, so that the shortest decimal that reads back is short.

    Not beyond the 22nd decimal: a silent key's level decays for ever, and no one needs its 1e-300.

    >>> five_digits(np.array([0.1 + 0.2, 123456.7, 0.0, -2 / 3e9])).tolist()
    [0.3, 123460.0, 0.0, -6.6667e-10]
    """
    with np.errstate(divide="ignore"):
        exponent = np.floor(np.log10(np.abs(number)))
    row = np.clip(exponent, -_LARGEST_EXPONENT, _LARGEST_EXPONENT).astype(np.int64)
    up, down = _UP[row + _LARGEST_EXPONENT], _DOWN[row + _LARGEST_EXPONENT]
    # Dividing by an exact power of ten rounds correctly; multiplying by an inexact one does not.
    rounded: Float64 = np.rint(number * up / down) * down / up
    return rounded + 0.0  # turns -0.0 into 0.0


def rfc3339(time_ms: int) -> str:
    """An instant as RFC 3339 in UTC with milliseconds.

    >>> rfc3339(1_767_225_900_000)
    '2026-01-01T00:05:00.000Z'
    """
    moment = datetime.fromtimestamp(time_ms // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ms % 1000:03d}Z"
