"""Messages: every one follows the schema, whatever the log."""

import json
import math
from collections.abc import Iterator
from dataclasses import astuple, replace
from datetime import datetime
from decimal import Decimal
from importlib import resources
from itertools import pairwise
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker
from slow_encoder import SlowEncoder
from streams import START_MS, Row, aggregates, block, busy_log, event, messages, rows, shard
from streams import settings as small_settings

from stream_forecaster.config import Settings, parse
from stream_forecaster.events import Reason, Reject
from stream_forecaster.forecasts import Encoder, Forecast, Intent, five_digits
from stream_forecaster.paths import Paths
from stream_forecaster.records import Message

SCHEMA: dict[str, Any] = json.loads(
    (resources.files("stream_forecaster") / "schemas" / "forecast-1.json").read_text("utf-8")
)
FORMATS = FormatChecker(["uuid"])
FORMATS.checks("date-time", raises=ValueError)(
    lambda text: not isinstance(text, str) or bool(datetime.fromisoformat(text))
)
VALID = Draft202012Validator(SCHEMA, format_checker=FORMATS)
MINUTE_MS = 60_000


_numbers = st.one_of(
    st.floats(-1e24, 1e24),
    st.floats(-1e3, 1e3),
    st.floats(0, 1e-3),
    st.integers(-3000, 3000).map(lambda n: n / 10),
)


@st.composite
def forecasts(draw: st.DrawFn) -> Forecast:
    """A hop of a few keys: what could be forecast, not what would be."""
    keys = draw(st.lists(st.binary(max_size=9) | st.text(max_size=5).map(str.encode), max_size=70))
    n = len(keys)

    def some(*shape: int, of: st.SearchStrategy[float] = _numbers) -> Any:
        size = int(np.prod(shape))
        drawn = draw(st.lists(of, min_size=7, max_size=7))  # drawing each would take for ever
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        return rng.choice(drawn, size).reshape(shape)

    maybe = _numbers | st.just(math.nan)
    experts = draw(st.sampled_from([("naive", "lstm"), ('a"b', "\u00e9", "naive"), ()]))
    paths = tuple(
        Paths(
            step_ms,
            draw(st.integers(0, 2**41)),
            draw(st.integers(0, 2**41)),
            some(n, horizon),
            some(n, horizon, 3),
            some(n, of=maybe),
            some(n, of=maybe),
            some(n, len(experts), of=st.floats(-2, 2) | st.floats(-0.002, 0.002)),
            experts,
        )
        for step_ms, horizon in ((60_000, 3), (3_600_000, 1))
    )
    return Forecast(
        draw(st.integers(0, 500)),
        draw(st.integers(0, 2**62)),
        draw(st.integers(0, 2**41)),
        tuple(draw(st.lists(st.binary(max_size=3), max_size=2))),
        tuple(keys),
        paths,
        Intent(some(n), some(n), some(n), some(n)),
        np.abs(some(n, of=st.integers(0, 2**50))).astype(np.int64),
        some(n, of=st.booleans()),
        some(n, of=st.booleans()),
        some(n, of=maybe),
        some(n, of=maybe),
        draw(st.booleans()),
    )


def published(config: Settings, log: list[Row]) -> list[Message]:
    """What a shard publishes for a log."""
    return messages(config, [shard(config).advance(block(log))])


def values(published_: list[Message]) -> list[dict[str, Any]]:
    """The forecasts among them."""
    return [json.loads(m.value) for m in published_ if m.value is not None]


def headers(message: Message) -> dict[str, str]:
    """A message's headers as text."""
    return {name: value.decode() for name, value in message.headers}


def numbers(value: object) -> Iterator[Decimal]:
    """Every number in a JSON document parsed with `parse_float=Decimal`."""
    if isinstance(value, Decimal):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from numbers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers(inner)


