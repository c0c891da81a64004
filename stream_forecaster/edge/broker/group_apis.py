"""Consumer groups on the wire: membership, offsets, description."""

import asyncio
from collections.abc import Callable, Mapping
from typing import TypeVar

from kafka.protocol.admin import (
    DeleteGroupsResponse,
    DescribeGroupsResponse,
    ListGroupsResponse,
)
from kafka.protocol.consumer import (
    HeartbeatResponse,
    JoinGroupResponse,
    LeaveGroupResponse,
    OffsetCommitResponse,
    OffsetDeleteResponse,
    OffsetFetchResponse,
    SyncGroupResponse,
)

from stream_forecaster.edge.broker.codes import Code, Refused
from stream_forecaster.edge.broker.faults import Message
from stream_forecaster.edge.broker.group import Group
from stream_forecaster.edge.broker.groups import Groups
from stream_forecaster.edge.broker.members import (
    Application,
    Caller,
    Joined,
    State,
    Synced,
)
from stream_forecaster.edge.broker.offsets import CommittedOffset, TopicPartition
from stream_forecaster.edge.broker.topics import Topics

_Answer = TypeVar("_Answer")
Offsets = dict[TopicPartition, CommittedOffset]


class GroupApis:
    """What members of groups, and those who watch them, ask for."""

    def __init__(self, topics: Topics, groups: Groups, now_s: Callable[[], float]) -> None:
        self._topics = topics
        self._groups = groups
        self._now_s = now_s

    async def join_group(self, request: Message) -> Message:
        """Join; the answer comes when the whole group has joined."""
        application = Application(
            client_id=request.header.client_id or "",
            session_timeout_s=request.session_timeout_ms / 1000,
            # v0 has no rebalance time-out; the session's stands in for it
            rebalance_timeout_s=max(request.rebalance_timeout_ms, request.session_timeout_ms)
            / 1000,
            protocol_type=request.protocol_type,
            protocols={p.name: bytes(p.metadata) for p in request.protocols},
        )
        answered: asyncio.Future[Joined] = asyncio.get_running_loop().create_future()
        try:
            self._groups.get(request.group_id).join(
                Caller(request.member_id, instance_id=request.group_instance_id),
                application,
                _once(answered),
                needs_id=request.version >= 4,
                now_s=self._now_s(),
            )
        except Refused as refused:
            return JoinGroupResponse(error_code=refused.code, member_id=request.member_id)
        joined = await answered
        return JoinGroupResponse(
            error_code=joined.code,
            generation_id=joined.generation,
            protocol_type=application.protocol_type,
            protocol_name=joined.protocol,
            leader=joined.leader,
            member_id=joined.member_id,
            members=[
                JoinGroupResponse.JoinGroupResponseMember(
                    member_id=member_id, group_instance_id=instance_id, metadata=metadata
                )
                for member_id, (instance_id, metadata) in joined.members.items()
            ],
        )

    async def sync_group(self, request: Message) -> Message:
        """Hand in or wait for the assignments of this generation."""
        answered: asyncio.Future[Synced] = asyncio.get_running_loop().create_future()
        assignments = {a.member_id: bytes(a.assignment) for a in request.assignments}
        caller = Caller(request.member_id, request.generation_id, request.group_instance_id)
        try:
            group = self._groups.joined(request.group_id)
        except Refused as refused:
            return SyncGroupResponse(error_code=refused.code)
        group.sync(caller, assignments, _once(answered), self._now_s())
        synced = await answered
        return SyncGroupResponse(error_code=synced.code, assignment=synced.assignment)

    def heartbeat(self, request: Message) -> Message:
        """Keep a member alive, and tell it of a rebalance."""
        caller = Caller(request.member_id, request.generation_id, request.group_instance_id)
        try:
            self._groups.joined(request.group_id).heartbeat(caller, self._now_s())
        except Refused as refused:
            return HeartbeatResponse(error_code=refused.code)
        return HeartbeatResponse()

    def leave_group(self, request: Message) -> Message:
        """Let members go."""
        leaving = (
            [(m.member_id, m.group_instance_id) for m in request.members]
            if request.version >= 3
            else [(request.member_id, None)]
        )
        answers = []
        for member_id, instance_id in leaving:
            answer = LeaveGroupResponse.MemberResponse(
                member_id=member_id, group_instance_id=instance_id
            )
            try:
                caller = Caller(member_id, instance_id=instance_id)
                self._groups.joined(request.group_id).leave(caller, self._now_s())
            except Refused as refused:
                answer.error_code = refused.code
            answers.append(answer)
        code = Code.NONE if request.version >= 3 else answers[0].error_code
        return LeaveGroupResponse(error_code=code, members=answers)

    def offset_commit(self, request: Message) -> Message:
        """Store offsets, if the sender is who it says."""
        caller = Caller(
            request.member_id, request.generation_id_or_member_epoch, request.group_instance_id
        )

        def store(offsets: Offsets) -> None:
            group = self._groups.committing(request.group_id, caller)
            group.check_commit(caller, self._now_s())
            group.offsets.store(offsets)

        codes = commit(request, self._topics, store)
        topic_answer = OffsetCommitResponse.OffsetCommitResponseTopic
        partition_answer = topic_answer.OffsetCommitResponsePartition
        return OffsetCommitResponse(topics=answers(request, codes, topic_answer, partition_answer))

    def offset_fetch(self, request: Message) -> Message:
        """Read stored offsets: those named, or all of them for a null list."""
        group = self._groups.find(request.group_id)
        wanted: dict[str, list[int]] = {}
        if request.topics is not None:
            wanted = {topic.name: topic.partition_indexes for topic in request.topics}
        elif group is not None:
            for name, partition in group.offsets.partitions():
                wanted.setdefault(name, []).append(partition)
        return OffsetFetchResponse(
            topics=[
                OffsetFetchResponse.OffsetFetchResponseTopic(
                    name=name,
                    partitions=[
                        _stored(group, (name, partition), stable=request.require_stable)
                        for partition in partitions
                    ],
                )
                for name, partitions in wanted.items()
            ]
        )

    def offset_delete(self, request: Message) -> Message:
        """Forget offsets that no member of the group still reads from."""
        group = self._groups.find(request.group_id)
        if group is None:
            return OffsetDeleteResponse(error_code=Code.GROUP_ID_NOT_FOUND)
        code = Code.GROUP_SUBSCRIBED_TO_TOPIC if group.members else Code.NONE
        topic_answer = OffsetDeleteResponse.OffsetDeleteResponseTopic
        topics = []
        for topic in request.topics:
            partitions = []
            for p in topic.partitions:
                if not group.members:
                    group.offsets.forget((topic.name, p.partition_index))
                partitions.append(
                    topic_answer.OffsetDeleteResponsePartition(
                        partition_index=p.partition_index, error_code=code
                    )
                )
            topics.append(topic_answer(name=topic.name, partitions=partitions))
        return OffsetDeleteResponse(topics=topics)

    def describe_groups(self, request: Message) -> Message:
        """Describe groups and their members; an unknown group is dead."""
        return DescribeGroupsResponse(
            groups=[_describe(name, self._groups.find(name)) for name in request.groups]
        )

    def list_groups(self, request: Message) -> Message:
        """List all groups, or those in the states asked for."""
        states = {state.lower() for state in request.states_filter or ()}
        return ListGroupsResponse(
            groups=[
                ListGroupsResponse.ListedGroup(
                    group_id=group.group_id,
                    protocol_type=group.protocol_type,
                    group_state=group.state.value,
                )
                for group in self._groups.all()
                if not states or group.state.value.lower() in states
            ]
        )

    def delete_groups(self, request: Message) -> Message:
        """Forget groups without members."""
        results = []
        for group_id in request.groups_names:
            answer = DeleteGroupsResponse.DeletableGroupResult(group_id=group_id)
            try:
                self._groups.delete(group_id)
            except Refused as refused:
                answer.error_code = refused.code
            results.append(answer)
        return DeleteGroupsResponse(results=results)


