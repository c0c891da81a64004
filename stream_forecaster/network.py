"""The multi-scale LSTM: an encoder and a decoder per resolution, one page.

    window of resolution 0 ─▶ encoder 0 ─▶ state 0 ─┐
    window of resolution 1 ─▶ encoder 1 ─▶ state 1 ─┼─▶ gate per horizon bucket ─┐
    window of resolution 2 ─▶ encoder 2 ─▶ state 2 ─┘                            ├─▶ paths
    the experts' paths, the calendar, the level at every step of the horizon ────┘

Everything is said in units of the pool's expected error around the pool's path, so keys and scales
of any size look alike. Three answers at every step:

* `residual`: a bounded correction of the pool's path;
* `absolute`: a mean of its own, a softmax mixture of the experts' paths and an offset;
* `quantiles`: around the same mixture, ascending by construction.

Axes: B keys, R resolutions, T window, C channels, H horizon, M experts, Q quantiles, D state.

Source: LSTM, Hochreiter and Schmidhuber 1997; patches as in PatchTST, Nie et al. 2023; direct
multi-horizon quantiles as in MQ-RNN, Wen et al. 2017.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from stream_forecaster.architecture import (
    BOUND,
    BUCKETS,
    CANDIDATES,
    CHANNELS,
    CLUES,
    EMBEDDED,
    HIDDEN,
    LARGEST_LOGIT,
    LEVELS,
    NORMAL,
    ONE_WIDE,
    PATCH,
    STATE,
    STATISTICS,
    WIDTH,
)

_MIDDLE = LEVELS.index(0.5)


@dataclass(frozen=True, slots=True)
class Steps:
    """What the decoder is told of the steps of B keys, in expected errors around the pool's path.

    Attributes:
        candidates: (B, H, M) the experts' paths; NaN for no opinion.
        losses: (B, H, M) log of the experts' landed losses over that of the best.
        clues: (B, H, CLUES) calendar, level, width: see `inputs`.
        bucket: (H,) the gate's horizon bucket.
    """

    candidates: Tensor
    losses: Tensor
    clues: Tensor
    bucket: Tensor


@dataclass(frozen=True, slots=True)
class Answer:
    """What the decoder says, in expected errors around the pool's path."""

    residual: Tensor  # (B, H)
    absolute: Tensor  # (B, H)
    quantiles: Tensor  # (B, H, Q)


