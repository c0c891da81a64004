"""Produce, Fetch, ListOffsets, DeleteRecords and OffsetForLeaderEpoch."""

import asyncio
import time
from collections.abc import Callable

from kafka.protocol.admin import DeleteRecordsResponse
from kafka.protocol.consumer import (
    FetchResponse,
    ListOffsetsResponse,
    OffsetForLeaderEpochResponse,
)
from kafka.protocol.producer import ProduceResponse

from stream_forecaster.edge.broker import batches
from stream_forecaster.edge.broker.batches import Batch
from stream_forecaster.edge.broker.codes import Code, Refused, refusals_in
from stream_forecaster.edge.broker.faults import Message
from stream_forecaster.edge.broker.log import Slice
from stream_forecaster.edge.broker.topics import Topics
from stream_forecaster.edge.broker.transactions import Producer, Transactions

_READ_COMMITTED = 1
_MAX_FETCH_BYTES = 55 << 20  # Kafka's fetch.max.bytes
_LATEST, _EARLIEST = -1, -2


class Arrivals:
    """Wakes the fetches that wait for records."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def announce(self) -> None:
        """Let every waiting fetch look again."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, timeout_s: float) -> bool:
        """Wait for an announcement; False when none came in time."""
        try:
            await asyncio.wait_for(self._event.wait(), timeout_s)
        except TimeoutError:
            return False
        return True


