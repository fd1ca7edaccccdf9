"""The Ansible inventory as the harness sees it: nodes, their groups and how to reach them."""

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.common.text import last_line
from harness.errors import HarnessError
from harness.settings import NODE_RPC_CACHE, RPC_PORT

_REASON = re.compile(r"Failed to parse inventory with '(\w+)' plugin: (.+)")
_PLACE = re.compile(r"^Origin: (\S+:\d+:\d+)$", re.MULTILINE)


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

    @property
    def rpc_cache(self) -> Path:
        """Where the node's rpc-server keeps tensors."""
        base = self.variables.get("rpc_server_cache_dir")
        return Path(str(base)) / "rpc" if base else NODE_RPC_CACHE

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
        # After the inventory's own options, which win: the connection to a node that vanishes ends.
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
        """The same, for what has nothing to do without one; a HarnessError where there is none."""
        if not self.backends:
            raise HarnessError(f"inventory {self.path}: group 'backends' holds no node; nothing was done")
        return self.backends

    def node(self, name: str) -> Node:
        """The node called ``name``; a HarnessError where the inventory has none."""
        try:
            return self.nodes[name]
        except KeyError:
            raise HarnessError(f"no node '{name}' in {self.path}; it has: {', '.join(self.nodes)}") from None


def load_inventory(path: Path) -> Inventory:
    """Read an inventory with Ansible's own reader, so that both see the same variables.

    Raises:
        HarnessError: the inventory is missing, Ansible cannot read it, or it holds no nodes.
    """
    return parse_inventory(path, list_inventory(path))


def list_inventory(path: Path) -> dict[str, Any]:
    """What ``ansible-inventory --list`` prints of an inventory.

    Raises:
        HarnessError: the inventory is missing or Ansible cannot read it.
    """
    if not path.exists():
        raise HarnessError(f"no inventory at {path}; name one with --inventory")
    for file in [path] if path.is_file() else sorted(path.glob("*.y*ml")):
        if not os.access(file, os.X_OK):  # a program prints an inventory
            _check_text(file)
    listed = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-inventory")), "-i", str(path), "--list"],
        capture_output=True,
        text=True,
        check=False,
        # Without it, an inventory that cannot be parsed is an empty one.
        env={**os.environ, "ANSIBLE_INVENTORY_UNPARSED_FAILED": "1", "ANSIBLE_NOCOLOR": "1"},
    )
    if listed.returncode != 0:
        raise HarnessError(f"ansible-inventory cannot read {path}: {_parse_error(listed.stderr)}")
    listing: dict[str, Any] = json.loads(listed.stdout)
    return listing


def _check_text(path: Path) -> None:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise HarnessError(f"inventory {path} is not a text file") from None
    except OSError as error:
        raise HarnessError(f"cannot read inventory {path}: {error.strerror}") from None


def _parse_error(output: str) -> str:
    """The reason that Ansible gives, its YAML reader's before another's, and the place in the file."""
    reasons = dict(_REASON.findall(output))
    place = _PLACE.search(output)
    reason = reasons.get("yaml") or next(
        reversed(reasons.values()), last_line(output).removeprefix("[ERROR]: ")
    )
    return f"{reason} ({place[1]})" if place else reason


def parse_inventory(path: Path, listing: dict[str, Any]) -> Inventory:
    """Turn ``ansible-inventory --list`` output into an Inventory; a HarnessError where it holds no hosts."""
    hostvars: dict[str, dict[str, Any]] = listing.get("_meta", {}).get("hostvars", {})

    def members(group: str) -> list[str]:
        entry = listing.get(group, {})
        below = (host for child in entry.get("children", []) for host in members(child))
        return [*entry.get("hosts", []), *below]

    hosts = {group: members(group) for group in ("all", *listing) if group != "_meta"}

    def node(name: str, variables: dict[str, Any]) -> Node:
        groups = frozenset(group for group in hosts if name in hosts[group] and group != "all")
        return Node(name, str(variables.get("ansible_host", name)), groups, variables)

    # Ansible sorts the variables by name; the groups keep the order in which hosts were written.
    nodes = {
        name: node(name, variables)
        for name in dict.fromkeys([*itertools.chain(*hosts.values()), *sorted(hostvars)])
        if (variables := hostvars.get(name, {})).get("ansible_connection") != "local"
    }
    if not nodes:
        raise HarnessError(f"inventory {path} holds no nodes")
    return Inventory(path, nodes)
