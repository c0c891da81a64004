"""Every fault of the checkpoint store, under the real service on the embedded broker.

While the service runs, a store that cannot be written costs time at the next start and nothing
else. At a start, state that cannot be had ends the process, since going on would forget it. What
was published in the end is always what an undisturbed shard makes of the input.
"""

import shutil
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, TopicPartition
from served import FAULTS, Pipeline

from stream_forecaster.checkpoint import VERSION
from stream_forecaster.edge.broker import Broker
from stream_forecaster.errors import (
    CheckpointCorrupt,
    CheckpointMismatch,
    CheckpointTooOld,
    StateError,
    StoreUnusable,
)


@pytest.fixture
def pipeline(embedded_broker: Broker, tmp_path: Path) -> Pipeline:
    return Pipeline(embedded_broker, tmp_path)


def _checkpoints(pipeline: Pipeline) -> list[Path]:
    """Newest first."""
    return sorted(pipeline.folder.glob("*.ckpt"), reverse=True)


def _two_checkpoints(pipeline: Pipeline) -> None:
    """A process that stored its state twice and was killed a little later."""
    with pipeline.run() as run:
        for _ in range(2):
            run.read(100)
            run.checkpoint()
        pipeline.store.writing = FAULTS["full"]
        run.read(40)
    pipeline.store.writing = None


# -- while it runs: it goes on ---------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
def test_a_store_that_cannot_be_written_delays_and_costs_nothing(
    pipeline: Pipeline, fault: str
) -> None:
    """From the second checkpoint on: counted, logged, and made up for by a longer replay."""
    with pipeline.run() as run:
        run.read(100)
        run.checkpoint()
        pipeline.store.writing = FAULTS[fault]
        run.read(100)
        run.until(lambda: len(run.events("checkpoint_failed")) > 1)
        failed = run.events("checkpoint_failed")[-1]
        assert (failed["fault"], failed["last_good"], failed["offset"]) == (fault, 100, 200)
        assert "state.checkpoint_url" in failed["reason"]
        assert run.metric("checkpoints_failed_total", reason=fault) == len(
            run.events("checkpoint_failed")
        )
        run.until(lambda: run.metric("checkpoint_age_seconds") > 0)

    with pipeline.run() as run:  # the first one was killed, and the disk is as it was
        run.read(50)
        (assigned,) = run.events("partition_assigned")
        assert (assigned["recovered_from"], assigned["offset"]) == ("checkpoint", 100)
        assert assigned["silent_until"] == 200
        run.until(lambda: run.events("checkpoint_failed"))
        pipeline.store.writing = None
        run.checkpoint()
        assert run.events("checkpoints_resumed")
        run.until(lambda: run.metric("checkpoint_age_seconds") == 0)

    with pipeline.run() as run:
        run.read(50)
        assert run.events("partition_assigned")[0]["offset"] == 250
        run.finish()
    assert pipeline.store.offsets(0)[0] == 300
    pipeline.assert_undisturbed()


def test_a_store_that_hangs_does_not_hold_up_the_loop(pipeline: Pipeline) -> None:
    """Past the session time-out too: polls, commits, and one write under way, never two."""
    with pipeline.run() as run:
        run.read(100)
        run.checkpoint()
        pipeline.store.flowing.clear()
        begun, hung_s = pipeline.store.begun, time.monotonic()
        session_s = pipeline.settings.kafka.session_timeout_ms / 1000
        while time.monotonic() - hung_s < 1.5 * session_s:
            run.read(20)
        assert pipeline.store.begun == begun + 1
        assert run.longest_step_s < session_s
        assert run.metric("rebalances_total") == 1
        slow = run.events("checkpoint_slow")
        assert len(slow) >= 1
        assert run.metric("checkpoints_failed_total", reason="slow") == len(slow)
        run.until(lambda: run.metric("checkpoint_age_seconds") > 2)
        pipeline.store.flowing.set()
        run.checkpoint()
        assert run.metric("checkpoint_write_seconds_sum") > 2

    newest, *_ = pipeline.store.offsets(0)
    with pipeline.run() as run:
        run.read(50)
        assert run.events("partition_assigned")[0]["offset"] == newest
    pipeline.assert_undisturbed()


