"""Settings: TOML < environment < flags, checked once, then frozen.

The names in the file are the contract; the attributes carry the unit (`allowed_lateness = "2m"` in
the file is `allowed_lateness_ms == 120_000` here). An unknown name is an error with a suggestion.
Nothing here opens a file or reads the environment: `cli` does, and hands the texts in.
"""

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date
from itertools import pairwise
from typing import Annotated, Any, Literal, Self, get_args, get_origin
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from stream_forecaster.calendar import DAY_MS, HOUR_MS, WEEK_MS, Calendar
from stream_forecaster.errors import ConfigError

ENVIRONMENT_PREFIX = "STREAM_FORECASTER__"

AUTO_FULL_KEYS = 100_000
"""Of a partition; where `state.max_keys` lets in more, the profile `auto` is the lean one."""

MOST_CONTEXT = 10_000
"""Closed buckets of a resolution that can be remembered."""

_URL_PASSWORD = re.compile(r"(?<=://)([^/\s:@]*:)[^/\s]+(?=@)")
_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": HOUR_MS, "d": DAY_MS, "w": WEEK_MS}
_UNITS_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_LARGEST_MS = 36_525 * DAY_MS
_LARGEST_BYTES = 1 << 40
_MOST_SHOWN = 200
"""Characters of a value in an error."""


def _quantity(units: Mapping[str, int], example: str, largest: int) -> Callable[[object], int]:
    """A parser of numbers with a unit, whatever its case."""
    factors = {unit.lower(): factor for unit, factor in units.items()}

    def parse(value: object) -> int:
        if not isinstance(value, str):
            raise ValueError(f"expected a string with a unit, such as {example!r}")  # noqa: TRY004  (pydantic reports ValueError with the field's name)
        match = re.fullmatch(r"([0-9]{1,18})\s*([A-Za-z]+)", value.strip())
        if not match or match[2].lower() not in factors:
            raise ValueError(f"expected a number with one of {', '.join(units)}, such as {example}")
        amount = int(match[1]) * factors[match[2].lower()]
        if amount > largest:
            raise ValueError(f"at most {_spelled(units)(largest)}")
        return amount

    return parse


def _spelled(units: Mapping[str, int]) -> Callable[[int], str]:
    """The inverse of `_quantity`: in the largest unit that leaves no rest."""

    def spell(amount: int) -> str:
        smallest, *larger = units
        fitting = [u for u in larger if amount >= units[u] and amount % units[u] == 0]
        unit = fitting[-1] if fitting else smallest
        return f"{amount // units[unit]}{unit}"

    return spell


def _at_least_a_second(ms: int) -> int:
    if ms < 1_000:
        raise ValueError("at least 1s")
    return ms


def without_passwords(text: str) -> str:
    """The text with the password of every URL in it masked."""
    return _URL_PASSWORD.sub(r"\1***", text)


def _whole_seconds(value_ms: int) -> int:
    if value_ms % 1_000:
        raise ValueError("a step is a whole number of seconds")
    return value_ms


def _holds_no_password(url: str) -> str:
    if without_passwords(url) != url:
        raise ValueError(
            "a URL here holds no password: give it to the driver (FSSPEC_... variables)"
        )
    return url


Duration = Annotated[
    int,
    BeforeValidator(_quantity(_UNITS_MS, "2m", _LARGEST_MS)),
    PlainSerializer(_spelled(_UNITS_MS), when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r"^\d+\s*(ms|s|m|h|d|w)$"}),
]
"""Milliseconds; written as a string with a unit, "250ms" or "30d"."""

LongDuration = Annotated[Duration, AfterValidator(_at_least_a_second)]
"""A duration of at least a second."""

WholeSeconds = Annotated[LongDuration, AfterValidator(_whole_seconds)]
"""A duration that messages and metrics can name in seconds."""

Size = Annotated[
    int,
    BeforeValidator(_quantity(_UNITS_BYTES, "1MiB", _LARGEST_BYTES)),
    PlainSerializer(_spelled(_UNITS_BYTES), when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r"^\d+\s*(B|KiB|MiB|GiB)$"}),
]
"""Bytes; written as a string with a unit, "1MiB"."""

Secret = Annotated[
    SecretStr | None, PlainSerializer(lambda secret: secret and "***", when_used="json")
]
"""Never printed: not in a repr, an error or a dump."""

