"""The guarantees: every row is shown by tests that exist, and told by names that exist."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

import stream_forecaster
from stream_forecaster.edge.telemetry import PREFIX, Telemetry

_ROOT = Path(__file__).parent.parent
_PACKAGE = Path(stream_forecaster.__file__).parent
_PAGE = (_ROOT / "docs/guarantees.md").read_text()
_README = (_ROOT / "README.md").read_text().partition("\n## Guarantees\n")[2].partition("\n## ")[0]
_TEST = re.compile(r"`(tests/[\w/.]+)(?:::(\w+))?`")
_METRIC = re.compile(r'`(\w+)(?:\{(\w+)="(\w+)"\})?`')
_LOG_METHODS = {"debug", "info", "warning", "error", "exception", "critical"}


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table, cell by cell."""

    fails: str
    costs: str
    log: str
    metric: str
    tests: str


def rows(text: str) -> list[list[str]]:
    """A page's one table, cell by cell."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[*map(str.strip, line.strip("|").split("|"))] for line in lines[2:]]


def faults(row: Row) -> Iterator[str]:
    """What a row claims that is not so."""
    tests = _TEST.findall(row.tests)
    if not tests or not all(name for _, name in tests):
        yield "no test, or a file without a test's name"
    yield from (f"no {path}::{name}" for path, name in tests if name not in _functions(path))
    events = [said for said in re.findall(r"`([^`]+)`", row.log) if not said.startswith("--")]
    yield from (f"nothing logs {event!r}" for event in events if event not in _events())
    yield from (f"no metric {name}" for name in _missing_metrics(row.metric))
    if not events and not _METRIC.search(row.metric):
        yield "neither a log line nor a metric tells"
    if not row.metric and not re.search(r"exit [34]\b", row.costs):
        yield "no metric although the process lives on"


@cache
def _functions(path: str) -> set[str]:
    file = _ROOT / path
    if not file.is_file():
        return set()
    tree = ast.parse(file.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@cache
def _events() -> set[str]:
    """The first argument of every call of a logger in the package, where it is a text."""
    calls = (
        node
        for path in _PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    )
    return {
        call.args[0].value
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in _LOG_METHODS
        and call.args
        and isinstance(call.args[0], ast.Constant)
        and isinstance(call.args[0].value, str)
    }


@cache
def _metrics() -> dict[str, set[tuple[str, str]]]:
    """Every metric that is there from the start, and the labels it is there with."""
    registry = CollectorRegistry()
    Telemetry(registry)
    found: dict[str, set[tuple[str, str]]] = {}
    for family in registry.collect():
        ending = "_total" if family.type == "counter" else ""
        labels = found.setdefault(family.name.removeprefix(f"{PREFIX}_") + ending, set())
        for sample in family.samples:
            labels.update(sample.labels.items())
    return found


def _missing_metrics(cell: str) -> Iterator[str]:
    """Those that do not exist; `{reason="x"}` alone goes with the one before it."""
    name = ""
    for found in re.finditer(r'`(\w*)(?:\{(\w+)="(\w+)"\})?`', cell):
        name = found[1] or name
        labels = _metrics().get(name)
        if labels is None or (found[2] and (found[2], found[3]) not in labels):
            yield found[0]


@pytest.mark.parametrize("row", [Row(*cells) for cells in rows(_PAGE)], ids=lambda row: row.fails)
def test_every_row_is_shown_and_told(row: Row) -> None:
    """A guarantee that nothing tests, and a name that nobody finds, are no guarantee."""
    assert list(faults(row)) == []


@pytest.mark.parametrize("text", [_PAGE, _README], ids=["page", "README"])
def test_all_that_can_fail_has_a_row(text: str) -> None:
    """At least these: case by case on the page, some in one row of the README."""
    fails = "\n".join(cells[0] for cells in rows(text))
    for fault in (
        "killed (-9)", "SIGTERM", "zombie", "`kafka.instance_id`", "broker killed", "network cut",
        "rebalance", "store full", "read-only", "denied", "slow or hanging", "removed",
        "while it is down", "truncated", "bit flipped", "spoilt", "another version",
        "other settings", "at the start", "retention", "any bytes", "later than its closed bucket",
        "never take", "memory exhausted",
    ):  # fmt: skip
        assert fault in fails


def test_every_test_that_the_page_names_exists() -> None:
    """In the table and outside of it; and the one that the README names."""
    named = _TEST.findall(_PAGE + (_ROOT / "README.md").read_text())
    assert len(named) > 20
    missing = [path for path, _ in named if not (_ROOT / path).exists()]
    missing += [f"{path}::{name}" for path, name in named if name and name not in _functions(path)]
    assert missing == []


_SOUND = Row(
    "disk full", "nothing", "`checkpoint_failed`", '`checkpoints_failed_total{reason="full"}`',
    "`tests/test_guarantees.py::test_a_sound_row_passes`",
)  # fmt: skip


def test_a_sound_row_passes() -> None:
    """The checker can pass."""
    assert list(faults(_SOUND)) == []


@pytest.mark.parametrize(
    ("cell", "text", "fault"),
    [
        ("tests", "", "no test"),
        ("tests", "`tests/test_guarantees.py`", "without a test's name"),
        ("tests", "`tests/test_guarantees.py::test_nothing`", "no tests/test_guarantees.py::"),
        ("tests", "`tests/test_gone.py::test_nothing`", "no tests/test_gone.py::"),
        ("log", "`checkpoint_filed`", "nothing logs"),
        ("metric", "`checkpoints_field_total`", "no metric"),
        ("metric", '`checkpoints_failed_total{reason="fool"}`', "no metric"),
        ("metric", '`checkpoints_failed_total{reason="full"}`, `{reason="fool"}`', "no metric"),
        ("metric", "", "although the process lives on"),
    ],
)
def test_a_planted_fault_is_seen(cell: str, text: str, fault: str) -> None:
    """The checker can fail."""
    planted = Row(**{name: getattr(_SOUND, name) for name in Row.__slots__} | {cell: text})
    assert [found for found in faults(planted) if fault in found]
