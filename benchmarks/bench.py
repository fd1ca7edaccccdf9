"""Compare the decode rate over RPC of an inference trial with llama-bench's, in turns on the same backends.

    benchmarks/bench.py --rounds 5 --threads 1

Both use the same build and put all layers on the same rpc-servers on loopback, in equal parts, with the same
number of threads and the same flash attention. Each round runs a llama-server and then llama-bench, or in the
opposite order; never both together, because an rpc-server serves one client at a time.

    server    (predicted_n - 1) / predicted_ms of llama.cpp's timings: `server_decode_tokens_per_s` of a trial
    client    (n - 1) / (last token - first token) by our clock: `decode_tokens_per_s` of a trial
    bench     llama-bench with `-n` of n - 1 tokens and `-d` of the prompt's length; n - 1, because
              llama-server computes the first token when it processes the prompt
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from harness.contracts.run_records import Request
from harness.llama.gguf import read_gguf
from harness.llama.load_log import parse_load_log
from harness.router.models.command_line import release_args
from harness.router_client.chat_stream import ChatRequest, chat_session, stream_chat
from harness.runs.metrics import summarise
from harness.settings import cache_dir
from harness.trials.load_generator.requests import ASSUMED_TEMPLATE_TOKENS, word_count, words

from bench_report import decode_rates
from load import free_port, running, wait_healthy
from priority import session_first
from ratio_table import Row, as_data, table

MODEL = "m"
BAR = 0.02
DEADLINE_S = 1800


def devices(options: argparse.Namespace, separator: str) -> str:
    """The rpc-servers as device names for llama.cpp."""
    return separator.join(f"RPC{index}" for index in range(options.backends))


def server_command(options: argparse.Namespace, endpoints: str, port: int) -> list[str]:
    """llama-server as the router starts it, in equal parts."""
    server = options.binaries / "llama-server"
    return [
        *(str(server), "--model", str(options.model), "--alias", MODEL, "--jinja", "--no-webui"),
        *("--rpc", endpoints, "--device", devices(options, ","), "--n-gpu-layers", "999"),
        *("--tensor-split", ",".join("1" * options.backends), "--threads", str(options.threads)),
        *("--flash-attn", "on" if options.flash_attn else "off", "--ctx-size", str(options.context)),
        *("--parallel", "1", "--host", "127.0.0.1", "--port", str(port), *release_args(server)),
    ]


def bench_command(options: argparse.Namespace, endpoints: str) -> list[str]:
    """Command line of llama-bench with the same split, threads and depth."""
    return [
        *(str(options.binaries / "llama-bench"), "--model", str(options.model), "--rpc", endpoints),
        *("-dev", devices(options, "/"), "-ngl", "999", "-ts", "/".join("1" * options.backends)),
        *("-t", str(options.threads), "-fa", str(int(options.flash_attn)), "-p", "0"),
        *("--poll", str(options.poll)),
        *("-n", str(options.generated - 1), "-d", str(options.prompt), "-r", str(options.requests)),
        *("-o", "json"),
    ]


async def ask(port: int, options: argparse.Namespace) -> list[Request]:
    """Send the requests of an inference trial; the first one is discarded."""
    template_tokens, sent = ASSUMED_TEMPLATE_TOKENS, list[Request]()
    async with chat_session() as session:
        for index in range(options.requests + 1):
            warm_up = index == 0
            count = word_count(min(options.prompt, 64) if warm_up else options.prompt, template_tokens)
            body = ChatRequest(
                MODEL, words(count), 2 if warm_up else options.generated, DEADLINE_S, index=index
            )
            seen = await stream_chat(session, f"http://127.0.0.1:{port}", body)
            if seen.error or seen.prompt_tokens is None:
                raise SystemExit(f"llama-server: {seen.error}")
            template_tokens = seen.prompt_tokens - count
            sent.append(seen)
    return sent[1:]


def ask_server(options: argparse.Namespace, endpoints: str, log: Path) -> dict[str, float]:
    """Medians over one llama-server's answers: ``server`` and ``client``, in tokens per second."""
    port = free_port()
    log.unlink(missing_ok=True)
    with running(server_command(options, endpoints, port), log) as server:
        if options.first:
            session_first(server.pid)
        wait_healthy(port)
        if not parse_load_log(log.read_text(errors="replace").splitlines()).distributed:
            raise SystemExit(f"llama-server did not put every layer on the rpc-servers: see {log}")
        sent = asyncio.run(ask(port, options))
    if wrong := [
        r for r in sent if (r.prompt_tokens, r.completion_tokens) != (options.prompt, options.generated)
    ]:
        raise SystemExit(f"{wrong[0].prompt_tokens} + {wrong[0].completion_tokens} tokens, not as requested")
    metrics = summarise(sent)
    return {
        "server": metrics["server_decode_tokens_per_s_median"],
        "client": metrics["decode_tokens_per_s_median"],
    }


