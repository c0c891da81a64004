"""Exactly once, shown: kill, stop and cut off workers and broker; compare output by id and byte."""

from pathlib import Path

import pytest
from brokers import kafka_home
from campaign import Campaign, Outcome, Plan
from faults import Faults, served

_EXITS = {0, -9, -15, 143}
"""Of workers that ended in peace, were killed, were told to end before they listened, or twice."""

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]


def _run(home: Path | None, directory: Path, plan: Plan) -> Outcome:
    faults = Faults(plan.seed)
    with served(home, directory, faults) as broker:
        return Campaign(broker, directory, plan, faults).run()


def _apache_kafka() -> Path:
    home = kafka_home()
    if home is None:
        pytest.skip("needs KAFKA_HOME: the broker itself is killed")
    return home


def test_on_apache_kafka(tmp_path: Path) -> None:
    """Whatever befalls workers, broker and connections: nothing shows."""
    plan = Plan(
        seconds=45,
        seed=1,
        kills=6,
        stops=2,
        ends=1,
        broker_kills=1,
        scalings=2,
        deaths=0.3,
        self_stops=0.02,
        faults=0.001,
    )
    outcome = _run(_apache_kafka(), tmp_path, plan)

    assert outcome.flawless, outcome
    assert outcome.done["kill"] >= 6, outcome
    assert outcome.done["broker"] == 1, outcome
    assert outcome.inside("killed") >= 1, outcome
    assert outcome.faults.total() >= 1, outcome
    assert outcome.recovered_s, outcome
    assert outcome.exits.keys() <= _EXITS, outcome


def test_on_the_embedded_broker(tmp_path: Path) -> None:
    """The same without Java, but for the broker's own death: it lives in this process."""
    plan = Plan(
        seconds=30, seed=2, kills=4, stops=1, ends=1, deaths=0.3, self_stops=0.02, faults=0.001
    )
    outcome = _run(None, tmp_path, plan)

    assert outcome.flawless, outcome
    assert outcome.done["kill"] >= 4, outcome
    assert outcome.inside("killed") >= 1, outcome
    assert outcome.faults.total() >= 1, outcome
    assert outcome.exits.keys() <= _EXITS, outcome


def test_a_mistake_is_found(tmp_path: Path) -> None:
    """Workers that say again what they had said before they were killed."""
    plan = Plan(seconds=20, seed=3, kills=4, workers=2, partitions=4, mistake="loud replay")
    outcome = _run(None, tmp_path, plan)

    assert outcome.verdict is not None
    assert outcome.verdict.duplicate > 0, outcome
    assert not outcome.flawless, outcome
