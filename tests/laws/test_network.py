"""Laws of the network: of any weights and any input; and what a useless one costs."""

from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from streams import MINUTE_MS, START_MS
from torch import Tensor

from stream_forecaster.architecture import CANDIDATES, CLUES, STATE
from stream_forecaster.calendar import Calendar
from stream_forecaster.config import parse
from stream_forecaster.inputs import gate_bucket
from stream_forecaster.keys import KeyTable
from stream_forecaster.learning import Learner
from stream_forecaster.lstm import Lstm, Seats, View
from stream_forecaster.network import Answer, Network, Steps
from stream_forecaster.pace import Pace
from stream_forecaster.pool import Closed, Pool
from stream_forecaster.scoring import Score
from stream_forecaster.weights import Weights

_B, _R, _H = 5, 3, 6
_BOUND = 3.0

seeds = st.integers(0, 2**32 - 1)
sizes = st.sampled_from([0.01, 1.0, 30.0])


def _network(seed: int, size: float) -> Network:
    """A network with random weights of some size."""
    network, generator = Network(_R), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return network.requires_grad_(requires_grad=False)


def _asked(seed: int) -> tuple[Tensor, Steps]:
    """States and steps at random; half of the opinions and a third of the states are missing."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def missing(share: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) < share

    states = draw(_B, _R, STATE).tanh().masked_fill(missing(1 / 3, _B, _R, 1), torch.nan)
    paths = (8 * draw(_B, _H, len(CANDIDATES))).clamp(-8, 8)
    steps = Steps(
        paths.masked_fill(missing(0.5, *paths.shape), torch.nan),
        3 * torch.rand(paths.shape, generator=generator),
        draw(_B, _H, CLUES),
        torch.from_numpy(gate_bucket(np.arange(1, _H + 1))),
    )
    return states, steps


def _equal(one: Answer, other: Answer, rows: slice = np.s_[:]) -> None:
    for name in ("residual", "absolute", "quantiles"):
        torch.testing.assert_close(
            getattr(one, name), getattr(other, name)[rows], rtol=1e-5, atol=1e-4
        )


@given(weights=seeds, size=sizes, asked=seeds, resolution=st.integers(0, _R - 1))
def test_answers_are_sound(weights: int, size: float, asked: int, resolution: int) -> None:
    """Finite, quantiles never cross, and a correction is no larger than its bound."""
    answer = _network(weights, size).decode(resolution, *_asked(asked))
    assert all(
        part.isfinite().all() for part in (answer.residual, answer.absolute, answer.quantiles)
    )
    assert (answer.quantiles.diff(dim=2) >= 0).all()
    assert (answer.residual.abs() <= _BOUND).all()


@given(weights=seeds, asked=seeds, absent=st.integers(0, _R - 1))
def test_an_absent_state_does_not_matter(weights: int, asked: int, absent: int) -> None:
    """A key without one at some resolution is answered as if there were no such resolution."""
    network = _network(weights, 0.3)
    states, steps = _asked(asked)
    states[:, absent] = torch.nan
    others = [r for r in range(_R) if r != absent]
    states[:, others] = states[:, others].nan_to_num(0.5)
    decoder, relation = network.decoders[1], torch.tensor([2, 1, 0])
    _equal(decoder(states, relation, steps), decoder(states[:, others], relation[others], steps))


@given(weights=seeds, asked=seeds)
def test_nothing_known_is_answered_too(weights: int, asked: int) -> None:
    """No state, no opinion: finite all the same."""
    states, steps = _asked(asked)
    silent = replace(steps, candidates=torch.full_like(steps.candidates, torch.nan))
    answer = _network(weights, 0.3).decode(0, torch.full_like(states, torch.nan), silent)
    assert answer.quantiles.isfinite().all()
    assert (answer.absolute.abs() <= _BOUND).all()  # there is no path but the pool's, which is 0


@given(weights=seeds, asked=seeds)
def test_no_opinion_is_no_path(weights: int, asked: int) -> None:
    """The mixture stays within the paths that are there, the pool's included."""
    states, steps = _asked(asked)
    answer = _network(weights, 1.0).decode(0, states, steps)
    paths = torch.cat([steps.candidates, torch.zeros(_B, _H, 1)], 2)
    low = paths.nan_to_num(torch.inf).amin(2) - _BOUND
    high = paths.nan_to_num(-torch.inf).amax(2) + _BOUND
    assert ((low <= answer.absolute + 1e-4) & (answer.absolute - 1e-4 <= high)).all()


@given(weights=seeds, asked=seeds, silent=st.integers(0, len(CANDIDATES) - 1))
def test_no_opinion_has_no_weight(weights: int, asked: int, silent: int) -> None:
    """However much the network would trust an expert: where it says nothing, it is not mixed in."""
    network, (states, steps) = _network(weights, 0.3), _asked(asked)
    steps.candidates[..., silent] = torch.nan
    before = network.decode(0, states, steps)
    network.get_parameter("decoders.0.out.bias")[silent] += 50  # of its share in the mixture
    _equal(network.decode(0, states, steps), before)


@given(weights=seeds, asked=seeds, row=st.integers(0, _B - 1))
def test_company_does_not_matter(weights: int, asked: int, row: int) -> None:
    """A key alone is answered as among others, up to rounding."""
    network = _network(weights, 0.3)
    states, steps = _asked(asked)
    part = slice(row, row + 1)
    alone = Steps(steps.candidates[part], steps.losses[part], steps.clues[part], steps.bucket)
    _equal(network.decode(1, states[part], alone), network.decode(1, states, steps), part)


