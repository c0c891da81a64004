"""The command as its users have it: what it prints, and the code it exits with."""

import csv
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, Self

import jsonschema
import pytest
import structlog
from brokers import free_port, unique
from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from typer.main import get_command

from stream_forecaster import __version__, checkpoint, config
from stream_forecaster.calendar import Calendar
from stream_forecaster.cli import app, main
from stream_forecaster.config import ENVIRONMENT_PREFIX, Settings
from stream_forecaster.dead_letters import dead_letter
from stream_forecaster.edge.broker import Broker
from stream_forecaster.edge.broker.faults import Delay
from stream_forecaster.edge.connection import Outage
from stream_forecaster.edge.publisher import Publisher
from stream_forecaster.edge.store import CheckpointStore
from stream_forecaster.edge.topics import EventWriter, create_topics, describe_topics, read_topic
from stream_forecaster.edge.weights_file import write_weights
from stream_forecaster.events import Reason, Reject
from stream_forecaster.forecasts import rfc3339
from stream_forecaster.shard import Shard
from stream_forecaster.synth import Population
from stream_forecaster.weights import untrained

VERBS = frozenset(
    """run demo check topics simulate replay backtest fit pretrain plan tail lag forget state dlq
    weights config schema version""".split()  # noqa: SIM905  (a list of words reads better)
)
MINUTE_MS = 60_000
WAITS_S = 60.0


# -- helpers ---------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting comes from the machine, and no line is broken."""
    for name in [name for name in os.environ if name.startswith(ENVIRONMENT_PREFIX)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "300")


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command in this process: exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def settings_file(folder: Path, bootstrap: str, **sections: dict[str, Any]) -> tuple[str, Settings]:
    """A pipeline of the test's own: the path of its settings file, and the settings."""
    name = unique("cli")
    mapping: dict[str, dict[str, Any]] = {
        "kafka": {"bootstrap_servers": bootstrap, "group_id": name, "instance_id": "test"},
        "input": {"topic": f"{name}.events"},
        "output": {"topic": f"{name}.out", "dead_letter_topic": f"{name}.dead"},
        "state": {"checkpoint_url": f"file://{folder}/state"},
        "http": {"port": 0},
    }
    for section, values in sections.items():
        mapping.setdefault(section, {}).update(values)
    path = folder / "settings.toml"
    path.write_text(config.to_toml(mapping))
    return str(path), config.parse(mapping)


