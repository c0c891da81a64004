"""Events files in, forecast files out: what `backtest` and `replay` read and write.

An events file is JSON lines or CSV with a header, plain or gzip, rows in arrival order. A JSON line
becomes a record's value as it is; a CSV row becomes the JSON object of its columns. What is not a
row still becomes a record, with its own bytes, and the decoder rejects it as it would on the wire:
a file never ends a run half-way unless the disk or the compression is at fault.

A CSV row may span lines inside quotes. A quote that is never closed would swallow the rest of the
file; so a row that does not come out right is cut at its first line, and reading goes on behind it.
"""

import csv
import gzip
import io
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import lru_cache
from itertools import chain
from pathlib import Path

import msgspec
import numpy as np

from stream_forecaster.config import Input
from stream_forecaster.errors import ConfigError
from stream_forecaster.events import EventDecoder
from stream_forecaster.records import BytesColumn, Message, Records

STDIN = "-"

_CHUNK_BYTES = 1 << 20
_BLOCK_BYTES = 16 << 20
_LONGEST_ROW_LINES = 100
_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")


def read_events(
    paths: Sequence[str],
    settings: Input,
    *,
    partitions: int = 1,
    block_records: int = 16_384,
    advance: Callable[[int], object] = lambda _bytes: None,
) -> Iterator[Records]:
    """Read events files as the log would hold them, one after the other.

    Offsets count from 0 in each partition, over all files. Several partitions are filled as a
    producer with Kafka's default partitioner would: by the event's key, which is also the record's;
    what has no key goes to partition 0. With one partition the records have no key. Their time is
    -1, unknown.

    Args:
        paths: files; "-" is standard input.
        settings: the `[input]` section.
        partitions: how many to spread the events over.
        block_records: the most records of one block, over all partitions.
        advance: called with the number of file bytes just read, for a progress bar; `total_bytes`
            is what they add up to.

    Returns:
        blocks in arrival order, at most one of each partition from each `block_records` rows.

    Raises:
        ConfigError: at once, if a file does not exist or the settings need what a file cannot hold;
            while reading, if one cannot be read or lacks a column.
    """
    for path in paths:
        if path != STDIN and (not Path(path).exists() or Path(path).is_dir()):
            raise ConfigError(f"{path}: no such events file")
    if not settings.key:
        raise ConfigError("input.key: an events file holds no Kafka keys; name one or more fields")
    if not settings.time:
        raise ConfigError("input.time: an events file holds no record times; name a field")
    values = chain.from_iterable(_values(path, settings, advance) for path in paths)
    return _blocks(values, _Spread(settings, partitions), block_records)


def read_lines(
    path: str, limit_bytes: int, advance: Callable[[int], object] = lambda _bytes: None
) -> Iterator[bytes]:
    """A file's lines without their ends, the last one included even if it is empty.

    Args:
        path: a file, gzip or not; "-" is standard input.
        limit_bytes: of a longer line only the beginning is kept, so memory is bounded.
        advance: called with the number of file bytes just read.

    Raises:
        ConfigError: the file cannot be read to its end.
    """
    try:
        with ExitStack() as stack:
            raw = stack.enter_context(
                io.FileIO(0, closefd=False) if path == STDIN else io.FileIO(path)
            )
            buffered = io.BufferedReader(_Counted(raw, advance))
            stream: io.BufferedIOBase = buffered
            if buffered.peek(2).startswith(_GZIP_MAGIC):
                stream = stack.enter_context(gzip.GzipFile(fileobj=buffered))
            rest = b""
            while chunk := stream.read(_CHUNK_BYTES):
                *lines, rest = (rest + chunk).split(b"\n")
                rest = rest[:limit_bytes]
                for line in lines:
                    yield line[:limit_bytes].removesuffix(b"\r")
            yield rest.removesuffix(b"\r")
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: cannot be read to its end: {error}") from None


def refuse_to_overwrite(out: str | None, inputs: Sequence[str]) -> None:
    """A file that is read must not be written: it would be emptied before it is read.

    Raises:
        ConfigError: `out` is one of `inputs`.
    """
    if out is not None and Path(out).exists():
        for path in inputs:
            if path != STDIN and Path(path).exists() and Path(path).samefile(out):
                raise ConfigError(f"{out}: is read, and would be overwritten")


def total_bytes(paths: Sequence[str]) -> int | None:
    """The size of all files together as they lie on the disk; None if one has none (a pipe)."""
    files = [Path(path) for path in paths]
    if STDIN in paths or not all(file.is_file() for file in files):
        return None
    return sum(file.stat().st_size for file in files)


def write_forecasts(path: str, messages: Iterable[Message]) -> int:
    """Write each message's value as a line; gzip if `path` ends in .gz. Tombstones leave none.

    The same messages give the same bytes, compressed ones too.

    Returns:
        the number of lines.

    Raises:
        ConfigError: `path` cannot be written.
    """
    lines = 0
    try:
        with ExitStack() as stack:
            file: io.BufferedIOBase = stack.enter_context(Path(path).open("wb"))
            if path.endswith(".gz"):
                file = stack.enter_context(gzip.GzipFile("", "wb", 6, file, mtime=0))
            for message in messages:
                if message.value is not None:
                    file.write(message.value + b"\n")
                    lines += 1
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
    return lines


def murmur2(key: bytes) -> int:
    """Kafka's 32-bit hash of a key, unsigned.

    Source: org.apache.kafka.common.utils.Utils.murmur2; Austin Appleby's MurmurHash2.
    """
    mix, mask = 0x5BD1E995, 0xFFFFFFFF
    whole = len(key) & ~3
    h = 0x9747B28C ^ len(key)
    for i in range(0, whole, 4):
        k = int.from_bytes(key[i : i + 4], "little") * mix & mask
        k = (k ^ k >> 24) * mix & mask
        h = (h * mix & mask) ^ k
    if whole < len(key):
        h = (h ^ int.from_bytes(key[whole:], "little")) * mix & mask
    h = (h ^ h >> 13) * mix & mask
    return h ^ h >> 15


