"""What the benchmark suite reckons with: turns, statistics, peers' figures, tables and pictures."""

import json
import os
from functools import partial
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from drawn import forecast_messages
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import growth, ingest, latency, memory, publish, suite
from benchmarks.measure import figures, machine, turns
from benchmarks.measure.clock import HalfTime
from benchmarks.measure.figures import Bound, Ratio, Report, Row, parser
from benchmarks.measure.plot import draw

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
CONSUMER = """\
consume+jackson    250000 ev/s  cpu 3.900 s/M
consume+jackson    500000 ev/s  cpu 2.100 s/M
consume+jackson    800000 ev/s  cpu 1.250 s/M
"""
STREAMS = (
    "streams mem          1 threads: all     11000 ev/s cpu 20.500 s/M"
    " | second half (warm)     20000 ev/s cpu 12.500 s/M\n"
)
FLINK = (
    "flink: all     90000 ev/s cpu 9.100 s/M | second half    160000 ev/s cpu 5.400 s/M"
    " | windows out 12345\n"
)


# -- turns and statistics --------------------------------------------------------------------------


def test_every_round_begins_with_another_contender() -> None:
    """Three contenders, four rounds; results stay in the order of the names."""
    order = []

    def contender(name: str) -> str:
        order.append(name)
        return f"{name}{len(order)}"

    taken = turns.take_turns({name: partial(contender, name) for name in "abc"}, 4)

    assert "".join(order) == "abcbcacababc"
    assert taken == {
        "a": ["a1", "a6", "a8", "a10"],
        "b": ["b2", "b4", "b9", "b11"],
        "c": ["c3", "c5", "c7", "c12"],
    }


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.sampled_from([1, 50, 95, 99, 100]))
def test_a_percentile_is_the_least_number_that_covers_the_share(
    numbers: list[float], share: float
) -> None:
    """Counted out: so many percent are at most that, and of every smaller number fewer are."""

    def covered(limit: float) -> bool:
        return sum(n <= limit for n in numbers) >= share / 100 * len(numbers)

    found = turns.percentile(numbers, share)

    assert found == min(n for n in numbers if covered(n))


def test_without_numbers_there_is_no_percentile() -> None:
    with pytest.raises(ValueError, match="no numbers"):
        turns.percentile([], 50)


@given(st.floats(-2, 3), st.floats(1e-3, 1e6))
def test_a_power_law_has_its_exponent_as_slope(exponent: float, factor: float) -> None:
    sizes = (1, 10, 250, 40_000)

    found = turns.slope({size: factor * size**exponent for size in sizes})

    assert found == pytest.approx(exponent, abs=1e-6)


def test_a_fixed_cost_makes_the_slope_less_than_one() -> None:
    assert 0.0 < turns.slope({n: 6_000 + n for n in (1_000, 4_000, 16_000)}) < 0.8


def test_costs_of_runs_are_medians_per_million() -> None:
    runs = [{"cpu_s": s, "events": 2_000_000} for s in (9.0, 4.0, 2.0)]

    assert turns.per_million(runs, "cpu_s", "events") == 2.0


def test_only_the_second_half_is_timed() -> None:
    """Counted in pieces that cross the middle: timing begins where it is known to be crossed."""
    clock = HalfTime(100)
    for piece in (30, 30, 40):
        clock.count(piece)

    found = clock.result()

    assert clock.read == 100
    assert found["events"] == 40
    assert 0 <= found["cpu_s"] < 1
    assert 0 < found["wall_s"] < 1


# -- what is measured, read from what others say ---------------------------------------------------


@pytest.mark.parametrize(
    ("said", "rate", "cpu"),
    [(CONSUMER, 800_000, 1.25), (STREAMS, 20_000, 12.5), (FLINK, 160_000, 5.4)],
)
def test_of_what_a_peer_says_the_warmest_part_counts(said: str, rate: float, cpu: float) -> None:
    found = ingest.said_by_peer(said, 400_000)

    assert found["events"] / found["wall_s"] == pytest.approx(rate)
    assert 1e6 * found["cpu_s"] / found["events"] == pytest.approx(cpu)


