"""Inference answers as the network does, bit for bit the same in any company."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from numpy.typing import NDArray

from stream_forecaster import inference
from stream_forecaster.architecture import (
    BOUND,
    CANDIDATES,
    CHANNELS,
    CLUES,
    LEVELS,
    PATCH,
    STATE,
    STATISTICS,
)
from stream_forecaster.inputs import gate_bucket
from stream_forecaster.network import Network, Steps
from stream_forecaster.weights import shipped

_R = 3
Float32 = NDArray[np.float32]
Told = dict[str, Float32]

seeds = st.integers(0, 2**32 - 1)
sizes = st.sampled_from([0.01, 0.1, 0.3])  # larger ones enlarge the rounding of both
keys = st.sampled_from([1, 2, 9, 70, 300])  # fewer and more than go through it at once
horizons = st.sampled_from([1, 7, 30, 300])


def _network(seed: int, size: float) -> Network:
    network, generator = Network(_R), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return network.requires_grad_(requires_grad=False)


def _shipped() -> Network:
    network = Network(_R)
    arrays = {name: torch.from_numpy(array) for name, array in shipped().arrays.items()}
    network.load_state_dict(arrays)
    return network.requires_grad_(requires_grad=False)


def _asked(seed: int, size: int, horizon: int) -> tuple[Float32, Told, NDArray[np.int64]]:
    """States, steps, and their buckets; some of the opinions and of the states are missing."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int, scale: float = 1.0) -> Float32:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    states, steps = np.tanh(draw(size, _R, STATE)), (size, horizon, len(CANDIDATES))
    states[rng.random((size, _R)) < 1 / 3] = np.nan
    paths = draw(*steps, scale=8.0).clip(-8, 8)
    paths[rng.random(paths.shape) < 0.5] = np.nan
    losses = rng.uniform(0, 3, steps).astype(np.float32)
    told = {"candidates": paths, "losses": losses, "clues": draw(size, horizon, CLUES)}
    return states, told, gate_bucket(np.arange(1, horizon + 1))


def _windows(seed: int, size: int, patches: int) -> tuple[Float32, Float32]:
    rng = np.random.default_rng(seed)
    window = rng.normal(0, 2, (size, patches * PATCH, CHANNELS)).astype(np.float32)
    return window, rng.normal(0, 1, (size, STATISTICS)).astype(np.float32)


def _encode(network: Network, resolution: int, *told: Float32) -> Float32:
    return inference.encode(_arrays(network.encoders[resolution]), *told)


def _decode(
    network: Network, resolution: int, states: Float32, told: Told, bucket: NDArray[np.int64]
) -> tuple[Float32, Float32, Float32]:
    relation = 1 + np.sign(np.arange(_R) - resolution)
    parameters = _arrays(network.decoders[resolution])
    return inference.decode(parameters, relation, states, **told, bucket=bucket)


def _arrays(part: torch.nn.Module) -> dict[str, Any]:
    return {name: value.numpy() for name, value in part.state_dict().items()}


def _assert_alike(
    network: Network, asked: int, size: int, horizon: int, resolution: int, atol: float
) -> None:
    states, told, bucket = _asked(asked, size, horizon)
    found = _decode(network, resolution, states, told, bucket)
    steps = Steps(*(torch.from_numpy(part) for part in (*told.values(), bucket)))
    answer = network.decode(resolution, torch.from_numpy(states), steps)
    expected = (answer.absolute, answer.residual, answer.quantiles)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=atol)
    window, statistics = _windows(asked, size, 1 + horizon % 18)
    state = network.encode(resolution, torch.from_numpy(window), torch.from_numpy(statistics))
    ours = _encode(network, resolution, window, statistics)
    np.testing.assert_allclose(ours, state.numpy(), atol=atol)


@effort(max_examples=30)
@given(
    weights=seeds,
    size=sizes,
    asked=seeds,
    keys=keys,
    horizon=horizons,
    resolution=st.integers(0, _R - 1),
)
def test_it_answers_as_the_network_does(
    weights: int, size: float, asked: int, keys: int, horizon: int, resolution: int
) -> None:
    """Of any weights, up to rounding."""
    _assert_alike(_network(weights, size), asked, keys, horizon, resolution, 1e-3)


@pytest.mark.parametrize("resolution", range(_R))
def test_it_answers_as_the_network_that_ships_does(resolution: int) -> None:
    """Whose weights are as large as weights become."""
    _assert_alike(_shipped(), 1, 300, 30, resolution, 2e-4)


@effort(max_examples=20)
@given(asked=seeds, data=st.data(), keys=keys, horizon=st.sampled_from([1, 7, 30]))
def test_company_does_not_matter(asked: int, data: st.DataObject, keys: int, horizon: int) -> None:
    """A key's answer is the same, bit for bit, whoever is asked about with it."""
    network = _shipped()
    states, told, bucket = _asked(asked, keys, horizon)
    windows = _windows(asked, keys, 5)
    rows = np.array(data.draw(st.lists(st.integers(0, keys - 1), min_size=1, max_size=40)))
    some = {name: array[rows] for name, array in told.items()}
    whole, part = (
        _decode(network, 0, states, told, bucket),
        _decode(network, 0, states[rows], some, bucket),
    )
    for all_of_them, ours in zip(whole, part, strict=True):
        np.testing.assert_array_equal(ours, all_of_them[rows])
    few = _encode(network, 0, *(array[rows] for array in windows))
    np.testing.assert_array_equal(few, _encode(network, 0, *windows)[rows])


@given(weights=seeds, size=st.sampled_from([0.01, 1.0, 30.0]), asked=seeds)
def test_answers_are_sound(weights: int, size: float, asked: int) -> None:
    """Finite, quantiles never cross, and a correction is no larger than its bound."""
    network = _network(weights, size)
    absolute, residual, quantiles = _decode(network, 1, *_asked(asked, 5, 6))
    assert np.isfinite(absolute).all()
    assert (np.abs(residual) <= BOUND).all()
    assert np.isfinite(quantiles).all()
    assert (np.diff(quantiles, axis=2) >= 0).all()
    assert quantiles.shape[2] == len(LEVELS)
    assert (np.abs(_encode(network, 1, *_windows(asked, 5, 3))) <= 1).all()


@pytest.mark.parametrize("name", ["gate", "value", "step", "mix", "out"])
def test_a_layer_that_diverged_has_no_opinion(name: str) -> None:
    """No number comes of what is none."""
    network = _network(0, 0.1)
    network.get_parameter(f"decoders.0.{name}.bias").fill_(torch.nan)
    for part in _decode(network, 0, *_asked(0, 5, 6)):
        assert np.isnan(part).all()


@pytest.mark.parametrize("name", ["embed.bias", "lstm.weight_hh_l0", "state.bias"])
def test_an_encoder_that_diverged_has_no_state(name: str) -> None:
    """Likewise."""
    network = _network(0, 0.1)
    network.get_parameter(f"encoders.0.{name}").fill_(torch.nan)
    assert np.isnan(_encode(network, 0, *_windows(0, 5, 3))).all()


def test_nobody_is_asked_about() -> None:
    """Nothing is answered."""
    absolute, _, quantiles = _decode(_network(0, 0.1), 0, *_asked(0, 0, 6))
    assert absolute.shape == (0, 6)
    assert quantiles.shape == (0, 6, len(LEVELS))
    assert _encode(_network(0, 0.1), 0, *_windows(0, 0, 3)).shape == (0, STATE)
