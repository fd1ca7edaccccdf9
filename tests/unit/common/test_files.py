"""Files are written whole or not at all, and with their mode from the first byte."""

import stat
from pathlib import Path

import pytest
from harness.common.files import write_atomic
from harness.errors import HarnessError


def test_file_is_replaced_and_no_draft_is_left(tmp_path: Path) -> None:
    target = tmp_path / "state.json"
    target.write_text("old")
    write_atomic(target, "new", mode=0o600)
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [target]


def test_failed_write_leaves_the_old_file_and_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "state.json"
    target.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(HarnessError, match=r"cannot write .*state\.json: No space left on device"):
        write_atomic(target, b"new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"cannot write .*: No such file or directory"):
        write_atomic(tmp_path / "none" / "x", b"")
