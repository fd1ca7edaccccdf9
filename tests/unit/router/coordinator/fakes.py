"""A coordinator without llama-server: engine, process and nodes are doubles, all decisions are real."""

import asyncio
import itertools
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from harness.contracts.coordinator_state import LoadReport
from harness.contracts.diagnosis import Confidence, Diagnosis, Evidence, ExitStatus, FailureClass, Signal
from harness.contracts.plan import BackendShare, LoadRequest, Plan
from harness.router.config import Backend, RouterConfig
from harness.router.coordinator.engine import LoadError, Slots, ThreadUse
from harness.router.coordinator.instance import CoordinatorInstance
from harness.router.coordinator.launcher import Launcher
from harness.router.coordinator.liveness import Liveness
from harness.router.coordinator.loads import Loads
from harness.router.coordinator.manager import CoordinatorManager
from harness.router.coordinator.post_mortem import PostMortem
from harness.router.coordinator.recovery import Recovery
from harness.router.drained import DrainedNodes
from harness.router.errors import RouterError
from harness.router.failures import Failures
from harness.router.http.metrics import Metrics
from harness.router.in_flight import SentRequest
from harness.router.models.planner import PlannedLoad, ReplacedProcess
from harness.router.nodes.backends import BackendWatch, StaleConnections
from harness.router.supervisor import TaskSupervisor

ENDPOINT = "10.0.0.1:50052"
LOADED = (
    "load_tensors: offloaded 2/2 layers to GPU\n"
    f"load_tensors: RPC0[{ENDPOINT}] model buffer size = 10.00 MiB\n"
)
_pids = itertools.count(1000)


class FakeProcess:
    """Ends at the signals that ``ends_at`` names, or when a test says so."""

    def __init__(self, folder: Path, argv: Sequence[str], ends_at: frozenset[str]) -> None:
        folder.mkdir(parents=True)
        self.argv = list(argv)
        self.log_path = folder / "server.log"
        self.log_path.write_text("")
        self.pid = next(_pids)
        self.exec_ns = time.time_ns()
        self.signals: list[Signal] = []
        self.exit: ExitStatus | None = None
        self.log_problem: LoadError | None = None
        self._ends_at = ends_at
        self._ended = asyncio.Event()

    def send(self, name: str, *, reason: str, requests_in_flight: int) -> None:
        self.signals.append(
            Signal(name=name, time_ns=time.time_ns(), reason=reason, requests_in_flight=requests_in_flight)
        )
        if name in self._ends_at:
            self.die(signal.Signals[name])

    def die(self, number: int = signal.SIGSEGV) -> None:
        self.exit = ExitStatus(time_ns=time.time_ns(), signal=int(number))
        self._ended.set()

    async def ended(self, timeout_s: float | None = None) -> ExitStatus | None:
        try:
            await asyncio.wait_for(self._ended.wait(), timeout_s)
        except TimeoutError:
            return None
        return self.exit


@dataclass
class FakeEngine:
    """Starts processes that are ready at once, unless a test holds or breaks them."""

    url: str = "http://coordinator"
    healthy: bool = True
    log: str = LOADED
    owns: bool = True
    busy: int = 0
    hangs: bool = False
    """Whether the main loop answers nothing."""
    thread: ThreadUse = field(default_factory=ThreadUse)
    refuses: LoadError | None = None
    dies_at_start: int = 0
    """How many of the next processes end while they load."""
    ends_at: frozenset[str] = frozenset({"SIGTERM", "SIGKILL"})
    processes: list[FakeProcess] = field(default_factory=list)

    @property
    def process(self) -> FakeProcess:
        return self.processes[-1]

    async def spawn(self, argv: Sequence[str], folder: Path) -> FakeProcess:
        if self.refuses:
            raise self.refuses
        process = FakeProcess(folder, argv, self.ends_at)
        process.log_path.write_text(self.log)
        self.processes.append(process)
        if self.dies_at_start:
            self.dies_at_start -= 1
            process.die()
        return process

    def owns_port(self, process: Any) -> bool:
        return self.owns

    def main_thread(self, process: Any) -> ThreadUse:
        return self.thread

    async def is_healthy(self) -> bool:
        return self.healthy and not self.process.exit

    async def model_names(self) -> list[str]:
        argv = self.process.argv
        return [argv[argv.index("--alias") + 1]]

    async def slots(self, timeout_s: float) -> Slots | None:
        return None if self.hangs else Slots(self.busy)

    async def generate_token(self) -> bool:
        if self.hangs:
            await asyncio.Event().wait()
        return True


