"""Loops that are compiled do what they say, whatever the layout of what they read."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from stream_forecaster import interning
from stream_forecaster.compiled import compiled, exp_below_zero, halved, inlined, widened

_shapes = st.tuples(st.integers(0, 5), st.integers(0, 5))
_values = npst.arrays(np.float64, _shapes, elements=st.floats(-1e300, 1e300))


@compiled("f8:2 f8 i8:1 b1 > f8:2")
def _fill(
    values: NDArray[np.float64],
    factor: float,
    column: NDArray[np.int64],
    is_negative: bool,  # noqa: FBT001  (loops have no keywords)
    out: NDArray[np.float64],
) -> None:
    for i in range(len(values)):
        for j in range(len(column)):
            out[i, j] = values[i, column[j]] * (-factor if is_negative else factor)


@compiled("f2:1 f8:1 > f8:1 f2:1 f8:1")
def _convert(
    halves: NDArray[np.float16],
    numbers: NDArray[np.float64],
    wide: NDArray[np.float64],
    half: NDArray[np.float16],
    raised: NDArray[np.float64],
) -> None:
    for i in range(len(halves)):
        wide[i] = widened(halves[i])
    for i in range(len(numbers)):
        half[i] = halved(numbers[i])
        raised[i] = exp_below_zero(-abs(numbers[i]))


def test_half_precision_is_that_of_numpy() -> None:
    """Every number there is, and the rounding of others; alone as in a loop."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=10_000) * 10.0 ** rng.uniform(-9, 6, 10_000)
    numbers[:5] = np.nan, np.inf, -np.inf, 65_519.9, 65_520.0
    wide, half, raised = np.empty(len(halves)), np.empty(10_000, np.float16), np.empty(10_000)
    _convert(halves, numbers, wide, half, raised)
    np.testing.assert_array_equal(wide, halves.astype(np.float64))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(half, numbers.astype(np.float32).astype(np.float16))
    assert widened(15_360) == 1.0
    assert halved(1.0) == 15_360


def test_the_exponential_function_below_zero() -> None:
    """As precise as it says, and the same in a loop."""
    exponents = -np.linspace(0, 60, 10_000)
    wide, half, raised = np.empty(0), np.empty(10_000, np.float16), np.empty(10_000)
    _convert(np.empty(0, np.float16), exponents, wide, half, raised)
    expected = np.exp(np.maximum(exponents, -40.0))
    np.testing.assert_allclose(raised, expected, rtol=3e-7)
    np.testing.assert_allclose(raised[exponents > -1], expected[exponents > -1], rtol=1e-12)
    assert raised[777] == exp_below_zero(exponents[777])


@given(values=_values, is_negative=st.booleans(), layout=st.sampled_from("CFS"))
def test_a_loop_is_its_array_expression(
    values: NDArray[np.float64], *, is_negative: bool, layout: str
) -> None:
    """Of arrays that are contiguous, transposed, or a part of a larger one."""
    column = np.arange(values.shape[1])[::-1]
    laid_out = {"C": values, "F": np.asfortranarray(values), "S": np.repeat(values, 2, 1)[:, ::2]}
    out = np.empty(values.shape)
    _fill(laid_out[layout], 2.0, column, is_negative, out)
    np.testing.assert_array_equal(out, values[:, column] * (-2.0 if is_negative else 2.0))


@inlined
def _first_not(letters: NDArray[np.uint8], begin: int, letter: int) -> int:
    while begin < len(letters) and letters[begin] == letter:
        begin += 1
    return begin


@compiled("u1:1! u1 > = i8")
def _runs(letters: NDArray[np.uint8], letter: int) -> int:
    """How many runs of a letter there are."""
    found = at = 0
    while at < len(letters):
        end = _first_not(letters, at, letter)
        found += end > at
        at = end + 1
    return found


@given(letters=st.text("ab", max_size=20))
def test_a_loop_calls_its_parts_and_returns(letters: str) -> None:
    """And reads bytes that nobody may write to."""
    data = np.frombuffer(letters.encode(), np.uint8)
    assert _runs(data, ord("a")) == len(letters.replace("b", " ").split())


def test_what_is_written_to_has_to_be_contiguous() -> None:
    """Rather than a copy of it being written to, and lost."""
    with pytest.raises(TypeError, match="No matching definition"):
        _fill(np.ones((2, 2)), 1.0, np.arange(2), False, np.empty((2, 2)).T[::-1])  # noqa: FBT003


