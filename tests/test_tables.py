"""Tables at every width: no number is cut, whatever has to go."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from stream_forecaster.tables import Row, show

COLUMNS = ("near", "far", "beyond")
CELLS = {"near": "1,234,567", "far": "0.1250*", "beyond": "[7]"}


def shown(width: int, *, terminal: bool) -> list[str]:
    """The lines of a table under two headings, of which a narrow terminal may drop two columns."""
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, color_system=None)
    rows = [Row("a longer label", CELLS), Row("b", {"far": "2"}, style="bold")]
    sections = {"first": rows, "second": rows[:1]}
    show(console, "A title", COLUMNS, sections, spare=("beyond", "far"))
    return out.getvalue().splitlines()


@given(width=st.integers(30, 120), terminal=st.booleans())
def test_what_is_shown_is_whole(width: int, terminal: bool) -> None:  # noqa: FBT001
    """No cell is cut, and on a terminal no line is wider than it."""
    lines = shown(width, terminal=terminal)
    numbers = next(line for line in lines if "a longer label" in line).split()[3:]

    assert numbers == list(CELLS.values())[: len(numbers)]
    left_out = [name for name in COLUMNS if not any(name in line.split() for line in lines[:4])]
    assert len(numbers) == len(COLUMNS) - len(left_out)
    if terminal:
        assert max(map(len, lines)) <= width
    else:
        assert not left_out


@pytest.mark.parametrize(("width", "gone"), [(60, []), (40, ["beyond"]), (32, ["beyond", "far"])])
def test_a_narrow_terminal_does_without_columns_and_says_so(width: int, gone: list[str]) -> None:
    """First that which is missed least."""
    lines = shown(width, terminal=True)

    said = f"Too narrow for {', '.join(gone)}; --json has all."
    assert (said in " ".join(" ".join(lines).split())) == bool(gone)


def test_rows_stand_under_their_headings() -> None:
    """In the order given, an empty cell where there is no number."""
    text = [line.rstrip() for line in shown(60, terminal=False)]
    starts = [
        next(i for i, line in enumerate(text) if word in line) for word in ("first", "second")
    ]

    assert "a longer label" in text[starts[0] + 1]
    assert text[starts[0] + 2].split() == ["b", "2"]
    assert "a longer label" in text[starts[1] + 1]
