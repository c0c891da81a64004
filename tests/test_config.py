import json
import tomllib
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_forecaster.config import (
    ENVIRONMENT_PREFIX,
    Settings,
    from_assignments,
    load,
    parse,
    redacted,
    to_toml,
)
from stream_forecaster.errors import ConfigError

CONTRACT = """
[kafka]
bootstrap_servers = "localhost:9092"
group_id = "stream-forecaster"
guarantee = "exactly_once"
instance_id = ""
session_timeout = "10s"

[input]
topic = "events"
key = ["user_id"]
time = "ts"
time_format = "auto"
value = ""
aggregate = "count"
timezone = "UTC"
allowed_lateness = "2m"
max_ahead = "5m"

[[resolutions]]
step = "1m"
context = 60
horizon = 30
[[resolutions]]
step = "1h"
context = 48
horizon = 24
[[resolutions]]
step = "1d"
context = 28
horizon = 7

[output]
topic = "forecasts"
dead_letter_topic = "events.dead-letter"
scores_topic = ""
quantiles = [0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975]
publish = "changed"

[model]
weights = ""
network = true
train_every_hops = 6
train_rows = 64
profile = "auto"
seed = 0

[state]
checkpoint_url = "file:///var/lib/stream-forecaster"
checkpoint_interval = "30s"
key_ttl = "30d"

[http]
host = "127.0.0.1"
port = 8080
"""
"""The settings others rely on, with the defaults they rely on."""

PASSWORD = "hunter2"  # noqa: S105  (what must not be seen)
SASL = {
    "security_protocol": "SASL_SSL",
    "sasl_mechanism": "PLAIN",
    "sasl_plain_username": "me",
    "sasl_plain_password": PASSWORD,
}


def _load(
    toml: str | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
) -> Settings:
    """`load`, with variables named without their prefix and files from a mapping."""

    def read_file(path: str) -> str:
        if files is None or path not in files:
            raise FileNotFoundError(2, "No such file or directory", path)
        return files[path]

    variables = {f"{ENVIRONMENT_PREFIX}{name}": v for name, v in (environment or {}).items()}
    return load(toml, variables, flags or {}, read_file)


def _problem(mapping: Mapping[str, Any]) -> str:
    with pytest.raises(ConfigError) as raised:
        parse(mapping)
    return str(raised.value)


# Defaults


