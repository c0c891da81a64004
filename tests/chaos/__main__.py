"""The long campaign, by command: see `make chaos ARGS="--help"`."""

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from brokers import kafka_home
from campaign import Campaign, Outcome, Plan
from faults import Faults, served
from rich.console import Console
from rich.progress import Progress
from rich.table import Table


def show(console: Console, plan: Plan, outcome: Outcome) -> None:
    """Everything that was done, and what came of it."""
    table = Table("what", "times", title=f"{plan.seconds:.0f} s, seed {plan.seed}")
    for what, times in sorted(outcome.done.items()):
        table.add_row(what, f"{times:,}")
    table.add_section()
    table.add_row("requests that failed", f"{outcome.faults.total():,}")
    table.add_row("exits", ", ".join(f"{n} x {code}" for code, n in outcome.exits.most_common()))
    if outcome.recovered_s:
        slowest = max(outcome.recovered_s)
        took = f"{median(outcome.recovered_s):.1f} s, at most {slowest:.1f} s"
        table.add_row("until all partitions went on, median", took)
    table.add_section()
    verdict = outcome.verdict
    for name in verdict.__slots__ if verdict else ():
        table.add_row(name, f"{getattr(verdict, name):,}")
    table.add_row("offsets that went back", f"{outcome.offsets_back:,}")
    console.print(table)


_TO_FIND: dict[str, dict[str, Any]] = {
    "": {},
    "loud replay": {"deaths": 0.1},
    # The successor has published the same by then.
    "late membership": {"stop_at": "before membership is checked", "stop_s": (2.5, 5.0)},
    # What was not committed then is committed now, and found by those who come after.
    "reused producer": {"stop_at": "before offsets", "stop_s": (1.2, 3.2), "followed": 1.0},
}
"""Mistakes to put into the workers' code, and what brings them to light."""


def _plan(options: argparse.Namespace) -> Plan:
    """What a minute sees; or what brings a mistake to light, and nothing else."""
    minutes = options.seconds / 60
    if options.mistake:
        to_find = {"self_stops": 0.3, **_TO_FIND[options.mistake]}
        mistake = "" if options.control else options.mistake
        return Plan(options.seconds, options.seed, mistake=mistake, partitions=4, **to_find)
    return Plan(
        seconds=options.seconds,
        seed=options.seed,
        kills=round(options.kills * minutes),
        stops=round(5 * minutes),
        ends=round(minutes),
        scalings=round(minutes),
        broker_kills=0 if options.embedded else round(minutes),
        followed=0.2,
        deaths=options.deaths,
        self_stops=options.self_stops,
        faults=options.faults,
        workers=options.workers,
        partitions=options.partitions,
        network=options.network,
    )


def main() -> int:
    """Run one campaign; 0 if it was flawless."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--embedded", action="store_true", help="even if KAFKA_HOME is set")
    parser.add_argument("--deaths", type=float, default=0.5, help="of a transaction")
    parser.add_argument("--self-stops", type=float, default=0.1, help="of a transaction")
    parser.add_argument(
        "--kills", type=float, default=10.0, help="from outside, a minute; one to three at once"
    )
    parser.add_argument("--faults", type=float, default=0.001, help="of a request")
    parser.add_argument("--workers", type=int, default=5)
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument(
        "--network", action="store_true", help="full profile, and a network that learns on"
    )
    parser.add_argument("--mistake", default="", choices=_TO_FIND, help="to be found, not flawless")
    parser.add_argument("--control", action="store_true", help="all for the mistake, but not it")
    options = parser.parse_args()
    plan, faults, console = _plan(options), Faults(options.seed), Console()
    home = None if options.embedded else kafka_home()
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))
    console.print(f"{'Apache Kafka' if home else 'the embedded broker'}; logs in {directory}")
    with served(home, directory, faults) as broker, Progress(console=console) as bar:
        task = bar.add_task("events flow", total=plan.seconds)
        campaign = Campaign(broker, directory, plan, faults)
        outcome = campaign.run(lambda seconds: bar.update(task, completed=seconds))
        bar.update(task, completed=plan.seconds)
    show(console, plan, outcome)
    return 0 if outcome.flawless else 1


if __name__ == "__main__":
    sys.exit(main())
