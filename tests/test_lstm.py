"""The network at the pool: what is kept of each key, and as of when."""

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from streams import MINUTE_MS, START_MS

from stream_forecaster.architecture import LEVELS, STATE
from stream_forecaster.calendar import Calendar
from stream_forecaster.config import Settings, parse
from stream_forecaster.keys import KeyTable
from stream_forecaster.learning import Learner
from stream_forecaster.lstm import _YOUNG, Lstm, Seats, View
from stream_forecaster.pace import Pace
from stream_forecaster.spread import Spread
from stream_forecaster.windows import Window

_K, _H, _CONTEXT = 3, 4, 7
_WINDOW = 8  # the context in whole patches


class Seat:
    """One resolution with a network, without the pool around it; three keys."""

    def __init__(
        self, *, quantiles: tuple[float, ...] = (0.1, 0.5, 0.9), most: int = 0, **pace: bool
    ) -> None:
        config = _settings(quantiles, most)
        resolution = config.resolutions[0]
        self.table, calendar = KeyTable(), Calendar("UTC")
        self.learner = Learner(
            [resolution.step_ms], [_CONTEXT], [_H], None, seed=(0,), pace=Pace(**pace)
        )
        self.window = Window(
            self.table, calendar, resolution, open_span_ms=2 * MINUTE_MS, is_mean=False
        )
        spread = Spread(self.table, "p")
        self.lstm = Lstm(Seats(self.learner), self.table, calendar, self.window, spread, config, 1)
        self.window.begin(START_MS)
        self.slots = self.table.intern([b"%d" % i for i in range(_K)], np.full(_K, START_MS))

    def close(self, values: list[float]) -> int:
        """Close a bucket with these values; its index."""
        index = self.window.closed
        time_ms = np.full(_K, index * MINUTE_MS)
        self.window.absorb(self.slots, time_ms, np.array(values))
        self.lstm.land(index, self.window.close())
        return index

    def grown(self) -> "Seat":
        """The same one bucket before it is old enough to be answered for."""
        for _ in range(_YOUNG - 1):
            self.close([1.0, 2.0, 3.0])
        return self

    def asked(self) -> list[int]:
        """Whose turn it is to be answered for."""
        found: list[int] = self.slots[self.lstm.asked(self.slots)].tolist()
        return found

    def view(self, path: NDArray[np.float64]) -> View:
        """What a pool without experts knows."""
        ahead = np.arange(1, _H + 1)
        bucket, losses = np.zeros(_H, np.int64), np.ones((_K, 1, 1))
        index, unit = self.window.closed - 1, np.ones_like(path)
        nobody = np.empty((len(path), 0, _H))
        return View(self.slots, index, ahead, bucket, (), nobody, losses, path, unit)


def _settings(quantiles: tuple[float, ...], most: int) -> Settings:
    return parse(
        {
            "model": {"network_keys": most},
            "input": {"aggregate": "sum", "value": "v"},
            "resolutions": [{"step": "1m", "context": _CONTEXT, "horizon": _H}],
            "output": {"quantiles": list(quantiles)},
        }
    )


def test_errors_stand_beside_the_value_of_their_bucket() -> None:
    """The newest last, as the encoder reads them; forgotten when the ring comes round."""
    seat = Seat()
    first = seat.close([1.0, 2.0, 3.0])
    seat.lstm.note(first, seat.slots[:1], np.array([0.5]))
    seat.lstm.note(first, seat.slots[1:2], np.array([99.0]))
    for age in range(_WINDOW):
        window, _, _ = seat.lstm._inputs(seat.slots)
        expected = np.zeros((_K, _WINDOW))
        expected[0, -1 - age], expected[1, -1 - age] = 0.5, 127 / 16
        np.testing.assert_array_equal(window[:, :, 2], expected)
        seat.close([1.0, 2.0, 3.0])
    assert not seat.lstm._inputs(seat.slots)[0][:, :, 2:].any()


