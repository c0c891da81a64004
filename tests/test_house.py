"""The lock holds what the project needs: a fresh machine installs nothing else."""

import re
import tomllib
from pathlib import Path

_ROOT = Path(__file__).parent.parent


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9_.-]", requirement)[0].lower().replace("_", "-")


def test_every_dependency_is_locked() -> None:
    """Those of the package, of its tests, and the build backend, each with its exact version."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())
    wanted = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["dev"],
        *project["build-system"]["requires"],
    ]
    lock = (_ROOT / "requirements.lock").read_text().splitlines()
    pinned = {_name(line) for line in lock if "==" in line}

    assert {_name(requirement) for requirement in wanted} <= pinned
    assert "torch==2.13.0" in lock
