"""Compare TTFT, ITL and tokens/s of our trials with guidellm's, in turns on one llama-server.

    benchmarks/guidellm.py --rounds 8 --requests 7
    benchmarks/guidellm.py --rounds 8 --requests 8 --streams 2

Both request the same number of tokens from the same server, with prompts of the same length, streamed,
greedy, without a cached prompt. Each round runs our client and then guidellm, or in the opposite order; one
request before each is discarded. guidellm creates its own prompts with a tokenizer from the GGUF; its token
ids are first compared with the server's. guidellm is installed from requirements/peer-guidellm.lock into
its own environment.

    TTFT      first token - request sent, median of the round
    ITL       (last token - first token) / (tokens - 1), median over the round's requests
    tokens/s  output tokens of the round / its time, as each client computes it

Each figure is also shown as a ratio to the server's own times of the same requests. This removes the effect
of other work on the machine during one client's turn.

With several streams there is no goal: whether a prompt waits for another stream's prompt depends on the
order of their starts, and each client starts them differently.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.contracts.run_records import Request
from harness.llama.gguf import read_gguf
from harness.router.models.command_line import release_args
from harness.router_client.chat_stream import ChatRequest, chat_session, stream_chat
from harness.settings import cache_dir
from harness.trials.load_generator.requests import in_flight, words

from gguf_tokenizer import write_tokenizer
from guidellm_report import Figures, Server, of_guidellm, of_ours, of_server
from load import free_port, get, running, wait_healthy
from peer import environment
from priority import session_first
from ratio_table import Row, as_data, table

MODEL = "m"
BAR = 0.03
DEADLINE_S = 600
LOG_S = 0.3
"""A separate thread of llama-server writes its log with a small delay."""
SAMPLES = (
    "It's 1234 o'clock:\n\n\tthe  quick brown fox, naïve; 日本語 и 🦙!",
    "<|im_start|>user\nHello<|im_end|>\n",
    words(100),
)
_COUNT = """
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
print(json.dumps([tokenizer.encode(text) for text in json.load(sys.stdin)]))
"""


def environment_variables() -> dict[str, str]:
    """Our environment without proxies; guidellm sends chats, with a limit name that any server knows."""
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    return kept | {
        "GUIDELLM__PREFERRED_ROUTE": "chat_completions",
        "GUIDELLM__OPENAI__MAX_OUTPUT_KEY": json.dumps({"chat_completions": "max_tokens"}),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def check_tokenizer(python: Path, folder: Path, port: int) -> None:
    """Compare the token ids of the generated tokenizer with the server's.

    Raises:
        SystemExit: they differ.
    """
    done = subprocess.run(
        [python, "-c", _COUNT, folder],
        input=json.dumps(SAMPLES),
        capture_output=True,
        text=True,
        env=environment_variables(),
        check=True,
    )
    for text, ids in zip(SAMPLES, json.loads(done.stdout), strict=True):
        body = {"content": text, "parse_special": True, "add_special": False}
        if (server := get(port, "/tokenize", body)[1]["tokens"]) != ids:
            raise SystemExit(f"the tokenizer from the GGUF reads {text!r} as {ids}, the server as {server}")


def template_tokens(port: int) -> int:
    """Tokens that the chat template adds to a prompt."""
    body = {"messages": [{"role": "user", "content": "the"}]}
    prompt = get(port, "/apply-template", body)[1]["prompt"]
    counted = get(port, "/tokenize", {"content": prompt, "parse_special": True, "add_special": False})[1]
    return len(counted["tokens"]) - 1


async def ask_ours(port: int, options: argparse.Namespace, count: int, requests: int) -> list[Request]:
    """Send the requests of an inference trial."""
    sent: list[Request] = []
    async with chat_session() as session:

        async def ask(index: int) -> bool:
            body = ChatRequest(MODEL, words(count), options.generated, DEADLINE_S, index=index)
            sent.append(await stream_chat(session, f"http://127.0.0.1:{port}", body))
            return True

        await in_flight(options.streams, range(requests), ask)
    return sent


def ask_guidellm(port: int, options: argparse.Namespace, count: int, number: int, folder: Path) -> Any:
    """The report of one run of guidellm."""
    path = folder / f"guidellm-{number}.json"
    shape = {"prompt_tokens": count, "output_tokens": options.generated, "samples": options.requests}
    extra = {"temperature": 0, "cache_prompt": False}
    rate = ["concurrent", "--rate", str(options.streams)] if options.streams > 1 else ["synchronous"]
    command: list[str | Path] = [
        *(environment("guidellm") / "bin" / "guidellm", "benchmark", "run"),
        *("--target", f"http://127.0.0.1:{port}", "--model", MODEL),
        *("--processor", folder / "tokenizer", "--data", json.dumps(shape)),
        *("--backend-args", json.dumps({"http2": False, "extra_body": extra})),
        *("--rate-type", *rate, "--max-requests", str(options.requests), "--random-seed", str(number)),
        *("--output-path", path, "--disable-progress", "--disable-console-outputs"),
    ]
    with (folder / "guidellm.log").open("ab") as log:
        done = subprocess.run(command, stdout=log, stderr=log, env=environment_variables(), check=False)
    if done.returncode or not path.exists():
        raise SystemExit(
            f"guidellm ended with {done.returncode}: {(folder / 'guidellm.log').read_text()[-2000:]}"
        )
    return json.loads(path.read_text())


@dataclass(frozen=True)
class Seen:
    """One round of one client, and the server's own times of the same requests."""

    client: Figures
    server: Server

    @property
    def ttft(self) -> float:
        """TTFT / the server's prompt time."""
        return self.client.ttft_ms / self.server.prompt_ms

    @property
    def itl(self) -> float:
        """ITL / the server's ITL."""
        return self.client.itl_ms / self.server.gap_ms

    @property
    def rate(self) -> float:
        """Tokens/s / (the server's, times the number of streams)."""
        return self.client.tokens_per_s / self.server.tokens_per_s


