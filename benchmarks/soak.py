"""Random kills under load: every request must end with an answer or a typed error, and nothing may leak.

    benchmarks/soak.py --model ~/.cache/llama-harness/models/smollm2.gguf --minutes 30

Two rpc-servers, a router and a few clients run on loopback. Every few seconds one fault happens: the
coordinator is killed or terminated, a backend is killed and started again later, a backend is stopped and
continued, or a client disconnects in the middle of its stream. A typed error has a class:
``{"error": {"class": ...}}`` in the OpenAI API, ``{"error": "...", "details": {"class": ...}}`` in Ollama's,
as a body or as a stream's last event.

Exit status 1 if a request ended otherwise, or if after the soak the router has more tasks, descriptors,
children or connections than before.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from harness.settings import cache_dir

KEY = "a-key-for-this-benchmark"
HEADERS = {"authorization": f"Bearer {KEY}"}
MODELS = ("first", "second")
DEADLINE_S = 300
LISTEN, TIME_WAIT = "0A", "06"


def free_port() -> int:
    """A free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rows(port: int) -> list[str]:
    """State of each socket on a local port, from the kernel's table, without TIME_WAIT."""
    table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = [(row[1].split(":")[1], row[2].split(":")[1], row[3]) for row in table]
    wanted = f"{port:04X}"
    return [state for local, remote, state in ends if wanted in (local, remote) and state != TIME_WAIT]


def children(pid: int) -> list[int]:
    """Processes whose parent is ``pid``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(entry.name))
    return found


class Backend:
    """One rpc-server that starts again after a kill, as with systemd."""

    def __init__(self, binary: Path, log: Path) -> None:
        self.port = free_port()
        self._command = [str(binary), "-H", "127.0.0.1", "-p", str(self.port)]
        self._log = log
        self.start()

    def start(self) -> None:
        """Start rpc-server with SIGPIPE ignored."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, restore_signals=False
            )

    def send(self, number: signal.Signals) -> None:
        """Send a signal to rpc-server."""
        self.process.send_signal(number)

    def end(self) -> None:
        """Kill rpc-server and wait until it exits."""
        self.process.kill()
        self.process.wait(10)


@dataclass
class Ends:
    """How requests ended, and which faults happened."""

    ended: Counter[str] = field(default_factory=Counter)
    untyped: list[str] = field(default_factory=list)
    retried: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0

    def note(self, end: str, *, detail: str = "") -> None:
        """Count one end; ``detail`` describes an end that is not allowed."""
        self.ended[end] += 1
        if end == "untyped":
            self.untyped.append(detail)


class Soak:
    """The clients and the fault injector."""

    def __init__(self, url: str, backends: list[Backend], chance: random.Random) -> None:
        self._url = url
        self._backends = backends
        self._chance = chance
        self._over = False
        self.ends = Ends()

    async def run(self, session: aiohttp.ClientSession, minutes: float, clients: int) -> None:
        """Send requests and inject faults for ``minutes``, then restore all and let the clients finish."""
        asking = [asyncio.create_task(self._client(session)) for _ in range(clients)]
        until = time.monotonic() + 60 * minutes
        while time.monotonic() < until:
            await asyncio.sleep(self._chance.uniform(4, 16))
            await self._break(session)
            if not sum(self.ends.faults.values()) % 10:
                print(json.dumps({"ended": self.ends.ended, "faults": self.ends.faults}), flush=True)
        self._over = True
        await asyncio.gather(*asking)

    async def admin(self, session: aiohttp.ClientSession, path: str, body: object = None) -> Any:
        """One call of ``/admin``."""
        method = "GET" if body is None else "POST"
        async with session.request(method, f"{self._url}/admin/{path}", json=body, headers=HEADERS) as answer:
            return await answer.json()

    async def _break(self, session: aiohttp.ClientSession) -> None:
        fault = self._chance.choice(
            ["kill coordinator", "stop coordinator", "kill backend", "freeze backend"]
        )
        backend = self._chance.choice(self._backends)
        if fault.endswith("coordinator"):
            state = await self.admin(session, "coordinator")
            if state["phase"] not in ("starting", "ready") or not state["pid"]:
                return
            number = signal.SIGKILL if fault == "kill coordinator" else signal.SIGTERM
            with suppress(ProcessLookupError):
                os.kill(state["pid"], number)
        elif fault == "kill backend":
            backend.end()
            await asyncio.sleep(self._chance.choice([0, 2, 12]))
            backend.start()
        else:
            backend.send(signal.SIGSTOP)
            await asyncio.sleep(self._chance.choice([1, 5, 25]))
            backend.send(signal.SIGCONT)
        self.ends.faults[fault] += 1

    async def _client(self, session: aiohttp.ClientSession) -> None:
        while not self._over:
            began = time.monotonic()
            try:
                await asyncio.wait_for(self._ask(session), DEADLINE_S)
            except TimeoutError:
                self.ends.note("untyped", detail=f"no end within {DEADLINE_S} s")
            except aiohttp.ClientError as error:
                self.ends.note("untyped", detail=repr(error))
            took = time.monotonic() - began
            self.ends.slowest_s = max(self.ends.slowest_s, took)
            await asyncio.sleep(self._chance.uniform(0, 0.5))

    async def _ask(self, session: aiohttp.ClientSession) -> None:
        ollama, streamed = self._chance.random() < 0.3, self._chance.random() < 0.5
        tokens = self._chance.randint(1, 60)
        body: dict[str, Any] = {
            "model": MODELS[self._chance.random() < 0.05],
            "messages": [{"role": "user", "content": "Count."}],
            "stream": streamed,
        }
        more = {"options": {"num_predict": tokens}} if ollama else {"max_tokens": tokens, "ignore_eos": True}
        path = "/api/chat" if ollama else "/v1/chat/completions"
        leaves = streamed and self._chance.random() < 0.05
        async with session.post(self._url + path, json=body | more, headers=HEADERS) as answer:
            self.ends.retried += answer.headers.get("x-llama-attempt") == "2"
            if leaves:
                await answer.content.readany()
                self.ends.note("client left")
                return
            lines = [line for line in (await answer.read()).split(b"\n") if line.strip()]
        self._judge(answer.status, lines)

    def _judge(self, status: int, lines: list[bytes]) -> None:
        last = lines[-1].removeprefix(b"data: ") if lines else b""
        if status == 200 and last == b"[DONE]":
            self.ends.note("answer")
            return
        try:
            body = json.loads(last)
        except ValueError:
            self.ends.note("untyped", detail=f"{status}: {last[:200]!r}")
            return
        error = body.get("details") or body.get("error")
        if isinstance(error, dict) and error.get("class"):
            self.ends.note(f"error {error['class']}")
        elif status == 200 and "error" not in body and (body.get("done") or body.get("usage")):
            self.ends.note("answer")
        else:
            self.ends.note("untyped", detail=f"{status}: {last[:200]!r}")


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Terminate a process at the end and wait for it."""
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def configuration(arguments: argparse.Namespace, folder: Path, backends: list[Backend]) -> dict[str, Any]:
    """The router's configuration: a short suspect time, and a restart budget that the soak cannot reach."""
    (folder / "key").write_text(KEY)
    (folder / "models").mkdir()
    for name in MODELS:
        (folder / "models" / f"{name}.gguf").symlink_to(arguments.model.resolve())
    return {
        "address": "127.0.0.1",
        "port": free_port(),
        "coordinator_port": free_port(),
        "router_key_file": str(folder / "key"),
        "admin_key_file": str(folder / "key"),
        "models_dir": str(folder / "models"),
        "llama_server": str(arguments.binaries / "llama-server"),
        "log_dir": str(folder / "starts"),
        "large_model_bytes": 1,
        "backends": [
            {"node": f"node{n}", "endpoint": f"127.0.0.1:{backend.port}", "memory_bytes": 4 << 30}
            for n, backend in enumerate(backends, 1)
        ],
        "suspect_s": 3,
        "stall_deadline_s": 6,
        "backend_wait_s": 5,
        "restart_budget": 1000,
        "keep_starts": 20,
        "debug_coordinator_recovery": True,
    }


