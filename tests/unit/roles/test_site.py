"""Plays of site.yml that run whatever ``--tags`` says."""

from pathlib import Path

import pytest
import yaml
from harness.cluster.ansible import run_playbook
from harness.errors import HarnessError
from harness.settings import REPOSITORY

PLAYS = yaml.safe_load((REPOSITORY / "playbooks" / "site.yml").read_text())
BUILD = {
    "hosts": "all",
    "gather_facts": False,
    "tags": ["llama_cpp"],
    "tasks": [{"name": "Build", "ansible.builtin.debug": {}}],
}
HOSTS = """
all: {vars: {ansible_connection: local, ansible_python_interpreter: "{{ ansible_playbook_python }}"}}
head: {hosts: {node1: }}
backends: {hosts: {node1: , node2: }}
"""


def test_run_is_asked_for_its_lease_with_any_tag() -> None:
    (asks,) = (play for play in PLAYS if "tasks_from: lease" in yaml.safe_dump(play))
    (task,) = asks["tasks"]
    assert asks["tags"] == task["ansible.builtin.include_role"]["apply"]["tags"] == ["always"]


def test_build_alone_needs_no_head_node(tmp_path: Path) -> None:
    play, hosts = tmp_path / "play.yml", tmp_path / "hosts.yml"
    play.write_text(yaml.safe_dump([*PLAYS[:1], BUILD]))
    hosts.write_text(HOSTS)
    run_playbook(play, hosts, {"llama_cpp_activate": "false"}, limit="node2", tags="llama_cpp")
    for variables, tags in (({}, "llama_cpp"), ({"llama_cpp_activate": "false"}, None)):
        with pytest.raises(HarnessError, match="--limit must contain the head node"):
            run_playbook(play, hosts, variables, limit="node2", tags=tags)
