"""Archives of nodes are unpacked without their modes, inside their folder, up to a limit."""

import io
import subprocess
import sys
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest
from harness.cluster.unpack import unpack
from harness.errors import HarnessError


def packed(folder: Path, *members: tarfile.TarInfo) -> Path:
    path = folder / "node1.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return path


def member(name: str, size: int = 1, **fields: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size = size
    for key, value in fields.items():
        setattr(made, key, value)
    return made


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "node1"
    folder.mkdir()
    return folder


def test_files_lose_setuid_and_write_bits_of_others(tmp_path: Path, target: Path) -> None:
    folder = member("logs", 0, type=tarfile.DIRTYPE, mode=0o7777)
    archive = packed(tmp_path, folder, member("logs/shell", mode=0o6777, uid=65534))
    unpack(archive, target, 100)
    mode = (target / "logs" / "shell").stat().st_mode
    assert mode & 0o7022 == 0
    assert (target / "logs" / "shell").stat().st_uid == target.stat().st_uid


def test_links_and_devices_are_left_out(tmp_path: Path, target: Path) -> None:
    archive = packed(
        tmp_path,
        member("link", 0, type=tarfile.SYMTYPE, linkname="/etc/shadow"),
        member("hard", 0, type=tarfile.LNKTYPE, linkname="../other"),
        member("pipe", 0, type=tarfile.FIFOTYPE),
        member("file"),
    )
    unpack(archive, target, 100)
    assert [path.name for path in target.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside-of-node1", "a/../../outside"])
def test_file_never_lands_elsewhere(tmp_path: Path, target: Path, name: str) -> None:
    with suppress(HarnessError):
        unpack(packed(tmp_path, member(name)), target, 100)
    assert {path.name for path in tmp_path.iterdir()} == {"node1", "node1.tar.gz"}


def test_more_than_the_limit_is_refused_before_it_is_written(tmp_path: Path, target: Path) -> None:
    archive = packed(tmp_path, member("a", 60), member("b", 60))
    with pytest.raises(HarnessError, match=r"^node1\.tar\.gz holds more than 0\.0 GiB or 100000 files"):
        unpack(archive, target, 100)
    assert [path.name for path in target.iterdir()] == ["a"]


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b\x08\x00" + b"x" * 100])
def test_no_archive_is_one_line(tmp_path: Path, target: Path, content: bytes) -> None:
    archive = tmp_path / "node1.tar.gz"
    archive.write_bytes(content)
    argv = [sys.executable, "-m", "harness.cluster.unpack", str(archive), str(target), "--limit", "4G"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("harness: node1.tar.gz cannot be unpacked: ")
    assert len(done.stderr.splitlines()) == 1
