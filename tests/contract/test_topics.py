"""Topics, their settings and the start of their logs."""

from typing import Any

import confluent_kafka
import confluent_kafka.admin
import pytest
from brokers import unique
from clients import Clients, Read, eventually
from confluent_kafka import TopicPartition as ConfluentPartition
from kafka import TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic
from kafka.errors import (
    InvalidConfigurationError,
    InvalidPartitionsError,
    InvalidReplicationFactorError,
    InvalidTopicError,
    OffsetOutOfRangeError,
    PolicyViolationError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)


def test_a_created_topic_is_listed_with_its_partitions(clients: Clients) -> None:
    """Both libraries see the topic and its three partitions."""
    topic = clients.topic(partitions=3)

    assert topic in clients.admin.list_topics()
    listed = clients.confluent_admin.list_topics(topic, timeout=10).topics[topic]
    assert sorted(listed.partitions) == [0, 1, 2]


@pytest.mark.parametrize(
    ("topic", "refusal"),
    [
        (NewTopic("no/slashes", 1, 1), InvalidTopicError),
        (NewTopic("", 1, 1), InvalidTopicError),
        (NewTopic(unique("t"), 0, 1), InvalidPartitionsError),
        (NewTopic(unique("t"), 1, 999), InvalidReplicationFactorError),
        (NewTopic(unique("t"), 1, 1, topic_configs={"no.such": "1"}), InvalidConfigurationError),
        (
            NewTopic(unique("t"), 1, 1, topic_configs={"retention.ms": "soon"}),
            InvalidConfigurationError,
        ),
        (
            NewTopic(unique("t"), 1, 1, topic_configs={"cleanup.policy": "shred"}),
            InvalidConfigurationError,
        ),
    ],
    ids=["slash", "empty", "no partitions", "replicas", "setting", "number", "policy"],
)
def test_an_illegal_topic_is_refused(
    clients: Clients, topic: NewTopic, refusal: type[Exception]
) -> None:
    """The refusal says what is wrong, and nothing is created."""
    with pytest.raises(refusal):
        clients.admin.create_topics([topic])

    assert topic.name not in clients.admin.list_topics()


def test_a_topic_is_created_once(clients: Clients) -> None:
    """A second topic of the name is refused."""
    topic = clients.topic()

    with pytest.raises(TopicAlreadyExistsError):
        clients.admin.create_topics([NewTopic(topic, 1, 1)])


def test_validating_creates_nothing(clients: Clients) -> None:
    """validate_only checks and stops there."""
    name = unique("topic")

    clients.admin.create_topics([NewTopic(name, 1, 1)], validate_only=True)

    assert name not in clients.admin.list_topics()


def test_settings_can_be_read_and_altered(clients: Clients) -> None:
    """What was set is shown, what was not is the default, and both can change."""
    topic = clients.topic(cleanup_policy="compact", retention_ms="1234")
    kind = ConfigResourceType.TOPIC

    def shown() -> str:
        return _settings(clients, topic)["retention.ms"]

    settings = _settings(clients, topic)
    assert settings["cleanup.policy"] == "compact"
    assert settings["min.cleanable.dirty.ratio"] == "0.5"
    assert shown() == "1234"
    clients.admin.alter_configs([ConfigResource(kind, topic, configs={"retention.ms": "99"})])
    assert eventually(lambda: shown() == "99")
    clients.admin.reset_configs([ConfigResource(kind, topic, ["retention.ms"])])
    assert eventually(lambda: shown() == "604800000")


def test_settings_are_alike_to_the_other_library(clients: Clients) -> None:
    """confluent-kafka reads the same settings, and which of them are defaults."""
    topic = clients.topic(retention_ms="1234")
    resource = _confluent_resource(topic)

    described = clients.confluent_admin.describe_configs([resource])[resource].result(10)

    assert described["retention.ms"].value == "1234"
    assert not described["retention.ms"].is_default
    assert described["cleanup.policy"].is_default


