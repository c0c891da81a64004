"""Loops over keys, compiled: one pass where arrays as a whole would need many.

A compiled function is the plain loop that a reader would write. Its types are stated, so that it is
compiled once and for all: when it is first called, or before that by `compile_all`. What comes of
it is kept beside the module, or where `NUMBA_CACHE_DIR` says; where neither can be written, nothing
is kept.

Constants of the module itself are compiled in. Those of another may change unnoticed: pass them.

A loop may call functions of its own module that are marked `part_of_loops`: they are compiled in.

No fast-math: a result depends on nothing but its operands, not on how many rows go with it, so that
any batching comes to the same bits.
"""

import warnings
from collections.abc import Callable
from functools import update_wrapper
from types import FunctionType
from typing import Any, TypeVar, cast

import numpy as np

_Loop = TypeVar("_Loop", bound=Callable[..., Any])


def compiled(signature: str) -> Callable[[_Loop], _Loop]:
    """Compile a function that reads arrays and numbers, and writes to arrays.

    What it reads may have any memory layout; what it writes to has to be C-contiguous.

    Args:
        signature: the types of what it reads, then ">" and of what it writes to, then "=" and of
            the number that it returns, if it does. "f8" is a number, "f8:2" an array with two axes;
            there are f8, f4, i8, i4, u8, u4, u1 and b1. An array "u1:1!" is read-only: bytes.
    """

    def compiled_loop(loop: _Loop) -> _Loop:
        _all.append(made := _Compiled(loop, signature))
        return cast("_Loop", made)

    return compiled_loop


def part_of_loops(function: _Loop) -> _Loop:
    """Mark a function that loops of the same module call."""
    function.__dict__[_PART] = True
    return function


def compile_all() -> None:
    """Compile what is not yet, or load what was kept: seconds, or a tenth of one."""
    for loop in _all:
        loop.compile()


class _Compiled:
    """One loop, and what was made of it."""

    def __init__(self, loop: Callable[..., Any], signature: str) -> None:
        update_wrapper(self, loop)
        self._loop, self._run = loop, None
        told, _, returned = signature.partition("=")
        reads, writes = (part.split() for part in told.split(">"))
        self._types = [*reads, *writes, returned.strip()]
        self._arrays = [i for i, read in enumerate(reads) if ":" in read]

    def __call__(self, *arguments: Any) -> Any:  # noqa: ANN401  (arrays and numbers)
        told = list(arguments)
        for i in self._arrays:
            told[i] = np.ascontiguousarray(told[i])
        run = self._run or self.compile()
        return run(*told)

    def compile(self) -> Any:  # noqa: ANN401  (numba's)
        """Once."""
        if self._run is None:
            self._run = _compile(self._loop, self._types)
        return self._run


_all: list[_Compiled] = []
_PART = "part_of_loops"


def _compile(loop: Callable[..., Any], names: list[str]) -> Any:  # noqa: ANN401  (numba's)
    import numba  # noqa: PLC0415  (takes half a second, and few commands forecast)

    scalars = {name: numba.from_dtype(np.dtype(name)) for name in _SCALARS}

    def typed(name: str) -> Any:  # noqa: ANN401
        scalar, _, axes = name.partition(":")
        if not axes:
            return scalars[scalar]
        read_only = axes.endswith("!")
        return numba.types.Array(scalars[scalar], int(axes.strip("!")), "C", readonly=read_only)

    *arguments, returned = names
    result = typed(returned) if returned else numba.void
    signature = result(*map(typed, arguments))
    loop = _with_parts(loop, numba.njit(nogil=True, error_model="numpy"))
    # Threads that keep a consumer alive go on meanwhile; 1 / 0 is infinity, as in numpy.
    try:
        return numba.njit(signature, cache=True, nogil=True, error_model="numpy")(loop)
    except RuntimeError as error:  # "cannot cache function"
        warnings.warn(f"compiled anew at every start: {error}", RuntimeWarning, stacklevel=3)
        return numba.njit(signature, nogil=True, error_model="numpy")(loop)


_SCALARS = ("f8", "f4", "i8", "i4", "u8", "u4", "u1", "b1")


def _with_parts(loop: Callable[..., Any], jit: Callable[[Any], Any]) -> Callable[..., Any]:
    """The loop, as it is compiled: among the compiled parts of its module, not the plain ones."""
    scope = dict(cast("FunctionType", loop).__globals__)

    def among_parts(function: Callable[..., Any]) -> Callable[..., Any]:
        plain = cast("FunctionType", function)
        moved = FunctionType(plain.__code__, scope, plain.__name__, plain.__defaults__)
        return update_wrapper(moved, plain)

    parts = {
        name: value
        for name, value in scope.items()
        if isinstance(value, FunctionType) and _PART in value.__dict__
    }
    if not parts:
        return loop
    scope |= {name: jit(among_parts(part)) for name, part in parts.items()}
    return among_parts(loop)
