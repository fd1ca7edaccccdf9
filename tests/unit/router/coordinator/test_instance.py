"""The folders of past starts, which must not fill the disk."""

import json
from pathlib import Path

import pytest
from harness.router.coordinator.instance import close_records, prune

STARTS = [f"20260101T00000{n}.000000Z-m" for n in range(5)]


@pytest.mark.parametrize(
    ("keep", "keep_bytes", "left"),
    [(9, 1000, 5), (5, 50, 5), (2, 1000, 2), (9, 25, 2), (1, 1, 1)],
    ids=["fewer", "just as many", "too many", "too large", "newest one stays"],
)
def test_oldest_starts_beyond_the_number_or_the_bytes_are_removed(
    tmp_path: Path, keep: int, keep_bytes: int, left: int
) -> None:
    for name in [*STARTS, "notes"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "server.log").write_text("x" * 10)
    prune(tmp_path, keep=keep, keep_bytes=keep_bytes)
    assert sorted(path.name for path in tmp_path.iterdir()) == [*STARTS[5 - left :], "notes"]


def test_missing_log_folder_is_no_error(tmp_path: Path) -> None:
    prune(tmp_path / "absent", keep=1, keep_bytes=1)


def record(folder: Path, name: str, content: str) -> Path:
    (folder / name).mkdir(parents=True)
    path = folder / name / "start.json"
    path.write_text(content)
    return path


@pytest.mark.parametrize("phase", ["starting", "ready", "stopping"])
def test_start_of_a_router_that_was_killed_is_marked_as_ended(tmp_path: Path, phase: str) -> None:
    state = {"phase": phase, "start_id": STARTS[0], "requests_in_flight": 2}
    path = record(tmp_path, STARTS[0], json.dumps(state))
    close_records(tmp_path)
    now = json.loads(path.read_text())
    assert (now["phase"], now["requests_in_flight"]) == ("ended", 0)
    assert now["diagnosis"]["class"] == "stopped"
    assert "router" in now["diagnosis"]["evidence"][0]["line"]


def test_other_records_are_left_alone(tmp_path: Path) -> None:
    kept = {
        STARTS[0]: json.dumps({"phase": "ended"}),
        STARTS[1]: '{"phase": "rea',
        "notes": json.dumps({"phase": "ready"}),
    }
    paths = {name: record(tmp_path, name, content) for name, content in kept.items()}
    close_records(tmp_path)
    assert {name: path.read_text() for name, path in paths.items()} == kept
    close_records(tmp_path / "absent")
