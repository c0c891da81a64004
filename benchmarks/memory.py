"""What a key takes of memory, as the kernel counts it, beside what `plan` says.

    python benchmarks/memory.py [--sizes full:10000,full:100000,lean:1000000] [--no-network]

Every size is a process of its own. It hears each key three times in three minutes, through
`Shard.advance` as `run` does, forecasts all of them aloud at two boundaries and, at the last, once
as `run` would, in turns of at most `output.max_pending` forecasts. Printed is what the process
holds between hops, resident memory over keys, after the C library has given back what it kept of
freed memory, as `run` has it do after publishing; and beside it what `plan` says of the state, what
it holds before it gives back, what it has grown by since before the first key, and the most that it
held. Linux only, with glibc.
"""

import argparse
import ctypes
import json
import sys
import time
from functools import partial
from typing import Any

import numpy as np

from benchmarks.measure.figures import Bound, Ratio, Report, Row, parser, spelled
from benchmarks.measure.machine import resident_bytes, run_alone
from benchmarks.measure.turns import take_turns
from stream_forecaster.calendar import Calendar
from stream_forecaster.config import parse
from stream_forecaster.plan import plan
from stream_forecaster.records import BytesColumn, Records
from stream_forecaster.shard import Shard

_START_MS = 1_767_571_200_000  # 2026-01-05, a Monday
_MINUTES = 3
_BLOCK = 10_000
_MUST = {("lean", 1_000_000): Bound(most=4_096), ("full", 100_000): Bound(most=16_384)}
_PLAN_MUST = Bound(0.9, 1.1)
"""What the process grows by over what `plan` says; at the same sizes, as few keys weigh little."""


def measure(keys: int, profile: str, *, network: bool) -> dict[str, Any]:
    """One process's numbers."""
    settings = parse(
        {"model": {"profile": profile, "network": network}, "state": {"max_keys": keys}}
    )
    planned = plan(settings, keys, profile)["state_bytes"]
    shard = Shard(settings, Calendar("UTC"), 0, 0)
    before, hops, begin_s = resident_bytes(), 0, time.process_time()
    for minute in range(_MINUTES + 1):
        for begin in range(0, keys if minute < _MINUTES else 1, _BLOCK):
            records = _events(shard.offset, minute, begin, min(begin + _BLOCK, keys))
            while len(records):
                hops += shard.advance(records, most=settings.output.max_pending).hops
                _, records = records.split(shard.offset)
    held = resident_bytes()
    ctypes.CDLL(None).malloc_trim(0)
    return {
        "profile": profile,
        "keys": keys,
        "planned": planned / keys,
        "state": shard.state_bytes / keys,
        "held": held / keys,
        "resident": resident_bytes() / keys,
        "grown": (resident_bytes() - before) / keys,
        "most": resident_bytes(name="VmHWM") / keys,
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


def _apart(keys: int, profile: str, options: argparse.Namespace) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--alone", "--sizes", f"{profile}:{keys}"]
    done = run_alone(command if options.network else [*command, "--no-network"], [])
    if done.returncode:
        raise SystemExit(f"{keys:,} keys, {profile}, failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(found: dict[str, Any]) -> Row:
    """One process's figures."""
    keys, profile = found["keys"], found["profile"]
    must = _MUST.get((profile, keys))
    plan_must = _PLAN_MUST if must else None
    beside = ("planned", "state", "held", "grown", "most")
    also = ", ".join(f"{found[name]:,.0f} {name}" for name in beside)
    return Row(
        f"{keys:,} keys, {profile}",
        found["resident"],
        "bytes of resident memory per key",
        "the whole process over its keys, between hops",
        also=f"{also}; {spelled(found['process_mb'])} MB before the first key",
        ratios=(Ratio(found["grown"] / found["planned"], "x grown over planned", plan_must),),
        must=must,
    )


def _options() -> argparse.Namespace:
    asked = parser(__doc__)
    asked.add_argument("--sizes", default="full:10000,full:100000,lean:1000000")
    asked.add_argument("--network", action=argparse.BooleanOptionalAction, default=True)
    asked.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    return asked.parse_args()


def main() -> None:
    """Measure each size once."""
    options = _options()
    sizes = [
        (int(keys), profile)
        for profile, _, keys in (size.partition(":") for size in options.sizes.split(","))
    ]
    if options.alone:
        ((keys, profile),) = sizes
        print(json.dumps(measure(keys, profile, network=options.network)))
        return
    processes = {
        f"{keys:,} keys, {profile}": partial(_apart, keys, profile, options)
        for keys, profile in sizes
    }
    found = [taken for (taken,) in take_turns(processes, 1).values()]
    Report("memory", [row(each) for each in found], found).finish(options)


if __name__ == "__main__":
    main()