class LogApis:
    """What producers and consumers ask of partitions."""

    def __init__(
        self,
        topics: Topics,
        transactions: Transactions,
        arrivals: Arrivals,
        now_ms: Callable[[], int],
    ) -> None:
        self._topics = topics
        self._transactions = transactions
        self._arrivals = arrivals
        self._now_ms = now_ms

    def produce(self, request: Message) -> Message:
        """Append one batch per partition; None, no answer, for acks=0."""
        topic_answer = ProduceResponse.TopicProduceResponse
        answer = ProduceResponse(
            responses=[
                topic_answer(
                    name=topic.name,
                    partition_responses=[
                        self._produce(request.transactional_id, topic.name, partition)
                        for partition in topic.partition_data
                    ],
                )
                for topic in request.topic_data
            ]
        )
        self._arrivals.announce()
        return answer if request.acks else None

    def _produce(self, transactional_id: str | None, name: str, data: Message) -> Message:
        answer = ProduceResponse.TopicProduceResponse.PartitionProduceResponse(
            index=data.index, base_offset=-1
        )
        with refusals_in(answer):
            log = self._topics.log(name, data.index)
            batch = self._accepted(name, data)
            if batch.transactional:
                claim = Producer(transactional_id or "", batch.producer_id, batch.producer_epoch)
                self._transactions.check_write(claim, log)
            answer.base_offset = log.append(batch)
            answer.log_start_offset = log.start_offset
        return answer

    def _accepted(self, name: str, data: Message) -> Batch:
        """The batch, if the topic's settings let it in."""
        topic = self._topics.topic(name)
        if len(data.records or b"") > topic.number("max.message.bytes"):
            raise Refused(Code.MESSAGE_TOO_LARGE)
        batch = batches.parse(data.records)
        latest_ms = self._now_ms() + topic.number("message.timestamp.after.max.ms")
        if batch.max_time_ms > latest_ms:
            raise Refused(Code.INVALID_TIMESTAMP, "dated too far ahead of the broker's clock")
        if topic.compacted and any(record.key is None for record in batch.records()):
            raise Refused(Code.INVALID_RECORD, "a compacted topic needs keys")
        return batch

    async def fetch(self, request: Message) -> Message:
        """Read from every partition asked for; wait until there is something, or time is up."""
        deadline_s = time.monotonic() + request.max_wait_ms / 1000
        while True:
            answer, size_bytes, failed = self._fetch(request)
            left_s = deadline_s - time.monotonic()
            if size_bytes >= request.min_bytes or failed or left_s <= 0:
                return answer
            if not await self._arrivals.wait(left_s):
                return self._fetch(request)[0]

    def _fetch(self, request: Message) -> tuple[Message, int, bool]:
        topic_answer = FetchResponse.FetchableTopicResponse
        left_bytes = min(request.max_bytes, _MAX_FETCH_BYTES)
        size_bytes, failed, responses = 0, False, []
        for topic in request.topics:
            partitions = []
            for wanted in topic.partitions:
                answer = topic_answer.PartitionData(
                    partition_index=wanted.partition, high_watermark=-1, aborted_transactions=None
                )
                try:
                    log = self._topics.log(topic.topic, wanted.partition)
                    part = log.read(
                        wanted.fetch_offset,
                        min(wanted.partition_max_bytes, left_bytes),
                        committed=request.isolation_level == _READ_COMMITTED,
                        force=size_bytes == 0,
                    )
                    _fill(answer, part)
                    answer.high_watermark = log.end_offset
                    answer.last_stable_offset = log.last_stable_offset
                    answer.log_start_offset = log.start_offset
                    size_bytes += len(part.data)
                    left_bytes -= len(part.data)
                except Refused as refused:
                    answer.error_code, answer.records, failed = refused.code, b"", True
                partitions.append(answer)
            responses.append(topic_answer(topic=topic.topic, partitions=partitions))
        return FetchResponse(responses=responses), size_bytes, failed

    def list_offsets(self, request: Message) -> Message:
        """Find the first or last offset, or the first one of a time."""
        topic_answer = ListOffsetsResponse.ListOffsetsTopicResponse
        committed = request.isolation_level == _READ_COMMITTED
        topics = []
        for topic in request.topics:
            partitions = []
            for wanted in topic.partitions:
                answer = topic_answer.ListOffsetsPartitionResponse(
                    partition_index=wanted.partition_index, timestamp=-1, offset=-1
                )
                try:
                    found = self._find(topic.name, wanted, committed=committed)
                    answer.offset, answer.timestamp = found
                    answer.leader_epoch = 0 if answer.offset >= 0 else -1
                except Refused as refused:
                    answer.error_code = refused.code
                partitions.append(answer)
            topics.append(topic_answer(name=topic.name, partitions=partitions))
        return ListOffsetsResponse(topics=topics)

    def _find(self, topic: str, wanted: Message, *, committed: bool) -> tuple[int, int]:
        log = self._topics.log(topic, wanted.partition_index)
        if wanted.timestamp == _EARLIEST:
            return log.start_offset, -1
        if wanted.timestamp == _LATEST:
            return (log.last_stable_offset if committed else log.end_offset), -1
        return log.find_time(wanted.timestamp, committed=committed) or (-1, -1)

    def delete_records(self, request: Message) -> Message:
        """Move the start of logs; offset -1 means the end."""
        topic_answer = DeleteRecordsResponse.DeleteRecordsTopicResult
        topics = []
        for topic in request.topics:
            partitions = []
            for wanted in topic.partitions:
                answer = topic_answer.DeleteRecordsPartitionResult(
                    partition_index=wanted.partition_index, low_watermark=-1
                )
                try:
                    answer.low_watermark = self._delete(topic.name, wanted)
                except Refused as refused:
                    answer.error_code = refused.code
                partitions.append(answer)
            topics.append(topic_answer(name=topic.name, partitions=partitions))
        return DeleteRecordsResponse(topics=topics)

    def _delete(self, name: str, wanted: Message) -> int:
        log = self._topics.log(name, wanted.partition_index)
        if not self._topics.topic(name).retained:
            raise Refused(Code.POLICY_VIOLATION)
        log.delete_before(log.end_offset if wanted.offset == -1 else wanted.offset)
        return log.start_offset

    def offset_for_leader_epoch(self, request: Message) -> Message:
        """Say where the one leader epoch ends: at the end of the log."""
        topic_answer = OffsetForLeaderEpochResponse.OffsetForLeaderTopicResult
        topics = []
        for topic in request.topics:
            partitions = []
            for wanted in topic.partitions:
                answer = topic_answer.EpochEndOffset(partition=wanted.partition)
                try:
                    log = self._topics.log(topic.topic, wanted.partition)
                    answer.leader_epoch, answer.end_offset = 0, log.end_offset
                except Refused as refused:
                    answer.error_code = refused.code
                partitions.append(answer)
            topics.append(topic_answer(topic=topic.topic, partitions=partitions))
        return OffsetForLeaderEpochResponse(topics=topics)


def _fill(answer: Message, part: Slice) -> None:
    answer.records = part.data
    answer.aborted_transactions = [
        FetchResponse.FetchableTopicResponse.PartitionData.AbortedTransaction(
            producer_id=aborted.producer_id, first_offset=aborted.first_offset
        )
        for aborted in part.aborted
    ]
