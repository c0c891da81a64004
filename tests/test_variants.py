"""What is compared: each variant is what it says, and only those are run that differ."""

import io

import numpy as np
import pytest
import streams
from rich.console import Console

from stream_forecaster.config import Settings, parse
from stream_forecaster.edge.weights_file import read_weights
from stream_forecaster.lstm import ABSOLUTE
from stream_forecaster.passes import Pass
from stream_forecaster.scoring import POOL, PUBLISHED
from stream_forecaster.shard import Turn
from stream_forecaster.variants import Run, as_json, show, variants

LOG = streams.block(streams.busy_log(400))


def tried(settings: Settings, name: str) -> tuple[Pass, Turn]:
    """A variant's pass over the log."""
    (variant,) = (found for found in variants(settings) if name in found.names)
    past = variant.begin()
    return past, past.take(LOG)


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    """All variants of the small settings over the log."""
    found = [(variant, variant.begin()) for variant in variants(streams.settings(network=True))]
    for _, past in found:
        past.take(LOG)
    return found


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({}, "as set full both | lean | pool | zero-shot | online"),
        ({"state": {"max_keys": 100_001}}, "as set lean both | full | pool | zero-shot | online"),
        ({"model": {"profile": "full"}}, "as set full both | lean | pool | zero-shot | online"),
        ({"model": {"profile": "lean"}}, "as set lean both | full | pool | zero-shot | online"),
        ({"model": {"network": False}}, "as set full pool | lean | zero-shot | online | both"),
        (
            {"model": {"profile": "lean", "network": False}},
            "as set lean pool | full | zero-shot | online | both",
        ),
    ],
)
def test_only_those_that_differ_are_run(changed: dict[str, object], names: str) -> None:
    """One run under several names where they come to the same; as set is the first."""
    settings = parse(changed)
    short = {"full profile": "full", "lean profile": "lean", "pool alone": "pool"}
    short |= {"online only": "online"}

    found = [" ".join(short.get(n, n) for n in v.names) for v in variants(settings)]

    assert sorted(found) == sorted(names.split(" | "))
    assert found[0].startswith("as set")


def test_zero_shot_speaks_and_never_learns() -> None:
    """Its network has a say in the forecasts, and takes no step; with both it does."""
    settings = streams.settings(network=True)
    past, turn = tried(settings, "zero-shot")

    assert turn.training_steps == 0
    assert (past.scores[0].mae(PUBLISHED) != past.scores[0].mae(POOL)).all()
    assert (past.scores[0].spoke(ABSOLUTE) > 0.9).all()
    assert tried(settings, "both")[1].training_steps > 0


def test_online_only_begins_with_random_weights_and_no_say() -> None:
    """At first it is the pool's forecast; then it trains."""
    settings = streams.settings(network=True)
    (variant,) = (found for found in variants(settings) if "online only" in found.names)
    past = variant.begin()
    early = past.take(streams.block(streams.busy_log(400), 0, 10))

    for forecast in early.forecasts:
        weights = forecast.paths[0].weights
        np.testing.assert_array_equal(weights[:, forecast.paths[0].experts.index(ABSOLUTE)], 0.0)
    assert early.forecasts
    assert past.take(streams.block(streams.busy_log(400), 10, 400)).training_steps > 0
    assert variant.weights is not None
    assert read_weights("") is not variant.weights


def test_what_is_shown_is_what_was_scored(runs: list[Run]) -> None:
    """Each variant in each section, with its numbers; the smallest are marked."""
    out = io.StringIO()
    show(Console(file=out, width=100), streams.settings(network=True), runs)
    lines = out.getvalue().splitlines()
    sections = [i for i, line in enumerate(lines) if "ahead, in buckets of" in line]

    first = lines[sections[0]]
    assert "1 minute ahead, in buckets of 1 minute" in first
    for at, (variant, past) in enumerate(runs, sections[0] + 1):
        name, score = ", ".join(variant.names), past.scores[0]
        assert lines[at].startswith(f"   {name}  ")
        numbers = [cell.rstrip("*") for cell in lines[at].removeprefix(f"   {name}").split()]
        expected = [score.mse(PUBLISHED)[0], score.mae(PUBLISHED)[0], score.wql()[0]]
        expected += [100 * score.coverages()[0.8][0]]
        assert [float(n) for n in numbers] == pytest.approx(expected, rel=1e-3, abs=0.05)
    least = min(range(len(runs)), key=lambda i: float(runs[i][1].scores[0].mse(PUBLISHED)[0]))
    name = ", ".join(runs[least][0].names)
    assert lines[sections[0] + 1 + least].removeprefix(f"   {name}").split()[0].endswith("*")


def test_the_cost_is_shown(runs: list[Run]) -> None:
    """State per key: lean takes less, and so does the pool alone."""
    found = {tuple(row["names"]): row for row in as_json(runs)}
    full, lean, pool = (
        found[names]
        for names in (("as set", "full profile", "both"), ("lean profile",), ("pool alone",))
    )

    assert lean["state_bytes_per_key"] < full["state_bytes_per_key"]
    assert pool["state_bytes_per_key"] < full["state_bytes_per_key"]


def test_nothing_scored_is_no_table() -> None:
    """Only what the variants cost."""
    found = [(variant, variant.begin()) for variant in variants(streams.settings())]
    for _, past in found:
        past.take(streams.block(streams.busy_log(2)))
    out = io.StringIO()
    show(Console(file=out, width=100), streams.settings(), found)

    assert "side by side" not in out.getvalue()
    assert "bytes per key" in out.getvalue()
