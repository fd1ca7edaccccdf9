"""Profiles: the YAML files that say what a run contains."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from harness.contracts.diagnosis import FailureClass
from harness.errors import HarnessError
from harness.trials.profile.steps import (
    STEPS,
    Limits,
    LoadStep,
    Names,
    ParityStep,
    Starve,
    Step,
    Strict,
    each_combination,
)

PROFILES = Path(__file__).parents[1] / "profiles"


class StopWhen(Strict):
    """What ends a run before its last trial."""

    failed: int | None = Field(None, ge=1, description="so many trials have failed")
    classes: list[FailureClass] = Field([], description="a trial has failed with one of these diagnoses")


class Ask(Strict):
    """A question that the run is to answer from its trials."""

    ask: Literal["answers", "fits", "loads", "stays_up", "pins"]
    model: str | None = None
    nodes: int | None = Field(None, ge=1, description="of fits: over so many backends")
    times: int | None = Field(None, ge=1, description="of answers: so many requests at least")


class Profile(Strict):
    """What a run contains, in order."""

    model_config = ConfigDict(serialize_by_alias=True)

    description: str = ""
    extends: str | None = Field(None, description="a shipped profile whose trials come first")
    aliases: dict[str, str] = Field(
        {},
        alias="models",
        description="names for models, to be used in trials; harness run --model NAME=MODEL changes them",
    )
    questions: list[Ask] = Field(
        [], description="what the run is to answer; without it, what its trials can tell"
    )
    faults_allowed: bool = Field(
        False, description="on machines that are no lab, faults are caused only where this says so"
    )
    node_sets: dict[str, Names] = Field({}, description="names for backends, to be used in nodes of a load")
    repeats: int = Field(1, ge=1, le=1000, description="how many times all trials run, round by round")
    order: Literal["given", "shuffled"] = Field(
        "given",
        description="shuffled: each round in an order of its own; what builds on a load stays behind it",
    )
    seed: int | None = Field(None, ge=0, description="of the shuffle; drawn and recorded without it")
    deadline_s: Annotated[float, Field(gt=0, le=7 * 24 * 3600)] | None = Field(
        None,
        description="the whole run ends when so many seconds have passed since its first trial; one that is "
        "resumed counts what its finished trials took",
    )
    stop_when: StopWhen = StopWhen()
    trials: list[Annotated[Step, Field(discriminator="kind")]] = Field(min_length=1)

    @field_validator("trials", mode="before")
    @classmethod
    def _each_combination(cls, trials: object) -> object:
        return (
            [one for step in trials for one in each_combination(step)] if isinstance(trials, list) else trials
        )

    @property
    def model_names(self) -> list[str]:
        """Names of the models that the trials use, each once, in order."""
        return list(dict.fromkeys(step.model for step in self.trials))


def load_profile(name: str, models: Mapping[str, str] | None = None) -> tuple[str, str, Profile]:
    """A profile by the name of a shipped one or by its path.

    Args:
        models: put in place of those that the profile's ``models`` names.

    Returns:
        Its name, its text and its content (with the trials of what it extends, node sets put in their place).

    Raises:
        HarnessError: there is no such profile, or a key or value in it is wrong.
    """
    found, text, profile = _load(name, ())
    return found, text, _with_nodes(_with_models(found, profile, models or {}))


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
        profile = _extended(base, profile)
        text = f"{base_text.rstrip()}\n\n# --- {path.name} ---\n{text}"
    return path.stem, text, profile


def _extended(base: Profile, profile: Profile) -> Profile:
    """The trials and node sets of both; every other key from the profile, where it says one."""
    own = {name: getattr(profile, name) for name in profile.model_fields_set}
    trials, sets = [*base.trials, *profile.trials], base.node_sets | profile.node_sets
    aliases = base.aliases | profile.aliases
    return base.model_copy(update={**own, "trials": trials, "node_sets": sets, "aliases": aliases})


def _with_models(name: str, profile: Profile, models: Mapping[str, str]) -> Profile:
    """The profile with the names of its models replaced by the models."""
    if unknown := [alias for alias in models if alias not in profile.aliases]:
        known = ", ".join(profile.aliases) or "none"
        raise HarnessError(f"profile {name} has no name '{unknown[0]}' for a model; it has: {known}")
    known_as = profile.aliases | dict(models)

    trials = [
        step.model_copy(update={"model": known_as.get(step.model, step.model)}) for step in profile.trials
    ]
    questions = [
        ask.model_copy(update={"model": known_as.get(ask.model or "", ask.model)})
        for ask in profile.questions
    ]
    return profile.model_copy(update={"aliases": known_as, "trials": trials, "questions": questions})


def _with_nodes(profile: Profile) -> Profile:
    """The profile with the names of node sets replaced by their nodes, each node once."""

    def named(step: Step) -> Step:
        if not isinstance(step, LoadStep | ParityStep) or not isinstance(step.nodes, list):
            return step
        members = [node for name in step.nodes for node in profile.node_sets.get(name, [name])]
        return step.model_copy(update={"nodes": list(dict.fromkeys(members))})

    return profile.model_copy(update={"trials": [named(step) for step in profile.trials]})


def schema_text() -> str:
    """JSON schema (draft 2020-12) of a profile, with which editors check one while it is written."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Profile.model_json_schema()}
    return json.dumps(schema, indent=1) + "\n"


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
        raise HarnessError(f"profile {path}: {_explain(error, content)}") from error


def _explain(error: ValidationError, content: Any) -> str:
    # A misspelt key is often a missing one too: the misspelling says more.
    fault = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    # ("trials", 0, "load", "repeats"): the kind is pydantic's, not a part of the file.
    location = [part for place, part in enumerate(fault["loc"]) if place != 2 or part not in STEPS]
    if location[:1] == ["trials"] and len(location) > 1:
        location[1] = _written(content["trials"], int(location[1]))
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    if fault["type"] == "extra_forbidden":
        fields = _model_at(fault["loc"]).model_fields.items()
        known = ", ".join(field.alias or name for name, field in fields)
        return f"unknown key '{where}'; known keys here: {known}"
    return f"{where or 'the file'}: {fault['msg']} (got {str(fault['input'])[:80]!r})"


def _written(trials: list[object], place: int) -> int:
    """Where the file has the trial that came to ``place`` once lists of counts were trials of their own."""
    return [number for number, step in enumerate(trials) for _ in each_combination(step)][place]


def _model_at(location: tuple[int | str, ...]) -> type[BaseModel]:
    if "starve" in location[:-1]:
        return Starve
    if "limits" in location[:-1]:
        return Limits
    if "stop_when" in location[:-1]:
        return StopWhen
    kinds = [part for part in location[:-1] if isinstance(part, str) and part in STEPS]
    return STEPS[kinds[0]] if kinds else Profile
