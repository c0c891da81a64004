"""Everything that crosses the border between the core and the world.

Inward: `Records`, the columns of one partition, inside a `Poll`. Outward: `Message`s with the
offsets they cover, through one `Transport.commit`. The core sees the world only through these.

An *offset* always means the next record to read, never the last one read, except in the column
`Records.offset`, which holds the records' own.
"""

from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, overload

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from stream_forecaster.compiled import compiled

Headers = tuple[tuple[str, bytes | None], ...]
"""A record's headers, in order; names may repeat, and a value may be null."""


def as_text(data: bytes) -> str:
    r"""A key, or whatever else came as bytes, as text: what is not UTF-8 is spelled out.

    >>> as_text("鍵".encode()), as_text(b"\xff")
    ('鍵', '\\xff')
    """
    return data.decode("utf-8", "backslashreplace")


class BytesColumn(Sequence[bytes | None]):
    """Byte strings of one buffer as a column (N,), null among them.

    A sequence like any other, except that loops which are compiled need not make an object of each
    string. Parts of a column are views: they share its buffer, and keep it.

    Attributes:
        data: (bytes,) uint8, the buffer; there may be more in it than the column's own.
        start: (N,) int64, where in it each string begins.
        size: (N,) int64, how long it is; -1 is null.

    >>> names = BytesColumn.of([b"ann", None, b""])
    >>> names.size.tolist(), names[0], list(names.take(np.array([2, 1])))
    ([3, -1, 0], b'ann', [b'', None])
    """

    __slots__ = ("data", "size", "start")

    def __init__(
        self, data: NDArray[np.uint8], start: NDArray[np.int64], size: NDArray[np.int64]
    ) -> None:
        self.data, self.start, self.size = data, start, size

    @classmethod
    def of(cls, strings: Iterable[bytes | None]) -> "BytesColumn":
        """A column of a buffer of its own."""
        if isinstance(strings, BytesColumn):
            return cls(strings.data, strings.start, strings.size)
        listed = list(strings)
        known = [string or b"" for string in listed]
        size = np.fromiter(map(len, known), np.int64, len(known))
        for i in np.flatnonzero(size == 0).tolist():
            size[i] = -1 if listed[i] is None else 0
        return cls(np.frombuffer(b"".join(known), np.uint8), _starts(size), size)

    @classmethod
    def joined(cls, parts: "Sequence[BytesColumn]") -> "BytesColumn":
        """One column of several; of one buffer it stays, of several they are copied into one."""
        base, data = np.zeros(len(parts), np.int64), parts[0].data
        if any(part.data is not data for part in parts):
            base, data = (
                _starts(np.array([len(part.data) for part in parts])),
                np.concatenate([part.data for part in parts]),
            )
        start = [part.start + moved for part, moved in zip(parts, base.tolist(), strict=True)]
        return cls(data, np.concatenate(start), np.concatenate([part.size for part in parts]))

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> "BytesColumn":
        """The strings in `rows` (B,), in that order."""
        return BytesColumn(self.data, self.start[rows], self.size[rows])

    def packed(self) -> "BytesColumn":
        """The same strings one after the other in a buffer that holds nothing else."""
        start = _starts(self.size)
        data = np.empty(int(np.maximum(self.size, 0).sum()), np.uint8)
        _pack(self.data, self.start, self.size, data)
        return BytesColumn(data, start, self.size)

    @override
    def __len__(self) -> int:
        return len(self.size)

    @overload
    def __getitem__(self, row: int) -> bytes | None: ...
    @overload
    def __getitem__(self, row: slice) -> "BytesColumn": ...
    @override
    def __getitem__(self, row: int | slice) -> "bytes | BytesColumn | None":
        if isinstance(row, slice):
            return self.take(row)
        size, start = int(self.size[row]), int(self.start[row])
        return None if size < 0 else self.data[start : start + size].tobytes()

    @override
    def __iter__(self) -> Iterator[bytes | None]:
        view = self.data.data
        for start, size in zip(self.start.tolist(), self.size.tolist(), strict=True):
            yield None if size < 0 else bytes(view[start : start + size])

    @override
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # as of lists

    def __repr__(self) -> str:
        return f"BytesColumn.of({list(self)!r})"


