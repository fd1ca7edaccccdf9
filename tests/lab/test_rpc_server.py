"""Role rpc_server on real systemd machines: kept running, firewalled, sandboxed, its cache trustworthy."""

import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import testinfra
from harness.cluster.ansible import run_playbook
from harness.errors import HarnessError
from harness.llama.releases.catalogue import catalogue
from harness.llama.rpc.messages import CAPS_BYTES, HEADER_BYTES
from testinfra.host import Host
from tests.lab.lab_under_test import LabUnderTest

HERE = Path(__file__).parent
INVENTORY = HERE / "inventory"
PLAYBOOK = HERE / "rpc_server.yml"
UNIT = "llama-rpc-server.service"
ADDRESSES = {"node1": "10.77.44.11", "node2": "10.77.44.12"}
HEAD, OTHER = "node2", "node1"
PORT = 50052

pytestmark = pytest.mark.lab
SPOKEN = f"protocol {catalogue().release(LabUnderTest(INVENTORY).pin).protocol}"

# Says how a connection went; for the head node, what the backend answers to HELLO.
CONNECT = f"""
import socket, struct, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5) as peer:
        peer.sendall(bytes([14]) + struct.pack("<Q", {CAPS_BYTES}) + bytes({CAPS_BYTES}))
        answer = b""
        while len(answer) < {HEADER_BYTES + 4 + CAPS_BYTES}:
            answer += peer.recv(4096) or sys.exit("closed")
        print("protocol", ".".join(map(str, answer[8:11])))
except OSError as error:
    print(type(error).__name__)
"""


@pytest.fixture(scope="module")
def nodes(deployed: object) -> dict[str, Host]:
    """The lab's nodes with rpc-server deployed."""
    return {name: testinfra.get_host(f"ansible://{name}?ansible_inventory={INVENTORY}") for name in ADDRESSES}


def shown(node: Host, name: str) -> str:
    return node.check_output(f"systemctl show --property={name} --value {UNIT}")


