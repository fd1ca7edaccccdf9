"""From a name to a file: Ollama's real folder layout, GGUF paths and the cache."""

import shutil
from pathlib import Path

import pytest
from harness.errors import HarnessError
from harness.llama import ollama_storage as ollama
from harness.llama.ollama_storage import parse_name, storages
from harness.llama.synthetic.writer import synthesise
from harness.models import resolve_model
from tests.unit.ollama_storage import pull


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesise("tiny", "Q4_0", tmp_path_factory.mktemp("gguf") / "tiny.gguf").path


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home, a cache and service folders of the test's own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LLAMA_HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("name", "manifest", "stem"),
    [
        ("codellama:13b", "registry.ollama.ai/library/codellama/13b", "codellama-13b"),
        ("llama3.1", "registry.ollama.ai/library/llama3.1/latest", "llama3.1"),
        ("someone/story:q8", "registry.ollama.ai/someone/story/q8", "someone-story-q8"),
        ("hf.co/user/Repo-GGUF:Q4_K_M", "hf.co/user/Repo-GGUF/Q4_K_M", "hf.co-user-Repo-GGUF-Q4_K_M"),
        ("hf.co/user/repo-gguf:q4_k_m", "hf.co/user/Repo-GGUF/Q4_K_M", "hf.co-user-repo-gguf-q4_k_m"),
        ("localhost:5000/lab/m:1", "localhost:5000/lab/m/1", "localhost-5000-lab-m-1"),
    ],
)
def test_ollama_name_leads_to_its_blob(home: Path, model: Path, name: str, manifest: str, stem: str) -> None:
    digest = pull(home / ".ollama/models", manifest, model)
    resolved = resolve_model(name)
    facts = resolved.describe()
    assert facts["path"] == str(home / ".ollama/models/blobs" / digest.replace(":", "-"))
    assert (facts["digest"], facts["source"], facts["file_name"]) == (digest, "ollama", f"{stem}.gguf")
    assert (facts["bytes"], facts["architecture"], facts["quantisation"]) == (
        model.stat().st_size,
        "llama",
        "Q4_0",
    )


def test_blob_named_by_older_ollama_is_found(home: Path, model: Path) -> None:
    pull(home / ".ollama/models", "registry.ollama.ai/library/old/latest", model, mark=":")
    assert resolve_model("old").gguf.path.name.startswith("sha256:")


def test_ollama_models_variable_comes_first(
    home: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "elsewhere"))
    for storage in (home / ".ollama/models", tmp_path / "elsewhere"):
        pull(storage, "registry.ollama.ai/library/m/latest", model)
    assert tmp_path / "elsewhere" in resolve_model("m").gguf.path.parents
    assert Path("/usr/share/ollama/.ollama/models") in storages()


def test_service_storage_is_looked_at_too(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.models.storages", lambda: [tmp_path / "user", tmp_path / "service"])
    pull(tmp_path / "service", "registry.ollama.ai/library/m/latest", model)
    assert resolve_model("m").source == "ollama"


def test_path_and_cache_name_are_found(model: Path, tmp_path: Path) -> None:
    assert resolve_model(str(model)).source == "path"
    cached = tmp_path / "cache/models/13b-q4_0.gguf"
    cached.parent.mkdir(parents=True)
    shutil.copy(model, cached)
    assert resolve_model("13b-q4_0").gguf.path == cached
    assert resolve_model("13b-q4_0").name == "13b-q4_0"


def test_unknown_model_lists_what_was_looked_at(home: Path, tmp_path: Path) -> None:
    with pytest.raises(HarnessError) as refused:
        resolve_model("codellama:13b")
    line = str(refused.value)
    assert "no model 'codellama:13b'" in line
    assert str(home / ".ollama/models") in line
    assert str(tmp_path / "cache/models") in line
    assert "/usr/share/ollama" in line
    assert "\n" not in line


def test_missing_blob_cut_blob_and_damaged_manifest_are_named(home: Path, model: Path) -> None:
    storage = home / ".ollama/models"
    digest = pull(storage, "registry.ollama.ai/library/m/latest", model)
    blob = storage / "blobs" / digest.replace(":", "-")
    with blob.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(HarnessError, match="has 100 bytes, its manifest says"):
        resolve_model("m")
    blob.unlink()
    with pytest.raises(HarnessError, match=r"blob .* is missing; pull it again"):
        resolve_model("m")
    (storage / "manifests/registry.ollama.ai/library/m/latest").write_text("{not json")
    with pytest.raises(HarnessError, match="damaged Ollama manifest"):
        resolve_model("m")


MODEL_LAYER = "application/vnd.ollama.image.model"


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"layers": 5}',
        '{"layers": [' + '{"mediaType": "x"},' * 60_000 + "{}]}",
        *(
            f'{{"layers": [{{"mediaType": "{MODEL_LAYER}", "digest": {digest}, "size": {size}}}]}}'
            for digest, size in [
                ('"/etc/passwd"', 1),
                ('"sha256-../../secret.gguf"', 1),
                ('"sha256:ABC"', 1),
                ("7", 1),
                (f'"sha256:{"a" * 64}"', "1e999"),
            ]
        ),
    ],
    ids=["deep", "no list", "long", "absolute", "upwards", "short", "number", "infinite"],
)
def test_manifest_of_another_form_is_damaged_and_alone_in_it(home: Path, model: Path, text: str) -> None:
    """It names no file outside the storage, says nothing of one, and leaves the list of the others whole."""
    storage = home / ".ollama/models"
    pull(storage, "registry.ollama.ai/library/good/latest", model)
    (storage / "secret.gguf").write_bytes(model.read_bytes())
    bad = storage / "manifests/registry.ollama.ai/library/bad/latest"
    bad.parent.mkdir(parents=True)
    bad.write_text(text)
    with pytest.raises(HarnessError, match=f"damaged Ollama manifest {bad}; pull it again"):
        resolve_model("bad")
    models, problems = ollama.list_models(storage)
    assert [one.name.short for one in models] == ["good:latest"]
    assert problems == [
        f"model 'registry.ollama.ai/library/bad:latest': damaged Ollama manifest {bad}; pull it again"
    ]


def test_model_without_a_gguf_layer_is_refused(home: Path, model: Path) -> None:
    pull(home / ".ollama/models", "registry.ollama.ai/library/m/latest", model, media="tensor")
    with pytest.raises(HarnessError, match="lists no GGUF layer"):
        resolve_model("m")


@pytest.mark.parametrize("text", ["", "/absolute/path.gguf", "./m", "../m", "a//b", "a/b/c/d/e"])
def test_paths_are_no_ollama_names(text: str) -> None:
    assert parse_name(text) is None


def test_full_name_is_shown() -> None:
    assert str(parse_name("codellama")) == "registry.ollama.ai/library/codellama:latest"
    assert ollama.parse_name("hf.co/u/r:Q8_0") == ollama.OllamaName("hf.co", "u", "r", "Q8_0")
