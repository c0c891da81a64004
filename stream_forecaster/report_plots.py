"""Plots as inline SVG: a frame with two axes, and what is drawn into it.

A plot is as wide as a phone's screen and is laid out beside others, never shrunk, so that its text
stays readable. Marks have a class and no colour: the page's style sheet colours them, for light and
for dark. Text may come from anyone and is escaped.
"""

import math
from collections.abc import Iterable, Iterator
from html import escape
from itertools import groupby

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stream_forecaster.calendar import DAY_MS, HOUR_MS, WEEK_MS, Calendar

Float64 = NDArray[np.float64]
Tick = tuple[float, str]

_WIDTH, _HEIGHT = 360, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 10, 8, 22
_MOST_TICKS = 5
_MINUTE_MS = 60_000
_TICK_WIDTHS_MS = (
    *(minutes * _MINUTE_MS for minutes in (1, 5, 15, 30)),
    *(hours * HOUR_MS for hours in (1, 3, 6, 12)),
    *(days * DAY_MS for days in (1, 2)),
    *(weeks * WEEK_MS for weeks in (1, 2, 4, 8, 13, 26, 52, 520)),
)
_MONDAY_SHIFT_MS = 3 * DAY_MS
"""1970-01-01 was a Thursday; ticks a week apart stand on Mondays."""


class Plot:
    """One plot. Marks are drawn over those before them, and cut off at the frame."""

    def __init__(self, label: str, x: tuple[float, float], y: tuple[float, float]) -> None:
        """An empty frame.

        Args:
            label: what the plot shows, for readers who cannot see it.
            x: lower and upper end of the axis; equal ends are moved apart.
            y: likewise.
        """
        self._label = label
        self._x, self._y = _apart(*x), _apart(*y)
        self._axes: list[str] = []
        self._marks: list[str] = []
        for value in ticks(*self._y):
            at = _TOP + self._down(value)
            self._axes.append(_line((_LEFT, at), (_WIDTH - _RIGHT, at), "grid"))
            self._axes.append(_text(_LEFT - 5, at + 4, f"{value:.6g}", "end"))

    def x_ticks(self, marks: Iterable[Tick]) -> None:
        """Label places on the x axis."""
        for value, text in marks:
            at, foot = _LEFT + self._right(value), _HEIGHT - _BOTTOM
            self._axes.append(_line((at, foot), (at, foot + 4), "grid"))
            self._axes.append(_text(at, _HEIGHT - 6, text, "middle"))

    def band(self, x: ArrayLike, low: ArrayLike, high: ArrayLike, kind: str) -> None:
        """The area between two curves, all (N,) and without NaN."""
        there = self._points(x, low)
        back = self._points(x, high)[::-1]
        self._marks.append(f'<polygon class="{kind}" points="{" ".join([*there, *back])}"/>')

    def line(self, x: ArrayLike, y: ArrayLike, kind: str, title: str = "") -> None:
        """A curve through the points (N,); NaN interrupts it. `title` is shown on hovering."""
        for run in _runs(self._points(x, y)):
            points = " ".join(run if len(run) > 1 else run * 2)  # a lone point is seen, too
            said = f"<title>{escape(title)}</title>" if title else ""
            self._marks.append(f'<polyline class="{kind}" points="{points}">{said}</polyline>')

    def bar(self, x: float, low: float, high: float, title: str) -> None:
        """An upright bar from `low` to `high`, at least a dot."""
        points = " ".join(self._points([x, x], [low, high]))
        said = f"<title>{escape(title)}</title>"
        self._marks.append(f'<polyline class="bar" points="{points}">{said}</polyline>')

    def rule(self, x: float) -> None:
        """A thin upright line over the whole height."""
        at = self._right(x)
        self._marks.append(_line((at, 0), (at, _HEIGHT - _TOP - _BOTTOM), "rule"))

    def __str__(self) -> str:
        width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        return (
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(self._label)}">'
            f"{''.join(self._axes)}"
            f'<svg x="{_LEFT}" y="{_TOP}" width="{width}" height="{height}">'
            f"{''.join(self._marks)}</svg></svg>"
        )

    def _right(self, x: float) -> float:
        low, high = self._x
        return (x - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def _down(self, y: float) -> float:
        low, high = self._y
        return (high - y) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    def _points(self, x: ArrayLike, y: ArrayLike) -> list[str]:
        """One "x,y" per point, "" where y is NaN."""
        pairs = zip(np.asarray(x).tolist(), np.asarray(y).tolist(), strict=True)
        return [
            "" if math.isnan(b) else f"{self._right(a):.1f},{self._down(b):.1f}" for a, b in pairs
        ]


def ticks(low: float, high: float) -> list[float]:
    """At most five round numbers from `low` to `high`.

    >>> ticks(0, 87), ticks(-0.3, 0.5)
    ([0.0, 20.0, 40.0, 60.0, 80.0], [-0.2, 0.0, 0.2, 0.4])
    """
    magnitude = 10.0 ** math.floor(math.log10((high - low) / _MOST_TICKS))
    for step in (f * magnitude for f in (1, 2, 5, 10, 20)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < _MOST_TICKS:
            break
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def time_ticks(calendar: Calendar, low_ms: float, high_ms: float) -> list[Tick]:
    """At most five times that a clock or a calendar shows as round; epoch ms and label."""
    low, high = (int(calendar.local(int(ms))) + _MONDAY_SHIFT_MS for ms in (low_ms, high_ms))
    for width in _TICK_WIDTHS_MS:
        first, last = -(-low // width), high // width
        if last - first < _MOST_TICKS:
            break
    locals_ms = [i * width - _MONDAY_SHIFT_MS for i in range(first, last + 1)]
    return [(float(calendar.from_local(ms)), _clock(ms)) for ms in locals_ms]


def _clock(local_ms: int) -> str:
    """The time of day; at midnight the date."""
    moment = np.datetime64(local_ms, "ms").item()
    return f"{moment:%H:%M}" if local_ms % DAY_MS else f"{moment.day} {moment:%b}"


def _apart(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _runs(points: list[str]) -> Iterator[list[str]]:
    return (list(run) for there, run in groupby(points, key=bool) if there)


def _line(start: tuple[float, float], end: tuple[float, float], kind: str) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
