"""Two real llama-servers with the same model in the pool: one dies, nobody notices."""

import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from harness import HybridRouter
from harness.router.sdk import RequestFailedError
from tests.integration.router_stack import free_port, listens, wait_for

pytestmark = pytest.mark.integration
ASK = [{"role": "user", "content": "Say hello."}]
FEW = {"num_predict": 2, "temperature": 0}


class PoolServer:
    """A llama-server that can be killed and started again on its port."""

    def __init__(self, binaries: Path, model: Path, key: Path) -> None:
        self.port = free_port()
        self._command = [
            *(str(binaries / "llama-server"), "-m", str(model), "--alias", "tiny", "-c", "512", "--jinja"),
            *("--host", "127.0.0.1", "--port", str(self.port), "--api-key-file", str(key), "--no-webui"),
        ]
        self.config = {
            "node": f"node-{self.port}",
            "url": f"http://127.0.0.1:{self.port}",
            "kind": "openai",
            "models": ["tiny"],
            "key_file": str(key),
            "keep_alive": False,
        }
        self.start()

    def start(self) -> None:
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(self._command, stdout=quiet, stderr=quiet)
        wait_for(lambda: listens(self.port), 30, "llama-server")

    def ready(self) -> None:
        """Wait until it has loaded its model: it listens before that."""
        wait_for(self._healthy, 30, "its model")

    def _healthy(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health") as answer:
            return bool(answer.status == 200)
        return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


@pytest.fixture
def servers(llama_build: Path, smollm2: Path, tmp_path: Path) -> Iterator[list[PoolServer]]:
    key = tmp_path / "pool.key"
    key.write_text("a-key-of-the-pool-servers")
    started = [PoolServer(llama_build, smollm2, key) for _ in range(2)]
    for server in started:
        server.ready()
    yield started
    for server in started:
        server.kill()


async def test_request_to_a_server_that_died_is_answered_by_the_other(
    servers: list[PoolServer], tmp_path: Path
) -> None:
    pool = [server.config for server in servers]
    async with HybridRouter(ollama_pool=pool, models_dir=tmp_path) as router:
        first = await router.route_request("tiny", ASK, options=FEW)
        assert "attempt" not in first["_routing"]
        servers[0].kill()
        second = await router.route_request("tiny", ASK, options=FEW)
        assert second["message"] == first["message"]
        assert second["_routing"]["attempt"] == "2"
        servers[0].start()
        servers[0].ready()
        servers[1].kill()
        third = await router.route_request("tiny", ASK, options=FEW)
        assert third["message"] == first["message"]
        servers[0].kill()
        with pytest.raises(RequestFailedError, match="pool server of node-") as refused:
            await router.route_request("tiny", ASK, options=FEW)
        assert refused.value.status == 502


async def test_server_that_still_loads_is_passed_over(servers: list[PoolServer], tmp_path: Path) -> None:
    pool = [server.config for server in servers]
    async with HybridRouter(ollama_pool=pool, models_dir=tmp_path) as router:
        servers[0].kill()
        servers[0].start()
        for _ in range(3):
            answer = await router.route_request("tiny", ASK, options=FEW)
            assert answer["done"] is True
