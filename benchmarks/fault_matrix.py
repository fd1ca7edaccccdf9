"""The fault matrix: each fault once, and whether the service survived it or ended with the right name.

    benchmarks/fault_matrix.py --inventory tests/lab/inventory --json matrix.json
    benchmarks/fault_matrix.py --inventory tests/lab/inventory --json matrix.json --only redis-gone

It breaks what it is pointed at: use a lab (``harness lab up``, ``harness deploy``), or a cluster that nobody
uses. The large model and the pool's model must be on the head node. Each row begins with a restarted router,
so that no row sees the failures of another. In most rows one client is in the middle of a streamed answer;
where a fault concerns a load, nothing is loaded. Then the fault is caused, and short requests are sent until
one is answered or ``--within`` is over, while the fault lasts. Then it is undone, and the row ends when a
request is answered again: a cluster that does not recover ends the script. ``--json`` is written after each
row; with ``--only`` the other rows of that file stay, so that a row can be repeated.

Columns: the fault; what was done; what a client saw, in most rows one in the middle of an answer; the result.
A row is good if it survived by itself, or if the router named a right class. ``without a break``: the
client's answer went on, and the next request was answered. Else the seconds from the fault to the first
answer are shown. Behind each class stands ``right`` or ``wrong``. Exit status 1 if a row is neither.

The clock of a lab's machine is this computer's, so it is not changed: the router's own Python is told another
time (``CLOCK``).
"""

import argparse
import asyncio
import contextlib
import json
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import aiohttp
from harness.cluster.inventory import Inventory, Node, load_inventory
from harness.contracts.coordinator_state import CoordinatorState
from harness.contracts.diagnosis import FailureClass
from harness.contracts.run_records import Request
from harness.errors import HarnessError
from harness.lab.spec import LabSpec
from harness.monitor.backend_state import RPC_UNIT
from harness.router_client.chat_stream import ChatRequest, chat_session
from harness.router_client.client import RouterClient, router_address
from harness.settings import NODE_VENV
from harness.trials.faults.fault import Fault, ensure_serving, injected, run_as_root
from harness.trials.faults.leftovers import undo_leftovers
from harness.trials.faults.links import CutLink
from harness.trials.faults.processes import ClosedPort, FreezeBackend, KillBackend, KillCoordinator
from harness.trials.faults.resources import SmallCacheDisk, SqueezeMemory
from harness.trials.lab import lab_of

ROUTER_UNIT, REDIS_UNIT, MONITOR_UNIT = (
    "llama-router.service",
    "llama-redis.service",
    "llama-node-monitor.service",
)
STREAM_TOKENS = 1500
WATCH_S = 10.0
"""How long the client in the middle of an answer is watched before short requests are sent."""
STILL_S = 5.0
"""A stream without a token for so long does not go on."""
AGAIN_S = 1.0
RECOVERS_S = 300.0


@dataclass
class Outcome:
    """One row of the matrix."""

    row: str
    did: str
    client: str
    answered_s: float | None
    """From the fault to the first answer while it lasted, seconds; 0 where the answer of the client in the
    middle of one went on, None where nothing was answered."""
    classes: list[str]
    """Failure classes that the router named, in the order in which they came, each once."""
    right: list[str]
    """The classes that would be right."""

    @property
    def good(self) -> bool:
        """Survived by itself, or ended with a right name."""
        return self.answered_s is not None or bool(set(self.classes) & set(self.right))

    @property
    def result(self) -> str:
        """The result in words."""
        named = ", ".join(f"{name} ({'right' if name in self.right else 'wrong'})" for name in self.classes)
        if self.answered_s is not None:
            when = f"answered after {self.answered_s:.1f} s" if self.answered_s else "without a break"
            return f"survived, {when}" + (f"; {named}" if named else "")
        return f"ended: {named or 'nothing was named'}"


def table(outcomes: Sequence[Outcome]) -> str:
    """The matrix in Markdown."""
    lines = ["| Fault | What was done | What a client saw | Result | Good |", "|---|---|---|---|---|"]
    for one in outcomes:
        cells = (one.row, one.did, one.client, one.result, "yes" if one.good else "NO")
        lines.append("| " + " | ".join(" ".join(cell.replace("|", "/").split()) for cell in cells) + " |")
    return "\n".join(lines)


