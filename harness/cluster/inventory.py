"""The Ansible inventory as the harness sees it: nodes, their groups and how to reach them."""

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.settings import RPC_PORT


@dataclass(frozen=True)
class Node:
    """A machine in the inventory."""

    name: str
    address: str
    """``ansible_host``: the address that the node's services bind (an IPv4 literal)."""
    groups: frozenset[str]
    variables: dict[str, Any] = field(repr=False, compare=False)

    @property
    def rpc_endpoint(self) -> str:
        """``address:port`` of the node's rpc-server."""
        return f"{self.address}:{self.variables.get('rpc_server_port', RPC_PORT)}"

    def ssh(self, *argv: str, root: bool = False) -> list[str]:
        """Command line that runs ``argv`` on this node over SSH, as Ansible would reach it.

        Args:
            root: as the superuser; a user who is not root needs sudo without a password, as for Ansible.
        """
        v = self.variables
        command = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]
        if key := v.get("ansible_ssh_private_key_file"):
            command += ["-i", str(key)]
        if port := v.get("ansible_port"):
            command += ["-p", str(port)]
        command += shlex.split(str(v.get("ansible_ssh_common_args", "")))
        # After the inventory's own, which win: a node that vanishes ends the connection all the same.
        command += ["-o", "ServerAliveInterval=15"]
        user = v.get("ansible_user", "root")
        if root and user != "root":
            argv = ("sudo", "-n", *argv)
        return [*command, f"{user}@{self.address}", shlex.join(argv)]


@dataclass(frozen=True)
class Inventory:
    """Nodes by name, in the inventory's order, and the roles that groups give them."""

    path: Path
    nodes: dict[str, Node]

    def group(self, name: str) -> list[Node]:
        """Nodes of one group; empty where the inventory has no such group."""
        return [node for node in self.nodes.values() if name in node.groups]

    @property
    def head(self) -> Node:
        """The node that runs the router and the coordinator.

        Raises:
            HarnessError: the group ``head`` does not hold exactly one node.
        """
        heads = self.group("head")
        if len(heads) != 1:
            raise HarnessError(
                f"inventory {self.path}: group 'head' holds {len(heads)} nodes; it must hold exactly one"
            )
        return heads[0]

    @property
    def backends(self) -> list[Node]:
        """Nodes that run rpc-server."""
        return self.group("backends")

    def some_backends(self) -> list[Node]:
        """The same, where there is nothing to do without one.

        Raises:
            HarnessError: the inventory has none.
        """
        if not self.backends:
            raise HarnessError(f"inventory {self.path}: group 'backends' holds no node; nothing was done")
        return self.backends

    def node(self, name: str) -> Node:
        """The node called ``name``.

        Raises:
            HarnessError: the inventory has no such node.
        """
        try:
            return self.nodes[name]
        except KeyError:
            known = ", ".join(self.nodes)
            raise HarnessError(f"no node '{name}' in {self.path}; it has: {known}") from None


def load_inventory(path: Path) -> Inventory:
    """Read an inventory with Ansible's own reader, so that both see the same variables.

    Raises:
        HarnessError: the inventory is missing or Ansible cannot read it.
    """
    if not path.exists():
        raise HarnessError(f"no inventory at {path}; name one with --inventory")
    tool = Path(sys.executable).with_name("ansible-inventory")
    listed = subprocess.run(
        [str(tool), "-i", str(path), "--list"], capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        last = (listed.stderr.strip().splitlines() or ["no message"])[-1]
        raise HarnessError(f"ansible-inventory cannot read {path}: {last}")
    return parse_inventory(path, json.loads(listed.stdout))


def parse_inventory(path: Path, listing: dict[str, Any]) -> Inventory:
    """Turn ``ansible-inventory --list`` output into an Inventory.

    Raises:
        HarnessError: the inventory holds no hosts.
    """
    hostvars: dict[str, dict[str, Any]] = listing.get("_meta", {}).get("hostvars", {})
    groups: dict[str, set[str]] = {}

    def members(group: str) -> list[str]:
        entry = listing.get(group, {})
        below = [host for child in entry.get("children", []) for host in members(child)]
        return list(dict.fromkeys([*entry.get("hosts", []), *below]))

    for group in listing:
        if group not in ("_meta", "all"):
            for host in members(group):
                groups.setdefault(host, set()).add(group)
    # Ansible sorts the variables by name; the groups keep the order in which hosts were written.
    ordered = dict.fromkeys(host for group in ("all", *listing) for host in members(group))
    nodes = {
        name: Node(name, str(variables.get("ansible_host", name)), frozenset(groups.get(name, ())), variables)
        for name in dict.fromkeys([*ordered, *sorted(hostvars)])
        if (variables := hostvars.get(name, {})).get("ansible_connection") != "local"
    }
    if not nodes:
        raise HarnessError(f"inventory {path} holds no nodes")
    return Inventory(path, nodes)
