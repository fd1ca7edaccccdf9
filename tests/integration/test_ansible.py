"""Playbooks from Python, run by Ansible itself on this machine."""

import io
from pathlib import Path

import pytest
import yaml
from harness.cluster.ansible import PlaybookResult, run_playbook
from harness.errors import HarnessError
from harness.settings import REPOSITORY, state_dir
from rich.console import Console

pytestmark = pytest.mark.integration
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


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    assert play(tmp_path, WRITE, check=True).changed == {"one": 1, "two": 1}
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
    result = play(tmp_path, "    - name: Try\n      fail: {msg: no}\n      ignore_errors: true\n")
    assert result.changed == {"one": 0, "two": 0}


def test_a_playbook_that_ansible_cannot_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="no_such_module"):
        play(tmp_path, "    - name: Try\n      no_such_module: {}\n")


def test_a_playbook_that_finds_no_node_has_not_succeeded(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text(HOSTS)
    (tmp_path / "play.yml").write_text("- hosts: backends\n  gather_facts: false\n  tasks: [{ping: {}}]\n")
    with pytest.raises(
        HarnessError, match=r"play\.yml: no node of .*hosts\.yml is in a group that it is for"
    ):
        run_playbook(tmp_path / "play.yml", tmp_path / "hosts.yml", console=Console(file=io.StringIO()))


def test_an_inventory_that_ansible_cannot_read_is_not_called_one_without_nodes(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text("all:\n  hosts:\n    a: {x: 1\n  b: 2\n")
    (tmp_path / "play.yml").write_text("- hosts: all\n  gather_facts: false\n  tasks: [{ping: {}}]\n")
    with pytest.raises(HarnessError, match=r"cannot read .*hosts\.yml: .*hosts\.yml:4"):
        run_playbook(tmp_path / "play.yml", tmp_path / "hosts.yml", console=Console(file=io.StringIO()))


def test_roles_keep_keys_where_the_harness_looks_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_HARNESS_STATE", str(tmp_path / "state"))
    inventory = tmp_path / "mine"
    inventory.mkdir()
    (inventory / "hosts.yml").write_text("all: {hosts: {here: {ansible_connection: local}}}\n")
    (tmp_path / "link").symlink_to(inventory)
    roles = ("router", "pool_server")
    tasks = [
        {"assert": {"that": f"{role}_state_dir == wanted", "fail_msg": f"{{{{ {role}_state_dir }}}}"}}
        for role in roles
    ]
    play = {
        "hosts": "all",
        "gather_facts": False,
        "vars": {"wanted": str(state_dir(inventory))},
        "vars_files": [str(REPOSITORY / "roles" / role / "defaults" / "main.yml") for role in roles],
        "tasks": tasks,
    }
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    assert run_playbook(tmp_path / "play.yml", tmp_path / "link").changed == {"here": 0}


def test_output_is_kept_in_a_private_log_and_named_on_failure(tmp_path: Path) -> None:
    task = "    - name: Try\n      fail: {msg: disk full}\n"
    (tmp_path / "hosts.yml").write_text(HOSTS)
    (tmp_path / "play.yml").write_text(f"- hosts: all\n  gather_facts: false\n  tasks:\n{task}")
    log = tmp_path / "logs" / "deploy.log"
    with pytest.raises(HarnessError, match=rf"disk full; the whole log is {log}$"):
        run_playbook(tmp_path / "play.yml", tmp_path / "hosts.yml", log_file=log)
    assert "TASK [Try]" in log.read_text()
    assert log.stat().st_mode & 0o077 == 0


def test_diff_shows_what_changes_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text("all: {hosts: {one: {ansible_connection: local}}}\n")
    task = f"    - copy: {{content: 'new\\n', dest: {tmp_path}/file, mode: '0644'}}\n"
    variables = "  vars: {ansible_python_interpreter: '{{ ansible_playbook_python }}'}\n"
    play = f"- hosts: all\n  gather_facts: false\n{variables}  tasks:\n{task}"
    (tmp_path / "play.yml").write_text(play)
    (tmp_path / "file").write_text("old\n")
    console = Console(file=io.StringIO())
    run_playbook(tmp_path / "play.yml", tmp_path / "hosts.yml", check=True, diff=True, console=console)
    assert isinstance(console.file, io.StringIO)
    assert "-old\n+new" in console.file.getvalue()
    assert (tmp_path / "file").read_text() == "old\n"
