"""Coverage-guided fuzzing of all that reads the bytes of others, with the invariants of the laws.

    pip install -e '.[fuzz]'
    python tests/fuzz/coverage_guided.py decoder -max_total_time=60

Targets: decoder, settings, checkpoint, frame. What follows the target is libFuzzer's. What it finds
is kept in build/fuzz, and the next run goes on from there. Where an invariant does not hold it ends
with a traceback, and leaves the input in a file `crash-...`.
"""

import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["stream_forecaster", "kafka", "tomllib"]):
    import numpy as np

    from stream_forecaster import archive, checkpoint
    from stream_forecaster.calendar import Calendar
    from stream_forecaster.config import load, parse
    from stream_forecaster.edge.broker import Broker
    from stream_forecaster.edge.broker.dispatch import MalformedRequest
    from stream_forecaster.errors import ConfigError, StateError
    from stream_forecaster.events import EventDecoder
    from stream_forecaster.records import BytesColumn, Records

_INPUTS = [
    {},
    {"key": [], "time": ""},
    {"key": ["user_id", "shop"], "value": "v", "aggregate": "sum", "time_format": "epoch_s"},
    {"value": "v", "aggregate": "mean", "time_format": "rfc3339", "timezone": "America/Sao_Paulo"},
]
_DECODERS = [
    EventDecoder(settings, Calendar(settings.timezone))
    for settings in (parse({"input": fields}).input for fields in _INPUTS)
]
_DISPATCH = Broker()._dispatch


def decoder(data: bytes) -> None:
    """Any bytes are an event or a reject, alone as among others."""
    decode = _DECODERS[data[0] % len(_DECODERS)] if data else _DECODERS[0]
    value = data[1:]
    column = BytesColumn.of([value] * 2)
    records = Records(0, np.arange(2), np.array([-1, 1_767_312_000_000]), column, column, 2)
    together, rejects = decode(records)
    alone, alone_rejects = decode.one_by_one(records, range(2))
    assert len(together) + len(rejects) == 2
    assert together.time_ms.tolist() == alone.time_ms.tolist()
    assert together.value.tolist() == alone.value.tolist()
    assert list(together.key) == list(alone.key)
    assert rejects == alone_rejects


def settings(data: bytes) -> None:
    """Any text is settings or an error."""
    text = data.decode("utf-8", "replace")
    toml, _, variable = text.partition("\f")
    name, _, value = variable.partition("=")
    try:
        load(toml, {f"STREAM_FORECASTER__{name}": value}, {}, lambda path: path)
    except ConfigError as error:
        if not str(error).strip():
            raise AssertionError("an error without a word") from error


def checkpoint_file(data: bytes) -> None:
    """Any file is refused by name, with a checksum that fits too."""
    sealed = struct.pack(">4sII", b"SFCP", checkpoint.VERSION, zlib.crc32(data, checkpoint.VERSION))
    for file in (data, sealed + data):
        try:
            checkpoint.decode(file)
        except StateError:
            continue


def frame(data: bytes) -> None:
    """Any frame is a request or malformed."""
    try:
        _DISPATCH.decode(data)
    except MalformedRequest:
        return


SEEDS: dict[str, list[bytes]] = {
    "decoder": [
        *(b'%c{"user_id":"ann","shop":7,"ts":1767312000,"v":1.5}' % i for i in range(4)),
        b'\x03{"user_id":"ann","ts":"2026-01-02T00:00:00Z","v":"1e3"}',
    ],
    "settings": [
        b'[kafka]\ngroup_id = "x"\n[input]\nkey = ["a", "b"]\ntime_format = "auto"\f',
        b'[[resolutions]]\nstep = "1m"\ncontext = 3\nhorizon = 2\fINPUT__KEY=["a"]',
        b"output.quantiles = [0.1, 0.9]\fKAFKA__SESSION_TIMEOUT=10s",
    ],
    "checkpoint": [
        bytes(
            archive.pack(
                {"partition": 0, "offset": 1, "log_id": "", "settings": {"a": 1}},
                {"a": np.arange(3)},
            )
        )
    ],
    "frame": [
        struct.pack(">hhih", key, version, 1, -1) + tags + bytes(20)
        for key, api in _DISPATCH._apis.items()
        for version in (api.min_version, api.max_version)
        for tags in (b"", b"\0")
    ],
}

TARGETS: dict[str, Callable[[bytes], None]] = {
    "decoder": decoder,
    "settings": settings,
    "checkpoint": checkpoint_file,
    "frame": frame,
}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: {sys.argv[0]} {{{'|'.join(TARGETS)}}} [libFuzzer's options]")
    name = sys.argv.pop(1)
    corpus = Path("build/fuzz") / name
    corpus.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(SEEDS[name]):
        (corpus / f"seed-{i}").write_bytes(seed)
    atheris.Setup([*sys.argv, str(corpus)], TARGETS[name])
    atheris.Fuzz()
