"""The shard: all state of one input partition, and the one function that moves it on.

Theory of operation. A shard is told records and nothing else: no clock, no I/O, no randomness that
is not seeded. `advance` decodes them and walks through event time:

    records ──▶ events ──▶ cut at hops ──▶ per hop: absorb · close · score · learn · forecast
                   └▶ rejects (with those that come too late)

The *watermark* is the greatest event time seen less the allowed lateness; it never retreats. A
*hop* is due when it passes a boundary of the finest resolution:

    event time   ───┬─────────┬─────────┬────▶       lateness
    boundary       B0        B1        B2          ◀──────────┤
                                   ▲ watermark                ▲ newest event

Rules of residence:
1. How records are grouped into calls does not matter, bit for bit. So lateness is judged per record
   by the running maximum before it, and the events are cut where the watermark crosses a boundary:
   the forecast of a hop sees exactly the records before the one that made it due.
2. A jump over many boundaries closes every bucket but speaks once, at the last one.
3. A tombstone (a key and no value) forgets its key where it stands in the log, after the hop that
   its own time may have made due.
4. A new key that finds no room takes it from the least active ones (`keys`), where it stands in the
   log. Events are never dropped for want of room.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stream_forecaster import inference  # noqa: F401  (to be compiled before its caller is loaded)
from stream_forecaster.calendar import EARLIEST_MS, Calendar
from stream_forecaster.checkpoint import Checkpoint
from stream_forecaster.config import Settings
from stream_forecaster.due import Matured
from stream_forecaster.errors import CheckpointMismatch
from stream_forecaster.events import UNTIMED_MS, EventDecoder, Events, Reason, Reject, reject
from stream_forecaster.forecasts import Forecast, Forgotten, Intent, Scored
from stream_forecaster.keys import KeyTable, nested, under
from stream_forecaster.pace import Pace
from stream_forecaster.paths import Paths
from stream_forecaster.pool import Pool
from stream_forecaster.records import Records
from stream_forecaster.scales import Issued, Scales
from stream_forecaster.scoring import Score
from stream_forecaster.weights import Weights, shipped

if TYPE_CHECKING:  # it loads torch: a process without a network does without
    from stream_forecaster.learning import Learner

Int64 = NDArray[np.int64]

_UNSEEN = np.iinfo(np.int64).min
COLD_BUCKETS = 10
"""A key with fewer closed buckets at the finest resolution is called a cold start."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one `advance` yields.

    Attributes:
        forecasts: one per hop that had something to publish, in event-time order.
        rejects: in offset order.
        events: how many events were counted.
        hops: how many hops were due.
        scores: per resolution, what landed.
        drifts: per resolution, how many drifts were detected.
        training_steps: how many steps trained the network.
        forgotten: keys that tombstones named and that were known, in offset order.
        shed: keys that made room for new ones, in offset order.
        scored: what landed, forecast by forecast; only where that is published.
    """

    forecasts: tuple[Forecast, ...]
    rejects: tuple[Reject, ...]
    events: int
    hops: int
    scores: tuple[Score, ...]
    drifts: tuple[int, ...]
    training_steps: int
    forgotten: tuple[Forgotten, ...] = ()
    shed: tuple[Forgotten, ...] = ()
    scored: tuple[Scored, ...] = ()

    @property
    def output(self) -> list[Forecast | Forgotten]:
        """What the output topic is told, in its order."""
        gone = (key for key in (*self.forgotten, *self.shed) if key.published)
        all_: list[Forecast | Forgotten] = [*self.forecasts, *gone]
        return sorted(all_, key=lambda said: said.offset)  # stable: a hop's forecasts come first


class Shard:
    """All state of one input partition.

    Attributes:
        partition: which.
        offset: the next record to read.
        calendar: the time zone's.
    """

    def __init__(
        self,
        settings: Settings,
        calendar: Calendar,
        partition: int,
        offset: int,
        weights: Weights | None = None,
        pace: Pace | None = None,
    ) -> None:
        """Begin with no key known.

        Args:
            settings: all of them.
            calendar: of the input's time zone.
            partition: which.
            offset: the next record to read.
            weights: that the network starts from; None: those that ship.
            pace: at which it learns; None: as the settings say.
        """
        self.partition, self.offset = partition, offset
        self._settings, self.calendar = settings, calendar
        self._step_ms = settings.resolutions[0].step_ms
        self._newest_ms = _UNSEEN
        self._decode = EventDecoder(settings.input, calendar)
        self._table = KeyTable(settings.state.max_keys)
        self._table.add("observations", dtype=np.int64)
        self._table.add("sent_ms", dtype=np.int64, fill=-1)
        learner = None
        if settings.model.network:
            learner = learner_for(settings, partition, weights, pace)
        self._scales = Scales(self._table, calendar, settings, learner)

    @property
    def keys(self) -> int:
        """How many keys are known."""
        return len(self._table)

    @property
    def state_bytes(self) -> int:
        """Bytes of all per-key state, as allocated."""
        return self._table.nbytes

    @property
    def watermark_ms(self) -> int | None:
        """Event time up to which everything has been seen, epoch ms; None before any event."""
        if self._newest_ms == _UNSEEN:
            return None
        return self._newest_ms - self._settings.input.allowed_lateness_ms

    @property
    def pools(self) -> tuple[Pool, ...]:
        """The resolutions' state, finest first; to look at, not to touch."""
        return self._scales.pools

    @property
    def learner(self) -> "Learner | None":
        """What trains the network; None without one. To look at, not to touch."""
        return self._scales.learner

    @property
    def table(self) -> KeyTable:
        """The key table; to look at, not to touch."""
        return self._table

    def advance(self, records: Records, *, aloud: bool = True, most: int | None = None) -> Turn:
        """Move on by `records`, which must follow the last ones.

        Args:
            records: the next records of this partition.
            aloud: False during recovery: the same state, but the forecasts, which were published
                before, are not made up again.
            most: stop, with `offset` where it goes on, before a hop that would make more forecasts
                than this in all; but not before the first.

        Raises:
            ValueError: records of another partition, or before `offset` (a bug in the caller).
        """
        if records.partition != self.partition or (
            len(records) and records.offset[0] < self.offset
        ):
            raise ValueError(f"records of partition {records.partition} before {self.offset}")
        events, rejects = self._decode(records)
        self.offset = records.next_offset
        forecasts: list[Forecast] = []
        forgotten: list[Forgotten] = []
        shed: list[Forgotten] = []
        scored: list[Scored] = []
        scores = [pool.no_score() for pool in self.pools]
        drifts, hops, counted, made = [0] * len(self.pools), 0, 0, 0
        trained = self._scales.training_steps
        for run, hop, row in self._cut(events, records, rejects):
            counted += len(run)
            shed += self._absorb(run, records)
            if hop is not None:
                made += len(self._table)
                if hops and most is not None and made > most:
                    self.offset = int(records.offset[row])
                    break
                hops += 1
                hop_ms = int(self.calendar.start(hop, self._step_ms))
                offset = int(records.offset[row])
                for r, closed in self._scales.close(hop_ms):
                    scores[r] += closed.score
                    drifts[r] += closed.drifted
                    if aloud:
                        scored += (self._scored(each, offset) for each in closed.matured)
                expired = tuple(self._table.expire(hop_ms - self._settings.state.key_ttl_ms))
                issued = self._issue(hop_ms, aloud=aloud, tombstones=bool(expired))
                if issued:
                    forecasts.append(self._forecast(issued, hop_ms, offset, expired))
            if row is not None and (key := _to_forget(records, row)) and self._forget(key):
                forgotten.append(Forgotten(self.partition, int(records.offset[row]), key))
        rejects = [rejected for rejected in rejects if rejected.offset < self.offset]
        rejects.sort(key=lambda rejected: rejected.offset)
        return Turn(
            tuple(forecasts),
            tuple(rejects),
            counted,
            hops,
            tuple(scores),
            tuple(drifts),
            self._scales.training_steps - trained,
            tuple(forgotten) if aloud else (),
            tuple(shed) if aloud else (),
            tuple(scored),
        )

    def checkpoint(self, log_id: str = "") -> Checkpoint:
        """The shard as it stands, of the log `log_id`; its arrays are views: encode it at once."""
        arrays = {
            "newest_ms": np.array([self._newest_ms], np.int64),
            **nested("table", self._table.arrays()),
        }
        arrays |= self._scales.arrays()
        settings = self._settings.determining()
        return Checkpoint(self.partition, self.offset, log_id, settings, arrays)

    @classmethod
    def restore(cls, settings: Settings, calendar: Calendar, checkpoint: Checkpoint) -> "Shard":
        """The shard that `checkpoint` was taken of; it takes over its arrays.

        Raises:
            CheckpointMismatch: it was made under other settings or by another version.
        """
        checkpoint.require(settings.determining())
        arrays = checkpoint.arrays
        small = {k: a.copy() for k, a in arrays.items() if not k.startswith("table.")}
        shard = cls(settings, calendar, checkpoint.partition, checkpoint.offset)
        try:
            shard._newest_ms = int(small["newest_ms"][0])
            shard._table.restore(under("table", arrays))
            shard._scales.restore(small)
        except (LookupError, ValueError, TypeError, ArithmeticError) as error:
            raise CheckpointMismatch(
                f"the checkpoint of partition {checkpoint.partition} at {checkpoint.offset} was "
                f"made by another version ({error}): run that one, or use --cold-start."
            ) from error
        return shard

    def _newest(self, begin_ms: int, events: Events) -> Int64:
        """(N + 1,) the greatest event time before each event, and after the last one."""
        newest: Int64 = np.maximum.accumulate(np.concatenate([[begin_ms], events.time_ms]))
        return newest

    def _closed(self, newest: Int64) -> Int64:
        """The first open bucket when the greatest event times are `newest`."""
        lateness_ms = self._settings.input.allowed_lateness_ms
        return self.calendar.index(newest - lateness_ms, self._step_ms)

    def _cut(
        self, events: Events, records: Records, rejects: list[Reject]
    ) -> Iterator[tuple[Events, int | None, int | None]]:
        """Cut events into runs that end where a hop is due or a key is to be forgotten.

        Yields each run, the hop if one is due behind it, and the row behind it, None at the end;
        meanwhile the watermark is that of the run.

        Late events are taken out and added to `rejects`.
        """
        if not len(events):
            return
        if self._newest_ms == _UNSEEN:
            timed = np.flatnonzero(events.time_ms != UNTIMED_MS)
            if not len(timed):
                return  # nothing but tombstones, and no key that they could mean
            self._newest_ms = int(events.time_ms[timed[0]])
            self._scales.begin(self._newest_ms - self._settings.input.allowed_lateness_ms)
        newest = self._newest(self._newest_ms, events)
        closed = self._closed(newest)  # (N + 1,)
        is_event = events.key.size >= 0
        # A heartbeat that is behind, by a broker's clock set back, says nothing new: no reject.
        time_ms = np.maximum(events.time_ms, EARLIEST_MS)
        late = is_event & (self.calendar.index(time_ms, self._step_ms) < closed[:-1])
        for i in np.flatnonzero(late).tolist():
            behind_s = (newest[i] - events.time_ms[i]) / 1000
            detail = f"{behind_s:.0f} s behind the newest event, whose bucket is closed"
            rejects.append(reject(records, int(events.row[i]), Reason.TOO_LATE, detail))
        names_key = ~is_event & (records.key.size[events.row] > 0)
        kept, cuts = np.flatnonzero(is_event & ~late), np.flatnonzero(np.diff(closed) | names_key)
        *runs, rest = np.split(kept, np.searchsorted(kept, cuts))
        for i, run in zip(cuts.tolist(), runs, strict=True):
            hop = int(closed[i + 1]) if closed[i + 1] > closed[i] else None
            self._newest_ms = int(newest[i])
            yield events.take(_span(run)), hop, int(events.row[i])
        self._newest_ms = int(newest[-1])
        yield events.take(_span(rest)), None, None

    def _absorb(self, run: Events, records: Records) -> list[Forgotten]:
        """Count events in; which keys had to make room for new ones."""
        shed: list[Forgotten] = []
        begin = 0
        while begin < len(run):
            slots = self._table.intern(run.key[begin:], run.time_ms[begin:])
            end = begin + len(slots)
            np.add.at(self._table["observations"], slots, 1)
            self._scales.absorb(slots, run.time_ms[begin:end], run.value[begin:end])
            if end < len(run):
                shed += self._shed(int(records.offset[run.row[end]]))
            begin = end
        return shed

    def _shed(self, offset: int) -> list[Forgotten]:
        """Make room for the key of the record at `offset`; the keys that went."""
        slots = self._table.least_active()
        keys = self._table.keys_in(slots)
        published = self._table["sent_ms"][slots] >= 0
        self._scales.forget(slots)
        for key in keys:
            self._table.forget(key)
        return [
            Forgotten(self.partition, offset, key, "shed", sent)
            for key, sent in zip(keys, published.tolist(), strict=True)
        ]

    def _scored(self, matured: Matured, offset: int) -> Scored:
        """With the keys that the slots have now; later they may have others."""
        return Scored(self.partition, offset, self._table.keys_in(matured.slots), matured)

    def _forget(self, key: bytes) -> bool:
        """Erase all that is kept of a key; False if there is nothing."""
        slot = self._table.slot(key)
        if slot is None:
            return False
        self._scales.forget(np.array([slot]))
        return self._table.forget(key)

    def _issue(
        self, hop_ms: int, *, aloud: bool, tombstones: bool
    ) -> list[tuple[Int64, tuple[Paths, ...]]]:
        """Forecast every key; the slots to publish and their paths, a run of slots at a time."""
        found = []
        for issued in self._scales.issue(hop_ms):
            slots = self._to_publish(hop_ms, issued)
            if aloud and (len(slots) or tombstones):
                found.append((slots, issued.paths(slots)))
        return found

    def _to_publish(self, hop_ms: int, issued: Issued) -> Int64:
        """Slots to publish at this hop, and note that they are."""
        rows = issued.rows
        due = self._table.live[rows]
        if self._settings.output.publish == "changed":
            # A reader must never be left with an expired forecast of a live key.
            half_life_ms = self._step_ms * self._settings.resolutions[0].horizon // 2
            due = due & (issued.moved | (hop_ms - self._table["sent_ms"][rows] >= half_life_ms))
        slots: Int64 = rows.start + np.flatnonzero(due)
        self._table["sent_ms"][slots] = hop_ms
        issued.mark_sent(slots)
        return slots

    def _forecast(
        self,
        issued: list[tuple[Int64, tuple[Paths, ...]]],
        hop_ms: int,
        offset: int,
        expired: tuple[bytes, ...],
    ) -> Forecast:
        """Join what is issued, and take it apart meanwhile: forecasts are large."""
        fine = self.pools[0]
        slots = np.concatenate([slots for slots, _ in issued])
        parts = list(zip(*(paths for _, paths in issued), strict=True))[::-1]
        issued.clear()
        paths = tuple(Paths.joined(parts.pop()) for _ in self.pools)
        skill, coverage = fine.quality(slots)
        age = fine.window.age(slots)
        is_mean = self._settings.input.aggregate == "mean"
        return Forecast(
            self.partition,
            offset,
            hop_ms,
            expired,
            self._table.keys_in(slots),
            paths,
            Intent.of(paths, fine.surprise(slots), is_mean=is_mean),
            self._table["observations"][slots],
            age < COLD_BUCKETS,
            age <= 0,
            coverage,
            skill,
            fine.drifting,
        )


def _span(rows: Int64) -> Int64 | slice:
    """The same rows, as a slice where they are consecutive: what is taken is a view then."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1:
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


def _to_forget(records: Records, row: int) -> bytes | None:
    """The key that a record says to forget: a tombstone's, if it is one."""
    return (records.key[row] or None) if records.value[row] is None else None


def load_parts(settings: Settings) -> None:
    """Load what shards of these settings are made of, by making one: torch, scipy, seconds.

    Raises:
        ConfigError: `model.river` names what river does not have, `model.device` what the machine
            has not.
    """
    Shard(settings, settings.input.calendar(), 0, 0)


def learner_for(
    settings: Settings, partition: int, weights: Weights | None = None, pace: Pace | None = None
) -> "Learner":
    """The network of one partition; arguments as for `Shard`."""
    from stream_forecaster.learning import Learner  # noqa: PLC0415  (loads torch)

    steps, contexts, horizons = zip(
        *((r.step_ms, r.context, r.horizon) for r in settings.resolutions), strict=True
    )
    model = settings.model
    return Learner(
        steps,
        contexts,
        horizons,
        weights or shipped(),
        seed=(model.seed, partition),
        pace=pace or Pace(every=model.train_every_hops, rows=model.train_rows),
        device=model.device,
    )
