"""The error tree.

    StreamForecasterError
    ├── ConfigError            a setting is missing, unknown or contradictory          exit 2
    ├── TransportError         the broker said no                                      exit 3
    │   ├── Unavailable        it could not be reached within the bound given
    │   ├── CommitFailed       a commit was refused or is in doubt: drop the shards,
    │   │                      recover from the committed offsets, go on
    │   └── Fenced             another process has taken this one's transactional id
    └── StateError             what was saved cannot be used                           exit 4
        ├── CheckpointCorrupt  truncated, or the checksum does not match
        ├── CheckpointMismatch made by other settings or another version
        ├── CheckpointTooOld   the topic no longer holds the records that follow it
        ├── WeightsMismatch    a file of network weights is of another architecture, or none
        ├── SchemaMismatch     a message in the forecasts topic is not what this version reads
        └── StoreUnusable      the checkpoint store cannot be read or written

Whose fault decides the kind: bad *data* is a `Reject` (a value, never raised), a bad *call* is a
ValueError, a bad *world* is one of these. Messages say what, where, and what to do.
"""

from typing import Literal

StoreFault = Literal["full", "read_only", "denied", "gone", "slow", "memory", "other"]
"""What is wrong with the checkpoint store, in one word, for metrics and logs."""


class StreamForecasterError(Exception):
    """Anything the operator has to know about; never raised for bad data."""

    exit_code = 70


class ConfigError(StreamForecasterError):
    """A setting is missing, unknown or contradictory."""

    exit_code = 2


class TransportError(StreamForecasterError):
    """The broker refused, or could not be reached."""

    exit_code = 3


class Unavailable(TransportError):
    """The broker could not be reached within the bound given in the settings."""


class CommitFailed(TransportError):
    """A commit was refused or its outcome is unknown; nothing after the last one may be trusted."""


class Fenced(TransportError):
    """Another process uses the same transactional id; this one must stop."""


class StateError(StreamForecasterError):
    """Saved state cannot be used."""

    exit_code = 4


class CheckpointCorrupt(StateError):
    """A checkpoint is truncated or fails its checksum."""


class CheckpointMismatch(StateError):
    """A checkpoint was made by other settings or by another version of the format."""


class CheckpointTooOld(StateError):
    """The topic's retention has removed records that the shard still has to read."""


class WeightsMismatch(StateError):
    """A file of network weights is of another architecture, or not one at all."""


class SchemaMismatch(StateError):
    """A message in the forecasts topic is of another schema, or no forecast at all."""


class StoreUnusable(StateError):
    """The checkpoint store cannot be read or written.

    Attributes:
        fault: why, in one word.
    """

    def __init__(self, message: str, fault: StoreFault = "other") -> None:
        super().__init__(message)
        self.fault = fault
