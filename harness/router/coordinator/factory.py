"""The coordinator of this machine, with its parts."""

import aiohttp

from harness.router.config import RouterConfig
from harness.router.coordinator.engine import LocalEngine
from harness.router.coordinator.instance import close_records
from harness.router.coordinator.launcher import Launcher
from harness.router.coordinator.liveness import Liveness
from harness.router.coordinator.loads import LoadPlanner, Loads
from harness.router.coordinator.manager import CoordinatorManager
from harness.router.coordinator.post_mortem import PostMortem
from harness.router.coordinator.recovery import Recovery
from harness.router.drained import DrainedNodes
from harness.router.failures import Failures
from harness.router.http.metrics import Metrics
from harness.router.nodes.backends import BackendWatch, StaleConnections
from harness.router.nodes.samples import NodeSamples
from harness.router.supervisor import TaskSupervisor


def create_manager(
    config: RouterConfig,
    planner: LoadPlanner,
    session: aiohttp.ClientSession,
    metrics: Metrics,
    nodes: NodeSamples,
    failures: Failures,
    drained: DrainedNodes | None = None,
) -> CoordinatorManager:
    """The manager of the router's own llama-server."""
    close_records(config.log_dir)
    engine, backends = LocalEngine(config, session, metrics.coordinator_log_lines), BackendWatch(nodes)
    tasks = TaskSupervisor(metrics.background_task_failed)
    recovery = Recovery(config, backends, StaleConnections(nodes, config.address), metrics, failures)
    launcher = Launcher(
        config,
        engine,
        liveness=Liveness(config, engine, backends),
        recovery=recovery,
        post_mortem=PostMortem(config, nodes, failures),
        metrics=metrics,
        tasks=tasks,
    )
    return CoordinatorManager(
        config, engine, Loads(config, planner, launcher, recovery, drained), recovery, tasks
    )
