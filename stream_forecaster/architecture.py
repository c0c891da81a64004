"""The numbers that the network is built by, and that those who speak with it go by.

They are apart from the network, so that a process without one need not load torch.
"""

from statistics import NormalDist

LEVELS = (0.025, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.975)
CANDIDATES = (
    "last_value",
    "ma_3",
    "moving_average",
    "ewma_fast",
    "ewma_medium",
    "ewma_slow",
    "seasonal_day",
    "seasonal_week",
    "day_type_fast",
    "day_type_slow",
    "ridge",
    "population",
)
"""Experts whose paths the decoder sees; one that a resolution lacks is masked."""
PATCH = 4
"""Buckets that the encoder reads at a time."""
CHANNELS = 3
"""Value, is it there, landed one-step error."""
STATISTICS = 14
CLUES = 12
"""Numbers known of every step beside the experts' paths and their landed losses."""
BUCKETS = 8
"""Horizon buckets of the gate: steps 1, 2, 3-4, 5-8, ... 65 and more."""
STATE = 32
EMBEDDED, HIDDEN, WIDTH = 32, 48, 48
"""What a patch becomes, the LSTM's own state, and a step in the decoder."""
BOUND = 3.0
"""The most that a correction amounts to, in expected errors."""
LARGEST_LOGIT = 30.0
ONE_WIDE = 0.5413
"""What has a softplus of one: a gap between quantiles is the normal one's at zero."""
PATHS = ("absolute", "residual")
"""What the decoder says beside quantiles, in the order of their weights in the fusion."""
NORMAL = [NormalDist().inv_cdf(level) * 1.2533 for level in LEVELS]
"""Quantiles of a normal distribution whose mean absolute value is one: where the widths begin."""


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


ENCODER: dict[str, tuple[int, ...]] = {
    **_linear("embed", PATCH * CHANNELS, EMBEDDED),
    "lstm.weight_ih_l0": (4 * HIDDEN, EMBEDDED),
    "lstm.weight_hh_l0": (4 * HIDDEN, HIDDEN),
    "lstm.bias_ih_l0": (4 * HIDDEN,),
    "lstm.bias_hh_l0": (4 * HIDDEN,),
    **_linear("state", HIDDEN + STATISTICS, STATE),
}
"""Shapes of an encoder's parameters by name."""
DECODER: dict[str, tuple[int, ...]] = {
    "relation": (3, BUCKETS),
    **_linear("gate", STATE, BUCKETS),
    **_linear("value", STATE, WIDTH),
    **_linear("step", 2 * len(CANDIDATES) + CLUES, WIDTH),
    **_linear("mix", WIDTH, WIDTH),
    **_linear("out", WIDTH, len(CANDIDATES) + 3 + len(LEVELS)),
}
"""Shapes of a decoder's parameters by name."""
