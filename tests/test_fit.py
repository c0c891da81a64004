"""Fitting: what is trained on, what is measured on, and what the command makes of it."""

import io
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from streams import MINUTE_MS, START_MS, Row, block, event

from stream_forecaster import training
from stream_forecaster.cli import main
from stream_forecaster.config import Settings, parse, to_toml
from stream_forecaster.edge.weights_file import read_weights, write_weights
from stream_forecaster.errors import ConfigError
from stream_forecaster.fit import Fitting, History, Lessons
from stream_forecaster.samples import Samples
from stream_forecaster.weights import Weights, shipped
from stream_forecaster.worth import score

_HOURS, _KEYS = 5, 8
_MAPPING: dict[str, Any] = {
    "resolutions": [
        {"step": "1m", "context": 8, "horizon": 4},
        {"step": "5m", "context": 6, "horizon": 2},
        {"step": "1d", "context": 4, "horizon": 2},
    ],
    "output": {"quantiles": [0.1, 0.5, 0.9]},
}
_SETTINGS = parse(_MAPPING)
# The first bucket that closes is that of the first event less the allowed lateness.
_SPLIT_MS = START_MS + int(0.8 * _HOURS * 60 - 2) * MINUTE_MS


def _log(seed: int = 0, later: int | None = None, hours: float = _HOURS) -> list[Row]:
    """Users with a rhythm of five minutes that no expert knows; noise differs by seed.

    Args:
        seed: of the noise.
        later: of the noise of the last fifth; None: the same.
        hours: how long.
    """
    log: list[Row] = []
    for minute in range(int(60 * hours)):
        start_ms = START_MS + minute * MINUTE_MS
        is_later = later is not None and start_ms >= _SPLIT_MS
        rng = np.random.default_rng([later if is_later and later is not None else seed, minute])
        for user in range(_KEYS):
            count = rng.poisson(6.0 if (minute + user) % 5 == 0 else 0.3)
            times = start_ms + rng.integers(0, MINUTE_MS - 1, count)
            log += [(None, event(f"u{user}", int(t)), int(t)) for t in times]
    end_ms = START_MS + int(60 * hours) * MINUTE_MS
    log.sort(key=lambda row: row[2])
    return [*log, (None, event("u0", end_ms), end_ms)]


def _heard(log: list[Row], settings: Settings = _SETTINGS) -> History:
    history = History(settings, shipped())
    history.hear(block(log))
    return history


@pytest.fixture(scope="module")
def lessons() -> Lessons:
    """Of five hours."""
    return _heard(_log()).lessons()


# -- lessons ---------------------------------------------------------------------------------------


def test_the_last_fifth_is_set_aside(lessons: Lessons) -> None:
    """By the time of the events, not by their number."""
    span_ms = lessons.end_ms - lessons.begin_ms
    assert abs(span_ms - _HOURS * 60 * MINUTE_MS) <= 3 * MINUTE_MS
    assert (lessons.end_ms - lessons.split_ms) / span_ms == pytest.approx(0.2, abs=0.001)


@pytest.mark.parametrize("resolution", [0, 1])
def test_no_label_is_on_both_sides(lessons: Lessons, resolution: int) -> None:
    """Those trained on end by the split, the others begin at it or after; none between."""
    step_ms = _SETTINGS.resolutions[resolution].step_ms
    for samples, is_later in (
        (lessons.taught[resolution], False),
        (lessons.later[resolution], True),
    ):
        truth, index = samples.arrays["truth"], samples.arrays["index"]
        start_ms = (index[:, None] + np.arange(1, truth.shape[1] + 1)) * step_ms
        landed = ~np.isnan(truth)
        assert landed.sum() > 50
        if is_later:
            assert start_ms.min() >= lessons.split_ms
            assert start_ms[:, 0].min() < lessons.split_ms + step_ms  # and no bucket is wasted
        else:
            ends_ms = (start_ms + step_ms)[landed]
            assert ends_ms.max() <= lessons.split_ms
            assert ends_ms.max() > lessons.split_ms - step_ms


def test_the_later_part_is_not_trained_on(lessons: Lessons) -> None:
    """Where it is destroyed, every step of the training is the same, bit for bit."""
    destroyed = _heard(_log(later=9)).lessons()
    assert destroyed.split_ms == lessons.split_ms == _SPLIT_MS
    for one, other in zip(lessons.taught, destroyed.taught, strict=True):
        assert one.arrays.keys() == other.arrays.keys()
        for name, array in one.arrays.items():
            np.testing.assert_array_equal(array, other.arrays[name], err_msg=name)
    assert (lessons.later[0].arrays["truth"] != destroyed.later[0].arrays["truth"]).any()
    losses = [
        [now.loss for now in Fitting(_SETTINGS, shipped(), of).run(2)]
        for of in (lessons, destroyed)
    ]
    assert losses[0] == losses[1]