Url = Annotated[str, AfterValidator(_holds_no_password)]
"""Anything fsspec opens."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=False)


class Kafka(_Section):
    """Where the broker is and how commits are made. `security_protocol`, `sasl_*` and `ssl_*` are
    handed to the client as they are.
    """  # noqa: D205  (one sentence that does not fit one line)

    bootstrap_servers: str = Field(
        "localhost:9092", description="where to begin: `host:port`, or several with commas"
    )
    group_id: str = Field(
        "stream-forecaster",
        min_length=1,
        description="the consumer group, and the pipeline's name in forecasts and checkpoints",
    )
    guarantee: Literal["exactly_once", "at_least_once"] = Field(
        "exactly_once",
        description="at_least_once: no transactions, and messages may repeat after a crash",
    )
    instance_id: str = Field(
        "", description="stable over restarts, unique in the group; empty: host and a locked index"
    )
    session_timeout_ms: Duration = Field(
        10_000,
        alias="session_timeout",
        description="a process that was not heard of for so long loses its partitions",
    )
    transaction_timeout_ms: Duration = Field(
        30_000,
        alias="transaction_timeout",
        description="the broker undoes a commit that takes longer",
    )
    max_poll_interval_ms: Duration = Field(
        300_000,
        alias="max_poll_interval",
        description="a process that takes longer over one turn loses its partitions",
    )
    max_poll_records: int = Field(20_000, ge=1, description="records of one turn, at most")
    commit_interval_ms: Duration = Field(
        1_000,
        alias="commit_interval",
        description="longest wait before offsets alone are committed",
    )
    give_up_after_ms: Duration = Field(
        0, alias="give_up_after", description="exit 3 when no broker answers for so long; 0s: never"
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="with a login (SASL), encrypted (SSL), both or neither"
    )
    sasl_mechanism: str | None = Field(
        None, description="PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, or another that the client has"
    )
    sasl_plain_username: str | None = Field(None, description="for PLAIN and SCRAM")
    sasl_plain_password: Secret = Field(None, description="from the environment or a file")
    sasl_kerberos_name: str | None = Field(None, description="principal of this client, for GSSAPI")
    sasl_kerberos_service_name: str | None = Field(None, description="the broker's service name")
    sasl_kerberos_domain_name: str | None = Field(None, description="the broker's host name")
    ssl_cafile: str | None = Field(
        None,
        description="PEM file of who signs brokers' certificates; the system's, if unset",
    )
    ssl_certfile: str | None = Field(
        None, description="PEM file of our own certificate, for brokers that ask for one"
    )
    ssl_keyfile: str | None = Field(None, description="PEM file of its key")
    ssl_password: Secret = Field(None, description="of the key, likewise")
    ssl_crlfile: str | None = Field(None, description="PEM file of certificates that are revoked")
    ssl_ciphers: str | None = Field(None, description="as OpenSSL lists them")
    ssl_check_hostname: bool = Field(
        default=True, description="the certificate has to name the host"
    )

    @model_validator(mode="after")
    def _certificates_fit_protocol(self) -> Self:
        named = [
            name
            for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_crlfile", "ssl_ciphers")
            if getattr(self, name)
        ]
        if named and not self.security_protocol.endswith("SSL"):
            raise ValueError(
                f"{named[0]} is not used by security_protocol = "
                f'"{self.security_protocol}", which is not encrypted: set "SSL" or "SASL_SSL"'
            )
        return self

    @model_validator(mode="after")
    def _credentials_fit_protocol(self) -> Self:
        wanted = self.security_protocol.startswith("SASL_")
        if wanted and not self.sasl_mechanism:
            raise ValueError(f'security_protocol = "{self.security_protocol}" needs sasl_mechanism')
        if self.sasl_mechanism and not wanted:
            raise ValueError(
                f'sasl_mechanism is not used by security_protocol = "{self.security_protocol}": '
                'set security_protocol = "SASL_SSL" or "SASL_PLAINTEXT"'
            )
        by_password = (self.sasl_mechanism or "").startswith(("PLAIN", "SCRAM"))
        if by_password and not (self.sasl_plain_username and self.sasl_plain_password):
            raise ValueError(
                f'sasl_mechanism = "{self.sasl_mechanism}" needs sasl_plain_username and '
                "sasl_plain_password"
            )
        return self


class Input(_Section):
    """What an event looks like."""

    topic: str = Field("events", min_length=1, description="where the events are")
    key: tuple[str, ...] = Field(("user_id",), description="one or several fields; []: Kafka key")
    time: str = Field("ts", description="a field; empty: the record's own timestamp")
    time_format: Literal["auto", "epoch_s", "epoch_ms", "epoch_us", "rfc3339"] = Field(
        "auto", description="auto: RFC 3339, or a number whose size says its unit"
    )
    value: str = Field("", description="a field; empty: count events")
    aggregate: Literal["count", "sum", "mean"] = Field(
        "count", description="what a bucket holds: how many events, or the sum or mean of `value`"
    )
    timezone: str = Field(
        "UTC", description="IANA name: days, weeks and times without an offset are by its clocks"
    )
    holidays: tuple[date, ...] = Field((), description="local dates on which days go like Sundays")
    allowed_lateness_ms: Duration = Field(
        120_000,
        alias="allowed_lateness",
        description="a bucket stays open until an event so much later than its end has come; an "
        "event of a closed one is rejected as too_late",
    )
    max_ahead_ms: Duration = Field(
        300_000,
        alias="max_ahead",
        description="an event that is so far ahead of its own record's time is rejected as "
        "too_far_ahead, and moves no clock",
    )
    max_event_bytes: Size = Field(1 << 20, description="a larger value is rejected as too_large")
    max_key_bytes: Size = Field(1 << 10, description="a larger key is rejected as too_large")

    def calendar(self) -> Calendar:
        """Of the time zone, with its holidays."""
        return Calendar(self.timezone, self.holidays)

    @field_validator("key")
    @classmethod
    def _distinct_fields(cls, fields: tuple[str, ...]) -> tuple[str, ...]:
        if not all(fields) or len(set(fields)) < len(fields):
            raise ValueError("key fields have names, and each is listed once")
        return fields

    @field_validator("timezone")
    @classmethod
    def _zone_exists(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{name!r} is not an IANA time zone, such as Europe/Zurich") from None
        return name

    @model_validator(mode="after")
    def _value_fits_aggregate(self) -> Self:
        if self.aggregate != "count" and not self.value:
            raise ValueError(f'aggregate = "{self.aggregate}" needs value = "<field>"')
        if self.aggregate == "count" and self.value:
            raise ValueError(
                f'value = "{self.value}" is not used by aggregate = "count": '
                'set aggregate = "sum" or "mean", or value = ""'
            )
        return self


class Resolution(_Section):
    """A bucket width, how many closed buckets are remembered, and how many are forecast."""

    step_ms: WholeSeconds = Field(
        alias="step",
        description="bucket width: divides a day or is a number of days, and is a multiple of the "
        "resolution's before",
    )
    context: int = Field(ge=1, le=MOST_CONTEXT, description="closed buckets that are remembered")
    horizon: int = Field(ge=1, le=1_000, description="buckets that are forecast")


class Output(_Section):
    """What is published, and where."""

    topic: str = Field("forecasts", min_length=1, description="where forecasts go")
    dead_letter_topic: str = Field(
        "events.dead-letter", min_length=1, description="where records go that are no events"
    )
    scores_topic: str = Field(
        "",
        description="where each forecast whose time has come goes, with what came, a message per "
        "key, horizon and bucket; none by default",
    )
    quantiles: tuple[float, ...] = Field(
        (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975),
        description="levels that forecasts have, ascending",
    )
    publish: Literal["changed", "every_hop"] = Field(
        "changed",
        description="changed: only forecasts that moved by a tenth of their expected error, or of "
        "which the last one sent is half-way to its end",
    )
    max_pending: int = Field(
        16_384,
        ge=1,
        description="forecasts of a partition that are made before a commit publishes them, so far "
        "as hops allow: those of one hop are published together. Bounds the memory that a backlog "
        "takes, at about 7 KB each",
    )
    shed_after_ms: Duration = Field(
        0,
        alias="shed_after",
        description="when forecasting falls behind: a forecast that was due so long ago, by the "
        "time of the record that made it due, is not published if a newer one of its key, or a "
        "tombstone, is in the same commit; commits are state.checkpoint_interval apart then. "
        "Events are never shed. 0s: every forecast is published, however late",
    )

    @field_validator("quantiles")
    @classmethod
    def _ascending_levels(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        if not levels or not all(0 < level < 1 for level in levels):
            raise ValueError("quantiles lie strictly between 0 and 1, and there is at least one")
        if any(a >= b for a, b in pairwise(levels)):
            raise ValueError("quantiles must ascend")
        return levels


class Model(_Section):
    """How forecasts are made."""

    weights: Url = Field("", description="a URL of fitted weights to start from")
    network: bool = Field(default=True, description="false: the pool alone")
    network_keys: int = Field(
        0,
        ge=0,
        description="the network forecasts at most so many keys of a partition whenever a bucket "
        "closes, half of them the most active, half in turn; 0: all",
    )
    train_every_hops: int = Field(
        6,
        ge=0,
        description="closed buckets of a resolution between two training steps on its samples, "
        "taken in `run` as the stream goes; 0: the network is never trained, it only forecasts",
    )
    train_rows: int = Field(
        64,
        ge=1,
        le=256,
        description="the most samples in a training step; 256 are kept of each resolution",
    )
    river: tuple[str, ...] = Field(
        (), description="forecasters of river.time_series that join the pool for the first keys"
    )
    profile: Literal["full", "lean", "auto"] = Field(
        "auto",
        description="state per key against accuracy: lean has fewer experts and a shorter memory; "
        f"auto is lean where state.max_keys is above {AUTO_FULL_KEYS:,}",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="where the network is computed; auto: by CUDA where torch finds it. The same "
        "log gives the same bytes only on the same kind of device",
    )
    seed: int = Field(0, ge=0, description="of all that is drawn by lot")


class State(_Section):
    """Where state is kept, and for how long."""

    checkpoint_url: Url = Field(
        "file:///var/lib/stream-forecaster",
        description="a directory, or an object store that fsspec has a driver for",
    )
    checkpoint_interval_ms: Duration = Field(
        30_000,
        alias="checkpoint_interval",
        description="at least so long between two checkpoints of a partition",
    )
    key_ttl_ms: LongDuration = Field(
        30 * DAY_MS,
        alias="key_ttl",
        description="a key without events for so long, in event time, expires",
    )
    max_keys: int = Field(
        100_000,
        ge=1,
        description="keys that a partition holds at most; `plan --keys` says what they take. A new "
        "key beyond it takes the place of the least active ones: a 64th of the keys goes at once, "
        "those with the fewest events, where an event counts half as much with every day since it "
        "(in event time)",
    )


class Http(_Section):
    """The one port: health, metrics, page."""

    host: str = Field("127.0.0.1", description="0.0.0.0: all interfaces")
    port: int = Field(8080, ge=0, le=65_535, description="0: any free port")
    page: bool = Field(
        True,  # noqa: FBT003  (pydantic's first parameter)
        description="The live page, which shows keys to whoever can connect.",
    )


class Log(_Section):
    """How the process talks about itself."""

    format: Literal["auto", "json", "console"] = Field("auto", description="auto: json off a tty")
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="the least that is said"
    )


def _default_resolutions() -> tuple[Resolution, ...]:
    rows = (("1m", 60, 30), ("1h", 48, 24), ("1d", 28, 7))
    return tuple(
        Resolution.model_validate({"step": step, "context": context, "horizon": horizon})
        for step, context, horizon in rows
    )


class Settings(_Section):
    """All settings of a process, valid and frozen."""

    kafka: Kafka = Kafka()
    input: Input = Input()
    resolutions: tuple[Resolution, ...] = Field(default_factory=_default_resolutions)
    output: Output = Output()
    model: Model = Model()
    state: State = State()
    http: Http = Http()
    log: Log = Log()

    @field_validator("resolutions")
    @classmethod
    def _nested_steps(cls, resolutions: tuple[Resolution, ...]) -> tuple[Resolution, ...]:
        if not resolutions:
            raise ValueError("there is at least one resolution")
        for fine, coarse in pairwise(resolutions):
            if coarse.step_ms <= fine.step_ms or coarse.step_ms % fine.step_ms:
                raise ValueError("resolutions ascend, each step a multiple of the one before")
        for r in resolutions:
            if DAY_MS % r.step_ms and r.step_ms % DAY_MS:
                step = _spelled(_UNITS_MS)(r.step_ms)
                raise ValueError(f"a step divides a day or is a number of days, unlike {step}")
        return resolutions

    @model_validator(mode="after")
    def _distinct_topics(self) -> Self:
        output = self.output
        named = (self.input.topic, output.topic, output.dead_letter_topic, output.scores_topic)
        topics = [topic for topic in named if topic]
        if len(set(topics)) < len(topics):
            raise ValueError(f"input, output, dead-letter and scores topics must differ: {topics}")
        return self

    @property
    def is_lean(self) -> bool:
        """Do keys have the lean profile?

        `auto` goes by the bound on keys and not by those there are, so that forecasts do not depend
        on when a key came, and a profile never changes under way.
        """
        profile = self.model.profile
        return profile == "lean" or (profile == "auto" and self.state.max_keys > AUTO_FULL_KEYS)

    def determining(self) -> dict[str, Any]:
        """The settings that forecasts depend on, and so what a checkpoint is bound to.

        `model.device` is not one of them, though bits depend on it: it says on what machine, not
        what is forecast. Rounding differs between processors too, and who has lost a graphics
        processor must not lose all that was learned.
        """
        spelled = redacted(self)
        return {
            "input": spelled["input"],
            "resolutions": spelled["resolutions"],
            "output": {name: spelled["output"][name] for name in ("quantiles", "publish")},
            "model": {name: of for name, of in spelled["model"].items() if name != "device"},
            "state": {name: spelled["state"][name] for name in ("key_ttl", "max_keys")},
            "kafka": {"group_id": spelled["kafka"]["group_id"]},
        }

    @property
    def config_id(self) -> str:
        """Twelve hex digits that change whenever forecasts could."""
        canonical = json.dumps(self.determining(), sort_keys=True).encode()
        return hashlib.blake2s(canonical, digest_size=6).hexdigest()


def parse(mapping: Mapping[str, Any]) -> Settings:
    """Check a nested mapping of settings.

    Raises:
        ConfigError: one line per problem, each naming the setting, the value and the way out.
    """
    return _parse(mapping, {})


def load(
    toml: str | None,
    environment: Mapping[str, str],
    flags: Mapping[str, Any],
    read_file: Callable[[str], str],
) -> Settings:
    """Merge the three sources and check the result.

    Args:
        toml: the settings file's text, if there is one.
        environment: the process's variables; `STREAM_FORECASTER__SECTION__KEY` are used, and
            `..._FILE` names a file that holds the value (for secrets).
        flags: nested mapping from the command line, of those that were given; wins.
        read_file: how to read the file a `..._FILE` variable names.

    Raises:
        ConfigError: as `parse`; the text is not TOML; a setting has no effect in this version.
    """
    try:
        merged: dict[str, Any] = tomllib.loads(toml) if toml else {}
    except (ValueError, RecursionError) as error:  # also of numbers of thousands of digits
        raise ConfigError(f"the settings file is not valid TOML: {error}") from None
    variables: dict[tuple[str, ...], str] = {}
    for variable, path, text in _from_environment(environment, read_file):
        if path in variables:
            raise ConfigError(f"{variables[path]} and {variable} are both set: unset one")
        variables[path] = variable
        _merge(merged, _nest(path, _value(variable, path, text)))
    _merge(merged, flags)
    return _parse(merged, variables)


def from_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """`section.key=value`, as the command line has them, as a nested mapping; the last one wins.

    Raises:
        ConfigError: one is not an assignment, names no setting, or holds a secret.
    """
    nested: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        path = tuple(name.strip().split("."))
        if not equals or (len(path) < 2 and path[0] not in Settings.model_fields):
            raise ConfigError(f"--set {name}: write section.key=value")
        assigned = _nest(path, _value(f"--set {name}", path, text))
        for section, setting in _secrets(assigned):
            raise ConfigError(
                f"--set {section}.{setting}: everybody on the machine sees command lines; use "
                f"{ENVIRONMENT_PREFIX}{section.upper()}__{setting.upper()}, or that name with _FILE"
            )
        _merge(nested, assigned)
    return nested


def _secrets(mapping: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The secrets that a nested mapping of settings has: (section, name)."""
    for section, values in mapping.items():
        known = _fields((section,))
        for name in values if isinstance(values, Mapping) else ():
            if name in known and SecretStr in get_args(known[name].annotation):
                yield section, name


