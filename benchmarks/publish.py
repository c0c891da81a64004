"""Records per CPU-second beside two other producers, and JSON beside two other encoders.

    make bench
    PYTHONPATH=tests python benchmarks/publish.py --seconds 3 --rounds 3 --json results.json

Records whose bytes are ready, in transactions, on Apache Kafka from KAFKA_HOME or the cluster at
KAFKA_BOOTSTRAP_SERVERS, else on the embedded broker. The contenders take turns, one process each,
see `contenders/publishing.py`. Then the JSON of default messages of 4.8 KB from a hop's arrays,
beside what orjson and msgspec take to write it from ready dictionaries and lists, and whole
messages with their ids and headers; these take turns in this process.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import orjson
from brokers import Served, create_topic, most_real_broker
from drawn import drawn_forecast

from benchmarks.measure.figures import Bound, Ratio, Report, Row, parser, say
from benchmarks.measure.machine import apart, pinned, run_alone
from benchmarks.measure.turns import median, per_million, take_turns
from stream_forecaster.config import parse
from stream_forecaster.forecasts import Encoder

_PUBLISHING = Path(__file__).parent / "contenders" / "publishing.py"
_PARTITIONS = 4
_WHO = {
    "kafka-python": "its producer, record by record",
    "confluent": "librdkafka, through confluent-kafka",
    "ours": "kafka-python's producer, given whole batches",
}
_MUST = {
    ("small", "kafka-python"): Bound(least=20.0),
    ("small", "confluent"): Bound(least=1.0),
    ("forecast", "confluent"): Bound(least=1.0),
}
"""How many times cheaper than these ours must be; whole forecasts are mostly bytes to copy."""
_ENCODING_MUST = Bound(most=25.0)
_KEYS, _HEAD = 1_000, 150
"""Messages, and bytes of each that its id and its key take up, about."""
_OURS, _WHOLE = "ours: values, from arrays", "ours: whole messages, from arrays"
Run = dict[str, float]


def measure(served: Served, who: str, shape: str, codec: str, seconds: float) -> Run:
    """One run of one producer, in a process of its own, on a topic of its own."""
    topic = create_topic(served, _PARTITIONS)
    command = [sys.executable, str(_PUBLISHING), served.bootstrap, topic, who, codec, shape]
    done = run_alone([*command, str(seconds)], apart()[1])
    if done.returncode:
        raise SystemExit(f"{who} failed:\n{done.stderr[-3000:]}")
    result: Run = json.loads(done.stdout.splitlines()[-1])
    return result


def encoders() -> dict[str, Callable[[], Any]]:
    """What makes the messages of a hop, or just their JSON."""
    settings = parse({})
    forecast, encoder = drawn_forecast(settings, _KEYS), Encoder(settings)
    written = [m.value for m in encoder.forecast(forecast) if m.value]
    values, heads = [orjson.loads(value) for value in written], [value[:_HEAD] for value in written]
    encode = msgspec.json.Encoder().encode
    return {
        _OURS: lambda: list(encoder.values(forecast).filled(heads)),
        _WHOLE: lambda: list(encoder.forecast(forecast)),
        "orjson: values, from dicts and lists": lambda: [orjson.dumps(value) for value in values],
        "msgspec: values, from dicts and lists": lambda: [encode(value) for value in values],
    }


def _us(run: Callable[[], Any]) -> float:
    """Microseconds of CPU a message."""
    begin_s = time.process_time()
    run()
    return (time.process_time() - begin_s) / _KEYS * 1e6


def published_rows(shape: str, codec: str, results: dict[str, list[Run]]) -> list[Row]:
    """Medians of one shape and codec, and how many times cheaper ours is."""
    case = f"{'130-byte records' if shape == 'small' else 'forecasts of 4.8 KB'}, {codec}"
    cost = {who: per_million(runs, "cpu_s", "records") for who, runs in results.items()}
    found = []
    for who, runs in results.items():
        rate = median(run["records"] / run["wall_s"] for run in runs)
        ratios = tuple(
            Ratio(cost[other] / cost[who], f"x cheaper than {other}", _must(shape, codec, other))
            for other in results
            if who == "ours" != other
        )
        does = f"transactions of records whose bytes are ready; {_WHO[who]}"
        unit, also = "CPU-s per million records", f"{rate:,.0f} records/s"
        found.append(Row(who, cost[who], unit, case, does, also, ratios, ours=who == "ours"))
    return found


def _must(shape: str, codec: str, other: str) -> Bound | None:
    return _MUST.get((shape, other)) if codec == "none" else None


def encoded_rows(taken: dict[str, list[float]]) -> list[Row]:
    """Medians of the encoders."""
    cost = {name: median(us) for name, us in taken.items()}
    found = []
    for name, us in cost.items():
        ours = name == _OURS
        ratios = () if ours else (Ratio(us / cost[_OURS], "x ours"),)
        also, must = f"{min(taken[name]):.1f} at best", _ENCODING_MUST if ours else None
        case, unit = "a default message as JSON", "us of CPU per message"
        found.append(Row(name, us, unit, case, "", also, ratios, must, name in {_OURS, _WHOLE}))
    return found


def main() -> None:
    """Let them take turns, show."""
    asked = parser(__doc__, rounds=3)
    asked.add_argument("--seconds", type=float, default=3.0, help="of CPU, in each run")
    options = asked.parse_args()
    runs: dict[str, Any] = {}
    found: list[Row] = []
    with pinned(apart()[0]), most_real_broker() as broker:
        for shape, codec in product(("small", "forecast"), ("none", "zstd")):
            contenders = {
                who: partial(measure, broker, who, shape, codec, options.seconds) for who in _WHO
            }
            say(f"{shape}, {codec}")
            runs[f"{shape}, {codec}"] = results = take_turns(contenders, options.rounds)
            found += published_rows(shape, codec, results)
    each = {name: partial(_us, run) for name, run in encoders().items()}
    runs["encoded_us"] = encoded = take_turns(each, 5 * options.rounds)
    Report("publish", [*found, *encoded_rows(encoded)], runs).finish(options)


if __name__ == "__main__":
    main()
