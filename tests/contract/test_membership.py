"""The group protocol request by request: what no client would send, and what it would be told.

join ----> (wait for the others) ----> sync ----> heartbeats, commits ----> leave
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import pytest
from brokers import External, unique
from clients import Clients, eventually
from kafka.protocol.consumer import (
    HeartbeatRequest,
    JoinGroupRequest,
    LeaveGroupRequest,
    OffsetCommitRequest,
    OffsetFetchRequest,
    SyncGroupRequest,
)

NONE = 0
UNKNOWN_TOPIC_OR_PARTITION = 3
ILLEGAL_GENERATION = 22
INCONSISTENT_PROTOCOL = 23
INVALID_GROUP_ID = 24
UNKNOWN_MEMBER = 25
INVALID_SESSION_TIMEOUT = 26
REBALANCE_IN_PROGRESS = 27
MEMBER_ID_REQUIRED = 79
FENCED_INSTANCE = 82
_STARTING_UP = {14, 15, 16}  # the coordinator loads, is not there yet, or is elsewhere


class Member:
    """One member of a group, on a connection of its own."""

    def __init__(self, clients: Clients, group: str, instance_id: str | None = None) -> None:
        self._clients, self._wire = clients, clients.coordinator(group)
        self.group, self.instance_id = group, instance_id
        self.member_id, self.generation = "", -1

    def join(
        self, protocols: Mapping[str, bytes] | None = None, session_timeout_ms: int = 6000
    ) -> Any:
        """Join, taking the id that is given; returns the answer."""
        while True:
            self.post_join(protocols, session_timeout_ms)
            answer = self.take_join()
            if answer.error_code not in {MEMBER_ID_REQUIRED, *_STARTING_UP}:
                return answer

    def post_join(
        self, protocols: Mapping[str, bytes] | None = None, session_timeout_ms: int = 6000
    ) -> None:
        """Send a join; `take_join` waits for the answer."""
        offered = protocols or {"range": b"topics"}
        protocol = JoinGroupRequest.JoinGroupRequestProtocol
        request = JoinGroupRequest(
            group_id=self.group,
            session_timeout_ms=session_timeout_ms,
            rebalance_timeout_ms=60_000,
            member_id=self.member_id,
            group_instance_id=self.instance_id,
            protocol_type="test",  # Kafka reads into the metadata of "consumer"
            protocols=[protocol(name=n, metadata=m) for n, m in offered.items()],
        )
        self._wire.post(request, 5)

    def take_join(self) -> Any:
        """Wait for the answer to a join."""
        answer = self._wire.answer()
        if answer.error_code in {NONE, MEMBER_ID_REQUIRED}:
            self.member_id, self.generation = answer.member_id, answer.generation_id
        return answer

    def post_sync(self, assignments: Mapping[str, bytes] | None = None) -> None:
        """Send a sync, as the leader with everybody's assignments."""
        assignment = SyncGroupRequest.SyncGroupRequestAssignment
        request = SyncGroupRequest(
            group_id=self.group,
            generation_id=self.generation,
            member_id=self.member_id,
            group_instance_id=self.instance_id,
            assignments=[
                assignment(member_id=m, assignment=a) for m, a in (assignments or {}).items()
            ],
        )
        self._wire.post(request, 3)

    def sync(self, assignments: Mapping[str, bytes] | None = None) -> tuple[int, bytes]:
        """Sync: the error code and this member's assignment."""
        self.post_sync(assignments)
        return self.take_sync()

    def take_sync(self) -> tuple[int, bytes]:
        """Wait for the answer to a sync."""
        answer = self._wire.answer()
        return answer.error_code, bytes(answer.assignment)

    def heartbeat(self, **other: Any) -> int:
        """The error code of a heartbeat, of this member or of `other`."""
        return int(self._wire.ask(HeartbeatRequest(**(self._identity() | other)), 3).error_code)

    def commit(self, offset: int = 1, *, partition: int = 0, **other: Any) -> int:
        """The error code of an offset commit, of this member or of `other`."""
        identity = self._identity() | other
        identity["generation_id_or_member_epoch"] = identity.pop("generation_id")
        topic = OffsetCommitRequest.OffsetCommitRequestTopic
        committed = topic.OffsetCommitRequestPartition(
            partition_index=partition, committed_offset=offset, committed_metadata=""
        )
        topics = [topic(name=self._topic, partitions=[committed])]
        request = OffsetCommitRequest(**identity, topics=topics)
        return int(self._wire.ask(request, 7).topics[0].partitions[0].error_code)

    def committed(self) -> int:
        """The group's committed offset."""
        topic = OffsetFetchRequest.OffsetFetchRequestTopic(name=self._topic, partition_indexes=[0])
        request = OffsetFetchRequest(group_id=self.group, topics=[topic], require_stable=True)
        return int(self._wire.ask(request, 7).topics[0].partitions[0].committed_offset)

    def leave(self, **other: Any) -> int:
        """The error code of leaving."""
        identity = {"member_id": self.member_id, "group_instance_id": self.instance_id} | other
        members = [LeaveGroupRequest.MemberIdentity(**identity)]
        request = LeaveGroupRequest(group_id=self.group, members=members)
        return int(self._wire.ask(request, 3).members[0].error_code)

    @cached_property
    def _topic(self) -> str:
        return self._clients.topic()

    def _identity(self) -> dict[str, Any]:
        return {
            "group_id": self.group,
            "member_id": self.member_id,
            "generation_id": self.generation,
            "group_instance_id": self.instance_id,
        }


