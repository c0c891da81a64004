"""Loops over keys, compiled: one pass where arrays as a whole would need many.

A compiled function is the plain loop that a reader would write. Its types are stated, so that it is
compiled once and for all: when it is first called, or before that by `compile_all`. What comes of
it is kept beside the module, or where `NUMBA_CACHE_DIR` says; where neither can be written, nothing
is kept.

Constants of the module itself are compiled in. Those of another may change unnoticed: pass them.

No fast-math: a result depends on nothing but its operands, not on how many rows go with it, so that
any batching comes to the same bits.
"""

import warnings
from collections.abc import Callable
from functools import update_wrapper
from typing import Any, TypeVar, cast

import numpy as np

_Loop = TypeVar("_Loop", bound=Callable[..., None])


def compiled(signature: str) -> Callable[[_Loop], _Loop]:
    """Compile a function that reads arrays and numbers, writes to arrays, and returns nothing.

    What it reads may have any memory layout; what it writes to has to be C-contiguous.

    Args:
        signature: the types of what it reads, then ">" and of what it writes to. "f8" is a number,
            "f8:2" an array with two axes; there are f8, f4, i8, u1 and b1.
    """

    def compiled_loop(loop: _Loop) -> _Loop:
        _all.append(made := _Compiled(loop, signature))
        return cast("_Loop", made)

    return compiled_loop


def compile_all() -> None:
    """Compile what is not yet, or load what was kept: seconds, or a tenth of one."""
    for loop in _all:
        loop.compile()


class _Compiled:
    """One loop, and what was made of it."""

    def __init__(self, loop: Callable[..., None], signature: str) -> None:
        update_wrapper(self, loop)
        self._loop, self._run = loop, None
        reads, writes = (part.split() for part in signature.split(">"))
        self._types = reads + writes
        self._arrays = [i for i, read in enumerate(reads) if ":" in read]

    def __call__(self, *arguments: Any) -> None:  # noqa: ANN401  (arrays and numbers)
        told = list(arguments)
        for i in self._arrays:
            told[i] = np.ascontiguousarray(told[i])
        run = self._run or self.compile()
        run(*told)

    def compile(self) -> Any:  # noqa: ANN401  (numba's)
        """Once."""
        if self._run is None:
            self._run = _compile(self._loop, self._types)
        return self._run


_all: list[_Compiled] = []


def _compile(loop: Callable[..., None], names: list[str]) -> Any:  # noqa: ANN401  (numba's)
    import numba  # noqa: PLC0415  (takes half a second, and few commands forecast)

    scalars = {
        "f8": numba.float64,
        "f4": numba.float32,
        "i8": numba.int64,
        "u1": numba.uint8,
        "b1": numba.boolean,
    }

    def typed(name: str) -> Any:  # noqa: ANN401
        scalar, _, axes = name.partition(":")
        return numba.types.Array(scalars[scalar], int(axes), "C") if axes else scalars[scalar]

    signature = numba.void(*map(typed, names))
    # Threads that keep a consumer alive go on meanwhile; 1 / 0 is infinity, as in numpy.
    try:
        return numba.njit(signature, cache=True, nogil=True, error_model="numpy")(loop)
    except RuntimeError as error:  # "cannot cache function"
        warnings.warn(f"compiled anew at every start: {error}", RuntimeWarning, stacklevel=3)
        return numba.njit(signature, nogil=True, error_model="numpy")(loop)
