import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from rich.console import Console

from stream_forecaster.calendar import DAY_MS, HOUR_MS
from stream_forecaster.demo_board import Board, Readings, sparkline
from stream_forecaster.demo_users import begin_of_history
from stream_forecaster.edge.viewers import key_id
from stream_forecaster.synth import Population

MONDAY_MS = 1_767_571_200_000


@pytest.mark.parametrize("past_midnight_ms", [0, 1, 9 * HOUR_MS, DAY_MS - 1])
def test_a_long_history_begins_early_in_a_day(past_midnight_ms: int) -> None:
    """So that its first day is nearly a whole one; a day of it, or two at the most."""
    live_ms = MONDAY_MS + past_midnight_ms

    begin_ms = begin_of_history(live_ms, 2 * DAY_MS)

    assert begin_ms % DAY_MS == HOUR_MS
    assert DAY_MS <= live_ms - begin_ms + HOUR_MS <= 2 * DAY_MS
    assert begin_of_history(live_ms, 30 * HOUR_MS) == live_ms - 30 * HOUR_MS


class Demo:
    """`stream-forecaster demo` in a process of its own, with a directory for temporary files."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self._marker = f"TMPDIR={directory}".encode()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stream_forecaster", "demo", "--no-browser", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                **os.environ,
                "TMPDIR": str(directory),
                # a real pipeline's settings, which the demo has to leave alone
                "STREAM_FORECASTER__KAFKA__BOOTSTRAP_SERVERS": "production.example:9092",
                "STREAM_FORECASTER__INPUT__TOPIC": "orders",
            },
        )

    def wait_for(self, words: str) -> str:
        """Read until a line has `words`; everything up to it."""
        assert self.process.stdout is not None
        said = ""
        for line in self.process.stdout:
            said += line
            if words in line:
                return said
        raise AssertionError(f"ended without saying {words!r}:\n{said}")

    def finish(self) -> tuple[int, str]:
        """The exit code and what was said since."""
        said, _ = self.process.communicate(timeout=90)
        return self.process.returncode, said

    def children(self) -> list[int]:
        """Processes, the demo's own not counted, that have its directory for temporary files."""
        return [
            int(folder.name)
            for folder in Path("/proc").iterdir()
            if folder.name.isdigit() and int(folder.name) != self.process.pid and self._is(folder)
        ]

    def leaves_nothing(self) -> bool:
        """No process and no file is left."""
        return not self.children() and not list(self.directory.glob("forecaster-demo-*"))

    def _is(self, folder: Path) -> bool:
        try:
            return self._marker in (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            return False


StartDemo = Callable[..., Demo]


@pytest.fixture
def start_demo(tmp_path: Path) -> Iterator[StartDemo]:
    """Starts a demo with options; whatever becomes of it, it is ended."""
    demos: list[Demo] = []

    def start(*options: str) -> Demo:
        demos.append(Demo(tmp_path, *options))
        return demos[-1]

    yield start
    for demo in demos:
        for pid in demo.children():
            os.kill(pid, signal.SIGKILL)
        demo.process.kill()
        demo.process.communicate()


def summed(said: str, name: str) -> int:
    """A number of the summary."""
    match = re.search(rf"^{name} +([\d,]+)", said, re.MULTILINE)
    assert match, said
    return int(match[1].replace(",", ""))


def test_a_short_demo_forecasts_and_its_sums_hold(start_demo: StartDemo) -> None:
    """From nothing to forecasts, to a summary that adds up, to nothing left behind."""
    demo = start_demo("--seconds", "8")

    code, said = demo.finish()

    assert code == 0, said
    assert summed(said, "sent") == summed(said, "counted") + summed(said, "rejected") > 1_000
    assert summed(said, "forecasts") > 1_000
    assert "minute skill" in said
    assert "the start to the first forecast" in said
    assert "The sums hold." in said
    assert demo.leaves_nothing()


def test_a_signal_ends_the_demo_cleanly(start_demo: StartDemo) -> None:
    """Everything sent is still counted, even by a service that is behind just then."""
    demo = start_demo()
    demo.wait_for("history")
    (service,) = demo.children()
    os.kill(service, signal.SIGSTOP)
    demo.wait_for("history")

    demo.process.send_signal(signal.SIGTERM)
    demo.wait_for("waiting for the rest")
    os.kill(service, signal.SIGCONT)
    code, said = demo.finish()

    assert code == 0, said
    assert summed(said, "sent") == summed(said, "counted") + summed(said, "rejected")
    assert demo.leaves_nothing()


def test_a_second_signal_ends_the_demo_at_once(start_demo: StartDemo) -> None:
    """No summary, but nothing left behind either."""
    demo = start_demo()
    demo.wait_for("history")
    (service,) = demo.children()
    os.kill(service, signal.SIGSTOP)  # so that the first signal alone would take long

    demo.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    demo.process.send_signal(signal.SIGINT)
    code, said = demo.finish()

    assert code == 130, said
    assert "sums" not in said
    assert demo.leaves_nothing()


def test_a_service_that_dies_is_a_failure(start_demo: StartDemo) -> None:
    """The demo says what happened, and leaves nothing behind."""
    demo = start_demo()
    demo.wait_for("history")

    (service,) = demo.children()
    os.kill(service, signal.SIGKILL)
    code, said = demo.finish()

    assert code == 70, said
    assert "the service ended by itself" in said
    assert demo.leaves_nothing()


def post(url: str, name: str, key: bytes) -> str:
    """Press a button of the page; what it says."""
    request = Request(  # noqa: S310  (the demo's own page)
        f"{url}demo/{name}",
        json.dumps({"key": key_id(key)}).encode(),
        {"Origin": url.rstrip("/")},
    )
    with urlopen(request, timeout=200) as response:  # noqa: S310
        said: str = json.load(response)["said"]
    return said


@pytest.mark.timeout(300)
def test_whatever_the_buttons_do_the_sums_hold(start_demo: StartDemo) -> None:
    """A burst, late events, one from 2031, garbage, SIGKILL: nothing is lost, or done twice.

    And what was forecast before the death is forecast after it.
    """
    demo = start_demo()
    url = demo.wait_for("page: ").rpartition("page: ")[2].strip()
    demo.wait_for("in the 80 % interval")
    for name, words in {
        "burst": "at once",
        "late": "refused as too late",
        "future": "refused as too far ahead",
        "garbage": "kept byte for byte",
    }.items():
        assert words in post(url, name, b"steady-0047")
    with urlopen(f"{url}api/stream?order=active") as page:  # noqa: S310  (likewise)
        page.readline()  # and is closed in the middle
    (service,) = demo.children()

    said = post(url, "kill", b"steady-0047")

    assert re.search(r"All \d+ forecasts are the same as before, ids and every number", said), said
    assert "none twice" in said
    assert demo.children() != [service]
    demo.process.send_signal(signal.SIGTERM)
    code, said = demo.finish()
    assert code == 0, said
    assert "The sums hold." in said
    assert re.search(r"[1-9]\d* too_far_ahead, [1-9]\d* too_late", said)
    assert "http_client" not in said
    assert demo.leaves_nothing()


def test_readings_add_up_over_labels() -> None:
    """Sums over partitions and reasons; the newest watermark; ratios by resolution."""
    readings = Readings.parse(
        """\
# HELP streamforecaster_events_total Events read and counted.
streamforecaster_events_total 1234.0
streamforecaster_rejects_total{reason="not_json"} 3.0
streamforecaster_rejects_total{reason="too_late"} 0.0
streamforecaster_forecasts_total{origin="pool"} 40.0
streamforecaster_forecasts_total{origin="prior"} 2.0
streamforecaster_lag_records{partition="0"} 5.0
streamforecaster_lag_records{partition="1"} 6.0
streamforecaster_watermark_timestamp_seconds{partition="0"} 1.7e+09
streamforecaster_watermark_timestamp_seconds{partition="1"} 1.8e+09
streamforecaster_skill_ratio{resolution="60s"} -0.25
streamforecaster_interval_coverage_ratio{level="0.95",resolution="60s"} 0.96
streamforecaster_interval_coverage_ratio{level="0.8",resolution="60s"} 0.81
"""
    )

    assert (readings.events, readings.seen, readings.forecasts) == (1234, 1237, 42)
    assert readings.rejects == {"not_json": 3}
    assert (readings.lag, readings.watermark_s) == (11, 1.8e9)
    assert readings.skill == {"60s": -0.25}
    assert readings.coverage == {"60s": 0.81}


@pytest.mark.parametrize(
    ("events", "rejects", "forecasts", "holds"),
    [(8, 2, 1, True), (9, 2, 1, False), (7, 2, 1, False), (8, 2, 2, False), (8, 2, 0, False)],
)
def test_sums_hold_only_exactly(events: int, rejects: int, forecasts: int, *, holds: bool) -> None:
    """One record or forecast too many is as bad as one too few."""
    board = Board([60])
    population = Population(seed=1, users=20, start_ms=MONDAY_MS)
    board.hear_sent(list(islice(population.events(MONDAY_MS, MONDAY_MS + 60_000), 10)))
    board.hear_forecast(b"steady-0007", FORECAST, 1.0)
    board.hear_forecast(b"bot-0019", None, 1.0)

    board.hear_metrics(Readings(events, {"not_json": rejects}, forecasts), 2.0)

    assert board.sums_hold is holds


def test_sums_do_not_hold_where_a_forecast_came_twice() -> None:
    """Also where the service has counted both."""
    board = Board([60])
    for _ in range(2):
        board.hear_forecast(b"steady-0007", b'{"id":"a"}', 1.0)

    board.hear_metrics(Readings(0, {}, 2), 2.0)

    assert board.twice == 1
    assert not board.sums_hold


def test_sparkline_fills_the_highest_and_empties_zero() -> None:
    """Every bar is in proportion to the highest; something is never drawn as nothing."""
    assert sparkline([0, 1, 50, 100]) == " ▁▄█"
    assert sparkline([0, 0]) == "  "
    assert sparkline([]) == ""


def test_the_board_draws_before_anything_is_known() -> None:
    """No events, no forecasts, no metrics: an empty table, and nothing scored yet."""
    board = Board([60, 3_600, 86_400])
    console = Console(width=120, record=True, file=io.StringIO())

    console.print(board.render(0.0, 120))

    assert "minute not scored yet; hour not scored yet; day not scored yet" in console.export_text()
    assert "no forecast" in board.summary()


def test_the_board_shows_each_kind_of_user_and_the_newest() -> None:
    """The busiest key of each kind, and the keys that came last, with what is forecast for them."""
    board = Board([60, 3_600])
    population = Population(seed=1, users=60, start_ms=MONDAY_MS)
    board.hear_sent(list(population.events(MONDAY_MS, MONDAY_MS + 600_000)))
    for key in population.keys:
        board.hear_forecast(key, FORECAST.replace(b"KEY", key), 2.5)
    console = Console(width=120, record=True, file=io.StringIO())

    console.print(board.render(3.0, 120))

    text = console.export_text()

    assert re.search(
        r"steady-\d+ .* 1\.2 +1\.5 \(0\.5 - 3\.0\) +90\.0 \(60\.0 - 120\) +1\.0 / 2\.0 +cold", text
    )
    for key in population.keys[-3:]:
        assert key.decode() in text
    assert text.count("cold") == text.count("-00") > 5
    assert board.first_forecast_s == 2.5
    assert board.forecasts == 60


FORECAST = b"""{"key": "KEY", "issued_at": "2026-01-05T00:10:00.000Z", "resolutions": [
 {"moving_average": 1.25, "mean": [1.5, 9], "quantiles": {"0.1": [0.5, 9], "0.9": [3, 9]}},
 {"moving_average": null, "mean": [90, 9], "quantiles": {"0.1": [60, 9], "0.9": [120, 9]}}],
 "intent": {"short_term": 1.0, "long_term": 2.0}, "quality": {"cold_start": true}}"""
