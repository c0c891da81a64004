"""Reaching a broker: client settings, opening a client, and patience while nobody answers.

The client library has three habits that are dealt with here, so that nobody else has to know:

* A constructor connects, and may do so for ever. When it fails it leaves its sockets and its IO
  thread behind. So every attempt is made in a thread that is not waited for too long, and through
  a factory that remembers the network layer and closes it.
* A wrong password and an untrusted certificate look like a broker that is away; `refusals` finds
  the cause in the client's log. Such a refusal does not heal by waiting: it is raised at once,
  while a broker that is away is waited for, with back-off, as long as the settings say.
* What comes in one piece with the end of a connection is thrown away, and so a broker's refusal of
  a password, mostly: it hangs up right behind it. `_deliver_last_words` mends that.
* A retriable error means "ask again". `Outage` asks again, and is the one place that logs and
  bounds how long.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from kafka.errors import (
    KafkaError,
    KafkaTimeoutError,
)
from kafka.net.compat import KafkaNetClient
from structlog.typing import FilteringBoundLogger

from stream_forecaster.config import Kafka
from stream_forecaster.edge.refusals import Causes, refusal
from stream_forecaster.edge.tls import tls_context
from stream_forecaster.errors import Unavailable

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

CALL_TIMEOUT_MS = 10_000
"""How long one question to the broker may take before it is asked again."""

_BOOTSTRAP_TIMEOUT_MS = 2_000
_OPEN_TIMEOUT_S = 20.0
_FIRST_BACKOFF_S, _LAST_BACKOFF_S = 0.1, 5.0
LIKELY_CAUSES = (
    "is a broker running there, is the address the one it advertises, "
    "and does security_protocol match the listener?"
)
"""Of no answer at all; the settings of that name are in the section [kafka]."""


class ClientClass(Protocol[T_co]):
    """A class of the client library: its constructor takes the names in `DEFAULT_CONFIG`."""

    DEFAULT_CONFIG: dict[str, Any]

    def __call__(self, **config: Any) -> T_co:  # noqa: ANN401  (the library's own signature)
        """Connect."""
        ...


class Outage:
    """A stretch of time in which the broker does not answer: what is said, and how long it may be.

    `seen` at every sign of it, `over` at every sign of life; both are cheap to repeat.
    """

    def __init__(
        self,
        kafka: Kafka,
        logger: FilteringBoundLogger,
        clock: Callable[[], float] = time.monotonic,
        stopping: threading.Event | None = None,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self._kafka = kafka
        self._alive = alive
        self._logger = logger
        self._clock = clock
        self._stopping = stopping or threading.Event()
        self._since: float | None = None

    def seen(self, cause: object) -> None:
        """Note a sign of the outage; the first one is logged.

        Raises:
            Unavailable: it has lasted longer than `kafka.give_up_after`, or the process is told to
                stop meanwhile.
        """
        now = self._clock()
        address = self._kafka.bootstrap_servers
        if self._since is None:
            self._since = now
            self._logger.warning(
                "kafka does not answer; trying again with back-off",
                bootstrap_servers=address,
                cause=str(cause),
                give_up_after_ms=self._kafka.give_up_after_ms or "never",
            )
        away_s = now - self._since
        if self._kafka.give_up_after_ms and away_s * 1_000 >= self._kafka.give_up_after_ms:
            raise Unavailable(
                f"no answer from Kafka at {address} for {away_s:.0f} s ({cause}); {LIKELY_CAUSES}"
            )
        if self._stopping.is_set():
            raise Unavailable(f"stopped while Kafka at {address} did not answer ({cause})")

    def over(self) -> None:
        """Note a sign of life."""
        if self._since is not None:
            self._logger.info(
                "kafka answers again",
                bootstrap_servers=self._kafka.bootstrap_servers,
                away_s=round(self._clock() - self._since, 1),
            )
            self._since = None

    def pause(self, seconds: float) -> None:
        """Sleep, but wake when the process is told to stop."""
        self._alive()
        self._stopping.wait(seconds)

    def ask(self, question: Callable[[], T]) -> T:
        """Call until the broker answers.

        Raises:
            Unavailable: as `seen`.
            TransportError: it answered no, which asking again will not change.
        """
        backoff_s = _FIRST_BACKOFF_S
        while True:
            try:
                answer = question()
            except KafkaError as error:
                if not error.retriable:
                    raise refusal(error) from error
                self.seen(error)
            else:
                self.over()
                return answer
            self.pause(backoff_s)
            backoff_s = min(2 * backoff_s, _LAST_BACKOFF_S)


def client_settings(kafka: Kafka) -> dict[str, Any]:
    """What every client of the library is given: address and security, as the settings have it.

    Raises:
        ConfigError: a file of TLS cannot be used.
    """
    passed_on = {
        name: value.get_secret_value() if hasattr(value, "get_secret_value") else value
        for name in Kafka.model_fields
        if name.startswith(("security_protocol", "sasl_"))
        and (value := getattr(kafka, name)) is not None
    }
    return {
        "bootstrap_servers": [s.strip() for s in kafka.bootstrap_servers.split(",")],
        "bootstrap_timeout_ms": min(
            _BOOTSTRAP_TIMEOUT_MS, kafka.give_up_after_ms or _BOOTSTRAP_TIMEOUT_MS
        ),
        "reconnect_backoff_max_ms": 1_000,
        "request_timeout_ms": 15_000,
        "ssl_context": tls_context(kafka),
        **passed_on,
    }


def open_client(client: ClientClass[T], config: dict[str, Any]) -> T:
    """Construct a client; on failure leave nothing behind and name the cause.

    Names in `config` that this class of client does not know are left out.

    Raises:
        KafkaError: with the cause found in the client's log where its own error hides it.
        TransportError: credentials or certificate were refused.
    """
    networks: list[KafkaNetClient] = []

    def network(**settings: Any) -> KafkaNetClient:  # noqa: ANN401  (the library's own signature)
        networks.append(KafkaNetClient(**settings))
        _deliver_last_words(networks[-1]._manager)  # noqa: SLF001  (no public word for it)
        return networks[-1]

    known = {name: value for name, value in config.items() if name in client.DEFAULT_CONFIG}
    with Causes(known) as causes:
        try:
            return _within(_OPEN_TIMEOUT_S, lambda: client(**known, kafka_client=network))
        except KafkaError as error:
            for left_behind in networks:
                left_behind.close()
            raise causes.explain(error) from error


def _within(seconds: float, opening: Callable[[], T]) -> T:
    """Run a constructor in a thread: a TLS handshake that gets no answer has no time-out."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(opening())
        except Exception as error:  # noqa: BLE001  (handed to the caller's thread)
            outcome.set_exception(error)

    threading.Thread(target=run, name="kafka-open", daemon=True).start()
    try:
        return outcome.result(seconds)
    except TimeoutError:
        raise KafkaTimeoutError(f"no connection within {seconds} s") from None


def _deliver_last_words(manager: Any) -> None:  # noqa: ANN401  (the library has no types)
    """Have every connection of a client hand on what it read before the end of the stream.

    The client (3.0.12) reads until nothing is left; where that is the end, it drops what it has.
    Here the end waits for the next look at the socket, which finds it again.
    """
    build = manager._build_transport  # noqa: SLF001  (no public word for it)

    async def build_mended(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  (as above)
        transport = await build(*args, **kwargs)
        receive = transport._sock_recv  # noqa: SLF001  (as above)

        def receive_all() -> tuple[bytes, Exception | None]:
            data, error = receive()
            return data, None if data else error

        transport._sock_recv = receive_all  # noqa: SLF001  (as above)
        return transport

    manager._build_transport = build_mended  # noqa: SLF001  (as above)
