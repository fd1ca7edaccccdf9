"""Faults caused on real machines, and what the harness says of each: class, and deciding line."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from harness.contracts.plan import Plan
from harness.diagnosis.classify import classify
from harness.diagnosis.inputs import RPC_SERVER, Inputs
from harness.llama.releases.catalogue import catalogue
from harness.llama.rpc.messages import CAPS_BYTES, HEADER_BYTES
from harness.monitor.backend_state import RPC_UNIT
from harness.trials.faults.fault import ensure_serving, injected
from harness.trials.faults.leftovers import undo_leftovers
from harness.trials.faults.links import CutLink
from harness.trials.faults.processes import (
    ClosedPort,
    FreezeBackend,
    KillBackend,
    KillCoordinator,
    OtherBuild,
    TakenPort,
    WrongFlag,
)
from harness.trials.faults.resources import SmallCacheDisk, SqueezeMemory, StarveIntoSwap
from harness.trials.kinds.diagnosis_inputs import diagnose_ready
from harness.trials.lab import restore_all_memory
from tests.lab.fault_bench import MODEL, FaultBench, decided_by, fault_bench
from tests.lab.lab_faults import BackendByHand, OtherProtocol, TruncatedModel
from tests.lab.lab_under_test import LabUnderTest

OLD_GREETING, OLDER_PROTOCOL = 6666, 10566
SAME_PROTOCOL = 11548
"""A double, the pin under another number: no two releases of the catalogue speak its protocol."""

# Says HELLO, asks for the device's memory a thousand times over, and leaves without waiting for an answer.
LEAVE = f"""
import socket, struct, sys
peer = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5)
peer.sendall(bytes([14]) + struct.pack("<Q", {CAPS_BYTES}) + bytes({CAPS_BYTES}))
greeting = b""
while len(greeting) < {HEADER_BYTES + 4 + CAPS_BYTES}:
    greeting += peer.recv({HEADER_BYTES + 4 + CAPS_BYTES} - len(greeting)) or sys.exit("closed")
peer.sendall((bytes([11]) + struct.pack("<QI", 4, 0)) * 1000)
peer.close()
"""

RENUMBER = """
import json, pathlib, shutil, sys
root = pathlib.Path("/opt/llama.cpp")
folder = root / f"{sys.argv[1]}-double"
if not folder.exists():
    shutil.copytree((root / "current").resolve(), folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"build": int(sys.argv[1])}))