def test_partitions_can_be_added_but_not_taken_away(clients: Clients) -> None:
    """A topic grows from one partition to three; back is refused."""
    topic = clients.topic()

    clients.admin.create_partitions({topic: 3})

    partitions = clients.consumer().partitions_for_topic(topic)
    assert partitions == {0, 1, 2}
    with pytest.raises(InvalidPartitionsError):
        clients.admin.create_partitions({topic: 2})


def test_a_deleted_topic_is_gone_with_its_records(clients: Clients) -> None:
    """A topic made anew under the name is empty."""
    topic = clients.topic()
    clients.send(topic, [b"old"])

    clients.admin.delete_topics([topic])
    eventually(lambda: topic not in clients.admin.list_topics())
    clients.admin.create_topics([NewTopic(topic, 1, 1)])
    clients.send(topic, [b"new"])

    assert clients.read(topic) == [Read(0, None, b"new")]


def test_deleting_an_unknown_topic_is_refused(clients: Clients) -> None:
    """There is nothing to delete."""
    with pytest.raises(UnknownTopicOrPartitionError):
        clients.admin.delete_topics([unique("topic")])


def test_deleted_records_move_the_start_of_the_log(clients: Clients) -> None:
    """Offsets stay what they were; readers from the beginning start at the new one."""
    topic = clients.topic()
    clients.send(topic, [b"%d" % i for i in range(10)])
    where = TopicPartition(topic, 0)

    clients.admin.delete_records({where: 4})

    consumer = clients.consumer()
    assert consumer.beginning_offsets([where]) == {where: 4}
    assert consumer.end_offsets([where]) == {where: 10}
    assert [r.offset for r in clients.read(topic)] == [4, 5, 6, 7, 8, 9]
    assert [r.offset for r in clients.confluent_read(topic)] == [4, 5, 6, 7, 8, 9]


def test_all_records_can_be_deleted_by_the_other_library(clients: Clients) -> None:
    """Offset -1 stands for the end of the log."""
    topic = clients.topic()
    clients.send(topic, [b"%d" % i for i in range(10)])

    wanted = ConfluentPartition(topic, 0, -1)
    deleted = clients.confluent_admin.delete_records([wanted])[wanted].result(10)

    assert deleted.low_watermark == 10
    assert clients.read(topic) == []


def test_records_beyond_the_end_cannot_be_deleted(clients: Clients) -> None:
    """There is nothing there yet."""
    topic = clients.topic()
    clients.send(topic, [b"0"])

    with pytest.raises(OffsetOutOfRangeError):
        clients.admin.delete_records({TopicPartition(topic, 0): 2})


def test_records_of_a_compacted_topic_cannot_be_deleted(clients: Clients) -> None:
    """A key's newest record must stay; only a tombstone takes it away."""
    topic = clients.topic(cleanup_policy="compact")

    with pytest.raises(PolicyViolationError):
        clients.admin.delete_records({TopicPartition(topic, 0): 0})


def test_an_unknown_topic_has_no_settings(clients: Clients) -> None:
    """It is an error, not an empty list, although kafka-python makes it one."""
    resource = _confluent_resource(unique("topic"))

    with pytest.raises(confluent_kafka.KafkaException) as refused:
        clients.confluent_admin.describe_configs([resource])[resource].result(10)

    assert refused.value.args[0].code() == confluent_kafka.KafkaError.UNKNOWN_TOPIC_OR_PART


def _confluent_resource(topic: str) -> Any:
    kind: Any = vars(confluent_kafka.admin)["ConfigResource"]  # its stubs do not export it
    return kind(kind.Type.TOPIC, topic)


def _settings(clients: Clients, topic: str) -> dict[str, str]:
    resource = ConfigResource(ConfigResourceType.TOPIC, topic)
    described = clients.admin.describe_configs([resource], config_filter="all")
    return {name: entry["value"] for name, entry in _entries(described, topic).items()}


def _entries(described: object, topic: str) -> dict[str, dict[str, str]]:
    assert isinstance(described, dict)
    return next(found[topic] for found in described.values() if topic in found)
