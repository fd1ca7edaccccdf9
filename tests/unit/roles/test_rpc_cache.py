"""The cache tool drops what may have been cut, keeps the rest, and stays below the cap."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from harness.llama.rpc.messages import HASH_THRESHOLD_BYTES

TOOL = Path(__file__).parents[3] / "roles" / "rpc_server" / "files" / "rpc_cache.py"
SIZE = 11 << 20
NOW = 1_700_000_000.0


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rpc_cache", TOOL)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


rpc_cache = load()


def add(cache: Path, name: str, written: float, size: int = SIZE) -> Path:
    """A cached tensor; sparse, because only names, sizes and times count."""
    path = cache / "rpc" / name
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as stream:
        stream.truncate(size)
    os.utime(path, (written, written))
    return path


def names(tensors: dict[Path, str]) -> set[str]:
    return {path.name[-1] for path in tensors}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Three tensors: one of an earlier run, two of the last."""
    add(tmp_path, "000000000000000a", NOW - 5000)
    add(tmp_path, "000000000000000b", NOW - 20)
    add(tmp_path, "000000000000000c", NOW - 5)
    return tmp_path


PLENTY = 1 << 40


def test_last_file_before_the_end_is_dropped(cache: Path) -> None:
    run = {"started": NOW - 100, "ended": NOW}
    assert names(rpc_cache.suspects(rpc_cache.entries(cache), run, PLENTY)) == {"c"}


def test_file_finished_just_before_the_last_one_is_kept(cache: Path) -> None:
    add(cache, "000000000000000d", NOW - 4.5)
    run = {"started": NOW - 100, "ended": NOW}
    assert names(rpc_cache.suspects(rpc_cache.entries(cache), run, PLENTY)) == {"d"}


def test_file_settled_long_before_the_end_is_kept(cache: Path) -> None:
    run = {"started": NOW - 100, "ended": NOW + 1000}
    assert rpc_cache.suspects(rpc_cache.entries(cache), run, PLENTY) == {}


def test_last_minute_before_a_power_cut_is_dropped(cache: Path) -> None:
    assert names(rpc_cache.suspects(rpc_cache.entries(cache), {"started": NOW - 100}, PLENTY)) == {"b", "c"}


def test_everything_written_in_a_run_that_filled_the_disk_is_dropped(cache: Path) -> None:
    run = {"started": NOW - 100, "ended": NOW + 1000}
    assert names(rpc_cache.suspects(rpc_cache.entries(cache), run, 0)) == {"b", "c"}


def test_files_of_earlier_runs_are_kept(cache: Path) -> None:
    run = {"started": NOW - 1, "ended": NOW}
    assert rpc_cache.suspects(rpc_cache.entries(cache), run, PLENTY) == {}


def test_file_too_small_to_be_a_cached_tensor_is_dropped(cache: Path) -> None:
    add(cache, "000000000000000d", NOW - 9000, size=4096)
    assert names(rpc_cache.suspects(rpc_cache.entries(cache), {}, PLENTY)) == {"d"}


def test_other_files_are_left_alone(cache: Path) -> None:
    add(cache, "README", NOW, size=1)
    assert "README" not in {entry.path.name for entry in rpc_cache.entries(cache)}


def test_oldest_use_goes_first_until_below_the_cap(cache: Path) -> None:
    tensors = rpc_cache.entries(cache)
    assert [e.path.name[-1] for e in rpc_cache.surplus(tensors, SIZE)] == ["a"]
    assert [e.path.name[-1] for e in rpc_cache.surplus(tensors, 0)] == []
    assert [e.path.name[-1] for e in rpc_cache.surplus(tensors, SIZE + 1)] == ["a", "b"]


def test_read_tensor_outlives_one_that_was_only_written(cache: Path) -> None:
    os.utime(cache / "rpc" / "000000000000000a", (NOW, NOW - 5000))
    tensors = rpc_cache.entries(cache)
    assert [e.path.name[-1] for e in rpc_cache.surplus(tensors, SIZE)] == ["b"]


def run_tool(*argv: str) -> str:
    done = subprocess.run(
        [sys.executable, "-IS", str(TOOL), *argv], capture_output=True, text=True, check=True, input=""
    )
    return done.stdout


