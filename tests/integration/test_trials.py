"""Trials against real parts: a llama-server for the client, a router with backends for a whole run.

SSH is the one double: a script named ``ssh`` that runs the remote command on this computer.
"""

import asyncio
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from harness.contracts.diagnosis import FailureClass
from harness.contracts.run_records import Outcome, Request, Trial
from harness.errors import HarnessError
from harness.router_client.chat_stream import ChatRequest, chat_session, stream_chat
from harness.runs.folder import read_events, read_manifest, read_requests, read_trials
from harness.runs.metrics import decode_rate, server_decode_rate
from harness.trials.load_generator.requests import word_count, words
from harness.trials.progress import RunProgress
from harness.trials.run_spec import Options
from harness.trials.runner import RunResult, run_benchmark
from rich.console import Console
from tests.integration.router_stack import ADMIN_KEY, ROUTER_KEY, RouterStack, free_port, listens, wait_for

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(llama_build: Path, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a bare llama-server with the real small model."""
    port = free_port()
    with (tmp_path_factory.mktemp("server") / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(str(llama_build / "llama-server"), "-m", str(smollm2), "--alias", "smollm2"),
                *("--host", "127.0.0.1", "--port", str(port), "-c", "2048", "-np", "1", "--no-webui"),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(lambda: listens(port), 30, "llama-server")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(10)


async def ask(url: str, count: int, generated: int, deadline_s: float = 120) -> Request:
    async with chat_session() as session:
        for _ in range(100):
            seen = await stream_chat(
                session, url, ChatRequest("smollm2", words(count), generated, deadline_s)
            )
            if seen.status != 503:  # 503: the model is still being read
                return seen
            await asyncio.sleep(0.2)
    raise AssertionError("llama-server does not become ready")


async def sized(url: str, tokens: int, generated: int) -> Request:
    first = word_count(tokens)
    counted = (await ask(url, first, 1)).prompt_tokens
    assert counted is not None
    return await ask(url, word_count(tokens, counted - first), generated)


@pytest.mark.parametrize("tokens", [35, 48, 512])
async def test_prompt_has_exactly_the_tokens_asked_for(server: str, tokens: int) -> None:
    seen = await sized(server, tokens, 1)
    assert seen.prompt_tokens == tokens
    assert seen.server["prompt_n"] == tokens, "nothing of the earlier prompt was reused"


async def test_end_of_sequence_is_banned(server: str) -> None:
    await ask(server, 1, 1)
    free = ChatRequest("smollm2", "What is 2+2?", 40, 120, extra={"ignore_eos": False})
    async with chat_session() as session:
        short = await stream_chat(session, server, free)
        banned = await stream_chat(session, server, replace(free, extra={}))
    assert short.completion_tokens is not None
    assert short.completion_tokens < 40, "left alone, the model ends this answer early"
    assert banned.completion_tokens == banned.server["predicted_n"] == 40


async def test_clients_rate_is_the_servers(server: str) -> None:
    seen = await sized(server, 48, 64)
    client, own = decode_rate(seen), server_decode_rate(seen)
    assert client is not None
    assert own is not None
    assert client == pytest.approx(own, rel=0.03)
    assert seen.ttft_s is not None
    assert seen.ttft_s >= seen.server["prompt_ms"] / 1e3
    assert len(seen.token_ns) == 64


async def test_deadline_ends_a_request_and_keeps_its_tokens(server: str) -> None:
    seen = await ask(server, 10, 2000, deadline_s=2)
    assert seen.error is not None
    assert seen.error.startswith(f"no end within 2 s ({len(seen.token_ns)} tokens came)")


async def test_server_that_is_not_there_is_an_error_of_the_request() -> None:
    async with chat_session() as session:
        seen = await stream_chat(session, "http://127.0.0.1:9", ChatRequest("m", "the", 1, 5))
    assert seen.error is not None
    assert "Cannot connect" in seen.error or "refused" in seen.error


PROFILE = [
    {"kind": "pool", "model": "tiny", "requests": 2, "prompt_tokens": 35, "generated_tokens": 4},
    {"kind": "load", "model": "smollm2", "cache": "cold", "nodes": 2, "context": 512},
    {
        "kind": "inference",
        "model": "smollm2",
        "prompt_tokens": 35,
        "generated_tokens": 8,
        "repeats": 2,
    },
    {"kind": "load", "model": "smollm2", "cache": "warm", "nodes": 2, "context": 512},
    {"kind": "load", "model": "smollm2", "nodes": 3},
    {"kind": "unload", "model": "smollm2"},
    {"kind": "load", "model": "smollm2", "n_gpu_layers": 0, "expected": "not_distributed", "context": 512},
    {"kind": "unload", "model": "smollm2"},
]


class Bench:
    """A router with two backends on this computer, an inventory that names them, and a place for runs."""

    def __init__(self, stack: RouterStack, folder: Path) -> None:
        self.stack = stack
        self.folder = folder
        self.inventory = folder / "inventory"
        self.inventory.mkdir()
        hosts = {name: {"ansible_host": "127.0.0.1"} for name in ("node1", "node2")}
        groups = {"backends": {"hosts": dict.fromkeys(hosts)}, "head": {"hosts": {"node2": None}}}
        (self.inventory / "hosts.yml").write_text(
            yaml.safe_dump({"all": {"hosts": hosts, "children": groups}})
        )
        (folder / "rpc-cache").mkdir()
        tools = folder / "bin"
        tools.mkdir()
        ssh = tools / "ssh"
        ssh.write_text('#!/bin/sh\nfor last; do :; done\nexec sh -c "$last"\n')
        ssh.chmod(0o755)
        # The services' users are not on this computer.
        runuser = tools / "runuser"
        runuser.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done; shift; exec "$@"\n')
        runuser.chmod(0o755)
        self.environment = {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "ROUTER_URL": stack.url,
            "ROUTER_KEY": ROUTER_KEY,
            "ROUTER_ADMIN_KEY": ADMIN_KEY,
            "LLAMA_HARNESS_STATE": str(folder / "state"),
        }

    def profile(self, *trials: object, **keys: object) -> str:
        path = self.folder / "mine.yml"
        path.write_text(yaml.safe_dump({**keys, "trials": list(trials)}))
        return str(path)


@pytest.fixture
def bench(
    llama_build: Path, smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    (tmp_path / "stack").mkdir()
    stack = RouterStack(llama_build, smollm2, tmp_path / "stack")
    made = Bench(stack, tmp_path)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("harness.cluster.inventory.NODE_RPC_CACHE", tmp_path / "rpc-cache")
    yield made
    stack.close()


async def run(bench: Bench, *trials: object, **keys: object) -> tuple[RunResult, str]:
    shown = io.StringIO()
    options = Options(bench.profile(*trials, **keys), bench.inventory, bench.folder / "reports")
    with RunProgress(Console(file=shown, width=200)) as progress:
        result = await run_benchmark(options, progress)
    return result, shown.getvalue()


async def test_run_leaves_every_trial_with_its_evidence(bench: Bench) -> None:
    (bench.folder / "rpc-cache" / "0123456789abcdef").write_bytes(b"x" * 1000)
    result, shown = await run(bench, *PROFILE)
    trials = list(read_trials(result.folder))
    assert [(t.kind, t.outcome) for t in trials] == [
        ("pool", Outcome.PASSED),
        ("load", Outcome.PASSED),
        ("inference", Outcome.PASSED),
        ("load", Outcome.PASSED),
        ("load", Outcome.SKIPPED),
        ("unload", Outcome.PASSED),
        ("load", Outcome.PASSED),
        ("unload", Outcome.PASSED),
    ], "\n".join(f"{t.id}: {t.answer}" for t in trials)
    _, cold, inference, warm, skipped, unloaded, local, _ = trials
    _check_loads(cold, warm)
    removed = [cold.details["made_cold"][node]["rpc_cache_removed"]["bytes"] for node in ("node1", "node2")]
    assert sum(removed) == 1000, "both nodes are this computer: one of them found the file"
    assert "has 2 backends, the trial asks for 3" in skipped.answer
    assert unloaded.diagnosis is not None
    assert unloaded.diagnosis.failure_class is FailureClass.STOPPED
    assert local.diagnosis is not None
    assert local.diagnosis.failure_class is FailureClass.NOT_DISTRIBUTED
    assert "offloaded 0/31" in local.diagnosis.evidence[0].line
    assert inference.metrics["requests"] == 2
    measured = [r for r in read_requests(result.folder) if r.trial == inference.id and not r.warmup]
    assert [(r.route, r.prompt_tokens, r.completion_tokens) for r in measured] == [("coordinator", 35, 8)] * 2
    kinds = [event.kind for event in read_events(result.folder)]
    assert (kinds[0], kinds[-1]) == ("run_start", "run_end")
    assert kinds.count("signal") == kinds.count("exit") == 3
    assert kinds.count("warning") >= 2, "no node has a monitor here, and the run says so"
    assert result.outcome is read_manifest(result.folder).outcome is Outcome.PASSED
    assert len(pd.read_parquet(result.folder / "trials.parquet")) == len(trials)
    assert len(list((result.folder / "logs").glob("*-smollm2.log"))) == 3
    assert "Profile mine: 8 trials, about" in shown


def _check_loads(cold: Trial, warm: Trial) -> None:
    for load in (cold, warm):
        assert load.coordinator is not None
        assert load.coordinator.report is not None
        assert load.coordinator.report.distributed
        assert 0 < load.metrics["load_s"] <= load.metrics["canary_s"]
        assert load.metrics["overhead_s"] > 0
    assert cold.coordinator is not None
    assert warm.coordinator is not None
    assert cold.coordinator.plan == warm.coordinator.plan
    assert cold.coordinator.start_id != warm.coordinator.start_id


async def test_backend_that_dies_is_the_diagnosis_of_the_trial(bench: Bench) -> None:
    long = {
        "kind": "inference",
        "model": "smollm2",
        "prompt_tokens": 35,
        "generated_tokens": 400,
        "repeats": 1,
    }
    task = asyncio.create_task(run(bench, {"kind": "load", "model": "smollm2"}, long))
    await _tokens_flow(bench)
    bench.stack.backends[0].kill()
    result, _ = await task
    inference = list(read_trials(result.folder))[-1]
    assert inference.outcome is Outcome.FAILED
    assert inference.diagnosis is not None
    assert inference.diagnosis.failure_class is FailureClass.BACKEND_LOST, inference.answer
    assert result.outcome is Outcome.FAILED


async def test_backends_compute_what_one_machine_computes(bench: Bench) -> None:
    parity = {"kind": "parity", "model": "smollm2", "context": 512}
    result, _ = await run(bench, parity, parity | {"nodes": 1})
    trials = list(read_trials(result.folder))
    assert [t.outcome for t in trials] == [Outcome.PASSED] * 2, "\n".join(t.answer for t in trials)
    assert [(t.metrics["tokens_compared"], t.metrics["tokens_equal"]) for t in trials] == [(32, 32)] * 2
    both, one = trials
    assert (both.details["seen"]["where"], one.details["seen"]["where"]) == ("node1, node2", "node1")
    assert both.details["reference"]["text"] == one.details["seen"]["text"] != ""
    assert both.metrics["largest_logprob_gap"] < 0.01


async def test_streams_share_the_slots_of_a_load(bench: Bench) -> None:
    load = {"kind": "load", "model": "smollm2", "parallel": 2, "context": 1024}
    asked = {
        "kind": "inference",
        "model": "smollm2",
        "prompt_tokens": 35,
        "generated_tokens": 8,
        "repeats": 4,
    }
    result, _ = await run(bench, load, asked | {"concurrency": [1, 2, 3]})
    trials = list(read_trials(result.folder))[1:]
    assert [t.outcome for t in trials] == [Outcome.PASSED] * 3, "\n".join(t.answer for t in trials)
    assert [t.metrics["concurrency"] for t in trials] == [1, 2, 3]
    assert "3 at once on 2 slots: the rest waited" in trials[2].answer
    assert "at once" not in trials[1].answer
    sent = [r for r in read_requests(result.folder) if r.trial == trials[1].id and not r.warmup]
    assert sorted(r.index for r in sent) == [1, 2, 3, 4]
    first, second = sorted(sent, key=lambda one: one.sent_ns)[:2]
    assert second.sent_ns < (first.done_ns or 0), "two were in flight at once"


async def test_soak_counts_what_fails_and_what_restarts_and_goes_on(bench: Bench) -> None:
    load = {"kind": "load", "model": "smollm2", "context": 512}
    soak = {"kind": "soak", "model": "smollm2", "requests": 12, "generated_tokens": 60}
    calm, _ = await run(bench, load, soak)
    quiet = list(read_trials(calm.folder))[1]
    assert (quiet.outcome, quiet.metrics["requests"], quiet.metrics["restarts"]) == (Outcome.PASSED, 12, 0)
    assert quiet.details["rate_drift"]["low"] <= quiet.metrics["rate_drift_percent_per_hour"]

    task = asyncio.create_task(run(bench, load, soak | {"requests": 40}))
    await _tokens_flow(bench)
    bench.stack.backends[0].kill()
    await asyncio.sleep(1)
    bench.stack.backends[0].start()
    result, _ = await task
    hurt = list(read_trials(result.folder))[1]
    assert hurt.outcome is Outcome.FAILED
    assert hurt.metrics["restarts"] == len(hurt.details["coordinator_starts"]) >= 1, hurt.answer
    assert hurt.diagnosis is not None
    assert hurt.diagnosis.failure_class is FailureClass.BACKEND_LOST, hurt.answer
    last = list(read_requests(result.folder))[-1]
    assert last.error is None, "the soak went on after the restart"


async def test_run_goes_on_after_a_failure_round_by_round_and_keeps_its_seed(bench: Bench) -> None:
    pool = {"kind": "pool", "model": "tiny", "requests": 1, "prompt_tokens": 35, "generated_tokens": 4}
    wrong = {"kind": "unload", "model": "smollm2", "expected": "oom_killed"}
    load = {"kind": "load", "model": "smollm2", "context": 512}
    result, shown = await run(bench, load, wrong, pool, repeats=2, order="shuffled")
    manifest, trials = read_manifest(result.folder), list(read_trials(result.folder))
    rounds = [sorted(t.kind for t in trials[:3]), sorted(t.kind for t in trials[3:])]
    assert rounds == [["load", "pool", "unload"]] * 2
    answers = "\n".join(f"{t.id}: {t.answer}" for t in trials)
    assert {t.kind for t in trials if t.outcome is Outcome.FAILED} == {"unload"}, answers
    assert manifest.outcome is Outcome.FAILED
    assert f"--seed {manifest.seed} gives it again" in shown


async def test_ctrl_c_unloads_and_keeps_what_there_is(bench: Bench) -> None:
    long = {"kind": "inference", "model": "smollm2", "prompt_tokens": 35, "generated_tokens": 2000}
    profile = bench.profile({"kind": "load", "model": "smollm2", "context": 4096}, long)
    reports = bench.folder / "reports"
    process = await _typed(bench, "--profile", profile)
    await _tokens_flow(bench)
    process.send_signal(signal.SIGINT)
    shown, _ = await asyncio.wait_for(process.communicate(), 90)
    assert process.returncode == 130, shown.decode()
    folder = next(reports.iterdir())
    assert read_manifest(folder).outcome is Outcome.INTERRUPTED
    assert [t.outcome for t in read_trials(folder)] == [Outcome.PASSED, Outcome.INTERRUPTED]
    assert (folder / "trials.parquet").exists()
    assert "exit" in [event.kind for event in read_events(folder)], "the coordinator was stopped, and said so"


async def test_run_killed_in_the_middle_goes_on_where_it_was(bench: Bench) -> None:
    pool = {"kind": "pool", "model": "tiny", "requests": 1, "prompt_tokens": 35, "generated_tokens": 4}
    long = {"kind": "inference", "model": "smollm2", "prompt_tokens": 35, "generated_tokens": 300}
    load = {"kind": "load", "model": "smollm2", "context": 1024}
    profile = bench.profile(pool, load, long | {"repeats": 2}, {"kind": "unload", "model": "smollm2"})
    process = await _typed(bench, "--profile", profile)
    await _tokens_flow(bench)
    process.kill()
    await process.communicate()
    (folder,) = (bench.folder / "reports").iterdir()
    before = [trial.model_dump() for trial in read_trials(folder)]
    assert [trial["kind"] for trial in before] == ["pool", "load"]
    assert read_manifest(folder).outcome is None

    other = await _typed(bench, "--profile", profile, "--reports", str(bench.folder / "elsewhere"))
    shown, _ = await asyncio.wait_for(other.communicate(), 60)
    assert other.returncode == 1
    assert f"run {folder.name}" in shown.decode(), "the cluster is still leased to the run that was killed"

    again = await _typed(bench, "--resume", "last")
    shown, _ = await asyncio.wait_for(again.communicate(), 180)
    assert again.returncode == 0, shown.decode()
    assert "2 of 4 trials are done" in shown.decode()
    trials = list(read_trials(folder))
    assert [trial.model_dump() for trial in trials[:2]] == before
    assert [(t.kind, t.outcome) for t in trials[2:]] == [
        ("inference", Outcome.PASSED),
        ("unload", Outcome.PASSED),
    ]
    sent = [r.index for r in read_requests(folder) if r.trial == trials[2].id and not r.warmup]
    assert sent == [1, 2], "nothing is left of the trial that was cut short"
    manifest = read_manifest(folder)
    assert manifest.outcome is Outcome.PASSED
    assert len(manifest.resumed_ns) == 1
    answers = {one.text: (one.verdict, one.answer) for one in manifest.questions}
    assert answers["Does smollm2 answer without a crash?"] == ("yes", "2 of 2 requests were answered")
    assert [event.kind for event in read_events(folder)].count("resumed") == 1
    assert (folder / "report.html").exists()


async def test_run_is_refused_while_others_have_requests_and_leaves_them_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.trials.preflight.ENDING_TRIES", 1)
    load = {"kind": "load", "model": "smollm2", "context": 2048}
    assert (await asyncio.to_thread(bench.stack.admin, "load", {"model": "smollm2", "context": 2048}))[
        0
    ] == 200
    body = {"model": "smollm2", "prompt": "Once upon", "max_tokens": 1500, "ignore_eos": True}
    other = asyncio.create_task(asyncio.to_thread(bench.stack.call, "/v1/completions", body))
    await _tokens_flow(bench)
    with pytest.raises(HarnessError, match=r"1 requests of others .* \(smollm2\) .* --force"):
        await run(bench, load)
    assert not list((bench.folder / "reports").iterdir())
    _, state = await asyncio.to_thread(bench.stack.admin, "coordinator")
    assert (state["phase"], state["requests_in_flight"], state["signals"]) == ("ready", 1, [])
    await asyncio.to_thread(bench.stack.admin, "unload", {"deadline_s": 0})
    await other


async def _typed(bench: Bench, *arguments: str) -> asyncio.subprocess.Process:
    """``harness run benchmark`` on the bench's inventory, as a process of its own."""
    harness = Path(sys.executable).with_name("harness")
    reports = () if "--reports" in arguments else ("--reports", str(bench.folder / "reports"))
    return await asyncio.create_subprocess_exec(
        *(str(harness), "run", "benchmark", "--inventory", str(bench.inventory), *reports, *arguments),
        env=os.environ | bench.environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def _tokens_flow(bench: Bench) -> None:
    """Wait until the coordinator has a request in flight that is not the warm-up or the canary."""
    busy = 0
    for _ in range(600):
        _, state = await asyncio.to_thread(bench.stack.admin, "coordinator")
        busy = busy + 1 if state.get("requests_in_flight") else 0
        if busy >= 10:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("no request stays in flight")
