"""How the cost of a hop grows: slopes of log cost against log size, and what partitions cost.

    python benchmarks/growth.py [--keys 2048,8192,32768] [--hops 6] [--rounds 3]

A hop is what `cost.py` times: close, score, learn, forecast every key, give out all steps. It is
timed in this process with the experts alone and with the network, trained, as it is by default; all
sizes take turns. Against keys a slope of 1 is linear; partitions share a fixed number of keys, so
there 0 is ideal; against resolutions and horizon anything up to 1 is no more than is asked for.
"""

import torch

from benchmarks.cost import DEFAULTS, Worker
from benchmarks.measure.figures import Bound, Report, Row, parser, say, spelled
from benchmarks.measure.turns import median, slope, take_turns
from stream_forecaster.config import Settings
from stream_forecaster.pace import Pace

_KEYS = 4_096
"""Where something else than the number of keys is changed."""
_WARM_UP_HOPS = 10
_PARTITIONS = (1, 2, 4, 8)
_RESOLUTIONS = (1, 2, 3)
_HORIZONS = (8, 15, 30, 60)
_MUST = {"keys": Bound(least=0.9, most=1.1)}
Costs = dict[int, float]


def workers(dimension: str, size: int, *, network: bool) -> list[Worker]:
    """What closes a hop at this size: one worker, or one for each partition."""
    keys, partitions, settings = _KEYS, 1, DEFAULTS
    if dimension == "keys":
        keys = size
    elif dimension == "partitions":
        keys, partitions = _KEYS // size, size
    else:
        settings = _changed(dimension, size)
    return [
        Worker(Pace() if network else None, keys, settings=settings, warm_up=_WARM_UP_HOPS)
        for _ in range(partitions)
    ]


def _changed(dimension: str, size: int) -> Settings:
    first, *others = DEFAULTS.resolutions
    if dimension == "resolutions":
        return DEFAULTS.model_copy(update={"resolutions": (first, *others)[:size]})
    context = max(first.context, 2 * size)
    first = first.model_copy(update={"horizon": size, "context": context})
    return DEFAULTS.model_copy(update={"resolutions": (first, *others)})


def costs(
    dimension: str, sizes: tuple[int, ...], hops: int, rounds: int, *, network: bool
) -> Costs:
    """Size -> CPU microseconds of a hop, the median of the rounds."""
    apart = {size: workers(dimension, size, network=network) for size in sizes}
    runs = {
        f"{dimension} = {size:,}": lambda part=part: sum(worker.run(hops) for worker in part)
        for size, part in apart.items()
    }
    taken = take_turns(runs, rounds)
    return {
        size: 1e6 * median(seconds) / hops
        for size, seconds in zip(sizes, taken.values(), strict=True)
    }


def row(dimension: str, forecaster: str, found: Costs) -> Row:
    """The slope, and the costs it is of."""
    also = ", ".join(f"{spelled(us / 1000)} ms at {size:,}" for size, us in found.items())
    return Row(
        f"{dimension}, {forecaster}",
        slope(found),
        "slope of log CPU of a hop",
        "growth",
        also=also,
        must=_MUST.get(dimension),
    )


def main() -> None:
    """Each dimension with both forecasters."""
    asked = parser(__doc__, rounds=3)
    asked.add_argument("--keys", default="2048,8192,32768")
    asked.add_argument("--hops", type=int, default=6, help="of each round")
    options = asked.parse_args()
    torch.set_num_threads(1)
    sizes = {
        "keys": tuple(map(int, options.keys.split(","))),
        "partitions": _PARTITIONS,
        "resolutions": _RESOLUTIONS,
        "horizon": _HORIZONS,
    }
    rows, curves = [], {}
    for dimension, tried in sizes.items():
        for forecaster in ("pool", "network"):
            say(f"{dimension}, {forecaster}")
            found = costs(
                dimension, tried, options.hops, options.rounds, network=forecaster == "network"
            )
            curves[f"{dimension}, {forecaster}"] = found
            rows.append(row(dimension, forecaster, found))
    Report("growth", rows, curves).finish(options)


if __name__ == "__main__":
    main()
