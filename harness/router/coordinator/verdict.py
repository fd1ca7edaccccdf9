"""What the router says of a coordinator: the rules of ``harness.diagnosis`` on what the router has seen."""

from harness.contracts.diagnosis import Confidence, Diagnosis, Evidence, FailureClass
from harness.diagnosis.classify import classify
from harness.diagnosis.evidence import Inputs
from harness.router.coordinator.start import Start
from harness.router.coordinator.witness import Testimony

_DECIDED_HERE = {
    FailureClass.HUNG: "Look at the log's last line and at the backends' own state; "
    "give the load a longer deadline if it was still moving.",
    FailureClass.PORT_IN_USE: "Find who listens there with 'ss -Hltnp' and stop it, "
    "or set another coordinator_port.",
    FailureClass.BACKEND_UNREACHABLE: "Restart llama-rpc-server on the node that the line names, "
    "then load again.",
    FailureClass.BAD_ARGUMENTS: "Check that llama.cpp is installed under /opt/llama.cpp/current "
    "and that the router's user may write the log folder.",
}
"""Failures of a load that the router itself decides, and what to do about each."""


def diagnose_load(start: Start, failure: FailureClass, message: str) -> Diagnosis | None:
    """The diagnosis of a load that failed; None where the child's end will tell."""
    if failure in _DECIDED_HERE:
        return Diagnosis(
            failure_class=failure,
            evidence=[Evidence(source="router", line=message)],
            confidence=Confidence.CERTAIN,
            advice=_DECIDED_HERE[failure],
        )
    if failure is FailureClass.NOT_DISTRIBUTED:
        return classify(_inputs(start, Testimony(), running=True))
    return None


def diagnose_end(start: Start, seen: Testimony) -> Diagnosis:
    """The diagnosis of a coordinator that has ended, from its exit, our signals, its log and its nodes."""
    return classify(_inputs(start, seen, running=False))


def _inputs(start: Start, seen: Testimony, *, running: bool) -> Inputs:
    process, head = start.process, seen.head or "head"
    return Inputs(
        node=head,
        running=running,
        argv=start.state.argv,
        exit=process.exit if process else None,
        signals=process.signals if process else (),
        logs={"server.log": start.log_path} if start.log_path.exists() else {},
        journal={head: [seen.oom_line]} if seen.oom_line else {},
        oom_kills={} if seen.oom_kills is None else {head: seen.oom_kills},
        began_ns=start.timings.exec_ns,
        backends_began_ns=seen.backends_began_ns,
        plan=start.plan,
        report=start.state.report,
        expect_distributed=start.plan.distributed,
    )