def test_the_schema_is_one() -> None:
    """It keeps to its own dialect, and describes every field it has."""
    Draft202012Validator.check_schema(SCHEMA)

    def undescribed(schema: dict[str, Any], path: str) -> Iterator[str]:
        for name, inner in schema.get("properties", {}).items():
            if "description" not in inner:
                resolved = SCHEMA["$defs"].get(inner.get("$ref", "").rpartition("/")[2], {})
                yield from () if "description" in resolved else (f"{path}.{name}",)
            yield from undescribed(inner, f"{path}.{name}")

    assert list(undescribed(SCHEMA, "")) == []
    assert list(undescribed(SCHEMA["$defs"]["resolution"], "resolution")) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("extra",), 1),
        (("id",), "not-a-uuid"),
        (("issued_at",), "2026-13-01T00:00:00.000Z"),
        (("issued_at",), "2026-01-01T00:00:00Z"),
        (("quality", "origin"), "guess"),
        (("quality", "skill"), 1.5),
        (("source", "offset"), -1),
        (("source", "timestamp"), 0),
        (("resolutions",), []),
        (("resolutions", 0, "mean", 0), None),
        (("resolutions", 0, "quantiles", "1.5"), [0.0]),
        (("resolutions", 0, "level"), "high"),
    ],
)
def test_the_schema_can_say_no(path: tuple[str | int, ...], value: object) -> None:
    """A message with one thing wrong does not pass."""
    message = values(published(small_settings(), busy_log(30)))[-1]
    assert VALID.is_valid(message)

    *parents, last = path
    place: Any = message
    for step in parents:
        place = place[step]
    place[last] = value

    assert not VALID.is_valid(message)


@settings(max_examples=40)
@given(log=rows(), aggregate=aggregates)
def test_every_message_follows_the_schema(log: list[Row], aggregate: str) -> None:
    """Law: no log makes a message that a reader cannot rely on."""
    config = small_settings(aggregate)

    for message in published(config, log):
        if message.value is None:
            continue
        value = json.loads(message.value)
        VALID.validate(value)
        for resolution, expected in zip(value["resolutions"], config.resolutions, strict=True):
            _check_paths(resolution, expected.horizon, config, floor=aggregate == "count")


def _check_paths(
    resolution: dict[str, Any], horizon: int, config: Settings, *, floor: bool
) -> None:
    paths = list(resolution["quantiles"].values())
    assert [float(level) for level in resolution["quantiles"]] == list(config.output.quantiles)
    assert {len(path) for path in [resolution["mean"], *paths]} == {horizon}
    for lower, higher in pairwise(paths):
        assert all(low <= high for low, high in zip(lower, higher, strict=True))
    if floor:
        assert min(map(min, [resolution["mean"], *paths])) >= 0
        assert (resolution["moving_average"] or 0) >= 0
        assert (resolution["level"] or 0) >= 0


@settings(max_examples=40)
@given(log=rows(), aggregate=aggregates)
def test_numbers_are_finite_and_short(log: list[Row], aggregate: str) -> None:
    """Law: at most five significant digits, no NaN, no infinity."""
    for message in published(small_settings(aggregate), log):
        if message.value is not None:
            document = json.loads(message.value, parse_float=Decimal, parse_constant=pytest.fail)
            for number in numbers(document):
                assert len(number.normalize().as_tuple().digits) <= 5, number


@given(st.floats(-1e24, 1e24))
def test_five_digits_are_five_digits(number: float) -> None:
    """Law: rounding is to the nearest, and the shortest decimal that reads back is short."""
    (rounded,) = five_digits(np.array([number])).tolist()

    shown = Decimal(repr(rounded)).normalize()
    unit = max(Decimal(10) ** (shown.adjusted() - 4), Decimal(10) ** -22)
    assert len(shown.as_tuple().digits) <= 5
    assert abs(shown - Decimal(number)) <= unit * Decimal("0.501")


def test_what_decays_for_ever_ends() -> None:
    """The smallest floats are zero, quietly: a silent key's level gets there in a day."""
    tiny = np.array([5e-324, 1e-310, -1e-100, 1e-23])

    assert five_digits(tiny).tolist() == [0.0, 0.0, 0.0, 0.0]


@settings(max_examples=40)
@given(log=rows(), aggregate=aggregates)
def test_messages_are_those_of_the_slow_encoder(log: list[Row], aggregate: str) -> None:
    """Law: byte for byte, headers too; readers of the past are promised the same again."""
    config = small_settings(aggregate)
    (turn,) = [shard(config).advance(block(log))]

    for forecast in turn.forecasts:
        quick, slow = (list(e(config).forecast(forecast)) for e in (Encoder, SlowEncoder))
        assert quick == slow


@settings(max_examples=40)
@given(forecast=forecasts())
def test_any_forecast_is_that_of_the_slow_encoder(forecast: Forecast) -> None:
    """Law: whatever the numbers, keys and names in it."""
    config = parse(
        {
            "kafka": {"group_id": '100 % \u00e9"{}'},
            "input": {"topic": 'in"put'},
            "output": {"quantiles": [0.1, 0.5, 0.9]},
        }
    )

    quick, slow = (list(e(config).forecast(forecast)) for e in (Encoder, SlowEncoder))

    assert quick == slow


