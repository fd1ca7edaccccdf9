"""Where things are on the control machine."""

from pathlib import Path

import pytest
import yaml
from harness.cluster.ansible import run_playbook
from harness.settings import REPOSITORY, state_dir


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMA_HARNESS_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def test_inventories_of_one_name_do_not_share_a_folder(tmp_path: Path, state: Path) -> None:
    one, other = tmp_path / "a" / "inventory", tmp_path / "b" / "inventory"
    for folder in (one, other):
        folder.mkdir(parents=True)
        (folder / "hosts.yml").touch()
    assert state_dir(one) != state_dir(other)
    assert state_dir(one) == state_dir(one / "hosts.yml")
    assert state_dir(one).parent == state
    assert state_dir(one).name.startswith("inventory-")


@pytest.mark.usefixtures("state")
def test_roles_keep_keys_where_the_harness_looks_for_them(tmp_path: Path) -> None:
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
    assert run_playbook(tmp_path / "play.yml", tmp_path / "link").ok == {"here": len(roles)}
