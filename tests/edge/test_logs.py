import io
import json
import logging
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
import structlog
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr

from stream_forecaster.config import Log
from stream_forecaster.edge.logs import REPEAT_AFTER_S, RepeatFilter, configure

ours = structlog.get_logger("stream_forecaster.test")
theirs = logging.getLogger("kafka.test")


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Logging is global: leave it as it was found."""
    root, package = logging.getLogger(), logging.getLogger("stream_forecaster")
    before = list(root.handlers), root.level, package.level
    yield
    root.handlers[:], root.level, package.level = before
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def _lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def _json_log(stream: io.StringIO, level: str = "info") -> None:
    configure(Log.model_validate({"format": "json", "level": level}), stream)


def test_our_events_are_one_json_object_a_line(stream: io.StringIO) -> None:
    """Time, level, logger and event come first, then the fields."""
    _json_log(stream)

    ours.info("shard_recovered", partition=3, seconds=0.5)

    (line,) = _lines(stream)
    written = datetime.fromisoformat(line.pop("timestamp"))
    assert written.tzinfo == UTC
    assert list(line.items()) == [
        ("level", "info"),
        ("logger", "stream_forecaster.test"),
        ("event", "shard_recovered"),
        ("partition", 3),
        ("seconds", 0.5),
    ]


def test_a_library_speaks_in_the_same_format(stream: io.StringIO) -> None:
    """Its text is a message, so that `event` stays a closed set of names."""
    _json_log(stream)

    theirs.warning("node %d is away", 7)

    (line,) = _lines(stream)
    assert line["event"] == "library_message"
    assert line["message"] == "node 7 is away"
    assert (line["logger"], line["level"]) == ("kafka.test", "warning")


def test_python_warnings_are_lines_too(stream: io.StringIO) -> None:
    """A library's warning does not break the one-object-a-line promise."""
    _json_log(stream)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("soon gone", DeprecationWarning, stacklevel=1)

    (line,) = _lines(stream)
    assert line["logger"] == "py.warnings"
    assert "soon gone" in line["message"]


@pytest.mark.parametrize(
    ("level", "ours_from", "theirs_from"),
    [
        ("debug", "debug", "info"),
        ("info", "info", "warning"),
        ("warning", "warning", "warning"),
        ("error", "error", "error"),
    ],
)
def test_libraries_are_capped(
    stream: io.StringIO, level: str, ours_from: str, theirs_from: str
) -> None:
    """At each setting we speak from that level on, and libraries never below their cap."""
    _json_log(stream, level)
    names = ["debug", "info", "warning", "error"]

    for name in names:
        getattr(ours, name)("spoken")
        getattr(theirs, name)("spoken")

    heard = [(line["logger"].partition(".")[0], line["level"]) for line in _lines(stream)]
    assert [lv for who, lv in heard if who == "stream_forecaster"] == names[
        names.index(ours_from) :
    ]
    assert [lv for who, lv in heard if who == "kafka"] == names[names.index(theirs_from) :]


@pytest.mark.parametrize(
    ("format_", "stream", "is_json"),
    [
        ("auto", io.StringIO(), True),
        ("auto", _Terminal(), False),
        ("json", _Terminal(), True),
        ("console", io.StringIO(), False),
    ],
)
def test_the_format_follows_the_setting_then_the_terminal(
    format_: str,
    stream: io.StringIO,
    is_json: bool,  # noqa: FBT001  (a parameter of the table)
) -> None:
    """`auto` is for people on a terminal and for machines elsewhere; a setting wins."""
    configure(Log.model_validate({"format": format_}), stream)

    ours.info("started")

    text = stream.getvalue()
    assert "started" in text
    assert text.startswith("{") is is_json


def test_configuring_again_replaces(stream: io.StringIO) -> None:
    """One line is written once, however often logging was set up."""
    _json_log(stream)
    _json_log(stream)

    ours.info("started")

    assert len(_lines(stream)) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"sasl_plain_password": "hunter2"},
        {"ssl_password": SecretStr("hunter2")},
        {"settings": {"kafka": [{"SASL_PASSWORD": "hunter2"}]}},
        {"api_key": "hunter2", "Authorization": "Bearer hunter2", "client_secret": b"hunter2"},
        {"url": "s3://me:hunter2@bucket/path"},
        {"error": ValueError("cannot reach sftp://me:hunter2@host")},
    ],
)
@pytest.mark.parametrize("format_", ["json", "console"])
def test_secrets_are_masked(stream: io.StringIO, fields: dict[str, Any], format_: str) -> None:
    """By name at any depth, and inside URLs, in both formats."""
    configure(Log.model_validate({"format": format_}), stream)

    ours.info("started", **fields)

    assert "***" in stream.getvalue()
    assert "hunter2" not in stream.getvalue()


