"""Where files of network weights are read from and written to: any URL that fsspec opens."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import fsspec
from fsspec.implementations.local import LocalFileSystem

from stream_forecaster import weights
from stream_forecaster.config import without_passwords
from stream_forecaster.errors import ConfigError, StoreUnusable, StreamForecasterError
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


def require_writable(url: str) -> None:
    """Make sure, before hours of training, that there is a folder to write to.

    Raises:
        ConfigError: no driver knows `url`, or nothing can be written to its folder.
    """
    with _explained(url, ConfigError):
        fs, path = fsspec.core.url_to_fs(url)
        if isinstance(fs, LocalFileSystem):
            folder = Path(path).parent
            if Path(path).is_dir():
                raise IsADirectoryError("it is a folder")
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(f"{folder} is no folder that can be written to")


def write_weights(url: str, found: Weights) -> None:
    """Write a file of weights, whole or not at all: an object store does, a disk needs a rename.

    Raises:
        StoreUnusable: it cannot be written.
    """
    data = found.encode()
    with _explained(url):
        fs, path = fsspec.core.url_to_fs(url)
        if not isinstance(fs, LocalFileSystem):
            fs.pipe_file(path, data)
            return
        partial = Path(f"{path}.{uuid4().hex}.tmp")
        try:
            partial.write_bytes(data)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def _explained(url: str, kind: type[StreamForecasterError] = StoreUnusable) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        raise kind(f"cannot write {without_passwords(url)}: {error}") from None
