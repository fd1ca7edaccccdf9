"""What a run checks before its first trial, and in which order."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from harness.cluster.inventory import Inventory, parse_inventory
from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState
from harness.contracts.plan import LoadRequest
from harness.contracts.run_records import NodeFacts, RunManifest
from harness.errors import HarnessError
from harness.router_client.client import RouterRefusedError
from harness.trials import preflight
from harness.trials.preflight import check_builds, check_fit, check_models, run_preflight
from harness.trials.profile.profile import Profile, parse_profile
from harness.trials.resume import Unfinished
from tests.unit.trials.cluster_double import RouterDouble, node_double


def answer(argv: Sequence[str]) -> list[str]:
    """A node of build 7 that prints its facts, and that its units have no settings."""
    facts = {"build": 7, "commit": "c", "began_ns": 0, "ended_ns": 0}
    text = json.dumps({"settings": {}} if "address" in argv[-1] else facts)
    return ["sh", "-c", 'cat >/dev/null; printf %s "$1"', "sh", text]


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    return Inventory(tmp_path, {"a": node_double("a", "head", "backends", answer=answer)})


def profile(text: str) -> Profile:
    return parse_profile(Path("mine.yml"), f"trials: [{text}]")


LOAD = "{kind: load, model: m}"


@pytest.mark.parametrize(
    ("trials", "pins", "says"),
    [
        ("{kind: load, model: another}", (), "no model 'another'; it has: huge, m"),
        (LOAD, (8, 7), "give the build that runs now first"),
        ("{kind: pin, model: m, build: 2}", (), r"llama\.cpp 2 is not in the release catalogue"),
        ("{kind: pin, model: m, build: 6743}", (), "6743 has a remote code execution"),
        ("{kind: fault, model: m, fault: kill-backend, node: a}", (), "faults_allowed: true"),
        ("{kind: load, model: huge}", (), "GiB are missing"),
    ],
)
async def test_run_that_cannot_start_leaves_the_loaded_model_alone(
    inventory: Inventory,
    monkeypatch: pytest.MonkeyPatch,
    trials: str,
    pins: tuple[int, ...],
    says: str,
) -> None:
    """Even with force."""
    monkeypatch.setattr(preflight, "FREED_WITHIN_S", 0)
    router = RouterDouble(listed={"m": {}, "huge": {}}, refusal=lacks_memory_for_huge)
    with pytest.raises(HarnessError, match=says):
        await run_preflight(profile(trials), pins, inventory, router, force=True)
    assert router.calls == []


def lacks_memory_for_huge(request: LoadRequest) -> HarnessError | None:
    if request.model == "huge":
        return RouterRefusedError("GiB are missing", "does_not_fit", None)
    return None


async def test_resumed_run_on_another_cluster_leaves_the_loaded_model_alone(
    inventory: Inventory, tmp_path: Path
) -> None:
    begun = NodeFacts(name="a", address="a", groups=[], build=6)
    unfinished = Unfinished(tmp_path, RunManifest.model_construct(run="r", nodes=[begun]), profile(LOAD), [])
    router = RouterDouble(listed={"m": {}})
    with pytest.raises(HarnessError, match=r"a has another llama\.cpp \(7, was 6\)"):
        await run_preflight(profile(LOAD), (), inventory, router, resumed=unfinished)
    assert router.calls == []


def noted_sleep(slept: list[float]) -> Callable[[float], Awaitable[None]]:
    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    return sleep


async def test_requests_that_are_about_to_end_are_waited_for(
    inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of a run that was killed and is resumed at once."""
    slept: list[float] = []
    monkeypatch.setattr(asyncio, "sleep", noted_sleep(slept))
    states = [
        busy(CoordinatorPhase.READY, 2),
        busy(CoordinatorPhase.READY, 1),
        busy(CoordinatorPhase.READY, 0),
    ]
    router = RouterDouble(listed={"m": {}}, loading=states)
    await run_preflight(profile(LOAD), (), inventory, router)
    assert router.calls[-1] == "unload"
    assert len(slept) == 2


def busy(phase: CoordinatorPhase, requests: int) -> CoordinatorState:
    return CoordinatorState(phase=phase, model="theirs", requests_in_flight=requests)


@pytest.mark.parametrize(
    ("state", "waiting", "says"),
    [
        (busy(CoordinatorPhase.READY, 2), 1, "3 requests of others are in flight or wait"),
        (busy(CoordinatorPhase.READY, 0), 1, "1 requests of others are in flight or wait"),
        (busy(CoordinatorPhase.STARTING, 0), 0, "it is being loaded for others"),
    ],
)
async def test_requests_of_others_are_stopped_by_force_alone(
    inventory: Inventory, monkeypatch: pytest.MonkeyPatch, state: CoordinatorState, waiting: int, says: str
) -> None:
    monkeypatch.setattr(preflight, "ENDING_TRIES", 1)
    monkeypatch.setattr(asyncio, "sleep", noted_sleep([]))
    router = RouterDouble(listed={"m": {}}, loading=[state], in_queue=waiting)
    with pytest.raises(HarnessError, match=rf"{says} \(theirs\) .* wait for their end, or .* --force"):
        await run_preflight(profile(LOAD), (), inventory, router)
    assert "unload" not in router.calls
    router.loading = [state]
    said: list[str] = []
    await run_preflight(profile(LOAD), (), inventory, router, force=True, say=said.append)
    assert router.calls[-1] == "unload"
    assert len(said) == (1 if waiting else 0)


