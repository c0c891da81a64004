"""What a ranking does with forecasts: who is trending now, and a row of features per user.

    python examples/ranking.py localhost:9092 forecasts

This is a reader of the forecasts topic like any other: kafka-python and JSON, nothing of
stream_forecaster. The topic is a table: a key's newest message replaces the one before, and a
message without a value removes the key.
"""

import argparse
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

from kafka import KafkaConsumer

Forecast = dict[str, Any]


def trending(forecasts: Iterable[Forecast], k: int) -> list[tuple[str, float]]:
    """The k keys that rise most, and their scores, highest first. Only what rises is listed."""
    scores = {forecast["key"]: trend(forecast) for forecast in forecasts}
    rising = [(key, score) for key, score in scores.items() if score > 0]
    return sorted(rising, key=lambda pair: (-pair[1], pair[0]))[:k]


def trend(forecast: Forecast) -> float:
    """How far a key is above its usual level, in units of chance.

    The rise, short_term - long_term, over the noise that counting events at that level has.
    Momentum alone would put first whoever did one thing after a silent month; the bare rise,
    whoever is always busy. To that comes the surprise of the newest bucket, in expected errors: it
    tells a burst before the short-term level has followed. Neither more than 3 of it, nor any
    below 0, as one bucket proves no trend.
    """
    intent = forecast["intent"]
    rise = intent["short_term"] - intent["long_term"]
    noise = math.sqrt(abs(intent["long_term"]) + 1)
    score: float = rise / noise + min(max(intent["surprise"], 0.0), 3.0)
    return score


def features(forecast: Forecast) -> dict[str, float]:
    """A flat row for a ranking model; NaN where nothing is known yet.

    For each resolution: what the bucket that begins at its `start` will come to, with the bounds of
    the 80 % interval, and the mean of those before. `next_3600s_mean` is the next hour.
    """
    intent, quality = forecast["intent"], forecast["quality"]
    row = {
        "short_term": intent["short_term"],
        "long_term": intent["long_term"],
        "momentum": intent["momentum"],
        "surprise": intent["surprise"],
        "trend": trend(forecast),
        "observations": quality["observations"],
        "cold_start": quality["cold_start"],
        "drift": quality["drift"] == "drift",
        "coverage_80": quality["coverage_80"],
        "skill": quality["skill"],
    }
    for resolution in forecast["resolutions"]:
        name, quantiles = f"{resolution['step_s']}s", resolution["quantiles"]
        row |= {
            f"next_{name}_mean": resolution["mean"][0],
            f"next_{name}_low": quantiles["0.1"][0],
            f"next_{name}_high": quantiles["0.9"][0],
            f"average_{name}": resolution["moving_average"],
        }
    return {name: math.nan if value is None else float(value) for name, value in row.items()}


def follow(consumer: KafkaConsumer) -> Iterator[dict[bytes, Forecast]]:
    """The newest forecast of every key, after each poll that brought any; without end."""
    newest: dict[bytes, Forecast] = {}
    while True:
        polled = consumer.poll(timeout_ms=1000)
        for records in polled.values():
            for record in records:
                if record.value is None:
                    newest.pop(record.key, None)
                else:
                    newest[record.key] = json.loads(record.value)
        if polled:
            yield newest


def main() -> None:
    """Print the trending keys whenever there is news, and the features of the first."""
    parser = argparse.ArgumentParser(description="Who is trending, from the forecasts topic.")
    parser.add_argument("bootstrap_servers")
    parser.add_argument("topic")
    parser.add_argument("--top", type=int, default=10)
    options = parser.parse_args()
    consumer = KafkaConsumer(
        options.topic,
        bootstrap_servers=options.bootstrap_servers,
        isolation_level="read_committed",  # only what was published exactly once
        auto_offset_reset="earliest",  # the whole table, then its changes
    )
    for newest in follow(consumer):
        forecasts = {forecast["key"]: forecast for forecast in newest.values()}
        top = trending(forecasts.values(), options.top)
        print(f"\n{len(forecasts)} keys, trending:")
        for rank, (key, score) in enumerate(top, 1):
            level = forecasts[key]["intent"]["short_term"]
            print(f"{rank:3}. {score:7.2f}  {level:9.4g} a bucket  {key}")
        for key, _ in top[:1]:
            print(features(forecasts[key]), flush=True)


if __name__ == "__main__":
    main()
