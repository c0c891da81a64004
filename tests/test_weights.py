"""Files of weights: what is written is read, and nothing else is."""

import json
import pickle
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given
from hypothesis import strategies as st

from stream_forecaster.calendar import DAY_MS, HOUR_MS
from stream_forecaster.errors import WeightsMismatch
from stream_forecaster.network import Network
from stream_forecaster.weights import (
    ARCHITECTURE,
    Weights,
    _shapes,
    decode,
    shipped,
    untrained,
)

_MINUTE_MS = 60_000


def _weights(steps_ms: tuple[int, ...] = (_MINUTE_MS, HOUR_MS)) -> Weights:
    torch.manual_seed(0)
    arrays = {name: value.numpy() for name, value in Network(len(steps_ms)).state_dict().items()}
    shares = np.linspace(0, 0.5, 2 * len(steps_ms)).reshape(-1, 2)
    return Weights(steps_ms, arrays, shares, {"data": "synthetic", "score": 0.97})


def _file(arrays: dict[str, Any], **header: Any) -> bytes:
    """A file as `Weights.encode` writes it, but for parts of its header."""
    whole = {
        "architecture": ARCHITECTURE,
        "steps_ms": [_MINUTE_MS, HOUR_MS],
        "shares": [[0, 0], [0, 0]],
        "card": {},
    } | header
    return safetensors.numpy.save(arrays, {"header": json.dumps(whole)})


def test_what_is_written_is_read() -> None:
    """Bit for bit, with the shares and the card."""
    written = _weights()
    read = decode(written.encode(), "w")
    assert (read.steps_ms, read.card) == (written.steps_ms, written.card)
    np.testing.assert_array_equal(read.shares, written.shares)
    assert read.arrays.keys() == written.arrays.keys()
    assert all(np.array_equal(read.arrays[n], a) for n, a in written.arrays.items())


def test_untrained_weights_have_no_say() -> None:
    """Random, of the architecture, the same for the same seed; and the draw is its own."""
    state = torch.random.get_rng_state()
    drawn, again, other = (untrained((_MINUTE_MS, HOUR_MS), seed) for seed in (1, 1, 2))

    assert torch.equal(torch.random.get_rng_state(), state)
    assert not drawn.shares.any()
    assert decode(drawn.encode(), "w").steps_ms == (_MINUTE_MS, HOUR_MS)
    assert all(np.array_equal(a, again.arrays[name]) for name, a in drawn.arrays.items())
    assert any(not np.array_equal(a, other.arrays[name]) for name, a in drawn.arrays.items())


@given(data=st.data())
def test_a_truncated_file_is_refused(data: st.DataObject) -> None:
    """Wherever it ends."""
    whole = _weights().encode()
    end = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(WeightsMismatch, match=r"my\.file: not a file of network weights"):
        decode(whole[:end], "my.file")


@given(data=st.data())
def test_an_altered_header_never_escapes_as_another_error(data: st.DataObject) -> None:
    """A flipped byte is refused, or it was in what nobody checks: the card, a share."""
    altered = bytearray(_weights().encode())
    end = 8 + int.from_bytes(altered[:8], "little")
    altered[data.draw(st.integers(0, end - 1))] ^= data.draw(st.integers(1, 255))
    try:
        read = decode(bytes(altered), "w")
    except WeightsMismatch:
        return
    assert read.arrays.keys() == _weights().arrays.keys()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 64,
        b"{}",
        safetensors.numpy.save({"a": np.zeros(1)}),
        safetensors.numpy.save({"a": np.zeros(1)}, {"header": "[]"}),
        safetensors.numpy.save({"a": np.zeros(1)}, {"header": "{"}),
        _file({}, architecture=[1]),
        _file({}, steps_ms=7),
        _file({}, shares=[[1], [1, 2]]),
    ],
)
def test_other_files_are_refused(data: bytes) -> None:
    """With the name of the file."""
    with pytest.raises(WeightsMismatch, match="w: not a file of network weights"):
        decode(data, "w")


