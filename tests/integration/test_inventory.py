"""Inventories as Ansible reads them: what is no inventory, and what a command cannot use."""

import re
from pathlib import Path

import pytest
from harness.cli import app
from harness.cluster.inventory import load_inventory
from harness.errors import HarnessError
from typer.testing import CliRunner

pytestmark = pytest.mark.integration
HOSTS = "all: {hosts: {node1: {ansible_host: 10.0.0.1}, node2: {ansible_host: 10.0.0.2}}}\n"
LAB = HOSTS.replace("hosts: {node1", "vars: {lab_node_lab: t}, hosts: {node1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"all:\n  hosts:\n    a: {x: 1\n  b: 2\n", r"did not find expected .*hosts\.yml:4:4\)$"),
        (b"all: {hosts: [a]}\n", r'Invalid "hosts" entry'),
        (b"\x00\x91\xff\n", r"hosts\.yml is not a text file$"),
        (b"", r"hosts\.yml holds no nodes$"),
    ],
)
def test_what_is_wrong_with_an_inventory_is_said(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "hosts.yml").write_bytes(content)
    with pytest.raises(HarnessError, match=message) as raised:
        load_inventory(tmp_path / "hosts.yml")
    assert "\n" not in str(raised.value)


def test_place_of_an_error_in_a_folders_inventory_is_said(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text("all: {hosts: {\n")
    with pytest.raises(HarnessError, match=r"hosts\.yml:\d+:\d+\)$"):
        load_inventory(tmp_path)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("lab up --inventory {lab} --nodes 3", r"--nodes 3: inventory .* has 2 nodes \(node1, node2\)"),
        ("lab up --inventory {inventory}", r"hosts\.yml sets no lab_node_lab, so it describes real machines"),
        ("lab status --inventory {inventory}", r"hosts\.yml sets no lab_node_lab"),
        ("cache status --inventory {inventory}", "group 'backends' holds no node; nothing was done"),
        ("cache verify --inventory {inventory}", "group 'backends' holds no node; nothing was done"),
        ("watch --inventory {inventory}", "group 'head' holds 0 nodes; it must hold exactly one"),
    ],
)
def test_inventory_that_a_command_cannot_use_is_refused(typed: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text(HOSTS)
    (tmp_path / "lab.yml").write_text(LAB)
    words = typed.format(inventory=tmp_path / "hosts.yml", lab=tmp_path / "lab.yml").split()
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, HarnessError), done.output
    assert re.search(message, str(done.exception))
    assert "\n" not in str(done.exception)