class Process:
    """`stream-forecaster run` in a process of its own, and its log; killed in the end."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "stream_forecaster", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def says(self, event: str) -> dict[str, Any]:
        """Read the log up to a line of this event."""
        assert self._process.stderr is not None
        for text in self._process.stderr:
            self.events.append(json.loads(text))
            if self.events[-1]["event"] == event:
                return self.events[-1]
        raise AssertionError(f"no {event} in {self.events}")

    def signal(self, number: int) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def ends(self) -> int:
        """Wait for its end, log and all; its exit code."""
        _, log = self._process.communicate(timeout=WAITS_S)
        self.events += map(json.loads, log.splitlines())
        return self._process.returncode


def eventually(holds: Callable[[], object]) -> None:
    """Wait until something holds."""
    deadline_s = time.monotonic() + WAITS_S
    while not holds():
        assert time.monotonic() < deadline_s, "it never does"
        time.sleep(0.05)


def metrics(port: int, name: str) -> list[float]:
    """A metric's values, one for each set of labels, as the process exposes them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
        text = reply.read().decode()
    found = re.findall(rf"^streamforecaster_{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
    return [float(value) for value in found]


def has_read_all(port: int) -> bool:
    """Whether nothing is left to read, though nothing need be committed yet."""
    lag = metrics(port, "lag_records")
    return bool(lag) and not any(lag) and metrics(port, "keys") != [0.0]


def send(settings: Settings, since_ms: int, every_ms: int, events: int) -> int:
    """Write so many events of seven users; how many are acknowledged."""
    times_ms = [since_ms + every_ms * i for i in range(events)]
    with EventWriter(settings) as writer:
        return writer.write(
            (b"u%d" % (i % 7), b'{"user_id":"u%d","ts":%d}' % (i % 7, time_ms), time_ms)
            for i, time_ms in enumerate(times_ms)
        )


def this_minute_ms() -> int:
    """The beginning of the minute that is."""
    return time.time_ns() // 1_000_000 // MINUTE_MS * MINUTE_MS


# -- settings --------------------------------------------------------------------------------------


def test_help_names_every_verb(call: Call) -> None:
    """And they are all there are."""
    code, out, _ = call("--help")

    assert code == 0
    assert set(re.findall(r"^│ (\w+) ", out, re.MULTILINE)) == VERBS


def leaves(command: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, and the words that lead to it."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from leaves(inner, *path, name)
    if not hasattr(command, "commands"):
        yield path, command


COMMANDS = dict(leaves(get_command(app)))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_shows_examples_that_are_taken(call: Call, path: tuple[str, ...]) -> None:
    """At least one of the command itself; each parses, options, values and all."""
    code, out, _ = call(*path, "--help")
    lines = [line.strip() for line in out.partition("Examples:")[2].splitlines() if line.strip()]
    words = [shlex.split(line.partition(">")[0], comments=True) for line in lines]

    assert code == 0
    assert any(tuple(line[1 : 1 + len(path)]) == path for line in words)
    for program, *given in words:
        assert program == "stream-forecaster"
        found = max((p for p in COMMANDS if tuple(given[: len(p)]) == p), key=len)
        COMMANDS[found].make_context("", given[len(found) :]).close()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_shell_completes(tmp_path: Path) -> None:
    """Verbs and options, by the script that `--show-completion` prints."""
    command = tmp_path / "stream-forecaster"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m stream_forecaster "$@"\n')
    command.chmod(0o755)
    complete = '_stream_forecaster_completion stream-forecaster; echo "${COMPREPLY[*]}"\n'
    script = (
        "source <(stream-forecaster --show-completion bash) || exit 1; IFS=' '\n"
        f"COMP_WORDS=(stream-forecaster state ex) COMP_CWORD=2; {complete}"
        f"COMP_WORDS=(stream-forecaster dlq list --reason too_) COMP_CWORD=4; {complete}"
    )
    path = f"{tmp_path}:{os.environ['PATH']}"

    done = subprocess.run(
        ["bash", "-c", script],  # noqa: S607  (the shell of whoever runs the tests)
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.split("\n") == ["export", "too_late too_far_ahead too_large", ""]


def on_a_terminal(*arguments: str, **environment: str) -> bytes:
    """What a command shows on a terminal."""
    terminal, end = os.openpty()
    command = [sys.executable, "-m", "stream_forecaster", *arguments]
    plain = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR"}}
    kinds = {"TERM": "xterm-256color", "COLUMNS": "80"}
    with subprocess.Popen(
        command, stdin=end, stdout=end, stderr=end, env=plain | kinds | environment
    ):
        os.close(end)
        shown = b""
        with suppress(OSError):  # how Linux says that nobody holds the other end any more
            while more := os.read(terminal, 1 << 16):
                shown += more
    os.close(terminal)
    return shown


def test_colours_are_for_terminals_that_want_them(call: Call) -> None:
    """None in a pipe, and none where NO_COLOR is set."""
    arguments = ("check", "--bootstrap-servers", f"127.0.0.1:{free_port()}")
    coloured = re.compile(rb"\x1b\[[0-9;]*3[0-7]")

    assert coloured.search(on_a_terminal(*arguments))
    plain = on_a_terminal(*arguments, NO_COLOR="1")
    assert b"broker" in plain
    assert not coloured.search(plain)
    assert "\x1b" not in "".join(map(str, call(*arguments)))


@pytest.mark.parametrize("arguments", [("version",), ("--version",)])
def test_version(call: Call, arguments: tuple[str, ...]) -> None:
    """Both spellings."""
    assert call(*arguments) == (0, f"{__version__}\n", "")


def test_the_module_is_the_command() -> None:
    """`python -m stream_forecaster` does the same."""
    done = subprocess.run(
        [sys.executable, "-m", "stream_forecaster", "version"], capture_output=True, check=True
    )

    assert done.stdout.decode() == f"{__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--set", "kafka.groupid=x"), "kafka.groupid: unknown setting; did you mean group_id?"),
        (("--set", "kafka"), "--set kafka: write section.key=value"),
        (("--set", "http.port=many"), "http.port"),
        (("--config", "/no/such.toml"), "cannot read the settings file /no/such.toml: No such"),
        (("--config", "/no/such.toml"), "`stream-forecaster config show` prints one"),
        (("--config", os.devnull, "--set", "input.timezone=Mars"), "not an IANA time zone"),
    ],
)
def test_wrong_settings_exit_2(call: Call, arguments: tuple[str, ...], says: str) -> None:
    """One line says what is wrong, without a traceback."""
    code, out, err = call("config", "check", *arguments)

    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert says in err
    assert "Traceback" not in err


@pytest.mark.parametrize("content", [b"[kafka", b"\xff\xfe"])
def test_a_file_that_is_no_settings_file_exits_2(
    call: Call, tmp_path: Path, content: bytes
) -> None:
    """Neither TOML nor text."""
    path = tmp_path / "settings.toml"
    path.write_bytes(content)

    code, _, err = call("config", "check", "--config", str(path))

    assert code == 2
    assert err.startswith("error: ")


def test_wrong_usage_exits_2(call: Call) -> None:
    """Unknown options and verbs."""
    assert call("run", "--nope")[0] == 2
    assert call("nope")[0] == 2


def test_a_bug_exits_70(call: Call) -> None:
    """With a traceback, for whoever will mend it."""

    @app.command()
    def crash() -> None:
        raise ZeroDivisionError

    try:
        code, _, err = call("crash")
    finally:
        app.registered_commands.pop()

    assert code == 70
    assert err.startswith("Traceback")


def test_memory_that_ends_exits_4(call: Call) -> None:
    """In any verb; the message says what takes memory."""

    @app.command()
    def starve() -> None:
        raise MemoryError("Unable to allocate 9.99 GiB")

    try:
        code, _, err = call("starve")
    finally:
        app.registered_commands.pop()

    assert code == 4
    assert err.startswith("error: out of memory: ")
    assert "9.99 GiB" in err


