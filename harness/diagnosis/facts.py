"""What follows from the inputs alone, before any rule: how it ended, what the logs say, our signals."""

import re
import signal
from dataclasses import dataclass
from functools import cached_property

from harness.contracts.coordinator_state import missing_backends
from harness.contracts.diagnosis import Evidence, ExitStatus, Signal
from harness.diagnosis import exit_status as exits
from harness.diagnosis.inputs import LLAMA_SERVER, Inputs
from harness.diagnosis.patterns import Kind, ends, hardware
from harness.diagnosis.patterns.start import LOAD
from harness.diagnosis.scanner import Hit, Matches, scan

_OURS = re.compile(r"(?i)llama|rpc-server|ollama|^server$|^main$|lm-?studio|kobold")
"""Names of processes that are, or carry, llama.cpp."""

_SIGNAL_LINES: dict[int, Kind] = {
    signal.SIGABRT: ends.ABORTED,
    signal.SIGSEGV: ends.SEGFAULT,
    signal.SIGBUS: ends.SEGFAULT,
    signal.SIGILL: ends.ILLEGAL,
    signal.SIGPIPE: ends.SIGPIPE,
    signal.SIGKILL: ends.KILLED,
    signal.SIGTERM: ends.STOPPED,
    signal.SIGINT: ends.STOPPED,
}
"""Lines by which shells, systemd and kernels report a signal."""

_FATAL = (ends.RUNNER_ENDED, ends.ASSERTION, ends.ABORTED, ends.SEGFAULT)
"""Lines after which another process writes, if any does."""


@dataclass(frozen=True)
class Facts:
    """The inputs, with their logs searched once."""

    inputs: Inputs
    own: Matches
    """What its own logs say."""
    journals: dict[str, Matches]
    """What the journals of the nodes say, by node."""

    @cached_property
    def exit(self) -> ExitStatus | None:
        """How it ended, by wait or by its unit."""
        return self.inputs.exit or exits.from_unit(dict(self.inputs.unit))

    @cached_property
    def ended_by(self) -> int | None:
        """The signal that ended it, where its exit status is known."""
        return exits.signal_of(self.exit) if self.exit else None

    @property
    def failed(self) -> bool:
        """It did not end with exit code 0, or its end is unknown."""
        return not self.inputs.running and not (self.exit and self.exit.code == 0)

    @cached_property
    def end_known(self) -> bool:
        """Whether something says how it ended, or that it runs: without that, no class is certain."""
        if self.inputs.running or self.exit is not None or self.kernel_oom:
            return True
        return any(self.lines_of(kind) for kind in dict.fromkeys(_SIGNAL_LINES.values()))

    @cached_property
    def kernel_oom(self) -> list[Evidence]:
        """Lines of the kernel or of systemd that say that it was killed because memory ran out."""
        return self.lines_of(hardware.KERNEL_OOM)

    def lines_of(self, kind: Kind) -> list[Evidence]:
        """The first line of a kind in its own logs and in each journal, without those of other processes."""
        own = [hit.evidence for hit in self.own.all(kind) if _ours(hit)][:1]
        nodes = [self.inputs.node] if self.inputs.node else list(self.journals)
        for node in nodes:
            hits = self.journals[node].all(kind) if node in self.journals else []
            own += [Evidence(source=f"journal {node}", line=hit.text) for hit in hits if _ours(hit)][:1]
        return own

    def died_of(self, *numbers: signal.Signals) -> list[Evidence] | None:
        """Whether one of these signals ended it: by its exit status, or by lines where that is not known."""
        if self.inputs.running:
            return None
        if self.exit is not None:
            return [] if self.ended_by in numbers else None
        kinds = dict.fromkeys(_SIGNAL_LINES[number] for number in numbers)
        return next((lines for kind in kinds if (lines := self.lines_of(kind))), None)

    def may_have_died_of(self, *numbers: signal.Signals) -> bool:
        """Whether it failed, by one of these signals or in an unknown way."""
        return self.failed and (self.exit is None or self.ended_by in numbers)

    def best_line(self, kind: Kind, *, superseded: bool = False) -> Hit | None:
        """The most specific line of a kind in its own logs; of equals the first.

        Args:
            superseded: leave out lines after which the same process became ready or continued to serve.
        """
        hits = self.own.all(kind)
        if superseded and hits:
            hits = [hit for hit in hits if not self._survived(hit)]
        return min(hits, key=lambda hit: (hit.rank, hit.at), default=None)

    def _survived(self, hit: Hit) -> bool:
        """Whether its process served after a line, with no end in between (Ollama starts another process)."""
        serves = self.own.first(ends.SERVES, hit.at)
        if serves is None:
            return False
        died = (self.own.first(kind, hit.at) for kind in _FATAL)
        return not any(end and end.at < serves.at for end in died)

    def sent(self, *names: str) -> list[Signal]:
        """Our signals of these names that reached the process: sent before it ended."""
        end = self.inputs.exit.time_ns if self.inputs.exit else None
        return [s for s in self.inputs.signals if s.name in names and (end is None or s.time_ns <= end)]


def gather(inputs: Inputs) -> Facts:
    """Search all logs and journals once."""
    journals = {node: scan({f"journal {node}": lines}) for node, lines in inputs.journal.items()}
    return Facts(inputs, scan(inputs.logs), journals)


def exit_evidence(facts: Facts) -> Evidence | None:
    """The exit status in words."""
    if facts.exit is None:
        return None
    source = "exit status" if facts.inputs.exit else "unit"
    return Evidence(source=source, line=exits.in_words(facts.exit))


def signal_evidence(inputs: Inputs, sent: Signal) -> Evidence:
    """One of our signals in words, with the time from it to the end."""
    text = f"{sent.name} sent with {sent.requests_in_flight} request(s) in flight ({sent.reason})"
    if inputs.exit:
        text += f", {(inputs.exit.time_ns - sent.time_ns) / 1e9:.3f} s before the end"
    return Evidence(source="signals", line=text)


def offload_gap(facts: Facts) -> Evidence | None:
    """What is missing from a full distribution; None where it is complete or nothing was loaded.

    A backend without a buffer counts only once the load continued to the KV cache: a log may end before.
    """
    inputs, report = facts.inputs, facts.inputs.report
    if report is None or report.offloaded is None:
        return None
    if report.offloaded != report.layers_total:
        line = f"offloaded {report.offloaded}/{report.layers_total} layers"
        hits = [hit for hit in facts.own.all(LOAD) if line in hit.text]
        return hits[-1].evidence if hits else Evidence(source="load report", line=line)
    if not any(buffer.kv_bytes or buffer.compute_bytes for buffer in report.buffers):
        return None
    if inputs.plan and (missing := missing_backends(report, inputs.plan)):
        return Evidence(source="load report", line=f"no model buffer on {', '.join(missing)}")
    if report.distributed:
        return None
    return Evidence(source="load report", line="no RPC device holds a model buffer")


def coordinates(inputs: Inputs) -> bool:
    """Whether this is a llama-server with backends."""
    has_rpc = any(word == "--rpc" or word.startswith("--rpc=") for word in inputs.argv)
    return inputs.process == LLAMA_SERVER and (inputs.plan is not None or has_rpc)


def _ours(hit: Hit) -> bool:
    return hit.name is None or bool(_OURS.search(hit.name))
