"""Columns of bytes are the sequences that they were made of, however they are cut."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stream_forecaster.records import BytesColumn, Records

_strings = st.lists(st.one_of(st.none(), st.binary(max_size=5)), max_size=8)


@given(strings=_strings)
def test_a_column_is_a_sequence(strings: list[bytes | None]) -> None:
    """Of the same length and the same items, in every way to ask for them."""
    column = BytesColumn.of(strings)
    assert len(column) == len(strings)
    assert column == strings
    assert [column[i] for i in range(-len(strings), len(strings))] == [*strings, *strings]
    assert list(reversed(column)) == strings[::-1]
    assert BytesColumn.of(column) == strings
    assert column != [*strings, b""]


@given(strings=_strings, data=st.data())
def test_parts_of_a_column_are_views(strings: list[bytes | None], data: st.DataObject) -> None:
    """Slices and rows taken share the buffer."""
    column = BytesColumn.of(strings)
    rows = data.draw(st.lists(st.integers(0, len(strings) - 1))) if strings else []
    some = data.draw(st.slices(len(strings)))
    assert column.take(np.array(rows, np.int64)) == [strings[i] for i in rows]
    assert column[some] == strings[some]
    assert column[some].data is column.data


@given(parts=st.lists(_strings, min_size=1, max_size=4), shared=st.booleans())
def test_joined_columns_are_one_after_the_other(
    parts: list[list[bytes | None]], *, shared: bool
) -> None:
    """Whether they share a buffer, as parts of one fetch do, or not."""
    columns = [BytesColumn.of(part) for part in parts]
    everything = [string for part in parts for string in part]
    if shared:
        whole, ends = BytesColumn.of(everything), np.cumsum([len(part) for part in parts])
        columns = [whole[end - len(part) : end] for end, part in zip(ends, parts, strict=True)]
    joined = BytesColumn.joined(columns)
    assert joined == everything
    assert not shared or joined.data is columns[0].data


@given(strings=_strings, data=st.data())
def test_packing_leaves_nothing_else(strings: list[bytes | None], data: st.DataObject) -> None:
    """The buffer holds the strings in order, and not those that were left out."""
    rows = data.draw(st.permutations(range(len(strings))))[: len(strings) // 2]
    packed = BytesColumn.of(strings).take(np.array(rows, np.int64)).packed()
    assert packed == [strings[i] for i in rows]
    assert packed.data.tobytes() == b"".join(strings[i] or b"" for i in rows)


@given(strings=_strings, gaps=st.data())
def test_records_split_at_an_offset(strings: list[bytes | None], gaps: st.DataObject) -> None:
    """Into two that have all of it between them, in the same places."""
    steps = gaps.draw(st.lists(st.integers(1, 3), min_size=len(strings), max_size=len(strings)))
    offset = np.cumsum([0, *steps])[1:]
    column = BytesColumn.of(strings)
    records = Records(0, offset, np.zeros(len(strings), np.int64), column, column, 100)
    at = gaps.draw(st.integers(0, 40))
    before, after = records.split(at)
    assert [*before.value, *after.value] == strings
    assert (before.offset < at).all()
    assert (after.offset >= at).all()
    assert (before.next_offset, after.next_offset) == (at, 100)