def _leaves(mapping: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """The settings of a nested mapping by dotted name; lists are leaves."""
    leaves: dict[str, Any] = {}
    for name, value in mapping.items():
        where = f"{path}.{name}".lstrip(".")
        leaves |= _leaves(value, where) if isinstance(value, dict) else {where: value}
    return leaves


@pytest.mark.parametrize(("name", "value"), _leaves(tomllib.loads(CONTRACT)).items())
def test_the_contract_has_its_defaults(name: str, value: object) -> None:
    """Every setting of the contract exists under its name, with exactly its default."""
    assert _leaves(redacted(parse({})))[name] == value


def test_spelling_the_defaults_out_changes_nothing() -> None:
    """A file that repeats every default is the empty file."""
    assert _load(CONTRACT) == _load()


def test_settings_are_frozen() -> None:
    """What was checked stays checked."""
    with pytest.raises(ValueError, match="frozen"):
        parse({}).http.port = 1  # type: ignore[misc]  # the point


# Sources


@pytest.mark.parametrize(
    ("toml", "environment", "flags", "port"),
    [
        (None, None, None, 8080),
        (1, None, None, 1),
        (1, 2, None, 2),
        (1, 2, 3, 3),
        (None, 2, None, 2),
        (1, None, 3, 3),
    ],
)
def test_the_later_source_wins(
    toml: int | None, environment: int | None, flags: int | None, port: int
) -> None:
    """Defaults < TOML < environment < flags."""
    settings = _load(
        f"[http]\nport = {toml}" if toml else None,
        {"HTTP__PORT": str(environment)} if environment else None,
        {"http": {"port": flags}} if flags else None,
    )

    assert settings.http.port == port


def test_sources_merge_setting_by_setting() -> None:
    """A source overrides the settings it names, not their section."""
    settings = _load(
        '[kafka]\ngroup_id = "file"\nbootstrap_servers = "file"\ninstance_id = "file"',
        {"KAFKA__BOOTSTRAP_SERVERS": "environment", "KAFKA__INSTANCE_ID": "environment"},
        {"kafka": {"instance_id": "flag"}},
    )

    kafka = settings.kafka
    assert (kafka.group_id, kafka.bootstrap_servers, kafka.instance_id) == (
        "file",
        "environment",
        "flag",
    )


@given(
    layers=st.lists(
        st.dictionaries(
            st.sampled_from(["group_id", "bootstrap_servers", "instance_id"]),
            st.text("abc", min_size=1),
        ),
        min_size=3,
        max_size=3,
    )
)
def test_merging_is_overriding_by_name(layers: list[dict[str, str]]) -> None:
    """For any settings in the three sources the result is that of their union, later ones first."""
    toml, environment, flags = layers

    settings = _load(
        to_toml({"kafka": toml}),
        {f"KAFKA__{name.upper()}": value for name, value in environment.items()},
        {"kafka": flags},
    )

    assert settings == parse({"kafka": toml | environment | flags})


def test_flags_are_not_changed_by_merging() -> None:
    """The mapping handed in stays the caller's."""
    flags = {"kafka": {"group_id": "flag"}}

    _load('[kafka]\ninstance_id = "file"', {"KAFKA__GROUP_ID": "environment"}, flags)

    assert flags == {"kafka": {"group_id": "flag"}}


def test_a_file_that_is_not_toml_says_where() -> None:
    """The message has the line."""
    with pytest.raises(ConfigError, match=r"not valid TOML: .*line 2"):
        _load("[http]\nport = = 1")


# Environment


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("HTTP__PORT", "0", {"http": {"port": 0}}),
        ("MODEL__NETWORK", "false", {"model": {"network": False}}),
        ("INPUT__ALLOWED_LATENESS", "10s", {"input": {"allowed_lateness": "10s"}}),
        ("INPUT__KEY", "user_id", {"input": {"key": ["user_id"]}}),
        ("INPUT__KEY", "user_id, item_id", {"input": {"key": ["user_id", "item_id"]}}),
        ("INPUT__KEY", '["a,b"]', {"input": {"key": ["a,b"]}}),
        ("INPUT__KEY", "", {"input": {"key": []}}),
        ("INPUT__KEY", "[]", {"input": {"key": []}}),
        ("INPUT__TIME", "", {"input": {"time": ""}}),
        ("INPUT__TIME", "[ts", {"input": {"time": "[ts"}}),
        ("OUTPUT__QUANTILES", "0.1,0.5", {"output": {"quantiles": [0.1, 0.5]}}),
        ("OUTPUT__QUANTILES", "[0.1, 0.5]", {"output": {"quantiles": [0.1, 0.5]}}),
        ("HTTP", '{"port": 1}', {"http": {"port": 1}}),
        (
            "RESOLUTIONS",
            '[{"step": "5m", "context": 3, "horizon": 2}]',
            {"resolutions": [{"step": "5m", "context": 3, "horizon": 2}]},
        ),
    ],
)
def test_a_variable_is_read_as_its_settings_type(
    variable: str, text: str, expected: dict[str, Any]
) -> None:
    """Numbers, flags, durations, lists and tables can all be given; a text stays the text it is."""
    assert _load(environment={variable: text}) == parse(expected)


@pytest.mark.parametrize("names", [("HTTP", "HTTP__PORT"), ("HTTP__PORT", "HTTP")])
def test_the_narrower_variable_wins(names: tuple[str, str]) -> None:
    """A setting of its own goes before its section's table, in whatever order they are set."""
    texts = {"HTTP": '{"port": 1, "host": "::1"}', "HTTP__PORT": "2"}

    http = _load(environment={name: texts[name] for name in names}).http

    assert (http.host, http.port) == ("::1", 2)


