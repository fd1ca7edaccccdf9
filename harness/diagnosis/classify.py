"""Why a process ended, or what is wrong with it while it runs: from its inputs, or from a log alone."""

from collections.abc import Mapping

from harness.contracts.diagnosis import Confidence, Diagnosis, Evidence, ExitStatus, FailureClass
from harness.diagnosis import exit_status as exits
from harness.diagnosis.facts import Facts, exit_evidence, gather
from harness.diagnosis.inputs import LLAMA_SERVER, RPC_SERVER, Inputs
from harness.diagnosis.patterns import ends, hardware, rpc, start
from harness.diagnosis.rules import RULES, Rule
from harness.diagnosis.scanner import Log, scan
from harness.llama.load_log import parse_load_log

_BACKEND_ENDED = (
    hardware.KERNEL_OOM,
    hardware.ALLOCATION_FAILED,
    hardware.GPU_FAILED,
    hardware.XID,
    start.DISK_FULL,
    ends.ASSERTION,
    ends.SEGFAULT,
    ends.ILLEGAL,
    ends.SIGPIPE,
    ends.ABORTED,
    ends.KILLED,
)
"""Kinds of lines in a backend's journal that say why it ended, causes first."""


def classify(inputs: Inputs) -> Diagnosis:
    """The class that the evidence supports best, the lines that decide it, and what else was considered.

    The first rule of the table that holds decides; classes that hold further down are named in
    ``ruled_out`` as effects of it. Without any rule the class is ``unknown`` and the advice says what is
    missing.
    """
    return _classify(gather(inputs))


def diagnose_log(
    logs: Mapping[str, Log], ended: ExitStatus | None = None, journal: Mapping[str, Log] | None = None
) -> Diagnosis:
    """The best class that a log supports: which process wrote it, and what it should show, is read in it.

    Args:
        logs: the process's own logs by name: paths, or lines in order.
        ended: how it ended, where that is known.
        journal: journals and kernel logs of its node, by name.
    """
    own = scan(logs)
    journals = {name: scan({name: log}) for name, log in (journal or {}).items()}
    uses_rpc = own.first(rpc.USES_RPC) is not None
    inputs = Inputs(
        process=RPC_SERVER if own.first(rpc.BACKEND_SIDE) and not uses_rpc else LLAMA_SERVER,
        exit=ended,
        logs=logs,
        journal=dict.fromkeys(journals, ()),
        report=parse_load_log(hit.text for hit in own.all(start.LOAD)),
        expect_distributed=uses_rpc,
    )
    return _classify(Facts(inputs, own, journals))


def _classify(facts: Facts) -> Diagnosis:
    holding = [(rule, evidence) for rule in RULES if (evidence := rule.evidence(facts)) is not None]
    if not holding:
        return _unknown(facts)
    rule, evidence = holding[0]
    ended = exit_evidence(facts)
    lines = [*evidence, *([ended] if ended else []), *_backends(facts, rule)]
    return Diagnosis(
        failure_class=rule.failure_class,
        evidence=list({(line.source, line.line): line for line in lines}.values()),
        confidence=rule.confidence_in(facts),
        ruled_out=_ruled_out(rule, holding[1:]),
        advice=rule.advice,
    )


def _ruled_out(winner: Rule, others: list[tuple[Rule, list[Evidence]]]) -> list[str]:
    reasons: dict[FailureClass, str] = {}
    for rule, evidence in others:
        if rule.failure_class not in (winner.failure_class, *reasons):
            line = f" ({evidence[0].source}: {evidence[0].line})" if evidence else ""
            reasons[rule.failure_class] = f"{rule.failure_class}: explained by {winner.failure_class}{line}"
    return list(reasons.values())


def _backends(facts: Facts, rule: Rule) -> list[Evidence]:
    """What the backends' own nodes say, for a coordinator that lost or never reached one."""
    about_backends = {FailureClass.BACKEND_LOST, FailureClass.BACKEND_UNREACHABLE}
    inputs = facts.inputs
    if inputs.process != LLAMA_SERVER or rule.failure_class not in about_backends:
        return []
    evidence = [
        Evidence(source=f"samples {node}", line=f"OOM kills on {node} while it ran: {count}")
        for node, count in inputs.oom_kills.items()
        if count > 0
    ]
    for node, properties in inputs.units.items():
        if properties.get("ActiveState", "active") != "active" or properties.get("NRestarts", "0") != "0":
            text = " ".join(f"{key}={value}" for key, value in properties.items())
            evidence.append(Evidence(source=f"unit {node}", line=text))
    for node, matches in facts.journals.items():
        hits = [hit for kind in _BACKEND_ENDED if (hit := matches.first(kind))]
        evidence += [Evidence(source=f"journal {node}", line=hit.text) for hit in hits[:1]]
    return evidence


def _unknown(facts: Facts) -> Diagnosis:
    inputs, ended = facts.inputs, exit_evidence(facts)
    missing = []
    if inputs.running:
        advice = "It runs, and no input shows a failure."
    else:
        if ended is None:
            missing.append("its exit status")
        if facts.own.first_line is None:
            missing.append("its log")
        if not inputs.journal:
            missing.append("the journals of its nodes")
        advice = "No rule matches the inputs."
        if facts.ended_by == exits.KILL:
            advice = "Somebody killed it (SIGKILL); the kernel's log would show whether memory had run out."
        if missing:
            advice += f" Missing: {', '.join(missing)}."
    return Diagnosis(
        failure_class=FailureClass.UNKNOWN,
        evidence=[line for line in (ended, facts.own.last_line) if line],
        confidence=Confidence.POSSIBLE,
        advice=advice,
    )
