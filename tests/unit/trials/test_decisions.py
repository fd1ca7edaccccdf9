"""What a run decides without touching a machine: fit, estimate, verdict, names."""

from pathlib import Path

import pytest
from harness.cluster.inventory import Inventory, parse_inventory
from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState
from harness.contracts.diagnosis import Confidence, Diagnosis, Evidence, FailureClass
from harness.contracts.load_report import BackendBuffers, LoadReport
from harness.contracts.plan import BackendShare, Plan
from harness.contracts.run_records import NodeFacts, Outcome, RunManifest, Trial
from harness.errors import HarnessError
from harness.runs.store import RunFolder
from harness.trials.checks import check_builds, check_fit, check_models
from harness.trials.context import judge
from harness.trials.estimate import earlier_durations, estimate, step_signature
from harness.trials.kinds.load import undistributed
from harness.trials.profile.profile import Profile, parse_profile
from harness.trials.profile.steps import step_title

GIB = 1 << 30


def profile(text: str) -> Profile:
    return parse_profile(Path("mine.yml"), f"trials: [{text}]")


@pytest.fixture
def inventory() -> Inventory:
    hosts = {f"node{n}": {"ansible_host": f"10.0.0.{n}"} for n in (1, 2, 3)}
    listing = {"_meta": {"hostvars": hosts}, "backends": {"hosts": list(hosts)}, "head": {"hosts": ["node2"]}}
    return parse_inventory(Path("inventory"), listing)


@pytest.fixture
def facts() -> dict[str, NodeFacts]:
    return {
        name: NodeFacts(name=name, address="10.0.0.1", groups=[], memory_available_bytes=gib * GIB)
        for name, gib in (("node1", 3), ("node2", 6), ("node3", 3))
    }


def test_model_that_cannot_fit_is_refused_with_what_is_missing(
    inventory: Inventory, facts: dict[str, NodeFacts]
) -> None:
    step = profile("{kind: load, model: big, nodes: 2}")
    with pytest.raises(
        HarnessError, match=r"big cannot fit: it needs 10\.2 GiB and node1 3\.0 GiB, node2 6\.0"
    ):
        check_fit(step, inventory, facts, {"big": {"file_bytes": 10 * GIB}})


def test_parity_needs_the_model_whole_on_the_head_node_too(
    inventory: Inventory, facts: dict[str, NodeFacts]
) -> None:
    step = profile("{kind: parity, model: big}")
    check_fit(step, inventory, facts, {"big": {"file_bytes": 5 * GIB}})
    with pytest.raises(HarnessError, match=r"big cannot fit: it needs 10\.2 GiB and node2 6\.0 GiB have"):
        check_fit(step, inventory, facts, {"big": {"file_bytes": 10 * GIB}})


def test_model_that_fits_more_nodes_is_not_refused(inventory: Inventory, facts: dict[str, NodeFacts]) -> None:
    check_fit(profile("{kind: load, model: big}"), inventory, facts, {"big": {"file_bytes": 10 * GIB}})


@pytest.mark.parametrize(
    "text",
    [
        "{kind: load, model: big, starve: {node: node1, memory: 1G}}",
        "{kind: load, model: big, n_gpu_layers: 0}",
        "{kind: load, model: big, nodes: 9}",
    ],
)
def test_load_that_is_meant_not_to_fit_is_let_through(
    inventory: Inventory, facts: dict[str, NodeFacts], text: str
) -> None:
    check_fit(profile(text), inventory, facts, {"big": {"file_bytes": 99 * GIB}})


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
    inventory: Inventory, facts: dict[str, NodeFacts], changed: dict[str, object], says: str
) -> None:
    check_builds(inventory, built(facts))
    with pytest.raises(HarnessError, match=says):
        check_builds(inventory, built(facts, **changed))


@pytest.mark.parametrize(
    "changed", [{"platform": "gpu", "binaries": {"rpc-server": "cd" * 32}}, {"build": None}]
)
def test_other_platform_and_node_without_a_manifest_are_let_through(
    inventory: Inventory, facts: dict[str, NodeFacts], changed: dict[str, object]
) -> None:
    check_builds(inventory, built(facts, **changed))


def test_missing_model_is_named_with_what_there_is() -> None:
    with pytest.raises(HarnessError, match="no model 'big'; it has: small"):
        check_models(profile("{kind: load, model: big}"), {"small": {}}, "http://router")


def test_estimate_grows_with_the_model_and_with_the_cold_cache() -> None:
    steps = profile(
        "{kind: load, model: small}, {kind: load, model: big}, {kind: load, model: big, cache: warm}"
    )
    (small, big, warm), known = estimate(
        steps, {"small": {"file_bytes": GIB}, "big": {"file_bytes": 9 * GIB}}, {}
    )
    assert small < warm < big
    assert known == 0


def test_soak_is_estimated_by_what_ends_it_first() -> None:
    steps = profile(
        "{kind: soak, model: m, duration_s: 3600}, {kind: soak, model: m, duration_s: 3600, requests: 1}, "
        "{kind: soak, model: m, duration_s: 9, requests: 999999}"
    )
    (long, few, short), _ = estimate(steps, {"m": {"file_bytes": GIB}}, {})
    assert long > 3600
    assert few < 60
    assert 9 < short < 60


