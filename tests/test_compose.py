"""What docker-compose.yml and the Dockerfile say is true of the code beside them."""

import re
import shutil
import subprocess
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


def _compose() -> list[str]:
    """The command that Docker Compose is on this machine, version 2 or newer."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            version = subprocess.run([*command, "version", "--short"], capture_output=True)  # noqa: PLW1510  (it may fail)
            if re.match(rb"v?[2-9]", version.stdout):
                return command
    pytest.skip("needs Docker Compose, version 2")


def test_docker_compose_takes_it() -> None:
    """Nothing in it is unknown, or of another type."""
    told = [*_compose(), "--file", str(ROOT / "docker-compose.yml"), "config", "--quiet"]

    said = subprocess.run(told, capture_output=True, text=True, check=False)

    assert (said.returncode, said.stdout + said.stderr) == (0, "")


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
    """What is mounted lies in the tree, for reading only; a volume is declared."""
    for mount in SERVICES[name].get("volumes", []):
        source, _, mode = [*mount.split(":"), ""][:3]
        if source.startswith("."):
            assert (ROOT / source).exists()
            assert mode == "ro"
        else:
            assert source in COMPOSE["volumes"]


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned_and_ports_are_loopback(name: str) -> None:
    """Nothing changes by itself, and nothing is offered to the network."""
    service = SERVICES[name]

    assert re.search(r":v?\d+\.\d+\.\d+", service["image"])
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


@pytest.mark.parametrize("name", SERVICES)
def test_the_keys_of_a_service_are_known(name: str) -> None:
    """A misspelt one would stop everything."""
    assert set(SERVICES[name]) <= {
        *("image", "build", "command", "environment", "hostname", "ports", "volumes", "tmpfs"),
        *("depends_on", "healthcheck", "restart", "stop_grace_period"),
        *("read_only", "cap_drop", "security_opt", "mem_limit"),
    }


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_waits_for_comes(name: str) -> None:
    """It is there; if it is to be healthy it has a check, if it is to complete it ends."""
    needed = SERVICES[name].get("depends_on", {})
    for other, how in needed.items() if isinstance(needed, dict) else ():
        match how["condition"]:
            case "service_healthy":
                assert SERVICES[other]["healthcheck"]["test"]
            case "service_completed_successfully":
                assert SERVICES[other]["restart"].startswith("on-failure")
            case other_condition:
                raise AssertionError(other_condition)
    assert set(needed) <= set(SERVICES)


def test_the_forecaster_can_be_scaled() -> None:
    """Two replicas clash neither in a name, nor in an instance id, nor in a port of the host."""
    service = SERVICES["forecaster"]
    (published,) = service["ports"]
    _, range_, inside = published.split(":")
    first, last = map(int, range_.split("-"))

    assert {"container_name", "hostname"}.isdisjoint(service)
    assert not [name for name in service["environment"] if "INSTANCE_ID" in name]
    assert last - first >= 1
    assert inside == IMAGE_ENVIRONMENT["STREAM_FORECASTER__HTTP__PORT"]


def test_ports_of_the_host_do_not_clash() -> None:
    """Each is asked for by one service."""
    taken: list[int] = []
    for service in SERVICES.values():
        for published in service.get("ports", []):
            first, _, last = published.split(":")[1].partition("-")
            taken += range(int(first), int(last or first) + 1)

    assert len(taken) == len(set(taken))


def test_state_lies_where_the_image_lets_it() -> None:
    """The volume, the default of the settings and the mount are one folder."""
    folder = config.Settings().state.checkpoint_url.removeprefix("file://")

    assert f"VOLUME {folder}\n" in DOCKERFILE
    assert f"forecaster-state:{folder}" in SERVICES["forecaster"]["volumes"]


def test_grafana_finds_what_is_mounted() -> None:
    """The source by its service's name and port, the dashboard where the provider looks."""
    mounts = dict(mount.split(":")[:2] for mount in SERVICES["grafana"]["volumes"])
    provisioning = ROOT / "deploy/grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    (provider,) = yaml.safe_load((provisioning / "dashboards/stream-forecaster.yml").read_text())[
        "providers"
    ]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]

    assert mounts["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
    assert (ROOT / "deploy/grafana/dashboards" / Path(home).name).is_file()
    assert str(Path(home).parent) == provider["options"]["path"]
    assert source["url"] == "http://prometheus:9090"
    assert SERVICES["prometheus"]["ports"][0].endswith(":9090")


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
