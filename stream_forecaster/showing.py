"""Showing: what the page is told, at the loop's own pace.

The loop owns all state, so it alone can say what is in it, and it has something better to do. Hence
the rules:

1. Without a viewer nothing is looked up. Counted is always, which costs what adding costs.
2. All viewers together get a fiftieth of a core: after answers that took c seconds of it there are
   none for 50 c. More viewers, or dearer questions, see rarer updates; the stream sees nothing. Who
   has asked something new waits for a tenth of that: a page that opens has nothing to show yet. It
   is lent: what is not paid back is owed on top of the next, so nothing is gained by asking anew.
3. No look takes long: a search through a million keys goes on where it left off.
4. A page is no reason to stop forecasting: what goes wrong here is logged, and that is all.
"""

import math
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import orjson

from stream_forecaster import __version__, views
from stream_forecaster.config import Settings
from stream_forecaster.edge.scoreboard import Scoreboard
from stream_forecaster.edge.viewers import Question, Subject, key_id
from stream_forecaster.edge.world import World
from stream_forecaster.forecasts import Encoder
from stream_forecaster.lookback import Lookback
from stream_forecaster.records import as_text
from stream_forecaster.shard import Shard, Turn

_EVERY_S: Mapping[Subject, float] = {
    "overview": 1.0,
    "keys": 1.0,
    "key": 0.5,
    "past": 0.5,
    "forecasts": 0.5,
}
"""No question is answered more often."""
_SHARE = 0.02
_SOONER = 10
_AT_ONCE_S = 0.02
_SCANNED = 4096
"""Keys searched before the clock is looked at again."""
_NOTES = 180
"""Seconds of history on the overview."""
_ROWS, _FORECASTS = 50, 100
"""Keys in a list, and forecasts in an answer, of all partitions together."""
_MOST_ACTIVE, _CHOSEN_EVERY_S = 8, 60.0
_OPTIONS = orjson.OPT_SERIALIZE_NUMPY


class Held(Protocol):
    """What there is to know of a partition held."""

    shard: Shard
    spoken: int
    committed: int | None

    @property
    def restoring(self) -> bool:
        """Is its state not back yet?"""
        ...


