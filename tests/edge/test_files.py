import csv
import gzip
import io
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner.default import murmur2 as client_murmur2

from stream_forecaster.config import Input
from stream_forecaster.edge.files import murmur2, read_events, total_bytes, write_forecasts
from stream_forecaster.errors import ConfigError
from stream_forecaster.records import Message, Records

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
USERS = Input()
RIDES = Input(key=("station", "member"), time="time")
LINES = [b'{"user_id": "ann", "ts": 1}', b'{"user_id": "bob", "ts": 2}', b"not json", b""]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def values(blocks: Iterable[Records]) -> list[bytes | None]:
    return [value for records in blocks for value in records.value]


def write(path: Path, content: bytes) -> str:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


@pytest.mark.parametrize("name", ["e.jsonl", "e.jsonl.gz", "e.log", "e"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_json_lines_pass_unchanged(tmp_path: Path, name: str, end: bytes) -> None:
    """A line's bytes are the value; empty lines are nothing, garbage is a record."""
    path = write(tmp_path / name, end.join([b"", *LINES, LINES[0]]))

    assert values(read_events([path], USERS)) == [*LINES[:3], LINES[0]]


def test_compression_is_seen_in_the_bytes_not_in_the_name(tmp_path: Path) -> None:
    """A gzip file under any name is read, members one after the other."""
    path = write(tmp_path / "events", gzip.compress(LINES[0] + b"\n") + gzip.compress(LINES[1]))

    assert values(read_events([path], USERS)) == LINES[:2]


def test_one_partition_counts_offsets_over_all_files_and_blocks(tmp_path: Path) -> None:
    """Offsets go on where the last block, or the last file, ended; times are unknown."""
    paths = [write(tmp_path / f"{i}.jsonl", b"\n".join(LINES[:3])) for i in range(3)]

    blocks = list(read_events(paths, USERS, block_records=4))

    assert [records.offset.tolist() for records in blocks] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert [records.next_offset for records in blocks] == [4, 8, 9]
    assert {time for records in blocks for time in records.time_ms.tolist()} == {-1}


def test_csv_rows_become_objects_of_their_columns(tmp_path: Path) -> None:
    """Every column is there as text, quotes and line breaks inside them resolved."""
    text = 'time,station,member\n2014-01-01T08:14:00,"Main, ""old""\nside",x\n2014-01-02,B,\n'
    path = write(tmp_path / "rides.csv.gz", BYTE_ORDER_MARK + text.encode())

    assert [json.loads(value or b"") for value in values(read_events([path], RIDES))] == [
        {"time": "2014-01-01T08:14:00", "station": 'Main, "old"\nside', "member": "x"},
        {"time": "2014-01-02", "station": "B", "member": ""},
    ]


@pytest.mark.parametrize(
    "broken",
    [b"too,few", b"one,too,many,columns", b'"never closed,x,y', b"\xff,x,y", b'"a"b,x,y'],
)
def test_a_broken_csv_row_is_a_record_of_its_own_bytes(tmp_path: Path, broken: bytes) -> None:
    """What is not a row is left to the decoder, and the rows behind it are read."""
    rows = [b"time,station,member", b"1,A,m", broken, b"2,B,m", b'3,"C",m']
    path = write(tmp_path / "rides.csv", b"\n".join(rows))

    first, raw, *others = values(read_events([path], RIDES))

    assert raw == broken
    assert [json.loads(value or b"")["station"] for value in (first, *others)] == ["A", "B", "C"]


cells = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), max_size=9)


