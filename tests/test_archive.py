"""Archives: what is packed comes back, and nothing else is taken for one."""

import json
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from stream_forecaster.archive import pack, unpack

_NO_OBJECTS: list[Any] = [[], None, 7, "word"]
_words = st.text(st.characters(codec="utf-8"), max_size=5)
_headers = st.dictionaries(
    _words,
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _words,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)
_ARRAYS: dict[str, Any] = {"a": np.arange(6.0).reshape(2, 3), "b.c": np.zeros(0, np.int64)}


@given(header=_headers)
def test_what_is_packed_comes_back(header: dict[str, Any]) -> None:
    """Any header, the arrays bit for bit, and the same bytes every time."""
    found, arrays = unpack(pack(header, _ARRAYS))
    assert found == header
    assert arrays.keys() == _ARRAYS.keys()
    for name, array in _ARRAYS.items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(arrays[name], array)
    assert pack(header, _ARRAYS) == pack(header, _ARRAYS)


_DTYPES = ["?", "u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8"]
_arrays = st.dictionaries(
    _words.filter(lambda name: name != "__metadata__"),
    st.sampled_from(_DTYPES).flatmap(
        lambda kind: npst.arrays(kind, npst.array_shapes(min_dims=0, max_dims=3, min_side=0))
    ),
    max_size=4,
)


@given(header=_headers, arrays=_arrays)
def test_it_is_what_the_library_of_the_format_writes(
    header: dict[str, Any], arrays: dict[str, Any]
) -> None:
    """Byte for byte, and each reads what the other has written."""
    whole = bytes(pack(header, arrays))

    assert whole == safetensors.numpy.save(arrays, {"header": json.dumps(header)})
    for found in (unpack(whole)[1], safetensors.numpy.load(whole)):
        assert {n: (a.dtype, a.shape, a.tobytes()) for n, a in found.items()} == {
            n: (a.dtype, a.shape, a.tobytes()) for n, a in arrays.items()
        }


def test_reading_copies_nothing() -> None:
    """And writing once: a checkpoint may be as large as half of the memory."""
    data = pack({}, _ARRAYS, room=5)

    _, arrays = unpack(memoryview(data)[5:])
    arrays["a"][0, 0] = 7.0

    assert unpack(memoryview(data)[5:])[1]["a"][0, 0] == 7.0


@pytest.mark.parametrize("dtype", ["c16", ">f8", "U3", "O", "M8[s]"])
def test_arrays_of_other_kinds_are_refused(dtype: str) -> None:
    """The format does not know them."""
    with pytest.raises(ValueError, match=r"b\.c is of"):
        pack({}, {"b.c": np.zeros(2, dtype)})


@given(data=st.data())
def test_a_truncated_archive_is_none(data: st.DataObject) -> None:
    """Wherever it ends."""
    whole = pack({"n": 1}, _ARRAYS)
    with pytest.raises(ValueError, match=r"."):
        unpack(whole[: data.draw(st.integers(0, len(whole) - 1))])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 64,
        safetensors.numpy.save({"a": np.zeros(1)}),
        safetensors.numpy.save({"a": np.zeros(1)}, {"other": "{}"}),
        safetensors.numpy.save({"a": np.zeros(1)}, {"header": "{"}),
        *(
            safetensors.numpy.save({"a": np.zeros(1)}, {"header": json.dumps(header)})
            for header in _NO_OBJECTS
        ),
    ],
)
def test_other_bytes_are_none(data: bytes) -> None:
    """Other safetensors included, and headers that are no object."""
    with pytest.raises(ValueError, match=r"."):
        unpack(data)
