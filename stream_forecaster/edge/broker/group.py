"""One consumer group: who is in it, and which generation it is in. Pure state, time is given.

Theory of operation
-------------------
A group goes round:

    Empty --join--> PreparingRebalance --all joined, or time is up--> CompletingRebalance
                          ^    ^                                              |
                          |    +---- member joins, leaves or expires ---------+ leader syncs
                          |                                                   v
                          +--------- the same, or the leader rejoins ------ Stable

Join and sync are answered later, when the whole group is there: the caller hands in a `reply`
which is called once, at once or later. A *generation* is one such round. Whoever speaks with an
older generation is refused, except where Kafka itself is lenient, as to transactional commits
that name no member at all (`check_transactional_commit`).

Static members (those with an instance id) may come back under a new member id without a new round
as long as what they ask for has not changed.
"""

import uuid
from collections.abc import Callable, Mapping

from stream_forecaster.edge.broker.codes import Code, Refused
from stream_forecaster.edge.broker.members import (
    Application,
    Caller,
    Joined,
    Member,
    State,
    Synced,
    common_protocols,
    vote,
)
from stream_forecaster.edge.broker.offsets import GroupOffsets

_NEVER_S = float("inf")


class Group:
    """One consumer group."""

    def __init__(self, group_id: str, initial_delay_s: float) -> None:
        self.group_id = group_id
        self.state = State.EMPTY
        self.generation = 0
        self.protocol_type = ""
        self.protocol = ""
        self.members: dict[str, Member] = {}
        self.offsets = GroupOffsets()
        self._initial_delay_s = initial_delay_s
        self._leader = ""
        self._reserved_ids: dict[str, float] = {}  # handed out, not joined yet -> forgotten at
        self._initial = False
        self._deadline_s = _NEVER_S
        self._latest_s = _NEVER_S

    def join(
        self,
        caller: Caller,
        application: Application,
        reply: Callable[[Joined], None],
        *,
        needs_id: bool,
        now_s: float,
    ) -> None:
        """Take a member in; `needs_id`: newcomers must first come back with an id given here."""
        newcomer = not caller.member_id and caller.instance_id is None
        try:
            self._check_application(caller, application)
            if newcomer and needs_id:
                member_id = self._reserve_id(application, now_s)
                reply(Joined(Code.MEMBER_ID_REQUIRED, member_id))
                return
            known = self._joining(caller)
        except Refused as refused:
            reply(Joined(refused.code, caller.member_id))
            return
        if known is None:
            self._add(caller, application).join_reply = reply
            self._rebalance(now_s)
        elif known.member_id != caller.member_id:
            self._join_again_as_static(known, application, reply, now_s)
        else:
            self._join_again(known, application, reply, now_s)

    def sync(
        self,
        caller: Caller,
        assignments: Mapping[str, bytes],
        reply: Callable[[Synced], None],
        now_s: float,
    ) -> None:
        """Wait for the leader's assignments, or hand them in as the leader."""
        try:
            member = self._current(caller)
        except Refused as refused:
            reply(Synced(refused.code))
            return
        member.expires_s = now_s + member.application.session_timeout_s
        if self.state is State.PREPARING:
            reply(Synced(Code.REBALANCE_IN_PROGRESS))
        elif self.state is State.STABLE:
            reply(Synced(Code.NONE, member.assignment))
        else:
            member.sync_reply = reply
            if member.member_id == self._leader:
                self.state = State.STABLE
                for other in self.members.values():
                    other.assignment = assignments.get(other.member_id, b"")
                    other.expires_s = now_s + other.application.session_timeout_s
                    other.answer_sync(Synced(Code.NONE, other.assignment))

    def heartbeat(self, caller: Caller, now_s: float) -> None:
        """Keep the member alive.

        Raises:
            Refused: UNKNOWN_MEMBER_ID, ILLEGAL_GENERATION, FENCED_INSTANCE_ID, or
                REBALANCE_IN_PROGRESS, on which the member has to join again.
        """
        member = self._current(caller)
        member.expires_s = now_s + member.application.session_timeout_s
        if self.state is State.PREPARING:
            raise Refused(Code.REBALANCE_IN_PROGRESS)

    def leave(self, caller: Caller, now_s: float) -> str:
        """Let a member go and return its id; a static one may be named by its instance id alone.

        Raises:
            Refused: UNKNOWN_MEMBER_ID or FENCED_INSTANCE_ID.
        """
        if self._reserved_ids.pop(caller.member_id, None) is not None:
            self._complete_if_all_joined(now_s)
            return caller.member_id
        if caller.instance_id is not None and not caller.member_id:
            member = self._static(caller.instance_id)
        else:
            member = self._known(caller)
        if member is None:
            raise Refused(Code.UNKNOWN_MEMBER_ID)
        self._remove(member, now_s)
        return member.member_id

    def tick(self, now_s: float) -> None:
        """Expire silent members and end a wait whose time is up."""
        awaited = {i: at for i, at in self._reserved_ids.items() if at > now_s}
        if len(awaited) < len(self._reserved_ids):
            self._reserved_ids = awaited
            self._complete_if_all_joined(now_s)
        for member in list(self.members.values()):
            waiting = member.join_reply or member.sync_reply
            if member.expires_s <= now_s and not waiting:
                self._remove(member, now_s)
        if self.state is State.PREPARING and self._deadline_s <= now_s:
            self._complete(now_s)

    def renew_sessions(self, now_s: float) -> None:
        """Give every member a full session from now, as a broker does that was away itself."""
        for member in self.members.values():
            member.expires_s = now_s + member.application.session_timeout_s

    def check_commit(self, caller: Caller, now_s: float) -> None:
        """Check a plain offset commit.

        Raises:
            Refused: as `heartbeat` does; a commit that names no member is for empty groups.
        """
        if caller.generation < 0 and self.state is State.EMPTY:
            return
        member = self._current(caller)
        member.expires_s = now_s + member.application.session_timeout_s
        if self.state is State.COMPLETING:
            raise Refused(Code.REBALANCE_IN_PROGRESS)

    def check_transactional_commit(self, caller: Caller) -> None:
        """Check an offset commit inside a transaction.

        One that names neither member nor generation passes unchecked, as older clients name none:
        Kafka does not fence it, so a client must never send it on purpose.

        Raises:
            Refused: UNKNOWN_MEMBER_ID, ILLEGAL_GENERATION or FENCED_INSTANCE_ID.
        """
        if caller.generation >= 0 or caller.member_id or caller.instance_id is not None:
            self._current(caller)

    def _check_application(self, caller: Caller, application: Application) -> None:
        if application.session_timeout_s <= 0:
            raise Refused(Code.INVALID_SESSION_TIMEOUT)
        if not application.protocol_type or not application.protocols:
            raise Refused(Code.INCONSISTENT_GROUP_PROTOCOL)
        others = [m for m in self.members.values() if m.member_id != caller.member_id]
        if others and (
            application.protocol_type != self.protocol_type
            or not common_protocols(others) & set(application.protocols)
        ):
            raise Refused(Code.INCONSISTENT_GROUP_PROTOCOL)

    def _reserve_id(self, application: Application, now_s: float) -> str:
        member_id = _new_id(application.client_id)
        self._reserved_ids[member_id] = now_s + application.session_timeout_s
        return member_id

    def _joining(self, caller: Caller) -> Member | None:
        """The member that joins, or None when it is a new one."""
        if self._reserved_ids.pop(caller.member_id, None) is not None:
            return None
        if caller.member_id:
            return self._known(caller)
        return None if caller.instance_id is None else self._static(caller.instance_id)

    def _add(self, caller: Caller, application: Application) -> Member:
        member_id = caller.member_id or _new_id(caller.instance_id or application.client_id)
        member = Member(member_id, caller.instance_id, application, _NEVER_S)
        self.members[member_id] = member
        self._leader = self._leader or member_id
        self.protocol_type = application.protocol_type
        return member

    def _join_again(
        self,
        member: Member,
        application: Application,
        reply: Callable[[Joined], None],
        now_s: float,
    ) -> None:
        """Answer a member that is in the group at once if it asks for nothing new."""
        unchanged = application.protocols == member.application.protocols
        leads = member.member_id == self._leader
        member.application = application
        member.expires_s = now_s + application.session_timeout_s
        member.answer_join(Joined(Code.REBALANCE_IN_PROGRESS, member.member_id))
        member.join_reply = reply
        # its first answer may have been lost; a leader of a stable group wants a new assignment
        if unchanged and (
            self.state is State.COMPLETING or (self.state is State.STABLE and not leads)
        ):
            member.answer_join(self._joined(member))
        else:
            self._rebalance(now_s)

    def _join_again_as_static(
        self,
        old: Member,
        application: Application,
        reply: Callable[[Joined], None],
        now_s: float,
    ) -> None:
        """Give a static member that came back a new id; whoever used the old one is fenced."""
        old.answer_join(Joined(Code.FENCED_INSTANCE_ID, old.member_id))
        old.answer_sync(Synced(Code.FENCED_INSTANCE_ID))
        del self.members[old.member_id]
        led = self._leader == old.member_id
        member = self._add(Caller("", instance_id=old.instance_id), application)
        member.assignment = old.assignment
        member.expires_s = now_s + application.session_timeout_s
        member.join_reply = reply
        if led:
            self._leader = member.member_id
        if self.state is State.STABLE and vote(self.members.values()) == self.protocol:
            # named as the leader it would assign anew, so it is told of its former self
            leader = old.member_id if led else self._leader
            member.answer_join(
                Joined(Code.NONE, member.member_id, self.generation, self.protocol, leader)
            )
        else:
            self._rebalance(now_s)

    def _known(self, caller: Caller) -> Member:
        """Find the member that calls."""
        if caller.instance_id is not None:
            holder = self._static(caller.instance_id)
            if holder is not None and holder.member_id != caller.member_id:
                raise Refused(Code.FENCED_INSTANCE_ID)
        member = self.members.get(caller.member_id)
        if member is None:
            raise Refused(Code.UNKNOWN_MEMBER_ID)
        return member

    def _current(self, caller: Caller) -> Member:
        """Find the member that calls, and check that it is of this generation."""
        member = self._known(caller)
        if caller.generation != self.generation:
            raise Refused(Code.ILLEGAL_GENERATION)
        return member

    def _static(self, instance_id: str) -> Member | None:
        return next((m for m in self.members.values() if m.instance_id == instance_id), None)

    def _remove(self, member: Member, now_s: float) -> None:
        del self.members[member.member_id]
        member.answer_join(Joined(Code.UNKNOWN_MEMBER_ID, member.member_id))
        member.answer_sync(Synced(Code.UNKNOWN_MEMBER_ID))
        if self._leader == member.member_id:
            self._leader = next(iter(self.members), "")
        self._rebalance(now_s)

    def _rebalance(self, now_s: float) -> None:
        """Start a round, or see whether the one under way can end."""
        if self.state is State.PREPARING:
            if self._initial:
                # more may be on their way: wait as long again, but not for ever
                self._deadline_s = min(now_s + self._initial_delay_s, self._latest_s)
            else:
                self._complete_if_all_joined(now_s)
            return
        for member in self.members.values():
            member.answer_sync(Synced(Code.REBALANCE_IN_PROGRESS))
        self._initial = self.state is State.EMPTY
        self.state = State.PREPARING
        self._latest_s = now_s + self._patience_s()
        if self._initial:
            self._deadline_s = min(now_s + self._initial_delay_s, self._latest_s)
        else:
            self._deadline_s = self._latest_s
            self._complete_if_all_joined(now_s)

    def _patience_s(self) -> float:
        """How long the slowest member may take to join again."""
        timeouts = (m.application.rebalance_timeout_s for m in self.members.values())
        return max(timeouts, default=0.0)

    def _complete_if_all_joined(self, now_s: float) -> None:
        waiting = self.state is State.PREPARING and not self._initial and not self._reserved_ids
        if waiting and all(m.join_reply for m in self.members.values()):
            self._complete(now_s)

    def _complete(self, now_s: float) -> None:
        """End the joining: who has not come is out, but for static members, who may be late."""
        absent = [m for m in self.members.values() if not m.join_reply]
        for member in absent:
            if member.instance_id is None:
                del self.members[member.member_id]
        joined = [m for m in self.members.values() if m.join_reply]
        if self.members and not joined:
            self._deadline_s = now_s + self._patience_s()
            return
        self._initial = False
        self._deadline_s = _NEVER_S
        self.generation += 1
        if not joined:
            self.state, self.protocol, self._leader = State.EMPTY, "", ""
            return
        if self._leader not in {m.member_id for m in joined}:
            self._leader = joined[0].member_id
        self.protocol = vote(self.members.values())
        self.state = State.COMPLETING
        for member in joined:
            member.expires_s = now_s + member.application.session_timeout_s
            member.answer_join(self._joined(member))

    def _joined(self, member: Member) -> Joined:
        members = self.members.values() if member.member_id == self._leader else ()
        return Joined(
            Code.NONE,
            member.member_id,
            self.generation,
            self.protocol,
            self._leader,
            {m.member_id: (m.instance_id, m.application.protocols[self.protocol]) for m in members},
        )


def _new_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4()}"
