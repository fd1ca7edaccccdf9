"""One run at a time on an inventory."""

import fcntl
from pathlib import Path
from threading import Timer

import pytest
from harness.errors import HarnessError
from harness.runs.lock import inventory_holder, inventory_lock


def test_lock_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLAMA_HARNESS_STATE", str(tmp_path / "file"))
    with pytest.raises(HarnessError, match=r"cannot make .*run\.lock"), inventory_lock(tmp_path, "run-1"):
        pass


def test_second_run_on_an_inventory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_HARNESS_STATE", str(tmp_path))
    inventory = tmp_path / "mine"
    inventory.mkdir()
    with (
        inventory_lock(inventory, "run-1"),
        pytest.raises(HarnessError, match="taken by another run \\(run-1, pid"),
        inventory_lock(inventory, "run-2"),
    ):
        pass
    with inventory_lock(inventory, "run-3"):
        pass


def test_runs_on_different_inventories_go_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_HARNESS_STATE", str(tmp_path))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with inventory_lock(tmp_path / "one", "a"), inventory_lock(tmp_path / "two", "b"):
        pass


def test_run_waits_for_a_reader_of_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``harness runs`` takes a shared lock for the moment in which it asks who holds the inventory."""
    monkeypatch.setenv("LLAMA_HARNESS_STATE", str(tmp_path))
    (tmp_path / "mine").mkdir()
    with inventory_lock(tmp_path / "mine", "run-1"):
        pass
    (path,) = tmp_path.rglob("run.lock")
    with path.open() as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        Timer(0.1, fcntl.flock, (reader, fcntl.LOCK_UN)).start()
        with inventory_lock(tmp_path / "mine", "run-2"):
            assert inventory_holder(tmp_path / "mine") is not None
