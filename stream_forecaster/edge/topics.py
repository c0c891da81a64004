"""Topics: create, describe, check, read and fill them. For the commands of the CLI, not for `run`.

Every function opens its own client, does one thing and closes it. A broker that is away is not
waited for: whoever typed the command wants to know now.
"""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Literal, Self, TypeVar

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, OffsetSpec
from kafka.errors import (
    KafkaError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    for_code,
)

from stream_forecaster.calendar import DAY_MS
from stream_forecaster.config import Settings
from stream_forecaster.edge.connection import (
    CALL_TIMEOUT_MS,
    LIKELY_CAUSES,
    client_settings,
    open_client,
)
from stream_forecaster.edge.refusals import refusal
from stream_forecaster.errors import TransportError, Unavailable
from stream_forecaster.events import UNTIMED_MS
from stream_forecaster.records import Headers

T = TypeVar("T")

_DEAD_LETTER_MAX_BYTES = 4 << 20
"""A dead letter is a whole input record, at most 1 MiB by the broker's default, and its headers."""


@dataclass(frozen=True, slots=True)
class TopicState:
    """A topic as the broker has it.

    Attributes:
        name: the topic.
        configs: settings that differ from the broker's defaults.
        bounds: partition -> (first offset, next offset); empty where the topic is missing.
        committed: partition -> the group's committed offset; only of the input topic.
    """

    name: str
    configs: Mapping[str, str] = field(default_factory=dict)
    bounds: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    committed: Mapping[int, int] = field(default_factory=dict)

    @property
    def partitions(self) -> int:
        """How many there are; 0: no such topic."""
        return len(self.bounds)

    @property
    def lag(self) -> dict[int, int]:
        """Partition -> records between the group's offset and the end; all of them before it."""
        return {p: end - self.committed.get(p, first) for p, (first, end) in self.bounds.items()}


@dataclass(frozen=True, slots=True)
class Probe:
    """One line of `stream-forecaster check`."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record as it lies in a topic."""

    topic: str
    partition: int
    offset: int
    time_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


def topic_names(settings: Settings) -> tuple[str, ...]:
    """The topics this pipeline uses, the input first."""
    output = settings.output
    names = (settings.input.topic, output.topic, output.dead_letter_topic, output.scores_topic)
    return tuple(name for name in names if name)


def topic_configs(settings: Settings) -> dict[str, dict[str, str]]:
    """Topic -> the settings it is created with.

    The input holds the longest window, so that a shard without a checkpoint can be replayed. The
    output is compacted to the latest forecast of a key, and forgets keys after their time to live.
    """
    longest_window_ms = max(r.context * r.step_ms for r in settings.resolutions)
    longest_horizon_ms = max(r.horizon * r.step_ms for r in settings.resolutions)
    kept = {"retention.ms": str(settings.state.key_ttl_ms + longest_horizon_ms)}
    configs = {
        settings.input.topic: {"retention.ms": str(longest_window_ms + DAY_MS)},
        settings.output.topic: kept
        | {
            "cleanup.policy": "compact,delete",
            "min.cleanable.dirty.ratio": "0.1",
            "delete.retention.ms": str(DAY_MS),
            "compression.type": "zstd",
        },
        settings.output.dead_letter_topic: {
            "retention.ms": str(30 * DAY_MS),
            "max.message.bytes": str(_DEAD_LETTER_MAX_BYTES),
        },
        settings.output.scores_topic: kept,
    }
    return {name: configs[name] for name in topic_names(settings)}


def create_topics(settings: Settings, partitions: int) -> dict[str, bool]:
    """Create the topics that do not exist; leave those that do as they are.

    The output has as many partitions as the input, so that a key has the same number in both. An
    input topic that exists already decides, not `partitions`.

    Returns:
        topic -> whether it was created now.

    Raises:
        Unavailable, TransportError: no broker, or it refuses.
    """
    with _translated(settings), _admin(settings) as admin:
        existing = _counts(_describe(admin, settings))
        count = existing.get(settings.input.topic) or partitions
        wanted = {
            name: {"num_partitions": count, "configs": configs}
            for name, configs in topic_configs(settings).items()
            if name not in existing
        }
        if wanted:
            response = admin.create_topics(wanted, raise_errors=False)
            for topic in response["topics"]:
                error = for_code(topic["error_code"])
                if topic["error_code"] and error is not TopicAlreadyExistsError:
                    raise error(f"{topic['name']}: {topic['error_message']}")
            admin.wait_for_topics(list(wanted), CALL_TIMEOUT_MS)
    return {name: name in wanted for name in topic_names(settings)}


