"""What the demo shows: a live table, a line for logs, and the summary.

Everything comes from outside the service: what the simulator sent, the `/metrics` the service
serves, and the messages on the output topic. Nothing is computed here that a user of the topic
could not.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from stream_forecaster.forecasts import rfc3339
from stream_forecaster.synth import SyntheticEvent

_MINUTE_MS = 60_000
_OTHER_COLUMNS = 92
"""Characters that all columns but the window's take."""
_FEWEST_MINUTES, _MOST_MINUTES = 10, 40
_NEWEST = 3
_BARS = " ▁▂▃▄▅▆▇█"
_PREFIX = "streamforecaster_"
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_MOST_IDS = 200_000
"""So many of the newest are remembered at least."""
_ID = re.compile(rb'"id":"([^"]+)"')
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Readings:
    """What the service's metrics say.

    Attributes:
        events: counted.
        rejects: reason -> how many, of those that occurred.
        forecasts: published or about to be.
        keys, state_bytes, lag: of all partitions.
        watermark_s: the greatest one, epoch seconds; None before any event.
        skill: resolution -> skill against the last value, of late.
        coverage: resolution -> share of truths inside the 80 % interval, of late.
    """

    events: int = 0
    rejects: Mapping[str, int] = field(default_factory=dict)
    forecasts: int = 0
    keys: int = 0
    state_bytes: int = 0
    lag: int = 0
    watermark_s: float | None = None
    skill: Mapping[str, float] = field(default_factory=dict)
    coverage: Mapping[str, float] = field(default_factory=dict)

    @property
    def seen(self) -> int:
        """Records that were counted or rejected."""
        return self.events + sum(self.rejects.values())

    def after(self, before: "Readings") -> "Readings":
        """What this process and those before it have counted together; the rest as it is now."""
        rejects = Counter(before.rejects)
        rejects.update(self.rejects)
        return replace(
            self,
            events=before.events + self.events,
            rejects=dict(rejects),
            forecasts=before.forecasts + self.forecasts,
        )

    @classmethod
    def parse(cls, exposition: str) -> "Readings":
        """Read the text format of Prometheus.

        >>> Readings.parse('streamforecaster_rejects_total{reason="no_key"} 2.0').rejects
        {'no_key': 2}
        """
        samples: dict[str, list[tuple[dict[str, str], float]]] = {}
        for name, labels, value in _SAMPLE.findall(exposition):
            of_name = samples.setdefault(name.removeprefix(_PREFIX), [])
            of_name.append((dict(_LABEL.findall(labels)), float(value)))

        def total(name: str) -> int:
            return int(sum(value for _, value in samples.get(name, ())))

        watermarks = [value for _, value in samples.get("watermark_timestamp_seconds", ())]
        return cls(
            total("events_total"),
            {at["reason"]: int(n) for at, n in samples.get("rejects_total", ()) if n},
            total("forecasts_total"),
            total("keys"),
            total("state_bytes"),
            total("lag_records"),
            max(watermarks, default=None),
            {at["resolution"]: value for at, value in samples.get("skill_ratio", ())},
            {
                at["resolution"]: value
                for at, value in samples.get("interval_coverage_ratio", ())
                if at["level"] == "0.8"
            },
        )


