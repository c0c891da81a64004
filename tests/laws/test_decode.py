"""Law: any bytes become an event or a reject, never an exception."""

import gc
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from stream_forecaster.calendar import Calendar
from stream_forecaster.config import parse
from stream_forecaster.events import LARGEST_VALUE, UNTIMED_MS, EventDecoder, Reason
from stream_forecaster.records import BytesColumn, Records

_BROKER_MS = 1_767_312_000_000

_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["2026-01-02T00:00:00Z", "1767312000", "nan", "1e400", "2026-13-01"]),
    st.sampled_from([_BROKER_MS, _BROKER_MS // 1000, _BROKER_MS * 1000, _BROKER_MS + 10**9]),
)
_json = st.recursive(
    _scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner)),
    max_leaves=5,
)
_objects = st.fixed_dictionaries(
    {}, optional={"user_id": _json, "shop": _json, "ts": _json, "v": _json, "other": _json}
).map(lambda row: json.dumps(row).encode())
_twice = st.tuples(_objects, _objects).map(lambda pair: pair[0][:-1] + b"," + pair[1][1:])
# What a JSON library never writes.
_literals = st.one_of(
    st.sampled_from(
        """NaN -Infinity nan 1e999 -1e999 1e-999 00 -0 0x10 99999999999999999 18446744073709551616
        "\\ud800" "\\udc00\\ud800" "\\u0000" "1767312000\\u0000" "+1" "1_0" "-nan" "infinity"
        "0001-01-01T00:00:00+23:59" "9999-12-31T23:59:59-23:59" "2026-01-01T24:00:00" "2026-W01-1"
        """.split()  # noqa: SIM905  (a list of words reads better)
    ),
    st.integers(1, 6_000).map(lambda digits: "9" * digits),
    st.integers(1, 6_000).map(lambda digits: f'"{"9" * digits}"'),
    st.integers(1, 3_000).map(lambda depth: "[" * depth + "]" * depth),
    st.integers(1, 3_000).map(lambda depth: '{"a":' * depth + "1" + "}" * depth),
)
_handwritten = st.builds(
    lambda begin, fields, end: begin + b"{" + b",".join(fields) + b"}" + end,
    st.sampled_from([b"", b"", b"", b"\xef\xbb\xbf", b"\x00", b" \n"]),
    st.lists(
        st.builds(
            lambda name, literal: f'"{name}":{literal}'.encode(),
            st.sampled_from(["user_id", "user_id", "ts", "ts", "v", "shop", "other", "\\u0074s"]),
            st.one_of(_literals, st.sampled_from(['"ann"', "1767312000", "7"])),
        ),
        max_size=6,
    ),
    st.sampled_from([b"", b"", b"", b"\x00", b"{}", b","]),
)
_values = st.one_of(
    st.none(),
    st.binary(max_size=60),
    _handwritten,
    _handwritten.map(lambda row: row.decode("utf-8", "replace").encode("utf-16")),
    _objects,
    _twice,
    _objects.flatmap(lambda v: st.integers(0, len(v)).map(lambda n: v[:n])),
    st.sampled_from([b"[" * 100_000, b'{"user_id":' * 50_000, b"\x00" * 2_000_000]),
)
_decoders = st.fixed_dictionaries(
    {
        "key": st.sampled_from([[], ["user_id"], ["user_id", "shop"]]),
        "time": st.sampled_from(["", "ts"]),
        "time_format": st.sampled_from(["auto", "epoch_s", "epoch_ms", "epoch_us", "rfc3339"]),
        "timezone": st.sampled_from(["UTC", "America/Sao_Paulo"]),
    },
).flatmap(
    lambda fields: st.sampled_from([("", "count"), ("v", "sum"), ("v", "mean")]).map(
        lambda pair: {**fields, "value": pair[0], "aggregate": pair[1]}
    )
)


