"""The table of rules: from what was seen to a class. Causes stand before their effects.

A rule holds when its ``when`` gives evidence and, where it asks for kinds of lines, one of them is in the
process's own log. What the lines look like is in ``harness/diagnosis/logs/patterns``.
"""

from dataclasses import dataclass

from harness.contracts.diagnosis import Confidence, Evidence, FailureClass
from harness.diagnosis import conditions as when_
from harness.diagnosis import exit_status as exits
from harness.diagnosis import node_conditions as cluster
from harness.diagnosis.conditions import Condition
from harness.diagnosis.evidence import LLAMA_SERVER, RPC_SERVER
from harness.diagnosis.facts import Facts
from harness.diagnosis.logs.pattern import Kind
from harness.diagnosis.logs.patterns import ends, gpu, memory, rpc, start


@dataclass(frozen=True)
class Rule:
    """One line of the table."""

    failure_class: FailureClass
    confidence: Confidence
    advice: str
    lines: tuple[Kind, ...] = ()
    when: Condition = when_.always
    process: str | None = None
    """The process that it is about; None for both."""
    overtaken: bool = False
    """Whether a line no longer counts once llama-server became ready, or went on serving, after it."""

    def evidence(self, facts: Facts) -> list[Evidence] | None:
        """The evidence that makes this rule hold; None where it does not hold."""
        if self.process not in (None, facts.inputs.process):
            return None
        given = self.when(facts)
        if given is None or not self.lines:
            return given
        hits = [hit for kind in self.lines if (hit := facts.log(kind, overtaken=self.overtaken))]
        return [hits[0].evidence, *given] if hits else None

    def confidence_in(self, facts: Facts) -> Confidence:
        """How far this rule decides: never for certain while nothing says how the process ended."""
        if self.confidence is Confidence.CERTAIN and not facts.end_known:
            return Confidence.LIKELY
        return self.confidence


_CERTAIN, _LIKELY, _POSSIBLE = Confidence.CERTAIN, Confidence.LIKELY, Confidence.POSSIBLE
_C = FailureClass

_SEE_BACKEND = (
    "See on the backend's node that llama-rpc-server.service is active and listens there (ss -Hltn)."
)
_WHY_BACKEND = "Find why the backend ended: its node's journal of llama-rpc-server.service and its OOM kills."
_ONE_BUILD = "Install the same build on every node: run site.yml."
_FEWER_LAYERS = "Use a smaller context or model, or give the device named in the line fewer layers."
_DRIVER = "Read the node's kernel log; check driver, device and build (its GPU architectures), then restart."
_LINK = (
    "Look at the link: ip addresses, cables, switch, firewall; then start again: RPC connections do not heal."
)
_SPACE = (
    "Make room on that disk, then empty rpc-server's cache: a file cut by a full disk is used as if whole."
)
STOPPED_BY_SOMEBODY = (
    "Somebody other than the harness told it to stop with a request in flight: see the node's journal."
)