@settings(max_examples=40)
@given(log=rows())
def test_equal_logs_have_equal_ids(log: list[Row]) -> None:
    """Law: an id is a function of the log, and names one key at one moment."""
    config = small_settings()
    first, second = published(config, log), published(config, log)

    ids = [headers(message)["ce_id"] for message in first]

    assert ids == [headers(message)["ce_id"] for message in second]
    assert len(set(ids)) == len(ids)
    assert ids == [
        json.loads(m.value)["id"] if m.value else i for m, i in zip(first, ids, strict=True)
    ]
    assert {UUID(identity).version for identity in ids} <= {5}


def test_ids_differ_between_pipelines_settings_and_partitions() -> None:
    """What would be another forecast has another id."""
    log = busy_log(40)

    def first_id(config: Settings, partition: int = 0) -> str:
        (forecast, *_) = shard(config).advance(block(log)).forecasts
        forecast = replace(forecast, partition=partition)
        identity: str = values(list(Encoder(config).forecast(forecast)))[0]["id"]
        return identity

    config = small_settings()
    other_group = config.model_copy(
        update={"kafka": config.kafka.model_copy(update={"group_id": "another"})}
    )
    ids = [first_id(config), first_id(config, 1), first_id(other_group)]
    ids.append(first_id(small_settings(ttl="3h")))

    assert len(set(ids)) == 4


def test_keys_that_look_alike_have_ids_of_their_own() -> None:
    """A byte that is not UTF-8 and the text that stands for it are two keys."""
    config = parse(
        {"input": {"key": []}, "resolutions": [{"step": "1m", "context": 5, "horizon": 3}]}
    )
    keys = [b"\xff", b"\\xff", b"a"]
    log: list[Row] = [(key, event("x", START_MS), START_MS) for key in keys]
    log.append((b"a", event("x", START_MS + 10 * MINUTE_MS), START_MS + 10 * MINUTE_MS))

    out = published(config, log)

    assert [message.key for message in out] == keys
    assert [value["key"] for value in values(out)] == ["\\xff", "\\xff", "a"]
    assert len({value["id"] for value in values(out)}) == 3


@settings(max_examples=40)
@given(log=rows())
def test_times_obey_the_contract(log: list[Row]) -> None:
    """Law: issued at a boundary; each path begins at the first open bucket of its resolution."""
    config = small_settings()
    finest = config.resolutions[0]

    for message in published(config, log):
        if message.value is None:
            continue
        value = json.loads(message.value)
        issued = np.datetime64(value["issued_at"][:-1], "ms").astype(int)
        valid = np.datetime64(value["valid_until"][:-1], "ms").astype(int)
        assert issued % finest.step_ms == 0
        assert valid - issued == finest.horizon * finest.step_ms
        for resolution, path in zip(config.resolutions, value["resolutions"], strict=True):
            start = np.datetime64(path["start"][:-1], "ms").astype(int)
            assert path["step_s"] * 1000 == resolution.step_ms
            assert start == issued - issued % resolution.step_ms
        assert headers(message)["ce_time"] == value["issued_at"]


def test_the_source_is_the_record_that_made_the_hop_due() -> None:
    """The last one read before the issue: its time moves the watermark over the boundary.

    offset              0        1        2        3        4
    event time   00:00:10 00:00:40 00:02:29 00:02:30 00:09:00
    watermark    23:58:40 23:59:10 00:00:59 00:01:00 00:07:30    90 s behind
    hop                      23:59    00:00    00:01    00:07
    """
    config = small_settings()
    seconds = [10, 40, 149, 150, 540]
    log: list[Row] = [
        (None, event("ann", START_MS + 1000 * s), START_MS + 1000 * s) for s in seconds
    ]

    forecasts = values(published(config, log))

    assert [(value["issued_at"][11:16], value["source"]["offset"]) for value in forecasts] == [
        ("23:59", 1),
        ("00:00", 2),
        ("00:01", 3),
        ("00:07", 4),
    ]
    assert forecasts[0]["source"] == {"topic": "events", "partition": 0, "offset": 1}