@pytest.mark.parametrize("password", ["[x", "{x", '{"a": 1}', "[1]", "a,b", " x ", "true", "7"])
@pytest.mark.parametrize("through_file", [True, False])
def test_a_password_may_look_like_anything(password: str, *, through_file: bool) -> None:
    """A secret is never taken for a list, a table or a number."""
    name, files = "KAFKA__SSL_PASSWORD", {"/run/secret": password}
    environment = {f"{name}_FILE": "/run/secret"} if through_file else {name: password}

    secret = _load(environment=environment, files=files).kafka.ssl_password

    assert secret is not None
    assert secret.get_secret_value() == password


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_secret_comes_from_a_file(end: str) -> None:
    """`..._FILE` names a file whose content, without its line end, is the value."""
    settings = _load(
        flags={"kafka": {k: v for k, v in SASL.items() if k != "sasl_plain_password"}},
        environment={"KAFKA__SASL_PLAIN_PASSWORD_FILE": "/run/secret"},
        files={"/run/secret": f" {PASSWORD}{end}"},
    )

    secret = settings.kafka.sasl_plain_password
    assert secret is not None
    assert secret.get_secret_value() == f" {PASSWORD}"


def test_a_setting_whose_name_ends_in_file_is_itself() -> None:
    """`ssl_cafile` is a path the client opens, not a file that holds a path."""
    environment = {"KAFKA__SSL_CAFILE": "/ca.pem", "KAFKA__SECURITY_PROTOCOL": "SSL"}
    assert _load(environment=environment).kafka.ssl_cafile == "/ca.pem"


def test_a_missing_secret_file_is_reported() -> None:
    """The message names the variable, the file and the reason."""
    with pytest.raises(ConfigError) as raised:
        _load(environment={"KAFKA__SSL_PASSWORD_FILE": "/nope"})

    assert str(raised.value) == (
        "STREAM_FORECASTER__KAFKA__SSL_PASSWORD_FILE: cannot read /nope: No such file or directory"
    )


def test_a_secret_file_that_is_not_text_is_reported() -> None:
    """Bytes that do not decode are a settings error too, without showing them."""

    def read_file(path: str) -> str:
        del path
        return b"\xff\xfe\xfd".decode()

    with pytest.raises(ConfigError, match="cannot read /key: it is not text"):
        load(None, {f"{ENVIRONMENT_PREFIX}KAFKA__SSL_PASSWORD_FILE": "/key"}, {}, read_file)


def test_a_variable_and_its_file_contradict_each_other() -> None:
    """Two sources of one rank for one setting: neither is guessed to be meant."""
    with pytest.raises(ConfigError, match=r"SSL_PASSWORD and .*SSL_PASSWORD_FILE are both set"):
        _load(
            environment={"KAFKA__SSL_PASSWORD": "x", "KAFKA__SSL_PASSWORD_FILE": "/f"},
            files={"/f": "y"},
        )


@pytest.mark.parametrize(
    "variable",
    ["STREAM_FORECASTER_PORT", "STREAM_FORECASTER_SERVICE_HOST", "STREAM_FORECASTER_PORT_8080_TCP"],
)
def test_variables_of_kubernetes_are_not_ours(variable: str) -> None:
    """A Kubernetes service called stream-forecaster sets these in every pod beside it."""
    assert load(None, {variable: "tcp://10.0.0.1:8080"}, {}, str) == parse({})


def test_invalid_json_names_the_variable_and_not_its_content() -> None:
    """A table may hold a password, so its text is not repeated."""
    with pytest.raises(ConfigError) as raised:
        _load(environment={"KAFKA": f'{{"ssl_password": "{PASSWORD}"'})

    assert "STREAM_FORECASTER__KAFKA: not valid JSON" in str(raised.value)
    assert PASSWORD not in str(raised.value)


# Assignments


