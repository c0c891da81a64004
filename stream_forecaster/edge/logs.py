"""Logs: one JSON object a line on stderr (stdout stays free for data), or colours on a terminal.

Two kinds of caller share one handler and one format: our modules, through structlog, whose `event`
is always a snake_case name with fields beside it; and libraries, through stdlib logging, whose text
is the `message` of the event `library_message`. Libraries speak from WARNING on: their INFO is
written for their own authors.

What the formatter is given is untrusted: secrets are masked by field name and in URLs, and any
value becomes one that JSON can hold, because a line that cannot be written is the one that was
needed.
"""

import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from stream_forecaster.config import Log, without_passwords

REPEAT_AFTER_S = 10.0
"""The same warning again within this time is counted, not written."""

_HANDLER = "stream_forecaster"
_MOST_REMEMBERED = 1_000
_FIRST = ("timestamp", "level", "logger", "event")
_SECRET_NAME = re.compile(
    r"passw(or)?d|passphrase|secret|token|credential|authorization|(api|access|private)_?key",
    re.IGNORECASE,
)


def configure(log: Log, stream: TextIO, *, now_s: Callable[[], float] = time.monotonic) -> None:
    """Route structlog and stdlib logging to `stream`. Called once, by the CLI; again replaces."""
    handler = logging.StreamHandler(stream)
    handler.set_name(_HANDLER)
    handler.setFormatter(_formatter(log, is_terminal=stream.isatty()))
    handler.addFilter(RepeatFilter(now_s))
    level = logging.getLevelNamesMapping()[log.level.upper()]
    root = logging.getLogger()
    for earlier in [h for h in root.handlers if h.get_name() == _HANDLER]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(logging.INFO if log.level == "debug" else max(level, logging.WARNING))
    logging.getLogger("stream_forecaster").setLevel(level)
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


class RepeatFilter(logging.Filter):
    """Lets a warning or error through, then counts its repetitions until its time is over.

    Ours repeat when their fields are equal; a library's when its template is, because its arguments
    often hold a counter. The next one let through carries the number of those `suppressed`.

    Args:
        now_s: a monotonic clock.
    """

    def __init__(self, now_s: Callable[[], float]) -> None:
        super().__init__()
        self._now_s = now_s
        self._seen: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write the record."""
        if not logging.WARNING <= record.levelno <= logging.ERROR:
            return True
        says = record.getMessage() if record.msg == "%s" else repr(record.msg)
        identity = record.name, record.levelno, says
        now_s = self._now_s()
        since_s, suppressed = self._seen.get(identity, (-REPEAT_AFTER_S, 0))
        if now_s - since_s < REPEAT_AFTER_S:
            self._seen[identity] = since_s, suppressed + 1
            return False
        if len(self._seen) >= _MOST_REMEMBERED:
            self._seen.clear()
        self._seen[identity] = now_s, 0
        record.suppressed = suppressed
        return True


def _formatter(log: Log, *, is_terminal: bool) -> structlog.stdlib.ProcessorFormatter:
    for_people = log.format == "console" or (log.format == "auto" and is_terminal)
    renderer: Processor = structlog.processors.JSONRenderer()
    if for_people:
        # Tracebacks are text by then; its own would show local variables, and so secrets.
        renderer = structlog.dev.ConsoleRenderer(
            colors=is_terminal, exception_formatter=structlog.dev.plain_traceback
        )
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[_name_library_message],
        processors=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _add_suppressed,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            _make_safe,
            renderer,
        ],
    )


def _name_library_message(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event["message"] = event.pop("event")
    event["event"] = "library_message"
    return event


def _add_suppressed(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    if suppressed := getattr(event["_record"], "suppressed", 0):
        event["suppressed"] = suppressed
    return event


def _make_safe(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {name: _safe(name, event[name]) for name in dict.fromkeys((*_FIRST, *event))}


def _safe(name: str, value: object) -> object:
    """The value as JSON can hold it, without secrets."""
    if _SECRET_NAME.search(name):
        return "***"
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, Mapping):
        return {str(inner): _safe(str(inner), v) for inner, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_safe("", v) for v in value]
    if isinstance(value, Real) and math.isfinite(value):
        return int(value) if isinstance(value, Integral) else float(value)
    return without_passwords(str(value))
