from pathlib import Path

import numpy as np
import pytest

from stream_forecaster.edge.heap import give_back

_STATUS = Path("/proc/self/statm")
_PAGE_BYTES = 4096


def test_what_was_freed_is_given_back() -> None:
    """Memory below something that is still in use, which the C library keeps by itself."""
    if not _STATUS.exists():
        pytest.skip("needs Linux")
    blocks = [np.ones(8_000) for _ in range(2_000)]  # 64 kB each: too small for pages of their own
    last = blocks.pop()
    del blocks
    before = int(_STATUS.read_text().split()[1])
    give_back()
    after = int(_STATUS.read_text().split()[1])
    assert (before - after) * _PAGE_BYTES > 64_000_000
    assert last.sum() == 8_000