def test_start_and_stop_pass_the_run_on(tmp_path: Path) -> None:
    run_tool("start", str(tmp_path))
    assert (tmp_path / "running.json").exists()
    run_tool("stop", str(tmp_path))
    assert set(json.loads((tmp_path / "ended.json").read_text())) == {"started", "ended"}
    assert not (tmp_path / "running.json").exists()


def test_kill_while_writing_costs_the_file_that_was_written(tmp_path: Path) -> None:
    run_tool("start", str(tmp_path))
    started = json.loads((tmp_path / "running.json").read_text())["started"]
    kept = add(tmp_path, "00000000000000aa", started - 2)
    cut = add(tmp_path, "00000000000000bb", started + 1)
    run_tool("stop", str(tmp_path))
    printed = run_tool("start", str(tmp_path))
    assert kept.exists()
    assert not cut.exists()
    assert cut.name in printed


def test_unreadable_state_distrusts_the_whole_run(tmp_path: Path) -> None:
    (tmp_path / "running.json").write_text("{")
    cut = add(tmp_path, "00000000000000bb", NOW)
    run_tool("start", str(tmp_path))
    assert not cut.exists()


def test_start_prunes_to_the_cap(cache: Path) -> None:
    run_tool("start", str(cache), "--max", str(2 * SIZE))
    assert len(rpc_cache.entries(cache)) == 2


def test_prune_spares_what_the_current_plan_needs(cache: Path) -> None:
    (cache / "needed.json").write_text(json.dumps(["000000000000000a"]))
    run_tool("prune", str(cache), "--max", str(2 * SIZE))
    assert {e.path.name[-1] for e in rpc_cache.entries(cache)} == {"a", "c"}
    printed = run_tool("prune", str(cache), "--max", "0")
    assert {e.path.name[-1] for e in rpc_cache.entries(cache)} == {"a"}
    assert "needed by the current plan" in printed


def test_needed_names_are_kept_and_strangers_refused(tmp_path: Path) -> None:
    rpc_cache.need(tmp_path, ["00000000000000aa", ""])
    assert rpc_cache.needed(tmp_path) == {"00000000000000aa"}
    with pytest.raises(SystemExit, match=r"'\.\./\.\./etc' is no name"):
        rpc_cache.need(tmp_path, ["../../etc"])
    assert rpc_cache.needed(tmp_path) == {"00000000000000aa"}


def add_draft(cache: Path, age_s: float) -> Path:
    """A tensor that llama-tensor-cache had not given its name when it was killed."""
    return add(cache, ".00000000000000dd.Ab3xYz", time.time() - age_s)


@pytest.mark.parametrize("command", ["start", "prune", "need"])
def test_draft_of_a_killed_cache_program_is_dropped(cache: Path, command: str) -> None:
    old = add_draft(cache, 3600)
    young = add(cache, ".00000000000000ee.Ab3xYz", time.time())
    printed = run_tool(command, str(cache))
    assert not old.exists()
    assert old.name in printed
    assert young.exists()


@pytest.mark.parametrize("name", ["00000000000000dd", ".00000000000000dd.Ab3xYz"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_does_not_stop_the_start(
    cache: Path, name: str, make: Callable[[Path], None]
) -> None:
    """rpc-server would wait for a writer of a FIFO, and llama-tensor-cache cannot replace a folder."""
    path = cache / "rpc" / name
    make(path)
    os.utime(path, (NOW, NOW), follow_symlinks=False)
    run_tool("start", str(cache))
    assert len(rpc_cache.entries(cache)) == 3
    assert not os.path.lexists(path)


def test_draft_counts_against_the_cap(cache: Path) -> None:
    add_draft(cache, 1)
    run_tool("prune", str(cache), "--max", str(3 * SIZE))
    assert {entry.path.name[-1] for entry in rpc_cache.entries(cache)} == {"b", "c"}


@pytest.mark.parametrize("text", ["{}", '{"ended": 5}'])
def test_state_without_a_start_distrusts_the_whole_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "running.json").write_text(text)
    cut = add(tmp_path, "00000000000000bb", NOW)
    run_tool("start", str(tmp_path))
    assert not cut.exists()


def test_smallest_cached_tensor_is_the_one_that_the_harness_knows() -> None:
    assert rpc_cache.HASH_THRESHOLD == HASH_THRESHOLD_BYTES
