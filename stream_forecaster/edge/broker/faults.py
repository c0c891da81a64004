"""Faults that tests plan: what a hook may do to a request before the broker answers it.

    broker.hooks["EndTxn"] = lambda request: Fault.LOSE_ANSWER if request.committed else None

A hook is called on the broker's thread with the decoded request, so it must not block; counting
calls or choosing at random is what it is for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias


class Fault(Enum):
    """Ways for a request to fail."""

    DROP = "drop"
    """Never processed, never answered; the connection stays open, as with a hung broker."""
    CLOSE = "close"
    """Never processed; the connection is closed."""
    LOSE_ANSWER = "lose_answer"
    """Processed in full, but the connection is closed instead of answering."""


@dataclass(frozen=True, slots=True)
class Delay:
    """Process the request after this time."""

    seconds: float


Message: TypeAlias = Any
"""A request or response of `kafka.protocol`, which ships no types."""

Hook: TypeAlias = Callable[[Message], Fault | Delay | Message | None]
"""None lets the request pass; a response message is sent instead of processing it."""
