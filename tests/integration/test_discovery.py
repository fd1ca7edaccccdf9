"""Discovery with real rpc-servers: idle, busy with a real coordinator, stopped, gone; and what is none."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import auto_discover_rpc_backends
from harness.llama.releases.catalogue import installed_release
from harness.llama.rpc.client import BackendStatus
from harness.llama.rpc.discovery import Candidate, probe
from harness.llama.rpc.messages import Version
from harness.router.nodes.discovery import find_backends
from tests.integration.router_stack import RpcServer, free_port, listens, wait_for

pytestmark = pytest.mark.integration


@pytest.fixture
def backend(llama_build: Path, tmp_path: Path) -> Iterator[RpcServer]:
    server = RpcServer(llama_build, tmp_path / "rpc.log")
    yield server
    server.kill()


@pytest.fixture
def coordinator(llama_build: Path, smollm2: Path, backend: RpcServer, tmp_path: Path) -> Iterator[int]:
    """A llama-server with its layers on ``backend``; its port."""
    port = free_port()
    command = [
        *(str(llama_build / "llama-server"), "-m", str(smollm2), "--rpc", backend.endpoint),
        *("-ngl", "99", "--device", "RPC0", "--cache-ram", "0", "-c", "256", "--no-webui"),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, restore_signals=False)
    wait_for(lambda: answers(port), 60, "coordinator")
    yield port
    process.terminate()
    process.wait(20)


def answers(port: int) -> bool:
    """Whether the coordinator gives a token, which takes its backend."""
    asked = subprocess.run(
        [
            *("curl", "-sf", "-m", "30", f"http://127.0.0.1:{port}/completion"),
            *("-d", json.dumps({"prompt": "a", "n_predict": 1})),
        ],
        capture_output=True,
        check=False,
    )
    return asked.returncode == 0 and "content" in json.loads(asked.stdout)


@pytest.fixture(scope="module")
def spoken(llama_build: Path) -> Version:
    """The pinned build's protocol."""
    release = installed_release(llama_build / "llama-server")
    assert release
    return Version.parse(release.protocol)


async def test_idle_backend_tells_its_protocol_and_its_memory(backend: RpcServer, spoken: Version) -> None:
    for _ in range(3):
        found = await probe("127.0.0.1", backend.port, expected=spoken)
        assert (found.status, found.info and found.info.version) == (BackendStatus.IDLE, spoken)
        assert found.info
        assert len(found.info.devices) == 1
        assert found.info.devices[0].total_bytes > 1 << 30
        assert found.info.free_bytes <= found.info.total_bytes
    assert backend.process.poll() is None


async def test_backend_of_a_running_coordinator_is_busy_without_being_touched(
    backend: RpcServer, coordinator: int
) -> None:
    known = [Candidate("127.0.0.1", backend.port, "node1")]
    accepted = backend.log.read_bytes().count(b"Accepted client connection")
    (found,) = await find_backends(known, in_use={})
    assert (found.status, found.node) == (BackendStatus.BUSY, "node1")
    assert found.reason == "a process of this machine is connected to it"
    assert answers(coordinator)
    assert backend.log.read_bytes().count(b"Accepted client connection") == accepted


async def test_busy_backend_that_is_asked_by_a_stranger_survives_it_and_is_called_busy(
    backend: RpcServer, coordinator: int
) -> None:
    found = await probe("127.0.0.1", backend.port, reply_s=0.3)
    assert found.status is BackendStatus.BUSY
    assert "sent nothing for 0.3 s" in found.reason
    assert answers(coordinator)


async def test_stopped_backend_is_not_called_idle_nor_closed(backend: RpcServer) -> None:
    backend.signal(signal.SIGSTOP)
    try:
        found = await probe("127.0.0.1", backend.port, reply_s=0.3)
    finally:
        backend.signal(signal.SIGCONT)
    assert found.status is BackendStatus.BUSY
    assert "or is stopped" in found.reason
    again = await probe("127.0.0.1", backend.port)
    assert again.status is BackendStatus.IDLE
    backend.kill()
    assert (await probe("127.0.0.1", backend.port)).status is BackendStatus.CLOSED


@pytest.fixture
def web_server(tmp_path: Path) -> Iterator[int]:
    """A listener that is no rpc-server and waits for the rest of a request; its port."""
    port = free_port()
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "-d", str(tmp_path), str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        wait_for(lambda: listens(port), 20, "http server")
        yield port
        server.kill()


async def test_service_that_says_nothing_to_a_hello_is_never_called_idle(web_server: int) -> None:
    found = await probe("127.0.0.1", web_server, reply_s=0.3)
    assert (found.status, found.info) == (BackendStatus.BUSY, None)


async def test_backend_of_another_protocol_is_named_with_its_memory(
    protocol_2_build: Path, tmp_path: Path
) -> None:
    server = RpcServer(protocol_2_build, tmp_path / "rpc.log")
    try:
        found = await probe("127.0.0.1", server.port, expected=Version(3, 0, 0))
    finally:
        server.kill()
    assert found.status is BackendStatus.WRONG_VERSION
    assert found.reason == "speaks protocol 2.0.0, our coordinator 3.0.0"
    assert found.info
    assert found.info.total_bytes > 1 << 30


async def test_script_finds_idle_backends_in_a_network_from_inside_its_own_loop(
    llama_build: Path, backend: RpcServer, spoken: Version, tmp_path: Path
) -> None:
    config: dict[str, Any] = {
        "address": "127.0.0.1",
        "llama_server": str(llama_build / "llama-server"),
        "backends": [{"node": "node1", "endpoint": f"127.0.0.1:{free_port()}", "memory_bytes": 1 << 30}],
    }
    path = tmp_path / "router.json"
    path.write_text(json.dumps(config))
    found = auto_discover_rpc_backends(["127.0.0.0/22"], config=path, port=backend.port)
    assert [(one["host"], one["port"], one["version"]) for one in found] == [
        ("127.0.0.1", backend.port, str(spoken))
    ]
