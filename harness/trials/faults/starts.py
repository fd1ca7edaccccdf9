"""Backends that cannot start, or start as something else: port, flag, nothing at all, another build."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.cluster.ssh import run_on
from harness.contracts.diagnosis import FailureClass
from harness.errors import HarnessError
from harness.monitor.backend_state import RPC_UNIT
from harness.settings import NODE_LLAMA_CPP
from harness.trials.faults.fault import Fault, main_pid, on, serve_again

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
        await on(self.node, "systemctl", "stop", RPC_UNIT)
        return f"{RPC_UNIT} stopped"

    async def undo(self) -> None:
        await serve_again(self.node)


@dataclass
class TakenPort(Fault):
    """Another process listens where rpc-server wants to; rpc-server is started all the same."""

    kind = "taken-port"
    expected = FailureClass.PORT_IN_USE

    async def inject(self) -> str:
        address, _, port = self.node.rpc_endpoint.rpartition(":")
        await on(self.node, "systemctl", "stop", RPC_UNIT)
        holder = ("systemd-run", "--quiet", "--collect", f"--unit={HOLDER_UNIT}")
        await on(self.node, *holder, "python3", "-c", _HOLD, address, port)
        await on(self.node, "sh", "-c", _UNTIL_HELD, "sh", port)
        await on(self.node, "systemctl", "start", "--no-block", RPC_UNIT)
        return f"python3 listens on {address}:{port}, and {RPC_UNIT} is started"

    async def undo(self) -> None:
        await run_on(self.node, "systemctl", "stop", HOLDER_UNIT, root=True)
        await serve_again(self.node)


@dataclass
class WrongFlag(Fault):
    """rpc-server started with a flag that it does not know."""

    kind = "wrong-flag"
    expected = FailureClass.BAD_ARGUMENTS

    flag: str = "--no-such-flag"

    async def inject(self) -> str:
        pid = await main_pid(self.node)
        argv = (await on(self.node, "cat", f"/proc/{pid}/cmdline")).rstrip("\0").split("\0")
        text = f"[Service]\nExecStart=\nExecStart={exec_start([*argv, self.flag])}\n"
        await on(self.node, "sh", "-c", _WRITE_DROP_IN, "sh", DROP_IN, stdin=text)
        await on(self.node, "systemctl", "restart", "--no-block", RPC_UNIT)
        return f"{RPC_UNIT} restarted with {self.flag}"

    async def undo(self) -> None:
        await on(self.node, "sh", "-c", _REMOVE_DROP_IN, "sh", DROP_IN)
        await on(self.node, "systemctl", "stop", RPC_UNIT)
        await serve_again(self.node)


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
        before = (await on(self.node, "readlink", link)).strip()
        found = await on(
            self.node,
            *("find", str(NODE_LLAMA_CPP), "-maxdepth", "1", "-name", f"{self.build}-*", "-printf", "%f\\n"),
        )
        folders = sorted(found.split())
        if not folders:
            raise HarnessError(
                f"{self.node.name}: llama.cpp {self.build} is not installed there; deploy it beside the "
                "pinned build with llama_cpp_activate=false"
            )
        self.before = before
        await self._run(folders[0])
        return f"rpc-server of {folders[0]} instead of {before}"

    async def undo(self) -> None:
        if self.before is not None:
            await self._run(self.before)

    async def _run(self, folder: str) -> None:
        link = str(NODE_LLAMA_CPP / "current")
        await on(self.node, "ln", "-sfn", folder, link)
        await on(self.node, "systemctl", "restart", RPC_UNIT)
        await serve_again(self.node)


@dataclass
class OtherProtocol(OtherBuild):
    """The node runs a build that speaks another RPC protocol."""

    kind = "other-protocol"
    expected = FailureClass.RPC_VERSION_MISMATCH


def exec_start(words: Sequence[str]) -> str:
    """A command line for ``ExecStart=``, each word kept as it is (systemd.service(5), command lines)."""
    return " ".join(f'"{_escaped(word)}"' for word in words)


def _escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
