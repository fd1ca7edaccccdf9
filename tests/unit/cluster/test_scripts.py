"""The scripts that are sent to nodes: each runs alone, with the shared functions put before it."""

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


@pytest.mark.parametrize(("log_lines", "logs"), [(0, set()), (1, {"journal", "kernel"})])
def test_machine_without_llama_cpp_is_inspected(tmp_path: Path, log_lines: int, logs: set[str]) -> None:
    argument = {
        "window_s": 0,
        "port": 1,
        "cache": "/nowhere",
        "cache_threshold": 1,
        "llama_cpp": "/nowhere",
        "unit": "none.service",
        "log_lines": log_lines,
    }
    argv = [sys.executable, "-I", "-", json.dumps(argument)]
    done = subprocess.run(
        argv, input=source_of("inspect_node.py"), text=True, capture_output=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout).keys() == {
        *("processes", "connections", "cache", "unit", "installed_build"),
        *logs,
    }