def test_later_sources_win(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defaults < file < environment < flags."""
    path = tmp_path / "settings.toml"
    path.write_text('[kafka]\ngroup_id = "file"\n[input]\ntopic = "file"\ntime = "file"\n')
    monkeypatch.setenv("STREAM_FORECASTER__INPUT__TOPIC", "environment")
    monkeypatch.setenv("STREAM_FORECASTER__INPUT__TIME", "environment")

    flags = ("--set", "input.time=flag", "--bootstrap-servers", "flag:1")
    code, out, _ = call("config", "show", "--json", "--config", str(path), *flags)

    shown = json.loads(out)
    assert code == 0
    assert shown["kafka"]["group_id"] == "file"
    assert shown["kafka"]["bootstrap_servers"] == "flag:1"
    assert shown["input"]["topic"] == "environment"
    assert shown["input"]["time"] == "flag"
    assert shown["input"]["timezone"] == "UTC"


def test_flags_take_every_kind_of_value(call: Call) -> None:
    """Text that looks like a number, numbers, lists with commas, and JSON for the rest."""
    assignments = [
        "kafka.group_id=123",
        "http.port=99",
        "input.key=shop,user_id",
        "output.quantiles=[0.1, 0.9]",
        'resolutions=[{"step": "5m", "context": 3, "horizon": 2}]',
        "model.network=false",
        "http.port=98",
    ]

    _, out, _ = call("config", "show", "--json", *(a for s in assignments for a in ("--set", s)))

    shown = json.loads(out)
    assert shown["kafka"]["group_id"] == "123"
    assert shown["http"]["port"] == 98
    assert shown["input"]["key"] == ["shop", "user_id"]
    assert shown["output"]["quantiles"] == [0.1, 0.9]
    assert shown["resolutions"] == [{"step": "5m", "context": 3, "horizon": 2}]
    assert shown["model"]["network"] is False


def test_config_show_is_a_settings_file_without_secrets(call: Call, tmp_path: Path) -> None:
    """It reads back as the same settings; passwords are starred."""
    sasl = {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "ann",
        "sasl_plain_password": "hunter2",
    }
    path, settings = settings_file(tmp_path, "broker:1", kafka=sasl)

    code, out, _ = call("config", "show", "--config", path)

    assert code == 0
    assert "hunter2" not in out
    shown = config.load(out, {}, {}, read_file=str)
    assert config.redacted(shown) == config.redacted(settings)
    assert shown.config_id == settings.config_id


def test_config_schema_describes_config_show(call: Call) -> None:
    """The one validates the other, and knows no other names."""
    schema = json.loads(call("config", "schema")[1])
    shown = json.loads(call("config", "show", "--json")[1])

    jsonschema.validate(shown, schema)
    shown["kafka"]["groupid"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="groupid"):
        jsonschema.validate(shown, schema)


def test_config_check_names_the_config_id(call: Call) -> None:
    """For people and for programs."""
    config_id = config.Settings().config_id

    assert call("config", "check")[:2] == (0, f"valid; config_id {config_id}\n")
    assert json.loads(call("config", "check", "--json")[1]) == {
        "valid": True,
        "config_id": config_id,
    }


def test_weights_show_their_card(call: Call, tmp_path: Path) -> None:
    """Of those that ship, of a file, and of the settings' file; whatever a card says."""
    shipped = json.loads(call("weights", "show", "--json")[1])
    assert (shipped["weights"], len(shipped["steps_ms"])) == ("those that ship", 3)
    assert shipped["card"]["data"].startswith("Synthetic series only")
    code, out, _ = call("weights", "show")
    assert code == 0
    assert shipped["card"]["begun_with"] in out
    assert "step_s 3600, absolute 0." in out

    card = {
        "data": "[bold]ours\x1b[2J",
        "none": None,
        "worth": [{"step_s": 60, "shares": [0, 0.5]}],
    }
    path = tmp_path / "mine.safetensors"
    write_weights(str(path), replace(untrained((60_000, 3_600_000), 0), card=card))
    for where in ((str(path),), ("--set", f"model.weights={path}")):
        assert json.loads(call("weights", "show", *where, "--json")[1])["card"] == card
        shown = call("weights", "show", *where)[1]
        assert shown.startswith(f"{path}\n")
        assert "[bold]ours\\x1b[2J" in shown
        assert "step_s 60, shares 0 0.5" in shown

    assert call("weights", "show", "/no/such")[0] == 4


def test_schema_can_be_of_the_topics(call: Call) -> None:
    """As AsyncAPI, by the settings."""
    options = ("--format", "asyncapi", "--set", "input.topic=clicks")
    document = json.loads(call("schema", *options)[1])

    assert document["asyncapi"] == "3.0.0"
    assert document["channels"]["events"]["address"] == "clicks"
    assert call("schema", "--format", "avro")[0] == 2


def test_plan_takes_large_numbers(call: Call) -> None:
    """As people write them; the parts are the whole."""
    plans = json.loads(call("plan", "--keys", "1e3", "--json")[1])

    assert [found["keys"] for found in plans] == [1_000, 1_000]
    assert all(found["state_bytes"] == sum(found["parts"].values()) for found in plans)
    assert call("plan", "--keys", "many")[0] == 2


def test_schema_is_the_shipped_file(call: Call) -> None:
    """Byte for byte."""
    file = resources.files("stream_forecaster") / "schemas" / "forecast-1.json"

    assert call("schema") == (0, file.read_text("utf-8"), "")


# -- beside a running service ----------------------------------------------------------------------


def test_check_finds_what_is_missing(
    call: Call, tmp_path: Path, shared_embedded_broker: Broker
) -> None:
    """Topics first missing, then made; then a store that cannot be written."""
    path, _ = settings_file(tmp_path, shared_embedded_broker.bootstrap)

    code, out, _ = call("check", "--config", path)
    assert code == 1
    assert "missing: stream-forecaster topics create" in out

    assert call("topics", "create", "--config", path, "--partitions", "3")[0] == 0
    code, out, _ = call("check", "--config", path, "--json")
    assert code == 0
    assert {probe["passed"] for probe in json.loads(out)} == {True}
    names = [probe["name"] for probe in json.loads(out)]
    assert {"settings", "broker", "co-partitioning", "group", "checkpoint store"} <= set(names)

    unwritable = f"state.checkpoint_url=file://{path}/state"
    code, out, _ = call("check", "--config", path, "--json", "--set", unwritable)
    assert code == 1
    assert [probe["name"] for probe in json.loads(out) if not probe["passed"]] == [
        "checkpoint store"
    ]


def test_check_without_a_broker_exits_3(call: Call, tmp_path: Path) -> None:
    """What needs no broker is still looked at."""
    address = f"127.0.0.1:{free_port()}"
    path, _ = settings_file(tmp_path, address)

    code, out, _ = call("check", "--config", path)

    assert code == 3
    assert address in out
    assert "checkpoint store" in out


@pytest.mark.parametrize(
    "verb", [("topics", "describe"), ("topics", "create"), ("tail",), ("lag",), ("dlq", "list")]
)
def test_without_a_broker_the_others_exit_3(call: Call, verb: tuple[str, ...]) -> None:
    """One line, no traceback."""
    code, out, err = call(*verb, "--bootstrap-servers", f"127.0.0.1:{free_port()}")

    assert (code, out) == (3, "")
    assert err.startswith("error: no answer from Kafka at 127.0.0.1")
    assert "is a broker running there" in err
    assert "Traceback" not in err


def test_what_is_logged_on_the_way_is_no_output(call: Call) -> None:
    """A replay waits for a broker for a while, and says so: not where JSON is expected."""
    away = ("--bootstrap-servers", f"127.0.0.1:{free_port()}", "--set", "kafka.give_up_after=1s")

    code, out, err = call("dlq", "replay", "--json", *away)

    assert (code, out) == (3, "")
    assert "kafka does not answer" in err


@pytest.mark.parametrize(
    "verb", [("tail",), ("lag",), ("dlq", "list"), ("forget", "u1"), ("simulate",)]
)
def test_without_topics_the_others_exit_3(
    call: Call, tmp_path: Path, shared_embedded_broker: Broker, verb: tuple[str, ...]
) -> None:
    """And say how they are made."""
    path, _ = settings_file(tmp_path, shared_embedded_broker.bootstrap)

    code, out, err = call(*verb, "--config", path)

    assert (code, out) == (3, "")
    assert err.startswith("error: no topic 'cli-")
    assert "stream-forecaster topics create" in err


def commit(settings: Settings, offset: int) -> None:
    """Move the group in partition 0, as a service that has read so far."""
    consumer = KafkaConsumer(
        bootstrap_servers=settings.kafka.bootstrap_servers,
        group_id=settings.kafka.group_id,
        enable_auto_commit=False,
    )
    where = TopicPartition(settings.input.topic, 0)
    consumer.assign([where])
    consumer.commit({where: OffsetAndMetadata(offset, "", -1)})
    consumer.close()


def test_lag_is_told_in_records_and_in_time(
    call: Call, tmp_path: Path, shared_embedded_broker: Broker
) -> None:
    """Of each partition; before the first commit all is unread, after it what comes."""
    path, settings = settings_file(tmp_path, shared_embedded_broker.bootstrap)
    create_topics(settings, 1)
    hour_ago_ms = time.time_ns() // 1_000_000 - 3_600_000
    send(settings, hour_ago_ms, every_ms=1_000, events=60)

    before = json.loads(call("lag", "--config", path, "--json")[1])
    table = call("lag", "--config", path)[1]
    commit(settings, 60)
    between = json.loads(call("lag", "--config", path, "--json")[1])
    send(settings, hour_ago_ms + 90_000, every_ms=1_000, events=5)
    after = json.loads(call("lag", "--config", path, "--json")[1])

    (row,) = before["partitions"]
    assert (before["records"], row["committed"], row["end"]) == (60, None, 60)
    assert row["oldest"] == rfc3339(hour_ago_ms)
    assert 3_600 <= row["waiting_s"] < 3_700
    *told, waiting = table.splitlines()[3].split()
    assert told == ["0", "60", "60", rfc3339(hour_ago_ms)]
    assert waiting.startswith("1:00:")
    assert between["partitions"] == [
        {"partition": 0, "committed": 60, "end": 60, "records": 0, "oldest": None, "waiting_s": 0.0}
    ]
    (row,) = after["partitions"]
    assert (row["records"], row["oldest"]) == (5, rfc3339(hour_ago_ms + 90_000))


def test_topics_are_created_once_and_described(
    call: Call, tmp_path: Path, shared_embedded_broker: Broker
) -> None:
    """The second time they exist."""
    path, settings = settings_file(tmp_path, shared_embedded_broker.bootstrap)
    options = ("--config", path)

    first = call("topics", "create", *options, "--partitions", "2", "--json")
    second = call("topics", "create", *options, "--json")
    send(settings, this_minute_ms(), every_ms=1, events=60)
    described = json.loads(call("topics", "describe", *options, "--json")[1])
    table = call("topics", "describe", *options)[1]

    assert set(json.loads(first[1]).values()) == {True}
    assert set(json.loads(second[1]).values()) == {False}
    assert [topic["topic"] for topic in described] == [
        settings.input.topic,
        settings.output.topic,
        settings.output.dead_letter_topic,
    ]
    assert sum(p["end"] for p in described[0]["partitions"].values()) == 60
    assert all(name in table for name in (settings.input.topic, "cleanup.policy=compact,delete"))


def test_simulate_sends_users_to_the_input_topic(
    call: Call, tmp_path: Path, shared_embedded_broker: Broker
) -> None:
    """As many as it says, and none from the future."""
    path, settings = settings_file(tmp_path, shared_embedded_broker.bootstrap)
    create_topics(settings, 2)

    options = ("--seconds", "1", "--rate", "200", "--speed", "600", "--users", "20")
    code, _, err = call("simulate", "--config", path, *options)

    records = list(read_topic(settings, settings.input.topic))
    assert code == 0
    assert f"{len(records):,} events sent to {settings.input.topic}" in err
    assert len(records) > 50
    assert max(record.time_ms for record in records) <= time.time_ns() // 1_000_000


# -- the service -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_run_with_everything_committed(
    tmp_path: Path, shared_embedded_broker: Broker, number: signal.Signals
) -> None:
    """Nothing made a commit due yet: what was read is committed and checkpointed at the end."""
    path, settings = settings_file(
        tmp_path, shared_embedded_broker.bootstrap, kafka={"commit_interval": "1h"}
    )
    create_topics(settings, 2)
    sent = send(settings, this_minute_ms() - 40_000, every_ms=100, events=50)

    with Process("run", "--config", path) as process:
        port = process.says("started")["http_port"]
        eventually(lambda: has_read_all(port))
        assert not describe_topics(settings)[0].committed
        process.signal(number)

        assert process.ends() == 0

    topic = describe_topics(settings)[0]
    store = CheckpointStore(settings.state.checkpoint_url, settings.kafka.group_id)
    assert process.events[-1]["event"] == "stopped"
    assert sum(topic.committed.values()) == sent > 0
    assert {p: store.offsets(p) for p in store.partitions()} == {
        partition: [offset] for partition, offset in topic.committed.items()
    }


