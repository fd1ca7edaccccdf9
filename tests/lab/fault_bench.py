"""What the tests of faults stand on: the deployed lab as a run sees it, and requests under way."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from harness.cluster.inventory import Inventory, Node
from harness.cluster.ssh import run_on
from harness.cluster.unit_inspection import diagnose_units
from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState
from harness.contracts.diagnosis import Diagnosis
from harness.contracts.plan import LoadRequest, Plan
from harness.lab.spec import LabSpec
from harness.monitor.backend_state import RPC_UNIT
from harness.router_client.chat_stream import chat_session
from harness.router_client.client import RouterClient, RouterRefusedError, router_address
from harness.runs.folder import RunFolder
from harness.trials.context import Context
from harness.trials.faults.fault import ensure_serving
from harness.trials.kinds.coordinator_steps import keep_log
from harness.trials.kinds.diagnosis_inputs import diagnose_waiting, diagnose_with_nodes
from harness.trials.lab import lab_of
from harness.trials.load_generator.samples import NodeClocks, Sampler

MODEL = "1b-q8_0"
"""The smallest that the router sends to the coordinator."""


@dataclass
class Asked:
    """A streamed request that has got its first token."""

    answer: aiohttp.ClientResponse

    async def rest(self) -> str:
        """Everything that is still to come, or how the connection broke."""
        try:
            return (await self.answer.read()).decode()
        except aiohttp.ClientError as error:
            return repr(error)


@dataclass
class FaultBench:
    """The lab with everything deployed, and a run's context around it."""

    ctx: Context
    splits: dict[str, Plan]

    @property
    def inventory(self) -> Inventory:
        return self.ctx.inventory

    @property
    def lab(self) -> LabSpec:
        assert self.ctx.lab is not None
        return self.ctx.lab

    @property
    def head(self) -> Node:
        return self.inventory.head

    @property
    def other(self) -> Node:
        """The backend that is not the head node: the one that things are done to."""
        return next(node for node in self.inventory.backends if node is not self.head)

    async def load(self, model: str = MODEL, **asked: Any) -> CoordinatorState:
        """Load a model and expect it to be ready, split as the first time whatever samples say."""
        if model in self.splits:
            asked = {"plan": self.splits[model], **asked}
        state = await self.ctx.router.load(LoadRequest(model=model, deadline_s=120, **asked))
        assert state.plan
        self.splits.setdefault(model, state.plan)
        assert {share.node for share in state.plan.shares if share.layers} == {
            self.head.name,
            self.other.name,
        }
        return state

    async def forget_peer(self) -> None:
        """Restart the other backend: cut off, it cannot have heard that its coordinator was stopped.

        rpc-server waits for the next command of a peer that is gone, for ever: no keep-alive on its sockets.
        """
        await self.ctx.router.unload(0)
        await self.on(self.other, "systemctl", "restart", RPC_UNIT)
        await ensure_serving(self.other)

    async def refused(self, model: str = MODEL, **asked: Any) -> RouterRefusedError:
        """Load a model and expect that it fails."""
        try:
            await self.load(model, **asked)
        except RouterRefusedError as error:
            return error
        raise AssertionError(f"{model} was loaded all the same")

    async def ended(self, start: CoordinatorState) -> CoordinatorState:
        """State of one start once it has ended and its end is diagnosed; another may be up by then."""
        assert start.start_id
        async with asyncio.timeout(60):
            while True:
                state = await self.ctx.router.start(start.start_id)
                if state and state.phase is CoordinatorPhase.ENDED and state.diagnosis:
                    return state
                await asyncio.sleep(0.1)

    @asynccontextmanager
    async def asked(self, tokens: int = 1000) -> AsyncIterator[Asked]:
        """A request for so many tokens, of which the first has come."""
        address = self.ctx.router.address
        body = {
            "model": MODEL,
            "stream": True,
            "max_tokens": tokens,
            "ignore_eos": True,
            "messages": [{"role": "user", "content": "Count to a thousand."}],
        }
        headers = {"Authorization": f"Bearer {address.key}"}
        async with (
            chat_session() as session,
            session.post(f"{address.url}/v1/chat/completions", json=body, headers=headers) as answer,
        ):
            async for line in answer.content:
                if line.startswith(b"data: {") and _content(line):
                    break
                assert b'"error"' not in line, line
            yield Asked(answer)

    async def explain(self, state: CoordinatorState) -> None:
        """Have the nodes' evidence taken into the diagnosis of an end, as a trial does."""
        await keep_log(self.ctx, state)
        await diagnose_with_nodes(self.ctx, state)

    async def waiting(self) -> tuple[str, str]:
        """Class and deciding line of the coordinator that runs and makes no progress now."""
        state = await self.ctx.router.coordinator()
        state.diagnosis = None
        await diagnose_waiting(self.ctx, state)
        return decided_by(state.diagnosis)

    async def backend(self, until: str) -> tuple[str, str]:
        """Class and deciding line of the other node's rpc-server, once its class is ``until``."""
        for _ in range(10):
            (found,) = await diagnose_units([self.other], RPC_UNIT)
            if found.diagnosis.failure_class == until:
                break
        return decided_by(found.diagnosis)

    async def on(self, node: Node, *argv: str) -> str:
        """Output of a command on a node, whatever its exit status."""
        done = await run_on(node, *argv, root=True, deadline_s=60)
        return done.stdout + done.stderr


def _content(line: bytes) -> bool:
    event = json.loads(line[6:])
    return any(choice["delta"].get("content") for choice in event.get("choices", ()))


def decided_by(diagnosis: Diagnosis | None) -> tuple[str, str]:
    """The class and the line that decides it, with its source."""
    assert diagnosis, "no diagnosis"
    first = diagnosis.evidence[0]
    return str(diagnosis.failure_class), f"{first.source} | {first.line}"


@asynccontextmanager
async def fault_bench(
    inventory: Inventory, folder: Path, splits: dict[str, Plan]
) -> AsyncIterator[FaultBench]:
    """A bench whose run is kept in ``folder``; its coordinator is stopped in the end."""
    run = RunFolder.create(folder, "faults")
    async with RouterClient(router_address(inventory)) as router:
        clocks = NodeClocks()
        sampler = Sampler(inventory.nodes.values(), run, 0, clocks, lambda node, what: print(node, what))
        ctx = Context(
            inventory=inventory,
            router=router,
            run=run,
            sampler=sampler,
            models={},
            facts={},
            clocks=clocks,
            lab=lab_of(inventory),
            say=print,
        )
        sampler.begin()
        try:
            yield FaultBench(ctx, splits)
        finally:
            await router.unload(0)
            await sampler.end()
            run.close()
