"""The broker's no: what it refuses, where, and what to do.

A wrong password, an unknown mechanism and an untrusted certificate end a connection, and the client
library tries again until its time is over; then it says "unable to bootstrap". Why is only in its
log, from where it is taken here.
"""

import logging
from collections.abc import Mapping
from typing import Any, Self

from kafka.errors import (
    AuthorizationError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    SaslAuthenticationFailedError,
    UnsupportedSaslMechanismError,
)

from stream_forecaster.errors import TransportError


def refusal(error: KafkaError) -> TransportError:
    """The broker's no as one of our errors, with the way out where there is one."""
    hint = ""
    if isinstance(error, AuthorizationError):
        hint = "; the user lacks a permission: the README lists those that are needed"
    if isinstance(error, MessageSizeTooLargeError | RecordListTooLargeError):
        hint = (
            "; raise the topic's max.message.bytes: dead letters need 4194304, to which "
            "`stream-forecaster topics create` sets it"
        )
    return TransportError(f"Kafka refused: {error}{hint}")


class Causes(logging.Handler):
    """While open, remembers why the client's network layer could not connect.

    A refusal is the cause whatever is logged after it: the next attempts may fail in other words.

    Args:
        config: of the client: whose login it is, and where.
    """

    _LOGGER = logging.getLogger("kafka.net.manager")

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(logging.WARNING)
        self._config = config
        self._last: BaseException | None = None
        self._refused: TransportError | None = None
        self._level = logging.NOTSET

    def __enter__(self) -> Self:
        self._level = self._LOGGER.level
        self._LOGGER.setLevel(logging.WARNING)  # even where the client's logging is silenced
        self._LOGGER.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._LOGGER.removeHandler(self)
        self._LOGGER.setLevel(self._level)

    def emit(self, record: logging.LogRecord) -> None:
        """Take in what the client logs: causes are arguments of its messages."""
        for argument in record.args if isinstance(record.args, tuple) else ():
            if isinstance(argument, BaseException) and not isinstance(argument, KafkaTimeoutError):
                self._last = argument
                self._refused = self._refused or self._refused_by(argument)

    def explain(self, error: KafkaError) -> Exception:
        """The logged cause where it says more than `error` does."""
        if refused := self._refused or self._refused_by(error):
            return refused
        what = error.args[0] if error.args else "no connection"
        explained: Exception = KafkaConnectionError(f"{what} ({self._last or error})")
        return explained

    def _refused_by(self, cause: BaseException) -> TransportError | None:
        """What waiting will not heal, as an error of ours."""
        where = ", ".join(self._config.get("bootstrap_servers", ()))
        mechanism = self._config.get("sasl_mechanism")
        _, untrusted, reason = str(cause).partition("certificate verify failed: ")
        if untrusted:
            return TransportError(f"the certificate of Kafka at {where} {_untrusted(reason)}")
        if isinstance(cause, UnsupportedSaslMechanismError):
            return TransportError(
                f"Kafka at {where} does not take kafka.sasl_mechanism = {mechanism!r}: "
                "set one that its listener has enabled"
            )
        if isinstance(cause, SaslAuthenticationFailedError):
            user = self._config.get("sasl_plain_username")
            detail = str(cause.args[0] if cause.args else cause).rpartition("Error: ")[2]
            return TransportError(
                f"Kafka at {where} refused the login of {user!r} by {mechanism}: {detail}; check "
                "kafka.sasl_plain_username, kafka.sasl_plain_password and kafka.sasl_mechanism"
            )
        if isinstance(cause, KafkaError) and not cause.retriable:
            return refusal(cause)
        return None


def _untrusted(reason: str) -> str:
    reason = reason.partition(" (_ssl.c")[0].rstrip(".")
    way_out = "set kafka.ssl_cafile to the authority that signed it"
    if "mismatch" in reason:
        way_out = "connect by a name that is in it, or set kafka.ssl_check_hostname = false"
    elif "expired" in reason:
        way_out = "renew it, on the broker's side"
    return f"is not trusted: {reason}; {way_out}"
