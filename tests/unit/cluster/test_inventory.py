"""The inventory as the harness sees it: order, groups, and the way to a node."""

from pathlib import Path

import pytest
from harness.cluster.inventory import Inventory, parse_inventory
from harness.errors import HarnessError


def inventory(**variables: str) -> Inventory:
    hosts = {name: {"ansible_host": "10.0.0.1", **variables} for name in ("node10", "node2", "node9")}
    listing = {
        "_meta": {"hostvars": hosts},
        "all": {"children": ["ungrouped", "backends", "head"]},
        "backends": {"hosts": ["node2", "node9", "node10"]},
        "head": {"hosts": ["node9"]},
    }
    return parse_inventory(Path("inventory"), listing)


def test_nodes_keep_the_order_in_which_they_were_written() -> None:
    assert [node.name for node in inventory().backends] == ["node2", "node9", "node10"]
    assert inventory().head.name == "node9"
    assert inventory().node("node9").groups == {"backends", "head"}


def test_root_is_reached_with_sudo_where_the_user_is_another() -> None:
    deploy = inventory(ansible_user="deploy").node("node2")
    assert deploy.ssh("cat", "a b", root=True)[-2:] == ["deploy@10.0.0.1", "sudo -n cat 'a b'"]
    assert deploy.ssh("cat", "a b")[-1] == "cat 'a b'"
    assert inventory(ansible_user="root").node("node2").ssh("cat", root=True)[-1] == "cat"


def test_inventorys_own_ssh_options_come_first() -> None:
    command = inventory(ansible_ssh_common_args="-o ServerAliveInterval=5").node("node2").ssh("true")
    given = [option for option in command if option.startswith("ServerAliveInterval")]
    assert given[0] == "ServerAliveInterval=5"


def test_unknown_node_is_named_with_the_ones_there_are() -> None:
    with pytest.raises(HarnessError, match="no node 'nodeX' in inventory; it has: node2, node9, node10"):
        inventory().node("nodeX")