@given(
    values=st.lists(_values, max_size=5),
    keys=st.lists(st.one_of(st.none(), st.binary(max_size=2_000)), min_size=5, max_size=5),
    fields=_decoders,
    broker_ms=st.sampled_from([-1, 0, _BROKER_MS]),
)
def test_any_bytes_become_an_event_or_a_reject(
    values: list[bytes | None],
    keys: list[bytes | None],
    fields: dict[str, object],
    broker_ms: int,
) -> None:
    """Every record comes out once; events are fit for the windows, rejects keep their bytes."""
    config = parse({"input": fields}).input
    decode = EventDecoder(config, Calendar(config.timezone))
    n = len(values)
    records = Records(
        3, np.arange(n), np.full(n, broker_ms), BytesColumn.of(keys[:n]), BytesColumn.of(values), n
    )

    events, rejects = decode(records)

    assert sorted([*events.row.tolist(), *(r.offset for r in rejects)]) == list(range(n))
    assert events.time_ms.dtype == np.int64
    heartbeat = np.array([key is None for key in events.key], np.bool_)
    untimed = heartbeat & (events.time_ms == UNTIMED_MS)
    assert (untimed | (events.time_ms >= 0) & (events.time_ms < 4_102_444_800_000)).all()
    assert (np.abs(events.value) <= LARGEST_VALUE).all()
    assert all(key is None or 0 < len(key) <= config.max_key_bytes for key in events.key)
    for rejected in rejects:
        assert rejected.reason in set(Reason)
        assert rejected.value == values[rejected.offset]
        assert rejected.key == keys[rejected.offset]
        assert len(rejected.detail) <= 200


@given(values=st.lists(_values, min_size=1, max_size=6), fields=_decoders)
def test_neighbours_do_not_matter(values: list[bytes | None], fields: dict[str, object]) -> None:
    """A record is decoded the same alone as among others."""
    config = parse({"input": fields}).input
    decode = EventDecoder(config, Calendar(config.timezone))
    n = len(values)
    together, _ = decode(
        Records(
            0,
            np.arange(n),
            np.full(n, _BROKER_MS),
            BytesColumn.of([b"k"] * n),
            BytesColumn.of(values),
            n,
        )
    )
    alone = [
        decode(
            Records(
                0,
                np.array([i]),
                np.array([_BROKER_MS]),
                BytesColumn.of([b"k"]),
                BytesColumn.of([value]),
                i + 1,
            )
        )[0]
        for i, value in enumerate(values)
    ]

    assert [key for one in alone for key in one.key] == list(together.key)
    assert [t for one in alone for t in one.time_ms.tolist()] == together.time_ms.tolist()


