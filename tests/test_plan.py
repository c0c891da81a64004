"""What `plan` says of memory is what a shard then takes."""

import numpy as np
import pytest

from stream_forecaster.calendar import Calendar
from stream_forecaster.config import parse
from stream_forecaster.plan import plan
from stream_forecaster.shard import Shard


@pytest.mark.parametrize("profile", ["full", "lean"])
@pytest.mark.parametrize("keys", [1, 65, 3_000])
def test_a_plan_comes_true(profile: str, keys: int) -> None:
    """To the byte, but for the keys themselves, since their length is not known before."""
    settings = parse({"model": {"profile": profile}})
    shard = Shard(settings, Calendar("UTC"), 0, 0)
    names = [b"%d" % key for key in range(keys)]
    for name in names:
        shard.table.intern([name], np.zeros(1, np.int64))
    planned = plan(settings, keys, profile)["state_bytes"]
    assert shard.state_bytes - planned == sum(map(len, names))


def test_lean_takes_less() -> None:
    """That is what it is for."""
    full, lean = (plan(parse({}), 100_000, profile) for profile in ("full", "lean"))
    assert lean["state_bytes"] < full["state_bytes"]
    assert lean["state_bytes_per_key"] < 3_300  # at the defaults, of 4 KB with all else there is
    assert lean["parts"].keys() == full["parts"].keys()
