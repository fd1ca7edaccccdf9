"""The router as an object in a script: real rpc-servers and llama-server, no port of its own."""

import asyncio
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from harness import HybridRouter, auto_discover_rpc_backends
from harness.errors import HarnessError
from harness.router.sdk import RequestFailedError
from tests.integration.router_stack import RpcServer, free_port, listens, wait_for

pytestmark = pytest.mark.integration
ASK = [{"role": "user", "content": "Say hello."}]


@pytest.fixture(scope="module")
def backends(llama_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RpcServer]]:
    folder = tmp_path_factory.mktemp("hybrid")
    started = [RpcServer(llama_build, folder / f"rpc{n}.log") for n in (0, 1)]
    yield started
    for backend in started:
        backend.kill()


@pytest.fixture
def settings(llama_build: Path, smollm2: Path, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "smollm2.gguf").symlink_to(smollm2)
    return {
        "models_dir": tmp_path,
        "llama_server": str(llama_build / "llama-server"),
        "coordinator_port": free_port(),
        "stop_deadline_s": 5,
    }


def kill_listener(port: int) -> None:
    """SIGKILL whoever listens on a loopback port."""
    shown = subprocess.run(["ss", "-Hltnp", f"sport = :{port}"], capture_output=True, text=True, check=True)
    os.kill(int(shown.stdout.partition("pid=")[2].partition(",")[0]), signal.SIGKILL)


async def test_large_model_is_answered_over_the_backends(
    backends: list[RpcServer], settings: dict[str, Any]
) -> None:
    router = HybridRouter(
        rpc_backends=[{"host": "127.0.0.1", "port": backend.port} for backend in backends],
        debug_coordinator_recovery=True,
        **settings,
    )
    async with router:
        answer = await router.route_request("smollm2", ASK, options={"num_predict": 4, "temperature": 0})
        assert answer["message"]["content"]
        assert answer["eval_count"] == 4
        assert answer["_routing"]["route"] == "coordinator"
        pieces = [piece async for piece in router.stream_request("smollm2", ASK, options={"num_predict": 4})]
        assert pieces[-1]["done"] is True
        assert "".join(piece["message"]["content"] for piece in pieces)
    assert not listens(settings["coordinator_port"])


async def test_router_begins_by_itself_and_survives_the_death_of_its_coordinator(
    backends: list[RpcServer], settings: dict[str, Any]
) -> None:
    router = HybridRouter(rpc_backends=[backend.endpoint for backend in backends], **settings)
    try:
        first = await router.route_request("smollm2", ASK, options={"num_predict": 2, "temperature": 0})
        kill_listener(settings["coordinator_port"])
        again = await router.route_request("smollm2", ASK, options={"num_predict": 2, "temperature": 0})
        assert again["message"] == first["message"]
    finally:
        await router.close()


async def test_first_requests_at_once_start_one_router(
    backends: list[RpcServer], settings: dict[str, Any]
) -> None:
    router = HybridRouter(rpc_backends=[backends[0].endpoint], **settings)
    try:
        asked = [router.route_request("smollm2", ASK, options={"num_predict": 1}) for _ in range(5)]
        assert [answer["done"] for answer in await asyncio.gather(*asked)] == [True] * 5
    finally:
        await router.close()
    assert not listens(settings["coordinator_port"])


async def test_backend_in_use_is_not_connected_to(
    backends: list[RpcServer], settings: dict[str, Any]
) -> None:
    async with HybridRouter(rpc_backends=[backends[0].endpoint], **settings) as router:
        await router.route_request("smollm2", ASK, options={"num_predict": 1})
        with pytest.raises(HarnessError, match=r"is in use: a process of this machine is connected"):
            await HybridRouter(rpc_backends=[backends[0].endpoint], **settings).start()


async def test_unknown_model_is_an_error_that_names_the_known_ones(
    backends: list[RpcServer], settings: dict[str, Any]
) -> None:
    async with HybridRouter(rpc_backends=[backends[0].endpoint], **settings) as router:
        with pytest.raises(RequestFailedError, match="model 'nobody' not found") as refused:
            await router.route_request("nobody", ASK)
        assert refused.value.status == 404


async def test_backend_that_does_not_answer_is_named(settings: dict[str, Any]) -> None:
    closed = free_port()
    with pytest.raises(HarnessError, match=rf"backend 127.0.0.1:{closed} does not say its memory"):
        await HybridRouter(rpc_backends=[f"127.0.0.1:{closed}"], **settings).start()


async def test_discovered_backends_can_be_given_as_they_are(
    backends: list[RpcServer], settings: dict[str, Any], tmp_path: Path
) -> None:
    found = auto_discover_rpc_backends(["127.0.0.1"], config=tmp_path / "none.json", port=backends[0].port)
    async with HybridRouter(rpc_backends=found, **settings) as router:
        answer = await router.route_request("smollm2", ASK, options={"num_predict": 1})
        assert answer["done"] is True


async def test_client_that_stops_reading_frees_the_coordinator(
    backends: list[RpcServer], settings: dict[str, Any]
) -> None:
    async with HybridRouter(rpc_backends=[backends[0].endpoint], **settings) as router:
        pieces = router.stream_request("smollm2", ASK, options={"num_predict": 400, "temperature": 0})
        async for _ in pieces:
            break
        await pieces.aclose()  # type: ignore[attr-defined]
        answer = await asyncio.wait_for(router.route_request("smollm2", ASK, options={"num_predict": 1}), 30)
        assert answer["done"] is True


def loaded(port: int) -> bool:
    """Whether a llama-server has loaded its model."""
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
        return bool(answer.status == 200)
    return False


@pytest.fixture
def ollama_port(llama_build: Path, smollm2: Path, tmp_path: Path) -> Iterator[int]:
    """A double of Ollama: its /api is answered from a real llama-server."""
    pool, double = free_port(), free_port()
    key = tmp_path / "pool.key"
    key.write_text("a-key-of-the-pool-server")
    commands = (
        [
            *(str(llama_build / "llama-server"), "-m", str(smollm2), "--alias", "tiny", "-c", "512"),
            *("--host", "127.0.0.1", "--port", str(pool), "--api-key-file", str(key)),
            *("--no-webui", "--jinja"),
        ],
        [
            *(sys.executable, str(Path(__file__).with_name("ollama_double.py")), str(double)),
            *(f"http://127.0.0.1:{pool}", key.read_text()),
        ],
    )
    quiet = subprocess.DEVNULL
    processes = [subprocess.Popen(command, stdout=quiet, stderr=quiet) for command in commands]
    wait_for(lambda: listens(double) and loaded(pool), 30, "pool")
    yield double
    for process in processes:
        process.kill()
        process.wait(10)


async def test_ollama_server_of_the_pool_is_asked(ollama_port: int, settings: dict[str, Any]) -> None:
    async with HybridRouter(ollama_pool=[f"127.0.0.1:{ollama_port}"], **settings) as router:
        answer = await router.route_request("ollama-tiny", ASK, options={"num_predict": 2})
        assert answer["_routing"]["route"] == "pool"
        assert answer["done"] is True
