"""Handlers that restart a service and the firewall that it is bound to."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from harness.cluster.ansible import run_playbook
from harness.errors import HarnessError
from harness.settings import REPOSITORY


@pytest.mark.parametrize("role", ["pool_server", "redis", "router", "rpc_server"])
def test_service_that_its_firewall_has_restarted_is_not_restarted_again(role: str) -> None:
    handlers = yaml.safe_load((REPOSITORY / "roles" / role / "handlers" / "main.yml").read_text())
    restarted = {
        module["name"]: handler
        for handler in handlers
        if (module := handler.get("ansible.builtin.systemd_service")) and module.get("state") == "restarted"
    }
    assert list(restarted) == [f"{{{{ _{role}_firewall_unit }}}}", f"{{{{ _{role}_unit }}}}"]
    firewall, service = restarted.values()
    assert firewall["register"] == f"_{role}_firewall_restarted"
    conditions = service["when"] if isinstance(service["when"], list) else [service["when"]]
    assert f"_{role}_firewall_restarted | default({{}}) is not changed" in conditions


NOTIFIED = {"rpc_server": "Restart rpc-server", "llama_cpp": "Run the services on the current build"}
KNOWN: dict[str, Any] = {
    "ansible_connection": "local",
    "ansible_python_interpreter": "{{ ansible_playbook_python }}",
    "_rpc_server_unit": "llama-rpc-server.service",
    "_rpc_server_firewall_unit": "llama-rpc-server-firewall.service",
    "_rpc_server_seen": {"unit": {"MainPID": 1}},
    "_firewall_started": {"changed": False},
    "_llama_cpp_info": {"stale_units": ["llama-rpc-server.service"]},
}


def without_systemd(handler: dict[str, Any], journal: Path, *, fails: bool) -> dict[str, Any]:
    """The handler with doubles of systemctl: a file has the router's state, a restart may fail."""
    double = dict(handler)
    if "ansible.builtin.command" in double:
        double["ansible.builtin.command"] = {"argv": ["true"]}
    if module := double.pop("ansible.builtin.systemd_service", None):
        if module.get("name") == "llama-router.service":
            double["ansible.builtin.copy"] = {"content": module["state"], "dest": str(journal)}
        else:
            double["ansible.builtin.command"] = {"argv": ["false" if fails else "true"]}
    return double


@pytest.mark.parametrize("role", NOTIFIED)
@pytest.mark.parametrize("fails", [False, True], ids=["restarts", "does not restart"])
def test_router_starts_again_whether_the_backend_does_or_not(role: str, fails: bool, tmp_path: Path) -> None:
    journal, play, hosts = tmp_path / "router", tmp_path / "play.yml", tmp_path / "hosts.yml"
    handlers = yaml.safe_load((REPOSITORY / "roles" / role / "handlers" / "main.yml").read_text())
    change = {"ansible.builtin.debug": {}, "changed_when": True, "notify": NOTIFIED[role]}
    play.write_text(
        yaml.safe_dump(
            [
                {
                    "hosts": "node2",
                    "gather_facts": False,
                    "tasks": [change],
                    "handlers": [without_systemd(handler, journal, fails=fails) for handler in handlers],
                }
            ]
        )
    )
    groups = {"all": {"vars": KNOWN, "hosts": {"node2": None}}, "head": {"hosts": {"node1": None}}}
    hosts.write_text(yaml.safe_dump(groups))
    if fails:
        with pytest.raises(HarnessError, match=r"node2: .* did not restart: non-zero return code"):
            run_playbook(play, hosts, {})
    else:
        run_playbook(play, hosts, {})
    assert journal.read_text() == "started"