def test_assignments_nest_and_the_last_one_wins() -> None:
    """`section.key=value` is read as the variable of the same name would be."""
    flags = from_assignments(
        ["http.port=1", "http.port = 2", "input.key=a,b", "model.weights=file:///w?x=y"]
    )

    assert parse(flags) == parse(
        {"http": {"port": 2}, "input": {"key": ["a", "b"]}, "model": {"weights": "file:///w?x=y"}}
    )


@pytest.mark.parametrize(
    "assignment",
    [
        f"kafka.sasl_plain_password={PASSWORD}",
        f"kafka.ssl_password={PASSWORD}",
        f'kafka={{"sasl_plain_password": "{PASSWORD}"}}',
    ],
)
def test_a_secret_is_not_taken_from_the_command_line(assignment: str) -> None:
    """Where `ps` shows it; the message names the variable that may hold it, and its file."""
    with pytest.raises(
        ConfigError, match=r"KAFKA__S\w+_PASSWORD, or that name with _FILE"
    ) as raised:
        from_assignments([assignment])

    assert PASSWORD not in str(raised.value)


@pytest.mark.parametrize("assignment", [PASSWORD, f"sasl_plain_password={PASSWORD}", "=x", ""])
def test_what_is_no_assignment_is_refused_without_its_value(assignment: str) -> None:
    """The message says how to write one; what may be a secret is not in it."""
    with pytest.raises(ConfigError, match=r"write section\.key=value") as raised:
        from_assignments([assignment])

    assert f"={PASSWORD}" not in str(raised.value)


# Unknown settings


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"kafak": {}}, "kafak: unknown setting; did you mean kafka?"),
        (
            {"kafka": {"boostrap_servers": "x"}},
            "kafka.boostrap_servers: unknown setting; did you mean bootstrap_servers?",
        ),
        (
            {"input": {"allowed_lateness_ms": 1}},
            "input.allowed_lateness_ms: unknown setting; did you mean allowed_lateness?",
        ),
        (
            {"resolutions": [{"step": "1m", "context": 1, "horizon": 1, "horizn": 2}]},
            "resolutions.0.horizn: unknown setting; did you mean horizon?",
        ),
        ({"http": {"x": 1}}, "http.x: unknown setting; known here: host, port, page"),
    ],
)
def test_an_unknown_setting_is_an_error_with_a_suggestion(
    mapping: dict[str, Any], message: str
) -> None:
    """At every level the message names the setting and the closest one that exists."""
    assert _problem(mapping) == message


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("KAFKA__GROUPID", "kafka.groupid (from {}): unknown setting; did you mean group_id?"),
        ("HTPP__PORT", "htpp (from {}): unknown setting; did you mean http?"),
        ("HTTP__HOST__NAME", "http.host (from {}): Input should be a valid string"),
    ],
)
def test_an_unknown_variable_is_an_error_too(variable: str, message: str) -> None:
    """A misspelt variable does not pass in silence."""
    with pytest.raises(ConfigError) as raised:
        _load(environment={variable: "x"})

    assert str(raised.value) == message.format(f"{ENVIRONMENT_PREFIX}{variable}")


@pytest.mark.parametrize(
    ("variable", "text"), [("HTTP__PORT", "99999"), ("HTTP", '{"port": 99999}')]
)
def test_a_bad_variable_is_named(variable: str, text: str) -> None:
    """Who looks for the setting in the file is sent to the environment."""
    with pytest.raises(ConfigError) as raised:
        _load("[log]", {variable: text, "KAFKA__GROUP_ID": "innocent"})

    assert str(raised.value).startswith(f"http.port (from {ENVIRONMENT_PREFIX}{variable}): ")


def test_an_innocent_variable_is_not_named() -> None:
    """A contradiction of the whole section is not blamed on whatever else is set there."""
    with pytest.raises(ConfigError) as raised:
        _load(environment={"INPUT__TOPIC": "innocent"}, flags={"input": {"aggregate": "sum"}})

    assert str(raised.value) == 'input: aggregate = "sum" needs value = "<field>"'


