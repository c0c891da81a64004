"""Where files of network weights are read from and written to: any URL that fsspec opens."""

import fsspec

from stream_forecaster import weights
from stream_forecaster.config import without_passwords
from stream_forecaster.errors import StoreUnusable
from stream_forecaster.weights import Weights


def read_weights(url: str) -> Weights | None:
    """The weights at `url`; None, those that ship, where it is empty.

    Raises:
        StoreUnusable: it cannot be read.
        WeightsMismatch: it is not a file of weights, or of another architecture.
    """
    if not url:
        return None
    name = without_passwords(url)
    try:
        with fsspec.open(url, "rb") as file:
            data: bytes = file.read()
    except (OSError, ValueError, ImportError) as error:
        raise StoreUnusable(f"model.weights: cannot read {name}: {error}") from None
    return weights.decode(data, name)


def write_weights(url: str, found: Weights) -> None:
    """Write a file of weights.

    Raises:
        StoreUnusable: it cannot be written.
    """
    try:
        with fsspec.open(url, "wb") as file:
            file.write(found.encode())
    except (OSError, ValueError, ImportError) as error:
        raise StoreUnusable(f"cannot write {without_passwords(url)}: {error}") from None
