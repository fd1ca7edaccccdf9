"""What the steps of a profile are made of: sizes, nodes, counts, limits, and what every step has."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from harness.common.text import parse_size
from harness.runs.metrics import LIMITED

Size = Annotated[
    int,
    BeforeValidator(parse_size),
    Field(gt=0),
    WithJsonSchema({"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, {"type": "string"}]}),
]
Names = Annotated[list[str], Field(min_length=1)]


def _one_name(value: object) -> object:
    return [value] if isinstance(value, str) else value


Nodes = Annotated[
    Annotated[int, Field(ge=1)] | Names,
    BeforeValidator(_one_name, json_schema_input_type=Annotated[int, Field(ge=1)] | Names | str),
]
"""How many backends, or which of them by name."""
Deadline = Annotated[float, Field(gt=0, le=24 * 3600)]
_ONE = {"type": "integer", "minimum": 1}
Count = Annotated[
    int,
    Field(ge=1),
    WithJsonSchema({"anyOf": [_ONE, {"type": "array", "items": _ONE, "minItems": 1}]}),
]
"""A number; in the file also a list of them, for a trial of each."""


class Strict(BaseModel):
    """A part of a profile: a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid")


class Starve(Strict):
    """Lower one lab node's memory limit for as long as the model is loaded."""

    node: str
    memory: Size = Field(description="the limit, in bytes or as 1.5G")


@dataclass(frozen=True)
class Pace:
    """Seconds that one model is assumed to take."""

    cold_load_s: float
    warm_load_s: float
    token_s: float
    prompt_token_s: float

    def requests_s(self, count: int, prompt_tokens: int, generated_tokens: int) -> float:
        """A short warm-up, then requests one after the other."""
        request_s = generated_tokens * self.token_s + prompt_tokens * self.prompt_token_s
        return min(prompt_tokens, 64) * self.token_s + count * request_s


class BaseStep(Strict):
    """What every kind of trial has."""

    kind: str
    model: str

    uses_pool: ClassVar[bool] = False
    """Its requests go to the pool: it needs no coordinator and leaves a loaded one as it is."""
    loads_itself: ClassVar[bool] = False
    """It loads what it needs: no earlier load has to be up."""
    ends_unloaded: ClassVar[bool] = False
    """No coordinator runs after it."""

    @property
    def title(self) -> str:
        """What the trial is called: ``13b-q4_0-cold-load``."""
        return f"{self.model}-{self.kind}"

    @property
    def begins_block(self) -> bool:
        """Whether it builds on no earlier trial, so that an order may put it anywhere."""
        return self.loads_itself

    def assumed_s(self, pace: Pace) -> float:
        """How long it takes where no earlier run says, in seconds."""
        return 0.0


class Limits(Strict):
    """What a request may take to count for goodput: any, and at least one, of these."""

    ttft_s: Deadline | None = None
    tpot_s: Deadline | None = None
    e2e_s: Deadline | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if not self.model_dump(exclude_none=True):
            raise ValueError(f"state one at least: {', '.join(LIMITED)}")
        return self


def stated(limits: Limits | None) -> dict[str, float]:
    """Seconds by figure; empty where nothing is limited."""
    return limits.model_dump(exclude_none=True) if limits else {}
