"""Role llama_cpp on real nodes: the lab's pin, the same files on each, replaced where they are damaged."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from harness.cluster.ansible import run_playbook
from harness.cluster.inventory import Node, load_inventory

HERE = Path(__file__).parent
INVENTORY = HERE / "inventory"
PLAYBOOK = HERE / "llama_cpp.yml"
BUILD_TASK = "Build rpc-server, llama-server, llama-bench"
BINARIES = ("rpc-server", "llama-server", "llama-bench", "llama-tensor-cache")

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("deployed")]


@pytest.fixture(scope="module")
def nodes() -> list[Node]:
    return load_inventory(INVENTORY).backends


def on(node: Node, *argv: str) -> str:
    """Output of a command on a node."""
    done = subprocess.run(node.ssh(*argv), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{node.name}: {argv}: {done.stderr}"
    return done.stdout


def manifest(node: Node, folder: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(on(node, "cat", f"{folder}/manifest.json"))
    return read


def hashes(node: Node, folder: str) -> dict[str, str]:
    lines = on(node, "sha256sum", *(f"{folder}/bin/{name}" for name in BINARIES)).splitlines()
    return {Path(line.split()[1]).name: line.split()[0] for line in lines}


def test_every_node_runs_the_files_that_the_manifest_names(nodes: list[Node]) -> None:
    for node in nodes:
        assert hashes(node, "/opt/llama.cpp/current") == manifest(node, "/opt/llama.cpp/current")["binaries"]
    assert len({json.dumps(hashes(node, "/opt/llama.cpp/current")) for node in nodes}) == 1


def test_the_pinned_build_says_its_number_and_commit(nodes: list[Node]) -> None:
    for node in nodes:
        said = on(node, "sh", "-c", "/opt/llama.cpp/current/bin/llama-server --version 2>&1")
        assert re.match(rf"version: \S+ \(build {node.variables['llama_cpp_build']}, commit \w+\)", said)


def test_a_damaged_file_is_replaced_on_its_node_without_a_build(nodes: list[Node]) -> None:
    before = hashes(nodes[0], "/opt/llama.cpp/current")
    on(nodes[0], "sh", "-c", "printf x >> /opt/llama.cpp/current/bin/llama-bench")
    mended = run_playbook(PLAYBOOK, INVENTORY)
    assert hashes(nodes[0], "/opt/llama.cpp/current") == before
    assert mended.changed.get(nodes[1].name, 0) == 0
    assert not [task for task in mended.changed_tasks if BUILD_TASK in task]
