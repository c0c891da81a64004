"""Redelivery: dead letters back to the input topic, each once.

Theory of operation
-------------------
**Progress is the committed offset of a group of its own**, `<kafka.group_id>.dlq`, sent in the
transaction that resends the records: either both are there or neither. Since letters can be resent
by reason, the offset alone would not do: the metadata beside it says for each reason how far it has
come, and the offset is the least of them.

**One at a time.** All runs have the same transactional id. `Publisher.ready` of a later run aborts
what an earlier, killed one left open, or waits for the end of its commit, and only then is the
progress read; an earlier one that is still alive is fenced from there on. The group has no members,
so nothing else could fence.

**What brokers forget.** The offsets of an idle group expire (`offsets.retention.minutes`, seven
days by default) while dead letters are kept for thirty. So without any progress, letters older than
that are in doubt: they may have been resent. They stop the run before anything is sent, unless it
is said that it is the first.

**A record that comes back** is counted in its own header. Having come back too often it is passed
over, and so are letters of other topics and records that are no letters at all.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata
from structlog.typing import FilteringBoundLogger

from stream_forecaster import dead_letters
from stream_forecaster.calendar import DAY_MS
from stream_forecaster.config import Settings
from stream_forecaster.edge.connection import (
    CALL_TIMEOUT_MS,
    Outage,
    client_settings,
    open_client,
)
from stream_forecaster.edge.publisher import Publisher
from stream_forecaster.edge.topics import StoredRecord, read_topic
from stream_forecaster.errors import CommitFailed, StateError
from stream_forecaster.events import Reason
from stream_forecaster.records import Message

REASONS = tuple(reason.value for reason in Reason)
_REMEMBERED_MS = 7 * DAY_MS
_ATTEMPTS = 5
_BATCH, _BATCH_BYTES = 500, 8 << 20
"""Of a transaction: what is held in memory, and what a killed run does again."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to resend.

    Attributes:
        reasons: letters with these.
        max_replays: a record that has been resent so often is passed over.
        first: no letter was resent before, whatever the broker has forgotten.
    """

    reasons: Collection[str] = REASONS
    max_replays: int = 3
    first: bool = False


@dataclass
class Outcome:
    """What came of it: records resent; passed over: back too often, not ours, not whole."""

    resent: int = 0
    given_up: int = 0
    foreign: int = 0
    cut: int = 0


Progress = dict[int, dict[str, int]]
"""Partition -> reason -> the next offset to look at."""


class Redelivery:
    """Resends dead letters by a plan.

    Args:
        settings: of the pipeline; how to reach the broker, and the topics.
        logger: says when a commit is tried again.
        resent: told how many records each transaction has resent.
        now_ms: the wall clock, epoch ms.
    """

    def __init__(
        self,
        settings: Settings,
        logger: FilteringBoundLogger,
        resent: Callable[[int], None] = lambda _: None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        # Whoever typed the command wants to know now: a broker that is away is not waited for.
        patience = {"give_up_after_ms": settings.kafka.give_up_after_ms or CALL_TIMEOUT_MS}
        kafka = settings.kafka.model_copy(update=patience)
        self._settings = settings.model_copy(update={"kafka": kafka})
        self._resent, self._now_ms, self._log = resent, now_ms, logger
        self._topic = settings.output.dead_letter_topic
        self._group = f"{kafka.group_id}.dlq"
        self._outage = Outage(kafka, logger, time.monotonic, threading.Event())
        self._publisher = Publisher(kafka, self._group, self._outage, logger)
        self._membership = ConsumerGroupMetadata(self._group)

    def run(self, plan: Plan) -> Outcome:
        """Resend what the plan names and has not been resent, up to the present end of the topic.

        Raises:
            StateError: the progress cannot be used, or letters are in doubt; nothing was resent.
            Fenced: another run has begun.
            Unavailable, TransportError: no broker, no such topic, or it refuses.
        """
        outcome = Outcome()
        try:
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    self._publisher.ready()
                    self._pass(plan, outcome)
                except CommitFailed as error:
                    if attempt == _ATTEMPTS:
                        raise
                    self._log.warning("trying once more", cause=str(error))
                else:
                    break
        finally:
            self._publisher.close()
        return outcome

    def _pass(self, plan: Plan, outcome: Outcome) -> None:
        """Once through the letters, from where the progress says."""
        progress, partitions = self._look(plan)
        begin = {p: min(done[reason] for reason in plan.reasons) for p, done in progress.items()}
        with closing(read_topic(self._settings, self._topic, begin=begin)) as letters:
            for batch in _batches(letters):
                messages, found = self._judge(batch, plan, progress, partitions)
                for record in batch:
                    done = progress[record.partition]
                    for reason in plan.reasons:
                        done[reason] = max(done[reason], record.offset + 1)
                self._commit(messages, progress, {record.partition for record in batch})
                outcome.resent += len(messages)
                outcome.given_up += found["given up"]
                outcome.foreign += found["foreign"]
                outcome.cut += found["cut"]
                self._resent(len(messages))
        # Nothing to send, but brokers forget what nobody renews.
        self._commit([], progress, progress.keys())

    def _commit(
        self, messages: Sequence[Message], progress: Progress, partitions: Iterable[int]
    ) -> None:
        """Resend, and say how far it has come."""
        offsets = {
            TopicPartition(self._topic, p): OffsetAndMetadata(
                min(progress[p].values()), json.dumps(progress[p]), -1
            )
            for p in partitions
        }
        self._publisher.transact(messages, offsets, self._membership)

    def _judge(
        self, batch: list[StoredRecord], plan: Plan, progress: Progress, partitions: int
    ) -> tuple[list[Message], Counter[str]]:
        """What of a batch is to be resent, and how many letters of it are not, by why."""
        messages, found = [], Counter[str]()
        for record in batch:
            letter = dead_letters.read(record.key, record.value, record.headers)
            if letter.topic != self._settings.input.topic or letter.reason not in REASONS:
                found["foreign"] += 1
            elif (
                letter.reason in plan.reasons
                and record.offset >= progress[record.partition][letter.reason]
            ):
                if letter.is_cut:
                    found["cut"] += 1
                elif letter.replays >= plan.max_replays:
                    found["given up"] += 1
                else:
                    messages.append(dead_letters.resent(letter, partitions))
        return messages, found

    def _look(self, plan: Plan) -> tuple[Progress, int]:
        """How far earlier runs have come, and how many partitions the input has."""
        config = client_settings(self._settings.kafka) | {
            "group_id": self._group,
            "isolation_level": "read_committed",  # waits for offsets that a transaction holds
            "enable_auto_commit": False,
            "allow_auto_create_topics": False,
            "metrics_enabled": False,
        }
        consumer: Any = self._outage.ask(lambda: open_client(KafkaConsumer, config))
        try:
            inputs = self._outage.ask(
                lambda: consumer.partitions_for_topic(self._settings.input.topic)
            )
            found = self._outage.ask(lambda: self._progress(consumer, plan))
        finally:
            consumer.close()
        return found, len(inputs or ())

    def _progress(self, consumer: Any, plan: Plan) -> Progress:  # noqa: ANN401  (the library has no types)
        found = consumer.partitions_for_topic(self._topic) or ()
        tps = [TopicPartition(self._topic, p) for p in sorted(found)]
        ends = consumer.end_offsets(tps, timeout_ms=CALL_TIMEOUT_MS)
        progress: Progress = {}
        for tp in tps:
            known = consumer.committed(tp, metadata=True, timeout_ms=CALL_TIMEOUT_MS)
            if known is None and not plan.first and self._old_letters(consumer, tp, ends[tp]):
                raise StateError(
                    f"partition {tp.partition} of {self._topic!r} has letters older than seven "
                    f"days, and group {self._group!r} has no offset there: brokers forget those of "
                    "an idle group, so these letters may have been resent before. If none ever "
                    "was, say --first."
                )
            done = _parsed(known.offset, known.metadata) if known else dict.fromkeys(REASONS, 0)
            if max(done.values()) > ends[tp]:
                raise StateError(
                    f"group {self._group!r} has resent letters up to {max(done.values())}, but "
                    f"partition {tp.partition} of {self._topic!r} ends at {ends[tp]}: was the "
                    "topic made anew? Delete the group: kafka-consumer-groups.sh --delete."
                )
            progress[tp.partition] = done
        return progress

    def _old_letters(self, consumer: Any, tp: TopicPartition, end: int) -> bool:  # noqa: ANN401  (as above)
        """Whether there are letters older than brokers remember an idle group."""
        remembered_ms = self._now_ms() - _REMEMBERED_MS
        first = consumer.beginning_offsets([tp], timeout_ms=CALL_TIMEOUT_MS)[tp]
        young = consumer.offsets_for_times({tp: remembered_ms}, timeout_ms=CALL_TIMEOUT_MS)[tp]
        return bool(first < (young.offset if young is not None else end))


def _parsed(offset: int, metadata: str) -> dict[str, int]:
    """The progress of each reason; those that the metadata does not name are where the offset is.

    >>> _parsed(3, '{"no_key": 7}')["no_key"], _parsed(3, '')["no_key"]
    (7, 3)
    """
    try:
        said: Mapping[str, Any] = dict(json.loads(metadata or "{}"))
    except (ValueError, TypeError, RecursionError):
        said = {}
    return {
        reason: max(offset, known) if isinstance(known := said.get(reason), int) else offset
        for reason in REASONS
    }


def _batches(records: Iterator[StoredRecord]) -> Iterator[list[StoredRecord]]:
    batch: list[StoredRecord] = []
    size_bytes = 0
    for record in records:
        batch.append(record)
        size_bytes += len(record.key or b"") + len(record.value or b"")
        if len(batch) >= _BATCH or size_bytes >= _BATCH_BYTES:
            yield batch
            batch, size_bytes = [], 0
    if batch:
        yield batch