RULES: tuple[Rule, ...] = (
    Rule(
        _C.NOT_DISTRIBUTED,
        _CERTAIN,
        "Start it with -ngl covering every layer, and with --device and --tensor-split naming every backend.",
        when=when_.not_distributed,
        process=LLAMA_SERVER,
    ),
    Rule(
        _C.STOPPED_BUSY,
        _CERTAIN,
        "Nothing to mend: it was told to stop with a request in flight. Let requests finish, then stop it.",
        when=when_.told_busy,
    ),
    Rule(_C.STOPPED, _CERTAIN, "Nothing to mend: it ended when asked.", when=when_.told_idle),
    Rule(
        _C.OOM_KILLED,
        _CERTAIN,
        "Give the node fewer layers or more memory: the kernel killed the process for want of it.",
        when=when_.oom_killed,
    ),
    Rule(_C.RPC_VERSION_MISMATCH, _CERTAIN, _ONE_BUILD, (rpc.VERSION_MISMATCH,)),
    Rule(_C.BACKEND_UNREACHABLE, _CERTAIN, _SEE_BACKEND, (rpc.UNREACHABLE,), when_.failed, LLAMA_SERVER),
    Rule(
        _C.BACKEND_UNREACHABLE,
        _LIKELY,
        _SEE_BACKEND,
        when=when_.silent_death_at_start,
        process=LLAMA_SERVER,
    ),
    Rule(_C.DISK_FULL, _CERTAIN, _SPACE, (start.DISK_FULL,), when_.failed_or_runs, overtaken=True),
    Rule(_C.DISK_FULL, _LIKELY, _SPACE, when=when_.disk_is_full),
    Rule(
        _C.OUT_OF_MEMORY,
        _CERTAIN,
        _FEWER_LAYERS,
        (memory.ALLOCATION_FAILED,),
        when_.failed,
        overtaken=True,
    ),
    Rule(
        _C.OUT_OF_MEMORY,
        _CERTAIN,
        "The backend lives, but could not take what it was given: give its node fewer layers.",
        (memory.ALLOCATION_FAILED,),
        when_.runs,
        RPC_SERVER,
    ),
    Rule(_C.OUT_OF_MEMORY, _CERTAIN, _FEWER_LAYERS, when=when_.no_memory_status),
    Rule(_C.GPU_DRIVER, _CERTAIN, _DRIVER, (gpu.GPU_FAILED,), when_.failed),
    Rule(_C.GPU_DRIVER, _LIKELY, _DRIVER, when=when_.said(gpu.XID, waiting=True)),
    Rule(
        _C.SWAP_THRASH,
        _LIKELY,
        "Put fewer layers there, or give the node more memory: each token reads layers from swap.",
        when=cluster.thrashes,
    ),
    Rule(_C.NETWORK_PARTITION, _CERTAIN, _LINK, when=cluster.node_cut_off, process=LLAMA_SERVER),
    Rule(_C.NETWORK_PARTITION, _LIKELY, _LINK, when=cluster.no_way),
    Rule(
        _C.BACKEND_STALLED,
        _CERTAIN,
        "Let that rpc-server go on (kill -CONT) or restart it, and start the coordinator again.",
        when=cluster.backend_stopped,
    ),
    Rule(_C.BUILD_MISMATCH, _LIKELY, _ONE_BUILD, (rpc.OTHER_BUILD,), when_.failed_or_runs),
    Rule(_C.BUILD_MISMATCH, _LIKELY, _ONE_BUILD, when=cluster.other_build_at_the_end, process=LLAMA_SERVER),
    Rule(
        _C.STOPPED_BUSY,
        _LIKELY,
        STOPPED_BY_SOMEBODY,
        (rpc.LOST, rpc.LOST_FRAME),
        when_.stopped_before_it_lost,
        LLAMA_SERVER,
    ),
    Rule(
        _C.STOPPED_BUSY,
        _LIKELY,
        STOPPED_BY_SOMEBODY,
        when=when_.receive_broke_off,
        process=LLAMA_SERVER,
    ),
    Rule(_C.BACKEND_LOST, _CERTAIN, _WHY_BACKEND, (rpc.LOST,), when_.failed, LLAMA_SERVER),
    Rule(
        _C.BACKEND_LOST,
        _LIKELY,
        _WHY_BACKEND,
        (rpc.LOST_FRAME,),
        when_.aborted_or_unknown,
        LLAMA_SERVER,
    ),
    Rule(
        _C.STOPPED_BUSY,
        _LIKELY,
        STOPPED_BY_SOMEBODY,
        (ends.TERMINATED_BUSY,),
        when_.aborted_or_unknown,
    ),
    Rule(_C.STOPPED_BUSY, _LIKELY, STOPPED_BY_SOMEBODY, when=when_.said(ends.STOP_TIMED_OUT)),
    Rule(
        _C.PORT_IN_USE,
        _CERTAIN,
        "Find what holds the port (ss -Hltnp) and stop it, or choose another port.",
        (start.PORT_IN_USE,),
        when_.failed,
    ),
    Rule(
        _C.BAD_ARGUMENTS,
        _CERTAIN,
        "Correct the argument that the line names; the release may not know it.",
        (start.BAD_ARGUMENTS,),
        when_.not_running,
        overtaken=True,
    ),
    Rule(
        _C.BAD_ARGUMENTS,
        _CERTAIN,
        "Give it an address of the machine itself, an IPv4 literal for rpc-server.",
        (start.ADDRESS_REFUSED,),
        when_.not_running,
    ),
    Rule(
        _C.PORT_IN_USE,
        _LIKELY,
        "Find what holds the port (ss -Hltnp); the address must also be one of the node's own.",
        (start.SERVER_SOCKET,),
        when_.not_running,
    ),
    Rule(
        _C.MODEL_INVALID,
        _CERTAIN,
        "Give it a whole GGUF file that this build knows: check path, size and digest.",
        (start.MODEL_INVALID,),
        when_.failed,
        overtaken=True,
    ),
    Rule(
        _C.ILLEGAL_INSTRUCTION,
        _CERTAIN,
        "The build uses instructions that this CPU lacks: build it for this platform.",
        when=when_.died_of(exits.ILL),
    ),
    Rule(
        _C.SIGPIPE,
        _CERTAIN,
        "It wrote to a peer that had gone: run it under systemd, which ignores SIGPIPE.",
        when=when_.died_of(exits.PIPE),
    ),
    Rule(
        _C.ASSERTION,
        _CERTAIN,
        "A check inside llama.cpp failed: look for the line in its issues, or try another release.",
        (ends.ASSERTION,),
        when_.check_failed,
    ),
    Rule(
        _C.GPU_DRIVER,
        _LIKELY,
        "Check that the GPU and its driver are there for this user, or start it without the GPU.",
        (gpu.GPU_ABSENT,),
        when_.failed,
        overtaken=True,
    ),
    Rule(
        _C.SEGFAULT,
        _CERTAIN,
        "A defect in llama.cpp or a broken machine: keep the log and a core dump, try another release.",
        when=when_.died_of(exits.SEGV, exits.BUS),
    ),
    Rule(
        _C.BACKEND_STALLED,
        _LIKELY,
        "Restart the backends and the coordinator; keep their stacks (gdb -p) if it comes again.",
        when=cluster.backends_idle,
        process=LLAMA_SERVER,
    ),
    Rule(
        _C.HUNG,
        _LIKELY,
        "Look at what the process waits for: its stack (gdb -p), its disk, its device.",
        when=when_.said(ends.HUNG, waiting=True),
    ),
    Rule(
        _C.HUNG,
        _POSSIBLE,
        "No cause can be seen: look at the log's last line, the backends' own state and the stack (gdb -p).",
        when=cluster.waits,
    ),
    Rule(_C.BUILD_MISMATCH, _CERTAIN, _ONE_BUILD, when=cluster.other_build),
    Rule(
        _C.MODEL_INVALID,
        _POSSIBLE,
        "The load failed, and the log does not say of what: see the file, and the lines before.",
        (start.MODEL_FAILED,),
        when_.failed,
        overtaken=True,
    ),
    Rule(
        _C.NOT_DISTRIBUTED,
        _LIKELY,
        "Start it with -ngl covering every layer, and with --device and --tensor-split naming every backend.",
        when=when_.log_is_not_distributed,
        process=LLAMA_SERVER,
    ),
    Rule(
        _C.ASSERTION,
        _POSSIBLE,
        "It aborted, and its log does not say why: see the lines before, and the journal.",
        when=when_.died_of(exits.ABORT),
    ),
    Rule(
        _C.STOPPED,
        _LIKELY,
        "Nothing to mend: it ended cleanly; somebody other than the harness asked it to.",
        (ends.STOPPING,),
        when_.exit_code_0,
        LLAMA_SERVER,
    ),
    Rule(
        _C.STOPPED,
        _LIKELY,
        "Neither the harness nor the kernel killed it: find who did (last, sudo's and the nodes' journals).",
        when=when_.killed_by_somebody,
    ),
    Rule(
        _C.STOPPED,
        _LIKELY,
        "Nothing to mend: it was told to stop, by systemd or by a person.",
        when=when_.died_of(exits.TERM, exits.INT),
    ),
    Rule(
        _C.STOPPED,
        _POSSIBLE,
        "It was told to stop; whether it did so in order, its exit status would say.",
        (ends.STOPPING,),
        when_.end_unknown,
        LLAMA_SERVER,
    ),
)
