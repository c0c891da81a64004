"""The report's page: what was gathered, as one HTML file that asks for nothing.

Style, plots and tables are all inside, and there is no script: the page's own policy forbids any,
and any request. Keys come from strangers; all text is escaped, and what a terminal or a browser
would not show as it is, such as the marks that turn the direction of writing, is spelled out.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from importlib import resources
from string import Template

import numpy as np
from numpy.typing import NDArray

from stream_forecaster import __version__, labels
from stream_forecaster.accuracy import spelled
from stream_forecaster.config import redacted
from stream_forecaster.records import as_text
from stream_forecaster.report_contents import Contents, Portrait, Series
from stream_forecaster.report_plots import Plot, time_ticks
from stream_forecaster.scoring import NAIVE, PUBLISHED, Score, central_intervals

Float64 = NDArray[np.float64]

_LINES = 6
_LOWEST_SKILL = -0.4
"""Lines far below would press all others together. The tables have them."""
_LONGEST_KEY = 60


def render(contents: Contents) -> str:
    """The page."""
    resolutions = list(zip(contents.settings.resolutions, contents.scores, strict=True))
    scored = [(r.step_ms, score) for r, score in resolutions if score.count.any()]
    return Template(_resource("report.html")).substitute(
        style=_resource("report.css"),
        version=escape(__version__),
        pipeline=shown(contents.settings.kafka.group_id),
        issued=_issued(contents),
        counts=_counts(contents),
        intervals=_intervals(contents.settings.output.quantiles),
        cards=_each(_card(*s) for s in scored) or _NOTHING_DUE,
        portraits=_each(_portrait(contents, p) for p in contents.portraits) or _NOTHING_DUE,
        tables=_each(_tables(*s) for s in scored) or _NOTHING_DUE,
        skill=_each(_skill(*s) for s in scored) or _NOTHING_DUE,
        reliability=_each(_reliability(*s) for s in scored) or _NOTHING_DUE,
        weights=_each(_weights(contents)) or _NOTHING_DUE,
        settings=escape(json.dumps(redacted(contents.settings), indent=2, ensure_ascii=False)),
    )


def shown(text: str) -> str:
    r"""Text of strangers as HTML: escaped, the unprintable spelled out, cut when very long.

    >>> shown("<b>\u202e")
    '&lt;b&gt;\\u202e'
    """
    cut = text if len(text) <= _LONGEST_KEY else f"{text[: _LONGEST_KEY - 1]}…"
    spelled_out = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
    return escape("".join(spelled_out))


# -- the head --------------------------------------------------------------------------------------


def _issued(contents: Contents) -> str:
    if not contents.portraits:
        return "None was published."
    local_ms = contents.calendar.local(np.array(contents.issued_ms))
    times = np.datetime_as_string(local_ms.astype("datetime64[ms]"), unit="m").tolist()
    first, last = (time.replace("T", " ") for time in times)
    zone = escape(contents.calendar.timezone)
    return f"They were issued from {first} to {last} in event time, {zone}."


def _counts(contents: Contents) -> str:
    counts = contents.counts
    rejects = sum(counts["rejects"].values())
    numbers = {
        "events": counts["events"],
        "rejected": rejects,
        "keys": counts["keys"],
        "forecasts": counts["forecasts"],
        "hops": counts["hops"],
    }
    return _each(f"<div><dt>{name}</dt><dd>{n:,}</dd></div>" for name, n in numbers.items())


def _card(step_ms: int, score: Score) -> str:
    """One resolution in three numbers."""
    rows = [("skill against the last value", f"{score.skill():+.2f}".replace("+nan", "none"))]
    rows += [
        (f"within the {level:.0%} interval", f"{share:.1%}")
        for level, share in sorted(score.coverage().items(), reverse=True)
    ]
    rows.append(("forecasts scored", f"{score.count.sum():,.0f}"))
    listed = _each(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows)
    return f"<section><h3>Buckets of {spelled(step_ms)}</h3><dl>{listed}</dl></section>"


# -- forecasts over the truth ----------------------------------------------------------------------


def _portrait(contents: Contents, portrait: Portrait) -> str:
    plots = _each(_fans(contents, series) for series in portrait.series if series.fans)
    key = shown(as_text(portrait.key))
    return (
        f'<h3><bdi>{key}</bdi> <small>{portrait.why}</small></h3><div class="plots">{plots}</div>'
    )


def _fans(contents: Contents, series: Series) -> str:
    step_ms, levels = series.step_ms, contents.settings.output.quantiles
    index = np.arange(series.fans[0].first - series.horizon, series.fans[-1].end)
    at_ms = contents.calendar.start(index, step_ms)
    truth = np.array([series.truth.get(i, math.nan) for i in index.tolist()])
    seen = np.concatenate([truth, *(fan.quantiles.ravel() for fan in series.fans)])
    span = (float(at_ms[0]), float(at_ms[-1]))
    plot = Plot(f"Forecasts and truth by {spelled(step_ms)}", span, _height(seen))
    plot.x_ticks(time_ticks(contents.calendar, *span))
    for fan in series.fans:
        # A fan opens from the newest value that it knew, where there is one.
        origin = series.truth.get(fan.first - 1, math.nan)
        known = int(not math.isnan(origin))
        begin = fan.first - int(index[0])
        fan_ms = at_ms[begin - known : begin + len(fan.mean)]
        opened = np.concatenate([np.full((known, len(levels)), origin), fan.quantiles])
        plot.rule(float(fan_ms[0]))
        for kind, _, (lower, upper) in _bounds(levels):
            plot.band(fan_ms, opened[:, lower], opened[:, upper], kind)
        plot.line(fan_ms, np.concatenate([np.full(known, origin), fan.mean]), "mean")
    plot.line(at_ms, truth, "truth")
    return _figure(plot, f"Buckets of {spelled(step_ms)}")


def _height(values: Float64) -> tuple[float, float]:
    """Where the y axis begins and ends: at zero if that is not far from the values."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    margin = 0.05 * (high - low)
    return 0.0 if 0 <= low <= high / 2 else low - margin, high + margin


