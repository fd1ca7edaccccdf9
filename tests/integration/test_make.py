"""What `make` runs before there is a harness: each refusal is one line with the way out."""

import fcntl
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from harness.settings import REPOSITORY

pytestmark = pytest.mark.integration
SCRIPTS = REPOSITORY / "scripts"
LOCK = Path("/run/lock/llama-harness-benchmark")
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="another user is become, or a lock of root's is held"
)


def said(*argv: str | Path, script: str | None = None, **variables: str) -> str:
    """The one line that a script gives when it refuses."""
    environment = {**os.environ, **variables}
    done = subprocess.run(
        argv, input=script, capture_output=True, text=True, env=environment, cwd="/", check=False
    )
    assert done.returncode == 1, done
    (line,) = done.stderr.splitlines()
    return line


@needs_root
def test_benchmark_without_root_is_refused() -> None:
    as_nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "bash")
    line = said(*as_nobody, script=(SCRIPTS / "benchmark").read_text())
    assert line.startswith("make benchmark: the lab needs root: run this as root or with sudo;")


@needs_root
def test_second_benchmark_beside_the_first_is_refused() -> None:
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("a") as first:
        with suppress(BlockingIOError):  # one that runs now is as good
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        line = said(SCRIPTS / "benchmark")
    assert line == "make benchmark: another make benchmark runs on this computer; wait until it has ended"


def test_packages_that_cannot_be_had_are_named_with_apts_own_reason(tmp_path: Path) -> None:
    """The doubles know no package, and an apt that reaches no mirror."""
    for name, script in (
        ("dpkg-query", "exit 1"),
        ("dpkg", "exit 0"),
        ("id", "echo 0"),
        ("apt-get", "echo 'E: Failed to fetch http://mirror/x  Could not resolve' >&2; exit 100"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    line = said(SCRIPTS / "apt-ensure", "tmux", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert line.startswith("apt-ensure: cannot install tmux: E: Failed to fetch http://mirror/x")
    assert line.endswith("repair the network or apt's sources, then run this again")


def test_python_packages_that_cannot_be_had_are_one_line_and_the_next_try_goes_on(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "requirements").mkdir()
    shutil.copy(SCRIPTS / "venv-ensure", tmp_path / "scripts")
    (tmp_path / "scripts" / "apt-ensure").write_text("#!/bin/sh\n")
    (tmp_path / "scripts" / "apt-ensure").chmod(0o755)
    (tmp_path / "requirements" / "dev.lock").write_text(f"nowhere-to-be-had==1.0 --hash=sha256:{'0' * 64}\n")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)  # one that was cut short: it has no pip
    line = said(tmp_path / "scripts" / "venv-ensure", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    assert line.startswith(
        "venv-ensure: cannot install Python packages: ERROR: No matching distribution found"
    )
    assert not (tmp_path / ".venv" / ".installed").exists()
    assert (tmp_path / ".venv" / "bin" / "pip").exists()
