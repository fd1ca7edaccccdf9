"""Conditions of the rules. Each docstring says what the condition asks for, and docs/diagnoses.md shows it.

A condition gives its evidence; an empty list where it holds without evidence; None where it does not hold.
"""

import re
import signal
from collections.abc import Callable

from harness.contracts.diagnosis import Evidence
from harness.diagnosis import exit_status as exits
from harness.diagnosis.facts import Facts, coordinates, offload_gap, signal_evidence
from harness.diagnosis.inputs import LLAMA_SERVER, RPC_SERVER
from harness.diagnosis.patterns import Kind, ends, rpc
from harness.diagnosis.patterns.start import LOAD

Condition = Callable[[Facts], list[Evidence] | None]

_STOPPING_SIGNALS = ("SIGTERM", "SIGINT", "SIGKILL")
_OTHER_ENDS = (exits.KILL, exits.TERM, exits.INT, exits.ILL, exits.PIPE)
_RECEIVE_FAILED = re.compile(r"\brecv failed \(")
_BEFORE_THE_START = re.compile(r"^(?:ggml_\w+|load_backend|register_\w+| *Device \d+)\b")


def _state(meaning: str, holds: Callable[[Facts], bool]) -> Condition:
    """A condition on how the process runs or ended, without evidence."""

    def condition(facts: Facts) -> list[Evidence] | None:
        return [] if holds(facts) else None

    condition.__doc__ = meaning
    return condition


def _exit_code(facts: Facts) -> int | None:
    return facts.exit.code if facts.exit else None


always = _state("", lambda facts: True)
failed = _state(
    "It failed: it ended, but not with exit code 0, or its end is unknown", lambda facts: facts.failed
)
not_running = _state("It ended, with any exit code", lambda facts: not facts.inputs.running)
failed_or_runs = _state("It runs or failed", lambda facts: facts.failed or facts.inputs.running)
runs = _state("It runs", lambda facts: facts.inputs.running)
waits = _state("It runs, and a request or a load makes no progress", lambda facts: facts.inputs.waiting)
exit_code_0 = _state("It ended with exit code 0", lambda facts: _exit_code(facts) == 0)
end_unknown = _state("Its end is unknown", lambda facts: not (facts.inputs.running or facts.exit))
aborted_or_unknown = _state(
    "It died of SIGABRT or ended with exit code 1, or its end is unknown",
    lambda facts: facts.failed and (_exit_code(facts) == 1 or facts.may_have_died_of(exits.ABORT)),
)
check_failed = _state(
    "It ended, but neither with exit code 0 nor by SIGKILL, SIGTERM, SIGINT, SIGILL or SIGPIPE",
    lambda facts: facts.failed and facts.ended_by not in _OTHER_ENDS,
)
no_memory_status = _state(
    "It ended with a Windows status for missing memory: 0xC0000017, 0xC000012D or 0xC000009A",
    lambda facts: exits.unsigned(_exit_code(facts) or 0) in exits.NTSTATUS_NO_MEMORY,
)


def not_distributed(facts: Facts) -> list[Evidence] | None:
    """It should be distributed, and it runs or ended without an error; its log shows fewer offloaded layers
    than the model has, or a planned backend without a model buffer"""
    return _offload_gap(facts) if facts.inputs.running or _ended_without_error(facts) else None


def log_is_not_distributed(facts: Facts) -> list[Evidence] | None:
    """It should be distributed, and its end is unknown; its log shows fewer offloaded layers than the model
    has, or a planned backend without a model buffer"""
    return _offload_gap(facts) if end_unknown(facts) is not None else None


def _offload_gap(facts: Facts) -> list[Evidence] | None:
    gap = offload_gap(facts) if facts.inputs.expect_distributed else None
    return [gap] if gap else None


def _ended_without_error(facts: Facts) -> bool:
    return facts.exit is not None and (facts.exit.code == 0 or bool(ended_as_requested(facts)))


def stopped_while_busy(facts: Facts) -> list[Evidence] | None:
    """The harness sent SIGTERM, SIGINT or SIGKILL with a request in flight"""
    sent = [s for s in facts.sent(*_STOPPING_SIGNALS) if s.requests_in_flight > 0]
    return [signal_evidence(facts.inputs, s) for s in sent] or None


def ended_as_requested(facts: Facts) -> list[Evidence] | None:
    """The harness sent SIGTERM, SIGINT or SIGKILL, and it ended with exit code 0 or died of that signal"""
    sent = facts.sent(*_STOPPING_SIGNALS)
    if not sent or facts.exit is None:
        return None
    as_requested = facts.exit.code == 0 or any(
        facts.ended_by == signal.Signals[s.name] for s in sent if s.name in signal.Signals.__members__
    )
    return [signal_evidence(facts.inputs, s) for s in sent] if as_requested else None