def one_round(
    port: int, options: argparse.Namespace, count: int, number: int, folder: Path
) -> dict[str, Seen]:
    """Run both; the order changes with each round. One request of each stream before it is discarded."""
    found: dict[str, Seen] = {}
    log = folder / "server.log"
    for name in ("ours", "guidellm") if number % 2 else ("guidellm", "ours"):
        asyncio.run(ask_ours(port, options, count, options.streams))
        time.sleep(LOG_S)
        begun = log.stat().st_size
        if name == "ours":
            figures = of_ours(
                asyncio.run(ask_ours(port, options, count, options.requests)), options.generated
            )
        else:
            report = ask_guidellm(port, options, count, number, folder)
            figures = of_guidellm(report, options.requests, options.generated)
        time.sleep(LOG_S)
        text = log.read_bytes()[begun:].decode(errors="replace")
        found[name] = Seen(figures, of_server(text, options.requests, options.generated))
    print(f"round {number}: {found}", file=sys.stderr, flush=True)
    return found


def server_command(options: argparse.Namespace, port: int) -> list[str]:
    """llama-server with one slot per stream; with two cores, its threads leave one core to the clients."""
    server = options.binaries / "llama-server"
    context = (options.prompt + options.generated + 64) * options.streams
    return [
        *(str(server), "--model", str(options.model), "--alias", MODEL, "--jinja", "--no-webui"),
        *("--host", "127.0.0.1", "--port", str(port), "--threads", str(options.threads)),
        *("--ctx-size", str(context), "--parallel", str(options.streams), *release_args(server)),
    ]


def measure(options: argparse.Namespace, folder: Path) -> list[Row]:
    """Start the server, run the rounds, stop the server."""
    port = free_port()
    tokenizer = write_tokenizer(options.model, folder / "tokenizer")
    with running(server_command(options, port), folder / "server.log") as server:
        if options.first:
            session_first(server.pid)
        wait_healthy(port)
        check_tokenizer(environment("guidellm") / "bin" / "python", tokenizer, port)
        count = options.prompt - template_tokens(port)
        if count < 1:
            raise SystemExit(
                f"the chat template alone takes {options.prompt - count} tokens; increase --prompt"
            )
        rounds = [one_round(port, options, count, n, folder) for n in range(1, options.rounds + 1)]
    bar = BAR if options.streams == 1 else None
    return [
        row("TTFT, ms", rounds, lambda seen: seen.client.ttft_ms, bar),
        row("ITL, ms", rounds, lambda seen: seen.client.itl_ms, bar),
        row("tokens/s", rounds, lambda seen: seen.client.tokens_per_s, bar),
        row("TTFT / server's prompt time", rounds, lambda seen: seen.ttft, bar),
        row("ITL / server's", rounds, lambda seen: seen.itl, bar),
        row("tokens/s / server's", rounds, lambda seen: seen.rate, bar),
        row("prompt tokens", rounds, lambda seen: seen.client.prompt_tokens, bar),
    ]


def row(name: str, rounds: list[dict[str, Seen]], figure: Callable[[Seen], float], bar: float | None) -> Row:
    """One figure over all rounds."""
    ours, theirs = ([figure(one[who]) for one in rounds] for who in ("ours", "guidellm"))
    return Row(name, ours, theirs, bar)


def main() -> None:
    """Print the table; exit 1 if a goal is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=cache_dir() / "models" / "smollm2.gguf")
    parser.add_argument("--binaries", type=Path, default=cache_dir() / "local" / "current" / "bin")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--requests", type=int, default=7, help="counted requests of each per round")
    parser.add_argument("--prompt", type=int, default=256, help="tokens, chat template included")
    parser.add_argument("--generated", type=int, default=64, help="tokens")
    parser.add_argument("--streams", type=int, default=1, help="requests at the same time")
    parser.add_argument(
        "--threads", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="threads of the server"
    )
    parser.add_argument("--first", action="store_true", help="give the server a higher priority (needs root)")
    parser.add_argument("--json", type=Path, help="write every round to this file")
    parser.add_argument("--keep", type=Path, help="keep logs and guidellm's reports in this folder")
    options = parser.parse_args()
    for needed in (options.model, options.binaries / "llama-server"):
        if not needed.exists():
            parser.error(f"no {needed}: set the path with --model or --binaries")
    name = read_gguf(options.model).name
    with tempfile.TemporaryDirectory(prefix="bench-guidellm-") as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = measure(options, folder)
    shape = f"{options.prompt} + {options.generated} tokens, {options.streams} at a time"
    print(table(f"{name}: {shape}, {options.rounds} rounds of {options.requests}", "ours", "guidellm", rows))
    if options.json:
        options.json.write_text(json.dumps(as_data(rows), indent=1) + "\n")
    sys.exit(0 if all(row.met for row in rows) else 1)


if __name__ == "__main__":
    main()
