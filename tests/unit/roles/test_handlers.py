"""Handlers that restart a service and the firewall that it is bound to."""

import pytest
import yaml
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
