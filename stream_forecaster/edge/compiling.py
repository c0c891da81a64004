"""Loops compiled by several processes: of the first start after an installation, nearly all."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence

from stream_forecaster.compiled import Loop, compile_all, loops

_MOST_PROCESSES = 4
"""Each takes 200 MB."""
_BESIDE = """
import sys
from importlib import import_module
from stream_forecaster.compiled import loops
paths = sys.argv[1:]
for path in paths:
    import_module(path.rpartition(".")[0])
for loop in loops:
    if loop.path in paths:
        loop.compile()
"""


def compile_on_all_cores(told: Callable[[], None] = lambda: None) -> None:
    """As `compiled.compile_all`: half a second, or a minute of one core, shared by four at most.

    Args:
        told: called once if there is something to compile.
    """
    for i, loop in enumerate(loops):
        loop.compile()
        if loop.is_new:
            told()
            _share(loops[i + 1 :])
            break
    compile_all()


def _share(new: Sequence[Loop]) -> None:
    """Compile loops here and in processes beside this one, which keep them for it to load."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = min(cores or 1, _MOST_PROCESSES)
    begun = [
        # One that fails is none the worse: what it has not kept is compiled here.
        subprocess.Popen(  # noqa: S603  (this program)
            [sys.executable, "-c", _BESIDE, *(loop.path for loop in new[part::parts])],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for part in range(1, parts)
    ]
    for loop in new[::parts]:
        loop.compile()
    for process in begun:
        process.wait()
