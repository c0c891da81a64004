"""The AsyncAPI document is one, and what it says of the messages is true of them."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import streams
from hypothesis import given
from hypothesis import strategies as st

from stream_forecaster import config
from stream_forecaster.asyncapi import document
from stream_forecaster.config import Settings
from stream_forecaster.edge.topics import topic_configs, topic_names
from stream_forecaster.events import EventDecoder, Reason, Reject
from stream_forecaster.forecasts import Encoder, Forgotten
from stream_forecaster.records import Message

SETTINGS = streams.settings(scores=True)
DOCUMENT = document(SETTINGS)


def references(node: Any) -> Iterator[str]:
    """Every $ref below a node."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for child in node.values():
            yield from references(child)
    elif isinstance(node, list):
        for child in node:
            yield from references(child)


def resolved(reference: str, of: dict[str, Any] = DOCUMENT) -> Any:
    """What a $ref points to."""
    node: Any = of
    for part in reference.removeprefix("#/").split("/"):
        node = node[part]
    return node


def validator(schema: dict[str, Any], of: dict[str, Any] = DOCUMENT) -> Any:
    """Of a schema in the document, references into the rest of it included."""
    whole = {**schema, "components": of["components"]}
    made = jsonschema.Draft202012Validator(
        whole, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    made.check_schema(whole)
    return made


def check(name: str, message: Message) -> None:
    """Payload, headers and key are as the document's message says."""
    said = DOCUMENT["components"]["messages"][name]
    payload = None if message.value is None else json.loads(message.value)
    headers = {header: value.decode() for header, value in message.headers}
    validator(said["payload"]).validate(payload)
    validator(said["headers"]).validate(headers)
    validator(said["bindings"]["kafka"]["key"]).validate((message.key or b"").decode())


def test_it_is_an_asyncapi_document() -> None:
    """The parts that version 3 requires; every reference leads somewhere."""
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= DOCUMENT["info"].keys()
    assert list(references(DOCUMENT))
    for reference in references(DOCUMENT):
        assert resolved(reference) is not None, reference
    for operation in DOCUMENT["operations"].values():
        assert operation["action"] in {"send", "receive"}
        assert operation["channel"]["$ref"].removeprefix("#/channels/") in DOCUMENT["channels"]
    for channel in DOCUMENT["channels"].values():
        for name, message in channel["messages"].items():
            assert message == {"$ref": f"#/components/messages/{name}"}
    for server in DOCUMENT["servers"].values():
        assert {"host", "protocol"} <= server.keys()
    assert json.loads(json.dumps(DOCUMENT)) == DOCUMENT


def test_every_topic_is_a_channel() -> None:
    """By its name, with the settings that it is created with."""
    addresses = {channel["address"]: channel for channel in DOCUMENT["channels"].values()}

    assert addresses.keys() == set(topic_names(SETTINGS))
    for name, configs in topic_configs(SETTINGS).items():
        said = addresses[name]["bindings"]["kafka"]["topicConfiguration"]
        spelled = {k: ",".join(v) if isinstance(v, list) else str(v) for k, v in said.items()}
        assert spelled == configs


def test_messages_are_what_it_says() -> None:
    """Forecasts, the three kinds of tombstones, and scores."""
    turn = streams.shard(SETTINGS).advance(streams.block(streams.busy_log(60)))
    later = streams.block([*streams.busy_log(60), (None, None, streams.START_MS + 4 * 3_600_000)])
    expiring = streams.shard(SETTINGS).advance(later)
    gone = [Forgotten(0, 60, b"ann"), Forgotten(0, 61, b"bob", why="shed")]
    messages = streams.messages(SETTINGS, [turn, expiring])
    scores = [m for m in messages if m.topic == SETTINGS.output.scores_topic]
    tombstones = [m for m in messages if m.value is None]

    assert len(scores) > 50
    for message in scores:
        check("score", message)

    assert len(tombstones) >= 6
    for message in [*tombstones, *map(Encoder(SETTINGS).forgotten, gone)]:
        check("tombstone", message)
    for message in messages:
        if message.value is not None and message not in scores:
            check("forecast", message)


def test_without_scores_there_is_no_channel_for_them() -> None:
    """They are off by default."""
    said = document(Settings())

    assert "scores" not in said["channels"]
    assert "publishScores" not in said["operations"]


def test_a_wrong_message_is_told() -> None:
    """The check can fail: at the top, inside, and in the headers."""
    message = streams.messages(
        SETTINGS, [streams.shard(SETTINGS).advance(streams.block(streams.busy_log(60)))]
    )[0]
    value = json.loads(message.value or b"")
    check("forecast", message)
    for wrong in (
        value | {"schema": "forecast/2"},
        value | {"issued_at": "yesterday"},
        value | {"resolutions": [value["resolutions"][0] | {"mean": []}]},
    ):
        with pytest.raises(jsonschema.ValidationError):
            validator(DOCUMENT["components"]["messages"]["forecast"]["payload"]).validate(wrong)
    with pytest.raises(jsonschema.ValidationError, match="ce_id"):
        validator(DOCUMENT["components"]["messages"]["forecast"]["headers"]).validate({})


@pytest.mark.parametrize("time_ms", [-1, 7])
def test_a_dead_letter_has_the_headers_it_says(time_ms: int) -> None:
    """And may have others, which were the record's."""
    reject = Reject(0, 7, Reason.NO_KEY, "missing", b"k", b"{}", time_ms, (("trace", b"t1"),))

    check("deadLetter", Encoder(SETTINGS).dead_letter(reject))


_fields = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=3),
    st.integers(-5, 2_000_000_000),
    st.floats(),
    st.just("2026-01-01T00:00:00Z"),
    st.lists(st.integers(), max_size=1),
)


