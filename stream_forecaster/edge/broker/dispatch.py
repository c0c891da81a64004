"""Which requests the broker knows, in which versions, and who answers them."""

import re
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from kafka.protocol import admin, consumer, metadata, producer

from stream_forecaster.edge.broker.codes import Code
from stream_forecaster.edge.broker.faults import Message
from stream_forecaster.edge.broker.group_apis import GroupApis
from stream_forecaster.edge.broker.log_apis import LogApis
from stream_forecaster.edge.broker.topic_apis import TopicApis
from stream_forecaster.edge.broker.transaction_apis import TransactionApis

Handler = Callable[[Message], Message | Awaitable[Message]]
_ENDLESS = re.compile(rb"[\x80-\xff]{4096}")
"""The codec reads a number of variable length as long as its bytes go on, in quadratic time: ten
are the most that one may have. Text of so many letters beyond ASCII is no name of anything."""

_PREFIX = struct.Struct(">hhi")  # api key, api version, correlation id


class MalformedRequest(Exception):
    """The bytes are no request that this broker knows; nothing sensible can be answered."""


@dataclass(frozen=True, slots=True)
class Api:
    """One kind of request."""

    request: type[Message]
    max_version: int
    handle: Handler

    @property
    def name(self) -> str:
        """Kafka's name of it, such as `EndTxn`."""
        return str(self.request.name).removesuffix("Request")

    @property
    def min_version(self) -> int:
        """The oldest version that Kafka 4 still speaks."""
        return int(self.request.valid_versions[0])


@dataclass(frozen=True, slots=True)
class Call:
    """One request as it came in."""

    api: Api
    message: Message
    version: int
    correlation_id: int

    def answer(self, message: Message) -> bytes:
        """Encode the answer, with its frame."""
        return _encode(message, self.version, self.correlation_id)


class Dispatch:
    """The table of requests."""

    def __init__(
        self,
        topic_apis: TopicApis,
        log_apis: LogApis,
        group_apis: GroupApis,
        transaction_apis: TransactionApis,
    ) -> None:
        # The versions are the newest whose meaning is implemented: topic ids, batched group
        # requests and the second transaction protocol (KIP-890) begin after them.
        apis = [
            Api(metadata.ApiVersionsRequest, 4, self._api_versions),
            Api(metadata.MetadataRequest, 8, topic_apis.metadata),
            Api(metadata.FindCoordinatorRequest, 3, topic_apis.find_coordinator),
            Api(admin.DescribeClusterRequest, 1, topic_apis.describe_cluster),
            Api(admin.CreateTopicsRequest, 4, topic_apis.create_topics),
            Api(admin.DeleteTopicsRequest, 5, topic_apis.delete_topics),
            Api(admin.CreatePartitionsRequest, 3, topic_apis.create_partitions),
            Api(admin.DescribeConfigsRequest, 4, topic_apis.describe_configs),
            Api(admin.IncrementalAlterConfigsRequest, 1, topic_apis.incremental_alter_configs),
            Api(producer.ProduceRequest, 8, log_apis.produce),
            Api(consumer.FetchRequest, 11, log_apis.fetch),
            Api(consumer.ListOffsetsRequest, 5, log_apis.list_offsets),
            Api(admin.DeleteRecordsRequest, 2, log_apis.delete_records),
            Api(consumer.OffsetForLeaderEpochRequest, 3, log_apis.offset_for_leader_epoch),
            Api(consumer.JoinGroupRequest, 7, group_apis.join_group),
            Api(consumer.SyncGroupRequest, 4, group_apis.sync_group),
            Api(consumer.HeartbeatRequest, 4, group_apis.heartbeat),
            Api(consumer.LeaveGroupRequest, 4, group_apis.leave_group),
            Api(consumer.OffsetCommitRequest, 8, group_apis.offset_commit),
            Api(consumer.OffsetFetchRequest, 7, group_apis.offset_fetch),
            Api(consumer.OffsetDeleteRequest, 0, group_apis.offset_delete),
            Api(admin.DescribeGroupsRequest, 5, group_apis.describe_groups),
            Api(admin.ListGroupsRequest, 4, group_apis.list_groups),
            Api(admin.DeleteGroupsRequest, 2, group_apis.delete_groups),
            Api(producer.InitProducerIdRequest, 4, transaction_apis.init_producer_id),
            Api(producer.AddPartitionsToTxnRequest, 3, transaction_apis.add_partitions_to_txn),
            Api(producer.AddOffsetsToTxnRequest, 3, transaction_apis.add_offsets_to_txn),
            Api(producer.TxnOffsetCommitRequest, 3, transaction_apis.txn_offset_commit),
            Api(producer.EndTxnRequest, 3, transaction_apis.end_txn),
        ]
        self._apis: dict[int, Api] = {api.request.API_KEY: api for api in apis}
        self.names = frozenset(api.name for api in apis)

    def decode(self, frame: bytes) -> Call | bytes:
        """Read a request, or say at once what to answer it.

        Raises:
            MalformedRequest: the connection has to be closed.
        """
        if len(frame) < _PREFIX.size:
            raise MalformedRequest(f"a frame of {len(frame)} bytes")
        key, version, correlation_id = _PREFIX.unpack_from(frame)
        api = self._apis.get(key)
        if api is None:
            raise MalformedRequest(f"api key {key} is not known")
        if not api.min_version <= version <= api.max_version:
            if api.request is metadata.ApiVersionsRequest:
                # the one request that must be answered in any version, for clients to learn from
                refusal = self._api_versions(None)
                refusal.error_code = Code.UNSUPPORTED_VERSION
                return _encode(refusal, 0, correlation_id)
            raise MalformedRequest(f"{api.name} version {version} is not known")
        # Records are bytes like any other, but in no version of ours is a number beside them of
        # variable length.
        if api.request is not producer.ProduceRequest and _ENDLESS.search(frame):
            raise MalformedRequest(f"{api.name} version {version}: a number without end")
        try:
            message = api.request.decode(frame, version=version, header=True)
        except (ValueError, IndexError, TypeError, OverflowError, struct.error) as error:
            raise MalformedRequest(f"{api.name} version {version}: {error}") from error
        message.API_VERSION = version
        return Call(api, message, version, correlation_id)

    def _api_versions(self, _request: Message) -> Message:
        answer = metadata.ApiVersionsResponse
        return answer(
            api_keys=[
                answer.ApiVersion(
                    api_key=key, min_version=api.min_version, max_version=api.max_version
                )
                for key, api in self._apis.items()
            ]
        )


def _encode(message: Message, version: int, correlation_id: int) -> bytes:
    message.API_VERSION = version
    message.with_header(correlation_id)
    return bytes(message.encode(header=True, framed=True))
