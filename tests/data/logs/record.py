"""Makes the recorded logs of this folder from real processes on loopback.

    python tests/data/logs/record.py --bin DIR --other-bin DIR --model smollm2.gguf [CASE ...]

DIR holds llama-server and rpc-server of the pinned build, the other one rpc-server of build 6666 (protocol
2.0.0). ``disk_full`` and ``oom_killed`` need root: they mount a small tmpfs, and make a memory cgroup.
Each case writes ``<case>.log`` (what the process printed) and its entry of ``recorded.json``: the command,
the exit status, the signals sent, and what else was seen.
"""

import argparse
import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
PORT, RPC1, RPC2, TAKEN = 51080, 51001, 51002, 51099
SPLIT = ["--rpc", f"127.0.0.1:{RPC1},127.0.0.1:{RPC2}", "-ngl", "99", "--device", "RPC0,RPC1"]
SPLIT += ["--tensor-split", "1,1"]


class Recorder:
    """Starts processes, ends them, and notes how they ended."""

    def __init__(self, binaries: Path, other: Path | None, model: Path, scratch: Path) -> None:
        self.binaries, self.other, self.model, self.scratch = binaries, other, model, scratch
        self.entries: dict[str, dict[str, object]] = {}
        self.started: list[subprocess.Popen[bytes]] = []

    def start(
        self,
        name: str | None,
        process: str,
        *arguments: str,
        limit_as: int = 0,
        environment: dict[str, str] | None = None,
        folder: Path | None = None,
        prepare: Callable[[], object] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start ``process``; its output is the log ``name``, or is dropped for None."""
        out = (HERE / f"{name}.log").open("wb") if name else subprocess.DEVNULL
        limits = (lambda: resource.setrlimit(resource.RLIMIT_AS, (limit_as, limit_as))) if limit_as else None
        child = subprocess.Popen(
            [str((folder or self.binaries) / process), *arguments],
            cwd=self.scratch,
            stdout=out,
            stderr=subprocess.STDOUT,
            preexec_fn=prepare or limits,
            env={**os.environ, **(environment or {})},
        )
        self.started.append(child)
        if name:
            self.entries[name] = {
                "process": process,
                "command": " ".join([process, *arguments]),
                "signals": [],
            }
        return child

    def backends(self) -> list[subprocess.Popen[bytes]]:
        """Two rpc-servers on loopback, listening."""
        pair = [self.start(None, "rpc-server", "--host", "127.0.0.1", "--port", str(p)) for p in (RPC1, RPC2)]
        for port in (RPC1, RPC2):
            wait_listening(port)
        return pair

    def server(self, name: str | None, *arguments: str, ready: bool = True) -> subprocess.Popen[bytes]:
        """llama-server with the small model; waits for ``/health`` where ``ready``."""
        common = [
            "-m",
            str(self.model),
            "--host",
            "127.0.0.1",
            "--port",
            str(PORT),
            "-c",
            "2048",
            "--cache-ram",
            "0",
        ]
        child = self.start(name, "llama-server", *common, *arguments)
        if ready:
            wait_healthy(PORT)
        return child

    def signal(self, name: str, child: subprocess.Popen[bytes], number: int, busy: int) -> None:
        """Send a signal and note it, with the requests in flight."""
        self.note(name, number, busy)
        child.send_signal(number)

    def note(self, name: str, number: int, busy: int) -> None:
        sent = {"name": signal.Signals(number).name, "requests_in_flight": busy}
        self.entries[name]["signals"].append(sent)  # type: ignore[attr-defined]

    def ended(self, name: str, child: subprocess.Popen[bytes]) -> None:
        """Wait for the child and note its exit status."""
        status = child.wait(60)
        self.entries[name]["exit"] = {"code": status} if status >= 0 else {"signal": -status}

    def clean(self) -> None:
        """End every child that still lives."""
        for child in self.started:
            if child.poll() is None:
                child.kill()
                child.wait()
        self.started.clear()


def wait_listening(port: int) -> None:
    """Wait until the socket table shows a listener; connecting would take its only place."""
    for _ in range(100):
        rows = Path("/proc/net/tcp").read_text().splitlines()
        if any(row.split()[1].endswith(f":{port:04X}") and row.split()[3] == "0A" for row in rows[1:]):
            return
        time.sleep(0.1)
    raise TimeoutError(port)


def wait_healthy(port: int) -> None:
    for _ in range(300):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(port)


def established_peer(port: int) -> int:
    """The port of whoever is connected to a port of this machine."""
    for row in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, here, there, state, *_ = row.split()
        if here.endswith(f":{port:04X}") and state == "01":
            return int(there.rpartition(":")[2], 16)
    raise LookupError(f"nobody is connected to {port}")


def ask(tokens: int, wait_s: float = 60) -> threading.Thread:
    """Have a request in flight for at most ``wait_s``; what comes back does not matter."""

    def post() -> None:
        body = json.dumps({"prompt": "Count:", "n_predict": tokens, "ignore_eos": True})
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=wait_s)
        try:
            connection.request("POST", "/completion", body, {"Content-Type": "application/json"})
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()

    thread = threading.Thread(target=post)
    thread.start()
    time.sleep(0.7)
    return thread


def stopped(r: Recorder, name: str) -> None:
    r.backends()
    child = r.server(name, *SPLIT)
    ask(4).join()
    r.signal(name, child, signal.SIGTERM, 0)
    r.ended(name, child)


def stopped_busy(r: Recorder, name: str) -> None:
    r.backends()
    child = r.server(name, *SPLIT)
    request = ask(1900)
    r.signal(name, child, signal.SIGTERM, 1)
    r.ended(name, child)
    request.join()


def stopped_busy_local(r: Recorder, name: str) -> None:
    child = r.server(name, "-ngl", "0")
    request = ask(1900)
    r.signal(name, child, signal.SIGTERM, 1)
    r.ended(name, child)
    request.join()


def backend_lost(r: Recorder, name: str) -> None:
    backend = r.backends()[1]
    child = r.server(name, *SPLIT)
    request = ask(1900)
    backend.kill()
    r.ended(name, child)
    request.join()


def backend_lost_idle(r: Recorder, name: str) -> None:
    backend = r.backends()[1]
    child = r.server(name, *SPLIT)
    backend.kill()
    backend.wait()
    ask(4).join()
    r.ended(name, child)


def backend_unreachable(r: Recorder, name: str) -> None:
    r.ended(name, r.server(name, *SPLIT, ready=False))


def terminated_by_someone(r: Recorder, name: str) -> None:
    """SIGTERM that nobody of us sent, to an idle server."""
    child = r.server(name)
    child.terminate()
    r.ended(name, child)


def not_distributed(r: Recorder, name: str) -> None:
    r.backends()
    r.server(name, *SPLIT[:2], "-ngl", "0")


def distributed(r: Recorder, name: str) -> None:
    r.backends()
    r.server(name, *SPLIT)


def local(r: Recorder, name: str) -> None:
    r.server(name, "-ngl", "0")


def out_of_memory(r: Recorder, name: str) -> None:
    r.ended(name, r.server(name, "-c", "40000000", ready=False))


def out_of_memory_backend(r: Recorder, name: str) -> None:
    r.backends()
    r.ended(name, r.server(name, *SPLIT, "-c", "40000000", ready=False))


def out_of_memory_rpc_server(r: Recorder, name: str) -> None:
    child = r.start(name, "rpc-server", "--host", "127.0.0.1", "--port", str(RPC1), limit_as=120_000_000)
    wait_listening(RPC1)
    server = r.server(None, "--rpc", f"127.0.0.1:{RPC1}", "-ngl", "99", ready=False)
    server.wait(60)
    assert child.poll() is None, "rpc-server outlives a failed allocation"


def port_in_use(r: Recorder, name: str) -> None:
    with socket.create_server(("127.0.0.1", TAKEN)):
        r.ended(name, r.server(name, "--port", str(TAKEN), ready=False))


def port_in_use_rpc_server(r: Recorder, name: str) -> None:
    with socket.create_server(("127.0.0.1", TAKEN)):
        r.ended(name, r.start(name, "rpc-server", "--host", "127.0.0.1", "--port", str(TAKEN)))


def bad_arguments(r: Recorder, name: str) -> None:
    r.ended(name, r.server(name, "--no-such-flag", ready=False))


def bad_arguments_value(r: Recorder, name: str) -> None:
    r.ended(name, r.server(name, "--threads", "many", ready=False))


def bad_arguments_rpc_server(r: Recorder, name: str) -> None:
    r.ended(name, r.start(name, "rpc-server", "--no-such-flag"))


def bad_arguments_rpc_server_host(r: Recorder, name: str) -> None:
    r.ended(name, r.start(name, "rpc-server", "--host", "localhost", "--port", str(RPC1)))


def bad_arguments_rpc_server_device(r: Recorder, name: str) -> None:
    r.ended(name, r.start(name, "rpc-server", "--device", "CUDA7", "--port", str(RPC1)))


def model_invalid(r: Recorder, name: str) -> None:
    short = r.scratch / "truncated.gguf"
    short.write_bytes(r.model.read_bytes()[:60_000_000])
    r.ended(name, r.server(name, "-m", short.name, ready=False))


def model_invalid_magic(r: Recorder, name: str) -> None:
    other = r.scratch / "notes.gguf"
    other.write_bytes(b"These are not the weights. " * 100)
    r.ended(name, r.server(name, "-m", other.name, ready=False))


def model_invalid_missing(r: Recorder, name: str) -> None:
    r.ended(name, r.server(name, "-m", "absent.gguf", ready=False))


def model_invalid_architecture(r: Recorder, name: str) -> None:
    other = r.scratch / "alien.gguf"
    other.write_bytes(
        r.model.read_bytes().replace(
            b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0llama",
            b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0alien",
            1,
        )
    )
    r.ended(name, r.server(name, "-m", other.name, ready=False))


def assertion(r: Recorder, name: str) -> None:
    """A model that claims experts and uses none: llama.cpp checks that itself."""
    r.ended(name, r.server(name, "--override-kv", "llama.expert_count=int:4", ready=False))


def segfault(r: Recorder, name: str) -> None:
    child = r.server(name)
    child.send_signal(signal.SIGSEGV)
    r.ended(name, child)


def illegal_instruction(r: Recorder, name: str) -> None:
    child = r.server(name)
    child.send_signal(signal.SIGILL)
    r.ended(name, child)


def killed(r: Recorder, name: str) -> None:
    """What an OOM kill looks like from inside: SIGKILL that nobody of us sent."""
    child = r.server(name)
    child.kill()
    r.ended(name, child)


def rpc_version_mismatch(r: Recorder, name: str) -> None:
    """A backend of build 6666 speaks protocol 2.0.0."""
    assert r.other, "--other-bin names the folder of build 6666"
    r.start(None, "rpc-server", "--host", "127.0.0.1", "--port", str(RPC1), folder=r.other)
    wait_listening(RPC1)
    r.ended(name, r.server(name, "--rpc", f"127.0.0.1:{RPC1}", "-ngl", "99", ready=False))


def sigpipe(r: Recorder, name: str) -> None:
    """rpc-server as a shell starts it, with SIGPIPE's default; its coordinator is killed amid a reply."""
    for _ in range(40):
        backend = r.start(name, "rpc-server", "--host", "127.0.0.1", "--port", str(RPC1))
        wait_listening(RPC1)
        server = r.server(None, "--rpc", f"127.0.0.1:{RPC1}", "-ngl", "99")
        request = ask(1900)
        server.kill()
        request.join()
        time.sleep(0.5)
        if backend.poll() == -signal.SIGPIPE:
            r.ended(name, backend)
            return
        r.clean()
    raise TimeoutError("rpc-server outlived 40 coordinators")


def backend_stalled(r: Recorder, name: str) -> None:
    """SIGSTOP to the second rpc-server amid a request; the log of the coordinator that waits for it."""
    backend = r.backends()[1]
    child = r.server(name, *SPLIT)
    ask(1900, wait_s=3)
    backend.send_signal(signal.SIGSTOP)
    time.sleep(2)
    state = Path(f"/proc/{backend.pid}/stat").read_text().rpartition(")")[2].split()[0]
    peer = f"127.0.0.1:{established_peer(RPC2)}"
    r.entries[name]["backends"] = {"second": {"state": state, "peer": peer, "cpu_s": 0.0, "window_s": 2.0}}
    assert child.poll() is None


def disk_full(r: Recorder, name: str) -> None:
    """rpc-server caches on a tmpfs of 4 MiB: it writes what fits, and says "saved" all the same."""
    small = r.scratch / "cache"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(small)], check=True)
    try:
        where = {"LLAMA_CACHE": f"{small}/"}
        r.start(name, "rpc-server", "--host", "127.0.0.1", "--port", str(RPC1), "-c", environment=where)
        wait_listening(RPC1)
        r.server(None, "--rpc", f"127.0.0.1:{RPC1}", "-ngl", "99")
        disk = os.statvfs(small)
        free, size = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
        r.entries[name]["full_disk"] = f"cache: {free} bytes free of {size}"
        assert free < 1 << 20
        r.clean()
    finally:
        subprocess.run(["umount", str(small)], check=True)