def _bounds(levels: tuple[float, ...]) -> list[tuple[str, float, tuple[int, int]]]:
    """The two widest central intervals: their class, nominal coverage and columns."""
    widest = sorted(central_intervals(levels).items(), reverse=True)[:2]
    return [
        (kind, level, columns)
        for kind, (level, columns) in zip(("outer", "inner"), widest, strict=False)
    ]


def _intervals(levels: tuple[float, ...]) -> str:
    return _each(
        f'<li class="{kind}">{level:.0%} interval</li>' for kind, level, _ in _bounds(levels)
    )


# -- accuracy --------------------------------------------------------------------------------------


def _tables(step_ms: int, score: Score) -> str:
    """One table per measure; the page shows one measure at a time."""
    rows = labels.rows(score, experts=True)
    measures = {
        "mae": score.mae,
        "mse": score.mse,
        "mase": score.mase,
        "wape": score.wape,
    }
    tables = {name: {n: _own(score, n, of(n)) for n in rows} for name, of in measures.items()}
    tables["wql"] = {PUBLISHED: score.wql()}
    shown_tables = _each(
        _table(name, step_ms, score, {rows[n]: row for n, row in table.items()}, rows[PUBLISHED])
        for name, table in tables.items()
    )
    return f"<section><h3>Buckets of {spelled(step_ms)}</h3>{shown_tables}</section>"


def _own(score: Score, forecaster: str, values: Float64) -> Float64:
    """Its `values` (G,), NaN where it never spoke: there they are the last value's."""
    return np.where(score.spoke(forecaster) > 0, values, np.nan)


