"""The installed build as the monitor sees it."""

import json
import os
from pathlib import Path

import pytest
from harness.monitor.readers.llama_cpp import BuildReader, parse_manifest

MANIFEST = {
    "build": 6751,
    "commit": "01d2bdc2b",
    "binaries": {"llama-server": "aa" * 32, "rpc-server": "bb" * 32},
    "built_on": "node1",
    "built_utc": "2026-11-25T10:00:00Z",
}


def install(prefix: Path, name: str, **changes: object) -> Path:
    """A build's folder with its manifest, and the link to it."""
    folder = prefix / name
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({**MANIFEST, **changes}))
    link = prefix / "current"
    link.unlink(missing_ok=True)
    link.symlink_to(name)
    return link


def test_build_is_known_by_number_commit_and_hash(tmp_path: Path) -> None:
    build = BuildReader(install(tmp_path, "a")).read()
    assert build is not None
    assert (build.build, build.commit) == (6751, "01d2bdc2b")
    assert len(build.sha256) == 64


def test_same_binaries_have_the_same_hash_wherever_they_were_built() -> None:
    build = parse_manifest(json.dumps(MANIFEST).encode())
    other = parse_manifest(json.dumps({**MANIFEST, "built_on": "node2", "built_utc": "later"}).encode())
    assert build == other


@pytest.mark.parametrize(
    "change", [{"build": 6792}, {"commit": "ffff"}, {"binaries": {"rpc-server": "cc" * 32}}]
)
def test_another_build_has_another_hash(change: dict[str, object]) -> None:
    build = parse_manifest(json.dumps(MANIFEST).encode())
    assert parse_manifest(json.dumps({**MANIFEST, **change}).encode()).sha256 != build.sha256


def test_upgrade_is_seen_in_the_next_sample(tmp_path: Path) -> None:
    reader = BuildReader(install(tmp_path, "a"))
    assert (build := reader.read()) is not None
    install(tmp_path, "b", build=6792)
    assert (newer := reader.read()) is not None
    assert (build.build, newer.build) == (6751, 6792)


def test_manifest_is_read_again_only_when_it_changes(tmp_path: Path) -> None:
    link = install(tmp_path, "a")
    reader = BuildReader(link)
    first = reader.read()
    manifest = link / "manifest.json"
    times = manifest.stat()
    manifest.write_text("x" * times.st_size)
    os.utime(manifest, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert reader.read() is first


def test_node_without_a_build_has_none(tmp_path: Path) -> None:
    assert BuildReader(tmp_path / "current").read() is None


def test_damaged_manifest_still_differs_from_others(tmp_path: Path) -> None:
    link = install(tmp_path, "a")
    (link / "manifest.json").write_text('{"build": 67')
    build = BuildReader(link).read()
    assert build is not None
    assert build.build is None
    assert len(build.sha256) == 64
