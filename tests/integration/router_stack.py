"""Real parts on loopback for the router's tests: rpc-servers, a pool llama-server and the router itself."""

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

ROUTER_KEY = "router-key-of-the-tests"
ADMIN_KEY = "admin-key-of-the-tests"


def free_port() -> int:
    """A loopback port that nobody listens on now, nor later by chance.

    It is below those that the kernel gives to whoever asks for any port: no connection takes it before the
    program that it is for listens.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(lowest // 2, lowest)  # noqa: S311 - no secret
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_for(what: Callable[[], bool], seconds: float, name: str) -> None:
    """Poll until something holds."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"{name}: not within {seconds} s"
        time.sleep(0.02)


def listens(port: int) -> bool:
    """Whether the kernel's socket table shows a listener; nothing is connected to."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(f[1].endswith(f":{port:04X}") and f[3] == "0A" for f in (line.split() for line in lines))


class RpcServer:
    """One rpc-server with SIGPIPE ignored, as systemd runs it."""

    def __init__(self, binaries: Path, log: Path) -> None:
        self.port = free_port()
        self.endpoint = f"127.0.0.1:{self.port}"
        self._command = [str(binaries / "rpc-server"), "-H", "127.0.0.1", "-p", str(self.port)]
        self.log = log
        self.start()

    def start(self) -> None:
        """Start it, unless it runs."""
        if getattr(self, "process", None) and self.process.poll() is None:
            return
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, restore_signals=False
            )
        wait_for(lambda: listens(self.port), 10, "rpc-server")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self.process.kill()
        self.process.wait(10)


class RouterStack:
    """Two backends, a pool (llama-server: ``tiny``; an Ollama), a router to which ``smollm2`` is large."""

    def __init__(self, binaries: Path, model: Path, folder: Path, **config: Any) -> None:
        """Start everything; ``config`` is laid over the router's configuration."""
        self.folder = folder
        self.models = folder / "models"
        self.models.mkdir()
        for name in ("smollm2", "other"):
            (self.models / f"{name}.gguf").symlink_to(model)
        self.backends = [RpcServer(binaries, folder / f"rpc{n}.log") for n in (0, 1)]
        self._pool_port = free_port()
        self._pool = self._start_pool(binaries, model)
        self.ollama_port = free_port()
        self._ollama = self._start_ollama()
        self.port, self.coordinator_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.config = self._write_config(binaries, config)
        try:
            self.start_router()
        except AssertionError:
            self.close()
            raise

    def _start_pool(self, binaries: Path, model: Path) -> subprocess.Popen[bytes]:
        key = self.folder / "pool.key"
        key.write_text("pool-key-of-the-tests")
        with (self.folder / "pool.log").open("wb") as log:
            return subprocess.Popen(
                [
                    *(str(binaries / "llama-server"), "-m", str(model), "--alias", "tiny"),
                    *("--host", "127.0.0.1", "--port", str(self._pool_port)),
                    *("--api-key-file", str(key), "-c", "1024", "--no-webui"),
                    *("--jinja", "--embeddings", "--pooling", "last"),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _start_ollama(self) -> subprocess.Popen[bytes]:
        """A double of Ollama in front of the pool's llama-server."""
        double = Path(__file__).with_name("ollama_double.py")
        upstream = f"http://127.0.0.1:{self._pool_port}"
        with (self.folder / "ollama.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, str(double), str(self.ollama_port), upstream, "pool-key-of-the-tests"],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _write_config(self, binaries: Path, more: dict[str, Any]) -> Path:
        (self.folder / "router.key").write_text(ROUTER_KEY)
        (self.folder / "admin.key").write_text(ADMIN_KEY)
        config = {
            "address": "127.0.0.1",
            "port": self.port,
            "coordinator_port": self.coordinator_port,
            "router_key_file": str(self.folder / "router.key"),
            "admin_key_file": str(self.folder / "admin.key"),
            "models_dir": str(self.models),
            "llama_server": str(binaries / "llama-server"),
            "log_dir": str(self.folder / "starts"),
            "large_model_bytes": 1,
            "stop_deadline_s": 5,
            "drain_s": 3,
            "backends": [
                {"node": f"node{n}", "endpoint": backend.endpoint, "memory_bytes": 4 << 30}
                for n, backend in enumerate(self.backends, 1)
            ],
            "pool": [
                {
                    "node": "node1",
                    "url": f"http://127.0.0.1:{self._pool_port}",
                    "models": ["tiny"],
                    "key_file": str(self.folder / "pool.key"),
                },
                {
                    "node": "node2",
                    "url": f"http://127.0.0.1:{self.ollama_port}",
                    "kind": "ollama",
                    "models": ["ollama-tiny:latest"],
                },
            ],
        }
        path = self.folder / "router.json"
        path.write_text(json.dumps(config | more))
        return path

    def start_router(self) -> None:
        """Start the router and wait until it and the pool answer."""
        with (self.folder / "router.log").open("ab") as log:
            self.router = subprocess.Popen(
                [sys.executable, "-m", "harness.router", "--config", str(self.config)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"LLAMA_ARG_CTX_SIZE": "1"},
            )
        wait_for(lambda: listens(self.port), 60, "router")
        wait_for(lambda: listens(self.ollama_port), 60, "double of Ollama")
        wait_for(self._pool_is_healthy, 60, "pool server")

    def _pool_is_healthy(self) -> bool:
        with suppress(OSError):
            return self.send("/health", port=self._pool_port)[1].status == 200
        return False

    def send(
        self,
        path: str,
        body: Any = None,
        *,
        key: str | None = ROUTER_KEY,
        timeout: float = 60,
        port: int | None = None,
        method: str | None = None,
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Send one request, a POST where it has a body; the answer has begun and is still to be read."""
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=timeout)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body)
        connection.request(method or ("GET" if data is None else "POST"), path, data, headers)
        return connection, connection.getresponse()

    def call_bytes(self, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON and headers of a request whose body is sent as it is."""
        return self._read(*self.send(path, body))

    def call(
        self, path: str, body: Any = None, *, key: str | None = ROUTER_KEY, port: int | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, body (JSON where it is) and headers of one request."""
        return self._read(*self.send(path, body, key=key, port=port))

    def _read(
        self, connection: http.client.HTTPConnection, answer: http.client.HTTPResponse
    ) -> tuple[int, Any, dict[str, str]]:
        text = answer.read().decode()
        connection.close()
        parsed = json.loads(text) if text.startswith(("{", "[")) else text
        return answer.status, parsed, {name.lower(): value for name, value in answer.getheaders()}

    def admin(self, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and body of one ``/admin`` call."""
        status, answer, _ = self.call("/admin/" + path, body, key=ADMIN_KEY)
        return status, answer

    def signal_pool(self, number: signal.Signals) -> None:
        """Send a signal to the pool's llama-server."""
        self._pool.send_signal(number)

    def reset(self) -> None:
        """Nothing loaded, both backends up."""
        for backend in self.backends:
            backend.start()
        self.admin("unload", {"deadline_s": 0})

    def close(self) -> None:
        """End everything that was started."""
        self.router.terminate()
        try:
            self.router.wait(20)
        finally:
            for process in (self.router, self._ollama, self._pool, *(b.process for b in self.backends)):
                process.kill()
                process.wait(10)
