"""Plans of loads, from the memory that the nodes can give now and from what earlier loads taught."""

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from harness.common.sockets import connected_endpoints
from harness.contracts.coordinator_state import LoadReport, rpc_endpoint
from harness.contracts.plan import LoadRequest, Plan
from harness.errors import HarnessError
from harness.llama.gguf import GgufModel
from harness.llama.ollama_storage import same_model
from harness.llama.releases.catalogue import installed_build
from harness.llama.rpc.client import RpcError, ask
from harness.llama.rpc.messages import DeviceMemory
from harness.monitor.sample import RPC_SERVERS, Sample
from harness.planner.device_capacity import DeviceCapacity
from harness.planner.device_memory import (
    OfferedDevice,
    available_bytes,
    devices_of_sample,
    disagreement,
    name_devices,
)
from harness.planner.memory import compute_buffers, learn, load_shape, with_buffers
from harness.planner.placement import head_share, make_plan
from harness.router.config import Backend, RouterConfig
from harness.router.drained import DrainedNodes
from harness.router.errors import RouterError
from harness.router.models.catalogue import Catalogue
from harness.router.models.command_line import check_flags, coordinator_argv, release_args
from harness.router.models.plan_store import PlanStore, plan_key

_FREED_KIB = re.compile(r"^Rss(?:Anon|Shmem):\s*(\d+)", re.MULTILINE)

SampleReader = Callable[[Sequence[str]], Awaitable[Mapping[str, Sample]]]
"""Gives the newest samples of the nodes that have one."""


@dataclass(frozen=True)
class ReplacedProcess:
    """A coordinator that is stopped before the planned one starts: its memory comes back on the head node."""

    pid: int
    memory_bytes: int
    """Anonymous and shared memory. Its mapped files are page cache, which is available anyway."""

    @classmethod
    def read(cls, pid: int | None) -> Self | None:
        """A process of this machine as it is now; None where there is none."""
        if pid is None:
            return None
        try:
            kib = _FREED_KIB.findall(Path(f"/proc/{pid}/status").read_text())
        except OSError:
            return None
        return cls(pid, 1024 * sum(map(int, kib)))


@dataclass(frozen=True)
class PlannedLoad:
    """A load before it is started."""

    request: LoadRequest
    header: GgufModel
    plan: Plan
    argv: list[str]
    """llama-server's command line."""
    sampled: frozenset[str]
    """Nodes whose memory was read from a monitor; for the others the inventory's figure was used."""


