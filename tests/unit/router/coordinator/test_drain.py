"""What a drain does to the coordinator that runs, to loads under way, and to kept settings."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from harness.contracts.plan import LoadRequest
from harness.router.config import Backend
from harness.router.errors import RouterError
from tests.unit.router.coordinator.fakes import ENDPOINT, Bench, bench, until


def two_nodes(tmp_path: Path, **config: Any) -> Bench:
    """A bench whose planner plans everything on node1."""
    backends = [
        Backend(node="node1", endpoint=ENDPOINT, memory_bytes=1),
        Backend(node="node2", endpoint="10.0.0.2:50052", memory_bytes=1),
    ]
    return bench(tmp_path, backends=backends, **config)


async def test_drain_of_another_node_does_not_cut_later_answers(tmp_path: Path) -> None:
    at = two_nodes(tmp_path)
    served = await at.loaded()
    at.planner.gate = asyncio.Event()
    load = asyncio.create_task(at.manager.load(LoadRequest(model="b")))
    await until(lambda: len(at.planner.requests) == 2)
    await at.manager.drain(["node2"], drain_s=0)
    assert served.drain_until_s == float("inf")
    at.planner.gate.set()
    assert (await load).model == "b"
    await at.manager.close()


async def test_load_that_does_not_use_the_node_goes_on(tmp_path: Path) -> None:
    at = two_nodes(tmp_path)
    at.engine.healthy = False
    asked = asyncio.create_task(at.ask())
    await until(lambda: len(at.engine.processes) == 1)
    await at.manager.drain(["node2"], drain_s=1)
    at.engine.healthy = True
    await asked
    assert len(at.engine.processes) == 1
    await at.manager.close()


async def test_load_that_uses_the_node_ends_and_is_planned_on_the_others(tmp_path: Path) -> None:
    at = two_nodes(tmp_path)
    at.engine.healthy = False
    asked = asyncio.create_task(at.ask())
    await until(lambda: len(at.engine.processes) == 1)
    await at.manager.drain(["node1"], drain_s=1)
    assert at.engine.processes[0].exit
    await until(lambda: len(at.planner.requests) > 1)
    assert at.planner.requests[1].nodes == ["node2"]
    asked.cancel()
    await at.manager.close()


@pytest.mark.parametrize("nodes", [None, ["node1"]])
async def test_node_drained_while_a_load_is_planned_is_not_used(
    tmp_path: Path, nodes: list[str] | None
) -> None:
    at = two_nodes(tmp_path)
    await at.manager.load(LoadRequest(model="served", flags=["--x"]))
    at.planner.gate = asyncio.Event()
    load = asyncio.create_task(at.manager.load(LoadRequest(model="b", nodes=nodes)))
    await until(lambda: len(at.planner.requests) == 2)
    at.manager.drained.add("node1")
    at.planner.gate.set()
    with pytest.raises(RouterError, match="node1: drained"):
        await load
    assert at.manager.loaded == "served"
    await at.manager.close()


async def test_request_whose_plan_meets_a_drain_is_planned_anew(tmp_path: Path) -> None:
    at = two_nodes(tmp_path)
    at.planner.gate = asyncio.Event()
    asked = asyncio.create_task(at.ask())
    await until(lambda: len(at.planner.requests) == 1)
    await at.manager.drain(["node1"], drain_s=1)
    at.planner.gate.set()
    await until(lambda: len(at.planner.requests) > 1)
    assert at.planner.requests[1].nodes == ["node2"]
    assert not at.engine.processes
    at.manager.drained.remove("node1")
    await asked
    await at.manager.close()


async def test_settings_of_a_model_that_dies_while_its_node_is_drained_do_not_name_it(tmp_path: Path) -> None:
    at = two_nodes(tmp_path)
    await at.manager.load(LoadRequest(model="a", nodes=["node2", "node1"]))
    at.manager.drained.add("node2")
    at.engine.process.die()
    await at.ask()
    assert at.planner.requests[-1].nodes == ["node1"]
    at.manager.drained.remove("node2")
    at.engine.process.die()
    await at.ask()
    assert at.planner.requests[-1].nodes == ["node2", "node1"]
    await at.manager.close()
