"""Conditions of the rules, each with what it asks for as its docstring: docs/diagnoses.md is made from it.

A condition gives its evidence; an empty list where it holds without any; None where it does not hold.
"""

import re
import signal
from collections.abc import Callable

from harness.contracts.diagnosis import Evidence
from harness.diagnosis import exit_status as exits
from harness.diagnosis.evidence import LLAMA_SERVER, RPC_SERVER
from harness.diagnosis.facts import Facts, coordinates, offload_gap, signal_evidence
from harness.diagnosis.logs.pattern import Kind
from harness.diagnosis.logs.patterns import ends, rpc
from harness.diagnosis.logs.patterns.load import LOAD

Condition = Callable[[Facts], list[Evidence] | None]

_STOPPING_SIGNALS = ("SIGTERM", "SIGINT", "SIGKILL")
_RECEIVE_FAILED = re.compile(r"\brecv failed \(")
_BEFORE_THE_START = re.compile(r"^(?:ggml_\w+|load_backend|register_\w+| *Device \d+)\b")


def always(facts: Facts) -> list[Evidence] | None:
    """"""
    return []


def failed(facts: Facts) -> list[Evidence] | None:
    """It ended, and not with code 0 (or nobody knows how)"""
    return [] if facts.failed else None


def not_running(facts: Facts) -> list[Evidence] | None:
    """It ended, even with code 0"""
    return None if facts.inputs.running else []


def failed_or_runs(facts: Facts) -> list[Evidence] | None:
    """It did not exit with code 0"""
    return [] if facts.failed or facts.inputs.running else None


def runs(facts: Facts) -> list[Evidence] | None:
    """It runs"""
    return [] if facts.inputs.running else None


def exit_code_0(facts: Facts) -> list[Evidence] | None:
    """It exited with code 0"""
    return [] if facts.exit and facts.exit.code == 0 else None


def not_distributed(facts: Facts) -> list[Evidence] | None:
    """It should be distributed, runs or ended quietly, and its log offloads fewer layers than the model has,
    or shows a planned backend without a model buffer"""
    if not facts.inputs.expect_distributed or not (facts.inputs.running or _ended_quietly(facts)):
        return None
    gap = offload_gap(facts)
    return [gap] if gap else None


def log_is_not_distributed(facts: Facts) -> list[Evidence] | None:
    """Nobody knows how it ended; it should be distributed, and its log says the same"""
    if facts.inputs.running or facts.exit or not facts.inputs.expect_distributed:
        return None
    gap = offload_gap(facts)
    return [gap] if gap else None


def _ended_quietly(facts: Facts) -> bool:
    return bool(facts.exit) and bool((facts.exit and facts.exit.code == 0) or told_idle(facts))


def told_busy(facts: Facts) -> list[Evidence] | None:
    """We sent SIGTERM, SIGINT or SIGKILL with a request in flight"""
    sent = [s for s in facts.ours(*_STOPPING_SIGNALS) if s.requests_in_flight > 0]
    return [signal_evidence(facts.inputs, s) for s in sent] or None


def told_idle(facts: Facts) -> list[Evidence] | None:
    """We sent SIGTERM, SIGINT or SIGKILL, and it exited with code 0 or died of that signal"""
    sent = facts.ours(*_STOPPING_SIGNALS)
    if not sent or facts.exit is None:
        return None
    as_told = facts.exit.code == 0 or any(
        facts.signalled == signal.Signals[s.name] for s in sent if s.name in signal.Signals.__members__
    )
    return [signal_evidence(facts.inputs, s) for s in sent] if as_told else None


def stopped_before_it_lost(facts: Facts) -> list[Evidence] | None:
    """It was told to stop before that: the stop breaks off what it waits for"""
    stop = facts.own.find(ends.STOPPING)
    lost = facts.own.find(rpc.LOST) or facts.own.find(rpc.LOST_FRAME)
    if not facts.failed or lost is None or stop is None or stop.at > lost.at:
        return None
    return [stop.evidence]


def receive_broke_off(facts: Facts) -> list[Evidence] | None:
    """It had begun to load and died of SIGABRT as a receive from a backend failed (`recv failed`), and every
    backend of its plan still has the rpc-server that it had before: a signal breaks off a receive, a lost
    backend ends it"""
    inputs = facts.inputs
    broken = [hit for hit in facts.own.all(rpc.LOST) if _RECEIVE_FAILED.search(hit.text)]
    planned = {share.node for share in inputs.plan.shares} if inputs.plan else set()
    if not facts.own.find(
        LOAD
    ):  # it was still greeting its backends: nobody could have asked it for anything
        return None
    if not broken or not planned or facts.signalled != exits.ABORT or inputs.began_ns is None:
        return None
    began = {node: inputs.backends_began_ns.get(node) for node in planned}
    if any(at is None or at > inputs.began_ns for at in began.values()):
        return None
    older = [
        Evidence(
            source=f"samples {node}",
            line=f"its rpc-server runs since {(inputs.began_ns - at) / 1e9:.0f} s before the coordinator",
        )
        for node, at in sorted(began.items())
        if at is not None
    ]
    return [broken[0].evidence, *older]