def test_headers_are_a_cloud_event() -> None:
    """CloudEvents 1.0, binary mode: every required attribute, as the Kafka binding spells them."""
    config = small_settings()
    message = published(config, busy_log(30))[-1]

    assert message.topic == "forecasts"
    assert headers(message) == {
        "content-type": "application/json",
        "ce_specversion": "1.0",
        "ce_type": "io.streamforecaster.forecast.v1",
        "ce_source": "/stream-forecaster/stream-forecaster",
        "ce_id": values([message])[0]["id"],
        "ce_subject": (message.key or b"").decode(),
        "ce_time": values([message])[0]["issued_at"],
    }


def test_an_expired_key_leaves_a_tombstone() -> None:
    """No value, so that compaction forgets it; the headers still say what happened."""
    later_ms = START_MS + 200 * MINUTE_MS
    log: list[Row] = [
        (None, event("ann", START_MS), START_MS),
        (None, event("bob", later_ms), later_ms),
        (None, event("bob", later_ms + 5 * MINUTE_MS), later_ms + 5 * MINUTE_MS),
    ]

    (tombstone,) = [m for m in published(small_settings(ttl="2h"), log) if m.value is None]

    assert (tombstone.topic, tombstone.key) == ("forecasts", b"ann")
    assert headers(tombstone)["ce_type"] == "io.streamforecaster.forecast.expired.v1"
    assert headers(tombstone)["ce_subject"] == "ann"
    assert UUID(headers(tombstone)["ce_id"])


def test_a_forgotten_key_leaves_a_tombstone_too() -> None:
    """Of a place in the log rather than a time; each is a message of its own, replayed the same."""
    log: list[Row] = [
        (None, event("ann", START_MS), START_MS),
        (b"ann", None, -1),
        (None, event("ann", START_MS), START_MS),
        (b"ann", None, -1),
    ]

    first, second = published(small_settings(), log)

    assert (first.topic, first.key, first.value) == ("forecasts", b"ann", None)
    assert headers(first)["ce_type"] == "io.streamforecaster.forecast.forgotten.v1"
    assert "ce_time" not in headers(first)
    assert UUID(headers(first)["ce_id"]) != UUID(headers(second)["ce_id"])
    assert [first, second] == list(published(small_settings(), log))


def test_a_dead_letter_is_the_record_as_it_was() -> None:
    """Original bytes, and the reason under the names that Kafka Streams uses."""
    reject = Reject(
        3, 77, Reason.BAD_TIME, "ts is str \ud800", b"\x00k", b"\xff{", 5, (("h", None),)
    )

    message = Encoder(small_settings()).dead_letter(reject)

    assert message == Message(
        "events.dead-letter",
        b"\x00k",
        b"\xff{",
        (
            ("h", b""),
            ("__streams.errors.exception", b"bad_time"),
            ("__streams.errors.message", b"ts is str \\ud800"),
            ("__streams.errors.topic", b"events"),
            ("__streams.errors.partition", b"3"),
            ("__streams.errors.offset", b"77"),
            ("stream_forecaster.timestamp", b"5"),
        ),
    )


def test_levels_keep_their_names() -> None:
    """Levels that differ in the seventh digit stay two, and read back as they were given."""
    levels = [1e-05, 0.1234567, 0.1234568, 0.5]
    config = parse({"output": {"quantiles": levels}})

    value = values(published(config, busy_log(30)))[-1]

    assert [float(level) for level in value["resolutions"][0]["quantiles"]] == levels
    VALID.validate(value)


def test_coverage_is_unknown_without_its_interval() -> None:
    """With quantiles that hold no 80 % interval nothing may be called its coverage."""
    log = busy_log(400)
    config = parse({"output": {"quantiles": [0.25, 0.5, 0.75]}})

    known = values(published(parse({}), log))[-1]["quality"]["coverage_80"]
    unknown = values(published(config, log))[-1]["quality"]["coverage_80"]

    assert known is not None
    assert unknown is None


_levels = st.floats(-1e15, 1e15) | st.floats(-1e-6, 1e-6) | st.sampled_from([0.0, -0.0, math.nan])


@pytest.mark.parametrize(
    ("level", "average", "momentum"),
    [
        (2.0, 60.0, 1.0),
        (0.5, 60.0, -0.5),
        (0.0, 60.0, -1.0),
        (0.0, 0.0, 0.0),
        (1.0, 0.0, 100.0),
        (1e15, 1e-290, 100.0),
        (-1.0, -120.0, 0.5),
        (-3.0, -120.0, -0.5),
        (2.0, -60.0, 3.0),
    ],
)
def test_momentum_is_relative(level: float, average: float, momentum: float) -> None:
    """Short against long term, per fine bucket; below zero up is up, too."""
    fine, coarse = _paths(60_000, level, level), _paths(3_600_000, 0.0, average)

    intent = Intent.of((fine, coarse), np.zeros(1), is_mean=False)

    assert intent.momentum.tolist() == [momentum]


@pytest.mark.parametrize(("is_mean", "long_term"), [(False, 0.5), (True, 30.0)])
def test_the_long_term_is_per_fine_bucket(*, is_mean: bool, long_term: float) -> None:
    """An hour's sum is spread over its minutes; an hour's mean is a minute's."""
    paths = (_paths(60_000, 1.0, 1.0), _paths(3_600_000, 0.0, 30.0))

    intent = Intent.of(paths, np.zeros(1), is_mean=is_mean)

    assert intent.long_term.tolist() == [long_term]


@pytest.mark.parametrize(("level", "average"), [(1e-30, 0.0), (0.0, 1e-15), (0.0, -1e-15)])
def test_a_silent_key_has_no_trend(level: float, average: float) -> None:
    """What decay or rounding leaves is no level."""
    fine, coarse = _paths(60_000, level, level), _paths(3_600_000, 0.0, average)

    intent = Intent.of((fine, coarse), np.zeros(1), is_mean=False)

    assert np.abs(intent.momentum) < 1e-6


@given(low=_levels, high=_levels, fine_average=_levels, average=_levels, is_mean=st.booleans())
def test_intent_is_finite_and_momentum_monotone(
    *, low: float, high: float, fine_average: float, average: float, is_mean: bool
) -> None:
    """Law: a higher short-term level with the same long-term one has no lower momentum."""
    coarse = _paths(3_600_000, 0.0, average)

    lower, higher = (
        Intent.of((_paths(60_000, level, fine_average), coarse), np.zeros(1), is_mean=is_mean)
        for level in (low, high)
    )

    assert np.isfinite([list(astuple(intent)) for intent in (lower, higher)]).all()
    assert np.abs([lower.momentum, higher.momentum]).max() <= 100
    if lower.long_term == higher.long_term and lower.short_term <= higher.short_term:
        assert lower.momentum <= higher.momentum


@given(surprise=st.floats(-1e30, 1e30))
def test_surprise_is_bounded(surprise: float) -> None:
    """Law: it is what it is, up to a hundred expected errors either way."""
    paths = (_paths(60_000, 1.0, 1.0), _paths(3_600_000, 0.0, 60.0))

    intent = Intent.of(paths, np.array([surprise]), is_mean=False)

    assert intent.surprise.tolist() == [max(-100.0, min(100.0, surprise))]


@settings(max_examples=25)
@given(size=st.integers(2, 40), seed=st.integers(0, 9), extra=st.integers(1, 20))
def test_more_recent_events_never_lower_intent(size: int, seed: int, extra: int) -> None:
    """Law, on the shard: more events in ann's newest bucket, everything before it the same.

              ann, others          ann (+ extra)    closes the bucket, no more
    ├───── size events ─────┤├── 00:00 of the next minute ──┤├── bob, 3 min later
    """
    log = busy_log(size, seed)
    start_ms = (log[-1][2] // MINUTE_MS + 1) * MINUTE_MS
    once: Row = (None, event("ann", start_ms), start_ms)
    end_ms = start_ms + 1000 * 150  # the watermark is then a minute past the start, 90 s behind
    closing: Row = (None, event("bob", end_ms), end_ms)

    few, many = (_intent_of_ann([*log, *[once] * n, closing]) for n in (1, 1 + extra))

    assert few["short_term"] <= many["short_term"]
    assert few["surprise"] <= many["surprise"]
    if few["long_term"] == many["long_term"]:
        assert few["momentum"] <= many["momentum"]


def _intent_of_ann(log: list[Row]) -> dict[str, float]:
    forecasts = [
        value for value in values(published(small_settings(), log)) if value["key"] == "ann"
    ]
    intent: dict[str, float] = forecasts[-1]["intent"]
    return intent


def _paths(step_ms: int, level: float, average: float) -> Paths:
    """One key's path of nothing, with a level and a moving average."""
    return Paths(
        step_ms,
        0,
        step_ms,
        np.zeros((1, 1)),
        np.zeros((1, 1, 1)),
        np.array([average]),
        np.array([level]),
        np.zeros((1, 0)),
        (),
    )
