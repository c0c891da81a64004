"""What a forecast costs: microseconds per key and hop, on one core, beside a bare LSTM.

    python benchmarks/cost.py [--keys 1024] [--hops 60] [--rounds 3] [--json FILE]

One key and hop is all that a published message takes at the default resolutions: close the minute's
bucket, and once an hour the hour's; score what landed, learn, forecast every one of the next thirty
minutes, agree with hours and days, and give out all 61 steps, mean and quantiles, for every key.
It is timed with the pool alone; with the network trained, but asked for one key in eight only, the
most active and others in turn (`model.network_keys`); the same with one lesson in eight as well
(`model.train_every_hops`); with the network asked for every key, but never trained; and as it is by
default, training included. The bare LSTM is `torch.nn.LSTM` with the
network's hidden size over a window of the same length, one bucket a step: what anyone pays who does
nothing else. All rows are taken in turn, round by round, in one process; the median is printed.
"""

import time
from functools import partial

import numpy as np
import torch

from benchmarks.measure.figures import Bound, Ratio, Report, Row, parser
from benchmarks.measure.turns import median, take_turns
from stream_forecaster.calendar import Calendar
from stream_forecaster.config import Settings
from stream_forecaster.keys import KeyTable
from stream_forecaster.pace import Pace
from stream_forecaster.scales import Scales
from stream_forecaster.shard import learner_for

_START_MS = 1_767_571_200_000  # 2026-01-05, a Monday
_WARM_UP_HOPS = 125
"""Two hours have closed then, and speak for themselves."""
_HIDDEN = 48

_BARE = "bare LSTM"
_ONE_IN = 8
"""One key in so many is forecast by the network where it is metered, and one lesson taken."""

_MUST = {"network, trained": Bound(most=60.0), "network and lessons, metered": Bound(most=15.0)}

DEFAULTS = Settings()


class Worker:
    """One way to forecast, with keys that have been there for a while."""

    def __init__(
        self,
        pace: Pace | None,
        keys: int,
        *,
        network_keys: int = 0,
        settings: Settings = DEFAULTS,
        warm_up: int = _WARM_UP_HOPS,
    ) -> None:
        """Forecast for some hops, so that all keys have a history.

        Args:
            pace: at which the network learns; None: there is none.
            keys: how many.
            network_keys: how many of them the network forecasts at a hop; 0: all.
            settings: all others.
            warm_up: how many hops.
        """
        model = settings.model.model_copy(update={"network_keys": network_keys})
        settings = settings.model_copy(update={"model": model})
        table = KeyTable()
        learner = learner_for(settings, 0, pace=pace) if pace else None
        self._scales = Scales(table, Calendar("UTC"), settings, learner)
        self._scales.begin(_START_MS)
        names = [b"%d" % key for key in range(keys)]
        self._slots = table.intern(names, np.full(keys, _START_MS))
        self._rng, self._minute = np.random.default_rng(0), 0
        self.run(warm_up)

    def run(self, hops: int) -> float:
        """CPU seconds spent in closing buckets and forecasting every key, so many hops."""
        spent_s = 0.0
        for _ in range(hops):
            now_ms = _START_MS + 60_000 * self._minute
            value = self._rng.poisson(2.0, len(self._slots)).astype(np.float64)
            self._scales.absorb(self._slots, np.full(len(self._slots), now_ms, np.int64), value)
            self._minute += 1
            hop_ms, begin_s = now_ms + 60_000, time.process_time()
            for _ in self._scales.close(hop_ms):
                pass
            for issued in self._scales.issue(hop_ms):
                issued.paths(self._slots[issued.rows])
            spent_s += time.process_time() - begin_s
        return spent_s


def bare_lstm_s(keys: int, hops: int) -> float:
    """CPU seconds for so many forward passes of nothing but an LSTM."""
    lstm = torch.nn.LSTM(1, _HIDDEN, batch_first=True)
    window = torch.randn(keys, Settings().resolutions[0].context, 1)
    begin_s = time.process_time()
    with torch.inference_mode():
        for _ in range(hops):
            lstm(window)
    return time.process_time() - begin_s


_DOES = {
    "pool": "the experts, fusion, calibration and agreement; no network",
    "network, metered": "and the network for one key in eight, trained",
    "network and lessons, metered": "and the network for one key in eight, trained as rarely",
    "network": "and the network for every key, never trained",
    "network, trained": "and the network for every key, trained: the defaults",
    _BARE: "a forward pass of torch's LSTM of the network's hidden size over a window of the same "
    "length, a bucket a step: no score, no quantiles, nothing learned",
}


def main() -> None:
    """Time all in turn."""
    asked = parser(__doc__, rounds=3)
    asked.add_argument("--keys", type=int, default=1024)
    asked.add_argument("--hops", type=int, default=60)
    options = asked.parse_args()
    torch.set_num_threads(1)
    keys, hops, few = options.keys, options.hops, max(1, options.keys // _ONE_IN)
    workers = {
        "pool": Worker(None, keys),
        "network, metered": Worker(Pace(), keys, network_keys=few),
        "network and lessons, metered": Worker(
            Pace(every=_ONE_IN * Pace().every), keys, network_keys=few
        ),
        "network": Worker(Pace(repeat=0), keys),
        "network, trained": Worker(Pace(), keys),
    }
    contenders = {name: partial(worker.run, hops) for name, worker in workers.items()}
    taken = take_turns({**contenders, _BARE: partial(bare_lstm_s, keys, hops)}, options.rounds)
    us = {name: 1e6 * median(seconds) / hops / keys for name, seconds in taken.items()}
    rows = [
        Row(
            name,
            cost,
            "us of CPU per key and hop",
            f"{keys:,} keys, one minute's hop, 61 steps with quantiles",
            _DOES[name],
            must=_MUST.get(name),
            ratios=() if name == _BARE else (Ratio(cost / us[_BARE], f"x {_BARE}"),),
            ours=name != _BARE,
        )
        for name, cost in us.items()
    ]
    Report("hop", rows, taken).finish(options)


if __name__ == "__main__":
    main()
