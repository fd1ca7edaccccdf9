"""Prints docs/diagnoses.md from the rules, so that the page says what the code does.

Run ``python -m harness.diagnosis.table > docs/diagnoses.md`` after a change of the rules.
"""

from collections.abc import Iterator

from harness.contracts.diagnosis import FailureClass
from harness.diagnosis.logs.patterns import KINDS
from harness.diagnosis.rules import RULES, Rule

_C = FailureClass

ELSEWHERE: tuple[tuple[FailureClass, str, str], ...] = (
    (
        _C.NOT_DISTRIBUTED,
        "The coordinator is ready, but its log contradicts the plan: it is stopped, and the load fails.",
        "harness/router/coordinator/readiness.py",
    ),
    (
        _C.NOT_DISTRIBUTED,
        "A load that was started with fewer layers on purpose (`-ngl 0`): the trial says so all the same.",
        "harness/trials/kinds/load.py",
    ),
    (
        _C.SWAP_THRASH,
        "While requests ran, rpc-server had at least 128 MiB in swap, and its node took at least 100 major "
        "faults a second or stood still for memory a fifth of the time (likely).",
        "harness/diagnosis/thrash.py",
    ),
    (
        _C.HUNG,
        "A coordinator is not ready at the load's deadline (certain, but the cause is not known).",
        "harness/router/coordinator/readiness.py",
    ),
    (
        _C.HUNG,
        "A request has no end at its deadline, and no coordinator ended (possible).",
        "harness/trials/kinds/coordinator_steps.py",
    ),
    (
        _C.PORT_IN_USE,
        "Something listens on the coordinator's port before it is started (certain).",
        "harness/router/coordinator/launch.py",
    ),
    (
        _C.PORT_IN_USE,
        "What answers on the coordinator's port serves another model (certain).",
        "harness/router/coordinator/readiness.py",
    ),
    (
        _C.PORT_IN_USE,
        "What answers on the coordinator's port is not the process that was started (certain).",
        "harness/router/coordinator/readiness.py",
    ),
    (
        _C.BACKEND_STALLED,
        "A request has no byte for `suspect_s`, llama-server's main thread does not wake, and a canary gets "
        "no token: after `suspect_s` more where every backend's node is heard of and none of their "
        "rpc-servers used CPU time, or one is down (certain); after `stall_deadline_s` where nodes say "
        "nothing (likely).",
        "harness/router/coordinator/liveness.py",
    ),
    (
        _C.BACKEND_UNREACHABLE,
        "A backend of the plan serves a connection that the head node no longer has, by the node's samples "
        "and the head node's socket table (certain).",
        "harness/router/coordinator/readiness.py",
    ),
    (_C.BAD_ARGUMENTS, "llama-server cannot be executed (certain).", "harness/router/coordinator/launch.py"),
    (
        _C.UNKNOWN,
        "No rule holds; the advice says what is missing: exit status, log or journals.",
        "harness/diagnosis/classify.py",
    ),
    (
        _C.STOPPED,
        "A load was called off, by an unload or because the router stops; our signal is the evidence.",
        "harness/router/coordinator/readiness.py",
    ),
)
"""Classes that other code decides too: when, and in which file."""

_INTRODUCTION = """\
# Diagnoses

Made from `harness/diagnosis/rules.py` by `python -m harness.diagnosis.table`; edit the rules, not this page.

A diagnosis has a class, the evidence that decides it (`server.log:194`, `exit status`, `signals`,
`journal node1`, `samples node3`), a confidence and an advice. It stands in the report under "Failures and
ends", in the answer of a load that failed, and in `GET /admin/coordinator`. `expected:` in a profile takes a
class.

    harness diagnose latest                                a run's trials, from what the run stored
    harness diagnose llama-rpc-server                      a unit on every node of the inventory, over SSH
    harness diagnose node1:llama-router --json             on one node, for scripts
    harness diagnose server.log --exit-status 139          any log, and how its process ended
    harness diagnose server.log --journal node.journal     beside its machine's journal or kernel log

A list (a run, a unit of all nodes) comes as a JSON array, anything else as one object; the fields are
`class`, `evidence` (each with `source` and `line`), `confidence`, `ruled_out` and `advice`. A log of 200 MB
takes a few seconds (`benchmarks/diagnose.py`).

| Confidence | Meaning |
|---|---|
| certain | the evidence decides it |
| likely | it is what such evidence usually means |
| possible | nothing better is known |

Nothing is certain while nobody says how the process ended: an exit status, its unit, a line of a shell, of
systemd or of the kernel. `harness diagnose LOGFILE` takes one with `--exit-status`.

## Rules

They are tried from the top, and the first that holds decides: causes stand before their effects. Classes
that hold further down are listed as ruled out, each with its line. So a process that was told to stop is not
a crash, whatever it printed on its way out. Where a rule asks for a line, one of that kind has to be in the
process's own log; what such lines look like stands under [Lines](#lines). "Before it serves" means that a
line no longer counts once llama-server became ready, or went on serving, after it: an allocation that was
tried again, a device that it did without.

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

_LINES = """
## Lines

Regular expressions, made from llama.cpp's sources (builds 6666 to 11434) and from its public issue threads;
a line's time and level, as newer builds print them, do not matter. Text that a log quotes (prompts, answers,
templates) and lines that llama-server itself marks as news do not count as trouble.
"""


def markdown() -> str:
    """The whole page."""
    rules = "".join(f"{row}\n" for row in _rows())
    elsewhere = "".join(f"| `{failure}` | {when} | `{where}` |\n" for failure, when, where in ELSEWHERE)
    return _INTRODUCTION + rules + _ELSEWHERE + elsewhere + _LINES + "".join(_kinds())


def what_decides(rule: Rule) -> str:
    """A rule's condition and the lines it asks for, in words."""
    condition = " ".join((rule.when.__doc__ or "").split())
    lines = " or ".join(f'"{kind.name}"' for kind in rule.lines)
    if not lines:
        return condition
    asked = f"has {lines}{', before it serves' if rule.overtaken else ''}"
    return f"{condition}; its log {asked}" if condition else f"Its log {asked}"


def _rows() -> Iterator[str]:
    for number, rule in enumerate(RULES, 1):
        yield (
            f"| {number} | `{rule.failure_class}` | {what_decides(rule)} | {rule.process or 'both'} "
            f"| {rule.confidence} | {rule.advice} |"
        )


def _kinds() -> Iterator[str]:
    for kind in KINDS:
        patterns = "".join(f"- `{pattern.pattern}`\n" for pattern in kind.patterns)
        but = f"- but not `{kind.unless.pattern}`\n" if kind.unless else ""
        yield f"\n### {kind.name.capitalize()}\n\nSays that {kind.meaning}.\n\n{patterns}{but}"


if __name__ == "__main__":
    print(markdown(), end="")
