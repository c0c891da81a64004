"""Write the reference pages from the code: settings, commands, metrics, messages, model card.

    make docs

Whoever changes one of them runs it; `tests/test_docs.py` fails while a page that is committed is
not what this would write.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from prometheus_client import CollectorRegistry
from typer.main import get_command

from stream_forecaster import asyncapi
from stream_forecaster.cli import app
from stream_forecaster.config import Resolution, Settings, redacted
from stream_forecaster.edge.telemetry import PREFIX, Telemetry
from stream_forecaster.weights import shipped

FOLDER = Path(__file__).parent / "reference"
MADE = "<!-- Written by docs/generate.py; change the code, not this page. -->"


def pages() -> dict[str, str]:
    """Name -> text of every page."""
    made = {
        "settings.md": settings_page(),
        "cli.md": cli_page(),
        "metrics.md": metrics_page(),
        "messages.md": messages_page(),
        "model-card.md": model_card_page(),
    }
    return {name: f"{MADE}\n\n" + "\n".join(lines) + "\n" for name, lines in made.items()}


# -- settings --------------------------------------------------------------------------------------


_SETTINGS = """\
From the file that `--config` names, then from variables `STREAM_FORECASTER__SECTION__KEY` (with
`_FILE` behind it: from the file that it names, for secrets), then from `--set section.key=value`.
An unknown name is an error. Durations are text with one of `ms`, `s`, `m`, `h`, `d`, `w`, sizes
with `B`, `KiB`, `MiB`, `GiB`. `stream-forecaster config show` prints what is in effect."""


def settings_page() -> list[str]:
    """A table for each section."""
    schema, defaults = Settings.model_json_schema(), redacted(Settings())
    lines = [
        "# Settings",
        "",
        _SETTINGS,
    ]
    for name, field in Settings.model_fields.items():
        model = Resolution if name == "resolutions" else field.annotation
        described = schema["$defs"][getattr(model, "__name__", "")]
        values = {} if name == "resolutions" else defaults[name]
        heading = f"[[{name}]]" if name == "resolutions" else f"[{name}]"
        lines += ["", f"## {heading}", "", _one_line(described.get("description", "")), ""]
        lines += table(
            ("setting", "type", "default", ""),
            (
                (
                    f"`{key}`",
                    _kind(property_),
                    _default(values[key]) if key in values else "",
                    _text(property_.get("description", "")),
                )
                for key, property_ in described["properties"].items()
            ),
        )
        if name == "resolutions":
            lines += ["", "By default:", "", "```toml"]
            for row in defaults[name]:
                lines += [f"[[{name}]]", *(f"{k} = {json.dumps(v)}" for k, v in row.items())]
            lines += ["```"]
    return lines


_WORDS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "yes or no"}
_FORMATS = {"date": "date", "password": "secret"}


def _kind(said: Mapping[str, Any]) -> str:
    """What a setting takes, in words."""
    if "enum" in said:
        return " or ".join(f"`{value}`" for value in said["enum"])
    if "anyOf" in said:
        return " or ".join(_kind(kind) for kind in said["anyOf"] if kind.get("type") != "null")
    if said.get("type") == "array":
        return f"list of {_kind(said['items'])}"
    kind = _FORMATS.get(said.get("format", "")) or _WORDS[said["type"]]
    for unit, word in (("(ms|s|m|h|d|w)$", "duration"), ("(B|KiB|MiB|GiB)$", "size")):
        kind = word if said.get("pattern", "").endswith(unit) else kind
    low, high = said.get("minimum"), said.get("maximum")
    if low is None:
        return kind
    return f"{kind}, {low} or more" if high is None else f"{kind}, {low} to {high}"


def _default(value: object) -> str:
    return f"`{json.dumps(value)}`"


# -- commands --------------------------------------------------------------------------------------


_COMMANDS = """\
Data goes to stdout, all else to stderr. Colours and progress bars are for terminals only;
`NO_COLOR` is heeded. `stream-forecaster --install-completion` teaches the shell to complete verbs
and options; `--show-completion` prints what it would install.

