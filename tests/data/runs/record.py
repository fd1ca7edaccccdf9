"""Makes the run folders ``loopback`` and ``kinds`` from real processes: router, pool, two backends.

    python tests/data/runs/record.py --bin DIR --model smollm2.gguf [--folder kinds]

DIR holds llama-server and rpc-server of the pinned build. Trials, requests, timings, logs, signals, exits
and diagnoses come from the real trials, router and llama-server; README.md says what stands in for a cluster.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import inspect
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import harness
import psutil
from harness.cluster.inventory import Inventory, Node
from harness.contracts.diagnosis import FailureClass
from harness.contracts.run_records import NodeFacts, Outcome, RunManifest, Trial
from harness.monitor.sample import Memory, Process, Sample, Source
from harness.router_client.chat_stream import ChatRequest
from harness.router_client.client import RouterAddress, RouterClient
from harness.runs.folder import RunFolder, read_requests, read_trials
from harness.trials.context import Context, TrialResult, grade
from harness.trials.kinds.coordinator_steps import ended_state, keep_log, run_unload
from harness.trials.kinds.inference import run_inference, run_pool
from harness.trials.kinds.load import run_load
from harness.trials.kinds.parity import run_parity
from harness.trials.kinds.soak import run_soak
from harness.trials.load_generator.samples import NodeClocks, Sampler
from harness.trials.profile.profile import Profile
from harness.trials.profile.steps import InferenceStep, LoadStep, ParityStep, PoolStep, SoakStep, UnloadStep
from harness.trials.questions import answer_questions
from harness.trials.run_spec import FORMULAS

HERE = Path(__file__).parent
ROUTER, COORDINATOR, POOL = 52135, 52180, 52181
RPC = {"node1": 52101, "node2": 52102}
GROUPS = {"node1": ["backends"], "node2": ["backends", "head", "pool"]}
LIMIT = 1 << 30
EVERY_S = 1.0
KEY = "loopback-only-0123456789"
MODEL = "smollm2-sharded"


class Bench:
    """The processes of the stand-in cluster."""

    def __init__(self, binaries: Path, model: Path, scratch: Path) -> None:
        self.binaries, self.scratch = scratch / "bin", scratch
        self.binaries.symlink_to(binaries.resolve())
        self.backends: dict[str, subprocess.Popen[bytes]] = {}
        self.others: list[subprocess.Popen[bytes]] = []
        (scratch / "models").mkdir()
        self.model = model.resolve()
        (scratch / "models" / f"{MODEL}.gguf").symlink_to(self.model)
        (scratch / "key").write_text(KEY)

    def start(self, log: Path, *argv: str) -> subprocess.Popen[bytes]:
        """Start a process whose output goes to ``log``."""
        with log.open("ab") as out:
            return subprocess.Popen(argv, cwd=self.scratch, stdout=out, stderr=subprocess.STDOUT)

    def start_backend(self, node: str, logs: Path) -> None:
        """Start a node's rpc-server."""
        log = logs / f"{node}-llama-rpc-server.log"
        argv = [str(self.binaries / "rpc-server"), "-H", "127.0.0.1", "-p", str(RPC[node])]
        self.backends[node] = self.start(log, *argv)

    def start_rest(self, logs: Path) -> None:
        """Start the pool's server and the router."""
        server = str(self.binaries / "llama-server")
        pool = [
            server,
            "-m",
            str(self.model),
            "--alias",
            "smollm2",
            "--port",
            str(POOL),
            "-t",
            "2",
            "--no-webui",
        ]
        self.others.append(self.start(self.scratch / "pool.log", *pool))
        endpoints = {n: f"127.0.0.1:{p}" for n, p in RPC.items()}
        config = {
            "address": "127.0.0.1",
            "port": ROUTER,
            "router_key_file": str(self.scratch / "key"),
            "admin_key_file": str(self.scratch / "key"),
            "models_dir": str(self.scratch / "models"),
            "backends": [{"node": n, "endpoint": e, "memory_bytes": LIMIT} for n, e in endpoints.items()],
            "pool": [{"node": "node2", "url": f"http://127.0.0.1:{POOL}", "models": ["smollm2"]}],
            "large_model_bytes": 1,
            "llama_server": server,
            "log_dir": str(self.scratch / "coordinator"),
            "coordinator_port": COORDINATOR,
            "drain_s": 0,
        }
        (self.scratch / "router.json").write_text(json.dumps(config))
        router = [shutil.which("llama-router") or "llama-router", "--config", "router.json"]
        self.others.append(self.start(self.scratch / "router.log", *router))

    def stop(self) -> None:
        """End everything that was started."""
        for child in [*reversed(self.others), *self.backends.values()]:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(10)
            child.kill()


