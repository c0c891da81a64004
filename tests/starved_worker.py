"""`stream-forecaster run` on a machine whose memory ends, at a chosen call of a chosen function.

Started with STARVE_AT (one of `MOMENTS`) and STARVE_AFTER, how many calls succeed. Then numpy is
asked for more than there is: the error is its own, from deep inside. The arguments are the
command's.
"""

import os
import runpy
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
from kafka.producer.transaction_manager import TransactionManager

from stream_forecaster.scales import Scales

MOMENTS: dict[str, tuple[Any, str]] = {
    "in a hop": (Scales, "close"),
    "in a transaction": (TransactionManager, "send_offsets_to_transaction"),
}
_MORE_THAN_THERE_IS_BYTES = 1 << 60


def _starving(function: Callable[..., Any], after: int) -> Callable[..., Any]:
    calls = 0

    @wraps(function)
    def starving(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            np.empty(_MORE_THAN_THERE_IS_BYTES, np.uint8)
        return function(*args, **kwargs)

    return starving


if __name__ == "__main__":
    owner, name = MOMENTS[os.environ["STARVE_AT"]]
    setattr(owner, name, _starving(getattr(owner, name), int(os.environ["STARVE_AFTER"])))
    sys.argv[0] = "stream-forecaster"
    runpy.run_module("stream_forecaster", run_name="__main__")
