"""The table of rules: from facts to a class. Causes come before their effects.

A rule holds when its ``when`` gives evidence and, where it asks for kinds of lines, one of them is in the
process's own log. What the lines look like is in ``harness/diagnosis/patterns``.
"""

from dataclasses import dataclass

from harness.contracts.diagnosis import Confidence, Evidence, FailureClass
from harness.diagnosis import conditions
from harness.diagnosis import exit_status as exits
from harness.diagnosis import node_conditions as nodes
from harness.diagnosis.conditions import Condition
from harness.diagnosis.facts import Facts
from harness.diagnosis.inputs import LLAMA_SERVER, RPC_SERVER
from harness.diagnosis.patterns import Kind, ends, hardware, rpc, start


@dataclass(frozen=True)
class Rule:
    """One line of the table."""

    failure_class: FailureClass
    confidence: Confidence
    advice: str
    lines: tuple[Kind, ...] = ()
    when: Condition = conditions.always
    process: str | None = None
    """The process that the rule is for; None for both."""
    superseded: bool = False
    """Whether a line does not count if llama-server became ready, or continued to serve, after it."""

    def evidence(self, facts: Facts) -> list[Evidence] | None:
        """The evidence that makes this rule hold; None where it does not hold."""
        if self.process not in (None, facts.inputs.process):
            return None
        evidence = self.when(facts)
        if evidence is None or not self.lines:
            return evidence
        hits = [hit for kind in self.lines if (hit := facts.best_line(kind, superseded=self.superseded))]
        return [hits[0].evidence, *evidence] if hits else None

    def confidence_in(self, facts: Facts) -> Confidence:
        """The confidence of this rule: never certain while the end of the process is unknown."""
        if self.confidence is Confidence.CERTAIN and not facts.end_known:
            return Confidence.LIKELY
        return self.confidence


_CERTAIN, _LIKELY, _POSSIBLE = Confidence.CERTAIN, Confidence.LIKELY, Confidence.POSSIBLE
_C = FailureClass

_DISTRIBUTE = (
    "Start it with -ngl covering every layer, and with --device and --tensor-split naming every backend."
)
_SEE_BACKEND = "Check on the backend's node that llama-rpc-server.service is active and listens (ss -Hltn)."
_WHY_BACKEND = "Find why the backend ended: its node's journal of llama-rpc-server.service and its OOM kills."
_ONE_BUILD = "Install the same build on every node: run site.yml."
_FEWER_LAYERS = "Use a smaller context or model, or give the device named in the line fewer layers."
_DRIVER = "Read the node's kernel log; check driver, device and build (its GPU architectures), then restart."
_LINK = "Check the link: addresses, cables, switch, firewall. Then start again: RPC does not reconnect."
_SPACE = "Free space on that disk, then empty rpc-server's cache: it uses cut files as if they were whole."
STOPPED_BY_OTHERS = (
    "Somebody other than the harness stopped it with a request in flight: see the node's journal."
)
_LET_FINISH = (
    "Nothing to repair: it was stopped with a request in flight. Next time, let requests finish first."
)
_AS_REQUESTED = "Nothing to repair: it stopped on request."
_NODE_MEMORY = (
    "Give the node fewer layers or more memory: the kernel killed the process because memory ran out."
)
_BACKEND_MEMORY = (
    "The backend runs, but could not allocate memory for its layers: give its node fewer layers."
)
_CONTINUE_BACKEND = "Continue that rpc-server (kill -CONT) or restart it, and start the coordinator again."
_FREE_PORT = "Find the process that uses the port (ss -Hltnp) and stop it, or choose another port."
_CORRECT_ARGUMENT = "Correct the argument that the line names; the release may not know it."
_OWN_ADDRESS = "Use an address of the machine itself; rpc-server needs an IPv4 address, not a name."
_PORT_OR_ADDRESS = (
    "Find the process that uses the port (ss -Hltnp); the address must also be one of the node's own."
)
_WHOLE_MODEL = "Use a complete GGUF file that this build supports: check path, size and digest."
_OTHER_CPU = "The build uses instructions that this CPU lacks: build it for this platform."
_UNDER_SYSTEMD = "It wrote to a closed connection: run it under systemd, which ignores SIGPIPE."
_FAILED_CHECK = "A check inside llama.cpp failed: look for the line in its issues, or try another release."
_CHECK_GPU = "Check that this user can use the GPU and its driver, or start it without the GPU."
_DEFECT = "A defect in llama.cpp or a broken machine: keep the log and a core dump, try another release."
_RESTART_BOTH = "Restart the backends and the coordinator; if it happens again, record their stacks (gdb -p)."
_SEE_WAIT = "Find what the process waits for: check its stack (gdb -p), its disk, its device."
_NO_CAUSE = "No cause was found: check the log's last line, the state of the backends and the stack (gdb -p)."
_LOAD_FAILED = "The load failed, and the log does not say why: check the file, and the lines before."
_ABORTED = "It aborted, and its log does not say why: check the lines before, and the journal."
_CLEAN_STOP = "Nothing to repair: it ended cleanly; somebody other than the harness stopped it."
_FIND_KILLER = (
    "Neither the harness nor the kernel killed it: find who did, with `last` and the journals of the node."
)
_BY_A_PERSON = "Nothing to repair: it was stopped by systemd or by a person."
_STOP_UNKNOWN = "It was stopped; without its exit status it is not known whether it ended cleanly."