def test_a_forgotten_key_is_gone(
    call: Call, tmp_path: Path, shared_embedded_broker: Broker
) -> None:
    """From the state, the checkpoints and, by a tombstone, the forecasts; the others stay."""
    path, settings = settings_file(
        tmp_path, shared_embedded_broker.bootstrap, state={"checkpoint_interval": "0s"}
    )
    create_topics(settings, 2)
    send(settings, this_minute_ms() - 10 * MINUTE_MS, every_ms=1_000, events=600)
    store = CheckpointStore(settings.state.checkpoint_url, settings.kafka.group_id)

    with Process("run", "--config", path) as process:
        port = process.says("started")["http_port"]
        eventually(lambda: has_read_all(port))
        code, out, _ = call("forget", "u3", "--config", path)
        assert code == 0
        assert "2 partitions" in out
        eventually(lambda: metrics(port, "keys_forgotten_total") == [1.0])
        for i in range(3):  # checkpoints are kept of three commits
            since_ms = this_minute_ms() + i * 1_000
            with EventWriter(settings) as writer:
                writer.write(
                    (key, b'{"user_id":"%s","ts":%d}' % (key, since_ms), None)
                    for key in (b"u0", b"u1", b"u2", b"u4", b"u5", b"u6")
                )
            eventually(lambda: has_read_all(port))
            time.sleep(1.5)
        process.signal(signal.SIGTERM)
        assert process.ends() == 0

    names = {f"u{i}" for i in range(7)}
    kept = [store.load(p, offset) for p in store.partitions() for offset in store.offsets(p)]
    assert len(kept) >= 4
    for data in kept:
        state = checkpoint.decode(data)
        table = Shard.restore(settings, Calendar("UTC"), state).table
        assert b"u3" not in table
    inspected = call("state", "inspect", "--config", path, "--json", "--key", "u3")[1]
    assert not [state for state in json.loads(inspected) if "key" in state]
    latest = {r.key: r.value for r in read_topic(settings, settings.output.topic)}
    assert {key.decode() for key, value in latest.items() if key and value} == names - {"u3"}
    assert latest[b"u3"] is None
    lines = call("tail", "--config", path, "--from-beginning", "--no-follow")[1].splitlines()
    assert {"key": "u3", "forgotten": True} in map(json.loads, lines)


