"""The pinned build runs on this machine and says what it is."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from harness.llama.releases import server_flags
from harness.llama.releases.catalogue import installed_build
from harness.release_proof.local import local_build

pytestmark = pytest.mark.integration


def test_llama_server_says_the_pinned_build(llama_build: Path) -> None:
    manifest = json.loads((llama_build.parent / "manifest.json").read_text())
    done = subprocess.run(
        [llama_build / "llama-server", "--version"], capture_output=True, text=True, check=True
    )
    assert f"(build {manifest['build']}, commit {manifest['commit']})" in done.stderr


def test_the_build_needs_no_shared_library_of_its_own(llama_build: Path) -> None:
    for name in ("rpc-server", "llama-server", "llama-bench"):
        needed = subprocess.run(
            ["ldd", llama_build / name], capture_output=True, text=True, check=True
        ).stdout
        assert "not found" not in needed
        assert "libllama" not in needed
        assert "libggml" not in needed


@pytest.mark.parametrize(
    "build", [None, *(pytest.param(b, marks=pytest.mark.long) for b in (6751, 6792, 10566, 11434))]
)
def test_allowed_options_are_those_that_the_release_has(llama_build: Path, build: int | None) -> None:
    server = (local_build(build) if build else llama_build) / "llama-server"
    text = subprocess.run([server, "--help"], capture_output=True, text=True, check=True).stdout
    named = set(re.findall(r"(?:^|, +)(-{1,2}[\w.-]+)(?=[ ,\n])", text, re.MULTILINE))
    release = build or installed_build(server)
    for options in server_flags._read().allowed:
        assert {name: options.known_to(release) for name in options.names} == {
            n: n in named for n in options.names
        }