@dataclass(frozen=True, slots=True)
class Records:
    """Consecutive records of one partition, as columns, in offset order.

    Attributes:
        partition: the input partition.
        offset: (N,) int64, the records' own offsets; strictly ascending, gaps allowed.
        time_ms: (N,) int64, the broker's time of each record, epoch ms; -1 where unknown.
        key: (N,) the records' key bytes.
        value: (N,) the records' value bytes; None is a heartbeat, or with a key a tombstone.
        next_offset: where reading goes on: past the last record and past whatever the client
            skipped behind it (transaction markers, compacted records).
        headers: by offset, of the records that have any; no forecast depends on them.
    """

    partition: int
    offset: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    key: BytesColumn
    value: BytesColumn
    next_offset: int
    headers: Mapping[int, Headers] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.offset)
        if not len(self.time_ms) == len(self.key) == len(self.value) == n:
            raise ValueError(f"columns of different lengths in partition {self.partition}")
        if n and self.next_offset <= self.offset[-1]:
            raise ValueError(f"next_offset {self.next_offset} is not past {self.offset[-1]}")

    def __len__(self) -> int:
        return len(self.offset)

    def split(self, offset: int) -> "tuple[Records, Records]":
        """Cut into the records before `offset` and those from it on."""
        i = int(np.searchsorted(self.offset, offset))
        return self._take(0, i, min(offset, self.next_offset)), self._take(
            i, len(self), self.next_offset
        )

    def first(self, n: int | None) -> "tuple[Records, Records]":
        """Cut into the first `n` records and the others; None: all of them and none."""
        if n is None or n >= len(self):
            return self, self._take(len(self), len(self), self.next_offset)
        return self.split(int(self.offset[n]))

    @classmethod
    def joined(cls, blocks: "Sequence[Records]", next_offset: int) -> "Records":
        """Blocks of one partition, in offset order, as one."""
        if len(blocks) == 1:
            return replace(blocks[0], next_offset=next_offset)
        headers = [block.headers for block in blocks if block.headers]
        return cls(
            blocks[0].partition,
            np.concatenate([block.offset for block in blocks]),
            np.concatenate([block.time_ms for block in blocks]),
            BytesColumn.joined([block.key for block in blocks]),
            BytesColumn.joined([block.value for block in blocks]),
            next_offset,
            ChainMap(*headers) if headers else {},  # type: ignore[arg-type]  # nobody writes to it
        )

    def _take(self, i: int, j: int, next_offset: int) -> "Records":
        return Records(
            self.partition,
            self.offset[i:j],
            self.time_ms[i:j],
            self.key.take(np.s_[i:j]),
            self.value.take(np.s_[i:j]),
            next_offset,
            self.headers,
        )


class Message(NamedTuple):
    """One record to publish. `value` None is a tombstone.

    A tuple: made in a third of the time of a frozen dataclass, and thousands turn into columns at
    once.

    Attributes:
        partition: where to; None: the key's.
        time_ms: the record's own time, epoch ms; None: now.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    partition: int | None = None
    time_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Poll:
    """What one poll brought.

    Attributes:
        revoked: partitions that are no longer ours, or whose shard must be dropped because a
            commit failed. Handle these first.
        assigned: partitions to recover before any record of theirs can come: `seek` each.
        records: at most one block per partition, never of a partition in `assigned`. A block of no
            records says that only the position has moved, past a transaction's end for instance.
    """

    revoked: tuple[int, ...] = ()
    assigned: tuple[int, ...] = ()
    records: tuple[Records, ...] = ()


class Transport(Protocol):
    """The seam to the log. Real: `edge.kafka`; fakes and files: `edge.memory`, `edge.files`."""

    def poll(self, timeout_s: float) -> Poll:
        """Wait up to `timeout_s` for news. Called from one thread, about five times a second."""
        ...

    def commit(self, messages: Sequence[Message], offsets: Mapping[int, int]) -> None:
        """Publish `messages` and move the group to `offsets`, all of it or none of it.

        Called only between two polls. Returns when the outcome is certain.

        Args:
            messages: forecasts, tombstones and dead letters, in order.
            offsets: partition -> next record to read; only partitions now held.

        Raises:
            CommitFailed: refused or in doubt. The next poll revokes and re-assigns every
                partition held; the caller recovers them from the committed offsets.
            Fenced: another process has taken over; stop.
        """
        ...

    def log_id(self) -> str:
        """What tells the input from another of the same name, deleted since; empty if nothing."""
        ...

    def committed(self, partition: int) -> int | None:
        """The group's committed offset; None before the first commit."""
        ...

    def bounds(self, partition: int) -> tuple[int, int]:
        """The first offset the log still holds, and the one the next record will get."""
        ...

    def offset_at(self, partition: int, time_ms: int) -> int:
        """The first record whose broker time is at or after `time_ms`; the end if none is."""
        ...

    def lag(self) -> Mapping[int, int]:
        """Records between what was read and the end of the log, per partition held."""
        ...

    def seek(self, partition: int, offset: int) -> None:
        """Read `partition` from `offset` on; ends the wait that `Poll.assigned` began."""
        ...

    def close(self) -> None:
        """Leave the group and let go of everything. Never raises; safe to call twice."""
        ...


# -- columns of bytes ------------------------------------------------------------------------------


def _starts(size: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where strings of these sizes begin, one after the other; a null takes no room."""
    end: NDArray[np.int64] = np.cumsum(np.maximum(size, 0))
    return end - np.maximum(size, 0)


@compiled("u1:1! i8:1 i8:1 > u1:1")
def _pack(
    data: NDArray[np.uint8],
    start: NDArray[np.int64],
    size: NDArray[np.int64],
    out: NDArray[np.uint8],
) -> None:
    """Copy strings one after the other."""
    at = 0
    for i in range(len(start)):
        for byte in range(size[i]):
            out[at] = data[start[i] + byte]
            at += 1
