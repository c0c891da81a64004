"""How far a pipeline is behind its input: how many records, and for how long the oldest has waited.

Records alone do not say whether that is a second's worth or a day's, so the time of the first
record that is not committed is looked up, one record of each partition that has any.
"""

from contextlib import closing
from dataclasses import dataclass

from stream_forecaster.config import Settings
from stream_forecaster.edge.topics import describe_topics, no_topic, read_topic


@dataclass(frozen=True, slots=True)
class Lag:
    """One partition of the input.

    Attributes:
        partition: which.
        committed: the next record that the group will read; None before its first commit.
        end: the next record that will be written.
        records: between the two; all that are there, before the first commit.
        oldest_ms: the time of the first of them, epoch ms; None: there is none, or it has no time.
    """

    partition: int
    committed: int | None
    end: int
    records: int
    oldest_ms: int | None

    def waiting_s(self, now_ms: int) -> float | None:
        """How long the oldest record has waited; 0 if there is none, None if that is not known."""
        if not self.records:
            return 0.0
        return None if self.oldest_ms is None else max(0, now_ms - self.oldest_ms) / 1_000


def lag(settings: Settings) -> tuple[Lag, ...]:
    """Every partition of the input topic, as of now.

    Raises:
        Unavailable, TransportError: no broker, no such topic, or it refuses.
    """
    source, *_ = describe_topics(settings)
    if not source.partitions:
        raise no_topic(settings, source.name)
    unread = {p: source.committed.get(p, source.bounds[p][0]) for p, n in source.lag.items() if n}
    oldest = _first_times(settings, unread) if unread else {}
    return tuple(
        Lag(p, source.committed.get(p), end, source.lag[p], oldest.get(p))
        for p, (_, end) in sorted(source.bounds.items())
    )


def _first_times(settings: Settings, begin: dict[int, int]) -> dict[int, int]:
    """Partition -> the time of its first record from `begin` on, where that has one."""
    times: dict[int, int] = {}
    with closing(read_topic(settings, settings.input.topic, begin=begin)) as records:
        for record in records:
            times.setdefault(record.partition, record.time_ms)
            if len(times) == len(begin):
                break
    return {partition: time_ms for partition, time_ms in times.items() if time_ms >= 0}