@pytest.mark.parametrize(
    "said",
    ["", "Exception in thread main", STREAMS.replace("12.500", "NaN").replace("20.500", "NaN")],
)
def test_a_peer_that_says_no_figures_is_an_error(said: str) -> None:
    with pytest.raises(ValueError, match="no figures"):
        ingest.said_by_peer(said, 400_000)


def test_a_peer_that_did_not_get_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="to the end"):
        ingest.said_by_peer("consume+jackson    0 ev/s  cpu 0.000 s/M", 400_000)


def test_windows_are_compared_with_all_that_are_there() -> None:
    """Quix is 30 times as dear, the Java consumer a little cheaper, the others are not there."""
    cost = {
        "quixstreams: tumbling count": 30.0,
        "Java consumer, JSON parsed": 0.9,
        "ours: windows at three resolutions": 1.0,
    }
    runs = {name: [{"events": 1e6, "wall_s": 2.0, "cpu_s": s}] for name, s in cost.items()}

    *others, ours = ingest.rows("10 keys", runs)

    assert [ratio.times for ratio in ours.ratios] == pytest.approx([30.0, 0.9])
    assert [met for _, met in ours.verdicts] == [True, False]
    assert not any(row.ratios or row.ours for row in others)
    assert ours.also == "500,000 events/s"


def test_a_live_stream_is_kept_up_with_or_not() -> None:
    """A core has a second for what comes in one."""
    name = "ours: everything, exactly once"
    runs = {name: [{"events": 1e6, "wall_s": 2.0, "cpu_s": 1.9}]}

    for most, met in ((2.0, True), (1.8, False)):
        (row,) = ingest.rows("10 keys", runs, Bound(most=most))
        assert [held for _, held in row.verdicts] == [met]


def test_publishing_is_compared_with_both_producers() -> None:
    cost = {"kafka-python": 20.0, "confluent": 1.5, "ours": 0.8}
    runs = {who: [{"records": 1e6, "wall_s": 1.0, "cpu_s": s}] for who, s in cost.items()}

    *_, ours = publish.published_rows("small", "none", runs)
    *_, squeezed = publish.published_rows("small", "zstd", runs)

    assert [met for _, met in ours.verdicts] == [True, True]
    assert [ratio.times for ratio in squeezed.ratios] == pytest.approx([25.0, 1.875])
    assert not squeezed.verdicts


def test_a_forecast_says_which_record_made_it_due() -> None:
    """Read from messages as they are published; a tombstone says nothing."""
    messages = forecast_messages("out", 3)
    said = json.loads(messages[0].value or b"")["source"]

    found = [latency.source(m.value, 7.5) for m in messages]

    assert found == 3 * [latency.Seen(said["partition"], said["offset"], 7.5)]
    assert latency.source(None, 7.5) is None


def test_only_the_promised_sizes_of_memory_are_judged() -> None:
    said = dict.fromkeys(("planned", "state", "held", "grown", "most", "process_mb"), 1.0)
    sizes = [
        ("lean", 1_000_000, 4_000.0, 0.95),
        ("full", 100_000, 17_000.0, 1.2),
        ("full", 10_000, 60_000.0, 1.2),
    ]

    rows = [
        memory.row({**said, "profile": p, "keys": k, "resident": r, "grown": grown})
        for p, k, r, grown in sizes
    ]

    assert [[met for _, met in row.verdicts] for row in rows] == [[True, True], [False, False], []]
    assert [ratio.times for row in rows for ratio in row.ratios] == [0.95, 1.2, 1.2]


def test_growth_is_judged_against_keys_only() -> None:
    linear = {1_000: 1e4, 10_000: 1e5}

    assert [met for _, met in growth.row("keys", "pool", linear).verdicts] == [True]
    assert not growth.row("horizon", "pool", linear).verdicts


# -- the table, the file, the picture --------------------------------------------------------------

ROWS = [
    Row("ours", 1.5, "us", "case <1>", "all of it", "9 events/s", (Ratio(3.0, "x it", Bound(2)),)),
    Row("theirs & more", 4.5, "us", "case <1>", ours=False),
    Row("alone", 7.0, "ms", must=Bound(most=5.0)),
]


