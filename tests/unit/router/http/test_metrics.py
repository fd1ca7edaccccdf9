"""States and failures on the page of the metrics."""

from harness.contracts.coordinator_state import CoordinatorPhase
from harness.contracts.diagnosis import Confidence, Diagnosis, FailureClass
from harness.router.http.metrics import Metrics


def test_states_that_are_gone_are_not_shown_any_more() -> None:
    metrics = Metrics()
    metrics.show_states("backend", {"node1": "busy", "node2": "idle"})
    metrics.show_states("backend", {"node1": "idle"})
    metrics.show_phase(CoordinatorPhase.READY)
    page = metrics.page("")[0].decode()
    assert 'llama_router_backend_state{node="node1",state="idle"} 1.0' in page
    assert "busy" not in page
    assert "node2" not in page
    assert 'llama_router_coordinator_phase{phase="ready"} 1.0' in page
    assert 'llama_router_coordinator_phase{phase="starting"} 0.0' in page


def test_ends_and_restarts_are_counted_by_diagnosis() -> None:
    metrics = Metrics()
    diagnosis = Diagnosis(
        failure_class=FailureClass.OOM_KILLED, confidence=Confidence.CERTAIN, evidence=[], advice=""
    )
    metrics.coordinator_ended(diagnosis)
    metrics.coordinator_restarted(diagnosis)
    metrics.coordinator_ended(None)
    value = metrics.registry.get_sample_value
    assert value("llama_router_coordinator_ends_total", {"diagnosis": "oom_killed"}) == 1
    assert value("llama_router_coordinator_restarts_total", {"diagnosis": "oom_killed"}) == 1
    assert value("llama_router_coordinator_ends_total", {"diagnosis": "unknown"}) == 1