class Planner:
    """Plans loads, with the samples of that moment, and learns from those that became ready."""

    def __init__(
        self,
        config: RouterConfig,
        catalogue: Catalogue,
        samples: SampleReader,
        drained: DrainedNodes | None = None,
    ) -> None:
        self._config = config
        self.drained = drained or DrainedNodes()
        self._catalogue = catalogue
        self._samples = samples
        self._offers: dict[str, _Offer] = {}
        """By endpoint of a GPU host."""
        self.plan_store = PlanStore(config.state_dir)

    async def prepare(self, request: LoadRequest, *, replaces: ReplacedProcess | None = None) -> PlannedLoad:
        """The plan of the request, once checked, or the automatic one, and the command line for it.

        Args:
            replaces: the coordinator that runs now, whose memory counts as available. Read it before that
                process is stopped; it then does not matter whether the samples are older than its end.

        Raises:
            RouterError: the model is unknown or cannot be read, a refused flag, an unknown node, a plan that
                is not for this model and these backends, a GPU host whose rpc-server does not offer the
                inventory's devices, or a model that does not fit.
        """
        file, header = await self._catalogue.read(request.model)
        request = request.model_copy(update={"model": file.name})
        check_flags(self._config.llama_server, [*self._config.flags, *request.flags])
        backends = _chosen_backends(self.drained.chosen(request), self._config)
        samples: Mapping[str, Sample] = {}
        if request.plan is None:
            samples = await self._samples([backend.node for backend in backends])
            await asyncio.gather(*(self._ask_devices(each, samples.get(each.node)) for each in backends))
        plan = self.plan(request, header, samples, replaces=replaces)
        flags = [*release_args(self._config.llama_server), *self._config.flags, *request.flags]
        port = self._config.coordinator_port
        argv = coordinator_argv(self._config.llama_server, plan, port=port, flags=flags)
        return PlannedLoad(request, header, plan, argv, frozenset(samples))

    def plan(
        self,
        request: LoadRequest,
        header: GgufModel,
        samples: Mapping[str, Sample],
        *,
        replaces: ReplacedProcess | None = None,
    ) -> Plan:
        """The plan alone; raises as ``prepare``."""
        backends = _chosen_backends(self.drained.chosen(request), self._config)
        if request.plan is not None:
            return _checked_plan(request.plan, request, header, backends)
        build = installed_build(self._config.llama_server)
        context = request.context or self._config.context
        try:
            shape = load_shape(header, build, context, request.parallel, request.kv_type)
            devices = self.devices(backends, samples, header, replaces)
            fresh = make_plan(
                header,
                devices,
                context=context,
                parallel=request.parallel,
                n_gpu_layers=request.n_gpu_layers,
                kv_type=request.kv_type,
                learned=compute_buffers(self.plan_store.learned, shape),
                build=build,
            )
        except HarnessError as error:
            raise RouterError(507, "does_not_fit", str(error)) from None
        plan = self.plan_store.sticky_plan(self._key(request, header), fresh, devices)
        # A blob of Ollama's is called by its digest; the model by its name.
        return plan.model_copy(update={"model": request.model})

    def devices(
        self,
        backends: Sequence[Backend],
        samples: Mapping[str, Sample],
        model: GgufModel,
        replaces: ReplacedProcess | None = None,
    ) -> list[DeviceCapacity]:
        """The devices of the backends, in their order, with what they can give once nothing is loaded.

        For a node without a sample the inventory's figure is used. The head node's own backend leaves room
        for the coordinator, with which the token embedding of ``model`` stays.
        """
        speeds = self.plan_store.calibration.speeds(installed_build(self._config.llama_server))
        devices = []
        for backend in backends:
            at_head = backend.node == self._config.head_node
            sample = samples.get(backend.node)
            node_bytes = _memory_of(sample, replaces if at_head else None) if sample else None
            speed = speeds.get(backend.node)
            for number, (name, size) in enumerate(self._sizes(backend, sample, node_bytes)):
                reserve = backend.reserve_bytes
                if at_head and name == "CPU":
                    reserve = max(reserve or 0, head_share(model))
                devices.append(DeviceCapacity(backend.node, backend.endpoint, size, reserve, number, speed))
        return devices

    def _sizes(
        self, backend: Backend, sample: Sample | None, node_bytes: int | None
    ) -> list[tuple[str, int]]:
        """Name and available bytes of each device of a backend, in rpc-server's order."""
        if backend.accelerator == "cpu":
            most = backend.memory_bytes
            return [("CPU", most if node_bytes is None else min(most, node_bytes))]
        offer = self._offers.get(backend.endpoint)
        if not offer or not offer.devices:
            return [(name_devices(backend.accelerator, (), 1)[0], backend.memory_bytes)]
        return [(device.name, available_bytes(device, sample, node_bytes)) for device in offer.devices]

    def keep(self, load: PlannedLoad) -> None:
        """Use this split for the next load that asks for the same."""
        if not load.request.plan:
            self.plan_store.remember(self._key(load.request, load.header), load.plan, self.plan_store.learned)

    def came_up(self, load: PlannedLoad, report: LoadReport | None) -> None:
        """Learn from a load that became ready: its compute buffers, and the split to use again."""
        plan = load.plan
        if not plan.distributed or report is None:
            return
        printed: Counter[str] = Counter()
        for buffer in report.buffers:
            if endpoint := rpc_endpoint(buffer.device):
                printed[endpoint] += buffer.compute_bytes
        build = installed_build(self._config.llama_server)
        shape = load_shape(load.header, build, plan.context, plan.parallel, plan.kv_type)
        learned = learn(self.plan_store.learned, shape, plan, printed)
        key = None if load.request.plan else self._key(load.request, load.header)
        self.plan_store.remember(key, with_buffers(plan, printed), learned)

    def _key(self, request: LoadRequest, header: GgufModel) -> str:
        context = request.context or self._config.context
        # Refuses nothing: a node that its plan leaves out may be drained while a model is being loaded.
        chosen, drained = _chosen_backends(request, self._config), self.drained.names
        endpoints = [backend.endpoint for backend in chosen if backend.node not in drained]
        settings = (context, request.parallel, request.kv_type, request.n_gpu_layers)
        return plan_key(header, endpoints, *settings)

    async def _ask_devices(self, backend: Backend, sample: Sample | None) -> None:
        """Remember the devices that the idle rpc-server of a GPU host offers; once for each of its processes.

        A plan that has one device too few or too many would shift every later share.

        Raises:
            RouterError: they are not those of the inventory.
        """
        if backend.accelerator == "cpu":
            return
        pid = _rpc_server_pid(sample) if sample else None
        known = self._offers.get(backend.endpoint)
        in_use = backend.endpoint in connected_endpoints() or (sample and sample.rpc and sample.rpc.peer)
        if known and known.asked and pid in (None, known.pid):
            return
        answers: Sequence[DeviceMemory] = ()
        if not in_use:
            with suppress(RpcError):
                answers = (await ask(backend.address, backend.port)).devices
        if not answers:
            if sample and not known:
                devices = devices_of_sample(backend.accelerator, backend.devices, sample)
                self._offers[backend.endpoint] = _Offer(pid, devices, asked=False)
            return
        names = name_devices(backend.accelerator, backend.devices, len(answers))
        devices = [
            OfferedDevice(name, answer.total_bytes, answer.free_bytes)
            for name, answer in zip(names, answers, strict=False)
        ]
        if problem := disagreement(devices, backend.devices, sample):
            text = f"{backend.node}: {problem}; see the log of its rpc-server, or deploy again"
            raise RouterError(503, "wrong_devices", text)
        self._offers[backend.endpoint] = _Offer(pid, devices, asked=True)


