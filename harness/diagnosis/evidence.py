"""What a diagnosis is made from, and how to look a fact up in it. Pure data: whoever asks has read it."""

import re
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.diagnosis.loadlog import missing_backends
from harness.diagnosis.model import Evidence, ExitStatus, Signal
from harness.planner.plan import Plan
from harness.runs.schema import LoadReport

LLAMA_SERVER = "llama-server"
RPC_SERVER = "rpc-server"


@dataclass(frozen=True)
class Inputs:
    """Everything known of one process that ended, or that runs and should be looked at."""

    process: str = LLAMA_SERVER
    """``llama-server`` or ``rpc-server``."""
    node: str | None = None
    """The node it ran on."""
    running: bool = False
    argv: Sequence[str] = ()
    exit: ExitStatus | None = None
    signals: Sequence[Signal] = ()
    """Signals that we sent to it."""
    logs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Its own log lines by file name, in order."""
    journal: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Lines of the units' journals and of the kernel log, by node."""
    units: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Properties of ``llama-rpc-server.service`` by node: ActiveState, NRestarts, Result."""
    oom_kills: Mapping[str, int] = field(default_factory=dict)
    """OOM kills since the process was started, by node."""
    plan: Plan | None = None
    report: LoadReport | None = None
    """What the log says of the load; needed for ``not_distributed`` only."""
    expect_distributed: bool = True
    """Whether every layer should have been on the backends."""


def read_log(path: Path) -> list[str]:
    """Lines of a log, whatever bytes it holds."""
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def find(lines: Mapping[str, Iterable[str]], patterns: Sequence[re.Pattern[str]]) -> Evidence | None:
    """The first line that matches, with ``file:lineno`` as its source; earlier patterns are preferred."""
    for pattern in patterns:
        for source, text in lines.items():
            for number, line in enumerate(text, 1):
                if pattern.search(line):
                    return Evidence(source=f"{source}:{number}", line=line.strip())
    return None


def find_in_journal(inputs: Inputs, pattern: re.Pattern[str], nodes: Iterable[str]) -> list[Evidence]:
    """The first matching journal line of each of ``nodes``."""
    found = []
    for node in nodes:
        for line in inputs.journal.get(node, ()):
            if pattern.search(line):
                found.append(Evidence(source=f"journal {node}", line=line.strip()))
                break
    return found


def exit_evidence(inputs: Inputs) -> Evidence | None:
    """The exit status in words."""
    status = inputs.exit
    if status is None:
        return None
    if status.code is not None:
        text = f"exited with code {status.code}"
    else:
        text = f"ended by signal {status.signal} ({_signal_name(status.signal)}), {status.shell} in a shell"
    return Evidence(source="exit status", line=text)


def _signal_name(number: int | None) -> str:
    try:
        return signal.Signals(number or 0).name
    except ValueError:
        return "unknown"


def died_of(inputs: Inputs, *numbers: signal.Signals) -> bool:
    """Whether one of these signals ended it, seen directly or as a shell's 128 + n."""
    return inputs.exit is not None and inputs.exit.shell in {128 + number for number in numbers}


def our_signals(inputs: Inputs, *names: str) -> list[Signal]:
    """Signals of ours that reached the process: sent before it ended."""
    end = inputs.exit.time_ns if inputs.exit else None
    return [s for s in inputs.signals if s.name in names and (end is None or s.time_ns <= end)]


def signal_evidence(inputs: Inputs, sent: Signal) -> Evidence:
    """A signal of ours in words, with the time from it to the end."""
    text = f"{sent.name} sent with {sent.requests_in_flight} request(s) in flight ({sent.reason})"
    if inputs.exit:
        text += f", {(inputs.exit.time_ns - sent.time_ns) / 1e9:.3f} s before the end"
    return Evidence(source="signals", line=text)


def offload_gap(inputs: Inputs) -> Evidence | None:
    """What is missing from a full distribution; None where it is complete or nothing was loaded."""
    report = inputs.report
    if report is None or report.offloaded is None:
        return None
    if report.offloaded != report.layers_total:
        line = f"offloaded {report.offloaded}/{report.layers_total} layers to GPU"
        where = find(inputs.logs, [re.compile(re.escape(line.removesuffix(" to GPU")))])
        return where or Evidence(source="load report", line=line)
    if inputs.plan and (missing := missing_backends(report, inputs.plan)):
        return Evidence(source="load report", line=f"no model buffer on {', '.join(missing)}")
    if not report.distributed:
        return Evidence(source="load report", line="no RPC device holds a model buffer")
    return None
