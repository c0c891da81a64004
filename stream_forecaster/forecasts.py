"""Forecasts, and the messages they become.

One message per key holds all resolutions and horizons, as JSON that follows the schema
`forecast/1` in `schemas/forecast-1.json`: numbers are finite and have five significant digits,
times are RFC 3339 in UTC, quantiles ascend. The headers are a CloudEvent in binary mode, so a
tombstone (no value) is one too.

The id is a function of what the forecast is about, not of when it was made: the same log gives the
same ids, and a reader may use them to drop what it has seen.
"""

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from stream_forecaster.config import Settings
from stream_forecaster.dead_letters import dead_letter
from stream_forecaster.events import Reject
from stream_forecaster.lstm import ABSOLUTE
from stream_forecaster.pool import Paths
from stream_forecaster.records import Message

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

SCHEMA = "forecast/1"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://stream-forecaster/forecast")
_SMALLEST_WEIGHT = 0.0005
_NOTHING = 1e-9
"""A level that is none. One event in a month of minutes is 2e-5."""
_MOST = 100.0
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
    def origins(self) -> list[str]:
        """(B,) what made each: the population alone, the experts, or they and the network."""
        known = "pool+lstm" if ABSOLUTE in self.paths[0].experts else "pool"
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
        return cls(short, long, np.clip(momentum, -_MOST, _MOST), np.clip(surprise, -_MOST, _MOST))


class Encoder:
    """Turns forecasts and rejects into messages, by the settings."""

    def __init__(self, settings: Settings) -> None:
        self._pipeline, self._config_id = settings.kafka.group_id, settings.config_id
        self._topics = settings.input.topic, settings.output.topic
        self._dead_letter_topic = settings.output.dead_letter_topic
        self._levels = [str(level) for level in settings.output.quantiles]
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
        place = f"{forgotten.why} at {forgotten.offset}"
        text, identity = self._identify(forgotten.key, forgotten.partition, place)
        headers = self._headers(f"forecast.{forgotten.why}.v1", identity, text)
        return Message(self._topics[1], forgotten.key, None, headers)

    def forecast(self, forecast: Forecast) -> Iterator[Message]:
        """One message per key: the tombstones of the expired ones first, then the forecasts."""
        issued_at = rfc3339(forecast.issued_ms)
        for key in forecast.expired:
            text, identity = self._identify(key, forecast.partition, issued_at)
            headers = self._headers("forecast.expired.v1", identity, text, issued_at)
            yield Message(self._topics[1], key, None, headers)
        valid_until = rfc3339(forecast.paths[0].end_ms)
        source = {
            "topic": self._topics[0],
            "partition": forecast.partition,
            "offset": forecast.offset,
        }
        resolutions = [self._resolutions(paths) for paths in forecast.paths]
        intents = _intents(forecast.intent)
        qualities = _qualities(forecast)
        for i, key in enumerate(forecast.keys):
            text, identity = self._identify(key, forecast.partition, issued_at)
            value = {
                "schema": SCHEMA,
                "id": identity,
                "pipeline": self._pipeline,
                "key": text,
                "issued_at": issued_at,
                "valid_until": valid_until,
                "source": source,
                "resolutions": [next(resolution) for resolution in resolutions],
                "intent": intents[i],
                "quality": qualities[i],
            }
            headers = self._headers("forecast.v1", identity, text, issued_at)
            data = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
            yield Message(self._topics[1], key, data, headers)

    def dead_letter(self, reject: Reject) -> Message:
        """The record as it was, and why it is no event."""
        return dead_letter(reject, self._topics[0], self._dead_letter_topic)

    def _identify(self, key: bytes, partition: int, at: str) -> tuple[str, str]:
        text = key.decode("utf-8", "backslashreplace")
        # Latin-1 keeps all bytes apart; two keys that are not UTF-8 may have the same text.
        name = f"{self._pipeline}|{partition}|{key.decode('latin-1')}|{at}|{self._config_id}"
        return text, str(uuid.uuid5(_NAMESPACE, name))

    def _headers(
        self, kind: str, identity: str, subject: str, at: str | None = None
    ) -> tuple[tuple[str, bytes], ...]:
        time = () if at is None else (("ce_time", at.encode()),)
        return (
            ("content-type", b"application/json"),
            ("ce_specversion", b"1.0"),
            ("ce_type", b"io.streamforecaster." + kind.encode()),
            ("ce_source", self._source),
            ("ce_id", identity.encode()),
            ("ce_subject", subject.encode()),
            *time,
        )

    def _resolutions(self, paths: Paths) -> Iterator[dict[str, Any]]:
        """The `resolutions` entries of B keys, for one resolution."""
        start, step_s = rfc3339(paths.start_ms), paths.step_ms // 1000
        # Rows stay arrays: writing them from numpy takes half the time of writing lists.
        mean = five_digits(paths.mean)
        quantiles = np.ascontiguousarray(
            np.moveaxis(five_digits(paths.quantiles), 2, 1)
        )  # (B, Q, H)
        averages = _optional(paths.moving_average)
        levels = _optional(paths.level)
        weights = np.round(paths.weights, 3).tolist()
        for i in range(len(mean)):
            yield {
                "step_s": step_s,
                "start": start,
                "mean": mean[i],
                "quantiles": dict(zip(self._levels, quantiles[i], strict=True)),
                "moving_average": averages[i],
                "level": levels[i],
                "weights": {
                    name: weight
                    for name, weight in zip(paths.experts, weights[i], strict=True)
                    if abs(weight) > _SMALLEST_WEIGHT
                },
            }


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


def _optional(number: Float64) -> list[float | None]:
    """Five digits; None for NaN, which JSON cannot say."""
    rounded: list[float] = five_digits(np.nan_to_num(number)).tolist()
    return [
        None if nan else value
        for value, nan in zip(rounded, np.isnan(number).tolist(), strict=True)
    ]


def _intents(intent: Intent) -> list[dict[str, float]]:
    columns = (intent.short_term, intent.long_term, intent.momentum, intent.surprise)
    rows = five_digits(np.stack(columns, axis=1)).tolist()
    return [
        {"short_term": short, "long_term": long, "momentum": momentum, "surprise": surprise}
        for short, long, momentum, surprise in rows
    ]


def _qualities(forecast: Forecast) -> list[dict[str, Any]]:
    drift = "drift" if forecast.drifting else "stable"
    return [
        {
            "origin": origin,
            "cold_start": cold,
            "observations": observations,
            "coverage_80": coverage,
            "skill": skill,
            "drift": drift,
        }
        for origin, cold, observations, coverage, skill in zip(
            forecast.origins,
            forecast.cold_start.tolist(),
            forecast.observations.tolist(),
            _optional(forecast.coverage_80),
            _optional(forecast.skill),
            strict=True,
        )
    ]
