"""Idempotent and transactional producers on the wire."""

from collections.abc import Callable

from kafka.protocol.producer import (
    AddOffsetsToTxnResponse,
    AddPartitionsToTxnResponse,
    EndTxnResponse,
    InitProducerIdResponse,
    TxnOffsetCommitResponse,
)

from stream_forecaster.edge.broker.codes import Code, Refused
from stream_forecaster.edge.broker.faults import Message
from stream_forecaster.edge.broker.group_apis import Offsets, answers, commit
from stream_forecaster.edge.broker.groups import Groups
from stream_forecaster.edge.broker.log_apis import Arrivals
from stream_forecaster.edge.broker.members import Caller
from stream_forecaster.edge.broker.offsets import TopicPartition
from stream_forecaster.edge.broker.topics import Topics
from stream_forecaster.edge.broker.transactions import Producer, Transactions


class TransactionApis:
    """What idempotent and transactional producers ask for."""

    def __init__(
        self,
        topics: Topics,
        groups: Groups,
        transactions: Transactions,
        arrivals: Arrivals,
        now_s: Callable[[], float],
    ) -> None:
        self._topics = topics
        self._groups = groups
        self._transactions = transactions
        self._arrivals = arrivals
        self._now_s = now_s

    def init_producer_id(self, request: Message) -> Message:
        """Give a producer its id and epoch; a transactional one fences its predecessor."""
        try:
            if request.transactional_id is None:
                producer_id, epoch = self._transactions.new_producer()
            else:
                claim = Producer(
                    request.transactional_id, request.producer_id, request.producer_epoch
                )
                producer_id, epoch = self._transactions.init(claim, request.transaction_timeout_ms)
                self._arrivals.announce()  # the predecessor's open transaction is over
        except Refused as refused:
            return InitProducerIdResponse(error_code=refused.code, producer_epoch=-1)
        return InitProducerIdResponse(producer_id=producer_id, producer_epoch=epoch)

    def add_partitions_to_txn(self, request: Message) -> Message:
        """Make partitions part of the transaction: all that are named, or none."""
        claim = Producer(
            request.v3_and_below_transactional_id,
            request.v3_and_below_producer_id,
            request.v3_and_below_producer_epoch,
        )
        wanted = [(t.name, i) for t in request.v3_and_below_topics for i in t.partitions]
        codes = self._unknown(wanted)
        if codes:
            codes = dict.fromkeys(wanted, Code.OPERATION_NOT_ATTEMPTED) | codes
        else:
            try:
                for partition in wanted:
                    log = self._topics.log(*partition)
                    self._transactions.add_partition(claim, log, self._now_s())
            except Refused as refused:
                codes = dict.fromkeys(wanted, _spelled(refused.code, request.version))
        topic_answer = AddPartitionsToTxnResponse.AddPartitionsToTxnTopicResult
        return AddPartitionsToTxnResponse(
            results_by_topic_v3_and_below=[
                topic_answer(
                    name=topic.name,
                    results_by_partition=[
                        topic_answer.AddPartitionsToTxnPartitionResult(
                            partition_index=i,
                            partition_error_code=codes.get((topic.name, i), Code.NONE),
                        )
                        for i in topic.partitions
                    ],
                )
                for topic in request.v3_and_below_topics
            ]
        )

    def _unknown(self, partitions: list[TopicPartition]) -> dict[TopicPartition, Code]:
        """Those that do not exist, with the error code for them."""
        codes = {}
        for partition in partitions:
            try:
                self._topics.log(*partition)
            except Refused as refused:
                codes[partition] = refused.code
        return codes

    def add_offsets_to_txn(self, request: Message) -> Message:
        """Make a group's offsets part of the transaction."""
        try:
            self._transactions.add_group(_claim(request), request.group_id, self._now_s())
        except Refused as refused:
            code = _spelled(refused.code, request.version)
            return AddOffsetsToTxnResponse(error_code=code)
        return AddOffsetsToTxnResponse()

    def txn_offset_commit(self, request: Message) -> Message:
        """Hold offsets for the group until the transaction commits."""
        caller = Caller(request.member_id, request.generation_id, request.group_instance_id)

        def hold(offsets: Offsets) -> None:
            self._transactions.check_offsets(_claim(request), request.group_id)
            group = self._groups.get(request.group_id)
            group.check_transactional_commit(caller)
            group.offsets.hold(request.producer_id, offsets)

        codes = commit(request, self._topics, hold)
        topic_answer = TxnOffsetCommitResponse.TxnOffsetCommitResponseTopic
        partition_answer = topic_answer.TxnOffsetCommitResponsePartition
        return TxnOffsetCommitResponse(
            topics=answers(request, codes, topic_answer, partition_answer)
        )

    def end_txn(self, request: Message) -> Message:
        """Commit or abort."""
        try:
            self._transactions.end(_claim(request), committed=request.committed)
        except Refused as refused:
            return EndTxnResponse(error_code=_spelled(refused.code, request.version))
        self._arrivals.announce()
        return EndTxnResponse()


def _claim(request: Message) -> Producer:
    return Producer(request.transactional_id, request.producer_id, request.producer_epoch)


def _spelled(code: Code, version: int) -> Code:
    """Say "fenced" as clients of that version understand it: the code came with version 2."""
    fenced_as_epoch = code is Code.PRODUCER_FENCED and version < 2
    return Code.INVALID_PRODUCER_EPOCH if fenced_as_epoch else code
