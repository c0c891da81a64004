"""Waiting for a broker that is away."""

import threading

import structlog
from kafka.errors import KafkaConnectionError

from stream_forecaster.config import parse
from stream_forecaster.edge.connection import Outage


def test_a_wait_is_no_stall() -> None:
    """While it waits it says so, again and again: `/livez` must not have the process restarted."""
    beats: list[int] = []
    answers = iter([KafkaConnectionError("away"), KafkaConnectionError("away"), None])
    stopping = threading.Event()
    outage = Outage(
        parse({}).kafka, structlog.get_logger(), stopping=stopping, alive=lambda: beats.append(1)
    )

    def question() -> str:
        error = next(answers)
        if error:
            raise error
        return "here"

    assert outage.ask(question) == "here"
    assert len(beats) == 2
