"""Loops over keys, compiled: one pass where arrays as a whole would need many.

A compiled function is the plain loop that a reader would write. Its types are stated, so that it is
compiled once and for all: when it is first called, or before that by `compile_all`. What comes of
it is kept beside the module, or where `NUMBA_CACHE_DIR` says; where neither can be written, nothing
is kept.

Constants of the module itself are compiled in. Those of another may change unnoticed: pass them.
A loop may call what is `inlined` in its own module, and what this one has for loops, and nothing
else of ours.

A loop allocates nothing: room that it needs for itself is passed to it. So nobody counts who holds
an array. Such counts are atomic, of every array whenever a part is called, and were half of the
time of a loop over bytes.

No fast-math: a result depends on nothing but its operands, not on how many rows go with it, so that
any batching comes to the same bits.
"""

import warnings
from collections.abc import Callable
from functools import update_wrapper
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
        loops.append(made := Loop(loop, signature))
        return cast("_Loop", made)

    return compiled_loop


def inlined(part: _Loop) -> _Loop:
    """Let the loops of its module call a function, which becomes a part of them."""
    _parts.append(part)
    return part


def compile_all() -> None:
    """Load what was kept, half a second, or compile what was not: a minute."""
    for loop in loops:
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


def widened(bits: int) -> np.float32:
    """The number that the bits of one in half precision stand for; for loops."""
    number = np.int64(bits)
    whole = np.float32(np.uint32((number & 0x7FFF) << 13).view(np.float32) * np.float32(2.0**112))
    told = np.int64(np.float32(whole).view(np.uint32))
    if number & 0x7C00 == 0x7C00:  # infinity, or no number
        told = 0x7F800000 | (number & 0x3FF) << 13
    return np.uint32(told | (number & 0x8000) << 16).view(np.float32)


def halved(number: float) -> np.uint16:
    """The bits of the nearest number in half precision; for loops.

    Not by the processor's instruction: not every one has it.
    """
    bits = np.int64(np.float32(number).view(np.uint32))
    sign, bits = bits >> 16 & 0x8000, bits & 0x7FFFFFFF
    if bits >= 0x47800000:
        return np.uint16(sign | (0x7E00 if bits > 0x7F800000 else 0x7C00))
    if bits < 0x38800000:  # no more than 2^-24 apart: the addition rounds
        small = np.float32(np.uint32(bits).view(np.float32) + np.float32(0.5))
        return np.uint16(sign | (np.int64(np.float32(small).view(np.uint32)) - 0x3F000000))
    return np.uint16(sign | (bits - 0x38000000 + 0xFFF + (bits >> 13 & 1)) >> 13)


class Loop:
    """One loop, and what was made of it.

    Attributes:
        path: its module and its name.
    """

    def __init__(self, loop: Callable[..., Any], signature: str) -> None:
        update_wrapper(self, loop)
        self.path = f"{loop.__module__}.{loop.__name__}"
        self._loop, self._run = loop, None
        told, _, self._returned = signature.partition("=")
        reads, writes = (part.split() for part in told.split(">"))
        self._types = reads + writes
        self._arrays = [i for i, read in enumerate(reads) if ":" in read]
        self._halves = [i for i, name in enumerate(self._types) if name.startswith("f2:")]

    def __call__(self, *arguments: Any) -> Any:  # noqa: ANN401  (arrays and numbers)
        """Run it."""
        run, told = self._run or self.compile(), list(arguments)
        for i in self._arrays:
            if not told[i].flags.c_contiguous:
                told[i] = told[i].copy()
        for i in self._halves:
            told[i] = told[i].view(np.uint16)
        return run(*told)

    @property
    def is_new(self) -> bool:
        """Was it compiled by this process, and kept for others?"""
        stats = self._run and self._run.stats
        return bool(stats and stats.cache_path and stats.cache_misses)

    def compile(self) -> Any:  # noqa: ANN401  (numba's)
        """Once."""
        if self._run is None:
            self._run = _compile(self._loop, self._types, self._returned.strip())
        return self._run


loops: list[Loop] = []
"""All of them, of the modules that have been imported."""
_parts: list[Callable[..., Any]] = [exp_below_zero, widened, halved]
_SCALARS = ("f8", "f4", "i8", "i4", "i1", "u8", "u4", "u1", "b1")


def _compile(loop: Callable[..., Any], names: list[str], returned: str) -> Any:  # noqa: ANN401  (numba's)
    import numba  # noqa: PLC0415  (takes half a second, and few commands forecast)
    from numba.extending import register_jitable  # noqa: PLC0415

    while _parts:
        register_jitable(forceinline=True)(_parts.pop())
    scalars = {name: numba.from_dtype(np.dtype(name)) for name in _SCALARS}
    scalars["f2"] = numba.uint16

    def typed(name: str) -> Any:  # noqa: ANN401
        scalar, _, axes = name.partition(":")
        if not axes:
            return scalars[scalar]
        read_only = axes.endswith("!")
        return numba.types.Array(scalars[scalar], int(axes.strip("!")), "C", readonly=read_only)

    signature = (typed(returned) if returned else numba.void)(*map(typed, names))
    # Threads that keep a consumer alive go on meanwhile; 1 / 0 is infinity, as in numpy; no runtime
    # that counts references, so that nothing can be allocated.
    how: Any = {"nogil": True, "error_model": "numpy", "_nrt": False}
    try:
        return numba.njit(signature, cache=True, **how)(loop)
    except RuntimeError as error:  # "cannot cache function"
        warnings.warn(f"compiled anew at every start: {error}", RuntimeWarning, stacklevel=3)
        return numba.njit(signature, **how)(loop)