async def test_cluster_is_inspected_again_once_its_coordinator_is_unloaded(inventory: Inventory) -> None:
    was_up = CoordinatorState(phase=CoordinatorPhase.ENDED)
    router = RouterDouble(listed={"m": {"file_bytes": 1}, "other": {}}, unloaded=was_up)
    cluster = await run_preflight(profile(LOAD), (), inventory, router)
    assert router.calls == ["coordinator", "unload"]
    assert cluster.models == {"m": {"file_bytes": 1}}
    assert cluster.facts["a"].build == 7


async def test_memory_that_comes_back_late_is_waited_for_once(
    inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "FREED_WITHIN_S", 0)
    refusals = [RouterRefusedError("2 GiB are missing", "does_not_fit", None)]
    router = RouterDouble(listed={"m": {}}, refusal=lambda request: refusals.pop() if refusals else None)
    await run_preflight(profile(LOAD), (), inventory, router)
    refusals[:] = [RouterRefusedError("2 GiB are missing", "does_not_fit", None)] * 2
    with pytest.raises(HarnessError, match="GiB are missing"):
        await run_preflight(profile(LOAD), (), inventory, router)


@pytest.fixture
def three_nodes() -> Inventory:
    hosts = {f"node{n}": {"ansible_host": f"10.0.0.{n}"} for n in (1, 2, 3)}
    listing = {"_meta": {"hostvars": hosts}, "backends": {"hosts": list(hosts)}, "head": {"hosts": ["node2"]}}
    return parse_inventory(Path("inventory"), listing)


@pytest.fixture
def facts() -> dict[str, NodeFacts]:
    return {name: NodeFacts(name=name, address="10.0.0.1", groups=[]) for name in ("node1", "node2", "node3")}


def lacks_memory(request: LoadRequest) -> HarnessError | None:
    """The answer of a router whose nodes hold a whole model together, and not less than three of them."""
    few = request.nodes is not None and len(request.nodes) < 3
    return RouterRefusedError("GiB are missing", "does_not_fit", None) if few else None


async def test_load_that_the_router_cannot_place_is_refused_with_what_is_missing(
    three_nodes: Inventory,
) -> None:
    router = RouterDouble(refusal=lacks_memory)
    await check_fit(profile("{kind: load, model: big}"), three_nodes, router)
    with pytest.raises(HarnessError, match="GiB are missing"):
        await check_fit(profile("{kind: load, model: big, nodes: 2}"), three_nodes, router)


async def test_parity_needs_the_model_whole_on_the_head_node_too(three_nodes: Inventory) -> None:
    router = RouterDouble()
    await check_fit(profile("{kind: parity, model: big, nodes: [node1, node3]}"), three_nodes, router)
    assert [request.nodes for request in router.requests] == [["node2"], ["node1", "node3"]]


async def test_loads_alike_are_checked_once(three_nodes: Inventory) -> None:
    router = RouterDouble()
    repeated = profile("{kind: load, model: big}, {kind: load, model: big, cache: warm, deadline_s: 5}")
    await check_fit(repeated, three_nodes, router)
    assert len(router.requests) == 1


@pytest.mark.parametrize(
    "text",
    [
        "{kind: load, model: big, starve: {node: node1, memory: 1G}}",
        "{kind: load, model: big, nodes: 2, may_not_fit: true}",
        "{kind: load, model: big, n_gpu_layers: 0}",
        "{kind: load, model: big, nodes: 9}",
    ],
)
async def test_load_that_is_meant_not_to_fit_is_let_through(three_nodes: Inventory, text: str) -> None:
    await check_fit(profile(text), three_nodes, RouterDouble(refusal=lambda request: HarnessError("no")))


def built(facts: dict[str, NodeFacts], **changed: object) -> dict[str, NodeFacts]:
    """The facts of nodes of one build, but for ``changed`` on node3."""
    same = {"build": 6751, "commit": "01d2bdc2b", "platform": "p", "binaries": {"rpc-server": "ab" * 32}}
    return {
        name: one.model_copy(update=same | (changed if name == "node3" else {}))
        for name, one in facts.items()
    }


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"build": 6743}, r"^node3 runs llama\.cpp 6743 \(01d2bdc2b\) and node2 runs 6751 .*deploy again"),
        ({"binaries": {"rpc-server": "cd" * 32}}, "^node3 runs another rpc-server .cdcdcdcdcdcd. and node2"),
    ],
)
def test_node_with_another_build_is_named(
    three_nodes: Inventory, facts: dict[str, NodeFacts], changed: dict[str, object], says: str
) -> None:
    check_builds(three_nodes, built(facts))
    with pytest.raises(HarnessError, match=says):
        check_builds(three_nodes, built(facts, **changed))


@pytest.mark.parametrize(
    "changed", [{"platform": "gpu", "binaries": {"rpc-server": "cd" * 32}}, {"build": None}]
)
def test_other_platform_and_node_without_a_manifest_are_let_through(
    three_nodes: Inventory, facts: dict[str, NodeFacts], changed: dict[str, object]
) -> None:
    check_builds(three_nodes, built(facts, **changed))


def test_missing_model_is_named_with_what_there_is() -> None:
    with pytest.raises(HarnessError, match="no model 'big'; it has: small"):
        check_models(profile("{kind: load, model: big}"), {"small": {}}, "http://router")
