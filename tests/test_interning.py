"""Interning against a dictionary and a list."""

import numpy as np
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from stream_forecaster.interning import Interned
from stream_forecaster.records import BytesColumn

_keys = st.one_of(
    st.integers(0, 40).map(lambda i: b"%d" % i),
    st.binary(max_size=9),
    st.integers(0, 70).map(bytes),  # that differ in nothing but their length
)
_steps = st.lists(
    st.one_of(
        st.lists(_keys, max_size=60),
        st.tuples(st.just("remove"), st.lists(st.integers(0, 1000), max_size=40)),
        st.just("restore"),
    ),
    max_size=12,
)


class Slow:
    """The same, a key at a time."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.slots: dict[bytes, int] = {}
        self.free: list[int] = []
        self.size = 0

    def intern(self, keys: list[bytes]) -> list[int]:
        """As `Interned.intern`."""
        slots = []
        for key in keys:
            if key not in self.slots:
                if len(self.slots) >= self.most:
                    break
                self.slots[key] = self.free.pop() if self.free else self.size
                self.size = max(self.size, self.slots[key] + 1)
            slots.append(self.slots[key])
        return slots

    def remove(self, key: bytes) -> None:
        """As `Interned.remove`, by key."""
        self.free.append(self.slots.pop(key))


@effort(max_examples=150)
@given(steps=_steps, most=st.sampled_from([3, 50, 1 << 40]))
def test_slots_are_those_of_a_dictionary(steps: list[object], most: int) -> None:
    """Whatever comes and goes, over growth, compaction and another secret after a restart."""
    fast, slow = Interned(most), Slow(most)
    for step in steps:
        if isinstance(step, list):
            slots, _ = fast.intern(BytesColumn.of(step))
            assert slots.tolist() == slow.intern(step)
        elif isinstance(step, tuple):
            for i in step[1]:
                if slow.slots:
                    key = sorted(slow.slots)[i % len(slow.slots)]
                    fast.remove(slow.slots[key])
                    slow.remove(key)
        else:
            keys, free = fast.keys, fast.free
            fast = Interned(most)
            fast.restore(keys, free)
        assert (len(fast), fast.size) == (len(slow.slots), slow.size)
        assert fast.free.tolist() == slow.free
        by_slot = {slot: key for key, slot in slow.slots.items()}
        assert fast.keys == [by_slot.get(slot) for slot in range(slow.size)]
        assert all(fast.find(key) == slot for key, slot in slow.slots.items())
        assert fast.find(b"never there") is None


def test_which_slots_had_been_free_is_told() -> None:
    """In no particular order; new ones are not among them."""
    keys = Interned()
    keys.intern(BytesColumn.of([b"%d" % i for i in range(5)]))
    for slot in (1, 3):
        keys.remove(slot)
    slots, freed = keys.intern(BytesColumn.of([b"x", b"0", b"y", b"z"]))
    assert slots.tolist() == [3, 0, 1, 5]
    assert sorted(freed.tolist()) == [1, 3]


def test_churn_takes_no_memory() -> None:
    """A hundred thousand keys, a hundred of them at a time, in what a few hundred take."""
    keys = Interned()
    for begin in range(0, 100_000, 100):
        slots, _ = keys.intern(BytesColumn.of([b"%012d" % (begin + i) for i in range(100)]))
        for slot in slots.tolist():
            keys.remove(slot)
    assert len(keys) == 0
    assert keys.nbytes < 300 * (12 + 32 + 16)


def test_keys_that_collide_elsewhere_do_not_here() -> None:
    """Keys chosen against a hash that is a plain sum of words: a place each, or nearly so."""
    keys = Interned()
    words = [b"%04d%04d" % (i, 9_999 - i) for i in range(10_000)]
    keys.intern(BytesColumn.of(words))
    hashes = keys._rows[2, : keys.size]
    assert len(np.unique(hashes)) > 9_990
