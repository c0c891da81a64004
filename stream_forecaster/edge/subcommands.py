"""The commands that come in groups: `topics`, `state`, `dlq`, `weights` and `config`."""

import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

import structlog
import typer
from rich.console import Console

from stream_forecaster import dead_letters
from stream_forecaster.calendar import Calendar
from stream_forecaster.config import Settings, redacted, to_toml, without_passwords
from stream_forecaster.edge import console, topics
from stream_forecaster.edge.inspection import buckets, export, inspect
from stream_forecaster.edge.options import AsJson, Keys, Partitions, examples, with_settings
from stream_forecaster.edge.redelivery import Plan, Redelivery
from stream_forecaster.edge.store import CheckpointStore
from stream_forecaster.edge.weights_file import read_weights
from stream_forecaster.errors import ConfigError
from stream_forecaster.events import Reason
from stream_forecaster.weights import shipped

topics_app = typer.Typer(help="The pipeline's topics.", no_args_is_help=True)
state_app = typer.Typer(help="What checkpoints hold.", no_args_is_help=True)
dlq_app = typer.Typer(help="Rejected records: look at them, send them again.", no_args_is_help=True)
weights_app = typer.Typer(help="What the network starts from.", no_args_is_help=True)
config_app = typer.Typer(help="The settings.", no_args_is_help=True)

Reasons = Annotated[
    list[Reason] | None, typer.Option("--reason", help="With this reason; may be repeated.")
]


@topics_app.command(
    epilog=examples(
        "topics create --config forecaster.toml",
        "topics create --config forecaster.toml --partitions 12  # of an input that is new",
    )
)
@with_settings
def create(settings: Settings, *, partitions: Partitions = 4, as_json: AsJson = False) -> int:
    """Create those of the pipeline's topics that do not exist."""
    created = topics.create_topics(settings, partitions)
    if as_json:
        console.print_json(Console(), created)
    else:
        for name, is_new in created.items():
            typer.echo(f"{name}: {'created' if is_new else 'exists'}")
    return 0


@topics_app.command(
    epilog=examples(
        "topics describe --config forecaster.toml",
        "topics describe --config forecaster.toml --json",
    )
)
@with_settings
def describe(settings: Settings, *, as_json: AsJson = False) -> int:
    """Show the pipeline's topics: partitions, records, the group's lag, settings."""
    states = topics.describe_topics(settings)
    if as_json:
        console.print_json(Console(), [console.topic_json(state) for state in states])
    else:
        Console().print(console.topic_table(states))
    return 0


@state_app.command(
    name="inspect",
    epilog=examples(
        "state inspect --config forecaster.toml",
        "state inspect --config forecaster.toml --key u42  # its windows and forecasts too",
    ),
)
@with_settings
def inspect_checkpoints(
    settings: Settings,
    *,
    partition: Annotated[int | None, typer.Option(min=0, help="This one only.")] = None,
    key: Annotated[str | None, typer.Option(help="Its windows and forecasts too.")] = None,
    as_json: AsJson = False,
) -> int:
    """Show the newest checkpoint of each partition, and what it knows of a key."""
    store = CheckpointStore(settings.state.checkpoint_url, settings.kafka.group_id)
    wanted = store.partitions() if partition is None else [partition]
    raw_key = None if key is None else key.encode()
    found = [s for p in wanted if (s := inspect(settings, store, p, raw_key)) is not None]
    out = Console()
    if as_json:
        console.print_json(out, found)
        return 0
    if not found:
        console.print_line(out, f"no checkpoint in {settings.state.checkpoint_url}")
        return 0
    out.print(console.state_table(found))
    knowing = [state for state in found if "key" in state]
    if key is not None and not knowing:
        console.print_line(out, f"none of them knows key {console.harmless(key)}")
    for state in knowing:
        shown = console.harmless(state["key"]["key"])
        console.print_line(out, f"partition {state['partition']}, key {shown}")
        out.print(console.key_table(state["key"]))
    return 0


