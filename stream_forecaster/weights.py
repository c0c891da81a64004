"""Weights of the network as a file: safetensors, with the architecture and the model card in it.

The modules in it belong to steps ("1m", "1h", "1d" in those that ship). A resolution begins with
the modules of the step nearest to its own, so any settings can start from any file of the same
architecture. Nothing is ever unpickled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_forecaster import architecture, archive
from stream_forecaster.errors import WeightsMismatch

ARCHITECTURE: dict[str, Any] = {
    "levels": list(architecture.LEVELS),
    "candidates": list(architecture.CANDIDATES),
    "patch": architecture.PATCH,
    "channels": architecture.CHANNELS,
    "statistics": architecture.STATISTICS,
    "clues": architecture.CLUES,
    "buckets": architecture.BUCKETS,
    "state": architecture.STATE,
    "paths": list(architecture.PATHS),
}


@dataclass(frozen=True, slots=True)
class Weights:
    """What a network starts from.

    Attributes:
        steps_ms: (S,) the bucket widths that the modules were trained at.
        arrays: parameters by name, as `Network(S).state_dict()` has them.
        shares: (S, 2) the weights with which the absolute and the residual path enter the fusion.
        card: data, time, limits, scores.
    """

    steps_ms: tuple[int, ...]
    arrays: Mapping[str, NDArray[np.float32]]
    shares: NDArray[np.float64]
    card: Mapping[str, Any]

    def nearest(self, step_ms: int) -> int:
        """Which of the S modules a resolution of `step_ms` begins with."""
        return int(np.argmin(np.abs(np.log(np.array(self.steps_ms) / step_ms))))

    def header(self) -> dict[str, Any]:
        """What the file says besides parameters, as JSON has it."""
        return {
            "architecture": ARCHITECTURE,
            "steps_ms": self.steps_ms,
            "shares": self.shares.tolist(),
            "card": self.card,
        }

    def encode(self) -> bytes:
        """The file."""
        return bytes(archive.pack(self.header(), self.arrays))


def decode(data: bytes, name: str) -> Weights:
    """The weights in `data`.

    Raises:
        WeightsMismatch: no weights of ours, or of another architecture: says what differs.
    """
    try:
        header, arrays = archive.unpack(data)
        theirs = dict(header["architecture"])
        own = {name: array.copy() for name, array in arrays.items()}
        found = Weights(tuple(header["steps_ms"]), own, np.array(header["shares"]), header["card"])
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsMismatch(f"{name}: not a file of network weights ({error})") from None
    theirs |= {"shares": found.shares.shape} | {name: a.shape for name, a in arrays.items()}
    ours = ARCHITECTURE | _shapes(len(found.steps_ms))
    differing = [
        f"{part} is {theirs.get(part)!r} there and {ours.get(part)!r} here"
        for part in sorted(theirs.keys() | ours.keys())
        if theirs.get(part) != ours.get(part)
    ]
    if differing:
        raise WeightsMismatch(
            f"{name}: weights of another architecture: {'; '.join(differing)}. Make new ones with "
            "`stream-forecaster pretrain`, or use those that ship (an empty model.weights)."
        )
    return found


def _shapes(steps: int) -> dict[str, tuple[int, ...]]:
    """What a file of modules for so many steps must hold."""
    modules = {"encoders": architecture.ENCODER, "decoders": architecture.DECODER}
    parameters = {
        f"{kind}.{i}.{name}": shape
        for kind, shapes in modules.items()
        for i in range(steps)
        for name, shape in shapes.items()
    }
    return {"shares": (steps, 2)} | parameters


def untrained(steps_ms: Sequence[int], seed: int) -> Weights:
    """Random weights, which no one has reason to trust: their paths enter the fusion at zero.

    Args:
        steps_ms: (S,) the bucket widths to have modules for.
        seed: of the draw.
    """
    import torch  # noqa: PLC0415  (takes seconds to load, and those who read weights need not)
    from torch.random import fork_rng  # noqa: PLC0415

    from stream_forecaster import network  # noqa: PLC0415  (likewise)

    with fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = network.Network(len(steps_ms)).state_dict()
    arrays = {name: parameter.numpy() for name, parameter in drawn.items()}
    return Weights(tuple(steps_ms), arrays, np.zeros((len(steps_ms), 2)), {})


@cache
def shipped() -> Weights:
    """The weights in the wheel, trained on synthetic series only."""
    file = resources.files("stream_forecaster") / "weights" / "pretrained.safetensors"
    return decode(file.read_bytes(), file.name)
