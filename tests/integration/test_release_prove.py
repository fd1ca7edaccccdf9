"""The gate for a release on real rpc-servers: tokens pass, and a hang is neither slow nor a crash."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness.llama.gguf import read_gguf
from harness.llama.releases.catalogue import installed_build
from harness.release_proof.gate import Gate, prove
from harness.release_proof.local import Backend, loopback_backends
from harness.release_proof.proof import Outcome, Round

pytestmark = pytest.mark.integration
FOR_EVER = 'exec tail -f "$0"'
SHORT = Gate(11549, backends=2, rounds=2, deadline_s=3, window_s=1)


def started_from(folder: Path) -> list[str]:
    """Command lines of the processes that run a program of this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = process.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if f"{folder}/" in line:
            found.append(line)
    return found


@pytest.fixture
def binaries(llama_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real programs, by a name of this test's own; logs that are kept lie beside them."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert installed_build(llama_build / "rpc-server") == SHORT.build
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("rpc-server", "llama-bench"):
        (folder / name).symlink_to(llama_build / name)
    return folder


def double(binaries: Path, script: str) -> None:
    """A double of llama-bench that does what no release should."""
    (binaries / "llama-bench").unlink()
    (binaries / "llama-bench").write_text(f"#!/bin/sh\n{script}\n")
    (binaries / "llama-bench").chmod(0o755)


def test_real_release_gives_tokens_over_three_backends(binaries: Path, smollm2: Path) -> None:
    told: list[Round] = []
    proof = prove(Gate(11549, backends=3, rounds=2), binaries, read_gguf(smollm2), told.append)
    assert proof.passed, proof.verdict()
    assert [one.number for one in told] == [1, 2]
    assert "over 3 backends: 2 of 2 rounds gave tokens" in proof.verdict()
    assert (proof.logs, proof.evidence(), started_from(binaries)) == (None, [], [])


@pytest.mark.parametrize(
    ("script", "outcome", "says"),
    [
        (FOR_EVER, Outcome.HANG, "a hang: no end after 3 s"),
        ("while :; do :; done", Outcome.SLOW, "slow, not a hang"),
        ("echo boom >&2; kill -ABRT $$", Outcome.CRASH, "llama-bench ended by SIGABRT"),
        ("exit 0", Outcome.CRASH, "reported no tokens"),
    ],
)
def test_double_that_gives_no_tokens_fails_its_first_round(
    script: str, outcome: Outcome, says: str, binaries: Path, smollm2: Path
) -> None:
    double(binaries, script)
    proof = prove(SHORT, binaries, read_gguf(smollm2), lambda _: None)
    assert [one.outcome for one in proof.rounds] == [outcome]
    assert says in proof.verdict()
    backends = [line for line in proof.evidence() if line.startswith("rpc-server 127.0.0.1:")]
    assert [line.count("main thread S") for line in backends] == [1, 1], backends
    assert [line.endswith(" LISTEN: 0 waiting") for line in proof.evidence()].count(True) == 2
    assert started_from(binaries) == []


def test_frozen_backend_hangs_the_real_client(
    binaries: Path, smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def second_frozen(*args: object) -> Iterator[tuple[Backend, ...]]:
        with loopback_backends(*args) as backends:  # type: ignore[arg-type]
            backends[1].process.send_signal(signal.SIGSTOP)
            yield backends

    monkeypatch.setattr("harness.release_proof.gate.loopback_backends", second_frozen)
    proof = prove(SHORT, binaries, read_gguf(smollm2), lambda _: None)
    assert proof.rounds[0].outcome is Outcome.HANG, proof.verdict()
    look = proof.rounds[0].look
    assert look
    assert [thread.state for thread in look.processes[2].threads if thread.main] == ["T"]
    assert any(one.state == "LISTEN" and one.unread_bytes == 1 for one in look.sockets)
    assert started_from(binaries) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_gate_that_is_interrupted_leaves_nothing_running(
    number: signal.Signals, binaries: Path, smollm2: Path
) -> None:
    double(binaries, FOR_EVER)
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path; from harness.llama.gguf import read_gguf\n"
        "from harness.release_proof.gate import Gate, prove\n"
        f"prove(Gate(11549, 2, 2), Path('{binaries}'), read_gguf(Path('{smollm2}')), print)\n"
    )
    environment = os.environ | {"TMPDIR": str(binaries.parent)}
    gate = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL, env=environment)
    while not any("llama-bench" in line for line in started_from(binaries)) and gate.poll() is None:
        time.sleep(0.05)
    gate.send_signal(number)
    assert gate.wait(30) != 0
    for _ in range(200):
        if not started_from(binaries):
            break
        time.sleep(0.05)
    assert started_from(binaries) == []
