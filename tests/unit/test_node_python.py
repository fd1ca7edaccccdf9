"""What runs under a node's own Python keeps to 3.9 (RHEL 9's)."""

import ast
from pathlib import Path

import pytest
from harness.settings import REPOSITORY

FILES = [
    path
    for pattern in ("roles/*/files/*.py", "roles/*/library/*.py", "harness/cluster/remote/*.py")
    for path in sorted(REPOSITORY.glob(pattern))
    if path.name != "wheelhouse.py"  # runs on the control machine
]
PATH_METHODS = {"stat", "chmod", "exists", "is_file", "is_dir"}


def newer(source: str) -> list[str]:
    """Calls that Python 3.9 refuses; a SyntaxError for syntax that it lacks."""
    tree = ast.parse(source, feature_version=(3, 9))
    found = []
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        names = {keyword.arg for keyword in call.keywords}
        method = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        owner = call.func.value if isinstance(call.func, ast.Attribute) else None
        of_os = isinstance(owner, ast.Name) and owner.id == "os"
        if method in PATH_METHODS and "follow_symlinks" in names and not of_os:
            found.append(f"{call.lineno}: {method}(follow_symlinks=)")
        if method == "zip" and "strict" in names:
            found.append(f"{call.lineno}: zip(strict=)")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_script_of_a_node_runs_under_python_3_9(path: Path) -> None:
    assert newer(path.read_text()) == []


def test_newer_calls_are_found() -> None:
    assert newer("path.stat(follow_symlinks=False)") == ["1: stat(follow_symlinks=)"]
    assert newer("zip(a, b, strict=True)") == ["1: zip(strict=)"]
    assert newer("os.stat(path, follow_symlinks=False)") == []