def saw(request: Request | None, tokens_after: int) -> str:
    """What a client saw of its streamed answer.

    Args:
        request: None while it has not ended.
        tokens_after: tokens that came after the fault.
    """
    if request is None:
        return f"a stream without an end ({tokens_after} tokens after the fault)"
    if request.error is None:
        return "its whole answer"
    status = "" if request.status in (200, None) else f"{request.status}: "
    return f"{status}{request.error[:160]}"


# Faults that the trials do not have.


@dataclass
class Script(Fault):
    """Shell commands as the superuser: ``do`` causes a fault, ``back`` puts it right."""

    kind = "script"
    expected = FailureClass.UNKNOWN

    what: str
    do: str
    back: str = ""
    stdin: str = ""
    """Of ``do``."""

    async def inject(self) -> str:
        await run_as_root(self.node, "sh", "-ec", self.do, stdin=self.stdin)
        return self.what

    async def undo(self) -> None:
        await run_as_root(self.node, "sh", "-c", self.back)


_KILL = "systemctl kill --kill-whom=main --signal"

LOGS = "/var/log/llama-harness/coordinator"
_FILL = f"""
systemctl stop {ROUTER_UNIT}
mount -t tmpfs -o "size=1m,mode=750,uid=$(id -u llama-router),gid=$(id -g llama-router)" llama-fault {LOGS}
dd if=/dev/zero of={LOGS}/filled bs=4096 status=none 2>/dev/null || true
systemctl start {ROUTER_UNIT}
"""
_EMPTY = f"""
systemctl stop {ROUTER_UNIT}
while mountpoint -q {LOGS}; do umount {LOGS} || exit 1; done
systemctl start {ROUTER_UNIT}
"""

CLOCK = """
import os, time
_time, _time_ns = time.time, time.time_ns
def _behind():
    return 3600 if os.path.exists("/run/llama-fault/set-back") else 0
time.time = lambda: _time() - _behind()
time.time_ns = lambda: _time_ns() - _behind() * 10**9
"""
_DROP_IN = f"/run/systemd/system/{ROUTER_UNIT}.d"
_INSTALL_CLOCK = f"""
mkdir -p /run/llama-fault {_DROP_IN}
cat >/run/llama-fault/sitecustomize.py
printf '[Service]\nEnvironment=PYTHONPATH=/run/llama-fault\n' >{_DROP_IN}/llama-fault.conf
systemctl daemon-reload
systemctl restart {ROUTER_UNIT}
"""
_REMOVE_CLOCK = f"""
rm -rf /run/llama-fault {_DROP_IN}/llama-fault.conf
rmdir --ignore-fail-on-non-empty {_DROP_IN} 2>/dev/null
systemctl daemon-reload
systemctl restart {ROUTER_UNIT}
"""

HOSTILE = r"""
import itertools, json, subprocess, sys, time
from redis import Redis
config = json.load(open("/etc/llama-harness/monitor.json"))
told = json.loads(subprocess.check_output([sys.argv[1], "check", "--within", "5"]))
subprocess.run(["systemctl", "stop", sys.argv[2]], check=True)
redis = config["redis"]
password = open(redis["password_file"]).read().strip()
client = Redis(redis["address"], redis["port"], username=redis["username"], password=password, protocol=2)
future = told | {"time_ns": told["time_ns"] + 10**18}
values = [
    b"\xff", b"{", b"[" * 100000, b"null", b"x" * (1 << 20),
    json.dumps(told | {"load1": float("nan")}), json.dumps(told | {"node": "another"}), json.dumps(future),
    json.dumps(told | {"memory": told["memory"] | {"total_bytes": -1}}),
]
for value in itertools.cycle(values):
    client.set("llama:latest:" + config["node"], value)
    time.sleep(0.3)
"""
_WRITER = "llama-fault-samples"
_BIN = NODE_VENV / "bin"
_WRITE_HOSTILE = f"""
cat >/run/{_WRITER}.py
systemd-run --quiet --collect --unit={_WRITER} \
  {_BIN}/python /run/{_WRITER}.py {_BIN}/llama-node-monitor {MONITOR_UNIT}
sleep 5
systemctl is-active --quiet {_WRITER}
"""
_WRITE_TRUE = f"systemctl stop {_WRITER}; rm -f /run/{_WRITER}.py; systemctl start {MONITOR_UNIT}"


