"""What docker-compose.yml and the Dockerfile say is true of the code beside them."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from stream_forecaster import config
from stream_forecaster.cli import app

ROOT = Path(__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if "build" in service]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
# VOLUME, EXPOSE and COPY take what follows them on one line; ENV goes on over several.
IMAGE_ENVIRONMENT = dict(re.findall(r"(STREAM_FORECASTER__\w+)=(\S+)", DOCKERFILE))


@pytest.mark.parametrize("name", OURS)
def test_settings_are_accepted(name: str) -> None:
    """Every variable names a setting and holds a value it takes."""
    environment = {k: str(v) for k, v in SERVICES[name]["environment"].items()}
    assert environment, "the anchor that holds the broker's address is gone"

    settings = config.load(None, IMAGE_ENVIRONMENT | environment, {}, read_file=str)

    host, _, port = settings.kafka.bootstrap_servers.partition(":")
    listeners = SERVICES[host]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert f"//{host}:{port}" in listeners.split(",")[0]


@pytest.mark.parametrize("name", OURS)
def test_commands_exist(name: str) -> None:
    """Every command line is one the program takes."""
    shown = CliRunner().invoke(app, [*SERVICES[name]["command"], "--help"])

    assert shown.exit_code == 0, shown.output


@pytest.mark.parametrize("name", SERVICES)
def test_mounts_exist(name: str) -> None:
    """A file that is mounted lies in the tree; a volume is declared."""
    for mount in SERVICES[name].get("volumes", []):
        source = mount.split(":")[0]
        assert (ROOT / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"]


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned_and_ports_are_loopback(name: str) -> None:
    """Nothing changes by itself, and nothing is offered to the network."""
    service = SERVICES[name]

    assert re.search(r":v?\d+\.\d+\.\d+", service["image"])
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_state_lies_where_the_image_lets_it() -> None:
    """The volume, the default of the settings and the mount are one folder."""
    folder = config.Settings().state.checkpoint_url.removeprefix("file://")

    assert f"VOLUME {folder}\n" in DOCKERFILE
    assert f"forecaster-state:{folder}" in SERVICES["forecaster"]["volumes"]


def test_what_the_image_copies_exists() -> None:
    """Every source is in the tree and let through by .dockerignore."""
    let_through = (ROOT / ".dockerignore").read_text().split()
    sources = [
        source
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
        for source in line.split()
    ]

    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in let_through


def test_prometheus_scrapes_every_forecaster() -> None:
    """It asks for all addresses of the service, on the port that the image listens on."""
    path = ROOT / "deploy/prometheus/prometheus.yml"
    (job,) = yaml.safe_load(path.read_text())["scrape_configs"]
    (found,) = job["dns_sd_configs"]

    assert found["names"] == ["forecaster"]
    assert found["names"][0] in OURS
    assert found["type"] == "A"
    assert str(found["port"]) == IMAGE_ENVIRONMENT["STREAM_FORECASTER__HTTP__PORT"]
