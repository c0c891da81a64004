"""The network as the pool of one resolution sees it: what is kept of each key, and what it says.

Per key there is a ring of landed errors, the newest state of each resolution's encoder, and the
states as they were when this resolution last closed a bucket: a forecast that is published later,
at a finer hop, is the one that was issued then.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from stream_forecaster import inputs
from stream_forecaster.calendar import Calendar
from stream_forecaster.config import Settings
from stream_forecaster.inputs import Timetable
from stream_forecaster.keys import KeyTable
from stream_forecaster.learning import Learner, Told
from stream_forecaster.network import LEVELS, STATE
from stream_forecaster.spread import Spread
from stream_forecaster.windows import Window

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Slots = Int64 | slice

ABSOLUTE, RESIDUAL = "lstm", "lstm_residual"
"""The experts that the network is: a path of its own, and a corrected pool's."""
ONE_STEP, LAST_STEP = 0, 1


@dataclass(frozen=True, slots=True)
class View:
    """What the pool knows of B keys' next H steps, which is all that the network is asked about.

    Attributes:
        slots: which keys.
        index: the newest closed bucket.
        ahead: (H,) steps after it.
        predictions: expert -> (B, H) or (B, 1).
        losses: expert -> (B, H) log landed loss over the best's.
        path, unit: (B, H) the pool's path and its expected error.
    """

    slots: Slots
    index: int
    ahead: Int64
    predictions: Mapping[str, Float64]
    losses: Mapping[str, Float64]
    path: Float64
    unit: Float64


class Lstm:
    """One resolution's share of the network."""

    def __init__(  # noqa: PLR0913, PLR0917  (everything that the network is told of)
        self,
        seats: "list[Lstm]",
        learner: Learner,
        table: KeyTable,
        calendar: Calendar,
        window: Window,
        spread: Spread,
        settings: Settings,
    ) -> None:
        """Add this resolution's columns to `table`, and itself to `seats`.

        Args:
            seats: those of all resolutions, finest first; filled while the shard is built.
            learner: the shard's network.
            table: the shard's.
            calendar: of the input's time zone.
            window: the pool's.
            spread: of the keys' values, the pool's.
            settings: all of them.
        """
        self._seats, self._learner, self._table = seats, learner, table
        self._window, self._spread = window, spread
        self._times = Timetable(calendar, window.step_ms)
        self._is_count = settings.input.aggregate == "count"
        self._length = inputs.window_length(window.context)
        self._resolution = len(seats)
        self._name = f"lstm.{window.step_ms}"
        self._levels = _between(settings.output.quantiles)
        seats.append(self)
        resolutions = len(settings.resolutions)
        table.add(f"{self._name}.errors", (self._length, 2), dtype=np.float16)
        table.add(f"{self._name}.state", (STATE,), dtype=np.float32, fill=np.nan)
        table.add(f"{self._name}.states", (resolutions, STATE), dtype=np.float32, fill=np.nan)

    @property
    def shares(self) -> Float64:
        """(2,) how much of the absolute and of the residual path the fusion begins with."""
        return self._learner.shares[self._resolution, ::-1].copy()

    def open(self, index: int) -> None:
        """Bucket `index` closes: no error has landed in it yet."""
        self._column("errors")[:, index % self._length] = 0

    def note(self, index: int, which: int, slots: Int64, error: Float64) -> None:
        """Errors (B,) that landed in bucket `index`, in expected errors.

        `which` is ONE_STEP or LAST_STEP.
        """
        self._column("errors")[slots, index % self._length, which] = np.clip(error, -8, 8)

    def encode(self, slots: Int64) -> None:
        """Encode the windows of `slots`, which have just moved on, and note all states."""
        if not self._learner.speaks or not len(slots):
            return
        window, statistics, present = self._inputs(slots)
        state = self._learner.encode(self._resolution, window, statistics)
        self._column("state")[slots] = np.where(present[:, None], state, np.nan)
        states = self._column("states")
        for i, seat in enumerate(self._seats):
            states[slots, i] = seat._column("state")[slots]  # noqa: SLF001  (its own class)

    def answer(self, view: View) -> tuple[Float64, Float64, Float64]:
        """Absolute and residual path (B, H), and quantiles (B, H, Q) at the settings' levels."""
        if not self._learner.speaks:
            silence = np.full((*view.path.shape, len(self._levels[0])), np.nan)
            return silence[..., 0], silence[..., 0], silence
        states = self._column("states")[view.slots]
        told = self._steps(view)
        residual, absolute, quantiles = self._learner.answer(
            self._resolution, states, told, view.ahead
        )
        low, high, part = self._levels
        between = quantiles[..., low] * (1 - part) + quantiles[..., high] * part
        unit = view.unit
        return (
            view.path + unit * absolute,
            view.path + unit * residual,
            view.path[..., None] + unit[..., None] * between,
        )

    def due(self, index: int) -> Int64 | None:
        """Slots to take samples of after bucket `index`; None if it is not time to learn."""
        if not self._learner.due(index):
            return None
        return self._learner.draw(self._resolution, index, np.flatnonzero(self._table.live))

    def land(self, index: int, truth: Float64) -> None:
        """Bucket `index` has closed with `truth` (K,): labels for the samples that forecast it."""
        self._learner.land(self._resolution, index, truth, self._window.first())

    def learn(self, view: View) -> None:
        """Take samples of what the pool knows now, and train."""
        slots = np.asarray(view.slots)
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
        errors = self._column("errors")[slots][:, order].astype(np.float32)
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
            "candidates": inputs.candidates(view.predictions, view.path, view.unit),
            "losses": inputs.losses(view.losses, view.path.shape),
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

    def _column(self, name: str) -> NDArray[np.float32]:
        return self._table[f"{self._name}.{name}"]


def _between(levels: tuple[float, ...]) -> tuple[Int64, Int64, Float64]:
    """For each level the network's two around it, and the part of the way, by normal quantiles."""
    own = np.array([NormalDist().inv_cdf(level) for level in LEVELS])
    wanted = np.array([NormalDist().inv_cdf(level) for level in levels])
    low = np.clip(np.searchsorted(own, wanted, side="right") - 1, 0, len(own) - 2)
    return low, low + 1, (wanted - own[low]) / (own[low + 1] - own[low])
