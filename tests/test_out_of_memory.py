"""Memory that ends while the service works: it says so, dies, and nothing is committed half."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from served import WAITS_S, Pipeline

from stream_forecaster import config
from stream_forecaster.edge.broker import Broker

_WORKER = Path(__file__).parent / "starved_worker.py"


@pytest.mark.parametrize(("moment", "calls"), [("in a hop", 20), ("in a transaction", 2)])
def test_a_process_out_of_memory_says_so_and_ends(
    embedded_broker: Broker, tmp_path: Path, moment: str, calls: int
) -> None:
    """Exit 4 after some commits; the next process goes on as if nothing had been."""
    pipeline = Pipeline(embedded_broker, tmp_path)
    pipeline.mapping["kafka"]["max_poll_records"] = 100
    pipeline.write(500)
    path = tmp_path / "settings.toml"
    path.write_text(config.to_toml({**pipeline.mapping, "http": {"port": 0}}))

    ended = subprocess.run(
        [sys.executable, _WORKER, "run", "--config", path],
        env={**os.environ, "STARVE_AT": moment, "STARVE_AFTER": str(calls)},
        capture_output=True,
        timeout=WAITS_S,
        check=False,
    )

    assert ended.returncode == 4, ended.stderr
    *_, last = map(json.loads, ended.stderr.splitlines())
    assert (last["event"], last["exit_code"]) == ("out_of_memory", 4)
    assert "state.max_keys" in last["reason"]
    assert "Unable to allocate" in last["exception"]
    committed = pipeline.committed
    assert committed is not None
    assert 0 < committed < 500

    with pipeline.run() as run:
        run.read(50)
    pipeline.assert_undisturbed()
