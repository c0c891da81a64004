"""The key table against a dictionary."""

from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from numpy.typing import NDArray

from stream_forecaster.calendar import DAY_MS
from stream_forecaster.keys import KeyTable, nested, under

_keys = st.one_of(
    st.sampled_from([b"ann", b"bob", b"cyd"]), st.binary(min_size=1, max_size=3), st.just(b"\x00")
)
_times_ms = st.integers(0, 1_000)
_MOST = 20
"""Rows of the bounded column: more than a few keys, fewer than a crowd."""
_COLUMNS = ("last_seen_ms", "live", "visits", "levels", "dear")


def _table() -> KeyTable:
    table = KeyTable()
    table.add("visits", dtype=np.int64)
    table.add("levels", (2, 3), dtype=np.float32, fill=np.nan)
    table.add("dear", (2,), dtype=np.float32, fill=np.nan, most=_MOST)
    return table


class Keys(RuleBasedStateMachine):
    """Whatever is done to the table is done to a dictionary: key -> [last seen, visits]."""

    def __init__(self) -> None:
        super().__init__()
        self.table = _table()
        self.model: dict[bytes, list[int]] = {}
        self.most_keys = 0

    @rule(seen=st.lists(st.tuples(_keys, _times_ms), max_size=30))
    def intern(self, seen: list[tuple[bytes, int]]) -> None:
        """Keys come, new and known, several at once, and leave their marks in the columns."""
        keys = [key for key, _ in seen]
        new = {key for key in keys if key not in self.model}
        slots = self.table.intern(keys, np.array([time_ms for _, time_ms in seen], np.int64))
        for key in new:
            slot = self.table.slot(key)
            assert slot is not None
            assert np.isnan(self.table["levels"][slot]).all()
            assert np.isnan(self.table["dear"][slot : slot + 1]).all()
        np.add.at(self.table["visits"], slots, 1)
        self.table["levels"][slots] = 1.0
        first = slots[slots < _MOST]
        self.table["dear"][first] = first[:, None]
        assert [self.table.key(int(slot)) for slot in slots] == keys
        for key, time_ms in seen:
            row = self.model.setdefault(key, [-1, 0])
            row[0], row[1] = max(row[0], time_ms), row[1] + 1
        self.most_keys = max(self.most_keys, len(self.model))

    @rule(count=st.integers(50, 200), time_ms=_times_ms)
    def crowd(self, count: int, time_ms: int) -> None:
        """So many new keys that the columns have to grow."""
        self.intern([(b"crowd %d" % i, time_ms) for i in range(count)])

    @rule(before_ms=_times_ms)
    def expire(self, before_ms: int) -> None:
        """Keys that were not seen of late go, and are named."""
        stale = {key for key, (seen_ms, _) in self.model.items() if seen_ms < before_ms}
        gone = self.table.expire(before_ms)
        assert len(gone) == len(stale)
        assert set(gone) == stale
        for key in stale:
            del self.model[key]

    @rule(key=_keys)
    def forget(self, key: bytes) -> None:
        """One key goes, if it was there."""
        assert self.table.forget(key) == (self.model.pop(key, None) is not None)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def forget_one_that_is_there(self, data: st.DataObject) -> None:
        """Likewise, of those known."""
        self.forget(data.draw(st.sampled_from(sorted(self.model))))

    @rule()
    def restore(self) -> None:
        """A new table takes over from the arrays, and stands exactly as the old one."""
        before = {name: array.copy() for name, array in self.table.arrays().items()}
        self.table = _table()
        assert all(not len(self.table[name]) for name in _COLUMNS)  # so they are views by now
        self.table.restore(before)
        _assert_same(self.table.arrays(), before)

    @invariant()
    def it_is_the_dictionary(self) -> None:
        """The same keys, times and visits; one slot each; no more rows than there were keys."""
        assert len(self.table) == len(self.model)
        live = np.flatnonzero(self.table.live)
        assert {self.table.key(int(slot)) for slot in live} == self.model.keys()
        for key, (seen_ms, visits) in self.model.items():
            slot = self.table.slot(key)
            assert slot is not None
            assert key in self.table
            assert self.table.key(slot) == key
            assert self.table["last_seen_ms"][slot] == seen_ms
            assert self.table["visits"][slot] == visits
            assert (self.table["levels"][slot] == 1.0).all()
            assert (self.table["dear"][slot : slot + 1] == slot).all()
        assert self.table.size <= self.most_keys

    @invariant()
    def free_rows_hold_their_fill(self) -> None:
        """Nothing is left of a key that went, so nothing is there for the next one."""
        free = ~self.table.live
        assert (self.table["last_seen_ms"][free] == -1).all()
        assert (self.table["visits"][free] == 0).all()
        assert np.isnan(self.table["levels"][free]).all()
        assert np.isnan(self.table["dear"][free[:_MOST]]).all()

    @invariant()
    def only_the_first_slots_have_rows_of_a_bounded_column(self) -> None:
        """As many as there are rows in use, up to its bound."""
        assert self.table["dear"].shape == (min(self.table.size, _MOST), 2)

    @invariant()
    def columns_are_views_of_what_is_kept(self) -> None:
        """However the table has grown, shrunk or been taken over since they were last asked for."""
        for name in _COLUMNS:
            assert np.shares_memory(self.table[name], self.table._columns[name][:1]) == (
                self.table.size > 0
            )
            assert len(self.table[name]) == min(self.table.size, len(self.table._columns[name]))

    @invariant()
    def bytes_are_counted(self) -> None:
        """At least what the rows in use and the keys take; not for ever more."""
        used = sum(self.table[name].nbytes for name in _COLUMNS)
        keys = sum(len(key) for key in self.model)
        assert used + keys <= self.table.nbytes <= 2 * used + keys + 64 * 100
        assert self.table._keys.nbytes <= 80 * (self.most_keys + 64)


