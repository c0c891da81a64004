import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from scraping import CONFIG, RULES, binary
from typer.testing import CliRunner

from stream_forecaster import config
from stream_forecaster.cli import app

ROOT = Path(__file__).parents[2]
GROUPS = yaml.safe_load(RULES.read_text())["groups"]
ALERTS: list[dict[str, Any]] = [r for group in GROUPS for r in group["rules"] if "alert" in r]
NAMES = [alert["alert"] for alert in ALERTS]
RUNBOOKS = (ROOT / "docs/runbooks.md").read_text()
UNIT_TESTS = Path(__file__).parent / "alerts_test.yml"


def _promtool(*arguments: object) -> None:
    command = [binary("promtool"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("kind", "path"), [("config", CONFIG), ("rules", RULES)])
def test_promtool_takes_the_files(kind: str, path: Path) -> None:
    """Prometheus would start with them."""
    _promtool("check", kind, path)


def test_every_alert_fires_when_it_should_and_not_otherwise() -> None:
    """On series drawn by hand, its labels and its words included."""
    _promtool("test", "rules", UNIT_TESTS)


def test_no_alert_is_left_out_of_the_unit_tests() -> None:
    """Each is tested on a series on which it fires and on one on which it does not."""
    cases = [
        (case["alertname"], bool(case.get("exp_alerts")))
        for test in yaml.safe_load(UNIT_TESTS.read_text())["tests"]
        for case in test["alert_rule_test"]
    ]

    assert sorted(cases) == sorted((name, fires) for name in NAMES for fires in (True, False))


@pytest.mark.parametrize("alert", ALERTS, ids=NAMES)
def test_an_alert_says_what_to_do(alert: dict[str, Any]) -> None:
    """How bad it is, what is the matter, and where to read on."""
    said = alert["annotations"]

    assert alert["alert"].startswith("StreamForecaster")
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert said["summary"]
    assert said["description"]
    assert said["runbook_url"] == f"docs/runbooks.md#{alert['alert'].lower()}"


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    """In the same order; how bad it is reads the same there."""
    sections = re.findall(
        r"^## (\w+)\n\n\*(\w+)\.\* \*\*Means:\*\*.*?\n\n\*\*Look:\*\*.*?\n\n\*\*Do:\*\*",
        RUNBOOKS,
        re.MULTILINE | re.DOTALL,
    )

    assert sections == [(a["alert"], a["labels"]["severity"].capitalize()) for a in ALERTS]


def test_runbooks_name_what_exists() -> None:
    """Sections, panels of the dashboard, settings and commands."""
    dashboard = json.loads((ROOT / "deploy/grafana/dashboards/stream-forecaster.json").read_text())
    titles = tuple(panel["title"].split(" at ")[0] for panel in dashboard["panels"])
    links = re.findall(r"\]\(#(\w+)\)", RUNBOOKS)
    panels = re.findall(r"[Pp]anel \*([^*]+)\*", RUNBOOKS)
    named = re.findall(r"`(kafka|input|output|model|state|http)\.(\w+)", RUNBOOKS)
    settings = config.redacted(config.Settings())
    commands = re.findall(r"(?:`|^)stream-forecaster((?: [a-z]+)+)", RUNBOOKS, re.MULTILINE)

    assert set(links) <= {name.lower() for name in NAMES}
    assert [panel for panel in panels if not panel.startswith(titles)] == []
    assert [f"{section}.{key}" for section, key in named if key not in settings[section]] == []
    assert [c for c in commands if CliRunner().invoke(app, [*c.split(), "--help"]).exit_code] == []
    assert min(map(len, (links, panels, named, commands))) > 5
