"""`plan`: what so many keys would take in memory, before there is one."""

from collections import defaultdict
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from rich.console import Console
from rich.table import Table

from stream_forecaster.calendar import Calendar
from stream_forecaster.config import Settings
from stream_forecaster.scales import Scales
from stream_forecaster.shard import new_table

if TYPE_CHECKING:
    from stream_forecaster.learning import Learner

_SPAN = {
    "window": "windows",
    "experts": "experts",
    "lstm": "network",
    "pool": "fusion, scores",
    "agreement": "agreement",
    "standing": "coarse forecasts",
}


class _Network:
    """What columns are made by in the place of a network, which would load torch."""

    def __init__(self, resolutions: int) -> None:
        self.shares = np.zeros((resolutions, 2))


def plan(settings: Settings, keys: int, profile: str) -> dict[str, Any]:
    """Bytes of state that `keys` keys of one partition take, all told and by what holds them.

    Args:
        settings: all of them.
        keys: how many.
        profile: "full" or "lean", whatever the settings say.
    """
    model = settings.model.model_copy(update={"profile": profile})
    table, calendar = new_table(), Calendar(settings.input.timezone)
    network = cast("Learner", _Network(len(settings.resolutions))) if model.network else None
    Scales(table, calendar, settings.model_copy(update={"model": model}), network)
    parts: dict[str, int] = defaultdict(int)
    for column, size in table.bytes_for(keys).items():
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
