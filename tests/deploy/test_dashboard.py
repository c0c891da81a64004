"""All that somebody on call may look at, asked of a Prometheus that scrapes a real service."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import yaml
from brokers import unique
from natively import WAITS_S, Native, wait
from scraping import RULES, Prometheus, binary

from stream_forecaster import config
from stream_forecaster.edge.broker import Broker
from stream_forecaster.edge.simulator import Simulation, simulate
from stream_forecaster.edge.topics import create_topics

pytestmark = pytest.mark.timeout(300)  # what is asked has to come to pass first

GRAFANA = Path(__file__).parents[2] / "deploy/grafana"
DASHBOARD_FILE = GRAFANA / "dashboards/stream-forecaster.json"
DASHBOARD = json.loads(DASHBOARD_FILE.read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES_LIST = [rule for g in yaml.safe_load(RULES.read_text())["groups"] for rule in g["rules"]]

EMPTY = {
    "Alerts": "an annotation of alerts that fire, and none does",
    "StreamForecasterAbsent": "absent() of a target that is there",
}
"""What has no data on a service that is well, and why."""


# -- what there is to look at ----------------------------------------------------------------------


def _expressions() -> Iterator[tuple[str, str]]:
    """What it belongs to, and an expression as Prometheus is asked it."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", _chosen(target["expr"])
    for mark in DASHBOARD["annotations"]["list"]:
        yield mark["name"], _chosen(mark["expr"])
    for rule in RULES_LIST:
        yield rule.get("alert") or rule["record"], rule["expr"]
        if "record" in rule:
            yield f"{rule['record']}, recorded", rule["record"]


def _chosen(expression: str) -> str:
    """With everything chosen, and the window that Grafana would take."""
    known = {"job": "stream-forecaster", "__rate_interval": "1m", "__range": "1m"}
    return re.sub(r"\$(\w+)", lambda found: known.get(found[1], ".*"), expression)


def _without_filters(expression: str) -> str:
    """Comparisons answer 0 or 1 instead of dropping what does not fulfil them."""
    return re.sub(r" (==|!=|>=|<=|>|<) ", r" \1 bool ", expression)


def test_comparisons_are_found() -> None:
    """And nothing else is taken for one."""
    expression = 'sum(rate(a{b!="c"}[5m])) == 0 and on (d) e > 5'

    assert _without_filters(expression) == (
        'sum(rate(a{b!="c"}[5m])) == bool 0 and on (d) e > bool 5'
    )


# -- a service, its users and Prometheus -----------------------------------------------------------


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It has scraped a service that forecasts, on the embedded broker, for long enough."""
    binary("prometheus")
    folder, name, stopping = tmp_path_factory.mktemp("scraped"), unique("watched"), Event()
    with Broker() as broker:
        mapping = {
            "kafka": {"bootstrap_servers": broker.bootstrap, "group_id": name},
            "input": {"topic": f"{name}.in", "allowed_lateness": "20s"},
            "output": {"topic": f"{name}.out", "dead_letter_topic": f"{name}.dead"},
            "resolutions": [
                {"step": "10s", "context": 12, "horizon": 4},
                {"step": "1m", "context": 6, "horizon": 2},
            ],
            "model": {"network": False},
            "state": {"checkpoint_url": folder.as_uri(), "checkpoint_interval": "1s"},
            "http": {"port": 0},
        }
        settings = config.parse(mapping)
        create_topics(settings, 2)
        users = Simulation(20, 400.0, seed=1, seconds=WAITS_S, speed=40.0)
        sending = Thread(target=simulate, args=(settings, users, stopping))
        file = folder / "settings.toml"
        file.write_text(config.to_toml(mapping))
        service = Native(["run", "--config", str(file)], folder / "service.log")
        with service, Prometheus(folder, service.address) as scraping:
            sending.start()
            try:
                wait(lambda: _has_seen_enough(scraping))
                yield scraping
            finally:
                stopping.set()
                sending.join()


def _has_seen_enough(prometheus: Prometheus) -> bool:
    """A dozen scrapes, and forecasts landed between them at every resolution."""
    scrapes = prometheus.query("count_over_time(streamforecaster_events_total[10m])")
    skills = prometheus.query("job_resolution:streamforecaster_skill:ratio1h")
    return bool(scrapes) and scrapes[0] >= 12 and sum(map(math.isfinite, skills)) == 2


# -- the tests -------------------------------------------------------------------------------------


def test_every_expression_has_data(prometheus: Prometheus) -> None:
    """None is an error, none is empty, none is not a number: of panels, marks, rules and alerts."""
    found = {
        name: prometheus.query(_without_filters(expression)) for name, expression in _expressions()
    }
    empty = {name for name, values in found.items() if not any(map(math.isfinite, values))}

    assert len(found) > 80
    assert empty == set(EMPTY)


def test_prometheus_evaluates_every_rule(prometheus: Prometheus) -> None:
    """By itself, and nothing is wrong with the service."""
    groups = prometheus.get("rules")["groups"]
    rules = {rule["name"]: rule for group in groups for rule in group["rules"]}

    assert set(rules) == {rule.get("alert") or rule["record"] for rule in RULES_LIST}
    assert {rule["health"] for rule in rules.values()} == {"ok"}
    assert [name for name, rule in rules.items() if rule.get("state") == "firing"] == []


def test_every_variable_has_a_choice(prometheus: Prometheus) -> None:
    """What may be chosen on top of the dashboard is found, and the two partitions are."""
    choices = {}
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert asked is not None
            series, label = _chosen(asked[1]), asked[2]
            choices[variable["name"]] = prometheus.get(
                f"label/{label}/values", **{"match[]": series}
            )

    assert {name for name, found in choices.items() if not found} == {"service"}  # Kubernetes'
    assert choices["partition"] == ["0", "1"]
    assert choices["resolution"] == ["10s", "60s"]


def test_the_dashboard_is_what_the_script_writes() -> None:
    """Run deploy/grafana/build.py after a change of its panels."""
    script = [sys.executable, str(GRAFANA / "build.py")]
    written = subprocess.run(script, capture_output=True, text=True, check=True).stdout

    assert written == DASHBOARD_FILE.read_text()


def test_the_five_rows_are_there() -> None:
    """Whether it works, where from, what it holds, how it computes, how good it is."""
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]

    assert len(rows) == 5
    assert rows[0] == "Are forecasts there, and in time?"
    assert rows[-1] == "How good are the forecasts?"


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_explains_itself(panel: dict[str, Any]) -> None:
    """It says how to read it, in which unit, from the source that is chosen; and all are seen."""
    assert panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"]["uid"] == "${datasource}"
    assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])


def test_no_panel_lies_on_another() -> None:
    """Every cell of the grid belongs to one at most, and none is outside."""
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        x, y, w, h = (panel["gridPos"][side] for side in "xywh")
        cells = {(column, row) for column in range(x, x + w) for row in range(y, y + h)}
        assert not cells & taken, panel["title"]
        assert x + w <= 24
        taken |= cells


def test_nobody_edits_a_copy() -> None:
    """The file in the tree is the truth."""
    provisioned = GRAFANA / "provisioning/dashboards/stream-forecaster.yml"
    (provider,) = yaml.safe_load(provisioned.read_text())["providers"]

    assert provider["allowUiUpdates"] is False