class LocalSampler(Sampler):
    """Stands in for the node monitors: a node's memory is what its own processes hold."""

    def __init__(self, bench: Bench, run: RunFolder) -> None:
        super().__init__([], run, 0, NodeClocks(), lambda node, text: None)
        self.bench = bench

    def begin(self) -> None:
        """Start sampling."""
        super().begin()
        self._followers = [self._start(None, self._sample())]

    async def _sample(self) -> None:
        while True:
            for node in RPC:
                self.add(self._look(node))
            await asyncio.sleep(EVERY_S)

    def _look(self, node: str) -> Sample:
        found = [Process(**facts) for facts in self._processes(node)]
        used = sum(p.rss_bytes for p in found)
        memory = Memory(
            source=Source.PROC, total_bytes=LIMIT, available_bytes=LIMIT - used, used_bytes=used,
            cache_bytes=0, swap_total_bytes=0, swap_used_bytes=sum(p.swap_bytes for p in found),
            major_faults=0,
        )  # fmt: skip
        return Sample(time_ns=time.time_ns(), node=node, memory=memory, cpu_s=0, processes=found)

    def _processes(self, node: str) -> Iterator[dict[str, object]]:
        pids = [self.bench.backends[node].pid]
        if node == "node2":
            for child in self.bench.others:
                with contextlib.suppress(psutil.Error):
                    pids += [child.pid, *(p.pid for p in psutil.Process(child.pid).children())]
        for pid in pids:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                held = process.memory_full_info()
                yield {
                    "pid": pid, "name": process.name(), "rss_bytes": held.rss, "swap_bytes": held.swap,
                    "cpu_s": sum(process.cpu_times()[:2]),
                }  # fmt: skip


async def stop_while_busy(ctx: Context, trial: str) -> TrialResult:
    """Unload with a request in flight, as the founding report's test script did without knowing."""
    busy = asyncio.create_task(
        ctx.router.chat(ChatRequest(MODEL, "Count.", 400, 30, trial=trial, index=1, warmup=True))
    )
    await asyncio.sleep(1.0)
    result = await run_unload(
        ctx, trial, UnloadStep(kind="unload", model=MODEL, expected="stopped_busy", deadline_s=1)
    )
    ctx.run.append_request(await busy)
    return result


async def lose_backend(ctx: Context, trial: str, bench: Bench) -> TrialResult:
    """Kill one backend, then ask."""
    ctx.event(time.time_ns(), "fault", trial, "node1", message="SIGKILL sent to rpc-server of node1")
    bench.backends["node1"].kill()
    bench.backends["node1"].wait()
    step = InferenceStep(
        kind="inference", model=MODEL, prompt_tokens=48, generated_tokens=16, repeats=1, expected=None
    )
    result = await run_inference(ctx, trial, step)
    state = await ended_state(ctx)
    await keep_log(ctx, state)
    if state is None or state.diagnosis is None:
        return result
    return grade(result.answer, None, state.diagnosis, state, result.metrics)


async def kill_backend(ctx: Context, trial: str, bench: Bench) -> TrialResult:
    """The same as a fault trial tells it: what was done to which node, and whether the diagnosis names it."""
    injected_ns = time.time_ns()
    result = await lose_backend(ctx, trial, bench)
    expected = FailureClass.BACKEND_LOST
    seen = result.diagnosis.failure_class if result.diagnosis else None
    details = {
        "fault": "kill", "node": "node1", "moment": "idle", "injected_ns": injected_ns, "undone_ns": None
    }  # fmt: skip
    outcome = Outcome.PASSED if seen is expected else Outcome.FAILED
    return dataclasses.replace(result, outcome=outcome, expected=expected, details=details)


