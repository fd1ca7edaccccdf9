"""Where things are on the control machine."""

from pathlib import Path

import pytest
from harness.settings import state_dir


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMA_HARNESS_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def test_inventories_of_one_name_do_not_share_a_folder(tmp_path: Path, state: Path) -> None:
    one, other = tmp_path / "a" / "inventory", tmp_path / "b" / "inventory"
    for folder in (one, other):
        folder.mkdir(parents=True)
        (folder / "hosts.yml").touch()
    assert state_dir(one) != state_dir(other)
    assert state_dir(one) == state_dir(one / "hosts.yml")
    assert state_dir(one).parent == state
    assert state_dir(one).name.startswith("inventory-")
