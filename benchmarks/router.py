"""Compare the router with no proxy, a bare pass-through and the LiteLLM proxy, interleaved in one run.

    benchmarks/router.py --rounds 5 --json router.json

All contenders are in front of the same instant upstream (router_upstream.py) and get their requests from
the same cheap client (router_client.py), one after the other in each round. A figure is the median of its
rounds. LiteLLM is installed once from requirements/peer-litellm.lock into its own virtual environment.

    requests/s  complete answers per second over 32 keep-alive connections
    p50         of answers on one connection, one at a time; added: minus the p50 of `direct`
    TTFT        request sent -> first event, one stream at a time, and with 16 streams
    delay       arrival time minus send time of an event, 16 streams, without the first event of each
    streams     1,000 at the same time, with the router limited to one core
"""

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from router_client import Seen, ask, request
from router_peer import litellm_command
from router_table import Figures, table

HERE = Path(__file__).parent
KEY = "sk-a-key-for-this-benchmark"
STREAMS = 1000


@dataclass
class Contender:
    """One measured program, and its figures of each round."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    rounds: list[Figures] = field(default_factory=list)


def free_port() -> int:
    """A free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(name: str, command: list[str], port: int, folder: Path) -> Iterator[Contender]:
    """Run a contender; it listens at the start of the block and stops at its end."""
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        )
    try:
        deadline = time.monotonic() + 180
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{name} does not listen: {(folder / f'{name}.log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield Contender(name, port, process)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listens(port: int) -> bool:
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(f[1].endswith(f":{port:04X}") and f[3] == "0A" for f in map(str.split, lines))


def router_command(port: int, upstream: int, folder: Path) -> list[str]:
    """Our router, with the upstream as its pool."""
    for name in ("router", "admin", "pool"):
        (folder / f"{name}.key").write_text(KEY)
    config = {
        "address": "127.0.0.1",
        "port": port,
        "router_key_file": str(folder / "router.key"),
        "admin_key_file": str(folder / "admin.key"),
        "models_dir": str(folder),
        "log_dir": str(folder / "starts"),
        "requests_per_s_per_key": 0,  # more than a key has is what is measured
        "pool": [
            {
                "node": "upstream",
                "url": f"http://127.0.0.1:{upstream}",
                "models": ["m"],
                "key_file": str(folder / "pool.key"),
            }
        ],
    }
    path = folder / "router.json"
    path.write_text(json.dumps(config))
    return [sys.executable, "-m", "harness.router", "--config", str(path)]


def check(seen: Seen, name: str) -> Seen:
    """Return the result; fail if a request got no answer."""
    if seen.failures:
        raise SystemExit(f"{name}: {len(seen.failures)} requests failed, one with: {seen.failures[0]}")
    return seen


def resident_mb(process: subprocess.Popen[bytes], what: str = "VmRSS") -> float:
    """Resident memory, MB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split(f"{what}:")[1].split()[0]) * 1024 / 1e6


def one_round(contender: Contender, seconds: float) -> Figures:
    """Measure everything once, except the thousand streams."""
    port, name = contender.port, contender.name
    plain = request(port, KEY)
    busy = check(ask(port, plain, connections=32, seconds=seconds), name)
    single = check(ask(port, plain, connections=1, seconds=seconds), name)
    one = check(ask(port, request(port, KEY, events=2, gap_ms=1), connections=1, seconds=seconds), name)
    streams = request(port, KEY, events=50, gap_ms=20)
    many = check(ask(port, streams, connections=16, seconds=seconds, spread_s=1), name)
    return Figures(
        requests_per_s=len(busy.whole) / seconds,
        p50_ms=statistics.median(single.whole) / 1e6,
        ttft_p50_ms=statistics.median(one.first) / 1e6,
        ttft16_p50_ms=statistics.median(many.first) / 1e6,
        delay_p50_ms=statistics.median(many.delays) / 1e6,
        resident_mb=resident_mb(contender.process),
    )


def thousand_streams(contender: Contender) -> dict[str, float]:
    """Open 1,000 streams at the same time; the process is limited to one core."""
    os.sched_setaffinity(contender.process.pid, {min(os.sched_getaffinity(0))})
    data = request(contender.port, KEY, events=20, gap_ms=1000)
    seen = check(ask(contender.port, data, connections=STREAMS, seconds=0), contender.name)
    return {
        "streams": seen.ended_streams,
        "events": len(seen.first) + len(seen.delays),
        "delay_p50_ms": statistics.median(seen.delays) / 1e6,
        "peak_mb": resident_mb(contender.process, "VmHWM"),
    }


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Start all contenders, run the rounds, stop all contenders."""
    upstream_port = free_port()
    ports = {name: free_port() for name in ("router", "bare", "litellm")}
    commands = {
        "router": router_command(ports["router"], upstream_port, folder),
        "bare": [sys.executable, str(HERE / "router_bare.py"), str(ports["bare"]), str(upstream_port)],
    }
    if not arguments.without_litellm:
        commands["litellm"] = litellm_command(ports["litellm"], upstream_port, KEY, folder)
    upstream = [sys.executable, str(HERE / "router_upstream.py"), str(upstream_port)]
    with ExitStack() as stack:
        contenders = [stack.enter_context(running("direct", upstream, upstream_port, folder))]
        for name, command in commands.items():
            contenders.append(stack.enter_context(running(name, command, ports[name], folder)))
        for contender in contenders:
            _warm(contender)
        for number in range(arguments.rounds):
            for contender in contenders:
                contender.rounds.append(one_round(contender, arguments.seconds))
            print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
        streams = {}
        if not arguments.without_streams:
            streams = {c.name: thousand_streams(c) for c in contenders if c.name in ("router", "bare")}
    return {"rounds": {c.name: [vars(r) for r in c.rounds] for c in contenders}, "thousand_streams": streams}


def _warm(contender: Contender) -> None:
    """Send requests without measuring: the first include imports, and LiteLLM answers them late."""
    deadline = time.monotonic() + 120
    while (seen := ask(contender.port, request(contender.port, KEY), connections=1, seconds=0.5)).failures:
        if time.monotonic() > deadline:
            raise SystemExit(f"{contender.name} does not answer: {seen.failures[0]}")
        time.sleep(1)
    check(
        ask(contender.port, request(contender.port, KEY, events=2), connections=4, seconds=0.5),
        contender.name,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of each measurement in a round")
    parser.add_argument("--without-litellm", action="store_true")
    parser.add_argument("--without-streams", action="store_true", help="leave out the thousand streams")
    parser.add_argument("--json", type=Path, help="write every figure of every round to this file")
    parser.add_argument("--keep", type=Path, help="keep the logs of the contenders in this folder")
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        result = measure(arguments, folder)
    text, met = table(result)
    print(text)
    if arguments.json:
        arguments.json.write_text(json.dumps(result | {"bars": met}, indent=1) + "\n")
    sys.exit(0 if all(bar["met"] for bar in met) else 1)


if __name__ == "__main__":
    main()
