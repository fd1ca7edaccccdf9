"""One question, one answer: why did this process end, or what is wrong with it while it runs?"""

import re

from harness.diagnosis.evidence import (
    LLAMA_SERVER,
    Inputs,
    exit_evidence,
    find_in_journal,
)
from harness.diagnosis.model import Confidence, Diagnosis, Evidence, FailureClass
from harness.diagnosis.rules import RULES, Rule

_BACKEND_ENDED = re.compile(r"(?i)main process exited|killed process|oom-kill|failed to allocate|segfault")


def classify(inputs: Inputs) -> Diagnosis:
    """The class that the evidence supports best, the lines that decide it, and what else was considered.

    The first rule of the table that holds decides; classes that hold further down are named in
    ``ruled_out`` as effects of it. Without any rule the class is ``unknown`` and the advice says what is
    missing.
    """
    holding = [(rule, found) for rule in RULES if (found := rule.evidence(inputs)) is not None]
    if not holding:
        return _unknown(inputs)
    rule, found = holding[0]
    ended = exit_evidence(inputs)
    return Diagnosis(
        failure_class=rule.failure_class,
        evidence=[*found, *([ended] if ended else []), *_backends(inputs, rule)],
        confidence=rule.confidence,
        ruled_out=_ruled_out(rule, holding[1:]),
        advice=rule.advice,
    )


def _ruled_out(winner: Rule, others: list[tuple[Rule, list[Evidence]]]) -> list[str]:
    told: dict[FailureClass, str] = {}
    for rule, found in others:
        if rule.failure_class != winner.failure_class and rule.failure_class not in told:
            line = f" ({found[0].source}: {found[0].line})" if found else ""
            told[rule.failure_class] = (
                f"{rule.failure_class}: explained by {winner.failure_class}, which stands before it{line}"
            )
    return list(told.values())


def _backends(inputs: Inputs, rule: Rule) -> list[Evidence]:
    """What the backends' own nodes say, for a coordinator that lost or never reached one."""
    about_backends = {FailureClass.BACKEND_LOST, FailureClass.BACKEND_UNREACHABLE}
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
    return found + find_in_journal(inputs, _BACKEND_ENDED, inputs.journal)


def _unknown(inputs: Inputs) -> Diagnosis:
    ended = exit_evidence(inputs)
    missing = []
    if inputs.running:
        advice = "It runs, and nothing that was read speaks against it."
    else:
        if ended is None:
            missing.append("its exit status")
        if not any(inputs.logs.values()):
            missing.append("its log")
        if not inputs.journal:
            missing.append("the journals of its nodes")
        advice = "No rule is supported by what was read."
        if missing:
            advice += f" Missing: {', '.join(missing)}."
    last = next(
        (
            Evidence(source=f"{name}:{len(lines)}", line=lines[-1].strip())
            for name, lines in inputs.logs.items()
            if lines
        ),
        None,
    )
    return Diagnosis(
        failure_class=FailureClass.UNKNOWN,
        evidence=[e for e in (ended, last) if e],
        confidence=Confidence.POSSIBLE,
        advice=advice,
    )