def test_all_problems_are_reported_at_once() -> None:
    """One line each: nobody should start five times to learn of five mistakes."""
    problem = _problem({"http": {"port": -1, "hots": ""}, "model": {"profile": "fat"}})

    assert [line.partition(":")[0] for line in problem.splitlines()] == [
        "model.profile",
        "http.port",
        "http.hots",
    ]


# Quantities


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("250ms", 250),
        ("10s", 10_000),
        ("2m", 120_000),
        ("3h", 10_800_000),
        ("30d", 2_592_000_000),
        ("2w", 1_209_600_000),
        (" 5 M ", 300_000),
        ("0s", 0),
    ],
)
def test_durations(text: str, ms: int) -> None:
    """A number and a unit, in any case, with or without a space."""
    assert parse({"input": {"allowed_lateness": text}}).input.allowed_lateness_ms == ms


@pytest.mark.parametrize(
    ("text", "shown"),
    [("0s", "0ms"), ("1500ms", "1500ms"), ("90s", "90s"), ("120s", "2m"), ("7d", "1w")],
)
def test_durations_are_shown_in_their_largest_unit(text: str, shown: str) -> None:
    """Without a rest, so that nothing is lost; nothing at all is in the smallest."""
    settings = parse({"input": {"allowed_lateness": text}})

    assert redacted(settings)["input"]["allowed_lateness"] == shown


@pytest.mark.parametrize(
    "text", ["", "5", "m", "5 minutes", "-5m", "1.5h", "5m5s", "1y", "\u0665m"]
)
def test_what_is_no_duration(text: str) -> None:
    """The message shows what was given, the units, and an example."""
    problem = _problem({"input": {"allowed_lateness": text}})

    assert problem == (
        "input.allowed_lateness: expected a number with one of ms, s, m, h, d, w, such as 2m "
        f"(got {text!r})"
    )


@pytest.mark.parametrize("value", [5, 5.0, True, None, ["5m"]])
def test_a_duration_needs_its_unit(value: object) -> None:
    """A bare number would leave the reader to guess."""
    assert "expected a string with a unit" in _problem({"input": {"allowed_lateness": value}})


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("1B", 1), ("2KiB", 2_048), ("1MiB", 1_048_576), ("1gib", 1_073_741_824)],
)
def test_sizes(text: str, n_bytes: int) -> None:
    """Powers of two, and named so."""
    assert parse({"input": {"max_event_bytes": text}}).input.max_event_bytes == n_bytes


def test_a_decimal_size_is_refused() -> None:
    """1MB may mean either; the units that mean one are listed."""
    assert "one of B, KiB, MiB, GiB" in _problem({"input": {"max_event_bytes": "1MB"}})


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"input": {"allowed_lateness": "36526d"}}, "at most 36525d"),
        ({"input": {"max_event_bytes": "1025GiB"}}, "at most 1024GiB"),
        ({"state": {"key_ttl": "999ms"}}, "at least 1s"),
    ],
)
def test_quantities_have_bounds(mapping: dict[str, Any], message: str) -> None:
    """A slip of the keyboard does not overflow a column of milliseconds later."""
    assert message in _problem(mapping)


# Contradictions