def test_a_store_that_hangs_does_not_hold_up_the_end_for_ever(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is committed; what is not stored is replayed."""
    monkeypatch.setattr("stream_forecaster.saving._LAST_WRITES_S", 0.3)
    with pipeline.run() as run:
        run.read(100)
        run.checkpoint()
        pipeline.store.flowing.clear()
        run.read(100)
        begin_s = time.monotonic()
        run.finish()
        assert 0.2 < time.monotonic() - begin_s < 10
        assert run.events("checkpoint_slow")
    pipeline.store.flowing.set()

    with pipeline.run() as run:
        run.read(50)
        assert run.events("partition_assigned")[0]["silent_until"] == 200
    pipeline.assert_undisturbed()


def test_a_directory_that_vanishes_is_made_anew(pipeline: Pipeline) -> None:
    """The state is still in memory; somebody is told."""
    with pipeline.run() as run:
        run.read(100)
        run.checkpoint()
        shutil.rmtree(pipeline.folder.parent)
        run.read(100)
        run.checkpoint()
        assert len(run.events("checkpoints_vanished")) == 1
        assert run.metric("checkpoints_failed_total", reason="gone") == 1

    with pipeline.run() as run:
        run.read(50)
        (assigned,) = run.events("partition_assigned")
        assert (assigned["recovered_from"], assigned["offset"]) == ("checkpoint", 200)
    pipeline.assert_undisturbed()


@pytest.mark.parametrize("step", ["shard.Shard.checkpoint", "edge.saver.encode"])
def test_without_memory_for_a_checkpoint_forecasts_go_on(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A copy of the state is the most that is ever asked for: to die of it would never end."""

    def exhausted(*_: object) -> None:
        raise MemoryError("Unable to allocate 9.99 GiB")

    with pipeline.run() as run:
        run.read(100)
        run.checkpoint()
        with monkeypatch.context() as patch:
            patch.setattr(f"stream_forecaster.{step}", exhausted)
            run.read(50)
            run.until(lambda: run.events("checkpoint_failed"))
        failed = run.events("checkpoint_failed")[0]
        assert (failed["fault"], failed["last_good"]) == ("memory", 100)
        assert "9.99 GiB" in failed["reason"]
        assert run.metric("checkpoints_failed_total", reason="memory") > 0

    with pipeline.run() as run:
        run.read(50)
    pipeline.assert_undisturbed()


def test_a_bug_in_saving_is_not_swallowed(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody foresaw ends the process, from whichever thread."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("stream_forecaster.edge.saver.encode", broken)
    pipeline.write(100)
    with pipeline.run() as run, pytest.raises(ZeroDivisionError):
        run.checkpoint()


# -- what retention takes while nothing can be stored ----------------------------------------------


def _retain_from(pipeline: Pipeline, offset: int) -> None:
    admin = KafkaAdminClient(bootstrap_servers=pipeline.settings.kafka.bootstrap_servers)
    admin.delete_records({TopicPartition(pipeline.settings.input.topic, 0): offset})
    admin.close()


def test_retention_that_overtakes_the_last_checkpoint_is_told_while_there_is_time(
    pipeline: Pipeline,
) -> None:
    """The process still has the state, and a restart would stop: so it says so, and goes on."""
    with pipeline.run() as run:
        run.read(100)
        run.checkpoint()
        pipeline.store.writing = FAULTS["full"]
        run.read(100)
        run.until(lambda: run.events("checkpoint_failed"))
        assert run.metric("checkpoints_too_old") == 0
        assert not run.events("checkpoint_too_old")
        _retain_from(pipeline, 150)
        run.until(lambda: run.events("checkpoint_too_old"))
        told = run.events("checkpoint_too_old")[0]
        assert (told["last_good"], told["first_in_topic"]) == (100, 150)
        assert run.metric("checkpoints_too_old") == 1
        run.read(50)
        assert run.committed == 250

    with pipeline.run() as run, pytest.raises(CheckpointTooOld, match="--cold-start") as stopped:
        run.read(1)
    assert stopped.value.exit_code == 4


def test_a_store_mended_in_time_saves_what_retention_took(pipeline: Pipeline) -> None:
    """The next good checkpoint ends the danger."""
    with pipeline.run() as run:
        run.read(100)
        run.checkpoint()
        pipeline.store.writing = FAULTS["full"]
        run.read(100)
        _retain_from(pipeline, 150)
        run.until(lambda: run.metric("checkpoints_too_old") == 1)
        pipeline.store.writing = None
        run.checkpoint()
        assert run.metric("checkpoints_too_old") == 0

    with pipeline.run() as run:
        run.read(50)
        assert run.events("partition_assigned")[0]["offset"] == 200
        assert run.metric("events_total") == 50


# -- at a start: an older one, or it stops ---------------------------------------------------------


def _flipped(data: bytes) -> bytes:
    return data[:99] + bytes([data[99] ^ 1]) + data[100:]


def _of_version(data: bytes, version: int = VERSION + 1) -> bytes:
    """The same checkpoint, as a version of another format would have written it."""
    body = data[12:]
    return struct.pack(">4sII", data[:4], version, zlib.crc32(body, version)) + body


@pytest.mark.parametrize("spoil", [lambda data: data[:-100], _flipped], ids=["truncated", "a bit"])
def test_a_spoilt_file_gives_way_to_an_older_one(
    pipeline: Pipeline, spoil: Callable[[bytes], bytes]
) -> None:
    """Told, counted, and made up for by a longer replay."""
    _two_checkpoints(pipeline)
    newest = _checkpoints(pipeline)[0]
    newest.write_bytes(spoil(newest.read_bytes()))

    with pipeline.run() as run:
        run.read(50)
        (assigned,) = run.events("partition_assigned")
        assert (assigned["offset"], assigned["silent_until"]) == (100, 240)
        assert [told["offset"] for told in run.events("checkpoint_unusable")] == [200]
        assert run.metric("checkpoints_unusable_total", reason="corrupt") == 1
    pipeline.assert_undisturbed()


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (_flipped, CheckpointCorrupt, "none of the checkpoints of partition 0 can be used"),
        (_of_version, CheckpointMismatch, f"at offset 200 cannot be used: .* format {VERSION + 1}"),
    ],
    ids=["all spoilt", "another version"],
)
def test_state_that_cannot_be_used_stops_the_start(
    pipeline: Pipeline, spoil: Callable[[bytes], bytes], error: type[StateError], says: str
) -> None:
    """Exit 4 with nothing published; once it is put right, all goes on as if nothing had been."""
    _two_checkpoints(pipeline)
    kept = {path: path.read_bytes() for path in _checkpoints(pipeline)}
    for path, data in kept.items():
        path.write_bytes(spoil(data))

    with pipeline.run() as run, pytest.raises(error, match=says) as stopped:
        run.read(50)
    assert stopped.value.exit_code == 4
    assert "--cold-start" in str(stopped.value)

    for path, data in kept.items():
        path.write_bytes(data)
    with pipeline.run() as run:
        run.read(50)
    pipeline.assert_undisturbed()