class _Spread:
    """Which partition each event goes to, and under which key."""

    def __init__(self, settings: Input, partitions: int) -> None:
        self._decode = EventDecoder(settings, settings.calendar())
        self._next_offset = [0] * partitions
        self._of = lru_cache(maxsize=1 << 16)(lambda key: (murmur2(key) & 0x7FFFFFFF) % partitions)

    def __call__(self, values: list[bytes]) -> Iterator[Records]:
        if len(self._next_offset) == 1:
            yield self._records(0, [None] * len(values), values)
            return
        keys: list[bytes | None] = [None] * len(values)
        events, _ = self._decode(_records(0, 0, keys, values))
        for row, key in zip(events.row.tolist(), events.key, strict=True):
            keys[row] = key
        rows: dict[int, list[int]] = {}
        for row, key in enumerate(keys):
            rows.setdefault(0 if key is None else self._of(key), []).append(row)
        for partition, chosen in sorted(rows.items()):
            yield self._records(partition, [keys[i] for i in chosen], [values[i] for i in chosen])

    def _records(self, partition: int, keys: list[bytes | None], values: list[bytes]) -> Records:
        first = self._next_offset[partition]
        self._next_offset[partition] += len(values)
        return _records(partition, first, keys, values)


def _records(partition: int, offset: int, keys: list[bytes | None], values: list[bytes]) -> Records:
    end = offset + len(values)
    columns = BytesColumn.of(keys), BytesColumn.of(values)
    return Records(partition, np.arange(offset, end), np.full(len(values), -1), *columns, end)


def _blocks(values: Iterator[bytes], spread: _Spread, block_records: int) -> Iterator[Records]:
    block: list[bytes] = []
    block_bytes = 0
    for value in values:
        block.append(value)
        block_bytes += len(value)
        if len(block) >= block_records or block_bytes >= _BLOCK_BYTES:
            yield from spread(block)
            block, block_bytes = [], 0
    if block:
        yield from spread(block)


def _values(path: str, settings: Input, advance: Callable[[int], object]) -> Iterator[bytes]:
    # One byte more than is allowed, so that the decoder sees what it has to reject.
    lines = read_lines(path, settings.max_event_bytes + 1, advance)
    lines = chain((next(lines, b"").removeprefix(_BYTE_ORDER_MARK),), lines)
    first = next((line for line in lines if line.strip()), b"")
    lines = chain((first,), lines)
    if _is_csv(path, first):
        yield from _csv_objects(path, lines, settings)
    else:
        yield from (line for line in lines if line.strip())


def _is_csv(path: str, first: bytes) -> bool:
    name = path.lower().removesuffix(".gz")
    if name.endswith((".csv", *_JSON_SUFFIXES)):
        return name.endswith(".csv")
    return not first.lstrip().startswith(b"{")


class _Counted(io.RawIOBase):
    """A raw stream that reports how much is read from it."""

    def __init__(self, raw: io.RawIOBase, advance: Callable[[int], object]) -> None:
        self._raw, self._advance = raw, advance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int | None:  # type: ignore[override]  # typeshed's Buffer has no name before Python 3.12
        count = self._raw.readinto(buffer)
        self._advance(count or 0)
        return count


def _csv_objects(path: str, lines: Iterator[bytes], settings: Input) -> Iterator[bytes]:
    columns = _header(path, next(lines), settings)
    encode = msgspec.json.Encoder().encode
    for line, fields in _rows(lines, len(columns), settings.max_event_bytes):
        yield line if fields is None else encode(dict(zip(columns, fields, strict=True)))


def _header(path: str, line: bytes, settings: Input) -> list[str]:
    columns = [name.strip() for name in next(csv.reader([line.decode("utf-8", "replace")]), [])]
    if len(set(columns)) < len(columns):
        raise ConfigError(f"{path}: two columns have the same name: {', '.join(columns)}")
    for name in filter(None, (*settings.key, settings.time, settings.value)):
        if name not in columns:
            raise ConfigError(f"{path}: no column {name!r}; it has {', '.join(columns) or 'none'}")
    return columns


def _rows(
    lines: Iterator[bytes], width: int, limit_bytes: int
) -> Iterator[tuple[bytes, list[str] | None]]:
    """Each row's first line and its fields; None for a line that begins no row of `width`."""
    ahead: deque[bytes] = deque()

    def take() -> bytes | None:
        return ahead.popleft() if ahead else next(lines, None)

    while (first := take()) is not None:
        if not first.strip():
            continue
        taken = [first]
        fields = _fields(taken, take, limit_bytes)
        if fields is None or len(fields) != width:
            fields = None
            ahead.extendleft(reversed(taken[1:]))
        yield first, fields


def _fields(
    taken: list[bytes], take: Callable[[], bytes | None], limit_bytes: int
) -> list[str] | None:
    """The row that begins with the one line in `taken`; lines it goes on over are added there."""

    def text() -> Iterator[str]:
        size_bytes = 0
        yield taken[0].decode() + "\n"
        while len(taken) < _LONGEST_ROW_LINES and size_bytes <= limit_bytes:
            line = take()
            if line is None:
                return
            taken.append(line)
            size_bytes += len(line)
            yield line.decode() + "\n"

    try:
        if b'"' not in taken[0]:
            return taken[0].decode().split(",")
        return next(csv.reader(text(), strict=True))
    except (csv.Error, UnicodeDecodeError):
        return None
