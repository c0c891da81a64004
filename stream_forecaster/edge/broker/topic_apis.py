"""Metadata, the cluster, coordinators, topics and their settings."""

from collections.abc import Iterable

from kafka.protocol.admin import (
    CreatePartitionsResponse,
    CreateTopicsResponse,
    DeleteTopicsResponse,
    DescribeClusterResponse,
    DescribeConfigsResponse,
    IncrementalAlterConfigsResponse,
)
from kafka.protocol.metadata import FindCoordinatorResponse, MetadataResponse

from stream_forecaster.edge.broker import topics as settings
from stream_forecaster.edge.broker.codes import Code, Refused, refusals_in
from stream_forecaster.edge.broker.faults import Message
from stream_forecaster.edge.broker.groups import Groups
from stream_forecaster.edge.broker.topics import Topic, Topics

NODE_ID = 0
_CLUSTER_ID = "stream-forecaster"
_TOPIC_RESOURCE = 2
_SET, _DELETE = 0, 1  # operations of IncrementalAlterConfigs
_FROM_TOPIC, _FROM_DEFAULT = 1, 5  # sources of DescribeConfigs


class TopicApis:
    """What administrators, and every client at its start, ask for."""

    def __init__(self, topics: Topics, groups: Groups) -> None:
        self._topics = topics
        self._groups = groups
        self.address = ("127.0.0.1", 0)  # set once the port is known

    def metadata(self, request: Message) -> Message:
        """Describe topics: those named, or all of them for a null list (an empty one in v0)."""
        everything = request.topics is None or (request.version == 0 and not request.topics)
        names = self._topics.names() if everything else [t.name for t in request.topics]
        host, port = self.address
        return MetadataResponse(
            brokers=[
                MetadataResponse.MetadataResponseBroker(node_id=NODE_ID, host=host, port=port)
            ],
            cluster_id=_CLUSTER_ID,
            controller_id=NODE_ID,
            topics=[self._describe(name) for name in names],
            authorized_operations=set(),
        )

    def _describe(self, name: str) -> Message:
        topic_answer = MetadataResponse.MetadataResponseTopic
        answer = topic_answer(name=name, partitions=[], authorized_operations=set())
        try:
            count = len(self._topics.topic(name).logs)
        except Refused as refused:
            answer.error_code = refused.code
            return answer
        answer.partitions = [
            topic_answer.MetadataResponsePartition(
                partition_index=i,
                leader_id=NODE_ID,
                leader_epoch=0,
                replica_nodes=[NODE_ID],
                isr_nodes=[NODE_ID],
                offline_replicas=[],
            )
            for i in range(count)
        ]
        return answer

    def describe_cluster(self, _request: Message) -> Message:
        """Describe the one broker."""
        host, port = self.address
        return DescribeClusterResponse(
            cluster_id=_CLUSTER_ID,
            controller_id=NODE_ID,
            brokers=[
                DescribeClusterResponse.DescribeClusterBroker(
                    broker_id=NODE_ID, host=host, port=port
                )
            ],
            authorized_operations=set(),
        )

    def find_coordinator(self, _request: Message) -> Message:
        """Name the coordinator of any group or transactional id: this broker."""
        host, port = self.address
        return FindCoordinatorResponse(node_id=NODE_ID, host=host, port=port)

    def create_topics(self, request: Message) -> Message:
        """Create topics, each with one replica."""
        results = []
        for topic in request.topics:
            answer = CreateTopicsResponse.CreatableTopicResult(name=topic.name)
            with refusals_in(answer):
                self._create(topic, dry_run=request.validate_only)
            results.append(answer)
        return CreateTopicsResponse(topics=results)

    def _create(self, topic: Message, *, dry_run: bool) -> None:
        if topic.replication_factor not in {-1, 1}:
            raise Refused(Code.INVALID_REPLICATION_FACTOR, "there is one broker")
        self._topics.create(
            topic.name,
            len(topic.assignments) or topic.num_partitions,
            {config.name: config.value for config in topic.configs},
            dry_run=dry_run,
        )

    def delete_topics(self, request: Message) -> Message:
        """Delete topics, with the offsets that groups hold for them."""
        responses = []
        for name in request.topic_names:
            answer = DeleteTopicsResponse.DeletableTopicResult(name=name)
            with refusals_in(answer):
                self._topics.delete(name)
                self._groups.forget_topic(name)
            responses.append(answer)
        return DeleteTopicsResponse(responses=responses)

    def create_partitions(self, request: Message) -> Message:
        """Grow topics."""
        results = []
        for topic in request.topics:
            answer = CreatePartitionsResponse.CreatePartitionsTopicResult(name=topic.name)
            with refusals_in(answer):
                self._topics.add_partitions(topic.name, topic.count, dry_run=request.validate_only)
            results.append(answer)
        return CreatePartitionsResponse(results=results)

    def describe_configs(self, request: Message) -> Message:
        """List settings of topics; the broker itself has none to show."""
        results = []
        for resource in request.resources:
            answer = DescribeConfigsResponse.DescribeConfigsResult(
                resource_type=resource.resource_type,
                resource_name=resource.resource_name,
                configs=[],
            )
            with refusals_in(answer):
                if resource.resource_type == _TOPIC_RESOURCE:
                    topic = self._topics.topic(resource.resource_name)
                    wanted = resource.configuration_keys
                    answer.configs = _configs(
                        topic, settings.DEFAULTS if wanted is None else wanted
                    )
            results.append(answer)
        return DescribeConfigsResponse(results=results)

    def incremental_alter_configs(self, request: Message) -> Message:
        """Set topic settings, or take them back to their defaults."""
        responses = []
        for resource in request.resources:
            answer = IncrementalAlterConfigsResponse.AlterConfigsResourceResponse(
                resource_type=resource.resource_type, resource_name=resource.resource_name
            )
            with refusals_in(answer):
                self._alter(resource, dry_run=request.validate_only)
            responses.append(answer)
        return IncrementalAlterConfigsResponse(responses=responses)

    def _alter(self, resource: Message, *, dry_run: bool) -> None:
        if resource.resource_type != _TOPIC_RESOURCE:
            raise Refused(Code.INVALID_REQUEST, "only topics have settings here")
        topic = self._topics.topic(resource.resource_name)
        overrides = dict(topic.overrides)
        for config in resource.configs:
            if config.config_operation == _SET:
                overrides[config.name] = config.value or ""
            elif config.config_operation == _DELETE:
                overrides.pop(config.name, None)
            else:
                raise Refused(Code.INVALID_REQUEST, "settings can be set or deleted")
        settings.check(overrides)
        if not dry_run:
            topic.overrides = overrides


def _configs(topic: Topic, names: Iterable[str]) -> list[Message]:
    return [
        DescribeConfigsResponse.DescribeConfigsResult.DescribeConfigsResourceResult(
            name=name,
            value=topic.setting(name),
            config_source=_FROM_TOPIC if name in topic.overrides else _FROM_DEFAULT,
            is_default=name not in topic.overrides,
            synonyms=[],
        )
        for name in names
        if name in settings.DEFAULTS
    ]
