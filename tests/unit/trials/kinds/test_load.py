"""When a load counts as distributed."""

import pytest
from harness.contracts.coordinator_state import BackendBuffers, CoordinatorPhase, CoordinatorState, LoadReport
from harness.contracts.diagnosis import FailureClass
from harness.contracts.plan import BackendShare, Plan
from harness.trials.kinds.load import undistributed

GIB = 1 << 30


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