def test_a_key_without_a_closed_bucket_has_no_state() -> None:
    """It is answered all the same."""
    seat = Seat().grown()
    seat.close([1.0, 2.0, 3.0])
    seat.table.intern([b"new"], np.array([START_MS + _YOUNG * MINUTE_MS]))
    slots = np.arange(_K + 1)
    seat.lstm.look(slots)
    states = seat.lstm.states(slots)
    assert states.shape == (_K + 1, STATE)
    assert np.isfinite(states[:_K]).all()
    assert np.isnan(states[_K]).all()


def test_answers_are_around_the_path_in_its_units() -> None:
    """What the network says in expected errors becomes values, the absolute path first."""
    seat = Seat().grown()
    seat.close([1.0, 2.0, 3.0])
    seat.lstm.look(seat.slots)
    view = replace(seat.view(np.full((_K, _H), 10.0)), unit=np.full((_K, _H), 2.0))
    states = seat.lstm.states(seat.slots)[:, None]
    own = seat.learner.answer(0, states, seat.lstm._steps(view), view.ahead)
    absolute, residual, quantiles = (10 + 2 * part for part in own)
    found = seat.lstm.answer(view)
    np.testing.assert_allclose(found[0], absolute, rtol=1e-5)
    np.testing.assert_allclose(found[1], residual, rtol=1e-5)
    levels = [LEVELS.index(level) for level in (0.1, 0.5, 0.9)]
    np.testing.assert_allclose(found[2], quantiles[..., levels], rtol=1e-5)


@given(levels=st.sets(st.floats(0.001, 0.999).map(lambda level: round(level, 3)), min_size=2))
def test_any_levels_ascend(levels: set[float]) -> None:
    """Between the network's own and beyond them."""
    seat = Seat(quantiles=tuple(sorted(levels))).grown()
    seat.close([1.0, 2.0, 3.0])
    seat.lstm.look(seat.slots)
    _, _, quantiles = seat.lstm.answer(seat.view(np.zeros((_K, _H))))
    assert (np.diff(quantiles, axis=2) > 0).all()


def test_a_network_that_is_only_taught_has_no_opinion() -> None:
    """And encodes nothing."""
    seat = Seat(speaks=False).grown()
    seat.close([1.0, 2.0, 3.0])
    seat.lstm.look(seat.slots)
    assert np.isnan(seat.lstm.states(seat.slots)).all()
    assert seat.asked() == []


def test_a_network_that_diverged_has_no_opinion() -> None:
    """Its states, kept as bytes, are not those of some number."""
    seat = Seat().grown()
    seat.close([1.0, 2.0, 3.0])
    with torch.no_grad():
        for weight in seat.learner.average.parameters():
            weight.fill_(np.nan)
    seat.lstm.note(seat.window.closed - 1, seat.slots, np.full(_K, np.nan))
    seat.lstm.look(seat.slots)
    assert np.isnan(seat.lstm.states(seat.slots)).all()
    for part in seat.lstm.answer(seat.view(np.zeros((_K, _H)))):
        assert np.isnan(part).all()


def test_a_resolution_that_is_young_is_not_answered_for() -> None:
    """Whatever the age of a key that comes later: it is the oldest one's that counts."""
    seat = Seat()
    for _ in range(_YOUNG - 1):
        seat.lstm.look(seat.slots)
        assert seat.asked() == []
        seat.close([1.0, 2.0, 3.0])
    seat.close([1.0, 2.0, 3.0])
    seat.table.intern([b"new"], np.array([START_MS + _YOUNG * MINUTE_MS]))
    seat.lstm.look(np.arange(_K + 1))
    assert seat.lstm.asked(np.arange(_K + 1)) == np.s_[:]


def test_with_more_keys_than_it_may_answer_for_the_active_ones_come_first() -> None:
    """Half of the turns are theirs; the others have theirs one after the other."""
    seat = Seat(most=2).grown()
    answered = set()
    for _ in range(3):
        seat.close([5.0, 1.0, 9.0])
        seat.lstm.look(seat.slots)
        spoken = seat.asked()
        assert len(spoken) == 2
        assert 2 in spoken
        answered |= set(spoken)
    assert answered == {0, 1, 2}
