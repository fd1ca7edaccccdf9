"""A build on this computer that is interrupted leaves nothing that goes on compiling."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.errors import HarnessError
from harness.releases.catalogue import catalogue
from harness.releases.local import local_build


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMA_HARNESS_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def compilers(cache: Path) -> Iterator[tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]]:
    """Two that compile: build 6751, and another one."""
    started = []
    for build in ("6751", "6792"):
        folder = cache / "local" / f".build-{build}-here" / "build"
        folder.mkdir(parents=True)
        started.append(subprocess.Popen(["sleep", "infinity"], cwd=folder))
    yield started[0], started[1]
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("end", [KeyboardInterrupt(), HarnessError("localhost: no room")])
def test_compilers_of_a_build_end_with_it(
    end: BaseException,
    compilers: tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise end

    monkeypatch.setattr("harness.releases.local.run_playbook", interrupted)
    with pytest.raises(type(end)):
        local_build(6751)
    assert compilers[0].wait(10) == -9
    assert compilers[1].poll() is None


def test_what_is_known_against_a_release_is_accepted_for_loopback_alone(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def played(_playbook: Path, _inventory: Path, variables: dict[str, Any], **_: Any) -> None:
        seen.update(variables)
        Path(variables["local_build_note"]).write_text(str(cache / "local" / "6751-here"))

    monkeypatch.setattr("harness.releases.local.run_playbook", played)
    assert local_build(6751, ["rpc-server"]) == cache / "local" / "6751-here" / "bin"
    assert seen["llama_cpp_accepted_issues"] == [issue.id for issue in catalogue().refusals(6751)] != []
    assert (seen["llama_cpp_programs"], seen["llama_cpp_activate"]) == (["rpc-server"], False)


def test_a_release_that_nobody_knows_is_refused_first(cache: Path) -> None:
    with pytest.raises(HarnessError, match="1234 is not in the release catalogue"):
        local_build(1234)
    assert list(cache.iterdir()) == []