def _resolution(step: str) -> dict[str, Any]:
    return {"step": step, "context": 2, "horizon": 1}


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"input": {"aggregate": "sum"}}, 'aggregate = "sum" needs value'),
        ({"input": {"value": "x"}}, "not used by aggregate"),
        ({"input": {"key": ["a", "a"]}}, "each is listed once"),
        ({"input": {"key": [""]}}, "key fields have names"),
        ({"input": {"timezone": "Mars/Base"}}, "IANA time zone"),
        ({"input": {"timezone": "../etc/passwd"}}, "IANA time zone"),
        ({"input": {"timezone": "Europe"}}, "IANA time zone"),
        ({"input": {"timezone": ""}}, "IANA time zone"),
        ({"input": {"topic": "forecasts"}}, "topics must differ"),
        ({"output": {"topic": "a", "dead_letter_topic": "a"}}, "topics must differ"),
        ({"output": {"scores_topic": "events"}}, "topics must differ"),
        ({"output": {"quantiles": []}}, "at least one"),
        ({"output": {"quantiles": [0.5, 0.5]}}, "must ascend"),
        ({"output": {"quantiles": [0.5, 0.1]}}, "must ascend"),
        ({"output": {"quantiles": [0.0, 0.5]}}, "strictly between 0 and 1"),
        ({"output": {"quantiles": [float("nan")]}}, "strictly between 0 and 1"),
        ({"resolutions": []}, "at least one resolution"),
        ({"resolutions": [_resolution("1h"), _resolution("1m")]}, "ascend"),
        ({"resolutions": [_resolution("1m"), _resolution("1m")]}, "ascend"),
        ({"resolutions": [_resolution("2m"), _resolution("5m")]}, "multiple of the one before"),
        ({"resolutions": [_resolution("7m")]}, "divides a day or is a number of days, unlike 7m"),
        ({"resolutions": [_resolution("36h")]}, "divides a day"),
        ({"resolutions": [_resolution("500ms")]}, "at least 1s"),
        ({"resolutions": [{"step": "1m", "context": 0, "horizon": 1}]}, "resolutions.0.context"),
        ({"resolutions": [{"step": "1m", "context": 1}]}, "resolutions.0.horizon: Field required"),
        ({"kafka": {"group_id": ""}}, "kafka.group_id"),
        ({"kafka": {"guarantee": "best_effort"}}, "'exactly_once' or 'at_least_once'"),
        ({"kafka": {"security_protocol": "SASL_SSL"}}, "needs sasl_mechanism"),
        ({"kafka": {"sasl_mechanism": "PLAIN"}}, 'not used by security_protocol = "PLAINTEXT"'),
        ({"kafka": SASL | {"sasl_plain_password": None}}, "needs sasl_plain_username and"),
        ({"kafka": {"ssl_cafile": "/ca.pem"}}, "ssl_cafile is not used by security_protocol"),
        (
            {"kafka": SASL | {"security_protocol": "SASL_PLAINTEXT", "ssl_keyfile": "/key.pem"}},
            'which is not encrypted: set "SSL" or "SASL_SSL"',
        ),
        ({"http": {"port": 65_536}}, "http.port"),
        ({"state": {"checkpoint_url": "s3://me:hunter2@bucket"}}, "holds no password"),
        ({"model": {"weights": "sftp://me:hunter2@host/w"}}, "holds no password"),
    ],
)
def test_what_contradicts_itself_is_refused(mapping: dict[str, Any], message: str) -> None:
    """Each impossible combination has its own sentence, which says what to change."""
    assert message in _problem(mapping)


@pytest.mark.parametrize(
    "mapping",
    [
        {"input": {"aggregate": "mean", "value": "amount"}},
        {"input": {"key": []}},
        {"input": {"timezone": "Europe/Zurich"}},
        {"output": {"quantiles": [0.5]}},
        {"resolutions": [_resolution("15m"), _resolution("1d"), _resolution("7d")]},
        {"kafka": SASL},
        {"kafka": {"security_protocol": "SASL_SSL", "sasl_mechanism": "GSSAPI"}},
        {"http": {"port": 0}},
        {"state": {"checkpoint_url": "s3://bucket@eu/path:1"}},
    ],
)
def test_what_is_possible_is_allowed(mapping: dict[str, Any]) -> None:
    """The checks refuse nothing that makes sense."""
    parse(mapping)


# Secrets


