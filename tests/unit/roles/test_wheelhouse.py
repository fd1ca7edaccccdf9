"""What the control machine packs for the nodes, and when it packs anew."""

from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
from tests.unit.roles.wheelhouse_project import key, load, small_project


@pytest.fixture
def wheelhouse(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, which downloads and builds nothing here: tests/integration does."""
    module = load()
    monkeypatch.setattr(module, "_download", lambda locks, target, folder: None)
    monkeypatch.setattr(module, "_build_project", lambda project, files, folder: None)
    return module


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return small_project(tmp_path / "project")


def test_what_lies_around_in_a_checkout_changes_nothing(
    wheelhouse: ModuleType, project: Path, tmp_path: Path
) -> None:
    before = key(wheelhouse, project, tmp_path / "cache")
    (project / "harness" / "__pycache__").mkdir()
    (project / "harness" / "__pycache__" / "x.cpython-311.pyc").write_bytes(b"x")
    (project / "build").mkdir()
    (project / "notes.txt").write_text("x")
    assert key(wheelhouse, project, tmp_path / "cache") == before


def test_change_of_a_source_a_lock_or_the_extras_is_another_key(
    wheelhouse: ModuleType, project: Path, tmp_path: Path
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


def test_change_of_what_no_service_imports_is_the_same_key(
    wheelhouse: ModuleType, project: Path, tmp_path: Path
) -> None:
    cache, package = tmp_path / "cache", project / "harness"
    (package / "used").mkdir()
    (package / "used" / "__init__.py").write_text("")
    (package / "used" / "data").mkdir()
    (package / "used" / "data" / "list.json").write_text("[]")
    (package / "monitor" / "service.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import harness.report\n"
        "def start():\n    from harness.used import part\n"
    )
    (package / "used" / "part.py").write_text("")
    before = key(wheelhouse, project, cache)
    (package / "report" / "templates").mkdir(parents=True)
    (package / "report" / "__init__.py").write_text("import harness.monitor\n")
    (package / "report" / "templates" / "report.css").write_text("body {}\n")
    (package / "used" / "unused.py").write_text("")
    (package / "router" / "__init__.py").write_text("VALUE = 1\n")
    (project / "README.md").write_text("# other\n")
    assert key(wheelhouse, project, cache) == before
    changed = set()
    for path in (package / "used" / "part.py", package / "used" / "data" / "list.json"):
        path.write_text("0")
        changed.add(key(wheelhouse, project, cache))
    assert len(changed | {before}) == 3


def test_key_has_of_pyproject_only_what_the_wheel_is_made_of(
    wheelhouse: ModuleType, project: Path, tmp_path: Path
) -> None:
    cache, pyproject = tmp_path / "cache", project / "pyproject.toml"
    whole = pyproject.read_text()
    before = key(wheelhouse, project, cache)
    for old, new in [("line-length = 110", "line-length = 100"), ('"ruff>=', '"other",\n  "ruff>=')]:
        assert old in whole
        pyproject.write_text(whole.replace(old, new))
        assert key(wheelhouse, project, cache) == before
    for old, new in [
        ('"pyyaml>=6,', '"pyyaml>=5,'),
        ("hatchling==", "hatchling>="),
        ('version = "0', 'version = "9'),
    ]:
        assert old in whole
        pyproject.write_text(whole.replace(old, new))
        assert key(wheelhouse, project, cache) != before


def test_old_packs_are_forgotten(wheelhouse: ModuleType, project: Path, tmp_path: Path) -> None:
    for number in range(12):
        (project / "harness" / "monitor" / "__init__.py").write_text(f"VALUE = {number}\n")
        newest = key(wheelhouse, project, tmp_path / "cache")
    kept = list((tmp_path / "cache").glob("wheelhouse-*.tar"))
    assert len(kept) == wheelhouse.KEEP_TARS
    assert tmp_path / "cache" / f"wheelhouse-{newest}.tar" in kept


def test_unknown_extra_is_named(wheelhouse: ModuleType, project: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no lock file .*nothing\.lock"):
        key(wheelhouse, project, tmp_path / "cache", "nothing")


def test_wheels_are_asked_for_the_node_and_not_for_this_machine(wheelhouse: ModuleType) -> None:
    options = wheelhouse.Target("3.12", "aarch64", "2.28").pip_options()
    platforms = [b for a, b in pairwise(options) if a == "--platform"]
    assert platforms[0] == "manylinux_2_28_aarch64"
    assert "manylinux_2_17_aarch64" in platforms
    assert not [name for name in platforms if "2_29" in name or "x86_64" in name]
    assert "cp312" in options