async def record(bench: Bench, run: RunFolder, version: str) -> None:
    """Run the trials into the folder."""
    nodes = {
        name: Node(
            name, "127.0.0.1", frozenset(["backends"] + (["head", "pool"] if name == "node2" else [])), {}
        )
        for name in RPC
    }
    started = time.time_ns()
    async with RouterClient(RouterAddress(f"http://127.0.0.1:{ROUTER}", KEY, KEY)) as router:
        models = await until_up(router)
        sampler = LocalSampler(bench, run)
        inventory = Inventory(Path("loopback"), nodes)
        ctx = Context(inventory, router, run, sampler, models, {}, NodeClocks(), None, lambda text: None)
        manifest = describe(run, started, models, version)
        run.write_manifest(manifest)
        sampler.begin()
        # There is no SSH to these "nodes": nobody makes them cold, nobody asks them after an end.
        no_nodes = mock.AsyncMock(return_value={})
        with (
            mock.patch("harness.trials.kinds.load.make_cold", no_nodes),
            mock.patch("harness.trials.kinds.coordinator_steps.diagnose_with_nodes", no_nodes),
        ):
            for number, (title, kind, act) in enumerate(STEPS[run.path.name](bench), 1):
                await one_trial(ctx, f"{number:02d}-{title}", kind, act)
        await sampler.end()
    trials, requests = list(read_trials(run.path)), list(read_requests(run.path))
    failed = any(trial.outcome is Outcome.FAILED for trial in trials)
    run.write_manifest(
        manifest.model_copy(
            update={
                "ended_ns": time.time_ns(),
                "outcome": Outcome.FAILED if failed else Outcome.PASSED,
                "questions": answer_questions(Profile(trials=ASKED), trials, requests),
            }
        )
    )


Act = Callable[[Context, str], Awaitable[TrialResult]]


def steps(bench: Bench) -> list[tuple[str, str, Act]]:
    """Title, kind and action of each trial."""
    pool = PoolStep(kind="pool", model="smollm2", requests=3, prompt_tokens=48, generated_tokens=16)
    load = LoadStep(kind="load", model=MODEL, cache="cold")
    warm = LoadStep(kind="load", model=MODEL, cache="warm")
    local = LoadStep(
        kind="load", model=MODEL, cache="cold", n_gpu_layers=0, expected=FailureClass.NOT_DISTRIBUTED
    )
    ask = {"kind": "inference", "model": MODEL, "generated_tokens": 16}
    short = InferenceStep(**ask, prompt_tokens=48, repeats=3)
    long = InferenceStep(**ask, prompt_tokens=512, repeats=2)
    unload = UnloadStep(kind="unload", model=MODEL)
    return [
        ("smollm2-pool", "pool", lambda c, t: run_pool(c, t, pool)),
        (f"{MODEL}-cold-load", "load", lambda c, t: run_load(c, t, load)),
        (f"{MODEL}-inference-48x3", "inference", lambda c, t: run_inference(c, t, short)),
        (f"{MODEL}-warm-load", "load", lambda c, t: run_load(c, t, warm)),
        (f"{MODEL}-inference-512x2", "inference", lambda c, t: run_inference(c, t, long)),
        (f"{MODEL}-stop-busy", "unload", stop_while_busy),
        (f"{MODEL}-cold-load-ngl0", "load", lambda c, t: run_load(c, t, local)),
        (f"{MODEL}-unload", "unload", lambda c, t: run_unload(c, t, unload)),
        (f"{MODEL}-warm-load", "load", lambda c, t: run_load(c, t, warm)),
        (f"{MODEL}-lost-backend", "inference", lambda c, t: lose_backend(c, t, bench)),
    ]


