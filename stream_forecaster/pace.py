"""How much of a network's time goes into learning."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """How much is learned, and how fast.

    Attributes:
        every: closed buckets between two lessons; 0: there are none.
        draw: samples taken then.
        repeat: steps taken then.
        rows: samples in a step.
        capacity: samples kept per resolution.
        rate: of AdamW.
        memory: of the average of the weights, per step.
        evenly: keep samples of all times alike, rather than the newest.
        speaks: is the network asked for forecasts, or only taught?
    """

    every: int = 6
    draw: int = 16
    repeat: int = 1
    rows: int = 64
    capacity: int = 256
    rate: float = 3e-4
    memory: float = 0.99
    evenly: bool = False
    speaks: bool = True
