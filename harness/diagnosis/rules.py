"""The table of rules: from what was seen to a class. Causes stand before their effects.

A rule holds when its ``when`` gives evidence and, where it has patterns, one of them is found in the
process's own log. Patterns are written from llama.cpp's source (builds 6666 to 11434) and checked
against the recorded logs in ``tests/data/logs``.
"""

import re
import signal
from collections.abc import Callable
from dataclasses import dataclass

from harness.diagnosis import evidence as seen
from harness.diagnosis.evidence import LLAMA_SERVER, RPC_SERVER, Inputs
from harness.diagnosis.model import Confidence, Evidence, FailureClass

Condition = Callable[[Inputs], list[Evidence] | None]
"""Gives the evidence for a condition; an empty list where it holds without any; None where it does not.

Its docstring says in words what it asks for: docs/diagnoses.md is made from it.
"""


def _always(inputs: Inputs) -> list[Evidence]:
    return []


@dataclass(frozen=True)
class Rule:
    """One line of the table."""

    failure_class: FailureClass
    confidence: Confidence
    advice: str
    patterns: tuple[re.Pattern[str], ...] = ()
    when: Condition = _always
    processes: tuple[str, ...] = (LLAMA_SERVER, RPC_SERVER)

    def evidence(self, inputs: Inputs) -> list[Evidence] | None:
        """The evidence that makes this rule hold; None where it does not hold."""
        if inputs.process not in self.processes:
            return None
        given = self.when(inputs)
        if given is None:
            return None
        if not self.patterns:
            return given
        line = seen.find(inputs.logs, self.patterns)
        return [line, *given] if line else None


def _any(*texts: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(text) for text in texts)


def _not_distributed(inputs: Inputs) -> list[Evidence] | None:
    """It should be distributed, runs or ended quietly, and its log offloads fewer layers than the model has,
    or shows a planned backend without a model buffer"""
    if not inputs.expect_distributed or not (inputs.running or _ended_quietly(inputs)):
        return None
    gap = seen.offload_gap(inputs)
    return [gap] if gap else None


def _ended_quietly(inputs: Inputs) -> bool:
    if inputs.exit is None:
        return False
    return inputs.exit.code == 0 or bool(_told_idle(inputs))


def _told_busy(inputs: Inputs) -> list[Evidence] | None:
    """We sent SIGTERM, SIGINT or SIGKILL with a request in flight, and it did not exit with code 0"""
    if inputs.exit and inputs.exit.code == 0:
        return None
    sent = [s for s in seen.our_signals(inputs, "SIGTERM", "SIGINT", "SIGKILL") if s.requests_in_flight > 0]
    return [seen.signal_evidence(inputs, s) for s in sent] or None


def _told_idle(inputs: Inputs) -> list[Evidence] | None:
    """We sent SIGTERM, SIGINT or SIGKILL, and it exited with code 0 or died of that signal"""
    sent = seen.our_signals(inputs, "SIGTERM", "SIGINT", "SIGKILL")
    if not sent or inputs.exit is None:
        return None
    as_told = inputs.exit.code == 0 or any(
        seen.died_of(inputs, signal.Signals[s.name]) for s in sent if s.name in signal.Signals.__members__
    )
    return [seen.signal_evidence(inputs, s) for s in sent] if as_told else None


def _exit_code_0(inputs: Inputs) -> list[Evidence] | None:
    """It exited with code 0"""
    return [] if inputs.exit and inputs.exit.code == 0 else None


def _runs(inputs: Inputs) -> list[Evidence] | None:
    """It runs"""
    return [] if inputs.running else None


def _died_of(*numbers: signal.Signals) -> Condition:
    def died(inputs: Inputs) -> list[Evidence] | None:
        return [] if seen.died_of(inputs, *numbers) else None

    died.__doc__ = f"It died of {' or '.join(number.name for number in numbers)}"
    return died


def _abnormal_end(inputs: Inputs) -> list[Evidence] | None:
    """It ended, and not with code 0 (or nobody knows how)"""
    return None if inputs.running or (inputs.exit and inputs.exit.code == 0) else []


