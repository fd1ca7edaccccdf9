"""The least that a load can take, from rates that were measured."""

import os
from pathlib import Path

from harness.cluster.remote.model_file import measure_rates
from harness.trials.kinds.load_figures import load_floors

MIB = 1 << 20


def test_floors_are_bytes_over_rates_and_absent_where_nothing_was_measured() -> None:
    rated = {"disk": 500.0, "hash": 800.0}
    assert load_floors(rated, 1000, 1600) == {"disk_floor_s": 2.0, "hash_floor_s": 2.0}
    assert load_floors({"disk": 500.0}, 1000, 1600) == {"disk_floor_s": 2.0}
    assert load_floors(rated, None, 0) == {"hash_floor_s": 0.0}
    assert load_floors({}, 1000, 1600) == {}


def test_rates_are_measured_in_the_file_and_there_is_none_without_the_tool(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.write_bytes(os.urandom(3 * MIB))
    rates = measure_rates({"path": str(model), "size": 2 * MIB, "tool": "/nowhere/tool"})
    assert rates["disk"]
    assert rates["hash"] is None
    rates = measure_rates({"path": str(model), "size": 2 * MIB, "tool": "/bin/cat"})
    assert rates["hash"] is None, "a tool that fails measures nothing"
