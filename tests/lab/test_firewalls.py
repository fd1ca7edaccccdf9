"""Firewalls on real machines: what removes them, how they come back, and whom they keep out."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.settings import COORDINATOR_PORT, POOL_PORT, RPC_PORT
from tests.lab.lab_under_test import LabUnderTest

pytestmark = pytest.mark.lab

HEAD, OTHER = "node2", "node1"
TABLES = {
    HEAD: ["llama_pool", "llama_redis", "llama_router", "llama_rpc"],
    OTHER: ["llama_rpc"],
}
RULES = "/usr/local/lib/llama-rpc-firewall/rules.nft"

# Connects again and again until its input ends; prints each outcome once.
KNOCK = """
import select, socket, sys
seen = set()
while not select.select([sys.stdin], [], [], 0)[0]:
    try:
        socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2).close()
        seen.add("connected")
    except OSError as error:
        seen.add(type(error).__name__)
print(*sorted(seen))
"""
KNOCK_ONCE = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5).close()
    print("connected")
except OSError as error:
    print(type(error).__name__)
"""


def loaded(lab: LabUnderTest, node: str) -> list[str]:
    listed = lab.run(node, "nft", "list", "tables").stdout.splitlines()
    return sorted(line.split()[-1] for line in listed if "inet llama_" in line)


def active(lab: LabUnderTest, node: str, unit: str) -> bool:
    return lab.run(node, "systemctl", "is-active", "--quiet", unit, check=False).returncode == 0


def until(what: str, true: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.2)


@pytest.fixture
def system_rules(deployed: LabUnderTest) -> Iterator[None]:
    """The system's own rules are off before and after, as Debian installs them."""
    yield
    for node in TABLES:
        deployed.run(node, "systemctl", "stop", "nftables.service")


@pytest.mark.usefixtures("system_rules")
@pytest.mark.parametrize(
    "removal",
    [
        "nft flush ruleset",
        "systemctl start nftables",
        pytest.param("systemctl start nftables && systemctl reload nftables", marks=pytest.mark.long),
        pytest.param("systemctl restart nftables && systemctl stop nftables", marks=pytest.mark.long),
    ],
)
def test_removed_firewalls_are_back_at_once_and_no_stranger_comes_in(
    deployed: LabUnderTest, removal: str
) -> None:
    pids = ("systemctl", "show", "--property=MainPID", "llama-rpc-server", "llama-redis", "llama-router")
    before = deployed.run(HEAD, *pids).stdout
    address = deployed.inventory.head.address
    argv = deployed.inventory.node(OTHER).ssh("python3", "-c", KNOCK, address, str(RPC_PORT))
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as stranger:
        for _ in range(5):
            deployed.run(HEAD, "systemctl", "reset-failed", "nftables.service")  # its count of starts
            deployed.run(HEAD, "sh", "-c", removal)
            until("the tables are back", lambda: loaded(deployed, HEAD) == TABLES[HEAD], 5)
        outcomes, _ = stranger.communicate("stop\n", timeout=60)
    assert "ConnectionRefusedError" in outcomes
    assert "connected" not in outcomes
    assert deployed.run(HEAD, *pids).stdout == before


def test_service_stops_while_its_firewall_cannot_be_loaded_and_watch_says_so(deployed: LabUnderTest) -> None:
    deployed.run(OTHER, "sh", "-c", f"mv {RULES} {RULES}.away && nft delete table inet llama_rpc")
    try:
        until("it stopped", lambda: not active(deployed, OTHER, "llama-rpc-server"))
        until("watch names it", lambda: "llama-rpc-firewall.service" in watch(deployed)["reason"])
        assert watch(deployed)["missing_firewalls"] == ["llama-rpc-firewall.service"]
    finally:
        deployed.run(OTHER, "mv", f"{RULES}.away", RULES)
    until("it serves again", lambda: active(deployed, OTHER, "llama-rpc-server"))
    assert loaded(deployed, OTHER) == TABLES[OTHER]
    until("watch has forgotten it", lambda: watch(deployed)["state"] == "idle")


