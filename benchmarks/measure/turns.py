"""Runs in turn, and what is made of their numbers."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from benchmarks.measure.figures import say

T = TypeVar("T")


def take_turns(contenders: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Run every contender once a round, each round beginning with the next one.

    So what else the machine does, and what one leaves behind for the next, hits all of them alike.

    Returns:
        Each contender's results in the order of rounds, contenders in the order given.
    """
    names = [*contenders]
    taken: dict[str, list[T]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names) if names else 0
        for name in names[first:] + names[:first]:
            say(f"  round {turn + 1} of {rounds}: {name}")
            taken[name].append(contenders[name]())
    return taken


def median(numbers: Iterable[float]) -> float:
    """As `statistics` has it, for anything that can be gone through."""
    return float(statistics.median(list(numbers)))


def per_million(runs: Iterable[Mapping[str, float]], what: str, of: str) -> float:
    """The median over the runs of `what` for a million of `of`."""
    return median(1e6 * run[what] / run[of] for run in runs)


def percentile(numbers: Sequence[float], share: float) -> float:
    """The least of the numbers that so many percent of them do not exceed (nearest rank).

    >>> percentile([1, 2, 3, 4], 50), percentile([1, 2, 3, 4], 99)
    (2.0, 4.0)
    """
    if not len(numbers):
        raise ValueError("no numbers")
    rank = max(1, math.ceil(share / 100 * len(numbers)))
    return float(np.partition(np.asarray(numbers, np.float64), rank - 1)[rank - 1])


def slope(costs: Mapping[int, float]) -> float:
    """The exponent by which a cost grows: of log cost against log size, by least squares.

    >>> round(slope({10: 5.0, 100: 50.0, 1000: 500.0}), 6), round(slope({1: 7.0, 8: 7.0}), 6)
    (1.0, 0.0)
    """
    sizes, spent = np.log([*costs]), np.log([*costs.values()])
    return float(np.polyfit(sizes, spent, 1)[0])
