import json
from dataclasses import replace
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table
from streams import block, busy_log, messages, settings, shard

from stream_forecaster.edge import console
from stream_forecaster.edge.topics import Probe, StoredRecord, TopicState


def printed(shown: Table) -> str:
    """What a wide terminal shows."""
    out = StringIO()
    Console(file=out, width=200).print(shown)
    return out.getvalue()


def published() -> list[StoredRecord]:
    """Output records of six users."""
    config = settings()
    found = messages(config, [shard(config).advance(block(busy_log(60)))])
    return [
        StoredRecord(m.topic, 0, offset, 0, m.key, m.value, m.headers)
        for offset, m in enumerate(found)
    ]


def rows(table: console.ForecastTable, n: int = 10) -> list[str]:
    """The keys a forecast table shows, from the top."""
    return [line.split()[0] for line in printed(table.render(n)).splitlines()[3:] if line.strip()]


def test_the_keys_heard_of_last_come_first() -> None:
    """And each key has one row, with the newest of its forecasts."""
    records = published()
    table = console.ForecastTable()
    for record in records:
        table.hear(record)

    by_newest = list(dict.fromkeys((r.key or b"").decode() for r in reversed(records)))
    newest = json.loads(records[-1].value or b"")

    assert rows(table)[:-1] == by_newest  # then the caption
    assert rows(table, 2)[:-1] == by_newest[:2]
    top = printed(table.render(1)).splitlines()[3].split()
    assert top[1] == newest["issued_at"][11:19]
    assert top[2] == str(newest["quality"]["observations"])
    assert f"{newest['resolutions'][0]['mean'][0]:.3g}" in top


def test_a_tombstone_takes_its_key_off_the_table() -> None:
    """As compaction does."""
    records = published()
    table = console.ForecastTable()
    for record in records:
        table.hear(record)

    table.hear(replace(records[-1], value=None))

    assert (records[-1].key or b"").decode() not in rows(table)


def test_what_is_no_forecast_is_left_out() -> None:
    """Somebody else's record must not end the view."""
    table = console.ForecastTable()

    for value in (b"\xff", b"{}", b"[1]"):
        table.hear(replace(published()[0], value=value))

    assert rows(table) == ["0"]


def test_a_key_does_not_command_the_terminal() -> None:
    """Whoever sends events chooses keys; escape sequences in them are spelled out."""
    table, record = console.ForecastTable(), published()[0]
    value = json.loads(record.value or b"") | {"key": "\x1b]0;owned\x07ann\x9b2J"}

    table.hear(replace(record, value=json.dumps(value).encode()))

    assert "\\x1b]0;owned\\x07ann\\x9b2J" in printed(table.render(1))


def test_a_tombstone_is_a_line_of_json() -> None:
    """It says which key was forgotten, and when."""
    record = StoredRecord("out", 0, 1, 0, b"a\xff", None, (("ce_time", b"2026-01-01T00:00:00Z"),))

    assert json.loads(console.tail_json(record)) == {
        "key": "a\\xff",
        "expired_at": "2026-01-01T00:00:00Z",
    }


def test_names_are_not_taken_for_markup() -> None:
    """Brackets in a topic, a key or a finding appear as they are."""
    state = TopicState("[red]events", {"a": "[b]"}, {0: (0, 5)}, {0: 3})
    finding = Probe("topic [x]", passed=False, detail="[y] is missing")

    assert "[red]events" in printed(console.topic_table([state]))
    assert "topic [x]   [y] is missing" in printed(console.probe_table([finding]))
    assert "[key]" in printed(console.table(("key",), [("[key]",)]))


def test_a_topic_shows_its_lag_where_a_group_reads_it() -> None:
    """Only the input topic has one."""
    read = TopicState("events", {}, {0: (0, 5), 1: (2, 9)}, {0: 3})
    unread = TopicState("out", {}, {0: (0, 7)})

    lines = printed(console.topic_table([read, unread])).splitlines()

    assert lines[3].split() == ["events", "2", "12", "9"]
    assert lines[4].split() == ["out", "1", "7"]
    assert console.topic_json(read)["partitions"] == {
        "0": {"first": 0, "end": 5, "committed": 3},
        "1": {"first": 2, "end": 9, "committed": None},
    }


def test_json_is_one_line_in_a_pipe_and_indented_on_a_terminal() -> None:
    """Either way it is JSON, however long and whatever it looks like."""
    value: dict[str, Any] = {"key": "[b]ü " + "x" * 300}
    pipe, terminal = StringIO(), StringIO()

    console.print_json(Console(file=pipe, width=40), value)
    console.print_json(Console(file=terminal, width=40, force_terminal=True), value)

    assert pipe.getvalue().count("\n") == 1
    assert json.loads(pipe.getvalue()) == json.loads(terminal.getvalue()) == value
