"""Profiles: the YAML files that say what a run contains."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from harness.diagnosis.model import FailureClass
from harness.errors import HarnessError
from harness.lab.spec import parse_size

PROFILES = Path(__file__).with_name("profiles")


Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]
Deadline = Annotated[float, Field(gt=0, le=24 * 3600)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Starve(_Strict):
    """Lower one lab node's memory limit for as long as the model is loaded."""

    node: str
    memory: Size = Field(description="the limit, in bytes or as 1.5G")


class PoolStep(_Strict):
    """Chat requests to a small model through the pool."""

    kind: Literal["pool"]
    model: str
    requests: int = Field(3, ge=1)
    prompt_tokens: int = Field(35, ge=1)
    generated_tokens: int = Field(32, ge=1)
    deadline_s: Deadline = Field(120, description="per request")


class LoadStep(_Strict):
    """Load a model over the backends."""

    kind: Literal["load"]
    model: str
    cache: Literal["cold", "warm"] = "cold"
    nodes: Annotated[int, Field(ge=1)] | list[str] | None = Field(
        None, description="backends by name, or how many of them; all without it"
    )
    n_gpu_layers: int | None = Field(None, ge=0)
    context: int = Field(2048, ge=128)
    flags: list[str] = []
    starve: Starve | None = None
    expected: FailureClass | None = None
    deadline_s: Deadline = 900


class InferenceStep(_Strict):
    """Requests of one prompt length to the loaded model."""

    kind: Literal["inference"]
    model: str
    prompt_tokens: int = Field(ge=1)
    generated_tokens: int = Field(ge=1)
    repeats: int = Field(1, ge=1)
    expected: FailureClass | None = None
    deadline_s: Deadline = Field(600, description="per request")


class UnloadStep(_Strict):
    """Stop the coordinator and read how it ended."""

    kind: Literal["unload"]
    model: str
    expected: FailureClass = FailureClass.STOPPED
    deadline_s: Deadline = 60


Step = PoolStep | LoadStep | InferenceStep | UnloadStep
_STEPS: dict[str, type[BaseModel]] = {
    "pool": PoolStep,
    "load": LoadStep,
    "inference": InferenceStep,
    "unload": UnloadStep,
}


class Profile(_Strict):
    """What a run contains, in order."""

    description: str = ""
    extends: str | None = Field(None, description="a shipped profile whose trials come first")
    trials: list[Annotated[Step, Field(discriminator="kind")]] = Field(min_length=1)

    @property
    def models(self) -> list[str]:
        """Names of the models that the trials use, each once, in order."""
        return list(dict.fromkeys(step.model for step in self.trials))


def load_profile(name: str) -> tuple[str, str, Profile]:
    """A profile by the name of a shipped one or by its path.

    Returns:
        Its name, its text and its content (with the trials of what it extends).

    Raises:
        HarnessError: there is no such profile, or a key or value in it is wrong.
    """
    return _load(name, ())


def _load(name: str, extending: tuple[Path, ...]) -> tuple[str, str, Profile]:
    path = Path(name) if name.endswith((".yml", ".yaml")) or "/" in name else PROFILES / f"{name}.yml"
    if path in extending:
        raise HarnessError(f"profile {path} extends itself; take 'extends' out of it")
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        raise HarnessError(f"profile {path} is not text") from None
    except PermissionError as error:
        raise HarnessError(f"profile {path} cannot be read: {error.strerror}") from None
    except OSError:
        shipped = ", ".join(sorted(entry.stem for entry in PROFILES.glob("*.yml")))
        raise HarnessError(
            f"no profile '{name}'; shipped ones: {shipped}; or give the path of a .yml"
        ) from None
    profile = parse_profile(path, text)
    if profile.extends:
        _, base_text, base = _load(profile.extends, (*extending, path))
        profile = profile.model_copy(update={"trials": [*base.trials, *profile.trials]})
        text = f"{base_text.rstrip()}\n\n# --- {path.name} ---\n{text}"
    return path.stem, text, profile


def parse_profile(path: Path, text: str) -> Profile:
    """Check one profile's text.

    Raises:
        HarnessError: it is no YAML, or a key or value in it is wrong.
    """
    try:
        content: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise HarnessError(f"profile {path} is not YAML: {' '.join(str(error).split())}") from error
    try:
        return Profile.model_validate(content)
    except ValidationError as error:
        raise HarnessError(f"profile {path}: {_explain(error)}") from error


def _explain(error: ValidationError) -> str:
    # A misspelt key is often a missing one too: the misspelling says more.
    fault = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    # ("trials", 0, "load", "repeats"): the kind is pydantic's, not a part of the file.
    location = [part for place, part in enumerate(fault["loc"]) if place != 2 or part not in _STEPS]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    if fault["type"] == "extra_forbidden":
        known = ", ".join(_model_at(fault["loc"]).model_fields)
        return f"unknown key '{where}'; known keys here: {known}"
    return f"{where or 'the file'}: {fault['msg']} (got {str(fault['input'])[:80]!r})"


def _model_at(location: tuple[int | str, ...]) -> type[BaseModel]:
    if "starve" in location[:-1]:
        return Starve
    kinds = [part for part in location[:-1] if isinstance(part, str) and part in _STEPS]
    return _STEPS[kinds[0]] if kinds else Profile
