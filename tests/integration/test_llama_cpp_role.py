"""Role llama_cpp: one build for all hosts of a platform, kept, shared, proven, and refused when it is wrong.

Two hosts, a and b, stand on this machine, each with a folder of its own. What they build is a double, a
source of a few lines in llama.cpp's shape, so that a whole deployment with its compiler takes seconds.
"""

import hashlib
import io
import json
import shutil
import signal
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness.cluster.ansible import PlaybookResult, run_playbook
from harness.errors import HarnessError
from harness.llama.releases.catalogue import catalogue

HERE = Path(__file__).parent
BUILD_TASK = "Build rpc-server, llama-server, llama-bench"
BINARIES = ("rpc-server", "llama-server", "llama-bench", "llama-tensor-cache")

pytestmark = pytest.mark.integration

DOUBLE = {
    "CMakeLists.txt": """\
cmake_minimum_required(VERSION 3.18)
project(double CXX)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
foreach(name rpc-server llama-server llama-bench)
  add_executable(${name} main.cpp)
  target_compile_definitions(${name} PRIVATE
    NAME="${name}" BUILD=${LLAMA_BUILD_NUMBER} COMMIT="${LLAMA_BUILD_COMMIT}")
endforeach()
""",
    "main.cpp": """\
#include <cstdio>
int main() { std::fprintf(stderr, "version: %d (%s)\\nbuilt for " NAME "\\n", BUILD, COMMIT); }
""",
    "ggml/CMakeLists.txt": "",
}

# A newer release names its backend's target otherwise, and prints its build otherwise.
NEWER = {
    "CMakeLists.txt": DOUBLE["CMakeLists.txt"].replace("name rpc-server", "name ggml-rpc-server"),
    "main.cpp": DOUBLE["main.cpp"].replace("%d (%s)", "0.6.0 (build %d, commit %s)"),
}


@dataclass(frozen=True)
class Cluster:
    """Two hosts, and a control machine's cache."""

    root: Path

    def deploy(
        self, build: int = 6743, files: dict[str, str] | None = None, limit: str | None = None, **more: object
    ) -> PlaybookResult:
        """Deploy a double of a release, by default to both hosts."""
        archive = self.root / f"{build}.tar.gz"
        variables: dict[str, object] = {
            "test_root": str(self.root),
            "llama_cpp_build": build,
            "llama_cpp_source": "archive",
            "llama_cpp_archive": str(archive),
            "llama_cpp_archive_sha256": write_archive(archive, DOUBLE | (files or {})),
            "llama_cpp_cache_dir": str(self.root / "cache"),
            "llama_cpp_ccache_dir": str(self.root / "ccache"),
            "llama_cpp_build_poll": 1,
            "llama_cpp_accepted_issues": [issue.id for issue in catalogue().issues],
        }
        inventory = HERE / "llama_cpp_role" / "hosts.yml"
        return run_playbook(HERE / "llama_cpp_role" / "play.yml", inventory, variables | more, limit=limit)

    def current(self, host: str) -> Path:
        return (self.root / host / "current").resolve()

    def hashes(self, host: str) -> dict[str, str]:
        folder = self.current(host) / "bin"
        return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in BINARIES}

    def installed(self) -> list[Path]:
        return sorted(self.root.glob("[ab]/*/manifest.json"))


def write_archive(path: Path, files: dict[str, str]) -> str:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"llama.cpp/{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def builders(result: PlaybookResult) -> list[str]:
    return [task.split(":")[0] for task in result.changed_tasks if task.endswith(BUILD_TASK)]


def says(folder: Path) -> str:
    done = subprocess.run([folder / "bin" / "llama-server"], capture_output=True, text=True, check=True)
    return done.stderr


def backdoor(cluster: Cluster) -> None:
    """Change a program on host b, and b's manifest with it: its build still agrees with itself."""
    before = cluster.hashes("b")["rpc-server"]
    server = cluster.current("b") / "bin" / "rpc-server"
    server.write_bytes(server.read_bytes() + b"x")
    manifest = cluster.current("b") / "manifest.json"
    manifest.write_text(manifest.read_text().replace(before, cluster.hashes("b")["rpc-server"]))


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """Two hosts with nothing on them."""
    return Cluster(tmp_path)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cluster, PlaybookResult]:
    """A first deployment to both hosts, and what it did; tests change a copy of it."""
    cluster = Cluster(tmp_path_factory.mktemp("first"))
    return cluster, cluster.deploy()


