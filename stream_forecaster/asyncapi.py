"""The topics of a pipeline as an AsyncAPI 3 document: what is read, what is published, and where.

It is made from the settings, so it names this pipeline's topics, the fields of its events and how
the broker is reached. Portals and the code generators of other languages read such documents.
"""

import json
from importlib import resources
from typing import Any, Literal

from stream_forecaster import __version__
from stream_forecaster.config import Input, Kafka, Settings
from stream_forecaster.edge.topics import topic_configs
from stream_forecaster.events import LARGEST_VALUE, Reason

_BINDING = {"bindingVersion": "0.5.0"}
_SCHEMAS = "#/components/schemas"
_TEXT = {"type": "string"}
_DIGITS = {"type": "string", "pattern": "^[0-9]+$"}

_CLOUD_EVENT = {
    "content-type": {"const": "application/json"},
    "ce_specversion": {"const": "1.0"},
    "ce_source": {"type": "string", "description": "/stream-forecaster/ and the pipeline."},
    "ce_id": {
        "type": "string",
        "format": "uuid",
        "description": "The value's `id`, if there is one.",
    },
    "ce_subject": {"type": "string", "description": "The key as text."},
    "ce_time": {
        "type": "string",
        "format": "date-time",
        "description": "Event time: of issue; of a score, the bucket's start.",
    },
}
_UNTIMED = sorted(_CLOUD_EVENT.keys() - {"ce_time"})


def schema(message: Literal["forecast", "score"]) -> str:
    """The JSON Schema of a message's value, as it ships."""
    folder = resources.files("stream_forecaster") / "schemas"
    return (folder / f"{message}-1.json").read_text("utf-8")


def document(settings: Settings) -> dict[str, Any]:
    """The document, as JSON can hold it."""
    names = {
        "events": settings.input.topic,
        "forecasts": settings.output.topic,
        "deadLetters": settings.output.dead_letter_topic,
        "scores": settings.output.scores_topic,
    }
    messages = {
        "events": ("event", "heartbeat"),
        "forecasts": ("forecast", "tombstone"),
        "deadLetters": ("deadLetter",),
        "scores": ("score",),
    }
    configs = topic_configs(settings)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": f"stream-forecaster, pipeline {settings.kafka.group_id}",
            "version": __version__,
            "description": "Reads events, and publishes a forecast for each key at several time "
            "resolutions. All that is published, and the group's offsets, are written in one "
            "transaction: read with isolation.level = read_committed.",
        },
        "defaultContentType": "application/json",
        "servers": {f"kafka{i or ''}": server for i, server in enumerate(_servers(settings.kafka))},
        "channels": {
            name: {
                "address": topic,
                "messages": {m: {"$ref": f"#/components/messages/{m}"} for m in messages[name]},
                "bindings": {
                    "kafka": {
                        "topicConfiguration": _typed(configs[topic]),
                        **_BINDING,
                    }
                },
            }
            for name, topic in names.items()
            if topic
        },
        "operations": {
            "readEvents": _operation("receive", "events", settings.kafka.group_id),
            "publishForecasts": _operation("send", "forecasts"),
            "publishDeadLetters": _operation("send", "deadLetters"),
            **({"publishScores": _operation("send", "scores")} if names["scores"] else {}),
        },
        "components": {
            "messages": _messages(settings.input),
            "schemas": {
                "event": _event(settings.input),
                **_shipped("forecast"),
                **_shipped("score"),
            },
            "securitySchemes": _security(settings.kafka),
        },
    }


def _servers(kafka: Kafka) -> list[dict[str, Any]]:
    security = [{"$ref": f"#/components/securitySchemes/{name}"} for name in _security(kafka)]
    return [
        {
            "host": host.strip(),
            "protocol": "kafka-secure" if kafka.security_protocol.endswith("SSL") else "kafka",
            **({"security": security} if security else {}),
        }
        for host in kafka.bootstrap_servers.split(",")
    ]


def _security(kafka: Kafka) -> dict[str, dict[str, str]]:
    kinds = {"PLAIN": "plain", "SCRAM-SHA-256": "scramSha256", "SCRAM-SHA-512": "scramSha512"}
    if kafka.sasl_mechanism:
        return {"sasl": {"type": kinds.get(kafka.sasl_mechanism, "gssapi")}}
    return {"tls": {"type": "X509"}} if kafka.ssl_certfile else {}


def _operation(action: str, channel: str, group_id: str | None = None) -> dict[str, Any]:
    member = {"groupId": {"type": "string", "enum": [group_id]}} if group_id else {}
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "bindings": {"kafka": {**member, **_BINDING}},
    }