_KERNEL_OOM = re.compile(
    r"(?i)out of memory: killed process|oom-kill|killed process \d+ \((rpc-server|llama-server)|oom_reaper"
    r"|killed by the oom killer"
)


def _oom_killed(inputs: Inputs) -> list[Evidence] | None:
    """It died of a SIGKILL that is not ours, while its node counted an OOM kill or the kernel logged one"""
    if not seen.died_of(inputs, signal.SIGKILL) or seen.our_signals(inputs, "SIGKILL"):
        return None
    nodes = [inputs.node] if inputs.node else [*inputs.oom_kills, *inputs.journal]
    counted = [
        Evidence(source=f"samples {node}", line=f"OOM kills on {node} while it ran: {inputs.oom_kills[node]}")
        for node in nodes
        if inputs.oom_kills.get(node, 0) > 0
    ]
    return [*counted, *seen.find_in_journal(inputs, _KERNEL_OOM, dict.fromkeys(nodes))] or None


def _silent_death_at_start(inputs: Inputs) -> list[Evidence] | None:
    """A coordinator died of SIGSEGV before its first line: a closed `--rpc` port, in builds up to 6792"""
    printed = any(line.strip() for lines in inputs.logs.values() for line in lines)
    coordinates = inputs.plan is not None or "--rpc" in inputs.argv
    if printed or not inputs.logs or not coordinates or not seen.died_of(inputs, signal.SIGSEGV):
        return None
    source = next(iter(inputs.logs))
    return [Evidence(source=f"{source}:1", line="(empty: it ended before its first line)")]


_CERTAIN, _LIKELY = Confidence.CERTAIN, Confidence.LIKELY
_C = FailureClass

_ALLOCATION_FAILED = _any(
    r"failed to allocate \S+ buffer of size",
    r"[Ff]ailed to allocate (input )?buffer",
    r"unable to allocate \S+ buffer",
    r"cudaMalloc failed: out of memory|CUDA error: out of memory|ErrorOutOfDeviceMemory",
    r"std::bad_alloc|Cannot allocate memory",
)

