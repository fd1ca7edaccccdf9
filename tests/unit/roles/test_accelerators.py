"""The platform of a GPU host, from what real hosts printed (tests/data/gpu/README.md)."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from harness.settings import REPOSITORY

DATA = Path(__file__).parents[2] / "data" / "gpu"
OPEN_MODULE = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.126.09  Release Build  (root@host)\n"
)


@pytest.fixture
def info() -> ModuleType:
    path = REPOSITORY / "roles" / "llama_cpp" / "library" / "llama_cpp_info.py"
    spec = importlib.util.spec_from_file_location("llama_cpp_info", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Host:
    """A host's /proc and /dev, and what its programs answer."""

    def __init__(self, root: Path, info: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self._info = root, info
        self.answers: dict[str, tuple[int, str]] = {}
        monkeypatch.setattr(info, "run", self._run)

    def _run(self, command: list[str], timeout: int = 30) -> tuple[int, str]:
        return self.answers.get(" ".join(command), (127, "No such file or directory"))

    def file(self, path: str, text: str = "") -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def nvidia(self, version: str, *compute_caps: str, banner: str = "580/nvidia-smi.txt") -> None:
        """A host whose driver, devices and library work."""
        self.file("proc/driver/nvidia/version", version)
        for name in ("nvidiactl", "nvidia-uvm"):
            self.file(f"dev/{name}")
        for minor, _ in enumerate(compute_caps):
            self.file(
                f"proc/driver/nvidia/gpus/0000:0{minor}:00.0/information", f"Device Minor: \t {minor}\n"
            )
            self.file(f"dev/nvidia{minor}")
        self.answers["nvidia-smi"] = (0, (DATA / banner).read_text())
        self.query(0, "".join(f"{cap}\n" for cap in compute_caps))

    def query(self, status: int, text: str) -> None:
        self.answers[" ".join(self._info.NVIDIA_SMI)] = (status, text)

    def read(self, kind: str = "cuda", toolkit: str | None = "12.4") -> tuple[list[str], list[str]]:
        answer: tuple[list[str], list[str]] = self._info.accelerator_of(kind, toolkit, self.root)
        return answer


@pytest.fixture
def host(tmp_path: Path, info: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, info, monkeypatch)


def test_host_that_works_has_the_architectures_of_its_gpus_and_no_problem(host: Host) -> None:
    host.nvidia(OPEN_MODULE, "8.9", "8.6", "8.9")
    assert host.read() == (["sm86", "sm89"], [])


def test_gpu_with_mig_counts_as_its_architecture(host: Host) -> None:
    host.nvidia(OPEN_MODULE, "9.0", "9.0")
    assert host.read() == (["sm90"], [])


def test_driver_that_was_updated_without_a_reboot_is_named_with_both_versions(host: Host) -> None:
    host.nvidia((DATA / "mismatch/version.txt").read_text(), "8.9")
    host.query(18, (DATA / "mismatch/nvidia-smi.txt").read_text())
    devices, (problem,) = host.read()
    assert devices == []
    assert "driver 580.173.02 and the installed library is 580.178" in problem
    assert "reboot" in problem


def test_kernel_without_the_driver_is_a_problem(host: Host) -> None:
    devices, (problem,) = host.read()
    assert devices == []
    assert "not loaded NVIDIA's driver" in problem


def test_missing_nodes_and_module_are_named_together(host: Host) -> None:
    host.nvidia(OPEN_MODULE, "8.9", "8.9")
    for name in ("nvidia1", "nvidia-uvm"):
        (host.root / "dev" / name).unlink()
    _, problems = host.read()
    assert [problem.split(":")[0] for problem in problems] == [
        "/dev has no nvidia1",
        "the kernel has no module nvidia_uvm",
    ]


def test_module_that_a_unit_loads_later_is_no_problem(host: Host) -> None:
    host.nvidia(OPEN_MODULE, "8.9")
    (host.root / "dev/nvidia-uvm").unlink()
    host.answers["modprobe --dry-run nvidia_uvm"] = (0, "")
    assert host.read() == (["sm89"], [])


@pytest.mark.parametrize(
    ("banner", "toolkit", "limit"),
    [
        ("535/nvidia-smi.txt", "12.8", None),
        ("535/nvidia-smi.txt", "13.0", "12.2"),
        ("610/nvidia-smi.txt", "13.3", None),
        ("610/nvidia-smi.txt", "14.0", "13.3"),
        ("580/nvidia-smi.txt", "unknown", None),
    ],
)
def test_toolkit_newer_than_the_driver_can_run_is_a_problem(
    host: Host, banner: str, toolkit: str, limit: str | None
) -> None:
    host.nvidia(OPEN_MODULE, "8.9", banner=banner)
    _, problems = host.read(toolkit=toolkit)
    assert [f"CUDA {limit} and older" in problem for problem in problems] == ([True] if limit else [])


def test_gpu_that_is_lost_is_a_problem(host: Host) -> None:
    host.nvidia(OPEN_MODULE, "8.9")
    host.query(255, "Unable to determine the device handle for GPU0000:65:00.0: Unknown Error\n")
    assert host.read()[1] == [
        "nvidia-smi exits 255: Unable to determine the device handle for GPU0000:65:00.0: Unknown Error"
    ]


def test_amd_host_lists_its_gpus_and_not_its_cpu(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "/dev has no kfd" in host.read("rocm")[1][0]
    host.file("dev/kfd")
    monkeypatch.setattr(host._info.shutil, "which", lambda name: name)
    host.answers["rocm_agent_enumerator"] = (0, "gfx000\ngfx1151\n")
    assert host.read("rocm") == (["gfx1151"], [])


def test_vulkan_needs_a_render_node(host: Host) -> None:
    assert host.read("vulkan") == ([], ["/dev/dri has no render node"])
    host.file("dev/dri/renderD128")
    assert host.read("vulkan") == ([], [])


def test_platform_whose_gpus_cannot_be_read_keeps_the_name_of_its_build(info: ModuleType) -> None:
    parts = ["debian12", "glibc2.36", "x86_64", "d4ffbcb3"]
    built = "debian12-glibc2.36-x86_64-d4ffbcb3-cuda12.4-sm89"
    assert info.name_of_platform(parts, "cuda12.4", built) == built
    assert info.name_of_platform(parts, "cuda13.0", built) == "-".join([*parts, "cuda13.0"]), (
        "another toolkit"
    )
    assert info.name_of_platform(parts, "cuda12.4", "") == "-".join([*parts, "cuda12.4"])


def test_mismatch_changes_neither_the_platform_nor_the_build(
    host: Host, info: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(info, "toolkit", lambda accelerator: ("/usr/local/cuda/bin/nvcc", "12.4"))
    accelerators = iter([(["sm89"], []), ([], ["mismatch"])])
    monkeypatch.setattr(info, "accelerator_of", lambda *_: next(accelerators))
    before = info.platform_of("cuda", str(tmp_path))
    host.file("current/manifest.json", json.dumps({"platform": before["id"]}))
    after = info.platform_of("cuda", str(tmp_path))
    assert (after["id"], after["problems"]) == (before["id"], ["mismatch"])


def test_build_is_for_the_gpus_that_were_found(info: ModuleType, host: Host) -> None:
    flags, environment, trial = info.compile_for("cuda", "/cuda/bin/nvcc", ["sm86", "sm120"])
    assert flags == ["-DCMAKE_CUDA_COMPILER=/cuda/bin/nvcc", "-DCMAKE_CUDA_ARCHITECTURES=86;120"]
    assert environment == {}
    assert "-gencode=arch=compute_120,code=sm_120" in trial
    host.answers |= {"hipconfig -l": (0, "/opt/rocm/llvm/bin\n"), "hipconfig -R": (0, "/opt/rocm\n")}
    flags, environment, trial = info.compile_for("rocm", "hipconfig", ["gfx1100"])
    assert flags == ["-DGPU_TARGETS=gfx1100"]
    assert environment == {"HIPCXX": "/opt/rocm/llvm/bin/clang", "HIP_PATH": "/opt/rocm"}
    assert trial[:3] == ["/opt/rocm/llvm/bin/clang", "-x", "hip"]
    assert info.compile_for("cpu", None, []) == ([], {}, [])


@pytest.mark.parametrize(("found", "problem"), [("/cuda/lib64/libcudart.so.12", False), ("not found", True)])
def test_runtime_library_that_went_away_is_named(
    info: ModuleType, host: Host, tmp_path: Path, found: str, problem: bool
) -> None:
    binary = tmp_path / "bin" / "rpc-server"
    host.file("bin/rpc-server")
    manifest: dict[str, Any] = {
        "build": 1,
        "cmake_flags": [],
        "binaries": {"rpc-server": info.sha256(binary)},
    }
    manifest["libraries"] = {"libcudart.so.12": "/cuda/lib64/libcudart.so.12"}
    host.answers[f"ldd {binary}"] = (0, f"\tlinux-vdso.so.1 (0x7ff)\n\tlibcudart.so.12 => {found} (0x7f)\n")
    problems = info.problems_of(str(tmp_path), manifest, 1, [], ["rpc-server"])
    expected = ["bin/rpc-server needs libcudart.so.12, which was /cuda/lib64/libcudart.so.12 at its build"]
    assert problems == (expected if problem else [])


def test_compiler_that_the_toolkit_refuses_is_named_before_the_build(tmp_path: Path) -> None:
    nvcc = tmp_path / "nvcc"
    refusal = "host_config.h:132:2: error: #error -- unsupported GNU version! gcc versions later than 11"
    nvcc.write_text(
        f"#!/bin/sh\necho 'In file included from cuda_runtime.h:82,' >&2\necho '{refusal}' >&2\nexit 1\n"
    )
    nvcc.chmod(0o755)
    tasks = yaml.safe_load((REPOSITORY / "roles/llama_cpp/tasks/build.yml").read_text())
    (trial,) = [task for task in tasks if task["name"].startswith("Compile one small file")]
    gpu = {"toolkit": str(nvcc), "toolkit_version": "11.8", "devices": ["sm89"], "environment": {}}
    variables = {
        "_llama_cpp_work": str(tmp_path),
        "_llama_cpp_info": {"platform": gpu | {"trial": [str(nvcc), "-x", "cu", "-c"]}},
        "ansible_python_interpreter": sys.executable,
    }
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play | {"vars": variables, "tasks": [trial]}]))
    program = str(Path(sys.executable).parent / "ansible-playbook")
    done = subprocess.run(
        [program, "-i", "localhost,", str(tmp_path / "play.yml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stdout
    said = " ".join(done.stdout.split())
    assert (
        f"{nvcc} 11.8 does not compile for sm89 with the compiler of this host: host_config.h:132:2" in said
    )
