"""Connections that fail, request by request: on the embedded broker and before Apache Kafka.

A request may wait, never be processed, or be processed and not be answered, and its connection may
close. On the embedded broker that is done by its hooks; Apache Kafka stands behind a proxy, under
whose address it is known to its clients.
"""

import asyncio
import random
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from brokers import ApacheKafka, Served, free_port
from kafka.protocol.api_key import ApiKey

from stream_forecaster.edge.broker import Broker, Delay, Fault, Message

REQUESTS = (
    "Produce",
    "Fetch",
    "ListOffsets",
    "Metadata",
    "OffsetFetch",
    "FindCoordinator",
    "JoinGroup",
    "Heartbeat",
    "SyncGroup",
    "InitProducerId",
    "AddPartitionsToTxn",
    "AddOffsetsToTxn",
    "EndTxn",
    "TxnOffsetCommit",
)
"""All that workers ask for."""
_LONGEST_DELAY_S = 1.0
_ANSWER_WITHIN_S = 0.05
"""How long after a request its answer is lost, if it is to be."""
_NEVER_S = 1e6
"""Until forecasts are compacted: all of them are to be counted."""
_LENGTH = struct.Struct(">i")
_API = struct.Struct(">h")


class Faults:
    """Draws faults for requests.

    Attributes:
        probability: of each request in `REQUESTS`.
        drawn: how many, by request.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.probability = 0.0
        self.drawn: Counter[str] = Counter()

    def draw(self, request: str) -> Fault | Delay | None:
        """What is to befall a request."""
        if request not in REQUESTS or self._random.random() >= self.probability:
            return None
        self.drawn[request] += 1
        fault = self._random.choice([*Fault, None])
        return fault or Delay(self.wait_s(_LONGEST_DELAY_S))

    def wait_s(self, longest_s: float) -> float:
        """How long something takes, at most so long."""
        return self._random.random() * longest_s

    def hook(self, broker: Broker) -> None:
        """Let them befall an embedded broker's requests."""
        for request in REQUESTS:
            broker.hooks[request] = self._hook(request)

    def _hook(self, request: str) -> Callable[[Message], Fault | Delay | None]:
        return lambda _: self.draw(request)


class Proxy:
    """Stands before a broker on the loopback interface, and lets faults befall its requests."""

    def __init__(self, port: int, faults: Faults) -> None:
        """Listen on `port`; requests pass once it is known where `to`."""
        self._port, self._faults, self._to = port, faults, 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._connections: set[asyncio.Task[None]] = set()

    def start(self, to: int) -> Self:
        """Pass requests on to the port `to`."""
        self._to = to
        self._thread.start()
        serving = asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._server = asyncio.run_coroutine_threadsafe(serving, self._loop).result()
        return self

    def stop(self) -> None:
        """Hang up everywhere."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        writers = [back]
        try:
            broker, forth = await asyncio.open_connection("127.0.0.1", self._to)
            writers.append(forth)
            ways = [
                asyncio.ensure_future(self._requests(client, forth)),
                asyncio.ensure_future(_answers(broker, back)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            pass  # the broker is away: hang up, as it would
        finally:
            self._connections.discard(task)
            for writer in writers:
                writer.transport.abort()

    async def _requests(self, client: asyncio.StreamReader, forth: asyncio.StreamWriter) -> None:
        while True:
            length = await client.readexactly(_LENGTH.size)
            frame = await client.readexactly(_LENGTH.unpack(length)[0])
            match self._faults.draw(_name(frame)):
                case Fault.DROP:
                    continue
                case Fault.CLOSE:
                    return
                case Fault.LOSE_ANSWER:
                    forth.write(length + frame)
                    await forth.drain()
                    await asyncio.sleep(self._faults.wait_s(_ANSWER_WITHIN_S))
                    return
                case Delay(seconds):
                    await asyncio.sleep(seconds)
            forth.write(length + frame)
            await forth.drain()


_UNHURRIED = "transaction.abort.timed.out.transaction.cleanup.interval.ms=10000\n"
"""As Kafka ships. A node that has just started, and is still fenced, knows no leader of its own
partitions. Transactions that time out in that second are said to be rolled back, but no marker is
written: what they wrote stands before all readers for ever, or is committed with what their
producer writes next ("Couldn't find leader endpoint for partitions" in Kafka 4.3.1's log). By then
the node is let in."""


@contextmanager
def served(home: Path | None, directory: Path, faults: Faults) -> Iterator[Served]:
    """Apache Kafka behind a proxy, or the embedded broker with hooks: requests can fail on both."""
    if home is None:
        with Broker(clean_interval_s=_NEVER_S) as broker:
            faults.hook(broker)
            yield broker
        return
    (directory / "kafka").mkdir()
    port = free_port()
    known_as = f"advertised.listeners=PLAINTEXT://127.0.0.1:{port}\n"
    kafka = ApacheKafka(home, directory / "kafka", known_as + _UNHURRIED)
    proxy = Proxy(port, faults).start(to=int(kafka.bootstrap.rpartition(":")[2]))
    try:
        yield kafka.start()
    finally:
        kafka.stop()
        proxy.stop()


async def _answers(broker: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
    while data := await broker.read(1 << 16):
        back.write(data)
        await back.drain()


def _name(frame: bytes) -> str:
    try:
        return str(ApiKey(_API.unpack_from(frame)[0]).name)
    except ValueError:
        return ""