def killed_by_somebody(facts: Facts) -> list[Evidence] | None:
    """It died of a SIGKILL that is not ours, and its node has counted no OOM kill meanwhile"""
    node = facts.inputs.node
    if facts.signalled != exits.KILL or facts.ours("SIGKILL") or node is None:
        return None
    if facts.inputs.oom_kills.get(node) != 0:
        return None
    return [Evidence(source=f"samples {node}", line=f"no OOM kill on {node} while it ran")]


def aborted_or_unknown(facts: Facts) -> list[Evidence] | None:
    """It died of SIGABRT, exited with code 1, or nobody knows how it ended"""
    if not facts.failed:
        return None
    by_code = facts.exit is not None and facts.exit.code == 1
    return [] if by_code or facts.may_have_died_of(exits.ABORT) else None


def check_failed(facts: Facts) -> list[Evidence] | None:
    """It ended, and not with code 0, nor by SIGKILL, SIGTERM, SIGINT, SIGILL or SIGPIPE"""
    others = (exits.KILL, exits.TERM, exits.INT, exits.ILL, exits.PIPE)
    return [] if facts.failed and facts.signalled not in others else None


def died_of(*numbers: signal.Signals) -> Condition:
    """The condition that one of these signals ended it."""

    def died(facts: Facts) -> list[Evidence] | None:
        return facts.died_of(*numbers)

    names = " or ".join(number.name for number in numbers)
    died.__doc__ = f"It died of {names}, by its exit status or by the words of a shell, systemd or the kernel"
    return died


def said(kind: Kind, *, waiting: bool = False) -> Condition:
    """The condition that its log, or a journal of its node, has a line of a kind."""

    def has(facts: Facts) -> list[Evidence] | None:
        holds = facts.failed or facts.inputs.waiting or not waiting
        return (facts.said(kind) or None) if holds else None

    has.__doc__ = f"Its log, or its node's journal or kernel log, has {kind.meaning!r}"
    if waiting:
        has.__doc__ = (
            f"It failed or waits; its log, or its node's journal or kernel log, has {kind.meaning!r}"
        )
    return has


def oom_killed(facts: Facts) -> list[Evidence] | None:
    """It died of a SIGKILL that is not ours (or nobody knows of what), while its node counted an OOM kill, or
    the kernel or systemd logged one of it"""
    inputs = facts.inputs
    by_unit = inputs.unit.get("Result") == "oom-kill"
    if inputs.running or facts.ours("SIGKILL") or not (by_unit or facts.may_have_died_of(exits.KILL)):
        return None
    nodes = [inputs.node] if inputs.node else [*inputs.oom_kills]
    counted = [
        Evidence(source=f"samples {node}", line=f"OOM kills on {node} while it ran: {inputs.oom_kills[node]}")
        for node in nodes
        if inputs.oom_kills.get(node, 0) > 0 and facts.exit is not None
    ]
    result = [Evidence(source="unit", line="Result=oom-kill")] if by_unit else []
    return [*counted, *facts.kernel_oom, *result] or None


def silent_death_at_start(facts: Facts) -> list[Evidence] | None:
    """A coordinator died of SIGSEGV before its first line (devices aside): a closed `--rpc` port, in builds
    up to 6792"""
    if not facts.inputs.logs or not coordinates(facts.inputs) or facts.signalled != exits.SEGV:
        return None
    if facts.own.last is None:
        source = next(iter(facts.inputs.logs))
        return [Evidence(source=f"{source}:1", line="(empty: it ended before its first line)")]
    return [facts.own.last] if _BEFORE_THE_START.search(facts.own.last.line) else None


def no_memory_status(facts: Facts) -> list[Evidence] | None:
    """It ended with a Windows status that says so: 0xC0000017, 0xC000012D or 0xC000009A"""
    code = facts.exit.code if facts.exit else None
    return [] if code is not None and exits.unsigned(code) in exits.NTSTATUS_NO_MEMORY else None


def disk_is_full(facts: Facts) -> list[Evidence] | None:
    """The disk of rpc-server's cache has no space left: what is written there is cut without a word"""
    inputs = facts.inputs
    nodes = [inputs.node] if inputs.node and inputs.process == RPC_SERVER else [*inputs.full_disks]
    found = [
        Evidence(source=f"disk {node}", line=inputs.full_disks[node])
        for node in nodes
        if node in inputs.full_disks
    ]
    quiet = facts.exit is not None and facts.exit.code == 0
    return found if found and not quiet else None


def broke_at_a_backend(facts: Facts) -> bool:
    """Whether a coordinator broke where it talks to its backends."""
    if facts.inputs.process != LLAMA_SERVER or not facts.failed:
        return False
    return bool(facts.log(rpc.LOST) or facts.log(rpc.LOST_FRAME))


def end_unknown(facts: Facts) -> list[Evidence] | None:
    """Nobody knows how it ended"""
    return None if facts.inputs.running or facts.exit else []