def ask_bench(options: argparse.Namespace, endpoints: str, folder: Path) -> float:
    """Median over llama-bench's repetitions, in tokens per second."""
    with (folder / "bench.log").open("ab") as log:
        done = subprocess.run(
            bench_command(options, endpoints), stdout=subprocess.PIPE, stderr=log, check=False
        )
    if done.returncode:
        raise SystemExit(
            f"llama-bench ended with {done.returncode}: {(folder / 'bench.log').read_text()[-2000:]}"
        )
    (folder / "bench.json").write_bytes(done.stdout)
    return median(
        decode_rates(json.loads(done.stdout), depth=options.prompt, generated=options.generated - 1)
    )


def measure(options: argparse.Namespace, folder: Path) -> list[Row]:
    """Start the rpc-servers, run the rounds, stop the rpc-servers."""
    ports = [free_port() for _ in range(options.backends)]
    endpoints = ",".join(f"127.0.0.1:{port}" for port in ports)
    if options.first:
        session_first(os.getpid())
    seen: dict[str, list[float]] = {"server": [], "client": [], "bench": []}
    with ExitStack() as stack:
        for port in ports:
            where = ["--host", "127.0.0.1", "--port", str(port), "--threads", str(options.threads)]
            command = [str(options.binaries / "rpc-server"), *where]
            process = stack.enter_context(running(command, folder / f"rpc-{port}.log"))
            if options.first:
                session_first(process.pid)
        for number in range(1, options.rounds + 1):
            for bench in (False, True) if number % 2 else (True, False):
                if bench:
                    seen["bench"].append(ask_bench(options, endpoints, folder))
                else:
                    for name, value in ask_server(options, endpoints, folder / "server.log").items():
                        seen[name].append(value)
            last = ", ".join(f"{name} {values[-1]:.3f}" for name, values in seen.items())
            print(f"round {number}: {last} tokens/s", file=sys.stderr, flush=True)
    return [Row(f"decode, tokens/s ({who})", seen[who], seen["bench"], BAR) for who in ("server", "client")]


def main() -> None:
    """Print the table; exit 1 if a goal is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=cache_dir() / "models" / "13b-q4_0.gguf")
    parser.add_argument("--binaries", type=Path, default=cache_dir() / "local" / "current" / "bin")
    parser.add_argument("--backends", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=2, help="number of requests of each per round")
    parser.add_argument("--prompt", type=int, default=64, help="length of the prompt in tokens (the depth)")
    parser.add_argument("--generated", type=int, default=24, help="tokens")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2, help="threads of each program")
    parser.add_argument("--flash-attn", action="store_true")
    parser.add_argument("--poll", type=int, default=50, help="polling level of llama-bench, 0 to 100")
    parser.add_argument("--first", action="store_true", help="raise the programs' priority (needs root)")
    parser.add_argument("--json", type=Path, help="write every round to this file")
    parser.add_argument("--keep", type=Path, help="keep logs and llama-bench's last report in this folder")
    options = parser.parse_args()
    for needed in (
        options.model,
        *(options.binaries / n for n in ("llama-server", "llama-bench", "rpc-server")),
    ):
        if not needed.exists():
            parser.error(f"no {needed}: set the path with --model or --binaries")
    with tempfile.TemporaryDirectory(prefix="bench-bench-") as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = measure(options, folder)
    shape = f"{options.generated} tokens at depth {options.prompt} over {options.backends} rpc-servers"
    print(
        table(
            f"{read_gguf(options.model).name}: {shape}, {options.rounds} rounds", "ours", "llama-bench", rows
        )
    )
    if options.json:
        options.json.write_text(json.dumps(as_data(rows), indent=1) + "\n")
    sys.exit(0 if all(row.met for row in rows) else 1)


if __name__ == "__main__":
    main()
