"""One question, one answer: why did this process end, or what is wrong with it while it runs?"""

from harness.contracts.diagnosis import Confidence, Diagnosis, Evidence, FailureClass
from harness.diagnosis import exit_status as exits
from harness.diagnosis.evidence import LLAMA_SERVER, Inputs
from harness.diagnosis.facts import Facts, exit_evidence, gather
from harness.diagnosis.logs.patterns import ends, gpu, memory, start
from harness.diagnosis.rules import RULES, Rule

_BACKEND_ENDED = (
    memory.KERNEL_OOM,
    memory.ALLOCATION_FAILED,
    gpu.GPU_FAILED,
    gpu.XID,
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
    return classify_facts(gather(inputs))


def classify_facts(facts: Facts) -> Diagnosis:
    """The same for evidence that was searched before."""
    holding = [(rule, found) for rule in RULES if (found := rule.evidence(facts)) is not None]
    if not holding:
        return _unknown(facts)
    rule, found = holding[0]
    ended = exit_evidence(facts)
    return Diagnosis(
        failure_class=rule.failure_class,
        evidence=_once([*found, *([ended] if ended else []), *_backends(facts, rule)]),
        confidence=rule.confidence_in(facts),
        ruled_out=_ruled_out(rule, holding[1:]),
        advice=rule.advice,
    )


def _once(evidence: list[Evidence]) -> list[Evidence]:
    return list({(one.source, one.line): one for one in evidence}.values())


def _ruled_out(winner: Rule, others: list[tuple[Rule, list[Evidence]]]) -> list[str]:
    told: dict[FailureClass, str] = {}
    for rule, found in others:
        if rule.failure_class != winner.failure_class and rule.failure_class not in told:
            line = f" ({found[0].source}: {found[0].line})" if found else ""
            told[rule.failure_class] = (
                f"{rule.failure_class}: explained by {winner.failure_class}, which stands before it{line}"
            )
    return list(told.values())


def _backends(facts: Facts, rule: Rule) -> list[Evidence]:
    """What the backends' own nodes say, for a coordinator that lost or never reached one."""
    about_backends = {FailureClass.BACKEND_LOST, FailureClass.BACKEND_UNREACHABLE}
    inputs = facts.inputs
    if inputs.process != LLAMA_SERVER or rule.failure_class not in about_backends:
        return []
    found = [
        Evidence(source=f"samples {node}", line=f"OOM kills on {node} while it ran: {count}")
        for node, count in inputs.oom_kills.items()
        if count > 0
    ]
    for node, properties in inputs.units.items():
        if properties.get("ActiveState", "active") != "active" or properties.get("NRestarts", "0") != "0":
            shown = " ".join(f"{key}={value}" for key, value in properties.items())
            found.append(Evidence(source=f"unit {node}", line=shown))
    for node, seen in facts.around.items():
        hits = [hit for kind in _BACKEND_ENDED if (hit := seen.find(kind))]
        found += [Evidence(source=f"journal {node}", line=hit.text) for hit in hits[:1]]
    return found


def _unknown(facts: Facts) -> Diagnosis:
    inputs, ended = facts.inputs, exit_evidence(facts)
    missing = []
    if inputs.running:
        advice = "It runs, and nothing that was read speaks against it."
    else:
        if ended is None:
            missing.append("its exit status")
        if facts.own.first is None:
            missing.append("its log")
        if not inputs.journal:
            missing.append("the journals of its nodes")
        advice = "No rule is supported by what was read."
        if facts.signalled == exits.KILL:
            advice = (
                "Somebody killed it (SIGKILL); whether the kernel did, for want of memory, its log would say."
            )
        if missing:
            advice += f" Missing: {', '.join(missing)}."
    return Diagnosis(
        failure_class=FailureClass.UNKNOWN,
        evidence=[one for one in (ended, facts.own.last) if one],
        confidence=Confidence.POSSIBLE,
        advice=advice,
    )
