"""Faults caused on real machines, and what the harness says of each: class, and deciding line."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fault_bench import MODEL, FaultBench, decided_by, fault_bench
from harness.diagnosis.classify import classify
from harness.diagnosis.evidence import Inputs
from harness.trials.faults.fault import injected
from harness.trials.faults.files import TruncatedModel
from harness.trials.faults.processes import KillBackend, KillCoordinator
from harness.trials.faults.starts import ClosedPort, OtherProtocol
from lab_under_test import LabUnderTest

OTHER_PROTOCOL, OTHER_BUILD = 6666, 6792


@pytest.fixture
async def bench(deployed: LabUnderTest, tmp_path: Path) -> AsyncIterator[FaultBench]:
    """The deployed lab; nothing is loaded before and after."""
    async with fault_bench(deployed.inventory, tmp_path) as bench:
        await bench.ctx.router.unload(0)
        yield bench


@pytest.fixture(scope="module")
def other_builds(deployed: LabUnderTest) -> None:
    """rpc-server of two other releases on the node that is not the head, beside the pinned build."""
    for build in (OTHER_PROTOCOL, OTHER_BUILD):
        playbook = Path(__file__).with_name("other_build.yml")
        deployed.ansible(playbook, limit="node1", llama_cpp_build=build)


async def test_sigterm_to_an_idle_coordinator_is_a_stop(bench: FaultBench) -> None:
    await bench.load()
    state = await bench.ctx.router.unload(60)
    failure, line = decided_by(state.diagnosis)
    assert failure == "stopped"
    assert re.fullmatch(r"signals \| SIGTERM sent with 0 request\(s\) in flight .*", line)


async def test_sigterm_with_a_request_in_flight_is_no_crash(bench: FaultBench) -> None:
    await bench.load()
    async with bench.asked():
        state = await bench.ctx.router.unload(0)
    failure, line = decided_by(state.diagnosis)
    assert failure == "stopped_busy"
    assert re.fullmatch(r"signals \| SIGTERM sent with 1 request\(s\) in flight .*", line)


async def test_killed_backend_is_lost_to_its_coordinator(bench: FaultBench) -> None:
    await bench.load()
    async with bench.asked() as asked, injected(KillBackend(bench.other)):
        state = await bench.ended()
        assert "backend_lost" in await asked.rest()
    failure, line = decided_by(state.diagnosis)
    assert failure == "backend_lost"
    assert "Remote RPC server crashed or returned malformed response" in line


async def test_killed_coordinator_was_stopped_busy_by_the_fault(bench: FaultBench) -> None:
    state = await bench.load()
    assert state.pid
    async with bench.asked() as asked, injected(KillCoordinator(bench.head, state.pid, 1)) as fault:
        state = await bench.ended()
        assert '"error"' in await asked.rest()
    found = classify(Inputs(exit=state.exit, signals=fault.signals))
    failure, line = decided_by(found)
    assert failure == "stopped_busy"
    assert re.fullmatch(
        r"signals \| SIGKILL sent with 1 request\(s\) in flight \(a fault was injected\).*", line
    )


async def test_backend_that_does_not_listen_is_unreachable(bench: FaultBench) -> None:
    async with injected(ClosedPort(bench.other)):
        refusal = await bench.refused()
    assert refusal.failure_class == "backend_unreachable"


async def test_unknown_flag_is_named(bench: FaultBench) -> None:
    refusal = await bench.refused(flags=("--no-such-flag",))
    assert refusal.state
    failure, line = decided_by(refusal.state.diagnosis)
    assert failure == "bad_arguments"
    assert line.endswith("error: invalid argument: --no-such-flag")


async def test_truncated_model_is_refused_with_what_is_missing(bench: FaultBench) -> None:
    path = f"/srv/llama-models/{MODEL}.gguf"
    async with injected(TruncatedModel(bench.head, path, 600_000_000, bench.lab)):
        refusal = await bench.refused(f"{MODEL}-truncated")
    assert refusal.failure_class == "model_invalid"
    assert "the file has 600000000" in str(refusal)


@pytest.mark.usefixtures("other_builds")
async def test_backend_of_another_protocol_is_named_with_its_version(bench: FaultBench) -> None:
    async with injected(OtherProtocol(bench.other, OTHER_PROTOCOL)):
        refusal = await bench.refused()
    assert refusal.state
    failure, line = decided_by(refusal.state.diagnosis)
    assert failure == "rpc_version_mismatch"
    assert line.endswith("RPC server version mismatch: 2.0.0")
