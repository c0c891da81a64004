"""Checkpoints by URL: opaque bytes, one object per partition and offset.

    <url>/<pipeline>/<partition:05d>/<offset:020d>.ckpt

A local directory and every object store fsspec has a driver for work alike; a network file system
is used through its mount. The theory, in four points:

1. **Whole or not at all.** An object store applies a PUT as a whole. A directory needs more: a
   temporary file of a unique name, fsync, rename, fsync of the directory.
2. **A listing may hold anything.** What does not look like a checkpoint is not one; a temporary
   file never does.
3. **Two writers can share a folder** for the length of a rebalance, so anything listed may be gone
   a moment later, and pruning leaves what is *ahead* of the offset just saved alone: to a writer
   that has been overtaken that is its successor's work, and after the group was set back to an
   earlier offset it would otherwise push out every new checkpoint.
4. **A killed writer leaves its temporary file.** It held a lock on it for as long as it lived, so a
   file whose lock can be had is litter. Process ids would not do: containers share them.
"""

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from urllib.parse import quote
from uuid import uuid4

import fsspec
from fsspec.implementations.local import LocalFileSystem

from stream_forecaster.errors import StoreFault, StoreUnusable

KEPT = 3
"""Checkpoints kept per partition: the newest, and two to go back to should it be unreadable."""

_ANSWERS_WITHIN_S = 30.0
"""A store that takes longer for a few bytes is not there."""

_SETTING = "state.checkpoint_url (STREAM_FORECASTER__STATE__CHECKPOINT_URL)"
_PARTITION = re.compile(r"\d{5,}", re.ASCII)
_NAME = re.compile(r"(\d{20})\.ckpt", re.ASCII)
_TEMPORARY = re.compile(r"\.\d{20}\.ckpt\.[0-9a-f]{32}\.tmp", re.ASCII)


class CheckpointStore:
    """The checkpoints of one pipeline.

    Args:
        url: a directory or any fsspec URL.
        pipeline: the consumer group; any text, quoted where a path could not hold it.

    Raises:
        StoreUnusable: the URL's protocol is unknown or its driver is not installed.
    """

    def __init__(self, url: str, pipeline: str) -> None:
        self._url = url
        with self._explained("open"):
            self._fs, root = fsspec.core.url_to_fs(url)
        self._local = isinstance(self._fs, LocalFileSystem)
        self._root = f"{root.rstrip('/')}/{_folder_name(pipeline)}"

    def probe(self) -> None:
        """Prove that the store can be written, read back and deleted from. Called once, at start.

        Raises:
            StoreUnusable: it cannot, or does not answer; the message names the setting and the way
                out.
        """
        proof: Future[None] = Future()

        def prove() -> None:
            try:
                self._prove()
            except Exception as error:  # noqa: BLE001  (handed to the caller's thread)
                proof.set_exception(error)
            else:
                proof.set_result(None)

        # A mount whose server is away answers nothing at all, not even an error.
        Thread(target=prove, name="probe", daemon=True).start()
        try:
            proof.result(_ANSWERS_WITHIN_S)
        except TimeoutError:
            reason = f"no answer within {_ANSWERS_WITHIN_S:g} s"
            raise StoreUnusable(self._message("write to", reason), "slow") from None

    def _prove(self) -> None:
        path, content = f"{self._root}/.probe-{uuid4().hex}", b"stream_forecaster"
        with self._explained("write to"):
            self._write(path, content)
            found = self._fs.cat_file(path)
            self._fs.rm_file(path)
        if found != content:
            raise StoreUnusable(self._message("write to", "it does not return what was written"))

    def save(self, partition: int, offset: int, data: bytes | bytearray) -> None:
        """Store a checkpoint, then delete what it makes superfluous.

        Called after the commit that covers `offset`. When it returns, the checkpoint survives a
        loss of power; when it raises or the process dies, the earlier ones are untouched.

        Args:
            partition: the input partition.
            offset: of the next record to read.
            data: the shard's bytes.

        Raises:
            StoreUnusable: it could not be written.
        """
        if partition < 0 or offset < 0:
            raise ValueError(f"partition {partition} or offset {offset} is negative")
        folder = self._folder(partition)
        with self._explained("write to"):
            self._write(f"{folder}/{_name(offset)}", data)
            older = [o for o in self._offsets(folder) if o <= offset]
            for path in (f"{folder}/{_name(o)}" for o in older[KEPT:]):
                with suppress(FileNotFoundError):
                    self._fs.rm_file(path)
            if self._local:
                _sweep(Path(folder))

    def partitions(self) -> list[int]:
        """The partitions checkpoints have been saved for, ascending; some may hold none by now.

        Raises:
            StoreUnusable: the store cannot be listed.
        """
        with self._explained("list"):
            return sorted(map(int, filter(_PARTITION.fullmatch, self._names(self._root))))

    def offsets(self, partition: int) -> list[int]:
        """The offsets of the checkpoints of a partition, newest first; empty if there are none.

        Raises:
            StoreUnusable: the store cannot be listed.
        """
        with self._explained("list"):
            return self._offsets(self._folder(partition))

    def load(self, partition: int, offset: int) -> bytearray:
        """The bytes saved for `offset`; the caller's own.

        Raises:
            StoreUnusable: it cannot be read, or another process has pruned it since it was listed.
        """
        with self._explained("read from"):
            path = f"{self._folder(partition)}/{_name(offset)}"
            return _read(Path(path)) if self._local else bytearray(self._fs.cat_file(path))

    def _folder(self, partition: int) -> str:
        return f"{self._root}/{partition:05d}"

    def _write(self, path: str, data: bytes | bytearray) -> None:
        if self._local:
            _write_durably(Path(path), data)
        else:
            self._fs.pipe_file(path, bytes(data))  # what else a driver takes is its own affair

    def _offsets(self, folder: str) -> list[int]:
        found = map(_NAME.fullmatch, self._names(folder))
        return sorted((int(name[1]) for name in found if name), reverse=True)

    def _names(self, folder: str) -> list[str]:
        # Drivers cache listings; another process may have written since.
        self._fs.invalidate_cache()
        try:
            return [path.rpartition("/")[2] for path in self._fs.ls(folder, detail=False)]
        except FileNotFoundError:
            return []

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        """Turn whatever a driver raises into StoreUnusable; each has exceptions of its own."""
        try:
            yield
        except Exception as error:
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            raise StoreUnusable(self._message(verb, reason), _fault(error)) from error

    def _message(self, verb: str, reason: str) -> str:
        return (
            f"cannot {verb} the checkpoint store {self._url}: {reason}. Set {_SETTING} to a "
            f"directory or bucket this process may read and write, with its fsspec driver installed"
        )


