"""CPU seconds, and the clock that leaves out the first half.

Contenders in other environments use it too, so it needs nothing but Python.
"""

import resource
import time


def cpu_s() -> float:
    """CPU seconds of this process so far, all of its threads, user and system."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class HalfTime:
    """Times the second half of so many events: the first is for tables to grow and code to warm up.

    Attributes:
        read: events counted so far.
    """

    def __init__(self, events: int) -> None:
        self._half, self.read = events // 2, 0
        self._begin: tuple[int, float, float] | None = None

    def count(self, events: int) -> None:
        """So many more have been read."""
        self.read += events
        if self._begin is None and self.read >= self._half:
            self._begin = self.read, time.perf_counter(), cpu_s()

    def result(self) -> dict[str, float]:
        """Events timed, and what they took."""
        assert self._begin is not None
        read, begin_s, begin_cpu_s = self._begin
        wall_s, spent_s = time.perf_counter() - begin_s, cpu_s() - begin_cpu_s
        return {"events": self.read - read, "wall_s": wall_s, "cpu_s": spent_s}
