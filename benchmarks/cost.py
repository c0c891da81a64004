"""What a forecast costs: microseconds per key and hop, on one core, beside a bare LSTM.

    python benchmarks/cost.py [--keys 1024] [--hops 60] [--rounds 3] [--json]

One key and hop is all that a published message takes at the default resolutions: close the minute's
bucket, and once an hour the hour's; score what landed, learn, forecast every one of the next thirty
minutes, agree with hours and days, and give out all 61 steps, mean and quantiles, for every key.
It is timed with the pool alone; with the network trained, but asked for one key in eight only, the
most active and others in turn (`model.network_keys`); with the network asked for every key, but
never trained; and as it is by default, training included. The bare LSTM is `torch.nn.LSTM` with the
network's hidden size over a window of the same length, one bucket a step: what anyone pays who does
nothing else. All rows are taken in turn, round by round, in one process; the median is printed.
"""

import argparse
import json
import statistics
import sys
import time

import numpy as np
import torch

from stream_forecaster.calendar import Calendar
from stream_forecaster.config import Settings
from stream_forecaster.keys import KeyTable
from stream_forecaster.pace import Pace
from stream_forecaster.scales import Scales
from stream_forecaster.shard import learner_for

_START_MS = 1_767_571_200_000  # 2026-01-05, a Monday
_WARM_UP_HOPS = 40
_HIDDEN = 48

_METERED = 8
"""One key in so many is forecast by the network where it is metered."""


class Worker:
    """One way to forecast, with keys that have been there for a while."""

    def __init__(self, pace: Pace | None, keys: int, *, network_keys: int = 0) -> None:
        settings = Settings.model_validate({"model": {"network_keys": network_keys}})
        table = KeyTable()
        learner = learner_for(settings, 0, pace=pace) if pace else None
        self._scales = Scales(table, Calendar("UTC"), settings, learner)
        self._scales.begin(_START_MS)
        names = [b"%d" % key for key in range(keys)]
        self._slots = table.intern(names, np.full(keys, _START_MS))
        self._rng, self._minute = np.random.default_rng(0), 0
        self.run(_WARM_UP_HOPS)

    def run(self, hops: int) -> float:
        """Seconds spent in closing buckets and forecasting every key, so many hops."""
        spent_s = 0.0
        for _ in range(hops):
            now_ms = _START_MS + 60_000 * self._minute
            value = self._rng.poisson(2.0, len(self._slots)).astype(np.float64)
            self._scales.absorb(self._slots, np.full(len(self._slots), now_ms, np.int64), value)
            self._minute += 1
            hop_ms, begin_s = now_ms + 60_000, time.perf_counter()
            for _ in self._scales.close(hop_ms):
                pass
            for issued in self._scales.issue(hop_ms):
                issued.paths(self._slots[issued.rows])
            spent_s += time.perf_counter() - begin_s
        return spent_s


def bare_lstm_s(keys: int, hops: int) -> float:
    """Seconds for so many forward passes of nothing but an LSTM."""
    lstm = torch.nn.LSTM(1, _HIDDEN, batch_first=True)
    window = torch.randn(keys, Settings().resolutions[0].context, 1)
    begin_s = time.perf_counter()
    with torch.inference_mode():
        for _ in range(hops):
            lstm(window)
    return time.perf_counter() - begin_s


def main() -> int:
    """Time all rows and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=int, default=1024)
    parser.add_argument("--hops", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keys = options.keys
    workers = {
        "pool": Worker(None, keys),
        "network, metered": Worker(Pace(), keys, network_keys=max(1, keys // _METERED)),
        "network": Worker(Pace(repeat=0), keys),
        "network, trained": Worker(Pace(), keys),
    }
    taken: dict[str, list[float]] = {name: [] for name in (*workers, "bare LSTM")}
    for turn in range(options.rounds):
        print(f"round {turn + 1} of {options.rounds}", file=sys.stderr)
        for name, worker in workers.items():
            taken[name].append(worker.run(options.hops))
        taken["bare LSTM"].append(bare_lstm_s(options.keys, options.hops))
    per_key = {
        name: round(1e6 * statistics.median(seconds) / options.hops / options.keys, 2)
        for name, seconds in taken.items()
    }
    if options.json:
        print(json.dumps({"keys": options.keys, "us_per_key_and_hop": per_key}))
        return 0
    print(f"{options.keys} keys, microseconds per key and hop:")
    for name, cost in per_key.items():
        print(f"  {name:<16}{cost:8.1f}{cost / per_key['bare LSTM']:8.2f} x the bare LSTM")
    return 0


if __name__ == "__main__":
    sys.exit(main())