def test_forgetting_needs_the_topic(call: Call, tmp_path: Path, embedded_broker: Broker) -> None:
    """And says that there is none, at once."""
    path, settings = settings_file(tmp_path, embedded_broker.bootstrap)

    code, out, err = call("forget", "u3", "--config", path)

    assert (code, out) == (3, "")
    assert f"no topic '{settings.input.topic}'" in err


def test_a_second_signal_ends_run_at_once(tmp_path: Path, embedded_broker: Broker) -> None:
    """The last commit hangs; nobody waits for it."""
    path, settings = settings_file(
        tmp_path, embedded_broker.bootstrap, kafka={"commit_interval": "1h"}
    )
    create_topics(settings, 1)
    send(settings, this_minute_ms() - 40_000, every_ms=100, events=50)
    asked: list[object] = []

    def hang(request: object) -> Delay:
        asked.append(request)
        return Delay(60.0)

    embedded_broker.hooks["EndTxn"] = hang

    with Process("run", "--config", path) as process:
        port = process.says("started")["http_port"]
        eventually(lambda: has_read_all(port))
        process.signal(signal.SIGTERM)
        eventually(lambda: asked)
        process.signal(signal.SIGTERM)

        assert process.ends() == 128 + signal.SIGTERM


def test_run_says_what_it_is(tmp_path: Path, shared_embedded_broker: Broker) -> None:
    """The first line, and the health of the port it names."""
    path, settings = settings_file(tmp_path, shared_embedded_broker.bootstrap)
    create_topics(settings, 1)

    with Process("run", "--config", path) as process:
        started = process.says("started")
        process.says("partition_assigned")
        eventually(lambda: _ready(started["http_port"]))
        process.signal(signal.SIGTERM)

        assert process.ends() == 0

    assert process.events[0] == started
    assert started["version"] == __version__
    assert started["config_id"] == settings.config_id
    assert started["group_id"] == settings.kafka.group_id
    assert settings.output.topic in started["topics"]


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as reply:
            return bool(json.load(reply)["ok"])
    except urllib.error.HTTPError as refused:
        refused.close()
        return False


