"""Compare load, prompt and decode of several releases over the same number of local rpc-servers, in turns.

    benchmarks/pins.py --pins 6751,6792,10566,11434,11549 --rounds 6 --markdown

Each measurement starts new rpc-servers and a new llama-server of one release, with all layers on the
rpc-servers, in equal parts. Rounds are interleaved, and each round starts with another release, so that
other work on the machine affects all releases equally. Ratios are computed within a round, to the first
release that did not fail.

    load      exec of llama-server -> /health 200
    prompt    prompt_per_second of llama.cpp's timings, without a cached prompt
    decode    (predicted_n - 1) / predicted_ms of llama.cpp's timings

One answer to the same prompt comes before the measured answer. If a release does not start or does not answer
within --deadline, the table names it and it is not measured again.
"""

import argparse
import http.client
import json
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import Popen
from typing import Any

from harness.errors import HarnessError
from harness.llama.gguf import GgufModel
from harness.llama.load_log import parse_load_log
from harness.release_proof.activity import observe
from harness.release_proof.gate import Gate, proof_model
from harness.release_proof.local import Backend, child, free_ports, how_ended, local_build, loopback_backends

from bench import server_command
from pins_table import Figures, Pins, markdown, text

WINDOW_S = 5.0
WATCH_S = 0.05


class PinFailed(Exception):
    """A release gave no figures; the message says why."""


class Server:
    """A llama-server that is starting or ready, with its backends."""

    def __init__(
        self, process: Popen[bytes], port: int, backends: Sequence[Backend], deadline_s: float
    ) -> None:
        self._process, self._port, self._backends, self._deadline_s = process, port, backends, deadline_s
        self._began = time.monotonic()

    def wait_ready(self) -> float:
        """Seconds from the start to the first 200 from /health."""
        while time.monotonic() - self._began < self._deadline_s:
            with suppress(ConnectionRefusedError):
                if self._ask("/health")[0] == 200:
                    return time.monotonic() - self._began
            if (code := self._process.poll()) is not None:
                raise PinFailed(f"llama-server {how_ended(code)} while it loaded")
            time.sleep(WATCH_S)
        raise PinFailed(self._late("load"))

    def timings(self, prompt: list[int], generated: int) -> dict[str, float]:
        """llama.cpp's timings of one answer with this number of tokens."""
        body = {"prompt": prompt, "n_predict": generated, "temperature": 0}
        status, answer = self._ask("/completion", body | {"cache_prompt": False, "ignore_eos": True})
        if status != 200:
            raise PinFailed(f"llama-server answered {status}: {str(answer)[:200]}")
        timings: dict[str, float] = answer["timings"]
        if (timings["prompt_n"], timings["predicted_n"]) != (len(prompt), generated):
            raise PinFailed(f"{timings['prompt_n']} + {timings['predicted_n']} tokens, not as requested")
        return timings

    def _ask(self, path: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=self._deadline_s)
        try:
            headers = {"content-type": "application/json"}
            connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except TimeoutError:
            raise PinFailed(self._late(path)) from None
        except ConnectionRefusedError:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            time.sleep(1)  # a process still runs for a moment after it closes its sockets
            code = self._process.poll()
            raise PinFailed(
                f"llama-server {how_ended(code)}" if code is not None else f"{path}: {error!r}"
            ) from error

    def _late(self, what: str) -> str:
        """Describe whether the server hangs or is slow."""
        named = {self._process.pid: "llama-server"}
        named |= {backend.process.pid: f"rpc-server {backend.endpoint}" for backend in self._backends}
        activity = observe(named, [backend.port for backend in self._backends], WINDOW_S)
        print("\n".join(activity.lines()), file=sys.stderr)
        kind = "hung" if activity.hung else "slow, not hung"
        return f"{kind}: {what}: no end after {self._deadline_s:g} s"


