"""The learner: it learns from what has landed, and everything follows from the seed."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stream_forecaster.architecture import CANDIDATES, CHANNELS, CLUES, PATHS, STATE, STATISTICS
from stream_forecaster.errors import ConfigError
from stream_forecaster.learning import Learner, chosen
from stream_forecaster.pace import Pace
from stream_forecaster.samples import Told
from stream_forecaster.weights import shipped

_K, _H = 6, 3
_STEPS_MS, _CONTEXTS, _HORIZONS = (60_000, 3_600_000), (5, 3), (_H, 2)
_PACE = Pace(every=2, draw=4, repeat=2, rows=8, capacity=10)
_ALL = np.arange(_K)
_SINCE = np.zeros(_K, np.int64)
Arrays = dict[str, NDArray[Any]]


def _learner(seed: int = 0, pace: Pace = _PACE) -> Learner:
    return Learner(_STEPS_MS, _CONTEXTS, _HORIZONS, None, seed=(seed,), pace=pace)


def _told(rng: np.random.Generator, size: int, horizon: int = _H) -> Told:
    """Anything."""

    def draw(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal((size, *shape)).astype(np.float32)

    return Told(
        [draw(8, CHANNELS), draw(4, CHANNELS)],
        draw(2, STATISTICS),
        rng.random((size, 2)) < 0.8,
        draw(horizon, len(CANDIDATES)),
        draw(horizon, len(CANDIDATES)),
        draw(horizon, CLUES),
        path=np.zeros((size, horizon)),
        unit=np.full((size, horizon), 2.0),
    )


def _live(learner: Learner, begin: int, end: int) -> None:
    """Buckets of six keys whose truths are random but the same for all learners."""
    for index in range(begin, end):
        rng = np.random.default_rng([9, index])
        learner.land(0, index, rng.standard_normal(_K), _SINCE)
        if not learner.due(index):
            continue
        slots = learner.draw(0, index, _ALL)
        learner.take(0, index, slots, _SINCE[slots], _told(rng, len(slots)))
        learner.train(0, index)


def _state(learner: Learner) -> Arrays:
    return {name: array.copy() for name, array in learner.arrays().items()}


def _assert_equal(one: Arrays, other: Arrays) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


# -- training --------------------------------------------------------------------------------------


def test_nothing_is_trained_before_a_label_has_landed() -> None:
    """The network is what it was."""
    learner = _learner()
    before = _state(learner)
    learner.train(0, 0)
    learner.take(0, 0, _ALL[:4], _SINCE[:4], _told(np.random.default_rng(0), 4))
    learner.train(0, 0)
    assert learner.steps == 0
    after = _state(learner)
    learned = [name for name in before if name.startswith(("network.", "average."))]
    _assert_equal({name: before[name] for name in learned}, {name: after[name] for name in learned})


def test_what_has_not_landed_is_masked_in_training() -> None:
    """Labels that are not there teach nothing: what is told of their steps does not matter."""
    trained = []
    for nonsense in (0.0, 7.0):
        learner = _learner()
        told = _told(np.random.default_rng(1), 4)
        told.candidates[:, 1:], told.clues[:, 1:] = nonsense, nonsense
        learner.take(0, 0, _ALL[:4], _SINCE[:4], told)
        learner.land(0, 1, np.ones(_K), _SINCE)
        learner.train(0, 2)
        assert learner.steps == 2
        trained.append(learner.parameters())
    _assert_equal(*trained)


def test_answers_are_those_of_the_average_as_it_is_now() -> None:
    """Also after it has learned, and after it was restored."""
    rng, told = np.random.default_rng(2), _told(np.random.default_rng(1), 4)
    learner = _learner()
    begun = _state(learner)
    states = np.tanh(rng.standard_normal((4, 2, STATE))).astype(np.float32)
    steps = {name: getattr(told, name) for name in ("candidates", "losses", "clues")}

    def answered() -> Any:
        encoded = learner.encode(0, told.windows[0], told.statistics[:, 0])
        return [encoded, *learner.answer(0, states, steps, np.arange(1, _H + 1))]

    def by_the_average() -> Any:
        tensor, average = learner._tensor, learner.average
        encoded = average.encode(0, tensor(told.windows[0]), tensor(told.statistics[:, 0]))
        asked = learner._steps(steps, np.arange(1, _H + 1))
        answer = average.decode(0, tensor(states), asked)
        said = encoded, answer.absolute, answer.residual, answer.quantiles
        return [part.cpu().numpy() for part in said]

    first = answered()
    _live(learner, 0, 12)
    assert all((one != other).any() for one, other in zip(first, answered(), strict=True))
    for ours, theirs in zip(answered(), by_the_average(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    learner.restore(begun)
    for ours, theirs in zip(answered(), first, strict=True):
        np.testing.assert_array_equal(ours, theirs)


# -- seeds -----------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits() -> None:
    """Of the network, its average, the moments and the samples."""
    one, other = _learner(), _learner()
    _live(one, 0, 12)
    _live(other, 0, 12)
    assert one.steps > 4
    _assert_equal(_state(one), _state(other))


def test_another_seed_draws_otherwise() -> None:
    """Other keys; and so do another bucket and another resolution."""
    many = np.arange(1000)
    draws = [
        _learner(0).draw(0, 6, many),
        _learner(1).draw(0, 6, many),
        _learner(0).draw(0, 12, many),
        _learner(0).draw(1, 6, many),
    ]
    assert len({tuple(draw) for draw in draws}) == len(draws)


def test_draws_are_of_the_living_each_once() -> None:
    """All of them where they are few."""
    assert _learner().draw(0, 0, np.array([5, 3])).tolist() == [3, 5]
    assert len(set(_learner().draw(0, 0, np.arange(50)).tolist())) == _PACE.draw


def test_the_machines_own_random_numbers_are_left_alone() -> None:
    """Making a learner draws from nowhere but its seed."""
    before = torch.get_rng_state()
    _learner()
    assert torch.equal(before, torch.get_rng_state())


def test_restoring_goes_on_bit_for_bit() -> None:
    """A learner restored from the arrays of another is the other from there on."""
    gone_on = _learner()
    _live(gone_on, 0, 9)
    saved = _state(gone_on)
    restored = _learner(pace=_PACE)
    _live(restored, 0, 3)  # whatever it knew is forgotten
    restored.restore(saved)
    _assert_equal(saved, _state(restored))
    for learner in (gone_on, restored):
        _live(learner, 9, 20)
    assert gone_on.steps == restored.steps
    _assert_equal(_state(gone_on), _state(restored))


def test_a_learner_that_never_trained_can_be_restored() -> None:
    """There are no moments yet."""
    saved = _state(_learner())
    other = _learner(1)
    other.restore(saved)
    _assert_equal(saved, _state(other))


# -- weights ---------------------------------------------------------------------------------------


def test_it_begins_with_the_nearest_modules() -> None:
    """Two resolutions near an hour both begin with the hour's, and with its shares."""
    steps_ms = (1_800_000, 7_200_000)
    learner = Learner(steps_ms, (4, 4), (2, 2), shipped(), seed=(0,), pace=_PACE)
    found = learner.parameters()
    for name, array in shipped().arrays.items():
        kind, module, rest = name.split(".", 2)
        if module == "1":
            np.testing.assert_array_equal(found[f"{kind}.0.{rest}"], array)
            np.testing.assert_array_equal(found[f"{kind}.1.{rest}"], array)
    np.testing.assert_array_equal(learner.shares, shipped().shares[[1, 1]])