def test_a_port_in_use_exits_2(tmp_path: Path) -> None:
    """And says which setting to change."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path, _ = settings_file(tmp_path, "127.0.0.1:1", http={"port": port})
        with Process("run", "--config", path) as process:
            assert process.ends() == 2

    (failed,) = process.events
    assert failed["event"] == "failed"
    assert f"cannot listen on 127.0.0.1:{port}" in failed["reason"]
    assert "http.port" in failed["reason"]


def test_a_forecaster_that_river_lacks_exits_2(
    call: Call, tmp_path: Path, shared_embedded_broker: Broker
) -> None:
    """Whatever would make shards says where the name is, and which there are."""
    bootstrap, said = shared_embedded_broker.bootstrap, "model.river: river has no forecaster 'X'"
    model = {"network": False, "river": ["X"]}
    path, settings = settings_file(tmp_path, bootstrap, model=model)
    (events := tmp_path / "events.jsonl").write_text('{"user_id":"a","ts":1767225600000}\n')

    for verb in ("check",), ("plan", "--keys", "1"), ("backtest", "--events", str(events)):
        code, out, err = call(*verb, "--config", path)
        assert (code, out) == (2, ""), verb
        assert err.startswith(f"error: {said}, only HoltWinters, "), verb

    create_topics(settings, 1)
    with Process("run", "--config", path) as process:
        assert process.ends() == 2
    assert process.events[-1]["reason"].startswith(said)


def test_an_unwritable_store_exits_4(tmp_path: Path) -> None:
    """At the start, not at the first checkpoint."""
    blocked = tmp_path / "file"
    blocked.touch()
    path, _ = settings_file(
        tmp_path, "127.0.0.1:1", state={"checkpoint_url": f"file://{blocked}/state"}
    )

    with Process("run", "--config", path) as process:
        assert process.ends() == 4

    assert "state.checkpoint_url" in process.events[-1]["reason"]


def test_a_broker_that_stays_away_exits_3(tmp_path: Path) -> None:
    """When the bound of the settings has passed."""
    address = f"127.0.0.1:{free_port()}"
    path, _ = settings_file(tmp_path, address, kafka={"give_up_after": "500ms"})

    with Process("run", "--config", path) as process:
        assert process.ends() == 3

    failed = process.events[-1]
    assert failed["error"] == "Unavailable"
    assert failed["exit_code"] == 3
    assert address in failed["reason"]


def test_a_signal_ends_the_wait_for_a_broker(tmp_path: Path) -> None:
    """Nothing is lost with it: exit 0."""
    path, _ = settings_file(tmp_path, f"127.0.0.1:{free_port()}")

    with Process("run", "--config", path) as process:
        process.says("started")
        process.signal(signal.SIGTERM)

        assert process.ends() == 0

    assert "stopped_uncommitted" in [event["event"] for event in process.events]


def test_a_signal_ends_run_although_the_broker_has_died(
    tmp_path: Path, embedded_broker: Broker
) -> None:
    """There is nobody to commit to; what was not committed is read again by the next one."""
    path, settings = settings_file(
        tmp_path, embedded_broker.bootstrap, kafka={"transaction_timeout": "2s"}
    )
    create_topics(settings, 1)

    with Process("run", "--config", path) as process:
        process.says("partition_assigned")
        embedded_broker.stop()
        process.says("kafka does not answer; trying again with back-off")
        process.signal(signal.SIGTERM)

        assert process.ends() == 0


def test_missing_topics_exit_3(tmp_path: Path, shared_embedded_broker: Broker) -> None:
    """With the command that makes them."""
    path, _ = settings_file(tmp_path, shared_embedded_broker.bootstrap)

    with Process("run", "--config", path) as process:
        assert process.ends() == 3

    assert "stream-forecaster topics create" in process.events[-1]["reason"]


# -- what a run leaves behind ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, shared_embedded_broker: Broker
) -> tuple[str, Settings]:
    """A pipeline that `run` has worked off: its settings file, and the settings."""
    folder = tmp_path_factory.mktemp("finished")
    path, settings = settings_file(folder, shared_embedded_broker.bootstrap)
    create_topics(settings, 2)
    send(settings, this_minute_ms() - 10 * MINUTE_MS, every_ms=1_000, events=600)
    with Process("run", "--config", path) as process:
        port = process.says("started")["http_port"]
        eventually(lambda: has_read_all(port))
        process.signal(signal.SIGTERM)
        assert process.ends() == 0
    return path, settings


def test_tail_prints_the_forecasts(call: Call, finished: tuple[str, Settings]) -> None:
    """One JSON value a line, in a pipe; of one key where one is asked for."""
    path, settings = finished
    options = ("tail", "--config", path, "--from-beginning", "--no-follow")

    code, out, _ = call(*options)
    lines = [json.loads(text) for text in out.splitlines()]
    of_one = call(*options, "--key", lines[0]["key"], "--json")[1].splitlines()

    published = [record.value or b"" for record in read_topic(settings, settings.output.topic)]
    assert code == 0
    assert sorted(out.encode().splitlines()) == sorted(published)
    assert {json.loads(text)["key"] for text in of_one} == {lines[0]["key"]}
    assert len(of_one) == sum(value["key"] == lines[0]["key"] for value in lines) > 0


def test_state_inspect_shows_checkpoints_and_a_key(
    call: Call, finished: tuple[str, Settings]
) -> None:
    """Offsets as committed; the key's window beside its forecast, at every resolution."""
    path, settings = finished
    options = ("state", "inspect", "--config", path)
    key = json.loads(
        call("tail", "--config", path, "--from-beginning", "--no-follow")[1].split("\n")[0]
    )["key"]

    code, out, _ = call(*options, "--json", "--key", key)
    found = json.loads(out)
    table = call(*options, "--key", key)[1]

    committed = describe_topics(settings)[0].committed
    assert code == 0
    assert {state["partition"]: state["offset"] for state in found} == committed
    (shown,) = [state["key"] for state in found if "key" in state]
    assert shown["key"] == key
    assert shown["observations"] > 0
    assert [len(r["mean"]) for r in shown["resolutions"]] == [
        r.horizon for r in settings.resolutions
    ]
    assert key in table
    assert "knows key" not in table
    assert "none of them knows key nobody\n" in call(*options, "--key", "nobody")[1]