def test_a_resolution_that_cannot_be_measured_keeps_its_shares(lessons: Lessons) -> None:
    """No day has passed: nothing is said of it, and what it began with holds."""
    fitting = Fitting(_SETTINGS, shipped(), lessons)
    assert fitting.before[2].samples == 0
    np.testing.assert_array_equal(fitting.weights({}).shares[2], shipped().shares[2])
    assert np.isfinite(score(fitting.before))


def test_partitions_teach_together() -> None:
    """Samples of all of them, as one partition would have of all keys."""
    log = _log()
    history = History(_SETTINGS, shipped(), partitions=2)
    for partition in range(2):
        part = [row for row in log if (row[1] or b"").find(b'"u') and _is_odd(row) == partition]
        history.hear(replace(block(part), partition=partition))
    whole = _heard(log).lessons().taught[0].labelled
    assert len(history.lessons().taught[0].labelled) == pytest.approx(len(whole), rel=0.02)
    assert history.keys == _KEYS


def _is_odd(row: Row) -> int:
    user: str = json.loads(row[1] or b"")["user_id"]
    return int(user[1:]) % 2


# -- training --------------------------------------------------------------------------------------


def test_it_learns_a_rhythm_that_no_expert_knows(lessons: Lessons) -> None:
    """And keeps the best pass, which is not always the last."""
    fitting = Fitting(_SETTINGS, shipped(), lessons)
    told = list(fitting.run(12))
    assert fitting.is_better
    assert score(fitting.after) < 0.9 * score(fitting.before)
    assert score(fitting.after) == min(now.score for now in told) == told[-1].best
    assert [now.passes for now in told] == list(range(1, fitting.passes + 1))
    kept = Fitting(_SETTINGS, fitting.weights({}), lessons)
    assert score(kept.before) == pytest.approx(score(fitting.after), rel=1e-6)


def _nonsense(lessons: Lessons) -> Lessons:
    """The same, but that what is taught is wrong."""
    taught = []
    for samples in lessons.taught:
        wrong = Samples.joined([(samples, np.arange(len(samples.arrays["slot"])))])
        wrong.arrays["truth"][~np.isnan(wrong.arrays["truth"])] = 30
        taught.append(wrong)
    return replace(lessons, taught=taught)


def test_where_nothing_better_is_learned_the_start_is_kept(lessons: Lessons) -> None:
    """Bit for bit; and training ends after a few passes, however many are allowed."""
    fitting = Fitting(_SETTINGS, shipped(), _nonsense(lessons))
    assert len(list(fitting.run(50))) == 3
    assert not fitting.is_better
    assert fitting.after is fitting.before
    begun = Fitting(_SETTINGS, shipped(), lessons).weights({})
    assert fitting.weights({}).encode() == begun.encode()
    assert np.array_equal(
        begun.arrays["decoders.2.out.bias"], shipped().arrays["decoders.2.out.bias"]
    )


# -- the command -----------------------------------------------------------------------------------


def _file(path: Path, log: Iterable[Row]) -> str:
    path.write_bytes(b"".join((value or b"") + b"\n" for _, value, _ in log))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings, and five hours of events."""
    folder = tmp_path_factory.mktemp("fit")
    (folder / "settings.toml").write_text(to_toml(_MAPPING))
    _file(folder / "events.jsonl", _log())
    return folder


def _fit(folder: Path, *arguments: str, verb: str = "fit") -> int:
    """The command's exit code."""
    options = ["--config", f"{folder}/settings.toml", "--events", f"{folder}/events.jsonl"]
    with pytest.raises(SystemExit) as ended:
        main([verb, *options, *arguments])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def fitted(folder: Path) -> dict[str, Any]:
    """What the command says of two passes, as JSON; the file is fitted.safetensors."""
    out = io.StringIO()
    code = training.fit(
        _SETTINGS,
        [f"{folder}/events.jsonl"],
        f"{folder}/fitted.safetensors",
        passes=2,
        as_json=True,
        console=Console(file=out, width=100),
    )
    assert code == 0
    report: dict[str, Any] = json.loads(out.getvalue())
    return report


def _read(path: Path) -> Weights:
    found = read_weights(str(path))
    assert found is not None
    return found


