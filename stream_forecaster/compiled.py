"""Loops over keys, compiled: one pass where arrays as a whole would need many.

A compiled function is the plain loop that a reader would write. Its types are stated, so that it is
compiled once, when its module is imported, and not at the first forecast. What comes of it is kept
beside the module, or where `NUMBA_CACHE_DIR` says; where neither can be written, nothing is kept.

Constants of the module itself are compiled in. Those of another may change unnoticed: pass them.

No fast-math: a result depends on nothing but its operands, not on how many rows go with it, so that
any batching comes to the same bits.
"""

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numba
import numpy as np

_Loop = TypeVar("_Loop", bound=Callable[..., None])

_SCALARS = {"f8": numba.float64, "f4": numba.float32, "i8": numba.int64, "b1": numba.boolean}


def compiled(signature: str) -> Callable[[_Loop], _Loop]:
    """Compile a function that reads arrays and numbers, writes to arrays, and returns nothing.

    What it reads may have any memory layout; what it writes to has to be C-contiguous.

    Args:
        signature: the types of what it reads, then ">" and of what it writes to. "f8" is a number,
            "f8:2" an array with two axes; there are f8, f4, i8 and b1.
    """
    reads, writes = (part.split() for part in signature.split(">"))
    made = numba.void(*map(_type, reads + writes))
    arrays = [i for i, read in enumerate(reads) if ":" in read]

    def compile_loop(loop: _Loop) -> _Loop:
        run = _compile(loop, made)

        @wraps(loop)
        def laid_out(*arguments: Any) -> None:  # noqa: ANN401  (arrays and numbers)
            told = list(arguments)
            for i in arrays:
                told[i] = np.ascontiguousarray(told[i])
            run(*told)

        return laid_out  # type: ignore[return-value]  # the same parameters

    return compile_loop


def _compile(loop: Callable[..., None], made: Any) -> Any:  # noqa: ANN401  (numba's)
    # Threads that keep a consumer alive go on meanwhile; 1 / 0 is infinity, as in numpy.
    try:
        return numba.njit(made, cache=True, nogil=True, error_model="numpy")(loop)
    except RuntimeError as error:  # "cannot cache function"
        warnings.warn(f"compiled anew at every start: {error}", RuntimeWarning, stacklevel=3)
        return numba.njit(made, nogil=True, error_model="numpy")(loop)


def _type(name: str) -> Any:  # noqa: ANN401  (numba's)
    scalar, _, axes = name.partition(":")
    return numba.types.Array(_SCALARS[scalar], int(axes), "C") if axes else _SCALARS[scalar]
