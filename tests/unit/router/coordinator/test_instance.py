"""The folders of past starts, which must not fill the disk."""

from pathlib import Path

import pytest
from harness.router.coordinator.instance import prune

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
