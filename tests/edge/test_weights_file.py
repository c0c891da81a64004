"""Files of weights at a URL."""

from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from stream_forecaster.edge.weights_file import (
    read_weights,
    require_writable,
    write_weights,
)
from stream_forecaster.errors import ConfigError, StoreUnusable, WeightsMismatch
from stream_forecaster.weights import shipped


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_what_is_written_is_read(tmp_path: Path, scheme: str) -> None:
    """By path or by URL."""
    url = f"{scheme}{tmp_path / 'w.safetensors'}"
    write_weights(url, shipped())
    read = read_weights(url)
    assert read is not None
    assert all(np.array_equal(read.arrays[n], array) for n, array in shipped().arrays.items())


def test_no_url_is_none() -> None:
    """Those that ship are meant."""
    assert read_weights("") is None


@pytest.mark.parametrize("url", ["/no/such/w.safetensors", "nosuchscheme://host/w.safetensors"])
def test_a_file_that_cannot_be_read_is_named(url: str) -> None:
    """With the setting that led there."""
    with pytest.raises(StoreUnusable, match=f"model.weights: cannot read {url}"):
        read_weights(url)


def test_passwords_are_not_told() -> None:
    """An error message ends up in logs."""
    with pytest.raises(StoreUnusable) as refused:
        read_weights("nosuchscheme://ann:secret@host/w.safetensors")
    assert "secret" not in str(refused.value)
    assert "host/w.safetensors" in str(refused.value)


def test_another_file_is_refused_by_name(tmp_path: Path) -> None:
    """It can be read, but is no file of weights."""
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"hello")
    with pytest.raises(WeightsMismatch, match=r"w\.safetensors"):
        read_weights(str(path))


def test_an_object_store_is_written_to() -> None:
    """As a whole, by its driver."""
    url = f"memory://weights-{uuid4().hex}/w.safetensors"
    require_writable(url)
    write_weights(url, shipped())
    read = read_weights(url)
    assert read is not None
    assert read.encode() == shipped().encode()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    """Weights that cannot be encoded leave what was there, and nothing beside it."""
    path = tmp_path / "w.safetensors"
    write_weights(str(path), shipped())
    before = path.read_bytes()
    broken = replace(shipped(), card={"not": {"json"}})
    with pytest.raises(TypeError):
        write_weights(str(path), broken)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_could_not_be_written_is_known_before(tmp_path: Path) -> None:
    """A folder in the way, one that is missing, a driver that nobody has: wrong usage, exit 2."""
    require_writable(str(tmp_path / "w.safetensors"))
    for url in (f"{tmp_path}", f"{tmp_path}/no/such/w.safetensors", "nosuchscheme://host/w"):
        with pytest.raises(ConfigError, match=f"cannot write {url}"):
            require_writable(url)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A folder is in the way; nothing is left beside it."""
    folder = tmp_path / "w"
    folder.mkdir()
    with pytest.raises(StoreUnusable, match=f"cannot write {folder}"):
        write_weights(str(folder), shipped())
    assert list(tmp_path.iterdir()) == [folder]
