"""The machine: what it is, which core runs what, and what the kernel says of a process."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from brokers import external, kafka_home, most_real

ROOT = Path(__file__).parents[2]
_LIBRARIES = ("stream-forecaster", "kafka-python", "confluent-kafka", "numpy", "numba", "torch")
_JARS = {
    "Kafka Streams": "kafka-streams/kafka-streams-*.jar",
    "Flink": "flink/libs/flink-core-[0-9]*.jar",
}


def describe() -> dict[str, Any]:
    """What figures are worth nothing without; a fact that cannot be had is left out."""
    facts: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "load": [round(load, 1) for load in os.getloadavg()],
        "system": platform.platform(),
        "broker": broker(),
        "versions": versions(),
    }
    return {name: fact for name, fact in facts.items() if fact}


def broker() -> str:
    """In words, the broker that is measured with, without where it is kept."""
    home = kafka_home()
    if external() is not None or home is None:
        return most_real()
    return f"Apache Kafka {jar_version(home, 'libs/kafka_*.jar')}"


def versions() -> dict[str, str]:
    """Of everything that takes part, by name."""
    found = {"Python": platform.python_version()} | {name: version(name) for name in _LIBRARIES}
    lock = (ROOT / "benchmarks" / "requirements.lock").read_text()
    found["quixstreams"] = re.findall(r"^quixstreams==(.*)$", lock, re.MULTILINE)[0]
    if peers := os.environ.get("PEERS"):
        found |= {name: jar_version(Path(peers), jar) for name, jar in _JARS.items()}
    if java := shutil.which("java"):
        said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
        found["Java"] = "".join(re.findall(r'version "([^"]*)"', said.stderr)[:1])
    return {name: number for name, number in found.items() if number}


def jar_version(folder: Path, pattern: str) -> str:
    """The version in a jar's name; "" without the jar."""
    names = sorted(path.stem for path in folder.glob(pattern))
    return names[0].rpartition("-")[2] if names else ""


def brief(facts: dict[str, Any]) -> str:
    """One line of `describe` for the head of a table."""
    return f"{facts.get('cpu', 'unknown CPU')}, {facts['cores']} cores, {facts['broker']}"


# -- which core runs what --------------------------------------------------------------------------


def cores() -> list[int]:
    """That this process may use; [] where the system does not say."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    return sorted(os.sched_getaffinity(0))


def apart() -> tuple[list[int], list[int]]:
    """The cores of the broker and the load, and the one of what is measured: the last.

    With a single core, or where the system cannot pin, nothing is pinned: [] and [].
    """
    *others, last = cores() or [0]
    return (others, [last]) if others else ([], [])


@contextmanager
def pinned(to: Sequence[int]) -> Iterator[None]:
    """Processes started within run on these cores only, and so does this one meanwhile."""
    if not to:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, to)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def environment() -> dict[str, str]:
    """For processes that import from this folder, and print numbers with a point."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {**os.environ, "PYTHONPATH": path, "LC_ALL": "C.UTF-8"}


def run_alone(
    command: list[str], core: Sequence[int], timeout_s: float | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a command that finds this folder's modules, on a core of its own."""
    with pinned(core):
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            start_new_session=True,
        )
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except BaseException:  # a script's JVM outlives the script
        os.killpg(process.pid, 9)
        process.wait()
        raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


# -- what the kernel says of a process, Linux only -------------------------------------------------


def status(pid: int | str = "self") -> dict[str, str]:
    """/proc/PID/status by line."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: text.strip() for name, text in (line.split(":", 1) for line in lines)}


def resident_bytes(pid: int | str = "self", name: str = "VmRSS") -> int:
    """Of memory; with "VmHWM" the most there have been."""
    return int(status(pid)[name].split()[0]) * 1024


def cpu_of(pid: int) -> float:
    """CPU seconds of a process so far, all of its threads, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _cpu_model() -> str:
    if sys.platform == "linux":
        found = re.findall(
            r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE
        )
        if found:
            return str(found[0])
    return platform.processor()
