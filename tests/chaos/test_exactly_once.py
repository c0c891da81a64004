"""Exactly once, shown: kill and stop workers and broker, compare the output by id and byte."""

from pathlib import Path

import pytest
from brokers import ApacheKafka, kafka_home
from campaign import Campaign, Plan

from stream_forecaster.edge.broker import Broker

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]


def test_on_apache_kafka(tmp_path: Path) -> None:
    """Ten kills and some inside transactions, five stops, a broker killed: nothing shows."""
    home = kafka_home()
    if home is None:
        pytest.skip("needs KAFKA_HOME: the broker itself is killed")
    (tmp_path / "kafka").mkdir()
    (tmp_path / "campaign").mkdir()
    kafka = ApacheKafka(home, tmp_path / "kafka").start()
    plan = Plan(seconds=80, seed=1, kills=10, stops=5, broker_kills=1, doom=0.3)
    try:
        outcome = Campaign(kafka, tmp_path / "campaign", plan).run()
    finally:
        kafka.stop()

    assert outcome.flawless, outcome
    assert outcome.kills >= 10, outcome
    assert outcome.stops >= 5, outcome
    assert outcome.broker_kills == 1, outcome
    assert outcome.deaths.total() >= 1, outcome
    assert outcome.exits.keys() <= {0, -9}, outcome


def test_on_the_embedded_broker(tmp_path: Path) -> None:
    """The same without Java: kills from outside and from inside transactions, and stops."""
    plan = Plan(seconds=45, seed=2, kills=4, stops=2, doom=0.3)
    with Broker() as broker:
        outcome = Campaign(broker, tmp_path, plan).run()

    assert outcome.flawless, outcome
    assert outcome.kills >= 4, outcome
    assert outcome.deaths.total() >= 1, outcome
    assert outcome.exits.keys() <= {0, -9}, outcome
