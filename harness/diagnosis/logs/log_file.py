"""A diagnosis of a log alone: whose log it is, and what it should show, is read in it."""

from collections.abc import Mapping

from harness.contracts.diagnosis import Diagnosis, ExitStatus
from harness.diagnosis.classify import classify_facts
from harness.diagnosis.evidence import LLAMA_SERVER, RPC_SERVER, Inputs
from harness.diagnosis.facts import Facts
from harness.diagnosis.logs.patterns import rpc
from harness.diagnosis.logs.scanner import Log, Seen, scan
from harness.llama.load_log import parse_load_log


def diagnose_log(
    logs: Mapping[str, Log], ended: ExitStatus | None = None, journal: Mapping[str, Log] | None = None
) -> Diagnosis:
    """The best class that a log supports.

    Args:
        logs: the process's own logs by name: paths, or lines in order.
        ended: how it ended, where somebody knows.
        journal: journals and kernel logs of its node, by name.
    """
    own = scan(logs)
    around = {name: scan({name: log}) for name, log in (journal or {}).items()}
    inputs = Inputs(
        process=whose(own),
        exit=ended,
        logs=logs,
        journal=dict.fromkeys(around, ()),
        report=parse_load_log(own.load_lines),
        expect_distributed=own.find(rpc.USES_RPC) is not None,
    )
    return classify_facts(Facts(inputs, own, around))


def whose(own: Seen) -> str:
    """The process that wrote a log: rpc-server where it says what only rpc-server says."""
    served, used = own.find(rpc.BACKEND_SIDE), own.find(rpc.USES_RPC)
    return RPC_SERVER if served and not used else LLAMA_SERVER
