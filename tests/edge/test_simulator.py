from collections.abc import Iterator
from itertools import count
from threading import Event

import pytest
from pipelines import pipeline

from stream_forecaster import config
from stream_forecaster.edge.broker import Broker
from stream_forecaster.edge.simulator import Simulation, simulate
from stream_forecaster.edge.topics import read_topic
from stream_forecaster.errors import ConfigError
from stream_forecaster.synth import Population

NOW_MS = 1_767_571_200_000


def ticking(step_ms: int) -> Iterator[int]:
    """A clock that moves by `step_ms` whenever it is read."""
    return count(NOW_MS, step_ms)


@pytest.mark.parametrize("speed", [1.0, 360.0])
def test_all_that_the_users_did_arrives_once_and_in_time(
    embedded_broker: Broker, speed: float
) -> None:
    """However fast they live, they end in the present: no record comes from the future."""
    settings = pipeline(embedded_broker, partitions=1)
    simulation = Simulation(20, 40.0, seed=3, seconds=10, speed=speed)
    clock = ticking(3_000)
    reports: list[int] = []

    total = simulate(settings, simulation, Event(), reports.append, now_ms=clock.__next__)

    begin_ms = NOW_MS + 10_000 - round(10_000 * speed)
    population = Population(3, 20, begin_ms, 40.0 / speed)
    expected = [
        (event.arrival_ms, event.key, event.value)
        for event in population.events(begin_ms, NOW_MS + 10_000)
    ]
    found = [(r.time_ms, r.key, r.value) for r in read_topic(settings, settings.input.topic)]
    assert found == expected
    assert total == sum(reports) == len(expected) > 100
    assert found[-1][0] < NOW_MS + 10_000


def test_it_ends_when_told(embedded_broker: Broker) -> None:
    """Without an end of its own, too."""
    settings = pipeline(embedded_broker, partitions=1)
    stopping = Event()

    simulate(
        settings,
        Simulation(20, 40.0, seed=3),
        stopping,
        lambda _events: stopping.set(),
        now_ms=ticking(1_000).__next__,
    )

    assert stopping.is_set()


def test_a_fast_life_needs_an_end() -> None:
    """Else it would run into the future, which brokers refuse."""
    with pytest.raises(ConfigError, match="--seconds"):
        Simulation(20, 40.0, seed=3, speed=60.0)


def test_fields_that_users_do_not_send_are_refused() -> None:
    """Rather than sending nothing but rejects."""
    settings = config.parse({"input": {"key": ["user_id", "shop"]}})

    with pytest.raises(ConfigError, match=r"reads shop: simulated events have only amount"):
        simulate(settings, Simulation(20, 40.0, seed=3), Event())
