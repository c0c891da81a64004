"""What the commands print: tables for people, JSON for programs. Never logs."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from stream_forecaster import reader
from stream_forecaster.calendar import EARLIEST_MS, LATEST_MS
from stream_forecaster.dead_letters import DeadLetter
from stream_forecaster.edge.lag import Lag
from stream_forecaster.edge.topics import Probe, StoredRecord, TopicState
from stream_forecaster.errors import SchemaMismatch
from stream_forecaster.forecasts import rfc3339
from stream_forecaster.reader import Forecast, Resolution
from stream_forecaster.records import as_text

T = TypeVar("T")

_MOST_ROWS = 1_000
"""Keys that a live table remembers; the screen shows fewer."""
_GLIMPSE_BYTES = 60
_SHOWN_BEHIND, _SHOWN_AHEAD = 20, 5
"""Buckets of a key that fit a screen; JSON has all."""


def print_json(console: Console, value: object) -> None:
    """One JSON document, indented on a terminal and on one line elsewhere."""
    indent = 2 if console.is_terminal else None
    print_line(console, json.dumps(value, indent=indent, ensure_ascii=False))


def print_line(console: Console, text: str) -> None:
    """Text as it is: nothing wrapped, nothing coloured."""
    console.out(text, highlight=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Rows under headings; columns of numbers to the right."""
    shown = list(rows)
    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(columns):
        numeric = all(isinstance(row[i], int | float | None) for row in shown)
        made.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in shown:
        made.add_row(*(_cell(value) for value in row))
    return made


def probe_table(probes: Iterable[Probe]) -> Table:
    """The findings of `check`."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False, show_header=False)
    for probe in probes:
        verdict = "[green]ok[/]" if probe.passed else "[bold red]no[/]"
        made.add_row(verdict, escape(probe.name), escape(probe.detail))
    return made


def topic_table(states: Iterable[TopicState]) -> Table:
    """The topics of a pipeline: how large, how far behind, how configured."""
    rows = []
    for state in states:
        offsets = sum(end - first for first, end in state.bounds.values())
        lag = sum(state.lag.values()) if state.committed else None
        configs = "\n".join(f"{name}={value}" for name, value in state.configs.items())
        rows.append((state.name, state.partitions or "missing", offsets, lag, configs))
    return table(("topic", "partitions", "offsets", "lag", "settings"), rows)


def topic_json(state: TopicState) -> dict[str, Any]:
    """The same for a program; partitions are strings, as JSON has it."""
    partitions = {
        str(partition): {
            "first": first,
            "end": end,
            "committed": state.committed.get(partition),
        }
        for partition, (first, end) in state.bounds.items()
    }
    return {"topic": state.name, "partitions": partitions, "configs": dict(state.configs)}


def state_table(partitions: Iterable[Mapping[str, Any]]) -> Table:
    """The newest checkpoint of each partition."""
    rows = (
        (
            found["partition"],
            found["offset"],
            found["watermark"] or "",
            found["keys"],
            found["state_bytes"],
            len(found["checkpoints"]),
        )
        for found in partitions
    )
    columns = ("partition", "offset", "watermark", "keys", "state bytes", "checkpoints")
    return table(columns, rows)


def key_table(found: Mapping[str, Any]) -> Table:
    """A key's window and forecast at each resolution: the buckets around now."""
    rows = []
    for resolution in found["resolutions"]:
        paths = zip(resolution["mean"], resolution["low"], resolution["high"], strict=True)
        ahead = [f"{mean:.3g} ({low:.3g}..{high:.3g})" for mean, low, high in paths]
        past = ["-" if value is None else f"{value:.3g}" for value in resolution["window"]]
        rows.append(
            (
                f"{resolution['step_s']} s",
                resolution["moving_average"],
                " ".join(past[-_SHOWN_BEHIND:]),
                "\n".join(ahead[:_SHOWN_AHEAD]),
            )
        )
    return table(("step", "average", "newest closed", "next"), rows)