def test_the_report_says_what_came_of_it(fitted: dict[str, Any], folder: Path) -> None:
    """The same in the file's card."""
    assert fitted["is_better"]
    assert fitted["pinball_ratio_after"] < fitted["pinball_ratio_before"]
    assert (fitted["passes"], fitted["keys"]) == (2, _KEYS)
    assert fitted["events"] == len(_log())
    minute, _, day = fitted["resolutions"]
    assert minute["trained_on"] > 1000
    assert minute["after"]["pinball_ratio"] < minute["before"]["pinball_ratio"]
    assert day["after"]["pinball_ratio"] is None
    found = _read(folder / "fitted.safetensors")
    assert found.steps_ms == tuple(r.step_ms for r in _SETTINGS.resolutions)
    assert {name: found.card[name] for name in fitted if name != "weights"} == {
        name: value for name, value in fitted.items() if name != "weights"
    }
    assert found.card["begun_with"] == "those that ship"
    np.testing.assert_allclose(found.shares[0], minute["after"]["shares"], atol=5e-4)


def test_the_same_history_gives_the_same_file(
    fitted: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """But for the minutes it took; and people are told in words."""
    assert fitted
    assert _fit(folder, "--out", f"{folder}/again.safetensors", "--passes", "2") == 0
    one, other = (_read(folder / f"{name}.safetensors") for name in ("fitted", "again"))
    files = [replace(w, card={**w.card, "minutes": 0}).encode() for w in (one, other)]
    assert files[0] == files[1]
    said = capsys.readouterr().out
    assert "Better than what it began with" in said
    assert f"weights: {folder}/again.safetensors" in said.replace("\n", "")


def test_what_is_written_can_be_begun_with(
    fitted: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A backtest from it forecasts, and otherwise than from those that ship."""
    assert fitted
    skills = []
    for weights in ("", f"{folder}/fitted.safetensors"):
        setting = f"model.weights={weights}"
        assert _fit(folder, "--json", "--set", setting, verb="backtest") == 0
        skills.append(json.loads(capsys.readouterr().out)["resolutions"][0]["skill"])
    assert skills[0] < skills[1]


def test_it_goes_on_from_the_settings_weights(fitted: dict[str, Any], folder: Path) -> None:
    """Where the first ended, the second begins."""
    out, begin = f"{folder}/further.safetensors", f"{folder}/fitted.safetensors"
    assert _fit(folder, "--out", out, "--passes", "1", "--set", f"model.weights={begin}") == 0
    card = _read(folder / "further.safetensors").card
    assert card["begun_with"] == begin
    assert card["pinball_ratio_before"] == fitted["pinball_ratio_after"]


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("hours", [0, 0.05, 0.5])
def test_too_little_history_is_refused(
    hours: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what there is and what it takes; no file is written."""
    (tmp_path / "settings.toml").write_text(to_toml(_MAPPING))
    _file(tmp_path / "events.jsonl", _log(hours=hours) if hours else [])
    assert _fit(tmp_path, "--out", f"{tmp_path}/w.safetensors") == 2
    said = capsys.readouterr().err
    assert f"too little history: {hours:.1f} hours" in said.replace("0.6 hours", "0.5 hours")
    assert "256 and 64 are needed" in said
    assert not (tmp_path / "w.safetensors").exists()


def test_what_it_takes_is_enough() -> None:
    """As long a history as the refusal asked for is not refused."""
    with pytest.raises(ConfigError) as refused:
        _heard(_log(hours=0.5)).lessons()
    needed = float(str(refused.value).rsplit("about ", 1)[1].split(" hours")[0])
    assert 0.5 < needed < 3
    _heard(_log(hours=needed)).lessons()


def test_without_a_network_there_is_nothing_to_fit(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The settings say so."""
    out = f"{folder}/none.safetensors"
    assert _fit(folder, "--out", out, "--set", "model.network=false") == 2
    assert "no network to fit" in capsys.readouterr().err


def test_the_history_is_not_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is read, whatever it is called."""
    before = (folder / "events.jsonl").read_bytes()
    assert _fit(folder, "--out", f"{folder}/../{folder.name}/events.jsonl") == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert (folder / "events.jsonl").read_bytes() == before


def test_a_folder_that_is_missing_is_said_at_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the history is read."""
    assert _fit(folder, "--out", f"{folder}/no/such/w.safetensors") == 2
    assert "no folder that can be written to" in capsys.readouterr().err


def test_weights_of_another_architecture_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what does make new ones."""
    arrays = {**shipped().arrays, "surplus": np.zeros(1, np.float32)}
    write_weights(f"{folder}/other.safetensors", replace(shipped(), arrays=arrays))
    setting = f"model.weights={folder}/other.safetensors"
    assert _fit(folder, "--out", f"{folder}/x.safetensors", "--set", setting) == 4
    assert "`stream-forecaster pretrain`" in capsys.readouterr().err