def test_earlier_run_on_the_same_inventory_replaces_the_assumption(tmp_path: Path) -> None:
    step = profile("{kind: load, model: m}").trials[0]
    for name, inventory, seconds in (("a", "/mine", 40), ("b", "/other", 7)):
        folder = RunFolder.create(tmp_path, name)
        folder.write_manifest(
            RunManifest(
                run=name,
                profile="p",
                profile_text="",
                inventory=inventory,
                started_ns=0,
                harness_version="0",
                command=[],
            )
        )
        folder.append_trial(
            Trial(
                id="1",
                kind="load",
                model="m",
                started_ns=0,
                ended_ns=seconds * 10**9,
                outcome=Outcome.PASSED,
                answer="",
                details={"step": step_signature(step)},
            )
        )
        folder.close()
    earlier = earlier_durations(tmp_path, Path("/mine"))
    again = profile("{kind: load, model: m, deadline_s: 5}")
    assert estimate(again, {"m": {"file_bytes": GIB}}, earlier) == ([40.0], 1)


def diagnosis(failure: FailureClass) -> Diagnosis:
    return Diagnosis(
        failure_class=failure,
        evidence=[Evidence(source="s", line="l")],
        confidence=Confidence.CERTAIN,
        advice="",
    )


@pytest.mark.parametrize(
    ("seen", "expected", "outcome"),
    [
        (None, None, Outcome.PASSED),
        (FailureClass.BACKEND_LOST, None, Outcome.FAILED),
        (FailureClass.NOT_DISTRIBUTED, FailureClass.NOT_DISTRIBUTED, Outcome.PASSED),
        (None, FailureClass.NOT_DISTRIBUTED, Outcome.FAILED),
        (FailureClass.OOM_KILLED, FailureClass.NOT_DISTRIBUTED, Outcome.FAILED),
    ],
)
def test_expected_class_has_to_come(
    seen: FailureClass | None, expected: FailureClass | None, outcome: Outcome
) -> None:
    assert judge(diagnosis(seen) if seen else None, expected, "what was seen")[0] is outcome


@pytest.mark.parametrize(
    "answer", ["request 1 failed", "request 1 failed: it ended (backend_lost): find why"]
)
def test_answer_names_its_class_once(answer: str) -> None:
    _, text = judge(diagnosis(FailureClass.BACKEND_LOST), None, answer)
    assert text.count("backend_lost") == 1


def state(offloaded: int, *backends: tuple[str, int]) -> CoordinatorState:
    shares = [
        BackendShare(
            node=f"node{n}",
            endpoint=f"10.0.0.{n}:50052",
            available_bytes=GIB,
            weight=1,
            layers=1,
            model_bytes=1,
            kv_bytes=0,
            compute_bytes=0,
        )
        for n in (1, 2)
    ]
    plan = Plan(model="m", model_path="/m", file_bytes=GIB, layers_total=41, shares=shares)
    buffers = [BackendBuffers(device=name, model_bytes=size) for name, size in backends]
    report = LoadReport(offloaded=offloaded, layers_total=41, buffers=buffers)
    return CoordinatorState(phase=CoordinatorPhase.READY, plan=plan, report=report)


ONE, TWO = "RPC0[10.0.0.1:50052]", "RPC1[10.0.0.2:50052]"


def test_every_layer_on_every_planned_backend_is_distributed() -> None:
    assert undistributed(state(41, (ONE, 5), (TWO, 5))) is None


@pytest.mark.parametrize(
    "loaded",
    [
        state(0, ("CPU_Mapped", 5), ("CPU_REPACK", 5)),
        state(40, (ONE, 5), (TWO, 5)),
        state(41, (ONE, 5)),
        state(41, (ONE, 5), (TWO, 0)),
    ],
    ids=["nothing offloaded", "a layer is missing", "a backend is missing", "a backend holds nothing"],
)
def test_anything_less_is_not_distributed(loaded: CoordinatorState) -> None:
    found = undistributed(loaded)
    assert found is not None
    assert found.failure_class is FailureClass.NOT_DISTRIBUTED


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("{kind: load, model: 13b-q4_0}", "13b-q4_0-cold-load"),
        ("{kind: load, model: m, nodes: 3}", "m-cold-load-3-nodes"),
        ("{kind: load, model: m, n_gpu_layers: 0}", "m-cold-load-ngl0"),
        ("{kind: load, model: m, starve: {node: a, memory: 1G}}", "m-cold-load-starved"),
        (
            "{kind: inference, model: m, prompt_tokens: 35, generated_tokens: 1, repeats: 3}",
            "m-inference-35x3",
        ),
        ("{kind: unload, model: m}", "m-unload"),
    ],
)
def test_trial_is_named_after_what_it_does(text: str, title: str) -> None:
    assert step_title(profile(text).trials[0]) == title
