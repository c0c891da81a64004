"""What docker-compose.yml starts, started without containers: the same commands and settings."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from brokers import ApacheKafka, free_port
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource
from natively import Native, wait
from scraping import binary

from stream_forecaster import config
from stream_forecaster.edge.broker import Broker
from stream_forecaster.edge.topics import describe_topics

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())[
    "services"
]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


class Composition:
    """The services of ours on an embedded broker, in one folder that stands for the volume."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        self._broker, self._folder = broker, folder
        self._stack, self._started = ExitStack(), 0

    def start(self, name: str) -> Native:
        """One more replica of a service."""
        self._started += 1
        log = self._folder / f"{self._started}-{name}.log"
        return self._stack.enter_context(
            Native(SERVICES[name]["command"], log, self.environment(name))
        )

    def environment(self, name: str) -> dict[str, str]:
        """As composed; but for where broker, volume and port are here, and without the network.

        That takes seconds to load, and nothing here depends on it.
        """
        composed = {key: str(value) for key, value in SERVICES[name]["environment"].items()}
        return composed | {
            "STREAM_FORECASTER__KAFKA__BOOTSTRAP_SERVERS": self._broker.bootstrap,
            "STREAM_FORECASTER__STATE__CHECKPOINT_URL": (self._folder / "volume").as_uri(),
            "STREAM_FORECASTER__HTTP__PORT": "0",
            "STREAM_FORECASTER__MODEL__NETWORK": "false",
        }

    def close(self) -> None:
        """End all."""
        self._stack.close()


@pytest.fixture
def composition(embedded_broker: Broker, tmp_path: Path) -> Iterator[Composition]:
    made = Composition(embedded_broker, tmp_path)
    yield made
    made.close()


def _partitions(forecaster: Native) -> set[int]:
    """Those that it says it holds, once it is ready."""
    status, text = forecaster.asked("/readyz")
    detail = json.loads(text)["checks"]["assigned"]["detail"]
    return set(map(int, re.findall(r"\d+", detail))) if status == 200 else set()


def _events(forecaster: Native) -> float:
    (value,) = re.findall(
        r"^streamforecaster_events_total (\S+)", forecaster.asked("/metrics")[1], re.MULTILINE
    )
    return float(value)


@pytest.mark.timeout(300)  # five processes that each load the package
def test_two_forecasters_share_topic_and_volume(composition: Composition) -> None:
    """They divide the partitions; of one that ends the other takes over what it has stored."""
    topics = composition.start("topics")
    assert topics.wait() == 0
    one, other = composition.start("forecaster"), composition.start("forecaster")
    wait(lambda: _partitions(one) and _partitions(one) | _partitions(other) == {0, 1, 2, 3})
    wait(lambda: len(_partitions(one)) == len(_partitions(other)) == 2)
    simulator = composition.start("simulator")
    wait(lambda: _events(one) and _events(other))
    assert simulator.end() == 0
    of_one = _partitions(one)

    assert one.end() == 0

    wait(lambda: _partitions(other) == {0, 1, 2, 3})
    recovered = {
        line["partition"]: line["recovered_from"] for line in other.said("partition_assigned")
    }
    assert {recovered[partition] for partition in of_one} == {"checkpoint"}
    settings = config.load(None, composition.environment("forecaster"), {}, read_file=str)
    assert len(describe_topics(settings)[0].bounds) == 4
    _assert_healthy(other)
    assert other.end() == 0


def _assert_healthy(forecaster: Native) -> None:
    """By the image's own health check."""
    found = re.search(r"^HEALTHCHECK .*\\\n\s+CMD (\[.+\])$", DOCKERFILE, re.MULTILINE)
    assert found is not None
    _, *arguments = json.loads(found[1])
    port = forecaster.address.rpartition(":")[2]

    for asked, code in ((port, 0), (str(free_port()), 1)):
        environment = {**os.environ, "STREAM_FORECASTER__HTTP__PORT": asked}
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, check=False
        )
        assert done.returncode == code, done.stderr


@pytest.mark.kafka
def test_apache_kafka_knows_its_settings(apache_kafka: ApacheKafka) -> None:
    """Every KAFKA_ variable is a setting of a broker; the image makes a.b.c of KAFKA_A_B_C."""
    admin = KafkaAdminClient(bootstrap_servers=apache_kafka.bootstrap)
    try:
        told = admin.describe_configs([ConfigResource("broker", "1")], config_filter="all")
    finally:
        admin.close()
    known = set(told["broker"]["1"])
    variables = [name for name in SERVICES["kafka"]["environment"] if name != "KAFKA_HEAP_OPTS"]
    named = {
        name.removeprefix("KAFKA_").lower().replace("_", ".")
        for name in variables
        if name != "CLUSTER_ID"
    }

    assert len(known) > 100
    assert named <= known


def test_prometheus_takes_its_command_line(tmp_path: Path) -> None:
    """With its mounts where they are in the tree."""
    mounts = dict(mount.split(":")[:2] for mount in SERVICES["prometheus"]["volumes"])
    places = {inside: str(ROOT / source) for source, inside in mounts.items() if source[0] == "."}
    places |= {inside: str(tmp_path) for source, inside in mounts.items() if source[0] != "."}
    arguments = []
    for argument in SERVICES["prometheus"]["command"]:
        flag, _, value = argument.partition("=")
        for inside, outside in places.items():
            if value == inside or value.startswith(f"{inside}/"):
                value = outside + value.removeprefix(inside)
                break
        arguments.append(f"{flag}={value}")
    log = tmp_path / "said"
    command = [binary("prometheus"), *arguments, f"--web.listen-address=127.0.0.1:{free_port()}"]

    with log.open("wb") as said, subprocess.Popen(command, stdout=said, stderr=said) as process:
        try:
            wait(lambda: "Server is ready" in log.read_text() or process.poll() is not None)
            assert process.poll() is None, log.read_text()
        finally:
            process.kill()
    assert list(tmp_path.glob("wal")), "its data is not in the volume"