def _messages(settings: Input) -> dict[str, dict[str, Any]]:
    key = {"description": "The event's key, as it is: text or decimal digits.", **_TEXT}
    compound = {"description": "A JSON array of the key's fields, in their order.", **_TEXT}
    ours = compound if len(settings.key) > 1 else key
    errors = "__streams.errors"
    return {
        "event": _message(
            "What a user did. Events of one key lie in one partition.",
            {"$ref": f"{_SCHEMAS}/event"},
            {} if settings.key else key,
        ),
        "heartbeat": _message(
            "Moves the partition's clock to the record's time. With a key: forget that key.",
            {"type": "null"},
            {},
        ),
        "forecast": _message(
            "Everything forecast for one key at one moment; replaces the key's one before.",
            {"$ref": f"{_SCHEMAS}/forecast"},
            ours,
            _headers(_CLOUD_EVENT, ["forecast"], sorted(_CLOUD_EVENT)),
        ),
        "tombstone": _message(
            "The key has no forecast any more: it has expired, was forgotten, or shed for room.",
            {"type": "null"},
            ours,
            _headers(
                _CLOUD_EVENT, [f"forecast.{w}" for w in ("expired", "forgotten", "shed")], _UNTIMED
            ),
        ),
        "score": _message(
            "What was forecast of one bucket, so many steps ahead, and what came; only where "
            "`output.scores_topic` names a topic.",
            {"$ref": f"{_SCHEMAS}/score"},
            ours,
            _headers(_CLOUD_EVENT, ["score"], sorted(_CLOUD_EVENT)),
        ),
        "deadLetter": _message(
            "A record that is no event: key, value and headers as they were, then the reason.",
            {"description": "Any bytes."},
            {"description": "Any bytes."},
            {
                "type": "object",
                "required": [
                    f"{errors}.{n}"
                    for n in ("exception", "message", "topic", "partition", "offset")
                ],
                "properties": {
                    f"{errors}.exception": {"enum": [reason.value for reason in Reason]},
                    f"{errors}.message": {"type": "string", "description": "For a person."},
                    f"{errors}.topic": {"type": "string", "description": "Where the record lies."},
                    f"{errors}.partition": _DIGITS,
                    f"{errors}.offset": _DIGITS,
                    "stream_forecaster.timestamp": {
                        "description": "The record's own time, epoch ms; absent where it had none.",
                        **_DIGITS,
                    },
                    "stream_forecaster.replays": {
                        "description": "How often it has been resent; absent: never.",
                        **_DIGITS,
                    },
                    "stream_forecaster.cut": {
                        "description": "The record's bytes, where the letter has only the "
                        "beginning of them.",
                        **_DIGITS,
                    },
                },
            },
            content_type="application/octet-stream",
        ),
    }


def _message(
    summary: str,
    payload: dict[str, Any],
    key: dict[str, Any],
    headers: dict[str, Any] | None = None,
    *,
    content_type: str = "application/json",
) -> dict[str, Any]:
    return {
        "summary": summary,
        "contentType": content_type,
        **({"headers": headers} if headers else {}),
        "payload": payload,
        "bindings": {"kafka": {**({"key": key} if key else {}), **_BINDING}},
    }


def _headers(properties: dict[str, Any], kinds: list[str], required: list[str]) -> dict[str, Any]:
    """A CloudEvent in binary mode."""
    types = {"ce_type": {"enum": [f"io.streamforecaster.{kind}.v1" for kind in kinds]}}
    return {
        "type": "object",
        "required": ["ce_type", *required],
        "properties": {**types, **properties},
    }


def _event(settings: Input) -> dict[str, Any]:
    """What an event has to look like, by `[input]`; it may have more fields."""
    part = {
        "description": "Part of the key, or all of it.",
        "anyOf": [{"type": "string", "minLength": 1}, {"type": "integer"}],
    }
    properties: dict[str, Any] = dict.fromkeys(settings.key, part)
    required = list(settings.key)
    if settings.time:
        properties[settings.time] = _time(settings)
    if settings.value:
        spelled = {"type": "string", "description": "A number as text."}
        number = {"type": "number", "minimum": -LARGEST_VALUE, "maximum": LARGEST_VALUE}
        properties[settings.value] = {"description": "How much.", "anyOf": [number, spelled]}
        required.append(settings.value)
    return {
        "title": "event",
        "type": "object",
        **({"required": list(dict.fromkeys(required))} if required else {}),
        "properties": properties,
    }


def _time(settings: Input) -> dict[str, Any]:
    number, text = {"type": "number", "minimum": 0}, {"type": "string"}
    absent = {"type": "null", "description": "The record's own time counts, as where it is absent."}
    units = {
        "auto": "Epoch seconds, milliseconds or microseconds, by their size; or RFC 3339",
        "epoch_s": "Epoch seconds",
        "epoch_ms": "Epoch milliseconds",
        "epoch_us": "Epoch microseconds",
        "rfc3339": "RFC 3339",
    }
    kinds = [text, absent] if settings.time_format == "rfc3339" else [number, text, absent]
    zone = f"; without an offset it is {settings.timezone}"
    spelled = units[settings.time_format] + (zone if "RFC" in units[settings.time_format] else "")
    return {"description": f"When. {spelled}.", "anyOf": kinds}


def _shipped(message: Literal["forecast", "score"]) -> dict[str, Any]:
    """A schema that ships, its parts beside it: a document has one place for schemas."""
    whole = json.loads(schema(message).replace('"#/$defs/', f'"{_SCHEMAS}/{message}_'))
    parts = {f"{message}_{name}": part for name, part in whole.pop("$defs").items()}
    for name in ("$schema", "$id"):
        del whole[name]
    return {message: whole, **parts}


def _typed(configs: dict[str, str]) -> dict[str, Any]:
    """Topic settings with the types that the bindings want."""
    typed: dict[str, Any] = {}
    for name, value in configs.items():
        if name == "cleanup.policy":
            typed[name] = value.split(",")
        else:
            typed[name] = int(value) if value.isdigit() else value
    return typed
