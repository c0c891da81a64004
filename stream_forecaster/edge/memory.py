"""A log in memory, with scripted misfortune: for tests, and for trying a schema without a broker.

`MemoryLog` is what survives a crash: the records, the group's offsets, what was published, and the
checkpoints. `MemoryTransport` and `MemoryStore` are one process's hold on it. A *script* decides
what befalls each call: it is asked at named points and answers what happens there.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from typing_extensions import override

from stream_forecaster.errors import CommitFailed, StoreUnusable
from stream_forecaster.records import BytesColumn, Message, Poll, Records, Transport

Point = Literal["poll", "commit", "checkpoint"]
Fate = Literal["well", "crash before", "crash after", "refused", "in doubt", "rebalance"]
Script = Callable[[Point], Fate]
"""What happens at a point. "refused" and "in doubt" are a commit's (or a store's) only, "rebalance"
a poll's."""


def fair_weather(point: Point) -> Fate:
    """The script in which nothing ever happens."""
    del point
    return "well"


class Crash(BaseException):
    """The process died here. Not an Exception: nothing may catch it by accident."""


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """One record: bytes and the broker's time, epoch ms."""

    key: bytes | None
    value: bytes | None
    time_ms: int = -1


@dataclass
class MemoryLog:
    """What outlives a process.

    Attributes:
        partitions: the input.
        identity: what tells it from another log.
        start: per partition, the first offset that retention has left.
        committed: the group's offsets.
        published: every message of a committed transaction, in order.
        checkpoints: (partition, offset) -> bytes.
    """

    partitions: dict[int, list[MemoryRecord]]
    identity: str = "memory"
    start: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    committed: dict[int, int] = field(default_factory=dict)
    published: list[Message] = field(default_factory=list)
    checkpoints: dict[tuple[int, int], bytes] = field(default_factory=dict)

    @property
    def drained(self) -> bool:
        """Has the group read everything?"""
        return all(
            self.committed.get(p, 0) == len(records) for p, records in self.partitions.items()
        )


class MemoryTransport(Transport):
    """One member that holds all partitions of a `MemoryLog`.

    Args:
        log: what it reads and writes.
        records_per_poll: how many records each poll brings at most.
        script: what befalls it.
    """

    def __init__(
        self,
        log: MemoryLog,
        records_per_poll: Callable[[], int] = lambda: 500,
        script: Script = fair_weather,
    ) -> None:
        self._log, self._records_per_poll, self._script = log, records_per_poll, script
        self._position: dict[int, int] = {}
        self._recover = set(log.partitions)
        self._held: set[int] = set()

    @override
    def poll(self, timeout_s: float) -> Poll:
        if self._script("poll") == "rebalance":
            self._recover = set(self._log.partitions)
        recover, self._recover = tuple(sorted(self._recover)), set()
        if recover:
            revoked = tuple(p for p in recover if p in self._held)
            self._held |= set(recover)
            for partition in recover:
                self._position.pop(partition, None)
            return Poll(revoked, recover)
        blocks = [self._block(partition) for partition in sorted(self._position)]
        return Poll(records=tuple(block for block in blocks if len(block)))

    @override
    def commit(self, messages: Sequence[Message], offsets: Mapping[int, int]) -> None:
        fate = self._script("commit")
        if fate == "crash before":
            raise Crash
        if fate != "refused":
            for partition, offset in offsets.items():
                if offset < self._log.committed.get(partition, 0):
                    raise AssertionError(f"the offset of partition {partition} went back")
            self._log.published += messages
            self._log.committed |= offsets
        if fate == "crash after":
            raise Crash
        if fate in {"refused", "in doubt"}:
            self._recover = set(self._held)
            raise CommitFailed(f"the script says: {fate}")

    @override
    def log_id(self) -> str:
        return self._log.identity

    @override
    def committed(self, partition: int) -> int | None:
        return self._log.committed.get(partition)

    @override
    def bounds(self, partition: int) -> tuple[int, int]:
        return self._log.start[partition], len(self._log.partitions[partition])

    @override
    def offset_at(self, partition: int, time_ms: int) -> int:
        records = self._log.partitions[partition]
        later = (i for i, record in enumerate(records) if record.time_ms >= time_ms)
        return max(self._log.start[partition], next(later, len(records)))

    @override
    def lag(self) -> Mapping[int, int]:
        ends = self._log.partitions
        return {p: len(ends[p]) - position for p, position in self._position.items()}

    @override
    def seek(self, partition: int, offset: int) -> None:
        self._position[partition] = offset

    @override
    def close(self) -> None:
        self._position.clear()

    def _block(self, partition: int) -> Records:
        begin = self._position[partition]
        rows = self._log.partitions[partition][begin : begin + self._records_per_poll()]
        self._position[partition] = begin + len(rows)
        return Records(
            partition,
            np.arange(begin, begin + len(rows)),
            np.array([row.time_ms for row in rows], np.int64),
            BytesColumn.of(row.key for row in rows),
            BytesColumn.of(row.value for row in rows),
            begin + len(rows),
        )


class MemoryStore:
    """Checkpoints inside a `MemoryLog`; stands in for `edge.store.CheckpointStore`."""

    def __init__(self, log: MemoryLog, script: Script = fair_weather) -> None:
        self._log, self._script = log, script

    def save(self, partition: int, offset: int, data: bytes | bytearray) -> None:
        """As `CheckpointStore.save`."""
        fate = self._script("checkpoint")
        if fate == "crash before":
            raise Crash
        if fate == "refused":
            raise StoreUnusable("the script says: refused")
        if offset > self._log.committed.get(partition, -1):
            raise AssertionError(f"no commit covers offset {offset} of partition {partition}")
        self._log.checkpoints[partition, offset] = bytes(data)
        if fate == "crash after":
            raise Crash

    def offsets(self, partition: int) -> list[int]:
        """As `CheckpointStore.offsets`."""
        return sorted((o for p, o in self._log.checkpoints if p == partition), reverse=True)

    def load(self, partition: int, offset: int) -> bytearray:
        """As `CheckpointStore.load`."""
        return bytearray(self._log.checkpoints[partition, offset])