def _table(
    measure: str, step_ms: int, score: Score, rows: Mapping[str, Float64], published: str
) -> str:
    """Rows (G,) by label; that of the published forecast stands out."""
    landed = np.flatnonzero(score.count)
    head = _each(f"<th>{spelled(step_ms * score.horizons[g])}</th>" for g in landed)
    values = np.array([row[landed] for row in rows.values()])
    best = np.fmin.reduce(values, axis=0)
    body = _each(
        f'<tr class="{"published" if name == published else ""}"><th>{escape(name)}</th>'
        f"{_each(map(_cell, row, best))}</tr>"
        for name, row in zip(rows, values, strict=True)
    )
    return (
        f'<div class="scroll {measure}"><table><thead><tr><th>ahead</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(value: float, best: float) -> str:
    if math.isnan(value):
        return "<td></td>"
    digits = f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:#.4g}"
    excess = value / best - 1 if best > 0 else float(value > best)
    # Half as much again as the best error is as pale as it gets.
    heat = max(0.0, 1 - 2 * excess)
    best_class = ' class="best"' if value == best else ""
    return f'<td{best_class} style="--heat:{heat:.2f}">{digits}</td>'


def _skill(step_ms: int, score: Score) -> str:
    """How much smaller the error is than the last value's, by horizon."""
    landed, said = np.flatnonzero(score.count), labels.rows(score, experts=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        skill = {n: _own(score, n, 1 - score.mae(n) / score.mae(NAIVE))[landed] for n in said}
    others = [name for name in said if name not in (PUBLISHED, NAIVE)]
    best = max(others, key=lambda name: float(np.nan_to_num(skill[name], nan=-9.0).mean()))
    lines = np.array([*skill.values()])
    lowest = max(float(np.nanmin(lines, initial=0.0)), _LOWEST_SKILL)
    highest = float(np.nanmax(lines, initial=0.1))
    plot = Plot("Skill by horizon", (0, len(landed) - 1), (1.1 * lowest, 1.1 * highest))
    plot.x_ticks((i, str(score.horizons[g])) for i, g in enumerate(landed))
    at = np.arange(len(landed))
    plot.line(at, np.zeros(len(landed)), "zero", f"{said[NAIVE]}: 0 by definition")
    for name in (*(n for n in others if n != best), best, PUBLISHED):
        kind = {PUBLISHED: "c0", best: "c1"}.get(name, "rest")
        plot.line(at, skill[name], kind, said[name])
    legend = _legend(
        {
            "c0": said[PUBLISHED],
            "c1": f"{said[best]} (best other)",
            "rest": "the others",
            "zero": said[NAIVE],
        }
    )
    return _figure(plot, f"Buckets of {spelled(step_ms)} ahead", legend)


def _reliability(step_ms: int, score: Score) -> str:
    """Nominal level of each quantile against the share of truths below it."""
    plot = Plot("Share of truths below each quantile", (0, 1), (0, 1))
    plot.x_ticks((tick, f"{tick:.6g}") for tick in (0, 0.25, 0.5, 0.75, 1))
    plot.line([0, 1], [0, 1], "zero")
    for level, below, at_most in zip(score.levels, *score.reliability(), strict=True):
        said = f"level {level:g}: {below:.1%} below, {at_most:.1%} below or equal"
        plot.bar(level, below, at_most, said)
    return _figure(plot, f"Buckets of {spelled(step_ms)}")


# -- weights ---------------------------------------------------------------------------------------


def _weights(contents: Contents) -> Iterator[str]:
    """Per resolution: the six heaviest experts in the course of the pass, and the rest together."""
    if not contents.looks:
        return
    time_ms = np.array([look.time_ms for look in contents.looks], np.float64)
    span = float(time_ms[0]), float(time_ms[-1])
    for i, names in enumerate(contents.experts):
        weight = np.array([look.weights[i] for look in contents.looks])  # (S, M)
        order = np.argsort(-np.abs(weight).mean(axis=0), kind="stable")
        lines = {labels.label(names[m]): weight[:, m] for m in order[:_LINES]}
        rest = order[_LINES:]
        if len(rest):
            lines[f"{len(rest)} others together"] = weight[:, rest].sum(axis=1)
        highest = max(float(line.max()) for line in lines.values())
        lowest = min(0.0, *(float(line.min()) for line in lines.values()))
        plot = Plot(
            "Expert weights in the course of the run", span, (1.05 * lowest, 1.05 * highest)
        )
        plot.x_ticks(time_ticks(contents.calendar, *span))
        kinds = [*(f"c{n}" for n in range(_LINES)), "rest"]
        for kind, (name, line) in zip(kinds, lines.items(), strict=False):
            plot.line(time_ms, line, kind, name)
        step = spelled(contents.settings.resolutions[i].step_ms)
        yield _figure(plot, f"Buckets of {step}", _legend(dict(zip(kinds, lines, strict=False))))


# -- pieces ----------------------------------------------------------------------------------------

_NOTHING_DUE = "<p>No forecast has come due: the events span too little time.</p>"


def _figure(plot: Plot, caption: str, legend: str = "") -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{plot}{legend}</figure>"


def _legend(names: Mapping[str, str]) -> str:
    items = _each(f'<li class="{kind}">{escape(name)}</li>' for kind, name in names.items())
    return f'<ul class="legend">{items}</ul>'


def _each(parts: Iterable[str]) -> str:
    return "".join(parts)


def _resource(name: str) -> str:
    return (resources.files("stream_forecaster") / "templates" / name).read_text("utf-8")
