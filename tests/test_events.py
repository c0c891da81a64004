"""Decoding, field by field. That no bytes at all make it raise is in `laws/test_decode.py`."""

import json
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_forecaster.calendar import LATEST_MS, Calendar
from stream_forecaster.config import parse
from stream_forecaster.events import UNTIMED_MS, EventDecoder, Events, Reason, Reject
from stream_forecaster.records import BytesColumn, Records

NOW_MS = 1_767_312_000_123


@cache
def _decoder(fields: str) -> EventDecoder:
    config = parse({"input": json.loads(fields)}).input
    return EventDecoder(config, Calendar(config.timezone))


def decode(
    value: bytes | dict[str, Any] | None,
    /,
    *,
    record_key: bytes | None = None,
    broker_ms: int = NOW_MS,
    **fields: Any,
) -> tuple[Events, list[Reject]]:
    """One record under these `[input]` settings."""
    data = json.dumps(value).encode() if isinstance(value, dict) else value
    records = Records(
        3,
        np.array([70]),
        np.array([broker_ms]),
        BytesColumn.of([record_key]),
        BytesColumn.of([data]),
        71,
    )
    return _decoder(json.dumps(fields))(records)


def event(value: bytes | dict[str, Any], /, **given_: Any) -> tuple[bytes | None, int, float]:
    """Key, time and value of a record that must be an event."""
    events, rejects = decode(value, **given_)
    assert rejects == []
    return events.key[0], int(events.time_ms[0]), float(events.value[0])


def reason(value: bytes | dict[str, Any] | None, /, **given_: Any) -> Reason:
    """Why a record that must be a reject is one."""
    events, rejects = decode(value, **given_)
    assert len(events) == 0
    return rejects[0].reason


SUM = {"value": "v", "aggregate": "sum"}


def test_fields_are_called_what_the_settings_say() -> None:
    """Key, time and value may have any names, with dots and spaces in them."""
    row = {"who?": "ann", "a.b": NOW_MS, "": 1, "how much": 2.5, "other": [1]}
    named = {"key": ["who?"], "time": "a.b", "value": "how much", "aggregate": "sum"}
    assert event(row, **named) == (b"ann", NOW_MS, 2.5)


def test_one_field_may_serve_twice() -> None:
    """The key's field may be the value's too."""
    assert event({"n": 7, "ts": NOW_MS}, key=["n"], value="n", aggregate="mean") == (
        b"7",
        NOW_MS,
        7.0,
    )


@pytest.mark.parametrize(
    ("user", "key"),
    [("ann", b"ann"), ("é", "é".encode()), (7, b"7"), (-(2**63), b"-9223372036854775808")],
)
def test_a_key_is_text_or_an_integer(user: object, key: bytes) -> None:
    """Text as it is, integers in decimal."""
    assert event({"user_id": user, "ts": NOW_MS})[0] == key


@pytest.mark.parametrize("user", ["", None, 1.5, True, ["ann"], {"id": 1}])
def test_nothing_else_is_a_key(user: object) -> None:
    """Empty text is none either."""
    assert reason({"user_id": user, "ts": NOW_MS}) is Reason.NO_KEY


def test_a_missing_key_is_a_reject() -> None:
    """Of a field, or of the record."""
    assert reason({"ts": NOW_MS}) is Reason.NO_KEY
    assert reason({"ts": NOW_MS}, key=[]) is Reason.NO_KEY
    assert reason({"shop": "x", "ts": NOW_MS}, record_key=b"raw") is Reason.NO_KEY


def test_without_key_fields_the_records_key_counts() -> None:
    """Its bytes as they are, text or not."""
    assert event(b"{}", key=[], record_key=b"\xff\x00")[0] == b"\xff\x00"


_parts = st.lists(
    st.one_of(st.text(min_size=1, max_size=4), st.integers(-9, 9)), min_size=2, max_size=2
)


@given(some=_parts, other=_parts)
def test_compound_keys_keep_what_differs_apart(some: list[object], other: list[object]) -> None:
    """Two pairs of fields have the same key only if they are the same: 1 is not "1"."""
    keys = [event({"a": a, "b": b, "ts": NOW_MS}, key=["a", "b"])[0] for a, b in (some, other)]
    same = [(type(p), p) for p in some] == [(type(p), p) for p in other]
    assert (keys[0] == keys[1]) == same
    assert json.loads(keys[0] or b"") == some


def test_a_compound_key_needs_all_its_parts() -> None:
    """One missing field is a missing key."""
    assert reason({"a": 1, "ts": NOW_MS}, key=["a", "b"]) is Reason.NO_KEY


