"""Interning: key bytes to slots, the numbers of the rows that keys have, and back.

Theory of operation. An open-addressing table of slots, half full at most, is probed from a key's
hash on; a slot says where in an *arena* the bytes of its key lie, and these are compared. No object
is made of a key until somebody asks for it.

    hash ─▶ table ┌───┬───┬───┬───┐      rows of slot 7         arena
                  │   │ 7 │ 2 │   │ ──▶  start, size, hash ──▶  ···ann·bob·cyd···
                  └───┴───┴───┴───┘

Rules of residence:
1. Slots are handed out in order of first appearance, freed ones last in first out. Nothing that is
   seen from outside depends on hashes, on how far the table has grown, or on how keys are grouped.
2. Where a key goes, those behind it in the table move up, so that probing never meets a hole. Its
   bytes stay in the arena until that is full; then what is left is moved to a new one, which has
   half as much again. So churn costs a copy now and then and no memory.
3. Whoever writes events chooses keys, and could choose such as collide. So the hash is one of a
   family, which one is the process's secret, and of any two keys few of the family collide: a sum
   of the key's words times secret numbers (Lemire and Kaser, Strongly universal string hashing is
   fast, 2014).
"""

import numpy as np
from numpy.typing import NDArray

from stream_forecaster.compiled import compiled, inlined
from stream_forecaster.records import BytesColumn

Bytes = NDArray[np.uint8]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]

_FIRST_ROWS = 64
_EMPTY = -1
_WORD_BYTES = 4

_START, _SIZE, _HASH, _FREE = range(4)
"""Rows by slot: where its key begins in the arena, how long that is (-1: free), and its hash. And
apart from these the stack of free slots."""
_SLOTS, _FREED, _USED, _MOST = range(4)
"""Counts: slots handed out, those that are free again, bytes of the arena; the bound of keys."""