@pytest.mark.parametrize(
    "mapping",
    [
        {"kafka": {"sasl_plain_pasword": PASSWORD}},
        {"kafka": {"sasl_plain_password": [PASSWORD]}},
        {"kafka": {"ssl_password": {"x": PASSWORD}}},
        {"kafka": [{"sasl_plain_password": PASSWORD}]},
        {"kafka": PASSWORD},
        {"kafka": SASL | {"sasl_plain_username": None}},
        {"kafka": SASL | {"security_protocol": "SSL"}},
        {"kafka": SASL | {"group_id": ""}},
        {"kafka": {"bootstrap_servers": [f"kafka://me:{PASSWORD}@host"]}},
        {"state": {"checkpoint_url": f"s3://me:{PASSWORD}@bucket"}},
        {"http": {"sasl_plain_password": PASSWORD}},
    ],
)
def test_no_secret_in_an_error(mapping: dict[str, Any]) -> None:
    """However the settings around it are wrong, the password is not repeated."""
    assert PASSWORD not in _problem(mapping)


@pytest.mark.parametrize(
    "show", [str, repr, lambda s: to_toml(redacted(s)), Settings.model_dump_json]
)
def test_no_secret_in_what_is_shown(show: Any) -> None:
    """Neither printing nor dumping the settings shows a password; that there is one, it does."""
    text = show(parse({"kafka": SASL | {"ssl_password": PASSWORD}}))

    assert PASSWORD not in text
    assert "***" in text


def test_a_secret_that_is_not_set_is_not_shown_as_set() -> None:
    """`***` means that there is one."""
    assert "***" not in to_toml(redacted(parse({})))
    assert "***" not in parse({}).model_dump_json()


# What forecasts depend on

UNITS = st.sampled_from(["ms", "s", "m", "h", "d", "w"])
DURATIONS = st.builds("{}{}".format, st.integers(0, 5_000), UNITS)
LONG_DURATIONS = st.builds("{}{}".format, st.integers(1, 5_000), UNITS.filter("ms".__ne__))
SIZES = st.builds("{}{}".format, st.integers(0, 1_000), st.sampled_from(["B", "KiB", "MiB", "GiB"]))
NAMES = st.text(min_size=1, max_size=8)
RESOLUTIONS = st.lists(
    st.sampled_from(["1s", "15m", "1h", "6h", "1d", "7d"]), min_size=1, unique=True
).map(
    lambda steps: [
        _resolution(s) for s in sorted(steps, key=("1s", "15m", "1h", "6h", "1d", "7d").index)
    ]
)
SECTIONS: dict[str, st.SearchStrategy[Any]] = {
    "kafka": st.fixed_dictionaries(
        {},
        optional={
            "bootstrap_servers": NAMES,
            "group_id": NAMES,
            "guarantee": st.sampled_from(["exactly_once", "at_least_once"]),
            "session_timeout": DURATIONS,
            "commit_interval": DURATIONS,
            "sasl_kerberos_name": NAMES,
        },
    ),
    "input": st.fixed_dictionaries(
        {},
        optional={
            "key": st.lists(NAMES, max_size=3, unique=True),
            "time": st.text(max_size=8),
            "timezone": st.sampled_from(["UTC", "Europe/Zurich"]),
            "allowed_lateness": DURATIONS,
            "max_event_bytes": SIZES,
        },
    ),
    "resolutions": RESOLUTIONS,
    "output": st.fixed_dictionaries(
        {},
        optional={
            "quantiles": st.lists(st.floats(0.001, 0.999), min_size=1, max_size=9, unique=True).map(
                sorted
            ),
            "publish": st.sampled_from(["changed", "every_hop"]),
        },
    ),
    "model": st.fixed_dictionaries(
        {},
        optional={
            "network": st.booleans(),
            "train_every_hops": st.integers(0, 1_000),
            "train_rows": st.integers(1, 256),
            "device": st.sampled_from(["auto", "cpu", "cuda"]),
            "seed": st.integers(0, 2**53),
        },
    ),
    "state": st.fixed_dictionaries(
        {},
        optional={
            "checkpoint_interval": DURATIONS,
            "key_ttl": LONG_DURATIONS,
            "max_keys": st.integers(1, 10**9),
        },
    ),
    "http": st.fixed_dictionaries({}, optional={"port": st.integers(0, 65_535)}),
    "log": st.fixed_dictionaries({}, optional={"level": st.sampled_from(["debug", "error"])}),
}
MAPPINGS = st.fixed_dictionaries({}, optional=SECTIONS)


