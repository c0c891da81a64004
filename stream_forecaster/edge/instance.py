"""Which of the processes of this group on this host are we?

A transactional id must be unique in the group and stable over restarts: a restarted process then
aborts at once what its predecessor left open, instead of waiting for its time-out. Without a
configured `kafka.instance_id` a process takes the lowest index whose lock file nobody holds. The
kernel lets go of a lock when its holder dies, however it dies, so the successor of a killed
process finds the same index.
"""

import fcntl
import os
import socket
import tempfile
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Self
from urllib.parse import quote

from stream_forecaster.errors import ConfigError


class Instance:
    """A name that no other live process of the group has, held until `close` or the process ends.

    Attributes:
        name: `kafka.instance_id` where it is set, else host name and index.
    """

    def __init__(self, name: str, lock: int | None = None) -> None:
        self.name = name
        self._lock = lock

    @classmethod
    def claim(cls, group_id: str, instance_id: str, directory: Path | None = None) -> Self:
        """Take `instance_id`, or the lowest free index of this host where it is empty.

        Args:
            group_id: indices are counted per group.
            instance_id: the setting; not checked for uniqueness, the broker fences.
            directory: where lock files live; the user's runtime directory by default.

        Raises:
            ConfigError: no lock file can be made there.
        """
        if instance_id:
            return cls(instance_id)
        folder = directory or _runtime_directory()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for index in count():
                lock = _try_lock(folder / f"{quote(group_id, safe='')}-{index}.lock")
                if lock is not None:
                    return cls(f"{socket.gethostname()}-{index}", lock)
        except OSError as error:
            raise ConfigError(
                f"cannot lock a file in {folder} to find a free instance index "
                f"({error.strerror}); set kafka.instance_id instead"
            ) from error
        raise AssertionError("count() does not end")

    def close(self) -> None:
        """Let another process have the name. Safe to call twice."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _runtime_directory() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK):
        return Path(runtime) / "stream-forecaster"
    return Path(tempfile.gettempdir()) / f"stream-forecaster-{os.getuid()}"


def _try_lock(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    os.close(descriptor)
    return None