@dataclass(frozen=True)
class _Offer:
    """What one process of an rpc-server offers."""

    pid: int | None
    devices: list[OfferedDevice]
    asked: bool
    """False: its monitor shows these GPUs, and it was in use, or silent, each time."""


def _rpc_server_pid(sample: Sample) -> int | None:
    return next((process.pid for process in sample.processes if process.name in RPC_SERVERS), None)


def _chosen_backends(request: LoadRequest, config: RouterConfig) -> list[Backend]:
    """Backends that a load may use, in the order of the request's nodes, else of the configuration."""
    by_node = {backend.node: backend for backend in config.backends}
    if not by_node:
        raise RouterError(503, "no_backends", "the router's configuration lists no backends")
    if request.nodes is None:
        return config.backends
    if unknown := [node for node in request.nodes if node not in by_node]:
        text = f"no backend on {', '.join(unknown)}; there are: {', '.join(by_node)}"
        raise RouterError(400, "unknown_node", text)
    return [by_node[node] for node in dict.fromkeys(request.nodes)]


def _checked_plan(plan: Plan, request: LoadRequest, header: GgufModel, backends: list[Backend]) -> Plan:
    """The plan that came with a request, with what the request changes of it."""
    endpoints = {backend.endpoint for backend in backends}
    if unknown := [share.endpoint for share in plan.shares if share.endpoint not in endpoints]:
        raise RouterError(400, "bad_plan", f"the plan uses {', '.join(unknown)}: no backend of ours")
    if same_model(plan.model) != same_model(request.model) or plan.model_path != str(header.path):
        raise RouterError(400, "bad_plan", f"the plan is for {plan.model} at {plan.model_path}")
    if contradiction := plan.contradiction:
        raise RouterError(400, "bad_plan", f"the plan contradicts itself: {contradiction}")
    if plan.layers_total != header.block_count + 1:
        layers = header.block_count + 1
        text = f"the plan is for a model of {plan.layers_total} layers; {request.model} has {layers}"
        raise RouterError(400, "bad_plan", text)
    changes = {"model": request.model, "n_gpu_layers": request.n_gpu_layers, "context": request.context}
    return plan.model_copy(update={key: value for key, value in changes.items() if value is not None})


def _memory_of(sample: Sample, replaces: ReplacedProcess | None) -> int:
    """Bytes that a node can give once what it holds of a model has been freed."""
    freed = sum(process.rss_bytes for process in sample.processes if process.name in RPC_SERVERS)
    if replaces and any(process.pid == replaces.pid for process in sample.processes):
        freed += replaces.memory_bytes
    return sample.memory.available_bytes + freed
