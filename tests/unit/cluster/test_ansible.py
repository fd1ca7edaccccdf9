"""Playbooks from Python: what is refused before Ansible starts, and the message of a failed task."""

from pathlib import Path

import pytest
from harness.cluster.ansible import failure_line, run_playbook
from harness.errors import HarnessError


def test_a_missing_playbook_is_named(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="no playbook at"):
        run_playbook(tmp_path / "absent.yml", tmp_path)


def test_an_inventory_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text("[]")
    with pytest.raises(HarnessError, match=r"no inventory at .*absent; name one with --inventory"):
        run_playbook(tmp_path / "play.yml", tmp_path / "absent")


def test_the_failed_item_of_a_loop_is_the_one_named() -> None:
    items = [{"failed": False, "msg": "fine"}, {"failed": True, "msg": "b is missing"}]
    data = {"host": "node1", "task": "Check", "res": {"msg": "All items completed", "results": items}}
    assert failure_line(data, unreachable=False) == "node1: Check: b is missing"


def test_an_unreachable_node_is_called_so() -> None:
    data = {"host": "node1", "task": "Ping", "res": {"msg": "No route to host"}}
    assert failure_line(data, unreachable=True) == "node1: Ping: unreachable: No route to host"
