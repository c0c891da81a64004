"""What a partition has to say and has not said yet: its turns since the last commit.

Theory of operation. Normally every hop is committed at once, and nothing is shed. When forecasting
falls behind, events are still read and counted one after the other, and every hop is computed: the
state is a function of the log, or nothing could be recovered or replayed. What can be shed is the
publishing of forecasts that are out of date before anybody has seen them:

    a forecast is shed if the record that made it due is older than `output.shed_after`, and in the
    same commit there is a newer forecast, or a tombstone, of the same key

So the last word on every key is always published, in order and once. Which of the others are
depends on when commits are made. Tombstones, dead letters and scores are never shed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from stream_forecaster.forecasts import Encoder, Forecast, Forgotten
from stream_forecaster.records import Message, Records
from stream_forecaster.shard import Turn


@dataclass(slots=True)
class Pending:
    """The turns that wait for a commit.

    Attributes:
        turns: in the log's order.
        read_ms: hop's offset -> the time of the record that made it due, epoch ms; -1: unknown.
        shed: forecasts that will not be published.
    """

    turns: list[Turn] = field(default_factory=list)
    read_ms: dict[int, int] = field(default_factory=dict)
    shed: int = 0

    @property
    def forecasts(self) -> int:
        """How many wait."""
        return sum(len(forecast.keys) for turn in self.turns for forecast in turn.forecasts)

    @property
    def newest_ms(self) -> int | None:
        """The time of the record that made the newest hop due; None without a hop."""
        return next(reversed(self.read_ms.values()), None)

    def add(self, turn: Turn, records: Records) -> None:
        """Let a turn wait, which `records` came to."""
        self.turns.append(turn)
        for forecast in turn.forecasts:
            row = int(np.searchsorted(records.offset, forecast.offset))
            self.read_ms[forecast.offset] = int(records.time_ms[row])

    def shed_superseded(self, before_ms: int) -> None:
        """Shed what is superseded, of hops that records before `before_ms` made due."""
        later: set[bytes] = set()
        for i in reversed(range(len(self.turns))):
            kept: list[Forecast] = []
            for said in reversed(self.turns[i].output):
                if isinstance(said, Forgotten):
                    later.add(said.key)
                    continue
                forecast = said
                if 0 <= self.read_ms[said.offset] < before_ms:
                    rows = [row for row, key in enumerate(said.keys) if key not in later]
                    forecast = said.take(np.array(rows, np.int64))
                self.shed += len(said.keys) - len(forecast.keys)
                later.update(said.keys, said.expired)
                if forecast.keys or forecast.expired:
                    kept.append(forecast)
                else:
                    del self.read_ms[said.offset]
            self.turns[i] = replace(self.turns[i], forecasts=tuple(reversed(kept)))

    def messages(self, encoder: Encoder) -> Iterator[Message]:
        """All of it, in an order that depends on the log alone."""
        for turn in self.turns:
            yield from encoder.output(turn.output)
            yield from map(encoder.dead_letter, turn.rejects)
            for scored in turn.scored:
                yield from encoder.scores(scored)
