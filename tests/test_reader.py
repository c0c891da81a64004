"""What subscribers get of a forecasts topic: values, a table, rows; and a clear no."""

import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from itertools import islice
from threading import Event, Thread, Timer
from time import monotonic
from types import ModuleType
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
import streams
from brokers import free_port
from clients import Clients

from stream_forecaster import reader
from stream_forecaster.edge.topics import StoredRecord
from stream_forecaster.errors import ConfigError, SchemaMismatch, TransportError, Unavailable
from stream_forecaster.forecasts import Encoder, Forgotten
from stream_forecaster.reader import Change, Forecast, Reader, frame, rows
from stream_forecaster.records import Message

SETTINGS = streams.settings()


@cache
def published() -> Sequence[Message]:
    """What a shard says of six users: forecasts, then one user forgotten and one shed."""
    turn = streams.shard(SETTINGS).advance(streams.block(streams.busy_log(60)))
    encoder = Encoder(SETTINGS)
    ends = [Forgotten(0, 60, b"ann"), Forgotten(0, 61, b"bob", why="shed")]
    return (*streams.messages(SETTINGS, [turn]), *map(encoder.forgotten, ends))


def values() -> list[dict[str, Any]]:
    """The forecasts among them, as JSON."""
    return [json.loads(message.value) for message in published() if message.value]


def record(value: bytes | None, *headers: tuple[str, bytes | None]) -> StoredRecord:
    """A record of the topic."""
    return StoredRecord("forecasts", 3, 17, 0, b"u\xff", value, headers)


def forecast(**changes: Any) -> Forecast:
    """A published forecast, changed."""
    found = reader.decode(record(json.dumps(values()[-1] | changes).encode())).forecast
    assert found is not None
    return found


def publish(clients: Clients, messages: Sequence[Message]) -> str:
    """A topic with messages that were committed, and one between them that was not."""
    topic = clients.topic()
    producer = clients.transactional("reader")
    for sent, end in (
        (messages[:-2], producer.commit_transaction),
        ((Message(topic, b"aborted", messages[0].value),), producer.abort_transaction),
        (messages[-2:], producer.commit_transaction),
    ):
        producer.begin_transaction()
        for m in sent:
            producer.send(topic, key=m.key, value=m.value, headers=list(m.headers))
        producer.flush()
        end()
    return topic


# -- messages --------------------------------------------------------------------------------------


def test_a_forecast_is_the_message_and_all_of_it() -> None:
    """Written again it is the same JSON, but for the spelling of numbers and times."""
    for value in values():
        found = reader.decode(record(json.dumps(value).encode())).forecast

        assert found is not None
        assert found.issued_at == datetime.fromisoformat(value["issued_at"])
        again = json.loads(msgspec.json.encode(found))
        for of in (again, again["resolutions"], value, value["resolutions"]):
            for timed in of if isinstance(of, list) else [of]:
                for name in {"issued_at", "valid_until", "start"} & timed.keys():
                    timed[name] = datetime.fromisoformat(timed[name])
        assert again == value


def test_the_version_read_is_the_version_written() -> None:
    """And the one the schema names."""
    assert {value["schema"] for value in values()} == {reader.SCHEMA}


def test_nothing_of_it_can_be_changed() -> None:
    """A table that is shared stays what was published."""
    with pytest.raises(AttributeError):
        forecast().key = "x"  # type: ignore[misc]  # that is the point


def test_unknown_fields_are_passed_over() -> None:
    """`forecast/1` may gain some, at every level."""
    old = values()[-1]
    newer = old | {
        "more": 1,
        "quality": old["quality"] | {"more": [1]},
        "resolutions": [r | {"more": {}} for r in old["resolutions"]],
    }

    assert forecast(**newer) == forecast()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (json.dumps({"schema": "forecast/2", "key": 1}).encode(), "'forecast/2'"),
        (b"{}", "no forecast"),
        (b"\xff", "no forecast"),
        (b"[1]", "no forecast"),
        (b'{"schema":"forecast/1","id":"x"}', "no forecast .*missing"),
    ],
)
def test_another_schema_is_a_clear_no(value: bytes, says: str) -> None:
    """With the place, what is read, what is there and what to do."""
    with pytest.raises(SchemaMismatch, match=says) as refused:
        reader.decode(record(value))

    for part in ("forecasts, partition 3, offset 17", "'forecast/1'", "output.topic"):
        assert part in str(refused.value)


def test_a_later_schema_of_the_same_shape_is_refused_too() -> None:
    """It need not mean the same."""
    with pytest.raises(SchemaMismatch, match="'forecast/2'"):
        forecast(schema="forecast/2")


