import pytest
from streams import START_MS, block, busy_log, event, settings, shard

from stream_forecaster import checkpoint
from stream_forecaster.config import Settings
from stream_forecaster.edge.inspection import inspect
from stream_forecaster.edge.memory import MemoryLog, MemoryStore
from stream_forecaster.errors import CheckpointCorrupt, CheckpointMismatch
from stream_forecaster.forecasts import rfc3339
from stream_forecaster.shard import Shard

MINUTE_MS = 60_000


def saved(*shards: Shard) -> MemoryStore:
    """A store with a checkpoint of each."""
    store = MemoryStore(log := MemoryLog({}))
    for saved_shard in shards:
        log.committed[saved_shard.partition] = saved_shard.offset
        data = checkpoint.encode(saved_shard.checkpoint())
        store.save(saved_shard.partition, saved_shard.offset, data)
    return store


def advanced(config: Settings, records: int) -> Shard:
    """A shard that has seen so many records."""
    made = shard(config)
    made.advance(block(busy_log(records)))
    return made


def test_the_newest_checkpoint_is_shown() -> None:
    """Its offset, what it holds, and the ones beside it."""
    config = settings()
    newest = advanced(config, 200)

    found = inspect(config, saved(advanced(config, 100), newest), 0, None)

    assert found is not None
    assert (found["offset"], found["checkpoints"]) == (200, [200, 100])
    assert found["keys"] == newest.keys
    assert 0 < found["state_bytes"] <= newest.state_bytes  # it has no room for more keys
    assert found["watermark"] == rfc3339(newest.watermark_ms or 0)
    assert [r["step_s"] for r in found["resolutions"]] == [60, 300, 3600]
    assert all(abs(sum(r["mean_weights"].values()) - 1) < 0.01 for r in found["resolutions"])
    assert "key" not in found


def test_a_key_is_shown_with_window_and_forecast() -> None:
    """Closed buckets only, the oldest first.

    minute    0  1  2  3  4            the watermark, 90 s behind 04:30, closes minutes 0 to 2
    events    2  0  1  0  1
    """
    config = settings()
    seen = shard(config)
    times_ms = [START_MS + 1000 * s for s in (10, 20, 130, 270)]
    seen.advance(block([(None, event("ann", t), t) for t in times_ms]))

    found = inspect(config, saved(seen), 0, b"ann")

    assert found is not None
    shown = found["key"]
    assert (shown["key"], shown["observations"]) == ("ann", 4)
    assert shown["last_seen"] == rfc3339(times_ms[-1])
    finest = shown["resolutions"][0]
    assert finest["window"] == [2.0, 0.0, 1.0]
    assert finest["moving_average"] == 1.0
    assert finest["forecast_start"] == rfc3339(START_MS + 3 * MINUTE_MS)
    assert [len(finest[name]) for name in ("mean", "low", "high")] == [3, 3, 3]
    assert shown["resolutions"][2]["window"] == []
    assert shown["resolutions"][2]["moving_average"] is None


def test_unknown_keys_and_partitions_are_no_errors() -> None:
    """There is nothing to show, that is all."""
    config = settings()
    store = saved(advanced(config, 100))

    found = inspect(config, store, 0, b"nobody")

    assert found is not None
    assert "key" not in found
    assert inspect(config, store, 1, None) is None


def test_a_shard_that_has_seen_nothing_can_be_shown() -> None:
    """It has no watermark."""
    config = settings()

    found = inspect(config, saved(shard(config)), 0, None)

    assert found is not None
    assert found["watermark"] is None
    assert found["resolutions"] == []


def test_what_cannot_be_read_is_an_error() -> None:
    """Damaged, or made with other settings."""
    config = settings()
    store = saved(advanced(config, 100))

    with pytest.raises(CheckpointMismatch, match="key_ttl"):
        inspect(settings(ttl="3h"), store, 0, None)
    store.save(0, 100, b"SFCP")
    with pytest.raises(CheckpointCorrupt):
        inspect(config, store, 0, None)
