"""README word for word: every command in it, in order, against the two-node lab.

`make benchmark` is run with the smoke profile; `make test` is what runs this file.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest
from lab_under_test import LabUnderTest

REPOSITORY = Path(__file__).parents[2]
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
RUN_BY_OTHER_MEANS = {"make test": "runs this file"}


def readme_commands() -> list[str]:
    """Commands of README's shell blocks, without their comments."""
    blocks = BLOCK.findall((REPOSITORY / "README.md").read_text())
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def environment(lab2: LabUnderTest) -> dict[str, str]:
    """The shell of somebody in the repository, with the two-node lab as inventory and a short profile."""
    return {
        **os.environ,
        "PATH": f"{REPOSITORY / '.venv/bin'}:{os.environ['PATH']}",
        "HARNESS_INVENTORY": str(lab2.path),
        "ANSIBLE_INVENTORY": str(lab2.path),
        "MAKEFLAGS": f"INVENTORY={lab2.path} PROFILE=smoke",
    }


@pytest.mark.parametrize("command", [c for c in readme_commands() if c not in RUN_BY_OTHER_MEANS])
def test_readme_command_works(command: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


def test_readme_opens_with_the_two_commands() -> None:
    assert readme_commands()[:2] == ["make benchmark", "make test"]
