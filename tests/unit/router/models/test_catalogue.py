"""The models of the head node's disk: a bad file is one problem, told once, whatever is asked."""

import logging
import os
from pathlib import Path

import pytest
from harness.errors import HarnessError
from harness.llama import gguf
from harness.llama.synthetic.writer import synthesise
from harness.router.models.catalogue import Catalogue
from tests.unit.ollama_storage import pull


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good model and a bad one."""
    synthesise("tiny", "Q4_0", tmp_path / "good.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    return tmp_path


def problems(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says of unreadable models."""
    return [record.fields["error"] for record in caplog.records if record.getMessage() == "model_unreadable"]  # type: ignore[attr-defined]


def test_bad_file_is_read_once_and_logged_once(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING)
    reads = 0

    def counted(path: Path) -> gguf.GgufModel:
        nonlocal reads
        reads += 1
        return gguf.read_gguf(path)

    monkeypatch.setattr("harness.router.models.catalogue.read_gguf", counted)
    catalogue = Catalogue(folder)
    bad, good = catalogue.files()
    for _ in range(3):
        assert catalogue.header(good).block_count == 4
        with pytest.raises(HarnessError, match=r"bad\.gguf: damaged GGUF header"):
            catalogue.header(bad)
    assert reads == 2
    assert len(problems(caplog)) == 1


def test_file_that_was_replaced_is_read_again(folder: Path) -> None:
    catalogue = Catalogue(folder)
    bad = catalogue.files()[0]
    with pytest.raises(HarnessError):
        catalogue.header(bad)
    (folder / "good.gguf").replace(folder / "bad.gguf")
    assert catalogue.header(catalogue.files()[0]).block_count == 4


def test_file_that_could_not_be_read_is_tried_again_and_logged_once(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING)
    catalogue = Catalogue(folder)
    good = catalogue.files()[1]
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
        for _ in range(2):
            with pytest.raises(HarnessError, match="Permission denied"):
                catalogue.header(good)
    assert catalogue.header(good).block_count == 4
    assert len(problems(caplog)) == 1


def test_bad_manifest_of_ollama_is_logged_once_and_the_others_are_listed(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    storage = folder / "ollama"
    pull(storage, "registry.ollama.ai/library/story/latest", folder / "good.gguf")
    bad = storage / "manifests/registry.ollama.ai/library/bad/latest"
    bad.parent.mkdir(parents=True)
    bad.write_text("[" * 200_000)
    catalogue = Catalogue(folder, storage)
    for _ in range(2):
        assert [file.name for file in catalogue.files()] == ["bad", "good", "story:latest"]
    assert len(problems(caplog)) == 1
