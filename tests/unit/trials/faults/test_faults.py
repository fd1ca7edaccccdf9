"""Faults are undone whatever happens between, and recorded with what was done."""

import asyncio
from dataclasses import dataclass, field

import pytest
from harness.cluster.inventory import Node
from harness.contracts.diagnosis import FailureClass
from harness.errors import HarnessError
from harness.trials.faults.fault import Fault, Injected, injected
from harness.trials.faults.starts import exec_start


class NodeDouble(Node):
    """Stands for a node where every command succeeds and prints nothing."""

    def ssh(self, *argv: str, root: bool = False) -> list[str]:
        return ["true"]


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
    return NodeDouble("node1", "10.0.0.1", frozenset({"backends"}), {})


async def test_fault_is_recorded_and_undone(node: Node) -> None:
    fault, told = Noted(node), list[Injected]()
    async with injected(fault, told.append) as record:
        assert fault.steps == ["inject"]
    assert fault.steps == DONE
    assert told == [record]
    assert (record.kind, record.node, record.what) == ("noted", "node1", "something")
    assert record.expected is FailureClass.HUNG


async def test_fault_is_undone_when_the_block_fails(node: Node) -> None:
    fault = Noted(node)
    with pytest.raises(AssertionError):
        async with injected(fault):
            raise AssertionError
    assert fault.steps == DONE


async def test_injection_that_came_half_way_is_undone_too(node: Node) -> None:
    fault, told = Noted(node, fails=True), list[Injected]()
    with pytest.raises(HarnessError, match="node1: no"):
        async with injected(fault, told.append):
            pass
    assert fault.steps == DONE
    assert told == []


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


def test_command_of_a_unit_keeps_its_words() -> None:
    assert exec_start(["/opt/x y/rpc-server", "--host", "10.0.0.1", 'a"b', "50%", "$HOME"]) == (
        r'"/opt/x y/rpc-server" "--host" "10.0.0.1" "a\"b" "50%%" "$$HOME"'
    )
