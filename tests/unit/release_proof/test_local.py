"""A release built on this computer, for what runs on the loopback alone."""

from pathlib import Path
from typing import Any

import pytest
from harness.errors import HarnessError
from harness.llama.releases.catalogue import catalogue
from harness.release_proof.local import local_build


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMA_HARNESS_CACHE", str(tmp_path))
    return tmp_path


def test_what_is_known_against_a_release_is_accepted_for_loopback_alone(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def played(_playbook: Path, _inventory: Path, variables: dict[str, Any], **_: Any) -> None:
        seen.update(variables)
        Path(variables["local_build_note"]).write_text(str(cache / "local" / "6751-here"))

    monkeypatch.setattr("harness.release_proof.local.run_playbook", played)
    assert local_build(6751, ["rpc-server"]) == cache / "local" / "6751-here" / "bin"
    assert seen["llama_cpp_accepted_issues"] == [issue.id for issue in catalogue().refusals(6751)] != []
    assert (seen["llama_cpp_programs"], seen["llama_cpp_activate"]) == (["rpc-server"], False)


def test_a_release_that_nobody_knows_is_refused_first(cache: Path) -> None:
    with pytest.raises(HarnessError, match="1234 is not in the release catalogue"):
        local_build(1234)
    assert list(cache.iterdir()) == []
