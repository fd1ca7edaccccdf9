"""playbooks/models.yml against a head node that is this machine, its models folder in the test's own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from harness.llama.synthetic.writer import synthesise
from harness.settings import PLAYBOOKS, REPOSITORY

pytestmark = pytest.mark.integration


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    head = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    path = tmp_path / "hosts.yml"
    path.write_text(json.dumps({"all": {"children": {"head": {"hosts": {"node1": head}}}}}))
    return path


def play(inventory: Path, **variables: object) -> tuple[int, int, str]:
    """Exit status, changed tasks and output of one run."""
    tool = Path(sys.executable).with_name("ansible-playbook")
    command = [str(tool), "-i", str(inventory), str(PLAYBOOKS / "models.yml"), "-e", json.dumps(variables)]
    # As wide as the longest message, so that none is folded.
    environment = {**os.environ, "ANSIBLE_CALLBACK_RESULT_FORMAT": "json", "ANSIBLE_FORCE_COLOR": "0"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    changed = re.search(r"changed=(\d+)", done.stdout)
    return done.returncode, int(changed.group(1)) if changed else -1, done.stdout + done.stderr


def test_model_is_brought_once_and_again_when_it_differs(tmp_path: Path, inventory: Path) -> None:
    model = synthesise("tiny", "Q8_0", tmp_path / "tiny.gguf").path
    folder = tmp_path / "head" / "models"
    wanted = {"model": str(model), "llama_harness_models_dir": str(folder)}
    status, changed, output = play(inventory, **wanted)
    assert (status, changed > 0) == (0, True), output
    brought = folder / "tiny.gguf"
    assert brought.read_bytes() == model.read_bytes()
    assert play(inventory, **wanted)[:2] == (0, 0)

    content = bytearray(model.read_bytes())
    content[-100] ^= 1
    brought.write_bytes(content)
    assert play(inventory, **wanted)[:2] == (0, 0), "the size alone is looked at"
    assert play(inventory, **wanted, models_verify=True)[:2] == (0, 1)
    assert brought.read_bytes() == model.read_bytes()


def test_missing_model_and_read_only_folder_fail_in_one_line(tmp_path: Path, inventory: Path) -> None:
    status, _, output = play(inventory, model="no-such-model")
    assert status != 0
    assert "harness: no model 'no-such-model'; looked at: " in output
    model = synthesise("tiny", "Q8_0", tmp_path / "tiny.gguf").path
    status, _, output = play(inventory, model=str(model), llama_harness_models_dir="/proc/sys")
    assert status != 0
    assert "node1: /proc/sys is read-only and tiny.gguf in it is missing" in output
