"""The broker's thread: sockets, framing, time, and the faults that tests plan.

Theory of operation
-------------------
One daemon thread runs one event loop; all state belongs to it, so nothing is locked. Each
connection is a task that reads a frame, answers it, and only then reads the next, as Kafka does:
answers keep the order of the requests. A ticking task expires members and transactions, and a
slower one applies retention and compaction.

A frame is read as its bytes arrive, so a length prefix that lies costs nothing; one beyond
`MAX_REQUEST_BYTES`, or bytes that do not decode, end that connection and no other.
"""

import asyncio
import ipaddress
import logging
import struct
import threading
import time
from collections import UserDict
from concurrent.futures import Future
from inspect import isawaitable
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast

from stream_forecaster.edge.broker.codes import Refused
from stream_forecaster.edge.broker.dispatch import Call, Dispatch, MalformedRequest
from stream_forecaster.edge.broker.faults import Delay, Fault, Hook, Message
from stream_forecaster.edge.broker.group_apis import GroupApis
from stream_forecaster.edge.broker.groups import Groups
from stream_forecaster.edge.broker.log_apis import Arrivals, LogApis
from stream_forecaster.edge.broker.topic_apis import TopicApis
from stream_forecaster.edge.broker.topics import Topics
from stream_forecaster.edge.broker.transaction_apis import TransactionApis
from stream_forecaster.edge.broker.transactions import Transactions

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

MAX_REQUEST_BYTES = 100 << 20  # Kafka's socket.request.max.bytes
_READ_AHEAD_BYTES = 1 << 20
_TICK_S = 0.02
_LENGTH = struct.Struct(">i")
_log = logging.getLogger(__name__)