@pytest.mark.parametrize(
    ("headers", "gone", "time"),
    [
        (
            [
                ("ce_type", b"io.streamforecaster.forecast.expired.v1"),
                ("ce_time", b"2026-01-01T00:00:00.000Z"),
            ],
            "expired",
            datetime(2026, 1, 1, tzinfo=UTC),
        ),
        ([("ce_type", b"io.streamforecaster.forecast.forgotten.v1")], "forgotten", None),
        ([("ce_type", b"io.streamforecaster.forecast.shed.v1")], "shed", None),
        ([("ce_type", b"com.example.other"), ("ce_time", b"\xffyesterday")], "", None),
        ([("ce_type", None)], "", None),
        ([], "", None),
    ],
)
def test_a_tombstone_says_why(
    headers: list[tuple[str, bytes | None]], gone: str, time: datetime | None
) -> None:
    """As far as whoever wrote it said."""
    assert reader.decode(record(None, *headers)) == Change(b"u\xff", None, gone, time, 3, 17)


# -- the topic -------------------------------------------------------------------------------------


def test_all_that_is_there_in_order(clients: Clients) -> None:
    """Forecasts and tombstones, without what was aborted, to the end and no further."""
    topic = publish(clients, published())

    changes = list(Reader(clients.served.bootstrap, topic).changes(follow=False))

    assert [(c.key, c.forecast and c.forecast.id) for c in changes] == [
        (m.key, m.value and json.loads(m.value)["id"]) for m in published()
    ]
    assert [c.gone for c in changes[-2:]] == ["forgotten", "shed"]
    assert {c.partition for c in changes} == {0}
    assert [c.offset for c in changes] == sorted(c.offset for c in changes)


def test_the_table_is_the_newest_of_each_key(clients: Clients) -> None:
    """Without the keys that are gone."""
    newest = {m.key: m.value for m in published()}

    table = Reader(clients.served.bootstrap, publish(clients, published())).latest()

    assert {key: f.id for key, f in table.items()} == {
        key: json.loads(value)["id"] for key, value in newest.items() if value
    }
    assert not {b"ann", b"bob", b"aborted"} & table.keys()


def test_it_goes_on_until_it_is_quiet(clients: Clients) -> None:
    """What comes while it reads is read; the time that its user takes is no silence."""
    topic = publish(clients, published())
    changes = Reader(clients.served.bootstrap, topic).changes(idle_s=2.0)

    found = [next(changes)]
    Event().wait(2.1)
    found += islice(changes, len(published()) - 1)
    clients.send(topic, [published()[0].value or b""])
    found.append(next(changes))
    begin_s = monotonic()

    assert list(changes) == []
    assert monotonic() - begin_s >= 2.0
    assert found[-1].forecast == found[0].forecast


def test_from_now_on(clients: Clients) -> None:
    """Nothing of what was there before."""
    topic = publish(clients, published())
    ended, found = Event(), list[Change]()

    def read() -> None:
        changes = Reader(clients.served.bootstrap, topic).changes(start="now", stopping=ended)
        found.extend(islice(changes, 1))

    reading = Thread(target=read)
    reading.start()
    late = published()[3].value or b""
    while reading.is_alive():  # it begins when it begins
        clients.send(topic, [late])
        reading.join(0.2)

    assert [c.forecast and c.forecast.id for c in found] == [json.loads(late)["id"]]
    assert found[0].offset > len(published())


def test_another_thread_ends_it(clients: Clients) -> None:
    """Although nothing comes."""
    topic, ended = clients.topic(), Event()
    Timer(0.3, ended.set).start()

    assert list(Reader(clients.served.bootstrap, topic).changes(stopping=ended)) == []


def test_a_message_that_is_none_stops_it_with_its_place(clients: Clients) -> None:
    """Rather than be taken for silence."""
    topic = publish(clients, published())
    clients.send(topic, [b'{"schema":"forecast/2"}'])

    with pytest.raises(SchemaMismatch, match=f"{topic}, partition 0, offset"):
        Reader(clients.served.bootstrap, topic).latest()


def test_no_topic_and_no_broker(clients: Clients) -> None:
    """Each by its name, at once."""
    with pytest.raises(TransportError, match="no topic 'nowhere'"):
        Reader(clients.served.bootstrap, "nowhere").latest()
    with pytest.raises(Unavailable, match="no answer"):
        Reader(f"127.0.0.1:{free_port()}").latest()


def test_how_to_get_in_is_checked() -> None:
    """As the settings file is."""
    with pytest.raises(ConfigError, match="did you mean sasl_mechanism"):
        Reader(sasl_mechanisn="PLAIN")
    with pytest.raises(ConfigError, match="needs sasl_plain_username"):
        Reader(security_protocol="SASL_SSL", sasl_mechanism="PLAIN")


