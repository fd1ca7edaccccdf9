"""States and failures on the page of the metrics."""

from pathlib import Path

import psutil
import pytest
from harness.contracts.coordinator_state import CoordinatorPhase
from harness.contracts.diagnosis import Confidence, Diagnosis, FailureClass
from harness.router.errors import RouterError
from harness.router.http.metrics import Metrics, SandboxedProcessCollector
from prometheus_client import CollectorRegistry


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


def test_memory_and_files_of_the_router_are_there_without_the_files_that_its_sandbox_hides(
    tmp_path: Path,
) -> None:
    (tmp_path / "self").symlink_to("/proc/self")  # as with ProcSubset=pid: no /proc/stat
    registry = CollectorRegistry()
    SandboxedProcessCollector(proc=str(tmp_path), registry=registry)
    names = ("resident_memory_bytes", "cpu_seconds_total", "open_fds", "max_fds", "virtual_memory_bytes")
    assert all((registry.get_sample_value(f"process_{name}") or 0) > 0 for name in names)
    started = registry.get_sample_value("process_start_time_seconds") or 0
    assert started == pytest.approx(psutil.Process().create_time(), abs=5)


def test_limits_are_counted_and_there_before_the_first() -> None:
    metrics = Metrics()
    metrics.refused(RouterError(503, "bodies_full", "full"))
    metrics.refused(RouterError(404, "unknown_model", "no limit"))
    value = metrics.registry.get_sample_value
    assert value("llama_router_limits_reached_total", {"limit": "bodies_full"}) == 1
    assert value("llama_router_limits_reached_total", {"limit": "send_timeout"}) == 0
    assert value("llama_router_limits_reached_total", {"limit": "unknown_model"}) is None
