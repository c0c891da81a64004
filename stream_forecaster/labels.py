"""What forecasters are called where people read of them, and in which order they stand there."""

from stream_forecaster.lstm import ABSOLUTE, RESIDUAL
from stream_forecaster.scoring import NAIVE, POOL, PUBLISHED, Score

_COMPARED = {
    NAIVE: "last value",
    "ma_3": "MA(3)",
    "ewma_fast": "EWMA, fast",
    "ewma_medium": "EWMA, medium",
    "ewma_slow": "EWMA, slow",
    "seasonal_naive_day": "seasonal naive day",
    "seasonal_naive_week": "seasonal naive week",
    "dlinear": "DLinear online",
    POOL: "pool",
    PUBLISHED: "pool + network",
}
_EXPERTS = {
    "moving_average": "moving average",
    "seasonal_day": "same time of day",
    "seasonal_week": "same time of week",
    "day_type_fast": "type of day and hour",
    "day_type_slow": "type of day and hour, slow",
    "population": "population",
    "ridge": "ridge",
    "ridge_long": "ridge, long lags",
    "ridge_key": "ridge, per key",
    "day_type_fast_ridge": "type of day and hour, and ridge",
    "day_type_slow_ridge": "the same, slow",
    "seasonal_week_ridge": "same time of week, and ridge",
    ABSOLUTE: "LSTM",
    RESIDUAL: "LSTM on the pool",
}


def label(forecaster: str) -> str:
    """A forecaster's name as people write it.

    >>> label("ma_3"), label("river_HoltWinters")
    ('MA(3)', 'river HoltWinters')
    """
    return (_COMPARED | _EXPERTS).get(forecaster, forecaster.replace("_", " "))


def rows(score: Score, *, experts: bool) -> dict[str, str]:
    """Forecaster -> label of those who have had an opinion, in the order in which they stand.

    Args:
        score: whose forecasters.
        experts: with all that have a weight in the pool, below those that it is compared with.
    """
    spoke = [name for name, n in zip(score.forecasters, score.spoken.sum(axis=1), strict=True) if n]
    shown = {name: label for name, label in _COMPARED.items() if name in spoke}
    if ABSOLUTE not in score.forecasters:
        # Nothing but the pool is published: one row says it.
        shown.pop(POOL, None)
        shown = {
            name: _COMPARED[POOL] if name == PUBLISHED else said for name, said in shown.items()
        }
    if experts:
        others = [name for name in _EXPERTS if name in spoke]
        others += [name for name in spoke if name not in _COMPARED | _EXPERTS]
        shown |= {name: label(name) for name in others}
    return shown