def test_answers_and_shares_have_one_order() -> None:
    """The absolute path first: it may go where an expert does; the residual one is bounded."""
    learner = _learner()
    told = _told(np.random.default_rng(0), 4)
    told.candidates[:] = 50
    states = np.stack([learner.encode(0, told.windows[0], told.statistics[:, 0])] * 2, axis=1)
    asked = {name: getattr(told, name) for name in ("candidates", "losses", "clues")}
    absolute, residual, _ = learner.answer(0, states, asked, np.arange(1, _H + 1))
    assert PATHS == ("absolute", "residual")
    assert np.abs(residual).max() <= 3 < np.abs(absolute).min()


def test_random_weights_have_no_share() -> None:
    """No one has reason to trust them."""
    assert not _learner().shares.any()


# -- devices ---------------------------------------------------------------------------------------


def _has_cuda(monkeypatch: pytest.MonkeyPatch, *, has: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has)


@pytest.mark.parametrize(
    ("device", "with_cuda", "without"), [("auto", "cuda", "cpu"), ("cpu", "cpu", "cpu")]
)
def test_cuda_is_taken_where_it_is_and_may_be(
    monkeypatch: pytest.MonkeyPatch, device: str, with_cuda: str, without: str
) -> None:
    """Unless the settings say otherwise."""
    for has, expected in ((True, with_cuda), (False, without)):
        _has_cuda(monkeypatch, has=has)
        assert chosen(device).type == expected


