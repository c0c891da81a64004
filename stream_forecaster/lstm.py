"""The network as the pool of one resolution sees it: what is kept of each key, and what it says.

Per key there is a ring of landed errors and the newest state of the resolution's encoder, which the
decoders of all resolutions read. How much of what the network says is let into the path of the
experts, already fused, a last stack learns from landed errors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stream_forecaster import inputs
from stream_forecaster.architecture import LEVELS, STATE
from stream_forecaster.calendar import Calendar
from stream_forecaster.compiled import compiled
from stream_forecaster.config import Settings
from stream_forecaster.inputs import Timetable
from stream_forecaster.keys import KeyTable
from stream_forecaster.samples import Told
from stream_forecaster.spread import Spread
from stream_forecaster.stacking import Stack
from stream_forecaster.windows import Window

if TYPE_CHECKING:  # it loads torch: a process without a network does without
    from stream_forecaster.learning import Learner

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Slots = Int64 | slice

ABSOLUTE, RESIDUAL = "lstm", "lstm_residual"
"""The experts that the network is: a path of its own, and a corrected pool's."""
_YOUNG = 8
"""Closed buckets before anyone is answered for. Pretraining has seen newcomers, but no pool that is
itself a newcomer: one whose experts, of days say, have not met a weekend yet, or each other."""


_ERROR_PARTS = np.float32(16)
_LARGEST_ERROR = 127 / 16
"""Landed errors are kept in sixteenths of an expected one, in a byte, like a state's numbers."""
_STATE_PARTS = np.float32(127)
"""They lie between -1 and 1."""
_NO_STATE = -128


@dataclass(frozen=True, slots=True)
class View:
    """What the pool knows of B keys' next H steps, which is all that the network is asked about.

    Attributes:
        slots: (B,) which keys.
        index: the newest closed bucket.
        ahead: (H,) steps after it.
        bucket: (H,) the horizon bucket of each step, of G.
        names: of the experts.
        predictions: (B, M or more, H) theirs; nothing is read of more.
        losses: (B, G, M) their mean landed losses.
        path, unit: (B, H) the pool's path and its expected error.
    """

    slots: Int64
    index: int
    ahead: Int64
    bucket: Int64
    names: tuple[str, ...]
    predictions: Float64
    losses: Float64
    path: Float64
    unit: Float64


class Seats:
    """The resolutions at a shard's network, finest first; filled while the shard is built."""

    def __init__(self, learner: "Learner") -> None:
        self.learner = learner
        self.all: list[Lstm] = []


