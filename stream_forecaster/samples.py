"""Samples: what the network was told at some time, and what came of it.

A sample is one key at one closed bucket of one resolution. Its labels land as the buckets close
that it forecast, step by step; what has not landed is NaN.

Axes: N samples, R resolutions, H horizon, T window, M experts; else as in `network`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from stream_forecaster.architecture import CANDIDATES, CHANNELS, CLUES, STATISTICS

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_LONG_AGO = np.iinfo(np.int64).min // 2
_EMPTY: dict[str, float] = {
    "candidates": np.nan,
    "unit": 1.0,
    "truth": np.nan,
    "slot": -1,
    "index": _LONG_AGO,
}
"""What a row that holds no sample holds, where it is not zero."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the network is told of B keys of one resolution.

    Attributes:
        windows: per resolution (B, T, CHANNELS).
        statistics: (B, R, STATISTICS).
        present: (B, R) has the key a state at that resolution?
        candidates, losses: (B, H, M).
        clues: (B, H, CLUES).
        path, unit: (B, H) the pool's path and its expected error.
    """

    windows: Sequence[Float32]
    statistics: Float32
    present: NDArray[np.bool_]
    candidates: Float32
    losses: Float32
    clues: Float32
    path: Float64
    unit: Float64


class Samples:
    """The samples of one resolution; rows that were never written have no slot.

    Attributes:
        arrays: by name, (N, ...) each; a checkpoint keeps them.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.arrays = dict(arrays)
        self._horizon = arrays["truth"].shape[1]

    @classmethod
    def room(cls, capacity: int, windows: Sequence[int], horizon: int) -> Self:
        """Room for samples, none taken.

        Args:
            capacity: N.
            windows: (R,) buckets that the encoders read.
            horizon: H.
        """
        r, h, m = len(windows), horizon, len(CANDIDATES)
        rows: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
            **{f"window.{i}": ((t, CHANNELS), np.float32) for i, t in enumerate(windows)},
            "statistics": ((r, STATISTICS), np.float32),
            "present": ((r,), np.bool_),
            "candidates": ((h, m), np.float32),
            "losses": ((h, m), np.float32),
            "clues": ((h, CLUES), np.float32),
            "path": ((h,), np.float64),
            "unit": ((h,), np.float64),
            "truth": ((h,), np.float32),
            "slot": ((), np.int64),
            "since": ((), np.int64),  # the key's first bucket: another key's is later
            "index": ((), np.int64),
        }
        arrays: dict[str, NDArray[Any]] = {
            name: np.zeros((capacity, *shape), dtype) for name, (shape, dtype) in rows.items()
        }
        for name, nothing in _EMPTY.items():
            arrays[name][:] = nothing
        return cls(arrays)

    @classmethod
    def joined(cls, parts: Sequence[tuple["Samples", Int64]]) -> Self:
        """Copies of the rows of several, one after the other."""
        names = parts[0][0].arrays
        return cls({n: np.concatenate([s.arrays[n][rows] for s, rows in parts]) for n in names})

    @property
    def labelled(self) -> Int64:
        """Rows with a label or more."""
        return np.flatnonzero(~np.isnan(self.arrays["truth"]).all(axis=1))

    def choose(self, rng: np.random.Generator, live: Int64, most: int) -> Int64:
        """Slots to take samples of, drawn from `live`, ascending."""
        return np.sort(rng.permutation(live)[:most])

    def add(
        self, rng: np.random.Generator, index: int, slots: Int64, since: Int64, told: Told
    ) -> None:
        """Keep what the network was told of slots (B,) at bucket `index`.

        Args:
            rng: for the choice of what they replace.
            index: the newest closed bucket.
            slots: whose samples.
            since: (B,) the keys' first buckets.
            told: of them.
        """
        a, rows = self.arrays, self._rows(rng, index, len(slots))
        for i, window in enumerate(told.windows):
            a[f"window.{i}"][rows] = window
        for name in ("statistics", "present", "candidates", "losses", "clues", "path", "unit"):
            a[name][rows] = getattr(told, name)
        a["truth"][rows] = np.nan
        a["slot"][rows], a["since"][rows], a["index"][rows] = slots, since, index

    def land(self, index: int, truth: Float64, since: Int64) -> None:
        """Bucket `index` has closed with `truth` (K,): a label for all that forecast it."""
        a = self.arrays
        step = index - a["index"] - 1  # (N,)
        rows = np.flatnonzero((a["slot"] >= 0) & (step >= 0) & (step < self._horizon))
        slots = a["slot"][rows]
        rows = rows[since[slots] == a["since"][rows]]
        h = step[rows]
        error = (truth[a["slot"][rows]] - a["path"][rows, h]) / a["unit"][rows, h]
        a["truth"][rows, h] = np.clip(error, -30, 30)

    def forget(self, slots: Int64) -> None:
        """Erase the samples of the keys in `slots`: what they did, and where labels would go."""
        rows = np.isin(self.arrays["slot"], slots)
        for name, array in self.arrays.items():
            array[rows] = _EMPTY.get(name, 0)

    def leave(self) -> None:
        """Leave the present log for another: no more labels land."""
        for name in ("slot", "index"):
            self.arrays[name][:] = _EMPTY[name]

    def _rows(self, rng: np.random.Generator, index: int, size: int) -> Int64:
        """Rows for `size` new samples: random ones of those that are complete."""
        complete = np.flatnonzero(self.arrays["index"] + self._horizon <= index)
        if len(complete) < size:
            complete = np.argsort(self.arrays["index"], kind="stable")[:size]
        return rng.permutation(complete)[:size]


class EvenSamples(Samples):
    """Samples of all keys and buckets alike, however long the log is.

    At first every key is taken at every bucket. When there is no more room a random half of the
    samples goes, and from then on half as many are taken; and so on.

    Attributes:
        first, last: the first and the last bucket that closed; None before any has.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        super().__init__(arrays)
        self.first: int | None = None
        self.last: int | None = None
        self._share = 1.0
        self._mark = np.zeros(len(arrays["slot"]))  # (N,) random; those above the share go

    @override
    def choose(self, rng: np.random.Generator, live: Int64, most: int) -> Int64:
        size = min(int(rng.binomial(len(live), self._share)), most)
        while size > np.count_nonzero(self._free):
            self._halve()
            size = int(rng.binomial(size, 0.5))
        return np.sort(rng.permutation(live)[:size])

    @override
    def land(self, index: int, truth: Float64, since: Int64) -> None:
        super().land(index, truth, since)
        self.first, self.last = index if self.first is None else self.first, index

    @override
    def _rows(self, rng: np.random.Generator, index: int, size: int) -> Int64:
        """Free ones: `choose` has made room."""
        rows = np.flatnonzero(self._free)[:size]
        self._mark[rows] = rng.uniform(0, self._share, size)
        return rows

    @property
    def _free(self) -> NDArray[np.bool_]:
        free: NDArray[np.bool_] = self.arrays["slot"] < 0
        return free

    def _halve(self) -> None:
        self._share /= 2
        gone = self._mark >= self._share
        self.arrays["slot"][gone], self.arrays["index"][gone] = -1, _LONG_AGO
        self.arrays["truth"][gone] = np.nan
