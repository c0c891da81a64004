"""The Kafka transport: a consumer group on one side, transactions on the other.

Theory of operation
-------------------
**Who runs when.** The client has its own IO thread. It joins groups and runs rebalance listeners,
but only while this thread waits inside `poll` or `close`: between two polls the assignment cannot
change. Only the membership can be lost meanwhile (a missed heartbeat, a poll too late), which
resets the generation to -1. So the listener just notes what happened, and everything else is done
by the one calling thread.

**Membership.** The snapshot taken right after a poll belongs to the records that poll returned, and
is what their commit is fenced with. A later one could be the next generation's, under which another
member may own the partition. A generation of -1 is not checked by the broker at all: such a commit
is refused here.

**Assigned, not yet sought.** A new partition is paused and parked at offset 0 as soon as the poll
that brought it returns, and what that poll fetched of it is thrown away. It cannot be done earlier:
in that same poll the client looks for a committed offset, finds perhaps none, and raises
NoOffsetForPartition, because the reset policy is "none". That exception carries no other news.
Buffered records of a parked partition are dropped by the client when `seek` moves it.

**Nothing is skipped.** With reset policy "none" an offset out of range is an error, never a jump.
`next_offset` is the client's position, which is past transaction markers and aborted records; when
it moves without records (a transaction's end, an aborted one) a block of no records says so, else
the group would never be seen to reach the end of the log. A poll that raises may have taken records
with it, so every shard is recovered after one.

**After a failure** of a commit, every partition held is revoked and assigned again in the next
poll, and `committed` answers only once a new producer has settled what the failed one left
(`publisher`).
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from kafka.errors import (
    CorruptRecordError,
    KafkaError,
    KafkaTimeoutError,
    LogTruncationError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)
from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata
from structlog.typing import FilteringBoundLogger

from stream_forecaster.config import Settings
from stream_forecaster.edge import columnar
from stream_forecaster.edge.connection import (
    CALL_TIMEOUT_MS,
    Outage,
    client_settings,
    open_client,
)
from stream_forecaster.edge.header_names import spell_out
from stream_forecaster.edge.instance import Instance
from stream_forecaster.edge.publisher import Publisher
from stream_forecaster.edge.refusals import refusal
from stream_forecaster.edge.topics import require_topics
from stream_forecaster.errors import CheckpointTooOld, CommitFailed, StateError, TransportError
from stream_forecaster.records import Message, Poll, Records

_AWAY_AFTER_S = 1.0
"""A reconnect takes less; more without any connection is an outage."""

_CLOSE_TIMEOUT_MS = 5_000


class KafkaTransport:
    """`records.Transport` over a Kafka cluster. All methods belong to one thread.

    Args:
        settings: `kafka`, and the names of the topics.
        logger: what the operator should know.
        stopping: set when the process is told to stop; ends the waiting for a broker.
        alive: called now and then while waiting for a broker: a wait is no stall.
        clock: seconds, monotonic.

    Raises:
        ConfigError: no instance index can be locked.
        Unavailable: no broker within `kafka.give_up_after`.
        TransportError: the broker refuses us, or a topic is missing.
    """

    def __init__(
        self,
        settings: Settings,
        logger: FilteringBoundLogger,
        stopping: threading.Event | None = None,
        *,
        alive: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        kafka = settings.kafka
        self._topic = settings.input.topic
        self._clock = clock
        self._logger = logger
        self._outage = Outage(kafka, logger, clock, stopping, alive)
        self._instance = Instance.claim(kafka.group_id, kafka.instance_id)
        self._rebalances = _RebalanceLog()
        self._held: set[int] = set()
        self._unsought: set[int] = set()
        self._position: dict[int, int] = {}
        self._recover_all = False
        self._last_connected_s = clock()
        self._membership = ConsumerGroupMetadata(kafka.group_id)
        self._transactional = kafka.guarantee == "exactly_once"
        transactional_id = f"{kafka.group_id}-{self._instance.name}"
        self._publisher = Publisher(
            kafka, transactional_id if self._transactional else None, self._outage, logger, clock
        )
        self._consumer: Any = None
        try:
            self._outage.ask(lambda: require_topics(settings))
            self._publisher.ready()
            self._consumer = self._outage.ask(
                lambda: open_client(KafkaConsumer, _consumer_config(settings, self._instance.name))
            )
            columnar.install(self._consumer, logger)
            self._consumer.subscribe([self._topic], listener=self._rebalances)
            # Joining before the client knows the topic would assign nothing, and rebalance again.
            self.bounds(0)
        except BaseException:
            self.close()
            raise
        logger.info(
            "kafka connected",
            bootstrap_servers=kafka.bootstrap_servers,
            group_id=kafka.group_id,
            instance_id=self._instance.name,
            guarantee=kafka.guarantee,
        )

    def poll(self, timeout_s: float) -> Poll:
        """As `Transport.poll`.

        Raises:
            CheckpointTooOld: retention removed the records that come next.
            StateError: the log ends before the position: it was cut, or the topic made anew.
            Unavailable: no broker within `kafka.give_up_after`.
            TransportError: the broker refuses us.
        """
        try:
            fetched, out_of_range = self._fetch(timeout_s)
            self._membership = self._consumer.group_metadata()
            self._watch_connection(brought_records=bool(fetched))
            revoked, assigned = self._apply_rebalances()
            for tp, offset in out_of_range.items():
                if tp.partition not in self._unsought:
                    raise self._out_of_range(tp.partition, offset)
            return Poll(revoked, assigned, self._blocks(fetched))
        except LogTruncationError as error:
            raise StateError(f"records that were read are no longer in the log: {error}") from error
        except KafkaError as error:
            raise refusal(error) from error

    def commit(self, messages: Sequence[Message], offsets: Mapping[int, int]) -> None:
        """As `Transport.commit`; takes at most `kafka.transaction_timeout`.

        Raises:
            TransportError: beside those of the protocol: the broker will never accept a message.
        """
        if not messages and not offsets:
            return
        committed = {
            TopicPartition(self._topic, p): OffsetAndMetadata(offset, "", -1)
            for p, offset in offsets.items()
        }
        try:
            self._check_membership(offsets)
            if self._transactional:
                self._publisher.transact(messages, committed, self._membership)
            else:
                self._publisher.deliver(messages)
                self._commit_offsets(committed)
        except CommitFailed:
            self._recover_all = True
            raise

    def log_id(self) -> str:
        """As `Transport.log_id`: the topic's id; brokers before 2.8 have none."""
        topic_id = self._consumer._client.cluster.topic_id(self._topic)  # noqa: SLF001  (no public word for it)
        return str(topic_id or "")

    def committed(self, partition: int) -> int | None:
        """As `Transport.committed`; settles first what a failed or killed producer left open."""
        self._publisher.ready()
        return self._outage.ask(lambda: self._committed(partition))

    def bounds(self, partition: int) -> tuple[int, int]:
        """As `Transport.bounds`; the end is that of the committed records (last stable offset)."""
        tp = self._tp(partition)
        first: dict[TopicPartition, int] = self._outage.ask(
            lambda: self._consumer.beginning_offsets([tp], timeout_ms=CALL_TIMEOUT_MS)
        )
        end: dict[TopicPartition, int] = self._outage.ask(
            lambda: self._consumer.end_offsets([tp], timeout_ms=CALL_TIMEOUT_MS)
        )
        return first[tp], end[tp]

    def offset_at(self, partition: int, time_ms: int) -> int:
        """As `Transport.offset_at`."""
        tp = self._tp(partition)
        found: dict[TopicPartition, Any] = self._outage.ask(
            lambda: self._consumer.offsets_for_times(
                {tp: max(0, time_ms)}, timeout_ms=CALL_TIMEOUT_MS
            )
        )
        return found[tp].offset if found[tp] is not None else self.bounds(partition)[1]

    def seek(self, partition: int, offset: int) -> None:
        """As `Transport.seek`.

        Raises:
            ValueError: the partition is not held, or the offset is negative.
        """
        if partition not in self._held:
            raise ValueError(f"partition {partition} is not held")
        tp = self._tp(partition)
        self._consumer.seek(tp, offset)
        self._consumer.resume(tp)
        self._unsought.discard(partition)
        self._position[partition] = offset

    def lag(self) -> dict[int, int]:
        """Records behind the end of the log, per partition; as of the last fetch, so it is free."""
        highwater = {p: self._consumer.highwater(self._tp(p)) for p in self._position}
        return {
            p: max(0, end - self._position[p]) for p, end in highwater.items() if end is not None
        }

    def close(self) -> None:
        """As `Transport.close`."""
        consumer, self._consumer = self._consumer, None
        try:
            if consumer is not None:
                consumer.close(autocommit=False, timeout_ms=_CLOSE_TIMEOUT_MS)
        except (KafkaError, RuntimeError):  # RuntimeError: the client's IO thread has died
            pass
        self._publisher.close()
        self._instance.close()

    def _tp(self, partition: int) -> TopicPartition:
        return TopicPartition(self._topic, partition)

    def _fetch(
        self, timeout_s: float
    ) -> tuple[Mapping[TopicPartition, Sequence[Any]], Mapping[TopicPartition, int]]:
        """One poll of the client: its records, and offsets it found out of range."""
        # When new metadata makes the leader join again and the answer comes between two polls, the
        # client (3.0.12) sees no reason to look at it: no partitions and no heartbeats, for ever.
        coordinator = self._consumer._coordinator  # noqa: SLF001  (no public word for it)
        if coordinator.rejoining:
            coordinator.request_rejoin()
        try:
            return self._consumer.poll(timeout_ms=int(timeout_s * 1_000)), {}
        except NoOffsetForPartitionError:
            return {}, {}
        except OffsetOutOfRangeError as error:
            return {}, error.args[0]
        except CorruptRecordError as error:
            if not spell_out(error):
                raise
            self._logger.warning("a header name is not UTF-8; reading on", cause=str(error))
            # The client would go on with what is left of the batch, which is nothing, for ever.
            left = self._consumer._fetcher._next_partition_records  # noqa: SLF001  (no public word for it)
            if left is not None:
                left.drain()
            self._recover_all = True
            return {}, {}
        except KafkaError as error:
            if not error.retriable:
                raise
            self._recover_all = True
            self._outage.seen(error)
            self._outage.pause(timeout_s)
            return {}, {}

    def _committed(self, partition: int) -> int | None:
        try:
            offset: int | None = self._consumer.committed(
                self._tp(partition), timeout_ms=CALL_TIMEOUT_MS
            )
        except KafkaTimeoutError as error:
            raise KafkaTimeoutError(
                f"no answer, or the offset of partition {partition} waits for an open transaction "
                "(one that outlives its time-out hangs: kafka-transactions.sh find-hanging)"
            ) from error
        return offset

    def _watch_connection(self, *, brought_records: bool) -> None:
        """The client reconnects by itself, in silence: say so."""
        now = self._clock()
        if brought_records or self._consumer._client._manager.least_used_connections():  # noqa: SLF001  (no public word on whether anything is connected)
            self._last_connected_s = now
            self._outage.over()
        elif now - self._last_connected_s > _AWAY_AFTER_S:
            self._outage.seen("no connection to any broker")

    def _apply_rebalances(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What was revoked and what assigned since the last poll, seen from the caller."""
        before = set(self._held)
        revoked: set[int] = set()
        for joined, partitions in self._rebalances.drain():
            if joined:
                self._held |= partitions
            else:
                self._held -= partitions
                revoked |= partitions
        if self._recover_all:
            self._recover_all = False
            revoked |= before
        assigned = self._held & revoked | self._held - before
        for partition in revoked:
            self._position.pop(partition, None)
        self._unsought = self._unsought & self._held | assigned
        for partition in assigned:
            self._consumer.pause(self._tp(partition))
            self._consumer.seek(self._tp(partition), 0)
        return tuple(sorted(revoked & before)), tuple(sorted(assigned))

    def _blocks(self, fetched: Mapping[TopicPartition, Sequence[Any]]) -> tuple[Records, ...]:
        blocks = []
        for partition, position in self._position.items():
            tp = self._tp(partition)
            next_offset = self._consumer.position(tp, timeout_ms=0)
            if next_offset > position:
                blocks.append(columnar.columns(partition, fetched.get(tp, ()), next_offset))
                self._position[partition] = next_offset
        return tuple(blocks)

    def _check_membership(self, offsets: Mapping[int, int]) -> None:
        generation = self._membership.generation_id
        assignment = self._consumer.assignment()
        if generation < 0 or self._consumer.group_metadata().generation_id != generation:
            raise CommitFailed("no longer a member of the group: the session or a poll ran out")
        for partition in offsets:
            if partition not in self._held or self._tp(partition) not in assignment:
                raise CommitFailed(f"partition {partition} is no longer ours")

    def _commit_offsets(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        try:
            self._consumer.commit(offsets, timeout_ms=CALL_TIMEOUT_MS)
        except KafkaError as error:
            raise CommitFailed(f"offsets refused or in doubt: {error}") from error

    def _out_of_range(self, partition: int, offset: int) -> TransportError | StateError:
        first, end = self.bounds(partition)
        where = f"partition {partition} of {self._topic!r}"
        if offset < first:
            return CheckpointTooOld(
                f"{where}: offset {offset} comes next, but retention has removed everything before "
                f"{first}; lengthen the topic's retention, or start cold"
            )
        return StateError(
            f"{where}: offset {offset} comes next, but the log ends at {end}; "
            "was the topic deleted and created anew, or cut?"
        )


class _RebalanceLog(ConsumerRebalanceListener):  # type: ignore[misc]  # the library has no types
    """Notes rebalances in order. Written on the client's IO thread, drained on ours."""

    def __init__(self) -> None:
        self._log: deque[tuple[bool, set[int]]] = deque()

    def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Note partitions that are to be given up."""
        self._log.append((False, {tp.partition for tp in revoked}))

    def on_partitions_lost(self, lost: set[TopicPartition]) -> None:
        """Note partitions that are already somebody else's."""
        self.on_partitions_revoked(lost)

    def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Note partitions that are ours now."""
        self._log.append((True, {tp.partition for tp in assigned}))

    def drain(self) -> list[tuple[bool, set[int]]]:
        """All notes since the last call: (assigned?, partitions)."""
        return [self._log.popleft() for _ in range(len(self._log))]


def _consumer_config(settings: Settings, instance: str) -> dict[str, Any]:
    kafka = settings.kafka
    return client_settings(kafka) | {
        "client_id": f"stream-forecaster-{instance}",
        "group_id": kafka.group_id,
        "partition_assignment_strategy": (StickyPartitionAssignor,),
        "isolation_level": "read_committed",
        "enable_auto_commit": False,
        "auto_offset_reset": "none",
        "session_timeout_ms": kafka.session_timeout_ms,
        "heartbeat_interval_ms": kafka.session_timeout_ms // 3,
        "max_poll_interval_ms": kafka.max_poll_interval_ms,
        "max_poll_records": kafka.max_poll_records,
        "max_partition_fetch_bytes": 4 << 20,
        # A turn costs about as much for a hundred records as for a thousand. So the broker answers
        # when there is something worth a turn, or after a wait that no reader notices.
        "fetch_min_bytes": 128 << 10,
        "fetch_max_wait_ms": 100,
        "allow_auto_create_topics": False,
        "metrics_enabled": False,
        # A member that joins before it knows the topic's partitions gets none until the next look.
        "metadata_max_age_ms": 10_000,
    }