_alike = st.fixed_dictionaries(
    {
        "user_id": st.one_of(st.text(max_size=3), st.sampled_from(["x" * 600, 7, None])),
        "ts": st.one_of(
            st.integers(0, 2 * 10**17),
            st.sampled_from([_BROKER_MS + d for d in (-1, 0, 300_000, 300_001)]),
            st.sampled_from([10**11 - 1, 10**11, 10**14 - 1, 10**14, 4_102_444_800_000, -1, 1.5]),
            st.integers(1, 20).map(lambda short: 10**17 - short),  # as a float some are 10**17
        ),
        "v": st.one_of(st.floats(), st.integers(), st.sampled_from([1e15, 1.1e15, "2.5"])),
    }
).map(lambda row: json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass"))


@given(
    values=st.lists(st.one_of(_alike, _values), max_size=8),
    time_format=st.sampled_from(["auto", "epoch_s", "epoch_ms", "epoch_us"]),
    value=st.sampled_from([("", "count"), ("v", "sum")]),
    broker_ms=st.sampled_from([-1, _BROKER_MS]),
)
def test_together_is_one_by_one(
    values: list[bytes | None], time_format: str, value: tuple[str, str], broker_ms: int
) -> None:
    """Rows of the common shape, decoded as columns, come out as they would alone."""
    fields = {"time_format": time_format, "value": value[0], "aggregate": value[1]}
    decode = EventDecoder(parse({"input": fields}).input, Calendar("UTC"))
    n = len(values)
    records = Records(
        0,
        np.arange(n),
        np.full(n, broker_ms),
        BytesColumn.of([None] * n),
        BytesColumn.of(values),
        n,
    )

    fast, fast_rejects = decode(records)
    slow, slow_rejects = decode.one_by_one(records, range(n))

    assert fast.row.tolist() == slow.row.tolist()
    assert fast.time_ms.tolist() == slow.time_ms.tolist()
    assert fast.value.tolist() == slow.value.tolist()
    assert list(fast.key) == list(slow.key)
    assert fast_rejects == slow_rejects


@pytest.mark.parametrize(
    "value",
    [
        b"[" * 1_000_000,
        b'{"v":' * 200_000,
        b'{"v":[' + b"[]," * 300_000 + b"[]]}",
        b'{"user_id":"' + b"a" * 1_000_000 + b'"}',
        b'{"user_id":' + b"9" * 1_000_000 + b"}",
        b'{"user_id":"a","user_id":' + b'"a","user_id":' * 60_000 + b'"a"}',
        b'"' + b"\\" * 1_000_000,
    ],
    ids=["arrays", "objects", "small arrays", "a key", "a number", "duplicates", "escapes"],
)
def test_a_record_costs_memory_in_proportion(value: bytes) -> None:
    """A record of the largest size takes some tens of megabytes for a moment, and leaves little."""
    decode = EventDecoder(
        parse({"input": {"value": "v", "aggregate": "sum"}}).input, Calendar("UTC")
    )
    records = Records(
        0, np.array([0]), np.array([-1]), BytesColumn.of([None]), BytesColumn.of([value]), 1
    )
    decode(records)
    gc.collect()
    tracemalloc.start()

    events, rejects = decode(records)

    left_bytes, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(events) + len(rejects) == 1
    assert peak_bytes < 32 * len(value)
    kept_bytes = sum(len(rejected.value or b"") for rejected in rejects)  # for its dead letter
    assert left_bytes - kept_bytes < 100_000


# Pieces of JSON, sound and not, for fields that are wanted and others.
_texts = st.sampled_from(
    r'''"ann" "" "é" "a\"b" "\u00e9" "\ud83d\ude00" "\ud800" "\x" "\u12g4" "😀" "\ " "1767312000"
    'ann' "a\/b\\" "1767312000.5"'''.split()  # noqa: SIM905  (a list of words reads better)
) | st.sampled_from(['"\t"', '"\x7f"', '"a b"'])
_numbers = st.one_of(
    st.sampled_from(
        """0 -0 -0.0 00 01 -1 1. .5 - +1 1e5 1E-2 1e+05 1e 1e400 1e-400 0e1 -0e1 0.1 5e-324 1_0
        1767312000 1767312000.123 1767312000123 1767312000123456 0.30000000000000004 1e15 1.1e15
        123456789012345678 1234567890123456789 9007199254740993 99999999999999.9 1.234567890123456
        100000000000 100000000000000 9999999999999999 10000000000000000 NaN Infinity""".split()  # noqa: SIM905  (a list of words reads better)
    ),
    st.integers(-(2**64), 2**65).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.decimals(-(10**6), 10**13, places=4).map(str),
)
_nested = st.sampled_from(["{}", "[]", '{"user_id":"x"}', "[1,[2]]", "{", "[", "]", "}"])
_words = st.sampled_from("true false null tru nullx True".split())  # noqa: SIM905  (as above)
_space = st.sampled_from(["", "", "", " ", "\n\t", "\r\n ", "\x0b", "\xa0"])
_names = st.sampled_from(
    ['"user_id"', '"ts"', '"v"', '"x"', '"user_i"', '"user_id2"', '"\\u0074s"', '"é"', "ts", '""']
)
_field = st.tuples(
    _space, _names, _space, st.sampled_from([":", ":", ":", ":", "", "::", "="]), _space,
    st.one_of(_texts, _numbers, _nested, _words), _space,
).map("".join)  # fmt: skip
_wanted = st.tuples(
    st.one_of(st.just('"ann"'), _texts, _numbers),
    st.one_of(st.just("1767312000123"), _numbers, _texts),
    st.one_of(st.just("2.5"), _numbers),
).map(lambda told: [f'"{name}":{v}' for name, v in zip(("user_id", "ts", "v"), told, strict=True)])
_fragments = st.builds(
    lambda wanted, others, order, commas, ends: (
        ends[0]
        + "{"
        + "".join(
            f"{piece}{comma}"
            for piece, comma in zip(
                order.sample(wanted + others, len(wanted + others)), commas, strict=False
            )
        )[: -1 if ends[2] else None]
        + "}"
        + ends[1]
    ).encode(),
    _wanted,
    st.lists(_field, max_size=2),
    st.randoms(use_true_random=False),
    st.lists(st.sampled_from([","] * 9 + ["", ",,", ";"]), min_size=5, max_size=5),
    st.tuples(_space, st.sampled_from(["", "", " ", "\n", "x", "{}", "\x00"]), st.booleans()),
)
_stray = st.sampled_from([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x00", b"\\"])
_bytes = st.tuples(_fragments, st.integers(0, 60), _stray)
_odd = st.one_of(
    _fragments,
    _fragments,
    _bytes.map(lambda told: told[0][: told[1]] + told[2] + told[0][told[1] :]),
)


@effort(max_examples=400)
@given(
    values=st.lists(st.one_of(_odd, _alike), min_size=1, max_size=8),
    key=st.sampled_from([["user_id"], ["user_id"], []]),
    time=st.sampled_from([("ts", "auto"), ("ts", "epoch_ms"), ("", "auto")]),
    value=st.sampled_from([("", "count"), ("v", "sum")]),
    max_bytes=st.sampled_from(["1MiB", "60B"]),
)
def test_what_is_read_where_it_lies_is_what_it_says(
    values: list[bytes],
    key: list[str],
    time: tuple[str, str],
    value: tuple[str, str],
    max_bytes: str,
) -> None:
    """Of JSON that is almost right, or right but unusual: both ways agree to the last bit."""
    fields = {"key": key, "time": time[0], "time_format": time[1], "max_event_bytes": max_bytes}
    fields |= {"value": value[0], "aggregate": value[1]}
    decode = EventDecoder(parse({"input": fields}).input, Calendar("UTC"))
    n = len(values)
    keys = BytesColumn.of([b"k", None, b"", b"k2"] * 2).take(np.arange(n))
    times = np.resize([_BROKER_MS, -1, _BROKER_MS + 1], n)
    records = Records(0, np.arange(n), times, keys, BytesColumn.of(values), n)

    fast, fast_rejects = decode(records)
    slow, slow_rejects = decode.one_by_one(records, range(n))

    assert fast.row.tolist() == slow.row.tolist()
    assert fast.time_ms.tolist() == slow.time_ms.tolist()
    assert fast.value.tobytes() == slow.value.tobytes()
    assert fast.key == slow.key
    assert fast_rejects == slow_rejects


@pytest.mark.parametrize(
    "value",
    [
        b'{"user_id": "u42", "ts": 1767225600000, "type": "click"}',
        b' {"x":"a \\"quoted\\" \\u00e9\xc3\xa9","y":null,"ts":1767225600,"user_id":7}\n',
        b'{"a":-1.5e-05,"b":true,"ts":1767225600.123,"c":"","user_id":"\xc3\xa9","d":12345678901}',
    ],
)
def test_common_events_are_read_where_they_lie(value: bytes) -> None:
    """Without this the loop might refuse everything, and nobody would see it but the clock."""
    decode = EventDecoder(parse({"input": {}}).input, Calendar("UTC"))
    one = BytesColumn.of([None]), BytesColumn.of([value])
    events, others = decode._together(Records(0, np.array([0]), np.array([-1]), *one, 1))
    assert (len(events), others) == (1, [])