def redacted(settings: Settings) -> dict[str, Any]:
    """The settings as the file spells them, secrets as `***`, unset ones left out.

    `parse` takes it back: but for the secrets the result equals `settings`.
    """
    return settings.model_dump(mode="json", by_alias=True, exclude_none=True)


def to_toml(mapping: Mapping[str, Any]) -> str:
    """A nested mapping of settings as the text of a settings file."""
    return tomli_w.dumps(mapping)


def _parse(mapping: Mapping[str, Any], variables: Mapping[tuple[str, ...], str]) -> Settings:
    try:
        return Settings.model_validate(mapping)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error, variables))) from None


def _from_environment(
    environment: Mapping[str, str], read_file: Callable[[str], str]
) -> Iterator[tuple[str, tuple[str, ...], str]]:
    for variable, text in sorted(environment.items()):
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        *sections, name = variable.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        if name.endswith("_file"):
            try:
                content = read_file(text).rstrip("\r\n")
            except (OSError, ValueError) as error:  # UnicodeError, or a null byte in the name
                reason = getattr(error, "strerror", None) or "it is not text"
                raise ConfigError(f"{variable}: cannot read {text}: {reason}") from None
            yield variable, (*sections, name.removesuffix("_file")), content
        else:
            yield variable, (*sections, name), text


