"""Helm's own library on our chart, in a process of its own: the Go runtime stays out of ours."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).parents[1] / "deploy/helm/stream-forecaster"

_PROGRAM = """
import json, sys
import helm_python as helm
path, values = json.load(sys.stdin)
try:
    answer = {"lint": helm.lint(path, values, strict=True)["messages"]}
    with helm.Chart.load(path) as chart:
        chart.validate_schema(values)
        answer["rendered"] = chart.render(values, name="demo", namespace="prod")
except helm.HelmError as error:
    answer = {"error": str(error)}
json.dump(answer, sys.stdout)
"""


class Refused(Exception):
    """Helm does not take these values, and says why."""


def _helm(values: dict[str, Any]) -> dict[str, Any]:
    if importlib.util.find_spec("helm_python") is None:
        pytest.skip("needs Helm's library: pip install -e '.[deploy]'")
    command = [sys.executable, "-c", _PROGRAM]
    asked = json.dumps([str(CHART), values])
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    if "error" in answer:
        raise Refused(answer["error"])
    return answer


def lint(values: dict[str, Any]) -> list[str]:
    """What `helm lint --strict` has against the chart."""
    return [told["error"] for told in _helm(values)["lint"] if told["severity"] > 1]


def render(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every object that is made, by its kind; a second one of a kind by kind and name.

    Raises:
        Refused: the schema or a template does not take the values.
    """
    objects: dict[str, dict[str, Any]] = {}
    for path, text in _helm(values)["rendered"].items():
        made = None if path.endswith("NOTES.txt") else yaml.safe_load(text)
        if made:
            kind, name = made["kind"], made["metadata"]["name"]
            objects[kind if kind not in objects else f"{kind} {name}"] = made
    return objects