def describe_topics(settings: Settings) -> tuple[TopicState, ...]:
    """The pipeline's topics as they are, missing ones too.

    Raises:
        Unavailable, TransportError: no broker, or it refuses.
    """
    with _translated(settings), _admin(settings) as admin:
        counts = _counts(_describe(admin, settings))
        group_id = settings.kafka.group_id
        offsets = _patiently(lambda: admin.list_group_offsets({group_id: None}))[group_id]
        states = []
        for name in topic_names(settings):
            tps = [TopicPartition(name, p) for p in range(counts.get(name, 0))]
            first = admin.list_partition_offsets(dict.fromkeys(tps, OffsetSpec.EARLIEST))
            end = admin.list_partition_offsets(dict.fromkeys(tps, OffsetSpec.LATEST))
            states.append(
                TopicState(
                    name,
                    _changed_configs(admin, name) if tps else {},
                    {tp.partition: (first[tp].offset, end[tp].offset) for tp in tps},
                    {tp.partition: offsets[tp].offset for tp in tps if tp in offsets},
                )
            )
    return tuple(states)


def require_input(settings: Settings) -> None:
    """Check that the input topic exists: a producer would ask for it for a minute.

    Raises:
        Unavailable, TransportError: no broker, no such topic, or it refuses.
    """
    with _translated(settings), _admin(settings) as admin:
        if not _counts(_describe(admin, settings)).get(settings.input.topic):
            raise no_topic(settings, settings.input.topic)


def no_topic(settings: Settings, topic: str) -> TransportError:
    """What to say where there is no such topic."""
    return TransportError(
        f"no topic {topic!r} on {settings.kafka.bootstrap_servers}, or it is forbidden; create "
        "what is missing with: stream-forecaster topics create"
    )


def probe(settings: Settings) -> Iterator[Probe]:
    """Look at everything `run` will need, one finding at a time; never raises for a finding."""
    try:
        with _translated(settings), _admin(settings) as admin:
            brokers = [f"{b['host']}:{b['port']}" for b in admin.describe_cluster()["brokers"]]
            yield Probe("broker", passed=True, detail=f"reached {', '.join(brokers)}")
            described = _describe(admin, settings)
            counts, forbidden = _counts(described), _forbidden(described, settings)
            yield from _probe_topics(settings, counts, forbidden)
            group_id = settings.kafka.group_id
            group = _patiently(lambda: admin.describe_groups([group_id]))[group_id]
            members = len(group.get("members") or ())
            yield Probe("group", passed=True, detail=f"{group_id}: {members} members")
    except TransportError as error:
        yield Probe("broker", passed=False, detail=str(error))


def require_topics(settings: Settings) -> None:
    """Check that `run` has its topics, and may read and write them.

    Raises:
        TransportError: a topic is missing, or permission to use it is.
        KafkaError: the broker could not be asked.
    """
    with _admin(settings) as admin:
        described = _describe(admin, settings)
    if forbidden := _forbidden(described, settings):
        raise TransportError("; ".join(forbidden.values()))
    counts = _counts(described)
    missing = [repr(name) for name in topic_names(settings) if name not in counts]
    if missing:
        raise TransportError(
            f"no topic {', '.join(missing)} on {settings.kafka.bootstrap_servers}; "
            "create what is missing with: stream-forecaster topics create"
        )