def stop_before_loss(facts: Facts) -> list[Evidence] | None:
    """It was stopped before that line: a stop interrupts its wait for a backend"""
    stop = facts.own.first(ends.STOPPING)
    lost = facts.own.first(rpc.LOST) or facts.own.first(rpc.LOST_FRAME)
    if not facts.failed or lost is None or stop is None or stop.at > lost.at:
        return None
    return [stop.evidence]


def receive_interrupted(facts: Facts) -> list[Evidence] | None:
    """It had begun to load and died of SIGABRT when a receive from a backend failed (`recv failed`), but
    every backend of its plan still runs the same rpc-server as before: a signal interrupted the receive"""
    inputs = facts.inputs
    broken = [hit for hit in facts.own.all(rpc.LOST) if _RECEIVE_FAILED.search(hit.text)]
    planned = {share.node for share in inputs.plan.shares} if inputs.plan else set()
    if not facts.own.first(LOAD):  # it was still connecting: no request could be in flight
        return None
    if not broken or not planned or facts.ended_by != exits.ABORT or inputs.began_ns is None:
        return None
    began = {node: inputs.backends_began_ns.get(node) for node in planned}
    if any(at is None or at > inputs.began_ns for at in began.values()):
        return None
    older = [
        Evidence(
            source=f"samples {node}",
            line=f"its rpc-server started {(inputs.began_ns - at) / 1e9:.0f} s before the coordinator",
        )
        for node, at in sorted(began.items())
        if at is not None
    ]
    return [broken[0].evidence, *older]


def killed_by_others(facts: Facts) -> list[Evidence] | None:
    """It died of a SIGKILL that the harness did not send, and its node counted no OOM kill while it ran"""
    node = facts.inputs.node
    if facts.ended_by != exits.KILL or facts.sent("SIGKILL") or node is None:
        return None
    if facts.inputs.oom_kills.get(node) != 0:
        return None
    return [Evidence(source=f"samples {node}", line=f"no OOM kill on {node} while it ran")]


def died_of(*numbers: signal.Signals) -> Condition:
    """The condition that one of these signals ended it."""

    def died(facts: Facts) -> list[Evidence] | None:
        return facts.died_of(*numbers)

    names = " or ".join(number.name for number in numbers)
    died.__doc__ = f"It died of {names}, by its exit status or by a line of a shell, systemd or the kernel"
    return died


def has_line(kind: Kind, *, waiting: bool = False) -> Condition:
    """The condition that its log, or a journal of its node, has a line of a kind."""

    def has(facts: Facts) -> list[Evidence] | None:
        holds = facts.failed or facts.inputs.waiting or not waiting
        return (facts.lines_of(kind) or None) if holds else None

    where = "It failed or waits; its log" if waiting else "Its log"
    has.__doc__ = f'{where}, or its node\'s journal or kernel log, has "{kind.name}"'
    return has


def oom_killed(facts: Facts) -> list[Evidence] | None:
    """It died of a SIGKILL that the harness did not send, or its end is unknown; its node counted an OOM
    kill, or the kernel or systemd logged an OOM kill of it"""
    inputs = facts.inputs
    by_unit = inputs.unit.get("Result") == "oom-kill"
    if inputs.running or facts.sent("SIGKILL") or not (by_unit or facts.may_have_died_of(exits.KILL)):
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
    """A coordinator died of SIGSEGV before its first line (lines about devices do not count): a closed
    `--rpc` port, in builds up to 6792"""
    if not facts.inputs.logs or not coordinates(facts.inputs) or facts.ended_by != exits.SEGV:
        return None
    if facts.own.last_line is None:
        source = next(iter(facts.inputs.logs))
        return [Evidence(source=f"{source}:1", line="(empty: it ended before its first line)")]
    return [facts.own.last_line] if _BEFORE_THE_START.search(facts.own.last_line.line) else None


def disk_is_full(facts: Facts) -> list[Evidence] | None:
    """The disk of rpc-server's cache has no space left: files written there are truncated without an error"""
    inputs = facts.inputs
    nodes = [inputs.node] if inputs.node and inputs.process == RPC_SERVER else [*inputs.full_disks]
    if _exit_code(facts) == 0:
        return None
    return [
        Evidence(source=f"disk {node}", line=inputs.full_disks[node])
        for node in nodes
        if node in inputs.full_disks
    ] or None


def broke_at_a_backend(facts: Facts) -> bool:
    """Whether a coordinator broke where it talks to its backends."""
    if facts.inputs.process != LLAMA_SERVER or not facts.failed:
        return False
    return bool(facts.best_line(rpc.LOST) or facts.best_line(rpc.LOST_FRAME))
