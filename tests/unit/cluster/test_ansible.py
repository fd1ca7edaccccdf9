"""Playbooks from Python."""

import io
from pathlib import Path

import pytest
from harness.cluster.ansible import PlaybookResult, failure_line, run_playbook
from harness.errors import HarnessError
from rich.console import Console

HOSTS = "all: {hosts: {one: {ansible_connection: local}, two: {ansible_connection: local}}}\n"


def play(tmp_path: Path, tasks: str, check: bool = False) -> PlaybookResult:
    (tmp_path / "hosts.yml").write_text(HOSTS)
    header = (
        "- hosts: all\n  gather_facts: false\n"
        "  vars: {ansible_python_interpreter: '{{ ansible_playbook_python }}'}\n  tasks:\n"
    )
    (tmp_path / "play.yml").write_text(header + tasks)
    console = Console(file=io.StringIO())
    extra = {"folder": str(tmp_path)}
    return run_playbook(
        tmp_path / "play.yml", tmp_path / "hosts.yml", extra, title="Trying", check=check, console=console
    )


WRITE = """
    - name: Write
      copy: {content: x, dest: '{{ folder }}/{{ inventory_hostname }}', mode: '0644'}
"""


def test_changes_are_counted_by_node_and_named(tmp_path: Path) -> None:
    first = play(tmp_path, WRITE)
    assert first.changed == {"one": 1, "two": 1}
    assert sorted(first.changed_tasks) == ["one: Write", "two: Write"]
    second = play(tmp_path, WRITE)
    assert second.changed == {"one": 0, "two": 0}
    assert second.total_changed == 0


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    assert play(tmp_path, WRITE, check=True).total_changed == 2
    assert not (tmp_path / "one").exists()


def test_a_failure_names_node_task_and_message(tmp_path: Path) -> None:
    task = "    - name: Try\n      fail: {msg: disk full}\n      when: inventory_hostname == 'two'\n"
    with pytest.raises(HarnessError, match=r"^two: Try: disk full$"):
        play(tmp_path, task)


def test_a_failed_command_says_what_it_said(tmp_path: Path) -> None:
    task = "    - name: Try\n      command: ls /nowhere\n      changed_when: false\n"
    with pytest.raises(HarnessError, match="Try: ls: cannot access '/nowhere'"):
        play(tmp_path, task)


def test_what_a_playbook_says_is_shown(tmp_path: Path) -> None:
    task = "    - ansible.builtin.debug: {msg: ['WARNING: [one]', two]}\n      run_once: true\n"
    (tmp_path / "hosts.yml").write_text(HOSTS)
    (tmp_path / "play.yml").write_text(f"- hosts: all\n  gather_facts: false\n  tasks:\n{task}")
    console = Console(file=io.StringIO())
    run_playbook(tmp_path / "play.yml", tmp_path / "hosts.yml", console=console)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == ["WARNING: [one]", "two"]


def test_an_ignored_failure_is_none(tmp_path: Path) -> None:
    assert (
        play(tmp_path, "    - name: Try\n      fail: {msg: no}\n      ignore_errors: true\n").total_changed
        == 0
    )


def test_a_playbook_that_ansible_cannot_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="no_such_module"):
        play(tmp_path, "    - name: Try\n      no_such_module: {}\n")


def test_a_missing_playbook_is_named(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="no playbook at"):
        run_playbook(tmp_path / "absent.yml", tmp_path)


def test_an_inventory_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text("[]")
    with pytest.raises(HarnessError, match=r"no inventory at .*absent; name one with --inventory"):
        run_playbook(tmp_path / "play.yml", tmp_path / "absent")


def test_a_playbook_that_finds_no_node_has_not_succeeded(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text(HOSTS)
    (tmp_path / "play.yml").write_text("- hosts: backends\n  gather_facts: false\n  tasks: [{ping: {}}]\n")
    with pytest.raises(
        HarnessError, match=r"play\.yml: no node of .*hosts\.yml is in a group that it is for"
    ):
        run_playbook(tmp_path / "play.yml", tmp_path / "hosts.yml", console=Console(file=io.StringIO()))


def test_the_failed_item_of_a_loop_is_the_one_named() -> None:
    items = [{"failed": False, "msg": "fine"}, {"failed": True, "msg": "b is missing"}]
    data = {"host": "node1", "task": "Check", "res": {"msg": "All items completed", "results": items}}
    assert failure_line(data, unreachable=False) == "node1: Check: b is missing"


def test_an_unreachable_node_is_called_so() -> None:
    data = {"host": "node1", "task": "Ping", "res": {"msg": "No route to host"}}
    assert failure_line(data, unreachable=True) == "node1: Ping: unreachable: No route to host"
