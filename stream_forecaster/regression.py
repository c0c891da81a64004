"""Linear regression of the next H buckets on the newest ones, learned online: experts of the pool.

Theory of operation. The window's ring holds T closed buckets. Its newest H are the labels of the
origin H buckets ago, and what lies before them, the *room* of T - H buckets, is all that was known
then. So nothing is stored until it lands: each time a bucket closes, the features of that origin
are built afresh from the ring, with labels that are complete at this very moment.

    oldest ├───────── room ─────────┤├─── H labels ───┤ newest closed bucket
                                    ▲ origin
                     ├───────── room ─────────┤ what the next forecast is made from

One row is one key at one origin. Everything in it is relative to an *anchor*, the newest value, and
divided by the key's own scale, so that keys of all sizes share one regression.

Rules of residence:
1. A row trains only if all its labels are there. Of its lags up to a half may be missing; those
   count as equal to the anchor. With fewer there is no opinion.
2. With many keys each origin trains on some of them in turn. Which ones depends on the bucket and
   the slot alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from stream_forecaster.calendar import DAY_MS, WEEK_MS, Calendar
from stream_forecaster.compiled import compiled
from stream_forecaster.keys import KeyTable
from stream_forecaster.windows import Window

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Slots = Int64 | slice

_SCALE_RATE = 0.0005
_ROWS = 256
"""Rows that an origin trains on at most: bounds the cost of learning with many keys."""
_RIDGE = 1e-3
"""Penalty as a share of the features' mean square: keeps near-equal lags apart."""
_DAYS_BACK = 7
_REMEMBERED = 256
"""Buckets of which the harmonics are: more than most horizons have."""
_KEYS = 64
"""Keys that have a regression of their own."""
_PRIOR_ROWS = 1000.0
"""How many of a key's own rows weigh as much as the pooled regression."""


@dataclass(frozen=True, slots=True)
class Design:
    """One ridge regression.

    Attributes:
        name: the expert's.
        lags: how many of the newest buckets it sees one by one, at most.
        forgetting: what a row counts for one bucket later.
        every: buckets between two solutions of the normal equations.
    """

    name: str
    lags: int
    forgetting: float
    every: int


RIDGE = Design("ridge", lags=48, forgetting=0.999, every=6)
RIDGE_KEY = Design("ridge_key", lags=24, forgetting=0.9995, every=24)
RIDGE_LONG = Design("ridge_long", lags=168, forgetting=0.9998, every=24)


class Newest:
    """The newest values of each key, oldest first, passing over what is missing.

    Not the window's: its context may be shorter, and one gather of all its cells costs more.
    """

    def __init__(self, table: KeyTable, prefix: str, buckets: int) -> None:
        self._table, self._column = table, f"{prefix}.newest"
        table.add(self._column, (buckets,), dtype=np.float64, fill=np.nan)

    def learn(self, value: Float64) -> None:
        """Take in the values of a bucket (K,), NaN where missing."""
        _push(value, self._table[self._column])

    def __call__(self, slots: Slots = np.s_[:]) -> Float64:
        """(B, N) NaN where a key has not had so many."""
        newest: Float64 = self._table[self._column][slots]
        return newest


class Scale:
    """Root mean square change of each key's values from bucket to bucket, slowly forgetting.

    Changes, not deviations from a mean: a level that wanders must not shrink its key's part in the
    pooled regression (squared error on ETTh2, 24 steps, rows 3,600 to 9,000: 2.73 against 2.86).
    """

    def __init__(self, table: KeyTable, prefix: str, newest: Newest) -> None:
        """Add the column to `table`; `newest`, two values at least, learns of a bucket before."""
        self._table, self._column, self._newest = table, f"{prefix}.scale", newest
        self._index: int | None = None
        table.add(self._column, (2,), dtype=np.float32)  # mean square, buckets seen

    def learn(self, index: int, value: Float64) -> None:
        """Take in bucket `index`, (K,); told the same bucket again, do nothing."""
        if index == self._index:
            return
        self._index = index
        _change(value, self._newest(), self._table[self._column])

    def __call__(self, slots: Slots) -> Float64:
        """(B,) NaN for a key that has not changed yet."""
        state = self._table[self._column][slots]
        scale = np.empty(len(state))
        _root(state, scale)
        return scale


