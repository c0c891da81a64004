import os
import re
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from stream_forecaster.edge.store import KEPT, CheckpointStore, _create_locked, _sweep
from stream_forecaster.errors import StoreUnusable

OFFSETS = st.integers(0, 2**63 - 1)


@pytest.fixture(params=["directory", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh place: a directory, and a store that stands in for an object store."""
    return str(tmp_path) if request.param == "directory" else f"memory://{uuid4().hex}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the checkpoints of partition 3 of pipeline `p` lie under `tmp_path`."""
    return tmp_path / "p" / "00003"


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path.as_uri(), "p")


_TINY_DISK_BYTES = 64 << 20


@pytest.fixture
def tiny_disk() -> Iterator[int]:
    """No file may grow past this many bytes; writing on raises OSError as a full disk does.

    That holds for the file that the test run's own output goes to as well, hence the size.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_TINY_DISK_BYTES, before[1]))
    yield _TINY_DISK_BYTES
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def _temporary(folder: Path, offset: int, content: bytes) -> Path:
    """What a writer killed in the middle of `save` leaves behind."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".{offset:020d}.ckpt.{uuid4().hex}.tmp"
    path.write_bytes(content)
    return path


def test_what_was_saved_is_loaded(url: str) -> None:
    """Bytes come back as they were, per partition and offset."""
    store = CheckpointStore(url, "p")

    store.save(0, 7, b"seven")
    store.save(1, 7, b"")

    assert store.load(0, 7) == b"seven"
    assert store.load(1, 7) == b""


def test_nothing_saved_is_an_empty_list(url: str) -> None:
    """A partition without checkpoints has no offsets, and asking is no error."""
    assert CheckpointStore(url, "p").offsets(0) == []


def test_the_partitions_saved_for_are_listed(url: str) -> None:
    """Each once, ascending, and only those of this pipeline; none before the first save."""
    store, other = CheckpointStore(url, "p"), CheckpointStore(url, "q")
    assert store.partitions() == []

    other.save(1, 1, b"x")
    for partition in (123_456, 2, 2):
        store.save(partition, 1, b"x")
    store.probe()

    assert store.partitions() == [2, 123_456]


def test_saving_an_offset_again_replaces_it(url: str) -> None:
    """A second save at one offset leaves one checkpoint, the later."""
    store = CheckpointStore(url, "p")

    store.save(0, 7, b"first")
    store.save(0, 7, b"second")

    assert store.offsets(0) == [7]
    assert store.load(0, 7) == b"second"


def test_the_layout_is_the_documented_one(store: CheckpointStore, tmp_path: Path) -> None:
    """Operators may rely on where a checkpoint lies."""
    store.save(3, 1234, b"x")

    files = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert files == ["p/00003/00000000000000001234.ckpt"]


class _CachingFileSystem(MemoryFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """An object store's driver: it remembers listings until told otherwise."""

    protocol = "caching"

    def ls(self, path: str, detail: bool = True, **options: object) -> list[Any]:  # noqa: FBT001, FBT002  (fsspec's signature)
        if path not in self.dircache:
            self.dircache[path] = super().ls(path, detail=True, **options)
        listed: list[Any] = self.dircache[path]
        return listed if detail else [entry["name"] for entry in listed]

    def invalidate_cache(self, path: str | None = None) -> None:
        del path
        self.dircache.clear()


def test_another_process_writes_are_seen() -> None:
    """Listings are never answered from a driver's cache: the other owner may have saved since."""
    fsspec.register_implementation("caching", _CachingFileSystem, clobber=True)
    url = f"caching://{uuid4().hex}"
    reader = CheckpointStore(url, "p")
    reader.save(0, 1, b"x")
    assert reader.offsets(0) == [1]

    MemoryFileSystem().pipe_file(f"{url}/p/00000/00000000000000000002.ckpt", b"x")

    assert reader.offsets(0) == [2, 1]


@given(offsets=st.lists(OFFSETS, min_size=1, unique=True).map(sorted))
def test_the_last_three_are_kept(offsets: list[int]) -> None:
    """Offsets only grow in service; after each save the newest three are there, newest first."""
    store = CheckpointStore(f"memory://{uuid4().hex}", "p")

    for i, offset in enumerate(offsets, start=1):
        store.save(0, offset, b"x")

        assert store.offsets(0) == offsets[:i][: -KEPT - 1 : -1]


@given(offsets=st.lists(st.integers(0, 30), min_size=1))
def test_pruning_leaves_what_is_ahead_alone(offsets: list[int]) -> None:
    """In any order of saves the one just made is kept, with two below it and all above it."""
    store = CheckpointStore(f"memory://{uuid4().hex}", "p")
    present: list[int] = []

    for offset in offsets:
        store.save(0, offset, b"x")

        every = sorted({*present, offset}, reverse=True)
        at = every.index(offset)
        present = every[: at + KEPT]
        assert store.offsets(0) == present


@given(
    history=st.lists(
        st.tuples(st.binary(min_size=1, max_size=40), st.none() | st.integers(0, 40)), max_size=8
    )
)
def test_a_death_during_save_changes_nothing(history: list[tuple[bytes, int | None]]) -> None:
    """Wherever a writer dies, its partial file is never listed, and never outlives the next save.

    ```
    history   save  save  death after 5 bytes  save
    listed    0     0 1   0 1                  0 1 3
    on disk   0     0 1   0 1 + 5 bytes        0 1 3
    ```
    """
    with TemporaryDirectory() as root:
        store, folder = CheckpointStore(root, "p"), Path(root, "p", "00003")
        saved: dict[int, bytes] = {}

        for offset, (data, written) in enumerate(history):
            if written is None:
                store.save(3, offset, data)
                saved[offset] = data
                assert [p.name for p in folder.iterdir() if p.suffix == ".tmp"] == []
            else:
                _temporary(folder, offset, data[:written])

            assert store.offsets(3) == sorted(saved, reverse=True)[:KEPT]
            assert all(store.load(3, o) == saved[o] for o in store.offsets(3))


def test_the_temporary_file_of_a_living_writer_is_left_alone(folder: Path) -> None:
    """A writer's lock protects its file from another's sweep while it lives, and no longer."""
    dead = _temporary(folder, 9, b"half")
    alive, descriptor = _create_locked(folder / "00000000000000000008.ckpt")

    _sweep(folder)
    spared = [alive.exists(), dead.exists()]
    os.close(descriptor)
    _sweep(folder)

    assert spared == [True, False]
    assert not alive.exists()


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        "7.ckpt",
        "00000000000000000007.ckpt.bak",
        "0000000000000000000x.ckpt",
        "٠٠٠٠٠٠٠٠٠٠٠٠٠٠٠٠٠٠٠٧.ckpt",  # noqa: RUF001  (digits that are not ASCII are the point)
        ".hidden",
    ],
)
def test_foreign_files_are_neither_listed_nor_deleted(
    store: CheckpointStore, folder: Path, name: str
) -> None:
    """What does not look like a checkpoint is somebody else's."""
    store.save(3, 1, b"x")
    (folder / name).write_bytes(b"?")
    (folder / "00000000000000000009").mkdir()

    store.save(3, 2, b"x")

    assert store.offsets(3) == [2, 1]
    assert (folder / name).read_bytes() == b"?"