def stable(clients: Clients, instance_id: str | None = None) -> Member:
    """The only member of a new group, joined and synced."""
    member = Member(clients, unique("group"), instance_id)
    answer = member.join()
    assert (answer.error_code, answer.leader) == (NONE, member.member_id)
    assert member.sync({member.member_id: b"all"}) == (NONE, b"all")
    return member


def two(clients: Clients) -> tuple[Member, Member]:
    """The leader and the follower of a new group, joined and synced."""
    leader = stable(clients)
    follower = Member(clients, leader.group)
    start_join(follower)
    leader.join()
    follower.take_join()
    follower.post_sync()
    leader.sync({leader.member_id: b"one", follower.member_id: b"two"})
    assert follower.take_sync() == (NONE, b"two")
    return leader, follower


def shortest_session_ms(clients: Clients) -> int:
    """Half a second where the fixtures set the limit, Kafka's default limit elsewhere."""
    return 6000 if isinstance(clients.served, External) else 500


def start_join(member: Member) -> None:
    """Get an id and post the join that waits for the others."""
    member.post_join()
    assert member.take_join().error_code == MEMBER_ID_REQUIRED
    member.post_join()


def test_a_newcomer_is_given_an_id_first(clients: Clients) -> None:
    """So that a lost answer does not leave a ghost in the group."""
    stable(clients)
    member = Member(clients, unique("group"))

    member.post_join()
    first = member.take_join()
    second = member.join()

    assert first.error_code == MEMBER_ID_REQUIRED
    assert (second.error_code, second.member_id) == (NONE, first.member_id)
    assert second.generation_id == 1
    assert [(m.member_id, bytes(m.metadata)) for m in second.members] == [
        (first.member_id, b"topics")
    ]


def test_whoever_is_not_a_member_is_told_so(clients: Clients) -> None:
    """In every request, also when the whole group is unknown."""
    member = stable(clients)
    stranger = Member(clients, member.group)
    stranger.member_id = "stranger"

    assert stranger.join().error_code == UNKNOWN_MEMBER
    assert stranger.sync()[0] == UNKNOWN_MEMBER
    assert stranger.heartbeat() == UNKNOWN_MEMBER
    assert stranger.leave() == UNKNOWN_MEMBER
    assert stranger.commit(generation_id=1) == UNKNOWN_MEMBER
    assert stranger.heartbeat(group_id=unique("group")) == UNKNOWN_MEMBER


