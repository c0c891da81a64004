"""Default messages without a pipeline: three resolutions, 61 steps, numbers drawn at random."""

import numpy as np

from stream_forecaster.config import Settings, parse
from stream_forecaster.forecasts import Encoder, Forecast, Intent
from stream_forecaster.lstm import ABSOLUTE
from stream_forecaster.paths import Paths
from stream_forecaster.records import Message

_EXPERTS = (
    "naive",
    "seasonal_naive",
    "ewma_fast",
    "ewma_slow",
    "moving_average",
    "trend",
    ABSOLUTE,
)
_ISSUED_MS = 1_767_312_000_000


def drawn_forecast(settings: Settings, keys: int) -> Forecast:
    """A hop of so many keys."""
    rng = np.random.default_rng(0)
    levels = len(settings.output.quantiles)
    paths = tuple(
        Paths(
            r.step_ms,
            _ISSUED_MS,
            _ISSUED_MS + r.horizon * r.step_ms,
            rng.gamma(2.0, 3.0, (keys, r.horizon)),
            np.sort(rng.gamma(2.0, 3.0, (keys, r.horizon, levels)), axis=2),
            rng.gamma(2.0, 3.0, keys),
            rng.gamma(2.0, 3.0, keys),
            rng.dirichlet(np.full(len(_EXPERTS), 0.3), keys),
            _EXPERTS,
        )
        for r in settings.resolutions
    )
    none = np.zeros(keys, np.bool_)
    return Forecast(
        0,
        1_234,
        _ISSUED_MS,
        (),
        tuple(b"u%06d" % i for i in range(keys)),
        paths,
        Intent(*rng.gamma(2.0, 3.0, (4, keys))),
        rng.integers(0, 10_000, keys),
        none,
        none,
        rng.random(keys),
        rng.random(keys),
        drifting=False,
    )


def forecast_messages(topic: str, keys: int) -> list[Message]:
    """The messages of that hop."""
    settings = parse({"output": {"topic": topic}})
    return list(Encoder(settings).forecast(drawn_forecast(settings, keys)))
