"""A real Prometheus on a port of its own, with our rules, that scrapes a target of the test's."""

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Self

import pytest
import yaml
from brokers import free_port

_STARTS_WITHIN_S = 20.0
_ROOT = Path(__file__).parents[1]
CONFIG = _ROOT / "deploy/prometheus/prometheus.yml"
RULES = _ROOT / "deploy/prometheus/rules.yml"


def binary(name: str) -> str:
    """Where a program of Debian's package `prometheus` is; without it the test is skipped."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}: apt-get install prometheus")
    return found


class Prometheus:
    """Runs while open; the shipped configuration, but for the target and a quicker rhythm.

    Args:
        folder: where it keeps its data.
        target: host:port of what it scrapes.
    """

    def __init__(self, folder: Path, target: str) -> None:
        config = yaml.safe_load(CONFIG.read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(RULES)]
        (job,) = config["scrape_configs"]
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [target]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._folder, self._port = folder, free_port()
        self._command = [
            binary("prometheus"),
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{self._port}",
        ]

    def __enter__(self) -> Self:
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        give_up_s = time.monotonic() + _STARTS_WITHIN_S
        while not self._is_ready():
            assert self._process.poll() is None, (self._folder / "prometheus.log").read_text()
            assert time.monotonic() < give_up_s, "it does not become ready"
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def query(self, expression: str) -> list[float]:
        """The values of all series of an expression, now.

        Raises:
            AssertionError: Prometheus cannot evaluate it.
        """
        data = self.get("query", query=expression)
        if data["resultType"] == "scalar":
            return [float(data["result"][1])]
        return [float(series["value"][1]) for series in data["result"]]

    def get(self, path: str, **parameters: str) -> Any:
        """What the HTTP API says under /api/v1/."""
        asked = f"{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/api/v1/{asked}") as said:
                return json.load(said)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{asked}: {json.load(error)['error']}") from None

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/-/ready"):
                return True
        except OSError:
            return False
