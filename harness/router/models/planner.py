"""Plans of loads: from what the nodes can give now, and from what earlier loads taught."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from harness.contracts.load_report import LoadReport
from harness.contracts.load_request import LoadRequest
from harness.contracts.plan import Plan
from harness.errors import HarnessError
from harness.llama.gguf import GgufModel
from harness.llama.load_log import rpc_endpoint
from harness.llama.releases.installed import installed_build
from harness.monitor.sample import Sample
from harness.planner.learned import compute_buffers, learn, load_shape, with_buffers
from harness.planner.placement import make_plan
from harness.router.config import RouterConfig
from harness.router.errors import RouterError
from harness.router.models.catalogue import Catalogue
from harness.router.models.command_line import coordinator_argv, release_args
from harness.router.models.device_capacity import backend_devices
from harness.router.models.load_request import check_flags, checked_plan, chosen_backends, read_header
from harness.router.models.plan_store import Knowledge, plan_key

SampleReader = Callable[[Sequence[str]], Awaitable[Mapping[str, Sample]]]
"""Gives the newest samples of the nodes that have one."""


@dataclass(frozen=True)
class PlannedLoad:
    """A load before it is started."""

    request: LoadRequest
    header: GgufModel
    plan: Plan
    argv: list[str]
    """llama-server's command line."""
    sampled: frozenset[str]
    """Nodes whose memory a monitor said; the others are taken as the inventory describes them."""


class Planner:
    """Plans loads and learns from those that came up.

    Args:
        samples: asked before every plan.
    """

    def __init__(self, config: RouterConfig, catalogue: Catalogue, samples: SampleReader) -> None:
        self._config = config
        self._catalogue = catalogue
        self._samples = samples
        self.knowledge = Knowledge(config.state_dir)

    async def prepare(self, request: LoadRequest) -> PlannedLoad:
        """The plan that was given, once checked, or the automatic one, and the command line for it.

        Raises:
            RouterError: the model is unknown or cannot be read, a refused flag, an unknown node, a plan that
                is not for this model and these backends, or a model that does not fit.
        """
        name, header = await read_header(request.model, self._catalogue)
        request = request.model_copy(update={"model": name})
        check_flags(request)
        backends = chosen_backends(request, self._config)
        samples: Mapping[str, Sample] = {}
        if request.plan is None:
            samples = await self._samples([backend.node for backend in backends])
        plan = self.plan(request, header, samples)
        flags = [*release_args(self._config.llama_server), *self._config.flags, *request.flags]
        argv = coordinator_argv(
            self._config.llama_server, plan, port=self._config.coordinator_port, flags=flags
        )
        return PlannedLoad(request, header, plan, argv, frozenset(samples))

    def plan(self, request: LoadRequest, header: GgufModel, samples: Mapping[str, Sample]) -> Plan:
        """The plan alone.

        Raises:
            RouterError: as ``prepare``.
        """
        backends = chosen_backends(request, self._config)
        if request.plan is not None:
            return checked_plan(request.plan, request, header, backends)
        build = installed_build(self._config.llama_server)
        context = request.context or self._config.context
        try:
            shape = load_shape(header, build, context, request.parallel, request.kv_type)
            devices = backend_devices(
                backends, samples, self.knowledge.calibration.speeds(build), self._config.address, header
            )
            fresh = make_plan(
                header,
                devices,
                context=context,
                parallel=request.parallel,
                n_gpu_layers=request.n_gpu_layers,
                kv_type=request.kv_type,
                learned=compute_buffers(self.knowledge.learned, shape),
                build=build,
            )
        except HarnessError as error:
            raise RouterError(507, "does_not_fit", str(error)) from None
        plan = self.knowledge.settled(self._key(request, header), fresh, devices)
        # A blob of Ollama's is called by its digest; the model by its name.
        return plan.model_copy(update={"model": request.model})

    def keep(self, load: PlannedLoad) -> None:
        """Use this split for the next load that asks for the same."""
        if not load.request.plan:
            self.knowledge.remember(self._key(load.request, load.header), load.plan, self.knowledge.learned)

    def came_up(self, load: PlannedLoad, report: LoadReport | None) -> None:
        """Learn from a load that is ready: its compute buffers, and the split to use again."""
        plan = load.plan
        if not plan.distributed or report is None:
            return
        printed: dict[str, int] = {}
        for buffer in report.buffers:
            if endpoint := rpc_endpoint(buffer.device):
                printed[endpoint] = printed.get(endpoint, 0) + buffer.compute_bytes
        build = installed_build(self._config.llama_server)
        shape = load_shape(load.header, build, plan.context, plan.parallel, plan.kv_type)
        learned = learn(self.knowledge.learned, shape, plan, printed)
        key = None if load.request.plan else self._key(load.request, load.header)
        self.knowledge.remember(key, with_buffers(plan, printed), learned)

    def _key(self, request: LoadRequest, header: GgufModel) -> str:
        asked = (request.context or self._config.context, request.parallel, request.kv_type)
        endpoints = [backend.endpoint for backend in chosen_backends(request, self._config)]
        return plan_key(header, endpoints, *asked, request.n_gpu_layers)
