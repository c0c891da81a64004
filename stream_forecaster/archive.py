"""Arrays and a header as one block of bytes: safetensors, with the header in its metadata.

    ┌────────┬──────────────────────────────────────────────┬────────────────────────────┐
    │ length │ JSON: of every array kind, shape and place;  │ the arrays, widest cells   │
    │        │ "__metadata__": {"header": ours, as JSON}    │ first, nothing between     │
    └────────┴──────────────────────────────────────────────┴────────────────────────────┘
        8      length bytes, with so many spaces that the arrays lie at multiples of their width

Checkpoints and files of weights are both archives. Nothing is ever unpickled. The library that
defines the format copies every array twice to write it and once to read it; a checkpoint may be as
large as half of the memory, so here it is written in one copy and read in none. Either reads what
the other has written.

Source: https://github.com/huggingface/safetensors, "Format".
"""

import json
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_KINDS = {"BOOL": "?", "U8": "u1", "I8": "i1", "I16": "<i2", "U16": "<u2", "F16": "<f2"}
_KINDS |= {"I32": "<i4", "U32": "<u4", "F32": "<f4", "F64": "<f8", "I64": "<i8", "U64": "<u8"}
_DTYPES = {kind: np.dtype(code) for kind, code in _KINDS.items()}
_SPELLED = {dtype: kind for kind, dtype in _DTYPES.items()}
_RANK = {dtype: rank for rank, dtype in enumerate(_SPELLED)}
"""In which order the format's library sorts them: the last one comes first."""
_METADATA = "__metadata__"
_WIDEST = 8


class _Place(NamedTuple):
    """Of one array: its name, and where it lies behind the JSON."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    end: int


def pack(
    header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], *, room: int = 0
) -> bytearray:
    """The archive; one copy of the arrays.

    Args:
        header: anything JSON can say.
        arrays: by name; "__metadata__" is not one.
        room: bytes to leave free before it. The arrays are aligned in the whole.

    Raises:
        ValueError: an array of a kind that the format does not know.
    """
    places = [*_places(arrays)]
    spelled = {
        place.name: {
            "dtype": _SPELLED[place.dtype],
            "shape": place.shape,
            "data_offsets": (place.begin, place.end),
        }
        for place in places
    }
    text = json.dumps(
        {_METADATA: {"header": json.dumps(header)}, **spelled},
        separators=(",", ":"),
        ensure_ascii=False,
    ).encode()
    text += b" " * (-(room + len(text)) % _WIDEST)
    first = room + 8 + len(text)
    data = bytearray(first + (places[-1].end if places else 0))
    data[room:first] = len(text).to_bytes(8, "little") + text
    for place in places:
        _view(data, first, place)[...] = arrays[place.name]
    return data


def unpack(data: bytes | bytearray | memoryview) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The header and the arrays in `data`; the arrays are views of it.

    Raises:
        ValueError: it is truncated, altered where that can be seen, or not an archive at all.
    """
    first = 8 + int.from_bytes(data[:8], "little")
    if first > len(data):
        raise ValueError("it ends within its header")
    try:
        spelled = json.loads(bytes(data[8:first]))
        header = json.loads(spelled.pop(_METADATA)["header"])
        places = [_place(name, said) for name, said in spelled.items()]
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")  # noqa: TRY004  (the data is wrong, not the call)
    end = 0
    for place in sorted(places, key=lambda place: (place.begin, place.end)):
        if place.begin != end:
            raise ValueError(
                f"{place.name} begins at {place.begin}, what is before it ends at {end}"
            )
        end = place.end
    if first + end != len(data):
        raise ValueError(f"its arrays end at {first + end}, and it at {len(data)}")
    return header, {place.name: _view(data, first, place) for place in places}


def _places(arrays: Mapping[str, NDArray[Any]]) -> Iterator[_Place]:
    """The widest cells first, so that all lie at multiples of their width."""
    for name, array in arrays.items():
        if array.dtype not in _RANK:
            raise ValueError(f"{name} is of {array.dtype}, which an archive cannot hold")
    begin = 0
    for name, array in sorted(arrays.items(), key=lambda item: (-_RANK[item[1].dtype], item[0])):
        yield _Place(name, array.dtype, array.shape, begin, begin + array.nbytes)
        begin += array.nbytes


def _place(name: str, said: Mapping[str, Any]) -> _Place:
    dtype, shape, (begin, end) = _DTYPES[said["dtype"]], tuple(said["shape"]), said["data_offsets"]
    if any(type(number) is not int or number < 0 for number in (*shape, begin, end)):
        raise ValueError(f"{name} has a shape or a place that is no whole number")
    if prod(shape) * dtype.itemsize != end - begin:
        raise ValueError(f"{name} of {dtype} and shape {shape} does not take {end - begin} bytes")
    return _Place(name, dtype, shape, begin, end)


def _view(data: bytes | bytearray | memoryview, first: int, place: _Place) -> NDArray[Any]:
    return np.ndarray(place.shape, place.dtype, data, first + place.begin)