class Encoder(nn.Module):
    """One resolution's window into a state."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH * CHANNELS, EMBEDDED)
        self.lstm = nn.LSTM(EMBEDDED, HIDDEN, batch_first=True)
        self.state = nn.Linear(HIDDEN + STATISTICS, STATE)

    def forward(self, window: Tensor, statistics: Tensor) -> Tensor:
        """(B, T, C) and (B, STATISTICS) -> (B, D); T is a multiple of PATCH."""
        patches = window.reshape(len(window), -1, PATCH * CHANNELS)  # (B, T / PATCH, PATCH * C)
        _, (last, _) = self.lstm(functional.gelu(self.embed(patches)))  # (1, B, hidden)
        return torch.tanh(self.state(torch.cat([last[0], statistics], 1)))  # (B, D)


class Decoder(nn.Module):
    """All resolutions' states into one resolution's paths."""

    widths: Tensor  # (Q - 1, Q) the quantiles that a gap between two neighbours moves, and how far

    def __init__(self) -> None:
        super().__init__()
        m, q = len(CANDIDATES), len(LEVELS)
        self.gate = nn.Linear(STATE, BUCKETS)
        self.relation = nn.Parameter(torch.zeros(3, BUCKETS))  # finer, the same, coarser
        self.value = nn.Linear(STATE, WIDTH)
        self.step = nn.Linear(2 * m + CLUES, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, m + 1 + 3 + q - 1)
        self.register_buffer("widths", _widths(), persistent=False)
        nn.init.normal_(self.out.weight, std=0.02)
        nn.init.zeros_(self.out.bias)
        with torch.no_grad():
            self.out.bias[m] = 3.0  # begin by trusting the pool

    def forward(self, states: Tensor, relation: Tensor, steps: Steps) -> Answer:
        """States (B, R, D), NaN where a key has none; relation (R,) 0 finer, 1 own, 2 coarser."""
        m = len(CANDIDATES)
        absent = states[..., :1].isnan()  # (B, R, 1)
        states = states.nan_to_num()
        logits = (self.gate(states) + self.relation[relation]).masked_fill(absent, -1e9)
        shares = logits.softmax(1)  # (B, R, BUCKETS)
        context = torch.einsum("brg,brw->bgw", shares, self.value(states))  # (B, BUCKETS, W)
        known = ~steps.candidates.isnan()  # (B, H, M)
        paths = steps.candidates.nan_to_num()
        told = torch.cat([paths / 2, steps.losses, steps.clues], 2)  # (B, H, 2 M + CLUES)
        hidden = self.step(told)  # (B, H, W)
        # Not `index_select`, whose gradient is summed by CUDA in any order; here the same bits.
        hidden = functional.gelu(hidden.add_(context[:, steps.bucket]))
        hidden = functional.gelu(self.mix(hidden)).add_(hidden)
        mixture, offset, gaps = self.out(hidden).split([m + 1, 3, len(LEVELS) - 1], 2)
        # Softmax over them and the pool, whose own path is 0, in a third of its time.
        logits = mixture[..., :m] - mixture[..., m:]
        weight = logits.clamp(max=LARGEST_LOGIT).exp() * known  # (B, H, M)
        middle = (weight * paths).sum(2) / (weight.sum(2) + 1)  # (B, H)
        residual, absolute, median = (BOUND * torch.tanh(offset / BOUND)).unbind(2)
        spread = functional.softplus(gaps + ONE_WIDE) @ self.widths  # (B, H, Q); 1 at 0
        return Answer(residual, middle + absolute, spread.add_((middle + median)[..., None]))


class Network(nn.Module):
    """An encoder and a decoder for each of R resolutions."""

    def __init__(self, resolutions: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(Encoder() for _ in range(resolutions))
        self.decoders = nn.ModuleList(Decoder() for _ in range(resolutions))

    def encode(self, resolution: int, window: Tensor, statistics: Tensor) -> Tensor:
        """The state (B, D) of keys whose windows are (B, T, C)."""
        state: Tensor = self.encoders[resolution](window, statistics)
        return state

    def decode(self, resolution: int, states: Tensor, steps: Steps) -> Answer:
        """The paths that follow from the states (B, R, D)."""
        own = torch.arange(states.shape[1], device=states.device)
        relation = 1 + (own > resolution).long() - (own < resolution).long()
        answer: Answer = self.decoders[resolution](states, relation, steps)
        return answer


def _widths() -> Tensor:
    """Gaps (Q - 1) into distances from the median (Q,): a normal distribution's if all are 1."""
    gap, level = torch.arange(len(LEVELS) - 1)[:, None], torch.arange(len(LEVELS))
    above = (gap >= _MIDDLE) & (gap < level)
    below = (gap < _MIDDLE) & (gap >= level)
    return torch.tensor(NORMAL).diff()[:, None] * (above.float() - below.float())


def loss(answer: Answer, truth: Tensor) -> Tensor:
    """The mean loss of B keys (B,); truth (B, H) in expected errors, NaN where not landed.

    Pinball for the quantiles, Huber for the means: those are judged by squared errors, but one
    burst must not decide.
    """
    landed = ~truth.isnan()  # (B, H)
    truth = truth.nan_to_num()
    levels = torch.tensor(LEVELS, device=truth.device)
    miss = truth[..., None] - answer.quantiles
    pinball = 2 * torch.maximum(levels * miss, (levels - 1) * miss).mean(2)
    means = [
        functional.huber_loss(path, truth, reduction="none", delta=4.0)
        for path in (answer.residual, answer.absolute)
    ]
    total = pinball + 0.15 * (means[0] + means[1])
    mean: Tensor = (total * landed).sum(1) / landed.sum(1).clamp(min=1)
    return mean