@given(mapping=MAPPINGS)
def test_what_is_shown_can_be_read_back(mapping: dict[str, Any]) -> None:
    """`config show` prints a file that gives the same settings, as a mapping and as TOML."""
    settings = parse(mapping)

    shown = redacted(settings)

    assert parse(shown) == settings
    assert tomllib.loads(to_toml(shown)) == shown


DETERMINING = {
    "kafka": {"group_id"},
    "input": {
        "topic",
        "key",
        "time",
        "time_format",
        "value",
        "aggregate",
        "timezone",
        "allowed_lateness",
        "max_ahead",
        "max_event_bytes",
        "max_key_bytes",
    },
    "output": {"quantiles", "publish"},
    "model": {"weights", "network", "train_every_hops", "train_rows", "profile", "seed"},
    "state": {"key_ttl", "max_keys"},
}
"""Section -> its settings that forecasts depend on; `resolutions` besides."""


def _determining(settings: Settings) -> dict[str, Any]:
    shown = redacted(settings)
    chosen = {
        section: {name: shown[section][name] for name in names}
        for section, names in DETERMINING.items()
    }
    return chosen | {"resolutions": shown["resolutions"]}


@given(one=MAPPINGS, other=MAPPINGS)
def test_config_id_changes_exactly_when_forecasts_could(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    """Equal ids mean equal determining settings, and the other way round."""
    a, b = parse(one), parse(other)

    assert (a.config_id == b.config_id) == (_determining(a) == _determining(b))


CHANGES: dict[str, dict[str, Any]] = {
    "kafka": {"group_id": "other"},
    "input": {
        "topic": "other",
        "key": ["item_id"],
        "time": "",
        "time_format": "epoch_s",
        "timezone": "Europe/Zurich",
        "allowed_lateness": "1m",
        "max_ahead": "1m",
        "max_event_bytes": "2MiB",
        "max_key_bytes": "2KiB",
    },
    "output": {"quantiles": [0.5], "publish": "every_hop"},
    "model": {
        "weights": "file:///w",
        "network": False,
        "train_every_hops": 0,
        "train_rows": 32,
        "profile": "lean",
        "seed": 1,
    },
    "state": {"key_ttl": "1d", "max_keys": 99},
}


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [(section, name, value) for section, named in CHANGES.items() for name, value in named.items()],
)
def test_each_determining_setting_changes_config_id(section: str, name: str, value: object) -> None:
    """None of them can change behind a checkpoint's back."""
    assert parse({section: {name: value}}).config_id != parse({}).config_id


@pytest.mark.parametrize(
    "mapping",
    [
        {"kafka": SASL | {"bootstrap_servers": "other", "guarantee": "at_least_once"}},
        {"output": {"topic": "other", "dead_letter_topic": "another", "scores_topic": "s"}},
        {"state": {"checkpoint_url": "memory://x", "checkpoint_interval": "1s"}},
        {"http": {"port": 1}, "log": {"level": "debug"}},
        {"model": {"device": "cpu"}},
    ],
)
def test_the_rest_leaves_config_id_alone(mapping: dict[str, Any]) -> None:
    """Moving a broker, a topic, a port or the network keeps the state."""
    assert parse(mapping).config_id == parse({}).config_id


def test_config_id_of_the_defaults_is_pinned() -> None:
    """Changing it makes every checkpoint and message id new: a decision, not a side effect."""
    assert parse({}).config_id == "ed5ba18ed87c"


def test_determining_survives_json() -> None:
    """A checkpoint stores it as JSON and compares it after reading it back."""
    determining = parse({}).determining()

    assert json.loads(json.dumps(determining)) == determining