def test_other_settings_stop_the_start(pipeline: Pipeline) -> None:
    """Likewise; the error says which differ."""
    _two_checkpoints(pipeline)
    pipeline.mapping["output"]["publish"] = "changed"
    with pipeline.run() as run, pytest.raises(CheckpointMismatch, match=r"output\.publish"):
        run.read(50)

    pipeline.mapping["output"]["publish"] = "every_hop"
    with pipeline.run() as run:
        run.read(50)
    pipeline.assert_undisturbed()


def test_a_store_that_cannot_be_read_stops_the_start(pipeline: Pipeline) -> None:
    """Without a look at what is there, going on would be beginning anew."""
    _two_checkpoints(pipeline)
    pipeline.store.listing = FAULTS["denied"]
    with pipeline.run() as run, pytest.raises(StoreUnusable, match="cannot list") as stopped:
        run.read(50)
    assert (stopped.value.fault, stopped.value.exit_code) == ("denied", 4)

    pipeline.store.listing = None
    with pipeline.run() as run:
        run.read(50)
    pipeline.assert_undisturbed()


@pytest.mark.parametrize("fault", ["full", "read_only", "denied"])
def test_a_store_that_cannot_be_written_stops_the_start(pipeline: Pipeline, fault: str) -> None:
    """Nothing is lost by not starting, and somebody is looking."""
    pipeline.store.writing = FAULTS[fault]
    with pytest.raises(StoreUnusable, match=r"state\.checkpoint_url") as stopped:
        pipeline.store.probe()
    assert (stopped.value.fault, stopped.value.exit_code) == (fault, 4)


def test_a_store_that_hangs_stops_the_start(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount whose server is away would be waited for for ever."""
    monkeypatch.setattr("stream_forecaster.edge.store._ANSWERS_WITHIN_S", 0.2)
    pipeline.store.flowing.clear()
    try:
        with pytest.raises(StoreUnusable, match=r"no answer within 0\.2 s") as stopped:
            pipeline.store.probe()
    finally:
        pipeline.store.flowing.set()
    assert (stopped.value.fault, stopped.value.exit_code) == ("slow", 4)
