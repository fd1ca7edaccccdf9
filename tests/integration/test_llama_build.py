"""The pinned build runs on this machine and says what it is."""

import json
import subprocess
from pathlib import Path

import pytest

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
