"""What the accuracy benchmark measures with: scores, naive rows, truth, and the way through."""

import json
import math
from pathlib import Path

import numpy as np
import orjson
import pytest

from benchmarks import accuracy
from benchmarks.protocol.scores import naive_scores, read_paths, score
from benchmarks.protocol.streams import CLOCK, LEVELS, STREAMS, Rows, Stream, Truth
from stream_forecaster.config import parse

HOUR_MS = 3_600_000
MIDNIGHT_MS = 1_767_571_200_000  # 2026-01-05, a Monday


def truth(*columns: list[float], warm_up: int, first: int, day: int = 2) -> Truth:
    keys = tuple("abc"[: len(columns)])
    return Truth(MIDNIGHT_MS, HOUR_MS, day, warm_up, first, keys, np.array(columns, np.float64).T)


def rows(*events: tuple[float, str]) -> Rows:
    """Events of value 1 at hours after midnight."""
    hours, keys = zip(*events, strict=True)
    time_ms = MIDNIGHT_MS + (np.array(hours) * HOUR_MS).astype(np.int64)
    return Rows(time_ms, np.array(keys), np.ones(len(keys)))


def test_scores_are_what_one_computes_by_hand() -> None:
    """Two keys of deviations 2^.5 and 3 2^.5, two origins, two steps; means off by 1 and by -3."""
    known = truth([0, 2, 2, 4, 5, 6, 7], [0, 6, 6, 12, 10, 20, 30], warm_up=4, first=4)
    targets = np.array([[[5, 6], [10, 20]], [[6, 7], [20, 30]]], np.float64)
    paths = np.full((3, 2, 1 + len(LEVELS), 4), np.nan, np.float32)  # what lies beyond is not read
    paths[:2, :, 0, :2] = targets + np.array([[1], [-3]])
    for q, level in enumerate(LEVELS):
        paths[:2, :, 1 + q, :2] = targets + 10 * (level - 0.5)
    paths[1, 1, 1:, 1] += 4.5  # one truth is below its 80 % interval, which is 4 to either side,
    paths[0, 0, 1:, 0] -= 3.5  # and one is just within; the 95 % interval holds both

    found = score(known, paths, 2)

    # pinball over the deciles: .4 .6 .6 .4 0 .4 .6 .6 .4 six times; .45 1.2 1.75 2.1 2.25 2.2 1.95
    # 1.5 .85 and .75 1.3 1.65 1.8 1.75 1.5 1.05 .4 .05 where they were moved
    wql = 2 * (6 * 4.0 + 14.25 + 10.25) / 9 / 104
    assert found == pytest.approx(
        {
            "mse": 0.5,
            "mae": math.sqrt(0.5),
            "wql": wql,
            "mase": 0.5,
            "mase_median": (3.5 / 4 / 2 + 4.5 / 4 / 6) / 2,
            "coverage_80": 7 / 8,
            "coverage_95": 1.0,
            "off": 0.4 - 1 / 8,  # only what was moved up is above the truth
            "origins": 2,
        },
        rel=1e-6,
    )


def test_a_level_is_off_if_no_part_of_what_lies_on_it_makes_it_true() -> None:
    """Of whole numbers 80 % are 0: so are their quantiles up to there, and beyond that not."""
    known = truth([0, 1, 1, 0, 0, 0, 0, 0, 1], warm_up=4, first=4)
    paths = np.zeros((5, 1, 1 + len(LEVELS), 1), np.float32)
    paths[:, :, 1 + LEVELS.index(0.9) :] = 1

    assert score(known, paths, 1)["off"] == 0

    paths[:, :, 1 + LEVELS.index(0.9)] = 0  # no more than 80 % are below it or on it

    assert score(known, paths, 1)["off"] == pytest.approx(0.1)

    paths[:, :, 1 + LEVELS.index(0.2)] = 1  # 80 % are below it

    assert score(known, paths, 1)["off"] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ("last value", (1 + 2 + 3) / 3),
        ("MA(3)", (2 + 3 + 4) / 3),
        ("EWMA", (1 + 2 + 3) / 3),
        ("seasonal naive day", (2 + 2 + 4) / 3),
        ("seasonal naive week", 14),
    ],
)
def test_naive_rows_lag_behind_a_ramp(row: str, error: float) -> None:
    """Each by its lag: the last value by the steps ahead, a season by its length."""
    known = truth([float(i) for i in range(40)], warm_up=10, first=20)

    found = naive_scores(known, 3)[row]

    assert found["mae"] * known.unit[0] == pytest.approx(error)
    assert found["wql"] == pytest.approx(error / np.mean(known.targets(3)))
    assert found["origins"] == 40 - 20 - 3 + 1