Keys.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestKeys = Keys.TestCase


def _assert_same(some: dict[str, NDArray[Any]], other: dict[str, NDArray[Any]]) -> None:
    assert some.keys() == other.keys()
    for name, array in some.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def test_slots_depend_on_the_log_alone() -> None:
    """A restored table hands out the same slots as one that went on."""
    gone_on = _table()
    gone_on.intern([b"a", b"b", b"c", b"d"], np.array([1, 9, 2, 9]))
    gone_on.expire(5)
    restored = _table()
    restored.restore({name: array.copy() for name, array in gone_on.arrays().items()})

    newcomers = [b"e", b"a", b"f"], np.array([10, 10, 10])
    assert gone_on.intern(*newcomers).tolist() == restored.intern(*newcomers).tolist()


def test_a_column_added_late_starts_with_its_fill() -> None:
    """Rows that exist already hold it too."""
    table = _table()
    table.intern([b"a", b"b"], np.array([1, 1]))
    table.add("late", (2,), dtype=np.int32, fill=7)
    assert table["late"].tolist() == [[7, 7], [7, 7]]


def test_a_bounded_column_added_late_has_no_more_than_its_rows() -> None:
    """Of a table that has outgrown it already, and it does not grow with the table."""
    table = _table()
    table.intern([b"%d" % i for i in range(200)], np.zeros(200, np.int64))
    before = table.nbytes
    table.add("late", (1000,), dtype=np.float64, fill=7, most=3)
    assert table.nbytes - before == 3 * 8000
    assert table["late"].shape == (3, 1000)
    assert (table["late"] == 7).all()
    table.intern([b"%d" % i for i in range(2000)], np.zeros(2000, np.int64))
    assert table["late"].shape == (3, 1000)


def test_a_table_with_another_bound_does_not_take_over() -> None:
    """Its rows would be of other keys than those that had them, or none."""
    table, other = _table(), KeyTable()
    table.intern([b"%d" % i for i in range(50)], np.zeros(50, np.int64))
    other.add("visits", dtype=np.int64)
    other.add("levels", (2, 3), dtype=np.float32, fill=np.nan)
    other.add("dear", (2,), dtype=np.float32, fill=np.nan, most=_MOST + 1)
    with pytest.raises(ValueError, match="dear"):
        other.restore(table.arrays())


def test_a_column_is_added_once() -> None:
    """Two owners of one name would write over each other."""
    with pytest.raises(ValueError, match="visits"):
        _table().add("visits", dtype=np.int64)


