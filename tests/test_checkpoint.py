"""Checkpoints as bytes: they come back whole, or not at all."""

import struct
import tracemalloc
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from streams import block, busy_log, settings, shard

from stream_forecaster import archive
from stream_forecaster.checkpoint import VERSION, Checkpoint, decode, encode
from stream_forecaster.config import parse
from stream_forecaster.errors import CheckpointCorrupt, CheckpointMismatch, StateError
from stream_forecaster.shard import Shard

_arrays = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
        lambda name: name != "__metadata__"
    ),
    st.sampled_from([np.bool_, np.uint8, np.int32, np.int64, np.float32, np.float64]).flatmap(
        lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=1, max_dims=3, min_side=0))
    ),
    max_size=4,
)


def _small() -> Checkpoint:
    config = settings()
    small = shard(config)
    small.advance(block(busy_log(50)))
    return small.checkpoint()


_BYTES = encode(_small())


@given(arrays=_arrays, partition=st.integers(0, 999), offset=st.integers(0, 2**63 - 1))
def test_what_is_saved_comes_back(arrays: dict[str, Any], partition: int, offset: int) -> None:
    """Every array of every kind, bit for bit, with its offset and settings."""
    saved = Checkpoint(partition, offset, "a-topic", {"input": {"key": ["a"]}}, arrays)
    back = decode(encode(saved))
    assert (back.partition, back.offset, back.log_id) == (partition, offset, "a-topic")
    assert back.settings == saved.settings
    assert back.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        assert back.arrays[name].dtype == array.dtype
        assert back.arrays[name].tobytes() == array.tobytes()
        assert back.arrays[name].shape == array.shape


@given(size=st.integers(0, len(_BYTES) - 1))
def test_every_truncation_is_found(size: int) -> None:
    """Down to nothing at all."""
    with pytest.raises(CheckpointCorrupt):
        decode(_BYTES[:size])


@given(flips=st.lists(st.integers(0, 8 * len(_BYTES) - 1), min_size=1, max_size=3, unique=True))
def test_every_flipped_bit_is_found(flips: list[int]) -> None:
    """Anywhere: in the arrays, the header, the version, the checksum itself."""
    damaged = bytearray(_BYTES)
    for flip in flips:
        damaged[flip // 8] ^= 1 << flip % 8
    with pytest.raises(CheckpointCorrupt):
        decode(bytes(damaged))


@pytest.mark.parametrize("bit", range(12 * 8))
def test_no_bit_of_the_head_is_taken_for_something_else(bit: int) -> None:
    """A damaged version number is damage, not another version."""
    damaged = bytearray(_BYTES)
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CheckpointCorrupt):
        decode(bytes(damaged))


@given(junk=st.binary(max_size=200))
def test_junk_is_no_checkpoint(junk: bytes) -> None:
    """Even where its head and its checksum are in order."""
    with pytest.raises(CheckpointCorrupt):
        decode(junk)
    with pytest.raises(CheckpointCorrupt):
        decode(struct.pack(">4sII", b"SFCP", VERSION, zlib.crc32(junk, VERSION)) + junk)


def test_another_version_is_refused() -> None:
    """And says which it is and which is read here."""
    body = b"whatever the future holds"
    future = struct.pack(">4sII", b"SFCP", VERSION + 1, zlib.crc32(body, VERSION + 1)) + body
    with pytest.raises(CheckpointMismatch, match=f"{VERSION + 1}.*{VERSION}"):
        decode(future)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"input": {"allowed_lateness": "3m"}}, "input.allowed_lateness was '2m' and is '3m'"),
        ({"input": {"key": ["a", "b"]}}, "input.key"),
        ({"output": {"publish": "every_hop"}}, "output.publish"),
        ({"output": {"quantiles": [0.5]}}, "output.quantiles"),
        ({"resolutions": [{"step": "1m", "context": 9, "horizon": 3}]}, "resolutions"),
        ({"model": {"seed": 7}}, "model.seed"),
        ({"model": {"train_every_hops": 0}}, "model.train_every_hops was 6 and is 0"),
        ({"model": {"train_rows": 8}}, "model.train_rows was 64 and is 8"),
        ({"state": {"key_ttl": "1d"}}, "state.key_ttl"),
        ({"kafka": {"group_id": "other"}}, "kafka.group_id"),
    ],
)
def test_other_settings_are_named(changed: dict[str, Any], named: str) -> None:
    """Those that forecasts depend on; a checkpoint under them is not silently used."""
    config, other = parse({}), parse(changed)
    saved = decode(encode(shard(config).checkpoint()))
    with pytest.raises(CheckpointMismatch, match="partition 0 at offset 0") as refused:
        Shard.restore(other, shard(other).calendar, saved)
    assert named in str(refused.value)


@pytest.mark.parametrize(
    "changed",
    [
        {"kafka": {"bootstrap_servers": "elsewhere:9092", "guarantee": "at_least_once"}},
        {"output": {"topic": "elsewhere"}},
        {"state": {"checkpoint_url": "memory://x", "checkpoint_interval": "1s"}},
        {"state": {"max_keys": 7}},
        {"http": {"port": 0}},
    ],
)
def test_settings_that_move_no_forecast_may_change(changed: dict[str, Any]) -> None:
    """Where the broker is, how often to commit, for how many keys there is room."""
    saved = decode(encode(shard(parse({})).checkpoint()))
    saved.require(parse(changed).determining())


