"""Figures: one row is one number with its unit, what it is of, and what it is to be beside others.

Every benchmark ends in a `Report`: rows, the runs behind them, the machine. It prints the rows as a
table, or is written as JSON, which is what the suite reads.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.measure.machine import brief, describe

_WIDTH = 160
_COLUMNS: dict[str, Literal["left", "right"]] = {
    "": "left",
    "measured": "right",
    "unit": "left",
    "also": "left",
    "beside": "left",
}


@dataclass(frozen=True, slots=True)
class Bound:
    """Between what a number must lie; None: no such bound."""

    least: float | None = None
    most: float | None = None

    def holds(self, number: float) -> bool:
        """Whether it lies there."""
        return (self.least is None or number >= self.least) and (
            self.most is None or number <= self.most
        )

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f"{spelled(self.least)} to {spelled(self.most)}"
        return (
            f"at least {spelled(self.least)}"
            if self.most is None
            else (f"at most {spelled(self.most)}")
        )


@dataclass(frozen=True, slots=True)
class Ratio:
    """How a row's number compares.

    Attributes:
        times: the factor.
        of: in words, of what: "x cheaper than Flink".
        must: what the factor must be, if anything.
    """

    times: float
    of: str
    must: Bound | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One number.

    Attributes:
        what: the contender, or what is measured.
        value: the number, a median of runs where there are several.
        unit: of the number.
        case: under which circumstances; rows of one case and unit are drawn beside each other.
        does: what the contender does for it, and what it does not do.
        also: other numbers of the same runs, in words.
        ratios: to other rows.
        must: what the number must be, if anything.
        ours: False for what we are compared with.
    """

    what: str
    value: float
    unit: str
    case: str = ""
    does: str = ""
    also: str = ""
    ratios: tuple[Ratio, ...] = ()
    must: Bound | None = None
    ours: bool = True

    @property
    def verdicts(self) -> list[tuple[str, bool]]:
        """Each demand in words, and whether it is met."""
        own = [(str(self.must), self.must.holds(self.value))] if self.must else []
        return own + [
            (f"{ratio.must} {ratio.of}", ratio.must.holds(ratio.times))
            for ratio in self.ratios
            if ratio.must
        ]

    @classmethod
    def read(cls, data: dict[str, Any]) -> Self:
        """From what `asdict` made of it."""
        ratios = tuple(
            Ratio(**{**ratio, "must": _bound(ratio["must"])}) for ratio in data["ratios"]
        )
        return cls(**{**data, "ratios": ratios, "must": _bound(data["must"])})


def _bound(data: dict[str, Any] | None) -> Bound | None:
    return Bound(**data) if data else None


@dataclass(frozen=True, slots=True)
class Report:
    """What one benchmark found.

    Attributes:
        name: the benchmark's.
        rows: in the table's order.
        runs: every run behind the rows, as the benchmark likes.
        options: it was called with.
        left_out: what could not be measured here, and why.
        machine: where.
    """

    name: str
    rows: Sequence[Row]
    runs: Any = None
    options: dict[str, Any] = field(default_factory=dict)
    left_out: Sequence[str] = ()
    machine: dict[str, Any] = field(default_factory=describe)

    def finish(self, options: argparse.Namespace) -> None:
        """Print the table, and write the file that `--json` names."""
        show([self], self.machine)
        if options.json:
            told = {name: str(value) for name, value in vars(options).items() if name != "json"}
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps({**asdict(self), "options": told}, indent=1))

    @classmethod
    def read(cls, path: Path) -> Self:
        """From the file that `finish` wrote."""
        data = json.loads(path.read_text())
        return cls(**{**data, "rows": [Row.read(row) for row in data["rows"]]})


def parser(doc: str | None, *, rounds: int | None = None) -> argparse.ArgumentParser:
    """What every benchmark can be told: `--json FILE`, and how many `--rounds` if it has any."""
    described = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    if rounds is not None:
        described.add_argument("--rounds", type=int, default=rounds, help="medians are of so many")
    described.add_argument("--json", type=Path, help="write rows and every run's figures there")
    return described


def show(reports: Iterable[Report], machine: dict[str, Any]) -> None:
    """One table of all rows; below it what each does, and what must hold and does not."""
    table = Table(title=brief(machine), caption="medians of the rounds", width=_WIDTH)
    for column, justify in _COLUMNS.items():
        table.add_column(column, justify=justify, overflow="fold")
    failed, legend = [], dict[str, str]()
    for report in reports:
        case: str | None = None
        for row in report.rows:
            if row.case != case:
                case = row.case
                table.add_section()
                table.add_row(Text(f"{report.name}: {case}" if case else report.name, "bold"))
            table.add_row(f"  {row.what}", spelled(row.value), row.unit, row.also, _compared(row))
            failed += [
                f"{report.name}, {row.what}: {said}" for said, met in row.verdicts if not met
            ]
            if row.does:
                legend[f"{report.name}, {row.what}"] = row.does
        for reason in report.left_out:
            table.add_row(Text(f"  left out: {reason}", "dim"))
    console = Console(width=_WIDTH, highlight=False)
    console.print(table)
    for what, does in legend.items():
        console.print(Text(f"{what}: {does}", "dim"))
    if failed:
        console.print(Text("\nNot reached:\n  " + "\n  ".join(failed), "bold"))


def say(text: str) -> None:
    """How far it is, for who waits."""
    print(text, file=sys.stderr, flush=True)


def spelled(number: float | None) -> str:
    """Three digits, or all of those before the point.

    >>> spelled(1234567.8), spelled(12.345), spelled(1.5), spelled(0.01234)
    ('1,234,568', '12.3', '1.50', '0.0123')
    """
    if number is None:
        return ""
    if abs(number) >= 100:
        return f"{number:,.0f}"
    if abs(number) >= 10:
        return f"{number:.1f}"
    return f"{number:.2f}" if abs(number) >= 0.1 or not number else f"{number:.3g}"


def _compared(row: Row) -> str:
    """A line for what the number must be, and one for each ratio."""
    lines = [f"{_mark(row.must, row.value)}{row.must}"] if row.must else []
    for ratio in row.ratios:
        demand = f" ({ratio.must})" if ratio.must else ""
        lines.append(f"{_mark(ratio.must, ratio.times)}{spelled(ratio.times)} {ratio.of}{demand}")
    return "\n".join(lines)


def _mark(must: Bound | None, number: float) -> str:
    return "" if must is None else "✓ " if must.holds(number) else "✗ "
