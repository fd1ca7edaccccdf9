"""Redis on the head node and the live view over it, on real machines."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.contracts.plan import LoadRequest
from harness.router_client.client import RouterClient, router_address
from harness.settings import state_dir
from tests.lab.lab_under_test import LabUnderTest

pytestmark = pytest.mark.lab

PORT = 6379
HARNESS = str(Path(sys.executable).with_name("harness"))
PYTHON = "/opt/llama-harness/venv/bin/python"
# On a node, with the client of the monitor: what Redis says to somebody without a password.
ASK = """
import redis, sys
try:
    print(redis.Redis(sys.argv[1], protocol=2).ping())
except redis.AuthenticationError as error:
    print("refused:", error)
"""
# On a node, with the user of its monitor: what Redis says to a sample of this node, and of another one.
WRITE = """
import json, redis
from harness.monitor.redis import RedisSettings, connection_options, latest_key
settings = RedisSettings.model_validate(json.load(open("/etc/llama-harness/monitor.json"))["redis"])
client = redis.Redis(**connection_options(settings))
for node in ("node1", "node2"):
    try:
        print(node, client.set(latest_key(node), "hello", px=1000))
    except redis.exceptions.NoPermissionError as error:
        print(node, "refused:", error)
"""
View = dict[str, Any]


def watch(lab: LabUnderTest) -> View:
    """One look of ``harness watch --json``."""
    argv = [HARNESS, "watch", "--json", "--inventory", str(lab.path)]
    found = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    assert isinstance(found, dict)
    return found


def node(view: View, name: str) -> View:
    return next(one for one in view["nodes"] if one["name"] == name)


def watch_until(lab: LabUnderTest, what: str, true: Callable[[View], bool]) -> View:
    end = time.monotonic() + 60
    while not true(view := watch(lab)):
        assert time.monotonic() < end, f"never seen: {what}; last: {json.dumps(view, indent=1)}"
        time.sleep(0.5)
    return view


@pytest.fixture
def loaded(deployed: LabUnderTest, models: None) -> Iterator[None]:
    """A model over every backend."""

    async def load() -> None:
        async with RouterClient(router_address(deployed.inventory)) as router:
            await router.load(LoadRequest(model="1b-q8_0"))

    async def unload() -> None:
        async with RouterClient(router_address(deployed.inventory)) as router:
            await router.unload()

    asyncio.run(load())
    yield
    asyncio.run(unload())


def test_redis_listens_on_the_head_nodes_address_alone(deployed: LabUnderTest) -> None:
    head = deployed.inventory.head
    listening = deployed.run(head.name, "ss", "-Hltn", f"sport = :{PORT}").stdout.split()
    assert listening[3] == f"{head.address}:{PORT}"
    assert len(listening) == 5
    for other in set(deployed.inventory.nodes) - {head.name}:
        assert deployed.run(other, "ss", "-Hltn", f"sport = :{PORT}").stdout == ""


def test_redis_runs_in_a_sandbox(deployed: LabUnderTest) -> None:
    head = deployed.inventory.head.name
    said = deployed.run(head, "systemd-analyze", "security", "--no-pager", "llama-redis.service").stdout
    assert float(said.splitlines()[-1].split(": ")[1].split()[0]) <= 1.2


def test_node_without_a_password_is_refused(deployed: LabUnderTest) -> None:
    said = deployed.run("node1", PYTHON, "-c", ASK, deployed.inventory.head.address).stdout
    assert said.startswith("refused:")


def test_monitor_may_write_the_samples_of_its_own_node_alone(deployed: LabUnderTest) -> None:
    own, other = deployed.run("node1", PYTHON, "-c", WRITE).stdout.splitlines()
    assert own == "node1 True"
    assert other.startswith("node2 refused:")


def test_machine_outside_the_inventory_is_refused_by_the_firewall(deployed: LabUnderTest) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((deployed.inventory.head.address, PORT), timeout=10)


def test_passwords_are_in_nobody_elses_reach(deployed: LabUnderTest) -> None:
    head = deployed.inventory.head.name
    for name in ("redis-monitor-node1.key", "redis-reader.key"):
        kept = state_dir(deployed.path) / name
        assert kept.stat().st_mode & 0o077 == 0
        password = kept.read_text().strip()
        told = deployed.run(
            head, "sh", "-c", "cat /etc/llama-harness/redis.conf; journalctl --no-pager"
        ).stdout
        assert password not in told
    modes = deployed.run(head, "sh", "-c", "stat -c '%a' /etc/llama-harness/*redis*.key").stdout.split()
    assert set(modes) <= {"600", "640"}


def test_watch_shows_every_node_from_redis(deployed: LabUnderTest) -> None:
    view = watch_until(
        deployed,
        "Redis, with the offset of every clock",
        lambda v: v["source"] == "redis" and all(one.get("clock_offset_s") is not None for one in v["nodes"]),
    )
    assert [one["name"] for one in view["nodes"]] == list(deployed.inventory.nodes)
    for one in view["nodes"]:
        assert one["state"] == "idle"
        assert one["memory_total_bytes"] > 0


def test_busy_backends_are_shown_as_busy_with_their_layers(deployed: LabUnderTest, loaded: None) -> None:
    view = watch_until(deployed, "busy", lambda v: all(one["state"] == "busy" for one in v["nodes"]))
    held = [one["share"] for one in view["nodes"]]
    assert held[0]["first_layer"] == 0
    assert held[-1]["last_layer"] == held[-1]["layers_total"] - 1
    assert all(share["model"] == "1b-q8_0" and share["model_bytes"] > 0 for share in held)
    assert view["router"]["phase"] == "ready"


def test_node_whose_monitor_stops_is_silent_until_it_is_back(deployed: LabUnderTest) -> None:
    deployed.run("node1", "systemctl", "stop", "llama-node-monitor")
    try:
        view = watch_until(deployed, "silence", lambda v: node(v, "node1")["state"] == "silent")
        assert node(view, "node1")["age_s"] >= 5
        assert node(view, "node1")["memory_total_bytes"] > 0
        assert node(view, "node2")["state"] == "idle"
    finally:
        deployed.run("node1", "systemctl", "start", "llama-node-monitor")
    watch_until(deployed, "its return", lambda v: node(v, "node1")["state"] == "idle")


def test_watch_goes_on_with_the_rings_while_redis_is_stopped(deployed: LabUnderTest) -> None:
    head = deployed.inventory.head.name
    deployed.run(head, "systemctl", "stop", "llama-redis")
    try:
        view = watch_until(
            deployed,
            "rings",
            lambda v: v["source"] == "rings" and all(n["state"] == "idle" for n in v["nodes"]),
        )
        assert "Redis at" in view["source_problem"]
    finally:
        deployed.run(head, "systemctl", "start", "llama-redis")
    watch_until(deployed, "Redis again", lambda v: v["source"] == "redis" and not v["source_problem"])


def test_redis_role_changes_nothing_the_second_time(deployed: LabUnderTest, tmp_path: Path) -> None:
    play = tmp_path / "redis.yml"
    roles = Path(__file__).parents[2] / "roles" / "redis"
    play.write_text(f"- hosts: head\n  become: true\n  gather_facts: false\n  roles: [{roles}]\n")
    assert deployed.ansible(play).changed_tasks == []
