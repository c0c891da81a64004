"""The lock holds what the project needs, and a process loads what it needs: nothing else."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from brokers import free_port
from pipelines import pipeline

from stream_forecaster.edge.broker import Broker

_ROOT = Path(__file__).parent.parent
_HEAVY = {"torch", "river.drift", "river.time_series", "scipy", "pandas"}
_COMMAND = """
import sys
from stream_forecaster.cli import main
try:
    main(sys.argv[1:])
finally:
    print("loaded:", *sys.modules)
"""
_SERVICE = """
import sys
from stream_forecaster.calendar import Calendar
from stream_forecaster.config import parse
from stream_forecaster.service import Service
from stream_forecaster.shard import Shard
Shard(parse({"model": {"network": sys.argv[1] == "network"}}), Calendar("UTC"), 0, 0)
print("loaded:", *sys.modules)
"""
_FIRST_POLL = """
import sys
from stream_forecaster import cli


class Transport(cli.KafkaTransport):
    def poll(self, timeout_s):
        print("loaded:", *sys.modules)
        raise SystemExit


cli.KafkaTransport, cli.load_parts = Transport, lambda settings: None
cli.main(["run", *sys.argv[1:]])
"""


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9_.-]", requirement)[0].lower().replace("_", "-")


def test_every_dependency_is_locked() -> None:
    """Those of the package, of its tests, and the build backend, each with its exact version."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())
    wanted = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["dev"],
        *project["build-system"]["requires"],
    ]
    lock = (_ROOT / "requirements.lock").read_text().splitlines()
    pinned = {_name(line) for line in lock if "==" in line}

    assert {_name(requirement) for requirement in wanted} <= pinned
    assert "torch==2.13.0" in lock


def _heavy(program: str, *arguments: str) -> set[str]:
    """Which of the modules that take a second or so a program loads."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    *_, loaded = (line for line in done.stdout.splitlines() if line.startswith("loaded:"))
    return _HEAVY & set(loaded.split())


@pytest.mark.parametrize("arguments", ["--help", "--version", "config show", "tail --no-follow"])
def test_a_command_that_forecasts_nothing_loads_no_models(arguments: str) -> None:
    """It answers at once. `tail` finds no broker, and has loaded all that it would need."""
    kafka = f"kafka.bootstrap_servers=127.0.0.1:{free_port()}"
    extra = ["--set", kafka] if arguments.startswith("tail") else []
    assert not _heavy(_COMMAND, *arguments.split(), *extra)


def test_a_service_without_the_network_loads_no_torch() -> None:
    """A restart takes half the time."""
    assert "torch" not in _heavy(_SERVICE, "experts alone")
    assert "torch" in _heavy(_SERVICE, "network")


def test_the_group_is_joined_before_models_are_loaded(tmp_path: Path) -> None:
    """By the first poll nothing is but scipy's linear algebra, which numba looks for.

    What shards are made of, which takes longer than all else, is loaded beside that poll.
    """
    with Broker() as broker:
        settings = pipeline(broker)
        given = [
            f"kafka.bootstrap_servers={broker.bootstrap}",
            f"input.topic={settings.input.topic}",
            f"output.topic={settings.output.topic}",
            f"output.dead_letter_topic={settings.output.dead_letter_topic}",
            f"state.checkpoint_url=file://{tmp_path}",
            "http.port=0",
        ]
        loaded = _heavy(_FIRST_POLL, *(word for each in given for word in ("--set", each)))

    assert loaded == {"scipy"}
