import socket
from pathlib import Path

import pytest

from stream_forecaster.edge.instance import Instance
from stream_forecaster.errors import ConfigError


def test_processes_of_one_host_take_ascending_indices(tmp_path: Path) -> None:
    """The lowest free index is taken, and is free again when its holder lets go."""
    first, second = (Instance.claim("group", "", tmp_path) for _ in range(2))
    host = socket.gethostname()
    names = [first.name, second.name]

    first.close()
    successor = Instance.claim("group", "", tmp_path)

    assert names == [f"{host}-0", f"{host}-1"]
    assert successor.name == f"{host}-0"
    for instance in (first, second, successor):
        instance.close()


def test_groups_count_for_themselves(tmp_path: Path) -> None:
    """Two groups on one host both have an index 0, whatever characters their names have."""
    one, other = Instance.claim("a/b", "", tmp_path), Instance.claim("a-b", "", tmp_path)

    assert one.name == other.name == f"{socket.gethostname()}-0"
    one.close()
    other.close()


def test_a_configured_name_is_used_as_it_is(tmp_path: Path) -> None:
    """With kafka.instance_id there is nothing to lock."""
    instance = Instance.claim("group", "blue", tmp_path / "never-made")

    assert instance.name == "blue"
    assert not (tmp_path / "never-made").exists()
    instance.close()


def test_no_place_for_a_lock_names_the_way_out(tmp_path: Path) -> None:
    """Where no lock file can be made, the error says which setting does without."""
    (tmp_path / "file").touch()

    with pytest.raises(ConfigError, match=r"kafka\.instance_id"):
        Instance.claim("group", "", tmp_path / "file" / "folder")
