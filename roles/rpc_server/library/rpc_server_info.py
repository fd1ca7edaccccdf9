"""Read-only Ansible module: the state of a node for rpc-server, and the processes that use its port."""

import os
import re
import subprocess
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: rpc_server_info
short_description: Say who listens on a port, what the unit runs and what the node has for it
description:
  - Changes nothing, and reads the socket table instead of connecting: rpc-server serves one client at a time.
options:
  port:
    description: TCP port of rpc-server.
    type: int
    required: true
  binary:
    description: The installed rpc-server.
    type: path
    required: true
  unit:
    description: Its unit.
    type: str
    required: true
  environment:
    description: Variables of the unit.
    type: dict
    default: {}
  packages:
    description: Debian packages to look for.
    type: list
    elements: str
    default: []
"""

RETURN = """
addresses:
  description: IPv4 addresses of the node.
listeners:
  description: Who listens on the port; each with address, pid (0 where unknown) and process.
unit:
  description: ActiveState, SubState, Result, NRestarts and MainPID.
help:
  description: What the binary prints for --help; empty where it does not run.
devices:
  description: Devices that the binary finds, as it names them (CUDA0, CPU); those that the service offers, if
    a full device keeps them from being listed.
offered:
  description: Devices that the unit's main process was started with; empty for its own choice.
running:
  description: Binary of the unit's main process; empty where it does not run.
installed:
  description: The binary behind its links.
missing:
  description: Packages that are not installed.
cores:
  description: Physical cores; hyperthreads count once.
"""

PROPERTIES = "ActiveState,SubState,Result,NRestarts,MainPID"


def output(*argv: str, environment: "dict[str, str] | None" = None) -> tuple[int, str]:
    """Exit status and both streams of a command; 127 where it does not exist."""
    try:
        done = subprocess.run(
            argv,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,  # CUDA starts up slowly on a host of many GPUs without persistence mode
            check=False,
            env={**os.environ, **(environment or {})},
        )
    except (OSError, subprocess.TimeoutExpired):
        return 127, ""
    return done.returncode, done.stdout


def parse_listeners(table: str) -> list[dict[str, object]]:
    """Rows of ``ss -Hltnp``: local address, process and pid."""
    found: list[dict[str, object]] = []
    for row in table.splitlines():
        fields = row.split()
        if len(fields) < 4:
            continue
        who = re.search(r'\("([^"]*)",pid=(\d+)', row)
        found.append(
            {
                "address": fields[3].rpartition(":")[0].partition("%")[0],
                "process": who[1] if who else "unknown",
                "pid": int(who[2]) if who else 0,
            }
        )
    return found


def main_binary(pid: str) -> str:
    """Binary of a process; empty where there is no such process."""
    try:
        return str(Path(f"/proc/{pid}/exe").readlink())
    except OSError:
        return ""


def parse_devices(listing: str) -> list[str]:
    """Names of the devices that rpc-server lists when it is asked for one that does not exist."""
    return re.findall(r"^\s+(\w+): .*\(\d+ MiB, \d+ MiB free\)\s*$", listing, re.M)


def offered_devices(pid: str) -> list[str]:
    """Devices that a process was told to offer; empty for its own choice, or where there is no process."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []
    return words[words.index("--device") + 1].split(",") if "--device" in words[:-1] else []


def missing_packages(packages: list[str]) -> list[str]:
    """Packages that dpkg does not list as installed; all of them where there is no dpkg."""
    if not packages:
        return []
    _, listed = output("dpkg-query", "--show", "--showformat", "${Package} ${Status}\n", *packages)
    installed = {line.split()[0] for line in listed.splitlines() if line.endswith("install ok installed")}
    return [package for package in packages if package not in installed]


def physical_cores(table: str) -> int:
    """Cores in ``lscpu --parse=CORE,SOCKET``, each counted once; 0 where lscpu said nothing."""
    return len({row for row in table.splitlines() if row and not row.startswith("#")})


def main() -> None:
    """Answer with everything at once: one round trip instead of eight."""
    module = AnsibleModule(
        argument_spec={
            "port": {"type": "int", "required": True},
            "binary": {"type": "path", "required": True},
            "unit": {"type": "str", "required": True},
            "environment": {"type": "dict", "default": {}},
            "packages": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    p = module.params
    shown = output("systemctl", "show", f"--property={PROPERTIES}", p["unit"])[1]
    unit = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    helped, text = output(p["binary"], "--help")
    offered = offered_devices(unit.get("MainPID", "0"))
    variables = {name: str(value) for name, value in p["environment"].items()}
    listing = output(p["binary"], "--device", "none", environment=variables)[1] if helped == 0 else ""
    module.exit_json(
        changed=False,
        addresses=re.findall(r"inet (\d+\.\d+\.\d+\.\d+)", output("ip", "-4", "address", "show")[1]),
        listeners=parse_listeners(output("ss", "-Hltnp", f"sport = :{p['port']}")[1]),
        unit=unit,
        help=text if helped == 0 else "",
        devices=parse_devices(listing) or offered,
        offered=offered,
        running=main_binary(unit.get("MainPID", "0")),
        installed=str(Path(p["binary"]).resolve()),
        missing=missing_packages(p["packages"]),
        cores=physical_cores(output("lscpu", "--parse=CORE,SOCKET")[1]),
    )


if __name__ == "__main__":
    main()