_FAULTS: dict[int | None, StoreFault] = {
    errno.ENOSPC: "full",
    errno.EDQUOT: "full",
    errno.EFBIG: "full",
    errno.EROFS: "read_only",
    errno.EACCES: "denied",
    errno.EPERM: "denied",
    errno.ENOENT: "gone",
    errno.ENOTDIR: "gone",
    errno.ESTALE: "gone",
    errno.ETIMEDOUT: "slow",
    errno.ENOMEM: "memory",
}


def _fault(error: Exception) -> StoreFault:
    """What an exception of a driver means; object stores raise OSErrors without a number."""
    match error:
        case MemoryError():
            return "memory"
        case OSError(errno=number) if number in _FAULTS:
            return _FAULTS[number]
        case PermissionError():
            return "denied"
        case FileNotFoundError() | NotADirectoryError():
            return "gone"
        case TimeoutError():
            return "slow"
        case _:
            return "other"


def _name(offset: int) -> str:
    return f"{offset:020d}.ckpt"


def _folder_name(pipeline: str) -> str:
    """One path component per pipeline, different for different ones, never `.` or `..`."""
    if not pipeline:
        raise ValueError("the pipeline has no name")
    quoted = quote(pipeline, safe="")
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


def _read(path: Path) -> bytearray:
    with path.open("rb", buffering=0) as stream:
        data = bytearray(os.fstat(stream.fileno()).st_size)
        filled, rest = 0, memoryview(data)
        while count := stream.readinto(rest[filled:]):
            filled += count
    del rest
    del data[filled:]
    return data


def _write_durably(path: Path, data: bytes | bytearray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, descriptor = _create_locked(path)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(descriptor)
            temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _create_locked(path: Path) -> tuple[Path, int]:
    """A new temporary file for `path`, and its descriptor, which holds the lock while open."""
    while True:
        temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
        # Where the file system has no locks nobody can take them either: its litter stays.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)  # swept in the instant before it was locked


def _sweep(folder: Path) -> None:
    """Delete the temporary files whose writers are dead."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            with suppress(OSError), path.open("rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