| exit code | |
|---|---|
| 0 | done |
| 1 | a check or a comparison failed, or there was nothing to show |
| 2 | wrong usage or settings |
| 3 | the broker is away or refuses |
| 4 | the state cannot be used, or does not fit into memory |
| 70 | a bug |

Settings come with `--config`, `--set` and `--bootstrap-servers`, which all commands take but
`demo`, `pretrain` and `version`."""


def cli_page() -> list[str]:
    """Every command, with its options and examples."""
    lines = [
        "# Commands",
        "",
        _COMMANDS,
    ]
    for path, command in commands():
        lines += ["", f"## {' '.join(path)}", "", *_paragraphs(command.help or "")]
        options = [p for p in command.params if p.name not in _SHARED and not p.hidden]
        if options:
            lines += ["", *table(("option", "", "default"), map(_option, options))]
        lines += ["", "```", *(command.epilog or "").splitlines()[1:], "```"]
    return lines


_SHARED = {"config", "overrides", "bootstrap_servers", "help"}


def commands(command: Any = None, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:  # noqa: ANN401  (typer's own kind)
    """The commands that do something, and the words that lead to each."""
    command = command or get_command(app)
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command
    for name, found in (inner or {}).items():
        yield from commands(found, *path, name)


def _option(option: Any) -> tuple[str, str, str]:  # noqa: ANN401  (as above)
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    if option.param_type_name == "argument":
        names = f"`{option.metavar or option.name.upper()}`"
    elif option.type_descriptor.annotation is not bool:
        names += f" `{option.metavar or _kind_of(option)}`"
    wanted = "required" if option.required else ""
    shown = option.default not in (None, False, ())
    default = str(option.default) if shown and not callable(option.default) else ""
    return names, _text(getattr(option, "help", None) or ""), wanted or default


def _kind_of(option: Any) -> str:  # noqa: ANN401  (as above)
    kind = option.type_descriptor.annotation
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    kind = (get_args(kind) or (kind,))[0]  # of a list: what is in it
    if issubclass(kind, Enum):
        return "|".join(member.value for member in kind)
    return {int: "N", float: "NUMBER", Path: "FILE"}.get(kind, "TEXT")


def _paragraphs(text: str) -> list[str]:
    parts = [" ".join(part.split()) for part in text.split("\n\n")]
    return "\n\n".join(parts).splitlines()


# -- metrics ---------------------------------------------------------------------------------------


_METRICS = """\
At `/metrics` of `http.host:port`, in Prometheus' format. No label holds a key, so the number of
series does not depend on the data. Beside these there are `process_*`, of prometheus_client. What
to do when an alert fires is in the [runbooks](../runbooks.md)."""


def metrics_page() -> list[str]:
    """Every metric of the service; no label holds a key."""
    registry = CollectorRegistry()
    Telemetry(registry)
    found: dict[str, tuple[str, str, str]] = {}
    for collector in list(registry._collector_to_names):  # noqa: SLF001  (no public way to the labels)
        labels = getattr(collector, "_labelnames", ()) or ()
        for family in getattr(collector, "describe", list)():  # that of the process has none
            names = family._labelnames if hasattr(family, "_labelnames") else labels  # noqa: SLF001  (as above)
            name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
            if name.startswith(PREFIX):
                told = ", ".join(f"`{label}`" for label in names)
                found[name] = (family.type, told, family.documentation)
    return [
        "# Metrics",
        "",
        _METRICS,
        "",
        *table(
            ("metric", "type", "labels", ""),
            ((f"`{name}`", *found[name]) for name in sorted(found)),
        ),
    ]


# -- messages --------------------------------------------------------------------------------------


_MESSAGES = """\
Values of the output topic follow the JSON Schema `forecast/1`, which `stream-forecaster schema`
prints; those of `output.scores_topic`, if there is one, `score/1`, by `stream-forecaster schema
score`. `stream-forecaster schema --format asyncapi` describes all topics of a pipeline, events and
dead letters too, with their keys and headers. `forecast/1` may gain fields; a change of what is
there would be `forecast/2`."""


def messages_page() -> list[str]:
    """Forecast and score by their schemas, and what the other topics hold."""
    schema, score = (json.loads(asyncapi.schema(of)) for of in ("forecast", "score"))
    document = asyncapi.document(Settings())
    lines = [
        "# Messages",
        "",
        _MESSAGES,
        "",
        schema["description"],
        "",
        *table(("field", "type", ""), _fields(schema, schema["$defs"])),
        "",
        score["description"],
        "",
        *table(("field", "type", ""), _fields(score, score["$defs"])),
    ]
    for name, message in document["components"]["messages"].items():
        headers = message.get("headers", {})
        lines += ["", f"## {name}", "", message["summary"]]
        if headers:
            required = set(headers["required"])
            lines += [
                "",
                *table(
                    ("header", "", ""),
                    (
                        (
                            f"`{header}`",
                            "always" if header in required else "sometimes",
                            _header(said),
                        )
                        for header, said in headers["properties"].items()
                    ),
                ),
            ]
    return lines


def _fields(
    schema: Mapping[str, Any], parts: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, str, str]]:
    for name, said in schema.get("properties", {}).items():
        part = parts[said["$ref"].rpartition("/")[2]] if "$ref" in said else {}
        kind = _json_kind({**part, **said})
        yield f"`{prefix}{name}`", kind, _text(said.get("description") or part["description"])
        if "properties" in said:
            yield from _fields(said, parts, f"{prefix}{name}.")
        elif "$ref" in said.get("items", {}):
            inner = parts[said["items"]["$ref"].rpartition("/")[2]]
            yield from _fields(inner, parts, f"{prefix}{name}[].")


def _json_kind(said: Mapping[str, Any]) -> str:
    if "const" in said:
        return f"`{json.dumps(said['const'])}`"
    if "enum" in said:
        return " or ".join(f"`{value}`" for value in said["enum"])
    if said.get("format") == "date-time":
        return "time"
    kind = said.get("type", "")
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def _header(said: Mapping[str, Any]) -> str:
    kind = _json_kind(said) if {"const", "enum"} & said.keys() else ""
    return ". ".join(filter(None, (kind, said.get("description", ""))))


# -- model card ------------------------------------------------------------------------------------


_MODEL_CARD = """\
Of the weights that the network starts from where `model.weights` is empty. They are what
`stream-forecaster pretrain` makes; another kind of processor rounds in other ways, and makes
weights that are alike, not equal. `stream-forecaster weights show` prints this card, and with the
name of a file that file's; `fit` and `pretrain` write one into every file that they make."""
_WORTH = """\
Measured on synthetic worlds set aside from training. Pinball loss and squared errors are over those
of the pool alone: below 1 is better. Shares are the weights with which the network's two paths
begin, its own and its correction of the pool's, before any loss has landed."""
_RATIOS = ("pinball_ratio", "absolute_mse_ratio", "residual_mse_ratio")


