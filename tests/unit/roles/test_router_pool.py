"""The pool in the router's configuration, as the role router makes it from the inventory."""

import ast
from typing import Any

import jinja2
import yaml
from harness.router.config import PoolServer
from harness.settings import REPOSITORY


def pool(**inventory: Any) -> list[PoolServer]:
    variables = yaml.safe_load((REPOSITORY / "roles" / "router" / "vars" / "main.yml").read_text())
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701 - no HTML
    environment.filters["combine"] = lambda first, second: first | second
    environment.filters["ansible.builtin.human_to_bytes"] = int
    text = environment.from_string(variables["_router_pool"]).render(
        inventory, _router_key_files=variables["_router_key_files"]
    )
    return [PoolServer.model_validate(server) for server in ast.literal_eval(text.strip())]


def test_only_the_server_that_the_role_deploys_is_judged_by_the_unit_of_its_node() -> None:
    servers = pool(
        groups={"pool": ["node3"]},
        hostvars={"node3": {"ansible_host": "10.0.0.13"}},
        router_pool_servers=[{"node": "node3", "url": "http://10.0.0.13:8000", "models": ["other"]}],
    )
    assert [(server.kind, server.deployed) for server in servers] == [("openai", True), ("openai", False)]