@pytest.fixture
def deployed(first: tuple[Cluster, PlaybookResult], tmp_path: Path) -> Cluster:
    shutil.copytree(first[0].root, tmp_path, symlinks=True, dirs_exist_ok=True)
    return Cluster(tmp_path)


def test_one_host_builds_for_all_of_its_platform(
    first: tuple[Cluster, PlaybookResult], deployed: Cluster
) -> None:
    assert builders(first[1]) == ["a"]
    assert deployed.current("a").name == deployed.current("b").name
    manifest = json.loads((deployed.current("b") / "manifest.json").read_text())
    assert deployed.hashes("a") == deployed.hashes("b") == manifest["binaries"]
    assert (manifest["build"], manifest["commit"], manifest["accelerator"]) == (6743, "c7be9febc", "cpu")
    assert deployed.deploy().changed_tasks == []


def test_another_pin_or_other_flags_are_a_new_folder_and_the_old_one_stays(deployed: Cluster) -> None:
    old = deployed.current("a")
    deployed.deploy(6743, llama_cpp_cmake_extra=["-DGGML_NATIVE=OFF"], llama_cpp_activate=False)
    assert deployed.current("a") == old
    assert len(list(old.parent.glob(f"{old.name}-*/manifest.json"))) == 1
    deployed.deploy(11434, files=NEWER)
    assert "0.6.0 (build 11434, commit unknown)" in says(deployed.current("b"))
    assert "6743 (c7be9febc)" in says(old)


def test_a_build_of_fewer_programs_stands_beside_the_whole_one(deployed: Cluster) -> None:
    whole = deployed.current("a")
    fewer: dict[str, object] = {"llama_cpp_programs": ["rpc-server"], "llama_cpp_activate": False}
    deployed.deploy(**fewer)  # type: ignore[arg-type]
    assert deployed.current("a") == whole
    (beside,) = (folder for folder in whole.parent.glob("6743-*") if folder != whole)
    assert [path.name for path in (beside / "bin").iterdir()] == ["rpc-server"]
    assert deployed.deploy(**fewer).changed_tasks == []  # type: ignore[arg-type]


def test_build_is_made_again_when_the_cache_is_lost(deployed: Cluster) -> None:
    shutil.rmtree(deployed.root / "a")
    result = deployed.deploy(llama_cpp_cache_dir=str(deployed.root / "another"))
    assert builders(result) == ["a"]
    assert deployed.hashes("a") == deployed.hashes("b")
    assert list((deployed.root / "another" / "builds").glob("*.tar.gz"))


def test_build_of_a_host_that_agrees_with_itself_alone_is_given_to_nobody(deployed: Cluster) -> None:
    good = deployed.hashes("a")
    backdoor(deployed)
    shutil.rmtree(deployed.root / "a")
    result = deployed.deploy(llama_cpp_cache_dir=str(deployed.root / "another"))
    assert builders(result) == ["a"]
    assert deployed.hashes("a") == deployed.hashes("b") == good, "and it is given the new one itself"


def test_host_whose_build_is_not_the_noted_one_is_given_that(deployed: Cluster) -> None:
    good = deployed.hashes("a")
    backdoor(deployed)
    assert builders(deployed.deploy()) == []
    assert deployed.hashes("b") == good
    assert deployed.deploy().changed_tasks == []


def test_note_of_an_earlier_release_of_the_harness_is_still_valid(deployed: Cluster) -> None:
    (note,) = (deployed.root / "cache" / "builds").glob("*.tar.gz.json")
    kept = json.loads(note.read_text())
    note.write_text(json.dumps({"sha256": kept["sha256"], "from": kept["from"]}))
    shutil.rmtree(deployed.root / "a")
    assert builders(deployed.deploy()) == []
    assert deployed.hashes("a") == deployed.hashes("b")


