"""Plays of site.yml that run whatever ``--tags`` says."""

from pathlib import Path

import pytest
import yaml
from harness.cluster.ansible import run_playbook
from harness.errors import HarnessError
from harness.settings import REPOSITORY
from rich.console import Console

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


def test_each_part_has_its_tag_and_only_checks_run_always() -> None:
    parts = {tag for play in PLAYS for tag in play["tags"]} - {"always"}
    assert parts == {"llama_cpp", "rpc_server", "redis", "node_monitor", "pool", "router"}
    assert all("roles" not in play for play in PLAYS if play["tags"] == ["always"])


@pytest.mark.parametrize("playbook", ["teardown.yml"])
def test_what_takes_away_asks_first(playbook: str) -> None:
    first = yaml.safe_load((REPOSITORY / "playbooks" / playbook).read_text())[0]
    assert first["ansible.builtin.import_playbook"] == "confirm.yml"


@pytest.mark.parametrize("limit", ["node1", None])
def test_nodes_that_a_limit_leaves_out_are_named(limit: str | None, tmp_path: Path) -> None:
    play, hosts = tmp_path / "play.yml", tmp_path / "hosts.yml"
    play.write_text(yaml.safe_dump([BUILD, *PLAYS[-1:]]))
    hosts.write_text(HOSTS)
    with (tmp_path / "said").open("w") as said:
        run_playbook(play, hosts, {}, limit=limit, console=Console(file=said, width=400))
    named = "Left out by --limit: node2." in (tmp_path / "said").read_text()
    assert named == (limit is not None)


PIN = [
    {
        "hosts": "all",
        "gather_facts": False,
        "vars": {"llama_cpp_build": 6751, "llama_cpp_activate": "true"},
        "tasks": [
            {
                "name": "Compare",
                "ansible.builtin.include_tasks": str(REPOSITORY / "roles/llama_cpp/tasks/pin.yml"),
            },
        ],
    }
]
STALE, RUNS = ["llama-rpc-server.service"], "/opt/llama.cpp/6700-debian12-x86_64-cpu"


def nodes(*infos: dict[str, object]) -> str:
    """An inventory of nodes whose probe found this."""
    hosts = {f"node{number}": {"_llama_cpp_info": info} for number, info in enumerate(infos, start=1)}
    local = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
    return yaml.safe_dump({"all": {"vars": local, "hosts": hosts}})


def compare(tmp_path: Path, infos: list[dict[str, object]], **variables: str) -> None:
    play, hosts = tmp_path / "play.yml", tmp_path / "hosts.yml"
    play.write_text(yaml.safe_dump(PIN))
    hosts.write_text(nodes(*infos))
    run_playbook(play, hosts, dict(variables))


def test_another_pin_is_refused_where_services_run(tmp_path: Path) -> None:
    new: dict[str, object] = {"current": None, "stale_units": []}
    old: dict[str, object] = {"current": RUNS, "stale_units": STALE}
    message = r"node[12]: .*build: node2 6700-debian12.*upgrade.yml -e llama_cpp_build=6751"
    with pytest.raises(HarnessError, match=message):
        compare(tmp_path, [new, old])
    compare(tmp_path, [new, old], llama_cpp_activate="false")


@pytest.mark.parametrize(
    "info",
    [
        {"current": None, "stale_units": []},
        {"current": RUNS, "stale_units": []},
        {"current": "/opt/llama.cpp/6751-debian12-x86_64-cpu", "stale_units": STALE},
    ],
    ids=["bare host", "services stopped", "switch cut before the restart"],
)
def test_pin_is_no_reason_for_refusal(info: dict[str, object], tmp_path: Path) -> None:
    compare(tmp_path, [info])
