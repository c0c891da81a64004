"""Writes the dashboard that `panels` describes, as Grafana reads it.

    python deploy/grafana/build.py > deploy/grafana/dashboards/stream-forecaster.json

A test fails when the file is not what this prints.
"""

import json
import sys
from collections.abc import Iterable
from typing import Any

from panels import MARKS, ROWS, VARIABLES, Panel, Query

Json = dict[str, Any]

WIDTH = 24
"""Columns of Grafana's grid."""

HEIGHTS = {"stat": 4, "table": 5, "timeseries": 8}

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard() -> Json:
    """The whole of it, as Grafana reads it."""
    return {
        "uid": "stream-forecaster",
        "title": "stream-forecaster",
        "description": "Calibrated forecasts for every key of a Kafka topic: whether they come, "
        "and whether they are good.",
        "tags": ["stream-forecaster", "kafka", "forecasting"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": [_mark(*mark) for mark in MARKS]},
        "templating": {"list": [_datasource(), *(_variable(*made) for made in VARIABLES)]},
        "panels": list(_numbered(_laid_out())),
    }


def _laid_out() -> Iterable[Json]:
    """Rows one below the other; in each, panels from left to right as they fit."""
    y = 0
    for title, panels in ROWS:
        yield {"type": "row", "title": title, "collapsed": False, "gridPos": _place(0, y, WIDTH, 1)}
        y, x, height = y + 1, 0, 0
        for panel in panels:
            if x + panel.width > WIDTH:
                x, y = 0, y + height
            height = HEIGHTS[panel.kind]
            yield _drawn(panel) | {"gridPos": _place(x, y, panel.width, height)}
            x = WIDTH if panel.repeat else x + panel.width
        y += height


def _place(x: int, y: int, width: int, height: int) -> Json:
    return {"x": x, "y": y, "w": width, "h": height}


def _numbered(panels: Iterable[Json]) -> Iterable[Json]:
    for number, panel in enumerate(panels, 1):
        yield {"id": number, **panel}


def _drawn(panel: Panel) -> Json:
    steps = [{"value": value, "color": colour} for value, colour in panel.steps]
    defaults: Json = {
        "unit": panel.unit,
        "thresholds": {"mode": "absolute", "steps": steps},
        "color": {"mode": "thresholds" if panel.kind == "stat" else "palette-classic"},
        "noValue": "-",
    }
    defaults |= {} if panel.least is None else {"min": panel.least}
    defaults |= {} if panel.most is None else {"max": panel.most}
    repeat = {"repeat": panel.repeat, "repeatDirection": "h", "maxPerRow": 3}
    drawn: Json = {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "datasource": DATASOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [_target(i, q, panel.kind) for i, q in enumerate(panel.queries)],
        **(repeat if panel.repeat else {}),
    }
    if panel.kind == "stat":
        return drawn | {
            "options": {
                "graphMode": "area",
                "colorMode": "value",
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            }
        }
    if panel.kind == "table":
        return drawn | {"options": {"showHeader": True}, "transformations": [_told_columns()]}
    defaults["custom"] = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 8,
        "gradientMode": "opacity",
        "showPoints": "never",
        "spanNulls": 60_000,
        **dict(panel.options),
    }
    return drawn | {
        "options": {
            "tooltip": {"mode": "multi", "sort": "desc"},
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        }
    }


def _told_columns() -> Json:
    """A table's columns, without those that say nothing."""
    names = {"instance": 0, "version": 1, "pipeline": 2, "config_id": 3}
    hidden = ("Time", "Value", "__name__", "job", "namespace", "pod", "service", "endpoint")
    return {
        "id": "organize",
        "options": {"excludeByName": dict.fromkeys(hidden, True), "indexByName": names},
    }


def _target(number: int, query: Query, kind: str) -> Json:
    target: Json = {
        "refId": chr(ord("A") + number),
        "datasource": DATASOURCE,
        "expr": query.expression,
        "legendFormat": query.legend or "__auto",
    }
    return target | ({"format": "table", "instant": True} if kind == "table" else {})


def _mark(name: str, colour: str, expression: str, text: str) -> Json:
    return {
        "name": name,
        "iconColor": colour,
        "enable": True,
        "datasource": DATASOURCE,
        "expr": expression,
        "titleFormat": text,
        "step": "10s",
    }


def _datasource() -> Json:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
    }


def _variable(name: str, label: str, query: str, several: bool) -> Json:  # noqa: FBT001  (a row of a table)
    every = {
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 3,
        "multi": several,
        **(every if several else {}),
    }


if __name__ == "__main__":
    json.dump(dashboard(), sys.stdout, indent=1)
    sys.stdout.write("\n")
