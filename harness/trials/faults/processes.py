"""Processes killed and frozen, and a backend started without systemd."""

import time
from dataclasses import dataclass, field

from harness.cluster.ssh import run_on
from harness.contracts.diagnosis import ExitStatus, FailureClass, Signal
from harness.monitor.backend_state import RPC_UNIT
from harness.settings import NODE_LLAMA_CPP
from harness.trials.faults.fault import Fault, main_pid, on, serve_again

HAND_FOLDER = "/run/llama-fault-by-hand"

_KILL_IF = 'test "$(cat /proc/$1/comm)" = "$2" && kill -KILL $1'

_BY_HAND = r"""
folder=$1 program=$2 address=$3 port=$4
mkdir -p "$folder"
cd "$folder"
start='setpriv --reuid=llama-rpc --regid=llama-rpc --clear-groups "$2" --host "$3" --port "$4" >"$1/log" 2>&1
echo $? "$(date +%s%N)" >"$1/exit"'
setsid sh -c "$start" sh "$folder" "$program" "$address" "$port" </dev/null >/dev/null 2>&1 &
echo $! >"$folder/session"
for _ in $(seq 50); do ss -Hltn "sport = :$port" | grep -q . && exit 0; sleep 0.1; done
cat "$folder/log" >&2
exit 1
"""

_END_BY_HAND = r"""
[ -e "$1/session" ] || exit 0
/bin/kill -KILL -- "-$(cat "$1/session")" 2>/dev/null
rm -r "$1"
"""


@dataclass
class KillBackend(Fault):
    """kill -9 of the node's rpc-server; systemd starts it again."""

    kind = "kill-backend"
    expected = FailureClass.BACKEND_LOST

    sent_ns: int | None = field(default=None, init=False)

    async def inject(self) -> str:
        pid = await main_pid(self.node)
        self.sent_ns = time.time_ns()
        await on(self.node, "kill", "-KILL", str(pid))
        return f"kill -9 of rpc-server, pid {pid}"

    async def undo(self) -> None:
        await serve_again(self.node)

    def signals(self) -> tuple[Signal, ...]:
        return _killed(self.sent_ns, 1)


@dataclass
class FreezeBackend(Fault):
    """SIGSTOP of the node's rpc-server: its socket stays open, and nothing is answered."""

    kind = "freeze-backend"
    expected = FailureClass.BACKEND_STALLED

    frozen: int | None = field(default=None, init=False)

    async def inject(self) -> str:
        self.frozen = pid = await main_pid(self.node)
        await on(self.node, "kill", "-STOP", str(pid))
        return f"SIGSTOP of rpc-server, pid {pid}"

    async def undo(self) -> None:
        if self.frozen is not None:
            # It may have ended meanwhile, and systemd has started another.
            await run_on(self.node, "kill", "-CONT", str(self.frozen), root=True)
        await serve_again(self.node)


@dataclass
class KillCoordinator(Fault):
    """kill -9 of the coordinator, on the head node; the router is not told."""

    kind = "kill-coordinator"
    expected = FailureClass.STOPPED_BUSY

    pid: int
    """As the router's state gives it."""
    requests_in_flight: int = 0
    sent_ns: int | None = field(default=None, init=False)

    async def inject(self) -> str:
        sent_ns = time.time_ns()
        await on(self.node, "sh", "-c", _KILL_IF, "sh", str(self.pid), "llama-server")
        self.sent_ns = sent_ns
        return f"kill -9 of llama-server, pid {self.pid}, {self.requests_in_flight} request(s) in flight"

    async def undo(self) -> None:
        """The router starts the next one when it is asked to."""

    def signals(self) -> tuple[Signal, ...]:
        return _killed(self.sent_ns, self.requests_in_flight)


@dataclass
class BackendByHand(Fault):
    """rpc-server started over SSH in the background, as the founding report did: SIGPIPE ends it."""

    kind = "backend-by-hand"
    expected = FailureClass.SIGPIPE

    async def inject(self) -> str:
        await on(self.node, "systemctl", "stop", RPC_UNIT)
        program = str(NODE_LLAMA_CPP / "current" / "bin" / "rpc-server")
        address, _, port = self.node.rpc_endpoint.rpartition(":")
        words = ("sh", "-s", "--", HAND_FOLDER, program, address, port)
        await on(self.node, *words, stdin=_BY_HAND)
        return f"{program} started over SSH in the background, its unit stopped"

    async def undo(self) -> None:
        await on(self.node, "sh", "-s", "--", HAND_FOLDER, stdin=_END_BY_HAND)
        await serve_again(self.node)

    async def end(self) -> tuple[ExitStatus | None, list[str]]:
        """How it ended, if it did, as its shell saw it; and what it printed."""
        shown = await run_on(self.node, "cat", f"{HAND_FOLDER}/exit", root=True)
        log = (await on(self.node, "cat", f"{HAND_FOLDER}/log")).splitlines()
        words = shown.stdout.split()
        if shown.code != 0 or len(words) != 2:
            return None, log
        status = int(words[0])
        if status > 128:
            return ExitStatus(time_ns=int(words[1]), signal=status - 128), log
        return ExitStatus(time_ns=int(words[1]), code=status), log


def _killed(sent_ns: int | None, requests_in_flight: int) -> tuple[Signal, ...]:
    if sent_ns is None:
        return ()
    reason = "a fault was injected"
    return (Signal(name="SIGKILL", time_ns=sent_ns, reason=reason, requests_in_flight=requests_in_flight),)
