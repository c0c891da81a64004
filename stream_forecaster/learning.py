"""Learning: the network of one shard, trained online on what its forecasts came to.

Theory of operation. Whenever a bucket closes and training is due, some keys are drawn and all that
the network is told of them is kept: a *sample*. Its labels land as the buckets close that it
forecast, step by step. Training draws from the samples that have labels, whole or in part; what has
not landed is masked. A new sample replaces a random one that is complete, so the samples are new,
recent and old ones.

The draws are seeded by (seed, partition, resolution, bucket): the same log gives the same network,
bit for bit on one kind of machine. Forecasts are made by the exponential average of the weights,
which moves slowly. `fit` and `pretrain` are the same learner at another pace.

Axes: N samples, R resolutions, H horizon; else as in `network`.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.random import fork_rng

from stream_forecaster import inference
from stream_forecaster.errors import ConfigError
from stream_forecaster.inputs import gate_bucket, window_length
from stream_forecaster.keys import nested, under
from stream_forecaster.network import Answer, Network, Steps, loss
from stream_forecaster.pace import Pace
from stream_forecaster.samples import EvenSamples, Samples, Told
from stream_forecaster.weights import Weights

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_CHUNK = 256
"""Rows that go through the network at once: what it thinks of them stays in the cache."""
_STEPS = 16
"""Steps of the horizon, drawn at random, that one training step looks at."""
_HARD = 3.0
"""A sample with a larger loss counts in proportion: noise has no lesson."""


class Learner:
    """The network of one shard, its average, and how both are trained.

    Attributes:
        samples: of each resolution.
        shares: (R, 2) with which weights the absolute and the residual path enter the fusion.
        steps: training steps taken.
        rate: of the next one.
        loss: of the last one.
        speaks: is the network asked for forecasts, or only taught?
        quiet: draw no samples for now.
    """

    def __init__(  # noqa: PLR0913  (one for each thing that is chosen)
        self,
        steps_ms: Sequence[int],
        contexts: Sequence[int],
        horizons: Sequence[int],
        weights: Weights | None,
        *,
        seed: Sequence[int],
        pace: Pace,
        device: str = "auto",
    ) -> None:
        """Begin with `weights`, or with random ones, which no one has reason to trust.

        Args:
            steps_ms: (R,) the resolutions' bucket widths.
            contexts: (R,) how many closed buckets they remember.
            horizons: (R,) how many they forecast.
            weights: to start from.
            seed: of all draws.
            pace: how much is learned, and how fast.
            device: "cpu", "cuda", or "auto".

        Raises:
            ConfigError: there is no such device.
        """
        torch.set_num_threads(1)  # one process per core; and the same bits whatever the machine
        self._seed, self._pace, self.speaks = tuple(seed), pace, pace.speaks
        self._device = chosen(device)
        with fork_rng(devices=[]):
            torch.manual_seed(sum(seed))
            self.network = Network(len(steps_ms)).to(self._device)
        self.shares = np.zeros((len(steps_ms), 2))
        if weights is not None:
            self._begin_with(weights, steps_ms)
        self.average = copy.deepcopy(self.network).requires_grad_(requires_grad=False)
        # Without a graphics processor these are the parameters themselves, not copies of them.
        self._encoders = [_parameters(part) for part in self.average.encoders]
        self._decoders = [_parameters(part) for part in self.average.decoders]
        self.rate, self._adam = pace.rate, _Adam(list(self.network.parameters()))
        lengths = [window_length(context) for context in contexts]
        kind = EvenSamples if pace.evenly else Samples
        self.samples = [kind.room(pace.capacity, lengths, horizon) for horizon in horizons]
        self.steps, self.loss = 0, float("nan")
        self.quiet = False

    # -- forecast --------------------------------------------------------------------------------

    def encode(self, resolution: int, window: Float32, statistics: Float32) -> Float32:
        """States (B, D) of windows (B, T, CHANNELS)."""
        if self._device.type == "cpu":
            return inference.encode(self._encoders[resolution], window, statistics)
        with torch.inference_mode():
            parts = [
                self.average.encode(
                    resolution, self._tensor(window[c]), self._tensor(statistics[c])
                )
                for c in _chunks(len(window))
            ]
        state: Float32 = torch.cat(parts).cpu().numpy()
        return state

    def answer(
        self, resolution: int, states: Float32, told: Mapping[str, Float32], ahead: Int64
    ) -> tuple[Float32, Float32, Float32]:
        """Absolute and residual path (B, H) and quantiles (B, H, Q), in expected errors.

        Args:
            resolution: which.
            states: (B, R, D), NaN where a key has none.
            told: candidates, losses and clues, (B, H, ...).
            ahead: (H,) steps ahead.
        """
        if self._device.type == "cpu":
            relation = 1 + np.sign(np.arange(states.shape[1]) - resolution)
            return inference.decode(
                self._decoders[resolution], relation, states, **told, bucket=gate_bucket(ahead)
            )
        with torch.inference_mode():
            parts = [
                self.average.decode(
                    resolution,
                    self._tensor(states[c]),
                    self._steps({name: array[c] for name, array in told.items()}, ahead),
                )
                for c in _chunks(len(states))
            ]
        return _joined(parts)

    # -- learn -----------------------------------------------------------------------------------

    def due(self, index: int, *, lifted: bool = False) -> bool:
        """Is it time to draw samples and train? `index` is the closed bucket's.

        `lifted`: after a drift it is so after every bucket, unless it never is.
        """
        every = self._pace.every
        return every > 0 and (lifted or index % every == 0) and not self.quiet

    def draw(self, resolution: int, index: int, live: Int64) -> Int64:
        """Slots to take samples of, drawn from `live`."""
        rng = self._rng(resolution, index, 0)
        return self.samples[resolution].choose(rng, live, self._pace.draw)

    def take(self, resolution: int, index: int, slots: Int64, since: Int64, told: Told) -> None:
        """Keep samples of `slots` (B,), whose first buckets are `since` (B,)."""
        rng = self._rng(resolution, index, 1)
        self.samples[resolution].add(rng, index, slots, since, told)

    def land(self, resolution: int, index: int, truth: Float64, since: Int64) -> None:
        """Bucket `index` has closed with `truth` (K,)."""
        self.samples[resolution].land(index, truth, since)

    def train(self, resolution: int, index: int) -> None:
        """Take the steps that are due on samples of one resolution, if any label has landed."""
        samples = self.samples[resolution]
        labelled = samples.labelled
        if not len(labelled):
            return
        rng = self._rng(resolution, index, 2)
        for _ in range(self._pace.repeat):
            self.study(resolution, samples, rng.permutation(labelled)[: self._pace.rows], rng)

    def study(
        self, resolution: int, samples: Samples, rows: Int64, rng: np.random.Generator
    ) -> None:
        """Take one step on `rows` of `samples`, and some steps of their horizon drawn by `rng`."""
        ahead = np.sort(rng.permutation(samples.arrays["truth"].shape[1])[:_STEPS]) + 1
        told = {name: array[rows] for name, array in samples.arrays.items()}
        for name in ("candidates", "losses", "clues", "truth"):
            told[name] = told[name][:, ahead - 1]
        answer = self._replay(self.network, resolution, told, ahead)
        each = loss(answer, self._tensor(told["truth"]))
        total = (each / (each.detach() / _HARD).clamp(min=1)).mean()
        self.network.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self._adam.step(self.rate)
        self.steps += 1
        # A young average follows faster, or it would remember what was before the first step.
        keep = min(self._pace.memory, self.steps / (self.steps + 50))
        with torch.no_grad():
            pairs = zip(self.average.parameters(), self.network.parameters(), strict=True)
            for slow, fast in pairs:
                slow.lerp_(fast, 1 - keep)
        self.loss = float(total.detach())

    def forget(self, slots: Int64) -> None:
        """Erase the samples of the keys in `slots`; what was learned from them stays."""
        for samples in self.samples:
            samples.forget(slots)

    def leave(self) -> None:
        """Leave the present log for another: no more labels land for its samples."""
        for samples in self.samples:
            samples.leave()

    def examine(
        self, resolution: int, samples: Samples
    ) -> tuple[Float32, Float32, Float32, Float32]:
        """What this network's average says to samples, and what was true.

        Absolute and residual path (N, H), quantiles (N, H, Q), truths (N, H) of those that have a
        label, all in expected errors; truths that did not land are NaN.
        """
        labelled, parts = samples.labelled, []
        with torch.inference_mode():
            for chunk in _chunks(len(labelled)):
                told = {name: array[labelled[chunk]] for name, array in samples.arrays.items()}
                ahead = np.arange(1, told["truth"].shape[1] + 1)
                parts.append(self._replay(self.average, resolution, told, ahead))
        return *_joined(parts), samples.arrays["truth"][labelled]

    # -- state -----------------------------------------------------------------------------------

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Weights, their average, the optimiser's moments and the samples."""
        return {
            "steps": np.array([self.steps]),
            **nested("network", _parameters(self.network)),
            **nested("average", _parameters(self.average)),
            **nested("adam", self._adam.arrays()),
            **{
                k: v
                for i, s in enumerate(self.samples)
                for k, v in nested(f"{i}", s.arrays).items()
            },
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take `arrays` back."""
        self.steps = int(arrays["steps"][0])
        for part, name in ((self.network, "network"), (self.average, "average")):
            _load(part, under(name, arrays))
        self._adam.restore(under("adam", arrays))
        for i, samples in enumerate(self.samples):
            found = under(f"{i}", arrays)
            for name, array in samples.arrays.items():
                array[:] = found[name]

    def parameters(self) -> dict[str, Float32]:
        """The average's parameters by name, as a file of weights keeps them."""
        return _parameters(self.average)

    def _begin_with(self, weights: Weights, steps_ms: Sequence[int]) -> None:
        for i, step_ms in enumerate(steps_ms):
            nearest = weights.nearest(step_ms)
            for kind in ("encoders", "decoders"):
                modules = getattr(self.network, kind)
                _load(modules[i], under(f"{kind}.{nearest}", weights.arrays))
            self.shares[i] = weights.shares[nearest]

    def _replay(
        self, network: Network, resolution: int, told: Mapping[str, NDArray[Any]], ahead: Int64
    ) -> Answer:
        """What `network` says to samples of which steps `ahead` (H,) are told."""
        present = self._tensor(told["present"])
        states = [
            network.encode(
                i, self._tensor(told[f"window.{i}"]), self._tensor(told["statistics"][:, i])
            )
            for i in range(present.shape[1])
        ]
        stacked = torch.stack(states, 1).masked_fill(~present[..., None], torch.nan)
        return network.decode(resolution, stacked, self._steps(told, ahead))

    def _steps(self, told: Mapping[str, NDArray[Any]], ahead: Int64) -> Steps:
        bucket = torch.from_numpy(gate_bucket(ahead)).to(self._device)
        candidates, losses, clues = (
            self._tensor(told[name]) for name in ("candidates", "losses", "clues")
        )
        return Steps(candidates, losses, clues, bucket)

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def _rng(self, *of: int) -> np.random.Generator:
        return np.random.default_rng([*self._seed, *of])


def chosen(device: str) -> torch.device:
    """What `model.device` means on this machine.

    Raises:
        ConfigError: CUDA is asked for, and torch does not find it.
    """
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise ConfigError(
            f'model.device = "cuda", but torch {torch.__version__} finds no CUDA device here; '
            '"auto" takes one where it is, "cpu" never'
        )
    return torch.device("cuda" if has_cuda and device != "cpu" else "cpu")


class _Adam:
    """What AdamW remembers of parameters that it moves.

    Its function, since making torch's object of the same name loads a compiler: 2 s and 70 MB.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._mean = [torch.zeros_like(p, requires_grad=False) for p in parameters]
        self._square = [torch.zeros_like(p, requires_grad=False) for p in parameters]
        self._steps = [torch.zeros(()) for _ in parameters]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move the parameters that have a gradient."""
        told = zip(self._parameters, self._mean, self._square, self._steps, strict=True)
        moved = [(p, p.grad, *moments) for p, *moments in told if p.grad is not None]
        parameters, gradients, means, squares, steps = (
            list(part) for part in zip(*moved, strict=True)
        )
        adamw(
            parameters,
            gradients,
            means,
            squares,
            [],
            steps,
            foreach=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.98,
            lr=rate,
            weight_decay=0.01,
            eps=1e-8,
            maximize=False,
        )

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Its memory, by parameter."""
        return {
            f"{name}.{i}": moment.cpu().numpy()
            for name, moments in self._moments().items()
            for i, moment in enumerate(moments)
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take `arrays` back."""
        for name, moments in self._moments().items():
            for i, moment in enumerate(moments):
                moment.copy_(torch.from_numpy(np.array(arrays[f"{name}.{i}"])))

    def _moments(self) -> dict[str, Sequence[Tensor]]:
        return {"mean": self._mean, "square": self._square, "steps": self._steps}


def _joined(parts: Sequence[Answer]) -> tuple[Float32, Float32, Float32]:
    absolute, residual, quantiles = (
        torch.cat([getattr(part, name) for part in parts]).cpu().numpy()
        for name in ("absolute", "residual", "quantiles")
    )
    return absolute, residual, quantiles


def _parameters(part: nn.Module) -> dict[str, Float32]:
    return {name: value.detach().cpu().numpy() for name, value in part.state_dict().items()}


def _load(part: nn.Module, arrays: Mapping[str, NDArray[Any]]) -> None:
    part.load_state_dict({name: torch.from_numpy(np.array(a)) for name, a in arrays.items()})


def _chunks(size: int) -> Iterator[slice]:
    return (slice(i, min(i + _CHUNK, size)) for i in range(0, max(size, 1), _CHUNK))
