"""Makes the recorded logs of this folder from real processes on loopback.

    python tests/data/logs/record.py --bin DIR --model smollm2.gguf [CASE ...]

DIR holds llama-server and rpc-server of the pinned build. Each case writes ``<case>.log`` (what the
process printed) and its entry of ``recorded.json``: the command, the exit status and the signals sent.
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

    def __init__(self, binaries: Path, model: Path, scratch: Path) -> None:
        self.binaries, self.model, self.scratch = binaries, model, scratch
        self.entries: dict[str, dict[str, object]] = {}
        self.started: list[subprocess.Popen[bytes]] = []

    def start(
        self, name: str | None, process: str, *arguments: str, limit_as: int = 0
    ) -> subprocess.Popen[bytes]:
        """Start ``process``; its output is the log ``name``, or is dropped for None."""
        out = (HERE / f"{name}.log").open("wb") if name else subprocess.DEVNULL
        limits = (lambda: resource.setrlimit(resource.RLIMIT_AS, (limit_as, limit_as))) if limit_as else None
        child = subprocess.Popen(
            [str(self.binaries / process), *arguments],
            cwd=self.scratch,
            stdout=out,
            stderr=subprocess.STDOUT,
            preexec_fn=limits,
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


def ask(tokens: int) -> threading.Thread:
    """Have a request in flight; what comes back does not matter."""

    def post() -> None:
        body = json.dumps({"prompt": "Count:", "n_predict": tokens, "ignore_eos": True})
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
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
    """A double that answers HELLO with protocol 2.0.0 stands for a backend of another protocol."""

    def answer(listener: socket.socket) -> None:
        peer, _ = listener.accept()
        with peer:
            peer.recv(9)
            peer.sendall((3).to_bytes(8, "little") + bytes((2, 0, 0)))
            peer.recv(1)

    with socket.create_server(("127.0.0.1", RPC1)) as listener:
        threading.Thread(target=answer, args=(listener,), daemon=True).start()
        r.ended(name, r.server(name, "--rpc", f"127.0.0.1:{RPC1}", "-ngl", "99", ready=False))


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
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("cases", nargs="*")
    options = parser.parse_args()
    index = HERE / "recorded.json"
    entries = json.loads(index.read_text()) if index.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "smollm2.gguf"
        model.symlink_to(options.model.resolve())
        recorder = Recorder(options.bin.resolve(), Path(model.name), Path(scratch))
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