def wait_until(what: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something to become true; a node that does not answer yet counts as not yet."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if what():
                return
        except (RuntimeError, AssertionError, ValueError):
            pass
        time.sleep(0.5)
    raise AssertionError(f"not within {seconds} s")


def serves(node: Host, name: str) -> bool:
    """Active, and its own socket table shows it on its address and nowhere else."""
    rows = node.check_output(f"ss -Hltn 'sport = :{PORT}'").splitlines()
    return shown(node, "ActiveState") == "active" and [r.split()[3] for r in rows] == [
        f"{ADDRESSES[name]}:{PORT}"
    ]


def connect(source: Host, target: str) -> str:
    """What becomes of a connection from one node to another's rpc-server."""
    return str(source.check_output("python3 -c %s %s %s", CONNECT, ADDRESSES[target], str(PORT)))


@pytest.mark.parametrize("name", ADDRESSES)
def test_service_is_enabled_and_listens_on_its_address_alone(nodes: dict[str, Host], name: str) -> None:
    assert nodes[name].service(UNIT).is_enabled
    assert shown(nodes[name], "User") == "llama-rpc"
    assert serves(nodes[name], name)


def test_head_node_is_admitted(nodes: dict[str, Host]) -> None:
    assert connect(nodes[HEAD], OTHER) == SPOKEN


def test_any_other_node_is_refused(nodes: dict[str, Host]) -> None:
    assert connect(nodes[OTHER], HEAD) == "ConnectionRefusedError"


def test_control_machine_is_refused(nodes: dict[str, Host]) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((ADDRESSES[OTHER], PORT), timeout=5)


def test_sandbox_refuses_others_where_the_firewall_is_gone(nodes: dict[str, Host]) -> None:
    """IPAddressAllow= stands on its own: packets of others never reach the process."""
    node, firewall = nodes[HEAD], "llama-rpc-firewall.service"
    node.check_output(f"systemctl kill --signal STOP {firewall}")
    node.check_output("nft delete table inet llama_rpc")
    try:
        said = connect(nodes[OTHER], HEAD)
    finally:
        node.check_output(f"systemctl kill --signal CONT {firewall}")
    assert said == "TimeoutError"
    wait_until(lambda: node.run("nft list table inet llama_rpc").rc == 0, 10)
    assert serves(node, HEAD)


def test_killed_backend_comes_back(nodes: dict[str, Host]) -> None:
    node = nodes[OTHER]
    node.check_output(f"systemctl reset-failed {UNIT}")
    restarts, pid = int(shown(node, "NRestarts")), shown(node, "MainPID")
    node.check_output(f"kill -9 {pid}")
    wait_until(lambda: int(shown(node, "NRestarts")) == restarts + 1 and serves(node, OTHER), 20)
    assert shown(node, "MainPID") != pid


def test_cut_file_is_dropped_after_a_kill_and_good_ones_are_kept(nodes: dict[str, Host]) -> None:
    node = nodes[OTHER]
    cache = "/var/cache/llama.cpp/rpc"
    good, cut = f"{cache}/00000000000000aa", f"{cache}/00000000000000bb"
    node.check_output(f"install -o llama-rpc -g llama-rpc -m 600 /dev/null {good}")
    node.check_output(f"head -c 12000000 /dev/zero > {good}")
    time.sleep(1.5)
    node.check_output(f"install -o llama-rpc -g llama-rpc -m 600 /dev/null {cut}")
    pid = shown(node, "MainPID")
    node.check_output(f"head -c 11000000 /dev/zero > {cut}; kill -9 {pid}")
    wait_until(lambda: shown(node, "MainPID") not in ("0", pid) and serves(node, OTHER), 20)
    try:
        assert node.file(good).exists
        assert not node.file(cut).exists
        said = node.check_output(f"journalctl --unit {UNIT} --lines 40 --no-pager --output cat")
        assert "dropped 00000000000000bb" in said
    finally:
        node.check_output(f"rm -f {good} {cut}")


def test_cache_is_pruned_to_its_cap(nodes: dict[str, Host]) -> None:
    node = nodes[OTHER]
    old, new = "00000000000000aa", "00000000000000bb"
    cache = "/run/rpc-cache-under-test"
    node.check_output(f"mkdir -p {cache}/rpc")
    try:
        for name, age in ((old, "2 hours ago"), (new, "1 hour ago")):
            node.check_output(f"truncate --size 12000000 {cache}/rpc/{name}")
            node.check_output(f"touch --date '{age}' {cache}/rpc/{name}")
        node.check_output(f"/usr/local/lib/llama-rpc-server/rpc_cache.py prune {cache} --max 12000000")
        assert node.check_output(f"ls {cache}/rpc") == new
    finally:
        node.check_output(f"rm -rf {cache}")


def test_pruning_runs_every_hour_in_its_own_sandbox(nodes: dict[str, Host]) -> None:
    assert nodes[OTHER].service("llama-rpc-cache.timer").is_running
    assert nodes[OTHER].run("systemctl start llama-rpc-cache.service").rc == 0


def test_running_service_is_scored_a_full_sandbox(nodes: dict[str, Host]) -> None:
    report = nodes[OTHER].check_output(f"systemd-analyze security --no-pager {UNIT}")
    assert score(report) <= 1.5


@pytest.mark.parametrize(
    ("accelerator", "limit"), [("cpu", 1.5), ("cuda", 1.7), ("rocm", 1.7), ("vulkan", 1.7)]
)
def test_unit_of_each_accelerator_is_scored_a_full_sandbox(
    units: Path, nodes: dict[str, Host], accelerator: str, limit: float
) -> None:
    unit = units / accelerator / UNIT
    report = nodes[HEAD].check_output(f"systemd-analyze security --offline=true --no-pager {unit}")
    assert score(report) <= limit


@pytest.fixture(scope="module")
def units(nodes: dict[str, Host]) -> Path:
    run_playbook(HERE / "rpc_server_unit.yml", INVENTORY)
    return Path("/run/rpc-server-units")


def score(report: str) -> float:
    found = re.search(r"Overall exposure level for \S+: (\d+\.\d+)", report)
    assert found, report
    return float(found[1])


def test_port_held_by_another_process_is_refused_before_anything_changes(nodes: dict[str, Host]) -> None:
    node = nodes[OTHER]
    node.check_output(f"systemctl stop {UNIT}")
    node.check_output(
        f"systemd-run --collect --unit port-holder python3 -m http.server --bind {ADDRESSES[OTHER]} {PORT}"
    )
    try:
        wait_until(lambda: str(PORT) in node.check_output("ss -Hltn"), 10)
        with pytest.raises(HarnessError, match=rf"node1: .*port {PORT} is held by python3 \(pid \d+\)"):
            run_playbook(PLAYBOOK, INVENTORY, limit=OTHER)
        assert shown(node, "ActiveState") == "inactive"
    finally:
        node.run("systemctl stop port-holder.service")
        node.check_output(f"systemctl start {UNIT}")
    wait_until(lambda: serves(node, OTHER))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"rpc_server_address": "node1"}, "binds one IPv4 address of its own node"),
        ({"rpc_server_admitted": []}, "must hold IPv4 addresses of the head node"),
        ({"rpc_server_cache_dir": "/srv/cache"}, "rpc_server_cache_dir must be a folder in /var/cache"),
        ({"rpc_server_binary": "/opt/absent/rpc-server"}, "deploy the role llama_cpp first"),
        ({"rpc_server_accelerator": "abacus"}, "value of rpc_server_accelerator must be one of"),
    ],
)
def test_wrong_variable_is_refused_in_one_line(
    nodes: dict[str, Host], variables: dict[str, object], message: str
) -> None:
    before = {name: shown(node, "MainPID") for name, node in nodes.items()}
    with pytest.raises(HarnessError, match=re.escape(message)):
        run_playbook(PLAYBOOK, INVENTORY, extra_vars=variables, limit=OTHER)
    assert {name: shown(node, "MainPID") for name, node in nodes.items()} == before