async def held(soak: Soak, session: aiohttp.ClientSession, config: dict[str, Any]) -> dict[str, Any]:
    """Resources of the router when no model is loaded and there are no requests."""
    await soak.admin(session, "unload", {})
    await asyncio.sleep(2)
    process = await soak.admin(session, "process")
    sockets = [rows(port) for port in (config["coordinator_port"], *(b.port for b in soak._backends))]
    return {
        "tasks": len(process["tasks"]),
        "task_names": process["tasks"],
        "descriptors": process["descriptors"],
        "children": len(children(process["pid"])),
        "connections": sum(state != LISTEN for states in sockets for state in states),
        "rss_mb": round(resident(process["pid"]) / 1e6, 1),
    }


def resident(pid: int) -> int:
    """VmRSS, bytes."""
    line = next(
        line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")
    )
    return int(line.split()[1]) * 1024


async def soaked(arguments: argparse.Namespace, config: dict[str, Any], backends: list[Backend]) -> int:
    """Run the soak and print the figures; 1 if something leaked or a request ended without a class."""
    chance = random.Random(arguments.seed)  # noqa: S311 - reproducible chance
    soak = Soak(f"http://127.0.0.1:{config['port']}", backends, chance)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=None)
    ) as session:
        for _ in range(200):
            with suppress(aiohttp.ClientError):
                await soak.admin(session, "process")
                break
            await asyncio.sleep(0.1)
        await soak.admin(session, "load", {"model": MODELS[0]})
        before = await held(soak, session, config)
        await soak.run(session, arguments.minutes, arguments.clients)
        after = await held(soak, session, config)
        failures = await soak.admin(session, "failures")
    leaks = [
        name
        for name in ("tasks", "descriptors", "children", "connections")
        if after[name] > before[name] + (1 if name == "descriptors" else 0)
    ]
    ends = soak.ends
    result = {
        "minutes": arguments.minutes,
        "clients": arguments.clients,
        "seed": arguments.seed,
        "ended": dict(ends.ended.most_common()),
        "untyped": ends.untyped[:20],
        "retried": ends.retried,
        "slowest_s": round(ends.slowest_s, 1),
        "faults": dict(ends.faults),
        "failures_of_coordinators": dict(Counter(f["failure_class"] for f in failures)),
        "before": before,
        "after": after,
        "leaks": leaks,
    }
    print(json.dumps(result, indent=1))
    return 1 if leaks or ends.untyped else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="GGUF file")
    parser.add_argument("--binaries", type=Path, default=cache_dir() / "local" / "current" / "bin")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", type=Path, help="keep the router's log in this file")
    arguments = parser.parse_args(argv)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        backends = [Backend(arguments.binaries / "rpc-server", folder / f"rpc{n}.log") for n in (0, 1)]
        for backend in backends:
            stack.callback(backend.end)
        config = configuration(arguments, folder, backends)
        path = folder / "router.json"
        path.write_text(json.dumps(config))
        log = stack.enter_context((arguments.log or folder / "router.log").open("wb"))
        command = [sys.executable, "-m", "harness.router", "--config", str(path)]
        stack.enter_context(ended(subprocess.Popen(command, stdout=log, stderr=log)))
        return asyncio.run(soaked(arguments, config, backends))


if __name__ == "__main__":
    sys.exit(main())
