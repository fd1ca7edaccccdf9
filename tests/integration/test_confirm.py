"""Playbooks that take something away change nothing before somebody has said yes."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from harness.settings import REPOSITORY

pytestmark = pytest.mark.integration
HOSTS = """
all:
  vars: {ansible_connection: local, ansible_python_interpreter: "{{ ansible_playbook_python }}"}
  hosts: {node1: , node2: }
"""
PROGRAM = str(Path(sys.executable).with_name("ansible-playbook"))


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        ([], False),
        (["-e", "confirm=false"], False),
        (["--limit", "node2"], False),
        (["--limit", "node2", "-e", "confirm=true"], True),
    ],
)
def test_only_a_confirmed_playbook_changes_anything(
    tmp_path: Path, arguments: list[str], changes: bool
) -> None:
    marker, play, hosts = tmp_path / "changed", tmp_path / "play.yml", tmp_path / "hosts.yml"
    hosts.write_text(HOSTS)
    ask = {
        "name": "Ask",
        "ansible.builtin.import_playbook": str(REPOSITORY / "playbooks" / "confirm.yml"),
        "vars": {"confirm_what": "touch a file"},
    }
    change = {
        "name": "Change",
        "hosts": "all",
        "gather_facts": False,
        "tasks": [{"name": "Touch", "ansible.builtin.file": {"path": str(marker), "state": "touch"}}],
    }
    play.write_text(yaml.safe_dump([ask, change]))
    done = subprocess.run(
        [PROGRAM, "-i", str(hosts), str(play), *arguments],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode == 0, marker.exists()) == (changes, changes), done.stdout + done.stderr
    assert changes or "not confirmed, so nothing was changed" in done.stdout.replace("\n", " ")
