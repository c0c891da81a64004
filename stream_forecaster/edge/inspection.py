"""What a checkpoint says, as plain data: for `stream-forecaster state inspect`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_forecaster import checkpoint
from stream_forecaster.checkpoint import Store
from stream_forecaster.config import Settings
from stream_forecaster.forecasts import five_digits, rfc3339
from stream_forecaster.pool import Pool
from stream_forecaster.shard import Shard


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
    shard = Shard.restore(settings, settings.input.calendar(), checkpoint.decode(data))
    slot = shard.table.slot(key) if key is not None else None
    found = {} if slot is None or key is None else {"key": _key(shard, key, slot)}
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


def _resolution(pool: Pool) -> dict[str, Any]:
    weights = np.round(pool.mean_weights(), 3).tolist()
    return {
        "step_s": pool.resolution.step_ms // 1000,
        "context": pool.resolution.context,
        "horizon": pool.resolution.horizon,
        "drifting": pool.drifting,
        "mean_weights": dict(zip(pool.experts, weights, strict=True)),
    }


def _key(shard: Shard, key: bytes, slot: int) -> dict[str, Any]:
    slots = np.array([slot], np.int64)
    return {
        "key": key.decode("utf-8", "backslashreplace"),
        "observations": int(shard.table["observations"][slot]),
        "last_seen": rfc3339(int(shard.table["last_seen_ms"][slot])),
        "resolutions": [_key_resolution(pool, slots) for pool in shard.pools],
    }


def _key_resolution(pool: Pool, slots: NDArray[np.int64]) -> dict[str, Any]:
    paths = pool.paths(slots, pool.statement(pool.think(slots)))
    (window,), (average,) = pool.window.values(slots), paths.moving_average
    first = int(np.argmin(np.isnan(window))) if not np.isnan(window).all() else len(window)
    return {
        "step_s": paths.step_ms // 1000,
        "window": [None if np.isnan(v) else v for v in five_digits(window[first:]).tolist()],
        "moving_average": None if np.isnan(average) else float(five_digits(average)),
        "forecast_start": rfc3339(paths.start_ms),
        "mean": five_digits(paths.mean[0]).tolist(),
        "low": five_digits(paths.quantiles[0, :, 0]).tolist(),
        "high": five_digits(paths.quantiles[0, :, -1]).tolist(),
    }
