from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner import murmur2
from kafka.record.default_records import DefaultRecordBatchBuilder
from streams import any_messages

from stream_forecaster.edge.record_writing import BYTES, RECORD, ROOM, hashes_of, laid_out, write
from stream_forecaster.records import Message


@given(messages=st.lists(any_messages, min_size=1, max_size=20), now_ms=st.integers(0, 2**42))
def test_records_are_written_as_the_client_writes_them(
    messages: list[Message], now_ms: int
) -> None:
    """Law: equal, byte for byte."""
    stock: Any = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=False,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=1 << 20,
    )
    for offset, m in enumerate(messages):
        time_ms = now_ms if m.time_ms is None else m.time_ms
        stock.append(offset, time_ms, m.key, m.value, list(m.headers))
    out, at = np.zeros(1 << 20, np.uint8), np.zeros(7, np.int64)
    at[ROOM] = len(out)

    write(*laid_out(messages, now_ms), out, at)

    assert at[RECORD] == len(messages)
    assert out[: at[BYTES]].tobytes() == bytes(stock._buffer[stock.header_size_in_bytes() :])


@given(keys=st.lists(st.binary(max_size=40) | st.none()))
def test_keys_are_hashed_as_the_client_hashes_them(keys: list[bytes | None]) -> None:
    """Law: else they would leave the partition that they have always been in."""
    assert hashes_of(keys).tolist() == [murmur2(key or b"") & 0x7FFF_FFFF for key in keys]


def test_hashes_are_those_of_the_java_client() -> None:
    """From the tests of Apache Kafka's `Utils.murmur2`."""
    known = {
        b"21": -973932308,
        b"foobar": -790332482,
        b"a-little-bit-long-string": -985981536,
        b"a-little-bit-longer-string": -1486304829,
        b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
        b"abc": 479470107,
    }
    assert hashes_of(list(known)).tolist() == [h & 0x7FFF_FFFF for h in known.values()]