# -- rows ------------------------------------------------------------------------------------------


def test_a_row_for_each_step_ahead() -> None:
    """As Nixtla spells it: the mean, and a quantile as the bound of its central interval."""
    value = values()[-1]
    minutes = value["resolutions"][0]

    made = list(rows([forecast()]))

    assert [row["StreamForecaster"] for row in made] == minutes["mean"]
    assert [row["StreamForecaster-lo-80"] for row in made] == minutes["quantiles"]["0.1"]
    assert [row["StreamForecaster-median"] for row in made] == minutes["quantiles"]["0.5"]
    assert [row["StreamForecaster-hi-80"] for row in made] == minutes["quantiles"]["0.9"]
    assert {row["unique_id"] for row in made} == {value["key"]}
    assert {row["cutoff"].isoformat() for row in made} == {
        value["issued_at"].replace(".000Z", "+00:00")
    }
    start = datetime.fromisoformat(minutes["start"])
    assert [(row["ds"] - start).total_seconds() for row in made] == [0, 60, 120]


def test_of_another_resolution() -> None:
    """By its width; one that is not there is named with those that are."""
    assert [r["StreamForecaster"] for r in rows([forecast()], step_s=3600)] == list(
        forecast().at(3600).mean
    )
    with pytest.raises(ValueError, match="no resolution of 7 s; there are 60, 300, 3600"):
        list(rows([forecast()], step_s=7))


@pytest.mark.parametrize(
    ("level", "name"),
    [
        ("0.025", "lo-95"),
        ("0.1", "lo-80"),
        ("0.25", "lo-50"),
        ("0.5", "median"),
        ("0.9", "hi-80"),
        ("0.975", "hi-95"),
        ("0.005", "lo-99"),
        ("1e-05", "lo-99.998"),
    ],
)
def test_names_of_quantiles(level: str, name: str) -> None:
    """Whole where they are whole."""
    resolution = forecast().resolutions[0]
    paths = {level: resolution.mean}
    changed = msgspec.structs.replace(resolution, quantiles=paths)

    row = next(iter(rows([msgspec.structs.replace(forecast(), resolutions=(changed,))])))

    assert f"StreamForecaster-{name}" in row


def test_days_are_local_days() -> None:
    """Clocks go forward in Zurich on 29 March 2026: that day has 23 hours."""
    zone = ZoneInfo("Europe/Zurich")
    days = msgspec.structs.replace(
        forecast().resolutions[0], step_s=86_400, start=datetime(2026, 3, 28, tzinfo=zone)
    )
    found = rows(
        [msgspec.structs.replace(forecast(), resolutions=(days,))], timezone="Europe/Zurich"
    )

    assert [row["ds"].isoformat() for row in found] == [
        "2026-03-28T00:00:00+01:00",
        "2026-03-29T00:00:00+01:00",
        "2026-03-30T00:00:00+02:00",
    ]


@pytest.mark.parametrize("timezone", ["UTC", "America/New_York"])
def test_days_of_another_zone_are_refused(timezone: str) -> None:
    """They would be off by hours, and nothing would show it."""
    zone = ZoneInfo("Europe/Zurich")
    days = msgspec.structs.replace(
        forecast().resolutions[0], step_s=86_400, start=datetime(2026, 3, 28, tzinfo=zone)
    )

    with pytest.raises(ValueError, match=f"no midnight in {timezone}: give .* input.timezone"):
        list(rows([msgspec.structs.replace(forecast(), resolutions=(days,))], timezone=timezone))


def test_a_frame_is_made_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """By pandas, which is asked for only then."""
    said = [forecast()]  # made before river looks for pandas, too
    pandas = ModuleType("pandas")
    pandas.DataFrame = list  # type: ignore[attr-defined]  # it takes an iterator of rows too
    monkeypatch.setitem(sys.modules, "pandas", pandas)

    assert frame(said, step_s=300) == list(rows(said, step_s=300))


def test_without_pandas_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what to do instead."""
    monkeypatch.setitem(sys.modules, "pandas", None)

    with pytest.raises(ImportError, match=r"pip install pandas; rows\(\)"):
        frame([forecast()])


def test_no_model_is_loaded() -> None:
    """A subscriber starts at once, and needs neither torch nor numba."""
    heavy = "torch numba scipy river pandas"
    program = (
        f"import sys, stream_forecaster.reader\nprint(set({heavy!r}.split()) & sys.modules.keys())"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)

    assert done.stdout == b"set()\n"