def training_slots(index: int, keys: int) -> Int64:
    """Whose turn it is to train when bucket `index` closes: at most 256 of the slots."""
    turns = max(-(-keys // _ROWS), 1)
    return np.arange(index % turns, keys, turns)


class Harmonics:
    """Where in the day and in the week a bucket begins, as sines and cosines of what the step sees.

    Attributes:
        size: how many.
    """

    def __init__(self, calendar: Calendar, step_ms: int) -> None:
        self._calendar, self._step_ms = calendar, step_ms
        self._periods_ms = [
            period_ms / harmonic
            for period_ms, harmonic in ((DAY_MS, 1), (DAY_MS, 2), (WEEK_MS, 1), (WEEK_MS, 2))
            if 2 * step_ms < period_ms / harmonic
        ]
        self.size = 2 * len(self._periods_ms)
        # Asked for by several regressions, for a forecast and again when its labels have come.
        self._known = lru_cache(_REMEMBERED)(self._of)

    def __call__(self, index: int) -> Float64:
        """(size,) of bucket `index`; not to be written to."""
        return self._known(index)

    def _of(self, index: int) -> Float64:
        local_ms = float(self._calendar.local(int(self._calendar.start(index, self._step_ms))))
        turns = 2 * np.pi * (local_ms % WEEK_MS) / np.array(self._periods_ms)
        return np.concatenate([np.sin(turns), np.cos(turns)])


class Features:
    """What a ridge regression sees of a room (B, R) of buckets that ends at an origin."""

    def __init__(self, harmonics: Harmonics, window: Window, horizon: int, design: Design) -> None:
        self._step_ms = window.step_ms
        day, week = self._steps(DAY_MS), self._steps(WEEK_MS)
        most = window.context - horizon
        self.lags = min(design.lags, most)
        self.room = min(max(self.lags, week), most)
        season = day if day > 1 else week
        ago = []
        if season > 1:
            phases = season * np.arange(1, _DAYS_BACK + 1)
            ago.append(phases[(phases >= self.lags) & (phases < self.room)])
        if season < week <= self.room and self.lags < week:  # the next steps, a week ago
            ago.append(week - np.arange(1, min(horizon, week - self.lags) + 1))
        newest = np.arange(self.lags)[::-1]
        self._seen = self.room - 1 - np.concatenate([newest, *ago])
        self._harmonics = harmonics
        self.size = len(self._seen) + self._harmonics.size + 2

    def __call__(self, room: Float64, index: int, scale: Float64) -> tuple[Float64, Float64]:
        """Features (B, size) at origin `index`, NaN where too little is known; anchors (B,)."""
        out, anchor = np.empty((len(room), self.size)), np.empty(len(room))
        _describe(room, self._seen, self.lags, scale, out, anchor)
        past = len(self._seen) + 1
        out[:, past] = 1.0
        out[:, past + 1 :] = self._harmonics(index)
        return out, anchor

    def _steps(self, period_ms: int) -> int:
        """How many steps a day or week has; 0 if it is no number of them."""
        return 0 if period_ms % self._step_ms else period_ms // self._step_ms


class Ridge:
    """Direct multi-horizon ridge regression, pooled over keys, with forgetting.

    Recursive in its sufficient statistics: the Gram matrix of the features (F, F) and their
    products with the labels (F, H). What the features are, whoever inherits from it says.
    """

    def __init__(self, window: Window, horizon: int, design: Design, room: int, size: int) -> None:
        self.name = design.name
        self._window, self._design, self._room = window, design, room
        self._ahead = np.arange(1, horizon + 1)
        self._gram, self._products = np.zeros((size, size)), np.zeros((size, horizon))
        self._weights = np.full((size, horizon), np.nan)
        self._rows = np.zeros(1)

    def learn(self, index: int, value: Float64) -> None:
        """Take in bucket `index`, just closed: `value` (K,), NaN where missing."""
        slots, horizon = self._training(index, len(value)), len(self._ahead)
        values = self._window.values(slots, self._room + horizon)
        room = values[:, :-horizon]
        row, anchor, scale = self._row(slots, room, index - horizon, self._ahead)
        label, complete = np.empty((len(slots), horizon)), np.empty(len(slots), np.bool_)
        if count := _label(values, anchor, scale, row, label, complete):
            if count < len(slots):
                slots, row, label = slots[complete], row[complete], label[complete]
            self._take(slots, row, label)
        if index % self._design.every == 0 and self._rows[0] >= len(self._gram):
            self._solve()

    def predict(self, slots: Slots, index: int, ahead: Int64) -> Float64:
        """(B, len(ahead))."""
        room = self._window.values(slots, self._room)
        row, anchor, scale = self._row(slots, room, index, ahead)
        said: Float64 = row @ self._weights[:, ahead - 1]
        said *= scale[:, None]
        said += anchor
        return said

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is kept of the population."""
        return {
            "gram": self._gram,
            "products": self._products,
            "weights": self._weights,
            "rows": self._rows,
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take `arrays` back."""
        for name, own in self.arrays().items():
            own[:] = arrays[name]

    def _row(
        self, slots: Slots, room: Float64, index: int, ahead: Int64
    ) -> tuple[Float64, Float64, Float64]:
        """Features (B, F) at an origin; what its labels are relative to (B, 1) or (B, H), (B,).

        NaN where too little is known.
        """
        raise NotImplementedError

    def _training(self, index: int, keys: int) -> Int64:
        return training_slots(index, keys)

    def _take(self, slots: Int64, row: Float64, label: Float64) -> None:
        del slots
        forgetting = self._design.forgetting
        for kept in (self._gram, self._products, self._rows):
            kept[:] *= forgetting
        self._gram += row.T @ row
        self._products += row.T @ label
        self._rows += len(row)

    def _solve(self) -> None:
        self._weights[:] = np.linalg.solve(self._penalised(), self._products)

    def _penalised(self) -> Float64:
        size = len(self._gram)
        penalty = _RIDGE * np.trace(self._gram) / size + 1e-9
        penalised: Float64 = self._gram + penalty * np.eye(size)
        return penalised


class RidgeAr(Ridge):
    """On the newest buckets themselves, relative to the last of them."""

    def __init__(
        self, harmonics: Harmonics, window: Window, horizon: int, scale: Scale, design: Design
    ) -> None:
        self._features, self._scale = Features(harmonics, window, horizon, design), scale
        super().__init__(window, horizon, design, self._features.room, self._features.size)

    @override
    def learn(self, index: int, value: Float64) -> None:
        self._scale.learn(index, value)
        super().learn(index, value)

    @override
    def _row(
        self, slots: Slots, room: Float64, index: int, ahead: Int64
    ) -> tuple[Float64, Float64, Float64]:
        scale = self._scale(slots)
        row, anchor = self._features(room, index, scale)
        return row, anchor[:, None], scale


class RidgePerKey(RidgeAr):
    """A ridge regression of each of the first 64 slots, shrunk to the one pooled over them.

    A key's weights w minimise |y - X w|^2 + (w - pooled)' P (w - pooled), where the precision P is
    the pooled Gram matrix at the weight of 1,000 of the key's own rows: what the pooled regression
    is sure of, a key needs much evidence to overturn.
    """

    def __init__(
        self, table: KeyTable, harmonics: Harmonics, window: Window, horizon: int, scale: Scale
    ) -> None:
        super().__init__(harmonics, window, horizon, scale, RIDGE_KEY)
        size = self._features.size
        self._table, self._prefix = table, f"experts.{window.step_ms}.{self.name}"
        for name, columns, fill in (
            ("gram", size, 0.0),
            ("products", horizon, 0.0),
            ("weights", horizon, np.nan),
        ):
            table.add(
                f"{self._prefix}.{name}", (size, columns), dtype=np.float32, fill=fill, most=_KEYS
            )

    @override
    def predict(self, slots: Slots, index: int, ahead: Int64) -> Float64:
        slots = self._table.rows(slots)
        own = slots < _KEYS
        room = self._window.values(slots[own], self._room)
        row, anchor, scale = self._row(slots[own], room, index, ahead)
        weights = self._own("weights")[slots[own]][:, :, ahead - 1]
        said = np.full((len(slots), len(ahead)), np.nan)
        said[own] = anchor + scale[:, None] * np.matmul(row[:, None], weights)[:, 0]
        return said

    @override
    def _training(self, index: int, keys: int) -> Int64:
        return np.arange(min(keys, _KEYS))

    @override
    def _take(self, slots: Int64, row: Float64, label: Float64) -> None:
        super()._take(slots, row, label)
        for name, other in (("gram", row), ("products", label)):
            _add_outer(slots, row, other, self._design.forgetting, self._own(name))

    @override
    def _solve(self) -> None:
        super()._solve()
        gram, products = self._own("gram"), self._own("products")
        taught = np.flatnonzero(np.trace(gram, axis1=1, axis2=2) > 0)
        prior = self._penalised() * (_PRIOR_ROWS / self._rows[0])
        self._own("weights")[taught] = np.linalg.solve(
            gram[taught] + prior, products[taught] + prior @ self._weights
        )

    def _own(self, name: str) -> NDArray[np.float32]:
        """(up to 64, F, ...)."""
        column: NDArray[np.float32] = self._table[f"{self._prefix}.{name}"]
        return column


# -- loops over keys -----------------------------------------------------------------------------


@compiled("f8:1 > f8:2")
def _push(value: Float64, newest: Float64) -> None:
    """Append values (K,), if there are any, to the newest ones (K, N) before them."""
    for k in range(len(value)):
        if not np.isnan(value[k]):
            for n in range(1, newest.shape[1]):
                newest[k, n - 1] = newest[k, n]
            newest[k, -1] = value[k]


@compiled("f8:1 f8:2 > f4:2")
def _change(value: Float64, newest: Float64, state: NDArray[np.float32]) -> None:
    """How far values (K,), the last of the newest (K, N), are from those before them.

    State (K, 2) is the mean square of that, and buckets seen.
    """
    for k in range(len(value)):
        if np.isnan(value[k]):
            continue
        before, square = newest[k, newest.shape[1] - 2], np.float64(state[k, 0])
        count = np.float64(state[k, 1])
        change = 0.0 if np.isnan(before) else value[k] - before
        rate = 1 / min(max(count, 1.0), 1 / _SCALE_RATE)
        state[k, 0] = square + rate * (change * change - square)
        state[k, 1] = count + 1


@compiled("f4:2 > f8:1")
def _root(state: NDArray[np.float32], scale: Float64) -> None:
    """Root mean square changes (B,) of states (B, 2); NaN where nothing has changed."""
    for b in range(len(state)):
        scale[b] = np.sqrt(np.float64(state[b, 0])) if state[b, 0] > 0 else np.nan


@compiled("f8:2 f8:2 f8:1 f8:2 > f8:2 b1:1 = i8")
def _label(
    values: Float64,
    anchor: Float64,
    scale: Float64,
    row: Float64,
    label: Float64,
    complete: NDArray[np.bool_],
) -> int:
    """The newest of values (B, R + H) from anchors (B, 1 or H), in scales (B,): labels (B, H).

    Which of them, and of rows (B, F), are complete (B,), and how many.
    """
    horizon, each, count = label.shape[1], anchor.shape[1] > 1, 0
    room = values.shape[1] - horizon
    for b in range(len(values)):
        is_complete = not np.isnan(row[b, 0])
        for h in range(horizon):
            label[b, h] = (values[b, room + h] - anchor[b, h if each else 0]) / scale[b]
            is_complete &= not np.isnan(label[b, h])
        complete[b] = is_complete
        count += is_complete
    return count


@compiled("i8:1 f8:2 f8:2 f8 > f4:3")
def _add_outer(
    slots: Int64, row: Float64, other: Float64, forgetting: float, kept: NDArray[np.float32]
) -> None:
    """Add rows (B, F) times others (B, O) to what slots (B,) have kept, (K, F, O)."""
    for b in range(len(slots)):
        for i in range(row.shape[1]):
            own, factor = kept[slots[b], i], row[b, i]
            for j in range(other.shape[1]):
                own[j] = np.float32(np.float32(forgetting) * own[j]) + factor * other[b, j]


@compiled("f8:2 i8:1 i8 f8:1 > f8:2 f8:1")
def _describe(
    room: Float64, seen: Int64, lags: int, scale: Float64, out: Float64, anchor: Float64
) -> None:
    """Some buckets (S,) of a room (B, R) and its mean, relative to the newest known: (B, S + 1).

    In scales (B,); NaN where of the newest lags less than half are known.
    """
    size = room.shape[1]
    for b in range(len(room)):
        total, known, recent, newest = 0.0, 0, 0, np.nan
        for r in range(size):
            if not np.isnan(room[b, r]):
                newest = room[b, r]
                total += newest
                known += 1
                recent += r >= size - lags
        unit = scale[b] if 2 * recent >= lags else np.nan
        for s in range(len(seen)):
            value = room[b, seen[s]]
            out[b, s] = (0.0 if np.isnan(value) else value - newest) / unit
        out[b, len(seen)] = (total / max(known, 1) - newest) / unit
        anchor[b] = newest
