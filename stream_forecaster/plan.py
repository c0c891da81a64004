"""`plan`: what so many keys would take in memory, before there is one."""

from collections import defaultdict
from typing import Any

from rich.console import Console
from rich.table import Table

from stream_forecaster.config import Settings
from stream_forecaster.shard import Shard

_SPAN = {
    "window": "windows",
    "experts": "experts",
    "lstm": "network",
    "pool": "fusion, scores",
    "agreement": "agreement",
    "standing": "coarse forecasts",
}

_BESIDES = """\
Besides: half a GB for the process itself, the state of one partition again while a checkpoint of it
is made, and the forecasts of a hop: with 100,000 keys at once, we saw 3 GB for the last two."""


def plan(settings: Settings, keys: int, profile: str) -> dict[str, Any]:
    """Bytes of state that `keys` keys of one partition take, all told and by what holds them.

    As if `state.max_keys` let them in.

    Args:
        settings: all of them.
        keys: how many.
        profile: "full" or "lean", whatever the settings say.
    """
    model = settings.model.model_copy(update={"profile": profile})
    bound = max(keys, settings.state.max_keys)
    state = settings.state.model_copy(update={"max_keys": bound})
    changed = settings.model_copy(update={"model": model, "state": state})
    shard = Shard(changed, settings.input.calendar(), 0, 0)
    parts: dict[str, int] = defaultdict(int)
    for column, size in shard.table.bytes_for(keys).items():
        parts[_SPAN.get(column.partition(".")[0], "keys")] += size
    total = sum(parts.values())
    return {
        "profile": profile,
        "keys": keys,
        "state_bytes": total,
        "state_bytes_per_key": round(total / keys),
        "parts": dict(sorted(parts.items())),
    }


def show(console: Console, plans: list[dict[str, Any]]) -> None:
    """Print plans side by side."""
    table = Table(title=f"Memory of {plans[0]['keys']:,} keys in one partition, without the keys")
    table.add_column("bytes per key")
    for found in plans:
        table.add_column(found["profile"], justify="right")
    for part in plans[0]["parts"]:
        cells = (round(found["parts"].get(part, 0) / found["keys"]) for found in plans)
        table.add_row(part, *(f"{cell:,}" for cell in cells))
    table.add_section()
    table.add_row("all", *(f"{found['state_bytes_per_key']:,}" for found in plans))
    table.add_row("MiB in all", *(f"{found['state_bytes'] / 2**20:,.1f}" for found in plans))
    console.print(table)
    console.print(_BESIDES, soft_wrap=True)