"""


@pytest.fixture(scope="module")
def splits() -> dict[str, Plan]:
    """Plans that were made while both nodes had all their memory, by model."""
    return {}


@pytest.fixture
async def bench(deployed: LabUnderTest, tmp_path: Path, splits: dict[str, Plan]) -> AsyncIterator[FaultBench]:
    """The deployed lab; nothing is loaded before and after."""
    async with fault_bench(deployed.inventory, tmp_path, splits) as bench:
        await bench.ctx.router.unload(0)
        yield bench


def install_rpc_server(lab: LabUnderTest, build: int) -> None:
    """rpc-server of another release on the node that is not the head, beside the pinned build."""
    lab.ansible(
        Path(__file__).with_name("other_build.yml"),
        limit="node1",
        llama_cpp_build=build,
        llama_cpp_accepted_issues=[issue.id for issue in catalogue().refusals(build)],
    )


@pytest.fixture(scope="module")
def same_protocol(deployed: LabUnderTest) -> None:
    """The pinned build under another number on the node that is not the head."""
    deployed.run("node1", "python3", "-c", RENUMBER, str(SAME_PROTOCOL))


async def eventually(look: Callable[[], Awaitable[str]], holds: Callable[[str], bool]) -> None:
    """Look until something holds, some five minutes at most."""
    for _ in range(300):
        if holds(said := await look()):
            return
        await asyncio.sleep(1)
    raise AssertionError(f"never seen; last: {said}")


def _serves_somebody(heard: str) -> bool:
    latest = json.loads(heard)["latest"]["node1"]
    return bool(latest and latest["rpc"] and latest["rpc"]["peer"])


async def until(wanted: str, look: Callable[[], Awaitable[tuple[str, str]]]) -> tuple[str, str]:
    """What looks give once their class is ``wanted``, or the last of ten."""
    for _ in range(10):
        found = await look()
        if found[0] == wanted:
            break
    return found


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
    start = await bench.load()
    async with bench.asked() as asked, injected(KillBackend(bench.other)):
        state = await bench.ended(start)
        assert "backend_lost" in await asked.rest()
        await bench.explain(state)
    failure, line = decided_by(state.diagnosis)
    assert failure == "backend_lost"
    assert "Remote RPC server crashed or returned malformed response" in line
    told = {item.source: item.line for item in state.diagnosis.evidence} if state.diagnosis else {}
    assert told["journal node1"].endswith("Main process exited, code=killed, status=9/KILL")


async def test_killed_coordinator_was_stopped_busy_by_the_fault(bench: FaultBench) -> None:
    state = await bench.load()
    assert state.pid
    async with bench.asked() as asked, injected(KillCoordinator(bench.head, state.pid, 1)) as fault:
        state = await bench.ended(state)
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
    assert refusal.failure_class == "bad_arguments"
    assert "'--no-such-flag' (it is not on the list of allowed options)" in str(refusal)


async def test_backend_started_with_an_unknown_flag_says_which(bench: FaultBench) -> None:
    async with injected(WrongFlag(bench.other)):
        failure, line = await bench.backend("bad_arguments")
    assert failure == "bad_arguments"
    assert line.endswith("error: unknown argument: --no-such-flag")


async def test_backend_whose_port_is_taken_says_so(bench: FaultBench) -> None:
    async with injected(TakenPort(bench.other)):
        failure, line = await bench.backend("port_in_use")
    assert failure == "port_in_use"
    assert line.endswith("Failed to create server socket")


async def test_backend_killed_for_memory_is_told_by_its_kernel(bench: FaultBench) -> None:
    split = (await bench.load()).plan
    await bench.ctx.router.unload(0)
    async with injected(SqueezeMemory(bench.other, lab=bench.lab)):
        refusal = await bench.refused(plan=split)
        assert refusal.state
        await bench.explain(refusal.state)
        failure, line = await bench.backend("oom_killed")
    assert failure == "oom_killed"
    assert re.search(r"kernel: .*(oom-kill|Killed process \d+ \(rpc-server\))", line)
    failure, line = decided_by(refusal.state.diagnosis)
    assert failure == "backend_lost"
    assert refusal.state.diagnosis
    told = {item.source: item.line for item in refusal.state.diagnosis.evidence}
    assert told["journal node1"].endswith("Main process exited, code=killed, status=9/KILL")


async def test_frozen_backend_is_stalled_and_its_state_says_why(bench: FaultBench) -> None:
    start = await bench.load()
    async with bench.asked(), injected(FreezeBackend(bench.other)):
        failure, line = await bench.waiting()
        assert failure == "backend_stalled"
        assert re.fullmatch(r"process node1 \| rpc-server is stopped \(state T\), peer \S+:\d+", line)
        # The router finds it too, and ends what would wait for ever.
        state = await bench.ended(start)
        await bench.explain(state)
    failure, line = decided_by(state.diagnosis)
    assert failure == "backend_stalled"
    assert "(state T)" in line


async def test_pulled_cable_is_a_partition(bench: FaultBench) -> None:
    await bench.load()
    async with bench.asked(), injected(CutLink(bench.other, bench.head, bench.lab)):
        failure, line = await bench.waiting()
    assert failure == "network_partition"
    assert line.startswith("node node1 | the node cannot be reached")
    await bench.forget_peer()


async def test_dropped_packets_are_a_partition_though_the_node_answers(bench: FaultBench) -> None:
    await bench.load()
    async with bench.asked(), injected(CutLink(bench.other, bench.head)):
        failure, line = await until("network_partition", bench.waiting)
    assert failure == "network_partition"
    assert re.match(r"node node1 \| node[12]: \d+ bytes to \S+ unacknowledged", line)
    assert "llama_fault" not in await bench.on(bench.other, "nft", "list", "tables")
    await bench.forget_peer()


async def test_backend_that_was_cut_off_for_good_is_named_before_the_next_load(bench: FaultBench) -> None:
    await bench.load()
    endpoint = bench.other.rpc_endpoint
    async with injected(CutLink(bench.other, bench.head, bench.lab)):
        await bench.ctx.router.unload(0)
        # The kernel gives up telling the other end after some two minutes.
        await eventually(lambda: bench.on(bench.head, "ss", "-Htan", "dst", endpoint), lambda said: not said)
    monitor = ("/opt/llama-harness/venv/bin/llama-node-monitor", "latest", "node1")
    await eventually(lambda: bench.on(bench.head, *monitor), _serves_somebody)
    refusal = await bench.refused()
    assert re.search(r"node1: its rpc-server still serves \S+, a connection that this", str(refusal))
    await bench.on(bench.other, "systemctl", "restart", RPC_UNIT)
    await ensure_serving(bench.other)
    await bench.load()


async def test_starved_backend_thrashes(bench: FaultBench) -> None:
    await bench.load()
    async with bench.asked(), injected(StarveIntoSwap(bench.other, 160 << 20, bench.lab)):
        failure, line = await until("swap_thrash", bench.waiting)
    assert failure == "swap_thrash"
    assert re.search(r"samples node1 \| rpc-server had up to \d+ MiB in swap; \d+ major faults/s", line)


async def test_cache_on_a_full_disk_is_named_with_what_it_cut(bench: FaultBench) -> None:
    async with injected(SmallCacheDisk(bench.other, lab=bench.lab)):
        found = await diagnose_ready(bench.ctx, await bench.load())
        await bench.ctx.router.unload(0)
    failure, line = decided_by(found)
    assert failure == "disk_full"
    assert re.search(
        r"disk node1 \| /var/cache/llama.cpp/rpc: \d+ bytes free of \d+ MB; \d+ of \d+ cached", line
    )


@pytest.mark.usefixtures("same_protocol")
async def test_another_build_behind_the_same_protocol_is_found_though_it_answers(bench: FaultBench) -> None:
    async with injected(OtherBuild(bench.other, SAME_PROTOCOL)):
        found = await diagnose_ready(bench.ctx, await bench.load())
        await bench.ctx.router.unload(0)
    assert found
    assert found.failure_class == "build_mismatch"
    assert {f"{item.source} | {item.line}".partition(" (")[0] for item in found.evidence} == {
        f"build node1 | llama.cpp {SAME_PROTOCOL}",
        f"build node2 | llama.cpp {bench.head.variables['llama_cpp_build']}",
    }


async def test_backend_started_by_hand_dies_of_sigpipe_when_its_client_leaves(bench: FaultBench) -> None:
    """A client that leaves with answers on their way, as a killed coordinator does; a few tries do it."""
    fault = BackendByHand(bench.other)
    async with injected(fault):
        address, _, port = bench.other.rpc_endpoint.rpartition(":")
        ended, log = None, list[str]()
        for _ in range(40):
            await bench.on(bench.head, "python3", "-c", LEAVE, address, port)
            await asyncio.sleep(0.1)
            ended, log = await fault.end()
            if ended:
                break
    found = classify(Inputs(process=RPC_SERVER, exit=ended, logs={"log": log}))
    assert found.failure_class == "sigpipe"
    assert found.evidence[-1].line == "ended by signal 13 (SIGPIPE), 141 in a shell"


async def test_truncated_model_is_refused_with_what_is_missing(bench: FaultBench) -> None:
    path = f"/srv/llama-models/{MODEL}.gguf"
    async with injected(TruncatedModel(bench.head, path, 600_000_000, bench.lab)):
        refusal = await bench.refused(f"{MODEL}-truncated")
    assert refusal.failure_class == "model_invalid"
    assert "the file has 600000000" in str(refusal)


async def test_backend_that_greets_in_an_older_way_is_named_by_its_build(
    bench: FaultBench, deployed: LabUnderTest
) -> None:
    """Protocols up to 3 and from 5 on hang up on each other's greeting, so no version is ever printed."""
    install_rpc_server(deployed, OLD_GREETING)
    async with injected(OtherProtocol(bench.other, OLD_GREETING)):
        refusal = await bench.refused()
        assert refusal.state
        await bench.explain(refusal.state)
    diagnosis = refusal.state.diagnosis
    assert diagnosis
    assert diagnosis.failure_class == "build_mismatch"
    assert f"build node1 | llama.cpp {OLD_GREETING}" in {
        f"{item.source} | {item.line}".partition(" (")[0] for item in diagnosis.evidence
    }