def test_an_older_generation_is_refused(clients: Clients) -> None:
    """Heartbeat, sync and commit alike; the offset stays what it was."""
    member = stable(clients)
    assert member.commit(5) == NONE
    member.generation -= 1

    assert member.heartbeat() == ILLEGAL_GENERATION
    assert member.sync()[0] == ILLEGAL_GENERATION
    assert member.commit(9) == ILLEGAL_GENERATION
    assert member.committed() == 5


def test_a_commit_that_names_no_member_is_for_empty_groups(clients: Clients) -> None:
    """It is how tools set offsets; a live group's they cannot touch."""
    member = stable(clients)
    nobody: dict[str, Any] = {"member_id": "", "generation_id": -1}

    while_live = member.commit(3, **nobody)
    member.leave()
    when_empty = member.commit(4, **nobody)

    assert (while_live, when_empty) == (UNKNOWN_MEMBER, NONE)
    assert member.committed() == 4
    assert member.commit(5, generation_id=3, group_id=unique("group")) == ILLEGAL_GENERATION


def test_offsets_of_what_does_not_exist_are_refused(clients: Clients) -> None:
    """Partition 7 of a topic with one."""
    member = stable(clients)

    assert member.commit(3, partition=7) == UNKNOWN_TOPIC_OR_PARTITION


def test_a_newcomer_makes_the_others_join_again(clients: Clients) -> None:
    """Heartbeats say so; commits of the running generation still pass until the new one is made."""
    leader = stable(clients)
    newcomer = Member(clients, leader.group)
    start_join(newcomer)

    assert eventually(lambda: leader.heartbeat() == REBALANCE_IN_PROGRESS)
    while_joining = leader.commit(7)
    old = leader.generation
    rejoined, joined = leader.join(), newcomer.take_join()
    while_syncing = leader.commit(8)

    assert (while_joining, while_syncing) == (NONE, REBALANCE_IN_PROGRESS)
    assert leader.heartbeat() == NONE
    assert rejoined.generation_id == joined.generation_id == old + 1
    assert rejoined.leader == joined.leader == leader.member_id
    assert {m.member_id for m in rejoined.members} == {leader.member_id, newcomer.member_id}
    assert list(joined.members) == []


def test_a_leaving_member_makes_the_others_join_again(clients: Clients) -> None:
    """The one that is left becomes the leader."""
    leader, follower = two(clients)

    assert leader.leave() == NONE

    assert eventually(lambda: follower.heartbeat() == REBALANCE_IN_PROGRESS)
    assert follower.join().leader == follower.member_id


def test_joining_again_without_news_changes_nothing(clients: Clients) -> None:
    """A follower gets its generation at once; other wishes start a new one."""
    leader, follower = two(clients)
    before = follower.generation

    same = follower.join()
    follower.post_join({"range": b"other topics"})
    eventually(lambda: leader.heartbeat() == REBALANCE_IN_PROGRESS)
    leader.join()
    changed = follower.take_join()

    assert (same.error_code, same.generation_id) == (NONE, before)
    assert changed.generation_id == before + 1


def test_a_leader_that_joins_again_starts_a_rebalance(clients: Clients) -> None:
    """It may have seen new partitions, and wants to assign them."""
    leader, follower = two(clients)

    leader.post_join()

    assert eventually(lambda: follower.heartbeat() == REBALANCE_IN_PROGRESS)
    follower.join()
    assert leader.take_join().generation_id == follower.generation


def test_a_sync_is_broken_off_by_the_next_rebalance(clients: Clients) -> None:
    """The leader leaves before it has assigned anything."""
    leader = stable(clients)
    follower = Member(clients, leader.group)
    start_join(follower)
    leader.join()
    follower.take_join()
    follower.post_sync()

    leader.leave()

    assert follower.take_sync() == (REBALANCE_IN_PROGRESS, b"")


