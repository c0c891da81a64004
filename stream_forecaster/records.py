"""Everything that crosses the border between the core and the world.

Inward: `Records`, the columns of one partition, inside a `Poll`. Outward: `Message`s with the
offsets they cover, through one `Transport.commit`. The core sees the world only through these.

An *offset* always means the next record to read, never the last one read, except in the column
`Records.offset`, which holds the records' own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Headers = tuple[tuple[str, bytes | None], ...]
"""A record's headers, in order; names may repeat, and a value may be null."""


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
    key: Sequence[bytes | None]
    value: Sequence[bytes | None]
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

    def _take(self, i: int, j: int, next_offset: int) -> "Records":
        return Records(
            self.partition,
            self.offset[i:j],
            self.time_ms[i:j],
            self.key[i:j],
            self.value[i:j],
            next_offset,
            self.headers,
        )


@dataclass(frozen=True, slots=True)
class Message:
    """One record to publish. `value` None is a tombstone.

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
