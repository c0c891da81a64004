"""Clients of one broker that close themselves after the test: kafka-python's, and confluent's.

The two share no code, so what both agree on is the protocol and not one library's habit.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, NamedTuple, TypeVar

import confluent_kafka
import confluent_kafka.admin
from brokers import Served, Wire, create_topic
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.protocol.metadata import FindCoordinatorRequest, MetadataRequest

PATIENCE_S = 20.0
"""How long a test waits for what must come; only a failing test waits that long."""

_Found = TypeVar("_Found")


class Read(NamedTuple):
    """A record as a test sees it, from either library."""

    offset: int
    key: bytes | None
    value: bytes | None


def eventually(look: Callable[[], _Found | None]) -> _Found:
    """Look again and again until there is something; fail when patience runs out."""
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline_s, "it did not come"
        time.sleep(0.02)


class Clients:
    """Makes clients of the broker under test."""

    def __init__(self, served: Served, stack: ExitStack) -> None:
        self.served = served
        self._stack = stack
        self._admin: Any = None
        self._confluent_admin: Any = None

    def topic(self, partitions: int = 1, **settings: str) -> str:
        """A new topic; settings with underscores for dots, as in cleanup_policy."""
        names = {name.replace("_", "."): value for name, value in settings.items()}
        return create_topic(self.served, partitions, names)

    @property
    def admin(self) -> Any:
        """kafka-python's admin client."""
        if self._admin is None:
            self._admin = KafkaAdminClient(bootstrap_servers=self.served.bootstrap)
            self._stack.callback(self._admin.close)
        return self._admin

    def producer(self, **settings: Any) -> Any:
        """kafka-python's producer."""
        settings.setdefault("retry_backoff_ms", 20)
        client = KafkaProducer(bootstrap_servers=self.served.bootstrap, **settings)
        self._stack.callback(client.close, timeout=1)
        return client

    def transactional(self, transactional_id: str, **settings: Any) -> Any:
        """kafka-python's transactional producer, initialised."""
        client = self.producer(transactional_id=transactional_id, **settings)
        client.init_transactions()
        return client

    def consumer(self, *topics: str, **settings: Any) -> Any:
        """kafka-python's consumer, from the beginning and without automatic commits."""
        defaults = {
            "auto_offset_reset": "earliest",
            "enable_auto_commit": False,
            "heartbeat_interval_ms": 100,
            "session_timeout_ms": 6000,
            "retry_backoff_ms": 20,
            # kafka-python may join before it knows the topic's partitions, assign none of them,
            # and notice only when the metadata is due again: by default after five minutes
            "metadata_max_age_ms": 500,
        }
        client = KafkaConsumer(
            *topics, bootstrap_servers=self.served.bootstrap, **(defaults | settings)
        )
        _never_forget_a_join(client._coordinator)
        self._stack.callback(client.close, autocommit=False, timeout_ms=2000)
        return client

    def member(self, topic: str, group: str, **settings: Any) -> tuple[Any, list[Any]]:
        """A consumer that has joined the group, with the records of its first poll."""
        consumer = self.consumer(topic, group_id=group, **settings)
        records = eventually(lambda: flat(consumer.poll(200)) or (consumer.assignment() and [None]))
        return consumer, [record for record in records if record is not None]

    def send(self, topic: str, values: Iterable[bytes], partition: int = 0) -> None:
        """Write values, outside any transaction."""
        producer = self.producer()
        sent = [producer.send(topic, value, partition=partition) for value in values]
        producer.flush()
        for future in sent:
            future.get(0)

    def read(self, topic: str, partition: int = 0, *, committed: bool = False) -> list[Read]:
        """Everything that kafka-python sees of a partition, from its start to its present end."""
        where = TopicPartition(topic, partition)
        isolation = "read_committed" if committed else "read_uncommitted"
        reader = self.consumer(isolation_level=isolation)
        reader.assign([where])
        reader.seek_to_beginning(where)
        end = reader.end_offsets([where])[where]
        records = collect(reader, lambda _: reader.position(where) >= end)
        return [Read(r.offset, r.key, r.value) for r in records]

    def confluent_producer(self, **settings: Any) -> Any:
        """confluent-kafka's producer; settings with underscores for dots.

        It ends with its last reference: a fenced one cannot be closed.
        """
        return confluent_kafka.Producer(self._confluent(settings))

    def confluent_consumer(self, **settings: Any) -> Any:
        """confluent-kafka's consumer; settings with underscores for dots."""
        defaults = {"auto_offset_reset": "earliest", "enable_auto_commit": False}
        client = confluent_kafka.Consumer(self._confluent(defaults | settings))
        self._stack.callback(client.close)
        return client

    @property
    def confluent_admin(self) -> Any:
        """confluent-kafka's admin client; held here, as its futures end with it."""
        if self._confluent_admin is None:
            self._confluent_admin = confluent_kafka.admin.AdminClient(self._confluent({}))
        return self._confluent_admin

    def confluent_read(
        self, topic: str, partition: int = 0, *, committed: bool = False
    ) -> list[Read]:
        """Everything that confluent-kafka sees of a partition, from its start to its end."""
        isolation = "read_committed" if committed else "read_uncommitted"
        reader = self.confluent_consumer(
            group_id="unused",
            isolation_level=isolation,
            enable_partition_eof=True,
            check_crcs=True,
            fetch_wait_max_ms=10,
        )
        where = confluent_kafka.TopicPartition(topic, partition)
        where.offset, _ = reader.get_watermark_offsets(where, timeout=PATIENCE_S)
        reader.assign([where])
        found: list[Read] = []
        while True:
            message = eventually(lambda: reader.poll(1.0))
            if message.error() is None:
                found.append(Read(message.offset(), message.key(), message.value()))
            elif message.error().code() == confluent_kafka.KafkaError._PARTITION_EOF:
                return found
            else:
                raise confluent_kafka.KafkaException(message.error())

    def wire(self, topic: str | None = None) -> Wire:
        """A raw connection: to the leader of the topic's partition 0, if a topic is named."""
        wire = Wire(self.served.bootstrap)
        self._stack.callback(wire.close)
        if topic is None:
            return wire
        wanted = MetadataRequest.MetadataRequestTopic(name=topic)
        answer = wire.ask(MetadataRequest(topics=[wanted], allow_auto_topic_creation=False), 8)
        leader = answer.topics[0].partitions[0].leader_id
        address = next(f"{b.host}:{b.port}" for b in answer.brokers if b.node_id == leader)
        wire = Wire(address)
        self._stack.callback(wire.close)
        return wire

    def coordinator(self, key: str, *, transactional: bool = False) -> Wire:
        """A raw connection to the coordinator of a group or of a transactional id."""
        asking = self.wire()

        def address() -> str | None:
            found = asking.ask(FindCoordinatorRequest(key=key, key_type=int(transactional)), 3)
            return None if found.error_code else f"{found.host}:{found.port}"

        wire = Wire(eventually(address))
        self._stack.callback(wire.close)
        return wire

    def _confluent(self, settings: dict[str, Any]) -> dict[str, Any]:
        named = {name.replace("_", "."): value for name, value in settings.items()}
        return {"bootstrap.servers": self.served.bootstrap, "log_level": 0, **named}


def _never_forget_a_join(coordinator: Any) -> None:
    """Mend kafka-python 3.0.12, whose member may wait for its partitions for ever.

    When new metadata has made the leader join again, and the answers come between two polls, the
    next poll sees no reason to join and never looks at them; heartbeats stay off, and the broker
    drops the member. A join that was begun is a reason.
    """
    need_rejoin = coordinator.need_rejoin
    coordinator.need_rejoin = lambda: coordinator.rejoining or need_rejoin()


def flat(polled: dict[Any, list[Any]]) -> list[Any]:
    """The records of one kafka-python poll, whatever their partition."""
    return [record for records in polled.values() for record in records]


def collect(consumer: Any, enough: Callable[[list[Any]], bool]) -> list[Any]:
    """Poll kafka-python's consumer until its records are enough."""
    records: list[Any] = []

    def look() -> bool:
        records.extend(flat(consumer.poll(100)))
        return enough(records)

    eventually(look)
    return records
