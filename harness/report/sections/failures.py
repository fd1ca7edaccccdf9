"""Section 6: what ended, by whose hand, and the line that says why."""

import signal as signals
from dataclasses import dataclass

from harness.contracts.diagnosis import Diagnosis, ExitStatus, FailureClass
from harness.contracts.run_records import Event, Trial
from harness.report.data import RunData
from harness.report.format import slug
from harness.report.logs import Excerpt, excerpt

WANTED = (FailureClass.STOPPED,)
"""Classes that are an orderly end."""
QUIET = {"run_start", "run_end", "trial_start", "trial_end"}
"""Events that other parts of the page show already."""
MOST_EVENTS = 200


@dataclass(frozen=True)
class Moment:
    """One mark on the timeline."""

    time_ns: int
    kind: str
    """``signal``, ``exit`` or the event's own kind."""
    trial: str
    node: str
    text: str


@dataclass(frozen=True)
class EvidenceRow:
    """One piece of evidence, with its place in the log where there is one."""

    source: str
    line: str
    excerpt: Excerpt | None


@dataclass(frozen=True)
class EndRow:
    """One diagnosed end."""

    trial: str
    anchor: str
    model: str
    failure: str
    confidence: str
    orderly: bool
    expected: bool
    """The class that the profile asked for."""
    exit: str
    signals: list[str]
    evidence: list[EvidenceRow]
    ruled_out: list[str]
    advice: str


def ends(run: RunData) -> list[EndRow]:
    """Every diagnosis of the run: what was not wanted first, orderly ends last."""
    rows = [row for trial in run.trials for row in _ends_of(run, trial)]
    return sorted(rows, key=lambda row: (row.orderly, row.expected))


def moments(run: RunData) -> list[Moment]:
    """Signals, exits and warnings in order of time, each once."""
    found: dict[tuple[int, str], Moment] = {}

    def note(time_ns: int, kind: str, trial: str | None, node: str | None, text: str) -> None:
        found.setdefault((time_ns, kind), Moment(time_ns, kind, trial or "", node or "", text))

    for event in run.events:
        if event.kind not in QUIET:
            note(event.time_ns, event.kind, event.trial, event.node, _event_text(event))
    for trial in run.trials:
        state = trial.coordinator
        injected = trial.details.get("injected_ns")
        told = any(m.kind == "fault" and m.trial == trial.id for m in found.values())
        if isinstance(injected, int) and not told:
            text = f"{trial.details.get('fault')} injected"
            note(injected, "fault", trial.id, str(trial.details.get("node") or ""), text)
        for sent in state.signals if state else []:
            note(
                sent.time_ns,
                "signal",
                trial.id,
                None,
                signal_text(sent.name, sent.reason, sent.requests_in_flight),
            )
        if state and state.exit:
            note(state.exit.time_ns, "exit", trial.id, None, exit_text(state.exit))
    return sorted(found.values(), key=lambda m: m.time_ns)[:MOST_EVENTS]


def exit_text(status: ExitStatus) -> str:
    """How a process ended, as a shell would show it: ``exit 0``, ``SIGABRT (134)``."""
    if status.signal is None:
        return f"exit {status.code}"
    return f"{_signal_name(status.signal)} ({status.shell})"


def signal_text(name: str, reason: str, busy: int) -> str:
    """A signal we sent, why, and into what."""
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


def _ends_of(run: RunData, trial: Trial) -> list[EndRow]:
    state = trial.coordinator
    own = state.diagnosis if state else None
    first = trial.diagnosis or own
    if first is None:
        return []
    rows = [_end(run, trial, first, slug(trial.id))]
    if own and trial.diagnosis and own.failure_class is not trial.diagnosis.failure_class:
        rows.append(_end(run, trial, own, f"{slug(trial.id)}-coordinator"))
    return rows


def _end(run: RunData, trial: Trial, diagnosis: Diagnosis, anchor: str) -> EndRow:
    state = trial.coordinator
    hints = [h for h in ((state.start_id if state else None), trial.id) if h]
    return EndRow(
        trial=trial.id,
        anchor=anchor,
        model=trial.model,
        failure=diagnosis.failure_class.value,
        confidence=diagnosis.confidence.value,
        orderly=diagnosis.failure_class in WANTED,
        expected=trial.expected == diagnosis.failure_class.value,
        exit=exit_text(state.exit) if state and state.exit else "still running, or not seen to end",
        signals=[signal_text(s.name, s.reason, s.requests_in_flight) for s in state.signals] if state else [],
        evidence=[
            EvidenceRow(e.source, e.line, excerpt(run.folder, e.source, e.line, hints))
            for e in diagnosis.evidence
        ],
        ruled_out=diagnosis.ruled_out,
        advice=diagnosis.advice,
    )