def model_card_page() -> list[str]:
    """What the weights that ship say of themselves."""
    header = shipped().header()
    card = dict(header["card"])
    worth = card.pop("worth")
    return [
        "# Model card",
        "",
        _MODEL_CARD,
        "",
        *table(("", ""), ((name, _text(str(value))) for name, value in card.items())),
        "",
        "## What it is worth",
        "",
        _WORTH,
        "",
        *table(
            ("step, s", "samples", "pinball", "own path, MSE", "correction, MSE", "shares"),
            (
                (
                    f"{row['step_s']:,}",
                    f"{row['samples']:,}",
                    *(f"{row[name]:.3f}" for name in _RATIOS),
                    " and ".join(f"{share:.2f}" for share in row["shares"]),
                )
                for row in worth
            ),
        ),
        "",
        "## Architecture",
        "",
        "Files of another one are refused.",
        "",
        *table(("", ""), ((name, _listed(of)) for name, of in header["architecture"].items())),
    ]


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


# -- markdown --------------------------------------------------------------------------------------


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows under headings."""
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    return lines + [
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows
    ]


def _text(text: str) -> str:
    """What stands in a cell: brackets of angles are text there."""
    return _one_line(text).replace("<", "&lt;")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def main() -> None:
    """Write all of them."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        sys.stdout.write(f"{FOLDER / name}\n")


if __name__ == "__main__":
    main()
