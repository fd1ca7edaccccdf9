"""README's commands, and the shell of somebody who types them."""

import os
import re
import subprocess
from pathlib import Path

from tests.lab.lab_under_test import LabUnderTest

REPOSITORY = Path(__file__).parents[2]
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
RUN_BY_OTHER_MEANS = {"make test": "runs these tests"}


def commands() -> list[str]:
    """Commands of README's shell blocks in order, without their comments."""
    blocks = BLOCK.findall((REPOSITORY / "README.md").read_text())
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


TAKE_DOWN = ["ansible-playbook playbooks/teardown.yml -e confirm=true", "harness lab down"]
GET_STARTED = [c for c in commands() if c not in TAKE_DOWN and c not in RUN_BY_OTHER_MEANS]


def type_in(command: str, lab: LabUnderTest) -> str:
    """What a command prints in the repository's folder, with this lab as inventory and a short profile."""
    environment = {
        **os.environ,
        "PATH": f"{REPOSITORY / '.venv/bin'}:{os.environ['PATH']}",
        "HARNESS_INVENTORY": str(lab.path),
        "ANSIBLE_INVENTORY": str(lab.path),
        "MAKEFLAGS": f"INVENTORY={lab.path} PROFILE=smoke",
    }
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=2700,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout
