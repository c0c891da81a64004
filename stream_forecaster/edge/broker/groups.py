"""All consumer groups of the broker."""

from collections.abc import Iterable

from stream_forecaster.edge.broker.codes import Code, Refused
from stream_forecaster.edge.broker.group import Group
from stream_forecaster.edge.broker.members import Caller


class Groups:
    """All consumer groups of the broker."""

    def __init__(self, initial_delay_s: float) -> None:
        self._initial_delay_s = initial_delay_s
        self._groups: dict[str, Group] = {}

    def all(self) -> list[Group]:
        """Every group."""
        return list(self._groups.values())

    def find(self, group_id: str) -> Group | None:
        """The group, if there is one."""
        return self._groups.get(group_id)

    def get(self, group_id: str) -> Group:
        """The group, made if need be.

        Raises:
            Refused: INVALID_GROUP_ID.
        """
        if not group_id:
            raise Refused(Code.INVALID_GROUP_ID)
        if group_id not in self._groups:
            self._groups[group_id] = Group(group_id, self._initial_delay_s)
        return self._groups[group_id]

    def joined(self, group_id: str) -> Group:
        """The group that somebody claims to be a member of.

        Raises:
            Refused: UNKNOWN_MEMBER_ID when there is no such group.
        """
        group = self._groups.get(group_id)
        if group is None:
            raise Refused(Code.UNKNOWN_MEMBER_ID)
        return group

    def committing(self, group_id: str, caller: Caller) -> Group:
        """The group to commit plain offsets for; a stranger's commit makes it, a member's cannot.

        Raises:
            Refused: ILLEGAL_GENERATION or INVALID_GROUP_ID.
        """
        if caller.generation >= 0 and group_id not in self._groups:
            raise Refused(Code.ILLEGAL_GENERATION)
        return self.get(group_id)

    def delete(self, group_id: str) -> None:
        """Forget a group without members.

        Raises:
            Refused: GROUP_ID_NOT_FOUND or NON_EMPTY_GROUP.
        """
        group = self._groups.get(group_id)
        if group is None:
            raise Refused(Code.GROUP_ID_NOT_FOUND)
        if group.members:
            raise Refused(Code.NON_EMPTY_GROUP)
        del self._groups[group_id]

    def forget_topic(self, topic: str) -> None:
        """Drop the offsets of a deleted topic."""
        for group in self._groups.values():
            group.offsets.forget_topic(topic)

    def end_transaction(
        self, group_ids: Iterable[str], producer_id: int, *, committed: bool
    ) -> None:
        """Apply or drop the offsets that the producer's transaction holds in these groups."""
        for group_id in group_ids:
            group = self._groups.get(group_id)
            if group is not None:
                group.offsets.end_transaction(producer_id, committed=committed)

    def tick(self, now_s: float) -> None:
        """Let time pass in every group."""
        for group in self._groups.values():
            group.tick(now_s)

    def renew_sessions(self, now_s: float) -> None:
        """Give every member a full session from now."""
        for group in self._groups.values():
            group.renew_sessions(now_s)
