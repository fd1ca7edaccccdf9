"""Models named by name or profile exist afterwards, each with a line that says where it came from."""

from pathlib import Path

import pytest
from harness import models
from harness.cli import app
from harness.errors import HarnessError
from harness.llama.synthetic.writer import synthesise
from harness.models import bytes_to_write, ensure_model, model_bytes
from harness.trials.profile.profile import PROFILES, load_profile
from typer.testing import CliRunner

SHIPPED = sorted(path.stem for path in PROFILES.glob("*.yml"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMA_HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    return tmp_path / "cache"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No download: the packaged model is a small synthetic one."""

    def fetch(name: str) -> Path:
        return synthesise("tiny", "Q4_0", models.cached_path(name)).path

    monkeypatch.setattr(models, "fetch_model", fetch)


def ensure_lines(*words: str) -> list[str]:
    done = CliRunner().invoke(app, ["model", "ensure", *words])
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


@pytest.mark.usefixtures("quick")
def test_models_of_a_profile_s_trials_are_brought_and_told_by_a_line_each(
    tmp_path: Path, cache: Path
) -> None:
    trials = "[{kind: load, model: small}, {kind: unload, model: small}, {kind: pool, model: smollm2}]"
    (tmp_path / "mine.yml").write_text(f"models: {{small: tiny-q8_0}}\ntrials: {trials}\n")
    first, second = (ensure_lines("--profile", str(tmp_path / "mine.yml")) for _ in range(2))
    assert [line.split(": ")[:2] for line in first] == [["tiny-q8_0", "made"], ["smollm2", "fetched"]]
    assert [line.split(": ")[1] for line in second] == ["there already", "there already"]
    assert {path.name for path in (cache / "models").glob("*.gguf")} == {"tiny-q8_0.gguf", "smollm2.gguf"}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_profile_names_models_that_can_be_brought(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought = []

    def note(name: str, progress: object) -> str:
        brought.append(name)
        assert model_bytes(name) > 0
        return f"{name}: noted"

    monkeypatch.setattr(models, "ensure_model", note)
    assert len(ensure_lines("--profile", name)) == len(brought) > 0
    assert brought == load_profile(name)[2].model_names


def test_names_and_profile_may_be_mixed_and_each_is_brought_once(tmp_path: Path) -> None:
    (tmp_path / "mine.yml").write_text("trials: [{kind: load, model: tiny-q8_0}]\n")
    assert len(ensure_lines("tiny-q8_0", "--profile", str(tmp_path / "mine.yml"))) == 1


def test_space_is_wanted_for_what_is_not_there() -> None:
    before = bytes_to_write("tiny-q8_0")
    file_bytes = ensure_model("tiny-q8_0").path.stat().st_size
    assert 0.8 * file_bytes < before <= file_bytes
    assert bytes_to_write("tiny-q8_0") == 0
    assert bytes_to_write("smollm2") == model_bytes("smollm2") > 0


def test_model_of_one_s_own_is_there_already_or_named_with_what_can_be_had(tmp_path: Path) -> None:
    own = synthesise("tiny", "Q4_0", tmp_path / "own.gguf").path
    assert (ensure_model(str(own)).how, bytes_to_write(str(own))) == ("there already", 0)
    with pytest.raises(HarnessError, match=r"no model 'llama9'; .*can be fetched: smollm2; can be made: "):
        ensure_model("llama9")
