"""What the page is shown of shards, as plain data.

Everything here reads and nothing writes: a shard that is looked at goes on as if it had not been.
What is said of a key has the form of the messages (`forecasts`); what is beside it, windows and
lists, is for the page alone and may change with it. Arrays stay arrays until they are encoded; NaN
becomes null.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_forecaster import labels
from stream_forecaster.config import Settings
from stream_forecaster.edge.viewers import Order, key_id
from stream_forecaster.forecasts import MOST, Forecast, Intent, five_digits
from stream_forecaster.lookback import Issue
from stream_forecaster.pool import Pool
from stream_forecaster.records import as_text
from stream_forecaster.scoring import NAIVE, PUBLISHED, Score, central_intervals
from stream_forecaster.shard import COLD_BUCKETS, Shard

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_SPARK_BUCKETS = 30
_BANDS, _PREFERRED = 2, (0.95, 0.8)
"""Central intervals that are drawn: so many, these where there are such, else the widest."""


def _numbers(values: Float64) -> Float64:
    """Short in JSON, and NaN where they were."""
    return np.where(np.isnan(values), np.nan, five_digits(np.nan_to_num(values)))


# -- keys ------------------------------------------------------------------------------------------


def foremost(shard: Shard, order: Order, most: int) -> tuple[Int64, Float64]:
    """At most so many slots that come first in an order, and by what they do, greatest first."""
    window, live = shard.pools[0].window, shard.table.live
    if order == "active":
        rank = shard.table["activity"].copy()
    elif order == "newest":
        rank = window.first().astype(np.float64)
    else:
        rank = np.abs(shard.pools[0].surprise(np.arange(shard.table.size)))
    rank[~live | np.isnan(rank)] = -np.inf
    return _greatest(rank, most)


def _greatest(rank: Float64, most: int) -> tuple[Int64, Float64]:
    slots = np.arange(len(rank))
    if len(rank) > most:
        slots = np.argpartition(-rank, most)[:most]
    slots = slots[rank[slots] > -np.inf]
    slots = slots[np.argsort(-rank[slots], kind="stable")]
    return slots, rank[slots]


def matching(shard: Shard, part: bytes, rows: slice) -> Int64:
    """Of so many rows the slots whose key contains `part`, which is lower case."""
    table = shard.table
    live = rows.start + np.flatnonzero(table.live[rows])
    return np.array([slot for slot in live.tolist() if part in table.key(slot).lower()], np.int64)


def stated(settings: Settings, shard: Shard, slots: Int64) -> Forecast:
    """What the state has to say of `slots` (B,), in the form of what is published.

    It is what was thought at the newest hop, before the resolutions agreed. The log alone decides
    what it is, so a process that has recovered says the same, under the same ids.
    """
    paths = tuple(pool.paths(slots, pool.statement(pool.think(slots))) for pool in shard.pools)
    fine = shard.pools[0]
    age, (skill, coverage) = fine.window.age(slots), fine.quality(slots)
    return Forecast(
        shard.partition,
        shard.offset - 1,
        paths[0].start_ms,
        (),
        shard.table.keys_in(slots),
        paths,
        Intent.of(paths, fine.surprise(slots), is_mean=settings.input.aggregate == "mean"),
        shard.table["observations"][slots],
        age < COLD_BUCKETS,
        age <= 0,
        coverage,
        skill,
        fine.drifting,
    )


def rows(settings: Settings, shard: Shard, slots: Int64) -> Iterator[dict[str, Any]]:
    """Keys as a list shows them: what was, what is expected next, how unusual the newest was.

    `next` is the mean, and the two ends of the last one of `bands` if there is any.
    """
    pool = shard.pools[0]
    window = pool.window
    said = pool.statement(pool.think(slots, np.array([1])))
    inner = [q for _, low, high in _bands(settings.output.quantiles)[-1:] for q in (low, high)]
    following = _numbers(np.column_stack((said.mean[:, 0], said.quantiles[:, 0, inner]))).tolist()
    surprise = _numbers(np.clip(pool.surprise(slots), -MOST, MOST)).tolist()
    spark = _numbers(window.values(slots, min(_SPARK_BUCKETS, window.context)))
    cold = (window.age(slots) < COLD_BUCKETS).tolist()
    for i, slot in enumerate(slots.tolist()):
        key = shard.table.key(slot)
        yield {
            "id": key_id(key),
            "key": as_text(key),
            "cold_start": cold[i],
            "surprise": surprise[i],
            "next": following[i],
            "spark": spark[i],
        }


def windows(shard: Shard, slot: int) -> list[dict[str, Any]]:
    """A key's buckets at every resolution: closed ones, open ones, and those that are forecast."""
    return [_window(shard, pool, np.array([slot])) for pool in shard.pools]