def test_cuda_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which names the setting: who asks for it must not get something else."""
    _has_cuda(monkeypatch, has=True)
    assert chosen("cuda").type == "cuda"
    _has_cuda(monkeypatch, has=False)
    with pytest.raises(ConfigError, match=r'^model\.device = "cuda", but torch .* finds no CUDA'):
        Learner(_STEPS_MS, _CONTEXTS, _HORIZONS, None, seed=(0,), pace=_PACE, device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_the_same_seed_gives_the_same_bits_and_nearly_those_of_the_cpu() -> None:
    """Of all state after lessons; and up to rounding the same answers before and after them."""
    of = {"weights": shipped(), "seed": (0,), "pace": _PACE}
    learners = [
        Learner(_STEPS_MS, _CONTEXTS, _HORIZONS, device=device, **of)  # type: ignore[arg-type]
        for device in ("cuda", "cuda", "cpu")
    ]
    told = _told(np.random.default_rng(3), 300)
    asked = {name: getattr(told, name) for name in ("candidates", "losses", "clues")}
    for begin, end in ((0, 1), (1, 40)):
        answers = []
        for learner in learners:
            _live(learner, begin, end)
            states = learner.encode(0, told.windows[0], told.statistics[:, 0])
            both = np.stack([states, np.full_like(states, np.nan)], axis=1)
            answers.append([states, *learner.answer(0, both, asked, np.arange(1, _H + 1))])
        _assert_equal(_state(learners[0]), _state(learners[1]))
        for one, same, other in zip(*answers, strict=True):
            np.testing.assert_array_equal(one, same)
            np.testing.assert_allclose(one, other, atol=0.02)  # LSTMs of cuDNN round to TF32
    assert learners[0].steps > 20


# -- forecast and learn ----------------------------------------------------------------------------


def test_a_key_alone_is_answered_as_among_others() -> None:
    """More keys than go through the network at once, and one of them alone, up to rounding."""
    learner, size = _learner(), 1030
    rng = np.random.default_rng(3)
    told = _told(rng, size)
    states = learner.encode(0, told.windows[0], told.statistics[:, 0])
    assert states.shape == (size, STATE)
    both = np.stack([states, np.full_like(states, np.nan)], axis=1)
    asked = {name: getattr(told, name) for name in ("candidates", "losses", "clues")}
    whole = learner.answer(0, both, asked, np.arange(1, _H + 1))
    for row in (0, 1023, 1024, 1029):
        part = slice(row, row + 1)
        state = learner.encode(0, told.windows[0][part], told.statistics[part, 0])
        np.testing.assert_allclose(state, states[part], atol=1e-5)
        alone = learner.answer(
            0, both[part], {name: a[part] for name, a in asked.items()}, np.arange(1, _H + 1)
        )
        for one, other in zip(alone, whole, strict=True):
            np.testing.assert_allclose(one, other[part], atol=1e-5)


def test_forecasting_changes_nothing() -> None:
    """The state after any number of answers is the state before."""
    learner = _learner()
    _live(learner, 0, 6)
    before = _state(learner)
    told = _told(np.random.default_rng(3), 4)
    states = learner.encode(0, told.windows[0], told.statistics[:, 0])
    asked = {name: getattr(told, name) for name in ("candidates", "losses", "clues")}
    learner.answer(0, np.stack([states, states], axis=1), asked, np.arange(1, _H + 1))
    _assert_equal(before, _state(learner))


def test_it_learns_what_can_be_learned() -> None:
    """The truth is where one expert says; the average's error falls to a fraction."""
    learner = _learner(pace=Pace(every=1, draw=_K, repeat=4, rows=32, capacity=64, rate=3e-3))
    errors = []
    for index in range(60):
        rng = np.random.default_rng([4, index])
        told = _told(rng, _K)
        told.candidates[:] *= 2
        learner.take(0, index, _ALL, _SINCE, told)
        truth = learner.arrays()["0.truth"]
        # As if every bucket had closed at once: the ridge expert is right.
        fresh = learner.arrays()["0.index"] == index
        truth[fresh] = learner.arrays()["0.candidates"][fresh][:, :, CANDIDATES.index("ridge")]
        learner.train(0, index)
        absolute, _, _, landed = learner.examine(0, learner.samples[0])
        errors.append(float(np.mean((absolute - landed) ** 2)))
    assert errors[-1] < 0.3 * errors[0]


def test_at_no_pace_nothing_is_ever_due() -> None:
    """0 is no number of buckets to wait for."""
    learner = _learner(pace=Pace(every=0))
    assert not any(learner.due(index) for index in range(10))


def test_quiet_learners_take_no_samples() -> None:
    """Until told otherwise."""
    learner = _learner()
    assert [learner.due(index) for index in range(4)] == [True, False, True, False]
    assert all(learner.due(index, lifted=True) for index in range(4))
    learner.quiet = True
    assert not any(learner.due(index, lifted=index > 1) for index in range(4))