def _run_in_closed_package(folder: Path, **places: str) -> "subprocess.CompletedProcess[str]":
    """Run a loop whose package takes no files; says what came of it, and if it had been kept."""
    package = Path(__file__).parent.parent / "stream_forecaster"
    shutil.copy(package / "compiled.py", folder / "compiled.py")
    (folder / "loop.py").write_text(
        "import numpy as np\n"
        "from compiled import compiled\n"
        "@compiled('f8 > f8:1')\n"
        "def add(number, total):\n"
        "    total[0] += number\n"
        "total = np.ones(1)\n"
        "add(2.0, total)\n"
        "print(total[0], sum(add.compile().stats.cache_hits.values()))\n"
    )
    (folder / "__pycache__").write_text("no folder")
    env = {**os.environ, "HOME": str(folder / "home"), "XDG_CACHE_HOME": str(folder / "home")}
    env.pop("NUMBA_CACHE_DIR", None)
    command = [sys.executable, "-B", str(folder / "loop.py")]
    return subprocess.run(command, env=env | places, capture_output=True, text=True, check=True)


def test_a_loop_is_compiled_where_nothing_can_be_kept(tmp_path: Path) -> None:
    """As in a container whose file system is read-only; it says so."""
    (tmp_path / "home").write_text("no folder")
    done = _run_in_closed_package(tmp_path)
    assert done.stdout == "3.0 0\n"
    assert "compiled anew at every start" in done.stderr


@pytest.mark.parametrize("place", ["the user's cache", "NUMBA_CACHE_DIR"])
def test_what_the_package_cannot_keep_is_kept_elsewhere(tmp_path: Path, place: str) -> None:
    """The second start compiles nothing: where users may not write to what is installed, too."""
    named = {} if place == "the user's cache" else {place: str(tmp_path / "elsewhere")}
    done = [_run_in_closed_package(tmp_path, **named) for _ in range(2)]
    assert [each.stdout for each in done] == ["3.0 0\n", "3.0 1\n"]
    assert not done[1].stderr


_SHARED = """
import os
os.sched_getaffinity = lambda _: {0, 1}
from stream_forecaster import scoring, spread
from stream_forecaster.compiled import loops
from stream_forecaster.edge.compiling import compile_on_all_cores
compile_on_all_cores(lambda: print("told"))
print([len(loop.compile().stats.cache_hits) for loop in loops])
"""


def test_cores_share_what_is_to_be_compiled(tmp_path: Path) -> None:
    """The first one is found not to be kept; of the rest another process compiles every second."""
    command, env = [sys.executable, "-c", _SHARED], {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = [
        subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    count = done[1].count("1")
    assert done == [f"told\n{[0] + [i % 2 for i in range(count - 1)]}\n", f"{[1] * count}\n"]


@pytest.mark.parametrize("place", ["Makefile", "Dockerfile"])
def test_what_is_compiled_beforehand_is_every_loop(place: str) -> None:
    """What is imported there knows of as many loops as all modules that have any."""
    root = Path(__file__).parent.parent
    (program,) = re.findall(r"-c ['\"](.*cores\(\))['\"]", (root / place).read_text())
    imports = program.partition(";")[0]
    paths = [path.relative_to(root) for path in (root / "stream_forecaster").rglob("*.py")]
    with_loops = [
        ".".join(path.with_suffix("").parts)
        for path in paths
        if "stream_forecaster.compiled import" in (root / path).read_text()
    ]
    count = (
        f"{imports}\nfrom stream_forecaster.compiled import loops\nbefore = len(loops)\n"
        f"import {', '.join(with_loops)}\nprint(before, len(loops))"
    )
    done = subprocess.run(
        [sys.executable, "-c", count], cwd=root, capture_output=True, text=True, check=True
    )
    before, after = done.stdout.split()
    assert before == after


def test_parts_of_a_loop_are_not_called(tmp_path: Path) -> None:
    """A call hands every array over field by field, and takes longer than what is called."""
    path = tmp_path / "interning_anew.py"  # of what was kept numba cannot say how it was compiled
    shutil.copy(interning.__file__, path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    sys.modules[path.stem] = anew = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(anew)

    (assembly,) = anew._intern.compile().inspect_asm().values()

    # a place's name is called, or is put into a register that is
    assert not re.findall(r"(?:call|mov)\S*\s.*(?:_place|_hashed)", assembly)