def read_topic(
    settings: Settings,
    topic: str,
    *,
    start: Literal["earliest", "latest"] = "earliest",
    follow: bool = False,
    stopping: Event | None = None,
    begin: Mapping[int, int] | None = None,
) -> Generator[StoredRecord, None, None]:
    """The committed records of a topic, in order within each partition; joins no group.

    To the end that was found, it waits for a broker only as long as for any other answer. A
    follower waits for ever, as long as a quiet topic may be quiet.

    Args:
        settings: how to reach the broker.
        topic: any topic.
        start: where to begin.
        follow: go on past the end that was found at the beginning, until `stopping` is set.
        stopping: ends the reading.
        begin: these partitions only, from these offsets on, or from what is left after them.

    Raises:
        Unavailable, TransportError: no broker, or it went away; no such topic or partition, or it
            refuses.
    """
    stopping = stopping or Event()
    config = client_settings(settings.kafka) | {
        "isolation_level": "read_committed",
        "auto_offset_reset": start,
        "enable_auto_commit": False,
        "allow_auto_create_topics": False,
        "metrics_enabled": False,
    }
    with _translated(settings), _closing(open_client(KafkaConsumer, config)) as consumer:
        tps = [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic))]
        if not tps:
            raise no_topic(settings, topic)
        if begin is not None:
            if missing := begin.keys() - {tp.partition for tp in tps}:
                raise TransportError(f"topic {topic!r} has no partition {min(missing)}")
            tps = [tp for tp in tps if tp.partition in begin]
        consumer.assign(tps)
        for partition, offset in (begin or {}).items():
            consumer.seek(TopicPartition(topic, partition), offset)
        end = consumer.end_offsets(tps, timeout_ms=CALL_TIMEOUT_MS)
        behind = set() if start == "latest" else {tp for tp in tps if end[tp] > 0}
        patience = _Patience(settings)
        while (follow or behind) and not stopping.is_set():
            for tp, records in consumer.poll(timeout_ms=200).items():
                yield from (
                    _stored(record) for record in records if follow or record.offset < end[tp]
                )
            reached = {tp: consumer.position(tp, timeout_ms=0) or 0 for tp in behind}
            behind = {tp for tp in behind if reached[tp] < end[tp]}
            if behind and not follow:
                patience.spend(reached)  # not in the midst of it: whoever reads may take their time


class _Patience:
    """With a broker that has answered and now says nothing: the client waits and raises nothing.

    A stretch of nothing but aborted transactions has no records, but it moves positions.
    """

    def __init__(self, settings: Settings) -> None:
        self._address = settings.kafka.bootstrap_servers
        longest_ms = settings.kafka.give_up_after_ms or CALL_TIMEOUT_MS
        self._longest_s = min(CALL_TIMEOUT_MS, longest_ms) / 1_000
        self._reached: dict[TopicPartition, int] = {}
        self._since_s = time.monotonic()

    def spend(self, reached: dict[TopicPartition, int]) -> None:
        """Look at where reading has come to.

        Raises:
            Unavailable: it has stood there for too long.
        """
        if reached != self._reached:
            self._reached, self._since_s = reached, time.monotonic()
        elif time.monotonic() - self._since_s >= self._longest_s:
            raise Unavailable(
                f"Kafka at {self._address} has gone quiet before the end of the topic: nothing for "
                f"{self._longest_s:g} s; try again when it is back (stream-forecaster check)"
            )


class EventWriter:
    """Writes events in bulk, for simulators and the demo: idempotent, no transactions.

    Args:
        settings: how to reach the broker; the topic is `input.topic`.

    Raises:
        Unavailable, TransportError: no broker, or it refuses.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topic = settings.input.topic
        config = client_settings(settings.kafka) | {
            "linger_ms": 50,
            "batch_size": 512 << 10,
            "max_request_size": 16 << 20,
            "allow_auto_create_topics": False,
            "metrics_enabled": False,
        }
        with _translated(settings):
            self._producer: Any = open_client(KafkaProducer, config)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, events: Iterable[tuple[bytes | None, bytes | None, int | None]]) -> int:
        """Write (key, value, time in epoch ms or None for now); return how many are acknowledged.

        The broker refuses times more than an hour ahead of its clock.

        Raises:
            Unavailable, TransportError: not all were acknowledged.
        """
        with _translated(self._settings):
            futures = [
                self._producer.send(self._topic, value=value, key=key, timestamp_ms=time_ms)
                for key, value, time_ms in events
            ]
            return self._delivered(futures)

    def forget(self, key: bytes) -> int:
        """Write a tombstone of `key` to every partition; return how many there are.

        Which partition has the key's events is the business of whoever writes them. The tombstones
        have no time, so they move no watermark: a topic whose past is being loaded stays there.

        Raises:
            Unavailable, TransportError: no such topic, or not all were acknowledged.
        """
        with _translated(self._settings):
            with _admin(self._settings) as admin:
                partitions = range(_counts(_describe(admin, self._settings)).get(self._topic, 0))
            if not partitions:
                raise no_topic(self._settings, self._topic)
            futures = [
                self._producer.send(
                    self._topic, key=key, partition=partition, timestamp_ms=UNTIMED_MS
                )
                for partition in partitions
            ]
            return self._delivered(futures)

    def _delivered(self, futures: Sequence[Any]) -> int:
        """How many records these are, once all are acknowledged."""
        self._producer.flush(timeout=CALL_TIMEOUT_MS / 1_000)
        for future in futures:
            future.get(timeout=0)
        return len(futures)

    def close(self) -> None:
        """Let go of the connection; safe to call twice."""
        self._producer.close(timeout=5)


@contextmanager
def _translated(settings: Settings) -> Iterator[None]:
    try:
        yield
    except KafkaError as error:
        if error.retriable:
            raise Unavailable(
                f"no answer from Kafka at {settings.kafka.bootstrap_servers}: {error}; "
                f"{LIKELY_CAUSES}"
            ) from error
        raise refusal(error) from error


@contextmanager
def _closing(client: T) -> Iterator[T]:
    try:
        yield client
    finally:
        client.close()  # type: ignore[attr-defined]  # every client of the library has it


def _admin(settings: Settings) -> Any:  # noqa: ANN401  (the library has no types)
    return open_client(KafkaAdminClient, client_settings(settings.kafka))


def _describe(admin: Any, settings: Settings) -> list[dict[str, Any]]:  # noqa: ANN401  (as above)
    """What the broker says of the pipeline's topics."""
    described: list[dict[str, Any]] = admin.describe_topics(list(topic_names(settings)))
    return described