@pytest.mark.long
async def test_backend_of_another_protocol_is_named_with_its_version(
    bench: FaultBench, deployed: LabUnderTest
) -> None:
    install_rpc_server(deployed, OLDER_PROTOCOL)
    async with injected(OtherProtocol(bench.other, OLDER_PROTOCOL)):
        refusal = await bench.refused()
    assert refusal.state
    failure, line = decided_by(refusal.state.diagnosis)
    assert failure == "rpc_version_mismatch"
    assert line.endswith("RPC server version mismatch: 5.1.0")


async def test_what_a_killed_run_left_is_found_and_undone(bench: FaultBench) -> None:
    left: list[str] = []

    async def found() -> list[str]:
        left.clear()
        await undo_leftovers(bench.inventory.backends, bench.lab, left.append)
        return left

    for fault, name in (
        (FreezeBackend(bench.other), "a frozen rpc-server"),
        (WrongFlag(bench.other), "a wrong flag"),
        (TakenPort(bench.other), "a taken port"),
        (ClosedPort(bench.other), "no rpc-server"),
        (SmallCacheDisk(bench.other, lab=bench.lab), "a small cache disk"),
        (CutLink(bench.other, bench.head, bench.lab), "a pulled cable"),
        (CutLink(bench.other, bench.head), "dropped packets"),
    ):
        await fault.inject()
        assert await found() == [f"node1: undid what a run that was killed left there: {name}"]
        assert not await found()
    for fault in (
        SqueezeMemory(bench.other, lab=bench.lab),
        StarveIntoSwap(bench.other, 600 << 20, bench.lab),
    ):
        await fault.inject()
        assert restore_all_memory(bench.lab) == ["node1"]
        assert not restore_all_memory(bench.lab)
    await bench.load()
