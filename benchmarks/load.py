"""Compare a load through the router with the same load by ``llama-server --rpc``, interleaved in one run.

    benchmarks/load.py --model ~/.cache/llama-harness/models/1b-q8_0.gguf --repeats 5

Both put all layers on the same rpc-servers on loopback, with the same command line. The same probe observes
both: a request to ``/v1/health`` of the server every 5 ms. The first round of each is discarded, because it
fills the page cache.

    bare      exec -> health 200
    router    request sent to the router -> health 200 of its coordinator
    answered  request sent -> the router's answer to POST /admin/load
    overhead  what the router adds, from timestamps: (request sent -> exec) + (health 200 -> ready noticed)
"""

import argparse
import http.client
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.contracts.plan import Plan
from harness.router.models.command_line import coordinator_argv, release_args
from harness.settings import cache_dir

KEY = "a-key-for-this-benchmark"
WATCH_S = 0.005
DEADLINE_S = 1800


@dataclass(frozen=True)
class RouterLoad:
    """One load through the router, seconds."""

    healthy: float
    answered: float
    before_exec: float
    noticed: float

    @property
    def overhead(self) -> float:
        """What the router adds."""
        return self.before_exec + self.noticed


def free_port() -> int:
    """A free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(port: int, path: str, body: Any = None) -> tuple[int, Any]:
    """Status and JSON of one request; a POST if there is a body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    try:
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        connection.request("POST" if body is not None else "GET", path, body and json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def wait_healthy(port: int, path: str = "/v1/health") -> int:
    """Time of the first 200 from ``path``, in UTC nanoseconds."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        with suppress(OSError, http.client.HTTPException, ValueError):
            if get(port, path)[0] == 200:
                return time.time_ns()
        time.sleep(WATCH_S)
    raise SystemExit(f"nothing healthy on port {port} within {DEADLINE_S} s")


@contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process during the block, with SIGPIPE ignored as under systemd."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, restore_signals=False, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def bare_load(argv: list[str], port: int, folder: Path) -> float:
    """Seconds from exec to health of one llama-server."""
    began = time.time_ns()
    with running(argv, folder / "bare.log"):
        return (wait_healthy(port) - began) / 1e9


def router_load(port: int, coordinator_port: int, plan: Plan) -> RouterLoad:
    """One load by ``POST /admin/load``, also observed from outside."""
    seen: list[int] = []
    eye = threading.Thread(target=lambda: seen.append(wait_healthy(coordinator_port)))
    eye.start()
    sent = time.time_ns()
    status, state = get(port, "/admin/load", {"model": plan.model, "plan": plan.model_dump()})
    answered = time.time_ns()
    if status != 200:
        raise SystemExit(f"the router could not load: {state['error']['message']}")
    eye.join()
    timings = state["timings"]
    get(port, "/admin/unload", {})
    return RouterLoad(
        healthy=(seen[0] - sent) / 1e9,
        answered=(answered - sent) / 1e9,
        before_exec=(timings["exec_ns"] - sent) / 1e9,
        noticed=max(0, timings["ready_ns"] - seen[0]) / 1e9,
    )


def router_config(options: argparse.Namespace, endpoints: list[str], folder: Path) -> dict[str, Any]:
    """A configuration for loopback."""
    (folder / "key").write_text(KEY)
    backends = [
        {"node": f"backend{n}", "endpoint": endpoint, "memory_bytes": 1 << 40}
        for n, endpoint in enumerate(endpoints, 1)
    ]
    return {
        "address": "127.0.0.1",
        "port": free_port(),
        "coordinator_port": free_port(),
        "router_key_file": str(folder / "key"),
        "admin_key_file": str(folder / "key"),
        "models_dir": str(options.model.parent),
        "llama_server": str(options.binaries / "llama-server"),
        "log_dir": str(folder / "starts"),
        "backends": backends,
    }


def plan_of(config: dict[str, Any], model: str) -> Plan:
    """The router's own plan for the model, from a first load that also fills the page cache."""
    status, state = get(config["port"], "/admin/load", {"model": model})
    if status != 200:
        raise SystemExit(f"the router could not load {model}: {state['error']['message']}")
    get(config["port"], "/admin/unload", {})
    return Plan.model_validate(state["plan"])


def spread(name: str, values: list[float]) -> str:
    """Median, range and every value, in seconds."""
    each = " ".join(f"{value:.3f}" for value in values)
    between = f"[{min(values):.3f} .. {max(values):.3f}]"
    return f"{name:10} {statistics.median(values):8.3f} s  {between}  each: {each}"


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Run the rounds and print their results."""
    ports = [free_port() for _ in range(options.backends)]
    endpoints = [f"127.0.0.1:{port}" for port in ports]
    config = router_config(options, endpoints, folder)
    (folder / "router.json").write_text(json.dumps(config))
    rpc_server = str(options.binaries / "rpc-server")
    router = [sys.executable, "-m", "harness.router", "--config", str(folder / "router.json")]
    with ExitStack() as stack:
        for port in ports:
            command = [rpc_server, "--host", "127.0.0.1", "--port", str(port)]
            stack.enter_context(running(command, folder / f"rpc-{port}.log"))
        stack.enter_context(running(router, folder / "router.log"))
        wait_healthy(config["port"], "/healthz")
        plan = plan_of(config, options.model.stem)
        server = options.binaries / "llama-server"
        bare_port = free_port()
        argv = coordinator_argv(server, plan, port=bare_port, flags=release_args(server))
        bare: list[float] = []
        routed: list[RouterLoad] = []
        for number in range(options.repeats + 1):
            for routed_now in (True, False) if number % 2 else (False, True):
                if routed_now:
                    routed.append(router_load(config["port"], config["coordinator_port"], plan))
                else:
                    bare.append(bare_load(argv, bare_port, folder))
    report(options, bare[1:], routed[1:])


def report(options: argparse.Namespace, bare: list[float], routed: list[RouterLoad]) -> None:
    """Print the figures and their ratio."""
    rounds = f"{len(bare)} rounds, interleaved"
    print(f"{options.model.name} over {options.backends} rpc-servers on loopback, {rounds}")
    print(spread("bare", bare))
    print(spread("router", [load.healthy for load in routed]))
    print(spread("answered", [load.answered for load in routed]))
    print(spread("overhead", [load.overhead for load in routed]))
    print(spread("  to exec", [load.before_exec for load in routed]))
    print(spread("  noticed", [load.noticed for load in routed]))
    ratio = statistics.median(load.answered for load in routed) / statistics.median(bare)
    print(f"ratio      {ratio:8.3f}    router answered / bare, of the medians")


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=cache_dir() / "models" / "1b-q8_0.gguf")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--backends", type=int, default=2)
    parser.add_argument("--binaries", type=Path, default=cache_dir() / "local" / "current" / "bin")
    options = parser.parse_args()
    for needed in (options.model, options.binaries / "rpc-server", options.binaries / "llama-server"):
        if not needed.exists():
            parser.error(f"no {needed}: set the path with --model or --binaries")
    with tempfile.TemporaryDirectory(prefix="bench-load-") as folder:
        measure(options, Path(folder))


if __name__ == "__main__":
    main()
