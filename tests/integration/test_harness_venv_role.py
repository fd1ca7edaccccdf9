"""Role harness_venv: the environment that a service runs from stays on its node."""

import os
import subprocess
import venv
from pathlib import Path

import pytest
from harness.cluster.ansible import run_playbook

HERE = Path(__file__).parent / "harness_venv_role"
OLD_S = 2 * 3600

pytestmark = pytest.mark.integration


def test_environment_of_a_running_service_is_not_removed(tmp_path: Path) -> None:
    """Two deployments with the tag of the other service have moved the link meanwhile."""
    environments = tmp_path / "venvs"
    for name in ("unused", "before", "linked", "new"):
        (environments / name).mkdir(parents=True)
    (tmp_path / "venv").symlink_to("venvs/linked")
    venv.create(environments / "runs", symlinks=True)
    # As pip writes a script: the interpreter is named without the link.
    script = environments / "runs" / "bin" / "service"
    script.write_text(f"#!{environments}/runs/bin/python\nimport sys\nprint(flush=True)\nsys.stdin.read()\n")
    script.chmod(0o755)
    for folder in environments.iterdir():
        before = folder.stat().st_mtime - OLD_S
        os.utime(folder, (before, before))
    os.utime(environments / "before")
    service = subprocess.Popen([script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert service.stdout is not None
        service.stdout.readline()
        given = {"harness_venv_root": str(tmp_path), "harness_venv_key": "new"}
        run_playbook(HERE / "prune.yml", HERE / "hosts.yml", given)
        assert sorted(path.name for path in environments.iterdir()) == ["before", "linked", "new", "runs"]
    finally:
        service.communicate()
    run_playbook(HERE / "prune.yml", HERE / "hosts.yml", given)
    assert sorted(path.name for path in environments.iterdir()) == ["before", "linked", "new"]