class Broker:
    """A Kafka broker in one thread of this process, in memory, on the loopback interface.

    For the demo and for tests: what it holds is lost with the object. `stop` and `start` again
    are an outage: port, topics, records, offsets and open transactions are kept.

        with Broker() as broker:
            producer = KafkaProducer(bootstrap_servers=broker.bootstrap)

    Args:
        host: an address of the loopback interface; anything else is a ValueError.
        port: 0 takes a free one.
        partitions: of topics that are created without a number.
        initial_rebalance_delay_s: how long the first members of a group wait for others.
        clean_interval_s: how often retention and compaction are applied; Kafka's default, as old
            events that are replayed into a topic should not vanish under their reader.

    Attributes:
        hooks: faults by the name of the request, such as "EndTxn" (see `faults`).
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        partitions: int = 1,
        initial_rebalance_delay_s: float = 0.1,
        clean_interval_s: float = 300.0,
    ) -> None:
        if not ipaddress.ip_address(host).is_loopback:
            raise ValueError(f"the embedded broker serves the loopback interface only, not {host}")
        self._host, self._port = host, port
        self._clean_interval_s = clean_interval_s
        self._topics = Topics(partitions)
        self._groups = Groups(initial_rebalance_delay_s)
        self._transactions = Transactions(self._groups, _now_ms)
        self._arrivals = Arrivals()
        self._topic_apis = TopicApis(self._topics, self._groups)
        self._dispatch = Dispatch(
            self._topic_apis,
            LogApis(self._topics, self._transactions, self._arrivals, _now_ms),
            GroupApis(self._topics, self._groups, time.monotonic),
            TransactionApis(
                self._topics, self._groups, self._transactions, self._arrivals, time.monotonic
            ),
        )
        self.hooks: MutableMapping[str, Hook] = _Hooks(self._dispatch.names)
        self._connections: set[asyncio.Task[None]] = set()
        self._thread: threading.Thread | None = None
        self._request_stop: Callable[[], object] = _nothing

    @property
    def bootstrap(self) -> str:
        """The address for clients, `host:port`."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{host}:{self._port}"

    def start(self) -> Self:
        """Listen; returns when clients can connect.

        Raises:
            OSError: the port is taken.
        """
        if self._thread is not None:
            raise RuntimeError("the broker runs already")
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=asyncio.run, args=(self._serve(started),), name="embedded-broker", daemon=True
        )
        self._thread.start()
        try:
            started.result()
        except OSError:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Close every connection and stop listening; safe to call twice."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._request_stop()
            thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    async def _serve(self, started: "Future[None]") -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            server = await asyncio.start_server(
                self._connection, self._host, self._port, limit=_READ_AHEAD_BYTES
            )
        except OSError as error:
            started.set_exception(error)
            return
        self._port = server.sockets[0].getsockname()[1]
        self._topic_apis.address = (self._host, self._port)
        self._groups.renew_sessions(time.monotonic())
        self._request_stop = lambda: loop.call_soon_threadsafe(stop.set)
        started.set_result(None)
        chores = {asyncio.create_task(self._tick()), asyncio.create_task(self._clean())}
        await stop.wait()
        self._request_stop = _nothing
        # What was accepted a moment ago is still on its way to `_connection`: it is let in and
        # then hung up on, as a server that is closed first leaves its socket open.
        for listener in server.sockets:
            loop.remove_reader(listener.fileno())
        while len(asyncio.all_tasks()) > 1:
            for task in chores | self._connections:
                task.cancel()
            await asyncio.sleep(0)
        server.close()
        await asyncio.sleep(0)  # the transports close their sockets in this turn of the loop

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            now_s = time.monotonic()
            self._groups.tick(now_s)
            if self._transactions.tick(now_s):
                self._arrivals.announce()

    async def _clean(self) -> None:
        while True:
            await asyncio.sleep(self._clean_interval_s)
            for topic in self._topics.all():
                try:
                    topic.clean(_now_ms())
                except Refused as refused:
                    _log.warning("topic %s is not compacted: %s", topic.name, refused)
                await asyncio.sleep(0)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._connections.add(task)
        try:
            while True:
                answer = await self._answer(await _read_frame(reader))
                if answer is not None:
                    writer.write(answer)
                    await writer.drain()
        except MalformedRequest as error:
            _log.warning("closing a connection: %s", error)
        except (_HangUp, ConnectionError, asyncio.IncompleteReadError):
            pass  # a planned fault, or the client
        except asyncio.CancelledError:
            writer.transport.abort()  # the broker stops, and does not wait for slow readers
        except Exception:  # noqa: BLE001  # a mistake in one answer must not end the broker
            _log.exception("closing a connection")
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer(self, frame: bytes) -> bytes | None:
        """Answer one request; None when nothing is to be sent."""
        call = self._dispatch.decode(frame)
        if isinstance(call, bytes):
            return call
        hook = self.hooks.get(call.api.name)
        planned = hook(call.message) if hook else None
        match planned:
            case Fault.DROP:
                return None
            case Fault.CLOSE:
                raise _HangUp
            case Fault.LOSE_ANSWER:
                await _handle(call)
                raise _HangUp
            case Delay(seconds):
                await asyncio.sleep(seconds)
            case None:
                pass
            case _:
                return call.answer(planned)
        answer = await _handle(call)
        return None if answer is None else call.answer(answer)


class _HangUp(Exception):
    """A planned fault closes the connection."""


class _Hooks(UserDict[str, Hook]):
    """A dictionary that knows the names of the requests, as a misspelt hook would never fire."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        super().__init__()

    def __setitem__(self, name: str, hook: Hook) -> None:
        if name not in self._names:
            raise ValueError(f"no request is named {name!r}; there are {sorted(self._names)}")
        super().__setitem__(name, hook)


async def _read_frame(reader: asyncio.StreamReader) -> bytes:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if not 0 < length <= MAX_REQUEST_BYTES:
        raise MalformedRequest(f"a frame of {length} bytes")
    return await reader.readexactly(length)


async def _handle(call: Call) -> Message:
    answer = call.api.handle(call.message)
    return await answer if isawaitable(answer) else answer


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _nothing() -> None:
    """Stand in for a stop request while nothing runs."""
