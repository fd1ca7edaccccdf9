"""The scripts that trials send to nodes: each stands alone, with what it shares put before it."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from harness.cluster.ssh import REMOTE, source_of

SCRIPTS = sorted(path.name for path in REMOTE.glob("*.py") if path.name not in ("common.py", "__init__.py"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_needs_nothing_but_the_standard_library(script: str) -> None:
    tree = ast.parse(source_of(script), feature_version=(3, 8))
    nodes = list(ast.walk(tree))
    named = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    named |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert {name.partition(".")[0] for name in named} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize(
    ("script", "argument", "known"),
    [
        (
            "unit.py",
            {"unit": "none.service", "lines": 1, "port": 1, "cache": "/", "llama_cpp": "/x", "look_s": 0},
            {"properties", "journal", "kernel", "peer", "full_disk", "build", "process"},
        ),
        (
            "look.py",
            {"window_s": 0, "port": 1, "cache": "/nowhere", "unit": "none.service"},
            {"processes", "connections", "cache", "unit"},
        ),
    ],
)
def test_script_looks_at_a_machine_where_nothing_is(
    tmp_path: Path, script: str, argument: dict[str, object], known: set[str]
) -> None:
    argv = [sys.executable, "-I", "-", json.dumps(argument)]
    shown = subprocess.run(argv, input=source_of(script), text=True, capture_output=True, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout).keys() == known
