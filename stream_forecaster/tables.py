"""Tables of numbers for a terminal: rows under headings, and fewer columns where it is narrow."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

_ENDLESS = 10_000


@dataclass(frozen=True, slots=True)
class Row:
    """A row.

    Attributes:
        label: what it is of.
        cells: column -> text; a column that is not there is empty.
        style: of the whole row, as rich has it.
    """

    label: str
    cells: Mapping[str, str]
    style: str = ""


def show(
    console: Console,
    title: str,
    columns: Sequence[str],
    sections: Mapping[str, Sequence[Row]],
    *,
    spare: Sequence[str] = (),
) -> None:
    """Print a table.

    A terminal that is too narrow does without columns, one after the other, and says so. What is
    not read on a terminal has them all, however wide they are.

    Args:
        console: where to.
        title: above the table.
        columns: in order.
        sections: heading, which may be empty -> rows.
        spare: what to do without, first to last.
    """
    table, width = _table(console, title, columns, sections)
    without: list[str] = []
    for column in spare if console.is_terminal else ():
        if width <= console.width:
            break
        without.append(column)
        left = [name for name in columns if name not in without]
        table, width = _table(console, title, left, sections)
    if not console.is_terminal:
        table.width = width
    console.print(table, crop=False)
    if without:
        named = ", ".join(without)
        console.print(f"Too narrow for {named}; --json has all.", highlight=False)


def number(value: float) -> str:
    """Four digits, or as many as a large number has; nothing for NaN.

    >>> number(0.25), number(12345.6), number(math.nan)
    ('0.2500', '12,346', '')
    """
    if math.isnan(value):
        return ""
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:#.4g}"


def _table(
    console: Console, title: str, columns: Sequence[str], sections: Mapping[str, Sequence[Row]]
) -> tuple[Table, int]:
    """A table and how wide it wants to be."""
    table = Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column(no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for heading, rows in sections.items():
        if heading:
            table.add_row(Text(heading))
        for row in rows:
            cells = (Text(row.cells.get(name, "")) for name in columns)
            table.add_row(Text(f"  {row.label}"), *cells, style=row.style)
        table.add_section()
    unbounded = console.options.update(width=_ENDLESS)
    return table, console.measure(table, options=unbounded).maximum
