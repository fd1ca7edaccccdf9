"""Requests that end or hang a real llama-server: blamed, sent once, and nobody else pays for them.

They are sent to the proxy itself: the API in front of it refuses most of them before a server sees them.
"""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from harness.contracts.coordinator_state import CoordinatorPhase
from harness.release_proof.local import local_build
from harness.router.config import Backend, Route, RouterConfig
from harness.router.coordinator.factory import create_manager
from harness.router.errors import RouterError
from harness.router.failures import Failures
from harness.router.http.metrics import Metrics
from harness.router.http.quotas import Quotas
from harness.router.models.catalogue import Catalogue
from harness.router.models.planner import Planner
from harness.router.nodes.backends import BackendWatch
from harness.router.nodes.samples import NodeSamples
from harness.router.pool.pool import Pool
from harness.router.proxy.proxy import Proxy
from harness.router.routing.resolver import RouteResolver
from harness.router.routing.rule import Decision
from starlette.requests import Request
from tests.integration.router_stack import RouterStack, RpcServer, free_port, wait_for

pytestmark = pytest.mark.integration

MODEL = "smollm2"
SPIN = {"prompt": "hi", "n_predict": 8, "grammar": 'root ::= (("a"{0,100}){0,100}){0,100}'}
POISONS = {
    "n_probs": {"prompt": "hi", "n_predict": 8, "n_probs": 10**9},
    "grammar": {"prompt": "hi", "n_predict": 8, "grammar": 'root ::= ((("a")*)*)*'},
}


class ToCoordinator:
    """A resolver that sends each model to the coordinator."""

    async def decide(self, model: str, *, record: bool = True) -> Decision:
        return Decision(Route.COORDINATOR, "test", model=model)


class Stack:
    """The proxy and a coordinator over two backends, in the test's own loop."""

    def __init__(self, config: RouterConfig, session: aiohttp.ClientSession) -> None:
        metrics, nodes, catalogue = Metrics(), NodeSamples(None), Catalogue(config.models_dir)
        self.failures = Failures(config, metrics)
        self._quotas = Quotas(config, 1, metrics)
        planner = Planner(config, catalogue, BackendWatch(nodes).samples)
        self.coordinator = create_manager(config, planner, session, metrics, nodes, self.failures)
        resolver = cast(RouteResolver, ToCoordinator())
        self._proxy = Proxy(config, resolver, Pool([]), self.coordinator, session, self.failures)

    async def ask(self, name: str, **body: Any) -> tuple[int, dict[str, Any]]:
        """One completion to its end: at which attempt, and the answer."""
        usage = self._quotas.begin(name)
        state = {"request_id": name, "key": f"key-of-{name}", "usage": usage}
        request = Request({"type": "http", "state": state})
        opened = await self._proxy.open(request, MODEL)
        async with AsyncExitStack() as stack:
            stack.push_async_exit(opened.resources)
            content = json.dumps({"model": MODEL, **body}).encode()
            answer = await self._proxy.send(opened, "/completion", await usage.hold(content), stack)
            return opened.attempt, json.loads(await self._proxy.read_all(opened, answer))

    async def refused(self, name: str, **body: Any) -> RouterError:
        """The error that a completion gets."""
        with pytest.raises(RouterError) as caught:
            await self.ask(name, **body)
        return caught.value

    async def busy(self, count: int = 1) -> int:
        """Wait until so many requests are in flight; the coordinator's process."""
        await until(lambda: self.coordinator.state.requests_in_flight == count)
        await asyncio.sleep(0.5)
        assert self.coordinator.state.pid
        return self.coordinator.state.pid


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - any condition, not one event
            await asyncio.sleep(0.02)


@asynccontextmanager
async def running(binaries: Path, model: Path, folder: Path, **more: Any) -> AsyncIterator[Stack]:
    models = folder / "models"
    models.mkdir()
    (models / f"{MODEL}.gguf").symlink_to(model)
    servers = [RpcServer(binaries, folder / f"rpc{number}.log") for number in (1, 2)]
    settings: dict[str, Any] = {
        "address": "127.0.0.1",
        "coordinator_port": free_port(),
        "models_dir": models,
        "llama_server": binaries / "llama-server",
        "log_dir": folder / "starts",
        "restart_budget": 1,
        "drain_s": 0,
        "stop_deadline_s": 2,
        "backends": [
            Backend(node=f"node{number}", endpoint=server.endpoint, memory_bytes=4 << 30)
            for number, server in enumerate(servers, 1)
        ],
    }
    try:
        async with aiohttp.ClientSession() as session:
            stack = Stack(RouterConfig(**(settings | more)), session)
            try:
                yield stack
            finally:
                await stack.coordinator.close()
    finally:
        for server in servers:
            server.kill()


def long_answer(text: str) -> dict[str, Any]:
    return {"prompt": text, "n_predict": 400, "ignore_eos": True}


async def test_request_whose_server_crashes_is_blamed_and_the_budget_is_untouched(
    llama_build: Path, smollm2: Path, tmp_path: Path
) -> None:
    """The signal stands for a defect: no body is known that ends the pinned release."""
    async with running(llama_build, smollm2, tmp_path) as stack:
        for name in ("one", "two"):
            asked = asyncio.create_task(stack.refused(name, **long_answer(name)))
            os.kill(await stack.busy(), signal.SIGSEGV)
            error = await asked
            assert (error.status, error.error_class) == (400, "poison_request")
        starts = len(stack.coordinator.starts)
        assert (await stack.refused("one", **long_answer("one"))).error_class == "poison_request"
        attempt, answer = await stack.ask("three", prompt="hi", n_predict=2)
        assert (attempt, bool(answer["content"])) == (1, True)
        assert len(stack.coordinator.starts) <= starts + 1, "each death costs one load"
        first = stack.failures.history[0]
        assert (first.request_id, first.key, first.failure_class) == ("one", "key-of-one", "poison_request")
        assert first.diagnosis
        assert "request one of key key-of-one" in first.diagnosis.evidence[0].line


