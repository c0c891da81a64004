"""What waits for a commit, and what of it is shed. Deaths in between: `laws/test_crash.py`."""

import json
from collections.abc import Iterable

import numpy as np
from streams import START_MS, Row, block, event, settings, shard

from stream_forecaster.forecasts import Encoder
from stream_forecaster.pending import Pending
from stream_forecaster.records import Message

_CONFIG = settings(publish="every_hop", ttl="5m")
_AFTER_ALL_MS = START_MS + 86_400_000


def _log() -> list[Row]:
    """Ann comes every ten seconds for 20 minutes, bob only in the first one."""
    users = [(second, "ann") for second in range(0, 1_200, 10)] + [(5, "bob")]
    times = sorted((START_MS + 1_000 * second, user) for second, user in users)
    return [(None, event(user, time_ms), time_ms) for time_ms, user in times]


def _pending(log: list[Row], per_turn: int = 40) -> Pending:
    told, pending = shard(_CONFIG), Pending()
    for i in range(0, len(log), per_turn):
        records = block(log, i, min(i + per_turn, len(log)))
        pending.add(told.advance(records), records)
    return pending


def _of(key: bytes, messages: Iterable[Message]) -> list[str | None]:
    """When each forecast of a key was issued; None for a tombstone."""
    return [
        None if m.value is None else json.loads(m.value)["issued_at"]
        for m in messages
        if m.key == key
    ]


def test_the_last_word_on_every_key_stays() -> None:
    """A forecast, or the tombstone that took it back."""
    whole, pending = (_pending(_log()) for _ in range(2))
    before, said = pending.forecasts, list(whole.messages(Encoder(_CONFIG)))
    pending.shed_superseded(_AFTER_ALL_MS)
    left = list(pending.messages(Encoder(_CONFIG)))
    assert _of(b"ann", left) == _of(b"ann", said)[-1:]
    assert _of(b"bob", left) == _of(b"bob", said)[-1:] == [None]
    assert pending.forecasts == 1
    assert pending.shed == before - 1
    assert all(message in said for message in left)


def test_what_is_not_old_yet_is_not_shed() -> None:
    """By the time of the record that made it due."""
    log, whole = _log(), _pending(_log())
    limit_ms = START_MS + 600_000
    dues = {f.offset: log[f.offset][2] for turn in whole.turns for f in turn.forecasts}
    pending = _pending(log)
    pending.shed_superseded(limit_ms)
    kept = [f.offset for turn in pending.turns for f in turn.forecasts if f.keys]
    assert kept == [offset for offset, time_ms in dues.items() if time_ms >= limit_ms]
    assert pending.newest_ms == max(dues.values())


def test_shedding_twice_is_shedding_once() -> None:
    """It may happen while turns wait, and again when they are committed."""
    once, twice = _pending(_log()), _pending(_log())
    once.shed_superseded(_AFTER_ALL_MS)
    for _ in range(2):
        twice.shed_superseded(_AFTER_ALL_MS)
    encoder = Encoder(_CONFIG)
    assert list(twice.messages(encoder)) == list(once.messages(encoder))
    assert twice.shed == once.shed


def test_what_nobody_knows_the_time_of_is_not_shed() -> None:
    """A record without a timestamp says nothing of how far behind we are."""
    log = [(key, value, -1) for key, value, _ in _log()]
    pending = _pending(log)
    before = pending.forecasts
    pending.shed_superseded(_AFTER_ALL_MS)
    assert pending.forecasts == before > 1
    assert pending.newest_ms == -1


def test_some_of_a_forecast_is_the_same_forecast() -> None:
    """Of those keys, message for message."""
    log = [row for second in range(0, 1_200, 20) for row in _at(second)]
    (*_, forecast) = (f for turn in _pending(log).turns for f in turn.forecasts)
    rows = np.array([2, 0])
    some = list(Encoder(_CONFIG).forecast(forecast.take(rows)))
    whole = list(Encoder(_CONFIG).forecast(forecast))
    assert len(whole) == 4
    assert some == [whole[row] for row in rows]


def _at(second: int) -> list[Row]:
    time_ms = START_MS + 1_000 * second
    users = ["ann", *["bob"] * 3, *["cyd"] * 9, *["dan"] * 27]
    return [(None, event(user, time_ms), time_ms) for user in users]