def test_router_stops_before_a_backend_restarts_and_comes_back(nodes: dict[str, Host]) -> None:
    """A coordinator would abort otherwise. Where no router is deployed, a unit of that name stands for it."""
    head, node = nodes[HEAD], nodes[OTHER]
    double = "/run/systemd/system/llama-router.service"
    head.check_output(f"printf '[Service]\\nExecStart=/bin/sleep infinity\\n' > {double}")
    head.check_output("systemctl daemon-reload && systemctl start llama-router.service")
    try:
        run_playbook(PLAYBOOK, INVENTORY, extra_vars={"rpc_server_restart_s": 2}, limit=OTHER)
        stopped, started = (
            int(head.check_output(f"systemctl show --property={name} --value llama-router.service"))
            for name in ("InactiveEnterTimestampMonotonic", "ActiveEnterTimestampMonotonic")
        )
        # One computer runs both nodes, so that their clocks are one.
        assert stopped < int(shown(node, "ExecMainStartTimestampMonotonic")) < started
    finally:
        head.check_output(f"rm {double} && systemctl daemon-reload")
        head.run("test -e /etc/systemd/system/llama-router.service || systemctl stop llama-router.service")
        run_playbook(PLAYBOOK, INVENTORY, limit=OTHER)


def test_backend_serves_again_after_a_reboot(nodes: dict[str, Host]) -> None:
    node = nodes[OTHER]
    booted = node.check_output("systemctl show --property=UserspaceTimestamp --value")
    node.run("systemctl reboot")

    def rebooted() -> bool:
        again = node.run("systemctl show --property=UserspaceTimestamp --value")
        return again.rc == 0 and again.stdout.strip() != booted and serves(node, OTHER)

    wait_until(rebooted, 90)
    assert "10.77.44.12" in node.check_output("nft list table inet llama_rpc")
    wait_until(lambda: connect(nodes[HEAD], OTHER) == SPOKEN, 10)
