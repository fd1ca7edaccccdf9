"""Why a unit is as it is, from what its node shows; and what is reported of nodes that cannot be reached."""

import json
from pathlib import Path

import pytest
from harness.cluster.inventory import Node
from harness.cluster.node_inspection import LlamaProcess, NodeInspection, RpcConnection
from harness.cluster.unit_inspection import diagnose_units, last_end, unit_inputs
from harness.contracts.diagnosis import ExitStatus
from harness.diagnosis.classify import classify
from harness.errors import HarnessError

NODE = Node("node1", "10.0.0.1", frozenset({"backends"}), {})
OTHER = Node("node2", "10.0.0.2", frozenset({"backends"}), {})
RUNNING = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "SubState": "running",
    "NRestarts": "0",
    "MainPID": "7",
}
CONNECTION = RpcConnection(
    local=NODE.rpc_endpoint,
    peer="10.0.0.9:4000",
    unread_bytes=0,
    waiting_bytes=0,
    since_sent_s=4.0,
    since_acknowledged_s=4.0,
)


def inspection(
    state: str = "S",
    journal: list[str] | None = None,
    connections: list[RpcConnection] | None = None,
    **properties: str,
) -> NodeInspection:
    return NodeInspection(
        processes=[LlamaProcess(program="rpc-server", pid=7, state=state, cpu_s=9, used_s=0, build=None)],
        connections=connections or [],
        cache=None,
        unit=RUNNING | properties,
        installed_build="6751 (01d2bdc2b)",
        journal=journal or [],
    )


def unit_class(node: NodeInspection) -> str:
    return classify(
        unit_inputs(NODE, "llama-rpc-server.service", node, {"node1": "6751"})
    ).failure_class.value


def test_healthy_unit_has_nothing_against_it() -> None:
    assert unit_class(inspection()) == "unknown"


def test_unit_stopped_with_a_coordinator_connected_is_stalled() -> None:
    assert unit_class(inspection(state="T", connections=[CONNECTION])) == "backend_stalled"
    assert unit_class(inspection(state="T")) == "unknown"


JOURNAL = [
    "node1 systemd[1]: Started llama-rpc-server.service.",
    "node1 llama-rpc-server[7]: GGML_ASSERT(old) failed",
    "node1 systemd[1]: llama-rpc-server.service: Main process exited, code=dumped, status=6/ABRT",
    "node1 systemd[1]: Started llama-rpc-server.service.",
    "node1 llama-rpc-server[8]: Accepted client connection",
    "node1 systemd[1]: llama-rpc-server.service: Main process exited, code=killed, status=9/KILL",
    "node1 systemd[1]: llama-rpc-server.service: Failed with result 'oom-kill'.",
    "node1 systemd[1]: Started llama-rpc-server.service.",
    "node1 llama-rpc-server[9]: Starting RPC server v3.0.0",
]


def test_only_the_last_process_that_ended_is_considered() -> None:
    lines, ended = last_end(JOURNAL)
    assert (lines, ended) == (JOURNAL[3:7], ExitStatus(time_ns=0, signal=9))


def test_restarted_unit_is_diagnosed_by_its_last_end() -> None:
    assert unit_class(inspection(journal=JOURNAL, NRestarts="2")) == "oom_killed"


def test_failed_unit_is_diagnosed_by_its_properties() -> None:
    failed = {"ActiveState": "failed", "ExecMainCode": "2", "ExecMainStatus": "13", "Result": "signal"}
    assert unit_class(inspection(**failed)) == "sigpipe"


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for ssh: prints the file named after the address, or fails as ssh does where there is none."""
    program = tmp_path / "ssh"
    program.write_text(
        '#!/bin/sh\nfor word; do case "$word" in root@*) address=${word#root@};; esac; done\n'
        f'cat > /dev/null; cat {tmp_path}/"$address" 2>/dev/null && exit 0\n'
        'echo "ssh: connect to host $address port 22: No route to host" >&2; exit 255\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


@pytest.mark.usefixtures("ssh")
async def test_nodes_that_cannot_be_reached_are_not_listed_as_without_the_unit() -> None:
    with pytest.raises(HarnessError, match=r"node1 .* No route to host.*node2 .* No route to host") as raised:
        await diagnose_units([NODE, OTHER], "llama-rpc-server")
    assert "no unit" not in str(raised.value)


async def test_node_without_the_unit_is_listed_beside_the_node_that_cannot_be_reached(ssh: Path) -> None:
    absent = inspection(LoadState="not-found")
    (ssh / NODE.address).write_text(absent.model_dump_json())
    with pytest.raises(
        HarnessError, match=r"no unit llama-rpc-server\.service on node1; node2 .* No route to host"
    ):
        await diagnose_units([NODE, OTHER], "llama-rpc-server")


async def test_node_that_cannot_be_reached_is_named_beside_the_diagnosis_of_another(ssh: Path) -> None:
    (ssh / NODE.address).write_text(json.dumps(inspection().model_dump()))
    warnings: list[str] = []
    (diagnosis,) = await diagnose_units([NODE, OTHER], "llama-rpc-server", warnings.append)
    assert (diagnosis.node, diagnosis.state) == ("node1", "active (running)")
    assert len(warnings) == 1
    assert "node2 (10.0.0.2) cannot be reached over SSH" in warnings[0]
