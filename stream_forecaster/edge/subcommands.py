"""The commands that come in groups: `topics`, `state` and `config`."""

from typing import Annotated

import typer
from rich.console import Console

from stream_forecaster.config import Settings, redacted, to_toml
from stream_forecaster.edge import console, topics
from stream_forecaster.edge.inspection import inspect
from stream_forecaster.edge.options import AsJson, Partitions, with_settings
from stream_forecaster.edge.store import CheckpointStore

topics_app = typer.Typer(help="The pipeline's topics.", no_args_is_help=True)
state_app = typer.Typer(help="What checkpoints hold.", no_args_is_help=True)
config_app = typer.Typer(help="The settings.", no_args_is_help=True)


@topics_app.command()
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


@topics_app.command()
@with_settings
def describe(settings: Settings, *, as_json: AsJson = False) -> int:
    """Show the pipeline's topics: partitions, records, the group's lag, settings."""
    states = topics.describe_topics(settings)
    if as_json:
        console.print_json(Console(), [console.topic_json(state) for state in states])
    else:
        Console().print(console.topic_table(states))
    return 0


@state_app.command(name="inspect")
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
    for state in (state for state in found if "key" in state):
        console.print_line(out, f"partition {state['partition']}, key {state['key']['key']}")
        out.print(console.key_table(state["key"]))
    return 0


@config_app.command(name="check")
@with_settings
def check_config(settings: Settings, *, as_json: AsJson = False) -> int:
    """Check the settings; exit 2 and say what is wrong with them."""
    if as_json:
        console.print_json(Console(), {"valid": True, "config_id": settings.config_id})
    else:
        typer.echo(f"valid; config_id {settings.config_id}")
    return 0


@config_app.command(name="show")
@with_settings
def show_config(settings: Settings, *, as_json: AsJson = False) -> int:
    """Print the settings as they are in effect, without secrets."""
    if as_json:
        console.print_json(Console(), redacted(settings))
    else:
        typer.echo(to_toml(redacted(settings)), nl=False)
    return 0


@config_app.command(name="schema")
def print_config_schema() -> None:
    """Print the JSON Schema of the settings file."""
    console.print_json(Console(), Settings.model_json_schema())