def test_tuned_average_does_not_see_what_it_is_scored_on() -> None:
    """Swings before the first origin ask for a slow rate, and it is kept on the ramp behind."""
    known = truth([*[0.0, 2.0] * 10, *map(float, range(20))], warm_up=8, first=20)

    found = naive_scores(known, 1)

    assert found["EWMA"]["mae"] > 2 * found["last value"]["mae"]


def test_truth_counts_the_keys_that_were_busy_early() -> None:
    """What comes after the warm-up chooses no keys; silent buckets get an event of their own."""
    early = [(0.5, "b"), (0.25, "a"), (1.0, "a"), (3.5, "b"), (3.75, "b")]
    later = [(h, "late") for h in np.arange(10, 12, 0.1)] + [(23.5, "a"), (24.0, "a"), (-0.5, "a")]

    known, events = Stream(
        lambda _data: rows(*early, *later), "2026-01-05", days=1, keys=2, horizons=(1, 2)
    ).read(Path())

    assert (known.keys, known.warm_up, known.first) == (("b", "a"), 4, 6)
    assert np.flatnonzero(known.values[:, 1]).tolist() == [0, 1, 23]
    assert known.values[:, 0].tolist() == [1, 0, 0, 2, *[0] * 20]
    assert events.key[:4].tolist() == ["a", "b", "a", CLOCK]
    assert (np.diff(events.time_ms) >= 0).all()
    assert set((events.time_ms - MIDNIGHT_MS) // HOUR_MS) == set(range(24))


def test_a_part_that_ends_before_the_first_forecast_is_refused() -> None:
    """Rather than scored as nothing."""
    stream = Stream(lambda _data: rows((0.5, "a")), "2026-01-05", days=1, keys=1, horizons=(3,))

    with pytest.raises(ValueError, match="forecasts begin at bucket 6"):
        stream.read(Path(), limit=8)


def test_a_stream_goes_through_the_product_and_comes_back(tmp_path: Path) -> None:
    """Every origin is forecast, silent nights too, having seen the truth up to it and no more."""
    day = [(h + i / 9, key) for h in range(8, 20) for key in "ab" for i in range(h % 9)]
    stream = Stream(
        lambda _data: rows(*((24.0 * d + h, key) for d in range(10) for h, key in day)),
        *("2026-01-05", 10, 2, (1, 3)),
    )
    known, events = stream.read(tmp_path)
    settings = stream.settings(network=False, seed=0)
    settings["resolutions"][0]["context"] = 1  # the moving average is the newest bucket alone

    run = accuracy.backtest(tmp_path, "tiny", events, settings)
    found = accuracy.evaluate(run["path"], known, stream.horizons)

    lines = [line for line in run["path"].read_bytes().splitlines() if b'"key":"a"' in line]
    newest = [json.loads(line)["resolutions"][0]["moving_average"] for line in lines]
    seen = known.values[:-1, known.keys.index("a")]
    assert [found[h]["origins"] for h in stream.horizons] == [180, 178]
    assert newest == seen[-len(newest) :].tolist()
    with pytest.raises(ValueError, match="180 of 360 forecasts are missing"):
        read_paths(lines, known, 3)


def test_paths_are_put_where_they_begin() -> None:
    """A forecast of the first bucket after the warm-up is the first row; the others are ignored."""
    known = truth([0.0] * 10, warm_up=4, first=8)
    quantiles = {str(level): [level, 10 * level] for level in reversed(LEVELS)}

    def message(hour: int, key: str, mean: float) -> bytes:
        fine = {"start": f"2026-01-05T{hour:02}:00:00.000Z", "mean": [mean, 10 * mean]}
        coarse = {"start": "2026-01-05T00:00:00.000Z"}
        return orjson.dumps({"key": key, "resolutions": [{**fine, "quantiles": quantiles}, coarse]})

    lines = [message(hour, "a", hour) for hour in (9, 7, 8, 10)] + [message(8, CLOCK, -1.0)]

    paths = read_paths(lines, known, 2)

    assert paths[:, 0, 0].tolist() == [[8, 80], [9, 90]]
    assert paths[1, 0, 1:, 1] == pytest.approx([10 * level for level in LEVELS])


@pytest.mark.parametrize("name", STREAMS)
def test_settings_are_ones_the_product_takes(name: str) -> None:
    """For each stream, with quantiles for all that is scored."""
    settings = parse(STREAMS[name].settings(network=True, seed=2))

    assert settings.output.quantiles == LEVELS
    assert settings.resolutions[0].horizon == max(STREAMS[name].horizons)
    assert (settings.model.network, settings.model.seed) == (True, 2)
