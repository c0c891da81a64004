"""What turns come to as running scores."""

from dataclasses import replace

import pytest
import streams

from stream_forecaster.edge.scoreboard import Scoreboard
from stream_forecaster.edge.telemetry import Telemetry
from stream_forecaster.shard import Turn

SETTINGS = streams.settings()


def turn(hops: int, error: float) -> Turn:
    """One in which something lands at every resolution; each forecast is off by `error`."""
    found = streams.shard(SETTINGS).advance(streams.block(streams.busy_log(600)))
    assert all(score.count.any() for score in found.scores)
    scores = tuple(
        replace(score, absolute=0 * score.absolute + error * score.count) for score in found.scores
    )
    return replace(found, hops=hops, scores=scores)


def left(partitions: int, rounds: int, hops: int) -> list[float]:
    """Per resolution, how much is left of an error after so many rounds of turns without any."""
    board, wrong, right = Scoreboard(Telemetry(), SETTINGS), turn(1, 1.0), turn(hops, 0.0)
    board.count(wrong, partitions)
    before = [score.absolute.sum() for score in board.scores]
    for _ in range(rounds * partitions):
        board.count(right, partitions)
    return [s.absolute.sum() / b for s, b in zip(board.scores, before, strict=True)]


@pytest.mark.parametrize("partitions", [1, 12])
def test_a_score_fades_by_the_bucket_whoever_has_how_many_partitions(partitions: int) -> None:
    """Twelve partitions that land a bucket each are one bucket, not twelve."""
    assert left(partitions, rounds=5, hops=1) == pytest.approx([0.995**5] * 3)


def test_a_turn_of_many_buckets_fades_by_as_many() -> None:
    """In a backlog; of five minutes and of an hour fewer land than of one minute."""
    assert [r.step_ms for r in SETTINGS.resolutions] == [60_000, 300_000, 3_600_000]

    assert left(1, rounds=1, hops=120) == pytest.approx([0.995**120, 0.995**24, 0.995**2])
