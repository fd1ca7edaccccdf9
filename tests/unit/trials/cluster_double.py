"""A run's real context without machines: doubles stand for SSH to the nodes, and for the router."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.cluster.inventory import Inventory, Node
from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState
from harness.contracts.plan import BackendShare, LoadForecast, LoadRequest, Offer, Plan
from harness.contracts.run_records import Event, Request
from harness.errors import HarnessError
from harness.router_client.chat_stream import ChatRequest
from harness.router_client.client import RouterAddress, RouterClient
from harness.runs.folder import RunFolder, read_events
from harness.trials.context import Context
from harness.trials.load_generator.samples import NodeClocks, Sampler

GIB = 1 << 30


def succeed(argv: Sequence[str]) -> list[str]:
    """A node where every command succeeds and prints nothing."""
    return ["true"]


class NodeDouble(Node):
    """Runs, in place of a command over SSH, what ``answer`` makes of it."""

    answer: Callable[[Sequence[str]], list[str]] = staticmethod(succeed)

    def ssh(self, *argv: str, root: bool = False) -> list[str]:
        return type(self).answer(argv)


def node_double(name: str, *groups: str, answer: Callable[[Sequence[str]], list[str]] = succeed) -> Node:
    """A node of these groups, whose address is its name."""
    kind = type("AnsweringNode", (NodeDouble,), {"answer": staticmethod(answer)})
    node: Node = kind(name, name, frozenset(groups), {})
    return node


def plan(model: str = "m", **layers: int) -> Plan:
    """A plan with so many layers on each node."""
    shares = [
        BackendShare(
            node=name, endpoint="10.0.0.1:50052", available_bytes=GIB, weight=1, layers=count,
            model_bytes=1, kv_bytes=0, compute_bytes=0,
        )
        for name, count in (layers or {"node1": 41}).items()
    ]  # fmt: skip
    return Plan(model=model, model_path="/m", file_bytes=GIB, layers_total=41, shares=shares)


@dataclass
class RouterDouble(RouterClient):
    """Answers with what a test puts in; ``calls`` holds the names of the calls in order."""

    calls: list[str] = field(default_factory=list)
    requests: list[LoadRequest] = field(default_factory=list)
    """What was to be planned or loaded."""
    refusal: Callable[[LoadRequest], HarnessError | None] = lambda request: None
    loaded: CoordinatorState | HarnessError | asyncio.Event = field(
        default_factory=lambda: CoordinatorState(phase=CoordinatorPhase.READY, start_id="1", model="m")
    )
    """What a load results in; an event stands for a load that never ends, and is set when it began."""
    loading: list[CoordinatorState] = field(default_factory=list)
    """What the coordinator is, at one look after the other; absent then."""
    history: list[CoordinatorState] | HarnessError = field(default_factory=list)
    """The starts that the router knows of."""
    listed: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The models that it serves."""
    unloaded: CoordinatorState = field(
        default_factory=lambda: CoordinatorState(phase=CoordinatorPhase.ABSENT)
    )
    """What an unload results in."""
    in_queue: int = 0
    """Requests that wait."""
    answer: Request | None = None
    """To every chat request; None leaves them without an end."""

    def __post_init__(self) -> None:
        self.address = RouterAddress("http://router", "", "")

    async def models(self) -> dict[str, dict[str, Any]]:
        return self.listed

    async def plan(self, request: LoadRequest, *, keep: bool = False) -> Offer:
        self.requests.append(request)
        if refusal := self.refusal(request):
            raise refusal
        forecast = LoadForecast(
            wire_bytes={}, wire_s=0, hash_bytes=0, hash_s=0, disk_bytes=0, disk_s=0, load_s=0, swap_bytes={}
        )
        return Offer(plan=plan(request.model), forecast=forecast, head="node1", memory_from={})

    async def load(self, request: LoadRequest) -> CoordinatorState:
        self.calls.append("load")
        self.requests.append(request)
        if isinstance(self.loaded, HarnessError):
            raise self.loaded
        if isinstance(self.loaded, asyncio.Event):
            self.loaded.set()
            return await asyncio.Future()
        return self.loaded

    async def unload(self, deadline_s: float = 60) -> CoordinatorState:
        self.calls.append("unload")
        return self.unloaded

    async def coordinator(self) -> CoordinatorState:
        self.calls.append("coordinator")
        return self.loading.pop(0) if self.loading else CoordinatorState(phase=CoordinatorPhase.ABSENT)

    async def waiting(self) -> int:
        return self.in_queue

    async def starts(self) -> list[CoordinatorState]:
        if isinstance(self.history, HarnessError):
            raise self.history
        return self.history

    async def log(self, start_id: str) -> str:
        self.calls.append("log")
        raise HarnessError("no such log")

    async def chat(self, ask: ChatRequest) -> Request:
        return self.answer or await asyncio.Future()


def make_context(
    tmp_path: Path, nodes: Sequence[Node] | None = None, router: RouterClient | None = None
) -> Context:
    """A context of a run in ``tmp_path``: by default one node, head and backend, without samples."""
    listed = [node_double("node1", "head", "backends")] if nodes is None else nodes
    run, clocks = RunFolder.create(tmp_path, "run"), NodeClocks()
    return Context(
        inventory=Inventory(tmp_path / "inventory", {node.name: node for node in listed}),
        router=router or RouterDouble(),
        run=run,
        sampler=Sampler([], run, 0, clocks, lambda node, message: None),
        models={},
        facts={},
        clocks=clocks,
        lab=None,
        say=lambda text: None,
    )


def events(ctx: Context) -> list[Event]:
    """What the run has recorded."""
    return list(read_events(ctx.run.path))
