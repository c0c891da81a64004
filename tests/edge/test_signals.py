import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from stream_forecaster.edge.signals import stop_on_signals

SIGNALS = [signal.SIGTERM, signal.SIGINT]

WAITS = """
from stream_forecaster.edge.signals import stop_on_signals
with stop_on_signals() as stopping:
    print("ready", flush=True)
    assert stopping.wait(30)
    print("told", flush=True)
    {then}
"""
COMPUTES = """
import hashlib
from stream_forecaster.edge.signals import stop_on_signals
with stop_on_signals() as stopping:
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


@contextmanager
def started(program: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that has said it is ready; killed in the end."""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def line(process: "subprocess.Popen[str]") -> str:
    """The next line of output."""
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks(number: signal.Signals) -> None:
    """The event is set, and the process goes on to its own end."""
    with started(WAITS.format(then="pass")) as process:
        process.send_signal(number)

        assert line(process) == "told\n"
        assert process.wait(10) == 0


@pytest.mark.parametrize("number", SIGNALS)
def test_the_second_signal_ends(number: signal.Signals) -> None:
    """At once, with the status that a shell gives a process that died of it."""
    with started(WAITS.format(then="import time; time.sleep(60)")) as process:
        process.send_signal(number)
        assert line(process) == "told\n"

        process.send_signal(number)

        assert process.wait(10) == 128 + number


def test_a_busy_main_thread_does_not_delay_the_second_signal() -> None:
    """No bytecode is executed for minutes, and still the process ends."""
    with started(COMPUTES) as process:
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)  # the first one only asks; and two at once would be one
        process.send_signal(signal.SIGTERM)

        assert process.wait(10) == 128 + signal.SIGTERM


def test_other_signals_ask_for_nothing() -> None:
    """A time-out's alarm reaches the same socket."""
    earlier = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        with stop_on_signals() as stopping:
            signal.raise_signal(signal.SIGALRM)

            assert not stopping.wait(0.1)
    finally:
        signal.signal(signal.SIGALRM, earlier)


def test_afterwards_all_is_as_before() -> None:
    """The handlers, and the interpreter's socket."""
    before = [signal.getsignal(number) for number in SIGNALS]

    with stop_on_signals() as stopping:
        signal.raise_signal(signal.SIGTERM)
        assert stopping.wait(5)

    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1
