"""Faults are undone whatever happens between, and recorded with what was done."""

import asyncio
from dataclasses import dataclass, field

import pytest
from harness.cluster.inventory import Node
from harness.contracts.diagnosis import FailureClass
from harness.errors import HarnessError
from harness.trials.faults.fault import Fault, injected, run_to_completion
from harness.trials.faults.processes import exec_start
from tests.unit.trials.cluster_double import node_double


@dataclass
class Noted(Fault):
    """A fault that only notes what is asked of it."""

    kind = "noted"
    expected = FailureClass.HUNG

    fails: bool = False
    steps: list[str] = field(default_factory=list)

    async def inject(self) -> str:
        self.steps.append("inject")
        if self.fails:
            raise HarnessError("node1: no")
        return "something"

    async def undo(self) -> None:
        self.steps.append("undo begins")
        await asyncio.sleep(0)
        self.steps.append("undone")


DONE = ["inject", "undo begins", "undone"]


@pytest.fixture
def node() -> Node:
    return node_double("node1", "backends")


async def test_fault_is_recorded_and_undone(node: Node) -> None:
    fault = Noted(node)
    async with injected(fault) as record:
        assert (fault.steps, record.undone_ns) == (["inject"], None)
    assert fault.steps == DONE
    assert record.undone_ns is not None
    assert (record.kind, record.node, record.what) == ("noted", "node1", "something")
    assert record.expected is FailureClass.HUNG


async def test_fault_is_undone_when_the_block_fails(node: Node) -> None:
    fault = Noted(node)
    with pytest.raises(AssertionError):
        async with injected(fault):
            raise AssertionError
    assert fault.steps == DONE


async def test_injection_that_came_half_way_is_undone_too(node: Node) -> None:
    fault = Noted(node, fails=True)
    with pytest.raises(HarnessError, match="node1: no"):
        async with injected(fault):
            pass
    assert fault.steps == DONE


async def test_fault_is_undone_to_the_end_when_the_trial_is_cancelled(node: Node) -> None:
    fault, there = Noted(node), asyncio.Event()

    async def trial() -> None:
        async with injected(fault):
            there.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(trial())
    await there.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert fault.steps == DONE


async def test_undo_is_done_however_often_its_caller_is_cancelled() -> None:
    done: list[str] = []
    go_on = asyncio.Event()

    async def undo() -> None:
        await go_on.wait()
        done.append("undone")

    caller = asyncio.create_task(run_to_completion(undo()))
    for _ in range(3):
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.sleep(0)
    assert not caller.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert done == ["undone"]


async def test_undo_that_fails_says_so() -> None:
    async def undo() -> None:
        raise HarnessError("node1: cannot be mended")

    with pytest.raises(HarnessError, match="cannot be mended"):
        await run_to_completion(undo())


def test_command_of_a_unit_keeps_its_words() -> None:
    assert exec_start(["/opt/x y/rpc-server", "--host", "10.0.0.1", 'a"b', "50%", "$HOME"]) == (
        r'"/opt/x y/rpc-server" "--host" "10.0.0.1" "a\"b" "50%%" "$$HOME"'
    )
