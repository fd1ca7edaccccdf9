"""``scripts/gpu-check`` without a GPU: every step on the CPU, and what it says where it finds none."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from harness.release_proof.local import child, free_ports
from harness.settings import REPOSITORY

SCRIPT = REPOSITORY / "scripts" / "gpu-check"


def gpu_check(build: Path, work: Path, *arguments: str) -> tuple[int, dict[str, tuple[str, str]], str]:
    """Exit status, outcome and text of each step, and all that it printed."""
    given = [
        "--build",
        str(build),
        "--shape",
        "tiny",
        "--type",
        "Q4_K_M",
        "--work",
        str(work),
        "--out",
        str(work),
    ]
    work.mkdir()
    argv = [sys.executable, str(SCRIPT), "run", "--pack", "/nonexistent", *given, *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=180, check=False)
    record = json.loads((work / "gpu-check.json").read_text())
    steps = {result["step"]: (result["outcome"], result["text"]) for result in record["results"]}
    return done.returncode, steps, done.stdout


def test_every_step_holds_on_a_cpu_build(llama_build: Path, tmp_path: Path) -> None:
    status, steps, output = gpu_check(llama_build, tmp_path / "work", "--kind", "cpu")
    assert {outcome for outcome, _ in steps.values()} == {"ok"}, output
    assert status == 0
    assert list(steps) == ["host", "build", "fallback", "model", "serve", "bench"]
    assert "5/5 layers" in steps["serve"][1]
    assert "llama-bench" in steps["bench"][1]
    assert "6 of 6 steps" in output


def test_machine_without_a_gpu_fails_step_by_step(llama_build: Path, tmp_path: Path) -> None:
    status, steps, output = gpu_check(llama_build, tmp_path / "work", "--kind", "cuda")
    assert status == 1
    assert steps["host"] == ("FAILED", steps["host"][1])
    assert "not loaded NVIDIA's driver" in steps["host"][1]
    assert steps["fallback"] == ("FAILED", "rpc-server finds CPU, not CUDA0")
    assert steps["nvml"][0] == "FAILED"
    assert steps["model"][0] == "ok"
    assert "rpc-server ended with 1" in steps["serve"][1]
    assert "failed: host, fallback, nvml, serve" in output


@pytest.fixture(scope="module")
def info() -> ModuleType:
    path = REPOSITORY / "roles" / "rpc_server" / "library" / "rpc_server_info.py"
    spec = importlib.util.spec_from_file_location("rpc_server_info", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_role_reads_the_devices_that_rpc_server_lists_and_offers(
    llama_build: Path, info: ModuleType, tmp_path: Path
) -> None:
    server = str(llama_build / "rpc-server")
    _, listing = info.output(server, "--device", "none")
    assert info.parse_devices(listing) == ["CPU"]
    (port,) = free_ports(1)
    argv = [server, "--host", "127.0.0.1", "--port", str(port), "--device", "CPU", "--threads", "1"]
    with child(argv, tmp_path / "log") as process:
        while info.main_binary(str(process.pid)) != str(Path(server).resolve()):  # setpriv comes first
            assert process.poll() is None
        assert info.offered_devices(str(process.pid)) == ["CPU"]
    assert info.offered_devices(str(process.pid)) == []


def test_rpc_server_ends_without_one_of_its_devices(llama_build: Path, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    argv = [str(llama_build / "rpc-server"), "--port", str(port), "--device", "CPU,CUDA0"]
    with child(argv, tmp_path / "log") as process:
        assert process.wait(60) == 1
    assert "unknown device: CUDA0" in (tmp_path / "log").read_text()
