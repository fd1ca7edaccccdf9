"""Synthetic models in a real llama-server, and the plan's forecast beside what it prints."""

import http.client
import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness.llama.gguf import read_gguf
from harness.llama.load_log import parse_load_log
from harness.llama.releases.catalogue import installed_build
from harness.llama.synthetic.shapes import BASE_TYPES
from harness.llama.synthetic.writer import synthesise
from harness.models import model_bytes
from harness.planner.placement import DeviceCapacity, make_plan
from harness.router.models.command_line import release_args
from tests.integration.router_stack import RpcServer, free_port, wait_for

pytestmark = pytest.mark.integration

GIB = 1 << 30


@contextmanager
def llama_server(binaries: Path, model: Path, log: Path, *flags: str) -> Iterator[int]:
    """A llama-server that is ready; gives its port."""
    port = free_port()
    command = [str(binaries / "llama-server"), "-m", str(model), "--port", str(port)]
    command += ["--parallel", "1", *release_args(binaries / "llama-server"), *flags]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)

    def ready() -> bool:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            return ask(port, "GET", "/health")[0] == 200
        except OSError:
            return False

    try:
        wait_for(ready, 120, "llama-server")
        yield port
    finally:
        process.terminate()
        process.wait(30)


def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
    """Status and JSON answer of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path, json.dumps(body) if body else None)
        answer = connection.getresponse()
        return answer.status, json.load(answer)
    finally:
        connection.close()


def post(port: int, path: str, body: Any) -> dict[str, Any]:
    """JSON answer of a request that has to succeed."""
    status, answer = ask(port, "POST", path, body)
    assert status == 200, answer
    return answer


@pytest.mark.parametrize("kind", BASE_TYPES)
def test_synthetic_model_of_every_type_loads_and_generates(
    llama_build: Path, tmp_path: Path, kind: str
) -> None:
    model = synthesise("tiny", kind, tmp_path / "tiny.gguf").path
    with llama_server(llama_build, model, tmp_path / "server.log", "-c", "512") as port:
        answer = post(
            port,
            "/v1/chat/completions",
            {
                "messages": [{"role": "user", "content": "Explain how a computer's memory works."}],
                "max_tokens": 24,
                "ignore_eos": True,
                "logprobs": True,
            },
        )
    assert answer["usage"]["completion_tokens"] == 24
    assert answer["choices"][0]["message"]["content"]
    probabilities = [t["logprob"] for t in answer["choices"][0]["logprobs"]["content"]]
    assert all(-100 < p <= 0 for p in probabilities), "logits are not finite"


def test_vocabulary_encodes_words_as_tokens_and_gives_every_text_back(
    llama_build: Path, tmp_path: Path
) -> None:
    model = synthesise("tiny", "Q8_0", tmp_path / "tiny.gguf").path
    text = "The quick brown fox: naïve, 日本, 100%!\nOK?"
    with llama_server(llama_build, model, tmp_path / "server.log", "-c", "512") as port:
        tokens = post(port, "/tokenize", {"content": text})["tokens"]
        assert post(port, "/detokenize", {"tokens": tokens})["content"].strip() == text
        words = post(port, "/tokenize", {"content": "the of and to in a is that for it"})["tokens"]
    assert len(words) == 10


def test_packaged_model_is_as_large_as_the_check_of_space_takes_it(smollm2: Path) -> None:
    assert smollm2.stat().st_size == model_bytes("smollm2")


def test_forecast_equals_the_buffers_that_llama_server_prints(
    llama_build: Path, synthetic_1b: Path, tmp_path: Path
) -> None:
    """The bar is 3%; weights and KV cache should be exact, compute buffers are estimated from above."""
    model = read_gguf(synthetic_1b)
    with ExitStack() as stack:
        servers = [RpcServer(llama_build, tmp_path / f"rpc{n}.log") for n in range(4)]
        for server in servers:
            stack.callback(server.kill)
        plan = make_plan(
            model,
            [
                DeviceCapacity(f"node{n}", server.endpoint, int(gib * GIB))
                for n, (server, gib) in enumerate(zip(servers, (5.6, 11.3, 5.5, 5.8), strict=True))
            ],
            context=2048,
            build=installed_build(llama_build / "llama-server"),
        )
        flags = ["--rpc", ",".join(s.endpoint for s in plan.shares)]
        flags += ["--tensor-split", ",".join(f"{s.weight:g}" for s in plan.shares)]
        flags += ["-ngl", str(plan.n_gpu_layers), "-c", str(plan.context)]
        log = tmp_path / "server.log"
        with llama_server(llama_build, model.path, log, *flags) as port:
            assert post(port, "/completion", {"prompt": "Hello", "n_predict": 1})["tokens_predicted"] == 1
    report = parse_load_log(log.read_text().splitlines())
    assert (report.offloaded, report.layers_total) == (plan.layers_total, plan.layers_total)
    printed = {b.device.partition("[")[2].rstrip("]"): b for b in report.buffers if "[" in b.device}
    for share in plan.shares:
        actual = printed[share.endpoint]
        print(f"{share.node}: {share.layers} layers, forecast {share}, printed {actual}")
        assert share.model_bytes == pytest.approx(actual.model_bytes, rel=0.001)
        assert share.kv_bytes == pytest.approx(actual.kv_bytes, rel=0.001)
        assert actual.compute_bytes * 0.99 <= share.compute_bytes <= actual.compute_bytes * 1.1
