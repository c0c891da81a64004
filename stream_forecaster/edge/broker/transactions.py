"""Transactions: who may write under a transactional id, and what an open transaction holds.

An id belongs to one producer at a time, told by its *epoch*: whoever asks for the id next gets a
higher one, the open transaction of the predecessor is aborted, and the predecessor is refused
from then on (fenced). A transaction that stays open past its time-out is aborted in the same way.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from stream_forecaster.edge.broker import batches
from stream_forecaster.edge.broker.codes import Code, Refused
from stream_forecaster.edge.broker.groups import Groups
from stream_forecaster.edge.broker.log import PartitionLog

_LAST_EPOCH = 0x7FFE  # the epoch is an int16, and fencing needs one more
_MAX_TIMEOUT_MS = 900_000  # Kafka's transaction.max.timeout.ms


@dataclass(frozen=True, slots=True)
class Producer:
    """Who claims to write: what a request says of its sender."""

    transactional_id: str
    producer_id: int
    epoch: int


@dataclass(slots=True)
class _Transaction:
    """The state of one transactional id."""

    producer_id: int
    epoch: int
    timeout_s: float
    previous_epoch: int = -1
    logs: set[PartitionLog] = field(default_factory=set)
    groups: set[str] = field(default_factory=set)
    opened_s: float | None = None
    last_committed: bool | None = None  # how the last transaction ended, for a repeated request


class Transactions:
    """All transactional ids of the broker."""

    def __init__(self, groups: Groups, now_ms: Callable[[], int]) -> None:
        self._groups = groups
        self._now_ms = now_ms
        self._ids: dict[str, _Transaction] = {}
        self._producer_ids = itertools.count(1)

    def new_producer(self) -> tuple[int, int]:
        """Give an idempotent producer its id and epoch."""
        return next(self._producer_ids), 0

    def init(self, claim: Producer, timeout_ms: int) -> tuple[int, int]:
        """Give the transactional id to the caller: its producer id and epoch.

        Args:
            claim: `producer_id` -1 from a new producer; otherwise the one that it holds already,
                which asks for a new epoch after an error.
            timeout_ms: how long a transaction may stay open.

        Raises:
            Refused: PRODUCER_FENCED, INVALID_TRANSACTION_TIMEOUT or INVALID_REQUEST.
        """
        if not claim.transactional_id:
            raise Refused(Code.INVALID_REQUEST)
        if not 0 < timeout_ms <= _MAX_TIMEOUT_MS:
            raise Refused(Code.INVALID_TRANSACTION_TIMEOUT)
        held = self._ids.get(claim.transactional_id)
        if held is None:
            held = _Transaction(next(self._producer_ids), -1, 0)
            self._ids[claim.transactional_id] = held
        elif claim.producer_id >= 0:
            if claim.producer_id != held.producer_id:
                raise Refused(Code.PRODUCER_FENCED)
            if claim.epoch == held.previous_epoch:  # a repeat: the answer to the first was lost
                return held.producer_id, held.epoch
            if claim.epoch != held.epoch:
                raise Refused(Code.PRODUCER_FENCED)
        if held.opened_s is not None:
            self._fence(held)
        if held.epoch >= _LAST_EPOCH:
            held.producer_id, held.epoch = next(self._producer_ids), -1
        held.previous_epoch = claim.epoch if claim.producer_id >= 0 else -1
        held.epoch += 1
        held.timeout_s = timeout_ms / 1000
        held.last_committed = None
        return held.producer_id, held.epoch

    def add_partition(self, claim: Producer, log: PartitionLog, now_s: float) -> None:
        """Make a partition part of the transaction, opening it if need be.

        Raises:
            Refused: INVALID_PRODUCER_ID_MAPPING or PRODUCER_FENCED.
        """
        held = self._held(claim)
        held.logs.add(log)
        self._open(held, now_s)

    def add_group(self, claim: Producer, group_id: str, now_s: float) -> None:
        """Make a group's offsets part of the transaction, opening it if need be.

        Raises:
            Refused: INVALID_PRODUCER_ID_MAPPING or PRODUCER_FENCED.
        """
        held = self._held(claim)
        held.groups.add(group_id)
        self._open(held, now_s)

    def check_write(self, claim: Producer, log: PartitionLog) -> None:
        """Check that a transactional batch may go to the log.

        Raises:
            Refused: INVALID_PRODUCER_EPOCH when fenced, INVALID_TXN_STATE when the partition is
                not part of an open transaction, INVALID_PRODUCER_ID_MAPPING.
        """
        if log not in self._writing(claim).logs:
            raise Refused(Code.INVALID_TXN_STATE)

    def check_offsets(self, claim: Producer, group_id: str) -> None:
        """Check that offsets of the group may be added.

        Raises:
            Refused: INVALID_PRODUCER_EPOCH, INVALID_TXN_STATE or INVALID_PRODUCER_ID_MAPPING.
        """
        if group_id not in self._writing(claim).groups:
            raise Refused(Code.INVALID_TXN_STATE)

    def end(self, claim: Producer, *, committed: bool) -> None:
        """Commit or abort; the same request again, after a lost answer, changes nothing.

        Raises:
            Refused: PRODUCER_FENCED, INVALID_TXN_STATE or INVALID_PRODUCER_ID_MAPPING.
        """
        held = self._held(claim)
        if held.opened_s is not None:
            self._end(held, committed=committed)
        elif held.last_committed is not committed:
            raise Refused(Code.INVALID_TXN_STATE)

    def tick(self, now_s: float) -> bool:
        """Abort what is open past its time-out; whether there was any."""
        late = [
            held
            for held in self._ids.values()
            if held.opened_s is not None and now_s - held.opened_s > held.timeout_s
        ]
        for held in late:
            self._fence(held)
        return bool(late)

    def _held(self, claim: Producer) -> _Transaction:
        """The state of the caller's id, if it is still the caller's."""
        held = self._ids.get(claim.transactional_id)
        if held is None or held.producer_id != claim.producer_id:
            raise Refused(Code.INVALID_PRODUCER_ID_MAPPING)
        if held.epoch != claim.epoch:
            raise Refused(Code.PRODUCER_FENCED)
        return held

    def _writing(self, claim: Producer) -> _Transaction:
        """The same for requests that write, in which "fenced" has another name."""
        try:
            return self._held(claim)
        except Refused as refused:
            if refused.code is Code.PRODUCER_FENCED:
                raise Refused(Code.INVALID_PRODUCER_EPOCH) from refused
            raise

    def _open(self, held: _Transaction, now_s: float) -> None:
        if held.opened_s is None:
            held.opened_s = now_s
            held.last_committed = None

    def _fence(self, held: _Transaction) -> None:
        """Abort under a new epoch, which the markers carry to the logs."""
        held.epoch += 1
        held.previous_epoch = -1
        self._end(held, committed=False)

    def _end(self, held: _Transaction, *, committed: bool) -> None:
        marker = batches.marker(held.producer_id, held.epoch, self._now_ms(), committed=committed)
        for log in held.logs:
            log.end_transaction(marker)
        self._groups.end_transaction(held.groups, held.producer_id, committed=committed)
        held.logs, held.groups = set(), set()
        held.opened_s, held.last_committed = None, committed
