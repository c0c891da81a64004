"""Arrays and a header as one block of bytes: safetensors, with the header in its metadata.

Checkpoints and files of weights are both archives. Nothing is ever unpickled.
"""

import json
from collections.abc import Mapping
from typing import Any

import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError


def pack(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The archive; one copy of the arrays.

    Args:
        header: anything JSON can say.
        arrays: by name; "__metadata__" is not one.
    """
    return safetensors.numpy.save(dict(arrays), {"header": json.dumps(header)})


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The header and the arrays in `data`.

    Raises:
        ValueError: it is truncated, altered where that can be seen, or not an archive at all.
    """
    try:
        arrays = safetensors.numpy.load(data)
        size = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["header"])
    except (SafetensorError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{error}") from None
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")  # noqa: TRY004  (the data is wrong, not the call)
    return header, arrays
