"""What a key takes of memory, as the kernel counts it, beside what `plan` says; and growth.

    python benchmarks/memory.py [--keys 10000,100000] [--profiles full,lean] [--no-network] [--json]
    python benchmarks/memory.py --keys 1000000 --profiles lean
    python benchmarks/memory.py --growth

Every number of keys in every profile is a process of its own. It hears each key three times in
three minutes, through `Shard.advance` as `run` does, forecasts all of them aloud at two boundaries
and, at the last, once as `run` would, in turns of at most `output.max_pending` forecasts. Printed
are bytes per key: what `plan` says of the state, what the process holds between hops (resident
memory: with what the C library keeps of freed memory, without it, and without what the process held
before the first key came), and the most that it held. Linux only, with glibc.

With --growth: microseconds of CPU time of a hop of the pool, and the slope of their logarithm
against that of the number of keys, and of the horizon; and of one, two and three resolutions.
"""

import argparse
import ctypes
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from stream_forecaster.calendar import Calendar
from stream_forecaster.config import Settings, parse
from stream_forecaster.keys import KeyTable
from stream_forecaster.plan import plan
from stream_forecaster.records import BytesColumn, Records
from stream_forecaster.scales import Scales
from stream_forecaster.shard import Shard

_START_MS = 1_767_571_200_000  # 2026-01-05, a Monday
_MINUTES = 3
_BLOCK = 10_000
_DEFAULTS: list[dict[str, Any]] = [
    {"step": "1m", "context": 60, "horizon": 30},
    {"step": "1h", "context": 48, "horizon": 24},
    {"step": "1d", "context": 28, "horizon": 7},
]


def resident(name: str = "VmRSS") -> int:
    """Bytes of this process's memory, or with "VmHWM" the most there have been."""
    lines = Path("/proc/self/status").read_text().splitlines()
    said = dict(line.split(":", 1) for line in lines)
    return int(said[name].split()[0]) * 1024


def measure(keys: int, profile: str, *, network: bool) -> dict[str, Any]:
    """One process's numbers."""
    settings = parse(
        {"model": {"profile": profile, "network": network}, "state": {"max_keys": keys}}
    )
    planned = plan(settings, keys, profile)["state_bytes"]
    shard = Shard(settings, Calendar("UTC"), 0, 0)
    before, hops, begin_s = resident(), 0, time.process_time()
    for minute in range(_MINUTES + 1):
        for begin in range(0, keys if minute < _MINUTES else 1, _BLOCK):
            records = _events(shard.offset, minute, begin, min(begin + _BLOCK, keys))
            while len(records):
                hops += shard.advance(records, most=settings.output.max_pending).hops
                _, records = records.split(shard.offset)
    held = resident()
    ctypes.CDLL(None).malloc_trim(0)
    return {
        "profile": profile,
        "keys": keys,
        "planned": planned / keys,
        "state": shard.state_bytes / keys,
        "held": held / keys,
        "resident": resident() / keys,
        "grown": (resident() - before) / keys,
        "most": resident("VmHWM") / keys,
        "process_mb": before / 1e6,
        "hops": hops,
        "cpu_s": round(time.process_time() - begin_s, 1),
    }


def _events(offset: int, minute: int, first: int, last: int) -> Records:
    """One event of each key from `first` on, as a poll would bring them."""
    time_ms = _START_MS + 60_000 * 3 * minute
    value = [b'{"user_id":"user-%07d","ts":%d}' % (key, time_ms) for key in range(first, last)]
    count = last - first
    offsets = np.arange(offset, offset + count)
    key, body = BytesColumn.of([None] * count), BytesColumn.of(value)
    return Records(0, offsets, np.full(count, time_ms), key, body, int(offset + count))


def hop_us(keys: int, resolutions: list[dict[str, Any]], hops: int = 12) -> float:
    """Least CPU time of a hop of the pool in microseconds, of those that close one bucket."""
    settings: Settings = parse({"resolutions": resolutions, "model": {"network": False}})
    table = KeyTable()
    scales = Scales(table, Calendar("UTC"), settings)
    scales.begin(_START_MS)
    slots = table.intern([b"%d" % key for key in range(keys)], np.full(keys, _START_MS))
    rng, spent = np.random.default_rng(0), []
    for minute in range(1, 2 * hops):
        now_ms = _START_MS + 60_000 * minute
        value = rng.poisson(2.0, keys).astype(np.float64)
        scales.absorb(slots, np.full(keys, now_ms - 1, np.int64), value)
        begin_s = time.process_time()
        for _ in scales.close(now_ms):
            pass
        for issued in scales.issue(now_ms):
            issued.paths(slots[issued.rows])
        spent.append(1e6 * (time.process_time() - begin_s))
    return min(spent[hops:])


def growth() -> dict[str, Any]:
    """Hops against keys, resolutions and horizon."""
    keys = {n: hop_us(n, _DEFAULTS) for n in (2_048, 8_192, 32_768)}
    resolutions = {n: hop_us(4_096, _DEFAULTS[:n]) for n in (1, 2, 3)}
    horizons = {}
    for horizon in (8, 15, 30):
        fine = {**_DEFAULTS[0], "horizon": horizon}
        horizons[horizon] = hop_us(4_096, [fine, *_DEFAULTS[1:]])
    return {
        "us_per_hop": {"keys": keys, "resolutions": resolutions, "horizon": horizons},
        "slope": {"keys": _slope(keys), "horizon": _slope(horizons)},
    }


def _slope(cost: dict[int, float]) -> float:
    """Of the logarithm of a cost against that of what it grows with."""
    (slope, _) = np.polyfit(np.log([*cost]), np.log([*cost.values()]), 1)
    return round(float(slope), 3)


def _apart(keys: int, profile: str, options: argparse.Namespace) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--keys", str(keys), "--profiles", profile, "--alone"]
    command += [] if options.network else ["--no-network"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _show(found: list[dict[str, Any]]) -> None:
    table = Table(title="Bytes per key")
    columns = ("planned", "state", "held", "resident", "grown", "most")
    for name in ("profile", "keys", *columns, "process MB", "hops", "CPU s"):
        table.add_column(name, justify="right")
    for row in found:
        cells = (f"{row[name]:,.0f}" for name in columns)
        rest = (f"{row['process_mb']:,.0f}", str(row["hops"]), str(row["cpu_s"]))
        table.add_row(row["profile"], f"{row['keys']:,}", *cells, *rest)
    Console().print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", default="10000,100000")
    parser.add_argument("--profiles", default="full,lean")
    parser.add_argument("--network", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    counts, profiles = map(int, options.keys.split(",")), options.profiles.split(",")
    if options.alone:
        print(json.dumps(measure(next(counts), profiles[0], network=options.network)))
        return
    if options.growth:
        print(json.dumps(growth(), indent=2))
        return
    found = [_apart(keys, profile, options) for keys in counts for profile in profiles]
    if options.json:
        print(json.dumps(found))
    else:
        _show(found)


if __name__ == "__main__":
    main()