class Interned:
    """Keys and their slots.

    Attributes:
        size: slots handed out, those that are free again included.

    >>> keys = Interned()
    >>> slots, _ = keys.intern(BytesColumn.of([b"ann", b"bob", b"ann"]))
    >>> slots.tolist(), keys.find(b"bob"), keys.key(0)
    ([0, 1, 0], 1, b'ann')
    """

    _counts: Int64
    _rows: Int64
    _table: Int32
    _arena: Bytes

    def __init__(self, most: int = np.iinfo(np.int64).max) -> None:
        """Begin empty; `most` is the bound."""
        self._most = most
        # Python's own secret of the process; nothing that is seen depends on it.
        self._random = np.random.default_rng(hash("interning") & 0xFFFFFFFF_FFFFFFFF)
        self._secret = np.empty(0, np.uint64)
        self._take_over(BytesColumn.of([]), np.empty(0, np.int64))

    def __len__(self) -> int:
        """The number of keys."""
        return self.size - int(self._counts[_FREED])

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and of what finds them, as allocated."""
        return self._arena.nbytes + self._rows.nbytes + self._table.nbytes

    @property
    def keys(self) -> BytesColumn:
        """(size,) the key in each slot, a view; null where it is free."""
        rows = self._rows[:, : self.size]
        return BytesColumn(self._arena, rows[_START], rows[_SIZE])

    @property
    def free(self) -> Int64:
        """The free slots, a view; the last one is handed out next."""
        free: Int64 = self._rows[_FREE, : self._counts[_FREED]]
        return free

    def intern(self, keys: BytesColumn) -> tuple[Int64, Int64]:
        """The slots of `keys` (N,), new ones where needed; none of them may be null.

        Returns:
            the slots (N,), or those of the keys before the first one beyond the bound; and those of
            them that had been free.
        """
        self._know_words(int(keys.size.max(initial=0)))
        slots, done = np.empty(len(keys), np.int64), 0
        free = len(self.free)
        while done < len(keys):
            self._counts[_MOST] = self._most
            done += _intern(
                keys.data,
                self._secret,
                keys.start[done:],
                keys.size[done:],
                self._table,
                self._rows,
                self._arena,
                self._counts,
                slots[done:],
            )
            self.size = int(self._counts[_SLOTS])
            if done < len(keys):
                if len(self) >= self._most:
                    break
                self._grow(int(keys.size[done]))
        # What was handed out still lies behind what is free.
        return slots[:done], self._rows[_FREE, self._counts[_FREED] : free].copy()

    def find(self, key: bytes) -> int | None:
        """The slot of a key, if it has one."""
        self._know_words(len(key))
        data = np.frombuffer(key, np.uint8)
        slot = _find(data, self._secret, self._table, self._rows, self._arena)
        return None if slot < 0 else slot

    def key(self, slot: int) -> bytes | None:
        """The key in a slot; None where it is free."""
        return self.keys[slot]

    def remove(self, slot: int) -> None:
        """Free a slot that has a key."""
        _remove(slot, self._table, self._rows, self._counts)

    def restore(self, keys: BytesColumn, free: Int64) -> None:
        """Become what has these keys by slot, and these slots free; `keys` and `free` as above."""
        self._take_over(keys.packed(), free)

    def _take_over(self, keys: BytesColumn, free: Int64) -> None:
        self.size, capacity = len(keys), max(len(keys), _FIRST_ROWS)
        self._rows = np.zeros((4, capacity), np.int64)
        self._rows[_START, : len(keys)], self._rows[_SIZE, : len(keys)] = keys.start, keys.size
        self._rows[_FREE, : len(free)] = free
        self._arena = keys.data.copy()
        self._counts = np.array([len(keys), len(free), len(keys.data), 0], np.int64)
        self._know_words(int(keys.size.max(initial=0)))
        self._hash_anew(2 * capacity)

    def _grow(self, key_bytes: int) -> None:
        """Have room for one more key of that size; whatever is full gets half as much again."""
        slots, size = self._rows.shape[1], self.size
        if size == slots and not self._counts[_FREED]:
            rows = np.zeros((4, slots + slots // 2), np.int64)
            rows[:, :slots] = self._rows
            self._rows = rows
        if self._counts[_USED] + key_bytes > len(self._arena):
            kept = self.keys.packed()
            self._rows[_START, :size] = kept.start
            self._arena = np.empty(len(kept.data) * 3 // 2 + key_bytes, np.uint8)
            self._arena[: len(kept.data)] = kept.data
            self._counts[_USED] = len(kept.data)
        if 2 * (len(self) + 1) > len(self._table):
            self._hash_anew(2 * len(self._table))

    def _hash_anew(self, least: int) -> None:
        """Fill a table of at least so many places."""
        self._table = np.full(1 << (least - 1).bit_length(), _EMPTY, np.int32)
        _fill(self._secret, self.size, self._arena, self._table, self._rows)

    def _know_words(self, size: int) -> None:
        """Have a secret number for each word of a key of that size, and two more."""
        missing = size // _WORD_BYTES + 3 - len(self._secret)
        if missing > 0:
            more = self._random.integers(0, 1 << 64, missing + 16, np.uint64)
            self._secret = np.append(self._secret, more)


# -- loops -----------------------------------------------------------------------------------------


@inlined
def _hashed(data: Bytes, start: int, size: int, secret: UInt64) -> int:
    """32 bits of a key."""
    total = secret[0] + secret[1] * np.uint64(size)
    word, at = np.uint64(0), 0
    for i in range(size):
        word |= np.uint64(data[start + i]) << np.uint64(8 * at)
        at += 1
        if at == _WORD_BYTES or i == size - 1:
            total += secret[2 + i // _WORD_BYTES] * word
            word, at = np.uint64(0), 0
    return int(np.int64(total >> np.uint64(32)))


@inlined
def _place(data: Bytes, key: tuple[int, int, int], table: Int32, rows: Int64, arena: Bytes) -> int:
    """Where in the table a key is, or, where it is not, the empty place that it would get."""
    start, size, hashed = key
    at = hashed & (len(table) - 1)
    while table[at] != _EMPTY:
        slot = table[at]
        if rows[_HASH, slot] == hashed and rows[_SIZE, slot] == size:
            begin = rows[_START, slot]
            same = True
            for i in range(size):
                if arena[begin + i] != data[start + i]:
                    same = False
                    break
            if same:
                break
        at = (at + 1) & (len(table) - 1)
    return at


@compiled("u1:1! u8:1 i8:1 i8:1 > i4:1 i8:2 u1:1 i8:1 i8:1 = i8")
def _intern(  # noqa: PLR0913, PLR0917  (a loop has no objects to keep arrays in)
    data: Bytes,
    secret: UInt64,
    start: Int64,
    size: Int64,
    table: Int32,
    rows: Int64,
    arena: Bytes,
    counts: Int64,
    slots: Int64,
) -> int:
    """The slots of keys, new ones where needed; of how many, before one finds no room."""
    for i in range(len(start)):
        hashed = _hashed(data, start[i], size[i], secret)
        at = _place(data, (start[i], size[i], hashed), table, rows, arena)
        if table[at] == _EMPTY:
            keys, used = counts[_SLOTS] - counts[_FREED], counts[_USED]
            if keys >= counts[_MOST] or 2 * (keys + 1) > len(table):
                return i
            if used + size[i] > len(arena):
                return i
            if counts[_FREED]:
                counts[_FREED] -= 1
                slot = rows[_FREE, counts[_FREED]]
            elif counts[_SLOTS] < rows.shape[1]:
                slot = counts[_SLOTS]
                counts[_SLOTS] += 1
            else:
                return i
            for byte in range(size[i]):
                arena[used + byte] = data[start[i] + byte]
            counts[_USED] += size[i]
            rows[_START, slot], rows[_SIZE, slot], rows[_HASH, slot] = used, size[i], hashed
            table[at] = slot
        slots[i] = table[at]
    return len(start)


@compiled("u1:1! u8:1 i4:1 i8:2 u1:1 > = i8")
def _find(data: Bytes, secret: UInt64, table: Int32, rows: Int64, arena: Bytes) -> int:
    """The slot of the key that is all of `data`; -1 if it has none."""
    hashed = _hashed(data, 0, len(data), secret)
    return int(table[_place(data, (0, len(data), hashed), table, rows, arena)])


@compiled("i8 > i4:1 i8:2 i8:1")
def _remove(slot: int, table: Int32, rows: Int64, counts: Int64) -> None:
    """Free a slot, and close the gap that its key leaves in the table."""
    mask = len(table) - 1
    gap = rows[_HASH, slot] & mask
    while table[gap] != slot:
        gap = (gap + 1) & mask
    at = gap
    while True:
        at = (at + 1) & mask
        if table[at] == _EMPTY:
            break
        home = rows[_HASH, table[at]] & mask
        if ((at - home) & mask) >= ((at - gap) & mask):  # it may be as near to its home as that
            table[gap] = table[at]
            gap = at
    table[gap] = _EMPTY
    rows[_SIZE, slot] = -1
    rows[_FREE, counts[_FREED]] = slot
    counts[_FREED] += 1


@compiled("u8:1 i8 u1:1 > i4:1 i8:2")
def _fill(secret: UInt64, size: int, arena: Bytes, table: Int32, rows: Int64) -> None:
    """Put the keys of the first slots into an empty table."""
    for slot in range(size):
        if rows[_SIZE, slot] >= 0:
            rows[_HASH, slot] = _hashed(arena, rows[_START, slot], rows[_SIZE, slot], secret)
            at = rows[_HASH, slot] & (len(table) - 1)
            while table[at] != _EMPTY:
                at = (at + 1) & (len(table) - 1)
            table[at] = slot