async def test_requests_in_flight_at_one_end_are_sent_again_alone_and_the_one_that_repeats_it_is_blamed(
    llama_build: Path, smollm2: Path, tmp_path: Path
) -> None:
    async with running(llama_build, smollm2, tmp_path, restart_budget=2) as stack:
        names = ("older", "newer")
        asked = [asyncio.create_task(stack.ask(name, **long_answer(name))) for name in names]
        os.kill(await stack.busy(2), signal.SIGSEGV)
        await until(lambda: len(stack.failures.history) == 1)
        await until(lambda: stack.coordinator.state.phase is CoordinatorPhase.READY)
        os.kill(await stack.busy(1), signal.SIGSEGV)
        results = await asyncio.gather(*asked, return_exceptions=True)
        (refused,) = [error for error in results if isinstance(error, RouterError)]
        assert refused.error_class == "poison_request"
        (answered,) = [result for result in results if not isinstance(result, BaseException)]
        assert answered[0] == 2
        named = [failure.request_id for failure in stack.failures.history]
        assert (named[0], named[1] in names, len(named)) == (None, True, 2)


@pytest.mark.long
@pytest.mark.parametrize("poison", POISONS)
async def test_request_that_ends_release_6751_is_sent_once(
    smollm2: Path, tmp_path: Path, poison: str
) -> None:
    async with running(local_build(6751), smollm2, tmp_path) as stack:
        for name in ("one", "two", "three"):
            error = await stack.refused(name, **POISONS[poison] | {"prompt": name})
            assert error.error_class == "poison_request"
        assert len(stack.coordinator.starts) <= 4
        assert (await stack.ask("other", prompt="hi", n_predict=2))[0] == 1
        ends = {start.exit.signal for start in stack.coordinator.starts if start.exit and not start.signals}
        assert ends <= {signal.SIGSEGV, signal.SIGABRT}


@pytest.mark.long
@pytest.mark.parametrize("leaves", [False, True], ids=["waits", "leaves"])
async def test_request_that_spins_in_release_6751_is_ended_and_blamed(
    smollm2: Path, tmp_path: Path, leaves: bool
) -> None:
    # An end that may have two causes counts in the budget.
    limits = {"suspect_s": 1, "spin_deadline_s": 3, "restart_budget": 2}
    async with running(local_build(6751), smollm2, tmp_path, **limits) as stack:
        asked = asyncio.create_task(stack.refused("spin", **SPIN))
        await stack.busy()
        if leaves:
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
        beside = asyncio.create_task(stack.ask("beside", prompt="hi", n_predict=2))
        attempt, answer = await beside
        assert (attempt, bool(answer["content"])) == (2, True)
        if not leaves:
            assert (await asked).error_class == "poison_request"
        # Where both may be the cause, the first end blames none.
        *suspected, failure = stack.failures.history
        assert (failure.request_id or "spin", failure.failure_class) == ("spin", "poison_request")
        assert [each.request_id for each in suspected] in ([], [None])
        assert [start.phase for start in stack.coordinator.starts][-1] is CoordinatorPhase.READY


def test_start_of_a_router_that_was_killed_is_marked_at_the_next_start(
    llama_build: Path, smollm2: Path, tmp_path: Path
) -> None:
    stack = RouterStack(llama_build, smollm2, tmp_path)
    try:
        assert stack.admin("load", {"model": MODEL})[0] == 200
        state = stack.admin("coordinator")[1]
        record = Path(state["log_dir"]) / "start.json"
        stack.router.kill()
        stack.router.wait(10)
        os.kill(state["pid"], signal.SIGKILL)  # systemd does that where the router is a unit
        assert json.loads(record.read_text())["phase"] == "ready"
        stack.start_router()
        wait_for(lambda: json.loads(record.read_text())["phase"] == "ended", 5, "mark")
        assert "the router that started it ended" in record.read_text()
    finally:
        stack.close()


def test_pool_server_that_hangs_is_not_asked_and_readiness_says_so(
    llama_build: Path, smollm2: Path, tmp_path: Path
) -> None:
    """A stopped process takes connections and answers nothing, as a main loop that spins."""
    stack = RouterStack(llama_build, smollm2, tmp_path, pool_silent_s=1)
    ask = {"model": "tiny", "prompt": "hi", "max_tokens": 1}
    try:
        wait_for(lambda: stack.call("/readyz")[1]["status"] == "ready", 30, "ready")
        assert stack.call("/v1/completions", ask)[0] == 200
        stack.signal_pool(signal.SIGSTOP)
        reason = "no pool server answers for model tiny"
        wait_for(lambda: reason in stack.call("/readyz")[1].get("reasons", []), 30, "not served")
        status, answer, _ = stack.call("/v1/completions", ask)
        assert (status, answer["error"]["class"]) == (503, "pool_unreachable")
        stack.signal_pool(signal.SIGCONT)
        wait_for(lambda: stack.call("/v1/completions", ask)[0] == 200, 30, "served again")
        wait_for(lambda: stack.call("/readyz")[1]["status"] == "ready", 30, "ready")
    finally:
        stack.signal_pool(signal.SIGCONT)
        stack.close()
