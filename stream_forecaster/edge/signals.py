"""Being told to stop: the first SIGTERM or SIGINT asks, the second one does not.

A Python signal handler runs on the main thread, between two of its bytecodes, whatever it holds: an
`Event` set from there can meet its own lock, and a thread deep in a numerical routine runs no
handler at all. So the handlers do nothing. The interpreter also writes each signal's number to a
socket, at once and whatever thread it interrupts; a thread of its own reads it there.
"""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stop_on_signals() -> Iterator[Event]:
    """An event that the first signal sets; the second ends the process with 128 + its number.

    Entered from the main thread, and not within itself. Afterwards all is as it was before.
    """
    stopping = Event()
    reader, writer = socket.socketpair()
    writer.settimeout(0)  # the interpreter insists: a signal must not wait
    thread = Thread(target=_listen, args=(reader, stopping), name="signals", daemon=True)
    thread.start()
    number_to = signal.set_wakeup_fd(writer.fileno())
    handlers = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
    try:
        yield stopping
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(number_to)
        writer.close()
        thread.join()
        reader.close()


def _listen(reader: socket.socket, stopping: Event) -> None:
    while received := reader.recv(1):
        (number,) = received
        if number not in _SIGNALS:
            continue  # somebody else's
        if stopping.is_set():
            os._exit(128 + number)
        stopping.set()