def commit(
    request: Message, topics: Topics, store: Callable[[Offsets], None]
) -> dict[TopicPartition, Code]:
    """Store the offsets of a commit request, plain or transactional: those of partitions there are.

    Returns:
        what went wrong, by partition.
    """
    offsets: Offsets = {}
    codes: dict[TopicPartition, Code] = {}
    for topic in request.topics:
        for p in topic.partitions:
            partition = (topic.name, p.partition_index)
            try:
                topics.log(*partition)
            except Refused as refused:
                codes[partition] = refused.code
                continue
            offsets[partition] = CommittedOffset(
                p.committed_offset, p.committed_leader_epoch, p.committed_metadata or ""
            )
    try:
        store(offsets)
    except Refused as refused:
        codes |= dict.fromkeys(offsets, refused.code)
    return codes


def _once(answered: "asyncio.Future[_Answer]") -> Callable[[_Answer], None]:
    """Answer a future unless its connection has gone."""

    def reply(answer: _Answer) -> None:
        if not answered.done():
            answered.set_result(answer)

    return reply


def _stored(group: Group | None, partition: tuple[str, int], *, stable: bool) -> Message:
    answer = OffsetFetchResponse.OffsetFetchResponseTopic.OffsetFetchResponsePartition(
        partition_index=partition[1], committed_offset=-1, metadata=""
    )
    if group is None:
        return answer
    if stable and group.offsets.unstable(partition):
        answer.error_code = Code.UNSTABLE_OFFSET_COMMIT
        return answer
    found = group.offsets.get(partition)
    if found is not None:
        answer.committed_offset = found.offset
        answer.committed_leader_epoch = found.leader_epoch
        answer.metadata = found.metadata
    return answer


def _describe(group_id: str, group: Group | None) -> Message:
    answer = DescribeGroupsResponse.DescribedGroup(
        group_id=group_id, group_state=State.DEAD.value, authorized_operations=set()
    )
    if group is None:
        return answer
    answer.group_state = group.state.value
    answer.protocol_type = group.protocol_type
    stable = group.state is State.STABLE
    answer.protocol_data = group.protocol if stable else ""
    answer.members = [
        DescribeGroupsResponse.DescribedGroup.DescribedGroupMember(
            member_id=member.member_id,
            group_instance_id=member.instance_id,
            client_id=member.application.client_id,
            client_host="/127.0.0.1",
            member_metadata=member.application.protocols[group.protocol] if stable else b"",
            member_assignment=member.assignment if stable else b"",
        )
        for member in group.members.values()
    ]
    return answer


def answers(
    request: Message,
    codes: Mapping[TopicPartition, Code],
    topic_answer: Callable[..., Message],
    partition_answer: Callable[..., Message],
) -> list[Message]:
    """What `commit` did, for the response: each partition with its code, in the request's order."""
    return [
        topic_answer(
            name=topic.name,
            partitions=[
                partition_answer(
                    partition_index=p.partition_index,
                    error_code=codes.get((topic.name, p.partition_index), Code.NONE),
                )
                for p in topic.partitions
            ],
        )
        for topic in request.topics
    ]