def measure(options: argparse.Namespace, binaries: Path, model: GgufModel, folder: Path) -> Figures:
    """One release in one round.

    Raises:
        PinFailed: the release gave no figures.
    """
    span = model.vocab_size - 100
    prompt = [100 + 7919 * index % span for index in range(options.prompt)]
    (port,), log = free_ports(1), folder / "llama-server.log"
    given = argparse.Namespace(**vars(options) | {"model": model.path}, binaries=binaries)
    try:
        with (
            loopback_backends(binaries, options.backends, folder, options.threads) as backends,
            child(server_command(given, ",".join(one.endpoint for one in backends), port), log) as process,
        ):
            server = Server(process, port, backends, options.deadline)
            load_s = server.wait_ready()
            report = parse_load_log(log.read_text(errors="replace").splitlines())
            holding = [one for one in report.buffers if one.device.startswith("RPC") and one.model_bytes]
            if not report.distributed or len(holding) != options.backends:
                raise PinFailed(
                    f"{report.offloaded}/{report.layers_total} layers on {len(holding)} rpc-servers"
                )
            server.timings(prompt, 2)
            timings = server.timings(prompt, options.generated)
    except HarnessError as error:
        raise PinFailed(str(error)) from error
    decode = (timings["predicted_n"] - 1) / timings["predicted_ms"] * 1e3
    return Figures(load_s, timings["prompt_per_second"], decode)


def run(options: argparse.Namespace, binaries: dict[int, Path], model: GgufModel, logs: Path) -> Pins:
    """Run all rounds; each starts with another release."""
    measured: dict[int, list[Figures]] = {pin: [] for pin in binaries}
    failed: dict[int, str] = {}
    order = list(binaries)
    for number in range(1, options.rounds + 1):
        for pin in [one for one in order if one not in failed]:
            folder = logs / f"{pin}-{number}"
            folder.mkdir(parents=True, exist_ok=True)
            try:
                found = measure(options, binaries[pin], model, folder)
            except PinFailed as error:
                failed[pin] = f"round {number}: {error}"
                print(f"{pin}: {failed[pin]}; logs: {folder}", file=sys.stderr, flush=True)
                continue
            measured[pin].append(found)
            shown = f"load {found.load_s:.2f} s, prompt {found.prompt_tokens_per_s:.2f} tokens/s"
            shown += f", decode {found.decode_tokens_per_s:.2f} tokens/s"
            print(f"round {number}: {pin}: {shown}", file=sys.stderr, flush=True)
        order.append(order.pop(0))
    return Pins(measured, failed)


def builds(text: str) -> list[int]:
    """Parse build numbers separated by commas."""
    return [int(word) for word in text.split(",")]


def main() -> None:
    """Print the table; exit 1 if no release gave figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    pins_default = "6751,6792,10566,11434,11549"
    parser.add_argument("--pins", type=builds, default=pins_default, help="builds; the first is the base")
    parser.add_argument("--model", default="1b-q8_0", help="a name in the cache, or a GGUF path")
    parser.add_argument("--backends", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--prompt", type=int, default=256, help="tokens")
    parser.add_argument("--generated", type=int, default=32, help="tokens")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1, help="threads of each program")
    parser.add_argument("--flash-attn", action="store_true")
    parser.add_argument("--deadline", type=float, default=300, help="seconds for a load, and for an answer")
    parser.add_argument("--markdown", action="store_true", help="print the table for a page of docs")
    parser.add_argument("--json", type=Path, help="write every round to this file")
    parser.add_argument("--keep", type=Path, help="keep logs in this folder")
    options = parser.parse_args()
    try:
        model = proof_model(options.model)
        Gate(options.pins[0], options.backends, options.rounds, options.deadline).check(model)
        binaries = {pin: local_build(pin) for pin in options.pins}
    except HarnessError as error:
        parser.error(f"{error}")
    with model.path.open("rb") as file:  # fills the page cache, for the first load
        while file.read(1 << 24):
            pass
    logs = options.keep or Path(tempfile.mkdtemp(prefix="bench-pins-"))
    pins = run(options, binaries, model, logs)
    if not options.keep and not pins.failed:
        shutil.rmtree(logs)
    shape = f"{options.prompt} + {options.generated} tokens over {options.backends} rpc-servers"
    title = f"{model.name}: {shape}, {options.rounds} rounds"
    print(markdown(pins) if options.markdown else text(title, pins))
    if options.json:
        facts = {"command": shlex.join(sys.argv), "title": title, **pins.data()}
        options.json.write_text(json.dumps(facts, indent=1) + "\n")
    sys.exit(0 if pins.base else 1)


if __name__ == "__main__":
    main()