def weights_table(header: Mapping[str, Any]) -> Table:
    """The header of a file of weights: architecture, steps and shares, then all that the card has.

    What the card holds is for its writer to say, and may be anything JSON is.
    """
    modules = [
        {"step_s": step_ms // 1000, "absolute": round(absolute, 3), "residual": round(residual, 3)}
        for step_ms, (absolute, residual) in zip(header["steps_ms"], header["shares"], strict=True)
    ]
    told = {"architecture": header["architecture"], "shares": modules, **header["card"]}
    return table(("part", "says"), ((harmless(name), _told(value)) for name, value in told.items()))


def _told(value: object) -> str:
    """JSON in words: parts of an object behind each other, objects of a list below each other."""
    if isinstance(value, Mapping):
        return harmless(", ".join(f"{name} {_told(part)}" for name, part in value.items()))
    if isinstance(value, list | tuple):
        below = any(isinstance(part, Mapping) for part in value)
        return ("\n" if below else " ").join(map(_told, value))
    return harmless("-" if value is None else str(value))


def letter_json(record: StoredRecord, letter: DeadLetter) -> dict[str, Any]:
    """A dead letter for a program: what is UTF-8 as text, all else in hexadecimal."""
    return {
        "partition": record.partition,
        "offset": record.offset,
        "time": _time(record.time_ms),
        "reason": letter.reason or None,
        "detail": letter.detail,
        "origin": {
            "topic": letter.topic,
            "partition": letter.partition,
            "offset": letter.offset,
            "time": _time(letter.time_ms),
        },
        "replays": letter.replays,
        "key": _spelled(letter.key),
        "value": _spelled(letter.value),
        "headers": [{"name": name, **(_spelled(v) or {})} for name, v in letter.headers],
    }


def letter_table(letters: Iterable[tuple[StoredRecord, DeadLetter]]) -> Table:
    """Dead letters, one a line."""
    rows = (
        (
            f"{record.partition}:{record.offset}",
            letter.reason or "?",
            f"{letter.topic}/{letter.partition}:{letter.offset}" if letter.topic else "",
            _time(record.time_ms),
            letter.replays,
            _glimpse(letter.key),
            _glimpse(letter.value),
        )
        for record, letter in letters
    )
    columns = ("place", "reason", "origin", "time", "replays", "key", "begins with")
    return table(columns, rows)


def letter_text(shown: Mapping[str, Any]) -> str:
    """A dead letter whole, as `letter_json` has it, for a person."""
    origin = shown["origin"]
    place = f"{origin['topic']}/{origin['partition']}:{origin['offset']}"
    lines = [
        f"place    {shown['partition']}:{shown['offset']}, {shown['time']}",
        f"reason   {shown['reason'] or '?'}: {harmless(shown['detail'])}",
        f"origin   {harmless(place)}, {origin['time'] or 'no time'}",
        f"replays  {shown['replays']}",
        f"key      {_in_words(shown['key'])}",
    ]
    lines += [
        f"header   {harmless(h['name'])}: {_in_words(h if 'text' in h or 'hex' in h else None)}"
        for h in shown["headers"]
    ]
    return "\n".join([*lines, f"value    {_in_words(shown['value'])}"])


def _spelled(data: bytes | None) -> dict[str, str] | None:
    if data is None:
        return None
    try:
        return {"text": data.decode()}
    except UnicodeDecodeError:
        return {"hex": data.hex()}


def _in_words(spelled: Mapping[str, str] | None) -> str:
    if spelled is None:
        return "none"
    return harmless(spelled["text"]) if "text" in spelled else f"hex {spelled['hex']}"


def _glimpse(data: bytes | None) -> str:
    if data is None:
        return ""
    text = harmless(as_text(data[:_GLIMPSE_BYTES]))
    return text + ("..." if len(data) > _GLIMPSE_BYTES else "")


def harmless(text: str) -> str:
    """Text that a terminal may be sent: what it would obey is spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _time(time_ms: int | None) -> str | None:
    if time_ms is None or not EARLIEST_MS <= time_ms < LATEST_MS:
        return None
    return rfc3339(time_ms)


def _span(seconds: float | None) -> str | None:
    """0:00:03, 1 day, 17:35:12."""
    return None if seconds is None else str(timedelta(seconds=int(seconds)))


class Bar:
    """How far work is, on standard error: a bar on a terminal, elsewhere nothing."""

    def __init__(self, bar: Progress, unit: str) -> None:
        self._bar, self._task, self._total = bar, bar.add_task(unit, total=None), 0

    def expect(self, more: int) -> None:
        """So many more are to come."""
        self._total += more
        self._bar.update(self._task, total=self._total)

    def each(self, done: Iterable[T]) -> Iterator[T]:
        """Hand things on, and count them."""
        for one in done:
            yield one
            self._bar.advance(self._task)


@contextmanager
def progress(unit: str) -> Iterator[Bar]:
    """Show a `Bar` as long as the context is open."""
    err = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        yield Bar(bar, unit)


def lag_table(lags: Iterable[Lag], now_ms: int) -> Table:
    """How far behind each partition is, in records and in time."""
    rows = [
        (
            each.partition,
            each.committed,
            each.end,
            each.records,
            _time(each.oldest_ms) if each.records else None,
            _span(each.waiting_s(now_ms)),
        )
        for each in lags
    ]
    columns = ("partition", "committed", "end", "unread", "oldest of them", "waiting")
    return table(columns, rows)


def lag_json(each: Lag, now_ms: int) -> dict[str, Any]:
    """The same of one partition, for a program."""
    return {
        "partition": each.partition,
        "committed": each.committed,
        "end": each.end,
        "records": each.records,
        "oldest": _time(each.oldest_ms),
        "waiting_s": each.waiting_s(now_ms),
    }


def tail_json(record: StoredRecord) -> str:
    """An output record as a line of JSON: its value, or which key is gone, and why."""
    if record.value is not None:
        return record.value.decode("utf-8", "replace")
    change = reader.decode(record)
    key = as_text(change.key)
    if change.gone in {"forgotten", "shed"}:
        return json.dumps({"key": key, change.gone: True}, ensure_ascii=False)
    expired_at = (dict(record.headers).get("ce_time") or b"").decode()
    return json.dumps({"key": key, "expired_at": expired_at}, ensure_ascii=False)


class ForecastTable:
    """The newest forecast of each key; the keys heard of last come first."""

    def __init__(self) -> None:
        self._latest: dict[bytes, Forecast] = {}

    def hear(self, record: StoredRecord) -> None:
        """Take in an output record; what is no forecast is left out."""
        self._latest.pop(record.key or b"", None)
        with suppress(SchemaMismatch):
            change = reader.decode(record)
            if change.forecast is not None:
                self._latest[change.key] = change.forecast
        if len(self._latest) > _MOST_ROWS:
            del self._latest[next(iter(self._latest))]

    def render(self, rows: int) -> Table:
        """The table of at most `rows` keys."""
        newest = list(islice(reversed(self._latest.values()), rows))
        steps = [r.step_s for r in newest[0].resolutions] if newest else []
        made = table(
            ("key", "issued", "events", *(f"next {s} s" for s in steps), "momentum", "skill"),
            [_forecast_row(forecast) for forecast in newest],
        )
        made.caption = f"{len(self._latest)} keys"
        return made


def _forecast_row(forecast: Forecast) -> list[object]:
    skill = forecast.quality.skill
    return [
        harmless(forecast.key),
        f"{forecast.issued_at:%H:%M:%S}",
        forecast.quality.observations,
        *(_next_bucket(resolution) for resolution in forecast.resolutions),
        f"{forecast.intent.momentum:+.2f}",
        "" if skill is None else f"{skill:+.2f}",
    ]


def _next_bucket(resolution: Resolution) -> str:
    """The mean of the first bucket ahead, and the widest interval around it."""
    paths = list(resolution.quantiles.values())
    return f"{resolution.mean[0]:.3g} ({paths[0][0]:.3g}..{paths[-1][0]:.3g})"


def _cell(value: object) -> str:
    if value is None:
        return ""
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))
