"""The key table: which row a key has, and everything that is kept per key.

A key occupies one *slot*, a row in every column of the table. Columns are named arrays whose first
axis is the slot; whoever needs memory per key adds one. So growth, forgetting, the size in bytes
and the checkpoint are settled here once for the whole shard.

Which slot a key gets depends on the log alone (`interning`).

A table may be bounded. Then a new key that finds it full waits until some keys are given up: those
that are least *active*. A key's activity is the number of its events, each counted half as much
with every day that has passed since it, in event time. It is kept as its logarithm to base 2 plus
the time in days, which makes it comparable between keys at any time, so it is written only when an
event comes:

    log2 of the sum over events of 2^(time of the event in days)

So keys that come once and never again, however many, only throw out each other and what was hardly
more active: a key with two events yesterday ranks with one that has one event today. A 64th of the
keys goes at once. That is the room in which newcomers can show that they stay.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from stream_forecaster.calendar import DAY_MS
from stream_forecaster.compiled import compiled
from stream_forecaster.interning import Interned
from stream_forecaster.records import BytesColumn

_FIRST_CAPACITY = 64
_NO_BOUND = np.iinfo(np.int64).max
_SHARE = 64
"""One in so many keys is given up when a table is full."""


class KeyTable:
    """Rows are keys, columns are named arrays.

    >>> table = KeyTable()
    >>> table.add("visits", dtype=np.int64)
    >>> slots = table.intern([b"ann", b"bob", b"ann"], np.array([10, 20, 30]))
    >>> np.add.at(table["visits"], slots, 1)
    >>> table["visits"].tolist()
    [2, 1]
    >>> table.expire(25)
    [b'bob']
    """

    def __init__(self, most_keys: int = _NO_BOUND) -> None:
        """Begin empty; `most_keys` is the bound."""
        self._most_keys = most_keys
        self._keys = Interned(most_keys)
        self._columns: dict[str, NDArray[Any]] = {}
        self._in_use: dict[str, NDArray[Any]] = {}  # views of columns that were asked for
        self._fill: dict[str, float] = {}
        self._most: dict[str, int | None] = {}
        self._capacity = _FIRST_CAPACITY
        self.add("last_seen_ms", dtype=np.int64, fill=-1)
        self.add("live", dtype=np.bool_)
        self.add("activity", dtype=np.float64, fill=-np.inf)

    def __len__(self) -> int:
        """The number of keys."""
        return len(self._keys)

    def __contains__(self, key: bytes) -> bool:
        return self._keys.find(key) is not None

    def __getitem__(self, column: str) -> NDArray[Any]:
        """The column's rows in use, a view: (size, ...), of a bounded one at most its bound.

        Rows without a key hold the column's fill.
        """
        rows = self._in_use.get(column)
        if rows is None:  # a view is asked for hundreds of times between two that are made
            rows = self._in_use[column] = self._columns[column][: self.size]
        return rows

    @property
    def size(self) -> int:
        """Rows in use, those of freed slots included: K."""
        return self._keys.size

    @property
    def live(self) -> NDArray[np.bool_]:
        """(K,) which rows have a key."""
        return self["live"]

    @property
    def nbytes(self) -> int:
        """Bytes of all columns as allocated, and of the keys themselves; not of what finds them."""
        keys = int(np.maximum(self._keys.keys.size, 0).sum())
        return sum(column.nbytes for column in self._columns.values()) + keys

    def bytes_for(self, keys: int) -> dict[str, int]:
        """What each column would take if so many keys came one after the other."""
        capacity = _FIRST_CAPACITY
        while capacity < keys:
            capacity = self._next_capacity(capacity, capacity + 1)
        return {
            name: self._bounded(name, capacity) * column.dtype.itemsize * prod(column.shape[1:])
            for name, column in self._columns.items()
        }

    def add(
        self,
        name: str,
        shape: tuple[int, ...] = (),
        *,
        dtype: DTypeLike,
        fill: float = 0,
        most: int | None = None,
    ) -> None:
        """Add a column of rows of `shape`, each `fill` until written.

        Args:
            name: of the column.
            shape: of one row.
            dtype: of its cells.
            fill: what a row holds until it is written.
            most: only the first so many slots have a row: for what is too dear to keep of every
                key. The slot decides, so it depends on the log alone who has one.
        """
        if name in self._columns:
            raise ValueError(f"column {name!r} exists")
        self._fill[name], self._most[name] = fill, most
        self._columns[name] = np.empty((0, *shape), dtype)
        self._extend(name)

    def intern(self, keys: Sequence[bytes | None], time_ms: NDArray[np.int64]) -> NDArray[np.int64]:
        """The slots of `keys` (N,), new ones where needed, and note when they were seen.

        None of the keys may be null. The slots are (N,), or those of the keys before the first one
        that finds the table full.
        """
        rows = self.size
        slots, freed = self._keys.intern(BytesColumn.of(keys))
        if self.size > rows:
            self._in_use.clear()
            self._grow_to(self.size)
        if len(freed):
            self._clear(freed)  # of what all rows were told at once while these were free
            self._columns["live"][freed] = True
        self._columns["live"][rows : self.size] = True
        _note(slots, time_ms, self._columns["last_seen_ms"], self._columns["activity"])
        return slots

    def least_active(self) -> NDArray[np.int64]:
        """The slots to give up before another key fits, the least active first, ties by slot."""
        live = np.flatnonzero(self.live)
        size = len(live) - self._most_keys + max(1, self._most_keys // _SHARE)
        least: NDArray[np.int64] = live[np.argsort(self["activity"][live], kind="stable")[:size]]
        return least

    def key(self, slot: int) -> bytes:
        """The key in `slot`."""
        key = self._keys.key(slot)
        if key is None:
            raise ValueError(f"slot {slot} is free")
        return key

    def keys_in(self, slots: NDArray[np.int64]) -> tuple[bytes, ...]:
        """The keys in `slots`, none of them free."""
        return tuple(map(self.key, slots.tolist()))

    def rows(self, slots: NDArray[np.int64] | slice) -> NDArray[np.int64]:
        """(B,) the slots themselves."""
        return np.arange(self.size)[slots] if isinstance(slots, slice) else slots

    def slot(self, key: bytes) -> int | None:
        """The slot of `key`, if it has one."""
        return self._keys.find(key)

    def expire(self, before_ms: int) -> list[bytes]:
        """Forget every key not seen since `before_ms` (event time) and return them."""
        stale = np.flatnonzero(self.live & (self["last_seen_ms"] < before_ms))
        keys = list(self.keys_in(stale))
        self._forget(stale)
        return keys

    def forget(self, key: bytes) -> bool:
        """Forget one key; False if it was not there."""
        slot = self._keys.find(key)
        if slot is not None:
            self._forget(np.array([slot]))
        return slot is not None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything in the table, for a checkpoint. The arrays are views: copy before writing."""
        keys = self._keys.keys.packed()
        return {
            "keys.bytes": keys.data,
            "keys.sizes": np.maximum(keys.size, 0),
            "keys.free": self._keys.free,
            **{f"column.{name}": self[name] for name in self._columns},
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Become the table that `arrays` was taken from.

        They are taken over, not copied, where they can be written to: nobody else may use them.

        Raises:
            ValueError: the columns are not those of `arrays`, or this table has more rows.
        """
        rows = len(arrays["keys.sizes"])
        columns = under("column", arrays)
        found = {name: (a.shape, a.dtype) for name, a in columns.items()}
        own = {
            name: ((self._bounded(name, rows), *c.shape[1:]), c.dtype)
            for name, c in self._columns.items()
        }
        differing = sorted(n for n in found.keys() | own.keys() if found.get(n) != own.get(n))
        if differing:
            raise ValueError(f"not the columns of this table: {', '.join(differing)}")
        if self.size > rows:
            raise ValueError(f"a table of {self.size} rows cannot become one of {rows}")
        self._capacity = rows
        sizes = np.where(columns["live"], arrays["keys.sizes"], -1)
        start = np.cumsum(arrays["keys.sizes"]) - arrays["keys.sizes"]
        keys = BytesColumn(arrays["keys.bytes"], start, sizes)
        self._keys.restore(keys, arrays["keys.free"])
        self._columns = {
            name: np.require(columns[name], requirements=("C", "A", "W")) for name in self._columns
        }
        self._in_use.clear()

    def _forget(self, slots: NDArray[np.int64]) -> None:
        for slot in slots.tolist():
            self._keys.remove(slot)
        self._clear(slots)

    def _clear(self, slots: NDArray[np.int64]) -> None:
        for name, column in self._columns.items():
            column[slots[slots < len(column)]] = self._fill[name]

    def _grow_to(self, rows: int) -> None:
        if rows <= self._capacity:
            return
        self._capacity = self._next_capacity(self._capacity, rows)
        for name in self._columns:
            self._extend(name)

    def _extend(self, name: str) -> None:
        # np.zeros, unlike np.full, does not touch memory before it is used.
        column, fill = self._columns[name], self._fill[name]
        longer = np.zeros((self._bounded(name, self._capacity), *column.shape[1:]), column.dtype)
        longer[: len(column)] = column
        if fill != 0:
            longer[len(column) :] = fill
        self._columns[name] = longer

    def _next_capacity(self, capacity: int, rows: int) -> int:
        """Half as much again, within the bound, but at least `rows`."""
        return max(rows, min(capacity + capacity // 2, self._most_keys))

    def _bounded(self, name: str, rows: int) -> int:
        most = self._most[name]
        return rows if most is None else min(rows, most)


class Part(Protocol):
    """Anything that keeps state outside of the table."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """That state; views: copy before writing."""
        ...

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take `arrays` back."""
        ...


def arrays_of(parts: Iterable[tuple[str, Part]]) -> dict[str, NDArray[Any]]:
    """The arrays of named parts, each under its name."""
    return {k: v for name, part in parts for k, v in nested(name, part.arrays()).items()}


def restore_all(parts: Iterable[tuple[str, Part]], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Give named parts their `arrays` back: the inverse of `arrays_of`."""
    for name, part in parts:
        part.restore(under(name, arrays))


def nested(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The same arrays under `prefix.`."""
    return {f"{prefix}.{name}": array for name, array in arrays.items()}


def under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The arrays whose names begin with `prefix.`, without it: the inverse of `nested`."""
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}


# -- loops over events -----------------------------------------------------------------------------


@compiled("i8:1 i8:1 > i8:1 f8:1")
def _note(
    slots: NDArray[np.int64],
    time_ms: NDArray[np.int64],
    last_seen_ms: NDArray[np.int64],
    activity: NDArray[np.float64],
) -> None:
    """One event after the other, in log order, so that it is the same bits however it is cut."""
    for i in range(len(slots)):
        slot = slots[i]
        last_seen_ms[slot] = max(last_seen_ms[slot], time_ms[i])
        activity[slot] = np.logaddexp2(activity[slot], time_ms[i] / DAY_MS)
