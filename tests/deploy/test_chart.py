"""The chart, rendered by Helm's own library: its objects fit together, the code and the image."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from charts import CHART, Refused, lint, render
from natively import fetch
from typer.testing import CliRunner

from stream_forecaster import config
from stream_forecaster.cli import app
from stream_forecaster.config import ENVIRONMENT_PREFIX, Http, Settings
from stream_forecaster.edge.http import HttpServer

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
LEAST = {"kafka": {"bootstrapServers": "kafka-0:9092,kafka-1:9092"}}
EVERYTHING = {
    **LEAST,
    "state": {"volume": {"accessMode": "ReadWriteMany"}},
    "topics": {"create": True, "partitions": 8},
    "settings": '[input]\nkey = []\n\n[kafka]\nsecurity_protocol = "SASL_SSL"\n'
    'sasl_mechanism = "SCRAM-SHA-512"\nsasl_plain_username = "forecaster"\n',
    "secrets": [
        {
            "variable": "STREAM_FORECASTER__KAFKA__SASL_PLAIN_PASSWORD",
            "secret": "kafka-credentials",
            "key": "password",
        }
    ],
    "autoscaling": {
        "enabled": True,
        "authentication": "kafka",
        "metadata": {"sasl": "scram_sha512"},
    },
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True, "runbooks": "https://example.com/runbooks.md"},
    "dashboard": {"enabled": True},
    "podLabels": {"team": "ranking"},
    "nodeSelector": {"disk": "fast"},
}
Objects = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def least() -> Objects:
    """With what has to be said, and no more."""
    return render(LEAST)


@pytest.fixture(scope="module")
def everything() -> Objects:
    """With all that can be switched on."""
    return render(EVERYTHING)


def _pod(objects: Objects) -> dict[str, Any]:
    template: dict[str, Any] = objects["StatefulSet"]["spec"]["template"]
    return template


def _container(objects: Objects) -> dict[str, Any]:
    (container,) = _pod(objects)["spec"]["containers"]
    found: dict[str, Any] = container
    return found


def _settings(objects: Objects) -> Settings:
    """As the process reads them; a pod is called pod-0, every secret `secret`."""
    variables = {}
    for variable in _container(objects)["env"]:
        source = variable.get("valueFrom", {})
        if "fieldRef" in source:
            assert source["fieldRef"]["fieldPath"] == "metadata.name"
            variables[variable["name"]] = "pod-0"
        else:
            variables[variable["name"]] = "secret" if source else variable["value"]
    toml = objects["ConfigMap"]["data"]["forecaster.toml"]
    return config.load(toml, variables, {}, read_file=str)


# -- helm's opinion --------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [LEAST, EVERYTHING], ids=["least", "everything"])
def test_lint_has_nothing_to_say(values: dict[str, Any]) -> None:
    """Strictly."""
    assert lint(values) == []


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({}, "set kafka.bootstrapServers"),
        ({"kafka": {"bootstrapServers": "kafka"}}, "does not match pattern"),
        ({**LEAST, "replica": 2}, "replica"),
        ({**LEAST, "autoscaling": {"minReplicas": 0}}, "minReplicas"),
        ({**LEAST, "replicas": 2}, "share their checkpoints"),
        ({**LEAST, "autoscaling": {"enabled": True}}, "share their checkpoints"),
    ],
)
def test_values_that_cannot_work_are_refused(values: dict[str, Any], complaint: str) -> None:
    """Before anything is installed; the message says what is wrong."""
    with pytest.raises(Refused, match=complaint):
        render(values)


def test_nothing_is_made_that_was_not_asked_for(least: Objects, everything: Objects) -> None:
    """Operators that may not be there are used only when told."""
    always = {"ConfigMap", "PersistentVolumeClaim", "PodDisruptionBudget", "Service"}
    always |= {"ServiceAccount", "StatefulSet"}
    asked_for = {"PrometheusRule", "ScaledObject", "ServiceMonitor"}

    assert set(least) == always
    assert set(everything) == always | asked_for | {"ConfigMap demo-stream-forecaster-dashboard"}


# -- the process in it -----------------------------------------------------------------------------


def test_settings_are_accepted(least: Objects, everything: Objects) -> None:
    """File and variables together; a member is called after its pod."""
    settings, more = _settings(least), _settings(everything)

    assert settings.kafka.instance_id == "pod-0"
    assert settings.kafka.bootstrap_servers == LEAST["kafka"]["bootstrapServers"]
    assert (settings.kafka.group_id, settings.input.topic) == ("stream-forecaster", "events")
    assert settings.input.key == ("user_id",)
    assert more.input.key == ()
    assert more.kafka.sasl_plain_password is not None
    assert more.kafka.sasl_plain_password.get_secret_value() == "secret"


def test_secrets_are_only_named(everything: Objects) -> None:
    """Their values are nowhere in what Helm stores."""
    (variable,) = [v for v in _container(everything)["env"] if "PASSWORD" in v["name"]]

    assert variable["valueFrom"] == {
        "secretKeyRef": {"name": "kafka-credentials", "key": "password"}
    }
    assert "value" not in variable


def test_it_writes_where_it_may(least: Objects) -> None:
    """State and /tmp are mounted, the settings are where the command looks; all else is fixed."""
    container, pod = _container(least), _pod(least)["spec"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    state = _settings(least).state.checkpoint_url.removeprefix("file://")

    assert set(mounts.values()) == set(volumes)
    assert (
        volumes[mounts[state]]["persistentVolumeClaim"]["claimName"]
        == (least["PersistentVolumeClaim"]["metadata"]["name"])
    )
    assert "emptyDir" in volumes[mounts["/tmp"]]  # noqa: S108  (the pod's)
    assert re.search(r"NUMBA_CACHE_DIR=/tmp/", DOCKERFILE)
    assert container["args"] == ["run", "--config", "/etc/stream-forecaster/forecaster.toml"]
    assert (
        volumes[mounts["/etc/stream-forecaster"]]["configMap"]["name"]
        == (least["ConfigMap"]["metadata"]["name"])
    )


def test_topics_are_made_before_it_starts_when_asked_for(
    least: Objects, everything: Objects
) -> None:
    """By the same image, with the same settings and no more rights."""
    (first,) = _pod(everything)["spec"]["initContainers"]
    container = _container(everything)

    assert "initContainers" not in _pod(least)["spec"]
    for same in ("image", "env", "securityContext", "volumeMounts"):
        assert first[same] == container[same], same
    assert first["args"][-1] == "--partitions=8"
    shown = CliRunner().invoke(app, [*first["args"], "--help"])
    assert shown.exit_code == 0, shown.output


def test_one_process_asks_for_a_volume_that_every_cluster_has(least: Objects) -> None:
    """Few have storage that several nodes write to."""
    assert least["StatefulSet"]["spec"]["replicas"] == 1
    assert least["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteOnce"]


def test_an_object_store_needs_no_volume() -> None:
    """It is all the state there is."""
    objects = render({**LEAST, "replicas": 3, "state": {"checkpointUrl": "s3://bucket/path"}})

    assert "PersistentVolumeClaim" not in objects
    assert "state" not in [volume["name"] for volume in _pod(objects)["spec"]["volumes"]]
    assert _settings(objects).state.checkpoint_url == "s3://bucket/path"


def test_the_pod_is_restricted(least: Objects) -> None:
    """As the restricted pod security standard wants it, as the image's own user."""
    pod, container = _pod(least)["spec"]["securityContext"], _container(least)["securityContext"]

    assert pod["runAsNonRoot"] is True
    assert f"USER {pod['runAsUser']}:{pod['runAsGroup']}\n" in DOCKERFILE
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert _pod(least)["spec"]["automountServiceAccountToken"] is False


