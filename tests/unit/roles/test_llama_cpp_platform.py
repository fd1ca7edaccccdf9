"""The role's module that names a node's platform and finds damage in an installed build."""

import hashlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from harness.settings import REPOSITORY

FLAGS = ["-DGGML_RPC=ON"]
BINARIES = ["rpc-server", "llama-server"]
SAYS = "#!/bin/sh\necho 'version: {} (01d2bdc2b)' >&2\n"


@pytest.fixture(scope="module")
def info() -> ModuleType:
    path = REPOSITORY / "roles" / "llama_cpp" / "library" / "llama_cpp_info.py"
    spec = importlib.util.spec_from_file_location("llama_cpp_info", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def installed(folder: Path, build: int = 6751, says: int = 6751) -> dict[str, object]:
    """A build's folder with scripts in place of binaries; its manifest."""
    (folder / "bin").mkdir(parents=True)
    hashes = {}
    for name in BINARIES:
        path = folder / "bin" / name
        path.write_text(SAYS.format(says))
        path.chmod(0o755)
        hashes[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest = {"build": build, "cmake_flags": FLAGS, "binaries": hashes}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return manifest


def problems(info: ModuleType, folder: Path) -> list[str]:
    found: list[str] = info.problems_of(str(folder), info.read_manifest(str(folder)), 6751, FLAGS, BINARIES)
    return found


def test_a_whole_build_has_no_problem(info: ModuleType, tmp_path: Path) -> None:
    installed(tmp_path / "build")
    assert problems(info, tmp_path / "build") == []


def test_a_build_that_is_not_there_is_not_installed(info: ModuleType, tmp_path: Path) -> None:
    assert problems(info, tmp_path / "build") == ["not installed"]


def test_a_changed_file_is_named_with_both_hashes(info: ModuleType, tmp_path: Path) -> None:
    manifest = installed(tmp_path)
    (tmp_path / "bin" / "rpc-server").write_text("another")
    hashes = manifest["binaries"]
    assert isinstance(hashes, dict)
    (problem,) = problems(info, tmp_path)
    assert problem.startswith("bin/rpc-server has sha256 ")
    assert problem.endswith(f"the manifest says {hashes['rpc-server']}")


def test_a_missing_file_is_named(info: ModuleType, tmp_path: Path) -> None:
    installed(tmp_path)
    (tmp_path / "bin" / "llama-server").unlink()
    assert problems(info, tmp_path) == ["bin/llama-server is missing"]


def test_a_binary_that_says_another_build_is_a_problem(info: ModuleType, tmp_path: Path) -> None:
    installed(tmp_path, says=6743)
    assert problems(info, tmp_path) == ["bin/llama-server --version: build 6743, not build 6751"]


def test_the_version_is_read_as_newer_builds_print_it(info: ModuleType, tmp_path: Path) -> None:
    installed(tmp_path)
    server = tmp_path / "bin" / "llama-server"
    server.write_text("#!/bin/sh\necho 'version: 0.12.1 (build 11434, commit unknown)' >&2\n")
    assert info.version_of(str(tmp_path)) == {"build": 11434}


def test_a_binary_that_cannot_run_here_is_a_problem(info: ModuleType, tmp_path: Path) -> None:
    manifest = installed(tmp_path)
    path = tmp_path / "bin" / "llama-server"
    path.write_text("#!/bin/sh\nkill -ILL $$\n")
    hashes = manifest["binaries"]
    assert isinstance(hashes, dict)
    hashes["llama-server"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (problem,) = problems(info, tmp_path)
    assert "--version: exit -4" in problem


def test_other_cmake_flags_are_another_build(info: ModuleType, tmp_path: Path) -> None:
    installed(tmp_path)
    manifest = info.read_manifest(str(tmp_path))
    found = info.problems_of(str(tmp_path), manifest, 6751, [*FLAGS, "-DGGML_CUDA=ON"], BINARIES)
    assert found == ["manifest.json says that it was built with other CMake flags"]


def test_a_manifest_that_was_cut_is_a_problem(info: ModuleType, tmp_path: Path) -> None:
    installed(tmp_path)
    (tmp_path / "manifest.json").write_text('{"build": 67')
    assert problems(info, tmp_path) == ["manifest.json says build None, not 6751"]


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        ("fpu vme sse4_2 avx2 constant_tsc hypervisor", ["avx2", "sse4_2"]),
        ("avx512_vnni amx_int8 tsc_known_freq cpuid arat", ["amx_int8", "avx512_vnni"]),
    ],
)
def test_only_what_a_compiler_may_use_is_part_of_the_platform(
    info: ModuleType, monkeypatch: pytest.MonkeyPatch, flags: str, kept: list[str]
) -> None:
    monkeypatch.setattr(info.platform, "machine", lambda: "x86_64")
    assert info.cpu_flags(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: spectre_v1\n") == kept


def test_on_arm_every_feature_is_part_of_the_platform(
    info: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(info.platform, "machine", lambda: "aarch64")
    assert info.cpu_flags("Features\t: fp asimd sve\n") == ["asimd", "fp", "sve"]


def test_a_cpu_with_another_feature_is_another_platform(info: ModuleType) -> None:
    assert info.digits(["avx2", "fma"]) != info.digits(["avx2", "fma", "avx512f"])
