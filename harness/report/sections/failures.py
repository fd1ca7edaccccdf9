"""Section 6: ends of processes with their signals and evidence, and injected faults."""

import signal as signals
from dataclasses import dataclass

from harness.contracts.diagnosis import Diagnosis, ExitStatus, FailureClass
from harness.contracts.run_records import Event, Outcome, Trial
from harness.report.data import Row, RunData
from harness.report.format import slug
from harness.report.log_excerpt import find_excerpt
from harness.report.sections.cluster import colour_place
from harness.report.sections.verdict import outcome_mark

HIDDEN = {"run_start", "run_end", "trial_start", "trial_end"}
"""Events that other parts of the page show already."""
MOST_EVENTS = 200


@dataclass(frozen=True)
class Moment:
    """One event of the timeline."""

    time_ns: int
    kind: str
    """``signal``, ``exit`` or the event's own kind."""
    trial: str
    node: str
    text: str


def end_rows(run: RunData) -> list[Row]:
    """Every diagnosis of the run: unexpected ends first, orderly ends last."""
    rows = [row for trial in run.trials for row in _ends_of(run, trial)]
    return sorted(rows, key=lambda row: (row["orderly"], row["expected"]))


def event_rows(run: RunData) -> list[Moment]:
    """Signals, exits, faults and warnings in order of time, each once."""
    moments: dict[tuple[int, str], Moment] = {}

    def add(time_ns: int, kind: str, trial: str | None, node: str | None, text: str) -> None:
        moments.setdefault((time_ns, kind), Moment(time_ns, kind, trial or "", node or "", text))

    for event in run.events:
        if event.kind not in HIDDEN:
            add(event.time_ns, event.kind, event.trial, event.node, _event_text(event))
    for trial in run.trials:
        state = trial.coordinator
        injected = trial.details.get("injected_ns")
        has_event = any(m.kind == "fault" and m.trial == trial.id for m in moments.values())
        if isinstance(injected, int) and not has_event:
            text = f"{trial.details.get('fault')} injected"
            add(injected, "fault", trial.id, str(trial.details.get("node") or ""), text)
        for s in state.signals if state else []:
            add(s.time_ns, "signal", trial.id, None, signal_text(s.name, s.reason, s.requests_in_flight))
        if state and state.exit:
            add(state.exit.time_ns, "exit", trial.id, None, exit_text(state.exit))
    return sorted(moments.values(), key=lambda m: m.time_ns)[:MOST_EVENTS]


def exit_text(status: ExitStatus) -> str:
    """How a process ended, as a shell would show it: ``exit 0``, ``SIGABRT (134)``."""
    if status.signal is None:
        return f"exit {status.code}"
    return f"{_signal_name(status.signal)} ({status.shell})"


def signal_text(name: str, reason: str, busy: int) -> str:
    """A signal that we sent, its reason, and whether requests were in flight."""
    into = f"{busy} request{'s' if busy != 1 else ''} in flight" if busy else "idle"
    return f"{name}: {reason} ({into})"


def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _event_text(event: Event) -> str:
    data = event.data
    if event.kind == "signal" and "signal" in data:
        return signal_text(
            str(data["signal"]), str(data.get("reason")), int(data.get("requests_in_flight") or 0)
        )
    if event.kind == "exit" and ("code" in data or "signal" in data):
        ended = exit_text(ExitStatus(time_ns=event.time_ns, code=data.get("code"), signal=data.get("signal")))
        return f"{ended}, {data['diagnosis']}" if data.get("diagnosis") else ended
    message = data.get("message") or data.get("text")
    return str(message) if message else ", ".join(f"{k}: {v}" for k, v in data.items())


def _ends_of(run: RunData, trial: Trial) -> list[Row]:
    state = trial.coordinator
    own = state.diagnosis if state else None
    first = trial.diagnosis or own
    if first is None:
        return []
    rows = [_end(run, trial, first, slug(trial.id))]
    if own and trial.diagnosis and own.failure_class is not trial.diagnosis.failure_class:
        rows.append(_end(run, trial, own, f"{slug(trial.id)}-coordinator"))
    return rows


def _end(run: RunData, trial: Trial, diagnosis: Diagnosis, anchor: str) -> Row:
    state = trial.coordinator
    ended, signals_sent = (state.exit, state.signals) if state else (None, [])
    hints = [h for h in ((state.start_id if state else None), trial.id) if h]
    return {
        "trial": trial.id,
        "anchor": anchor,
        "model": trial.model,
        "diagnosis": diagnosis,
        "orderly": diagnosis.failure_class is FailureClass.STOPPED,
        "expected": trial.expected == diagnosis.failure_class.value,
        "exit": exit_text(ended) if ended else "still running, or its end was not recorded",
        "signals": [signal_text(s.name, s.reason, s.requests_in_flight) for s in signals_sent],
        "evidence": [(e, find_excerpt(run.folder, e.source, e.line, hints)) for e in diagnosis.evidence],
    }


def fault_rows(run: RunData) -> list[Row]:
    """Fault trials in order."""
    return [_fault(run, trial) for trial in run.trials if trial.kind == "fault"]


def _fault(run: RunData, trial: Trial) -> Row:
    details = trial.details
    node = str(details.get("node") or "")
    missing = "not injected" if trial.outcome is Outcome.SKIPPED else "no diagnosis"
    times = {key: value for key, value in details.items() if isinstance(value, int)}
    return {
        "trial": trial.id,
        "anchor": slug(trial.id),
        "mark": outcome_mark(trial.outcome),
        "fault": details.get("fault") or trial.kind,
        "node": node,
        "colour": colour_place(run, node) if node in run.nodes else None,
        "moment": details.get("moment") or "",
        "injected_ns": times.get("injected_ns"),
        "undone_ns": times.get("undone_ns"),
        "expected": trial.expected or "",
        "diagnosed": trial.diagnosis.failure_class.value if trial.diagnosis else missing,
    }
