"""The demo: from nothing to forecasts on this machine, with nothing faked.

    simulated users ──▶ broker ──▶ the service ──▶ broker ──▶ the table
       (a thread)     (a thread)   (a process)               (this thread)

The service is `stream-forecaster run` as anyone would start it, told by environment variables where
the broker is. Its page is passed on by this process (`demo_page`), with buttons that make its life
hard (`demo_trials`). The users begin in the past and live fast, so that hours have passed within
half a minute: first a stretch of history as quickly as the service reads it, then sixty seconds in
each of ours, until they have caught up with the present.

However it ends, the process is ended and the directory of its checkpoints removed. The threads hand
everything to the main one through queues; nothing is shared but flags.
"""

import os
import signal
import time
import webbrowser
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.live import Live

from stream_forecaster import config
from stream_forecaster.config import Settings
from stream_forecaster.demo_board import Board
from stream_forecaster.demo_page import DemoPage
from stream_forecaster.demo_service import ServiceProcess
from stream_forecaster.demo_trials import Trials
from stream_forecaster.demo_users import Users
from stream_forecaster.edge.broker import Broker
from stream_forecaster.edge.topics import create_topics, read_topic

T = TypeVar("T")

_TICK_S = 0.25
_LINE_EVERY_S = 2.0
_PATIENCE_S = 60.0
"""How long anything may take before the demo says that it failed."""

Draw = Callable[[Board, float], None]


def demo(
    *, seconds: float | None = None, browser: bool = True, console: Console | None = None
) -> int:
    """Run everything on this machine until the end or a signal, then check the sums.

    Args:
        seconds: how long to send events; None: until SIGINT or SIGTERM.
        browser: open the service's page, where there is a terminal and someone at it.
        console: standard output by default.

    Returns:
        0; 1 if a record was neither counted nor rejected, or a forecast cannot be read back; 130 if
        a second signal cut it short.

    Raises:
        StreamForecasterError: the service did not start, or ended by itself.
    """
    console = console or Console()
    with _signals() as told, ExitStack() as stack:
        try:
            console.print("Starting a broker, the service and some users ...", highlight=False)
            stage = stack.enter_context(_Stage(seconds))
            url = stage.start_service()
            console.print(f"The service's page: {url}", highlight=False, soft_wrap=True)
            if browser and console.is_terminal and not os.environ.get("CI"):
                webbrowser.open(url)
            with _screen(console) as draw:
                stage.play(draw, told)
                holds = stage.finish(draw)
        except KeyboardInterrupt:
            return 130
    console.print(stage.board.summary(), markup=False, highlight=False, soft_wrap=True)
    console.print("The sums hold." if holds else "THE SUMS DO NOT HOLD.", highlight=False)
    return 0 if holds else 1


class _Stage:
    """Everything that runs, and what is seen of it; leaves nothing behind when closed."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds, self._begin_s = seconds, time.monotonic()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(TemporaryDirectory(prefix="forecaster-demo-")))
            broker = stack.enter_context(Broker())
            mapping = _mapping(broker.bootstrap, directory)
            settings = config.parse(mapping)
            create_topics(settings, 1)
            self._service = stack.enter_context(ServiceProcess(mapping, directory / "service.log"))
            self.board = Board([r.step_ms // 1_000 for r in settings.resolutions])
            self._users = Users(settings, self._seconds, time.time_ns() // 1_000_000)
            self._reader = _Reader(settings)
            threads = stack.enter_context(ThreadPoolExecutor(2, "demo"))
            stack.callback(self._users.stopping.set)
            stack.callback(self._reader.stopping.set)
            trials = Trials(self._users, self._service, self.board, settings)
            self._page = stack.enter_context(
                closing(DemoPage(trials.actions, lambda: self._service.port))
            )
            trials.tell = self._page.tell
            self._sending = threads.submit(self._users.run)
            self._reading = threads.submit(self._reader.run)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start_service(self) -> str:
        """Wait until the service is there; its page."""
        self._service.wait_until_started(_PATIENCE_S)
        return self._page.url

    def play(self, draw: Draw, told: Callable[[], bool]) -> None:
        """Let the users send until the time is over or somebody says stop."""
        while not told() and (self._seconds is None or self._elapsed_s() < self._seconds):
            self._tick(draw)

    def finish(self, draw: Draw) -> bool:
        """Let everything sent come out at the other end; whether the sums hold."""
        self._users.stopping.set()
        board = self.board

        def until(arrived: Callable[[], bool]) -> None:
            give_up_s = self._elapsed_s() + _PATIENCE_S
            while not arrived() and self._elapsed_s() < give_up_s:
                self._tick(draw)

        until(self._sending.done)
        self._users.phase = "waiting for the rest"
        self._tick(draw)  # the users' last batch is in the queue only now
        until(lambda: board.readings.seen >= board.sent)
        self._service.stop(_PATIENCE_S)
        until(lambda: board.forecasts >= board.readings.forecasts)
        return board.sums_hold

    def _tick(self, draw: Draw) -> None:
        """Wait a moment, see what came, and show it."""
        time.sleep(_TICK_S)
        board = self.board
        for batch in _drain(self._users.sent):
            board.hear_sent(batch)
        for key, value, read_s in _drain(self._reader.read):
            board.hear_forecast(key, value, read_s - self._begin_s)
        readings = self._service.readings()
        if readings is not None:
            board.hear_metrics(readings, self._elapsed_s())
        self._users.seen = board.readings.seen
        board.phase = self._users.phase
        for thread in (self._sending, self._reading):
            if thread.done():
                thread.result()  # raises what it died of
        draw(board, self._elapsed_s())

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._begin_s


class _Reader:
    """Reads the forecasts back, as any client would.

    Attributes:
        read: key, value and when (monotonic seconds) of each message.
        stopping: ends it.
    """

    def __init__(self, settings: Settings) -> None:
        self.read: SimpleQueue[tuple[bytes, bytes | None, float]] = SimpleQueue()
        self.stopping = Event()
        self._settings = settings

    def run(self) -> None:
        """Read until told to stop."""
        for record in read_topic(
            self._settings, self._settings.output.topic, follow=True, stopping=self.stopping
        ):
            self.read.put((record.key or b"", record.value, time.monotonic()))


def _mapping(bootstrap: str, directory: Path) -> dict[str, dict[str, Any]]:
    return {
        "kafka": {"bootstrap_servers": bootstrap, "group_id": "demo", "instance_id": "demo"},
        "state": {"checkpoint_url": (directory / "checkpoints").as_uri()},
        "http": {"port": "0"},
        "log": {"format": "json"},
    }


def _drain(queue: SimpleQueue[T]) -> Iterator[T]:
    """What is in the queue now; its one reader may rely on `qsize`."""
    for _ in range(queue.qsize()):
        yield queue.get()


@contextmanager
def _screen(console: Console) -> Iterator[Draw]:
    """A live table on a terminal; elsewhere a line every two seconds."""
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda board, at_s: live.update(board.render(at_s, console.width), refresh=True)
        return
    spoke_s = 0.0

    def draw(board: Board, at_s: float) -> None:
        nonlocal spoke_s
        if at_s - spoke_s >= _LINE_EVERY_S:
            spoke_s = at_s
            console.print(board.line(at_s), markup=False, highlight=False, soft_wrap=True)

    yield draw


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Whether a signal has asked for the end; the second one raises KeyboardInterrupt."""
    heard = 0

    def note(*_: object) -> None:
        nonlocal heard
        heard += 1
        if heard == 2:
            raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, note) for number in numbers]
    try:
        yield lambda: heard > 0
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