def _counts(described: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Topic -> partitions, of those that exist."""
    return {t["name"]: len(t["partitions"]) for t in described if not t["error_code"]}


def _forbidden(described: Iterable[Mapping[str, Any]], settings: Settings) -> dict[str, str]:
    """Topic -> which permission is missing and how it is given, of those that lack one.

    A broker hides topics from those who may not use them at all, so they look like missing ones.
    """
    kafka, found = settings.kafka, {}
    who = f"User:{kafka.sasl_plain_username or '<the principal of this client>'}"
    for topic in described:
        name, allowed = topic["name"], topic["authorized_operations"]
        operation = "Read" if name == settings.input.topic else "Write"
        hidden = topic["error_code"] == TopicAuthorizationFailedError.errno
        if hidden or (allowed and operation.upper() not in allowed):  # empty: not told
            found[name] = (
                f"{who} may not {operation.lower()} topic {name!r} on {kafka.bootstrap_servers}; "
                f"allow it: kafka-acls.sh --bootstrap-server ... --add --allow-principal '{who}' "
                f"--operation {operation} --topic {name}"
            )
    return found


def _changed_configs(admin: Any, topic: str) -> dict[str, str]:  # noqa: ANN401  (as above)
    described = admin.describe_configs([ConfigResource("topic", topic)])
    configs = described.get("topic", {}).get(topic, {})
    return {name: config["value"] for name, config in sorted(configs.items())}


def _probe_topics(
    settings: Settings, counts: Mapping[str, int], forbidden: Mapping[str, str]
) -> Iterator[Probe]:
    for name in topic_names(settings):
        if name in forbidden:
            yield Probe(f"topic {name}", passed=False, detail=forbidden[name])
            continue
        found = name in counts
        detail = (
            f"{counts[name]} partitions" if found else "missing: stream-forecaster topics create"
        )
        yield Probe(f"topic {name}", passed=found, detail=detail)
    source, target = settings.input.topic, settings.output.topic
    if source in counts and target in counts:
        yield Probe(
            "co-partitioning",
            passed=counts[source] == counts[target],
            detail=f"{source} has {counts[source]} partitions, {target} has {counts[target]}",
        )


def _patiently(question: Callable[[], T]) -> T:
    """Ask about a group; a broker that never had one needs a moment to set its log up."""
    give_up_s = time.monotonic() + CALL_TIMEOUT_MS / 1_000
    while True:
        try:
            return question()
        except KafkaError as error:
            if not error.retriable or time.monotonic() > give_up_s:
                raise
            time.sleep(0.1)


def _stored(record: Any) -> StoredRecord:  # noqa: ANN401  (the library has no types)
    return StoredRecord(
        record.topic,
        record.partition,
        record.offset,
        record.timestamp,
        record.key,
        record.value,
        tuple(record.headers),
    )
