"""The world as one value: all that the service touches, handed to it by whoever starts it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from structlog.typing import FilteringBoundLogger

from stream_forecaster.checkpoint import Store
from stream_forecaster.edge.heap import give_back
from stream_forecaster.edge.saver import Background, in_thread
from stream_forecaster.edge.telemetry import Telemetry
from stream_forecaster.edge.viewers import Viewers
from stream_forecaster.records import Transport
from stream_forecaster.weights import Weights


@dataclass(frozen=True)
class World:
    """All that the service touches.

    Attributes:
        transport: where records come from and messages go.
        store: where checkpoints are kept.
        telemetry: what is measured.
        log: what the operator should know.
        now_s: the only clock; monotonic seconds.
        cpu_s: what this thread has taken of a core, in seconds.
        wall_ms: epoch milliseconds, to compare with the broker's times.
        weights: what a network starts from; None: those that ship.
        background: where checkpoints are written.
        loaded: returns when what shards are made of is loaded; raises why it cannot be.
        viewers: who looks at the page.
        give_back: asks the C library for memory that was freed.
    """

    transport: Transport
    store: Store
    telemetry: Telemetry
    log: FilteringBoundLogger
    now_s: Callable[[], float] = time.monotonic
    cpu_s: Callable[[], float] = time.thread_time
    wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    weights: Weights | None = None
    background: Background = in_thread
    loaded: Callable[[], None] = lambda: None
    viewers: Viewers = field(default_factory=Viewers)
    give_back: Callable[[], None] = give_back
