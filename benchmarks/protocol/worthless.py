"""Networks that are worth nothing, most of them believed like the one that ships.

`random` is as it was drawn; `noise` was drawn, then fitted to white noise, which has nothing to
teach; `untrained` is `random` as our own code would have it, with no share to begin with. None is
ever trained on the stream that it forecasts, so that it stays as it is.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from benchmarks.protocol.streams import Rows, write_events
from stream_forecaster.weights import decode, shipped, untrained

KINDS = ("untrained", "random", "noise")

_KEYS, _DAYS, _DAY_MS = 40, 100, 86_400_000
_BEGIN_MS = 1_356_998_400_000  # 2013-01-01
_PASSES = "6"


def worthless(kind: str, settings: dict[str, Any], step_ms: int, folder: Path) -> dict[str, Any]:
    """The settings with such a network.

    Args:
        kind: one of `KINDS`.
        settings: of a stream.
        step_ms: width of the stream's buckets.
        folder: for the file of weights, and what it is made from.
    """
    believed = shipped()
    drawn = untrained(believed.steps_ms, seed=0)
    file = (folder / f"{kind}.safetensors").resolve()
    if kind != "untrained":
        drawn = replace(drawn, shares=believed.shares)
    file.write_bytes(drawn.encode())
    model = settings["model"] | {"weights": str(file), "train_every_hops": 0}
    settings = settings | {"model": model}
    if kind == "noise":
        is_count = settings["input"]["aggregate"] == "count"
        config, events = folder / "noise.toml", folder / "noise-events.jsonl"
        config.write_text(tomli_w.dumps(settings))
        write_events(events, _noise(is_count=is_count, step_ms=step_ms))
        command = [sys.executable, "-m", "stream_forecaster", "fit", "--config", str(config)]
        command += ["--events", str(events), "--out", str(file), "--passes", _PASSES]
        subprocess.run(command, check=True, stdout=sys.stderr)
        # Fitting finds that it should not be believed.
        fitted = decode(file.read_bytes(), file.name)
        shares = believed.shares[[believed.nearest(of) for of in fitted.steps_ms]]
        file.write_bytes(replace(fitted, shares=shares).encode())
    return settings


def _noise(*, is_count: bool, step_ms: int) -> Rows:
    """White noise: counts of which every second one is zero, or real values."""
    rng, shape = np.random.default_rng(0), (_DAYS * _DAY_MS // step_ms, _KEYS)
    bucket, key = (axis.ravel() for axis in np.indices(shape))
    value = rng.standard_normal(bucket.size)
    if is_count:
        count = rng.poisson(3.0, bucket.size) * rng.integers(0, 2, bucket.size)
        bucket, key = np.repeat(bucket, count), np.repeat(key, count)
        value = np.ones(bucket.size)
    return Rows(_BEGIN_MS + bucket * step_ms + step_ms // 2, key.astype(str), value)