def _window(shard: Shard, pool: Pool, slots: Int64) -> dict[str, Any]:
    window = pool.window
    index = np.arange(
        window.closed - window.context, window.closed + max(pool.resolution.horizon, window.open)
    )
    return {
        "step_s": window.step_ms // 1000,
        "at": shard.calendar.start(index, window.step_ms),
        "closed": window.context,
        "values": _numbers(window.values(slots)[0]),
        "open": _numbers(window.underway(slots)[0]),
        "average": _numbers(window.moving_average(slots))[0],
    }


def past(settings: Settings, issues: Sequence[Sequence[Issue]]) -> list[dict[str, Any]]:
    """Per resolution: the fans that were published, oldest first, and who carried them."""
    bands = _bands(settings.output.quantiles)
    return [_past(bands, of) for of in issues if of]


def _past(bands: Sequence[tuple[float, int, int]], issues: Sequence[Issue]) -> dict[str, Any]:
    paths = [issue.paths for issue in issues]
    quantiles = np.concatenate([p.quantiles for p in paths])
    return {
        "step_s": paths[0].step_ms // 1000,
        "issued_ms": [issue.issued_ms for issue in issues],
        "start_ms": [p.start_ms for p in paths],
        "mean": _numbers(np.concatenate([p.mean for p in paths])),
        "bands": [
            {
                "level": level,
                "low": _numbers(quantiles[:, :, low]),
                "high": _numbers(quantiles[:, :, high]),
            }
            for level, low, high in bands
        ],
        "average": _numbers(np.concatenate([p.moving_average for p in paths])),
        "experts": [{"name": name, "label": labels.label(name)} for name in paths[0].experts],
        "weights": np.round(np.concatenate([p.weights for p in paths]), 3),
    }


def bands(settings: Settings) -> list[dict[str, Any]]:
    """What is drawn of a message's quantiles: nominal coverage, and what they are called there."""
    levels = settings.output.quantiles
    return [
        {"level": level, "low": str(levels[low]), "high": str(levels[high])}
        for level, low, high in _bands(levels)
    ]


def _bands(levels: tuple[float, ...]) -> list[tuple[float, int, int]]:
    """The central intervals that are drawn: nominal coverage and columns, the widest first."""
    columns = central_intervals(levels)
    return [(level, *columns[level]) for level in _drawn(columns)]


def _drawn(intervals: Iterable[float]) -> list[float]:
    """Which of these nominal coverages are drawn, the widest first.

    >>> _drawn([0.99, 0.95, 0.8, 0.5]), _drawn([0.9, 0.5, 0.3]), _drawn([])
    ([0.95, 0.8], [0.9, 0.5], [])
    """
    chosen = sorted(intervals, key=lambda level: (level not in _PREFERRED, -level))[:_BANDS]
    return sorted(chosen, reverse=True)


# -- the process -----------------------------------------------------------------------------------


def quality(shards: Sequence[Shard], scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Per resolution: how right what was published has been of late, against what is simple."""
    return [
        {
            "step_s": pool.resolution.step_ms // 1000,
            "horizon": pool.resolution.horizon,
            "drifting": any(shard.pools[r].drifting for shard in shards),
            **(_score(scores[r]) if scores else {"scored": 0}),
        }
        for r, pool in enumerate(shards[0].pools if shards else ())
    ]


def _score(score: Score) -> dict[str, Any]:
    scored = float(score.count.sum())
    if not scored:
        return {"scored": 0}
    naive = score.absolute[score.forecasters.index(NAIVE)].sum()
    spoke = score.spoken.sum(axis=1)
    coverage = score.coverage()
    errors = [
        {
            "name": name,
            "label": labels.label(name),
            "ratio": float(score.absolute[f].sum() / naive),
        }
        for f, name in enumerate(score.forecasters)
        if name in _COMPARED and naive > 0 and spoke[f]
    ]
    return {
        "scored": round(scored),
        "skill": score.skill(),
        "coverage": [{"level": level, "share": coverage[level]} for level in _drawn(coverage)],
        "errors": errors,
    }


_COMPARED = (PUBLISHED, NAIVE, "moving_average", "seasonal_naive_day", "lstm")


def weights(shards: Sequence[Shard], mean: Sequence[Float64]) -> list[list[dict[str, Any]]]:
    """Per resolution: who carries the forecast, of all keys together, the heaviest first."""
    if not shards:
        return []
    found = []
    for pool, of in zip(shards[0].pools, mean, strict=False):
        order = np.argsort(-of, kind="stable")
        found.append(
            [
                {"label": labels.label(pool.experts[m]), "weight": round(float(of[m]), 3)}
                for m in order.tolist()
            ]
        )
    return found
