"""The tasks behind the live view: one that ends by a bug is not hidden, a silent node is named."""

import asyncio
from pathlib import Path

import pytest
from harness.cluster.inventory import Inventory, Node
from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState
from harness.monitor.redis.reader import LatestSamples
from harness.watch import sources as watch_sources
from harness.watch.sources import Sources
from tests.node_samples import node_sample


class SilentNode(Node):
    """Its SSH connects, and then nothing comes."""

    def ssh(self, *argv: str, root: bool = False) -> list[str]:
        return ["sleep", "60"]


class HostileNode(Node):
    """Its head node has no Redis, and its ring holds a good sample and then one that cannot be believed."""

    def ssh(self, *argv: str, root: bool = False) -> list[str]:
        if argv[1] == "latest":
            return ["false"]
        good = node_sample(1).model_dump_json()
        bad = good.replace('"cpu_s":1.0', '"cpu_s":NaN')
        assert bad != good
        return ["sh", "-c", 'printf "%s\\n" "$@"; exec sleep 60', "-", good, bad]


class BareNode(Node):
    """A control machine without the program ``ssh``."""

    def ssh(self, *argv: str, root: bool = False) -> list[str]:
        return ["/no/such/ssh"]


def inventory(node: type[Node]) -> Inventory:
    return Inventory(Path("inventory"), {"node1": node("node1", "127.0.0.1", frozenset({"head"}), {})})


async def broken_router() -> CoordinatorState:
    raise KeyError("phase")


async def router() -> CoordinatorState:
    return CoordinatorState(phase=CoordinatorPhase.ABSENT)


async def test_error_that_ends_a_task_is_raised_by_the_view() -> None:
    async with Sources(inventory(SilentNode), broken_router) as sources:
        with pytest.raises(KeyError):
            await sources.first_snapshot()
        with pytest.raises(KeyError):
            sources.view()


async def test_connection_without_a_sample_is_a_problem_of_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_sources, "LINE_WITHIN_S", 0.1)
    async with Sources(inventory(SilentNode), router) as sources:
        async with asyncio.timeout(10):
            await sources.first_snapshot()
        view = sources.view()
    assert view.source == "rings"
    assert view.source_problem == "nothing received for 1.1 s"
    assert view.nodes[0].reason == "no sample: nothing received for 0.1 s"


async def test_missing_ssh_is_a_problem_and_no_traceback() -> None:
    async with Sources(inventory(BareNode), router) as sources:
        async with asyncio.timeout(10):
            await sources.first_snapshot()
        view = sources.view()
    assert "/no/such/ssh" in (view.source_problem or "")
    assert "/no/such/ssh" in view.nodes[0].reason


async def test_node_whose_sample_is_refused_is_silent_with_the_reason() -> None:
    async with Sources(inventory(HostileNode), router) as sources:
        async with asyncio.timeout(20):
            while "refused" not in sources.view().nodes[0].reason:  # noqa: ASYNC110 - seen from outside alone
                await asyncio.sleep(0.05)
        row = sources.view().nodes[0]
    assert (row.state, row.age_s) == ("silent", None)
    assert row.reason == "no sample: sample refused: cpu_s: Input should be a finite number"


async def test_redis_that_refuses_one_nodes_sample_shows_the_others() -> None:
    sources = Sources(inventory(SilentNode), router)
    sources._take(LatestSamples(time_ns=1, latest={"node1": node_sample(1)}))
    sources._take(LatestSamples(time_ns=1, latest={"node1": None}, refused={"node1": "it is too long"}))
    view = sources.view()
    assert (view.source, view.nodes[0].state) == ("redis", "silent")
    assert view.nodes[0].reason == "no sample: sample refused: it is too long"