RULES: tuple[Rule, ...] = (
    Rule(_C.NOT_DISTRIBUTED, _CERTAIN, _DISTRIBUTE, when=conditions.not_distributed, process=LLAMA_SERVER),
    Rule(_C.STOPPED_BUSY, _CERTAIN, _LET_FINISH, when=conditions.stopped_while_busy),
    Rule(_C.STOPPED, _CERTAIN, _AS_REQUESTED, when=conditions.ended_as_requested),
    Rule(_C.OOM_KILLED, _CERTAIN, _NODE_MEMORY, when=conditions.oom_killed),
    Rule(_C.RPC_VERSION_MISMATCH, _CERTAIN, _ONE_BUILD, (rpc.VERSION_MISMATCH,)),
    Rule(_C.BACKEND_UNREACHABLE, _CERTAIN, _SEE_BACKEND, (rpc.UNREACHABLE,), conditions.failed, LLAMA_SERVER),
    Rule(
        _C.BACKEND_UNREACHABLE,
        _LIKELY,
        _SEE_BACKEND,
        when=conditions.silent_death_at_start,
        process=LLAMA_SERVER,
    ),
    Rule(_C.DISK_FULL, _CERTAIN, _SPACE, (start.DISK_FULL,), conditions.failed_or_runs, superseded=True),
    Rule(_C.DISK_FULL, _LIKELY, _SPACE, when=conditions.disk_is_full),
    Rule(
        _C.OUT_OF_MEMORY,
        _CERTAIN,
        _FEWER_LAYERS,
        (hardware.ALLOCATION_FAILED,),
        conditions.failed,
        superseded=True,
    ),
    Rule(
        _C.OUT_OF_MEMORY,
        _CERTAIN,
        _BACKEND_MEMORY,
        (hardware.ALLOCATION_FAILED,),
        conditions.runs,
        RPC_SERVER,
    ),
    Rule(_C.OUT_OF_MEMORY, _CERTAIN, _FEWER_LAYERS, when=conditions.no_memory_status),
    Rule(_C.GPU_DRIVER, _CERTAIN, _DRIVER, (hardware.GPU_FAILED,), conditions.failed),
    Rule(_C.GPU_DRIVER, _LIKELY, _DRIVER, when=conditions.has_line(hardware.XID, waiting=True)),
    Rule(_C.SWAP_THRASH, _LIKELY, nodes.LESS_SWAP, when=nodes.thrashes),
    Rule(_C.NETWORK_PARTITION, _CERTAIN, _LINK, when=nodes.node_unreachable, process=LLAMA_SERVER),
    Rule(_C.NETWORK_PARTITION, _LIKELY, _LINK, when=nodes.no_route),
    Rule(_C.BACKEND_STALLED, _CERTAIN, _CONTINUE_BACKEND, when=nodes.backend_stopped),
    Rule(_C.BUILD_MISMATCH, _LIKELY, _ONE_BUILD, (rpc.OTHER_BUILD,), conditions.failed_or_runs),
    Rule(_C.BUILD_MISMATCH, _LIKELY, _ONE_BUILD, when=nodes.other_build_at_the_end, process=LLAMA_SERVER),
    Rule(
        _C.STOPPED_BUSY,
        _LIKELY,
        STOPPED_BY_OTHERS,
        (rpc.LOST, rpc.LOST_FRAME),
        conditions.stop_before_loss,
        LLAMA_SERVER,
    ),
    Rule(
        _C.STOPPED_BUSY, _LIKELY, STOPPED_BY_OTHERS, when=conditions.receive_interrupted, process=LLAMA_SERVER
    ),
    Rule(_C.BACKEND_LOST, _CERTAIN, _WHY_BACKEND, (rpc.LOST,), conditions.failed, LLAMA_SERVER),
    Rule(
        _C.BACKEND_LOST, _LIKELY, _WHY_BACKEND, (rpc.LOST_FRAME,), conditions.aborted_or_unknown, LLAMA_SERVER
    ),
    Rule(_C.STOPPED_BUSY, _LIKELY, STOPPED_BY_OTHERS, (ends.TERMINATED_BUSY,), conditions.aborted_or_unknown),
    Rule(_C.STOPPED_BUSY, _LIKELY, STOPPED_BY_OTHERS, when=conditions.has_line(ends.STOP_TIMED_OUT)),
    Rule(_C.PORT_IN_USE, _CERTAIN, _FREE_PORT, (start.PORT_IN_USE,), conditions.failed),
    Rule(
        _C.BAD_ARGUMENTS,
        _CERTAIN,
        _CORRECT_ARGUMENT,
        (start.BAD_ARGUMENTS,),
        conditions.not_running,
        superseded=True,
    ),
    Rule(_C.BAD_ARGUMENTS, _CERTAIN, _OWN_ADDRESS, (start.ADDRESS_REFUSED,), conditions.not_running),
    Rule(_C.PORT_IN_USE, _LIKELY, _PORT_OR_ADDRESS, (start.SERVER_SOCKET,), conditions.not_running),
    Rule(
        _C.MODEL_INVALID, _CERTAIN, _WHOLE_MODEL, (start.MODEL_INVALID,), conditions.failed, superseded=True
    ),
    Rule(_C.ILLEGAL_INSTRUCTION, _CERTAIN, _OTHER_CPU, when=conditions.died_of(exits.ILL)),
    Rule(_C.SIGPIPE, _CERTAIN, _UNDER_SYSTEMD, when=conditions.died_of(exits.PIPE)),
    Rule(_C.ASSERTION, _CERTAIN, _FAILED_CHECK, (ends.ASSERTION,), conditions.check_failed),
    Rule(_C.GPU_DRIVER, _LIKELY, _CHECK_GPU, (hardware.GPU_ABSENT,), conditions.failed, superseded=True),
    Rule(_C.SEGFAULT, _CERTAIN, _DEFECT, when=conditions.died_of(exits.SEGV, exits.BUS)),
    Rule(_C.BACKEND_STALLED, _LIKELY, _RESTART_BOTH, when=nodes.all_backends_idle, process=LLAMA_SERVER),
    Rule(_C.HUNG, _LIKELY, _SEE_WAIT, when=conditions.has_line(ends.HUNG, waiting=True)),
    Rule(_C.HUNG, _POSSIBLE, _NO_CAUSE, when=conditions.waits),
    Rule(_C.BUILD_MISMATCH, _CERTAIN, _ONE_BUILD, when=nodes.other_build),
    Rule(
        _C.MODEL_INVALID, _POSSIBLE, _LOAD_FAILED, (start.MODEL_FAILED,), conditions.failed, superseded=True
    ),
    Rule(
        _C.NOT_DISTRIBUTED, _LIKELY, _DISTRIBUTE, when=conditions.log_is_not_distributed, process=LLAMA_SERVER
    ),
    Rule(_C.ASSERTION, _POSSIBLE, _ABORTED, when=conditions.died_of(exits.ABORT)),
    Rule(_C.STOPPED, _LIKELY, _CLEAN_STOP, (ends.STOPPING,), conditions.exit_code_0, LLAMA_SERVER),
    Rule(_C.STOPPED, _LIKELY, _FIND_KILLER, when=conditions.killed_by_others),
    Rule(_C.STOPPED, _LIKELY, _BY_A_PERSON, when=conditions.died_of(exits.TERM, exits.INT)),
    Rule(_C.STOPPED, _POSSIBLE, _STOP_UNKNOWN, (ends.STOPPING,), conditions.end_unknown, LLAMA_SERVER),
)
