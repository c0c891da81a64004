"""What the Dockerfile does at the build and at the start, done here."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_PATH = Path(__file__).parents[2] / "Dockerfile"
DOCKERFILE = _PATH.read_text()
_STAGES = DOCKERFILE.split("\nFROM ")
_COMPILE = re.compile(r"RUN for cpu in ([^;]+); do NUMBA_CPU_NAME=\$cpu \\\n +\S+ -c \"(.+)\" \\\n")
_CPU = "x86-64-v3" if " avx2 " in Path("/proc/cpuinfo").read_text() else "generic"
"""Which of those that the image is compiled for this machine can run best."""
_STUB = """#!/bin/sh
echo "arguments: $*"
[ "$1" = version ] || exec "{python}" -c "{program}"
"""


def _variable(stage: str, name: str) -> str:
    (value,) = re.findall(rf"(?<!export ){name}=(\S+)", stage)
    return str(value)


@pytest.fixture
def compiled(tmp_path: Path) -> tuple[Path, str]:
    """What the build compiles for this machine, where it was told to; and the program that did."""
    found = _COMPILE.search(_STAGES[2])
    assert found is not None
    names = subprocess.run(["/bin/sh", "-c", f"echo {found[1]}"], capture_output=True, check=True)
    assert _CPU in names.stdout.decode().split()
    assert _variable(_STAGES[2], "NUMBA_CACHE_DIR") == "/opt/compiled"
    program = found[2]
    folder = tmp_path / "opt"
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(folder),
        "NUMBA_CPU_FEATURES": "",
        "NUMBA_CPU_NAME": _CPU,
    }
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    return folder, program


def _start(folder: Path, program: str, tmp: Path, *arguments: str) -> str:
    """What the entry point writes; `folder` is what the image has, `tmp` its /tmp."""
    (entry,) = re.findall(r"^ENTRYPOINT (\[.+\])$", _STAGES[3], re.MULTILINE)
    shell, flag, script, *name = json.loads(entry)
    stub = tmp / "bin" / "stream-forecaster"
    stub.parent.mkdir(parents=True, exist_ok=True)
    stub.write_text(_STUB.format(python=sys.executable, program=program))
    stub.chmod(0o755)
    cache = _variable(_STAGES[3], "NUMBA_CACHE_DIR").replace("/tmp", str(tmp))  # noqa: S108  (as the image has it)
    environment = os.environ | {
        "PATH": f"{stub.parent}:{os.environ['PATH']}",
        "NUMBA_CACHE_DIR": cache,
        "NUMBA_CPU_FEATURES": "",
        "NUMBA_CPU_NAME": _variable(_STAGES[3], "NUMBA_CPU_NAME"),
        "NUMBA_DEBUG_CACHE": "1",
    }
    command = [shell, flag, script.replace("/opt/compiled", str(folder)), *name, *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.timeout(300)  # everything is compiled anew
def test_a_start_compiles_nothing(compiled: tuple[Path, str], tmp_path: Path) -> None:
    """It loads what the image has; also after a restart, when /tmp has it already."""
    folder, program = compiled

    for _ in range(2):
        said = _start(folder, program, tmp_path / "tmp", "run", "--config", "a b")

        assert "arguments: run --config a b" in said
        assert said.count("data loaded from") == len(list(folder.rglob("*.nbc"))) > 10
        assert "data saved to" not in said


def test_without_a_place_to_write_it_starts_all_the_same(tmp_path: Path) -> None:
    """The copy fails without a word: then it is compiled."""
    assert "arguments: version" in _start(tmp_path / "nothing", "", tmp_path / "tmp", "version")


def test_the_final_stage_writes_nothing_and_is_nobody() -> None:
    """Its user is a number, so that a cluster can see that it is not root."""
    final = _STAGES[3]

    assert re.search(r"^USER \d+:\d+$", final, re.MULTILINE)
    assert "pip" not in final
    assert _variable(final, "PYTHONDONTWRITEBYTECODE") == "1"


def test_hadolint_finds_nothing() -> None:
    """The linter of Dockerfiles, with all its rules."""
    linter = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which("hadolint")
    if linter is None:
        pytest.skip("needs hadolint: pip install -e '.[deploy]'")

    found = subprocess.run([linter, str(_PATH)], capture_output=True, text=True, check=False)

    assert (found.returncode, found.stdout) == (0, "")