FACTS = {"cpu": "Some CPU", "cores": 2, "broker": "Some Kafka"}


def report(name: str = "hop", runs: object = None) -> Report:
    return Report(name, ROWS, runs, left_out=["Flink: no Java"], machine=FACTS)


@pytest.mark.parametrize(
    ("bound", "within", "beyond"),
    [
        (Bound(least=2.0), [2.0, 9.0], [1.9]),
        (Bound(most=2.0), [-1.0, 2.0], [2.1]),
        (Bound(0.9, 1.1), [0.9, 1.1], [0.89, 1.11]),
    ],
)
def test_bounds_hold_at_their_ends(bound: Bound, within: list[float], beyond: list[float]) -> None:
    assert all(map(bound.holds, within))
    assert not any(map(bound.holds, beyond))
    assert not bound.holds(np.nan)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "hop.json"

    report(runs={"a": [1.0]}).finish(parser("Doc.", rounds=3).parse_args(["--json", str(path)]))
    back = Report.read(path)

    assert [*back.rows] == ROWS
    assert (back.name, back.runs, back.machine) == ("hop", {"a": [1.0]}, FACTS)
    assert back.options == {"rounds": "3"}


def test_the_table_has_every_row_and_says_what_does_not_hold(
    capsys: pytest.CaptureFixture[str],
) -> None:
    figures.show([report()], FACTS)
    printed = capsys.readouterr().out

    assert all(row.what in printed for row in ROWS)
    assert "✓ 3.00 x it (at least 2.00)" in printed
    assert "✗ at most 5.00" in printed
    assert "left out: Flink: no Java" in printed
    assert "hop, ours: all of it" in printed
    assert printed.rstrip().endswith("hop, alone: at most 5.00")
    assert "Some CPU, 2 cores, Some Kafka" in printed


def test_the_picture_is_well_formed_and_names_what_it_compares() -> None:
    """Text may have anything in it; equal factors are equal lengths; a lone row is no panel."""
    curves = {"keys, pool": {"1000": 10.0, "4000": 40.0}, "keys, network": {"1000": 9, "4000": 9}}

    drawn = draw([report(), report("growth", curves)], "A & B")

    root = ET.fromstring(drawn)  # noqa: S314 (our own)
    texts = {node.text for node in root.iter() if node.tag.endswith(("text", "tspan"))}
    assert {"A & B", "hop: case <1>", "theirs & more", "hop against keys"} <= texts
    assert "alone" not in texts
    bars = [float(n.get("width", "")) for n in root.iter() if n.tag.endswith("rect")]
    assert bars[0] / bars[1] == pytest.approx(1 / (1 + np.log10(3.0)), rel=1e-3)
    assert sum(node.tag.endswith("polyline") for node in root.iter()) == 2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no pinning on this system")
def test_a_pinned_process_is_freed_again() -> None:
    before = machine.cores()
    core = before[-1:]

    with machine.pinned(core):
        assert machine.cores() == core
    assert machine.cores() == before


def test_the_machine_is_described_without_where_things_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "libs").mkdir()
    (tmp_path / "libs" / "kafka_2.13-4.3.1.jar").touch()
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    monkeypatch.setenv("KAFKA_HOME", str(tmp_path))

    found = machine.describe()

    assert found["broker"] == "Apache Kafka 4.3.1"
    assert found["versions"]["quixstreams"]
    assert str(tmp_path) not in json.dumps(found)


@pytest.mark.parametrize("name", suite.PARTS)
def test_every_part_has_its_script_and_knows_its_quick_options(name: str) -> None:
    part = suite.PARTS[name]
    text = (BENCHMARKS / f"{part.script}.py").read_text()
    told = [word for word in part.quick.split() if word.startswith("--")]

    assert f'Report("{name}"' in text
    assert all(f'"{word}"' in text or (word == "--rounds" and "rounds=" in text) for word in told)
    assert part.minutes[1] < part.minutes[0]