@pytest.mark.parametrize(
    ("time_format", "time"),
    [
        ("epoch_ms", NOW_MS),
        ("epoch_ms", str(NOW_MS)),
        ("epoch_s", NOW_MS / 1000),
        ("epoch_s", f"{NOW_MS / 1000:.3f}"),
        ("epoch_us", NOW_MS * 1000),
        ("rfc3339", "2026-01-02T00:00:00.123Z"),
        ("rfc3339", "2026-01-02T05:30:00.123+05:30"),
    ],
)
@pytest.mark.parametrize("auto", [False, True])
def test_times_in_every_format(time_format: str, time: object, auto: bool) -> None:  # noqa: FBT001  (a parameter)
    """Each by its name, and each by "auto"; numbers may be written as text."""
    chosen = "auto" if auto else time_format
    assert event({"user_id": "ann", "ts": time}, time_format=chosen)[1] == NOW_MS


@given(time_ms=st.integers(10**11, LATEST_MS - 1), unit=st.sampled_from([1_000, 1, 0.001]))
def test_auto_knows_the_unit_of_every_time_since_1973(time_ms: int, unit: float) -> None:
    """Seconds, milliseconds and microseconds are told apart by their size."""
    events, _ = decode({"user_id": "ann", "ts": time_ms / unit}, broker_ms=-1)
    assert events.time_ms.tolist() == [time_ms]


def test_a_time_without_a_zone_is_local() -> None:
    """It is read in `input.timezone`."""
    text = "2026-07-01T12:00:00"
    moment = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("Europe/Zurich"))
    time_ms = event(
        {"user_id": "ann", "ts": text},
        timezone="Europe/Zurich",
        time_format="rfc3339",
        broker_ms=-1,
    )[1]
    assert time_ms == moment.timestamp() * 1000


@pytest.mark.parametrize(
    ("time_format", "time"),
    [
        ("auto", "yesterday"),
        ("auto", True),
        ("auto", [NOW_MS]),
        ("auto", -1),
        ("auto", 1e18),
        ("auto", "nan"),
        ("auto", "1e400"),
        ("auto", "2026-02-30T00:00:00Z"),
        ("auto", "0001-01-01T00:00:00Z"),
        ("auto", "9999-12-31T23:59:59Z"),
        ("epoch_s", "2026-01-02T00:00:00Z"),
        ("epoch_s", NOW_MS),
        ("epoch_ms", LATEST_MS),
        ("rfc3339", NOW_MS),
    ],
)
def test_what_is_no_time_is_a_reject(time_format: str, time: object) -> None:
    """Nor is a time before 1970 or after 2099."""
    row = {"user_id": "ann", "ts": time}
    assert reason(row, time_format=time_format, broker_ms=-1) is Reason.BAD_TIME


def test_a_time_is_never_rounded_out_of_its_range() -> None:
    """The last half millisecond of 2099 belongs to no bucket."""
    row = {"user_id": "ann", "ts": LATEST_MS - 0.25}
    assert reason(row, time_format="epoch_ms", broker_ms=-1) is Reason.BAD_TIME


def test_without_a_time_the_records_own_counts() -> None:
    """Where the settings name no field, and where the field is missing."""
    assert event({"user_id": "ann", "ts": 1}, time="")[1] == NOW_MS
    assert event({"user_id": "ann"})[1] == NOW_MS
    assert reason({"user_id": "ann"}, broker_ms=-1) is Reason.BAD_TIME


def test_too_far_ahead_is_judged_by_the_records_own_time() -> None:
    """Up to the bound is allowed; where the broker gave no time, so is anything."""
    bound_ms = NOW_MS + 60_000
    assert event({"user_id": "ann", "ts": bound_ms}, max_ahead="60s")[1] == bound_ms
    late = {"user_id": "ann", "ts": bound_ms + 1}
    assert reason(late, max_ahead="60s") is Reason.TOO_FAR_AHEAD
    assert event(late, max_ahead="60s", broker_ms=-1)[1] == bound_ms + 1


@pytest.mark.parametrize("value", [2, 2.0, "2", "2e0", " 2 "])
def test_a_value_is_a_number_or_spells_one(value: object) -> None:
    """Many producers quote their numbers."""
    assert event({"user_id": "ann", "ts": NOW_MS, "v": value}, **SUM)[2] == 2.0


@pytest.mark.parametrize(
    "value",
    [None, True, "two", [2], {"v": 2}, "nan", "inf", "-Infinity", 1.1e15, 10**400],
    ids=lambda value: repr(value)[:12],
)
def test_what_is_no_finite_number_is_no_value(value: object) -> None:
    """Nor is one whose square could not be kept."""
    assert reason({"user_id": "ann", "ts": NOW_MS, "v": value}, **SUM) in {
        Reason.BAD_VALUE,
        Reason.NOT_JSON,  # the parser's own bound on digits
    }