@state_app.command(
    name="export",
    epilog=examples(
        "state export --config forecaster.toml > state.jsonl",
        "state export --config forecaster.toml --key u42 --key u43",
        "state export --config forecaster.toml --format csv --out history.csv",
    ),
)
@with_settings
def export_state(
    settings: Settings,
    *,
    key: Keys = None,
    partition: Annotated[int | None, typer.Option(min=0, help="This one only.")] = None,
    style: Annotated[
        Literal["jsonl", "csv"],
        typer.Option(
            "--format",
            help="jsonl: a key a line, with windows, averages and expert weights; csv: a row for "
            "each closed bucket.",
        ),
    ] = "jsonl",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Instead of stdout.")] = None,
) -> int:
    """Write what the newest checkpoints hold of the keys: windows, and what was learned."""
    store = CheckpointStore(settings.state.checkpoint_url, settings.kafka.group_id)
    wanted = store.partitions() if partition is None else [partition]
    keys = None if key is None else [name.encode() for name in key]
    with ExitStack() as stack:
        stream = stack.enter_context(_opened(out))
        bar = stack.enter_context(console.progress("keys"))
        found = (f for p in wanted for f in export(settings, store, p, keys, bar.expect))
        written = _write_state(stream, bar.each(found), style, settings.input.calendar())
    if not written:
        what = "keys in the checkpoints" if key is None else f"{', '.join(key)} in any checkpoint"
        typer.echo(f"no {what} of {settings.state.checkpoint_url}", err=True)
        return 1
    return 0


@contextmanager
def _opened(path: Path | None) -> Iterator[TextIO]:
    """The file, or stdout, which stays open."""
    if path is None:
        yield sys.stdout
        return
    try:
        with path.open("w", encoding="utf-8", newline="") as stream:
            yield stream
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def _write_state(
    stream: TextIO, keys: Iterable[dict[str, Any]], style: str, calendar: Calendar
) -> int:
    """Write keys as `export` has them; how many there were."""
    rows, written = csv.writer(stream, lineterminator="\n"), 0
    if style == "csv":
        rows.writerow(("partition", "key", "step_s", "start", "value"))
    for found in keys:
        written += 1
        if style == "csv":
            rows.writerows(row.values() for row in buckets(calendar, found))
        else:
            stream.write(json.dumps(found, ensure_ascii=False) + "\n")
    return written


@dlq_app.command(
    name="list",
    epilog=examples(
        "dlq list --config forecaster.toml",
        "dlq list --config forecaster.toml --reason bad_time --limit 20",
        "dlq list --config forecaster.toml --json --limit 1000000  # all, for a program",
    ),
)
@with_settings
def list_dead_letters(
    settings: Settings,
    *,
    reason: Reasons = None,
    limit: Annotated[int, typer.Option(min=1, help="So many at most, the oldest first.")] = 100,
    as_json: AsJson = False,
) -> int:
    """List rejected records: where they lie, why, and how they begin."""
    with closing(topics.read_topic(settings, settings.output.dead_letter_topic)) as records:
        letters = ((r, dead_letters.read(r.key, r.value, r.headers)) for r in records)
        wanted = (pair for pair in letters if not reason or pair[1].reason in reason)
        found = list(islice(wanted, limit))
        more = next(wanted, None) is not None
    if as_json:
        console.print_json(Console(), [console.letter_json(*pair) for pair in found])
    elif not found:
        of = f" for {', '.join(reason)}" if reason else ""
        console.print_line(Console(), f"nothing in {settings.output.dead_letter_topic}{of}")
    else:
        Console().print(console.letter_table(found))
    if more:
        typer.echo(f"there are more than {limit}: see --limit", err=True)
    return 0


@dlq_app.command(
    name="show",
    epilog=examples("dlq show 0:17 --config forecaster.toml  # partition 0, offset 17"),
)
@with_settings
def show_dead_letter(
    settings: Settings,
    *,
    place: Annotated[str, typer.Argument(metavar="PARTITION:OFFSET", help="As `list` has it.")],
    as_json: AsJson = False,
) -> int:
    """Show a rejected record whole: text where it is UTF-8, else hexadecimal."""
    match = re.fullmatch(r"(\d{1,9}):(\d{1,18})", place, re.ASCII)
    if match is None:
        raise typer.BadParameter("write PARTITION:OFFSET, such as 0:17")
    partition, offset = map(int, match.groups())
    topic = settings.output.dead_letter_topic
    with closing(topics.read_topic(settings, topic, begin={partition: offset})) as records:
        record = next(records, None)
    if record is None or record.offset != offset:
        typer.echo(f"no record at {place} of {topic}", err=True)
        return 1
    shown = console.letter_json(record, dead_letters.read(record.key, record.value, record.headers))
    if as_json:
        console.print_json(Console(), shown)
    else:
        console.print_line(Console(), console.letter_text(shown))
    return 0


