"""Processes killed and frozen, and backends that cannot start or start as another build."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.cluster.ssh import run_on
from harness.contracts.diagnosis import FailureClass, Signal
from harness.errors import HarnessError
from harness.monitor.backend_state import RPC_UNIT
from harness.settings import NODE_LLAMA_CPP
from harness.trials.faults.fault import Fault, ensure_serving, main_pid, run_as_root

_KILL_IF = 'test "$(cat /proc/$1/comm)" = "$2" && kill -KILL $1'


@dataclass
class KillBackend(Fault):
    """kill -9 of the node's rpc-server; systemd starts it again."""

    kind = "kill-backend"
    expected = FailureClass.BACKEND_LOST

    async def inject(self) -> str:
        pid = await main_pid(self.node)
        await run_as_root(self.node, "kill", "-KILL", str(pid))
        return f"kill -9 of rpc-server, pid {pid}"

    async def undo(self) -> None:
        await ensure_serving(self.node)


@dataclass
class FreezeBackend(Fault):
    """SIGSTOP of the node's rpc-server: its socket stays open, and nothing is answered."""

    kind = "freeze-backend"
    expected = FailureClass.BACKEND_STALLED

    frozen: int | None = field(default=None, init=False)

    async def inject(self) -> str:
        self.frozen = pid = await main_pid(self.node)
        await run_as_root(self.node, "kill", "-STOP", str(pid))
        return f"SIGSTOP of rpc-server, pid {pid}"

    async def undo(self) -> None:
        if self.frozen is not None:
            # It may have ended meanwhile, and systemd has started another.
            await run_on(self.node, "kill", "-CONT", str(self.frozen), root=True)
        await ensure_serving(self.node)


@dataclass
class KillCoordinator(Fault):
    """kill -9 of the coordinator, on the head node; the router does not know."""

    kind = "kill-coordinator"
    expected = FailureClass.STOPPED_BUSY

    pid: int
    """As the router's state gives it."""
    requests_in_flight: int = 0

    async def inject(self) -> str:
        sent_ns = time.time_ns()
        await run_as_root(self.node, "sh", "-c", _KILL_IF, "sh", str(self.pid), "llama-server")
        kill = Signal(
            name="SIGKILL",
            time_ns=sent_ns,
            reason="a fault was injected",
            requests_in_flight=self.requests_in_flight,
        )
        self.signals = (kill,)
        return f"kill -9 of llama-server, pid {self.pid}, {self.requests_in_flight} request(s) in flight"

    async def undo(self) -> None:
        """The router starts the next one when it is asked to."""


HOLDER_UNIT = "llama-fault-port.service"
DROP_IN = f"/run/systemd/system/{RPC_UNIT}.d/llama-fault.conf"

_HOLD = (
    "import signal, socket, sys; s = socket.create_server((sys.argv[1], int(sys.argv[2]))); signal.pause()"
)
_UNTIL_HELD = 'for _ in $(seq 50); do ss -Hltn "sport = :$1" | grep -q . && exit 0; sleep 0.1; done; exit 1'
_WRITE_DROP_IN = 'mkdir -p "$(dirname "$1")" && cat >"$1" && systemctl daemon-reload'
_REMOVE_DROP_IN = (
    'rm -f "$1" && rmdir --ignore-fail-on-non-empty "$(dirname "$1")" 2>/dev/null; systemctl daemon-reload'
)


@dataclass
class ClosedPort(Fault):
    """No rpc-server where one is expected."""

    kind = "closed-port"
    expected = FailureClass.BACKEND_UNREACHABLE

    async def inject(self) -> str:
        await run_as_root(self.node, "systemctl", "stop", RPC_UNIT)
        return f"{RPC_UNIT} stopped"

    async def undo(self) -> None:
        await ensure_serving(self.node)


@dataclass
class TakenPort(Fault):
    """Another process listens where rpc-server wants to; rpc-server is started all the same."""

    kind = "taken-port"
    expected = FailureClass.PORT_IN_USE

    async def inject(self) -> str:
        address, _, port = self.node.rpc_endpoint.rpartition(":")
        await run_as_root(self.node, "systemctl", "stop", RPC_UNIT)
        holder = ("systemd-run", "--quiet", "--collect", f"--unit={HOLDER_UNIT}")
        await run_as_root(self.node, *holder, "python3", "-c", _HOLD, address, port)
        await run_as_root(self.node, "sh", "-c", _UNTIL_HELD, "sh", port)
        await run_as_root(self.node, "systemctl", "start", "--no-block", RPC_UNIT)
        return f"python3 listens on {address}:{port}, and {RPC_UNIT} is started"

    async def undo(self) -> None:
        await run_on(self.node, "systemctl", "stop", HOLDER_UNIT, root=True)
        await ensure_serving(self.node)


@dataclass
class WrongFlag(Fault):
    """rpc-server started with a flag that it does not know."""

    kind = "wrong-flag"
    expected = FailureClass.BAD_ARGUMENTS

    flag: str = "--no-such-flag"

    async def inject(self) -> str:
        pid = await main_pid(self.node)
        argv = (await run_as_root(self.node, "cat", f"/proc/{pid}/cmdline")).rstrip("\0").split("\0")
        text = f"[Service]\nExecStart=\nExecStart={exec_start([*argv, self.flag])}\n"
        await run_as_root(self.node, "sh", "-c", _WRITE_DROP_IN, "sh", DROP_IN, stdin=text)
        await run_as_root(self.node, "systemctl", "restart", "--no-block", RPC_UNIT)
        return f"{RPC_UNIT} restarted with {self.flag}"

    async def undo(self) -> None:
        await run_as_root(self.node, "sh", "-c", _REMOVE_DROP_IN, "sh", DROP_IN)
        await run_as_root(self.node, "systemctl", "stop", RPC_UNIT)
        await ensure_serving(self.node)


@dataclass
class OtherBuild(Fault):
    """The node runs another installed build of llama.cpp than the rest.

    Deploy it beside the pinned one with the role ``llama_cpp`` and ``llama_cpp_activate: false``.
    """

    kind = "other-build"
    expected = FailureClass.BUILD_MISMATCH

    build: int
    before: str | None = field(default=None, init=False)

    async def inject(self) -> str:
        link = str(NODE_LLAMA_CPP / "current")
        before = (await run_as_root(self.node, "readlink", link)).strip()
        listing = await run_as_root(
            self.node,
            *("find", str(NODE_LLAMA_CPP), "-maxdepth", "1", "-name", f"{self.build}-*", "-printf", "%f\\n"),
        )
        folders = sorted(listing.split())
        if not folders:
            raise HarnessError(
                f"{self.node.name}: llama.cpp {self.build} is not installed there; deploy it beside the "
                "pinned build with llama_cpp_activate=false"
            )
        self.before = before
        await self._switch(folders[0])
        return f"rpc-server of {folders[0]} instead of {before}"

    async def undo(self) -> None:
        if self.before is not None:
            await self._switch(self.before)

    async def _switch(self, folder: str) -> None:
        link = str(NODE_LLAMA_CPP / "current")
        await run_as_root(self.node, "ln", "-sfn", folder, link)
        await run_as_root(self.node, "systemctl", "restart", RPC_UNIT)
        await ensure_serving(self.node)


def exec_start(words: Sequence[str]) -> str:
    """A command line for ``ExecStart=``, each word kept as it is (systemd.service(5), command lines)."""
    escapes = str.maketrans({"\\": "\\\\", '"': '\\"', "%": "%%", "$": "$$"})
    return " ".join(f'"{word.translate(escapes)}"' for word in words)