def test_probes_ask_what_is_answered(least: Objects) -> None:
    """The port is the image's, and the server has an answer to every path."""
    container = _container(least)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")]
    server = HttpServer(Http(port=0), lambda _: ("text/plain", b""))
    try:
        for probe in probes:
            assert f"{ENVIRONMENT_PREFIX}HTTP__PORT={ports[probe['port']]}" in DOCKERFILE
            status, text = fetch(f"127.0.0.1:{server.port}", probe["path"])
            assert status in {200, 503}, text
    finally:
        server.close()
    assert [probe["path"] for probe in probes] == ["/livez", "/livez", "/readyz"]


# -- what stands around it -------------------------------------------------------------------------


def test_selectors_select(everything: Objects) -> None:
    """Service, budget and StatefulSet find the pods; the monitor finds the service."""
    pod = _pod(everything)["metadata"]["labels"].items()
    service = everything["Service"]
    stateful = everything["StatefulSet"]["spec"]
    monitor = everything["ServiceMonitor"]["spec"]

    assert stateful["selector"]["matchLabels"].items() <= pod
    assert service["spec"]["selector"].items() <= pod
    assert everything["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"].items() <= pod
    assert stateful["serviceName"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert [port["name"] for port in service["spec"]["ports"]] == [
        endpoint["port"] for endpoint in monitor["endpoints"]
    ]


def test_the_job_is_called_as_the_rules_call_it(everything: Objects) -> None:
    """Whatever the release is called."""
    label = everything["ServiceMonitor"]["spec"]["jobLabel"]
    job = everything["Service"]["metadata"]["labels"][label]
    rules = (ROOT / "deploy/prometheus/rules.yml").read_text()

    assert set(re.findall(r'job="([^"]+)"', rules)) == {job}


def test_rules_and_dashboard_are_those_of_the_tree(everything: Objects) -> None:
    """Links, which Helm follows, and not copies. Only where the runbooks are is put in."""
    rules = (ROOT / "deploy/prometheus/rules.yml").read_text()
    told = rules.replace("docs/runbooks.md#", "https://example.com/runbooks.md#")
    board = (ROOT / "deploy/grafana/dashboards/stream-forecaster.json").read_text()
    shipped = everything["ConfigMap demo-stream-forecaster-dashboard"]["data"]

    assert everything["PrometheusRule"]["spec"] == yaml.safe_load(told)
    assert shipped["stream-forecaster.json"].strip() == board.strip()
    assert all((CHART / "files" / name).is_symlink() for name in ("rules.yml", "dashboard.json"))


def test_keda_scales_on_our_lag(everything: Objects, least: Objects) -> None:
    """Of our group on our topic; then nobody else says how many replicas there are."""
    scaled = everything["ScaledObject"]["spec"]
    (trigger,) = scaled["triggers"]
    settings = _settings(everything)

    assert trigger["type"] == "kafka"
    assert trigger["metadata"] == {
        "bootstrapServers": settings.kafka.bootstrap_servers,
        "consumerGroup": settings.kafka.group_id,
        "topic": settings.input.topic,
        "lagThreshold": "20000",
        "sasl": "scram_sha512",
    }
    assert trigger["authenticationRef"] == {"name": "kafka"}
    assert scaled["minReplicaCount"] >= 1
    assert scaled["scaleTargetRef"]["name"] == everything["StatefulSet"]["metadata"]["name"]
    assert "replicas" not in everything["StatefulSet"]["spec"]
    assert least["StatefulSet"]["spec"]["replicas"] == 1


def test_every_value_is_described() -> None:
    """The schema knows each that there is, so that a misspelt one is refused."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())

    assert set(values) | {"global"} == set(schema["properties"])
    for name, value in values.items():
        known = schema["properties"][name]
        if isinstance(value, dict) and known.get("properties"):
            assert set(value) <= set(known["properties"]), name
            assert known["additionalProperties"] is False, name
