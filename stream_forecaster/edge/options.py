"""The options every command shares, and the settings that come of them."""

import inspect
import os
import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from stream_forecaster.config import Settings, from_assignments, load
from stream_forecaster.errors import ConfigError

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="Settings file (TOML).")]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="One setting; may be repeated."),
]
BootstrapServers = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="kafka.bootstrap_servers.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Partitions = Annotated[int, typer.Option(min=1, help="How many partitions.")]
EventFiles = Annotated[
    list[str],
    typer.Option(
        "--events", metavar="FILE...", help="JSON lines or CSV, plain or gzip; - is stdin."
    ),
]
MoreEventFiles = Annotated[list[str] | None, typer.Argument(metavar="FILE", hidden=True)]
ForecastFile = Annotated[
    str | None, typer.Option(metavar="OUT.jsonl", help="Write the messages, one a line.")
]
ReportFolder = Annotated[
    str | None, typer.Option(metavar="DIR", help="Write a page with tables and plots.")
]
Keys = Annotated[list[str] | None, typer.Option("--key", help="This key only; may be repeated.")]
WeightsOut = Annotated[str, typer.Option(metavar="WEIGHTS", help="File or URL to write.")]


def examples(*lines: str) -> str:
    """What `--help` of a command says below its options: lines that can be typed as they are.

    They come behind the name of the program; a comment may follow after two spaces and `#`.
    """
    return "\n".join(["Examples:", *(f"stream-forecaster {line}" for line in lines)])


def count(text: str) -> int:
    """A whole number as people write large ones: 1000000, 1_000_000, 1,000,000, 1e6, 1M, 100k.

    Raises:
        typer.BadParameter: it is none, or not positive.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?(?:e[0-9]{1,2})?)([km]?)", _plain(text), re.ASCII)
    number = float(match[1]) * {"": 1, "k": 1e3, "m": 1e6}[match[2]] if match else 0.0
    if not 1 <= number <= 1e12 or number % 1:
        raise typer.BadParameter(f"{text!r} is no number of 1 or more, such as 50000, 1e6 or 1M")
    return int(number)


def _plain(text: str) -> str:
    return re.sub(r"(?<=[0-9])[_,](?=[0-9])", "", text.strip()).lower()


def read_settings(
    *,
    config: ConfigFile = None,
    overrides: Assignments = None,
    bootstrap_servers: BootstrapServers = None,
) -> Settings:
    """Defaults < settings file < environment < flags.

    Raises:
        ConfigError: a file cannot be read, or the settings are not valid.
    """
    flags = from_assignments(overrides or ())
    if bootstrap_servers is not None:
        flags |= {"kafka": {**flags.get("kafka", {}), "bootstrap_servers": bootstrap_servers}}
    toml = None if config is None else _text(config)
    return load(toml, os.environ, flags, lambda path: Path(path).read_text("utf-8"))


def with_settings(command: Callable[..., int]) -> Callable[..., None]:
    """Give a command the options of `read_settings` too; it is handed the settings first.

    What it returns is the exit code.
    """
    shared = inspect.signature(read_settings).parameters

    @wraps(command)
    def configured(**options: Any) -> None:  # noqa: ANN401  (typer has checked them)
        sources = {name: options.pop(name) for name in shared}
        raise typer.Exit(command(read_settings(**sources), **options))

    _, *own = inspect.signature(command).parameters.values()
    configured.__signature__ = inspect.Signature([*own, *shared.values()])  # type: ignore[attr-defined]  # where typer looks
    return configured


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ConfigError(
            f"cannot read the settings file {path}: {reason}; `stream-forecaster config show` "
            "prints one with every setting"
        ) from None
