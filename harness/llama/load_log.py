"""What llama-server's own log says of a load: layers offloaded, memory per device, phases.

Reads the lines of builds of 2024 to 2026. Newer builds put a time and a level before each line
(``0.04.998.408 I load_tensors: ...``), older ones sometimes leave progress dots there; patterns are
therefore searched for, never anchored. The text is llama.cpp's ``src/llama-model.cpp`` (offloaded,
model buffer), ``src/llama-kv-cache.cpp`` (KV buffer) and ``src/llama-context.cpp`` (compute buffer).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from harness.contracts.coordinator_state import BackendBuffers, LoadReport, rpc_endpoint
from harness.contracts.plan import Plan

_BUILD = re.compile(r"\bbuild(?:_info:|:)?\s*b?(\d+)\b")
_OFFLOADED = re.compile(r"\boffloaded (\d+)/(\d+) layers")
_BUFFER = re.compile(r"(\S+)\s+(model|KV|RS|compute) buffer size =\s*(\d+(?:\.\d+)?) MiB")
_LOAD_STARTS = "loading model tensors"
_MIB = 1024 * 1024

PHASES = ("connect", "open", "transfer", "kv", "warmup")
"""Phases of a load, in the order in which llama-server goes through them.

``connect`` starts with exec: backends are greeted while the arguments are parsed, before the first line.
"""

READY = "ready"
"""What ``load_phase`` gives for the line that ends the last phase."""

_PHASE_MARKERS = (
    (
        "open",
        re.compile(
            r"\bbuild(?:_info:|:)?\s*b?\d|\bloading model\b(?! tensors)|llama_model_loader: loaded meta"
        ),
    ),
    ("transfer", re.compile(_LOAD_STARTS)),
    ("kv", re.compile(r"constructing llama_context|llama_kv_cache\w*:")),
    ("warmup", re.compile(r"warming up the model")),
    (READY, re.compile(r"\b(?:main|llama_server): model loaded|\blistening on http")),
)


def parse_load_log(lines: Iterable[str]) -> LoadReport:
    """The load that the log reports; of several in one log, the last.

    Sizes are bytes, as exact as the log's hundredths of a MiB. A model that is mapped from several
    files prints one line per file: they are summed. A compute buffer printed again replaces the first.
    """
    report = LoadReport()
    buffers: dict[str, BackendBuffers] = {}
    for line in lines:
        if _LOAD_STARTS in line:
            buffers.clear()
            report.offloaded = report.layers_total = None
        elif match := _BUFFER.search(line):
            _add_buffer(buffers, *match.groups())
        elif match := _OFFLOADED.search(line):
            report.offloaded, report.layers_total = int(match[1]), int(match[2])
        elif report.build is None and (match := _BUILD.search(line)):
            report.build = int(match[1])
    report.buffers = list(buffers.values())
    return report


def _add_buffer(buffers: dict[str, BackendBuffers], device: str, kind: str, mib: str) -> None:
    entry = buffers.setdefault(device, BackendBuffers(device=device))
    size = round(float(mib) * _MIB)
    if kind == "model":
        entry.model_bytes += size
    elif kind == "compute":
        entry.compute_bytes = size
    else:
        entry.kv_bytes += size


def assign_nodes(report: LoadReport, plan: Plan) -> LoadReport:
    """The same report with the node of each RPC buffer, matched by endpoint with the plan."""
    nodes = {share.endpoint: share.node for share in plan.shares}
    buffers = [b.model_copy(update={"node": nodes.get(rpc_endpoint(b.device) or "")}) for b in report.buffers]
    return report.model_copy(update={"buffers": buffers})


def load_phase(line: str) -> str | None:
    """The phase that begins with this line: one of PHASES, or READY; None where it marks nothing."""
    return next((phase for phase, pattern in _PHASE_MARKERS if pattern.search(line)), None)


@dataclass
class PhaseClock:
    """Times the phases of a load by when its log lines arrive.

    Args:
        exec_ns: when llama-server was started.
    """

    exec_ns: int
    _begun: dict[str, int] = field(default_factory=dict)

    def line(self, arrived_ns: int, text: str) -> None:
        """Add one log line. A repeated marker, or one out of order, changes nothing."""
        phase = load_phase(text)
        if phase is None:
            return
        order = (*PHASES, READY)
        if all(order.index(phase) > order.index(begun) for begun in self._begun):
            self._begun[phase] = arrived_ns

    @property
    def ended(self) -> bool:
        """Whether the line came that ends the last phase."""
        return READY in self._begun

    @property
    def phases(self) -> dict[str, float]:
        """Seconds of each phase that has ended."""
        begun = [(PHASES[0], self.exec_ns), *self._begun.items()]
        return {phase: (end - start) / 1e9 for (phase, start), (_, end) in pairwise(begun)}