class Board:
    """Collects what there is to show, and draws it.

    Attributes:
        phase: what the simulator is doing, in words.
        sent: records sent.
        forecasts: forecasts read back from the output topic.
        twice: of those, how many had the id of one before them.
        first_forecast_s: seconds from the start to the first of them; None before it.
        readings: the newest metrics.
    """

    def __init__(self, steps_s: Iterable[int]) -> None:
        self.phase = "starting"
        self.sent = self.forecasts = self.twice = 0
        self._ids: set[bytes] = set()
        self._older_ids: set[bytes] = set()
        self.first_forecast_s: float | None = None
        self.readings = Readings()
        self._steps = {f"{step_s}s": _step(step_s) for step_s in steps_s}
        self._minutes: dict[int, Counter[bytes]] = {}
        self._latest: dict[bytes, bytes] = {}  # in order of first appearance
        self._marks: list[tuple[float, int, int]] = []

    @property
    def sums_hold(self) -> bool:
        """Was everything sent counted or rejected, and everything published read back?

        True in the end, if nothing was lost or done twice; not on the way there.
        """
        readings = self.readings
        same = readings.seen == self.sent and readings.forecasts == self.forecasts
        return same and not self.twice

    def hear_sent(self, events: Sequence[SyntheticEvent]) -> None:
        """Note events that the broker has."""
        self.sent += len(events)
        for event in events:
            if event.fault is None:
                minute = event.time_ms // _MINUTE_MS
                self._minutes.setdefault(minute, Counter())[event.key] += 1
        oldest = max(self._minutes, default=0) - _MOST_MINUTES
        for minute in [minute for minute in self._minutes if minute < oldest]:
            del self._minutes[minute]

    def hear_forecast(self, key: bytes, value: bytes | None, at_s: float) -> None:
        """Note a message of the output topic, read `at_s` seconds after the start."""
        if value is None:
            self._latest.pop(key, None)
            return
        self.forecasts += 1
        if found := _ID.search(value):
            self.twice += found[1] in self._ids or found[1] in self._older_ids
            self._ids.add(found[1])
            if len(self._ids) >= _MOST_IDS:
                self._older_ids, self._ids = self._ids, set()
        if self.first_forecast_s is None:
            self.first_forecast_s = at_s
        self._latest[key] = value

    def hear_metrics(self, readings: Readings, at_s: float) -> None:
        """Note the metrics as they are `at_s` seconds after the start."""
        self.readings = readings
        self._marks = [*self._marks[-9:], (at_s, readings.seen, readings.forecasts)]

    def line(self, at_s: float) -> str:
        """The state of things in a line."""
        events_per_s, forecasts_per_s = self._rates()
        return (
            f"{at_s:5.1f} s  {self.phase}: {self.sent:,} sent, {self.readings.events:,} counted "
            f"({events_per_s:,.0f}/s), {sum(self.readings.rejects.values()):,} rejected, "
            f"{self.forecasts:,} forecasts ({forecasts_per_s:,.0f}/s), "
            f"{self.readings.keys} keys, event time {self._event_time()}; {self._quality()}"
        )

    def render(self, at_s: float, width: int) -> Group:
        """The header and the table, for a terminal so wide."""
        events_per_s, forecasts_per_s = self._rates()
        readings = self.readings
        header = (
            f"[bold]stream_forecaster demo[/]  {at_s:.0f} s  {self.phase}\n"
            f"{events_per_s:,.0f} events/s  {forecasts_per_s:,.0f} forecasts/s  "
            f"{readings.keys} keys  lag {readings.lag:,}  event time {self._event_time()}\n"
            f"rejected: {_listed(readings.rejects)}\n"
            f"{escape(self._quality())}"
        )
        minutes = min(max(width - _OTHER_COLUMNS, _FEWEST_MINUTES), _MOST_MINUTES)
        return Group(header, self._table(minutes))

    def summary(self) -> str:
        """What came of it all."""
        readings = self.readings
        per_key = f"{readings.state_bytes / readings.keys:,.0f}" if readings.keys else "no"
        first = self.first_forecast_s
        return "\n".join(
            (
                f"sent        {self.sent:,} events",
                f"counted     {readings.events:,}",
                f"rejected    {sum(readings.rejects.values()):,} ({_listed(readings.rejects)})",
                f"forecasts   {self.forecasts:,} published and read back",
                f"quality     {self._quality()}",
                f"state       {per_key} bytes per key, {readings.keys} keys",
                "first       no forecast"
                if first is None
                else f"first       {first:.1f} s from the start to the first forecast",
            )
        )

    def _rates(self) -> tuple[float, float]:
        """Events and forecasts per second over the last few readings."""
        if len(self._marks) < 2:
            return 0.0, 0.0
        (begin_s, seen, made), (end_s, seen_now, made_now) = self._marks[0], self._marks[-1]
        span_s = max(end_s - begin_s, 1e-3)
        return (seen_now - seen) / span_s, (made_now - made) / span_s

    def _event_time(self) -> str:
        watermark_s = self.readings.watermark_s
        if watermark_s is None:
            return "not known yet"
        return rfc3339(round(1000 * watermark_s))[:16].replace("T", " ")

    def _quality(self) -> str:
        parts = []
        for name, label in self._steps.items():
            skill, coverage = (
                of.get(name, float("nan")) for of in (self.readings.skill, self.readings.coverage)
            )
            scored = not (math.isnan(skill) or math.isnan(coverage))
            parts.append(
                f"{label} skill {skill:+.2f}, {100 * coverage:.0f} % in the 80 % interval"
                if scored
                else f"{label} not scored yet"
            )
        return "; ".join(parts)

    def _table(self, minutes: int) -> Table:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("key", no_wrap=True)
        table.add_column(f"last {minutes} min", no_wrap=True)
        for name in ("average", "next minute", "this hour", "now / usual"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        for key in self._chosen():
            table.add_row(*self._row(msgspec.json.decode(self._latest[key]), minutes))
        return table

    def _chosen(self) -> list[bytes]:
        """The most active key of each kind of user, by name, and then the keys that came last."""
        active: Counter[bytes] = Counter()
        for counts in self._minutes.values():
            active.update(counts)
        newest = list(self._latest)[: -_NEWEST - 1 : -1]
        busiest: dict[bytes, bytes] = {}
        for key, _ in active.most_common():
            if key in self._latest and key not in newest:
                busiest.setdefault(key.partition(b"-")[0], key)
        return [*sorted(busiest.values()), *newest]

    def _row(self, forecast: dict[str, Any], minutes: int) -> tuple[str, ...]:
        minute, hour = forecast["resolutions"][:2]
        intent, average = forecast["intent"], minute["moving_average"]
        return (
            escape(forecast["key"]),
            sparkline(self._window(forecast["key"].encode(), minutes)),
            "" if average is None else _short(average),
            _next(minute),
            _next(hour),
            f"{_short(intent['short_term'])} / {_short(intent['long_term'])}",
            "cold" if forecast["quality"]["cold_start"] else "",
        )

    def _window(self, key: bytes, minutes: int) -> list[int]:
        """How many events of a key were sent in each of the last whole minutes."""
        newest = max(self._minutes, default=0)
        none: Counter[bytes] = Counter()
        return [self._minutes.get(m, none)[key] for m in range(newest - minutes, newest)]


def sparkline(counts: list[int]) -> str:
    """Counts as bars, the highest full.

    >>> sparkline([0, 1, 4, 8])
    ' ▁▄█'
    """
    top = max(counts, default=0) or 1
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // top)] for count in counts)


def _next(resolution: dict[str, Any]) -> str:
    """The next bucket's mean and its 80 % interval."""
    mean = resolution["mean"][0]
    low, high = (resolution["quantiles"][level][0] for level in ("0.1", "0.9"))
    return f"{_short(mean)} ({_short(low)} - {_short(high)})"


def _short(number: float) -> str:
    return f"{number:.1f}" if abs(number) < 100 else f"{number:.0f}"


def _listed(rejects: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {reason}" for reason, n in sorted(rejects.items())) or "none"


def _step(step_s: int) -> str:
    return {60: "minute", 3_600: "hour", 86_400: "day"}.get(step_s, f"{step_s} s")
