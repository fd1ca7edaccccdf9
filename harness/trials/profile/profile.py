"""Profiles: the YAML files that say what a run contains, and the order in which their trials run."""

import json
import random
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from harness.errors import HarnessError
from harness.trials.profile.base_step import Limits, Starve, Strict
from harness.trials.profile.steps import STEPS, LoadStep, Step, each_combination

PROFILES = Path(__file__).parents[1] / "profiles"
_PARTS: dict[str, type[BaseModel]] = {**STEPS, "starve": Starve, "limits": Limits}


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
    repeats: int = Field(1, ge=1, le=1000, description="how many times all trials run, round by round")
    order: Literal["given", "shuffled"] = Field(
        "given",
        description="shuffled: each round in an order of its own; what builds on a load stays behind it",
    )
    trials: list[Annotated[Step, Field(discriminator="kind")]] = Field(min_length=1)

    @field_validator("trials", mode="before")
    @classmethod
    def _each_combination(cls, trials: object) -> object:
        if not isinstance(trials, list):
            return trials
        return [combination for step in trials for combination in each_combination(step)]

    @property
    def model_names(self) -> list[str]:
        """Names of the models that the trials use, each once, in order."""
        return list(dict.fromkeys(step.model for step in self.trials))


def load_profile(name: str, models: Mapping[str, str] | None = None) -> tuple[str, str, Profile]:
    """A profile by the name of a shipped one or by its path.

    Args:
        models: put in place of those that the profile's ``models`` names.

    Returns:
        Its name, its text and its content, with the trials of the profile that it extends.

    Raises:
        HarnessError: there is no such profile, or a key or value in it is wrong.
    """
    name, text, profile = _load(name, ())
    return name, text, _with_models(name, profile, models or {})


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
    """The trials and model names of both; every other key from the profile, where it says one."""
    own = {name: getattr(profile, name) for name in profile.model_fields_set}
    both = {"trials": [*base.trials, *profile.trials], "aliases": base.aliases | profile.aliases}
    return base.model_copy(update=own | both)


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
    fault = min(error.errors(), key=lambda error: error["type"] != "extra_forbidden")
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
    """Position in the file of the trial at ``place``, once lists of counts are expanded to several trials."""
    return [number for number, step in enumerate(trials) for _ in each_combination(step)][place]


def _model_at(location: tuple[int | str, ...]) -> type[BaseModel]:
    """The model that has the last part of ``location`` as its key."""
    for part in reversed(location[:-1]):
        if isinstance(part, str) and part in _PARTS:
            return _PARTS[part]
    return Profile


def shuffle_seed(profile: Profile, seed: int | None) -> int | None:
    """The seed of a run's shuffle: ``seed`` if it is given, else a new one; None for no shuffle."""
    if seed is not None or profile.order == "given":
        return seed
    return secrets.randbelow(1 << 31)


def arrange(profile: Profile, seed: int | None) -> list[Step]:
    """The steps of a run, in the order they run.

    Repeats come round by round, so that what drifts over a run meets every block alike; each round is
    shuffled by itself (a randomised block design; Box, Hunter and Hunter, Statistics for
    Experimenters, chapter 4).

    Args:
        seed: of the shuffle; None keeps the profile's order.
    """
    if seed is None:
        return profile.trials * profile.repeats
    groups = blocks(profile.trials)
    rng = random.Random(seed)  # noqa: S311 - a sequence that can be repeated, not a secret
    order: list[Step] = []
    for _ in range(profile.repeats):
        rng.shuffle(groups)
        order += [step for block in groups for step in block]
    return order


def blocks(steps: Sequence[Step]) -> list[list[Step]]:
    """The steps in groups that may change places: each begins with a step that builds on no other group.

    Requests to a pool's model between a load and the trials that need it stay where they are. A load that
    repeats the split of an earlier one is in the group of that one.
    """
    cuts: list[int] = []
    free = True
    for place in range(len(steps) - 1, -1, -1):
        free = steps[place].begins_block or (steps[place].uses_pool and free)
        if free or place == 0:
            cuts.insert(0, place)
    parts = [steps[start:end] for start, end in zip(cuts, [*cuts[1:], len(steps)], strict=True)]

    group = list(range(len(parts)))
    split_of: dict[str, int] = {}
    for number, part in enumerate(parts):
        for load in (step for step in part if isinstance(step, LoadStep)):
            key = _split(load)
            if not load.repeats_split:
                split_of[key] = number
            elif key in split_of:
                joined = {group[split_of[key]], group[number]}
                group = [min(joined) if number in joined else number for number in group]
    return [
        [step for part, number in zip(parts, group, strict=True) if number == first for step in part]
        for first in dict.fromkeys(group)
    ]


def _split(step: LoadStep) -> str:
    return step.model_dump_json(include={"model", "nodes", "n_gpu_layers", "context", "parallel", "flags"})