def oom_killed(r: Recorder, name: str) -> None:
    """llama-server in a memory cgroup (v1) of 100 MiB without swap; the cgroup counts the kill."""
    group = Path("/sys/fs/cgroup/memory/llama-harness-record")
    group.mkdir()
    try:
        for name_of_limit in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
            (group / name_of_limit).write_text(str(100 << 20))
        enter = group / "cgroup.procs"
        arguments = ("-m", str(r.model), "--port", str(PORT), "-c", "2048", "--no-mmap")
        child = r.start(name, "llama-server", *arguments, prepare=lambda: enter.write_text(str(os.getpid())))
        r.ended(name, child)
        counts = dict(line.split() for line in (group / "memory.oom_control").read_text().splitlines())
        r.entries[name]["oom_kills"] = int(counts["oom_kill"])
        kernel = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout.splitlines()
        r.entries[name]["kernel"] = [line for line in kernel if f"Killed process {child.pid} " in line]
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        wait_for_empty(group)
        group.rmdir()


def wait_for_empty(group: Path) -> None:
    """Until no process is left in a cgroup: the kernel takes a moment."""
    while (group / "cgroup.procs").read_text().strip():
        time.sleep(0.05)


CASES: tuple[Callable[[Recorder, str], None], ...] = (
    stopped,
    stopped_busy,
    stopped_busy_local,
    backend_lost,
    backend_lost_idle,
    backend_unreachable,
    distributed,
    not_distributed,
    local,
    out_of_memory,
    out_of_memory_backend,
    out_of_memory_rpc_server,
    port_in_use,
    port_in_use_rpc_server,
    bad_arguments,
    bad_arguments_value,
    bad_arguments_rpc_server,
    bad_arguments_rpc_server_host,
    bad_arguments_rpc_server_device,
    model_invalid,
    model_invalid_magic,
    model_invalid_missing,
    model_invalid_architecture,
    assertion,
    segfault,
    illegal_instruction,
    killed,
    terminated_by_someone,
    rpc_version_mismatch,
    sigpipe,
    backend_stalled,
    disk_full,
    oom_killed,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", type=Path, required=True)
    parser.add_argument("--other-bin", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("cases", nargs="*")
    options = parser.parse_args()
    index = HERE / "recorded.json"
    entries = json.loads(index.read_text()) if index.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "smollm2.gguf"
        model.symlink_to(options.model.resolve())
        other = options.other_bin.resolve() if options.other_bin else None
        recorder = Recorder(options.bin.resolve(), other, Path(model.name), Path(scratch))
        recorder.model = model
        for case in CASES:
            if options.cases and case.__name__ not in options.cases:
                continue
            try:
                case(recorder, case.__name__)
            finally:
                recorder.clean()
            shown = recorder.entries[case.__name__]
            shown["command"] = str(shown["command"]).replace(f"{scratch}/", "")
            log = HERE / f"{case.__name__}.log"
            log.write_bytes(
                log.read_bytes()
                .replace(f"{scratch}/".encode(), b"")
                .replace(f"{recorder.binaries}/".encode(), b"")
            )
            entries[case.__name__] = shown
            print(case.__name__, shown.get("exit"))
            index.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("HOME", "/")
    main()