@given(rows=st.lists(st.tuples(cells.filter(str.strip), cells, cells)))
def test_any_table_written_by_csv_is_read_back(
    scratch: Path, rows: list[tuple[str, str, str]]
) -> None:
    """Law: reading is the inverse of Python's own writer."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("time", "station", "member"), *rows])
    path = write(scratch / "table.csv", text.getvalue().encode())

    got = [json.loads(value or b"") for value in values(read_events([path], RIDES))]

    assert [tuple(row.values()) for row in got] == rows


def is_plain(content: bytes) -> bool:
    return not content.startswith(b"\x1f\x8b")


@given(
    content=st.binary(max_size=400).filter(is_plain),
    header=st.sampled_from([b"", b"time,station,member\n"]),
)
def test_any_bytes_become_records(scratch: Path, content: bytes, header: bytes) -> None:
    """Law: whatever lines a file holds, each is read once and none raises."""
    unquoted = content.replace(b'"', b"'")
    path = write(scratch / ("any.csv" if header else "any.jsonl"), header + unquoted)

    count = sum(len(records) for records in read_events([path], RIDES))

    lines = unquoted.removeprefix(b"" if header else BYTE_ORDER_MARK).split(b"\n")
    assert count == sum(1 for line in lines if line.strip())


def test_a_line_without_end_is_cut_where_the_decoder_rejects_it(tmp_path: Path) -> None:
    """Memory stays bounded by the largest event allowed; the next line is unharmed."""
    settings = Input(max_event_bytes="1KiB")
    path = write(tmp_path / "e.jsonl.gz", b"x" * 20_000_000 + b"\n" + LINES[0])

    tracemalloc.start()
    long, after = values(read_events([path], settings))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak_bytes < 10_000_000
    assert long is not None
    assert len(long) == 1025
    assert after == LINES[0]


def test_partitions_are_filled_as_a_producer_would(tmp_path: Path) -> None:
    """Every event lies where its key hashes to, under its key, in arrival order."""
    events = [b'{"user_id": "u%d", "ts": %d}' % (i % 7, i) for i in range(50)]
    path = write(tmp_path / "e.jsonl", b"\n".join([*events, b"garbage"]))

    blocks = list(read_events([path], USERS, partitions=3, block_records=8))

    seen: dict[int, list[bytes]] = {0: [], 1: [], 2: []}
    for records in blocks:
        assert records.offset[0] == len(seen[records.partition])
        for key, value in zip(records.key, records.value, strict=True):
            assert value is not None
            home = (client_murmur2(key) & 0x7FFFFFFF) % 3 if key else 0
            assert home == records.partition
            assert key is None or json.loads(value)["user_id"].encode() == key
            seen[records.partition].append(value)
    for partition, lines in seen.items():
        assert lines == [line for line in [*events, b"garbage"] if line in lines], partition
    assert sum(map(len, seen.values())) == 51


@given(st.binary(max_size=40))
def test_murmur2_is_the_clients(key: bytes) -> None:
    """Partitions agree with what any Kafka producer chooses."""
    assert murmur2(key) == client_murmur2(key)


@pytest.mark.parametrize("name", ["e.jsonl", "e.jsonl.gz"])
def test_progress_adds_up_to_the_size_on_disk(tmp_path: Path, name: str) -> None:
    """The bytes reported are the file's own, compressed where it is."""
    path = write(tmp_path / name, b"\n".join(LINES[:2] * 1000))
    steps: list[int] = []

    list(read_events([path, path], USERS, advance=steps.append))

    assert sum(steps) == total_bytes([path, path]) == 2 * Path(path).stat().st_size


def test_a_stream_has_no_size() -> None:
    """A progress bar over a pipe has no end to show."""
    assert total_bytes(["-"]) is None


def test_standard_input_is_read(tmp_path: Path) -> None:
    """The name - takes what is piped in, compressed or not."""
    program = (
        "from stream_forecaster.edge.files import read_events\n"
        "from stream_forecaster.config import Input\n"
        "print([v for r in read_events(['-'], Input()) for v in r.value])"
    )

    out = subprocess.run(
        [sys.executable, "-c", program],
        input=gzip.compress(b"\n".join(LINES)),
        capture_output=True,
        check=True,
        cwd=tmp_path,
    )

    assert out.stdout.decode().strip() == repr(LINES[:3])


@pytest.mark.parametrize(
    ("name", "content", "settings", "message"),
    [
        ("gone.csv", None, RIDES, "no such events file"),
        ("e.csv", b"time,member\n", RIDES, "no column 'station'; it has time, member"),
        ("e.csv", b"", RIDES, "no column 'station'"),
        ("e.csv", b"time,station,member,time\n", RIDES, "same name"),
        ("e.gz", gzip.compress(b"x" * 99, mtime=0)[:-9], USERS, "cannot be read to its end"),
        ("e.jsonl", LINES[0], Input(key=()), "input.key"),
        ("e.jsonl", LINES[0], Input(time=""), "input.time"),
    ],
)
def test_what_cannot_be_read_is_said(
    tmp_path: Path, name: str, content: bytes | None, settings: Input, message: str
) -> None:
    """The message names the file or the setting, and the way out."""
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ConfigError, match=message):
        list(read_events([str(path)], settings))


def test_a_missing_file_is_said_at_once(tmp_path: Path) -> None:
    """No need to read the first file to learn that the second is missing."""
    with pytest.raises(ConfigError, match=r"gone\.jsonl"):
        read_events([str(tmp_path / "gone.jsonl")], USERS)


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_forecasts_are_written_a_line_each(tmp_path: Path, name: str) -> None:
    """Values in order, tombstones left out, the same bytes every time."""
    messages = [Message("f", b"a", b'{"n":1}'), Message("f", b"a", None), Message("f", b"b", b"{}")]
    path = tmp_path / name

    assert write_forecasts(str(path), iter(messages)) == 2

    once = path.read_bytes()
    write_forecasts(str(path), messages)
    assert path.read_bytes() == once
    assert is_plain(once) or once[4:8] == bytes(4), "the time of writing is in the file"
    assert (gzip.decompress(once) if name.endswith(".gz") else once) == b'{"n":1}\n{}\n'


def test_an_unwritable_forecast_file_is_said(tmp_path: Path) -> None:
    """A folder that does not exist is the operator's to make."""
    with pytest.raises(ConfigError, match="cannot be written"):
        write_forecasts(str(tmp_path / "gone" / "out.jsonl"), [])