class _VanishingFileSystem(MemoryFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """A store whose files another process deletes between our listing and our deleting."""

    protocol = "vanishing"

    def rm_file(self, path: str) -> None:
        super().rm_file(path)
        raise FileNotFoundError(path)


def test_pruning_tolerates_files_that_vanish() -> None:
    """Two owners may prune one folder during a rebalance; the second finds nothing to delete."""
    fsspec.register_implementation("vanishing", _VanishingFileSystem, clobber=True)
    store = CheckpointStore(f"vanishing://{uuid4().hex}", "p")

    for offset in range(KEPT + 2):
        store.save(0, offset, b"x")

    assert store.offsets(0) == [4, 3, 2]


def test_a_full_disk_is_reported_and_leaves_no_litter(
    store: CheckpointStore, folder: Path, tiny_disk: int
) -> None:
    """A save that cannot be finished raises, keeps what was there and removes its own file."""
    store.save(3, 1, b"x")

    with pytest.raises(StoreUnusable, match="File too large"):
        store.save(3, 2, b"x" * (tiny_disk + 1))

    assert [path.name for path in folder.iterdir()] == ["00000000000000000001.ckpt"]


def test_a_file_in_the_way_is_reported_with_the_setting(tmp_path: Path) -> None:
    """The probe says what, where and which setting to change."""
    (tmp_path / "file").write_bytes(b"")
    store = CheckpointStore(f"file://{tmp_path}/file", "p")

    with pytest.raises(StoreUnusable) as raised:
        store.probe()

    message = str(raised.value)
    assert f"file://{tmp_path}/file: Not a directory" in message
    assert "state.checkpoint_url (STREAM_FORECASTER__STATE__CHECKPOINT_URL)" in message


def test_a_store_that_works_passes_the_probe_and_shows_no_trace(tmp_path: Path, url: str) -> None:
    """Probing creates what is needed and leaves no file behind."""
    CheckpointStore(url, "p").probe()

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


class _ForgetfulFileSystem(MemoryFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """A store that takes everything and returns nothing."""

    protocol = "forgetful"

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **options: object
    ) -> bytes:
        del path, start, end, options
        return b""


def test_a_store_that_loses_data_fails_the_probe() -> None:
    """Accepting a write is not enough: it has to come back."""
    fsspec.register_implementation("forgetful", _ForgetfulFileSystem, clobber=True)

    with pytest.raises(StoreUnusable, match="does not return what was written"):
        CheckpointStore("forgetful://x", "p").probe()


def test_a_checkpoint_that_is_gone_is_reported(url: str) -> None:
    """Another process may prune between listing and loading."""
    with pytest.raises(StoreUnusable, match="cannot read"):
        CheckpointStore(url, "p").load(0, 1)


def test_an_unknown_protocol_is_reported() -> None:
    """A typing error in the URL's scheme is named at the start, not at the first save."""
    with pytest.raises(StoreUnusable, match="Protocol not known: s4"):
        CheckpointStore("s4://bucket", "p")


def test_a_missing_driver_names_the_package() -> None:
    """The message says what to install."""
    fsspec.register_implementation(
        "undriven", "no_such_driver.FileSystem", errtxt="Install no_such_driver", clobber=True
    )

    with pytest.raises(StoreUnusable, match="Install no_such_driver"):
        CheckpointStore("undriven://bucket", "p")


@given(pipelines=st.lists(st.text(min_size=1, max_size=20), min_size=2, max_size=2, unique=True))
def test_pipelines_never_share_a_folder(pipelines: list[str]) -> None:
    """Any two names have folders of their own, below the URL, whatever characters they hold."""
    root = f"memory://{uuid4().hex}"
    stores = [CheckpointStore(root, pipeline) for pipeline in pipelines]

    for partition, store in enumerate(stores):
        store.save(partition, 1, b"x")

    assert [store.offsets(0) for store in stores] == [[1], []]
    below = fsspec.filesystem("memory").find(f"/{root.removeprefix('memory://')}")
    assert len(below) == 2
    assert all(re.search(r"/[^/]+/\d{5}/\d{20}\.ckpt$", path) for path in below)


@pytest.mark.parametrize("pipeline", [".", "..", "a/../../b"])
def test_a_pipeline_cannot_climb_out(tmp_path: Path, pipeline: str) -> None:
    """A name made of dots or slashes stays one folder below the URL."""
    CheckpointStore(f"{tmp_path}/store", pipeline).save(0, 1, b"x")

    (path,) = (p for p in tmp_path.rglob("*") if p.is_file())
    assert path.parents[2] == tmp_path / "store"


@pytest.mark.parametrize(("partition", "offset"), [(-1, 0), (0, -1)])
def test_a_negative_number_is_a_bad_call(
    store: CheckpointStore, partition: int, offset: int
) -> None:
    """Such a name would not be found again, so it is refused when it is written."""
    with pytest.raises(ValueError, match="negative"):
        store.save(partition, offset, b"x")