def test_a_package_that_was_cut_is_made_again_and_a_damaged_build_replaced(deployed: Cluster) -> None:
    good = deployed.hashes("a")
    (package,) = (deployed.root / "cache" / "builds").glob("*.tar.gz")
    package.write_bytes(package.read_bytes()[:-100])
    (deployed.current("b") / "bin" / "rpc-server").write_text("damaged")
    assert builders(deployed.deploy()) == ["b"]
    assert deployed.hashes("a") == deployed.hashes("b") == good


def test_each_host_builds_where_that_is_asked_for(cluster: Cluster) -> None:
    assert sorted(builders(cluster.deploy(llama_cpp_build_per_node=True))) == ["a", "b"]
    assert not (cluster.root / "cache" / "builds").exists()


def test_a_host_with_another_file_is_named_with_the_file_where_nothing_is_noted(deployed: Cluster) -> None:
    backdoor(deployed)
    with pytest.raises(HarnessError, match=r"b: bin/rpc-server in .* is another file than on a;"):
        deployed.deploy(llama_cpp_cache_dir=str(deployed.root / "another"))


def test_build_that_an_interrupted_deployment_left_is_ended_first(cluster: Cluster) -> None:
    with pytest.raises(HarnessError, match=f"a: {BUILD_TASK}"):
        cluster.deploy(files={"main.cpp": "int main() { return missing; }\n"}, limit="a")
    (work,) = (cluster.root / "a").glob(".build-6743-*")
    with subprocess.Popen(["sleep", "600"], cwd=work / "build") as left:
        cluster.deploy(limit="a")
        assert left.wait(10) == -signal.SIGKILL
    assert cluster.installed() != []


def test_a_source_that_builds_another_release_is_not_installed(cluster: Cluster) -> None:
    lying = {"main.cpp": DOUBLE["main.cpp"].replace("BUILD, COMMIT", "1, COMMIT")}
    with pytest.raises(HarnessError, match=r"6743 built a llama-server that says 'version: 1 \(c7be9febc\)'"):
        cluster.deploy(files=lying, limit="a")
    assert cluster.installed() == []


def test_a_source_that_does_not_compile_names_the_host_and_installs_nothing(cluster: Cluster) -> None:
    with pytest.raises(HarnessError, match=f"a: {BUILD_TASK}"):
        cluster.deploy(files={"main.cpp": "int main() { return missing; }\n"})
    assert cluster.installed() == []


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"llama_cpp_build": 1234}, r"1234 is not in the release catalogue, which has 6666, 6689"),
        (
            {"llama_cpp_accepted_issues": ["CVE-2026-21869"]},
            r"6743 has a remote code execution that a newer release has fixed \(CVE-2026-34159\): pin 11549",
        ),
        ({"llama_cpp_accepted_issues": "CVE-1"}, r"no issue 'CVE-1' is known; there are CVE-2026-34159, "),
        ({"llama_cpp_source": "pypi"}, r"6743 has no source 'pypi'; it has: git, archive"),
        ({"llama_cpp_archive_sha256": "0" * 64}, rf"has sha256 [0-9a-f]+, expected {'0' * 64}"),
        ({"llama_cpp_accelerator": "rocm"}, r"llama_cpp_accelerator rocm needs hipconfig"),
    ],
    ids=[
        "unknown release",
        "refused release",
        "unknown issue",
        "no such source",
        "wrong checksum",
        "no toolkit",
    ],
)
def test_a_wrong_pin_fails_in_one_line_and_installs_nothing(
    cluster: Cluster, variables: dict[str, object], said: str
) -> None:
    with pytest.raises(HarnessError, match=said) as caught:
        cluster.deploy(**{"limit": "a", **variables})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert cluster.installed() == []


def test_an_accelerator_that_is_none_is_refused_before_anything_else(cluster: Cluster) -> None:
    with pytest.raises(HarnessError, match="must be one of: cpu, cuda, vulkan, rocm, got: abacus"):
        cluster.deploy(llama_cpp_accelerator="abacus", limit="a")
    assert not (cluster.root / "a").exists()