def test_a_silent_member_is_expired(clients: Clients) -> None:
    """Its session ends, and the other one is asked to join again."""
    session_timeout_ms = shortest_session_ms(clients)
    lively = stable(clients)
    silent = Member(clients, lively.group)
    silent.post_join(session_timeout_ms=session_timeout_ms)
    silent.take_join()
    silent.post_join(session_timeout_ms=session_timeout_ms)
    lively.join()
    silent.take_join()
    silent.post_sync()
    lively.sync({})
    silent.take_sync()

    assert eventually(lambda: lively.heartbeat() == REBALANCE_IN_PROGRESS)
    assert [m.member_id for m in lively.join().members] == [lively.member_id]
    assert silent.heartbeat() == UNKNOWN_MEMBER
    assert silent.commit() == UNKNOWN_MEMBER


def test_an_id_that_is_never_used_is_forgotten(clients: Clients) -> None:
    """Its session ends too; the others do not wait for it until the rebalance times out."""
    leader = stable(clients)
    ghost, other = Member(clients, leader.group), Member(clients, leader.group)
    ghost.post_join(session_timeout_ms=shortest_session_ms(clients))
    assert ghost.take_join().error_code == MEMBER_ID_REQUIRED
    start_join(other)

    rejoined = leader.join()

    assert {m.member_id for m in rejoined.members} == {leader.member_id, other.member_id}
    assert other.take_join().error_code == NONE


def test_members_must_have_a_protocol_in_common(clients: Clients) -> None:
    """Else nobody could assign."""
    member = stable(clients)
    other = Member(clients, member.group)

    assert other.join({"sticky": b""}).error_code == INCONSISTENT_PROTOCOL


def test_the_protocol_that_all_know_is_taken(clients: Clients) -> None:
    """Although one of them would rather have another."""
    leader = Member(clients, unique("group"))
    leader.join({"range": b"r", "sticky": b"s"})
    leader.sync({leader.member_id: b""})
    other = Member(clients, leader.group)
    other.post_join({"sticky": b"s2"})
    other.take_join()
    other.post_join({"sticky": b"s2"})

    rejoined = leader.join({"range": b"r", "sticky": b"s"})

    assert rejoined.protocol_name == "sticky"
    assert {bytes(m.metadata) for m in rejoined.members} == {b"s", b"s2"}


@pytest.mark.parametrize(
    ("group", "session_timeout_ms", "code"),
    [("", 6000, INVALID_GROUP_ID), ("some", 0, INVALID_SESSION_TIMEOUT)],
)
def test_an_impossible_join_is_refused(
    clients: Clients, group: str, session_timeout_ms: int, code: int
) -> None:
    """A group has a name, and a session a length."""
    member = Member(clients, unique("group"))
    member.group = group and unique(group)

    assert member.join(session_timeout_ms=session_timeout_ms).error_code == code


def test_a_static_member_takes_the_place_of_its_predecessor(clients: Clients) -> None:
    """Same generation, same assignment, new id; whoever still uses the old one is fenced."""
    old = stable(clients, instance_id="one")
    new = Member(clients, old.group, instance_id="one")

    joined = new.join()

    assert (joined.error_code, joined.generation_id) == (NONE, old.generation)
    assert joined.leader != new.member_id
    assert new.sync() == (NONE, b"all")
    assert old.heartbeat() == FENCED_INSTANCE
    assert old.commit() == FENCED_INSTANCE
    assert new.heartbeat() == new.commit() == NONE


def test_a_static_member_can_be_made_to_leave_by_name(clients: Clients) -> None:
    """As an administrator does who knows no member id."""
    member = stable(clients, instance_id="one")

    assert member.leave(member_id="", group_instance_id="other") == UNKNOWN_MEMBER
    assert member.leave(member_id="", group_instance_id="one") == NONE
    assert member.heartbeat() == UNKNOWN_MEMBER
