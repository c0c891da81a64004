"""What people who look at the page cost: events per CPU-second with nobody there, and with five.

    python benchmarks/viewers.py [--events 300000] [--keys 1000] [--viewers 5] [--rate 50000]

The real service reads a log in memory, in one process with its HTTP server, and viewers in
processes of their own read streams: each the overview, the list of keys, and a key that nobody else
looks at. First as fast as it can, then so many events a second. With and without viewers are taken
in turn, round by round; the medians are printed, as CPU-seconds of the whole process, so that it
matters little what else the machine does. The network is left out: it would make everything else
dearer, and viewers look small.
"""

import subprocess
import sys
import time
from argparse import Namespace
from contextlib import closing
from functools import partial

import structlog
from prometheus_client import CollectorRegistry

from benchmarks.measure.figures import Bound, Report, Row, parser
from benchmarks.measure.turns import median, take_turns
from stream_forecaster.config import Http, parse
from stream_forecaster.edge.http import HttpServer
from stream_forecaster.edge.memory import MemoryLog, MemoryRecord, MemoryStore, MemoryTransport
from stream_forecaster.edge.telemetry import Telemetry
from stream_forecaster.edge.viewers import Viewers, key_id
from stream_forecaster.edge.world import World
from stream_forecaster.service import Service

_START_MS = 1_767_571_200_000  # 2026-01-05, a Monday
_SPAN_MS = 30 * 60_000
_PER_POLL = 5_000
_TURN_S = 0.05
"""Between two polls under a fixed load."""
_MUST = Bound(most=2.0)
_READ = """
import sys, time, urllib.request
stream, size = urllib.request.urlopen(sys.argv[1]), 0
print(flush=True)
while data := stream.read1(1 << 16):
    size += len(data)
"""


def events(count: int, keys: int) -> list[MemoryRecord]:
    """Half an hour of events of so many keys."""
    found = []
    for i in range(count):
        time_ms = _START_MS + i * _SPAN_MS // count
        value = b'{"user_id":"user-%06d","ts":%d,"type":"view"}' % (i * 7_919 % keys, time_ms)
        found.append(MemoryRecord(None, value, time_ms))
    return found


def spent_s(records: list[MemoryRecord], viewers: int, rate: int = 0) -> tuple[float, float]:
    """CPU-seconds of this process and seconds by the wall, to read all with so many viewers.

    Args:
        records: the log.
        viewers: how many.
        rate: events a second; 0: as fast as it can.
    """
    per_poll = round(rate * _TURN_S) or _PER_POLL
    log, box = MemoryLog({0: records}), Viewers()
    settings = parse({"model": {"network": False}, "kafka": {"commit_interval": "0s"}})
    telemetry = Telemetry(CollectorRegistry())
    world = World(
        MemoryTransport(log, lambda: per_poll),
        MemoryStore(log),
        telemetry,
        structlog.wrap_logger(structlog.ReturnLogger()),
        wall_ms=lambda: _START_MS + _SPAN_MS,
        viewers=box,
    )
    with closing(HttpServer(Http(port=0), telemetry.exposition, box)) as server:
        service, readers = Service(settings, world), []
        for i in range(viewers):
            key = key_id(b"user-%06d" % i)
            url = f"http://127.0.0.1:{server.port}/api/stream?order=active&key={key}"
            reader = subprocess.Popen([sys.executable, "-c", _READ, url], stdout=subprocess.PIPE)
            assert reader.stdout is not None
            reader.stdout.readline()
            readers.append(reader)
        begin_s, wall_s = time.process_time(), time.monotonic()
        turns = 0
        while not log.drained:
            service.step()
            turns += 1
            if rate:
                time.sleep(max(0.0, wall_s + turns * _TURN_S - time.monotonic()))
        spent = time.process_time() - begin_s, time.monotonic() - wall_s
        for reader in readers:
            reader.kill()
            reader.communicate()
    return spent


def rows(case: str, taken: dict[str, list[tuple[float, float]]], options: Namespace) -> list[Row]:
    """What the events cost without and with viewers, and what each of these costs."""
    cpu_s = {name: median(cpu_s for cpu_s, _ in spent) for name, spent in taken.items()}
    alone_s, watched_s = cpu_s.values()
    wall_s = median(wall_s for _, wall_s in [*taken.values()][1])
    share = 100 * (watched_s - alone_s) / wall_s / options.viewers
    found = [
        Row(name, 1e6 * spent_s / options.events, "CPU-s per million events", case)
        for name, spent_s in cpu_s.items()
    ]
    return [*found, Row("each viewer", share, "% of a core", case, must=_MUST)]


def main() -> None:
    """Measure without and with viewers, at full speed and under a fixed load."""
    asked = parser(__doc__, rounds=3)
    asked.add_argument("--events", type=int, default=300_000)
    asked.add_argument("--keys", type=int, default=1_000)
    asked.add_argument("--viewers", type=int, default=5)
    asked.add_argument("--rate", type=int, default=50_000, help="of the second load, a second")
    options = asked.parse_args()
    records = events(options.events, options.keys)
    spent_s(records[:10_000], 0)  # compiles what is compiled
    found, runs = list[Row](), {}
    for case, rate in (("full speed", 0), (f"{options.rate:,} events/s", options.rate)):
        both = {f"{n} viewers": partial(spent_s, records, n, rate) for n in (0, options.viewers)}
        runs[case] = taken = take_turns(both, options.rounds)
        found += rows(case, taken, options)
    Report("viewers", found, runs).finish(options)


if __name__ == "__main__":
    main()
