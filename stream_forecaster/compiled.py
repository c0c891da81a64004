"""Loops over keys, compiled: one pass where arrays as a whole would need many.

A compiled function is the plain loop that a reader would write. Its types are stated, so that it is
compiled once and for all: when it is first called, or before that by `compile_all`. What comes of
it is kept beside the module, or where `NUMBA_CACHE_DIR` says; where neither can be written, nothing
is kept.

Constants of the module itself are compiled in. Those of another may change unnoticed: pass them.
A loop may call what is `inlined` in its own module, and what this one has for loops, and nothing
else of ours.

No fast-math: a result depends on nothing but its operands, not on how many rows go with it, so that
any batching comes to the same bits.
"""

import warnings
from collections.abc import Callable
from functools import cache, update_wrapper
from typing import Any, TypeVar, cast

import numpy as np

_SQUARINGS = 6
_PART = 0.5**_SQUARINGS
_LEAST_EXPONENT = -40.0

_Loop = TypeVar("_Loop", bound=Callable[..., Any])


def compiled(signature: str) -> Callable[[_Loop], _Loop]:
    """Compile a function that reads arrays and numbers, and writes to arrays.

    What it reads may have any memory layout; what it writes to has to be C-contiguous.

    Args:
        signature: the types of what it reads, then ">" and of what it writes to, then "=" and of
            the number that it returns, if it does. "f8" is a number, "f8:2" an array with two axes;
            there are f8, f4, f2, i8, i4, i1, u8, u4, u1 and b1. An array "u1:1!" is read-only:
            bytes. Of f2, which is half precision, a loop sees the bits, for `widened` and `halved`.
    """

    def compiled_loop(loop: _Loop) -> _Loop:
        _all.append(made := _Compiled(loop, signature))
        return cast("_Loop", made)

    return compiled_loop


def inlined(part: _Loop) -> _Loop:
    """Let the loops of its module call a function, which becomes a part of them."""
    _parts.append(part)
    return part


def compile_all() -> None:
    """Compile what is not yet, or load what was kept: seconds, or a tenth of one."""
    for loop in _all:
        loop.compile()


def exp_below_zero(exponent: float) -> float:
    """The exponential function, for loops: of numbers at most 0, and of -40 for any below that.

    Several at a time, unlike the C library's: a fifth of its time. Within 3e-7 of it, near 0 1e-12.
    """
    x = max(exponent, _LEAST_EXPONENT) * _PART
    # Taylor's series to the ninth power, from the inside out.
    y = 1 / 5040 + x * (1 / 40320 + x * (1 / 362880))
    y = 1 / 24 + x * (1 / 120 + x * (1 / 720 + x * y))
    y = 1 + x * (1 + x * (1 / 2 + x * (1 / 6 + x * y)))
    for _ in range(_SQUARINGS):
        y *= y
    return y


def widened(bits: int) -> float:
    """The number that the bits of one in half precision stand for; for loops."""
    number: float = np.array(bits, np.uint16).view(np.float16).item()
    return number


def halved(number: float) -> int:
    """The bits of the nearest number in half precision; for loops."""
    with np.errstate(over="ignore"):
        return int(np.float32(number).astype(np.float16).view(np.uint16))


class _Compiled:
    """One loop, and what was made of it."""

    def __init__(self, loop: Callable[..., Any], signature: str) -> None:
        update_wrapper(self, loop)
        self._loop, self._run = loop, None
        told, _, self._returned = signature.partition("=")
        reads, writes = (part.split() for part in told.split(">"))
        self._types = reads + writes
        self._arrays = [i for i, read in enumerate(reads) if ":" in read]
        self._halves = [i for i, name in enumerate(self._types) if name.startswith("f2:")]

    def __call__(self, *arguments: Any) -> Any:  # noqa: ANN401  (arrays and numbers)
        run, told = self._run or self.compile(), list(arguments)
        for i in self._arrays:
            if not told[i].flags.c_contiguous:
                told[i] = told[i].copy()
        for i in self._halves:
            told[i] = told[i].view(np.uint16)
        return run(*told)

    def compile(self) -> Any:  # noqa: ANN401  (numba's)
        """Once."""
        if self._run is None:
            self._run = _compile(self._loop, self._types, self._returned.strip())
        return self._run


_all: list[_Compiled] = []
_parts: list[Callable[..., Any]] = [exp_below_zero]
_SCALARS = ("f8", "f4", "i8", "i4", "i1", "u8", "u4", "u1", "b1")


def _compile(loop: Callable[..., Any], names: list[str], returned: str) -> Any:  # noqa: ANN401  (numba's)
    import numba  # noqa: PLC0415  (takes half a second, and few commands forecast)
    from numba.extending import register_jitable  # noqa: PLC0415

    _teach()
    while _parts:
        register_jitable(_parts.pop())
    scalars = {name: numba.from_dtype(np.dtype(name)) for name in _SCALARS}
    scalars["f2"] = numba.uint16

    def typed(name: str) -> Any:  # noqa: ANN401
        scalar, _, axes = name.partition(":")
        if not axes:
            return scalars[scalar]
        read_only = axes.endswith("!")
        return numba.types.Array(scalars[scalar], int(axes.strip("!")), "C", readonly=read_only)

    signature = (typed(returned) if returned else numba.void)(*map(typed, names))
    # Threads that keep a consumer alive go on meanwhile; 1 / 0 is infinity, as in numpy.
    try:
        return numba.njit(signature, cache=True, nogil=True, error_model="numpy")(loop)
    except RuntimeError as error:  # "cannot cache function"
        warnings.warn(f"compiled anew at every start: {error}", RuntimeWarning, stacklevel=3)
        return numba.njit(signature, nogil=True, error_model="numpy")(loop)


@cache
def _teach() -> None:
    """Tell the compiler of half precision: one instruction each way."""
    from llvmlite import ir  # type: ignore[import-untyped]  # noqa: PLC0415  (loaded with numba)
    from numba import float32, uint16  # noqa: PLC0415
    from numba.extending import intrinsic, overload  # noqa: PLC0415

    @intrinsic
    def widen(typing: Any, bits: Any) -> Any:  # noqa: ANN401, ARG001
        def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:  # noqa: ANN401
            return builder.fpext(builder.bitcast(values[0], ir.HalfType()), ir.FloatType())

        return float32(uint16), generate

    @intrinsic
    def halve(typing: Any, number: Any) -> Any:  # noqa: ANN401, ARG001
        def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:  # noqa: ANN401
            return builder.bitcast(builder.fptrunc(values[0], ir.HalfType()), ir.IntType(16))

        return uint16(float32), generate

    # What is called in a loop takes one argument: numba passes the other.
    wide: Any = widen
    half: Any = halve
    overload(widened)(lambda bits: lambda bits: wide(bits))  # noqa: ARG005, PLW0108  (as numba wants it)
    overload(halved)(lambda number: lambda number: half(np.float32(number)))  # noqa: ARG005  (likewise)
