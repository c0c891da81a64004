"""The writing half of a commit: all messages and all offsets, or nothing.

Rules of residence (each was learnt from duplicates or losses on Apache Kafka):

* A producer that failed is never used again. It keeps the offsets of a refused transaction and
  sends them with the next one, so after any failure it is stopped on the spot and a new one made
  with the same transactional id. `init_transactions` of the new one aborts what the old one left
  open, or waits for the end of a commit whose reply was lost: after `ready` returns, the group's
  committed offsets are the truth.
* `commit_transaction` succeeds although a send in the transaction failed. Every future is checked
  before the offsets are added: one for each batch, since messages are sent in bulk (`bulk`), or
  one for each message where the client is not as that takes it to be.
* `send_offsets_to_transaction` and `commit_transaction` wait without bound for a result whose own
  `wait` takes a time-out; closing the producer from a watchdog would not wake them. So their two
  lines are written out here, with the time the broker gives the transaction. Past it the outcome
  is in doubt and the producer is stopped. (A thread of its own for each call would need no private
  names, but one that hangs could never be ended, and would keep its producer's sockets.)
* Fencing has two causes. The broker fences a producer whose transaction outlived its time-out, and
  one whose id another process has taken. The clock tells the first; and a producer that replaced a
  failed one may be fenced by a late request of that one, so it gets a second chance. What is left
  is another process: two live ones must not fence each other for ever, so this one stops.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from kafka import KafkaProducer, TopicPartition
from kafka.errors import (
    AuthorizationError,
    InvalidProducerEpochError,
    InvalidTopicError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    ProducerFencedError,
    RecordListTooLargeError,
    UnknownError,
)
from kafka.serializer import Serializer
from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata
from structlog.typing import FilteringBoundLogger

from stream_forecaster.config import Kafka
from stream_forecaster.edge import bulk
from stream_forecaster.edge.connection import Outage, client_settings, open_client
from stream_forecaster.edge.refusals import refusal
from stream_forecaster.errors import CommitFailed, Fenced, TransportError
from stream_forecaster.records import Message

_FENCED = (ProducerFencedError, InvalidProducerEpochError)
_HOPELESS = (
    AuthorizationError,
    InvalidTopicError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
)
"""Answers that the same messages would meet again: recovering and retrying would never end."""

_CLOSE_TIMEOUT_S = 5.0
_NOTHING = object()


class Publisher:
    """Publishes batches of messages, transactional where it is given an id.

    Args:
        kafka: address, security, transaction time-out.
        transactional_id: None: an idempotent producer without transactions.
        outage: how to wait for a broker that is away.
        logger: says when a producer is replaced.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        kafka: Kafka,
        transactional_id: str | None,
        outage: Outage,
        logger: FilteringBoundLogger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kafka = kafka
        self._transactional_id = transactional_id
        self._outage = outage
        self._logger = logger
        self._clock = clock
        self._producer: Any = None
        self._in_bulk = False
        self._replaces_failed = False

    def ready(self) -> None:
        """Have a working producer, and nothing of a predecessor left open.

        Raises:
            Unavailable: no broker within the bound of the settings.
            TransportError: the broker refuses this producer.
        """
        if self._producer is None:
            self._producer = self._outage.ask(self._open)

    def transact(
        self,
        messages: Sequence[Message],
        offsets: Mapping[TopicPartition, OffsetAndMetadata],
        membership: ConsumerGroupMetadata,
    ) -> None:
        """Publish `messages` and commit `offsets` for `membership`, in one transaction.

        Raises:
            CommitFailed: refused or in doubt; `ready` settles which.
            Fenced: another process uses this transactional id.
            TransportError: the broker will never accept these messages.
        """
        self.ready()
        deadline = self._clock() + self._kafka.transaction_timeout_ms / 1_000
        try:
            self._producer.begin_transaction()
            self._send(messages, deadline)
            transaction = self._producer._transaction_manager  # noqa: SLF001  (see the rules above)
            self._await(
                transaction.send_offsets_to_transaction(dict(offsets), membership), deadline
            )
            self._await(transaction.begin_commit(), deadline)
        except KafkaError as error:
            raise self._failed(error, deadline) from error
        except BaseException:
            self.discard()
            raise
        self._replaces_failed = False

    def deliver(self, messages: Sequence[Message]) -> None:
        """Publish `messages`; return when the broker has all of them.

        Raises:
            CommitFailed: some may not be there.
            TransportError: the broker will never accept these messages.
        """
        self.ready()
        deadline = self._clock() + self._kafka.transaction_timeout_ms / 1_000
        try:
            self._send(messages, deadline)
        except KafkaError as error:
            raise self._failed(error, deadline) from error
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Stop the producer now, without delivering what it holds; the next use makes a new one."""
        producer, self._producer = self._producer, None
        if producer is None:
            return
        self._replaces_failed = True
        _bury(producer)

    def close(self) -> None:
        """Let go of the producer; nothing is in flight between two commits."""
        producer, self._producer = self._producer, None
        if producer is not None:
            _bury(producer).join(_CLOSE_TIMEOUT_S)

    def _open(self) -> KafkaProducer:
        producer = open_client(KafkaProducer, self._config())
        try:
            self._in_bulk = self._takes_bulk(producer)
            if self._transactional_id is not None:
                producer.init_transactions()
        except BaseException:
            _bury(producer)
            raise
        return producer

    def _takes_bulk(self, producer: KafkaProducer) -> bool:
        try:
            bulk.check(producer)
        except Exception as error:  # noqa: BLE001  (a new client may have changed anything)
            self._logger.warning("messages are sent one by one, far slower", cause=repr(error))
            return False
        return True

    def _config(self) -> dict[str, Any]:
        return client_settings(self._kafka) | {
            "transactional_id": self._transactional_id,
            "transaction_timeout_ms": self._kafka.transaction_timeout_ms,
            "delivery_timeout_ms": self._kafka.transaction_timeout_ms,
            "request_timeout_ms": min(15_000, self._kafka.transaction_timeout_ms // 2),
            "max_block_ms": 10_000,
            # A commit straight after another meets CONCURRENT_TRANSACTIONS and waits one back-off:
            # 27 ms in the median with the default of 100, 5 ms with this.
            "retry_backoff_ms": 5,
            # Sends come in bulk and a flush ends them, so lingering never delays, it only keeps
            # the first batches from leaving half empty.
            "linger_ms": 50,
            "batch_size": 512 << 10,
            # The broker is who knows what is too large: topics differ.
            "max_request_size": 16 << 20,
            "compression_type": "zstd",
            "allow_auto_create_topics": False,
            "metrics_enabled": False,
            "value_serializer": _NullableValues(),
        }

    def _send(self, messages: Sequence[Message], deadline: float) -> None:
        send = bulk.send if self._in_bulk else _send_each
        batches = send(self._producer, messages)
        self._flush(deadline)
        for future in chain.from_iterable(batches):
            if not future.succeeded():
                raise future.exception or KafkaTimeoutError("a message was not acknowledged")

    def _flush(self, deadline: float) -> None:
        while (left_s := deadline - self._clock()) > 0:
            try:
                self._producer.flush(timeout=left_s)
            except UnknownError:  # the client's word for a batch that was split as it waited
                continue
            return
        raise KafkaTimeoutError("messages were not acknowledged in time")

    def _await(self, result: Any, deadline: float) -> None:  # noqa: ANN401  (the library has no types)
        self._producer._sender.wakeup()  # noqa: SLF001  (see the rules above)
        if not result.wait(timeout_ms=max(0.0, 1_000 * (deadline - self._clock()))):
            raise KafkaTimeoutError(f"no answer in {self._kafka.transaction_timeout_ms} ms")

    def _failed(self, error: KafkaError, deadline: float) -> TransportError:
        """Stop the producer and say what its failure means."""
        replaces_failed = self._replaces_failed
        last_error = getattr(self._producer._transaction_manager, "last_error", None)  # noqa: SLF001  (its root cause; the exception raised is often a consequence)
        self.discard()
        if isinstance(error, _HOPELESS):
            return refusal(error)
        if isinstance(error, _FENCED) or isinstance(last_error, _FENCED):
            if self._clock() < deadline and not replaces_failed:
                return Fenced(
                    f"another process has taken the transactional id {self._transactional_id!r}; "
                    "give each process its own kafka.instance_id"
                )
            self._logger.warning("fenced; trying once more", cause=str(last_error or error))
        return CommitFailed(f"commit refused or in doubt: {last_error or error}")


class _NullableValues(Serializer):  # type: ignore[misc]  # the library has no types
    """Bytes as they are, and `_NOTHING` as null."""

    def serialize(self, topic: str, headers: object, data: Any) -> bytes | None:  # noqa: ANN401  (bytes, None or `_NOTHING`)
        """As the client wants it."""
        del topic, headers
        return None if data is _NOTHING else data


def _send_each(producer: KafkaProducer, messages: Iterable[Message]) -> list[list[Any]]:
    """As `bulk.send`, with nothing but the client's own."""
    return [
        [
            producer.send(
                m.topic,
                # The client refuses a record of nothing, and reads None before it serialises.
                _NOTHING if m.value is None and m.key is None else m.value,
                m.key,
                list(m.headers),
                m.partition,
                m.time_ms,
            )
            for m in messages
        ]
    ]


def _bury(producer: KafkaProducer) -> threading.Thread:
    """Stop a producer on the spot and close it as soon as its sender has ended.

    `close(timeout=0)` would raise, and leave the sender running, when batches are not delivered.
    """
    sender = producer._sender  # noqa: SLF001  (the only way to stop it; the client is pinned <3.1)
    sender.force_close()

    def wait() -> None:
        sender.join()
        producer.close(timeout=1)

    thread = threading.Thread(target=wait, name="kafka-bury", daemon=True)
    thread.start()
    return thread
