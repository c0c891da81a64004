"""The protocol's error codes that this broker uses, and the exception that carries one."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any


class Code(IntEnum):
    """Error codes as the Kafka protocol numbers them."""

    NONE = 0
    OFFSET_OUT_OF_RANGE = 1
    CORRUPT_MESSAGE = 2
    UNKNOWN_TOPIC_OR_PARTITION = 3
    MESSAGE_TOO_LARGE = 10
    INVALID_TOPIC = 17
    ILLEGAL_GENERATION = 22
    INCONSISTENT_GROUP_PROTOCOL = 23
    INVALID_GROUP_ID = 24
    UNKNOWN_MEMBER_ID = 25
    INVALID_SESSION_TIMEOUT = 26
    REBALANCE_IN_PROGRESS = 27
    INVALID_TIMESTAMP = 32
    UNSUPPORTED_VERSION = 35
    TOPIC_ALREADY_EXISTS = 36
    INVALID_PARTITIONS = 37
    INVALID_REPLICATION_FACTOR = 38
    INVALID_CONFIG = 40
    INVALID_REQUEST = 42
    POLICY_VIOLATION = 44
    OUT_OF_ORDER_SEQUENCE = 45
    INVALID_PRODUCER_EPOCH = 47
    INVALID_TXN_STATE = 48
    INVALID_PRODUCER_ID_MAPPING = 49
    INVALID_TRANSACTION_TIMEOUT = 50
    OPERATION_NOT_ATTEMPTED = 55
    NON_EMPTY_GROUP = 68
    GROUP_ID_NOT_FOUND = 69
    MEMBER_ID_REQUIRED = 79
    FENCED_INSTANCE_ID = 82
    GROUP_SUBSCRIBED_TO_TOPIC = 86
    INVALID_RECORD = 87
    UNSTABLE_OFFSET_COMMIT = 88
    PRODUCER_FENCED = 90


class Refused(Exception):
    """The broker answers a request, or one part of it, with `code`."""

    def __init__(self, code: Code, reason: str = "") -> None:
        super().__init__(reason or code.name)
        self.code = code
        self.reason = reason or None


@contextmanager
def refusals_in(answer: Any) -> Iterator[None]:  # noqa: ANN401  (the library has no types)
    """Write a refusal into the answer it belongs to: its code and its reason."""
    try:
        yield
    except Refused as refused:
        answer.error_code, answer.error_message = refused.code, refused.reason
