"""Diagnoses a run's trials again from what the run stored, say after a change of the rules."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.contracts.coordinator_state import CoordinatorState
from harness.contracts.diagnosis import Diagnosis
from harness.contracts.run_records import RunManifest, Trial
from harness.diagnosis.classify import classify
from harness.diagnosis.evidence import Inputs
from harness.runs.read import read_manifest, read_samples, read_trials
from harness.trials.kinds.diagnosis_inputs import NODES_KNOW_MORE
from harness.trials.load_generator.telemetry import Series, point


@dataclass(frozen=True)
class Again:
    """One trial's diagnosis, as the rules give it now."""

    trial: str
    outcome: str
    expected: str | None
    diagnosis: Diagnosis
    before: str | None
    """The class that the run recorded."""


def diagnose_run(run: Path) -> Iterator[Again]:
    """Diagnose every trial of a run that had an end or a diagnosis.

    A diagnosis that was made of what the run does not store (a request's deadline, a watch on the backends)
    stays as it was recorded.

    Raises:
        HarnessError: the folder is no run, or is damaged.
    """
    manifest = read_manifest(run)
    series = Series()
    for sample in read_samples(run):
        series.add(sample.node, point(sample))
    for trial in read_trials(run):
        if found := _again(run, manifest, series, trial):
            recorded = trial.diagnosis or (trial.coordinator and trial.coordinator.diagnosis)
            before = recorded.failure_class.value if recorded else None
            yield Again(trial.id, trial.outcome.value, trial.expected, found, before)


def _again(run: Path, manifest: RunManifest, series: Series, trial: Trial) -> Diagnosis | None:
    state = trial.coordinator
    recorded = trial.diagnosis or (state.diagnosis if state else None)
    if state is None or state.exit is None:
        return recorded
    found = classify(_inputs(run, manifest, series, state))
    if recorded is not None and found.failure_class in NODES_KNOW_MORE[:1]:
        return recorded
    return found


def _inputs(run: Path, manifest: RunManifest, series: Series, state: CoordinatorState) -> Inputs:
    head = next((node.name for node in manifest.nodes if "head" in node.groups), None)
    names = [node.name for node in manifest.nodes]
    ended_ns = state.exit.time_ns if state.exit else 0
    timings = state.timings
    started_ns = (timings.exec_ns or timings.requested_ns) if timings else ended_ns
    log = run / "logs" / f"{state.start_id}.log"
    return Inputs(
        node=head,
        argv=state.argv,
        exit=state.exit,
        signals=state.signals,
        logs={log.name: log} if log.exists() else {},
        oom_kills={
            name: kills
            for name in names
            if (kills := series.grown(name, "oom_kills", started_ns, ended_ns)) is not None
        },
        units={
            name: {"NRestarts": str(restarts)}
            for name in names
            if (restarts := series.grown(name, "rpc_restarts", started_ns, ended_ns))
        },
        builds={node.name: f"{node.build} ({node.commit})" for node in manifest.nodes if node.build},
        plan=state.plan,
        report=state.report,
        expect_distributed=state.plan is None or state.plan.distributed,
    )
