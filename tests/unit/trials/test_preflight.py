"""What a run checks before its first trial, and in which order."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from harness.cluster.inventory import Inventory, parse_inventory
from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState
from harness.contracts.plan import LoadRequest
from harness.contracts.run_records import NodeFacts
from harness.errors import HarnessError
from harness.router_client.client import RouterRefusedError
from harness.trials import preflight
from harness.trials.preflight import check_builds, check_fit, check_models, run_preflight
from harness.trials.profile.profile import Profile, parse_profile
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
        ("{kind: load, model: another}", (), "no model 'another'; it has: m"),
        (LOAD, (8, 7), "give the build that runs now first"),
        ("{kind: fault, model: m, fault: kill-backend, node: a}", (), "faults_allowed: true"),
    ],
)
async def test_run_that_cannot_start_leaves_the_loaded_model_alone(
    inventory: Inventory, trials: str, pins: tuple[int, ...], says: str
) -> None:
    router = RouterDouble(listed={"m": {}})
    with pytest.raises(HarnessError, match=says):
        await run_preflight(profile(trials), pins, inventory, router)
    assert router.calls == []


async def test_cluster_is_inspected_again_once_its_coordinator_is_unloaded(inventory: Inventory) -> None:
    was_up = CoordinatorState(phase=CoordinatorPhase.ENDED)
    router = RouterDouble(listed={"m": {"file_bytes": 1}, "other": {}}, unloaded=was_up)
    cluster = await run_preflight(profile(LOAD), (), inventory, router)
    assert router.calls == ["unload"]
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
