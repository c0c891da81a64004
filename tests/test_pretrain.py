"""Pre-training, on worlds as small as they get: what matters is that it follows from the seed."""

from inspect import signature

import numpy as np
import pytest

from stream_forecaster.cli import run_pretraining
from stream_forecaster.pretrain import STEPS_MS, Pretraining, Progress, Size
from stream_forecaster.weights import Weights, decode, shipped
from stream_forecaster.worth import measure, score

_SMALL = Size(keys=(1, 2), days=(1, 2), past_days=(17, 18), live_hours=(1, 2), set_aside=3)
"""Of the three worlds set aside the last has minutes, hours and days."""
_STEPS = 4


def _train(seed: int = 0, begin_with: Weights | None = None) -> tuple[Pretraining, list[Progress]]:
    training = Pretraining(seed, steps=_STEPS, begin_with=begin_with, size=_SMALL)
    return training, list(training.run())


@pytest.fixture(scope="module")
def trained() -> tuple[Pretraining, list[Progress]]:
    """A training that has ended."""
    return _train()


def test_it_follows_from_the_seed(trained: tuple[Pretraining, list[Progress]]) -> None:
    """The same steps, the same losses, the same file."""
    training, progress = trained
    again, repeated = _train()
    assert repeated == progress
    files = [t.weights({}).encode() for t in (training, again)]
    assert files[0] == files[1]


def test_it_ends_when_all_steps_are_taken(trained: tuple[Pretraining, list[Progress]]) -> None:
    """And tells of every lesson on the way."""
    _, progress = trained
    steps = [told.steps for told in progress if told.steps]
    assert steps == sorted(set(steps))
    assert steps[-2] < _STEPS <= steps[-1]
    assert all(np.isfinite(told.loss) for told in progress)


def test_the_report_is_finite(trained: tuple[Pretraining, list[Progress]]) -> None:
    """At every step that is trained; shares are admissible weights."""
    report = trained[0].report
    assert len(report) == len(STEPS_MS)
    for worth in report:
        assert worth.samples > 0
        ratios = (worth.pinball, worth.absolute, worth.residual)
        assert all(np.isfinite(ratio) and ratio > 0 for ratio in ratios)
        assert (worth.shares >= 0).all()
        assert worth.shares.sum() <= 1 + 1e-9


def test_what_comes_out_can_be_begun_with(trained: tuple[Pretraining, list[Progress]]) -> None:
    """The file is read again; a training that begins with it begins where the other ended."""
    report = trained[0].report
    found = decode(trained[0].weights({"seed": 0}).encode(), "w")
    np.testing.assert_array_equal(found.shares, [worth.shares for worth in report])
    assert found.card == {"seed": 0}
    further = Pretraining(1, steps=0, begin_with=found, size=_SMALL)
    list(further.run())
    assert further.weights({}).arrays.keys() == found.arrays.keys()
    assert [w.pinball for w in further.report] == [w.pinball for w in report]


def test_worlds_are_set_aside_first_and_the_best_network_is_kept(
    trained: tuple[Pretraining, list[Progress]],
) -> None:
    """It is told of each world; no later network that is worse takes the place of the best."""
    training, progress = trained
    aside = [told for told in progress if not told.steps]
    assert [told.worlds for told in aside] == [1, 2, 3]
    assert all(np.isnan(told.best) for told in aside)
    best = [told.best for told in progress if told.steps]
    assert best == sorted(best, reverse=True)
    assert score(training.report) == best[-1]
    assert score(measure(training._learner, training._aside.samples)) >= best[-1]


def test_the_card_of_those_that_ship_has_the_commands_defaults() -> None:
    """Whether the rest of the file is what it makes only an hour of training tells."""
    card, options = shipped().card, signature(run_pretraining).parameters
    assert card["begun_with"] == "random weights"
    assert (card["steps"], card["seed"]) == (options["steps"].default, options["seed"].default)
    assert "since" not in card