def watch(lab: LabUnderTest) -> dict[str, Any]:
    """The row of the other node in ``harness watch --json``."""
    argv = [str(Path(sys.executable).with_name("harness")), "watch", "--json", "--inventory", str(lab.path)]
    view = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    row = next(node for node in view["nodes"] if node["name"] == OTHER)
    assert isinstance(row, dict)
    return row


def test_killed_keeper_leaves_the_table_and_all_runs_again(deployed: LabUnderTest) -> None:
    deployed.run(OTHER, "systemctl", "kill", "--signal", "KILL", "llama-rpc-firewall.service")
    assert loaded(deployed, OTHER) == TABLES[OTHER]
    for unit in ("llama-rpc-firewall", "llama-rpc-server"):
        until(f"{unit} runs again", lambda unit=unit: active(deployed, OTHER, unit))  # type: ignore[misc]
    # systemd notices the end after the look above, and stops and starts the service.
    until("it listens", lambda: str(RPC_PORT) in deployed.run(OTHER, "ss", "-Hltn").stdout)


@pytest.mark.long
def test_disabled_service_does_not_start_with_its_firewall(deployed: LabUnderTest) -> None:
    deployed.run(OTHER, "systemctl", "disable", "--now", "llama-rpc-server")
    try:
        deployed.run(OTHER, "systemctl", "restart", "llama-rpc-firewall")
        assert not active(deployed, OTHER, "llama-rpc-server")
    finally:
        assert deployed.ansible("site.yml", limit=f"{OTHER},{HEAD}").changed_tasks
    assert active(deployed, OTHER, "llama-rpc-server")


def connect(lab: LabUnderTest, user: str, address: str, port: int) -> str:
    """Outcome of a connection from the head node by one of its users."""
    program = ("/usr/bin/python3", "-c", KNOCK_ONCE, address, str(port))
    return lab.run(
        HEAD, "setpriv", f"--reuid={user}", "--regid=nogroup", "--clear-groups", *program
    ).stdout.strip()


@pytest.mark.parametrize("user", ["nobody", "llama-monitor"])
def test_no_other_user_of_the_head_node_reaches_backends_and_coordinator(
    deployed: LabUnderTest, user: str
) -> None:
    holder = ("systemd-run", "--quiet", "--collect", "--unit=port-holder", "python3", "-m", "http.server")
    deployed.run(HEAD, *holder, "--bind", "127.0.0.1", str(COORDINATOR_PORT))
    targets = [(node.address, RPC_PORT) for node in deployed.inventory.backends]
    targets.append(("127.0.0.1", COORDINATOR_PORT))
    try:
        until("it listens", lambda: str(COORDINATOR_PORT) in deployed.run(HEAD, "ss", "-Hltn").stdout)
        for address, port in targets:
            assert connect(deployed, user, address, port) == "ConnectionRefusedError"
            assert connect(deployed, "llama-router", address, port) == "connected"
            assert connect(deployed, "root", address, port) == "connected"
    finally:
        deployed.run(HEAD, "systemctl", "stop", "port-holder")


def test_pool_is_closed_for_strangers_and_open_for_the_router(deployed: LabUnderTest) -> None:
    address = deployed.inventory.head.address
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, POOL_PORT), timeout=5)
    said = deployed.run(OTHER, "python3", "-c", KNOCK_ONCE, address, str(POOL_PORT)).stdout
    assert said.strip() == "ConnectionRefusedError"
    assert connect(deployed, "llama-router", address, POOL_PORT) == "connected"


@pytest.mark.parametrize("name", ["rpc", "redis", "pool", "router"])
def test_firewalls_unit_has_one_right_and_a_full_sandbox(deployed: LabUnderTest, name: str) -> None:
    unit = f"llama-{name}-firewall.service"
    said = deployed.run(HEAD, "systemd-analyze", "security", "--no-pager", unit).stdout
    assert float(said.splitlines()[-1].split(": ")[1].split()[0]) <= 1.5
    pid = deployed.run(HEAD, "systemctl", "show", "--property=MainPID", "--value", unit).stdout.strip()
    status = dict(
        line.split(":\t", 1) for line in deployed.run(HEAD, "cat", f"/proc/{pid}/status").stdout.splitlines()
    )
    assert int(status["CapBnd"], 16) == 1 << 12  # CAP_NET_ADMIN
    assert status["Uid"].split()[0] != "0"
