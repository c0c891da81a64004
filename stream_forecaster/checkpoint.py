"""Checkpoints: a shard as bytes, with the offset of the next record to read.

    ┌───────┬─────────┬────────┬────────────────────────────────────────────────┐
    │ magic │ version │ crc32  │ archive: header and arrays                     │
    └───────┴─────────┴────────┴────────────────────────────────────────────────┘
        4        4        4        the checksum covers all but itself, in every version

State and offset are one object, so they cannot disagree. Nothing is ever unpickled. The settings
that forecasts depend on are in the header: a checkpoint of other settings is refused, with what
differs.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

from stream_forecaster import archive
from stream_forecaster.errors import CheckpointCorrupt, CheckpointMismatch

T = TypeVar("T")

VERSION = 5
_MAGIC = b"SFCP"
_HEAD = struct.Struct(">4sII")
_FREE = frozenset({"state.max_keys"})


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All of a shard.

    Attributes:
        partition: the input partition.
        offset: the next record to read.
        log_id: of which log; another one may have the same name. Empty: not known.
        settings: `Settings.determining()` of the process that made it.
        arrays: the state, by name; views of a shard that goes on, or of the bytes it is read from.
    """

    partition: int
    offset: int
    log_id: str
    settings: dict[str, Any]
    arrays: Mapping[str, NDArray[Any]]

    def require(self, settings: dict[str, Any]) -> None:
        """Check that the checkpoint was made under the same settings.

        The bound on keys may differ: whoever finds it too tight must not lose all keys by raising
        it. What is beyond a lower one goes when the next new key comes.

        Raises:
            CheckpointMismatch: it was not; says which differ.
        """
        differing = [
            what for name, what in _differences(self.settings, settings) if name not in _FREE
        ]
        if differing:
            raise CheckpointMismatch(
                f"the checkpoint of partition {self.partition} at offset {self.offset} was made "
                f"with other settings: {'; '.join(differing)}. Restore those settings, or use a "
                "new kafka.group_id or state.checkpoint_url, or start afresh with --cold-start."
            )


class Store(Protocol):
    """The seam to where checkpoints are kept, as opaque bytes."""

    def save(self, partition: int, offset: int, data: bytes | bytearray) -> None:
        """Keep `data`, whole or not at all. Called only after a commit that covers `offset`.

        Raises:
            StoreUnusable: it could not be written; what was kept before is untouched.
        """
        ...

    def offsets(self, partition: int) -> list[int]:
        """The offsets kept for a partition, newest first."""
        ...

    def load(self, partition: int, offset: int) -> bytearray:
        """What was saved for `offset`; the caller's own.

        Raises:
            StoreUnusable: it could not be read.
        """
        ...


def encode(checkpoint: Checkpoint) -> bytearray:
    """The checkpoint as bytes: the one copy that is made of the arrays."""
    header = {
        "partition": checkpoint.partition,
        "offset": checkpoint.offset,
        "log_id": checkpoint.log_id,
        "settings": checkpoint.settings,
    }
    data = archive.pack(header, checkpoint.arrays, room=_HEAD.size)
    _HEAD.pack_into(data, 0, _MAGIC, VERSION, _checksum(VERSION, _body(data)))
    return data


def decode(data: bytes | bytearray) -> Checkpoint:
    """The checkpoint in `data`; its arrays are views of that.

    Raises:
        CheckpointCorrupt: truncated, altered, or not a checkpoint at all.
        CheckpointMismatch: of a format this version does not know.
    """
    if len(data) < _HEAD.size or not data.startswith(_MAGIC):
        raise CheckpointCorrupt(f"not a checkpoint: {len(data)} bytes begin with {data[:4]!r}")
    _, version, checksum = _HEAD.unpack_from(data)
    body = _body(data)
    if _checksum(version, body) != checksum:
        raise CheckpointCorrupt(f"checksum mismatch in a checkpoint of {len(data)} bytes")
    if version != VERSION:
        raise CheckpointMismatch(
            f"it is of format {version}, and this version reads format {VERSION}: run the version "
            "that wrote it, or start afresh with --cold-start"
        )
    try:
        header, arrays = archive.unpack(body)
        return Checkpoint(
            _whole(header["partition"]),
            _whole(header["offset"]),
            _of(str, header["log_id"]),
            _of(dict, header["settings"]),
            arrays,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointCorrupt(
            f"a checkpoint with a valid checksum does not parse: {error}"
        ) from None


def _whole(value: object) -> int:
    number = _of(int, value)
    if not 0 <= number < 1 << 63:
        raise ValueError(f"{number} is no offset")
    return number


def _of(kind: type[T], value: object) -> T:
    if type(value) is not kind:
        raise TypeError(f"{kind.__name__} expected, not {type(value).__name__}")
    return value


def _body(data: bytes | bytearray) -> memoryview:
    return memoryview(data)[_HEAD.size :]


def _checksum(version: int, body: memoryview) -> int:
    return zlib.crc32(body, version)


def _differences(old: object, new: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Where two nested mappings differ, and how."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(name), new.get(name), f"{path}.{name}".lstrip("."))
    elif old != new:
        yield path, f"{path} was {old!r} and is {new!r}"
