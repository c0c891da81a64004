"""Forecast messages again, with dictionaries and the library's JSON: slow, obviously right."""

import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson

from stream_forecaster.config import Settings
from stream_forecaster.forecasts import (
    Float64,
    Forecast,
    Intent,
    Scored,
    five_digits,
    rfc3339,
)
from stream_forecaster.paths import Paths
from stream_forecaster.records import Message

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://stream-forecaster/forecast")


class SlowEncoder:
    """As `forecasts.Encoder`."""

    def __init__(self, settings: Settings) -> None:
        self._pipeline, self._config_id = settings.kafka.group_id, settings.config_id
        self._topics = settings.input.topic, settings.output.topic
        self._scores_topic = settings.output.scores_topic
        self._levels = [str(level) for level in settings.output.quantiles]
        self._source = f"/stream-forecaster/{self._pipeline}".encode()

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
                "schema": "forecast/1",
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

    def scores(self, scored: Scored) -> Iterator[Message]:
        """One message per key."""
        matured, partition = scored.matured, scored.partition
        start, step_s = rfc3339(matured.start_ms), matured.step_ms // 1000
        at = f"{start}|{step_s} s|{matured.ahead} ahead"
        truth, mean = five_digits(matured.truth).tolist(), five_digits(matured.mean).tolist()
        quantiles = five_digits(matured.quantiles).tolist()
        for i, key in enumerate(scored.keys):
            text, identity = self._identify(key, partition, at)
            value = {
                "schema": "score/1",
                "id": identity,
                "pipeline": self._pipeline,
                "key": text,
                "step_s": step_s,
                "start": start,
                "issued_at": rfc3339(matured.issued_ms),
                "ahead": matured.ahead,
                "source": {
                    "topic": self._topics[0],
                    "partition": partition,
                    "offset": scored.offset,
                },
                "value": truth[i],
                "mean": mean[i],
                "quantiles": dict(zip(self._levels, quantiles[i], strict=True)),
            }
            headers = self._headers("score.v1", identity, text, start)
            yield Message(self._scores_topic, key, orjson.dumps(value), headers)

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
        mean = five_digits(paths.mean)
        quantiles = np.ascontiguousarray(
            np.moveaxis(five_digits(paths.quantiles), 2, 1)
        )  # (B, Q, H)
        averages = _optional(paths.moving_average)
        levels = _optional(paths.level)
        weights = five_digits(np.round(paths.weights, 3)).tolist()
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
                    if weight
                },
            }


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
