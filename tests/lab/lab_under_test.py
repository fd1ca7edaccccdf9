"""A lab as the tests use it: its inventory, commands on its nodes, playbooks against it."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import testinfra
import testinfra.host
from harness.cluster.ansible import PlaybookResult, run_playbook
from harness.cluster.inventory import Inventory, load_inventory
from harness.settings import PLAYBOOKS

LABS = Path("/var/lib/llama-harness/labs")


def missing() -> str | None:
    """Why no lab can be booted here; None where it can."""
    if os.geteuid() != 0:
        return "lab tests boot systemd machines: they need root"
    tools = [tool for tool in ("systemd-nspawn", "mmdebstrap") if shutil.which(tool) is None]
    return f"lab tests boot systemd machines: {', '.join(tools)} not found" if tools else None


@dataclass(frozen=True)
class LabUnderTest:
    """A lab, by the path of its inventory."""

    path: Path

    @cached_property
    def inventory(self) -> Inventory:
        return load_inventory(self.path)

    @property
    def name(self) -> str:
        return str(next(iter(self.inventory.nodes.values())).variables["lab_node_lab"])

    @property
    def pin(self) -> int:
        """Build number of the pinned llama.cpp."""
        return int(self.inventory.head.variables["llama_cpp_build"])

    @property
    def folder(self) -> Path:
        """The lab's state on this computer."""
        return LABS / self.name

    def run(
        self, node: str, *argv: str, check: bool = True, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run ``argv`` on a node over SSH; with ``check`` a failure shows what the node said."""
        done = subprocess.run(
            self.inventory.node(node).ssh(*argv),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check:
            assert done.returncode == 0, (
                f"{node}: {argv} ended with {done.returncode}: {done.stderr or done.stdout}"
            )
        return done

    def host(self, node: str) -> testinfra.host.Host:
        """The node for testinfra, over the same SSH."""
        variables = self.inventory.node(node).variables
        return testinfra.get_host(
            f"ssh://root@{self.inventory.node(node).address}",
            ssh_identity_file=variables["ansible_ssh_private_key_file"],
            ssh_extra_args=variables["ansible_ssh_common_args"],
        )

    def ansible(
        self, playbook: str | Path, /, *, limit: str | None = None, check: bool = False, **extra_vars: Any
    ) -> PlaybookResult:
        """Run a playbook (a name in playbooks/, or a path) against the lab."""
        return run_playbook(PLAYBOOKS / playbook, self.path, extra_vars, limit, f"{self.name}", check)

    def up(self) -> PlaybookResult:
        return self.ansible("lab.yml")

    def down(self) -> PlaybookResult:
        return self.ansible("lab.yml", lab_node_state="absent")
