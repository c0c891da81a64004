import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from stream_forecaster.edge.options import count, examples


@pytest.mark.parametrize("text", ["1000", "1e3", "1,000", "1_000", "1k", "1K", " 1000 ", "0.001M"])
def test_numbers_as_people_write_large_ones(text: str) -> None:
    """All of them are a thousand."""
    assert count(text) == 1_000


@pytest.mark.parametrize(
    "text", ["0", "-5", "many", "1.5", "1e", "", "1e99", "1__0", "k", "\u0663"]
)
def test_what_is_no_number_is_told(text: str) -> None:
    """With some that are."""
    with pytest.raises(typer.BadParameter, match="such as 50000, 1e6 or 1M"):
        count(text)


@given(st.integers(1, 10**12))
def test_every_whole_number_is_itself(n: int) -> None:
    """Plain, and in groups."""
    assert count(str(n)) == count(f"{n:,}") == count(f"{n:_}") == n


def test_examples_name_the_program() -> None:
    """So that they can be typed as they are."""
    assert examples("run", "lag") == "Examples:\nstream-forecaster run\nstream-forecaster lag"