@given(st.dictionaries(st.sampled_from(["user_id", "ts", "v", "more"]), _fields))
def test_whatever_decodes_is_an_event(event: dict[str, Any]) -> None:
    """The schema of events turns away nothing that counts."""
    settings = streams.settings(aggregate="sum")
    said = document(settings)
    decode = EventDecoder(settings.input, settings.input.calendar())
    records = streams.block([(None, json.dumps(event).encode(), streams.START_MS)])

    events, _ = decode(records)

    schema = resolved("#/components/schemas/event", said)
    assert not len(events) or validator(schema, said).is_valid(event)


@pytest.mark.parametrize(
    ("section", "event", "valid"),
    [
        ({}, {"user_id": "ann", "ts": 1, "more": []}, True),
        ({}, {"user_id": "ann"}, True),
        ({}, {"ts": 1}, False),
        ({}, {"user_id": ""}, False),
        ({"key": ["shop", "user"]}, {"shop": 3, "user": "ann"}, True),
        ({"key": ["shop", "user"]}, {"shop": 3}, False),
        ({"key": []}, {}, True),
        ({"time_format": "rfc3339"}, {"user_id": 1, "ts": "2026-01-01T00:00:00Z"}, True),
        ({"time_format": "rfc3339"}, {"user_id": 1, "ts": 7}, False),
        ({"aggregate": "sum", "value": "amount"}, {"user_id": 1, "amount": 2.5}, True),
        ({"aggregate": "sum", "value": "amount"}, {"user_id": 1}, False),
        ({"aggregate": "sum", "value": "amount"}, {"user_id": 1, "amount": 1e16}, False),
    ],
)
def test_events_are_those_of_the_settings(
    section: dict[str, Any], event: dict[str, Any], *, valid: bool
) -> None:
    """Their fields by name, and which they have to have."""
    said = document(config.parse({"input": section}))

    assert validator(said["components"]["schemas"]["event"], said).is_valid(event) is valid


def test_how_the_broker_is_reached() -> None:
    """Every address; encryption and login without the secret."""
    settings: Settings = config.parse(
        {
            "kafka": {
                "bootstrap_servers": "a:1, b:2",
                "security_protocol": "SASL_SSL",
                "sasl_mechanism": "SCRAM-SHA-512",
                "sasl_plain_username": "ann",
                "sasl_plain_password": "hunter2",
            }
        }
    )

    said = document(settings)

    assert [server["host"] for server in said["servers"].values()] == ["a:1", "b:2"]
    assert {server["protocol"] for server in said["servers"].values()} == {"kafka-secure"}
    assert said["components"]["securitySchemes"] == {"sasl": {"type": "scramSha512"}}
    assert "hunter2" not in json.dumps(said)
    assert "security" not in document(Settings())["servers"]["kafka"]
