"""The script that packs the nodes' wheels, and a small project that it can pack."""

import importlib.util
import shutil
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

from harness.settings import REPOSITORY

SCRIPT = REPOSITORY / "roles" / "harness_venv" / "files" / "wheelhouse.py"


@cache
def load() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("wheelhouse", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["wheelhouse"] = module
    spec.loader.exec_module(module)
    return module


def small_project(folder: Path) -> Path:
    """A project of the same form, whose lock files ask for nothing."""
    (folder / "harness" / "monitor").mkdir(parents=True)
    (folder / "requirements").mkdir()
    (folder / "harness" / "__init__.py").write_text('__version__ = "0.1.0"\n')
    (folder / "harness" / "monitor" / "__init__.py").write_text("")
    (folder / "harness" / "router").mkdir()
    (folder / "harness" / "router" / "__init__.py").write_text("")
    for name in ("README.md", "LICENSE", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, folder / name)
    for extra in ("monitor", "router"):
        (folder / "requirements" / f"{extra}.lock").write_text(f"# {extra}\n")
    return folder


def key(wheelhouse: ModuleType, project: Path, cache: Path, *extras: str) -> str:
    """The key of what is packed for these extras."""
    target = wheelhouse.Target("3.11", "x86_64", "2.36")
    return str(wheelhouse.build(project, cache, extras or ("monitor",), target)["key"])
