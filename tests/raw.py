"""Requests that no client would send in this way, for `brokers.Wire`."""

import struct
import time
from typing import Any

from brokers import Wire
from clients import eventually
from kafka.protocol.producer import InitProducerIdRequest, ProduceRequest
from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.util import calc_crc32c
from typing_extensions import override

_NOT_LEADER_YET = 6  # the topic is a moment old


def init_producer(wire: Wire, transactional_id: str | None = None) -> tuple[int, int]:
    """A new producer's id and epoch."""
    answer = wire.ask(
        InitProducerIdRequest(transactional_id=transactional_id, transaction_timeout_ms=60_000), 4
    )
    return answer.producer_id, answer.producer_epoch


def batch(
    value: bytes,
    producer: tuple[int, int] = (-1, -1),
    *,
    sequence: int = -1,
    transactional: bool = False,
) -> bytes:
    """A batch of one record, dated now; `producer` is its id and epoch."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=transactional,
        producer_id=producer[0],
        producer_epoch=producer[1],
        base_sequence=sequence,
        batch_size=1 << 20,
    )
    builder.append(0, time.time_ns() // 1_000_000, None, value, [])
    return bytes(builder.build())


class _Named(str):
    """A header name that is encoded as these bytes, whatever they are."""

    __slots__ = ()

    @override
    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        del encoding, errors
        return b"\xff\xfe"


def with_odd_header(value: bytes) -> bytes:
    """A batch of one record with a header whose name is not UTF-8, and one without a value."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=False,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=1 << 20,
    )
    headers = [(_Named("odd"), b"1"), ("none", None)]
    builder.append(0, time.time_ns() // 1_000_000, None, value, headers)
    return bytes(builder.build())


def with_attributes(batch: bytes, attributes: int) -> bytes:
    """The batch with other attributes and a checksum that fits them."""
    changed = bytearray(batch)
    struct.pack_into(">h", changed, 21, attributes)
    struct.pack_into(">I", changed, 17, calc_crc32c(memoryview(changed)[21:]))
    return bytes(changed)


def produce(
    wire: Wire,
    topic: str,
    records: bytes,
    *,
    partition: int = 0,
    transactional_id: str | None = None,
) -> tuple[int, int]:
    """Send one batch; the error code and the base offset that come back."""
    data = ProduceRequest.TopicProduceData
    partitions = [data.PartitionProduceData(index=partition, records=records)]
    request = ProduceRequest(
        transactional_id=transactional_id,
        acks=-1,
        timeout_ms=10_000,
        topic_data=[data(name=topic, partition_data=partitions)],
    )

    def answer() -> Any:
        answer = wire.ask(request, 8).responses[0].partition_responses[0]
        return None if answer.error_code == _NOT_LEADER_YET else answer

    answered = eventually(answer)
    return answered.error_code, answered.base_offset