@dlq_app.command(
    name="replay",
    epilog=examples(
        "dlq replay --config forecaster.toml --reason no_key  # after input.key was mended",
        "dlq replay --config forecaster.toml",
    ),
)
@with_settings
def replay_dead_letters(
    settings: Settings,
    *,
    reason: Reasons = None,
    max_replays: Annotated[
        int, typer.Option(min=1, help="A record that was resent so often is passed over.")
    ] = 3,
    first: Annotated[
        bool,
        typer.Option("--first", help="None was ever resent, even if older than brokers remember."),
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Send rejected records to the input topic again, as they were; each of them once."""
    plan = Plan(tuple(map(str, reason or Reason)), max_replays, first=first)
    out, total = Console(stderr=True), 0
    with out.status("Sending ...") as status:

        def resent(records: int) -> None:
            nonlocal total
            total += records
            status.update(f"{total:,} records sent again")

        log = structlog.wrap_logger(structlog.PrintLogger(sys.stderr))
        outcome = Redelivery(settings, log, resent).run(plan)
    if as_json:
        console.print_json(Console(), asdict(outcome))
        return 0
    typer.echo(f"{outcome.resent:,} records sent to {settings.input.topic} again")
    if outcome.given_up:
        typer.echo(f"{outcome.given_up:,} passed over: they came back {max_replays} times or more")
    if outcome.cut:
        typer.echo(
            f"{outcome.cut:,} passed over: too large, so the letter has only their beginning"
        )
    if outcome.foreign:
        typer.echo(f"{outcome.foreign:,} passed over: not rejected from {settings.input.topic}")
    return 0


@weights_app.command(
    name="show",
    epilog=examples(
        "weights show  # of model.weights, or those that ship",
        "weights show mine.safetensors --json",
    ),
)
@with_settings
def show_weights(
    settings: Settings,
    source: Annotated[
        str, typer.Argument(metavar="[WEIGHTS]", help="File or URL; model.weights by default.")
    ] = "",
    *,
    as_json: AsJson = False,
) -> int:
    """Show the model card of a file of weights, its architecture, and the network's shares."""
    url = source or settings.model.weights
    name = without_passwords(url) or "those that ship"
    header = (read_weights(url) or shipped()).header()
    if as_json:
        console.print_json(Console(), {"weights": name, **header})
    else:
        console.print_line(Console(), console.harmless(name))
        Console().print(console.weights_table(header))
    return 0


@config_app.command(
    name="check",
    epilog=examples(
        "config check --config forecaster.toml",
        "config check --config forecaster.toml --set input.timezone=Europe/Zurich",
    ),
)
@with_settings
def check_config(settings: Settings, *, as_json: AsJson = False) -> int:
    """Check the settings; exit 2 and say what is wrong with them."""
    if as_json:
        console.print_json(Console(), {"valid": True, "config_id": settings.config_id})
    else:
        typer.echo(f"valid; config_id {settings.config_id}")
    return 0


@config_app.command(
    name="show",
    epilog=examples(
        "config show  # every setting and its default, as a settings file",
        "config show --config forecaster.toml --json",
    ),
)
@with_settings
def show_config(settings: Settings, *, as_json: AsJson = False) -> int:
    """Print the settings as they are in effect, without secrets."""
    if as_json:
        console.print_json(Console(), redacted(settings))
    else:
        typer.echo(to_toml(redacted(settings)), nl=False)
    return 0


@config_app.command(
    name="schema", epilog=examples("config schema > forecaster.schema.json  # for an editor")
)
def print_config_schema() -> None:
    """Print the JSON Schema of the settings file."""
    console.print_json(Console(), Settings.model_json_schema())