def test_counting_looks_at_no_value() -> None:
    """Each event is one, whatever else it says."""
    assert event({"user_id": "ann", "ts": NOW_MS, "v": "junk", "value": 9})[2] == 1.0


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"junk",
        b"[]",
        b"3",
        b'"text"',
        b'{"user_id":"ann"',
        b'{"user_id":"ann"} tail',
        b'{"user_id":"\xff"}',
        b'{"user_id":"ann","ts":NaN}',
        b"[" * 100_000,
        b"{" * 100_000,
        b"\x00" * 1_000_000,
        b"x" * 1_000_000,
    ],
)
def test_what_is_no_json_object_is_a_reject(junk: bytes) -> None:
    """Up to a megabyte of it, and however deep."""
    assert reason(junk) is Reason.NOT_JSON


def test_nested_fields_are_passed_over() -> None:
    """They matter only where a key, time or value was to be."""
    row = {"user_id": "ann", "ts": NOW_MS, "deep": {"user_id": ["bob"], "ts": {}}}
    assert event(row)[0] == b"ann"
    assert reason({"user_id": {"id": "ann"}, "ts": NOW_MS}) is Reason.NO_KEY


def test_of_duplicate_fields_the_last_counts() -> None:
    """As in most JSON readers."""
    twice = b'{"user_id":"ann","ts":%d,"user_id":"bob"}' % NOW_MS
    assert event(twice)[0] == b"bob"


def test_too_large() -> None:
    """A value or a key beyond its bound; at the bound it is allowed."""
    row = b'{"user_id":"ann"}'
    assert event(row, max_event_bytes=f"{len(row)}B")[0] == b"ann"
    assert reason(row, max_event_bytes=f"{len(row) - 1}B") is Reason.TOO_LARGE
    assert event(row, max_key_bytes="3B")[0] == b"ann"
    assert reason(row, max_key_bytes="2B") is Reason.TOO_LARGE


def test_a_null_value_is_a_heartbeat() -> None:
    """It has no key and the record's own time; without one it says nothing."""
    events, rejects = decode(None, record_key=b"whatever")
    assert (list(events.key), events.time_ms.tolist(), rejects) == ([None], [NOW_MS], [])
    assert reason(None, broker_ms=-1) is Reason.BAD_TIME


def test_a_tombstone_needs_no_time() -> None:
    """With a key a null value has something to say even so; the key is not an event's."""
    events, rejects = decode(None, record_key=b"ann", broker_ms=-1)
    assert (list(events.key), events.time_ms.tolist(), rejects) == ([None], [UNTIMED_MS], [])
    assert reason(None, record_key=b"", broker_ms=-1) is Reason.BAD_TIME


def test_a_reject_keeps_the_record() -> None:
    """Its place, its bytes, and for a person what was found."""
    value = b'{"user_id":[1,2]}'
    _, (rejected,) = decode(value, record_key=b"k")
    assert (rejected.partition, rejected.offset) == (3, 70)
    assert (rejected.key, rejected.value) == (b"k", value)
    assert "user_id" in rejected.detail


@given(text=st.text(max_size=2_000))
def test_details_are_short(text: str) -> None:
    """However long what was found is."""
    _, rejects = decode({"user_id": "ann", "ts": text}, time_format="epoch_ms")
    assert all(len(rejected.detail) <= 200 for rejected in rejects)


def test_events_and_rejects_keep_their_order_and_rows() -> None:
    """Each row of a block comes out once."""
    rows = [b'{"user_id":"a"}', b"junk", None, b"{}", b'{"user_id":"b"}']
    offsets = np.array([5, 7, 8, 11, 12])
    records = Records(
        0, offsets, np.full(5, NOW_MS), BytesColumn.of([None] * 5), BytesColumn.of(rows), 13
    )
    events, rejects = _decoder("{}")(records)
    assert events.row.tolist() == [0, 2, 4]
    assert events.key == [b"a", None, b"b"]
    assert [r.offset for r in rejects] == [7, 11]


def test_fractions_of_a_millisecond_are_rounded() -> None:
    """To the nearest, so that seconds with three decimals are exact."""
    start = datetime(2026, 1, 2, tzinfo=ZoneInfo("UTC"))
    for ms in range(0, 1000, 7):
        seconds = (start + timedelta(milliseconds=ms)).timestamp()
        assert event({"user_id": "ann", "ts": seconds})[1] == round(seconds * 1000)
