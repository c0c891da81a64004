"""What consumer groups and their members say to each other."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from stream_forecaster.edge.broker.codes import Code


class State(StrEnum):
    """A group's state, as Kafka names it."""

    EMPTY = "Empty"
    PREPARING = "PreparingRebalance"
    COMPLETING = "CompletingRebalance"
    STABLE = "Stable"
    DEAD = "Dead"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who claims to speak for the group: what a request says of its sender."""

    member_id: str
    generation: int = -1
    instance_id: str | None = None


@dataclass(frozen=True, slots=True)
class Application:
    """What a member asks for when it joins; times in seconds."""

    client_id: str
    session_timeout_s: float
    rebalance_timeout_s: float
    protocol_type: str
    protocols: Mapping[str, bytes]  # name -> metadata, most wanted first


@dataclass(frozen=True, slots=True)
class Joined:
    """The answer to a join. `members` (id -> instance id, metadata) is for the leader only."""

    code: Code
    member_id: str = ""
    generation: int = -1
    protocol: str = ""
    leader: str = ""
    members: Mapping[str, tuple[str | None, bytes]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Synced:
    """The answer to a sync: the member's assignment, in the client's own encoding."""

    code: Code
    assignment: bytes = b""


@dataclass(slots=True)
class Member:
    """A member of the group and the requests of it that wait for the others."""

    member_id: str
    instance_id: str | None
    application: Application
    expires_s: float
    assignment: bytes = b""
    join_reply: Callable[[Joined], None] | None = None
    sync_reply: Callable[[Synced], None] | None = None

    def answer_join(self, answer: Joined) -> None:
        """Answer the waiting join, if one waits."""
        reply, self.join_reply = self.join_reply, None
        if reply:
            reply(answer)

    def answer_sync(self, answer: Synced) -> None:
        """Answer the waiting sync, if one waits."""
        reply, self.sync_reply = self.sync_reply, None
        if reply:
            reply(answer)


def common_protocols(members: Iterable[Member]) -> set[str]:
    """The protocols that every one of the members knows; there is at least one member."""
    known = [set(m.application.protocols) for m in members]
    return known[0].intersection(*known[1:])


def vote(members: Collection[Member]) -> str:
    """The protocol that most members like best among those that all of them know."""
    common = common_protocols(members)
    votes = Counter(next(p for p in m.application.protocols if p in common) for m in members)
    return votes.most_common(1)[0][0]