def test_what_is_encoded_is_a_copy() -> None:
    """The shard goes on; what was taken of it stays."""
    config = settings()
    going_on, log = shard(config), busy_log(100)
    going_on.advance(block(log, 0, 50))
    taken = encode(going_on.checkpoint())
    before = bytes(taken)

    going_on.advance(block(log, 50))

    assert taken == before
    assert encode(going_on.checkpoint()) != before


def test_state_is_copied_once_to_be_saved_and_never_to_be_restored() -> None:
    """It may be most of the memory there is."""
    config = parse({"model": {"network": False}})
    crowded = shard(config)
    crowded.table.intern([b"%d" % key for key in range(10_000)], np.zeros(10_000, np.int64))
    tracemalloc.start()

    data = encode(crowded.checkpoint())
    _, saving = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    restored = Shard.restore(config, crowded.calendar, decode(data))
    _, restoring = tracemalloc.get_traced_memory()

    tracemalloc.stop()
    assert saving < 1.1 * len(data)
    assert restoring - before < 0.1 * len(data)
    assert restored.keys == crowded.keys


# -- archives that no version of ours has written --------------------------------------------------

_BODY = _BYTES[12:]
_HEADER_BYTES = 8 + int.from_bytes(_BODY[:8], "little")
_CONFIG = settings()


def _sealed(body: bytes) -> bytes:
    """With a head and a checksum that fit: only what is inside can tell."""
    return struct.pack(">4sII", b"SFCP", VERSION, zlib.crc32(body, VERSION)) + body


def _restored(data: bytes) -> Shard | None:
    """The shard; None where the checkpoint is refused. Any other error is a failure."""
    try:
        return Shard.restore(_CONFIG, shard(_CONFIG).calendar, decode(data))
    except StateError:
        return None


@settings_of_hypothesis(max_examples=40)
@given(
    flips=st.lists(st.integers(0, 8 * _HEADER_BYTES - 1), min_size=1, max_size=3),
    size=st.one_of(st.none(), st.integers(0, len(_BODY) - 1)),
)
def test_a_damaged_archive_is_refused_or_read(flips: list[int], size: int | None) -> None:
    """Behind a checksum that fits: the archive's own head, or its end."""
    damaged = bytearray(_BODY[:size])
    for flip in flips:
        if flip // 8 < len(damaged):
            damaged[flip // 8] ^= 1 << flip % 8

    _restored(_sealed(bytes(damaged)))


@pytest.mark.parametrize(
    "body",
    [
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 99_000_000) + b"{}",
        *(
            struct.pack("<Q", len(head)) + head
            for head in (
                b'{"a":' * 100_000,
                b'{"__metadata__":{"header":"' + b"[" * 100_000 + b'"}}',
                b'{"a":{"dtype":"F64","shape":[4611686018427387904],"data_offsets":[0,0]}}',
                b'{"a":{"dtype":"F64","shape":[99999999999],"data_offsets":[0,799999999992]}}',
            )
        ),
    ],
    ids=["a length", "a long one", "nested", "nested inside", "a huge shape", "huge data"],
)
def test_what_an_archive_claims_costs_no_memory(body: bytes) -> None:
    """Room is made for what is there."""
    tracemalloc.start()

    with pytest.raises(CheckpointCorrupt):
        decode(_sealed(body))

    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 20 * len(body) + 100_000


@given(
    name=st.sampled_from(["partition", "offset", "log_id", "settings"]),
    value=st.one_of(
        st.none(), st.integers(), st.booleans(), st.floats(), st.text(), st.lists(st.integers())
    ),
)
def test_a_header_of_another_kind_is_refused(name: str, value: object) -> None:
    """It would break the loop later, where nobody knows why."""
    saved = decode(_BYTES)
    header = {
        "partition": 0,
        "offset": 7,
        "log_id": "",
        "settings": saved.settings,
        name: value,
    }
    fits = (isinstance(value, str) and name == "log_id") or (
        type(value) is int and 0 <= value < 1 << 63 and name in {"partition", "offset"}
    )

    try:
        decode(_sealed(bytes(archive.pack(header, saved.arrays))))
    except CheckpointCorrupt:
        assert not fits
    else:
        assert fits


@settings_of_hypothesis(max_examples=40)
@given(name=st.sampled_from(sorted(_small().arrays)), change=st.sampled_from(range(5)))
def test_arrays_of_another_kind_are_refused_or_read(name: str, change: int) -> None:
    """One is missing, empty, of another type, of another shape, or there is one more."""
    saved = decode(_BYTES)
    arrays = dict(saved.arrays)
    array = arrays.pop(name)
    others = [
        {},
        {name: array[:0]},
        {name: np.zeros(array.shape, np.uint8)},
        {name: np.zeros((2, 3, 4), array.dtype)},
        {name: array, f"{name}s": array},
    ]

    _restored(bytes(encode(replace(saved, arrays=arrays | others[change]))))
