"""Passes side by side: each as if it were alone."""

from pathlib import Path

import numpy as np
import streams

from stream_forecaster.passes import Pass


def test_passes_side_by_side_know_nothing_of_each_other(tmp_path: Path) -> None:
    """Other settings, the same events, and over partitions: the sums of a run alone."""
    events = tmp_path / "e.jsonl"
    lines = [value or b"" for _, value, _ in streams.busy_log(300)]
    events.write_bytes(b"".join(line + b"\n" for line in [*lines, b"{"]))
    configs = [streams.settings(), streams.settings("sum"), streams.settings(publish="changed")]
    alone = [Pass(config) for config in configs]
    for past in alone:
        past.drive([str(events)], partitions=3)

    first, *others = [Pass(config) for config in configs]
    first.drive([str(events)], partitions=3, beside=others)

    timed = {"seconds", "events_per_s"}
    for one, other in zip(alone, [first, *others], strict=True):
        found, expected = one.counts(), other.counts()
        assert {k: found[k] for k in found if k not in timed} == {
            k: expected[k] for k in expected if k not in timed
        }
        for ours, theirs in zip(one.scores, other.scores, strict=True):
            np.testing.assert_array_equal(ours.absolute, theirs.absolute)
            np.testing.assert_array_equal(ours.pinball, theirs.pinball)
        assert one.engine_seconds > 0
        assert other.engine_seconds > 0
    assert first.seconds > first.engine_seconds
