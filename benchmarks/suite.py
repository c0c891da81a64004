"""Every benchmark, one after the other: one table, one picture, one file of results.

    make bench                                # all, an hour or two
    make bench ARGS="--quick"                 # small sizes: does everything work? a quarter of it
    make bench ARGS="--only ingest --only hop"
    PEERS=/folder KAFKA_HOME=/kafka make bench

Each benchmark is a script beside this one with a process of its own, that can be called alone with
all its options (`--help`). Where contenders are compared they take turns, round by round; what is
measured has the last core to itself and broker and load have the others. On Apache Kafka from
KAFKA_HOME, or the cluster at KAFKA_BOOTSTRAP_SERVERS, else on the embedded broker; PEERS and what
is in it, see `ingest.py`. A benchmark that fails is named at the end, and the exit status is 1;
what must hold and does not is printed, but is no failure.

`accuracy.py`, which needs data, and `soak.py`, which looks for growth over hours, are no part of
it.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.measure.figures import Report, say, show
from benchmarks.measure.machine import brief, describe, environment
from benchmarks.measure.plot import draw

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Part:
    """One benchmark.

    Attributes:
        script: in this folder, without its ending.
        what: it measures.
        minutes: that it takes on two cores with every contender, and with `quick`.
        quick: options that make it short.
    """

    script: str
    what: str
    minutes: tuple[float, float]
    quick: str


PARTS = {
    "ingest": Part(
        "ingest",
        "broker to windows, beside other consumers and engines",
        (70, 8),
        "--events 200000 --keys 10000,100000 --rounds 1",
    ),
    "publish": Part(
        "publish",
        "records in transactions, beside other producers",
        (8, 2),
        "--seconds 1 --rounds 1",
    ),
    "hop": Part("cost", "a forecast of a key, beside a bare LSTM", (3, 1), "--hops 12 --rounds 1"),
    "latency": Part(
        "latency", "from event to forecast at a fixed load", (7, 1.5), "--seconds 40 --pace 6"
    ),
    "memory": Part(
        "memory", "per key, of the whole process", (20, 1), "--sizes full:10000,lean:10000"
    ),
    "recovery": Part("recovery", "from a checkpoint", (4, 1), "--keys 10000 --rounds 1"),
    "growth": Part(
        "growth", "of a hop, against sizes", (20, 3), "--keys 512,2048,8192 --hops 2 --rounds 1"
    ),
    "workers": Part(
        "workers", "one process and two", (10, 2), "--events 1000000 --per-minute 300000 --rounds 1"
    ),
    "viewers": Part("viewers", "of the live page", (3, 1), "--events 60000 --rounds 1"),
}


def run(name: str, part: Part, folder: Path, *, quick: bool) -> Report | None:
    """One benchmark, in a process of its own, which says how far it is; None if it failed."""
    found = folder / f"{name}.json"
    found.unlink(missing_ok=True)
    command = [sys.executable, str(_HERE / f"{part.script}.py"), "--json", str(found)]
    command += part.quick.split() if quick else []
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, env=environment())
    return Report.read(found) if not done.returncode and found.exists() else None


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", choices=[*PARTS], help="may be repeated")
    parser.add_argument("--quick", action="store_true", help="small sizes, one round")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder for results")
    return parser.parse_args()


def main() -> int:
    """0 if all of them ran."""
    options = _options()
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    parts = {name: part for name, part in PARTS.items() if name in (options.only or PARTS)}
    machine, reports, failed = describe(), dict[str, Report](), []
    expected = sum(part.minutes[options.quick] for part in parts.values())
    say(f"{brief(machine)}\n{len(parts)} benchmarks, about {expected:.0f} minutes")
    for i, (name, part) in enumerate(parts.items(), 1):
        here = part.minutes[options.quick]
        say(f"\n[{i}/{len(parts)}] {name}: {part.what}")
        say(f"  about {here:.0f} of the {expected:.0f} minutes left")
        begin_s = time.monotonic()
        report = run(name, part, folder, quick=options.quick)
        expected -= here
        say(f"  {(time.monotonic() - begin_s) / 60:.1f} minutes")
        if report:
            reports[name] = report
        else:
            failed.append(name)
            say(f"  {name} FAILED")
    show(reports.values(), machine)
    told = {"machine": machine, "quick": options.quick, "failed": failed}
    results = {name: asdict(report) for name, report in reports.items()}
    (folder / "results.json").write_text(json.dumps({**told, "benchmarks": results}, indent=1))
    (folder / "results.svg").write_text(draw(reports.values(), brief(machine)))
    say(f"\n{folder}/results.json, {folder}/results.svg")
    if failed:
        say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
