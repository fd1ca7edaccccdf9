"""The wheel of a node: what its services import, nothing of the control machine's; and how it is built."""

import json
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from harness.settings import REPOSITORY
from tests.unit.roles.wheelhouse_project import key, load, small_project

pytestmark = pytest.mark.integration

FILES = REPOSITORY / "roles" / "harness_venv" / "files"
LISTS = """
import json, sys
from pathlib import Path
from wheelhouse import source_files
print(json.dumps([str(path) for path in source_files(Path(sys.argv[1]), sys.argv[2].split(","))]))
"""
# Every module of the services themselves, also those that they import late.
IMPORTS = """
import importlib, json, sys
from pathlib import Path
for service in sys.argv[2].split(","):
    for path in (Path(sys.argv[1]) / "harness" / service).rglob("*.py"):
        parts = path.relative_to(sys.argv[1]).with_suffix("").parts
        importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
own = [module for name, module in sys.modules.items() if name.split(".")[0] == "harness"]
print(json.dumps([module.__file__ for module in own]))
"""


def listed(program: str, path: Path, services: str) -> set[Path]:
    done = subprocess.run(
        [sys.executable, "-c", program, str(REPOSITORY), services],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(path), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    return {Path(name) for name in json.loads(done.stdout)}


@pytest.mark.parametrize("services", ["monitor", "monitor,router"])
def test_wheel_has_every_module_that_the_services_import(services: str) -> None:
    packed = listed(LISTS, FILES, services)
    assert listed(IMPORTS, REPOSITORY, services) - packed == set()
    foreign = {"router", "cli", "cluster", "lab", "release_proof", "report", "runs", "trials", "watch"}
    foreign -= set(services.split(","))
    assert {path.relative_to(REPOSITORY / "harness").parts[0] for path in packed} & foreign == set()


@pytest.fixture
def wheelhouse() -> ModuleType:
    return load()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return small_project(tmp_path / "project")


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


def test_failed_build_leaves_nothing_that_looks_made(
    wheelhouse: ModuleType, project: Path, tmp_path: Path, offline: list[str]
) -> None:
    (project / "pyproject.toml").write_text("not toml")
    with pytest.raises(SystemExit, match="cannot build the project's wheel"):
        key(wheelhouse, project, tmp_path / "cache")
    left = [path.name for path in (tmp_path / "cache").iterdir() if not path.name.startswith("locked-")]
    assert left == [".lock"]


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
        wheelhouse._build_project(project, wheelhouse.source_files(project, ["monitor"]), tmp_path / name)
        (wheel,) = (tmp_path / name).iterdir()
        wheels.append(wheel.read_bytes())
    assert wheels[0] == wheels[1]


@pytest.mark.parametrize(
    ("services", "scripts"),
    [(["monitor"], {"llama-node-monitor"}), (["monitor", "router"], {"llama-node-monitor", "llama-router"})],
)
def test_wheel_has_the_scripts_that_it_can_run(
    wheelhouse: ModuleType, tmp_path: Path, services: list[str], scripts: set[str]
) -> None:
    files = wheelhouse.source_files(REPOSITORY, services)
    pyproject = tomllib.loads(wheelhouse.node_pyproject(REPOSITORY, files))
    assert set(pyproject["project"]["scripts"]) == scripts
    wheelhouse._build_project(REPOSITORY, files, tmp_path)
    (wheel,) = tmp_path.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        points = archive.read("llama_harness-0.1.0.dist-info/entry_points.txt").decode()
        names = archive.namelist()
    assert set(re.findall(r"(?m)^(\S+) =", points)) == scripts
    assert {name for name in names if name.endswith(".py")} == {
        str(path.relative_to(REPOSITORY)) for path in files if path.suffix == ".py"
    }