def _value(variable: str, path: tuple[str, ...], text: str) -> object:
    """A variable's text as the setting's type: lists and tables here, the rest by pydantic.

    A list of words or numbers may be written with commas; anything else is JSON.
    """
    if not _is_text(text):
        raise ConfigError(f"{variable}: it is not text in UTF-8")
    field = _fields(path[:-1]).get(path[-1])
    is_list = field is not None and get_origin(field.annotation) is tuple
    if not (is_list or _fields(path)):
        return text
    if text.startswith(("[", "{")):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{variable}: not valid JSON: {error}") from None
    return [part.strip() for part in text.split(",") if part.strip()] if is_list else text


def _is_text(text: str) -> bool:
    """Whether it can be written: the system hands over bytes that are none as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _nest(path: Sequence[str], value: object) -> dict[str, Any]:
    nested = {path[-1]: value}
    for part in reversed(path[:-1]):
        nested = {part: nested}
    return nested


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for name, value in other.items():
        if isinstance(value, Mapping) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value


def _fields(path: Sequence[str]) -> dict[str, FieldInfo]:
    """The settings under a path of sections, by their names in the file; empty if it is none."""
    model: type[BaseModel] = Settings
    for part in path:
        field = model.model_fields.get(part)
        section = Resolution if part == "resolutions" else field and field.annotation
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return {}
        model = section
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _explain(error: ValidationError, variables: Mapping[tuple[str, ...], str]) -> Iterator[str]:
    for problem in error.errors():
        path = tuple(part for part in problem["loc"] if isinstance(part, str))
        where = ".".join(str(part) for part in problem["loc"]) or "settings"
        where += "".join(f" (from {name})" for of, name in variables.items() if _about(path, of))
        if problem["type"] == "extra_forbidden":
            known = list(_fields(path[:-1]))
            close = difflib.get_close_matches(path[-1], known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
            yield f"{where}: unknown setting; {hint}"
        else:
            message = problem["msg"].removeprefix("Value error, ")
            yield f"{where}: {message}{_shown(path, problem['input'])}"


def _about(path: tuple[str, ...], variable: tuple[str, ...]) -> bool:
    """Whether a problem at `path` can come from a variable that sets `variable`."""
    if _fields(path):
        return path == variable
    return path[: len(variable)] == variable or variable[: len(path)] == path


def _shown(path: tuple[str, ...], value: object) -> str:
    """The offending value, if it can be neither a secret nor hold one."""
    field = _fields(path[:-1]).get(path[-1]) if path else None
    if field is None or SecretStr in get_args(field.annotation) or _fields(path):
        return ""
    if isinstance(value, Mapping):
        return ""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or too many digits
        return ""
    shown = without_passwords(text)
    return f" (got {shown if len(shown) <= _MOST_SHOWN else shown[:_MOST_SHOWN] + '...'})"