class Showing:
    """Counts what is committed, and answers what viewers ask."""

    def __init__(self, settings: Settings, world: World, scoreboard: Scoreboard) -> None:
        self._settings, self._viewers, self._log = settings, world.viewers, world.log
        self._now_s, self._cpu_s, self._wall_ms = world.now_s, world.cpu_s, world.wall_ms
        self._scoreboard, self._encoder = scoreboard, Encoder(settings)
        self._started_ms, self._chosen_s = world.wall_ms(), -math.inf
        self._rested_s, self._spent_s = -math.inf, 0.0
        self._events = self._forecasts = self._drifts = self._steps = 0
        self._rejects: Counter[str] = Counter()
        self._notes: deque[tuple[float, int, int, int, float | None]] = deque(maxlen=_NOTES)
        self._lag: Mapping[int, int] = {}
        self._restored_from: dict[int, int] = {}
        self._lookback = Lookback()
        self._answered_s: dict[Question, float] = {}
        self._failed: set[Question] = set()
        self._past_of: dict[Question, int] = {}
        self._scans: dict[Question, Iterator[bytes | None]] = {}

    def count(self, turn: Turn) -> None:
        """Add a turn that has been committed."""
        self._events += turn.events
        self._rejects.update(rejected.reason.value for rejected in turn.rejects)
        self._drifts += sum(turn.drifts)
        self._steps += turn.training_steps
        for forecast in turn.forecasts:
            self._forecasts += len(forecast.keys)
            self._lookback.hear(forecast)
        for gone in (*turn.forgotten, *turn.shed):
            self._lookback.forget(gone.key)

    def note(self, held: Mapping[int, Held], lag: Mapping[int, int]) -> None:
        """Note how things stand; once a second, whether anybody looks or not."""
        now_s = self._now_s()
        behind_s = self._behind_s(_shards(held))
        self._lag = lag
        self._notes.append((now_s, self._events, self._forecasts, sum(lag.values()), behind_s))
        for partition in self._restored_from.keys() - held.keys():
            del self._restored_from[partition]
        for partition, of in held.items():
            self._restored_from.setdefault(partition, of.shard.offset)
        if now_s - self._chosen_s >= _CHOSEN_EVERY_S and self._forecasts:
            self._chosen_s = now_s
            shards = _shards(held)
            active = _most_active(shards, _MOST_ACTIVE)
            self._lookback.follow(shards[i].table.key(slot) for i, slot in active)

    def turn(self, held: Mapping[int, Held]) -> None:
        """Answer who has waited longest, if it is time to, and no more than there is time for."""
        asked = self._viewers.asked()
        for old in self._answered_s.keys() - asked.keys():
            for of in (self._answered_s, self._past_of, self._scans):
                of.pop(old, None)
            self._failed.discard(old)
        if not asked:
            return
        now_s = self._now_s()
        rest_s = (now_s - self._rested_s) * _SHARE
        if rest_s * _SOONER < self._spent_s:
            return
        due = [
            question
            for question, answers in asked.items()
            if self._is_new(question, answers)
            or (rest_s >= self._spent_s and now_s >= self._due_s(question))
        ]
        begin_s = self._cpu_s()
        for question in sorted(due, key=lambda q: self._answered_s.get(q, -math.inf)):
            self._reply(question, held, is_new=not asked[question])
            self._answered_s[question] = now_s
            if self._cpu_s() - begin_s >= _AT_ONCE_S:
                break
        if due:
            self._rested_s = now_s
            self._spent_s = max(0.0, self._spent_s - rest_s) + self._cpu_s() - begin_s

    def _is_new(self, question: Question, answers: int) -> bool:
        return not answers and question not in self._failed

    def _due_s(self, question: Question) -> float:
        return self._answered_s.get(question, -math.inf) + _EVERY_S[question.subject]

    def _reply(self, question: Question, held: Mapping[int, Held], *, is_new: bool) -> None:
        try:
            answer = self._answer(question, held, is_new=is_new)
        except Exception as error:  # noqa: BLE001  (rule 4)
            self._scans.pop(question, None)  # a generator that raised never goes on
            if question not in self._failed:
                self._failed.add(question)
                # Not the traceback: its values may be a key.
                failure = type(error).__name__
                self._log.error("showing_failed", subject=question.subject, error=failure)
        else:
            if answer is not None:
                self._viewers.answer(question, answer)

    def _answer(
        self, question: Question, held: Mapping[int, Held], *, is_new: bool
    ) -> bytes | None:
        """What a question comes to; None: nothing new yet."""
        shards = _shards(held)
        match question.subject:
            case "overview":
                return _json(self._overview(held))
            case "keys":
                if question.search:
                    return self._search(question, shards)
                found = [(s, *views.foremost(s, question.order, _ROWS)) for s in shards]
                return self._listed(question, shards, found)
            case "key":
                return self._key(question.key, shards)
            case "past":
                return self._past(question, is_new=is_new)
            case "forecasts":
                # What is replayed in silence was said long ago.
                return None if any(of.restoring for of in held.values()) else self._now(shards)

    # -- the process -------------------------------------------------------------------------------

    def _overview(self, held: Mapping[int, Held]) -> dict[str, Any]:
        shards = _shards(held)
        watermarks = [s.watermark_ms for s in shards if s.watermark_ms is not None]
        return {
            "version": __version__,
            "pipeline": self._settings.kafka.group_id,
            "topic": self._settings.input.topic,
            "timezone": self._settings.input.timezone,
            "aggregate": self._settings.input.aggregate,
            "started_ms": self._started_ms,
            "at_ms": self._wall_ms(),
            "watermark_ms": min(watermarks, default=None),
            "events": self._events,
            "forecasts": self._forecasts,
            "rejects": dict(self._rejects),
            "keys": sum(shard.keys for shard in shards),
            "state_bytes": sum(shard.state_bytes for shard in shards),
            "training_steps": self._steps,
            "drifts": self._drifts,
            "lag": sum(self._lag.values()),
            "history": self._history(),
            "partitions": [self._partition(p, of) for p, of in sorted(held.items())],
            "quality": views.quality(shards, self._scoreboard.scores),
            "weights": views.weights(shards, self._scoreboard.weights),
        }

    def _history(self) -> dict[str, Any]:
        """Rates and levels, one a second, oldest first."""
        if not self._notes:
            return {"age_s": [], "events": [], "forecasts": [], "lag": [], "behind_s": []}
        seconds, events, forecasts, lag, behind_s = zip(*self._notes, strict=True)
        at = np.array(seconds)
        span = np.maximum(np.diff(at), 1e-3)
        return {
            "age_s": np.round(at[1:] - at[-1], 1),
            "events": np.round(np.diff(events) / span, 1),
            "forecasts": np.round(np.diff(forecasts) / span, 1),
            "lag": lag[1:],
            "behind_s": behind_s[1:],
        }

    def _partition(self, partition: int, of: Held) -> dict[str, Any]:
        begin = self._restored_from.get(partition, of.shard.offset)
        ahead = max(1, of.spoken - begin)
        return {
            "partition": partition,
            "offset": of.shard.offset,
            "lag": self._lag.get(partition),
            "keys": of.shard.keys,
            "watermark_ms": of.shard.watermark_ms,
            "restored": (of.shard.offset - begin) / ahead if of.restoring else None,
        }

    def _behind_s(self, shards: Sequence[Shard]) -> float | None:
        watermarks = [s.watermark_ms for s in shards if s.watermark_ms is not None]
        return (self._wall_ms() - min(watermarks)) / 1000 if watermarks else None

    # -- keys --------------------------------------------------------------------------------------

    def _search(self, question: Question, shards: Sequence[Shard]) -> bytes | None:
        """Go on with a search; its list when it is through."""
        scan = self._scans.setdefault(question, self._scan(question, shards))
        begin_s = self._cpu_s()
        while (answer := next(scan)) is None:
            if self._cpu_s() - begin_s >= _AT_ONCE_S:
                return None
        del self._scans[question]
        return answer

    def _scan(self, question: Question, shards: Sequence[Shard]) -> Iterator[bytes | None]:
        """Yields None so long as there is more to look at, and then the list."""
        part, found = question.search.encode(), []
        for shard in shards:
            hits = [np.empty(0, np.int64)]
            for begin in range(0, shard.table.size, _SCANNED):
                hits.append(views.matching(shard, part, slice(begin, begin + _SCANNED)))
                yield None
            slots = np.concatenate(hits)
            slots = slots[shard.table.live[slots]]  # some may have gone meanwhile
            found.append((shard, slots, shard.table["activity"][slots]))
        yield self._listed(question, shards, found)

    def _listed(
        self, question: Question, shards: Sequence[Shard], found: list[tuple[Shard, Any, Any]]
    ) -> bytes:
        """The first of what was found in each shard: slots (B,) and ranks (B,)."""
        ranked = sorted(
            (
                (-rank, i, slot)
                for i, (_, slots, ranks) in enumerate(found)
                for slot, rank in zip(slots.tolist(), ranks.tolist(), strict=True)
            )
        )
        first = ranked[:_ROWS]
        rows: dict[tuple[int, int], dict[str, Any]] = {}
        for i, (shard, *_) in enumerate(found):
            slots = [slot for _, of, slot in first if of == i]
            shown = views.rows(self._settings, shard, np.array(slots, np.int64)) if slots else ()
            rows |= zip(((i, slot) for slot in slots), shown, strict=True)
        return _json(
            {
                "order": question.order,
                "search": question.search,
                "total": sum(shard.keys for shard in shards),
                "found": len(ranked) if question.search else None,
                "bands": views.bands(self._settings),
                "rows": [rows[i, slot] for _, i, slot in first],
            }
        )

    def _key(self, key: bytes, shards: Sequence[Shard]) -> bytes:
        self._lookback.follow([key])
        identity = {"id": key_id(key), "key": as_text(key)}
        # Producers that do not partition by it may have it in several: shown is where most came.
        known = [(shard, s) for shard in shards if (s := shard.table.slot(key)) is not None]
        if not known:
            return _json({**identity, "known": False})
        shard, slot = max(known, key=lambda of: int(of[0].table["observations"][of[1]]))
        published = self._lookback.newest(key)
        said = published or views.stated(self._settings, shard, np.array([slot]))
        *_, message = self._encoder.forecast(said)
        return _json(
            {
                **identity,
                "known": True,
                "partition": shard.partition,
                "partitions": len(known),
                "watermark_ms": shard.watermark_ms,
                "seen_ms": int(shard.table["last_seen_ms"][slot]),
                "published": published is not None,
                "forecast": orjson.Fragment(message.value or b"null"),
                "bands": views.bands(self._settings),
                "windows": views.windows(shard, slot),
            }
        )

    def _past(self, question: Question, *, is_new: bool) -> bytes | None:
        self._lookback.follow([question.key])
        newest = self._lookback.newest(question.key)
        issued_ms = newest.issued_ms if newest else 0
        if not is_new and self._past_of.get(question) == issued_ms:
            return None
        self._past_of[question] = issued_ms
        issues = self._lookback.issues(question.key)
        return _json(
            {
                "id": key_id(question.key),
                "resolutions": views.past(self._settings, issues),
            }
        )

    def _now(self, shards: Sequence[Shard]) -> bytes:
        """What the state says of the most active keys, as messages would."""
        slots_of: dict[int, list[int]] = {}
        for i, slot in _most_active(shards, _FORECASTS):
            slots_of.setdefault(i, []).append(slot)
        values = []
        for i, slots in sorted(slots_of.items()):
            said = views.stated(self._settings, shards[i], np.array(sorted(slots)))
            values += [orjson.Fragment(m.value or b"null") for m in self._encoder.forecast(said)]
        return _json(values)


def _shards(held: Mapping[int, Held]) -> list[Shard]:
    """Those that have seen an event."""
    return [of.shard for _, of in sorted(held.items()) if of.shard.watermark_ms is not None]


def _most_active(shards: Sequence[Shard], most: int) -> list[tuple[int, int]]:
    """So many at most of all partitions together: which of the shards, and the slot."""
    ranked = sorted(
        (
            (-rank, i, slot)
            for i, shard in enumerate(shards)
            for slot, rank in zip(
                *(of.tolist() for of in views.foremost(shard, "active", most)), strict=True
            )
        )
    )
    return [(i, slot) for _, i, slot in ranked[:most]]


def _json(value: object) -> bytes:
    return orjson.dumps(value, option=_OPTIONS)