RULES: tuple[Rule, ...] = (
    Rule(
        _C.NOT_DISTRIBUTED,
        _CERTAIN,
        "Start it with -ngl covering every layer, and with --device and --tensor-split naming every backend.",
        when=_not_distributed,
        processes=(LLAMA_SERVER,),
    ),
    Rule(
        _C.STOPPED_BUSY,
        _CERTAIN,
        "Nothing to mend: it was told to stop with a request in flight. Let requests finish, then stop it.",
        when=_told_busy,
    ),
    Rule(_C.STOPPED, _CERTAIN, "Nothing to mend: it ended when asked.", when=_told_idle),
    Rule(
        _C.OOM_KILLED,
        _CERTAIN,
        "Give the node fewer layers or more memory: the kernel killed the process for want of it.",
        when=_oom_killed,
    ),
    Rule(
        _C.RPC_VERSION_MISMATCH,
        _CERTAIN,
        "Install the same build on every node: run site.yml.",
        _any(r"RPC server version mismatch"),
        processes=(LLAMA_SERVER,),
    ),
    Rule(
        _C.BACKEND_UNREACHABLE,
        _CERTAIN,
        "See on the backend's node that llama-rpc-server.service is active and listens there (ss -Hltn).",
        _any(r"Failed to connect to \S+", r"Cannot resolve host"),
        when=_abnormal_end,
        processes=(LLAMA_SERVER,),
    ),
    Rule(
        _C.BACKEND_UNREACHABLE,
        _LIKELY,
        "See on each backend's node that llama-rpc-server.service is active and listens there (ss -Hltn).",
        when=_silent_death_at_start,
        processes=(LLAMA_SERVER,),
    ),
    Rule(
        _C.OUT_OF_MEMORY,
        _CERTAIN,
        "Use a smaller context or model, or give the device named in the line fewer layers.",
        _ALLOCATION_FAILED,
        when=_abnormal_end,
    ),
    Rule(
        _C.OUT_OF_MEMORY,
        _CERTAIN,
        "The backend lives, but could not take what it was given: give its node fewer layers.",
        _ALLOCATION_FAILED,
        when=_runs,
        processes=(RPC_SERVER,),
    ),
    Rule(
        _C.BACKEND_LOST,
        _CERTAIN,
        "Find why the backend ended: its node's journal of llama-rpc-server.service and its OOM kills.",
        _any(r"Remote RPC server crashed or returned malformed response"),
        when=_abnormal_end,
        processes=(LLAMA_SERVER,),
    ),
    Rule(
        _C.BACKEND_LOST,
        _LIKELY,
        "Find why the backend ended: its node's journal of llama-rpc-server.service and its OOM kills.",
        _any(r"#\d+ .*ggml_backend_rpc_\w+"),
        when=_died_of(signal.SIGABRT),
        processes=(LLAMA_SERVER,),
    ),
    Rule(
        _C.STOPPED_BUSY,
        _LIKELY,
        "Somebody other than the harness told it to stop with a request in flight: see the node's journal.",
        _any(r"terminate called without an active exception"),
        when=_died_of(signal.SIGABRT),
        processes=(LLAMA_SERVER,),
    ),
    Rule(
        _C.PORT_IN_USE,
        _CERTAIN,
        "Find what holds the port (ss -Hltnp) and stop it, or choose another port.",
        _any(r"couldn't bind (to server socket|HTTP server socket)", r"[Aa]ddress already in use"),
        when=_abnormal_end,
    ),
    Rule(
        _C.BAD_ARGUMENTS,
        _CERTAIN,
        "Correct the argument that the line names; the release may not know it.",
        _any(
            r"error: (unknown|invalid) argument",
            r"error while handling argument",
            r"error: unknown device",
            r"error: invalid (device|memory size|number of threads)",
            r"Invalid host address",
            r"^Invalid parameters",
        ),
    ),
    Rule(
        _C.PORT_IN_USE,
        _LIKELY,
        "Find what holds the port (ss -Hltnp); the address must also be one of the node's own.",
        _any(r"Failed to create server socket"),
        processes=(RPC_SERVER,),
    ),
    Rule(
        _C.MODEL_INVALID,
        _CERTAIN,
        "Give it a whole GGUF file that this build knows: check path, size and digest.",
        _any(
            r"invalid magic characters",
            r"failed to open GGUF file",
            r"is not within the file bounds",
            r"unknown (model architecture|type)",
            r"error loading model:",
        ),
        when=_abnormal_end,
        processes=(LLAMA_SERVER,),
    ),
    Rule(
        _C.ASSERTION,
        _CERTAIN,
        "A check inside llama.cpp failed: look for the line in its issues, or try another release.",
        _any(r"GGML_ASSERT\(.*failed", r"\.(cpp|c|cu|h|m|metal):\d+: "),
        when=_died_of(signal.SIGABRT, signal.SIGSEGV),
    ),
    Rule(
        _C.SEGFAULT,
        _CERTAIN,
        "A defect in llama.cpp or a broken machine: keep the log and a core dump, try another release.",
        when=_died_of(signal.SIGSEGV),
    ),
    Rule(
        _C.ILLEGAL_INSTRUCTION,
        _CERTAIN,
        "The build uses instructions that this CPU lacks: build it for this platform.",
        when=_died_of(signal.SIGILL),
    ),
    Rule(
        _C.SIGPIPE,
        _CERTAIN,
        "It wrote to a peer that had gone: run it under systemd, which ignores SIGPIPE.",
        when=_died_of(signal.SIGPIPE),
    ),
    Rule(
        _C.STOPPED,
        _LIKELY,
        "Nothing to mend: it ended cleanly; somebody other than the harness asked it to.",
        _any(r"cleaning up before exit"),
        when=_exit_code_0,
        processes=(LLAMA_SERVER,),
    ),
    Rule(
        _C.STOPPED,
        _LIKELY,
        "Nothing to mend: it was told to stop, by systemd or by a person.",
        when=_died_of(signal.SIGTERM, signal.SIGINT),
    ),
)