class Lstm:
    """One resolution's share of the network."""

    def __init__(  # noqa: PLR0913, PLR0917  (what it sees of the pool)
        self,
        seats: Seats,
        table: KeyTable,
        calendar: Calendar,
        window: Window,
        spread: Spread,
        settings: Settings,
        buckets: int,
    ) -> None:
        """Add this resolution's columns to `table`, and itself to `seats`.

        Args:
            seats: those of all resolutions.
            table: the shard's.
            calendar: of the input's time zone.
            window: the pool's.
            spread: of the keys' values, the pool's.
            settings: all of them.
            buckets: G, of the horizon.
        """
        self._seats, self._learner, self._table = seats.all, seats.learner, table
        self._window, self._spread = window, spread
        self._times = Timetable(calendar, window.step_ms)
        self._is_count = settings.input.aggregate == "count"
        self._length = inputs.window_length(window.context)
        self._resolution = len(seats.all)
        self._name = f"lstm.{window.step_ms}"
        self._levels = _between(settings.output.quantiles)
        self._most = settings.model.network_keys
        seats.all.append(self)
        table.add(f"{self._name}.errors", (self._length,), dtype=np.int8)
        table.add(f"{self._name}.asked", dtype=np.bool_)
        table.add(f"{self._name}.state", (STATE,), dtype=np.int8, fill=_NO_STATE)
        self._shares = Stack(
            table,
            f"{self._name}.shares",
            buckets,
            self._learner.shares[self._resolution].copy(),
            discount=0.9995,
            prior=1000.0,
            burst=2.0,
            convex=True,
        )

    @property
    def share(self) -> float:
        """With how much of a say its paths begin, from 0 to 1."""
        return float(self._learner.shares[self._resolution].sum())

    def note(self, index: int, slots: Int64, error: Float64) -> None:
        """One-step errors (B,) that landed in bucket `index`, in expected errors."""
        error = np.nan_to_num(error)  # of a forecast that was no number, nothing is known
        parts = np.rint(np.clip(error, -_LARGEST_ERROR, _LARGEST_ERROR) * _ERROR_PARTS)
        self._column("errors")[slots, index % self._length] = parts

    def look(self, live: Int64) -> None:
        """Encode the windows of keys, which have just moved on; decide who is answered for."""
        if not self._learner.speaks:
            return
        is_young = not len(live) or self._window.age(live).max() < _YOUNG
        slots = live[:0] if is_young else self._turn(live)
        self._table[f"{self._name}.asked"][:] = False
        self._table[f"{self._name}.asked"][slots] = True
        self._encode(slots)

    def _turn(self, live: Int64) -> Int64:
        """Whose turn it is, of `live` (B,): all, or the most active ones and others in turn."""
        if not self._most or len(live) <= self._most:
            return live
        activity = np.nan_to_num(np.abs(self._window.moving_average(live)))
        order = np.argsort(-activity, kind="stable")
        first = self._most - self._most // 2
        rest = np.sort(order[first:])
        begin = (self._window.closed - 1) * (self._most // 2)
        others = rest[(begin + np.arange(self._most // 2)) % len(rest)]
        turn: Int64 = live[np.sort(np.concatenate([order[:first], others]))]
        return turn

    def _encode(self, slots: Int64) -> None:
        if not len(slots):
            return
        window, statistics, present = self._inputs(slots)
        state = self._learner.encode(self._resolution, window, statistics)
        told = present & np.isfinite(state).all(axis=1)  # a network that diverged has no opinion
        parts = np.where(told[:, None], np.rint(state * _STATE_PARTS), _NO_STATE)
        self._column("state")[slots] = parts

    def asked(self, slots: Int64) -> Int64 | slice:
        """Which of `slots` (B,) are to be answered for; a slice if all are."""
        asked = np.flatnonzero(self._table[f"{self._name}.asked"][slots])
        return asked if len(asked) < len(slots) else np.s_[:]

    def answer(self, view: View) -> tuple[Float64, Float64, Float64]:
        """Absolute and residual path (B, H), and quantiles (B, H, Q) at the settings' levels."""
        states = [seat.states(view.slots) for seat in self._seats]
        told = self._steps(view)
        absolute, residual, quantiles = self._learner.answer(
            self._resolution, np.stack(states, axis=1), told, view.ahead
        )
        paths = np.empty((2, *view.path.shape))
        between = np.empty((*view.path.shape, len(self._levels[0])))
        _place(view.path, view.unit, absolute, residual, quantiles, *self._levels, paths, between)
        return paths[0], paths[1], between

    def let_in(self, view: View, paths: Sequence[Float64]) -> tuple[Float64, Float64]:
        """The pool's path (B, H) with what the network says let in, and their weights (B, G, 2)."""
        path, share = view.path, self._shares.weights_of(view.slots)
        for i, said in enumerate(paths):
            path = path + share[:, view.bucket, i] * _or_zero(said - view.path)
            share[:, :, i] *= ~np.isnan(said[:, :1])
        return path, share

    def beside(self, weights: Float64, slots: Int64) -> Float64:
        """The weights of M experts (M, B, G), and behind them the network's where it is asked."""
        share = np.zeros((2, *weights.shape[1:]))
        asked = self.asked(slots)
        share[:, asked] = self._shares.weights(slots[asked])
        return np.concatenate([weights * (1 - share.sum(axis=0)), share])

    def learn_shares(self, bucket: int, slots: Int64, deviation: Float64, missed: Float64) -> None:
        """From landed forecasts (B,): how far its paths (2, B) and the truth were from the pool."""
        self._shares.learn(bucket, slots, _or_zero(deviation), missed)

    def settle(self, index: int) -> None:
        """All forecasts of bucket `index` have landed."""
        self._shares.settle(index)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is not in the table, for the checkpoint."""
        return self._shares.arrays()

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take `arrays` back."""
        self._shares.restore(arrays)

    def states(self, slots: Slots) -> Float32:
        """The encoder's states (B, D) of keys, NaN where there is none."""
        parts = self._column("state")[slots]
        states = parts.astype(np.float32) / _STATE_PARTS
        states[parts[:, 0] == _NO_STATE] = np.nan
        return states

    def due(self, index: int, *, lifted: bool) -> Int64 | None:
        """Slots to take samples of after bucket `index`; None if it is not time to learn.

        `lifted`: it is after every bucket, since a drift was detected.
        """
        if not self._learner.due(index, lifted=lifted):
            return None
        return self._learner.draw(self._resolution, index, np.flatnonzero(self._table.live))

    def land(self, index: int, truth: Float64) -> None:
        """Bucket `index` has closed with `truth` (K,): labels for the samples that forecast it.

        No error has landed in it yet: `note` comes after.
        """
        self._column("errors")[:, index % self._length] = 0
        self._learner.land(self._resolution, index, truth, self._window.first())

    def learn(self, view: View) -> None:
        """Take samples of what the pool knows now, and train."""
        slots = view.slots
        windows, statistics, present = zip(*(s._inputs(slots) for s in self._seats), strict=True)  # noqa: SLF001
        told = Told(
            windows,
            np.stack(statistics, axis=1),
            np.stack(present, axis=1),
            **self._steps(view),
            path=view.path,
            unit=view.unit,
        )
        since = self._window.first(slots)
        self._learner.take(self._resolution, view.index, slots, since, told)
        self._learner.train(self._resolution, view.index)

    def _inputs(self, slots: Int64) -> tuple[Float32, Float32, NDArray[np.bool_]]:
        """What the encoder is told of `slots` (B,), and which have anything to tell."""
        window, index = self._window, self._window.closed - 1
        values, age, spread = window.values(slots), window.age(slots), self._spread(slots)
        level = np.nan_to_num(window.moving_average(slots))
        order = np.arange(index - self._length + 1, index + 1) % self._length
        errors = self._column("errors")[slots][:, order].astype(np.float32) / _ERROR_PARTS
        statistics = inputs.statistics(
            values,
            level,
            spread,
            age,
            self._times.phases(np.array([index]))[0],
            step_ms=window.step_ms,
            is_count=self._is_count,
        )
        return inputs.windows(values, level, spread, errors), statistics, age > 0

    def _steps(self, view: View) -> dict[str, Float32]:
        phases = self._times.phases(np.concatenate([[view.index], view.index + view.ahead]))
        return {
            "candidates": inputs.candidates(view.names, view.predictions, view.path, view.unit),
            "losses": inputs.losses(view.names, view.losses, view.bucket),
            "clues": inputs.clues(
                view.path,
                view.unit,
                self._spread(view.slots),
                view.ahead,
                phases[1:],
                phases[0],
                is_count=self._is_count,
            ),
        }

    def _column(self, name: str) -> NDArray[np.int8]:
        return self._table[f"{self._name}.{name}"]


def _between(levels: tuple[float, ...]) -> tuple[Int64, Float64]:
    """(Q,) which of the network's levels is below each of ours, and how far it is to the next."""
    own = np.array([NormalDist().inv_cdf(level) for level in LEVELS])
    wanted = np.array([NormalDist().inv_cdf(level) for level in levels])
    low = np.clip(np.searchsorted(own, wanted, side="right") - 1, 0, len(own) - 2)
    return low, (wanted - own[low]) / (own[low + 1] - own[low])


def _or_zero(opinion: Float64) -> Float64:
    """The same with 0 for no opinion, which is NaN: a fifth of the time of `np.nan_to_num`."""
    return np.where(np.isnan(opinion), 0.0, opinion)


@compiled("f8:2 f8:2 f4:2 f4:2 f4:3 i8:1 f8:1 > f8:3 f8:3")
def _place(  # noqa: PLR0913, PLR0917  (a loop has no objects to keep arrays in)
    path: Float64,
    unit: Float64,
    absolute: Float32,
    residual: Float32,
    quantiles: Float32,
    low: Int64,
    part: Float64,
    paths: Float64,
    between: Float64,
) -> None:
    """What was said in expected errors around a path, as values: (2, B, H) and (B, H, Q)."""
    keys, horizon = path.shape
    for b in range(keys):
        for h in range(horizon):
            center, size = path[b, h], unit[b, h]
            paths[0, b, h] = center + size * absolute[b, h]
            paths[1, b, h] = center + size * residual[b, h]
            for q in range(len(low)):
                below, above = quantiles[b, h, low[q]], quantiles[b, h, low[q] + 1]
                between[b, h, q] = center + size * (below + part[q] * (above - below))