def kinds(bench: Bench) -> list[tuple[str, str, Act]]:
    """Requests at once, a soak, parity and a fault."""
    ask = {"kind": "inference", "model": MODEL, "generated_tokens": 16}
    load = LoadStep(kind="load", model=MODEL, cache="cold", parallel=4)
    soak = SoakStep(kind="soak", model=MODEL, requests=12, generated_tokens=8)
    parity = ParityStep(kind="parity", model=MODEL, tokens=24)
    crowds = [InferenceStep(**ask, prompt_tokens=48, concurrency=n, repeats=6) for n in (1, 2, 4)]
    lengths = [InferenceStep(**ask, prompt_tokens=n, repeats=3) for n in (128, 256)]
    asked = [
        (f"{MODEL}-inference-{s.prompt_tokens}x{s.repeats}-{s.concurrency}", s) for s in [*crowds, *lengths]
    ]
    return [
        (f"{MODEL}-cold-load", "load", lambda c, t: run_load(c, t, load)),
        *((title, "inference", partial(_infer, step)) for title, step in asked),
        (f"{MODEL}-soak", "soak", lambda c, t: run_soak(c, t, soak)),
        (f"{MODEL}-parity", "parity", lambda c, t: run_parity(c, t, parity)),
        (f"{MODEL}-cold-load-again", "load", lambda c, t: run_load(c, t, load)),
        (f"{MODEL}-kill-node1", "fault", lambda c, t: kill_backend(c, t, bench)),
    ]


async def _infer(step: InferenceStep, ctx: Context, trial: str) -> TrialResult:
    return await run_inference(ctx, trial, step)


STEPS = {"loopback": steps, "kinds": kinds}
ASKED: list[Any] = [
    {"kind": "load", "model": MODEL},
    {"kind": "inference", "model": MODEL, "prompt_tokens": 48, "generated_tokens": 16},
]
"""What the questions of a recorded run are made from: the models and kinds that both folders have."""


async def one_trial(ctx: Context, trial: str, kind: str, act: Act) -> None:
    """Act, and append what was found."""
    started = time.time_ns()
    ctx.event(started, "trial_start", trial)
    result = await act(ctx, trial)
    ended = time.time_ns()
    print(f"{trial}: {result.outcome} {result.answer}", flush=True)
    ctx.run.append_trial(
        Trial(
            id=trial, kind=kind, model="smollm2" if kind == "pool" else MODEL, started_ns=started,
            ended_ns=ended, outcome=result.outcome, answer=result.answer, expected=result.expected,
            coordinator=result.coordinator, diagnosis=result.diagnosis, metrics=result.metrics,
            peak=ctx.sampler.series.peaks(started, ended), details=result.details,
        )
    )  # fmt: skip
    ctx.event(ended, "trial_end", trial, outcome=result.outcome)


async def until_up(router: RouterClient) -> dict[str, dict[str, object]]:
    """Models of the router, once it answers."""
    for _ in range(60):
        with contextlib.suppress(harness.errors.HarnessError):
            return await router.models()
        await asyncio.sleep(0.5)
    raise SystemExit("the router did not come up")


def describe(run: RunFolder, started: int, models: dict[str, dict[str, object]], version: str) -> RunManifest:
    """``run.json``."""
    return RunManifest(
        run=run.path.name,
        profile=run.path.name,
        profile_text=inspect.getsource(STEPS[run.path.name]),
        inventory="loopback",
        started_ns=started,
        harness_version=harness.__version__,
        command=["python", "tests/data/runs/record.py", "--folder", run.path.name],
        versions={"llama.cpp": version},
        nodes=[
            NodeFacts(
                name=name, address="127.0.0.1", groups=GROUPS[name],
                memory_total_bytes=psutil.virtual_memory().total, memory_limit_bytes=LIMIT,
                memory_available_bytes=LIMIT, cpus=os.cpu_count(), cpu="this machine", build=6751,
                commit="01d2bdc2b", platform="loopback",
            )
            for name in RPC
        ],
        models=models,
        formulas=FORMULAS,
    )  # fmt: skip


def main() -> None:
    """Record the folder anew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--folder", choices=sorted(STEPS), default="loopback")
    options = parser.parse_args()
    shutil.rmtree(HERE / options.folder, ignore_errors=True)
    run = RunFolder.create(HERE, options.folder)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options.bin.resolve(), options.model, Path(scratch))
        try:
            for node in RPC:
                bench.start_backend(node, run.logs)
            bench.start_rest(run.logs)
            asyncio.run(record(bench, run, "6751"))
        finally:
            bench.stop()
            run.close()


if __name__ == "__main__":
    main()
