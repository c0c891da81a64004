"""Fitting: the network trained, before it serves, on the user's own history.

Theory of operation. The engine itself goes over the history once, silently, as it would in service,
and samples are drawn of what the network is told of any key at any bucket. What it is told does not
depend on what it says, so one pass of the engine is enough: all the training that follows goes over
the samples.

The last part of the history is set aside, by time. Training sees no label from it; after every pass
over the samples the network is measured on the samples from there. The best is kept, and training
ends when it has not become better for a few passes:

    history   ─────────────────────────────────┬──────────▶
              trained on: labels before this ──┘ └── measured on: forecasts made after it

Everything follows from the settings, their seed, the history and the weights begun with.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stream_forecaster.calendar import HOUR_MS
from stream_forecaster.config import Settings
from stream_forecaster.errors import ConfigError
from stream_forecaster.inputs import window_length
from stream_forecaster.learning import Float32, Int64
from stream_forecaster.pace import Pace
from stream_forecaster.records import Records
from stream_forecaster.samples import EvenSamples, Samples
from stream_forecaster.shard import Shard, learner_for
from stream_forecaster.weights import Weights
from stream_forecaster.worth import measure, score

_LATER = 0.2
"""The part of the history, at its end, that is measured on."""
_PATIENCE = 3
"""Passes without a better network after which training ends."""
_PACE = Pace(every=0, rows=128, capacity=0, rate=1e-3, memory=0.995, speaks=False)
_MOST_SAMPLES, _MOST_BYTES = 16_000, 128 << 20
"""Kept of a resolution, over all partitions."""
_DRAW = 512
_LEAST_TAUGHT, _LEAST_LATER = 256, 64
"""Samples with which a resolution has anything to teach, and to measure."""


@dataclass(frozen=True, slots=True)
class Lessons:
    """The samples of a history, of each resolution (R,).

    Attributes:
        taught: with labels from before `split_ms` only.
        later: of forecasts made at `split_ms` or after; none where they are too few to tell.
        begin_ms, split_ms, end_ms: of the history, event time, epoch ms.
    """

    taught: Sequence[Samples]
    later: Sequence[Samples]
    begin_ms: int
    split_ms: int
    end_ms: int


class History:
    """One pass of the engine over a history.

    Attributes:
        events: counted so far.
    """

    def __init__(self, settings: Settings, weights: Weights, *, partitions: int = 1) -> None:
        """Begin with nothing heard.

        Args:
            settings: all of them.
            weights: that training will begin with.
            partitions: over how many the records come.

        Raises:
            ConfigError: the settings have no network.
        """
        if not settings.model.network:
            raise ConfigError("model.network is false: there is no network to fit")
        self._settings, self._weights = settings, weights
        self._calendar = settings.input.calendar()
        self._pace = Pace(
            every=1,
            draw=_DRAW,
            repeat=0,
            capacity=_capacity(settings) // partitions,
            evenly=True,
            speaks=False,
        )
        self._shards: dict[int, Shard] = {}
        self.events = 0

    @property
    def keys(self) -> int:
        """How many keys are known."""
        return sum(shard.keys for shard in self._shards.values())

    def hear(self, records: Records) -> None:
        """Move on by the next records of a partition."""
        shard = self._shards.get(records.partition)
        if shard is None:
            begin = int(records.offset[0])
            shard = Shard(
                self._settings,
                self._calendar,
                records.partition,
                begin,
                self._weights,
                self._pace,
            )
            self._shards[records.partition] = shard
        self.events += shard.advance(records, aloud=False).events

    def lessons(self) -> Lessons:
        """The samples, divided by time; the engine's state is left as it is.

        Raises:
            ConfigError: they are too few; says how long a history would do.
        """
        kept = [s.learner.samples for s in self._shards.values() if s.learner is not None]
        by_resolution = [list(samples) for samples in zip(*kept, strict=True)]
        begin_ms, end_ms = self._span(by_resolution[0] if by_resolution else [])
        split_ms = end_ms - round(_LATER * (end_ms - begin_ms))
        taught, later = [], []
        for resolution, samples in zip(self._settings.resolutions, by_resolution, strict=False):
            before, after = self._divided(samples, resolution.step_ms, split_ms)
            taught.append(before)
            later.append(after)
        _require_enough(taught, later, end_ms - begin_ms, self._settings)
        none = np.empty(0, np.int64)
        for i, samples_later in enumerate(later):
            if len(samples_later.labelled) < _LEAST_LATER:
                later[i] = Samples.joined([(samples_later, none)])
        return Lessons(taught, later, begin_ms, split_ms, end_ms)

    def _span(self, finest: Sequence[Samples]) -> tuple[int, int]:
        """Begin of the first closed bucket of the finest resolution, and end of the last."""
        heard = [s for s in finest if isinstance(s, EvenSamples)]
        first = [s.first for s in heard if s.first is not None]
        last = [s.last for s in heard if s.last is not None]
        if not first:
            return 0, 0
        step_ms = self._settings.resolutions[0].step_ms
        start = self._calendar.start(np.array([min(first), max(last) + 1]), step_ms)
        return int(start[0]), int(start[1])

    def _divided(
        self, samples: Sequence[Samples], step_ms: int, split_ms: int
    ) -> tuple[Samples, Samples]:
        """Copies of what may be trained on, and of what is measured on."""
        ended = int(self._calendar.index(split_ms, step_ms))  # buckets before it end by the split
        begun = int(self._calendar.index(split_ms - 1, step_ms)) + 1  # from it on they begin after
        firsts = [(s, s.labelled, s.arrays["index"][s.labelled] + 1) for s in samples]
        before = Samples.joined([(s, rows[first < ended]) for s, rows, first in firsts])
        after = Samples.joined([(s, rows[first >= begun]) for s, rows, first in firsts])
        truth = before.arrays["truth"]
        ahead = np.arange(1, truth.shape[1] + 1)
        truth[before.arrays["index"][:, None] + ahead >= ended] = np.nan
        return before, after


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands after a pass.

    Attributes:
        passes: over the samples so far.
        loss: mean loss of the last one's steps.
        score: pinball loss on the later samples over the pool's, all samples alike.
        best: the lowest score so far, that of the weights begun with included.
    """

    passes: int
    loss: float
    score: float
    best: float


