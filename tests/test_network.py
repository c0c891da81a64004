"""The network: what holds of its answers is in `laws/test_network.py`; here, what it is made of."""

import pytest
import torch
from torch import Tensor

from stream_forecaster.architecture import CHANNELS, LEVELS, PATCH, STATE, STATISTICS
from stream_forecaster.network import Answer, Network, loss


def _answer(path: float = 0.0, *, horizon: int = 3) -> Answer:
    """One key: the same path and the same ascending quantiles at every step."""
    line = torch.full((1, horizon), path)
    return Answer(line, line, line[..., None] + torch.linspace(-1, 1, len(LEVELS)))


def test_levels_have_a_middle() -> None:
    """Quantiles are spread upwards and downwards from the median."""
    assert list(LEVELS) == sorted(LEVELS)
    assert LEVELS[len(LEVELS) // 2] == 0.5


def test_a_window_is_read_in_patches() -> None:
    """The state has one size, however many patches there are."""
    encoder = Network(1).encoders[0]
    for patches in (1, 5):
        state = encoder(torch.zeros(2, patches * PATCH, CHANNELS), torch.zeros(2, STATISTICS))
        assert state.shape == (2, STATE)


def test_what_has_not_landed_costs_nothing() -> None:
    """The loss is the mean over the labels that are there, whatever is said of the others."""
    part = torch.tensor([[1.0, torch.nan, 1.0]])
    assert loss(_answer(), part).item() == pytest.approx(
        loss(_answer(), torch.ones(1, 3)).item(), rel=1e-6
    )
    elsewhere = _answer()
    elsewhere.absolute[0, 1] = 1e3
    assert loss(elsewhere, part).item() == loss(_answer(), part).item()


def test_nothing_landed_is_no_loss() -> None:
    """And no gradient that is not a number."""
    residual = torch.zeros(1, 3, requires_grad=True)
    answer = Answer(residual, residual, residual[..., None].expand(1, 3, len(LEVELS)))
    mean = loss(answer, torch.full((1, 3), torch.nan)).sum()
    (gradient,) = torch.autograd.grad(mean, residual)
    assert mean.item() == 0
    assert not gradient.any()


def test_the_loss_is_least_at_the_truth() -> None:
    """Of all constant answers to a truth of one."""
    truth = torch.ones(1, 3)
    losses = {path: loss(_answer(path), truth).item() for path in (-1.0, 0.0, 1.0, 2.0)}
    assert min(losses, key=lambda path: losses[path]) == 1.0


def test_quantiles_are_judged_at_their_levels() -> None:
    """A truth above all of them costs the high levels more than the low ones."""
    quantiles = torch.zeros(1, 1, len(LEVELS), requires_grad=True)
    path = torch.zeros(1, 1)
    (gradient,) = torch.autograd.grad(
        loss(Answer(path, path, quantiles), torch.ones(1, 1)).sum(), quantiles
    )
    expected: Tensor = -2 * torch.tensor(LEVELS) / len(LEVELS)
    torch.testing.assert_close(gradient[0, 0], expected)