class FakePlanner:
    """Plans every model on one backend; ``error`` and ``gate`` break or hold it."""

    def __init__(self) -> None:
        self.requests: list[LoadRequest] = []
        self.replaced: list[int | None] = []
        self.error: RouterError | None = None
        self.gate: asyncio.Event | None = None
        self.came_up_with: list[LoadReport | None] = []

    async def prepare(self, request: LoadRequest, *, replaces: ReplacedProcess | None = None) -> PlannedLoad:
        self.requests.append(request)
        self.replaced.append(replaces.pid if replaces else None)
        if self.gate:
            await self.gate.wait()
        if self.error:
            raise self.error
        share = BackendShare(
            node="node1", endpoint=ENDPOINT, available_bytes=1, weight=1, layers=2, model_bytes=1, kv_bytes=0,
            compute_bytes=0,
        )  # fmt: skip
        plan = Plan(
            model=request.model, model_path="/m", file_bytes=1, layers_total=2, shares=[share],
            context=request.context or 2048,
        )  # fmt: skip
        argv = ["llama-server", "--alias", request.model, "--ctx-size", str(plan.context), *request.flags]
        return PlannedLoad(request, cast(Any, None), plan, argv, frozenset())

    def came_up(self, load: PlannedLoad, report: LoadReport | None) -> None:
        self.came_up_with.append(report)


class FakeBackends:
    """Backends that answer, but those that a test names."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        """Raised once by the next look at samples."""
        self.missing: dict[str, str] = {}
        self.stale: dict[str, str] = {}
        self.cut: dict[str, str] = {}
        """Nodes that answer no connection, and how."""

    async def unreachable(self, addresses: Mapping[str, str]) -> dict[str, str]:
        return {node: self.cut[node] for node in addresses if node in self.cut}

    async def samples(self, nodes: Sequence[str]) -> dict[str, Any]:
        error, self.error = self.error, None
        if error:
            raise error
        return {}

    async def absent(self, backends: Sequence[Backend], patience_s: float) -> dict[str, str]:
        return {b.node: self.missing[b.node] for b in backends if b.node in self.missing}

    async def find(self, backends: Sequence[Backend]) -> dict[str, str]:
        return {b.node: self.stale[b.node] for b in backends if b.node in self.stale}


class FakePostMortem:
    """Says ``segfault`` of every end that nobody asked for."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.poison: SentRequest | None = None
        """A request that is to blame for the next ends."""

    async def note_start(self, instance: CoordinatorInstance) -> None:
        return None

    def diagnose_hang(self, instance: CoordinatorInstance, diagnosis: Diagnosis) -> Diagnosis:
        return diagnosis

    async def diagnose(self, instance: CoordinatorInstance) -> Diagnosis:
        if self.error:
            raise self.error
        instance.poison, instance.by_request = self.poison, self.poison is not None
        asked = bool(instance.process and instance.process.signals)
        return Diagnosis(
            failure_class=FailureClass.STOPPED if asked else FailureClass.SEGFAULT,
            evidence=[Evidence(source="exit status", line="signal 11")],
            confidence=Confidence.CERTAIN,
            advice="look at the log",
        )


@dataclass
class Bench:
    """A manager and the doubles around it."""

    manager: CoordinatorManager
    engine: FakeEngine
    planner: FakePlanner
    backends: FakeBackends
    post_mortem: FakePostMortem
    tasks: TaskSupervisor
    failed_tasks: list[int]
    failures: Failures

    async def ask(self, model: str = "a") -> str:
        """One request that is answered at once; the id of the start that answered."""
        async with self.manager.acquire(model) as grant:
            return grant.instance.id

    async def loaded(self, model: str = "a") -> CoordinatorInstance:
        async with self.manager.acquire(model) as grant:
            return grant.instance


def bench(folder: Path, **config: Any) -> Bench:
    settings: dict[str, Any] = {
        "address": "10.0.0.9",
        "log_dir": folder / "logs",
        "poll_s": 0.001,
        "stop_deadline_s": 0.05,
        "turn_s": 0,
        "drain_s": 5,
        "switch_drain_s": 5,
        "backends": [Backend(node="node1", endpoint=ENDPOINT, memory_bytes=1)],
    }
    router = RouterConfig(**(settings | config))
    engine, planner, backends, post_mortem = FakeEngine(), FakePlanner(), FakeBackends(), FakePostMortem()
    failed: list[int] = []
    tasks = TaskSupervisor(lambda: failed.append(1))
    metrics = Metrics()
    failures = Failures(router, metrics)
    recovery = Recovery(
        router, cast(BackendWatch, backends), cast(StaleConnections, backends), metrics, failures
    )
    launcher = Launcher(
        router,
        engine,
        liveness=Liveness(router, engine, cast(BackendWatch, backends)),
        recovery=recovery,
        post_mortem=cast(PostMortem, post_mortem),
        metrics=metrics,
        tasks=tasks,
    )
    drained = DrainedNodes([backend.node for backend in router.backends])
    loads = Loads(router, planner, launcher, recovery, drained)
    manager = CoordinatorManager(router, engine, loads, recovery, tasks)
    return Bench(manager, engine, planner, backends, post_mortem, tasks, failed, failures)


async def until(condition: Callable[[], bool], timeout_s: float = 5) -> None:
    """Wait until something has happened; a test does not sleep and hope."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - any condition, not one event
            await asyncio.sleep(0.001)
