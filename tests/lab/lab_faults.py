"""Faults that only tests cause: a model cut short, a backend without systemd, another RPC protocol."""

from dataclasses import dataclass
from pathlib import PurePosixPath

from harness.cluster.ssh import run_on
from harness.contracts.diagnosis import ExitStatus, FailureClass
from harness.lab.spec import LabSpec
from harness.monitor.backend_state import RPC_UNIT
from harness.settings import NODE_LLAMA_CPP
from harness.trials.faults.fault import Fault, ensure_serving, run_as_root
from harness.trials.faults.processes import OtherBuild

HAND_FOLDER = "/run/llama-fault-by-hand"

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
class TruncatedModel(Fault):
    """A copy of a model's first bytes, beside it, under a name of its own."""

    kind = "truncated-model"
    expected = FailureClass.MODEL_INVALID

    path: str
    """The whole model on the head node."""
    kept_bytes: int
    lab: LabSpec | None = None

    @property
    def model(self) -> str:
        """The name by which the router knows the copy."""
        return PurePosixPath(self.path).stem + "-truncated"

    async def inject(self) -> str:
        source, target = PurePosixPath(self.path), PurePosixPath(self.path).with_stem(self.model)
        if self.lab is not None:
            # One folder, read-only on the machines, serves them all.
            whole = self.lab.models / source.name
            with whole.open("rb") as file:
                self.lab.models.joinpath(target.name).write_bytes(file.read(self.kept_bytes))
        else:
            cut = 'head -c "$1" "$2" >"$3"'
            await run_as_root(
                self.node, "sh", "-c", cut, "sh", str(self.kept_bytes), str(source), str(target)
            )
        return f"{target.name} holds the first {self.kept_bytes} bytes of {source.name}"

    async def undo(self) -> None:
        target = PurePosixPath(self.path).with_stem(self.model)
        if self.lab is not None:
            self.lab.models.joinpath(target.name).unlink(missing_ok=True)
        else:
            await run_as_root(self.node, "rm", "-f", str(target))


@dataclass
class BackendByHand(Fault):
    """rpc-server started over SSH in the background, as the founding report did: SIGPIPE ends it."""

    kind = "backend-by-hand"
    expected = FailureClass.SIGPIPE

    async def inject(self) -> str:
        await run_as_root(self.node, "systemctl", "stop", RPC_UNIT)
        program = str(NODE_LLAMA_CPP / "current" / "bin" / "rpc-server")
        address, _, port = self.node.rpc_endpoint.rpartition(":")
        words = ("sh", "-s", "--", HAND_FOLDER, program, address, port)
        await run_as_root(self.node, *words, stdin=_BY_HAND)
        return f"{program} started over SSH in the background, its unit stopped"

    async def undo(self) -> None:
        await run_as_root(self.node, "sh", "-s", "--", HAND_FOLDER, stdin=_END_BY_HAND)
        await ensure_serving(self.node)

    async def end(self) -> tuple[ExitStatus | None, list[str]]:
        """How it ended, if it did, as its shell saw it; and what it printed."""
        shown = await run_on(self.node, "cat", f"{HAND_FOLDER}/exit", root=True)
        log = (await run_as_root(self.node, "cat", f"{HAND_FOLDER}/log")).splitlines()
        words = shown.stdout.split()
        if shown.returncode != 0 or len(words) != 2:
            return None, log
        status = int(words[0])
        if status > 128:
            return ExitStatus(time_ns=int(words[1]), signal=status - 128), log
        return ExitStatus(time_ns=int(words[1]), code=status), log


@dataclass
class OtherProtocol(OtherBuild):
    """The node runs a build that speaks another RPC protocol."""

    kind = "other-protocol"
    expected = FailureClass.RPC_VERSION_MISMATCH
