import itertools
import time

import pytest
from brokers import Served, free_port, unique
from kafka import KafkaProducer
from pipelines import pipeline, settings_on, write_events

from stream_forecaster.edge.broker import Broker
from stream_forecaster.edge.topics import (
    EventWriter,
    create_topics,
    describe_topics,
    probe,
    read_topic,
    topic_names,
)
from stream_forecaster.errors import TransportError, Unavailable


def test_creating_twice_creates_once(broker: Served) -> None:
    """What exists is left as it is, and says so."""
    settings = settings_on(broker.bootstrap)

    first = create_topics(settings, 3)
    second = create_topics(settings, 5)

    assert first == dict.fromkeys(topic_names(settings), True)
    assert second == dict.fromkeys(topic_names(settings), False)
    assert [state.partitions for state in describe_topics(settings)] == [3, 3, 3]


def test_the_output_follows_an_input_that_exists(broker: Served) -> None:
    """A key has the same partition number in both."""
    settings = settings_on(broker.bootstrap)
    create_topics(settings, 4)
    other = settings.model_copy(
        update={"output": settings.output.model_copy(update={"topic": unique("other")})}
    )

    created = create_topics(other, 1)

    assert created[other.output.topic]
    assert [state.partitions for state in describe_topics(other)] == [4, 4, 4]


def test_the_output_is_compacted_and_the_input_kept(broker: Served) -> None:
    """Compaction keeps the latest forecast of a key; the input lasts for the longest window."""
    settings = pipeline(broker)

    source, output, _ = describe_topics(settings)

    assert sorted(output.configs["cleanup.policy"].split(",")) == ["compact", "delete"]
    assert int(source.configs["retention.ms"]) == (28 + 1) * 86_400_000


def test_lag_is_everything_before_the_first_commit(broker: Served) -> None:
    """A group that never committed has the whole log before it."""
    source, *_ = describe_topics(pipeline(broker, events=10))

    assert sum(source.lag.values()) == 10
    assert source.committed == {}


def test_probes_pass_on_a_complete_pipeline(broker: Served) -> None:
    """Broker, three topics, partition counts and group."""
    findings = list(probe(pipeline(broker)))

    assert [f.passed for f in findings] == [True] * 6


def test_probes_name_what_is_missing(broker: Served) -> None:
    """A missing topic is a finding, not an exception."""
    settings = settings_on(broker.bootstrap)

    findings = {f.name: f.passed for f in probe(settings)}

    assert findings == {"broker": True, "group": True} | {
        f"topic {name}": False for name in topic_names(settings)
    }


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_nobody_there_is_a_finding_too() -> None:
    """A probe of a dead address fails instead of raising; the others raise."""
    settings = settings_on(f"127.0.0.1:{free_port()}", give_up_after="200ms")

    findings = list(probe(settings))

    assert [(f.name, f.passed) for f in findings] == [("broker", False)]
    with pytest.raises(Unavailable):
        create_topics(settings, 1)


def test_a_reader_sees_what_was_written(broker: Served) -> None:
    """Key, value, time and place, from the beginning to the end that was there."""
    settings = pipeline(broker, partitions=1)
    with EventWriter(settings) as writer:
        written = writer.write(
            [(b"a", b"1", 1_700_000_000_000), (None, b"2", None), (b"c", None, None)]
        )

    records = list(read_topic(settings, settings.input.topic))

    assert written == 3
    assert [(r.offset, r.key, r.value) for r in records] == [
        (0, b"a", b"1"),
        (1, None, b"2"),
        (2, b"c", None),
    ]
    assert records[0].time_ms == 1_700_000_000_000


def test_to_forget_is_a_tombstone_without_a_time_in_every_partition(broker: Served) -> None:
    """The broker keeps it as it was written: no time of its own could move the watermark."""
    settings = pipeline(broker, partitions=3, events=1)

    with EventWriter(settings) as writer:
        assert writer.forget(b"ann") == 3

    told = [r for r in read_topic(settings, settings.input.topic) if r.value is None]
    assert [(r.partition, r.key, r.time_ms) for r in told] == [(p, b"ann", -1) for p in range(3)]


def test_a_reader_skips_what_was_aborted(broker: Served) -> None:
    """Only committed records, and it still ends at the log's end."""
    settings = pipeline(broker, partitions=1)
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id=unique("id"))
    producer.init_transactions()
    for value, end in (
        (b"kept", producer.commit_transaction),
        (b"gone", producer.abort_transaction),
    ):
        producer.begin_transaction()
        producer.send(settings.input.topic, value)
        producer.flush()
        end()
    producer.close()

    assert [r.value for r in read_topic(settings, settings.input.topic)] == [b"kept"]


def test_following_goes_on_past_the_end(broker: Served) -> None:
    """A follower of an empty topic sees what comes later."""
    settings = pipeline(broker, partitions=1)
    followed = read_topic(settings, settings.input.topic, follow=True)
    write_events(settings, range(3))

    records = list(itertools.islice(followed, 3))
    followed.close()

    assert [r.value for r in records] == [b"0", b"1", b"2"]


def test_the_latest_of_a_quiet_topic_is_nothing(broker: Served) -> None:
    """From the end to the end."""
    settings = pipeline(broker, events=5)

    assert list(read_topic(settings, settings.input.topic, start="latest")) == []


def test_reading_no_topic_says_so(broker: Served) -> None:
    """The name is in the error."""
    settings = settings_on(broker.bootstrap)

    with pytest.raises(TransportError, match="no topic 'nothing-here'"):
        list(read_topic(settings, "nothing-here"))


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_broker_that_goes_away_ends_the_reading() -> None:
    """In the middle, with more to come than was fetched; one who reads slowly goes on."""
    with Broker() as broker:
        settings = settings_on(broker.bootstrap, give_up_after="1s")
        create_topics(settings, 1)
        with EventWriter(settings) as writer:
            writer.write((None, bytes(200_000), None) for _ in range(40))
        records = read_topic(settings, settings.input.topic)
        for record in itertools.islice(records, 12):
            time.sleep(1.2 if record.offset == 10 else 0)

    with pytest.raises(Unavailable, match="gone quiet before the end"):
        list(records)
