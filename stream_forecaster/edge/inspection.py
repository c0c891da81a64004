"""What a checkpoint says, as plain data: for `stream-forecaster state inspect` and `export`."""

from collections.abc import Callable, Collection, Iterator
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_forecaster import checkpoint
from stream_forecaster.calendar import Calendar
from stream_forecaster.checkpoint import Store
from stream_forecaster.config import Settings
from stream_forecaster.forecasts import five_digits, rfc3339
from stream_forecaster.pool import Pool
from stream_forecaster.records import as_text
from stream_forecaster.shard import Shard

_KEYS_AT_ONCE = 1_024
"""Of an export: enough to be quick, few enough that progress is seen."""


def inspect(
    settings: Settings, store: Store, partition: int, key: bytes | None
) -> dict[str, Any] | None:
    """The newest checkpoint of a partition as JSON can hold it; None if there is none.

    Args:
        settings: those it was made with.
        store: where it lies.
        partition: which.
        key: a key to show as well; the entry `key` is absent where the partition does not have it.

    Raises:
        StateError: it cannot be read, or was made with other settings.
    """
    offsets = store.offsets(partition)
    if not offsets:
        return None
    data = store.load(partition, offsets[0])
    shard = _restored(settings, data)
    slot = shard.table.slot(key) if key is not None else None
    found = {} if slot is None else {"key": next(_keys(shard, np.array([slot], np.int64)))}
    watermark_ms = shard.watermark_ms
    return {
        "partition": partition,
        "offset": shard.offset,
        "checkpoints": offsets,
        "checkpoint_bytes": len(data),
        "watermark": None if watermark_ms is None else rfc3339(watermark_ms),
        "keys": shard.keys,
        "state_bytes": shard.state_bytes,
        "resolutions": [] if watermark_ms is None else [_resolution(p) for p in shard.pools],
        **found,
    }


def export(
    settings: Settings,
    store: Store,
    partition: int,
    keys: Collection[bytes] | None = None,
    begin: Callable[[int], object] = lambda _keys: None,
) -> Iterator[dict[str, Any]]:
    """What the newest checkpoint of a partition holds of its keys, one after the other.

    Args:
        settings: those it was made with.
        store: where it lies.
        partition: which.
        keys: these only, in any order; None: all.
        begin: told how many keys there will be, before the first one.

    Raises:
        StateError: it cannot be read, or was made with other settings.
    """
    if not (offsets := store.offsets(partition)):
        return
    shard = _restored(settings, store.load(partition, offsets[0]))
    live = np.flatnonzero(shard.table.live)
    if keys is not None:
        wanted = {slot for key in keys if (slot := shard.table.slot(key)) is not None}
        live = live[np.isin(live, list(wanted))]
    begin(len(live))
    for first in range(0, len(live), _KEYS_AT_ONCE):
        for found in _keys(shard, live[first : first + _KEYS_AT_ONCE]):
            yield {"partition": partition, **found}


def buckets(calendar: Calendar, exported: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row for each closed bucket of an exported key that holds something."""
    for resolution in exported["resolutions"]:
        step_ms = resolution["step_s"] * 1_000
        begin = datetime.fromisoformat(resolution["window_start"])
        first = calendar.index(round(begin.timestamp() * 1_000), step_ms)
        for i, value in enumerate(resolution["window"]):
            if value is not None:
                yield {
                    "partition": exported["partition"],
                    "key": exported["key"],
                    "step_s": resolution["step_s"],
                    "start": rfc3339(int(calendar.start(first + i, step_ms))),
                    "value": value,
                }


def _restored(settings: Settings, data: bytearray) -> Shard:
    return Shard.restore(settings, settings.input.calendar(), checkpoint.decode(data))


def _resolution(pool: Pool) -> dict[str, Any]:
    weights = np.round(pool.mean_weights(), 3).tolist()
    return {
        "step_s": pool.resolution.step_ms // 1000,
        "context": pool.resolution.context,
        "horizon": pool.resolution.horizon,
        "drifting": pool.drifting,
        "mean_weights": dict(zip(pool.experts, weights, strict=True)),
    }


def _keys(shard: Shard, slots: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
    """All that is to be shown of B keys."""
    skill, coverage = shard.pools[0].quality(slots)
    resolutions = [_key_resolutions(pool, shard.calendar, slots) for pool in shard.pools]
    for i, slot in enumerate(slots.tolist()):
        yield {
            "key": as_text(shard.table.key(slot)),
            "observations": int(shard.table["observations"][slot]),
            "last_seen": rfc3339(int(shard.table["last_seen_ms"][slot])),
            "coverage_80": _known(coverage[i]),
            "skill": _known(skill[i]),
            "resolutions": [next(resolution) for resolution in resolutions],
        }


def _key_resolutions(
    pool: Pool, calendar: Calendar, slots: NDArray[np.int64]
) -> Iterator[dict[str, Any]]:
    """One resolution of B keys: window, averages and weights, and what it says by itself."""
    paths = pool.paths(slots, pool.statement(pool.think(slots)))
    values, weights = pool.window.values(slots), np.round(paths.weights, 3)
    rounded, unknown = five_digits(np.nan_to_num(values)).tolist(), np.isnan(values).tolist()
    known = np.clip(pool.window.age(slots), 0, pool.resolution.context)
    for i, buckets_known in enumerate(known.tolist()):
        shown = slice(pool.resolution.context - buckets_known, None)
        window = [
            None if missing else value
            for value, missing in zip(rounded[i][shown], unknown[i][shown], strict=True)
        ]
        first = pool.window.closed - len(window)
        yield {
            "step_s": paths.step_ms // 1000,
            "window_start": rfc3339(int(calendar.start(first, paths.step_ms))),
            "window": window,
            "moving_average": _known(paths.moving_average[i]),
            "level": _known(paths.level[i]),
            "weights": dict(zip(paths.experts, weights[i].tolist(), strict=True)),
            "forecast_start": rfc3339(paths.start_ms),
            "mean": five_digits(paths.mean[i]).tolist(),
            "low": five_digits(paths.quantiles[i, :, 0]).tolist(),
            "high": five_digits(paths.quantiles[i, :, -1]).tolist(),
        }


def _known(number: float) -> float | None:
    return None if np.isnan(number) else float(five_digits(np.asarray(number)))