def test_a_free_slot_has_no_key() -> None:
    """Asking for it is a bug in the caller."""
    table = _table()
    table.intern([b"a"], np.array([1]))
    table.forget(b"a")
    with pytest.raises(ValueError, match="slot 0 is free"):
        table.key(0)


def test_prefixes_are_taken_off_as_they_were_put_on() -> None:
    """And nothing comes along that only begins alike."""
    arrays = {"a": np.zeros(1), "b.c": np.ones(2)}
    mixed = {**nested("x", arrays), "xx.a": np.zeros(3)}
    assert under("x", mixed) == arrays


# -- bounded ---------------------------------------------------------------------------------------


def _see(table: KeyTable, keys: list[bytes], time_ms: NDArray[np.int64]) -> list[bytes]:
    """Tell a bounded table of keys, making room where it has to be; the keys that went."""
    gone: list[bytes] = []
    begin = 0
    while begin < len(keys):
        begin += len(table.intern(keys[begin:], time_ms[begin:]))
        if begin < len(keys):
            idle = [table.key(slot) for slot in table.least_active().tolist()]
            assert all(table.forget(key) for key in idle)
            gone += idle
    return gone


@given(
    seen=st.lists(st.tuples(st.sampled_from(b"abcdefgh"), st.integers(0, 5)), max_size=80),
    bound=st.integers(1, 6),
)
def test_a_full_table_gives_up_the_least_active_key(
    seen: list[tuple[int, int]], bound: int
) -> None:
    """By the events of a dictionary's keys, a day being worth half of the next; ties by slot."""
    table, model = KeyTable(bound), dict[bytes, int]()
    slots = dict[bytes, int]()
    for letter, day in seen:
        key = bytes([letter])
        expected = []
        if key not in model and len(model) == bound:
            expected = [min(model, key=lambda k: (model[k], slots[k]))]
            del model[expected[0]]
        assert _see(table, [key], np.array([day * DAY_MS])) == expected
        model[key] = model.get(key, 0) + 2**day
        slots[key] = table.slot(key) or 0
        assert len(table) == len(model) <= bound
        assert all(known in table for known in model)


@given(bound=st.integers(2, 200), others=st.floats(0.1, 0.9), seed=st.integers(0, 9))
@settings(max_examples=10)
def test_keys_that_come_once_do_not_throw_out_those_that_stay(
    bound: int, others: float, seed: int
) -> None:
    """However many: they compete for what is left by those that came twice before."""
    rng, table, once = np.random.default_rng(seed), KeyTable(bound), count()
    room = max(1, bound // 64)
    staying = [b"stays %d" % i for i in range(int(others * (bound - room)))]
    gone: list[bytes] = []
    for hour in range(10):
        flood = [b"once %d" % next(once) for _ in range(3 * bound if hour > 1 else 0)]
        keys = [*staying, *flood]
        order = rng.permutation(len(keys))
        time_ms = np.full(len(keys), hour * DAY_MS // 24)
        gone += _see(table, [keys[i] for i in order], time_ms)
    assert len(gone) > 20 * bound
    assert not set(staying) & set(gone)
    assert len(table) <= bound


def test_a_table_is_never_longer_than_its_bound() -> None:
    """Nor are its columns, though they grow by half at a time."""
    table = KeyTable(100)
    table.add("visits", (10,), dtype=np.float64)
    _see(table, [b"%d" % i for i in range(1_000)], np.arange(1_000) * 1_000)
    assert len(table) <= table.size == 100
    assert table.bytes_for(100)["visits"] == table["visits"].nbytes == 100 * 80


def test_a_table_with_a_lower_bound_takes_over_and_shrinks() -> None:
    """All keys come along; those beyond the bound go with the next new one."""
    larger, lower = KeyTable(50), KeyTable(10)
    larger.intern([b"%d" % i for i in range(30)], np.arange(30) * DAY_MS)
    lower.restore(larger.arrays())
    assert len(lower) == 30
    gone = _see(lower, [b"29", b"new"], np.array([30, 30]) * DAY_MS)
    assert gone == [b"%d" % i for i in range(21)]
    assert len(lower) == 10