class Fitting:
    """Training on lessons, and the best network so far.

    Attributes:
        before, after: what the network was worth on the later samples as it was begun with, and
            what the best one is.
        passes, best_pass: how many there were, and which left the best network; 0: none, it is
            the one begun with.
    """

    def __init__(self, settings: Settings, weights: Weights, lessons: Lessons) -> None:
        """Measure what the network is worth, and stand ready.

        Args:
            settings: all of them.
            weights: to begin with.
            lessons: of the history.
        """
        self._steps_ms = tuple(resolution.step_ms for resolution in settings.resolutions)
        self._lessons, self._seed = lessons, settings.model.seed
        self._learner = learner_for(settings, 0, weights, _PACE)
        self.before = self.after = measure(self._learner, lessons.later)
        self._best = self._parameters()
        self.passes = self.best_pass = 0

    @property
    def steps(self) -> int:
        """Training steps taken."""
        return self._learner.steps

    @property
    def is_better(self) -> bool:
        """Is any network better than the one begun with?"""
        return self.best_pass > 0

    def run(self, passes: int) -> Iterator[Progress]:
        """Train for so many passes at most."""
        rng = np.random.default_rng([self._seed, 3])
        while self.passes < passes and self.passes - self.best_pass < _PATIENCE:
            loss = self._go_over(rng)
            self.passes += 1
            now = measure(self._learner, self._lessons.later)
            if score(now) < score(self.after):
                self.after, self.best_pass, self._best = now, self.passes, self._parameters()
            yield Progress(self.passes, loss, score(now), score(self.after))

    def weights(self, card: dict[str, Any]) -> Weights:
        """The best network's, with the shares that the later samples justify."""
        shares = np.stack([worth.shares for worth in self.after])
        return Weights(self._steps_ms, self._best, shares, card)

    def _go_over(self, rng: np.random.Generator) -> float:
        """One pass: every sample once, those of all resolutions mixed; the mean loss."""
        batches: list[tuple[int, Int64]] = []
        for resolution, samples in enumerate(self._lessons.taught):
            rows = rng.permutation(samples.labelled)
            batches += [
                (resolution, rows[i : i + _PACE.rows]) for i in range(0, len(rows), _PACE.rows)
            ]
        losses = []
        for i in rng.permutation(len(batches)).tolist():
            resolution, rows = batches[i]
            self._learner.study(resolution, self._lessons.taught[resolution], rows, rng)
            losses.append(self._learner.loss)
        return float(np.mean(losses))

    def _parameters(self) -> dict[str, Float32]:
        return {name: array.copy() for name, array in self._learner.parameters().items()}


def _capacity(settings: Settings) -> int:
    """Samples of each resolution that there is room for; of the largest ones."""
    lengths = [window_length(resolution.context) for resolution in settings.resolutions]
    one = Samples.room(1, lengths, max(r.horizon for r in settings.resolutions))
    size_bytes = sum(array.nbytes for array in one.arrays.values())
    return min(_MOST_SAMPLES, _MOST_BYTES // size_bytes)


def _require_enough(
    taught: Sequence[Samples], later: Sequence[Samples], span_ms: int, settings: Settings
) -> None:
    counts = [
        (len(before.labelled), len(after.labelled))
        for before, after in zip(taught, later, strict=True)
    ]
    if any(t >= _LEAST_TAUGHT and n >= _LEAST_LATER for t, n in counts):
        return
    most_taught, most_later = max(counts, default=(0, 0))
    if most_taught and most_later:
        factor = max(_LEAST_TAUGHT / most_taught, _LEAST_LATER / most_later)
        needed_ms = 1.1 * span_ms * factor  # a little more: buckets are whole
    else:  # a fifth of the history must hold a bucket or more
        needed_ms = max(2 * span_ms, 10 * settings.resolutions[0].step_ms)
    raise ConfigError(
        f"too little history: {span_ms / HOUR_MS:.1f} hours of it give {most_taught} samples to "
        f"train on and {most_later} later ones to measure on, where {_LEAST_TAUGHT} and "
        f"{_LEAST_LATER} are needed at one resolution or more. Of such events it takes about "
        f"{math.ceil(10 * needed_ms / HOUR_MS) / 10} hours."
    )
