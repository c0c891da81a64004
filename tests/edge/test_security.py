"""Apache Kafka behind TLS and passwords: what works, and what each refusal says."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from brokers import kafka_home, unique
from pipelines import (
    CountingService,
    connect,
    expected_counts,
    published,
    run_to_end,
    settings_on,
    write_events,
)
from secured import PASSWORDS, SecuredKafka

from stream_forecaster import config
from stream_forecaster.config import Settings
from stream_forecaster.edge.topics import EventWriter, create_topics, probe, read_topic

WRONG = "wr0ng-Pass"
_TELLS_WITHIN_S = 20.0
"""From the first line of the log to the last; the client alone needs 30 s for 'no bootstrap'."""

Permissions = dict[tuple[str, str], list[str]]


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    """A node with TLS, passwords and permissions."""
    home = kafka_home()
    if home is None:
        pytest.skip("needs KAFKA_HOME")
    node = SecuredKafka(home, tmp_path_factory.mktemp("secured"))
    try:
        yield node.start()
    finally:
        node.stop()


def needed(settings: Settings) -> Permissions:
    """The permissions that the README lists for `run`."""
    return {
        ("topic", settings.input.topic): ["read"],
        ("topic", settings.output.topic): ["write"],
        ("topic", settings.output.dead_letter_topic): ["write"],
        ("group", settings.kafka.group_id): ["read"],
        ("transactional_id", f"{settings.kafka.group_id}-{settings.kafka.instance_id}"): ["write"],
    }


def logged_in(settings: Settings, login: dict[str, Any]) -> Settings:
    """The same pipeline by another login."""
    spelled = config.redacted(settings)
    return config.parse(spelled | {"kafka": spelled["kafka"] | login})


def run(folder: Path, settings: Settings, password: str) -> tuple[int, list[dict[str, Any]]]:
    """`stream-forecaster run` with its password in the environment: exit code and log."""
    path = folder / f"{unique('settings')}.toml"
    spelled = config.redacted(settings)
    spelled["kafka"].pop("sasl_plain_password", None)
    spelled["state"]["checkpoint_url"] = f"file://{folder}/state"
    path.write_text(config.to_toml(spelled | {"http": {"port": 0}}))
    done = subprocess.run(
        [sys.executable, "-m", "stream_forecaster", "run", "--config", path],
        env=os.environ | {"STREAM_FORECASTER__KAFKA__SASL_PLAIN_PASSWORD": password},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert password.encode() not in done.stdout + done.stderr
    return done.returncode, [json.loads(line) for line in done.stderr.splitlines()]


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_everything_goes_over_tls_and_a_password(kafka: SecuredKafka, mechanism: str) -> None:
    """Reading, writing and the transaction of both: each event is counted once."""
    plain = settings_on(kafka.bootstrap)
    create_topics(plain, 2)
    write_events(plain, range(40))
    kafka.permit("ann", needed(plain))

    service = CountingService(connect(logged_in(plain, kafka.login("ann", mechanism))), plain)
    try:
        run_to_end([service], plain)
    finally:
        service.transport.close()

    assert service.failures == 0
    assert published(plain) == expected_counts(plain)
    assert len(published(plain)) == 40


@pytest.mark.parametrize(
    ("login", "says"),
    [
        (
            lambda kafka: kafka.login("ann", sasl_plain_password=WRONG),
            "the login of 'ann' by PLAIN: Authentication failed: Invalid username or password;",
        ),
        (
            lambda kafka: kafka.login("ann", "SCRAM-SHA-512", sasl_plain_password=WRONG),
            "refused the login of 'ann' by SCRAM-SHA-512: Authentication failed",
        ),
        (
            lambda kafka: kafka.login("ann", "SCRAM-SHA-256"),
            "does not take kafka.sasl_mechanism = 'SCRAM-SHA-256'",
        ),
        (
            lambda kafka: kafka.login("ann", ssl_cafile=str(kafka.stranger.certificate)),
            "is not trusted: self-signed certificate in certificate chain; set kafka.ssl_cafile",
        ),
        (
            lambda kafka: kafka.login(
                "ann", bootstrap_servers=kafka.secure.replace("127.0.0.1", "localhost")
            ),
            "Hostname mismatch, certificate is not valid for 'localhost'; connect by a name that",
        ),
    ],
    ids=["PLAIN", "SCRAM", "mechanism", "authority", "host"],
)
def test_a_refused_login_says_what_where_and_what_to_do(
    tmp_path: Path, kafka: SecuredKafka, login: Callable[[SecuredKafka], dict[str, Any]], says: str
) -> None:
    """A wrong password, an unknown mechanism, a certificate of strangers: each told apart."""
    kafka_settings = login(kafka)
    settings = logged_in(settings_on(kafka.secure), kafka_settings)

    code, log = run(tmp_path, settings, kafka_settings["sasl_plain_password"])

    assert_failed(code, log, settings.kafka.bootstrap_servers, says)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("input", "User:bob may not read topic {input!r}"),
        ("output", "User:bob may not write topic {output!r}"),
        ("group", "GroupAuthorizationFailedError"),
        ("transactional_id", "TransactionalIdAuthorizationFailedError"),
    ],
)
def test_a_missing_permission_says_which(
    tmp_path: Path, kafka: SecuredKafka, kind: str, says: str
) -> None:
    """One of those that the README lists, and all the others given."""
    plain = settings_on(kafka.bootstrap)
    create_topics(plain, 1)
    names = {"input": plain.input.topic, "output": plain.output.topic}
    missing = {name: ("topic", topic) for name, topic in names.items()}.get(kind)
    permissions = {
        resource: operations
        for resource, operations in needed(plain).items()
        if resource != missing and resource[0] != kind
    }
    if kind == "output":  # seen, but not to be written
        permissions["topic", plain.output.topic] = ["describe"]
    kafka.permit("bob", permissions)
    settings = logged_in(plain, kafka.login("bob"))

    code, log = run(tmp_path, settings, PASSWORDS["bob"])

    way_out = "kafka-acls.sh" if missing else "the README lists"
    assert_failed(code, log, way_out, says.format(**names))


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_a_run_tells_neither_its_password_nor_its_keys(
    tmp_path: Path, kafka: SecuredKafka, mechanism: str
) -> None:
    """Not at debug level, not in metrics; and it publishes, with the password from a file."""
    plain = settings_on(kafka.bootstrap)
    create_topics(plain, 1)
    kafka.permit("ann", needed(plain))
    begin_ms = time.time_ns() // 1_000_000 - 10 * 60_000
    with EventWriter(plain) as writer:
        writer.write(
            (b"k", b'{"user_id":"walter-4711","ts":%d}' % (begin_ms + 1_000 * i), None)
            for i in [*range(600), 0]  # the last one is too late
        )
    path, secret = tmp_path / "settings.toml", tmp_path / "password"
    secret.write_text(PASSWORDS["ann"] + "\n")
    spelled = config.redacted(logged_in(plain, kafka.login("ann", mechanism)))
    del spelled["kafka"]["sasl_plain_password"]
    others = {"http": {"port": 0}, "log": {"level": "debug"}}
    spelled["state"]["checkpoint_url"] = f"file://{tmp_path}/state"
    path.write_text(config.to_toml(spelled | others))

    with subprocess.Popen(
        [sys.executable, "-m", "stream_forecaster", "run", "--config", path],
        env=os.environ | {"STREAM_FORECASTER__KAFKA__SASL_PLAIN_PASSWORD_FILE": str(secret)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            assert process.stderr is not None
            first = process.stderr.readline()
            port = json.loads(first)["http_port"]
            give_up_s = time.monotonic() + 40
            while not list(read_topic(plain, plain.output.dead_letter_topic)):
                assert time.monotonic() < give_up_s, "nothing is published"
                time.sleep(0.2)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
                metrics = reply.read()
            process.terminate()
            out, log = process.communicate(timeout=30)
        finally:
            process.kill()

    assert process.returncode == 0
    assert b'"kafka connected"' in log
    assert {r.key for r in read_topic(plain, plain.output.topic)} == {b"walter-4711"}
    for said in (out, first + log, metrics):
        assert PASSWORDS["ann"].encode() not in said
        assert b"walter" not in said


def assert_failed(code: int, log: list[dict[str, Any]], *says: str) -> None:
    """It ended soon, with exit code 3 and a reason that says all this."""
    failed = log[-1]
    assert (code, failed["event"], failed["exit_code"]) == (3, "failed", 3)
    for text in says:
        assert text in failed["reason"]
    begun, ended = (datetime.fromisoformat(line["timestamp"]) for line in (log[0], failed))
    assert (ended - begun).total_seconds() < _TELLS_WITHIN_S


def test_check_tells_a_forbidden_topic_from_a_missing_one(kafka: SecuredKafka) -> None:
    """The broker hides the former, but does not deny it."""
    plain = settings_on(kafka.bootstrap)
    create_topics(plain, 1)
    permissions = needed(plain)
    del permissions["topic", plain.output.topic]
    kafka.permit("bob", permissions)

    found = {p.name: p for p in probe(logged_in(plain, kafka.login("bob")))}

    assert found[f"topic {plain.input.topic}"].passed
    forbidden = found[f"topic {plain.output.topic}"]
    assert not forbidden.passed
    assert "User:bob may not write" in forbidden.detail
