"""Synthetic users, sent in real time or faster: what `stream-forecaster simulate` does."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event

from stream_forecaster.config import Settings
from stream_forecaster.edge.topics import EventWriter
from stream_forecaster.errors import ConfigError
from stream_forecaster.synth import Population

_TICK_S = 0.2
_FIELDS = frozenset({"user_id", "ts", "type", "item", "amount"})


@dataclass(frozen=True, slots=True)
class Simulation:
    """How many users send how much, for how long.

    Attributes:
        users: how many.
        events_per_s: of all users together, by this machine's clock.
        seed: the same seed gives the same users.
        seconds: how long, by this machine's clock; None: until stopped.
        speed: seconds of the users' time in each of ours. Above 1 they begin in the past, so far
            that they reach the present at the end: a broker refuses records from the future.
    """

    users: int
    events_per_s: float
    seed: int
    seconds: float | None = None
    speed: float = 1.0

    def __post_init__(self) -> None:
        if self.speed != 1 and self.seconds is None:
            raise ConfigError("--speed needs --seconds: the users begin so much earlier")

    def begin_ms(self, now_ms: int) -> int:
        """Where the users' time begins when ours is `now_ms`; they arrive in the present at last.

        >>> Simulation(20, 50.0, seed=0, seconds=10, speed=360).begin_ms(3_600_000)
        10000
        """
        return now_ms - round(1_000 * (self.seconds or 0.0) * (self.speed - 1))


def simulate(
    settings: Settings,
    simulation: Simulation,
    stopping: Event,
    sent: Callable[[int], None] = lambda _events: None,
    *,
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
) -> int:
    """Write what the users do to the input topic, as it comes; return how many events.

    Args:
        settings: the broker, the input topic, and the lateness that faulty events exceed.
        simulation: the users.
        stopping: ends it.
        sent: told how many more were acknowledged.
        now_ms: this machine's clock, epoch ms.

    Raises:
        ConfigError: the settings read a field that synthetic events do not have.
        Unavailable, TransportError: not everything was acknowledged.
    """
    read = {*settings.input.key, *filter(None, (settings.input.time, settings.input.value))}
    if unknown := sorted(read - _FIELDS):
        raise ConfigError(
            f"[input] reads {', '.join(unknown)}: simulated events have only "
            f"{', '.join(sorted(_FIELDS))}"
        )
    began_ms = now_ms()
    reached_ms = begin_ms = simulation.begin_ms(began_ms)
    population = Population(
        simulation.seed,
        simulation.users,
        begin_ms,
        simulation.events_per_s / simulation.speed,
        allowed_lateness_ms=settings.input.allowed_lateness_ms,
    )
    last_ms = None if simulation.seconds is None else round(1_000 * simulation.seconds)
    total = elapsed_ms = 0
    with EventWriter(settings) as writer:
        while not stopping.is_set() and (last_ms is None or elapsed_ms < last_ms):
            stopping.wait(_TICK_S)
            elapsed_ms = now_ms() - began_ms
            if last_ms is not None:
                elapsed_ms = min(elapsed_ms, last_ms)
            until_ms = begin_ms + round(elapsed_ms * simulation.speed)
            written = writer.write(
                (event.key, event.value, event.arrival_ms)
                for event in population.events(reached_ms, until_ms)
            )
            total, reached_ms = total + written, until_ms
            sent(written)
    return total