class _Bomb:
    """Goes off when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("unpickled",)


def test_nothing_is_unpickled() -> None:
    """A pickle is no file of weights."""
    with pytest.raises(WeightsMismatch):
        decode(pickle.dumps(_Bomb()), "w")


def test_another_architecture_is_refused_by_what_differs() -> None:
    """It is named, with both values; what is equal is not."""
    other = ARCHITECTURE | {"state": 64}
    with pytest.raises(WeightsMismatch, match="state is 64 there and 32 here") as refused:
        decode(_file(dict(_weights().arrays), architecture=other), "w")
    assert "patch" not in str(refused.value)
    assert "`stream-forecaster pretrain`" in str(refused.value)


def test_a_part_unknown_here_is_another_architecture() -> None:
    """Whoever wrote it meant something by it."""
    other = ARCHITECTURE | {"heads": 4}
    with pytest.raises(WeightsMismatch, match="heads is 4 there and None here"):
        decode(_file(dict(_weights().arrays), architecture=other), "w")


def test_shares_in_an_order_that_is_not_told_are_refused() -> None:
    """Files once had the residual path first and did not say so: read as ours they mislead."""
    untold = {name: value for name, value in ARCHITECTURE.items() if name != "paths"}
    with pytest.raises(WeightsMismatch, match=r"paths is None there and \['absolute', "):
        decode(_file(dict(_weights().arrays), architecture=untold), "w")


def test_parameters_of_another_shape_are_refused_by_name() -> None:
    """As are those that are missing and those that nobody knows."""
    arrays = dict(_weights().arrays)
    arrays["encoders.0.state.bias"] = np.zeros(7, np.float32)
    del arrays["encoders.1.state.bias"]
    arrays["surplus"] = np.zeros(1, np.float32)
    with pytest.raises(WeightsMismatch) as refused:
        decode(_file(arrays), "w")
    told = str(refused.value)
    assert "encoders.0.state.bias is (7,) there and (32,) here" in told
    assert "encoders.1.state.bias is None there" in told
    assert "surplus is (1,) there and None here" in told


def test_a_share_for_every_step() -> None:
    """No more and no fewer."""
    with pytest.raises(WeightsMismatch, match=r"shares is \(1, 2\) there and \(2, 2\) here"):
        decode(_file(dict(_weights().arrays), shares=[[0, 0]]), "w")


@pytest.mark.parametrize(
    ("step_ms", "nearest"),
    [
        (1_000, 0),
        (_MINUTE_MS, 0),
        (5 * _MINUTE_MS, 0),
        (15 * _MINUTE_MS, 1),
        (HOUR_MS, 1),
        (4 * HOUR_MS, 1),
        (6 * HOUR_MS, 2),
        (7 * DAY_MS, 2),
    ],
)
def test_the_nearest_step_by_ratio(step_ms: int, nearest: int) -> None:
    """Five minutes are nearer to one minute than to an hour; a quarter of an hour is not."""
    assert _weights((_MINUTE_MS, HOUR_MS, DAY_MS)).nearest(step_ms) == nearest


@pytest.mark.parametrize("steps", [1, 3])
def test_a_file_is_asked_for_the_parameters_of_the_network(steps: int) -> None:
    """Each with its shape, though no network is made to see them."""
    made = {name: tuple(value.shape) for name, value in Network(steps).state_dict().items()}

    assert _shapes(steps) == {"shares": (steps, 2)} | made


def test_those_that_ship_can_be_used() -> None:
    """They are of this architecture, finite, and claim no more than the whole forecast."""
    found = shipped()
    assert found.steps_ms == (_MINUTE_MS, HOUR_MS, DAY_MS)
    assert all(np.isfinite(array).all() for array in found.arrays.values())
    assert (found.shares >= 0).all()
    assert (found.shares.sum(axis=1) <= 1 + 1e-9).all()
    assert found.card
