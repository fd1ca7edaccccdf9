"""Prints docs/diagnoses.md from the rules, so that the page says what the code does.

Run ``python -m harness.diagnosis.table > docs/diagnoses.md`` after a change of the rules.
"""

from collections.abc import Iterator

from harness.diagnosis.evidence import LLAMA_SERVER, RPC_SERVER
from harness.diagnosis.model import FailureClass
from harness.diagnosis.rules import RULES, Rule

_C = FailureClass

ELSEWHERE: tuple[tuple[FailureClass, str, str], ...] = (
    (
        _C.NOT_DISTRIBUTED,
        "The coordinator is ready, but its log contradicts the plan: it is stopped, and the load fails.",
        "harness/router/loading.py",
    ),
    (
        _C.NOT_DISTRIBUTED,
        "A load that was started with fewer layers on purpose (`-ngl 0`): the trial says so all the same.",
        "harness/trials/load.py",
    ),
    (
        _C.SWAP_THRASH,
        "While requests ran, rpc-server had at least 128 MiB in swap, and its node took at least 100 major "
        "faults a second (likely).",
        "harness/diagnosis/thrash.py",
    ),
    (
        _C.HUNG,
        "A coordinator is not ready at the load's deadline (certain, but the cause is not known).",
        "harness/router/loading.py",
    ),
    (
        _C.HUNG,
        "A request has no end at its deadline, and no coordinator ended (possible).",
        "harness/trials/coordinator.py",
    ),
    (
        _C.PORT_IN_USE,
        "Something listens on the coordinator's port before it is started (certain).",
        "harness/router/launch.py",
    ),
    (
        _C.PORT_IN_USE,
        "What answers on the coordinator's port serves another model (certain).",
        "harness/router/loading.py",
    ),
    (
        _C.PORT_IN_USE,
        "What answers on the coordinator's port is not the process that was started (certain).",
        "harness/router/loading.py",
    ),
    (
        _C.BACKEND_STALLED,
        "A request has no byte for `suspect_s`, llama-server's main thread does not wake, and a canary gets "
        "no token: after `suspect_s` more where every backend's node is heard of and none of their "
        "rpc-servers used CPU time, or one is down (certain); after `stall_deadline_s` where nodes say "
        "nothing (likely).",
        "harness/router/progress.py",
    ),
    (_C.BAD_ARGUMENTS, "llama-server cannot be executed (certain).", "harness/router/launch.py"),
    (
        _C.STOPPED,
        "A load was called off, by an unload or because the router stops; our signal is the evidence.",
        "harness/router/loading.py",
    ),
)
"""Classes that other code decides too: when, and in which file."""

UNDECIDED: dict[FailureClass, str] = {
    _C.BUILD_MISMATCH: "`site.yml` proves one build on every node, and the report compares hashes under "
    '"The cluster". No diagnosis names it.',
    _C.GPU_DRIVER: "An rpc-server that dies of its driver shows as `backend_lost`; read its node's journal.",
    _C.DISK_FULL: "The roles refuse a disk without space beforehand. A disk that fills later shows as "
    "whatever it breaks.",
    _C.NETWORK_PARTITION: "Shows as `backend_lost` where the connection breaks, as `hung` where it does not.",
}
"""Classes that have a name and nothing yet that decides them: what is seen instead."""

_INTRODUCTION = """\
# Diagnoses

Made from `harness/diagnosis/rules.py` by `python -m harness.diagnosis.table`; edit the rules, not this page.

A diagnosis has a class, the evidence that decides it (`server.log:194`, `exit status`, `signals`,
`journal node1`, `samples node3`), a confidence and an advice. It stands in the report under "Failures and
ends", in the answer of a load that failed, and in `GET /admin/coordinator`. `expected:` in a profile takes a
class.

| Confidence | Meaning |
|---|---|
| certain | the evidence decides it |
| likely | it is what such evidence usually means |
| possible | nothing better is known |

## Rules

They are tried from the top, and the first that holds decides: causes stand before their effects. Classes
that hold further down are listed as ruled out, each with its line. So a process that was told to stop is not
a crash, whatever it printed on its way out. Log lines are regular expressions; one of them has to be in the
process's own log.

| | Class | What decides it | Process | Confidence | What to do |
|---|---|---|---|---|---|
"""

_ELSEWHERE = """
Where no rule holds, the class is `unknown`, and the advice says what was missing: exit status, log or
journals. With a backend that is lost or unreachable come the OOM kills, restarts and journal lines of the
backends' nodes.

## Decided outside the table

| Class | When | Where |
|---|---|---|
"""

_UNDECIDED = """
## Not decided yet

These classes have a name, but nothing decides them, so no report shows them.

| Class | What you see instead |
|---|---|
"""


def markdown() -> str:
    """The whole page."""
    rules = "".join(f"{row}\n" for row in _rows())
    elsewhere = "".join(f"| `{failure}` | {when} | `{where}` |\n" for failure, when, where in ELSEWHERE)
    undecided = "".join(f"| `{failure}` | {instead} |\n" for failure, instead in UNDECIDED.items())
    return _INTRODUCTION + rules + _ELSEWHERE + elsewhere + _UNDECIDED + undecided


def what_decides(rule: Rule) -> str:
    """A rule's condition and log lines, in words."""
    condition = " ".join((rule.when.__doc__ or "").split())
    lines = " or ".join(f"`{_in_a_cell(pattern.pattern)}`" for pattern in rule.patterns)
    if not lines:
        return condition
    return f"{condition}; its log has {lines}" if condition else f"Its log has {lines}"


def _in_a_cell(text: str) -> str:
    return text.strip().replace("|", "\\|")


def _rows() -> Iterator[str]:
    for number, rule in enumerate(RULES, 1):
        process = "both" if set(rule.processes) == {LLAMA_SERVER, RPC_SERVER} else ", ".join(rule.processes)
        yield (
            f"| {number} | `{rule.failure_class}` | {what_decides(rule)} | {process} "
            f"| {rule.confidence} | {rule.advice} |"
        )


if __name__ == "__main__":
    print(markdown(), end="")