def test_a_traceback_shows_no_variables(stream: io.StringIO) -> None:
    """The error and the way to it are logged; the values on that way are not."""
    configure(Log(format="console"), stream)

    def connect(sasl_plain_password: str) -> None:
        raise RuntimeError(f"refused {len(sasl_plain_password)}")

    secret = "hunter2"  # noqa: S105  (what must not be seen)
    try:
        connect(secret)
    except RuntimeError:
        ours.exception("connect_failed")

    assert "RuntimeError: refused 7" in stream.getvalue()
    assert "hunter2" not in stream.getvalue()


def test_an_exception_is_one_line(stream: io.StringIO) -> None:
    """A traceback is a field, for ours and for a library's, and never a line of its own."""
    _json_log(stream)

    try:
        raise RuntimeError("boom")  # noqa: TRY301  (the test needs one)
    except RuntimeError:
        ours.exception("loop_failed")
        theirs.exception("it failed")

    mine, library = _lines(stream)
    assert "RuntimeError: boom" in mine["exception"]
    assert "RuntimeError: boom" in library["exception"]


JSON_LIKE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary()
    | st.builds(object)
    | st.builds(np.int64, st.integers(-5, 5))
    | st.builds(np.float32, st.floats(width=32)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(st.integers() | st.text() | st.tuples(st.integers()), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(value=JSON_LIKE)
@example(value=[float("nan"), {"x": float("-inf")}])
def test_any_value_makes_a_line(value: object) -> None:
    """Whatever a field holds, the line is written and is strict JSON, without NaN or Infinity."""
    stream = io.StringIO()
    _json_log(stream)

    ours.info("seen", value=value)

    (text,) = stream.getvalue().splitlines()
    json.loads(text, parse_constant=pytest.fail)


class _Clock:
    now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


def _record(level: int, message: object, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("kafka", level, "", 0, message, arguments, None)


@pytest.mark.parametrize("level", [logging.WARNING, logging.ERROR])
def test_repeats_are_counted_not_written(level: int) -> None:
    """One of a kind per interval passes, and the next says how many did not.

    ```
    second   0    1    2    9.9   10
    passes   yes  no   no   no    yes, 3 suppressed
    ```
    """
    clock = _Clock()
    repeats = RepeatFilter(clock)
    start_s = clock.now_s
    passed: list[bool] = []

    for second in (0.0, 1.0, 2.0, REPEAT_AFTER_S - 0.1, REPEAT_AFTER_S):
        clock.now_s = start_s + second
        record = _record(level, "node %d is away", second)
        passed.append(repeats.filter(record))

    assert passed == [True, False, False, False, True]
    assert record.suppressed == 3  # type: ignore[attr-defined]  # set by the filter


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO, logging.CRITICAL])
def test_other_levels_are_never_held_back(level: int) -> None:
    """Information is asked for, and what is critical is said."""
    repeats = RepeatFilter(_Clock())

    assert all(repeats.filter(_record(level, "same")) for _ in range(3))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("node is away",), ("node is back",)),
        (("%s", "node is away"), ("%s", "node is back")),
        (({"event": "away", "partition": 0},), ({"event": "away", "partition": 1},)),
    ],
)
def test_different_warnings_do_not_hide_each_other(
    one: tuple[Any, ...], other: tuple[Any, ...]
) -> None:
    """Only the same text, and among ours only the same fields, is a repetition."""
    repeats = RepeatFilter(_Clock())

    assert repeats.filter(_record(logging.WARNING, *one))
    assert repeats.filter(_record(logging.WARNING, *other))


def test_memory_of_warnings_is_bounded() -> None:
    """A flood of different warnings passes, and is forgotten rather than kept for ever."""
    repeats = RepeatFilter(_Clock())

    assert all(repeats.filter(_record(logging.WARNING, f"warning {i}")) for i in range(5_000))
    assert len(repeats._seen) <= 1_000


def test_the_suppressed_count_is_a_field(stream: io.StringIO) -> None:
    """The line after a silence carries the count, ours and a library's."""
    clock = _Clock()
    configure(Log(format="json"), stream, now_s=clock)

    for _ in range(2):
        for _ in range(3):
            ours.warning("broker_away")
            theirs.warning("away")
        clock.now_s += REPEAT_AFTER_S
    ours.warning("broker_away")

    assert [line.get("suppressed") for line in _lines(stream)] == [None, None, 2, 2, 2]