def _pattern(pattern: str) -> dict[str, Any]:
    schema = {"name": "x", "schema": {"type": "string", "pattern": pattern}}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


POISON: tuple[dict[str, Any], ...] = (
    {"n_probs": 10**9},
    {"grammar": 'root ::= ((("a")*)*)*'},
    {"grammar": "root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000},
    {"grammar": 'root ::= (("a"{0,100}){0,100}){0,100}'},
    _pattern("^" + "(" * 100_000 + "a" + ")" * 100_000 + "$"),
    _pattern("^(?<=x)*$"),
    {"mirostat": 99},
    {"repeat_last_n": 2**31 - 1, "n_discard": -5, "id_slot": 9999},
)
"""Some of tests/integration/hostile_requests.py: each killed a llama-server, or made it busy for ever."""
POISON_S = 20.0


@dataclass
class Poison(Fault):
    """Requests whose fields kill llama-server, one after the other; the next as soon as one has ended."""

    kind = "poison"
    expected = FailureClass.SEGFAULT

    router: RouterClient
    model: str

    async def inject(self) -> str:
        async with chat_session() as session:
            statuses = [await self._send(session, fields) for fields in POISON]
        counts = ", ".join(f"{statuses.count(one)} x {one}" for one in dict.fromkeys(statuses))
        return f"{len(POISON)} poison requests to {self.model}: {counts}"

    async def _send(self, session: aiohttp.ClientSession, fields: dict[str, Any]) -> str:
        """Its status; the answer is read whole, however long its lines are, and dropped."""
        address = self.router.address
        messages = [{"role": "user", "content": "Hello"}]
        body = {"model": self.model, "messages": messages, "max_tokens": 8, **fields}
        headers = {"Authorization": f"Bearer {address.key}"}
        url = f"{address.url}/v1/chat/completions"
        try:
            async with asyncio.timeout(POISON_S), session.post(url, json=body, headers=headers) as answer:
                async for _ in answer.content.iter_any():
                    pass
                return str(answer.status)
        except TimeoutError:
            return f"no end within {POISON_S:.0f} s"
        except aiohttp.ClientError:
            return "a broken connection"

    async def undo(self) -> None:
        """Nothing is left of them."""


# The rows.


@dataclass(frozen=True)
class Cluster:
    """What the faults are caused on."""

    inventory: Inventory
    router: RouterClient
    lab: LabSpec | None
    model: str
    pool_model: str

    @property
    def head(self) -> Node:
        return self.inventory.head

    @property
    def other(self) -> Node:
        """A backend that is not the head node.

        Raises:
            HarnessError: there is none.
        """
        found = next((node for node in self.inventory.backends if node is not self.head), None)
        if found is None:
            raise HarnessError("the fault matrix needs a backend besides the head node")
        return found


@dataclass(frozen=True)
class Row:
    """One fault."""

    name: str
    faults: Callable[[Cluster, CoordinatorState], Sequence[Fault]]
    right: tuple[FailureClass, ...] = ()
    """Classes that name it; empty where only survival is good."""
    moment: Literal["answering", "idle", "unloaded"] = "answering"
    """A client is in the middle of an answer; or the model is loaded; or the next request begins a load."""
    pool: bool = False
    """Whether clients use the pool's model."""
    prepare: Callable[[Cluster], Fault] | None = None
    """What has to be in place before the model is loaded."""


def _pid(state: CoordinatorState) -> int:
    if state.pid is None:
        raise HarnessError("the coordinator has ended before the fault came")
    return state.pid


def _holders(state: CoordinatorState) -> list[str]:
    """Nodes that hold layers."""
    return [share.node for share in state.plan.shares if share.layers] if state.plan else []


_F = FailureClass
_LOST = (_F.BACKEND_LOST, _F.BACKEND_UNREACHABLE)
_KILLED = (_F.STOPPED, _F.STOPPED_BUSY)
_OWN_FAULT = (_F.SEGFAULT, _F.ASSERTION, _F.HUNG)
ROWS = (
    Row("kill-backend", lambda c, _: [KillBackend(c.other)], _LOST),
    Row("kill-coordinator", lambda c, s: [KillCoordinator(c.head, _pid(s), 1)], _KILLED),
    Row("stop-backend", lambda c, _: [ClosedPort(c.other)], _LOST),
    Row("freeze-backend", lambda c, _: [FreezeBackend(c.other)], (_F.BACKEND_STALLED,)),
    Row(
        "freeze-coordinator",
        lambda c, s: [
            Script(
                c.head,
                f"SIGSTOP of llama-server, pid {_pid(s)}",
                f"kill -STOP {_pid(s)}",
                f"kill -CONT {_pid(s)} || true",
            )
        ],
        (_F.STOPPED_BUSY,),
    ),
    Row(
        "memory-of-node",
        lambda c, _: [SqueezeMemory(c.other, lab=c.lab)],
        (_F.OOM_KILLED, *_LOST),
        moment="unloaded",
    ),
    Row(
        "disk-of-node", lambda c, _: [SmallCacheDisk(c.other, lab=c.lab)], (_F.DISK_FULL,), moment="unloaded"
    ),
    Row(
        "disk-of-head",
        lambda c, _: [Script(c.head, f"{LOGS} on a full disk of 1 MiB", _FILL, _EMPTY)],
        (_F.DISK_FULL,),
        moment="unloaded",
    ),
    Row(
        "cut-link",
        lambda c, _: [CutLink(c.other, c.head, c.lab)],
        (_F.NETWORK_PARTITION, _F.BACKEND_STALLED, *_LOST),
    ),
    Row(
        "clock-back",
        lambda c, s: [
            Script(c.head, "the router's clock set back by 1 h", "touch /run/llama-fault/set-back"),
            KillCoordinator(c.head, _pid(s), 1),
        ],
        _KILLED,
        prepare=lambda c: Script(c.head, "a clock of its own", _INSTALL_CLOCK, _REMOVE_CLOCK, CLOCK),
    ),
    Row(
        "redis-gone",
        lambda c, _: [
            Script(
                c.head,
                f"{REDIS_UNIT} stopped",
                f"systemctl stop {REDIS_UNIT}",
                f"systemctl start {REDIS_UNIT}",
            )
        ],
    ),
    Row(
        "redis-hangs",
        lambda c, _: [
            Script(
                c.head, f"SIGSTOP of {REDIS_UNIT}", f"{_KILL}=STOP {REDIS_UNIT}", f"{_KILL}=CONT {REDIS_UNIT}"
            )
        ],
    ),
    Row(
        "redis-wrong-values",
        lambda c, s: [
            Script(c.other, f"{c.other.name} writes what is no sample", _WRITE_HOSTILE, _WRITE_TRUE, HOSTILE),
            KillCoordinator(c.head, _pid(s), 1),
        ],
        _KILLED,
    ),
    Row(
        "router-killed",
        lambda c, _: [Script(c.head, f"kill -9 of {ROUTER_UNIT}", f"{_KILL}=KILL {ROUTER_UNIT}")],
    ),
    Row("poison-coordinator", lambda c, _: [Poison(c.head, c.router, c.model)], _OWN_FAULT, moment="idle"),
    Row(
        "poison-pool",
        lambda c, _: [Poison(c.head, c.router, c.pool_model)],
        _OWN_FAULT,
        moment="idle",
        pool=True,
    ),
)


@dataclass
class Client:
    """A client in the middle of a streamed answer."""

    router: RouterClient
    model: str
    deadline_s: float
    token_s: list[float] = field(default_factory=list)
    """Monotonic times of its tokens."""
    ended: Request | None = None

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """Begin once its first token has come."""
        first = asyncio.Event()

        def note() -> None:
            self.token_s.append(time.monotonic())
            first.set()

        chat = ChatRequest(
            self.model, "Count to ten thousand.", STREAM_TOKENS, self.deadline_s, on_token=note
        )
        self._task = task = asyncio.create_task(self._ask(chat))
        try:
            waiting = asyncio.create_task(first.wait())
            await asyncio.wait({waiting, task}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if self.ended is not None and self.ended.error:
                raise HarnessError(f"no answer before the fault: {self.ended.error}")
            yield
        finally:
            self.leave()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _ask(self, chat: ChatRequest) -> None:
        self.ended = await self.router.chat(chat)

    def leave(self) -> None:
        """Close the connection."""
        self._task.cancel()

    async def goes_on(self) -> bool:
        """Whether tokens still come some seconds after a fault; then it leaves."""
        await asyncio.wait({self._task}, timeout=WATCH_S)
        if self.ended is not None or not self.token_s or time.monotonic() - self.token_s[-1] > STILL_S:
            return False
        self.leave()
        return True

    def tokens_since(self, since_s: float) -> int:
        """Tokens that came after a moment."""
        return sum(token_s > since_s for token_s in self.token_s)


async def ask_until_answered(
    router: RouterClient, model: str, within_s: float, seen: list[str] | None = None
) -> bool:
    """Send short requests until one is answered; whether one was.

    Args:
        seen: takes what each request that failed saw.
    """
    end_s = time.monotonic() + within_s
    while (left_s := end_s - time.monotonic()) > 0:
        answer = await router.chat(ChatRequest(model, "Hello", 4, left_s))
        if answer.error is None:
            return True
        if seen is not None:
            seen.append(saw(answer, 0))
        await asyncio.sleep(AGAIN_S)
    return False


_CLASS = re.compile(rf"(?:^|: |\()({'|'.join(FailureClass)})(?:: |\))")


def told(texts: Sequence[str]) -> list[str]:
    """Failure classes in the errors that clients got: a refused load ends no server, so only they show it."""
    return [name for text in texts for name in _CLASS.findall(text)]


async def named(router: RouterClient) -> list[str]:
    """Failure classes that the router has named since it was started; none where it does not answer."""
    headers = {"Authorization": f"Bearer {router.address.admin_key}"}
    async with chat_session() as session:
        for _ in range(10):
            with contextlib.suppress(aiohttp.ClientError, HarnessError):
                async with session.get(f"{router.address.url}/admin/failures", headers=headers) as answer:
                    found = [str(failure["failure_class"]) for failure in await answer.json()]
                found += [str(one.diagnosis.failure_class) for one in await router.starts() if one.diagnosis]
                return list(dict.fromkeys(found))
            await asyncio.sleep(AGAIN_S)
    return []


async def run_row(cluster: Cluster, row: Row, within_s: float) -> Outcome:
    """Cause one fault and undo it; what came of it.

    Raises:
        HarnessError: it could not be caused or undone, or the cluster does not serve before it.
    """
    router, model = cluster.router, cluster.pool_model if row.pool else cluster.model
    await run_as_root(cluster.head, "systemctl", "restart", ROUTER_UNIT)
    async with AsyncExitStack() as stack:
        if row.prepare:
            await stack.enter_async_context(injected(row.prepare(cluster)))
        if not await ask_until_answered(router, model, RECOVERS_S):
            raise HarnessError(f"{row.name}: {model} is not answered before the fault")
        state = await router.coordinator()
        if not row.pool and cluster.other.name not in _holders(state):
            raise HarnessError(f"{row.name}: {cluster.other.name} has no layer of {model}: {_holders(state)}")
        client = Client(router, model, within_s + RECOVERS_S)
        if row.moment == "answering":
            await stack.enter_async_context(client.asking())
        elif row.moment == "unloaded":
            await router.unload(0)
        did = "; ".join(
            [(await stack.enter_async_context(injected(one))).what for one in row.faults(cluster, state)]
        )
        begun_s, seen = time.monotonic(), list[str]()
        went_on = row.moment == "answering" and await client.goes_on()
        answered = await ask_until_answered(router, model, within_s, seen)
        answered_s = 0.0 if went_on else time.monotonic() - begun_s
        if row.moment != "answering":
            client_saw = seen[-1] if seen else "an answer" if answered else f"nothing for {within_s:.0f} s"
        elif went_on:
            client_saw = "its answer went on"
        else:
            client_saw = saw(client.ended, client.tokens_since(begun_s))
            client_saw += f"; the next request: {seen[0]}" if seen else ""
        right = [str(one) for one in row.right]
        # Our own unload and restart of the router end a coordinator too.
        ours = {str(_F.STOPPED), str(_F.STOPPED_BUSY)} - set(right)
        found = dict.fromkeys([*told([client_saw, *seen]), *await named(router)])
        classes = [one for one in found if one not in ours]
        return Outcome(row.name, did, client_saw, answered_s if answered else None, classes, right)


async def recover(cluster: Cluster) -> None:
    """Have everything serve again after a row.

    Raises:
        HarnessError: it does not.
    """
    with contextlib.suppress(HarnessError):
        await cluster.router.unload(0)
    # After a cut link rpc-server waits for ever for a peer whose end it could not hear of.
    await run_as_root(cluster.other, "systemctl", "restart", RPC_UNIT)
    await ensure_serving(cluster.other)
    await run_as_root(cluster.head, "systemctl", "restart", ROUTER_UNIT)
    for model in (cluster.model, cluster.pool_model):
        if not await ask_until_answered(cluster.router, model, RECOVERS_S):
            raise HarnessError(f"{model} is not answered {RECOVERS_S:.0f} s after the fault was undone")


async def run(inventory: Inventory, rows: Sequence[Row], options: argparse.Namespace) -> list[Outcome]:
    """All rows, one after the other; those that ran, also where one ends the matrix."""
    outcomes = load(options.json)
    lab = lab_of(inventory)
    async with RouterClient(router_address(inventory)) as router:
        cluster = Cluster(inventory, router, lab, options.model, options.pool_model)
        await undo_leftovers(inventory.backends, lab, lambda line: print(line, file=sys.stderr))
        for row in rows:
            print(f"{row.name} ...", end=" ", file=sys.stderr, flush=True)
            begun_s = time.monotonic()
            try:
                outcome = await run_row(cluster, row, options.within)
            except (HarnessError, aiohttp.ClientError, OSError) as error:
                outcome = Outcome(row.name, "the row did not end", str(error), None, [], [])
            print(f"{outcome.result} [{time.monotonic() - begun_s:.0f} s]", file=sys.stderr)
            outcomes = [*(one for one in outcomes if one.row != row.name), outcome]
            save(outcomes, options.json)
            try:
                await recover(cluster)
            except (HarnessError, aiohttp.ClientError, OSError) as error:
                outcome.answered_s, outcome.classes = None, []
                outcome.client += f"; afterwards: {error}"
                save(outcomes, options.json)
                break
    return outcomes


def load(path: Path | None) -> list[Outcome]:
    """Outcomes of an earlier call."""
    if path is None or not path.exists():
        return []
    names = {one.name for one in fields(Outcome)}
    return [Outcome(**{name: one[name] for name in names}) for one in json.loads(path.read_text())]


def save(outcomes: list[Outcome], path: Path | None) -> None:
    """Write them in the order of the rows."""
    order = [row.name for row in ROWS]
    outcomes.sort(key=lambda one: order.index(one.row))
    if path is not None:
        content = [asdict(one) | {"good": one.good, "result": one.result} for one in outcomes]
        path.write_text(json.dumps(content, indent=1) + "\n")


def main() -> int:
    """Run the rows, print the table; 0 if every row is good."""
    by_name = {row.name: row for row in ROWS}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inventory", type=Path, required=True, help="of a lab, or of a cluster nobody uses")
    parser.add_argument("--model", default="1b-q8_0", help="a model that goes over the backends")
    parser.add_argument("--pool-model", default="smollm2", help="a model of the pool")
    parser.add_argument("--only", nargs="+", choices=by_name, default=list(by_name), metavar="ROW")
    parser.add_argument("--within", type=float, default=180, help="seconds in which a row must be answered")
    parser.add_argument("--json", type=Path, help="file that takes the outcomes")
    options = parser.parse_args()
    outcomes = asyncio.run(
        run(load_inventory(options.inventory), [by_name[one] for one in options.only], options)
    )
    print(table(outcomes))
    return 0 if all(one.good for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