def test_state_inspect_of_one_partition(call: Call, finished: tuple[str, Settings]) -> None:
    """And of one that has none."""
    path, settings = finished
    options = ("state", "inspect", "--config", path, "--partition")

    assert [s["partition"] for s in json.loads(call(*options, "1", "--json")[1])] == [1]
    assert settings.state.checkpoint_url in call(*options, "7")[1]


def test_state_is_exported_a_key_a_line(
    call: Call, finished: tuple[str, Settings], tmp_path: Path
) -> None:
    """All keys, as `state inspect` shows each; or those that were asked for; or to a file."""
    path, _ = finished
    options = ("state", "export", "--config", path)
    inspect = ("state", "inspect", "--config", path, "--json", "--key")

    code, out, err = call(*options)
    exported = {found["key"]: found for found in map(json.loads, out.splitlines())}
    some = [json.loads(x) for x in call(*options, "--key", "u1", "--key", "u5")[1].splitlines()]
    file = tmp_path / "state.jsonl"

    assert (code, err) == (0, "")
    assert exported.keys() == {f"u{i}" for i in range(7)}
    assert sum(found["observations"] for found in exported.values()) == 600
    for key, found in exported.items():
        (shown,) = (s for s in json.loads(call(*inspect, key)[1]) if "key" in s)
        assert found == {"partition": shown["partition"], **shown["key"]}
        assert len(found["resolutions"]) == 3
    assert {found["key"] for found in some} == {"u1", "u5"}
    assert all(found == exported[found["key"]] for found in some)
    assert call(*options, "--out", str(file)) == (0, "", "")
    assert file.read_text() == out


