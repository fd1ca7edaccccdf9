"""What is written of a machine before it boots."""

from pathlib import Path

import pytest
from harness.lab.machine import Machine, make
from tests.unit.lab.lab_spec import lab_spec


def test_private_host_key_is_readable_by_nobody_else_from_its_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user may read a file between its first byte and a later chmod."""
    lab = lab_spec(tmp_path)
    (lab.folder / "ssh" / "hosts" / "node1").mkdir(parents=True)
    (lab.folder / "ssh" / "id_ed25519.pub").write_text("public\n")
    key = lab.folder / "ssh" / "hosts" / "node1" / "ssh_host_ed25519_key"
    key.write_text("secret\n")
    key.chmod(0o600)
    lax: list[str] = []
    replace, chmod = Path.replace, Path.chmod

    def check(path: Path) -> None:
        if path.is_file() and "secret" in path.read_text() and path.stat().st_mode & 0o077:
            lax.append(path.name)

    monkeypatch.setattr(Path, "chmod", lambda path, mode: (check(path), chmod(path, mode))[1])
    monkeypatch.setattr(Path, "replace", lambda path, to: (check(path), replace(path, to))[1])
    machine = Machine(lab, "node1")
    assert make(machine, lab.machine("node1"), tmp_path / "image")
    assert not lax
    written = machine.folder / "upper" / "etc" / "ssh" / key.name
    assert (written.read_text(), written.stat().st_mode & 0o777) == ("secret\n", 0o600)
    assert not make(machine, lab.machine("node1"), tmp_path / "image")
