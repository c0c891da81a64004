"""The offsets that a consumer group has committed, and those that open transactions hold for it."""

from collections.abc import Mapping
from dataclasses import dataclass

TopicPartition = tuple[str, int]


@dataclass(frozen=True, slots=True)
class CommittedOffset:
    """The next record to read, with what the client stored beside it."""

    offset: int
    leader_epoch: int = -1
    metadata: str = ""


class GroupOffsets:
    """One group's offsets. A held offset is not seen before its transaction commits."""

    def __init__(self) -> None:
        self._committed: dict[TopicPartition, CommittedOffset] = {}
        self._held: dict[int, dict[TopicPartition, CommittedOffset]] = {}  # by producer id

    def store(self, offsets: Mapping[TopicPartition, CommittedOffset]) -> None:
        """Commit offsets at once."""
        self._committed.update(offsets)

    def hold(self, producer_id: int, offsets: Mapping[TopicPartition, CommittedOffset]) -> None:
        """Keep offsets for the producer's open transaction."""
        self._held.setdefault(producer_id, {}).update(offsets)

    def end_transaction(self, producer_id: int, *, committed: bool) -> None:
        """Commit or drop what the producer's transaction holds."""
        held = self._held.pop(producer_id, {})
        if committed:
            self._committed.update(held)

    def get(self, partition: TopicPartition) -> CommittedOffset | None:
        """The committed offset, if there is one."""
        return self._committed.get(partition)

    def partitions(self) -> list[TopicPartition]:
        """Every partition with a committed offset, in order."""
        return sorted(self._committed)

    def unstable(self, partition: TopicPartition) -> bool:
        """Whether an open transaction may yet move the partition's offset."""
        return any(partition in held for held in self._held.values())

    def forget(self, partition: TopicPartition) -> None:
        """Drop the partition's committed offset."""
        self._committed.pop(partition, None)

    def forget_topic(self, topic: str) -> None:
        """Drop every offset of a deleted topic."""
        self._committed = {tp: o for tp, o in self._committed.items() if tp[0] != topic}
        for held in self._held.values():
            for partition in [tp for tp in held if tp[0] == topic]:
                del held[partition]