@given(weights=seeds, asked=seeds)
def test_answering_changes_nothing(weights: int, asked: int) -> None:
    """Not a bit of the parameters, nor the answer given again."""
    network = _network(weights, 1.0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first, second = (network.decode(2, *_asked(asked)) for _ in range(2))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert torch.equal(first.quantiles, second.quantiles)


# -- what a useless network costs ------------------------------------------------------------------

_BUCKETS = 400
_SETTINGS = parse(
    {
        "input": {"aggregate": "sum", "value": "v"},
        "resolutions": [{"step": "1m", "context": 24, "horizon": 6}],
    }
)


_EARLY = 40


def _stream() -> NDArray[np.float64]:
    """(T, K) waves with noise, which the pool forecasts well and a random network does not."""
    rng = np.random.default_rng(7)
    phase, t = rng.uniform(0, 6, 12), np.arange(_BUCKETS)[:, None]
    return 20 + 5 * np.sin(t / 4 + phase) + rng.normal(0, 1, (_BUCKETS, 12))


def _live(values: NDArray[np.float64], seats: Seats | None) -> Iterator[Closed]:
    """What each bucket of a pool comes to."""
    table = KeyTable()
    pool = Pool(table, Calendar("UTC"), _SETTINGS.resolutions[0], _SETTINGS, seats)
    pool.window.begin(START_MS)
    for t, row in enumerate(values):
        time_ms = np.full(len(row), START_MS + t * MINUTE_MS)
        slots = table.intern([b"%d" % key for key in range(len(row))], time_ms)
        pool.window.absorb(slots, time_ms, row)
        yield pool.close()
        pool.issue()


def _scores(values: NDArray[np.float64], seats: Seats | None) -> tuple[Score, Score]:
    """Those of all published forecasts: of the first buckets, and of all others."""
    scores = [closed.score for closed in _live(values, seats)]
    early, late = (reduce(add, part) for part in (scores[:_EARLY], scores[_EARLY:]))
    return early, late


def _error(values: NDArray[np.float64], seats: Seats | None) -> float:
    """Mean squared error of the published forecasts."""
    score = reduce(add, _scores(values, seats))
    return float(score.squared[0].sum() / score.count.sum())


def _learner(weights: Weights | None, **pace: Any) -> Seats:
    step_ms = _SETTINGS.resolutions[0].step_ms
    return Seats(Learner([step_ms], [24], [6], weights, seed=(5,), pace=Pace(**pace)))


def _wild() -> Weights:
    """Weights that say something large and wrong, with no share to begin with."""
    network = Network(1)
    generator = torch.Generator().manual_seed(3)
    arrays = {
        name: (torch.randn(value.shape, generator=generator) / 2).numpy()
        for name, value in network.state_dict().items()
    }
    return Weights((MINUTE_MS,), arrays, np.zeros((1, 2)), {})


def _taught_noise() -> Weights:
    """Weights trained on a stream that has no pattern."""
    noise = np.random.default_rng(8).normal(20, 5, (120, 12))
    seats = _learner(None, every=1, repeat=2, rate=3e-3)
    _error(noise, seats)
    return Weights((MINUTE_MS,), seats.learner.parameters(), np.zeros((1, 2)), {})


@pytest.mark.parametrize("weights", [_wild, _taught_noise])
def test_a_useless_network_costs_next_to_nothing(weights: Any) -> None:
    """Less than a hundredth of the pool's squared error, and of its quantiles' loss.

    From the beginning, since nobody has reason to believe it: untrained weights have no share.
    """
    values = _stream()
    for alone, beside in zip(
        _scores(values, None), _scores(values, _learner(weights())), strict=True
    ):
        assert beside.squared[0].sum() <= 1.01 * alone.squared[0].sum()
        assert beside.pinball.sum() <= 1.01 * alone.pinball.sum()


def _believed() -> Seats:
    """The same, where everybody has reason to believe it."""
    return _learner(replace(_wild(), shares=np.array([[0.8, 0.2]])), every=0)


def test_a_useless_network_that_is_believed_is_found_out() -> None:
    """It is dear in the first forty buckets; from then on it costs no more than none at all."""
    values = _stream()
    early, late = _scores(values, _believed())
    early_alone, late_alone = _scores(values, None)
    assert early.squared[0].sum() > 1.5 * early_alone.squared[0].sum()
    assert late.squared[0].sum() <= 1.01 * late_alone.squared[0].sum()


def test_a_network_that_goes_astray_is_no_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the experts have learned is as good as before; noise that grows is a drift."""
    values, let_in = _stream(), Lstm.let_in
    begin = START_MS // MINUTE_MS

    def astray(seat: Lstm, view: View, paths: Any) -> Any:
        path, share = let_in(seat, view, paths)
        return path + 20 * (view.index > begin + 250), share

    monkeypatch.setattr(Lstm, "let_in", astray)
    assert not any(closed.drifted for closed in _live(values, _believed()))
    monkeypatch.undo()
    values[250:] += np.random.default_rng(9).normal(0, 12, values[250:].shape)
    assert any(closed.drifted for closed in _live(values, _believed()))
