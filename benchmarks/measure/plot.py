"""The rows of a suite as one SVG: bars where numbers are compared, curves where they grow.

A panel is one benchmark, case and unit, its bars on a logarithmic axis of its own that begins a
decade below the smallest, so that every bar is seen and equal lengths are equal factors.
"""

import math
from collections.abc import Iterable, Mapping
from html import escape
from itertools import groupby

from benchmarks.measure.figures import Report, Row, spelled
from stream_forecaster.report_plots import Plot

_WIDTH, _LABEL, _NUMBER = 900, 330, 80
_BAR, _GAP, _TITLE = 14, 6, 34
_CURVE_HEIGHT, _CURVE_WIDTH = 230, 400
_MARGIN = 0.05
_STYLE = """
svg { background: #fff; font: 12px system-ui, sans-serif }
text { fill: #1a1d23 } .title { font-weight: 600 } .unit { fill: #646b78; font-weight: 400 }
.ours { fill: #2563c9 } .other { fill: #a9b0bc }
line.grid { stroke: #dfe2e8 } polyline { fill: none; stroke: #2563c9; stroke-width: 2 }
polyline.c1 { stroke: #d9730d }
"""


def draw(reports: Iterable[Report], title: str) -> str:
    """The whole picture; panels of a single row, which compare nothing, are left out."""
    parts, top = [_head(title, "bars are logarithmic")], 40
    for report in reports:
        curves = report.runs if report.name == "growth" else None
        for drawn, height in _curves(curves) if curves else _panels(report):
            parts.append(f'<g transform="translate(0 {top})">{drawn}</g>')
            top += height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" width="{_WIDTH}" '
        f'height="{top}"><style>{_STYLE}</style>{"".join(parts)}</svg>\n'
    )


def _panels(report: Report) -> list[tuple[str, int]]:
    """Each panel's marks and its height."""
    grouped = groupby(report.rows, key=lambda row: (row.case, row.unit))
    found = [(case, unit, [*rows]) for (case, unit), rows in grouped]
    return [
        (_bars(f"{report.name}: {case}" if case else report.name, unit, rows), _height(len(rows)))
        for case, unit, rows in found
        if len(rows) > 1
    ]


def _bars(title: str, unit: str, rows: list[Row]) -> str:
    marks = [_head(title, unit)]
    numbers = [row.value for row in rows if row.value > 0]
    low = math.log10(min(numbers)) - 1 if numbers else 0.0
    span = (math.log10(max(numbers)) - low) if numbers else 1.0
    for i, row in enumerate(rows):
        top = 24 + i * (_BAR + _GAP)
        share = (math.log10(row.value) - low) / span if row.value > 0 else 0.0
        width = share * (_WIDTH - _LABEL - _NUMBER - 20)
        kind = "ours" if row.ours else "other"
        marks.append(_text(_LABEL, top + _BAR - 3, row.what, "", "end"))
        marks.append(
            f'<rect class="{kind}" x="{_LABEL + 10}" y="{top}" width="{width:.1f}" '
            f'height="{_BAR}"/>'
        )
        marks.append(_text(_LABEL + 16 + width, top + _BAR - 3, spelled(row.value)))
    return "".join(marks)


def _height(bars: int) -> int:
    return bars * (_BAR + _GAP) + _TITLE + _GAP


def _curves(curves: Mapping[str, Mapping[str, float]]) -> list[tuple[str, int]]:
    """Two plots beside each other: log cost against log size, one curve for each forecaster."""
    by_dimension: dict[str, dict[str, Mapping[str, float]]] = {}
    for name, costs in curves.items():
        dimension, _, forecaster = name.partition(", ")
        by_dimension.setdefault(dimension, {})[forecaster] = costs
    plots = [_curve(dimension, each) for dimension, each in by_dimension.items()]
    pairs = [plots[i : i + 2] for i in range(0, len(plots), 2)]
    return [
        (
            "".join(
                f'<g transform="translate({x} 0)">{plot}</g>'
                for x, plot in zip((0, 450), pair, strict=False)
            ),
            _CURVE_HEIGHT,
        )
        for pair in pairs
    ]


def _curve(dimension: str, by_forecaster: Mapping[str, Mapping[str, float]]) -> str:
    sizes = [int(size) for size in next(iter(by_forecaster.values()))]
    logs = [math.log10(size) for size in sizes]
    costs = {name: [*map(math.log10, found.values())] for name, found in by_forecaster.items()}
    every = [cost for found in costs.values() for cost in found]
    plot = Plot(
        f"cost against {dimension}",
        (logs[0], logs[-1]),
        (min(every) - _MARGIN, max(every) + _MARGIN),
    )
    plot.x_ticks((log, f"{size:,}") for log, size in zip(logs, sizes, strict=True))
    for i, (name, found) in enumerate(costs.items()):
        plot.line(logs, found, f"c{i}", name)
    names = ", ".join(
        f"{name} {colour}" for name, colour in zip(costs, ("blue", "orange"), strict=False)
    )
    head = _head(f"hop against {dimension}", f"log10 of us of CPU; {names}")
    placed = str(plot).replace("<svg ", f'<svg y="22" width="{_CURVE_WIDTH}" height="200" ', 1)
    return head + placed


def _head(title: str, unit: str) -> str:
    return (
        f'<text x="10" y="16"><tspan class="title">{escape(title)}</tspan>'
        f'<tspan class="unit" dx="10">{escape(unit)}</tspan></text>'
    )


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )
