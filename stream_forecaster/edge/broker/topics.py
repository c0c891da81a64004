"""Topics and their settings."""

import re
from dataclasses import dataclass, field

from stream_forecaster.edge.broker.codes import Code, Refused
from stream_forecaster.edge.broker.log import PartitionLog

# Kafka 4's names and defaults. Acted upon: cleanup.policy, delete.retention.ms, max.message.bytes,
# message.timestamp.after.max.ms, min.cleanable.dirty.ratio, retention.bytes, retention.ms. The
# others are known so that clients may set them, and say how a disk is used: there is none here.
DEFAULTS = {
    "cleanup.policy": "delete",
    "compression.type": "producer",
    "delete.retention.ms": "86400000",
    "file.delete.delay.ms": "60000",
    "flush.messages": "9223372036854775807",
    "flush.ms": "9223372036854775807",
    "index.interval.bytes": "4096",
    "max.compaction.lag.ms": "9223372036854775807",
    "max.message.bytes": "1048588",
    "message.timestamp.after.max.ms": "3600000",
    "message.timestamp.before.max.ms": "9223372036854775807",
    "message.timestamp.type": "CreateTime",
    "min.cleanable.dirty.ratio": "0.5",
    "min.compaction.lag.ms": "0",
    "min.insync.replicas": "1",
    "preallocate": "false",
    "retention.bytes": "-1",
    "retention.ms": "604800000",
    "segment.bytes": "1073741824",
    "segment.index.bytes": "10485760",
    "segment.jitter.ms": "0",
    "segment.ms": "604800000",
    "unclean.leader.election.enable": "false",
}
_POLICIES = ({"delete"}, {"compact"}, {"compact", "delete"})
_LEGAL_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")


@dataclass(slots=True)
class Topic:
    """A topic: its partitions and the settings that differ from the defaults."""

    name: str
    logs: list[PartitionLog]
    overrides: dict[str, str] = field(default_factory=dict)

    def setting(self, name: str) -> str:
        """The value in force."""
        return self.overrides.get(name, DEFAULTS[name])

    def number(self, name: str) -> int:
        """The value in force of a whole-number setting."""
        return int(self.setting(name))

    @property
    def compacted(self) -> bool:
        """Whether only the newest record of a key has to be kept."""
        return "compact" in self.setting("cleanup.policy")

    @property
    def retained(self) -> bool:
        """Whether records may be deleted by age and size, and on request."""
        return "delete" in self.setting("cleanup.policy")

    def clean(self, now_ms: int) -> None:
        """Apply retention and compaction to every partition.

        Raises:
            Refused: CORRUPT_MESSAGE: records that cannot be decoded cannot be compacted.
        """
        age_ms, size_bytes = self.number("retention.ms"), self.number("retention.bytes")
        for log in self.logs:
            if self.retained:
                log.retain(
                    now_ms - age_ms if age_ms >= 0 else None,
                    size_bytes if size_bytes >= 0 else None,
                )
            if self.compacted:
                log.compact(
                    now_ms - self.number("delete.retention.ms"),
                    float(self.setting("min.cleanable.dirty.ratio")),
                )


class Topics:
    """All topics of the broker, by name."""

    def __init__(self, default_partitions: int) -> None:
        self._default_partitions = default_partitions
        self._topics: dict[str, Topic] = {}

    def names(self) -> list[str]:
        """Every topic's name, in alphabetical order."""
        return sorted(self._topics)

    def all(self) -> list[Topic]:
        """Every topic."""
        return list(self._topics.values())

    def topic(self, name: str) -> Topic:
        """Find a topic.

        Raises:
            Refused: UNKNOWN_TOPIC_OR_PARTITION.
        """
        found = self._topics.get(name)
        if found is None:
            raise Refused(Code.UNKNOWN_TOPIC_OR_PARTITION)
        return found

    def log(self, name: str, partition: int) -> PartitionLog:
        """Find one partition's log.

        Raises:
            Refused: UNKNOWN_TOPIC_OR_PARTITION.
        """
        logs = self.topic(name).logs
        if not 0 <= partition < len(logs):
            raise Refused(Code.UNKNOWN_TOPIC_OR_PARTITION)
        return logs[partition]

    def create(
        self, name: str, partitions: int, overrides: dict[str, str], *, dry_run: bool = False
    ) -> None:
        """Create a topic; `partitions` -1 is the broker's default.

        Raises:
            Refused: INVALID_TOPIC, TOPIC_ALREADY_EXISTS, INVALID_PARTITIONS or INVALID_CONFIG.
        """
        if not _LEGAL_NAME.fullmatch(name) or name in {".", ".."}:
            raise Refused(Code.INVALID_TOPIC, f"illegal topic name {name!r}")
        if name in self._topics:
            raise Refused(Code.TOPIC_ALREADY_EXISTS, f"Topic '{name}' already exists.")
        count = self._default_partitions if partitions == -1 else partitions
        if count < 1:
            raise Refused(Code.INVALID_PARTITIONS, f"{partitions} partitions")
        check(overrides)
        if not dry_run:
            self._topics[name] = Topic(name, [PartitionLog() for _ in range(count)], overrides)

    def add_partitions(self, name: str, count: int, *, dry_run: bool = False) -> None:
        """Grow a topic to `count` partitions.

        Raises:
            Refused: UNKNOWN_TOPIC_OR_PARTITION or INVALID_PARTITIONS.
        """
        topic = self.topic(name)
        if count <= len(topic.logs):
            raise Refused(Code.INVALID_PARTITIONS, f"it has {len(topic.logs)} partitions already")
        if not dry_run:
            topic.logs.extend(PartitionLog() for _ in range(count - len(topic.logs)))

    def delete(self, name: str) -> None:
        """Delete a topic with all its records.

        Raises:
            Refused: UNKNOWN_TOPIC_OR_PARTITION.
        """
        self.topic(name)
        del self._topics[name]


def check(overrides: dict[str, str]) -> None:
    """Check topic settings.

    Raises:
        Refused: INVALID_CONFIG, naming the setting.
    """
    for name, value in overrides.items():
        if name not in DEFAULTS:
            raise Refused(Code.INVALID_CONFIG, f"Unknown topic config name: {name}")
        if not _legal(name, value):
            raise Refused(Code.INVALID_CONFIG, f"Invalid value {value} for configuration {name}")


def _legal(name: str, value: str) -> bool:
    if name == "cleanup.policy":
        return {policy.strip() for policy in value.split(",")} in _POLICIES
    kind = float if "." in DEFAULTS[name] else int
    if DEFAULTS[name].replace(".", "").lstrip("-").isdigit():
        try:
            kind(value)
        except ValueError:
            return False
    return True
