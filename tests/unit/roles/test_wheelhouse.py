"""What the control machine packs for the nodes, and when it packs anew."""

import importlib.util
import shutil
import sys
import tarfile
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[3]
SCRIPT = REPOSITORY / "roles" / "harness_venv" / "files" / "wheelhouse.py"


@pytest.fixture(scope="module")
def wheelhouse() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wheelhouse", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["wheelhouse"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small project of the same form, whose lock files ask for nothing."""
    folder = tmp_path / "project"
    (folder / "harness" / "monitor").mkdir(parents=True)
    (folder / "requirements").mkdir()
    (folder / "harness" / "__init__.py").write_text('__version__ = "0.1.0"\n')
    (folder / "harness" / "monitor" / "__init__.py").write_text("")
    for name in ("README.md", "LICENSE", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, folder / name)
    for extra in ("monitor", "router"):
        (folder / "requirements" / f"{extra}.lock").write_text(f"# {extra}\n")
    return folder


def key(wheelhouse: ModuleType, project: Path, cache: Path, *extras: str) -> str:
    target = wheelhouse.Target("3.11", "x86_64", "2.36")
    return str(wheelhouse.build(project, cache, extras or ("monitor",), target)["key"])


@pytest.fixture
def offline(wheelhouse: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the download, which these lock files do not need; records the lock files."""
    locks_downloaded: list[str] = []

    def download(locks: list[Path], target: object, folder: Path) -> None:
        locks_downloaded.extend(lock.name for lock in locks)

    monkeypatch.setattr(wheelhouse, "_download", download)
    return locks_downloaded


def test_second_build_finds_the_first(
    wheelhouse: ModuleType, project: Path, tmp_path: Path, offline: list[str]
) -> None:
    target = wheelhouse.Target("3.11", "x86_64", "2.36")
    first = wheelhouse.build(project, tmp_path / "cache", ["monitor"], target)
    second = wheelhouse.build(project, tmp_path / "cache", ["monitor"], target)
    assert (first["built"], second["built"]) == (True, False)
    assert first["key"] == second["key"]
    assert offline == ["monitor.lock"]
    with tarfile.open(str(first["tar"])) as archive:
        names = archive.getnames()
        owners = {(entry.uid, entry.mode) for entry in archive.getmembers()}
    assert names == ["llama_harness-0.1.0-py3-none-any.whl", "monitor.lock"]
    assert owners == {(0, 0o644)}


def test_what_lies_around_in_a_checkout_changes_nothing(
    wheelhouse: ModuleType, project: Path, tmp_path: Path, offline: list[str]
) -> None:
    before = key(wheelhouse, project, tmp_path / "cache")
    (project / "harness" / "__pycache__").mkdir()
    (project / "harness" / "__pycache__" / "x.cpython-311.pyc").write_bytes(b"x")
    (project / "build").mkdir()
    (project / "notes.txt").write_text("x")
    assert key(wheelhouse, project, tmp_path / "cache") == before


def test_change_of_a_source_a_lock_or_the_extras_is_another_key(
    wheelhouse: ModuleType, project: Path, tmp_path: Path, offline: list[str]
) -> None:
    cache = tmp_path / "cache"
    keys = [key(wheelhouse, project, cache), key(wheelhouse, project, cache, "router", "monitor")]
    assert keys[1] == key(wheelhouse, project, cache, "monitor", "router")
    (project / "harness" / "monitor" / "__init__.py").write_text("VALUE = 1\n")
    keys.append(key(wheelhouse, project, cache))
    (project / "requirements" / "monitor.lock").write_text("# other\n")
    keys.append(key(wheelhouse, project, cache))
    target = wheelhouse.Target("3.12", "x86_64", "2.36")
    keys.append(wheelhouse.build(project, cache, ["monitor"], target)["key"])
    assert len(set(keys)) == 5


def test_old_packs_are_forgotten(
    wheelhouse: ModuleType, project: Path, tmp_path: Path, offline: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheelhouse, "_build_project", lambda project, folder: None)
    for number in range(12):
        (project / "harness" / "__init__.py").write_text(f"VALUE = {number}\n")
        newest = key(wheelhouse, project, tmp_path / "cache")
    kept = list((tmp_path / "cache").glob("wheelhouse-*.tar"))
    assert len(kept) == wheelhouse.KEEP_TARS
    assert tmp_path / "cache" / f"wheelhouse-{newest}.tar" in kept


def test_failed_build_leaves_nothing_that_looks_made(
    wheelhouse: ModuleType, project: Path, tmp_path: Path, offline: list[str]
) -> None:
    (project / "pyproject.toml").write_text("not toml")
    with pytest.raises(SystemExit, match="cannot build the project's wheel"):
        key(wheelhouse, project, tmp_path / "cache")
    left = [path.name for path in (tmp_path / "cache").iterdir() if not path.name.startswith("locked-")]
    assert left == [".lock"]


def test_unknown_extra_is_named(wheelhouse: ModuleType, project: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no lock file .*nothing\.lock"):
        key(wheelhouse, project, tmp_path / "cache", "nothing")


def test_wheel_without_a_hash_in_the_lock_is_refused(
    wheelhouse: ModuleType, project: Path, tmp_path: Path
) -> None:
    (project / "requirements" / "monitor.lock").write_text("psutil==7.2.2\n")
    with pytest.raises(
        SystemExit, match=r"cannot get the wheels of monitor\.lock for py3\.11-x86_64-glibc2\.36"
    ):
        key(wheelhouse, project, tmp_path / "cache")


def test_same_sources_give_the_same_wheel(wheelhouse: ModuleType, project: Path, tmp_path: Path) -> None:
    wheels = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        wheelhouse._build_project(project, tmp_path / name)
        (wheel,) = (tmp_path / name).iterdir()
        wheels.append(wheel.read_bytes())
    assert wheels[0] == wheels[1]


def test_wheels_are_asked_for_the_node_and_not_for_this_machine(wheelhouse: ModuleType) -> None:
    options = wheelhouse.Target("3.12", "aarch64", "2.28").pip_options()
    platforms = [b for a, b in pairwise(options) if a == "--platform"]
    assert platforms[0] == "manylinux_2_28_aarch64"
    assert "manylinux_2_17_aarch64" in platforms
    assert not [name for name in platforms if "2_29" in name or "x86_64" in name]
    assert "cp312" in options