def test_state_is_exported_a_row_for_each_bucket(
    call: Call, finished: tuple[str, Settings]
) -> None:
    """The history that the windows hold: by its sum, all events of the closed minutes."""
    path, settings = finished
    rows = list(
        csv.DictReader(call("state", "export", "--config", path, "--format", "csv")[1].splitlines())
    )
    lines = map(json.loads, call("state", "export", "--config", path)[1].splitlines())

    minutes = {(r["key"], r["start"]): float(r["value"]) for r in rows if r["step_s"] == "60"}
    logged = Counter(
        (
            json.loads(r.value)["user_id"],
            rfc3339(json.loads(r.value)["ts"] // MINUTE_MS * MINUTE_MS),
        )
        for r in read_topic(settings, settings.input.topic)
        if r.value
    )
    assert {k: n for k, n in minutes.items() if n} == {
        k: n for k, n in logged.items() if k in minutes
    }
    assert sum(minutes.values()) >= 400
    windows = [r["window"] for line in lines for r in line["resolutions"]]
    assert len(rows) == sum(value is not None for window in windows for value in window)


def test_an_export_of_nothing_exits_1(
    call: Call, finished: tuple[str, Settings], tmp_path: Path
) -> None:
    """Keys that no checkpoint knows; no checkpoint; a file that cannot be written."""
    path, settings = finished
    options = ("state", "export", "--config", path)

    code, out, err = call(*options, "--key", "nobody")
    assert (code, out) == (1, "")
    assert err == f"no nobody in any checkpoint of {settings.state.checkpoint_url}\n"
    assert call(*options, "--set", f"state.checkpoint_url=file://{tmp_path}")[0] == 1
    code, _, err = call(*options, "--out", str(tmp_path / "no" / "such"))
    assert code == 2
    assert err.startswith(f"error: cannot write {tmp_path}/no/such: ")


def test_state_of_other_settings_exits_4(call: Call, finished: tuple[str, Settings]) -> None:
    """It says which setting differs."""
    path, _ = finished

    code, _, err = call("state", "inspect", "--config", path, "--set", "model.seed=7")

    assert code == 4
    assert "model.seed was 0 and is 7" in err


# -- events from files -----------------------------------------------------------------------------


def test_a_replay_proves_a_backtest(call: Call, tmp_path: Path) -> None:
    """The same events give the same forecasts; one changed digit is noticed."""
    population = Population(1, 20, 1_767_571_200_000, events_per_s=1.0, fault_share=0)
    events = list(population.events(population.start_ms, population.start_ms + 60 * MINUTE_MS))
    halves = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path, part in zip(halves, (events[:500], events[500:]), strict=True):
        path.write_bytes(b"".join(event.value + b"\n" for event in part))
    out = tmp_path / "out.jsonl"
    files = ("--events", str(halves[0]), str(halves[1]))

    code, report, _ = call("backtest", *files, "--forecasts", str(out), "--json")
    assert code == 0
    assert json.loads(report)["events"] == len(events) > 500

    assert call("replay", *files, "--verify", str(out))[0] == 0
    out.write_text(out.read_text().replace('"observations":3,', '"observations":4,', 1))
    assert call("replay", *files, "--verify", str(out))[0] == 1


def test_a_backtest_shows_as_much_as_is_asked_for(call: Call, tmp_path: Path) -> None:
    """The rows that everyone wants; those of the experts and other variants by flag."""
    population = Population(1, 5, 1_767_571_200_000, events_per_s=0.5, fault_share=0)
    events = population.events(population.start_ms, population.start_ms + 10 * MINUTE_MS)
    path = tmp_path / "e.jsonl"
    path.write_bytes(b"".join(event.value + b"\n" for event in events))
    options = ("backtest", "--events", str(path), "--set", "model.network=false")

    plain, full = call(*options)[1], call(*options, "--experts", "--compare")[1]

    assert "last value" in plain
    for words in ("moving average", "Variants side by side", "lean profile"):
        assert words not in plain
        assert words in full


def test_a_file_without_events_says_what_may_be_wrong(call: Call, tmp_path: Path) -> None:
    """Its records have other fields than the settings say."""
    events = tmp_path / "events.jsonl"
    events.write_text('{"who":"ann"}\n')

    code, out, _ = call("backtest", "--events", str(events), "--set", "model.network=false")

    assert code == 1
    assert "1 rejected (1 no_key)" in out
    assert "do input.key, input.time and input.value name its fields?" in out


def test_an_events_file_that_is_not_there_exits_2(call: Call) -> None:
    """With its name."""
    code, _, err = call("backtest", "--events", "/no/such.jsonl")

    assert code == 2
    assert "/no/such.jsonl" in err


# -- dead letters ----------------------------------------------------------------------------------


@pytest.fixture
def letters(tmp_path: Path, shared_embedded_broker: Broker) -> str:
    """The settings file of a pipeline with four dead letters, all in one partition."""
    path, settings = settings_file(tmp_path, shared_embedded_broker.bootstrap)
    create_topics(settings, 1)
    source, dead = settings.input.topic, settings.output.dead_letter_topic
    now_ms = time.time_ns() // 1_000_000
    rejects = [
        Reject(0, 7, Reason.NOT_JSON, "odd", b"ann", b"\xff\x00", now_ms, (("trace", b"t1"),)),
        Reject(0, 8, Reason.NO_KEY, "missing", None, b'{"a":"\x1b[31m[red]\xc3\xbc"}', now_ms),
        Reject(0, 9, Reason.NO_KEY, "missing", b"", None, now_ms),
        Reject(0, 10, Reason.BAD_TIME, "ts is str", b"bob", b"x" * 500, now_ms),
    ]
    logger = structlog.get_logger()
    publisher = Publisher(settings.kafka, None, Outage(settings.kafka, logger), logger)
    publisher.deliver([dead_letter(reject, source, dead) for reject in rejects])
    publisher.close()
    return path


def test_dead_letters_are_listed(call: Call, letters: str) -> None:
    """All of them, those of a reason, or so many; nothing in them is obeyed by a terminal."""
    code, table, _ = call("dlq", "list", "--config", letters)
    _, as_json, _ = call("dlq", "list", "--config", letters, "--json", "--reason", "no_key")
    _, some, err = call("dlq", "list", "--config", letters, "--json", "--limit", "2")
    found = json.loads(as_json)

    assert code == 0
    assert table.count("no_key") == 2
    assert re.search(r"\b0:1\b", table)  # what `dlq show` takes
    assert r"\x1b[31m[red]ü" in table
    assert "\x1b[31m" not in table
    assert [(row["offset"], row["origin"]["offset"]) for row in found] == [(1, 8), (2, 9)]
    assert found[1]["value"] is None
    assert len(json.loads(some)) == 2
    assert "--limit" in err


def test_no_dead_letters_are_no_table(
    call: Call, letters: str, tmp_path: Path, shared_embedded_broker: Broker
) -> None:
    """It says where there is nothing, and of which reasons."""
    path, settings = settings_file(tmp_path, shared_embedded_broker.bootstrap)
    create_topics(settings, 1)
    dead = settings.output.dead_letter_topic

    assert call("dlq", "list", "--config", path) == (0, f"nothing in {dead}\n", "")
    assert call("dlq", "list", "--config", path, "--json") == (0, "[]\n", "")
    assert call("dlq", "list", "--config", letters, "--reason", "too_late")[1].endswith(
        ".dead for too_late\n"
    )


def test_a_dead_letter_is_shown_whole(call: Call, letters: str) -> None:
    """Text where it is UTF-8, else hexadecimal; headers, place and reason."""
    code, out, _ = call("dlq", "show", "0:0", "--config", letters)
    shown = json.loads(call("dlq", "show", "0:3", "--config", letters, "--json")[1])

    assert code == 0
    assert "hex ff00" in out
    assert "not_json: odd" in out
    assert "trace: t1" in out
    assert shown["value"] == {"text": "x" * 500}
    assert (shown["reason"], shown["detail"], shown["replays"]) == ("bad_time", "ts is str", 0)


@pytest.mark.parametrize(
    ("place", "code", "says"),
    [("0:4", 1, "no record at 0:4"), ("5:0", 3, "no partition 5"), ("1", 2, "PARTITION:OFFSET")],
)
def test_a_dead_letter_that_is_not_there(
    call: Call, letters: str, place: str, code: int, says: str
) -> None:
    """One line, without a traceback."""
    ended, out, err = call("dlq", "show", place, "--config", letters)

    assert (ended, out) == (code, "")
    assert says in err
    assert "Traceback" not in err


def test_dead_letters_are_replayed_once(call: Call, letters: str) -> None:
    """By reason first, then the rest, then nothing."""
    options = ("dlq", "replay", "--config", letters)

    by_reason = json.loads(call(*options, "--reason", "no_key", "--json")[1])
    _, rest, _ = call(*options)
    again = json.loads(call(*options, "--json")[1])

    assert by_reason == {"resent": 2, "given_up": 0, "foreign": 0, "cut": 0}
    assert rest.startswith("2 records sent to ")
    assert again == {"resent": 0, "given_up": 0, "foreign": 0, "cut": 0}
    assert call(*options, "--reason", "bad_luck")[0] == 2
